"""What the labels of a column are taken for, and what a cell of it becomes."""

import csv
import json

import datasets
import numpy as np
import pytest

from hf_mamba.classification.data import DataArguments, PostCollator, load_posts
from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.classification.evaluation.metrics import baseline_of_posts
from hf_mamba.classification.training.class_weights import resolve_class_weights
from hf_mamba.processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def load(folder, labels, suffix="jsonl", validation_split=0, label_names=None, problem_type=None, **flags):
    """Posts whose label cells are `labels`; with a checkpoint's label names as test posts."""
    path = folder / f"posts.{suffix}"
    if suffix == "csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *((f"post {i}", cell) for i, cell in enumerate(labels))])
    else:
        path.write_text("".join(json.dumps({"text": f"post {i}", "label": c}) + "\n" for i, c in enumerate(labels)))
    flag = "train_file" if label_names is None else "test_file"
    args = DataArguments(**{flag: str(path)}, validation_split=validation_split, modalities="text", **flags)
    return load_posts(args, seed=0, label_names=label_names, problem_type=problem_type)


def labels_of(posts, split="train"):
    """The labels by name."""
    cells = posts.column(split, "label")
    if posts.problem_type == SINGLE:
        return [posts.label_names[cell] for cell in cells]
    if posts.problem_type == REGRESSION:
        return cells
    return [[name for name, there in zip(posts.label_names, cell) if there] for cell in cells]


@pytest.mark.parametrize(
    ("cells", "suffix", "problem_type", "names", "labels"),
    [
        (["b", "a"], "jsonl", SINGLE, ["a", "b"], ["b", "a"]),
        ([10, 9, 9.0], "jsonl", SINGLE, ["9", "10"], ["10", "9", "9"]),
        (["1", "0", "1.0"], "csv", SINGLE, ["0", "1"], ["1", "0", "1"]),
        ([True, False], "jsonl", SINGLE, ["false", "true"], ["true", "false"]),
        (["True", "FALSE", "true"], "csv", SINGLE, ["false", "true"], ["true", "false", "true"]),
        (["1.5", "x"], "csv", SINGLE, ["1.5", "x"], ["1.5", "x"]),
        ([["b", "a"], [], "c"], "jsonl", MULTI, ["a", "b", "c"], [["a", "b"], [], ["c"]]),
        ([[2, 10], [2]], "jsonl", MULTI, ["2", "10"], [["2", "10"], ["2"]]),
        (['["b", "a, b"]', "[]"], "csv", MULTI, ["a, b", "b"], [["a, b", "b"], []]),
        (["['it', \"it's\"]", "[]"], "csv", MULTI, ["it", "it's"], [["it", "it's"], []]),  # as pandas writes it
        ([0.5, 2, "3.25", -1e-3], "jsonl", REGRESSION, ["label"], [0.5, 2, 3.25, -0.001]),
        (["0.5", "2", "1e-05"], "csv", REGRESSION, ["label"], [0.5, 2, 0.00001]),
        (["[x", "[y]"], "csv", SINGLE, ["[x", "[y]"], ["[x", "[y]"]),  # names with brackets
    ],
)
def test_the_data_decide_the_problem(tmp_path, caplog, cells, suffix, problem_type, names, labels):
    caplog.set_level("INFO", logger="hf_mamba")
    posts = load(tmp_path, cells, suffix)
    assert (posts.problem_type, posts.label_names) == (problem_type, names)
    assert labels_of(posts) == labels
    assert problem_type in caplog.text and "--problem_type overrides" in caplog.text


def test_a_flag_overrides_what_labels_look_like(tmp_path):
    assert labels_of(load(tmp_path, [1, 2, 5], problem_type=REGRESSION)) == [1.0, 2.0, 5.0]
    assert load(tmp_path, [0.5, 1, 1.5], problem_type=SINGLE).label_names == ["0.5", "1", "1.5"]
    assert labels_of(load(tmp_path, ["a", "b"], problem_type=MULTI)) == [["a"], ["b"]]
    assert labels_of(load(tmp_path, [["a"], ["b"]], problem_type=SINGLE)) == ["a", "b"]


def test_a_separator_joins_labels_and_an_empty_cell_has_none(tmp_path):
    posts = load(tmp_path, ["red; blue", "", "blue;"], "csv", label_separator=";")
    assert posts.problem_type == MULTI
    assert labels_of(posts) == [["blue", "red"], [], ["blue"]]


def test_lists_of_class_labels_keep_the_data_sets_order(tmp_path):
    features = {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["zebra", "ape"]))}
    rows = {"text": ["a", "b", "c"], "label": [[0], [1, 0], []]}
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).save_to_disk(saved)
    args = DataArguments(dataset_name=str(saved), validation_split=0, modalities="text")
    posts = load_posts(args, seed=0)
    assert posts.label_names == ["zebra", "ape"]
    assert posts.column("train", "label") == [[True, False], [True, True], [False, False]]


@pytest.mark.parametrize(
    ("cells", "problem_type", "names", "expected"),
    [
        (["good"], REGRESSION, ["rating"], ["line 1", "'good'", "regression"]),
        ([["a", "b"]], SINGLE, ["a", "b"], ["line 1", "list", "one label belongs"]),
        ([["a"], ["a", "c"]], MULTI, ["a", "b"], ["line 2", "'c'", "unknown to the checkpoint", "'a', 'b'"]),
        (["a, b"], MULTI, ["a", "b"], ["line 1", "'a, b'", "--label_separator ','"]),
        ([0.5], SINGLE, ["0", "1"], ["line 1", "'0.5'", "unknown to the checkpoint"]),
    ],
)
def test_what_contradicts_a_checkpoint_is_reported_in_a_line(tmp_path, cells, problem_type, names, expected):
    with pytest.raises(ValueError) as error:
        load(tmp_path, cells, label_names=names, problem_type=problem_type)
    assert [part for part in expected if part not in str(error.value)] == []
    assert "\n" not in str(error.value)


def test_a_checkpoints_booleans_are_known_however_they_are_written(tmp_path):
    posts = load(tmp_path, [True, "false", "TRUE"], label_names=["False", "True"], problem_type=SINGLE)
    assert posts.column("test", "label") == [1, 0, 1]


def test_unlabelled_test_posts_of_every_problem(tmp_path):
    for problem_type, names in ((SINGLE, ["a", "b"]), (MULTI, ["a", "b"]), (REGRESSION, ["x"])):
        posts = load(tmp_path, ["", None], label_names=names, problem_type=problem_type, label_separator=",")
        assert "label" not in posts.splits["test"].column_names


@pytest.mark.parametrize("cells", [[["a", "b"], ["b"], ["a"], []] * 10, [0.5, 1.5, 2.5, 3] * 10])
def test_validation_is_cut_at_random_where_there_are_no_classes(tmp_path, cells):
    posts = load(tmp_path, cells, validation_split=0.2)
    assert len(posts.splits["validation"]) == 8 and len(posts.splits["train"]) == 32
    assert not set(posts.column("train", "id")) & set(posts.column("validation", "id"))
    again = load(tmp_path, cells, validation_split=0.2)
    assert again.column("validation", "id") == posts.column("validation", "id")


def test_the_baseline_is_that_of_training(tmp_path):
    assert baseline_of_posts(load(tmp_path, ["b", "a", "b"])) == 1
    assert baseline_of_posts(load(tmp_path, [["b"], ["a", "b"], []])) == [0, 1]
    assert baseline_of_posts(load(tmp_path, [0.5, 1, 3])) == 1.5
    assert baseline_of_posts(load(tmp_path, ["a"], label_names=["a"])) is None


@pytest.mark.parametrize(
    ("cells", "dtype", "labels"),
    [
        (["b", "a"], "torch.int64", [1, 0]),
        ([["b"], []], "torch.float32", [[1.0], [0.0]]),
        ([0.5, 2], "torch.float32", [0.5, 2.0]),
    ],
)
def test_the_collators_labels(tmp_path, cells, dtype, labels):
    tokenizer = build_wordpiece_tokenizer(train_wordpiece(["post 0 1"]))
    processor = HFMambaProcessor(HFMambaImageProcessor(size=32, patch_size=16), tokenizer)
    rows = list(load(tmp_path, cells).splits["train"])
    batch = PostCollator(processor)(rows)
    assert str(batch["labels"].dtype) == dtype and batch["labels"].tolist() == labels


# Class weights


def test_automatic_weights_are_inverse_frequencies_of_mean_one(tmp_path):
    weights = resolve_class_weights("auto", load(tmp_path, ["a"] * 6 + ["b"] * 3 + ["c"]))
    assert np.mean(weights) == pytest.approx(1, abs=1e-5)
    assert np.array(weights) * [6, 3, 1] == pytest.approx(weights[2], abs=1e-5)
    weights = resolve_class_weights("auto", load(tmp_path, [["a", "b"], ["a"], ["a"], []]))
    assert weights == [0.5, 1.5]


def test_weights_by_name_and_by_number(tmp_path):
    posts = load(tmp_path, ["a", "b", "c"])
    assert resolve_class_weights({"b": 3.0}, posts) == [1.0, 3.0, 1.0]
    assert resolve_class_weights([1.0, 2.0, 0.0], posts) == [1.0, 2.0, 0.0]
    assert resolve_class_weights("none", posts) is None
    for asked, expected in (
        ({"bb": 1.0}, "--class_weights bb: there is no such label. Did you mean 'b'"),
        ([1.0], "--class_weights has 1 numbers for 3 labels"),
        ([1.0, -1.0, 1.0], "must be 0 or more"),
        ([1.0, float("nan"), 1.0], "must be 0 or more"),
    ):
        with pytest.raises(ValueError, match=expected):
            resolve_class_weights(asked, posts)
    with pytest.raises(ValueError, match="problem type is regression"):
        resolve_class_weights("auto", load(tmp_path, [0.5, 1]))
    with pytest.raises(ValueError, match="counts the training posts"):
        resolve_class_weights("auto", load(tmp_path, ["a"], label_names=["a", "b"], problem_type=SINGLE))


def test_groups_are_read_as_text_and_missing_ones_named(tmp_path):
    rows = [{"text": "t", "label": label, "city": city} for label, city in zip("abab", ["LA", None, 3, " "])]
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"train_file": str(tmp_path / "posts.jsonl"), "validation_split": 0, "modalities": "text"}
    posts = load_posts(DataArguments(**flags, group_column_name="city"), seed=0)
    assert posts.column("train", "group") == ["LA", "(none)", "3", "(none)"]
    assert "group" not in load_posts(DataArguments(**flags), seed=0).splits["train"].column_names
