"""
Image files to pixels and pixels to patches, with Pillow and NumPy alone: what reads a file that anyone may have sent.

Symbols: b images, c channels.
"""

import base64
import operator
import os
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError


ImageSource = str | os.PathLike | bytes | Image.Image
BYTES = (bytes, bytearray, memoryview)


# ---------------------------------------------------------------------------------------------------------------------
# Files to pixels


def read_image(
    source: ImageSource,
    rgb: bool = True,
    reduce_to: int | None = None,
    fetch: Callable[[str], Image.Image] | None = None,
) -> Image.Image:
    """Read an image from anywhere: upright, in RGB, transparency over white, the first frame of an animation.

    A path, its bytes and an opened PIL image of it give the same pixels. Greys of 16 bits are scaled from 0..65535;
    `I` and `F` pixels from the first of 0..1 (`F` only), 0..255, 0..65535 that holds them, else their own range.

    Args:
        source: a path, an http(s) URL, a `data:` or base64 string, the bytes of a file, or a PIL image.
        rgb: whether to convert to RGB.
        reduce_to: decode a JPEG at 1/2, 1/4 or 1/8 of its size where both sides stay at least this long.
        fetch: what opens a URL; without it a URL is refused.

    Raises:
        ValueError: the source, which is named, is missing, damaged, not an image or has no RGB form.
    """
    try:
        image = _open(source, fetch)
        _check_harmless(image)
        if reduce_to is not None and image is not source:  # a caller's image is not to change
            image.draft(None, (reduce_to, reduce_to))
        image.load()
        if 0 in image.size:
            raise ValueError(f"it has no pixels, its size is {image.size}")
        with suppress(Exception):  # damaged EXIF around sound pixels
            if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                image = ImageOps.exif_transpose(image)
        return to_rgb(image) if rgb else image
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, DecompressionBombError, ...
        raise ValueError(f"cannot read image {_name_of(source)}: {str(error) or repr(error)}") from error


def _check_harmless(image: Image.Image) -> None:
    """Refuse a file, before it is decoded, that would fill the memory or be run as a program."""
    limit = Image.MAX_IMAGE_PIXELS  # above it Pillow itself only warns, and refuses above twice of it
    if not isinstance(image, ImageFile.ImageFile):
        return  # pixels already, its owner's decision
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width} x {image.height} pixels is more than Pillow takes for safe ({limit})")
    if image.format == "EPS":
        raise ValueError("it is PostScript, a program: convert it to PNG or JPEG")


def _decode_bytes(data) -> Image.Image:
    if not len(data):
        raise ValueError("it is empty, 0 bytes")
    try:
        return Image.open(BytesIO(data))
    except UnidentifiedImageError:
        raise ValueError(f"no image Pillow knows, it begins with {bytes(data[:16])!r}") from None


def _open(source: ImageSource, fetch: Callable[[str], Image.Image] | None) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, BYTES):
        return _decode_bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"expected a path, URL, base64 string, bytes, PIL image or array, got {type(source).__name__}")
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        if fetch is None:
            raise ValueError("it is a URL, which nothing here may fetch: download it first")
        return fetch(source)
    if os.path.isfile(source):
        return _decode_bytes(Path(source).read_bytes())  # no file handle stays open
    if os.path.isdir(source):
        raise IsADirectoryError("it is a folder, not a file")
    text = str(source).split(",", 1)[-1] if str(source).startswith("data:image/") else str(source)
    try:
        return Image.open(BytesIO(base64.b64decode("".join(text.split()), validate=True)))
    except Exception as error:
        raise FileNotFoundError("no such file (nor a URL, nor an image in base64)") from error


def _name_of(source) -> str:
    if isinstance(source, BYTES):
        return f"of {len(source)} bytes"
    source = getattr(source, "filename", "") or source if isinstance(source, Image.Image) else str(source)
    name = repr(source)
    return name if len(name) <= 300 else f"{name[:60]}... ({len(source)} characters)"


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # Pillow's own conversion would clip everything above 255 to white
        image = Image.fromarray(to_8_bit(np.asarray(image)))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data:  # what lies under transparent pixels is usually black and never meant to be seen
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale pixels of any type to uint8 by the range of the type, or of the values where the type has none."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        low, high = 0, 65535
    else:
        ranges = (1, 255, 65535) if values.dtype.kind in "fb" else (255, 65535)
        values = values.astype(np.float64)
        values = np.where(np.isfinite(values), values, 0)
        low, high = values.min(), values.max()
        low, high = next(((0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    return np.rint((values - low) * (255 / ((high - low) or 1))).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# Pixels to patches


def floats_to_rgb(array: np.ndarray) -> np.ndarray:
    """(h, w, c) of floats: grey is repeated, RGBA of 0..1 laid over white, any other number of channels left."""
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        if array.min() < 0 or array.max() > 1:
            raise ValueError(f"RGBA of floats must lie within 0..1, not {array.min()}..{array.max()}")
        colour, alpha = array[..., :3], array[..., 3:]
        return (alpha * colour + (1 - alpha)).astype(array.dtype)
    return array


def check_grid(size, patch_size) -> None:
    """Raise a ValueError unless `size` is a square that patches of `patch_size` fill exactly."""
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(f"patch_size must be a whole number of pixels, 1 or more, got {patch_size!r}")
    if size is None or size.height is None or size.height != size.width:
        raise ValueError(
            f"size must be one square, got {size and dict(size)}: positions count patches, so every image needs "
            "the same grid. Pass size=224 or size={'height': 224, 'width': 224}"
        )
    if size.height < 1 or size.height % patch_size:
        below = size.height // patch_size * patch_size
        nearest = " and ".join(str(good) for good in (below, below + patch_size) if good > 0)
        raise ValueError(f"size {size.height} is not divisible by patch_size {patch_size}; nearest are {nearest}")


def resize(pixels, side: int, resample):
    """Resize a PIL image directly, or an array (height, width, channels) one channel at a time in float32."""
    if isinstance(pixels, Image.Image):
        return pixels.resize((side, side), resample)
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(channel.resize((side, side), resample)) for channel in channels], axis=-1)


def cut_into_patches(images: np.ndarray, patch_size: int) -> np.ndarray:
    """Cut (b, height, width, c) into (b, patches in raster order, patch_size * patch_size * c), as Siglip2 does."""
    b, height, width, c = images.shape
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(b, rows, patch_size, columns, patch_size, c).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(b, rows * columns, patch_size * patch_size * c)


def scale_patches(patches, rescale_factor=None, mean=None, std=None):
    """
    Rescale and normalise patches (..., patch_size**2 * c) of float32 in place: an array, or a tensor on any device,
    with the same bits. `mean` and `std` have a value for each channel, or for each value of a patch.
    """
    if rescale_factor is not None:
        patches *= float(rescale_factor)
    for statistic, operate in ((mean, operator.isub), (std, operator.itruediv)):
        if statistic is not None:
            if not hasattr(statistic, "detach"):  # a tensor has a value for each; np.resize repeats those of channels
                statistic = np.resize(np.float32(statistic), patches.shape[-1])
            operate(patches, statistic)
