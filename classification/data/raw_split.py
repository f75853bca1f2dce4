"""The rows of one split as they were read, and where each of them stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc


STORED = "<stored in the data set>"  # stands for an image whose bytes lie in the data set


@dataclass
class RawSplit:
    """
    The rows of one split, as read.

    Args:
        place: how a message names the split: its file, or its data set and split
        unit: what `numbers` counts: "line" of a file, the header of a csv file being line 1; "row" of a data set or
            parquet file, the first being row 0; "entry" of a JSON array, the first being entry 1; or "image", a file
            of an image folder, its number being its path there
        numbers: the number of each row
        columns: the names of the columns
        cells: column name -> that column's cells
        folder: where relative image paths start; None is the working directory
        dataset: where the rows lie if they come from `datasets`
        lines: of a JSON array, the line that each entry starts in
        confined: whether images must lie in `folder`, as --image_dir asks for
        streamed: the stream that the rows are the first ones of
    """

    place: str
    unit: str
    numbers: Sequence[int | str]
    columns: list[str]
    cells: Callable[[str], list] = field(repr=False)
    folder: str | None = None
    dataset: datasets.Dataset | None = field(default=None, repr=False)
    lines: Sequence[int] | None = field(default=None, repr=False)
    confined: bool = False
    streamed: datasets.IterableDataset | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """Names row `row` (0 for the first) so that the user finds it."""
        notes = {"row": " (counted from 0)", "entry": self.lines and f" (line {self.lines[row]})"}
        return f"{self.place}, {self.unit} {self.numbers[row]}" + (notes.get(self.unit) or "")

    def where_all(self, rows: Sequence[int], limit: int = 5) -> str:
        """Names several rows, the first `limit` of them."""
        shown = ", ".join(str(self.numbers[row]) for row in rows[:limit]) + (", ..." if len(rows) > limit else "")
        plural = {"entry": "entries"}.get(self.unit, f"{self.unit}s") if len(rows) > 1 else self.unit
        return f"{self.place}, {plural} {shown}" + (" (counted from 0)" if self.unit == "row" else "")

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column of ClassLabels or of lists of them, in their order; None for other columns."""
        feature = self.dataset.features[column] if self.dataset is not None else None
        feature = getattr(feature, "feature", feature)
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def has_pixels(self, column: str | None) -> bool:
        """Whether a column holds images and not mere paths: the Image feature of `datasets`, bytes, or a struct of
        `bytes` and `path`, one or a list."""
        feature = self.dataset.features.get(column) if self.dataset is not None else None
        return holds_pixels(feature)

    def pixel_paths(self, column: str) -> list[list[str]]:
        """For a column with pixels: each row's images, STORED or the path of one that lies elsewhere."""
        assert self.dataset is not None  # `has_pixels`
        images = self.dataset.data.column(column)
        lengths = [1] * len(images)
        if pa.types.is_list(images.type) or pa.types.is_large_list(images.type):
            lengths = pc.fill_null(pc.list_value_length(images), 0).to_pylist()
            images = pc.list_flatten(images)
        paths = [None] * len(images)
        stored = images
        if pa.types.is_struct(images.type):
            stored = pc.struct_field(images, "bytes")
            if images.type.get_field_index("path") >= 0:
                paths = pc.struct_field(images, "path").to_pylist()
        stored = pc.is_valid(stored).to_pylist()
        entries = iter([STORED if is_stored else path for is_stored, path in zip(stored, paths)])
        return [[entry for entry in islice(entries, length) if entry] for length in lengths]

    def undecoded(self, column: str) -> datasets.Dataset:
        """A column with pixels as bytes and paths. No data are copied, only the column's type changes."""
        assert self.dataset is not None  # `has_pixels`
        feature, plain = self.dataset.features[column], datasets.Image(decode=False)
        if isinstance(feature, datasets.Image):
            feature = plain
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            feature = type(feature)(plain)
        rows = self.dataset.select_columns([column])
        return datasets.Dataset(rows.data, info=datasets.DatasetInfo(features=datasets.Features({column: feature})))


def holds_pixels(feature: Any) -> bool:
    """Whether a feature of `datasets` holds images, see `RawSplit.has_pixels`."""
    feature = getattr(feature, "feature", feature)
    if isinstance(feature, dict):
        feature = feature.get("bytes")
    return isinstance(feature, datasets.Image) or getattr(feature, "dtype", None) in ("binary", "large_binary")


def dataset_cells(rows: datasets.Dataset) -> Callable[[str], list]:
    """column -> its Arrow values: nothing is decoded, labels get their names."""

    def cells(column: str) -> list:
        values = rows.data.column(column).to_pylist()
        feature = rows.features[column]
        if isinstance(feature, datasets.ClassLabel):  # -1 is how data sets of the Hub hide a test label
            values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
        elif isinstance(getattr(feature, "feature", None), datasets.ClassLabel):
            values = [value and [feature.feature.int2str(index) for index in value] for value in values]
        return values

    return cells
