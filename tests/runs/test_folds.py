"""--folds: every post is tested once by a model that has seen neither it nor its like; each fold could stand alone."""

import csv
import json

import numpy as np
import pytest
import yaml
from running import SMALL, assert_same_weights, refused
from sklearn.metrics import accuracy_score

from hf_mamba import run_classification
from hf_mamba.classification.data import DataArguments, load_posts
from hf_mamba.classification.data.splits import assign_folds, rows_of_fold, same_text
from hf_mamba.classification.evaluation.predictions import read_predictions


SINGLE, MULTI = "single_label_classification", "multi_label_classification"
STEPS = ["--do_train", "--do_eval", "--do_predict", "--num_train_epochs", 1]


def rows_of(labels, texts, fold, problem_type=SINGLE, folds=4, share=0.1, seed=0):
    names = {"names": ["a", "b", "c"], "place": "posts.csv"}
    return rows_of_fold(labels, texts, problem_type, folds=folds, fold=fold, share=share, seed=seed, **names)


@pytest.fixture(scope="module")
def many():
    """200 posts of 150 texts, and labels of three classes."""
    rng = np.random.default_rng(0)
    return rng.choice(3, 200, p=[0.6, 0.3, 0.1]).tolist(), [f"text {i % 150}" for i in range(200)]


def test_every_post_is_tested_once_and_is_never_also_elsewhere(many):
    labels, texts = many
    folds = [rows_of(labels, texts, fold) for fold in (1, 2, 3, 4)]
    assert sorted(row for fold in folds for row in fold["test"]) == list(range(200))
    for fold in folds:
        assert sorted(fold["train"] + fold["validation"] + fold["test"]) == list(range(200))
        of_split = [{texts[row] for row in fold[split]} for split in ("train", "validation", "test")]
        assert not of_split[0] & of_split[1] and not of_split[0] & of_split[2] and not of_split[1] & of_split[2]
        assert 10 <= len(fold["validation"]) <= 20  # about a tenth of 150
        for label in range(3):
            share = labels.count(label) / 200
            assert np.mean([labels[row] == label for row in fold["test"]]) == pytest.approx(share, abs=0.05)
    assert rows_of(labels, texts, 2) == folds[1] and rows_of(labels, texts, 2, seed=1) != folds[1]
    assert "validation" not in rows_of(labels, texts, 1, share=0)


def test_the_same_text_is_told_by_its_words():
    groups = same_text(["A  b", "a b ", None, "", "a c", None])
    assert groups[0] == groups[1] and len(set(groups)) == 5


def test_numbers_and_several_labels_are_split_evenly():
    for labels, problem_type in ((np.random.rand(40).tolist(), "regression"), ([[1, 0]] * 20 + [[0, 1]] * 20, MULTI)):
        counts = np.bincount(assign_folds(labels, np.arange(40), problem_type, 4, seed=0))
        assert counts.tolist() == [10] * 4


# Whole runs


@pytest.fixture(scope="module")
def posts(folder, tmp_path_factory):
    """32 posts in a file, the first eight of them twice, with pictures, ids and a group."""
    path = tmp_path_factory.mktemp("posts") / "posts.jsonl"
    rows = [json.loads(line) for line in (folder / "train" / "metadata.jsonl").read_text().splitlines()][:32]
    rows = [row | {"text": f"{row['text']} {number}"} for number, row in enumerate(rows)]
    rows += [row | {"text": row["text"].upper()} for row in rows[:8]]
    rows = [row | {"id": f"p{number}", "city": "AB"[number % 2]} for number, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--train_file", path, "--image_dir", folder / "train", "--group_column_name", "city"]


@pytest.fixture(scope="module")
def two_folds(posts, tmp_path_factory):
    output_dir = tmp_path_factory.mktemp("folds") / "out"
    flags = [*STEPS, *SMALL, *posts, "--folds", 2, "--seed", 5, "--image_cache", output_dir.parent / "cache"]
    return output_dir, run_classification.main([*map(str, [*flags, "--output_dir", output_dir])])


def test_the_pooled_predictions_hold_every_post_once(two_folds):
    output_dir, found = two_folds
    with (output_dir / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["id"] for row in rows) == sorted(f"p{number}" for number in range(40))
    parts = [read_predictions(output_dir / f"fold-{fold}") for fold in (1, 2)]
    assert [row["id"] for row in rows] == parts[0].ids + parts[1].ids
    of_fold = [{*part.ids} for part in parts]
    assert all((f"p{i}" in of_fold[0]) == (f"p{i + 32}" in of_fold[0]) for i in range(8))  # the repeated ones
    accuracy = accuracy_score([row["label"] for row in rows], [row["prediction"] for row in rows])
    assert found["pooled"]["accuracy"] == pytest.approx(accuracy) and found["pooled"]["num_posts"] == 40
    assert found["pooled"]["accuracy_low"] <= accuracy <= found["pooled"]["accuracy_high"]


def test_results_are_summarised_over_the_folds(two_folds):
    output_dir, found = two_folds
    results = [json.loads((output_dir / f"fold-{fold}" / "all_results.json").read_text()) for fold in (1, 2)]
    assert found["test"]["accuracy"]["values"] == [result["test_accuracy"] for result in results]
    assert json.loads((output_dir / "folds_results.json").read_text()) == {"folds": 2, **found}
    report = json.loads((output_dir / "fold-1" / "test_report.json").read_text())
    assert {*report["per_group"]} == {"A", "B"}


def test_a_fold_repeats_from_its_recipe_alone(two_folds, tmp_path):
    output_dir, _ = two_folds
    saved = output_dir / "fold-2" / "recipe.yaml"
    recipe = yaml.safe_load(saved.read_text())
    assert (recipe["folds"], recipe["fold"], recipe["split_seed"]) == (2, 2, 5)
    run_classification.main([str(saved), "--output_dir", str(tmp_path / "again")])
    assert_same_weights(output_dir / "fold-2", tmp_path / "again")
    again, first = ((path / "predictions.csv").read_text() for path in (tmp_path / "again", output_dir / "fold-2"))
    assert again == first


def test_a_finished_group_is_only_summarised_again(two_folds, posts, caplog):
    output_dir, found = two_folds
    flags = [*STEPS, *SMALL, *posts, "--folds", 2, "--seed", 5, "--image_cache", output_dir.parent / "cache"]
    with caplog.at_level("INFO", logger="hf_mamba"):
        assert run_classification.main([*map(str, [*flags, "--output_dir", output_dir])]) == found
    assert "Fold 1 (1 of 2) is finished" in caplog.text


def test_folds_do_not_depend_on_the_modalities(posts):
    flags = {"train_file": str(posts[1]), "image_dir": str(posts[3]), "folds": 3, "fold": 2}
    ids = [
        load_posts(DataArguments(modalities=modalities, **flags), seed=0).column("test", "id")
        for modalities in ("text,image", "text", "image")
    ]
    assert ids[0] == ids[1] == ids[2]


def test_of_a_data_set_only_the_training_posts_are_split(folder, caplog):
    found = load_posts(DataArguments(dataset_name=str(folder), folds=4, fold=1), seed=0)
    assert sum(len(rows) for rows in found.splits.values()) == 48
    assert "leaves out: validation, test" in caplog.text


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--folds", 1], ["--folds 1", "2 or more"]),
        (["--folds", 25], ["--folds 25", "only", "posts of the label"]),
        (["--folds", 99], ["--folds 99", "only 32 different posts"]),
        (["--folds", 3, "--fold", 4], ["--fold 4", "1 to 3"]),
        (["--fold", 1], ["--fold 1", "--folds"]),
        (["--folds", 2, "--test_file", "x.csv"], ["--test_file"]),
        (["--folds", 2, "--test_split", 0.1], ["--folds", "--test_split"]),
        (["--folds", 2, "--validation_file", "x.csv"], ["--validation_file"]),
        (["--folds", 2, "--seeds", 0, 1], ["--folds and --seeds"]),
        (["--folds", 2, "--search_trials", 3], ["--folds and --search_trials"]),
        (["--folds", 2, "--do_predict", "false"], ["--do_predict"]),
        (["--folds", 2, "--streaming"], ["--streaming"]),
        (["--folds", 2, "--push_to_hub"], ["--push_to_hub"]),
        (["--folds", 2, "--validation_split", 0.6], ["--validation_split 0.6", "0.5"]),
    ],
)
def test_folds_that_can_not_be_are_refused(flags, parts, posts, tmp_path, monkeypatch):
    message = refused(monkeypatch, [*STEPS, *SMALL, *posts, "--output_dir", tmp_path / "out", *flags])
    assert [part for part in parts if part not in message] == [] and "\n" not in message
