"""The posts that a run reads: its splits, where each row stands, and what was left out of them.

Whatever takes posts or images out of a split does it by `drop` or `leave_out_images`, which keep rows, origins,
numbers of images and counts in step.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict
from transformers.utils import logging

from .image_sources import Source, UnpackImages
from .raw_split import RawSplit


if TYPE_CHECKING:
    from .image_cache import ImageCache

logger = logging.get_logger(__name__)

# The counts of Posts.dropped
BAD_IMAGE, EMPTY_POST, IMAGES_LEFT_OUT = "posts with a bad image", "empty posts", "images left out"

ROWS_AT_A_TIME = 64  # that are read: few of the stored images lie in memory at once


def in_chunks(rows: Dataset, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, list]]]:
    """The number of the first row, and the cells of these columns, of a few rows at a time."""
    rows = rows.select_columns(list(columns))
    for start in range(0, len(rows), ROWS_AT_A_TIME):
        yield start, rows[start : start + ROWS_AT_A_TIME]


@dataclass
class Posts:
    """
    What `load_posts` returns.

    Args:
        splits: train, validation, test, as far as there are any; columns `id` (str), `text` (str or None), `images`
            (list of str or bytes); with --group_column_name `group` (str); where labels are known `label`: a
            ClassLabel, a list of bools (num_labels,) or a float, as the problem type says. A streamed train is a
            PostStream, all others are stored
        label_names: the labels' names by label id
        problem_type: single_label_classification, multi_label_classification or regression
        columns: role (text, image, label, id, group) -> the column it was found in
        source: what the posts come from, for people
        origins: for each split, where its rows lie: the raw split and the index of each row in it
        num_images: for each split, how many images each row has
        dropped: split -> what was left out of it -> how many, by --on_bad_image and --on_empty_post
        sample: the first posts of a streamed training split; `column` reads these
        quiet: posts that are left out are only reported at the debug level
        image_cache: an ImageCache, if their images are to be decoded only once
    """

    splits: DatasetDict
    label_names: list[str]
    problem_type: str
    columns: dict[str, str]
    source: str
    origins: dict[str, tuple[RawSplit, Sequence[int]]] = field(default_factory=dict, repr=False)
    num_images: dict[str, list[int]] = field(default_factory=dict, repr=False)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    sample: Dataset | None = field(default=None, repr=False)
    quiet: bool = False
    image_cache: "ImageCache | None" = field(default=None, repr=False)

    def add(
        self, split: str, rows: Dataset, origin: tuple[RawSplit, Sequence[int]], num_images: Sequence[int]
    ) -> None:
        """Puts a split in: its rows, where they lie and how many images each has."""
        self.splits[split], self.origins[split], self.num_images[split] = rows, origin, list(num_images)

    def drop(self, split: str, rows: Collection[int], what: str, why: str) -> None:
        """
        Leaves rows out of a split, counts them and names the first in a warning.

        Args:
            rows: their numbers in the split
            what: the count of `dropped` they go to
            why: for people
        """
        gone, total = set(rows), len(self.splits[split])
        kept = [row for row in range(total) if row not in gone]
        lost = " There are no predictions for them." if split == "test" else ""
        self.report(
            f"{split}: {len(gone)} of {total} posts are dropped: {why}.{lost} They are: {self._examples(split, gone)}."
        )
        raw, origin = self.origins[split]
        num_images = self.num_images[split]
        self.add(
            split,
            self.splits[split].select(kept),
            (raw, [origin[row] for row in kept]),
            [num_images[row] for row in kept],
        )
        self._count(split, what, len(gone))

    def leave_out_images(self, split: str, keys_of: Mapping[int, Sequence[str]], why: str) -> None:
        """
        Leaves images out of a split whose posts stay, counts them and names the first posts in a warning.

        Args:
            keys_of: row of the split -> the keys (`source_key`) of images it does without, one for each use
            why: for people
        """
        rows = self.splits[split]
        unpack = rows.format["format_kwargs"].get("transform") or UnpackImages()
        self.splits[split] = rows.with_transform(unpack.without(key for keys in keys_of.values() for key in keys))
        for row, keys in keys_of.items():
            self.num_images[split][row] -= len(keys)
        count = sum(map(len, keys_of.values()))
        self._count(split, IMAGES_LEFT_OUT, count)
        self.report(
            f"{split}: {count} images of {len(keys_of)} posts {why} and are left out, the posts stay "
            f"(--on_bad_image keep_text). They are: {self._examples(split, keys_of)}."
        )

    def report(self, message: str) -> None:
        """A warning about posts that are left out, unless `quiet`."""
        logger.log(logging.DEBUG if self.quiet else logging.WARNING, message)

    def _examples(self, split: str, rows: Collection[int]) -> str:
        raw, origin = self.origins[split]
        return raw.where_all([origin[row] for row in sorted(rows)])

    def _count(self, split: str, what: str, count: int) -> None:
        counts = self.dropped.setdefault(split, {})
        counts[what] = counts.get(what, 0) + count

    def where(self, split: str, row: int) -> str:
        """Names row `row` of a split as the file or data set counts it."""
        raw, rows = self.origins[split]
        return raw.where(rows[row])

    def column(self, split: str, name: str) -> list:
        """The cells of a column but `images`; unlike `splits[split][name]` it reads no image that is stored."""
        rows = self.sample if split == "train" and self.sample is not None else self.splits[split]
        return rows.with_format(None).select_columns([name])[:][name]

    @property
    def stored(self) -> dict[str, Dataset]:
        """The splits but a streamed one."""
        return {split: rows for split, rows in self.splits.items() if isinstance(rows, Dataset)}

    def image_sources(self) -> Iterator[tuple[str, int, list[list[Source]]]]:
        """The images of each post of the stored splits: the split, the number of the first row, a few rows' images."""
        for split, rows in self.stored.items():
            for start, cells in in_chunks(rows, ["images"]):
                yield split, start, cells["images"]

    def describe(self, split: str) -> None:
        """Says in the log how many posts of a split have what."""
        texts, images = self.column(split, "text"), self.num_images[split]
        logger.info(
            f"{split}: {len(texts):,} posts of {self.origins[split][0].place}, {sum(t is not None for t in texts):,} "
            f"with text, {sum(map(bool, images)):,} with images ({sum(images):,} images)"
        )

    def counts(self) -> str:
        """How many posts each split has, for people."""
        numbers = {split: f"{len(rows):,} {split}" for split, rows in self.stored.items()}
        return ", ".join(numbers.get(split, f"{split} streamed") for split in self.splits)

    def left_out(self) -> str:
        """What was left out of the splits, for people; empty if nothing was."""
        counts = {split: ", ".join(f"{n:,} {what}" for what, n in of.items()) for split, of in self.dropped.items()}
        return "; ".join(f"{split}: {count}" for split, count in counts.items())
