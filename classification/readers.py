"""Rows from where they lie: csv and JSON lines files, image folders with metadata, `datasets` folders and the Hub.

Nothing is converted here. A file's cells stay what the file says: in a csv file strings ("NA" and "007" too; None
where a cell is empty), in JSON lines the JSON values. The readers are our own and not those of `datasets`, which guess
types, write a cache for every file and report a bad line without its number.
"""

import csv
import difflib
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc


SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


STORED = "<stored in the data set>"  # stands for a picture whose bytes lie in the data set


@dataclass
class RawSplit:
    """
    The rows of one split, as read.

    Args:
        place: how a message names the split: its file, or its data set and split
        unit: what `numbers` counts: "line" of a file, the header of a csv file being line 1, or "row" of a data set,
            the first being row 0
        numbers: the number of each row
        columns: the names of the columns
        cells: column name -> that column's cells
        folder: where relative image paths start; None is the working directory
        dataset: where the rows lie if they come from `datasets`
    """

    place: str
    unit: str
    numbers: Sequence[int]
    columns: list[str]
    cells: Callable[[str], list] = field(repr=False)
    folder: str | None = None
    dataset: datasets.Dataset | None = field(default=None, repr=False)

    def __len__(self):
        return len(self.numbers)

    def where(self, row: int) -> str:
        """Names row `row` (0 for the first) so that the user finds it."""
        return f"{self.place}, {self.unit} {self.numbers[row]}" + (" (counted from 0)" if self.unit == "row" else "")

    def class_names(self, column: str) -> list[str] | None:
        """The names of a column of ClassLabels or of lists of them, in their order; None for other columns."""
        feature = self.dataset.features[column] if self.dataset is not None else None
        feature = getattr(feature, "feature", feature)
        return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def resolve(self, path: str) -> str:
        """An image path of a cell as an absolute one."""
        return _absolute(self.folder, path)

    def has_pixels(self, column: str | None) -> bool:
        """Whether a column holds pictures (the Image feature of `datasets`, one or a list) and not mere paths."""
        feature = self.dataset.features.get(column) if self.dataset is not None else None
        return isinstance(getattr(feature, "feature", feature), datasets.Image)

    def pixel_paths(self, column: str) -> list[list[str]]:
        """For a column with pixels: each row's pictures, STORED or the path of one that lies elsewhere."""
        pictures = self.dataset.data.column(column)
        if pa.types.is_struct(pictures.type):
            lengths = [1] * len(pictures)
        else:
            lengths = pc.fill_null(pc.list_value_length(pictures), 0).to_pylist()
            pictures = pc.list_flatten(pictures)
        stored = pc.is_valid(pc.struct_field(pictures, "bytes")).to_pylist()
        paths = pc.struct_field(pictures, "path").to_pylist()
        entries = iter([STORED if is_stored else path for is_stored, path in zip(stored, paths)])
        return [[entry for entry in islice(entries, length) if entry] for length in lengths]

    def undecoded(self, column: str) -> datasets.Dataset:
        """A column with pixels as bytes and paths. No data are copied: only what the column is said to be changes."""
        feature = self.dataset.features[column]
        plain = datasets.Image(decode=False)
        feature = plain if isinstance(feature, datasets.Image) else type(feature)(plain)
        rows = self.dataset.select_columns([column])
        return datasets.Dataset(rows.data, info=datasets.DatasetInfo(features=datasets.Features({column: feature})))


class UnpackPixels:
    """The transform under which the `images` of a row are paths (str) or encoded pictures (bytes)."""

    def __init__(self, folder: str | None, max_images: int | None):
        self.folder, self.max_images = folder, max_images

    def __call__(self, batch: dict) -> dict:
        if "images" in batch:
            batch["images"] = [self._sources(cell) for cell in batch["images"]]
        return batch

    def _sources(self, cell):
        pictures = cell if isinstance(cell, list) else [cell]
        sources = [picture["bytes"] or picture["path"] for picture in pictures if picture is not None]
        absolute = [s if isinstance(s, bytes) else _absolute(self.folder, s) for s in sources if s]
        return absolute[: self.max_images]


def _absolute(folder, path):
    return os.path.abspath(os.path.join(folder or "", path))


def read_splits(args) -> tuple[dict[str, RawSplit], str]:
    """
    Reads what the flags name.

    Args:
        args: DataArguments

    Returns:
        The splits among train, validation and test, in this order, and what they come from, for people.

    Raises:
        FileNotFoundError, ValueError: names the file or flag, what was found and what would be right.
    """
    flags = {"train": "train_file", "validation": "validation_file", "test": "test_file"}
    files = {split: getattr(args, flag) for split, flag in flags.items() if getattr(args, flag)}
    if args.dataset_name and files:
        given = ", ".join(f"--{flags[split]}" for split in files)
        raise ValueError(f"--dataset_name and {given} are both given: leave one of them out.")
    if files:
        splits = {split: read_file(path, f"--{flags[split]}") for split, path in files.items()}
        source = "the files " + ", ".join(os.path.basename(path) for path in files.values())
    elif args.dataset_name:
        splits, source = read_dataset(args.dataset_name, args.dataset_config_name)
    else:
        raise ValueError("No data: give --dataset_name, or --train_file, --validation_file or --test_file.")
    for raw in splits.values():
        if not len(raw):
            raise ValueError(f"{raw.place} holds no row: a split needs at least one post.")
        if args.image_dir is not None:
            raw.folder = args.image_dir
    if args.image_dir is not None and not os.path.isdir(args.image_dir):
        raise FileNotFoundError(f"--image_dir {args.image_dir}: there is no such folder.")
    return splits, source


def read_text(path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save the file as UTF-8, for example "
            "with `iconv -f WINDOWS-1252 -t UTF-8`, naming the encoding it has."
        ) from None


def read_csv(path) -> RawSplit:
    """A comma-separated file with a header line, quoted as RFC 4180 says."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    header, rows, numbers, start = None, [], [], 1
    try:
        header = next(reader, None)
        _check_header(path, header)
        while True:
            start = reader.line_num + 1  # a quoted cell may span lines; the row is where it starts
            row = next(reader, None)
            if row is None:
                break
            if row and len(row) != len(header):
                raise ValueError(
                    f"{path}, line {start}: {len(row)} cells, but the header names {len(header)} columns. A cell that "
                    'holds a comma, a quote or a line break is written "in quotes", quotes in it doubled ("").'
                )
            if row:
                rows.append(row)
                numbers.append(start)
    except csv.Error as error:
        raise ValueError(
            f'{path}, line {start}: {error}. A cell that starts with a quote ends with one, quotes in it doubled ("").'
        ) from None
    columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header)}
    return RawSplit(str(path), "line", numbers, list(columns), columns.__getitem__)


def _check_header(path, header):
    if not header:
        raise ValueError(f"{path} is empty: a csv file starts with a line that names its columns.")
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}, line 1: the column {twice[0]!r} is named twice; give each its own name.")


def read_jsonl(path) -> RawSplit:
    """A file with one JSON object per line; blank lines are skipped."""
    rows, numbers = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):  # splitlines would also split at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: no valid JSON ({error.msg}, character {error.colno}). Each line must hold "
                'one whole object, such as {"text": "...", "image": "a.jpg", "label": "..."}.'
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: a JSON {type(row).__name__}, not an object. Each line must hold one whole "
                'object, such as {"text": "...", "image": "a.jpg", "label": "..."}.'
            )
        rows.append(row)
        numbers.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return RawSplit(str(path), "line", numbers, names, lambda name: [row.get(name) for row in rows])


FILE_READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".json": read_jsonl}


def read_file(path, flag: str) -> RawSplit:
    """A file by its extension; relative image paths in it start at its folder."""
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "there is no such file"
        siblings = os.listdir(path.parent) if path.parent.is_dir() else []
        raise FileNotFoundError(f"{flag} {path}: {what}.{did_you_mean(path.name, siblings)}")
    if path.suffix.lower() not in FILE_READERS:
        known = ", ".join(FILE_READERS)
        raise ValueError(f"{flag} {path}: files ending in {path.suffix or 'nothing'!r} are not read; known: {known}.")
    raw = FILE_READERS[path.suffix.lower()](path)
    raw.folder = str(path.parent)
    return raw


def read_dataset(name: str, config_name: str | None) -> tuple[dict[str, RawSplit], str]:
    """What --dataset_name names: a folder, or a data set of the Hub."""
    if os.path.isdir(name):
        return _read_folder(Path(name)), f"the folder {os.path.basename(os.path.abspath(name))}"
    if os.path.isfile(name):
        raise ValueError(
            f"--dataset_name {name} is a file: give it as --train_file, --validation_file or --test_file."
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"--dataset_name {name}: there is no such folder.")
    try:
        loaded = datasets.load_dataset(name, config_name)
    except Exception as error:  # network, authorisation, missing configs, damaged files: no common base class
        raise ValueError(
            f"--dataset_name {name}: there is no such folder here, and the Hub's data set could not be loaded "
            f"({type(error).__name__}: {error})."
        ) from error
    config = f" ({config_name})" if config_name else ""
    return _splits_of(loaded, f"data set {name}{config}", None), f"the data set {name}{config}"


def _read_folder(folder: Path) -> dict[str, RawSplit]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        loaded = datasets.load_from_disk(str(folder))
        return _splits_of(loaded, f"data set {folder}", str(folder))
    splits = {}
    for split, names in SPLIT_NAMES.items():
        tables = [folder / name / f"metadata{suffix}" for name in names for suffix in FILE_READERS]
        tables += [folder / f"{name}{suffix}" for name in names for suffix in FILE_READERS]
        found = [path for path in tables if path.is_file()]
        if len(found) > 1:
            raise ValueError(
                f"--dataset_name {folder}: {found[0]} and {found[1]} both hold {split}; keep one of them."
            )
        if found:
            splits[split] = read_file(found[0], "--dataset_name")
    whole = [folder / f"metadata{suffix}" for suffix in FILE_READERS if (folder / f"metadata{suffix}").is_file()]
    if not splits and whole:
        splits["train"] = read_file(whole[0], "--dataset_name")
    if not splits:
        there = ", ".join(sorted(os.listdir(folder))[:10]) or "nothing"
        raise ValueError(
            f"--dataset_name {folder} holds no data set: expected train/metadata.jsonl (or .csv) beside the pictures, "
            f"likewise validation and test; or train.jsonl (or .csv) and so on; or what `save_to_disk` of `datasets` "
            f"writes. There: {there}."
        )
    return splits


def _splits_of(loaded, place: str, folder: str | None) -> dict[str, RawSplit]:
    """The known splits of a Dataset (taken as train) or DatasetDict."""
    loaded = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    splits = {}
    for split, names in SPLIT_NAMES.items():
        name = next((name for name in names if name in loaded), None)
        if name is not None:
            rows = loaded[name]
            cells = _dataset_cells(rows)
            split_place = f"{place}, split {name}"
            splits[split] = RawSplit(split_place, "row", range(len(rows)), rows.column_names, cells, folder, rows)
    if not splits:
        raise ValueError(f"{place} has the splits {', '.join(loaded)}; none is called train, validation or test.")
    return splits


def _dataset_cells(rows: datasets.Dataset):
    def cells(column):
        values = rows.data.column(column).to_pylist()  # the Arrow values: nothing is decoded
        feature = rows.features[column]
        if isinstance(feature, datasets.ClassLabel):  # -1 is how data sets of the Hub hide a test label
            values = [None if value is None or value < 0 else feature.int2str(value) for value in values]
        elif isinstance(getattr(feature, "feature", None), datasets.ClassLabel):
            values = [value and [feature.feature.int2str(index) for index in value] for value in values]
        return values

    return cells


def did_you_mean(name: str, candidates) -> str:
    """' Did you mean ...?' for the candidate nearest to a misspelt name, or nothing."""
    by_lower = {str(candidate).lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
