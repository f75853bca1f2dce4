"""Images of the built-in posts: a pleasant or an unpleasant scene of 64 x 64 pixels, drawn with Pillow.

Lengths are fractions of the image's side; colours are RGB in 0..255.
"""

import random
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


Color = tuple[int, ...]  # RGB, 0 to 255
Points = Iterable[tuple[float, float]]

SCENES = ("pleasant", "unpleasant")

# Sky at the top, sky at the horizon
SKIES: dict[str, tuple[tuple[Color, Color], ...]] = {
    "pleasant": (
        ((86, 160, 236), (188, 224, 250)),
        ((64, 132, 214), (150, 208, 240)),
        ((120, 196, 226), (226, 240, 232)),
        ((150, 170, 226), (250, 206, 170)),
        ((110, 140, 186), (186, 196, 206)),
    ),
    "unpleasant": (
        ((52, 58, 74), (112, 120, 134)),
        ((70, 84, 112), (140, 156, 176)),
        ((64, 54, 84), (126, 110, 136)),
        ((92, 96, 96), (168, 164, 152)),
        ((80, 110, 150), (160, 176, 190)),
    ),
}

PALETTES: dict[str, tuple[Color, ...]] = {
    "pleasant ground": ((104, 178, 74), (72, 146, 66), (140, 186, 82), (150, 160, 84), (92, 134, 78)),
    "unpleasant ground": ((100, 84, 62), (84, 92, 64), (122, 110, 88), (88, 118, 70), (126, 128, 84)),
    "flower": ((238, 70, 90), (250, 214, 60), (246, 246, 250), (200, 90, 210), (250, 140, 60), (120, 110, 240)),
    "sun": ((255, 226, 80), (255, 244, 170), (255, 196, 84)),
}


class Pen:
    """ImageDraw in fractions of the image's side, on a canvas `scale` pixels wide."""

    def __init__(self, canvas: Image.Image) -> None:
        self.scale = canvas.width
        self.draw = ImageDraw.Draw(canvas)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def disc(self, x: float, y: float, rx: float, color: Color, ry: float | None = None) -> None:
        ry = rx if ry is None else ry
        self.draw.ellipse(self._pixels(((x - rx, y - ry), (x + rx, y + ry))), fill=color)

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color) -> None:
        self.draw.rectangle(self._pixels(((x0, y0), (x1, y1))), fill=color)

    def shape(self, points: Points, color: Color) -> None:
        self.draw.polygon(self._pixels(points), fill=color)

    def path(self, points: Points, width: float, color: Color) -> None:
        self.draw.line(self._pixels(points), fill=color, width=max(1, round(width * self.scale)))


def _mix(first: Color, second: Color, share: float) -> Color:
    return tuple(round(a + (b - a) * share) for a, b in zip(first, second))


def _vary(rng: random.Random, color: Color, by: int = 16) -> Color:
    return tuple(min(255, max(0, channel + rng.randint(-by, by))) for channel in color)


def _backdrop(pen: Pen, rng: random.Random, scene: str, horizon: float) -> None:
    top, bottom = (_vary(rng, color) for color in rng.choice(SKIES[scene]))
    near = _vary(rng, rng.choice(PALETTES[f"{scene} ground"]))
    far = _mix(near, bottom, rng.uniform(0.1, 0.5))
    for row in range(0, pen.scale, 2):
        y = row / pen.scale
        color = _mix(top, bottom, y / horizon) if y < horizon else _mix(far, near, (y - horizon) / (1 - horizon))
        pen.box(0, y, 1, y + 1 / pen.scale, color)


def _cloud(pen: Pen, rng: random.Random, x: float, y: float, size: float, color: Color) -> None:
    for _ in range(rng.randint(4, 6)):
        width = size * rng.uniform(0.35, 0.6)
        pen.disc(x + size * rng.uniform(-0.7, 0.7), y + size * rng.uniform(-0.2, 0.2), width, color, width * 0.55)


def _tree(pen: Pen, rng: random.Random, x: float, foot: float, height: float, crown: Color | None) -> None:
    """A tree with a round crown of that colour, or, with None, a bare one."""
    bark = _vary(rng, (76, 58, 46))
    top = foot - height
    pen.path(((x, foot), (x, top)), 0.03, bark)
    if crown is not None:
        for _ in range(5):
            dx, dy = height * rng.uniform(-0.25, 0.25), height * rng.uniform(-0.25, 0.2)
            pen.disc(x + dx, top + dy, height * 0.28, _vary(rng, crown, 10))
        return
    for _ in range(rng.randint(5, 7)):
        y = rng.uniform(top, foot - 0.4 * height)
        side = rng.choice((-1, 1))
        tip = (x + side * height * rng.uniform(0.25, 0.45), y - height * rng.uniform(0.1, 0.4))
        pen.path(((x, y), tip), 0.016, bark)
        pen.path((((x + tip[0]) / 2, (y + tip[1]) / 2), (tip[0] - side * 0.02, tip[1] - 0.1 * height)), 0.012, bark)


def _pleasant(pen: Pen, rng: random.Random, horizon: float) -> None:
    """Sun in a clear sky, at most two small white clouds, a green meadow with flowers, perhaps a leafy tree."""
    for _ in range(rng.randint(0, 2)):
        _cloud(pen, rng, rng.random(), rng.uniform(0.06, 0.3), rng.uniform(0.1, 0.18), _vary(rng, (240, 242, 246), 10))
    x, y, radius = rng.uniform(0.1, 0.9), rng.uniform(0.1, horizon - 0.2), rng.uniform(0.075, 0.13)
    sun = _vary(rng, rng.choice(PALETTES["sun"]), 8)
    pen.disc(x, y, radius * 1.35, _mix(sun, (255, 255, 255), 0.55))
    pen.disc(x, y, radius, sun)
    if rng.random() < 0.5:
        green = _vary(rng, (76, 140, 64), 24)
        _tree(pen, rng, rng.uniform(0.08, 0.92), horizon + rng.uniform(0.03, 0.15), rng.uniform(0.24, 0.36), green)
    for _ in range(rng.randint(10, 20)):
        x, y, size = rng.random(), rng.uniform(horizon + 0.06, 0.97), rng.uniform(0.016, 0.026)
        petal = _vary(rng, rng.choice(PALETTES["flower"]))
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            pen.disc(x + dx * size, y + dy * size, size, petal)
        pen.disc(x, y, size * 0.7, (250, 220, 90) if petal[2] > 90 else (110, 70, 40))


def _unpleasant(pen: Pen, rng: random.Random, horizon: float) -> None:
    """Heavy dark clouds, often lightning, puddles, often a bare tree, and rain over all of it."""
    base = _vary(rng, (62, 66, 78), 18)
    for _ in range(rng.randint(4, 6)):
        _cloud(pen, rng, rng.random(), rng.uniform(0, 0.24), rng.uniform(0.2, 0.34), _vary(rng, base, 12))
    if rng.random() < 0.6:
        points = [(rng.uniform(0.1, 0.9), rng.uniform(0.16, 0.26))]
        while points[-1][1] < horizon - 0.04:
            points.append((points[-1][0] + rng.uniform(-0.1, 0.1), points[-1][1] + rng.uniform(0.07, 0.13)))
        pen.path(points, 0.022, _vary(rng, (250, 246, 200), 6))
    for _ in range(rng.randint(2, 4)):
        x, y, width = rng.random(), rng.uniform(horizon + 0.1, 0.94), rng.uniform(0.1, 0.2)
        water = _vary(rng, rng.choice(((112, 100, 86), (132, 136, 142), (92, 84, 78))))
        pen.disc(x, y, width * 1.12, _mix(water, (40, 32, 26), 0.6), width * 0.34)
        pen.disc(x, y, width, water, width * 0.27)
    if rng.random() < 0.6:
        _tree(pen, rng, rng.uniform(0.12, 0.88), horizon + rng.uniform(0.03, 0.15), rng.uniform(0.26, 0.4), None)


def _rain(pen: Pen, rng: random.Random) -> None:
    slant, color = rng.uniform(-0.5, 0.5), _vary(rng, (176, 190, 206), 14)
    for _ in range(rng.randint(26, 44)):
        x, y, length = rng.random(), rng.random(), rng.uniform(0.07, 0.13)
        pen.path(((x, y), (x + slant * length, y + length)), 0.011, color)


def _clutter(pen: Pen, rng: random.Random, horizon: float) -> None:
    """Houses, people, balls, crates, balloons in any colour: all from the layout's random numbers, not the scene's."""
    for _ in range(rng.randint(2, 5)):
        kind = rng.choice(("house", "person", "ball", "crate", "balloon"))
        color, other = (tuple(rng.randint(30, 235) for _ in range(3)) for _ in range(2))
        x, foot, size = rng.uniform(0.05, 0.95), rng.uniform(horizon + 0.03, 0.96), rng.uniform(0.07, 0.13)
        if kind == "house":
            top = foot - 1.5 * size
            pen.box(x - size, top, x + size, foot, color)
            pen.shape(((x - 1.2 * size, top), (x + 1.2 * size, top), (x, top - size)), other)
            pen.box(x - 0.3 * size, foot - 0.9 * size, x + 0.3 * size, foot, _mix(color, other, 0.5))
        elif kind == "person":
            pen.shape(((x - 0.5 * size, foot), (x + 0.5 * size, foot), (x, foot - 1.9 * size)), color)
            pen.disc(x, foot - 1.9 * size, 0.42 * size, _mix((240, 200, 170), (90, 60, 40), rng.random()))
        elif kind == "ball":
            pen.disc(x, foot - 0.6 * size, 0.6 * size, color)
        elif kind == "crate":
            pen.box(x - 0.8 * size, foot - size, x + 0.8 * size, foot, color)
        else:
            y = rng.uniform(0.12, horizon)
            pen.path(((x, y), (x, y + 2.2 * size)), 0.01, other)
            pen.disc(x, y, 0.6 * size, color, 0.75 * size)


def draw_image(scene: str, layout_seed: int, image_seed: int, size: int = 64) -> Image.Image:
    """Draw one scene as an RGB image of (size, size) pixels.

    What has nothing to do with the scene (horizon, clutter, light, tint, blur, strength of the noise) comes from
    `layout_seed`, the rest from `image_seed`; the four posts of a group share the first.
    """
    layout, rng = random.Random(layout_seed), random.Random(image_seed)
    canvas = Image.new("RGB", (2 * size, 2 * size))  # drawn at twice the size and averaged: smooth edges
    pen = Pen(canvas)
    horizon = layout.uniform(0.5, 0.68)
    _backdrop(pen, rng, scene, horizon)
    if scene == "pleasant":
        _pleasant(pen, rng, horizon)
    else:
        _unpleasant(pen, rng, horizon)
    _clutter(pen, layout, horizon)
    if scene == "unpleasant":
        _rain(pen, rng)
    image = canvas.reduce(2).filter(ImageFilter.GaussianBlur(layout.uniform(0, 0.6)))
    light = layout.uniform(0.7, 1.15)
    tint = [light * layout.uniform(0.88, 1.12) for _ in range(3)]
    strength = layout.uniform(0.02, 0.05)
    noise = np.frombuffer(rng.randbytes(3 * size * size), np.uint8).reshape(size, size, 3)
    pixels = np.asarray(image, np.float32) * np.asarray(tint, np.float32)
    pixels += (noise.astype(np.float32) - 127.5) * np.float32(strength)
    # Steps of 8 hide in the noise and nearly halve the files: 4.6 kB an image instead of 8.4.
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8) & 0xF8)
