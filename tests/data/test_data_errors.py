"""Bad input: every mistake is reported with the file, row, column or flag it is in, and with what would be right."""

import json

import datasets
import pytest
from PIL import Image

from hf_mamba.classification.data import DataArguments, load_posts


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_rows(count, images="p{}.png"):
    return [
        {"text": f"post {i}", "image": images.format(i % 3), "label": "yes" if i % 3 else "no"} for i in range(count)
    ]


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"p{i}.png")
    write_jsonl(tmp_path / "train.jsonl", make_rows(30))
    write_jsonl(tmp_path / "validation.jsonl", make_rows(6))
    return tmp_path


def load(folder, **flags):
    """Loads train.jsonl and validation.jsonl of the folder, or what the flags name; file flags are relative to it."""
    if not any(flag.endswith("_file") or flag == "dataset_name" for flag in flags):
        flags |= {"train_file": "train.jsonl", "validation_file": "validation.jsonl"}
    flags |= {flag: str(folder / flags[flag]) for flag in flags if flag.endswith("_file")}
    problem_type = flags.pop("problem_type", None)
    return load_posts(DataArguments(**flags), seed=0, problem_type=problem_type)


GOOD = '{"text": "t", "image": "p0.png", "label": "a"}\n{"text": "t", "image": "p1.png", "label": "b"}\n'

BAD_FILES = [
    # name, content, flags, what the message must hold
    ("t.jsonl", "", {}, ["t.jsonl", "no row"]),
    ("t.csv", "", {}, ["t.csv is empty", "names its columns"]),
    ("t.csv", "text,image,label\n", {}, ["t.csv", "no row"]),
    ("t.txt", GOOD, {}, ["--train_file", "'.txt'", ".csv, .tsv, .jsonl"]),
    ("t.jsonl", GOOD + '{"text": "t", \n', {}, ["t.jsonl, line 3", "JSON", "character", "one whole object"]),
    ("t.jsonl", '[{"text": "t"}]', {}, ["t.jsonl, line 1", "list", "one whole object"]),
    ("t.json", '"text"', {}, ["t.json, line 1", "a JSON str", "array of objects", "one whole object"]),
    ("t.json", '[{"text": "t"},\n7]', {}, ["t.json, line 2, entry 2", "a JSON int", "hold objects"]),
    ("t.json", '[{"text": "t"}\n{"text": "u"}]', {}, ["t.json, line 2, entry 2", "comma"]),
    ("t.json", '[{"text": "t"},\n{"text": u}]', {}, ["t.json, line 2, entry 2", "not valid JSON"]),
    ("t.json", '[{"text": "t"}', {}, ["t.json, line 1, entry 2", "end of the array is missing"]),
    ("t.json", '[{"text": "t"}]\n[]', {}, ["t.json, line 2", "after the end of the array"]),
    ("t.json", "[]", {}, ["t.json", "no row"]),
    ("t.json", '{"text": {"0": "t"}, "label": {"0": "a"}}', {}, ["t.json", "each column", 'orient="records"']),
    ("t.tsv", "text\tlabel\na, b\n", {}, ["t.tsv, line 2", "1 cells", "2 columns", "a tab"]),
    ("t.csv", "text;label\na;b\n", {}, ["t.csv, line 1", "separated by ';'", "save it with commas"]),
    ("t.csv", "text\tlabel\na\tb\n", {}, ["t.csv, line 1", r"separated by '\t'", "name it .tsv"]),
    ("t.csv.gz", "text,label\n", {}, ["t.csv.gz", "can't be unpacked"]),
    ("t.parquet", "text,label\n", {}, ["t.parquet", "can't be read as a parquet file"]),
    ("t.jsonl", GOOD, {"on_bad_image": "skip"}, ["--on_bad_image skip", "error, drop or keep_text"]),
    ("t.jsonl", GOOD.encode() + b'{"text": "caf\xe9"}\n', {}, ["t.jsonl, line 3", "not UTF-8", "0xe9", "iconv"]),
    ("t.csv", "text,label\na,b\none, two,c\n", {}, ["t.csv, line 3", "3 cells", "2 columns", "in quotes"]),
    ("t.csv", "text,label\na,b\nc\n", {}, ["t.csv, line 3", "1 cells"]),
    ("t.csv", 'text,label\na,b\n"open,c\nd,e\n', {}, ["t.csv, line 3", "ends with one"]),
    ("t.csv", "text,label,label\na,b,c\n", {}, ["line 1", "'label' is named twice"]),
    (
        "t.jsonl",
        GOOD,
        {"text_column_name": "txet"},
        ["'txet'", "--text_column_name", "Did you mean 'text'", "'label'"],
    ),
    ("t.jsonl", GOOD, {"label_column_name": "lable"}, ["'lable'", "Did you mean 'label'", "Columns there: 'text'"]),
    ("t.jsonl", GOOD, {"id_column_name": "key"}, ["'key'", "--id_column_name"]),
    ("t.csv", "text,lbl\na,b\n", {}, ["no label column", "'lbl'", "--label_column_name"]),
    ("t.csv", "foo,label\na,b\n", {}, ["no text or image column", "'foo'", "--text_column_name"]),
    ("t.csv", "text,imgae,label\na,p0.png,b\n", {}, ["'imgae' looks like one", "--image_column_name imgae"]),
    ("t.jsonl", GOOD, {"max_seq_length": 0}, ["--max_seq_length 0", "1 or more"]),
    ("t.csv", "text,label\na,x\nb,x\n", {"validation_split": 0}, ["t.csv", "only one label", "--label_column_name"]),
    ("t.csv", "text,label\na,x\nb,x\nc,y\n", {"validation_split": 0, "max_train_samples": 2}, ["--max_train_samples"]),
    ("t.csv", "text,label\na,x\nb,\nc,\n", {}, ["t.csv, line 3", "'label'", "2 of 3", "missing"]),
    ("t.jsonl", GOOD + '{"text": "t", "label": 0.5}\n', {}, ["line 3", "0.5", "'a' of", "line 1", "regression"]),
    ("t.jsonl", '{"text": "t", "label": {"a": 1}}\n', {}, ["line 1", "dict", "one label"]),
    ("t.jsonl", '{"text": "t", "label": [0, 1, 0]}\n', {}, ["line 1", "'0' occurs twice", "names of the labels"]),
    ("t.jsonl", '{"text": "t", "label": [0.5, 1.5]}\n', {}, ["line 1", "one number per post"]),
    ("t.jsonl", '{"text": "t", "label": ["a", ""]}\n', {}, ["line 1", "empty label", "'a'"]),
    ("t.jsonl", '{"text": "t", "label": []}\n', {}, ["t.jsonl", "no row has any label"]),
    ("t.jsonl", GOOD, {"problem_type": "regression"}, ["line 1", "'a'", "number", "regression"]),
    ("t.csv", "text,label\na,1.5\nb,nan\n", {"problem_type": "regression"}, ["line 3", "'nan'", "number"]),
    (
        "t.jsonl",
        '{"text": "t", "label": ["a", "b"]}\n',
        {"problem_type": "single_label_classification"},
        ["line 1", "list", "one label", "multi_label"],
    ),
    ("t.csv", 'text,label\na,"[""a""]"\nb,\n', {}, ["line 3", "missing", "1 of 2", "[]"]),
    ("t.jsonl", GOOD, {"group_column_name": "town"}, ["'town'", "--group_column_name"]),
    ("t.jsonl", '{"text": ["t"], "label": "a"}\n{"text": "t", "label": "b"}\n', {}, ["line 1", "'text'", "list"]),
    ("t.jsonl", GOOD + '{"text": "t", "image": 3, "label": "a"}\n', {}, ["line 3", "'image'", "int", "path"]),
    ("t.csv", "text,label\na,x\nb,y\n", {"validation_split": 0.5}, ["too few rows", "--validation_file"]),
    (
        "t.csv",
        "text,label\na,x\nb,y\n",
        {"test_split": 0.5},
        ["too few rows", "for test", "--test_file", "--test_split 0"],
    ),
    ("t.csv", "text,label\na,x\n ,y\nb,x\nc,y\n", {}, ["line 3", "no text ('text')", "1 of", "Drop such rows"]),
    ("t.jsonl", GOOD + '{"text": "", "label": "a"}\n', {}, ["line 3", "neither text ('text') nor image", "Drop"]),
    ("t.jsonl", GOOD, {"modalities": "text,sound"}, ["--modalities", "'sound'"]),
    ("t.jsonl", GOOD, {"modalities": ""}, ["--modalities", "both modalities are left out"]),
    ("t.jsonl", GOOD, {"image_dir": "nowhere"}, ["--image_dir nowhere"]),
    ("t.jsonl", GOOD, {"max_eval_samples": 0}, ["--max_eval_samples 0"]),
    ("t.jsonl", GOOD, {"validation_split": 1.0}, ["--validation_split 1.0"]),
    ("t.jsonl", GOOD, {"test_split": -0.1}, ["--test_split -0.1"]),
    ("t.jsonl", GOOD, {"test_split": 0.1, "test_file": "t.jsonl"}, ["--test_split 0.1", "t.jsonl holds some"]),
    ("t.jsonl", GOOD, {"max_images": -1}, ["--max_images -1"]),
    ("t.jsonl", GOOD, {"dataset_name": "x"}, ["--dataset_name and --train_file"]),
]


@pytest.mark.parametrize(("name", "content", "flags", "expected"), BAD_FILES)
def test_bad_files_are_reported_with_place_and_fix(folder, name, content, flags, expected):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = {"validation_split": 0.1 if "too few" in expected[0] else 0} | flags
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load(folder, train_file=name, **flags)
    for part in expected:
        assert part in str(error.value)


def test_missing_files_and_folders(folder):
    with pytest.raises(FileNotFoundError, match=r"--train_file .*trian\.jsonl: there is no such file.*'train\.jsonl'"):
        load(folder, train_file="trian.jsonl")
    with pytest.raises(FileNotFoundError, match="--train_file .* is a folder"):
        load(folder, train_file="")
    with pytest.raises(FileNotFoundError, match="--dataset_name .*nowhere: there is no such folder"):
        load(folder, dataset_name=str(folder / "nowhere"))
    with pytest.raises(ValueError, match="is a file: give it as --train_file"):
        load(folder, dataset_name=str(folder / "train.jsonl"))
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no data set: expected train/metadata\.jsonl.*There: nothing"):
        load(folder, dataset_name=str(folder / "empty"))
    with pytest.raises(ValueError, match="No data: give --dataset_name, or --train_file"):
        load_posts(DataArguments(), seed=0)
    with pytest.raises(ValueError, match="No training posts: give --train_file"):
        load(folder, validation_file="validation.jsonl")


def test_a_hub_that_cannot_be_reached_is_reported_with_the_name(folder, monkeypatch):
    def unreachable(name, config):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"--dataset_name someone/posts: .*ConnectionError: no route"):
        load(folder, dataset_name="someone/posts")


def test_unseen_label_names_row_and_known_labels(folder):
    write_jsonl(folder / "validation.jsonl", [*make_rows(2), {"text": "t", "label": "perhaps"}])
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 3: the label 'perhaps' is unseen.*'no', 'yes'"):
        load(folder)


def test_a_validation_split_of_one_label_is_refused_a_test_split_warned_about(folder, caplog):
    write_jsonl(folder / "test.jsonl", [row for row in make_rows(4) if row["label"] == make_rows(1)[0]["label"]])
    load(folder, train_file="train.jsonl", test_file="test.jsonl")
    assert "test.jsonl has only one label" in caplog.text
    with pytest.raises(ValueError, match=r"test\.jsonl has only one label.*--label_column_name"):
        load(folder, train_file="train.jsonl", validation_file="test.jsonl")


def test_partly_labelled_test_split(folder):
    write_jsonl(folder / "test.jsonl", [{"text": "a", "label": "yes"}, {"text": "b"}])
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2, column 'label': the label is missing"):
        load(folder, train_file="train.jsonl", test_file="test.jsonl", modalities="text")


def test_validation_needs_labels_and_the_columns_of_training(folder):
    write_jsonl(folder / "validation.jsonl", [{"text": "a", "image": "p0.png"}])
    with pytest.raises(ValueError, match=r"validation\.jsonl has no label column 'label'.*--test_file"):
        load(folder)
    write_jsonl(folder / "validation.jsonl", [{"text": "a", "image": "p0.png", "label": None}])
    with pytest.raises(ValueError, match=r"validation\.jsonl, line 1, column 'label': the label is missing"):
        load(folder)
    write_jsonl(folder / "validation.jsonl", [{"txt": "a", "image": "p0.png", "label": "no"}])
    with pytest.raises(ValueError, match=r"validation\.jsonl has no column 'text'.*Did you mean 'txt'"):
        load(folder)


def test_missing_images_are_counted(folder):
    (folder / "p1.png").unlink()
    (folder / "p2.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        load(folder)
    expected = ["train.jsonl, line 2", "'image'", "'p1.png'", str(folder / "p1.png"), "2 of 3 images", "--image_dir"]
    assert [part for part in expected if part not in str(error.value)] == []
    write_jsonl(folder / "train.jsonl", make_rows(6, "https://example.org/p{}.png"))
    with pytest.raises(FileNotFoundError, match="URLs are not fetched"):
        load(folder)
