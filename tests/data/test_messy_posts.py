"""Every awkward image, text and post that docs/data.md names, each as a real one."""

import struct
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from documented import Cases, load, load_rows, make_image, processor_for, rows_of, write_jsonl
from PIL import Image

from hf_mamba.classification.data import PostCollator, check_images, leave_out_bad_images
from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.processing_hf_mamba import load_rgb_image


IMAGES, TEXTS, POSTS = Cases(), Cases(), Cases()


@pytest.fixture
def folder(tmp_path):
    for i in range(4):
        make_image((16 + i, 16)).save(tmp_path / f"p{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", rows_of("Images"))
def test_image(folder, name):
    IMAGES[name](folder)


@pytest.mark.parametrize("name", rows_of("Texts"))
def test_text(folder, name):
    TEXTS[name](folder)


@pytest.mark.parametrize("name", rows_of("Posts"))
def test_post(folder, name, caplog):
    POSTS[name](folder, caplog)


def test_every_case_is_documented():
    documented = [rows_of(section) for section in ("Images", "Texts", "Posts")]
    assert [set(cases) for cases in (IMAGES, TEXTS, POSTS)] == [set(rows) for rows in documented]


def as_trained(folder, source):
    """The pixels of an image as they come out of the whole way from a file of posts to a batch."""
    posts = load_rows(folder, [{"image": str(source)}] * 2)
    check_images(posts, progress=False)
    return PostCollator(processor_for("t"))(list(posts.splits["train"]))["pixel_values"][0]


def assert_reads_like(folder, source, expected: Image.Image, tolerance=0.02):
    wanted = processor_for("t")(images=expected, text="t", return_tensors="pt")["pixel_values"][0]
    assert (as_trained(folder, source) - wanted).abs().mean() < tolerance


# Images


@IMAGES("wrong extension")
def case_wrong_extension(folder):
    make_image().save(folder / "a.jpg", "PNG")
    make_image().save(folder / "b.txt", "WEBP", lossless=True)
    for name in ("a.jpg", "b.txt"):
        assert_reads_like(folder, folder / name, make_image())


@IMAGES("GIF", "TIFF")
def case_frames(folder):
    for name in ("a.gif", "a.tif"):
        second = Image.new("RGB", make_image().size, "white")
        make_image().save(folder / name, save_all=True, append_images=[second])
        assert_reads_like(folder, folder / name, make_image(), tolerance=0.05)


@IMAGES("WebP")
def case_webp(folder):
    make_image((64, 64)).save(folder / "a.webp", quality=90)
    assert_reads_like(folder, folder / "a.webp", make_image((64, 64)), tolerance=0.05)


@IMAGES("CMYK")
def case_cmyk(folder):
    make_image((64, 64)).convert("CMYK").save(folder / "a.jpg", quality=95)
    assert Image.open(folder / "a.jpg").mode == "CMYK"
    assert_reads_like(folder, folder / "a.jpg", make_image((64, 64)), tolerance=0.05)


@IMAGES("16 bits")
def case_16_bits(folder):
    greys = np.linspace(0, 65535, 24 * 16).reshape(16, 24).astype(np.uint16)
    expected = Image.fromarray((greys // 257).astype(np.uint8))
    for name in ("a.png", "a.tif"):
        Image.fromarray(greys).save(folder / name)
        assert_reads_like(folder, folder / name, expected)


@IMAGES("transparent")
def case_transparent(folder):
    image = make_image().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    for name in ("a.png", "a.webp"):
        image.save(folder / name)
        assert_reads_like(folder, folder / name, Image.new("RGB", image.size, "white"))


@IMAGES("turned by EXIF")
def case_exif(folder):
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    make_image((64, 32)).save(folder / "a.jpg", exif=exif, quality=95)
    assert_reads_like(folder, folder / "a.jpg", make_image((64, 32)).rotate(-90, expand=True), tolerance=0.05)


@IMAGES("50 megapixels")
def case_large(folder):
    Image.new("RGB", (8660, 5774), "navy").save(folder / "a.jpg")
    assert_reads_like(folder, folder / "a.jpg", Image.new("RGB", (16, 16), "navy"))


def assert_unreadable(folder, name, reason):
    """It is reported alike before training and by the processor, which is what a pipeline shows."""
    posts = load_rows(folder, [{"text": "t", "image": "p0.png"}, {"text": "t", "image": name}])
    with pytest.raises(ValueError, match=rf"1 images \(column 'image'\)(.|\n)*posts\.jsonl, line 2: .*{reason}"):
        check_images(posts, progress=False)
    for source in (str(folder / name), (folder / name).read_bytes()):
        with pytest.raises(ValueError, match=f"cannot read image .*{reason}"):
            processor_for("t")(images=source, text="t")


@IMAGES("decompression bomb")
def case_bomb(folder):
    Image.new("1", (10_000, 10_000)).save(folder / "a.png")  # 12 kB; a tenth more than the limit
    with pytest.warns(Image.DecompressionBombWarning):
        assert_unreadable(folder, "a.png", "10000 x 10000 pixels is more than Pillow takes for safe")
    small = (folder / "p0.png").read_bytes()
    header = b"IHDR" + struct.pack(">II", 50_000, 50_000) + small[24:29]
    (folder / "b.png").write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    assert_unreadable(folder, "b.png", "exceeds limit")


@IMAGES("truncated")
def case_truncated(folder):
    noise = Image.effect_noise((200, 200), 80).convert("RGB")
    for name, kind in (("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.webp", "WEBP"), ("a.tif", "TIFF")):
        noise.save(folder / name, kind)
        (folder / name).write_bytes((folder / name).read_bytes()[: (folder / name).stat().st_size // 2])
        assert_unreadable(folder, name, "")


@IMAGES("zero bytes")
def case_zero_bytes(folder):
    (folder / "a.jpg").write_bytes(b"")
    assert_unreadable(folder, "a.jpg", "it is empty, 0 bytes")


@IMAGES("HTML named .jpg")
def case_html(folder):
    (folder / "a.jpg").write_text("<!DOCTYPE html><title>404</title>")
    assert_unreadable(folder, "a.jpg", "no image Pillow knows, it begins with b'<!DOCTYPE html")


@IMAGES("PostScript")
def case_postscript(folder):
    make_image().save(folder / "a.jpg", "EPS")
    assert_unreadable(folder, "a.jpg", "it is PostScript, a program")


@IMAGES("missing file")
def case_missing(folder):
    rows = [{"text": "t", "image": "p0.png"}, {"text": "t", "image": "gone.png"}]
    with pytest.raises(FileNotFoundError, match=r"line 2, column 'image': there is no image 'gone\.png'.*1 of 2"):
        load_rows(folder, rows)
    assert [row["images"] for row in load_rows(folder, rows, on_bad_image="keep_text").splits["train"]][1] == []
    for flags in ({}, {"image_dir": str(folder)}):
        with pytest.raises(FileNotFoundError, match=r"line 1, column 'image': there is no image 'p\\x000\.png'"):
            load_rows(folder, [{"text": "t", "image": "p\0" + "0.png"}] * 2, **flags)
    (folder / "album").mkdir()
    with pytest.raises(FileNotFoundError, match="'album'"):
        load_rows(folder, [{"text": "t", "image": "album"}] * 2)


# Texts


def tokens_of(folder, text, *training_texts, **flags):
    """A text on its way through a file and the collator: its tokens."""
    posts = load_rows(folder, [{"text": text}] * 2, **flags)
    processor = processor_for(*training_texts)
    batch = PostCollator(processor)(list(posts.splits["train"])[:1])
    return processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0][batch["attention_mask"][0] == 1])


@TEXTS("emoji", "right to left", "Chinese, Japanese, Korean")
def case_scripts(folder):
    texts = {
        "👩‍👩‍👧 🏳️‍🌈": ["👩👩👧", "🏳🌈"],  # their joiners are no characters of their own to the tokenizer
        "שלום עולם": ["שלום", "עולם"],
        "日本 中文": ["日", "本", "中", "文"],
        "한국어": None,
    }
    for text, tokens in texts.items():
        assert load_rows(folder, [{"text": text}] * 2).splits["train"][0]["text"] == text
        found = tokens_of(folder, text, *texts)
        assert "[UNK]" not in found
        assert tokens is None or [t.replace("\ufe0f", "") for t in found] == tokens


@TEXTS("a megabyte")
def case_megabyte(folder):
    for text in ("word " * 200_000, "x" * 1_000_000, "字" * 350_000):
        assert len(tokens_of(folder, text, "word x 字")) <= 64
        (folder / "t.csv").write_text(f'text,label\n"{text}",a\nb,c\n', "utf-8")
        assert load(folder / "t.csv").splits["train"][0]["text"] == text


@TEXTS("NUL")
def case_nul(folder):
    assert load_rows(folder, [{"text": "a\0b"}] * 2).splits["train"][0]["text"] == "a\0b"
    (folder / "t.csv").write_text("text,label\na\0b,x\nc,y\n")
    assert load(folder / "t.csv").splits["train"][0]["text"] == "a\0b"
    assert tokens_of(folder, "a\0b c \0 d", "ab c d") == ["ab", "c", "d"]
    assert "ab" in train_wordpiece(["a\0b"] * 3)
    other = processor_for("t")
    other.tokenizer.backend_tokenizer.normalizer = None  # a tokenizer that would keep it
    assert other(text="t\0")["input_ids"] == other(text="t")["input_ids"]
    (folder / "only.jsonl").write_text('{"text": "\\u0000", "label": "a"}\n{"text": "b", "label": "b"}\n')
    with pytest.raises(ValueError, match=r"line 1: the post has no text"):
        load(folder / "only.jsonl")


@TEXTS("HTML entities")
def case_entities(folder):
    assert load_rows(folder, [{"text": "R&amp;B"}] * 2).splits["train"][0]["text"] == "R&amp;B"
    assert tokens_of(folder, "R&amp;B", "r&amp;b") == ["r", "&", "amp", ";", "b"]


@TEXTS("half a surrogate pair")
def case_surrogate(folder):
    assert load_rows(folder, [{"text": "a \ud83d b"}] * 2).splits["train"][0]["text"] == "a \ufffd b"


@TEXTS("white space")
def case_white_space(folder):
    assert tokens_of(folder, " a \n\t\u3000 b ", "a b") == ["a", "b"]
    assert load_rows(folder, [{"text": " \t\n", "image": "p0.png"}] * 2).splits["train"][0]["text"] is None


@TEXTS("number")
def case_number(folder):
    assert list(load_rows(folder, [{"text": 42}, {"text": 1.5}]).splits["train"]["text"]) == ["42", "1.5"]


# Posts


@POSTS("without text", "without image")
def case_one_modality(folder, caplog):
    train = load_rows(folder, [{"text": "t"}, {"image": "p0.png"}]).splits["train"]
    batch = PostCollator(processor_for("t"))(list(train))
    assert batch["attention_mask"].sum(1).tolist() == [1, 0]
    assert batch["pixel_attention_mask"].sum(1).tolist() == [0, 4]


@POSTS("with several images", "with more than --max_images")
def case_several(folder, caplog):
    names = [f"p{i}.png" for i in (2, 0, 1, 3)]
    rows = [{"image": names}, {"image": names[:2]}]
    batch = PostCollator(processor_for("t"))(list(load_rows(folder, rows).splits["train"]))
    one_by_one = [as_trained(folder, folder / name) for name in names]
    assert torch.equal(batch["pixel_values"][0], torch.cat(one_by_one))
    assert batch["pixel_attention_mask"].sum(1).tolist() == [16, 8]
    caplog.clear()
    posts = load_rows(folder, rows, max_images=2)
    assert [row["images"] for row in posts.splits["train"]] == [[str(folder / name) for name in names[:2]]] * 2
    assert "1 posts have more than 2 images; the first 2 are used" in caplog.text
    assert len(load_rows(folder, [{"image": names * 3}] * 2, max_images=0).splits["train"][0]["images"]) == 12


@POSTS("with neither")
def case_empty(folder, caplog):
    rows = [{"text": "a"}, {"text": " "}, {"text": "c"}, {"text": None, "image": ""}, {"image": "p0.png"}]
    with pytest.raises(
        ValueError, match=r"line 2: the post has neither text .* \(2 of 5 rows\).*--on_empty_post drop"
    ):
        load_rows(folder, rows)
    posts = load_rows(folder, rows, on_empty_post="drop")
    assert list(posts.splits["train"]["id"]) == ["1", "3", "5"]
    assert posts.dropped == {"train": {"empty posts": 2}}
    assert posts.where("train", 1).endswith("line 3")
    assert "2 of 5 posts are dropped" in caplog.text and "posts.jsonl, lines 2, 4." in caplog.text
    assert posts.left_out() == "train: 2 empty posts"


@POSTS("dropped in test")
def case_test_split(folder, caplog):
    write_jsonl(folder / "test.jsonl", [{"text": "t"}, {"text": ""}, {"text": "u"}])
    flags = {"test_file": str(folder / "test.jsonl"), "modalities": "text"}
    with pytest.raises(ValueError, match=r"test\.jsonl, line 2: the post has no text"):
        load_rows(folder, [{"text": "t"}] * 2, **flags)
    posts = load_rows(folder, [{"text": "t"}] * 2, on_empty_post="drop", **flags)
    assert posts.column("test", "id") == ["1", "3"] and posts.dropped == {"test": {"empty posts": 1}}
    assert "test: 1 of 3 posts are dropped" in caplog.text
    assert "There are no predictions for them. They are: " in caplog.text and "test.jsonl, line 2." in caplog.text


@POSTS("all dropped")
def case_all_dropped(folder, caplog):
    with pytest.raises(ValueError, match=r"posts\.jsonl: no train post is left, all were dropped \(2 posts with"):
        load_rows(folder, [{"text": "t", "image": "gone.png"}] * 2, on_bad_image="drop")


# Unreadable images: what --on_bad_image does

BAD_ROWS = [
    {"text": "one", "image": ["p0.png", "bad.png"]},
    {"text": "two", "image": "bad.png"},
    {"image": "bad.png"},
    {"text": "four", "image": ["gone.png", "p1.png", "bad.png"]},
    {"text": "five", "image": "p2.png"},
    {"text": "six"},
]
SOURCES = ["paths", "stored"]


def load_bad(folder, source, **flags):
    (folder / "bad.png").write_bytes(b"broken")
    rows = [{"text": None, "image": [], **row, "label": "ab"[i % 2]} for i, row in enumerate(BAD_ROWS)]
    for row in rows:
        row["image"] = [row["image"]] if isinstance(row["image"], str) else row["image"]
    if source == "paths":
        return load(write_jsonl(folder / "posts.jsonl", rows), **flags)
    for row in rows:
        cells = [(name, folder / name) for name in row["image"]]
        row["image"] = [{"bytes": path.read_bytes() if path.exists() else None, "path": name} for name, path in cells]
    pq.write_table(pa.Table.from_pylist(rows), folder / "posts.parquet")
    return load(folder / "posts.parquet", **flags)


def left(posts, **flags):
    leave_out_bad_images(posts, progress=False, **flags)
    return [(row["id"], len(row["images"])) for row in posts.splits["train"]]


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def numbered(source, rows):
    return [(str(line - (source == "stored")), count) for line, count in rows]


@pytest.mark.parametrize("source", SOURCES)
def test_posts_with_bad_images_are_dropped(folder, source, caplog):
    posts = load_bad(folder, source, on_bad_image="drop")
    assert left(posts, on_bad_image="drop") == numbered(source, [(5, 1), (6, 0)])
    assert posts.dropped == {"train": {"posts with a bad image": 4}}  # one is missing, three are broken
    assert "1 images (column 'image') can't be read" in caplog.text
    assert "train: 3 of 5 posts are dropped: an image of theirs is missing or can't be read" in caplog.text
    assert posts.where("train", 0).endswith(("line 5", "row 4 (counted from 0)"))
    assert left(posts, on_bad_image="error") == numbered(source, [(5, 1), (6, 0)])  # no bad image is left


@pytest.mark.parametrize("source", SOURCES)
def test_posts_keep_their_text_and_other_images(folder, source, caplog):
    flags = {"on_bad_image": "keep_text", "on_empty_post": "drop"}
    posts = load_bad(folder, source, **flags)
    assert left(posts, **flags) == numbered(source, [(1, 1), (2, 0), (4, 1), (5, 1), (6, 0)])
    assert posts.dropped == {"train": {"images left out": 5, "empty posts": 1}}
    assert posts.num_images["train"] == [1, 0, 1, 1, 0]
    assert (
        "5 images" not in caplog.text
        and "4 images of 4 posts are missing or can't be read and are left out" in caplog.text
    )
    batch = PostCollator(processor_for("one two four five six"))(list(posts.splits["train"]))
    assert batch["pixel_attention_mask"].sum(1).tolist() == [4, 0, 4, 4, 0]
    with pytest.raises(ValueError, match=r"(line 3|row 2 .*): the post has neither text"):
        left(load_bad(folder, source, **(flags | {"on_empty_post": "error"})), on_bad_image="keep_text")


def test_the_cap_counts_before_bad_images_are_left_out(folder):
    posts = load_bad(folder, "paths", on_bad_image="keep_text", max_images=1)
    left(posts, on_bad_image="keep_text", on_empty_post="drop")
    assert [len(row["images"]) for row in posts.splits["train"]] == [1, 0, 0, 1, 0]  # of the fourth, gone.png is first


def test_a_stored_image_of_no_bytes_is_a_bad_one(folder):
    rows = [{"text": "t", "image": {"bytes": b"", "path": None}, "label": label} for label in "ab"]
    features = {name: datasets.Value("string") for name in ("text", "label")} | {"image": datasets.Image(decode=False)}
    datasets.Dataset.from_list(rows, features=datasets.Features(features)).save_to_disk(folder / "saved")
    with pytest.raises(ValueError, match=r"1 images(.|\n)*row 0 .*it is empty, 0 bytes"):
        check_images(load(dataset_name=str(folder / "saved")), progress=False)


def test_pixels_of_a_path_its_bytes_and_its_base64_are_the_same(folder):
    make_image().save(folder / "a.webp", quality=80)
    data = (folder / "a.webp").read_bytes()
    expected = np.asarray(load_rgb_image(str(folder / "a.webp")))
    assert np.array_equal(np.asarray(load_rgb_image(data)), expected)
