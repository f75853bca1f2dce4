"""Images decoded once: every image of the posts as the small square the model sees, in files mapped to memory.

    posts.image_cache = open_image_cache(args, image_processor)
    check_images(posts)  # looking for damaged images fills the cache
    PostCollator(processor, posts.image_cache)

What is stored is what `HFMambaImageProcessor.process_image` made of the image, RGB and resized, so that a batch has
the same bits with and without the cache. Its folder holds one folder for all images that were made alike (by size,
other settings, Pillow's and the code's version), and in it shards, which never change once they are there:

    NAME.pixels      uint8 (images, size, size, 3), nothing else
    NAME.index.npy   for each of them its key, its row and the checksum of its pixels

The index is renamed into place last: pixels without one are what a crash left, and are deleted. A key is a digest of
a file's path, size and time of change, or of the bytes where a data set stores bytes: a changed file is a new image.
"""

import hashlib
import inspect
import os
import shutil
import threading
import uuid
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
import PIL
from filelock import FileLock, Timeout
from PIL import Image, features
from transformers.utils import logging

from .arguments import DataArguments, parse_size
from .image_sources import Source
from .posts import Posts


if TYPE_CHECKING:
    from ...processing_hf_mamba import HFMambaImageProcessor


logger = logging.get_logger(__name__)

FOLDER_NAME = "hf_mamba_images"
INDEX_TYPE = np.dtype([("key", "V16"), ("row", "<u4"), ("checksum", "<u4")])
SHARD_BYTES = 512 * 2**20  # at most so much of a long check is lost to a crash
SPARE_BYTES = 2**30  # of the disk, left to others


def readable_size(number: float) -> str:
    """Bytes for people: 95 MiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1024
    return f"{number:.1f} GiB"


def default_folder() -> Path:
    """Beside the data sets that `datasets` keeps, so that the runs of all output folders share it."""
    return Path(os.environ.get("HF_DATASETS_CACHE") or datasets.config.HF_DATASETS_CACHE) / FOLDER_NAME


def open_image_cache(args: DataArguments, image_processor: "HFMambaImageProcessor") -> "ImageCache | None":
    """
    The cache that --image_cache and --image_cache_budget ask for, None for "off"; nothing is read or written yet.

    Raises:
        ValueError: a budget that isn't a size.
    """
    budget = parse_size(args.image_cache_budget)
    if args.image_cache == "off" or not (image_processor.do_resize and image_processor.do_convert_rgb):
        return None
    folder = default_folder() if args.image_cache == "auto" else Path(args.image_cache)
    return ImageCache(folder, image_processor, budget)


class ImageCache:
    """
    Images by their source, for one image processor.

    One process fills it, `with cache.filling(posts): cache.why_unreadable(source)`, in any number of threads; others
    `load()` what is there. It can be sent to loader workers. Whatever goes wrong with its files is a line in the log,
    and images are decoded from their sources as without it.

    Args:
        folder: for the images of all image processors
        image_processor: makes the images
        budget: bytes that `folder` may hold; what is used least recently makes room
    """

    def __init__(self, folder: str | Path, image_processor: "HFMambaImageProcessor", budget: int) -> None:
        self.root, self.image_processor, self.budget = Path(folder).absolute(), image_processor, budget
        self.side = image_processor.size["height"]
        self.folder = self.root / f"{self.side}px-{_digest_of_settings(image_processor).hex()[:16]}"
        self._where: dict[bytes, _Place] = {}
        self._keys: dict[str, bytes] = {}  # path -> key, so that a file is looked at once
        self._writer: _ShardWriter | None = None
        self._room = self._damaged = 0
        self._stored: set[bytes] = set()  # keys of the images stored while `filling`
        self._guard = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.root, self.image_processor, self.budget)

    def __len__(self) -> int:
        return len(self._where)

    @property
    def image_bytes(self) -> int:
        return self.side * self.side * 3

    def load(self) -> "ImageCache":
        """Maps every whole shard; one that isn't is left out with a warning."""
        indexes = []
        for index in self.folder.glob("*.index.npy"):
            with suppress(OSError):
                indexes.append((index.stat().st_mtime_ns, index))
        for _, index in sorted(indexes):  # of images in two shards the later counts: the earlier was damaged
            self._open_shard(index)
        return self

    def _open_shard(self, index: Path) -> None:
        try:
            entries = np.load(index)
            mapped = np.memmap(_pixels_of(index), dtype=np.uint8, mode="r")
            if entries.dtype != INDEX_TYPE or mapped.size != len(entries) * self.image_bytes:
                raise ValueError("it has another size")
        except (OSError, ValueError, EOFError) as error:
            if not index.exists():  # another run has just made room
                return
            logger.warning(f"Cached images in {index} are damaged and decoded again ({error}).")
            _delete(index)
            return
        pixels = mapped.reshape(-1, self.side, self.side, 3)
        rows = zip(entries["row"].tolist(), entries["checksum"].tolist())
        file = _pixels_of(index)
        self._where.update((key.tobytes(), _Place(file, pixels, *row)) for key, row in zip(entries["key"], rows))

    def key(self, source: Source) -> bytes | None:
        """What a source is known by; None for what can't be cached."""
        if isinstance(source, bytes):
            return _digest(b"bytes", source)
        if source not in self._keys:
            try:
                stat = os.stat(source)
            except (OSError, ValueError, TypeError):  # load_rgb_image will report what is wrong with it
                return None
            identity = f"{os.path.abspath(source)}\0{stat.st_size}\0{stat.st_mtime_ns}"
            self._keys[source] = _digest(b"file", identity.encode("utf-8", "surrogateescape"))
        return self._keys[source]

    def image(self, source: Source) -> Image.Image | Source:
        """The image as the image processor makes it, RGB (side, side); the source where it isn't cached."""
        key = self.key(source) if self._where else None
        if key is None or key not in self._where:
            return source
        place = self._where[key]
        return Image.fromarray(place.pixels[place.row])

    def why_unreadable(self, source: Source) -> str | None:
        """None for an image that is cached, or decodes and is put there; else why it doesn't decode."""
        key = self.key(source)
        if key is not None and key in self._stored:
            return None
        if key is not None and key in self._where:
            place = self._where[key]
            if zlib.crc32(place.pixels[place.row].data) == place.checksum:
                return None
            with self._guard:
                self._damaged += 1
                self._room += 1
                self._where.pop(key, None)
        try:
            pixels = decode(source, self.image_processor)
        except ValueError as error:
            return str(error)
        if key is not None:
            self._store(key, pixels)
        return None

    @contextmanager
    def filling(self, posts: Posts) -> Iterator["ImageCache"]:
        """
        While it lasts, `why_unreadable` puts images into the cache; afterwards they are there for all processes.

        Another process that fills the same cache is waited for, for it most likely decodes the same images.

        Raises:
            ValueError: the cache's folder lies among the images.
        """
        with _locked(self.folder):
            self.load()
            self._make_room(posts)
            try:
                yield self
            finally:  # also after an error or Ctrl-C: what was decoded until then is worth keeping
                with self._guard:
                    self._finish_shard()
                    self._room, self._stored = 0, set()
        if self._damaged:
            logger.warning(f"{self._damaged:,} cached images in {self.folder} were damaged and decoded again.")
            self._damaged = 0

    def _make_room(self, posts: Posts) -> None:
        """Logs what is cached and what will be; deletes what was used least recently if the budget asks for that."""
        wanted = self._wanted(posts)
        missing = len(wanted - self._where.keys())
        shown = f"images at {self.side}x{self.side}"
        if not missing:
            if wanted:
                logger.info(f"{len(wanted):,} {shown} are in {self.folder}, decoded earlier.")
            self._mark_used(wanted)
            return
        used = self._mark_used(wanted)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _delete_unfinished(self.folder)
            room = self._free_bytes(missing * self.image_bytes, used)
        except OSError as error:
            self._give_up(error)
            return
        self._room = min(missing, room // self.image_bytes)
        size = readable_size(missing * self.image_bytes)
        if self._room < missing:
            logger.warning(
                f"{missing:,} {shown} need {size}, but {readable_size(room)} are left in {self.folder} "
                f"(--image_cache_budget {readable_size(self.budget)}, free disk space): {self._room:,} are decoded "
                "once, the others whenever they are used."
            )
        else:
            logger.info(f"{missing:,} {shown}: {size} in {self.folder}, decoded once (--image_cache).")

    def _wanted(self, posts: Posts) -> set[bytes]:
        """The keys of all images of the posts."""
        keys: set[bytes | None] = set()
        folders = set()
        for _, _, chunk in posts.image_sources():  # of a stream nothing is known beforehand
            for source in chain.from_iterable(chunk):
                keys.add(self.key(source))
                if isinstance(source, str):
                    folders.add(os.path.dirname(source))
        inside = sorted(folders & {str(folder) for folder in (self.root, *self.root.parents)})
        if inside and self.root != default_folder():
            raise ValueError(
                f"--image_cache {self.root} lies in {inside[0]}, among the images: give a folder that is elsewhere."
            )
        return {key for key in keys if key is not None}

    def _mark_used(self, wanted: Iterable[bytes]) -> set[Path]:
        """The shards that hold images of this run, dated as used now."""
        used = {self._where[key].file for key in wanted if key in self._where}
        for pixels in used:
            with suppress(OSError):
                os.utime(pixels)
        return used

    def _free_bytes(self, needed: int, used: set[Path]) -> int:
        """How much may be written, after deleting shards that others used long ago if that is needed."""
        shards = [(path.stat(), path) for path in self.root.glob("*/*.pixels")]
        total = sum(stat.st_size for stat, _ in shards)
        disk = shutil.disk_usage(self.folder).free - SPARE_BYTES
        for stat, path in sorted(shards, key=lambda shard: shard[0].st_mtime):
            if min(self.budget - total, disk) >= needed:
                break
            if path not in used:
                _delete(path.with_suffix(".index.npy"))
                total, disk = total - stat.st_size, disk + stat.st_size
        return max(0, min(self.budget - total, disk))

    def _store(self, key: bytes, pixels: np.ndarray) -> None:
        with self._guard:
            if self._room <= 0 or key in self._stored:
                return
            try:
                self._writer = self._writer or _ShardWriter(self.folder)
                self._writer.add(key, pixels)
                self._stored.add(key)
                self._room -= 1
                if len(self._writer.entries) * self.image_bytes >= SHARD_BYTES:
                    self._finish_shard()
            except OSError as error:
                self._give_up(error)

    def _finish_shard(self) -> None:
        if self._writer is None:
            return
        try:
            self._open_shard(self._writer.finish())
        except OSError as error:
            self._give_up(error)
        self._writer = None

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            f"Nothing can be written into {self.folder} ({error.strerror or error}): images that aren't there are "
            "decoded whenever they are used. Give another folder by --image_cache, or off."
        )
        self._room = 0
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


class _Place(NamedTuple):
    """Where a cached image lies: the file, its pixels (images, size, size, 3), the image's row, its checksum."""

    file: Path
    pixels: np.ndarray
    row: int
    checksum: int


class _ShardWriter:
    """A shard in the making, under names that no reader looks for."""

    def __init__(self, folder: Path) -> None:
        self.index = folder / f"{uuid.uuid4().hex}.index.npy"
        self.unfinished = _pixels_of(self.index).with_suffix(".tmp")
        self.file = open(self.unfinished, "wb")  # noqa: SIM115 - closed by finish or abandon
        self.entries: list[tuple[bytes, int, int]] = []

    def add(self, key: bytes, pixels: np.ndarray) -> None:
        pixels = np.ascontiguousarray(pixels)
        self.file.write(pixels.data)
        self.entries.append((key, len(self.entries), zlib.crc32(pixels.data)))

    def finish(self) -> Path:
        self.file.close()
        os.replace(self.unfinished, _pixels_of(self.index))
        with open(self.unfinished, "wb") as file:
            np.save(file, np.array(self.entries, dtype=INDEX_TYPE))
        os.replace(self.unfinished, self.index)
        return self.index

    def abandon(self) -> None:
        for step in (self.file.close, self.unfinished.unlink, _pixels_of(self.index).unlink):
            with suppress(OSError):
                step()


def decode(source: Source, image_processor: "HFMambaImageProcessor") -> np.ndarray:
    """
    The pixels (size, size, 3) uint8 that the image processor makes of an image before it cuts it into patches.

    Raises:
        ValueError: the image can't be read.
    """
    names = ("do_convert_rgb", "do_resize", "size", "resample", "reduce_jpeg")
    settings = {name: getattr(image_processor, name) for name in names}
    return image_processor.process_image(source, **settings)


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.sha1(usedforsecurity=False)
    for part in parts:
        digest.update(part)
    return digest.digest()[:16]


def _digest_of_settings(image_processor: "HFMambaImageProcessor") -> bytes:
    """Of all that decides which pixels an image becomes: settings, the code that decodes, and its libraries."""
    names = ("do_convert_rgb", "do_resize", "size", "resample", "reduce_jpeg")
    settings = [f"{name}={getattr(image_processor, name)!r}" for name in names]
    libraries = [f"{name}={features.version(name)}" for name in ("jpg", "libjpeg_turbo", "zlib", "webp", "libtiff")]
    return _digest(" ".join([*settings, PIL.__version__, *libraries]).encode(), *_decoding_code(image_processor))


def _decoding_code(image_processor: "HFMambaImageProcessor") -> list[bytes]:
    """The modules that decode: that of the image processor's class, and image_patches.py beside it."""
    module = Path(inspect.getfile(type(image_processor)))
    modules = (module, module.with_name("image_patches.py"))  # the latter is absent beside a class of a user's own
    return [path.read_bytes() for path in modules if path.is_file()]


def _pixels_of(index: Path) -> Path:
    return index.with_name(index.name.removesuffix(".index.npy") + ".pixels")


def _delete(index: Path) -> None:
    """A shard, its index first: without it the pixels count as unfinished."""
    for path in (index, _pixels_of(index)):
        with suppress(OSError):
            path.unlink()


def _delete_unfinished(folder: Path) -> None:
    """What a crash left behind. Only for a process that holds the lock."""
    for path in [*folder.glob("*.tmp"), *folder.glob("*.pixels")]:
        if path.suffix == ".tmp" or not path.with_suffix(".index.npy").exists():
            with suppress(OSError):
                path.unlink()


def _reopened(root: Path, image_processor: "HFMambaImageProcessor", budget: int) -> ImageCache:
    return ImageCache(root, image_processor, budget).load()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, where there can be one; a process that ends lets go of it."""
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.warning(f"Another process decodes images into {folder}: waiting for it.")
            lock.acquire()
    except (OSError, NotImplementedError):  # a read-only folder, or a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()
