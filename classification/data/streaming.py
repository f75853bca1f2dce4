"""Training posts from a stream: a data set of the Hub that is read on the way and never stored.

The stream's first posts are read once before training: columns are found in them and, unless these are given, the
labels and the vocabulary. Validation and test posts are few and stay in memory, so that they are checked and counted
like those of any file.
"""

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count, islice
from typing import Any

import datasets
import torch
from datasets.utils.file_utils import xopen
from transformers.utils import logging

from ..support.messages import one_line
from .arguments import DataArguments
from .posts import Posts
from .raw_split import RawSplit, dataset_cells
from .sources import SPLIT_NAMES


logger = logging.get_logger(__name__)

CHUNK = 64  # posts that are read at a time


def read_streams(args: DataArguments, wanted: Iterable[str] = tuple(SPLIT_NAMES)) -> tuple[dict[str, RawSplit], str]:
    """
    Like `read_splits`, by streaming: of train the first --stream_first_pass rows with the whole as `stream`, of the
    others all rows or the first --max_eval_samples and --max_predict_samples.

    Args:
        args: checked by `check_data_arguments`
        wanted: the splits to read

    Raises:
        ValueError: names the flag, what was found and what would be right.
    """
    dataset_name = args.dataset_name or ""
    streams = _open_streams(args, dataset_name)
    limits = {
        "train": min(args.stream_first_pass, args.max_train_samples or args.stream_first_pass),
        "validation": args.max_eval_samples,
        "test": args.max_predict_samples,
    }
    local = os.path.isdir(dataset_name)
    splits = {}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in streams), None)
        if name is None or split not in wanted:
            continue
        place = f"data set {dataset_name}, split {name}"
        raw = RawSplit(place, "row", (), [], lambda column: [], streamed=streams[name])
        raw.folder, raw.confined = args.image_dir or (dataset_name if local else None), bool(args.image_dir)
        rows = _rows(raw, limits[split], _without_pixels if split == "train" else _fetched)
        splits[split] = _as_split(raw, list(rows), 0)
        if not len(splits[split]):
            raise ValueError(f"{raw.place} holds no row: a split needs at least one post.")
        what = "the first " if limits[split] else "all "
        use = "for the columns, labels and vocabulary" if split == "train" else "into memory"
        logger.info(f"{raw.place}: {what}{len(splits[split]):,} posts are read now {use}.")
    if not splits:
        raise ValueError(
            f"--dataset_name {args.dataset_name} has the splits {', '.join(streams)}; but none that is needed here."
        )
    return splits, f"the data set {args.dataset_name} (streamed)"


def _open_streams(args: DataArguments, name: str) -> dict[str, datasets.IterableDataset]:
    if any(os.path.isfile(os.path.join(name, file)) for file in ("dataset_dict.json", "state.json")):
        raise ValueError(f"--streaming: {name} is mapped into memory as it is. Leave the flag out.")
    try:
        streams = datasets.load_dataset(name, args.dataset_config_name, streaming=True)
        return {split: stream._resolve_features().decode(False) for split, stream in streams.items()}
    except Exception as error:  # network, authorisation, missing configs, damaged files: no common base class
        raise ValueError(
            f"--dataset_name {name} can't be streamed ({type(error).__name__}: {one_line(error)})."
        ) from error


def _rows(raw: RawSplit, limit: int | None, prepare: Callable[[Any], Any]) -> Iterator[dict]:
    assert raw.streamed is not None  # `read_streams` made it
    try:
        # by batches: plain iteration gives each loader worker some of the files only, and rows lose their number
        batches = raw.streamed.iter(batch_size=CHUNK)
        rows = (dict(zip(batch, cells)) for batch in batches for cells in zip(*batch.values()))
        for row in islice(rows, limit):
            yield {name: prepare(cell) for name, cell in row.items()}
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{raw.place}: the stream broke ({type(error).__name__}: {one_line(error)}).") from error


def _fetched(cell: Any) -> Any:
    """An image that lies elsewhere (in an archive or on the Hub) as its bytes."""
    if isinstance(cell, list):
        return [_fetched(entry) for entry in cell]
    if isinstance(cell, dict) and cell.get("bytes", b"") is None and "://" in (cell.get("path") or ""):
        with xopen(cell["path"], "rb") as file:
            return {**cell, "bytes": file.read()}
    return cell


def _without_pixels(cell: Any) -> Any:
    """An image without its bytes: the first posts, read for columns, labels and words, stay in memory."""
    if isinstance(cell, list):
        return [_without_pixels(entry) for entry in cell]
    if isinstance(cell, dict) and (cell.get("bytes") is not None or "://" in (cell.get("path") or "")):
        return {**cell, "bytes": b""}
    return b"" if isinstance(cell, bytes) else cell


def _as_split(raw: RawSplit, rows: list[dict], start: int) -> RawSplit:
    """Rows of a stream as a split of their own, the first one being row `start`."""
    features = None if raw.streamed is None else raw.streamed.features
    dataset = datasets.Dataset.from_list(rows, features=features)
    numbers = range(start, start + len(rows))
    return replace(raw, numbers=numbers, columns=dataset.column_names, cells=dataset_cells(dataset), dataset=dataset)


class PostStream(torch.utils.data.IterableDataset):
    """
    Training posts without end: the stream again and again, shuffled anew in each epoch, the same for the same seed.

    That it has no end makes resuming exact: a run that goes on after step s skips the first s batches, whatever epoch
    they are of. Several loader workers share the posts.

    Args:
        raw: the streamed split
        posts_of: a chunk of it -> Posts whose train split holds the chunk's posts
        seed: of the shuffling
        buffer: the next post is drawn at random from so many
        limit: only the first so many rows; None for all
    """

    def __init__(
        self,
        raw: RawSplit,
        posts_of: Callable[..., Posts],
        *,
        seed: int,
        buffer: int,
        limit: int | None = None,
    ) -> None:
        self.raw, self.posts_of, self.seed, self.buffer, self.limit = raw, posts_of, seed, buffer, limit
        self.dropped: Counter[str] = Counter()
        self.warnings = 0

    def __iter__(self) -> Iterator[dict]:
        worker = torch.utils.data.get_worker_info()
        index, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in count():
            self.dropped, empty = Counter(), True
            generator = random.Random(f"{self.seed} {number}")
            for post in _shuffled(self._one_epoch(index, workers), self.buffer, generator):
                empty = False
                yield post
            if self.dropped:
                counts = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
                logger.warning(f"{self.raw.place}, epoch {number + 1}: {counts} (--on_bad_image, --on_empty_post).")
            if empty and index == 0:
                raise ValueError(f"{self.raw.place}: no post is left to train on, all were dropped. Check the data.")
            if empty:  # fewer chunks than workers
                return

    def _one_epoch(self, index: int, workers: int) -> Iterator[dict]:
        rows = _rows(self.raw, self.limit, _fetched)
        for number in count():
            chunk = list(islice(rows, CHUNK))
            if not chunk:
                return
            if number % workers == index:
                posts = self.posts_of(_as_split(self.raw, chunk, number * CHUNK), quiet=self.warnings > 4)
                self.dropped.update(posts.dropped.get("train", {}))
                self.warnings += bool(posts.dropped)  # the first are reported with their rows, later ones counted
                yield from posts.splits["train"]


def _shuffled(rows: Iterator[dict], size: int, generator: random.Random) -> Iterator[dict]:
    buffer = list(islice(rows, size))
    for row in rows:
        place = generator.randrange(size)
        yield buffer[place]
        buffer[place] = row
    generator.shuffle(buffer)
    yield from buffer
