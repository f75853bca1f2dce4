"""The images of posts: what a cell names, which of them are used, and what becomes of those that can't be read.

An image's source is the absolute path of a file or the bytes of one; `load_rgb_image` makes the image of it, here,
in training and in prediction alike.
"""

import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ...processing_hf_mamba import load_rgb_image
from ..support.processes import usable_cores
from .columns import is_missing
from .image_sources import Source, is_encoded, source_key
from .posts import Posts
from .raw_split import STORED, RawSplit


logger = logging.get_logger(__name__)


def as_paths(value: Any, where: str, column: str) -> list[str]:
    """
    An image cell that isn't a stored image: a path, a base64 string or data: URL, {"path": ...} or {"bytes": base64},
    a list of these, which in a csv file is written as JSON, or nothing.
    """
    if is_missing(value):
        return []
    if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
        with suppress(json.JSONDecodeError):  # else it is a file name with brackets
            value = json.loads(value)
    entries = value if isinstance(value, list) else [value]
    paths = [_from_dict(entry) if isinstance(entry, dict) else entry for entry in entries if not is_missing(entry)]
    for path in paths:
        if not isinstance(path, str):
            raise ValueError(
                f"{where}, column {column!r}: a {type(path).__name__} where the path of an image belongs. Write one "
                "path or a list of paths, give images as the Image feature of `datasets` or in base64, or name the "
                "right column with --image_column_name."
            )
    return [path for path in paths if path.strip()]


def _from_dict(entry: dict) -> Any:
    """{"bytes", "path"}, as the Image feature of `datasets` is written; something else is left to be refused."""
    if isinstance(entry.get("bytes"), str) and entry["bytes"]:
        return entry["bytes"] if entry["bytes"].startswith("data:") else f"data:;base64,{entry['bytes']}"
    return entry["path"] if isinstance(entry.get("path"), str) else entry


@dataclass
class BadImage:
    """An unreadable image of a post: where the post is, the image's key, and why."""

    split: str
    row: int
    key: str
    why: str


def read_images(
    raw: RawSplit, rows: Sequence[int], column: str, max_images: int | None, on_bad_image: str
) -> tuple[list[list[str]], dict[int, list[str]], int]:
    """
    The images that posts use, the first `max_images` of each, as absolute paths, base64 or STORED.

    Returns:
        For all rows of the raw split, those in `rows` filled, their images; row -> those that don't exist; and how
        many posts have more than `max_images`.

    Raises:
        FileNotFoundError: images are missing, and `on_bad_image` is "error".
        ValueError: a cell that names no image, or one outside --image_dir.
    """
    stored = raw.has_pixels(column)
    cells = raw.pixel_paths(column) if stored else raw.cells(column)
    images: list[list[str]] = [[] for _ in range(len(raw))]
    missing: dict[int, list[str]] = {}
    exists, shortened = {STORED: True}, 0
    first: tuple[int, str, str] | None = None
    for row in rows:
        named = cells[row] if stored else as_paths(cells[row], raw.where(row), column)
        shortened += max_images is not None and len(named) > max_images
        for path in named[:max_images]:
            source = path if path is STORED or is_encoded(path) else _absolute(raw, path, row, column)
            if source not in exists:
                exists[source] = is_encoded(source) or os.path.isfile(source)
            if not exists[source]:
                missing.setdefault(row, []).append(source)
                first = first or (row, path, source)
            images[row].append(source)
    if first is not None and on_bad_image == "error":
        raise _missing_images(raw, column, first, sum(not there for there in exists.values()), len(exists) - 1)
    return images, missing, shortened


def _absolute(raw: RawSplit, path: str, row: int, column: str) -> str:
    """A path as an absolute one. With --image_dir what leaves it, be it by .. or a symbolic link, is refused."""
    source = os.path.abspath(os.path.join(raw.folder or "", path))
    if raw.confined and "\0" not in source:  # no file has a name with NUL, and realpath refuses it
        real, folder = os.path.realpath(source), os.path.realpath(raw.folder or "")
        if os.path.commonpath([real, folder]) != folder:
            raise ValueError(
                f"{raw.where(row)}, column {column!r}: the image {path!r} lies outside --image_dir {raw.folder} (it "
                f"is {real}). Correct the path, or name a folder that holds all images."
            )
    return source


def _missing_images(
    raw: RawSplit, column: str, first: tuple[int, str, str], count: int, total: int
) -> FileNotFoundError:
    row, path, source = first
    if path.startswith(("http://", "https://")):
        fix = "URLs are not fetched: download the images and write their paths."
    else:
        fix = f"Relative paths start at {raw.folder or 'the working directory'}: name another folder with --image_dir."
    return FileNotFoundError(
        f"{raw.where(row)}, column {column!r}: there is no image {path!r} ({source}). {count} of {total} images "
        f"are missing. {fix} Or go on without them by --on_bad_image drop or keep_text."
    )


def why_unreadable(source: Source) -> str | None:
    """None for an image that decodes, else why not."""
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format == "JPEG" and image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 0):
                image.draft(None, (64, 64))  # it decodes faster at an eighth of its size, and fails all the same
                load_rgb_image(image)
                return None
    except Exception:  # whatever it is, load_rgb_image decides, and has the wording that training would show
        pass
    try:
        load_rgb_image(source)
        return None
    except ValueError as error:
        return str(error)


def find_bad_images(posts: Posts, *, num_threads: int | None = None, progress: bool = True) -> list[BadImage]:
    """
    Decodes every image once, so that a damaged one is found before training and not in the middle of it.

    Args:
        posts: streamed ones are left out. If they have an `image_cache`, it is filled along the way
        num_threads: None for as many as there are cores

    Returns:
        Every use of an unreadable image, in the order of the splits and rows.
    """
    bad: list[BadImage] = []
    reasons: dict[str, str | None] = {}
    cache = posts.image_cache
    check = why_unreadable if cache is None else cache.why_unreadable
    total = sum(map(len, posts.stored.values()))
    with (
        warnings.catch_warnings(),
        nullcontext() if cache is None else cache.filling(posts),
        ThreadPoolExecutor(num_threads or usable_cores()) as pool,
        tqdm(total=total, desc="Checking images", unit=" posts", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported as unreadable
        for split, start, chunk in posts.image_sources():
            keys = [[source_key(source) for source in sources] for sources in chunk]
            new = {k: s for row, sources in zip(keys, chunk) for k, s in zip(row, sources) if k not in reasons}
            reasons |= zip(new, pool.map(check, new.values()))
            for row, row_keys in enumerate(keys, start=start):
                bad += [BadImage(split, row, key, why) for key in row_keys if (why := reasons[key]) is not None]
            bar.update(len(chunk))
    return bad
