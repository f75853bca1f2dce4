"""What the audit needs to know of every picture, read once, in threads."""

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
from ..data.image_sources import source_key
from ..data.posts import Posts
from ..support.processes import usable_cores


_ENOUGH = (128, 128)  # pixels that a JPEG is decoded to at least: means and hashes are the same to the eye
_HASH_COLUMNS, _HASH_ROWS = 9, 8


@dataclass
class PictureFacts:
    """
    A picture that can be read.

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
        dHash: whether each grey value of `small` is above its left neighbour's, by more than two levels, for in flat
        areas saving again would toss a coin; 64 bools.
        """
        grey = self.small.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        return (grey[:, 1:] > grey[:, :-1] + 2).ravel()


def read_facts(source) -> PictureFacts | None:
    """The facts of a picture, a path or bytes; None if it can't be read."""
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(BytesIO(data)) as image:
            about = {"width": image.width, "height": image.height, "format": image.format or "", "mode": image.mode}
            about["exif"] = bool(image.getexif())
            if image.format == "JPEG":
                image.draft("RGB", _ENOUGH)
            rgb = load_rgb_image(image)
            pixels = np.asarray(rgb)
        small = np.asarray(rgb.resize((_HASH_COLUMNS, _HASH_ROWS), Image.Resampling.BOX))
    except Exception:  # a decoder may raise anything; that it can't be read is what is counted
        return None
    return PictureFacts(
        **about,
        num_bytes=len(data),
        mean_colour=tuple(float(value) for value in pixels.reshape(-1, 3).mean(0)),
        contrast=float(np.asarray(rgb.convert("L")).std()),
        pixels=hashlib.sha1(repr(pixels.shape).encode() + pixels.tobytes(), usedforsecurity=False).digest(),
        small=small,
    )


def read_pictures(
    posts: Posts, *, progress: bool = True
) -> tuple[dict[str, list[list[str]]], dict[str, PictureFacts | None]]:
    """
    Reads each picture of the posts once.

    Args:
        posts: Posts with stored splits
        progress: show a bar

    Returns:
        split -> the keys of each post's pictures (`source_key`), and key -> facts, None for one that can't be read.
    """
    keys, facts = {split: [] for split in posts.splits}, {}
    total = sum(map(len, posts.splits.values()))
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(usable_cores()) as pool,
        tqdm(total=total, desc="Looking at pictures", unit=" posts", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore")
        for split, _, chunk in posts.image_sources():
            of_posts = [[source_key(source) for source in sources] for sources in chunk]
            new = {k: s for row, sources in zip(of_posts, chunk) for k, s in zip(row, sources) if k not in facts}
            facts |= zip(new, pool.map(read_facts, new.values()))
            keys[split] += of_posts
            bar.update(len(chunk))
    return keys, facts
