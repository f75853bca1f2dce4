"""The pictures of posts: what a cell names, which of them are used, and what becomes of those that can't be read.

A picture's source is the absolute path of a file or the bytes of one; `load_rgb_image` makes the picture of it, here,
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

from PIL import Image
from tqdm.auto import tqdm
from transformers.utils import logging

from ...processing_hf_mamba import load_rgb_image
from ..support.processes import usable_cores
from .columns import is_missing
from .image_sources import is_encoded, source_key
from .posts import Posts
from .raw_split import STORED, RawSplit


logger = logging.get_logger(__name__)


def as_paths(value, where: str, column: str) -> list[str]:
    """
    An image cell that is no stored picture: a path, a base64 string or data: URL, {"path": ...} or {"bytes": base64},
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
                f"{where}, column {column!r}: a {type(path).__name__} where the path of a picture belongs. Write one "
                "path or a list of paths, give pictures as the Image feature of `datasets` or in base64, or name the "
                "right column with --image_column_name."
            )
    return [path for path in paths if path.strip()]


def _from_dict(entry):
    """{"bytes", "path"}, as the Image feature of `datasets` is written; something else is left to be refused."""
    if isinstance(entry.get("bytes"), str) and entry["bytes"]:
        return entry["bytes"] if entry["bytes"].startswith("data:") else f"data:;base64,{entry['bytes']}"
    return entry["path"] if isinstance(entry.get("path"), str) else entry


@dataclass
class BadImage:
    """An unreadable picture of a post: where the post is, the picture's key, and why."""

    split: str
    row: int
    key: str
    why: str


def read_images(
    raw: RawSplit, rows: Sequence[int], column: str, max_images: int | None, on_bad_image: str
) -> tuple[list[list[str]], dict[int, list[str]], int]:
    """
    The pictures that posts use, the first `max_images` of each, as absolute paths, base64 or STORED.

    Returns:
        For all rows of the raw split, those in `rows` filled, their pictures; row -> those that don't exist; and how
        many posts have more than `max_images`.

    Raises:
        FileNotFoundError: pictures are missing, and `on_bad_image` is "error".
        ValueError: a cell that names no picture, or one outside --image_dir.
    """
    stored = raw.has_pixels(column)
    cells = raw.pixel_paths(column) if stored else raw.cells(column)
    images, missing, exists, shortened = [[] for _ in range(len(raw))], {}, {STORED: True}, 0
    first = None
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
    if missing and on_bad_image == "error":
        raise _missing_pictures(raw, column, first, sum(not there for there in exists.values()), len(exists) - 1)
    return images, missing, shortened


def _absolute(raw, path, row, column):
    """A path as an absolute one. With --image_dir what leaves it, be it by .. or a symbolic link, is refused."""
    source = os.path.abspath(os.path.join(raw.folder or "", path))
    if raw.confined and "\0" not in source:  # a name with NUL is no file's, and realpath refuses it
        real, folder = os.path.realpath(source), os.path.realpath(raw.folder)
        if os.path.commonpath([real, folder]) != folder:
            raise ValueError(
                f"{raw.where(row)}, column {column!r}: the picture {path!r} lies outside --image_dir {raw.folder} (it "
                f"is {real}). Correct the path, or name a folder that holds all pictures."
            )
    return source


def _missing_pictures(raw, column, first, count, total):
    row, path, source = first
    if path.startswith(("http://", "https://")):
        fix = "Addresses are not fetched: download the pictures and write their paths."
    else:
        fix = f"Relative paths start at {raw.folder or 'the working directory'}: name another folder with --image_dir."
    return FileNotFoundError(
        f"{raw.where(row)}, column {column!r}: there is no picture {path!r} ({source}). {count} of {total} pictures "
        f"are missing. {fix} Or go on without them by --on_bad_image drop or keep_text."
    )


def why_unreadable(source: str | bytes) -> str | None:
    """None for a picture that decodes, else why not."""
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if image.format == "JPEG" and image.width * image.height <= (Image.MAX_IMAGE_PIXELS or 0):
                image.draft(None, (64, 64))  # it decodes faster at an eighth of its size, and fails all the same
                load_rgb_image(image)
                return None
    except Exception:  # whatever it is, load_rgb_image has the last word, and the wording that training would show
        pass
    try:
        load_rgb_image(source)
        return None
    except ValueError as error:
        return str(error)


def find_bad_images(posts: Posts, *, num_threads: int | None = None, progress: bool = True) -> list[BadImage]:
    """
    Decodes every picture once, so that a damaged one is found before training and not in the middle of it.

    Args:
        posts: streamed ones are not looked at. If they have an `image_cache`, it is filled along the way
        num_threads: None for as many as there are cores

    Returns:
        Every use of an unreadable picture, in the order of the splits and rows.
    """
    bad, reasons, cache = [], {}, posts.image_cache
    why = why_unreadable if cache is None else cache.why_unreadable
    total = sum(map(len, posts.stored.values()))
    with (
        warnings.catch_warnings(),
        nullcontext() if cache is None else cache.filling(posts),
        ThreadPoolExecutor(num_threads or usable_cores()) as pool,
        tqdm(total=total, desc="Checking pictures", unit=" posts", disable=not progress) as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # reported as unreadable
        for split, start, chunk in posts.image_sources():
            keys = [[source_key(source) for source in sources] for sources in chunk]
            new = {k: s for row, sources in zip(keys, chunk) for k, s in zip(row, sources) if k not in reasons}
            reasons |= zip(new, pool.map(why, new.values()))
            for row, row_keys in enumerate(keys, start=start):
                bad += [BadImage(split, row, key, reasons[key]) for key in row_keys if reasons[key] is not None]
            bar.update(len(chunk))
    return bad
