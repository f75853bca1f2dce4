"""Predictions files, written and read: a line for each post of a split, in input order, as csv, JSON lines or parquet.

The columns are the same in all three: `id`, `prediction`, `probability_<label>` for each label (none for regression),
and `label`, the truth, where it is known. With several labels per post, `prediction` and `label` are lists of names,
written as JSON in a csv file. Probabilities have six decimals; with --calibrate they are the calibrated ones, and
predictions are made by its thresholds.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.raw_split import RawSplit
from ..data.table_files import read_table
from ..support.run_files import PREDICTIONS_FILES
from .calibration import Calibration


logger = logging.get_logger(__name__)

_PROBABILITY = "probability_"  # how the names of the columns of probabilities begin


def write_predictions(
    path: str | Path,
    ids: Sequence[str],
    logits: np.ndarray,
    label_names: list[str],
    labels: Sequence | None = None,
    problem_type: str = SINGLE,
    calibration: Calibration | None = None,
) -> None:
    """
    Writes the predictions in the format of the file's suffix: .csv, .jsonl or .parquet.

    Args:
        path: the file to write
        ids: the posts' ids, length n; ids that occur twice are kept, with a warning
        logits: shape (n, num_labels)
        label_names: the labels' names, in the order of the logits
        labels: the truth, length n, or None: label ids, vectors of 0 and 1, or numbers
        problem_type: decides what logits and labels mean
        calibration: makes probabilities and predictions, if given
    """
    columns = prediction_columns(ids, logits, label_names, labels, problem_type, calibration)
    counts = Counter(columns["id"])
    if len(counts) < len(ids):
        twice, count = counts.most_common(1)[0]
        logger.warning(
            f"{len(ids) - len(counts)} posts have an id that an earlier one has ({twice!r} occurs {count} times): the "
            f"lines of {Path(path).name} are in the order of the posts."
        )
    _WRITERS[Path(path).suffix](path, columns)


def prediction_columns(
    ids: Sequence[str],
    logits: np.ndarray,
    label_names: list[str],
    labels: Sequence | None,
    problem_type: str,
    calibration: Calibration | None = None,
) -> dict[str, list]:
    """Column name -> cells, as described at the top of this file; arguments as of `write_predictions`."""
    outputs = torch.tensor(np.asarray(logits), dtype=torch.float64)
    columns: dict[str, list] = {"id": list(ids)}
    if problem_type == REGRESSION:
        columns["prediction"] = [float(f"{value:.7g}") for value in outputs.view(-1).tolist()]  # float32's digits
        return columns | ({} if labels is None else {"label": [float(label) for label in labels]})
    several = problem_type == MULTI
    if calibration is None:
        predictions = (outputs > 0 if several else outputs.argmax(dim=-1)).tolist()
    else:
        predictions, outputs = calibration.decide(outputs.numpy()).tolist(), outputs / calibration.temperature
    probabilities = outputs.sigmoid() if several else outputs.softmax(dim=-1)

    def named(rows: Iterable) -> list:
        """Label ids, or vectors of 0 and 1, as names."""
        if several:
            return [[name for name, there in zip(label_names, row) if there] for row in rows]
        return [label_names[row] for row in rows]

    columns["prediction"] = named(predictions)
    for name, values in zip(label_names, probabilities.T.tolist()):
        columns[f"{_PROBABILITY}{name}"] = [round(value, 6) for value in values]
    return columns | ({} if labels is None else {"label": named(labels)})


def join_predictions(path: str | Path, parts: Iterable[str | Path]) -> None:
    """Writes the posts of several predictions files of the same labels and format into one, one after the other."""
    suffix = Path(path).suffix
    raws = [read_table(part) for part in parts]
    columns = {name: [cell for raw in raws for cell in raw.cells(name)] for name in raws[0].columns}
    _WRITERS[suffix](path, columns)


def _write_csv(path: str | Path, columns: dict[str, list]) -> None:
    def as_text(name: str, cell: Any) -> str:
        if isinstance(cell, list):
            return json.dumps(cell, ensure_ascii=False)
        return f"{float(cell):.6f}" if name.startswith(_PROBABILITY) else cell

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values()):
            writer.writerow(map(as_text, columns, row))


def _write_jsonl(path: str | Path, columns: dict[str, list]) -> None:
    with open(path, "w", newline="\n", encoding="utf-8") as file:
        for row in zip(*columns.values()):
            file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n")


def _write_parquet(path: str | Path, columns: dict[str, list]) -> None:
    lists = pa.list_(pa.string())
    table = {
        name: pa.array(cells, type=lists if isinstance(cells[0], list) else None) for name, cells in columns.items()
    }
    pq.write_table(pa.table(table), path)


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


@dataclass
class Predictions:
    """
    A predictions file of n posts, read.

    Args:
        path: the file
        problem_type: known by its columns
        label_names: those of its columns of probabilities; none for regression
        ids: the posts' ids as text
        predictions, truth: label ids (n,), vectors of 0 and 1 (n, num_labels), or numbers (n,)
    """

    path: str
    problem_type: str
    label_names: list[str]
    ids: list[str]
    predictions: np.ndarray
    truth: np.ndarray


def read_predictions(path: str | Path, label_names: Sequence[str] | None = None) -> Predictions:
    """
    Reads a predictions file, or the one in an output folder.

    Args:
        path: file or folder
        label_names: the labels in the order of their ids; default: as in the file

    Raises:
        ValueError: there is no such file, it isn't a predictions file, or it lacks the truth; names file and line.
    """
    path = find_predictions_file(path)
    raw = read_table(path)
    missing = [name for name in ("id", "prediction", "label") if name not in raw.columns]
    if missing:
        fix = " The truth is needed: predict posts whose labels are known." if missing == ["label"] else ""
        raise ValueError(f"{path} has no column {missing[0]!r}, which run_classification.py --do_predict writes.{fix}")
    if not len(raw):
        raise ValueError(f"{path} holds no posts: there is nothing to compare.")
    names = [name.removeprefix(_PROBABILITY) for name in raw.columns if name.startswith(_PROBABILITY)]
    cells = {name: raw.cells(name) for name in ("prediction", "label")}
    problem_type = _problem_type(cells["prediction"], names)
    if label_names is not None and set(label_names) == set(names):
        names = list(label_names)
    values = {name: _values(raw, name, cells[name], names, problem_type) for name in cells}
    ids = ["" if cell is None else str(cell) for cell in raw.cells("id")]
    return Predictions(str(path), problem_type, names, ids, values["prediction"], values["label"])


def find_predictions_file(path: str | Path) -> Path:
    """
    The predictions file that `path` is or, if it is a folder, holds.

    Raises:
        ValueError: there is none, or more than one.
    """
    path = Path(path)
    if path.is_dir():
        files = [path / name for name in PREDICTIONS_FILES if (path / name).is_file()]
        if len(files) == 1:
            return files[0]
        if files:
            raise ValueError(f"{path} holds {len(files)} predictions files: name one of them.")
        raise ValueError(f"{path} holds no predictions file: run_classification.py --do_predict writes it.")
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a predictions file or an output folder.")
    if path.suffix not in _WRITERS:
        raise ValueError(f"{path} isn't a predictions file: these end in {', '.join(_WRITERS)}.")
    return path


def _as_list(cell: object) -> list | None:
    """A cell as the list of names that it is or, in a csv file, holds as JSON; else None."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    return cell if isinstance(cell, list) else None


def _problem_type(cells: list, names: list[str]) -> str:
    """Known by the columns and the predictions: lists of names, unless a label's own name looks like a list."""
    if not names:
        return REGRESSION
    several = all(_as_list(cell) is not None for cell in cells) and not all(cell in names for cell in cells)
    return MULTI if several else SINGLE


def _values(raw: RawSplit, column: str, cells: list, names: list[str], problem_type: str) -> np.ndarray:
    """A column's cells as metrics take them."""
    ids = {name: index for index, name in enumerate(names)}
    values: list[Any] = []
    for row, cell in enumerate(cells):
        try:
            if problem_type == REGRESSION:
                values.append(float(cell))
            elif problem_type == SINGLE:
                values.append(ids[str(cell)])
            elif (listed := _as_list(cell)) is not None:
                there = {ids[name] for name in listed}
                values.append([int(index in there) for index in range(len(names))])
            else:
                raise ValueError(cell)
        except (KeyError, TypeError, ValueError):
            expected = "a number" if problem_type == REGRESSION else f"among the labels {', '.join(names)}"
            raise ValueError(f"{raw.where(row)}: the {column} is {cell!r}, but must be {expected}.") from None
    return np.array(values)
