"""Posts from files and data sets: what is read, what stays untouched, what becomes of the images."""

import json
import os
import pickle

import datasets
import pytest
from PIL import Image
from small_posts import damage, load, make_rows, write_csv, write_folder, write_image, write_jsonl
from transformers import HfArgumentParser

from hf_mamba.classification.data import DataArguments, check_images
from hf_mamba.classification.evaluation.metrics import baseline_of_posts


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


# What is read


def test_jsonl_gives_the_four_columns_in_file_order(folder):
    posts = load(folder)
    train = posts.splits["train"]
    assert train.column_names == ["id", "text", "images", "label"]
    assert posts.label_names == ["no", "yes"] == train.features["label"].names
    assert posts.columns == {"text": "text", "image": "image", "label": "label"}
    for i, (row, post) in enumerate(zip(train, make_rows(30))):
        assert row["id"] == str(i + 1)  # the line of the file
        assert row["text"] == post["text"]
        assert row["images"] == [str(folder / post["image"])]
        assert posts.label_names[row["label"]] == post["label"]
    assert baseline_of_posts(posts) == 1
    assert posts.where("train", 4) == f"{folder / 'train.jsonl'}, line 5"


def test_csv_cells_stay_text_and_lines_are_the_files_own(folder):
    rows = [
        ["text", "image", "label"],
        ["NA", "p0.png", "1"],
        ["two\nlines, quoted", "p1.png", "0"],
        ["", "p2.png", "1"],
    ]
    rows += [["2024-01-02", "", "0"], ["null", "p0.png", "10"], ["007", "p0.png", "2"]]
    posts = load(folder, train_file=os.path.basename(write_csv(folder / "t.csv", rows)), validation_split=0)
    train = posts.splits["train"]
    assert list(train["text"]) == ["NA", "two\nlines, quoted", None, "2024-01-02", "null", "007"]
    assert list(train["id"]) == ["2", "3", "5", "6", "7", "8"]  # the header is line 1, one row spans two
    assert posts.label_names == ["0", "1", "2", "10"]  # by size
    assert train[3]["images"] == []


def test_json_labels_of_any_scalar_kind_become_names(folder):
    kinds = [True, False, 3, 3.0, "3", " 3 ", "x"]
    rows = [{"text": "t", "label": label} for label in kinds]
    write_jsonl(folder / "t.jsonl", rows)
    posts = load(folder, train_file="t.jsonl", validation_split=0)
    assert posts.label_names == ["3", "False", "True", "x"]
    names = [posts.label_names[label] for label in posts.splits["train"]["label"]]
    assert names == ["True", "False", "3", "3", "3", "3", "x"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("  two  spaces ", "  two  spaces "),  # what the file says: an audit looks for such traces
        (" \t\n", None),
        ("\u200b\ufeff", None),
        ("\ufe0f", None),
        ("😀", "😀"),
        ("line\u2028separator", "line\u2028separator"),
        ("half \ud83d emoji", "half \ufffd emoji"),
        (42, "42"),
        (None, None),
        (float("nan"), None),
    ],
)
def test_text_cells(folder, text, kept):
    rows = [{"text": text, "image": "p0.png", "label": label} for label in "ab"]
    write_jsonl(folder / "t.jsonl", rows)
    assert load(folder, train_file="t.jsonl", validation_split=0).splits["train"][0]["text"] == kept


def test_json_lines_end_at_line_feeds_only(folder):
    rows = [json.dumps({"text": "a\u2028b\x85c", "label": label}, ensure_ascii=False) for label in "ab"]
    (folder / "t.jsonl").write_bytes(("\ufeff" + "\r\n\r\n".join(rows)).encode())
    train = load(folder, train_file="t.jsonl", validation_split=0).splits["train"]
    assert list(train["text"]) == ["a\u2028b\x85c"] * 2
    assert list(train["id"]) == ["1", "3"]


@pytest.mark.parametrize(
    ("cell", "count"),
    [(["p0.png", "p1.png", "p2.png"], 2), ('["p0.png", "p1.png"]', 2), ([], 0), ("", 0), (None, 0), ("p[1].png", 1)],
)
def test_image_cells_and_the_cap(folder, cell, count):
    write_image(folder / "p[1].png")
    write_jsonl(folder / "t.jsonl", [{"text": "t", "image": cell, "label": label} for label in "ab"])
    posts = load(folder, train_file="t.jsonl", validation_split=0, max_images=2)
    assert len(posts.splits["train"][0]["images"]) == count
    uncapped = load(folder, train_file="t.jsonl", validation_split=0, max_images=0)
    assert len(uncapped.splits["train"][0]["images"]) == (3 if count == 2 and isinstance(cell, list) else count)


@pytest.mark.parametrize("names", [("Tweet", "Photo", "Sentiment"), ("question", "file_name", "answer")])
def test_usual_names_in_any_case(folder, names):
    rows = [dict(zip(names, row.values())) for row in make_rows(6)]
    write_jsonl(folder / "t.jsonl", rows)
    posts = load(folder, train_file="t.jsonl", validation_split=0)
    assert tuple(posts.columns[role] for role in ("text", "image", "label")) == names


def test_named_columns_win_and_ids_are_taken(folder):
    rows = [{"text": "wrong", "body": f"b{i}", "label": "z", "truth": i % 2, "key": f"k{i}"} for i in range(4)]
    write_jsonl(folder / "t.jsonl", rows)
    flags = {"text_column_name": "body", "label_column_name": "truth", "id_column_name": "key"}
    posts = load(folder, train_file="t.jsonl", validation_split=0, **flags)
    assert list(posts.splits["train"]["text"]) == ["b0", "b1", "b2", "b3"]
    assert list(posts.splits["train"]["id"]) == ["k0", "k1", "k2", "k3"]
    assert posts.label_names == ["0", "1"]


def test_image_paths_start_at_the_file_or_image_dir_never_the_working_directory(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert load(folder).splits["train"][0]["images"] == [str(folder / "p0.png")]
    other = tmp_path_factory.mktemp("photos")
    for i in range(3):
        write_image(other / f"p{i}.png")
    assert load(folder, image_dir=str(other)).splits["train"][0]["images"] == [str(other / "p0.png")]


@pytest.mark.parametrize(("modalities", "texts", "images"), [("text", True, False), ("image", False, True)])
def test_a_modality_can_be_dropped(folder, modalities, texts, images):
    (folder / "p0.png").unlink() if modalities == "text" else None  # what isn't used needn't exist
    row = load(folder, modalities=modalities).splits["train"][0]
    assert (row["text"] is not None, bool(row["images"])) == (texts, images)


@pytest.mark.parametrize(
    "write", [write_jsonl, lambda path, rows: write_csv(path, [rows[0], *map(dict.values, rows)])]
)
def test_image_folder_with_metadata_equals_files(tmp_path, write):
    for split, count in (("train", 12), ("val", 6)):
        rows = [{"file_name": row.pop("image"), **row} for row in make_rows(count)]
        suffix = "jsonl" if write is write_jsonl else "csv"
        write(tmp_path / split / f"metadata.{suffix}", rows)
        for i in range(3):
            write_image(tmp_path / split / f"p{i}.png")
    posts = load(tmp_path, dataset_name=str(tmp_path))
    assert {split: len(rows) for split, rows in posts.splits.items()} == {"train": 12, "validation": 6}
    assert posts.splits["validation"][1]["images"] == [str(tmp_path / "val" / "p1.png")]
    assert load(tmp_path, dataset_name=str(tmp_path / "train"), validation_split=0).splits["train"].num_rows == 12


def test_folder_with_a_file_per_split(folder):
    assert load(folder, dataset_name=str(folder)).splits["train"][:] == load(folder).splits["train"][:]


def test_the_same_rows_each_time_and_nothing_written(folder):
    before = sorted(folder.rglob("*"))
    first, second = load(folder), load(folder)
    assert all(first.splits[split][:] == second.splits[split][:] for split in first.splits)
    assert sorted(folder.rglob("*")) == before


def test_unlabelled_test_file(folder):
    rows = [{"text": "t", "image": "p0.png"}] * 3
    write_jsonl(folder / "test.jsonl", rows)
    posts = load(folder, train_file="train.jsonl", test_file="test.jsonl")
    assert posts.splits["test"].column_names == ["id", "text", "images"]
    write_jsonl(folder / "test.jsonl", [{**row, "label": None} for row in rows])
    assert "label" not in load(folder, train_file="train.jsonl", test_file="test.jsonl").splits["test"].column_names


def test_without_training_the_checkpoints_labels_rule(folder):
    posts = load(folder, label_names=["yes", "maybe", "no"], validation_file="validation.jsonl")
    assert posts.label_names == ["yes", "maybe", "no"]
    assert list(posts.splits["validation"]["label"]) == [2, 0, 0, 2, 0, 0]
    assert baseline_of_posts(posts) is None
    with pytest.raises(ValueError, match=r"line 1: the label 'no' is unknown to the checkpoint.*'yes'"):
        load(folder, label_names=["yes"], validation_file="validation.jsonl")


def test_flags_have_help_and_parse():
    (args,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(
        ["--train_file", "a.csv", "--max_images", "2"]
    )
    assert (args.train_file, args.max_images) == ("a.csv", 2)
    assert all(field.metadata["help"] for field in DataArguments.__dataclass_fields__.values())


# Splits


@pytest.mark.parametrize("count", [4, 30, 101])
def test_validation_is_cut_stratified_and_seeded(folder, count):
    write_jsonl(folder / "t.jsonl", make_rows(count))
    posts = load(folder, train_file="t.jsonl", validation_split=0.2)
    train, validation = (list(map(int, posts.splits[split]["id"])) for split in ("train", "validation"))
    assert sorted(train + validation) == list(range(1, count + 1))  # nothing lost, nothing twice
    assert train == sorted(train) and validation == sorted(validation)
    assert len(validation) == max(1, round(0.2 * count))
    for label in (0, 1):
        share = posts.column("validation", "label").count(label)
        assert abs(share - 0.2 * make_labels(count).count(label)) <= 1
    assert posts.where("validation", 0).endswith(f"line {validation[0]}")
    same = load(folder, train_file="t.jsonl", validation_split=0.2)
    assert same.splits["validation"][:] == posts.splits["validation"][:]
    if count > 4:
        other = load(folder, train_file="t.jsonl", validation_split=0.2, seed=1)
        assert list(other.splits["validation"]["id"]) != list(posts.splits["validation"]["id"])


def test_a_test_split_is_cut_before_validation_and_whoever_asks(folder):
    write_jsonl(folder / "t.jsonl", make_rows(100))
    posts = load(folder, train_file="t.jsonl", test_split=0.2)
    rows = {split: list(map(int, posts.splits[split]["id"])) for split in posts.splits}
    assert list(rows) == ["train", "validation", "test"]
    assert sorted(sum(rows.values(), [])) == list(range(1, 101))
    assert {split: len(found) for split, found in rows.items()} == {"train": 72, "validation": 8, "test": 20}
    counted = posts.column("test", "label").count(1)
    assert abs(counted - 0.2 * make_labels(100).count(1)) <= 1
    assert posts.where("test", 0).endswith(f"line {rows['test'][0]}")
    alone = load(folder, train_file="t.jsonl", test_split=0.2, validation_split=0)
    assert list(alone.splits) == ["train", "test"] and alone.column("test", "id") == posts.column("test", "id")
    other = load(folder, train_file="t.jsonl", test_split=0.2, seed=1)
    assert other.column("test", "id") != posts.column("test", "id")


def make_labels(count):
    return [int(row["label"] == "yes") for row in make_rows(count)]


def test_many_small_classes_still_give_a_validation_split(folder):
    rows = [{"text": "t", "label": f"c{i % 10}"} for i in range(40)] + [{"text": "t", "label": "alone"}]
    write_jsonl(folder / "t.jsonl", rows)
    posts = load(folder, train_file="t.jsonl")
    assert len(posts.splits["validation"]) == 4
    assert set(posts.column("train", "label")) == set(range(11))


def test_the_first_samples_are_kept_and_all_training_labels_known(folder):
    write_jsonl(folder / "t.jsonl", [*make_rows(20), {"text": "t", "label": "rare"}])
    posts = load(
        folder, train_file="t.jsonl", validation_file="validation.jsonl", max_train_samples=5, max_eval_samples=2
    )
    assert list(posts.splits["train"]["id"]) == ["1", "2", "3", "4", "5"]
    assert len(posts.splits["validation"]) == 2
    assert posts.label_names == ["no", "rare", "yes"]


# `datasets`


def make_dataset(folder, many):
    images = [str(folder / f"p{i}.png") for i in range(3)]
    encoded = [{"bytes": (folder / f"p{i}.png").read_bytes(), "path": None} for i in range(3)]
    cells = [encoded[0], None, encoded[2], {"bytes": None, "path": images[1]}] * 3
    if many:
        cells = [
            [],
            [encoded[0], encoded[1]],
            [encoded[2], {"bytes": None, "path": images[0]}, encoded[1]],
            None,
        ] * 3
    image = datasets.Image()
    features = {
        "text": datasets.Value("string"),
        "image": datasets.List(image) if many else image,
        "label": datasets.ClassLabel(names=["zebra", "ape"]),
    }
    table = {"text": [f"post {i}" for i in range(12)], "image": cells, "label": [i % 2 for i in range(12)]}
    return datasets.Dataset.from_dict(table, features=datasets.Features(features))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("saved", [False, True])  # what is saved to disk holds every image's bytes, also of paths
def test_data_set_with_images(folder, many, saved, tmp_path_factory, monkeypatch):
    loaded = datasets.DatasetDict(train=make_dataset(folder, many), valid=make_dataset(folder, many))
    name = "someone/posts"
    if saved:
        name = str(tmp_path_factory.mktemp("saved") / "set")
        loaded.save_to_disk(name)
    else:
        monkeypatch.setattr(datasets, "load_dataset", lambda name, config: loaded)
    posts = load(folder, dataset_name=name, max_images=2)
    assert posts.label_names == ["zebra", "ape"]  # the data set's own order
    paths = [folder / f"p{i}.png" for i in range(3)]
    first, second, third = (path.read_bytes() for path in paths)
    if many:
        expected = [[], [first, second], [third, first if saved else str(paths[0])], []]
    else:
        expected = [[first], [], [third], [second if saved else str(paths[1])]]
    assert [row["images"] for row in posts.splits["train"]] == expected * 3
    assert posts.column("train", "text") == [f"post {i}" for i in range(12)]
    assert posts.where("train", 3).endswith("split train, row 3 (counted from 0)")
    check_images(posts, progress=False)


def test_stored_images_are_not_copied(folder, tmp_path_factory):
    name = str(tmp_path_factory.mktemp("saved") / "set")
    datasets.DatasetDict(train=make_dataset(folder, False)).save_to_disk(name)
    posts = load(folder, dataset_name=name)
    image = (folder / "p0.png").read_bytes()
    assert posts.splits["train"][0]["images"] == [image]
    assert image not in pickle.dumps(posts.splits["train"])  # it refers to the file that is mapped into memory


def test_hub_data_set_hides_test_labels_as_minus_one(folder, monkeypatch):
    train = make_dataset(folder, False)
    test = train.remove_columns("label").add_column("label", [-1] * 12).cast(train.features)
    loaded = datasets.DatasetDict(train=train, test=test, unsupervised=test)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: loaded)
    posts = load(folder, dataset_name="someone/posts", dataset_config_name="small")
    assert set(posts.splits) == {"train", "validation", "test"}
    assert "label" not in posts.splits["test"].column_names
    assert "someone/posts (small)" in posts.source


# Images


@pytest.mark.parametrize("kind", ["truncated", "no image", "empty"])
def test_unreadable_images_are_named_before_training(folder, kind):
    check_images(load(folder), progress=False)
    damage(folder / "p1.png", kind)
    damage(folder / "p2.png", kind)
    with pytest.raises(ValueError) as error:
        check_images(load(folder), progress=False)
    expected = ["2 images", "'image'", "train.jsonl, line 2", "train.jsonl, line 3", str(folder / "p1.png")]
    assert [part for part in expected if part not in str(error.value)] == []


@pytest.mark.parametrize("limit", [200, 100])  # Pillow warns above the limit and refuses above twice of it
def test_decompression_bombs_are_unreadable(folder, monkeypatch, recwarn, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=r"3 images .*can't be read(.|\n)*line 1"):
        check_images(load(folder), progress=False)
    assert not [warning for warning in recwarn if warning.category is Image.DecompressionBombWarning]


def test_a_stored_image_that_is_damaged_is_named_by_its_row(folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp("saved") / "set"
    rows = make_dataset(folder, False).to_dict()
    rows["image"][6] = {"bytes": b"broken", "path": None}
    datasets.Dataset.from_dict(rows, features=make_dataset(folder, False).features).save_to_disk(saved)
    posts = load(folder, dataset_name=str(saved), validation_split=0)
    with pytest.raises(ValueError, match=r"1 images(.|\n)*row 6 \(counted from 0\)"):
        check_images(posts, progress=False)
