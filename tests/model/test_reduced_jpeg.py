"""JPEGs decoded at reduced scale: few levels away, the same from everywhere, and only where the processor says so."""

import base64
import json

import numpy as np
import pytest
from PIL import Image

from hf_mamba.processing_hf_mamba import HFMambaImageProcessor


def photo(path, size=(1280, 960)):
    """Smooth colours under grain."""
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
    grain = generator.normal(0, 6, (size[1], size[0], 3))
    Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)).save(path)
    return path


def levels(image_processor, source):
    """The pixels that a picture becomes, in levels of 0 to 255."""
    pixels = image_processor(source, return_tensors="np")["pixel_values"]
    return (pixels + 1) * 127.5  # mean and standard deviation are 0.5


@pytest.fixture
def exact():
    return HFMambaImageProcessor(size={"height": 96, "width": 96}, patch_size=16)


@pytest.fixture
def reducing():
    return HFMambaImageProcessor(size={"height": 96, "width": 96}, patch_size=16, reduce_jpeg=True)


def test_a_reduced_jpeg_differs_by_a_few_levels_and_only_a_large_one_is_reduced(tmp_path, reducing, exact):
    large, small = photo(tmp_path / "large.jpg"), photo(tmp_path / "small.jpg", (383, 500))
    difference = np.abs(levels(reducing, large) - levels(exact, large))
    assert 0 < difference.max() < 6 and difference.mean() < 0.5
    for same in (small, photo(tmp_path / "large.png")):  # at half its size the small one would fall below twice 96
        np.testing.assert_array_equal(levels(reducing, same), levels(exact, same))


def test_reduced_jpegs_are_the_same_from_everywhere_and_opened_images_are_left_alone(tmp_path, reducing, exact):
    path = photo(tmp_path / "photo.jpg")
    data, expected = path.read_bytes(), levels(reducing, path)
    for source in (str(path), data, base64.b64encode(data).decode()):
        np.testing.assert_array_equal(levels(reducing, source), expected)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(levels(reducing, opened), levels(exact, path))
        assert opened.size == (1280, 960)


def test_reducing_is_saved_with_the_processor_and_off_where_nothing_is_said(tmp_path, reducing):
    reducing.save_pretrained(tmp_path)
    assert HFMambaImageProcessor.from_pretrained(tmp_path).reduce_jpeg is True
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    del saved["reduce_jpeg"]  # as in checkpoints from before there was this setting
    path.write_text(json.dumps(saved))
    assert HFMambaImageProcessor.from_pretrained(tmp_path).reduce_jpeg is False
