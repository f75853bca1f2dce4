"""Rows from csv, tsv, JSON and parquet files, each with its line or row number; .gz of the first three too.

Nothing is converted here. A file's cells stay what the file says: in csv and tsv files strings ("NA" and "007" too;
None where a cell is empty), in JSON files the JSON values. The readers of text are our own and not those of
`datasets`, which guess types, write a cache for every file and report a bad line without its number.
"""

import csv
import gzip
import io
import json
import re
import sys
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from transformers.utils import logging

from .raw_split import RawSplit, dataset_cells


logger = logging.get_logger(__name__)

_EXAMPLE = '{"text": "...", "image": "a.jpg", "label": "..."}'
_OBJECT = f"one whole object, such as {_EXAMPLE}"


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark, unpacked if its name ends in .gz."""
    data = Path(path).read_bytes()
    if str(path).lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(
                f"{path} can't be unpacked ({error}): fetch it again, or give the unpacked file."
            ) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). Save the file as UTF-8, for example "
            "with `iconv -f WINDOWS-1252 -t UTF-8`, naming the encoding it has."
        ) from None


def read_csv(path: str | Path, delimiter: str = ",") -> RawSplit:
    """A comma- or tab-separated file with a header line, quoted as RFC 4180 says."""
    text = read_text(path)
    limit = csv.field_size_limit(sys.maxsize)  # the module's own, 131,072 characters, is less than a long text
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header, rows, numbers = _read_csv_rows(path, reader, delimiter)
    finally:
        csv.field_size_limit(limit)
    columns = {name: [row[i] or None for row in rows] for i, name in enumerate(header)}
    return RawSplit(str(path), "line", numbers, list(columns), columns.__getitem__)


def _read_csv_rows(path: str | Path, reader: Any, delimiter: str) -> tuple[list[str], list[list[str]], list[int]]:
    """The header, the rows that aren't blank, and the line that each starts in."""
    rows: list[list[str]] = []
    numbers: list[int] = []
    start = 1
    try:
        header = next(reader, None) or []
        _check_header(path, header, delimiter)
        while True:
            start = reader.line_num + 1  # a quoted cell may span lines; the row is where it starts
            row = next(reader, None)
            if row is None:
                return header, rows, numbers
            if row and len(row) != len(header):
                what = "a comma" if delimiter == "," else "a tab"
                raise ValueError(
                    f"{path}, line {start}: {len(row)} cells, but the header names {len(header)} columns. A cell that "
                    f'holds {what}, a quote or a line break is written "in quotes", quotes in it doubled ("").'
                )
            if row:
                rows.append(row)
                numbers.append(start)
    except csv.Error as error:
        raise ValueError(
            f'{path}, line {start}: {error}. A cell that starts with a quote ends with one, quotes in it doubled ("").'
        ) from None


def _check_header(path: str | Path, header: list[str], delimiter: str) -> None:
    if not header:
        raise ValueError(f"{path} is empty: such a file starts with a line that names its columns.")
    twice = [name for name in dict.fromkeys(header) if name and header.count(name) > 1]
    if twice:
        raise ValueError(f"{path}, line 1: the column {twice[0]!r} is named twice; give each its own name.")
    other = next((sign for sign in ",;\t|" if sign != delimiter and sign in header[0]), None)
    if len(header) == 1 and other:
        fix = {",": "name it .csv", "\t": "name it .tsv"}.get(other, "save it with commas (.csv) or tabs (.tsv)")
        raise ValueError(f"{path}, line 1: the columns are separated by {other!r}, not by {delimiter!r}: {fix}.")


def read_tsv(path: str | Path) -> RawSplit:
    """A tab-separated file, else like `read_csv`."""
    return read_csv(path, "\t")


def read_jsonl(path: str | Path) -> RawSplit:
    """A file with one JSON object per line; blank lines are skipped."""
    return _read_json_lines(path, read_text(path), f"Each line must hold {_OBJECT}.")


def read_json(path: str | Path) -> RawSplit:
    """A JSON array of objects, or one object per line."""
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        return _read_json_array(path, text)
    raw = _read_json_lines(path, text, f"The file must be an array of objects, or each line hold {_OBJECT}.")
    if len(raw) == 1 and raw.columns and all(isinstance(raw.cells(name)[0], dict) for name in raw.columns):
        raise ValueError(
            f"{path} holds an object for each column, not for each post. Write an array, [{_EXAMPLE}, ...]: "
            'pandas does by to_json(..., orient="records").'
        )
    return raw


def _read_json_lines(path: str | Path, text: str, expected: str) -> RawSplit:
    rows, numbers = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = (
                f"{error.msg}, character {error.colno}"
                if isinstance(error, json.JSONDecodeError)
                else "nested too deeply"
            )
            raise ValueError(f"{path}, line {number}: not valid JSON ({reason}). {expected}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a JSON {type(row).__name__}, not an object. {expected}")
        rows.append(row)
        numbers.append(number)
    return RawSplit(str(path), "line", numbers, _names(rows), lambda name: [row.get(name) for row in rows])


def _names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _read_json_array(path: str | Path, text: str) -> RawSplit:
    """Entry by entry, so that each is known by its number and its line."""
    breaks = [match.start() for match in re.finditer("\n", text)]
    decoder = json.JSONDecoder()
    rows: list[dict] = []
    starts: list[int] = []

    def wrong(position: int, what: str) -> ValueError:
        line = bisect_right(breaks, position - 1) + 1
        return ValueError(
            f"{path}, line {line}, entry {len(rows) + 1}: {what}. The array must hold objects: [{_EXAMPLE}, ...]."
        )

    position = _skip_space(text, text.index("[") + 1)
    while text[position : position + 1] != "]" or rows:
        try:
            row, end = decoder.raw_decode(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            where, why = getattr(error, "pos", position), getattr(error, "msg", "nested too deeply")
            raise wrong(where, f"not valid JSON ({why})") from None
        if not isinstance(row, dict):
            raise wrong(position, f"a JSON {type(row).__name__}, not an object")
        rows.append(row)
        starts.append(bisect_right(breaks, position - 1) + 1)
        position = _skip_space(text, end)
        if text[position : position + 1] == "]":
            break
        if text[position : position + 1] != ",":
            raise wrong(position, "not valid JSON (a comma or the end of the array is missing)")
        position = _skip_space(text, position + 1)
    position = _skip_space(text, position + 1)
    if position < len(text):
        raise wrong(position, "something comes after the end of the array")
    cells = {name: [row.get(name) for row in rows] for name in _names(rows)}
    return RawSplit(str(path), "entry", range(1, len(rows) + 1), list(cells), cells.__getitem__, lines=starts)


def _skip_space(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def read_parquet(path: str | Path) -> RawSplit:
    """
    A parquet file. One with stored images goes through the cache of `datasets`, an Arrow file that is mapped into
    memory and read as far as a batch needs it; one without is small and read at once.
    """
    try:
        schema = pq.read_schema(path)
        if b"huggingface" in (schema.metadata or {}) or any(_holds_bytes(column.type) for column in schema):
            logger.info(f"{path} holds images or features of `datasets`, whose cache it is read through.")
            rows = datasets.Dataset.from_parquet(str(path))
            columns, cells = rows.column_names, dataset_cells(rows)
        else:
            rows, table = None, pq.read_table(path)
            columns, cells = table.column_names, lambda name: table.column(name).to_pylist()
    except (OSError, ValueError, pa.ArrowException, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise ValueError(f"{path} can't be read as a parquet file: {' '.join(str(cause).split())}") from None
    count = len(table) if rows is None else len(rows)
    return RawSplit(str(path), "row", range(count), list(columns), cells, dataset=rows)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


# Suffix of a file -> its reader; the only table of these
READERS: dict[str, Callable[[str | Path], RawSplit]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_jsonl,
    ".json": read_json,
}
READERS |= {f"{suffix}.gz": reader for suffix, reader in READERS.items()} | {".parquet": read_parquet}


def read_table(path: str | Path, flag: str = "") -> RawSplit:
    """
    The rows of a file, read as its suffix says.

    Args:
        path: an existing file
        flag: how an error names it, before its path

    Raises:
        ValueError: the suffix is unknown, or the file can't be read; names the line where there is one.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    suffix = "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])
    if suffix not in READERS:
        known = ", ".join(READERS)
        raise ValueError(f"{flag}{path}: files ending in {suffix or 'nothing'!r} are not read; known: {known}.")
    return READERS[suffix](path)
