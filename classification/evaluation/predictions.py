"""The predictions of a split, a line for each post in input order, as csv, JSON lines or parquet.

The columns are the same in all three: `id`, `prediction`, `probability_<label>` for each label (none for regression),
and `label`, the truth, where it is known. With several labels per post, `prediction` and `label` are lists of names;
in a csv file these are written as JSON. Probabilities have six decimals; with --calibrate they
are calibrated ones, and the predictions those by its thresholds.
"""

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from ..data.labels import MULTI, REGRESSION, SINGLE
from ..data.table_files import read_csv, read_jsonl, read_parquet
from ..support.run_files import PREDICTIONS_FILES


logger = logging.get_logger(__name__)

_PROBABILITY = "probability_"  # how the names of the columns of probabilities begin


def write_predictions(path, ids, logits, label_names, labels=None, problem_type=SINGLE, calibration=None):
    """
    Writes the predictions; the file's suffix (.csv, .jsonl or .parquet) chooses the format.

    Args:
        path: the file to write
        ids: the posts' ids, length n; ids that occur twice are kept, with a warning
        logits: shape (n, num_labels)
        label_names: the labels' names, in the order of the logits
        labels: the truth, length n, or None: label ids, vectors of 0 and 1, or numbers
        problem_type: decides what logits and labels mean
        calibration: a Calibration, by which probabilities and predictions are made
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


def prediction_columns(ids, logits, label_names, labels, problem_type, calibration=None) -> dict[str, list]:
    """Column name -> cells, as described at the top of this file."""
    logits = torch.tensor(np.asarray(logits), dtype=torch.float64)
    columns = {"id": list(ids)}
    if problem_type == REGRESSION:
        columns["prediction"] = [float(f"{value:.7g}") for value in logits.view(-1).tolist()]  # float32's digits
        return columns | ({} if labels is None else {"label": [float(label) for label in labels]})
    several = problem_type == MULTI
    answers = (logits > 0) if several else logits.argmax(dim=-1)
    if calibration is not None:
        answers, logits = calibration.decide(logits.numpy()), logits / calibration.temperature
    probabilities = logits.sigmoid() if several else logits.softmax(dim=-1)

    def named(rows):
        """Label ids, or vectors of 0 and 1, as names."""
        if several:
            return [[name for name, there in zip(label_names, row) if there] for row in rows]
        return [label_names[row] for row in rows]

    columns["prediction"] = named(answers.tolist())
    for name, values in zip(label_names, probabilities.T.tolist()):
        columns[f"{_PROBABILITY}{name}"] = [round(value, 6) for value in values]
    return columns | ({} if labels is None else {"label": named(labels)})


def join_predictions(path, parts):
    """Writes the posts of several predictions files of the same labels and format, one after the other, as one."""
    suffix = Path(path).suffix
    raws = [_READERS[suffix](part) for part in parts]
    columns = {name: [cell for raw in raws for cell in raw.cells(name)] for name in raws[0].columns}
    _WRITERS[suffix](path, columns)


def _write_csv(path, columns):
    def as_text(name, cell):
        if isinstance(cell, list):
            return json.dumps(cell, ensure_ascii=False)
        return f"{float(cell):.6f}" if name.startswith(_PROBABILITY) else cell

    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in zip(*columns.values()):
            writer.writerow(map(as_text, columns, row))


def _write_jsonl(path, columns):
    with open(path, "w", newline="\n", encoding="utf-8") as file:
        for row in zip(*columns.values()):
            file.write(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n")


def _write_parquet(path, columns):
    lists = pa.list_(pa.string())
    table = {
        name: pa.array(cells, type=lists if isinstance(cells[0], list) else None) for name, cells in columns.items()
    }
    pq.write_table(pa.table(table), path)


_READERS = {".csv": read_csv, ".jsonl": read_jsonl, ".parquet": read_parquet}
_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}


@dataclass
class Predictions:
    """
    What a predictions file says of n posts.

    Args:
        path: the file
        problem_type: as its columns tell
        label_names: of its columns of probabilities; none for regression
        ids: the posts' ids as text
        predictions, truth: label ids (n,), vectors of 0 and 1 (n, num_labels), or numbers (n,)
    """

    path: str
    problem_type: str
    label_names: list[str]
    ids: list[str]
    predictions: np.ndarray
    truth: np.ndarray


def read_predictions(path, label_names=None) -> Predictions:
    """
    Reads a predictions file, or the one in an output folder.

    Args:
        path: file or folder
        label_names: the order that label ids count in; default: that of the file

    Raises:
        ValueError: names the file and, of a row, its line: nothing there, no such file of ours, no truth.
    """
    path = predictions_file(path)
    raw = _READERS[path.suffix](path)
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


def predictions_file(path) -> Path:
    """The predictions file that `path` is or, a folder, holds."""
    path = Path(path)
    if path.is_dir():
        there = [path / name for name in PREDICTIONS_FILES if (path / name).is_file()]
        if len(there) == 1:
            return there[0]
        found = f"{len(there)} predictions files: name one of them" if there else "no predictions file"
        raise ValueError(
            f"{path} holds {found}" + ("." if there else ": run_classification.py --do_predict writes it.")
        )
    if not path.is_file():
        raise ValueError(f"There is no file {path}: give a predictions file or an output folder.")
    if path.suffix not in _READERS:
        raise ValueError(f"{path} is no predictions file: these end in {', '.join(_READERS)}.")
    return path


def _as_list(cell):
    """A cell as the list of names it is or, in a csv file, says; else None."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return None
    return cell if isinstance(cell, list) else None


def _problem_type(cells, names):
    """By the columns, and by the predictions: lists of names, unless a label is itself called like a list."""
    if not names:
        return REGRESSION
    several = all(_as_list(cell) is not None for cell in cells) and not all(cell in names for cell in cells)
    return MULTI if several else SINGLE


def _values(raw, column, cells, names, problem_type):
    """A column's cells as metrics take them."""
    ids = {name: index for index, name in enumerate(names)}
    values = []
    for row, cell in enumerate(cells):
        try:
            if problem_type == REGRESSION:
                values.append(float(cell))
            elif problem_type == SINGLE:
                values.append(ids[str(cell)])
            else:
                there = {ids[name] for name in _as_list(cell)}
                values.append([int(index in there) for index in range(len(names))])
        except (KeyError, TypeError, ValueError):
            expected = "a number" if problem_type == REGRESSION else f"of the labels {', '.join(names)}"
            raise ValueError(f"{raw.where(row)}: the {column} is {cell!r}, but must be {expected}.") from None
    return np.array(values)
