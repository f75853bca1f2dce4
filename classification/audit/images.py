"""What the audit needs to know of every image, read once, in threads."""

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ...processing_hf_mamba import load_rgb_image
from ..data.image_sources import Source, source_key
from ..data.posts import Posts
from ..support.processes import usable_cores


_ENOUGH = (128, 128)  # a JPEG is decoded to at least so many pixels: means and hashes hardly differ
_HASH_COLUMNS, _HASH_ROWS = 9, 8


@dataclass
class ImageFacts:
    """
    An image that can be read.

    Args:
        width, height: pixels, as the file says
        num_bytes: of the file
        format, mode: Pillow's names, "JPEG", "RGB"
        exif: whether the file has EXIF entries
        mean_colour: red, green, blue, 0 to 255
        contrast: standard deviation of the grey values
        pixels: digest of the decoded pixels
        small: 8 rows of 9 pixels, uint8 (8, 9, 3)
    """

    width: int
    height: int
    num_bytes: int
    format: str
    mode: str
    exif: bool
    mean_colour: tuple[float, float, float]
    contrast: float
    pixels: bytes
    small: np.ndarray

    def difference_hash(self) -> np.ndarray:
        """
        dHash: whether each grey value of `small` is above its left neighbour's by more than two levels: below that, in
        flat areas, saving again decides it by chance. 64 bools.
        """
        grey = self.small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return (grey[:, 1:] > grey[:, :-1] + 2).ravel()


def read_facts(source: Source) -> ImageFacts | None:
    """The facts of an image, a path or bytes; None if it can't be read."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(BytesIO(data)) as image:
            width, height, kind, mode = image.width, image.height, image.format or "", image.mode
            exif = bool(image.getexif())
            if image.format == "JPEG":
                image.draft("RGB", _ENOUGH)
            rgb = load_rgb_image(image)
            pixels = np.asarray(rgb)
        small = np.asarray(rgb.resize((_HASH_COLUMNS, _HASH_ROWS), Image.Resampling.BOX))
    except Exception:  # a decoder may raise anything; what counts is that the image can't be read
        return None
    red, green, blue = pixels.reshape(-1, 3).mean(0).tolist()
    return ImageFacts(
        width=width,
        height=height,
        num_bytes=len(data),
        format=kind,
        mode=mode,
        exif=exif,
        mean_colour=(red, green, blue),
        contrast=float(np.asarray(rgb.convert("L")).std()),
        pixels=hashlib.sha1(repr(pixels.shape).encode() + pixels.tobytes(), usedforsecurity=False).digest(),
        small=small,
    )


def read_image_facts(
    posts: Posts, *, progress: bool = True
) -> tuple[dict[str, list[list[str]]], dict[str, ImageFacts | None]]:
    """
    Reads each image of the posts once.

    Args:
        posts: stored ones
        progress: show a bar

    Returns:
        split -> the keys of each post's images (`source_key`), and key -> facts, None for one that can't be read.
    """
    keys: dict[str, list[list[str]]] = {split: [] for split in posts.splits}
    facts: dict[str, ImageFacts | None] = {}
    total = sum(map(len, posts.splits.values()))
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(usable_cores()) as pool,
        tqdm(total=total, desc="Reading images", unit=" posts", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore")
        for split, _, chunk in posts.image_sources():
            of_posts = [[source_key(source) for source in sources] for sources in chunk]
            new = {k: s for row, sources in zip(of_posts, chunk) for k, s in zip(row, sources) if k not in facts}
            facts |= zip(new, pool.map(read_facts, new.values()))
            keys[split] += of_posts
            bar.update(len(chunk))
    return keys, facts
