"""What stands for an image in a row: the absolute path of its file, or the bytes of one."""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable
from typing import Any


Source = str | bytes

# How files of JPEG, PNG, GIF, WebP, TIFF (two) and BMP begin in base64. "/9j/" begins paths too: see the length below.
_BASE64_START = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkq", "TU0A", "Qk")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")


def is_encoded(source: str) -> bool:
    """Whether a string is an image in base64 or a data: URL, and not a path."""
    return source.startswith("data:") or (source.startswith(_BASE64_START) and bool(_BASE64.fullmatch(source)))


def source_key(source: Source) -> str:
    """A short name that two sources share only if they are the same image: the path, or a digest of the bytes."""
    return source if isinstance(source, str) else hashlib.sha1(source, usedforsecurity=False).hexdigest()


class UnpackImages:
    """
    The transform under which the `images` of a row are sources: paths (str) or encoded images (bytes).

    Args:
        folder: where relative paths start
        max_images: no more than the first so many; None for all
        left_out: the keys (`source_key`) of images that the posts do without
    """

    def __init__(
        self, folder: str | None = None, max_images: int | None = None, left_out: Iterable[str] = frozenset()
    ) -> None:
        self.folder, self.max_images, self.left_out = folder, max_images, frozenset(left_out)

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        if "images" in batch:
            batch["images"] = [self.sources(cell) for cell in batch["images"]]
        return batch

    def without(self, left_out: Iterable[str]) -> "UnpackImages":
        """The same transform, with more images left out."""
        return UnpackImages(self.folder, self.max_images, self.left_out.union(left_out))

    def sources(self, cell: Any) -> list[Source]:
        """One cell: a path, bytes, base64, {"bytes", "path"}, a list of these, or None."""
        entries = map(self._source, cell if isinstance(cell, list) else [cell])
        sources = [source for source in entries if source is not None][: self.max_images]
        return [source for source in sources if source_key(source) not in self.left_out] if self.left_out else sources

    def _source(self, entry: Any) -> Source | None:
        if isinstance(entry, dict):
            entry = entry["bytes"] if entry.get("bytes") is not None else entry.get("path")
        if isinstance(entry, str) and is_encoded(entry):
            return _decoded(entry)
        return os.path.abspath(os.path.join(self.folder or "", entry)) if isinstance(entry, str) and entry else entry


def _decoded(source: str) -> Source:
    """The bytes of an image in base64; a string that isn't base64 after all stays, to be reported as unreadable."""
    try:
        return base64.b64decode("".join(source.rpartition(",")[2].split()), validate=True)
    except (binascii.Error, ValueError):
        return source
