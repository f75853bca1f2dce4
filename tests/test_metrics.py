"""Metrics against scikit-learn and by hand; offline, in memory, in several processes at once."""

import multiprocessing
import os

import numpy as np
import pytest
from sklearn import metrics as sk
from transformers import EvalPrediction

from hf_mamba.classification.metrics import (
    ClassificationMetrics,
    baseline_of,
    compute_metrics_for_trainer,
)


@pytest.mark.parametrize("num_labels", [2, 5])
def test_agrees_with_scikit_learn(num_labels):
    rng = np.random.default_rng(num_labels)
    truth, answers = rng.integers(num_labels, size=(2, 200))
    got = ClassificationMetrics(map(str, range(num_labels))).compute(predictions=answers, references=truth)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert got["f1_macro"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    assert got["f1_weighted"] == pytest.approx(sk.f1_score(truth, answers, average="weighted"))
    assert got["num_posts"] == 200
    assert ("precision" in got) == (num_labels == 2)
    if num_labels == 2:
        assert got["precision"] == pytest.approx(sk.precision_score(truth, answers))
        assert got["recall"] == pytest.approx(sk.recall_score(truth, answers))
        assert got["f1"] == pytest.approx(sk.f1_score(truth, answers))


def test_positive_label_decides_what_precision_is_about():
    truth, answers = [0, 0, 0, 1], [0, 1, 1, 1]
    of_one = ClassificationMetrics(["no", "yes"]).compute(predictions=answers, references=truth)
    of_zero = ClassificationMetrics(["no", "yes"], positive_label=0).compute(predictions=answers, references=truth)
    assert (of_one["precision"], of_one["recall"]) == (pytest.approx(1 / 3), 1)
    assert (of_zero["precision"], of_zero["recall"]) == (1, pytest.approx(1 / 3))


def test_majority_is_that_of_training_scored_elsewhere():
    assert baseline_of([2, 0, 2, 0, 1], "single_label_classification") == 0  # the smallest of equals
    got = ClassificationMetrics(["a", "b"], baseline=1).compute(predictions=[0] * 4, references=[0, 0, 0, 1])
    assert got["majority_accuracy"] == 0.25


def test_majority_is_left_out_when_training_is_unknown():
    assert "majority_accuracy" not in ClassificationMetrics(["a", "b"]).compute(predictions=[0], references=[0])


def test_a_label_that_is_never_predicted_gives_zero_and_no_warning(recwarn):
    got = ClassificationMetrics(["a", "b"]).compute(predictions=[0, 0], references=[0, 1])
    assert got["precision"] == got["recall"] == got["f1"] == 0
    assert not recwarn.list


def test_trainer_callable_takes_the_largest_logit_also_of_a_tuple():
    compute = compute_metrics_for_trainer(ClassificationMetrics(["a", "b", "c"], baseline=2))
    logits = np.array([[0.1, 2, 1], [5, 1, 1], [0, 0, 9]])
    truth = np.array([1, 0, 0])
    for predictions in (logits, (logits, "hidden states")):
        got = compute(EvalPrediction(predictions=predictions, label_ids=truth))
        assert got["accuracy"] == pytest.approx(2 / 3)
        assert got["majority_accuracy"] == 0
        assert all(isinstance(value, (int, float)) for value in got.values())  # goes into a JSON file


@pytest.mark.parametrize("bad", [{"positive_label": 2}, {"baseline": -1}])
def test_label_ids_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ClassificationMetrics(["a", "b"], **bad)


def compute_many(cache, seed, results):
    rng = np.random.default_rng(seed)
    metric = ClassificationMetrics(["a", "b"], cache_dir=cache)
    for _ in range(20):
        truth, answers = rng.integers(2, size=(2, 50))
        got = metric.compute(predictions=answers, references=truth)
        results.put(got["accuracy"] == pytest.approx(np.mean(truth == answers)))


def test_two_processes_at_once_and_nothing_on_disk(tmp_path):
    cache = tmp_path / "cache"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=compute_many, args=(str(cache), seed, results)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    assert all(results.get(timeout=60) for _ in range(40))
    for worker in workers:
        worker.join()
    assert not os.path.exists(cache)
