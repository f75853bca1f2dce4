"""Every kind of file, folder and image cell that docs/data.md names, each as a real one."""

import base64
import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from documented import Cases, load, load_rows, make_image, rows_of, write_jsonl
from hub_server import Repo, running_hub

from hf_mamba.classification.data import DataArguments, check_images, load_posts


FILES, CELLS = Cases(), Cases()

TEXTS = [
    "007",
    "NA",
    'she said "hi", then\nleft\twith, commas',
    "emoji 👩‍👩‍👧 and ﷺ",
    "שלום עולם \u200fמימין",
    "日本語 中文 한국어",
    "&amp; &lt;b&gt;",
    "true",
    "1.50",
    " spaces  kept ",
]
ROWS = [{"text": text, "image": f"p{i % 2}.png", "label": ["no", "yes"][i % 2]} for i, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path):
    for i in range(2):
        make_image((16 + i, 16)).save(tmp_path / f"p{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", rows_of("Files and folders"))
def test_file(folder, name):
    FILES[name](folder)


@pytest.mark.parametrize("name", rows_of("Image cells"))
def test_image_cell(folder, name):
    CELLS[name](folder)


def test_every_case_is_documented():
    assert set(FILES) == set(rows_of("Files and folders"))
    assert set(CELLS) == set(rows_of("Image cells"))


def assert_same_posts(posts, numbers, where, folder):
    """The posts are ROWS, at the lines or rows that their file has them in."""
    train = posts.splits["train"]
    assert list(train["text"]) == TEXTS
    assert [row["images"] for row in train] == [[str(folder / row["image"])] for row in ROWS]
    assert [posts.label_names[label] for label in train["label"]] == [row["label"] for row in ROWS]
    assert list(train["id"]) == [str(number) for number in numbers]
    assert posts.where("train", 3).endswith(where)


# Files

JSON_LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
JSON_ARRAY = json.dumps(ROWS, indent=1, ensure_ascii=False)


def delimited(delimiter):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerows([list(ROWS[0]), *(row.values() for row in ROWS)])
    return file.getvalue()


@FILES("csv", "tsv")
def case_delimited(folder):
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        (folder / f"t.{suffix}").write_text(delimited(delimiter), "utf-8", newline="")
        posts = load(folder / f"t.{suffix}")
        assert_same_posts(posts, [2, 3, 4, 6, *range(7, 13)], f"t.{suffix}, line 6", folder)


@FILES("jsonl", "json of lines")
def case_json_lines(folder):
    for suffix in ("jsonl", "json"):
        (folder / f"t.{suffix}").write_text(JSON_LINES)
        assert_same_posts(load(folder / f"t.{suffix}"), range(1, 11), f"t.{suffix}, line 4", folder)


@FILES("json array")
def case_json_array(folder):
    (folder / "t.json").write_text(JSON_ARRAY, "utf-8")
    assert_same_posts(load(folder / "t.json"), range(1, 11), "t.json, entry 4 (line 17)", folder)
    (folder / "t.json").write_text(json.dumps(ROWS))
    assert_same_posts(load(folder / "t.json"), range(1, 11), "t.json, entry 4 (line 1)", folder)


@FILES("gz")
def case_gz(folder):
    contents = {"csv": delimited(","), "tsv": delimited("\t"), "jsonl": JSON_LINES, "json": JSON_ARRAY}
    for suffix, content in contents.items():
        (folder / f"t.{suffix}.gz").write_bytes(gzip.compress(content.encode()))
        assert list(load(folder / f"t.{suffix}.gz").splits["train"]["text"]) == TEXTS
    (folder / "t.csv.gz").write_bytes(gzip.compress(delimited(",").encode())[:-20])
    with pytest.raises(ValueError, match=r"t\.csv\.gz can't be unpacked.*fetch it again"):
        load(folder / "t.csv.gz")


@FILES("parquet")
def case_parquet(folder):
    table = pa.table({name: [row[name] for row in ROWS] for name in ROWS[0]})
    table = table.set_column(2, "label", table["label"].dictionary_encode())  # what pandas makes of a categorical
    pq.write_table(table, folder / "t.parquet")
    assert_same_posts(load(folder / "t.parquet"), range(10), "t.parquet, row 3 (counted from 0)", folder)


def table_with_images(folder, count=10):
    images = [(folder / f"p{i % 2}.png").read_bytes() for i in range(count)]
    labels = [row["label"] for row in ROWS]
    return pa.table({"text": TEXTS, "image": [{"bytes": p, "path": None} for p in images], "label": labels})


@FILES("parquet with images")
def case_parquet_with_images(folder):
    table = table_with_images(folder)
    plain = table.set_column(1, "image", pa.array([p["bytes"] for p in table["image"].to_pylist()]))
    listed = table.set_column(1, "image", pa.array([[p] for p in table["image"].to_pylist()]))
    for kind in (table, plain, listed):
        pq.write_table(kind, folder / "t.parquet")
        posts = load(folder / "t.parquet")
        assert [row["images"] for row in posts.splits["train"]] == [[p["bytes"]] for p in table["image"].to_pylist()]
        assert posts.splits["train"].cache_files  # mapped into memory, not read
        check_images(posts, progress=False)


@FILES("csv of other separators")
def case_semicolons(folder):
    (folder / "t.csv").write_text(delimited(";"), "utf-8", newline="")
    with pytest.raises(ValueError, match="line 1: the columns are separated by ';', not by ','"):
        load(folder / "t.csv")


@FILES("not UTF-8")
def case_not_utf8(folder):
    for name in ("t.csv", "t.tsv", "t.json", "t.jsonl"):
        (folder / name).write_bytes("text,label\ncafé,yes\n".encode("cp1252"))
        with pytest.raises(ValueError, match=rf"{name}, line 2: not UTF-8 \(byte 0xe9\).*iconv"):
            load(folder / name)


@FILES("damaged file")
def case_damaged(folder):
    pq.write_table(table_with_images(folder), folder / "t.parquet")
    (folder / "t.parquet").write_bytes((folder / "t.parquet").read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"t\.parquet can't be read as a parquet file: "):
        load(folder / "t.parquet")
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "saved")
    arrow = next((folder / "saved").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match="saved can't be read as a saved data set: "):
        load(dataset_name=str(folder / "saved"))


# Folders


@FILES("images with metadata")
def case_metadata(folder):
    rows = [{"file_name": f"deep/{i}.png", "text": f"t{i}", "label": "ab"[i % 2]} for i in range(4)]
    for split in ("train", "validation", "test"):
        (folder / split / "deep").mkdir(parents=True)
        for i in range(4):
            make_image().save(folder / split / "deep" / f"{i}.png")
    write_jsonl(folder / "train" / "metadata.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test" / "metadata.parquet")
    text = "\n".join(["file_name,text,label", *(",".join(row.values()) for row in rows)])
    (folder / "validation" / "metadata.csv").write_text(text)
    posts = load(dataset_name=str(folder))
    for split in posts.splits:
        assert [row["images"] for row in posts.splits[split]] == [[str(folder / split / r["file_name"])] for r in rows]
        assert posts.column(split, "text") == ["t0", "t1", "t2", "t3"]


def write_class_folders(folder, labels=("cat", "dog")):
    for label in labels:
        (folder / label / "more").mkdir(parents=True)
        make_image().save(folder / label / "1.png")
        make_image().save(folder / label / "more" / "2.JPG", "JPEG")
    (folder / labels[0] / ".DS_Store").write_text("")
    (folder / labels[0] / "._1.png").write_bytes(b"what another system leaves beside a file")
    (folder / labels[0] / "notes.txt").write_text("")


@FILES("images in folders")
def case_class_folders(folder):
    write_class_folders(folder / "whole")
    posts = load(dataset_name=str(folder / "whole"))
    assert posts.label_names == ["cat", "dog"] and posts.column("train", "label") == [0, 0, 1, 1]
    assert posts.column("train", "id") == ["cat/1.png", "cat/more/2.JPG", "dog/1.png", "dog/more/2.JPG"]
    assert posts.where("train", 3) == f"{folder / 'whole'}, image dog/more/2.JPG"
    assert posts.column("train", "text") == [None] * 4
    for split in ("train", "val"):
        write_class_folders(folder / "split" / split)
    posts = load(dataset_name=str(folder / "split"))
    assert {split: len(rows) for split, rows in posts.splits.items()} == {"train": 4, "validation": 4}
    check_images(posts, progress=False)


@FILES("images in no folder")
def case_flat(folder):
    write_class_folders(folder / "set" / "train")
    (folder / "set" / "test").mkdir()
    make_image().save(folder / "set" / "test" / "new.png")
    test = load(dataset_name=str(folder / "set")).splits["test"]
    assert test.column_names == ["id", "text", "images"] and list(test["id"]) == ["new.png"]
    make_image().save(folder / "set" / "train" / "stray.png")
    with pytest.raises(ValueError, match=r"train: the image stray\.png \(1 of 5 likewise\) is in no label's folder"):
        load(dataset_name=str(folder / "set"))


@FILES("a file per split")
def case_file_per_split(folder):
    (folder / "train.csv").write_text(delimited(","), "utf-8", newline="")
    (folder / "dev.json").write_text(JSON_ARRAY, "utf-8")
    (folder / "test.jsonl.gz").write_bytes(gzip.compress(JSON_LINES.encode()))
    posts = load(dataset_name=str(folder))
    assert {split: len(rows) for split, rows in posts.splits.items()} == {"train": 10, "validation": 10, "test": 10}
    (folder / "valid.csv").write_text(delimited(","), "utf-8", newline="")
    with pytest.raises(ValueError, match=r"valid\.csv and .*dev\.json both hold validation"):
        load(dataset_name=str(folder))


@FILES("saved data set")
def case_saved(folder):
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(folder / "one")
    assert_same_posts(
        load(dataset_name=str(folder / "one"), image_dir=str(folder)),
        range(10),
        "one, split train, row 3 (counted from 0)",
        folder,
    )
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(folder / "dict")
    assert set(load(dataset_name=str(folder / "dict"), image_dir=str(folder)).splits) == {"train", "test"}


def write_hub_layout(folder, images_in=None):
    (folder / "data").mkdir(parents=True)
    table = table_with_images(images_in or folder.parent)
    for split in ("train", "validation"):
        for shard in range(2):
            rows = table.slice(5 * shard, 5)
            pq.write_table(rows, folder / "data" / f"{split}-{shard:05}-of-00002.parquet")


@FILES("folder laid out as on the Hub")
def case_hub_layout(folder):
    write_hub_layout(folder / "repository")
    posts = load(dataset_name=str(folder / "repository"))
    assert {split: len(rows) for split, rows in posts.splits.items()} == {"train": 10, "validation": 10}
    assert posts.column("train", "text") == TEXTS
    assert posts.splits["train"][7]["images"] == [(folder / "p1.png").read_bytes()]
    assert posts.where("validation", 7).endswith("repository, split validation, row 7 (counted from 0)")


@FILES("name on the Hub")
def case_hub_name(folder):
    loaded = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS))
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(datasets, "load_dataset", lambda *names: asked.append(names) or loaded)
        posts = load(dataset_name="owner/posts", dataset_config_name="small", modalities="text")
    assert asked == [("owner/posts", "small")]
    assert posts.column("train", "text") == TEXTS and posts.source == "the data set owner/posts (small)"


READ_BY_NAME = """
import json
from hf_mamba.classification.data import DataArguments, load_posts
for flags in ({}, {"streaming": True, "stream_shuffle_buffer": 1}):
    posts = load_posts(DataArguments(dataset_name="me/posts", **flags), seed=0)
    rows = [row for row, _ in zip(posts.splits["train"], range(10))]
    print(json.dumps([(row["text"], row["images"][0].hex()) for row in rows]))
"""


def test_a_data_set_is_fetched_or_streamed_by_its_name(folder):
    """Over HTTP, as from the Hub."""
    write_hub_layout(folder / "repository")
    paths = (folder / "repository").rglob("*.parquet")
    tree = {path.relative_to(folder / "repository").as_posix(): path.read_bytes() for path in paths}
    with running_hub({}) as hub:
        hub.repos["me/posts"] = Repo("me", private=False)
        hub.repos["me/posts"].commit("main", tree, "the posts")
        environment = {**os.environ, **hub.environment(folder / "home")}
        environment.pop("HF_DATASETS_CACHE", None)
        process = subprocess.run([sys.executable, "-c", READ_BY_NAME], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    expected = [[text, (folder / f"p{i % 2}.png").read_bytes().hex()] for i, text in enumerate(TEXTS)]
    assert [json.loads(line) for line in process.stdout.splitlines()] == [expected, expected]


@FILES("streaming")
def case_streaming(folder):
    write_hub_layout(folder / "repository")
    posts = load(dataset_name=str(folder / "repository"), streaming=True, stream_shuffle_buffer=1)
    first = [row for row, _ in zip(posts.splits["train"], range(10))]
    assert [row["text"] for row in first] == TEXTS
    assert posts.column("validation", "text") == TEXTS


@FILES("no validation split")
def case_no_validation(folder):
    rows = [{"text": f"t{i}", "label": "yes" if i % 4 else "no"} for i in range(40)]
    splits = load_posts(DataArguments(train_file=str(write_jsonl(folder / "t.jsonl", rows))), seed=0).splits
    assert sorted(splits["validation"]["label"]) == [0, 1, 1, 1]
    assert sorted([*splits["train"]["text"], *splits["validation"]["text"]]) == sorted(row["text"] for row in rows)


@FILES("no test split")
def case_no_test(folder):
    rows = [{"text": f"t{i}", "label": "yes" if i % 4 else "no"} for i in range(40)]
    path = str(write_jsonl(folder / "t.jsonl", rows))
    assert "test" not in load_posts(DataArguments(train_file=path), seed=0).splits
    splits = load_posts(DataArguments(train_file=path, test_split=0.1), seed=0).splits
    assert sorted(splits["test"]["label"]) == [0, 1, 1, 1]
    assert sorted(sum((list(split["text"]) for split in splits.values()), [])) == sorted(row["text"] for row in rows)


# Image cells


def images_of(folder, cell, **flags):
    return load_rows(folder, [{"text": "t", "image": cell}] * 2, **flags).splits["train"][0]["images"]


@CELLS("relative path", "absolute path")
def case_path(folder):
    (folder / "photos").mkdir()
    make_image().save(folder / "photos" / "p0.png")
    assert images_of(folder, "p0.png") == [str(folder / "p0.png")]
    assert images_of(folder, "photos/../p0.png") == [str(folder / "p0.png")]
    assert images_of(folder, "p0.png", image_dir=str(folder / "photos")) == [str(folder / "photos" / "p0.png")]
    absolute = str(folder / "photos" / "p0.png")
    assert images_of(folder, absolute) == images_of(folder, absolute, image_dir=str(folder)) == [absolute]


@CELLS("path that leaves --image_dir", "link that leaves --image_dir")
def case_outside(folder):
    (folder / "photos" / "deep").mkdir(parents=True)
    os.symlink(folder / "p0.png", folder / "photos" / "link.png")
    os.symlink(folder, folder / "photos" / "up")
    os.symlink("../inside.png", folder / "photos" / "deep" / "harmless.png")
    make_image().save(folder / "photos" / "inside.png")
    flags = {"image_dir": str(folder / "photos"), "on_bad_image": "drop"}  # never merely a bad image
    for cell in (
        "../p0.png",
        str(folder / "p0.png"),
        "deep/../../p0.png",
        "link.png",
        "up/p0.png",
        "../../etc/passwd",
    ):
        expected = rf"posts\.jsonl, line 1, column 'image': the image '{re.escape(cell)}' lies outside --image_dir"
        with pytest.raises(ValueError, match=expected):
            images_of(folder, cell, **flags)
    assert len(images_of(folder, ["inside.png", "deep/../inside.png", "deep/harmless.png"], **flags)) == 3
    os.symlink(folder / "photos", folder / "album")  # the folder itself may be a link
    assert images_of(folder, "inside.png", image_dir=str(folder / "album")) == [str(folder / "album" / "inside.png")]


@CELLS("URL")
def case_url(folder):
    with pytest.raises(FileNotFoundError, match=r"line 1.*'https://example\.org/a\.png'.*URLs are not fetched"):
        images_of(folder, "https://example.org/a.png")
    assert images_of(folder, "https://example.org/a.png", on_bad_image="keep_text") == []


@CELLS("base64", "data: URL")
def case_base64(folder):
    for name, kind in (("j.jpg", "JPEG"), ("p.png", "PNG"), ("w.webp", "WEBP"), ("g.gif", "GIF"), ("t.tif", "TIFF")):
        make_image().save(folder / name, kind)
        data = (folder / name).read_bytes()
        text = base64.b64encode(data).decode()
        for cell in (text, base64.encodebytes(data).decode(), f"data:image/{kind.lower()};base64,{text}"):
            assert images_of(folder, cell) == [data]
        (folder / "t.csv").write_text(f'text,image,label\na,"{text}",x\nb,"data:;base64,{text}",y\n')
        posts = load(folder / "t.csv")
        assert [row["images"] for row in posts.splits["train"]] == [[data], [data]]
        check_images(posts, progress=False)
    posts = load_rows(folder, [{"text": "t", "image": "data:image/png;base64,???"}] * 2)
    with pytest.raises(ValueError, match=r"1 images(.|\n)*line 1: cannot read image 'data:image/png;base64"):
        check_images(posts, progress=False)


@CELLS("bytes", "Image feature")
def case_bytes(folder):
    case_parquet_with_images(folder)
    image = datasets.Features(text=datasets.Value("string"), image=datasets.Image(), label=datasets.Value("int64"))
    rows = {"text": ["a", "b"], "image": [make_image(), str(folder / "p1.png")], "label": [0, 1]}
    datasets.Dataset.from_dict(rows, features=image).to_parquet(folder / "f.parquet")
    images = [row["images"] for row in load(folder / "f.parquet").splits["train"]]
    assert images[0][0].startswith(b"\x89PNG") and images[1] == [str(folder / "p1.png")]


@CELLS("bytes and path")
def case_dict(folder):
    data = (folder / "p0.png").read_bytes()
    text = base64.b64encode(data).decode()
    assert images_of(folder, {"bytes": text, "path": "gone.png"}) == [data]
    assert images_of(folder, {"bytes": None, "path": "p0.png"}) == [str(folder / "p0.png")]
    assert images_of(folder, [{"bytes": text}, {"path": "p1.png"}]) == [data, str(folder / "p1.png")]
    cells = [{"bytes": data, "path": None}, {"bytes": None, "path": "p1.png"}]
    pq.write_table(pa.table({"text": ["a", "b"], "image": cells, "label": ["x", "y"]}), folder / "t.parquet")
    images = [row["images"] for row in load(folder / "t.parquet").splits["train"]]
    assert images == [[data], [str(folder / "p1.png")]]


@CELLS("list", "list in csv", "empty cell")
def case_list(folder):
    both = [str(folder / "p0.png"), str(folder / "p1.png")]
    assert images_of(folder, ["p0.png", "p1.png"]) == images_of(folder, '["p0.png", "p1.png"]') == both
    (folder / "t.csv").write_text('text,image,label\na,"[""p0.png"", ""p1.png""]",x\nb,,y\n')
    assert [row["images"] for row in load(folder / "t.csv").splits["train"]] == [both, []]
    for cell in (None, "", " ", [], [None, ""]):
        assert images_of(folder, cell) == []


@CELLS("something else")
def case_something_else(folder):
    for cell, kind in ((3, "int"), ([[1, 2]], "list"), ({"url": "x"}, "dict"), (True, "bool")):
        with pytest.raises(ValueError, match=rf"posts\.jsonl, line 1, column 'image': a {kind} where"):
            images_of(folder, cell)
