"""Reports of a split, and whole runs with several labels and with numbers: what they learn and what they leave."""

import csv
import json

import numpy as np
import pytest
from huggingface_hub import ModelCard
from running import SMALL, command, refused
from sklearn import metrics as sk

from hf_mamba import HFMambaForSequenceClassification, run_classification
from hf_mamba.classification.data.sets.builtin import write_builtin_posts
from hf_mamba.classification.evaluation.metrics import ClassificationMetrics, MultiLabelMetrics, RegressionMetrics
from hf_mamba.classification.evaluation.split_report import confusion_matrix, per_group, per_label, read_baseline


def test_labels_and_confusions_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth, answers = rng.integers(3, size=(2, 80))
    got = per_label(ClassificationMetrics("abc"), answers, truth)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, answers)
    for name, p, r, f, s in zip("abc", precision, recall, f1, support):
        values = [got[name][key] for key in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx([p, r, f, s])
        assert got[name]["predicted"] == (answers == "abc".index(name)).sum()
    assert (confusion_matrix(answers, truth, 3) == sk.confusion_matrix(truth, answers)).all()
    truth, answers = (rng.random((2, 80, 3)) < 0.3).astype(int)
    got = per_label(MultiLabelMetrics("abc", baseline=[0, 1, 0]), answers, truth)
    precision, recall, f1, support = sk.precision_recall_fscore_support(truth, answers)
    for index, name in enumerate("abc"):
        values = [got[name][key] for key in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx([precision[index], recall[index], f1[index], support[index]])
        assert got[name]["accuracy"] == pytest.approx(np.mean(truth[:, index] == answers[:, index]))
        assert got[name]["majority_accuracy"] == pytest.approx(np.mean(truth[:, index] == (index == 1)))


def test_groups_are_scored_by_themselves_the_largest_first():
    truth, answers = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 0, 0, 0])
    groups = ["LA", "NY", "LA", "LA", "NY"]
    got = per_group(ClassificationMetrics("ab", baseline=0), answers, truth, groups, seed=0)
    assert list(got) == ["LA", "NY"]
    assert (got["LA"]["accuracy"], got["LA"]["num_posts"]) == (pytest.approx(2 / 3), 3)
    assert (got["NY"]["accuracy"], got["NY"]["majority_accuracy"]) == (0.5, 0)
    assert got["NY"]["accuracy_low"] <= 0.5 <= got["NY"]["accuracy_high"]
    of_one = per_group(RegressionMetrics("x"), truth[:1] * 1.0, answers[:1] * 1.0, ["alone"], seed=0)
    assert of_one["alone"]["rmse"] == 0


@pytest.mark.parametrize(
    ("told", "problem_type", "expected"),
    [
        ("b", "single_label_classification", 1),
        (["b"], "multi_label_classification", [0, 1]),
        ([], "multi_label_classification", [0, 0]),
        (2.5, "regression", 2.5),
        ("c", "single_label_classification", None),
        (["c"], "multi_label_classification", None),
        (None, "multi_label_classification", None),
        ("b", "regression", None),
    ],
)
def test_a_checkpoints_baseline_is_read_if_it_fits(told, problem_type, expected):
    assert read_baseline(told, problem_type, ["a", "b"]) == expected


# Whole runs


LEARN = ["--num_train_epochs", 6, "--learning_rate", 5e-3, "--hidden_size", 32, "--hidden_dropout", 0]


def rewrite(folder, change):
    for split in ("train", "validation", "test"):
        path = folder / split / "metadata.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"label": change(row["label"])}) + "\n" for row in rows))


@pytest.fixture(scope="module", params=["several", "number"])
def learnt(request, tmp_path_factory):
    """A run on built-in posts with several labels, or with a number that tone and scene add up to."""
    folder = tmp_path_factory.mktemp("data") / "posts"
    sizes = {"train": 200, "validation": 40, "test": 40, "image_size": 32}
    write_builtin_posts(folder, labels="several", progress=False, **sizes)
    if request.param == "number":
        rewrite(folder, lambda labels: 100 + 2.5 * ("pleasant" in labels) + 1.5 * ("upbeat" in labels))
    output_dir = tmp_path_factory.mktemp("run") / request.param
    metrics = run_classification.main(command(folder, output_dir, *LEARN))
    return request.param, folder, output_dir, metrics["test"]


def test_it_learns_what_no_baseline_knows(learnt):
    kind, _, output_dir, test = learnt
    config = HFMambaForSequenceClassification.from_pretrained(output_dir).config
    results = json.loads((output_dir / "all_results.json").read_text())
    state = json.loads((output_dir / "trainer_state.json").read_text())
    best = [row[name] for row in state["log_history"] for name in ("eval_f1_micro", "eval_rmse") if name in row]
    if kind == "several":
        assert test["f1_micro"] > test["every_label_f1_micro"] + 0.1 > test["majority_f1_micro"] + 0.1
        assert config.problem_type == "multi_label_classification"
        assert config.id2label == {0: "pleasant", 1: "sarcastic", 2: "upbeat"}
        assert set(results["train_majority_labels"]) <= set(config.id2label.values())
        assert state["best_metric"] == max(best)
    else:
        assert test["rmse"] < 0.7 * test["mean_rmse"] and test["r2"] > 0.4
        assert config.problem_type == "regression" and config.id2label == {0: "label"}
        assert results["train_mean"] == 102
        assert state["best_metric"] == min(best)
    main = "f1_micro" if kind == "several" else "rmse"
    assert results[f"test_{main}_low"] < results[f"test_{main}"] < results[f"test_{main}_high"]


def test_its_checkpoint_evaluates_to_the_same_numbers_and_predicts_unlabelled_posts(learnt, tmp_path):
    kind, folder, output_dir, test = learnt
    start = ["--model_name_or_path", output_dir, "--do_predict", "--use_cpu", "--disable_tqdm", "True"]
    argv = [*start, "--dataset_name", folder, "--output_dir", tmp_path / "again", "--predictions_format", "jsonl"]
    again = run_classification.main([*map(str, argv)])["test"]
    speed = ("runtime", "per_second", "_time")
    assert {name: value for name, value in again.items() if not name.endswith(speed)} == {
        name: value for name, value in test.items() if not name.endswith(speed)
    }
    lines = [json.loads(line) for line in (tmp_path / "again" / "predictions.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in (folder / "test" / "metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == [row["label"] for row in rows]
    if kind == "several":
        for line in lines:
            above = [name for name in ("pleasant", "sarcastic", "upbeat") if line[f"probability_{name}"] > 0.5]
            assert line["prediction"] == above
    else:
        errors = [line["prediction"] - line["label"] for line in lines]
        assert np.mean(np.square(errors)) ** 0.5 == pytest.approx(test["rmse"], rel=1e-4)
    (folder / "test" / "new.jsonl").write_text("".join(json.dumps(row | {"label": None}) + "\n" for row in rows))
    argv = [*start, "--test_file", folder / "test" / "new.jsonl", "--output_dir", tmp_path / "new"]
    assert run_classification.main([*map(str, argv)]) == {}
    with (tmp_path / "new" / "predictions.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == len(rows) and "label" not in found[0]


def test_its_card_says_what_it_answers(learnt):
    kind, _, output_dir, test = learnt
    card = ModelCard.load(output_dir / "README.md")
    found = {result.metric_type for result in card.data.eval_results}
    if kind == "several":
        assert "which of these labels" in card.text and "logits.sigmoid()" in card.text
        assert {"f1_micro", "f1_macro"} <= found and f"{test['every_label_f1_micro']:.4f}" in card.text
    else:
        assert "Predicts a number, `label`" in card.text and "softmax" not in card.text
        assert {"rmse", "r2"} <= found and f"{test['mean_rmse']:.4g}" in card.text
    assert not any(name.startswith(("majority", "every", "mean")) for name in found)


@pytest.mark.parametrize(("factor", "offset"), [(1000, 5e4), (1e-3, 0)])
def test_the_units_of_a_number_change_nothing_but_the_units(folder, tmp_path, factor, offset):
    outputs = []
    for name, a, b in (("plain", 1, 0), ("other", factor, offset)):
        rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            row["label"] = a * (1.5 + 2 * (row["label"] == "sincere") + number % 4 / 4) + b
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = ["--train_file", tmp_path / f"{name}.jsonl", "--test_file", tmp_path / f"{name}.jsonl"]
        flags = [*data, "--image_dir", folder / "train", "--problem_type", "regression", "--max_grad_norm", 0]
        argv = ["--do_train", "--do_predict", *SMALL, *flags, "--output_dir", tmp_path / name, "--validation_split", 0]
        run_classification.main([*map(str, argv)])
        with (tmp_path / name / "predictions.csv").open(newline="") as file:
            outputs.append([(float(line["prediction"]) - b) / a for line in csv.DictReader(file)])
    plain, other = map(np.array, outputs)
    assert plain.std() > 0.05 and abs(plain - other).max() < 0.05 * plain.std()


# What flags add


def evaluated(finished, tmp_path, rows, *flags):
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["--model_name_or_path", finished[0], "--test_file", tmp_path / "posts.jsonl", "--use_cpu"]
    return [*map(str, [*argv, "--do_predict", "--output_dir", tmp_path / "out", "--disable_tqdm", "True", *flags])]


@pytest.fixture
def rows(folder):
    lines = (folder / "test" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    paths = [str(folder / "test" / row.pop("file_name")) for row in rows]
    return [row | {"image": path, "city": "ABC"[i % 3]} for i, (row, path) in enumerate(zip(rows, paths))]


def test_a_report_counts_the_posts_of_every_split(finished, rows, tmp_path):
    report = json.loads((finished[0] / "test_report.json").read_text())
    assert report["posts"] == {"train": 48, "validation": 16, "test": 16}
    run_classification.main(evaluated(finished, tmp_path, rows))  # by a checkpoint, whose posts are elsewhere
    assert json.loads((tmp_path / "out" / "test_report.json").read_text())["posts"] == {"test": 16}


def test_groups_stand_in_report_and_summary(finished, rows, tmp_path, capsys):
    run_classification.main(evaluated(finished, tmp_path, rows, "--group_column_name", "city"))
    report = json.loads((tmp_path / "out" / "test_report.json").read_text())
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        right = [line["prediction"] == line["label"] for line in csv.DictReader(file)]
    assert {name: group["num_posts"] for name, group in report["per_group"].items()} == {"A": 6, "B": 5, "C": 5}
    for index, name in enumerate("ABC"):
        assert report["per_group"][name]["accuracy"] == pytest.approx(np.mean(right[index::3]))
    assert sum(map(sum, report["confusion_matrix"]["counts"])) == report["num_posts"] == 16
    assert report["baseline"] in report["confusion_matrix"]["labels"]
    assert "| A " in capsys.readouterr().out


def test_posts_with_one_modality_are_left_out_of_the_withheld_rows(finished, rows, tmp_path, capsys):
    for row in rows[:6]:
        row["image"] = None
    run_classification.main(evaluated(finished, tmp_path, rows))
    report = json.loads((tmp_path / "out" / "test_report.json").read_text())
    assert {row["num_posts"] for row in report["withheld"].values()} == {10} and report["num_posts"] == 16
    assert "test, posts with both" in capsys.readouterr().out
    run_classification.main(
        evaluated(finished, tmp_path, rows, "--report_withheld", "none", "--overwrite_output_dir", "True")
    )
    assert "withheld" not in json.loads((tmp_path / "out" / "test_report.json").read_text())


def test_the_positive_label_may_be_named(finished, rows, tmp_path, capsys):
    run_classification.main(evaluated(finished, tmp_path, rows, "--positive_label", "sarcastic"))
    report = json.loads((tmp_path / "out" / "test_report.json").read_text())
    assert report["metrics"]["recall"] == report["per_label"]["sarcastic"]["recall"]
    assert "those of the label 'sarcastic'" in capsys.readouterr().out


def test_class_weights_are_saved_as_numbers_and_repeat(folder, tmp_path):
    flags = ["--class_weights", '{"sarcastic": 3}', "--num_train_epochs", 1]
    run_classification.main(command(folder, tmp_path / "out", *flags, steps=["--do_train"]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["class_weights"] == [3.0, 1.0]
    _, _, _, recipe = run_classification.parse_arguments([str(tmp_path / "out" / "recipe.yaml"), "--use_cpu"])
    assert recipe["class_weights"] == {"sarcastic": 3.0}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--positive_label", "sarcastc"], ["--positive_label sarcastc", "Did you mean 'sarcastic'?"]),
        (["--problem_type", "regression"], ["--problem_type regression", "single_label_classification"]),
        (["--problem_type", "regresion"], ["--problem_type regresion", "multi_label_classification or regression"]),
        (["--predictions_format", "xlsx"], ["--predictions_format xlsx", "csv, jsonl or parquet"]),
        (["--report_withheld", "train"], ["--report_withheld train", "none, test or all"]),
        (["--modality_dropout", "2"], ["--modality_dropout 2", "0 to 1"]),
        (["--class_weights", "heavy"], ["--class_weights heavy", "auto"]),
        (["--class_weights", "auto"], ["--class_weights auto", "training posts"]),
        (["--class_weights", "1", "2", "3"], ["3 numbers for 2 labels"]),
        (["--group_column_name", "town"], ["'town'", "--group_column_name"]),
    ],
)
def test_flags_that_can_not_be_are_told(finished, rows, tmp_path, monkeypatch, flags, told):
    message = refused(monkeypatch, evaluated(finished, tmp_path, rows, *flags))
    assert [part for part in told if part not in message] == [] and "\n" not in message


def test_a_metric_of_another_problem_is_refused(folder, tmp_path, monkeypatch):
    message = refused(monkeypatch, command(folder, tmp_path / "out", "--metric_for_best_model", "rmse"))
    assert "'rmse'" in message and "f1_macro" in message and not (tmp_path / "out").exists()
