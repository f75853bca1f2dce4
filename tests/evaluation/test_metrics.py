"""Metrics against scikit-learn and by hand; offline, in memory, in several processes at once."""

import multiprocessing
import os

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from transformers import EvalPrediction

from hf_mamba.classification.evaluation import bootstrap
from hf_mamba.classification.evaluation.metrics import (
    DEFAULT_METRIC,
    LOWER_IS_BETTER,
    METRIC_NAMES,
    ClassificationMetrics,
    MultiLabelMetrics,
    RegressionMetrics,
    baseline_of,
    compute_metrics_for_trainer,
    metrics_for,
)


@pytest.mark.parametrize("num_labels", [2, 5])
def test_agrees_with_scikit_learn(num_labels):
    rng = np.random.default_rng(num_labels)
    truth, answers = rng.integers(num_labels, size=(2, 200))
    got = ClassificationMetrics(map(str, range(num_labels))).compute(predictions=answers, references=truth)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answers))
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


def test_a_positive_label_may_be_named_among_many():
    got = ClassificationMetrics("abc", positive_label=2).compute(predictions=[2, 2, 1, 0], references=[2, 1, 2, 0])
    assert got["precision"] == got["recall"] == got["f1"] == 0.5


def test_labels_that_do_not_occur_count_in_no_mean():
    truth, answers = [0, 0, 1], [0, 1, 1]
    got = ClassificationMetrics("abcde").compute(predictions=answers, references=truth)
    assert got["f1_macro"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    assert got["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, answers))


def test_several_labels_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, answers = rng.random((2, 100, 4)) < 0.3
    truth[:10], answers[:10] = False, False  # posts without labels, rightly without predictions
    truth[10:15, :3] = False
    got = MultiLabelMetrics("abcd").compute(predictions=answers.astype(int), references=truth.astype(int))
    assert got["f1_micro"] == pytest.approx(sk.f1_score(truth, answers, average="micro"))
    assert got["f1_macro"] == pytest.approx(sk.f1_score(truth, answers, average="macro"))
    assert got["f1_samples"] == pytest.approx(sk.f1_score(truth, answers, average="samples", zero_division=1))
    assert got["precision_micro"] == pytest.approx(sk.precision_score(truth, answers, average="micro"))
    assert got["recall_micro"] == pytest.approx(sk.recall_score(truth, answers, average="micro"))
    assert got["subset_accuracy"] == pytest.approx(sk.accuracy_score(truth, answers))
    assert got["label_accuracy"] == pytest.approx(1 - sk.hamming_loss(truth, answers))
    everything = np.ones_like(truth)
    assert got["every_label_f1_micro"] == pytest.approx(sk.f1_score(truth, everything, average="micro"))
    assert "majority_f1_micro" not in got


def test_the_baseline_of_several_labels_is_each_labels_majority():
    truth = np.array([[1, 0], [1, 1], [0, 0]])
    metrics = MultiLabelMetrics("ab", baseline=[1, 0])
    got = metrics.compute(predictions=truth, references=truth)
    assert got["f1_micro"] == got["subset_accuracy"] == got["f1_samples"] == 1
    assert got["majority_f1_micro"] == pytest.approx(2 * 2 / (3 + 3))
    assert got["majority_subset_accuracy"] == pytest.approx(1 / 3)
    assert got["majority_label_accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("offset", [0, 1e6])
def test_numbers_agree_with_scikit_learn_and_scipy(offset):
    rng = np.random.default_rng(0)
    truth = rng.integers(8, size=100) / 2 + offset
    answers = truth + rng.normal(size=100).round(1)
    got = RegressionMetrics(["x"], baseline=offset + 1.0).compute(predictions=answers, references=truth)
    assert got["mae"] == pytest.approx(sk.mean_absolute_error(truth, answers))
    assert got["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, answers))
    assert got["r2"] == pytest.approx(sk.r2_score(truth, answers))
    assert got["pearson"] == pytest.approx(stats.pearsonr(truth, answers).statistic)
    assert got["spearman"] == pytest.approx(stats.spearmanr(truth, answers).statistic)
    assert got["mean_mae"] == pytest.approx(np.mean(abs(truth - offset - 1)))
    assert got["mean_rmse"] == pytest.approx(np.mean((truth - offset - 1) ** 2) ** 0.5)


def test_what_is_undefined_for_numbers_is_left_out(recwarn):
    got = RegressionMetrics(["x"]).compute(predictions=[1.0, 1.0], references=[1.0, 2.0])
    assert {"mae", "rmse", "r2"} <= got.keys() and not {"pearson", "spearman"} & got.keys()
    got = RegressionMetrics(["x"]).compute(predictions=[1.3, 2.1], references=[0.7, 0.7])
    assert not {"r2", "pearson", "spearman"} & got.keys() and got["rmse"] > 0
    assert not recwarn.list


# Intervals


def resampled(score, count, seed=0):
    """The bootstrap as it is written in a textbook."""
    rng = np.random.default_rng(seed)
    values = [score(rng.integers(count, size=count)) for _ in range(300)]
    return np.quantile(values, (0.025, 0.975))


def test_intervals_are_those_of_the_plain_bootstrap():
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(3, size=(2, 150))
    got = ClassificationMetrics("abc").intervals(answers, truth, seed=0)
    assert got["accuracy"] == pytest.approx(resampled(lambda i: np.mean(truth[i] == answers[i]), 150), abs=0.04)
    macro = resampled(lambda i: sk.f1_score(truth[i], answers[i], average="macro"), 150)
    assert got["f1_macro"] == pytest.approx(macro, abs=0.03)
    truth, answers = rng.normal(size=(2, 150))
    got = RegressionMetrics("x").intervals(answers, truth, seed=0)
    assert got["pearson"] == pytest.approx(resampled(lambda i: np.corrcoef(truth[i], answers[i])[0, 1], 150), abs=0.04)
    assert got["r2"] == pytest.approx(resampled(lambda i: sk.r2_score(truth[i], answers[i]), 150), abs=0.1)
    truth, answers = rng.random((2, 150, 4)) < 0.3
    got = MultiLabelMetrics("abcd").intervals(answers, truth, seed=0)
    micro = resampled(lambda i: sk.f1_score(truth[i], answers[i], average="micro"), 150)
    assert got["f1_micro"] == pytest.approx(micro, abs=0.03)


def test_intervals_are_seeded_and_hold_the_value():
    rng = np.random.default_rng(1)
    truth, answers = rng.integers(2, size=(2, 60))
    metrics = ClassificationMetrics(["a", "b"])
    got = metrics.compute(predictions=answers, references=truth)
    first = metrics.intervals(answers, truth, seed=3)
    assert first == metrics.intervals(answers, truth, seed=3) != metrics.intervals(answers, truth, seed=4)
    assert all(low <= got[name] <= high for name, (low, high) in first.items())


@pytest.mark.parametrize("problem_type", DEFAULT_METRIC)
def test_the_order_of_posts_and_the_size_of_a_slab_do_not_matter(problem_type, monkeypatch):
    metrics = metrics_for(problem_type, ["a", "b"])
    shape = (40, 2) if problem_type == "multi_label_classification" else (40,)
    answers, truth = np.random.default_rng(1).integers(2, size=(2, *shape))
    whole = metrics.intervals(answers, truth, seed=0)
    order = np.random.default_rng(2).permutation(40)
    assert whole == metrics.intervals(answers[order], truth[order], seed=0)
    monkeypatch.setattr(bootstrap, "_CELLS_AT_ONCE", 50)
    assert whole == metrics.intervals(answers, truth, seed=0)


def test_many_labels_and_posts_are_no_burden():
    answers = np.arange(200_000) % 1000
    truth = np.where(answers < 10, answers, 999 - answers)
    got = ClassificationMetrics(map(str, range(1000))).intervals(answers, truth, seed=0)
    assert got["accuracy"][0] <= 0.01 <= got["accuracy"][1]


@pytest.mark.parametrize("problem_type", DEFAULT_METRIC)
def test_every_name_a_best_model_may_be_chosen_by_is_computed(problem_type):
    metrics = metrics_for(problem_type, ["a", "b"])
    logits = np.random.default_rng(0).normal(size=(20, 1 if problem_type == "regression" else 2))
    truth = metrics.from_logits(-logits)
    got = metrics.compute(predictions=metrics.from_logits(logits), references=truth)
    assert set(METRIC_NAMES[problem_type]) <= got.keys() and DEFAULT_METRIC[problem_type] in METRIC_NAMES[problem_type]
    assert ("rmse" in got) == (DEFAULT_METRIC[problem_type] in LOWER_IS_BETTER)


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
