"""Posts to tensors: whatever the image format, batch or process, the same post gives the same tensors."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from transformers import BertTokenizer
from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

from hf_mamba import processing_hf_mamba
from hf_mamba.image_patches import read_image
from hf_mamba.processing_hf_mamba import (
    HFMambaImageProcessor,
    HFMambaProcessor,
    build_wordpiece_tokenizer,
    load_rgb_image,
)


VOCAB = ["[PAD]", "[UNK]", "a", "great", "day", "at", "the", "sea", "##side", "!"]
PIXELS = np.random.default_rng(0).integers(0, 256, size=(24, 40, 4), dtype=np.uint8)
RGB = Image.fromarray(PIXELS[:, :, :3])
RGBA = Image.fromarray(PIXELS)


def picture(seed: int, size=(40, 24)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha[:, :, None] / 255
    return alpha * colour + (1 - alpha) * 255


def make_processor(**kwargs) -> HFMambaProcessor:
    tokenizer = build_wordpiece_tokenizer(VOCAB, max_length=8)
    return HFMambaProcessor(HFMambaImageProcessor(size=32, patch_size=16, **kwargs), tokenizer)


@pytest.fixture(scope="module")
def image_processor():
    return HFMambaImageProcessor(size=32, patch_size=16)


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture
def bert_vocab():
    return {piece: index for index, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *VOCAB[2:]])}


def assert_same(first, second):
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(torch.as_tensor(first[name]), torch.as_tensor(second[name]), rtol=0, atol=0)


# Reading images


def grey(mode_dtype, top) -> np.ndarray:
    return np.linspace(0, top, 24 * 40).reshape(24, 40).astype(mode_dtype)


def palette_image() -> Image.Image:
    image = Image.fromarray(PIXELS[:, :, 0] % 3).convert("P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    return image


PALETTE = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])[PIXELS[:, :, 0] % 3]
GREY = np.repeat(PIXELS[:, :, :1], 3, axis=2)
WHITENED = np.where((PIXELS[:, :, :1] % 3) == 0, 255, PALETTE)
RAMP = np.repeat(grey(np.float64, 255)[:, :, None], 3, axis=2)
BILEVEL = np.where(PIXELS[:, :, :1] > 127, 255, 0).repeat(3, axis=2)

# name: image, file ending, options of save, the RGB pixels it stands for
FORMATS = {
    "1": (Image.fromarray(PIXELS[:, :, 0] > 127), "png", {}, BILEVEL),
    "L": (Image.fromarray(PIXELS[:, :, 0]), "png", {}, GREY),
    "LA": (Image.fromarray(PIXELS[:, :, [0, 3]], "LA"), "png", {}, over_white(GREY, PIXELS[:, :, 3])),
    "P": (palette_image(), "png", {}, PALETTE),
    "P-transparent-png": (palette_image(), "png", {"transparency": 0}, WHITENED),
    "P-transparent-gif": (palette_image(), "gif", {"transparency": 0}, WHITENED),
    "L-transparent": (Image.fromarray(PIXELS[:, :, 0]), "png", {"transparency": 7}, np.where(GREY == 7, 255, GREY)),
    "RGB": (RGB, "bmp", {}, PIXELS[:, :, :3]),
    "RGBA-png": (RGBA, "png", {}, over_white(PIXELS[:, :, :3], PIXELS[:, :, 3])),
    "RGBA-webp": (RGBA, "webp", {"lossless": True, "exact": True}, over_white(PIXELS[:, :, :3], PIXELS[:, :, 3])),
    "CMYK": (RGB.convert("CMYK"), "tif", {}, PIXELS[:, :, :3]),
    "I;16": (Image.fromarray(grey(np.uint16, 65535)), "png", {}, RAMP),
    "I": (Image.fromarray(grey(np.int32, 65535)), "tif", {}, RAMP),
    "I-wide": (Image.fromarray((grey(np.float64, 2e9) - 1e9).astype(np.int32)), "tif", {}, RAMP),
    "F": (Image.fromarray(grey(np.float32, 1)), "tif", {}, RAMP),
    "F-bytes": (Image.fromarray(grey(np.float32, 255)), "tif", {}, RAMP),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_mode_becomes_the_rgb_it_stands_for_from_path_bytes_and_image(name, tmp_path, image_processor):
    image, ending, options, expected = FORMATS[name]
    path = tmp_path / f"picture.{ending}"
    image.save(path, **options)
    loaded = load_rgb_image(path)
    assert loaded.mode == "RGB"
    np.testing.assert_allclose(np.asarray(loaded, dtype=np.float64), expected, atol=1)
    reference = image_processor(path, return_tensors="pt")
    with Image.open(path) as opened:
        for source in (str(path), path.read_bytes(), opened, base64.b64encode(path.read_bytes()).decode()):
            assert_same(image_processor(source, return_tensors="pt"), reference)


def test_data_url_is_read_and_http_url_goes_to_transformers(tmp_path, monkeypatch, image_processor):
    RGB.save(tmp_path / "picture.png")
    url = "data:image/png;base64," + base64.b64encode((tmp_path / "picture.png").read_bytes()).decode()
    assert load_rgb_image(url).tobytes() == RGB.tobytes()
    monkeypatch.setattr(processing_hf_mamba, "load_image", lambda url: {"https://host/x.png": RGB}[url])
    assert load_rgb_image("https://host/x.png").tobytes() == RGB.tobytes()
    with pytest.raises(ValueError, match="https://host/x.png.*is a URL"):
        read_image("https://host/x.png")
    fetched = image_processor.fetch_images([url, [RGBA]])
    assert fetched[0].tobytes() == RGB.tobytes() and fetched[1][0] is RGBA


STORED_TURNED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED_TURNED)
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_exif_orientation_is_applied(orientation, ending, tmp_path, image_processor):
    turn = STORED_TURNED[orientation]
    stored = RGB if turn is None else RGB.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"turned.{ending}", exif=exif)
    RGB.save(tmp_path / "upright.png")
    for convert in (True, False):
        turned = image_processor(tmp_path / f"turned.{ending}", do_convert_rgb=convert, return_tensors="pt")
        assert_same(turned, image_processor(tmp_path / "upright.png", return_tensors="pt"))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_lose_the_picture(tmp_path):
    RGB.save(tmp_path / "picture.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x12\x01")
    assert load_rgb_image(tmp_path / "picture.png").tobytes() == RGB.tobytes()


@pytest.mark.parametrize("ending, options", [("gif", {}), ("webp", {"lossless": True}), ("png", {})])
def test_first_frame_of_an_animation(ending, options, tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"moving.{ending}", save_all=True, append_images=frames[1:], **options)
    assert len(list(ImageSequence.Iterator(Image.open(tmp_path / f"moving.{ending}")))) == 3
    assert load_rgb_image(tmp_path / f"moving.{ending}").tobytes() == frames[0].tobytes()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 3)])
def test_tiny_and_extreme_shapes(size, image_processor):
    values = image_processor(Image.new("RGB", size, (255, 0, 0)), return_tensors="pt").pixel_values
    assert values.shape == (1, 4, 768)
    torch.testing.assert_close(values.reshape(-1, 3).unique(dim=0), torch.tensor([[1.0, -1.0, -1.0]]))


def damaged_files(folder: Path) -> dict[str, Path]:
    RGB.resize((400, 400)).save(folder / "whole.jpg")
    RGB.resize((400, 400)).save(folder / "whole.png")
    for ending in ("jpg", "png"):
        data = (folder / f"whole.{ending}").read_bytes()
        (folder / f"cut.{ending}").write_bytes(data[: len(data) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("not an image")
    (folder / "folder.jpg").mkdir()
    return {name: folder / name for name in ("cut.jpg", "cut.png", "empty.jpg", "text.jpg", "folder.jpg", "no.jpg")}


def test_unreadable_images_raise_a_value_error_that_names_them(tmp_path, image_processor):
    for path in damaged_files(tmp_path).values():
        for source in (path, str(path)):
            for convert in (True, False):
                with pytest.raises(ValueError) as error:
                    image_processor(source, do_convert_rgb=convert)
                assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=r"image 2 of 3: .*no.jpg.*no such file"):
        image_processor([RGB, RGB, tmp_path / "no.jpg"])
    with pytest.raises(ValueError, match="cut.jpg.*truncated"):
        image_processor(Image.open(tmp_path / "cut.jpg"))
    with pytest.raises(ValueError, match="of 0 bytes"):
        image_processor(b"")
    for nonsense in (None, 3.5, np.zeros((2, 3, 4, 5, 6)), Image.new("RGB", (0, 4)), []):
        with pytest.raises(ValueError, match="image"):
            image_processor(nonsense)


# Cutting into patches


def test_patches_reassemble_to_the_resized_image(image_processor):
    output = image_processor([RGB, picture(1)], do_rescale=False, do_normalize=False, return_tensors="np")
    for patches, image in zip(output.pixel_values, (RGB, picture(1))):
        resized = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
        rows = [np.hstack([patch.reshape(16, 16, 3) for patch in patches[row : row + 2]]) for row in (0, 2)]
        np.testing.assert_array_equal(np.vstack(rows), resized)
        np.testing.assert_array_equal(patches, convert_image_to_patches(np.moveaxis(resized, -1, 0), 16))
    assert output.pixel_values.dtype == np.uint8
    assert image_processor(RGB, return_tensors="np").pixel_values.dtype == np.float32
    assert output.pixel_attention_mask.tolist() == [[1] * 4] * 2


def test_pixels_are_rescaled_and_normalised_and_calls_override(image_processor):
    raw = image_processor(RGB, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(image_processor(RGB, return_tensors="pt").pixel_values, (raw / 255 - 0.5) / 0.5)
    torch.testing.assert_close(image_processor(RGB, do_normalize=False, return_tensors="pt").pixel_values, raw / 255)
    assert image_processor(RGB, size=48, return_tensors="pt").pixel_values.shape == (1, 9, 768)
    assert image_processor(RGB, patch_size=8, return_tensors="pt").pixel_values.shape == (1, 16, 192)
    means = image_processor(RGB, image_mean=[0.0, 0.5, 1.0], image_std=1.0, return_tensors="pt").pixel_values
    torch.testing.assert_close(means.reshape(-1, 3), raw.reshape(-1, 3) / 255 - torch.tensor([0.0, 0.5, 1.0]))
    listed = image_processor(RGB)
    assert isinstance(listed["pixel_values"], list) and listed["pixel_values"][0].shape == (4, 768)


def test_arrays_and_tensors_equal_the_image(image_processor):
    pixels = PIXELS[:, :, :3]
    reference = image_processor(RGB, return_tensors="pt")
    channels_first = np.moveaxis(pixels, -1, 0)
    for array in (pixels, channels_first, torch.from_numpy(pixels), torch.tensor(channels_first), pixels[None]):
        assert_same(image_processor(array, return_tensors="pt"), reference)
    four = image_processor(PIXELS, return_tensors="pt")
    assert_same(four, image_processor(RGBA, return_tensors="pt"))
    for array in (PIXELS[:, :, 0], PIXELS[:, :, :1], PIXELS[None, :, :, 0]):
        assert_same(image_processor(array, return_tensors="pt"), image_processor(FORMATS["L"][0], return_tensors="pt"))
    for name in ("I;16", "1"):
        array = np.asarray(FORMATS[name][0])
        assert_same(
            image_processor(array, return_tensors="pt"), image_processor(FORMATS[name][0], return_tensors="pt")
        )
    scaled = image_processor(torch.tensor(channels_first) / 255, do_rescale=False, return_tensors="pt")
    torch.testing.assert_close(scaled.pixel_values, reference.pixel_values, atol=2.01 / 255, rtol=0)


@pytest.mark.parametrize(
    "kwargs, words",
    [
        ({"size": 100}, ["100", "16", "96", "112"]),
        ({"size": 8}, ["8", "16"]),
        ({"size": 32, "patch_size": 24}, ["32", "24", "48"]),
        ({"size": {"height": 32, "width": 64}}, ["square", "32", "64"]),
        ({"size": {"shortest_edge": 32}}, ["square"]),
        ({"patch_size": 0}, ["patch_size", "0"]),
    ],
)
def test_a_size_that_makes_no_square_grid_is_refused(kwargs, words, image_processor):
    for make in (lambda: HFMambaImageProcessor(**kwargs), lambda: image_processor(RGB, **kwargs)):
        with pytest.raises(ValueError) as error:
            make()
        assert all(word in str(error.value) for word in words)


def test_instances_share_no_settings():
    first, second = HFMambaImageProcessor(), HFMambaImageProcessor()
    first.size["height"] = first.size["width"] = 32
    first.auto_map["AutoProcessor"] = "elsewhere.Processor"
    for other in (second, HFMambaImageProcessor()):
        assert other.size["height"] == HFMambaImageProcessor.size["height"] == 224
        assert {*other.auto_map} == {"AutoImageProcessor"}


def test_what_would_break_the_grid_is_refused(image_processor):
    with pytest.raises(ValueError, match="not supported"):
        image_processor(RGB, do_center_crop=True, crop_size=16)
    with pytest.raises(ValueError, match="do_resize"):
        image_processor(RGB, do_resize=False)
    with pytest.raises(ValueError, match="image_mean"):
        image_processor(RGB, image_mean=[0.1, 0.2])


# Posts


def test_layouts_of_the_same_posts_give_the_same_tensors(processor):
    one, two = picture(1), picture(2)
    single = processor(text="a great day", images=one, return_tensors="pt")
    for text, images in ((["a great day"], one), (["a great day"], [one]), (["a great day"], [[one]])):
        assert_same(processor(text=text, images=images, return_tensors="pt"), single)
    several = processor(text="a great day", images=[one, two], return_tensors="pt")
    assert several.pixel_values.shape == (1, 8, 768)
    assert_same(processor(text=["a great day"], images=[[one, two]], return_tensors="pt"), several)
    flat = processor(text=["a", "great"], images=[one, two], return_tensors="pt")
    assert_same(processor(text=["a", "great"], images=([one], (two,)), return_tensors="pt"), flat)
    assert_same(processor(text=["a", "great"], images=np.stack([one, two]), return_tensors="pt"), flat)
    assert processor(images=[one, two], return_tensors="pt").pixel_values.shape == (2, 4, 768)


def test_missing_parts_are_masked_and_absent_modalities_left_out(processor):
    output = processor(
        text=["a great day", None, " \n", "sea"], images=[None, [RGB, RGB], RGB, []], return_tensors="pt"
    )
    assert output.attention_mask.tolist() == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert output.pixel_attention_mask.sum(-1).tolist() == [0, 8, 4, 0]
    assert output.pixel_values.shape == (4, 8, 768)
    assert (output.pixel_values[output.pixel_attention_mask == 0] == 0).all()
    assert (output.input_ids[output.attention_mask == 0] == 0).all()
    assert {output[name].dtype for name in output if name != "pixel_values"} == {torch.int64}
    assert set(processor(text=["a", "sea"])) == {"input_ids", "attention_mask"}
    assert (
        set(processor(images=RGB)) == set(processor(text="", images=RGB)) == {"pixel_values", "pixel_attention_mask"}
    )
    assert set(output) == set(processor.model_input_names)


POST = st.tuples(st.sampled_from([None, "", "a", "a great day at the seaside!"]), st.integers(0, 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(posts=st.lists(POST.filter(lambda post: post[0] or post[1]), min_size=1, max_size=4), left=st.booleans())
def test_a_post_alone_is_the_same_post_in_any_batch(posts, left):
    processor = make_processor()
    processor.tokenizer.padding_side = "left" if left else "right"
    texts = [text for text, _ in posts]
    images = [[picture(10 * row + k) for k in range(count)] for row, (_, count) in enumerate(posts)]
    batch = processor(text=texts, images=images, return_tensors="pt")
    for row, text in enumerate(texts):
        alone = processor(text=[text], images=[images[row]], return_tensors="pt")
        for values, mask in (("input_ids", "attention_mask"), ("pixel_values", "pixel_attention_mask")):
            assert (mask in alone) == bool(mask in batch and batch[mask][row].any())
            if mask in alone:
                torch.testing.assert_close(batch[values][row][batch[mask][row] == 1], alone[values][0], rtol=0, atol=0)
    if left and "attention_mask" in batch:
        assert (batch.attention_mask.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("empty", [None, "", " \t\n", "\x00", "\u200b", "\x00 \x1f"])
@pytest.mark.parametrize("bert", [False, True])
def test_a_post_without_text_and_image_is_named(empty, bert, processor, bert_vocab):
    if bert:
        processor = HFMambaProcessor(processor.image_processor, BertTokenizer(vocab=bert_vocab))
    with pytest.raises(ValueError, match="row 1, 3 of the batch"):
        processor(text=["a", empty, "sea", empty], images=[None, None, RGB, []])
    with pytest.raises(ValueError, match="row 0 of the batch|nothing to process"):
        processor(text=empty)


@pytest.mark.parametrize(
    "text, images, words",
    [
        (["a", "sea"], [RGB], "2 texts but images for 1 posts"),
        (["a"], [RGB, RGB], "1 texts but images for 2 posts"),
        ("a", [[RGB], [RGB]], "1 texts but images for 2 posts"),
        (["a", "sea"], RGB, "2 texts but images for 1 posts"),
        (None, None, "nothing to process"),
        ([], None, "nothing to process"),
        ([["a", "sea"]], None, "text of row 0 .* join"),
        (["a", float("nan")], None, "text of row 1 is a float"),
        (7, None, "got int"),
    ],
)
def test_mismatch_and_wrong_types_are_refused(text, images, words, processor):
    with pytest.raises(ValueError, match=words):
        processor(text=text, images=images)


def test_text_is_collapsed_cut_and_passed_options(processor):
    assert processor(text="  A\u00a0Great \r\n day ")["input_ids"] == [[2, 3, 4]]
    long = "a " * 20
    assert len(processor(text=long)["input_ids"][0]) == 8
    assert len(processor(text=long, max_length=5)["input_ids"][0]) == 5
    assert len(processor(text=long, text_kwargs={"truncation": False})["input_ids"][0]) == 20
    padded = processor(text="a", padding="max_length", max_length=6, images=RGB, images_kwargs={"size": 48})
    assert padded["attention_mask"] == [[1, 0, 0, 0, 0, 0]] and padded["pixel_values"][0].shape == (9, 768)
    offsets = processor(text="\tgreat \n sea", return_offsets_mapping=True, return_special_tokens_mask=True)
    assert offsets["offset_mapping"] == [[(0, 5), (6, 9)]] and offsets["special_tokens_mask"] == [[0, 0]]
    for refused in ({"is_split_into_words": True}, {"return_overflowing_tokens": True}, {"text_pair": "b"}):
        with pytest.raises(ValueError, match=next(iter(refused))):
            processor(text="a", **refused)


def test_return_tensors(processor):
    arrays = processor(text=["a great", "sea"], images=[RGB, None], return_tensors="np")
    assert {type(value) for value in arrays.values()} == {np.ndarray}
    assert_same(arrays, processor(text=["a great", "sea"], images=[RGB, None], return_tensors="pt"))
    lists = processor(text=["a great", "sea"], images=[RGB, None])
    assert {type(value) for value in lists.values()} == {list}
    assert_same(arrays, {name: np.array(value) for name, value in lists.items()})


ODD = ["😀🏳️‍🌈", "今日は海", "יום נהדר", "a\x00b", "\ud83d sea", "\ud83d\ude00", "é̂́", "a" * 1_000_000, "a " * 500_000]


def test_odd_texts_do_not_crash(processor):
    output = processor(text=ODD, return_tensors="pt")
    assert output.attention_mask.any(-1).all()
    assert output.input_ids.shape == (len(ODD), 8)
    assert VOCAB.index("sea") in output.input_ids[4]


def test_other_tokenizers_keep_their_special_tokens_but_not_for_missing_text(processor, bert_vocab):
    bert = HFMambaProcessor(processor.image_processor, BertTokenizer(vocab=bert_vocab))
    output = bert(text=["a day", None], images=[None, RGB], return_tensors="pt")
    assert output.input_ids.tolist() == [[2, bert_vocab["a"], bert_vocab["day"], 3], [0, 0, 0, 0]]
    assert output.attention_mask.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert "token_type_ids" not in output
