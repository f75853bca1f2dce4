"""The predictions of a split, a line for each post in input order, as csv, JSON lines or parquet.

The columns are the same in all three: `id`, `prediction`, `probability_<label>` for each label (none for regression),
and `label`, the truth, where it is known. With several labels per post, `prediction` and `label` are lists of names;
in a csv file these are written as JSON. Probabilities have six decimals; with --calibrate they
are calibrated ones, and the predictions those by its thresholds.
"""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers.utils import logging

from ..data.labels import MULTI, REGRESSION
from ..data.table_files import read_csv, read_jsonl, read_parquet


logger = logging.get_logger(__name__)


def write_predictions(
    path, ids, logits, label_names, labels=None, problem_type="single_label_classification", calibration=None
):
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
        columns[f"probability_{name}"] = [round(value, 6) for value in values]
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
        return f"{float(cell):.6f}" if name.startswith("probability_") else cell

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
