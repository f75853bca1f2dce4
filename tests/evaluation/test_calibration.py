"""--calibrate: fitted on validation posts alone, never worse there; what the model computes stays as it is."""

import csv
import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from running import SMALL, command, refused
from scipy.special import softmax
from sklearn import metrics as sk

from hf_mamba import run_classification
from hf_mamba.classification.data.sets.builtin import write_builtin_posts
from hf_mamba.classification.evaluation.calibration import (
    TEMPERATURE_BOUNDS,
    best_threshold,
    fit_calibration,
    fit_temperature,
    probabilities,
    probability_quality,
    reliability,
)
from hf_mamba.classification.evaluation.metrics import metrics_for


SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def overconfident(n, labels, factor, seed=0):
    """Logits `factor` times as large as those that the truth was drawn by."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, labels)) * 2
    truth = (softmax(logits, axis=1).cumsum(1) < rng.random((n, 1))).sum(1)
    return (logits * factor).astype(np.float32), truth


def several(n, factor, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) - 1
    return (logits * factor).astype(np.float32), (rng.random((n, 3)) < 1 / (1 + np.exp(-logits))).astype(int)


@pytest.mark.parametrize("factor", [0.5, 1, 3])
@pytest.mark.parametrize("kind", ["two", "four", "several"])
def test_the_temperature_that_was_put_in_is_found(kind, factor):
    logits, truth = (
        several(5000, factor) if kind == "several" else overconfident(5000, 2 if kind == "two" else 4, factor)
    )
    problem_type = MULTI if kind == "several" else SINGLE
    temperature, at_bound = fit_temperature(logits, truth, problem_type)
    assert temperature == pytest.approx(factor, rel=0.08) and not at_bound
    before, after = (probability_quality(logits, truth, problem_type, t) for t in (1, temperature))
    assert after["nll"] <= before["nll"] and after["ece"] < 0.03
    if factor == 3:
        assert after["ece"] < before["ece"] / 3 and after["brier"] < before["brier"]


def test_the_temperature_leaves_the_most_probable_label():
    logits, truth = overconfident(500, 4, 3)
    found = fit_calibration(logits, truth, SINGLE, list("abcd"), "accuracy")
    assert found.temperature != 1 and found.thresholds == {}
    assert (found.decide(logits) == logits.argmax(1)).all()
    assert (found.probabilities(logits).argmax(1) == logits.argmax(1)).all()


def test_quality_is_what_scikit_learn_and_torch_say():
    logits, truth = overconfident(300, 2, 2)
    got, found = probability_quality(logits, truth, SINGLE), probabilities(logits, SINGLE)
    assert got["nll"] == pytest.approx(sk.log_loss(truth, found))
    assert got["brier"] == pytest.approx(2 * sk.brier_score_loss(truth, found[:, 1]))
    logits, truth = several(300, 2)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(truth).float())
    assert probability_quality(logits, truth, MULTI)["nll"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_calibration_error_by_hand():
    confidence = np.array([0.62, 0.64, 0.66, 0.95, 0.97])  # bins (9/15, 10/15] and (14/15, 1]
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    rows = reliability(logits, [0, 1, 1, 0, 0], SINGLE)
    full = {round(row["to"] * 15): row for row in rows if row["count"]}
    assert len(rows) == 15 and {end: row["count"] for end, row in full.items()} == {10: 3, 15: 2}
    assert (full[10]["confidence"], full[10]["accuracy"]) == (pytest.approx(0.64), pytest.approx(1 / 3))
    expected = 3 / 5 * (0.64 - 1 / 3) + 2 / 5 * (1 - 0.96)
    assert probability_quality(logits, [0, 1, 1, 0, 0], SINGLE)["ece"] == pytest.approx(expected)
    certain = np.array([[50.0, -50], [-50, 50]])  # probability 1 is in the last bin
    assert probability_quality(certain, [0, 1], SINGLE)["ece"] == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_validation_posts_are_answered_no_worse(metric, seed):
    logits, truth = overconfident(40, 2, 3, seed)
    logits[:, 1] -= 2  # the threshold has something to mend
    decided = metrics_for(SINGLE, ["a", "b"])
    before, after = (
        decided.uncalibrated_predictions(logits),
        fit_calibration(logits, truth, SINGLE, ["a", "b"], metric).decide(logits),
    )
    score = sk.accuracy_score if metric == "accuracy" else lambda *args: sk.f1_score(*args, average="macro")
    assert score(truth, after) >= score(truth, before)
    # no threshold at all is better
    second = probabilities(logits, SINGLE)[:, 1]
    best = max(score(truth, second > cut) for cut in [0.5, *second[second < second.max()]])
    assert score(truth, after) == pytest.approx(best)
    logits, truth = several(40, 3, seed)
    truth[:, 2] = 0  # a label that no validation post has
    found = fit_calibration(logits, truth, MULTI, list("abc"), metric)
    name, of_several = ("label_accuracy" if metric == "accuracy" else "f1_macro"), metrics_for(MULTI, list("abc"))
    scores = [
        of_several.compute(predictions=answers, references=truth)[name]
        for answers in (of_several.uncalibrated_predictions(logits), found.decide(logits))
    ]
    assert scores[1] >= scores[0] and found.thresholds["c"] == 0.5


def test_a_threshold_stays_at_a_half_unless_another_is_better():
    assert best_threshold(np.array([0.1, 0.3, 0.6, 0.9]), [0, 0, 1, 1], "accuracy", macro=True) == 0.5
    assert best_threshold(np.array([0.1, 0.3, 0.4, 0.9]), [0, 0, 1, 1], "accuracy", macro=True) == pytest.approx(0.35)


def test_posts_without_a_mistake_do_not_make_it_certain():
    logits, truth = overconfident(30, 2, 1)
    logits[np.arange(30), truth] = logits.max(1) + 1
    assert fit_temperature(logits, truth, SINGLE) == (pytest.approx(TEMPERATURE_BOUNDS[0]), True)
    assert fit_temperature(logits, 1 - truth, SINGLE) == (pytest.approx(TEMPERATURE_BOUNDS[1]), True)


# Whole runs


def from_checkpoint(checkpoint, output_dir, *flags):
    argv = ["--model_name_or_path", checkpoint, "--output_dir", output_dir, "--use_cpu", "--disable_tqdm", "True"]
    return [*map(str, [*argv, *flags])]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def calibrated(folder, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("run") / "calibrated"
    return output_dir, run_classification.main(command(folder, output_dir, "--calibrate"))


def test_a_run_is_calibrated_on_validation_and_tells_of_test(calibrated, finished, folder, capsys):
    output_dir, metrics = calibrated
    assert (output_dir / "model.safetensors").read_bytes() == (finished[0] / "model.safetensors").read_bytes()
    assert (output_dir / "config.json").read_text() == (finished[0] / "config.json").read_text()
    saved = json.loads((output_dir / "calibration.json").read_text())
    assert saved["fitted_on"] == "validation" and saved["num_posts"] == 16 and list(saved["thresholds"]) == ["sincere"]
    for split in ("validation", "test"):
        report = json.loads((output_dir / f"{split}_report.json").read_text())
        assert report["calibration"]["fitted_on"] == "validation"
        assert sum(row["count"] for row in report["calibration"]["after"]["reliability"]) == 16
        assert metrics[split]["ece"] == report["calibration"]["after"]["ece"]
        assert metrics[split]["accuracy_uncalibrated"] == finished[1][split]["accuracy"]
        assert metrics[split]["loss"] == finished[1][split]["loss"]  # what the model computes
    validation = metrics["validation"]
    assert validation["accuracy"] >= validation["accuracy_uncalibrated"]
    assert validation["nll"] <= validation["nll_uncalibrated"] == pytest.approx(validation["loss"], abs=1e-5)
    text = ModelCard.load(output_dir / "README.md").text
    assert f"(logits / {saved['temperature']:.4g}).softmax(-1)" in text and "test, calibrated" in text


def test_predictions_are_made_of_calibrated_probabilities(calibrated, finished):
    saved = json.loads((calibrated[0] / "calibration.json").read_text())
    rows, plain = (read(path / "predictions.csv") for path in (calibrated[0], finished[0]))
    assert list(rows[0]) == list(plain[0])
    for row, before in zip(rows, plain):
        odds = float(before["probability_sincere"]) / float(before["probability_sarcastic"])
        odds = odds ** (1 / saved["temperature"])
        assert float(row["probability_sincere"]) == pytest.approx(odds / (1 + odds), abs=1e-4)
        above = float(row["probability_sincere"]) > saved["thresholds"]["sincere"]
        assert row["prediction"] == ("sincere" if above else "sarcastic")
    right = np.mean([row["prediction"] == row["label"] for row in rows])
    assert right == calibrated[1]["test"]["accuracy"]


def test_a_checkpoints_calibration_is_applied_when_asked_for(calibrated, finished, folder, tmp_path):
    posts = ["--test_file", folder / "test" / "metadata.jsonl", "--do_predict"]
    run_classification.main(from_checkpoint(calibrated[0], tmp_path / "with", *posts, "--calibrate"))
    run_classification.main(from_checkpoint(calibrated[0], tmp_path / "without", *posts))
    assert read(tmp_path / "with" / "predictions.csv") == read(calibrated[0] / "predictions.csv")
    assert read(tmp_path / "without" / "predictions.csv") == read(finished[0] / "predictions.csv")
    saved = [json.loads((path / "calibration.json").read_text()) for path in (calibrated[0], tmp_path / "with")]
    assert saved[0] == saved[1] and not (tmp_path / "without" / "calibration.json").exists()


def test_a_finished_run_is_calibrated_later(calibrated, finished, folder, tmp_path):
    argv = from_checkpoint(finished[0], tmp_path / "out", "--dataset_name", folder, "--do_eval", "--calibrate")
    run_classification.main(argv)
    assert (tmp_path / "out" / "calibration.json").read_text() == (calibrated[0] / "calibration.json").read_text()


def test_several_labels_have_a_threshold_each_and_seeds_are_summarised(tmp_path):
    posts = tmp_path / "posts"
    write_builtin_posts(posts, train=32, validation=16, test=16, image_size=32, labels="several", progress=False)
    flags = ["--calibrate", "--calibrate_metric", "f1_macro", "--num_train_epochs", 1, "--seeds", 0, 1]
    found = run_classification.main(command(posts, tmp_path / "out", *flags))
    assert len(found["test"]["ece"]["values"]) == 2 and "ece_uncalibrated" in found["test"]
    validation = found["validation"]
    for after, before in zip(validation["f1_macro"]["values"], validation["f1_macro_uncalibrated"]["values"]):
        assert after >= before
    saved = json.loads((tmp_path / "out" / "seed-1" / "calibration.json").read_text())
    assert list(saved["thresholds"]) == ["pleasant", "sarcastic", "upbeat"]
    for row in read(tmp_path / "out" / "seed-1" / "predictions.csv"):
        above = [name for name, cut in saved["thresholds"].items() if float(row[f"probability_{name}"]) > cut]
        assert json.loads(row["prediction"]) == above


# What can't be


def labelled(folder, path, change):
    lines = (folder / "train" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    path.write_text("".join(json.dumps(row | {"label": change(i, row["label"])}) + "\n" for i, row in enumerate(rows)))
    return ["--train_file", path, "--image_dir", folder / "train", "--output_dir", path.parent / "out"]


@pytest.mark.parametrize(
    ("change", "flags", "parts"),
    [
        (lambda i, label: i / 4, [], ["--calibrate", "regression"]),
        (lambda i, label: label, ["--validation_split", 0], ["--calibrate", "--validation_file"]),
        (lambda i, label: "ab"[i == 7], [], ["--calibrate", "same label", "--validation_file"]),
        (lambda i, label: label, ["--calibrate_metric", "f1"], ["--calibrate_metric f1", "accuracy or f1_macro"]),
    ],
    ids=["regression", "no validation", "one class", "metric"],
)
def test_what_can_not_be_calibrated_is_told_before_training(change, flags, parts, folder, tmp_path, monkeypatch):
    data = labelled(folder, tmp_path / "posts.jsonl", change)
    message = refused(monkeypatch, ["--do_train", "--calibrate", *SMALL, *data, *flags])
    assert [part for part in parts if part not in message] == [] and "\n" not in message
    assert not (tmp_path / "out").exists()


def test_predicting_needs_a_calibration_or_posts_to_fit_one_on(finished, calibrated, folder, tmp_path, monkeypatch):
    posts = ["--test_file", folder / "test" / "metadata.jsonl", "--do_predict", "--calibrate"]
    message = refused(monkeypatch, from_checkpoint(finished[0], tmp_path / "out", *posts))
    assert f"{finished[0]} has no calibration.json" in message and "--validation_file" in message
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path in calibrated[0].iterdir():
        if path.is_file():
            (checkpoint / path.name).write_bytes(path.read_bytes())
    saved = json.loads((checkpoint / "calibration.json").read_text())
    for wrong, part in [({"temperature": 0}, "isn't a calibration"), ({"label_names": ["a", "b"]}, "labels a, b")]:
        (checkpoint / "calibration.json").write_text(json.dumps(saved | wrong))
        assert part in refused(monkeypatch, from_checkpoint(checkpoint, tmp_path / "out", *posts))


def test_an_earlier_calibration_is_not_overwritten_unless_asked(finished, folder, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "calibration.json").write_text("earlier")
    argv = from_checkpoint(finished[0], tmp_path / "out", "--dataset_name", folder, "--do_predict", "--calibrate")
    assert "already holds calibration.json" in refused(monkeypatch, argv)
    run_classification.main([*argv, "--overwrite_output_dir"])
    assert "temperature" in json.loads((tmp_path / "out" / "calibration.json").read_text())
