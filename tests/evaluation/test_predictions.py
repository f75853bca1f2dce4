"""The predictions file: every post once, in order, whatever the labels are called; the same in all formats."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from hf_mamba.classification.evaluation.predictions import write_predictions


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NAMES = ["plain", 'a, "b"', "two\nlines", "日本語 😀", "-1"]


def read(path):
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
    return pq.read_table(path).to_pylist()


@pytest.fixture(params=[".csv", ".jsonl", ".parquet"])
def path(request, tmp_path):
    return tmp_path / f"predictions{request.param}"


def test_single_labels(path):
    logits = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    labels = [0, 1, 2, 3, 4, 0, 1]
    ids = [f"p{i}" for i in (3, 1, 2, 9, 5, 6, 7)]
    write_predictions(path, ids, logits, NAMES, labels, SINGLE)
    rows = read(path)
    assert [row["id"] for row in rows] == ids
    assert list(rows[0]) == ["id", "prediction", *(f"probability_{name}" for name in NAMES), "label"]
    for row, logit, label in zip(rows, logits, labels):
        probabilities = np.exp(logit.astype(float)) / np.exp(logit.astype(float)).sum()
        assert [float(row[f"probability_{name}"]) for name in NAMES] == pytest.approx(probabilities, abs=6e-7)
        assert row["prediction"] == NAMES[logit.argmax()] and row["label"] == NAMES[label]


def test_several_labels(path):
    logits = np.array([[3.0, -3, 0.1, -1, -1], [-1, -1, -1, -1, -1], [1, 1, 1, 1, 1]])
    truth = logits.T[::-1].T > 0
    write_predictions(path, ["a", "b", "c"], logits, NAMES, list(truth), MULTI)
    rows = read(path)
    as_list = json.loads if path.suffix == ".csv" else list
    assert [as_list(row["prediction"]) for row in rows] == [[NAMES[0], NAMES[2]], [], NAMES]
    assert [as_list(row["label"]) for row in rows] == [[NAMES[i] for i in np.flatnonzero(row)] for row in truth]
    assert float(rows[0]["probability_plain"]) == pytest.approx(1 / (1 + np.exp(-3)), abs=6e-7)


def test_no_list_at_all_is_still_a_column_of_lists(tmp_path):
    write_predictions(tmp_path / "predictions.parquet", ["a"], np.array([[-1.0]]), ["x"], None, MULTI)
    assert "string" in str(pq.read_schema(tmp_path / "predictions.parquet").field("prediction").type)


def test_numbers(path):
    logits = np.array([[1.25], [-3e-7], [123456.789]], dtype=np.float32)
    write_predictions(path, ["a", "b", "c"], logits, ["price"], [1, 0.1, 123456.78901], REGRESSION)
    rows = read(path)
    assert list(rows[0]) == ["id", "prediction", "label"]
    assert [float(row["prediction"]) for row in rows] == pytest.approx(logits[:, 0].tolist(), rel=1e-6)
    assert [float(row["label"]) for row in rows] == [1, 0.1, 123456.78901]


def test_ids_that_occur_twice_are_kept_in_order_and_warned_about(path, caplog):
    write_predictions(path, ["x", "y", "x"], np.array([[2.0, 1], [1, 2], [1, 2]]), ["a", "b"], None, SINGLE)
    assert [(row["id"], row["prediction"]) for row in read(path)] == [("x", "a"), ("y", "b"), ("x", "b")]
    assert "'x' occurs 2 times" in caplog.text
    assert "label" not in read(path)[0]
