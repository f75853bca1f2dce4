"""Batches: the tensors of posts, in this process and in others."""

import multiprocessing
import pickle
import re

import pytest
import torch
from small_posts import damage, load, write_folder
from torch.utils.data import DataLoader

from hf_mamba.classification.data import PostCollator
from hf_mamba.classification.data.vocabulary import train_wordpiece
from hf_mamba.classification.training.trainer import PixelScale
from hf_mamba.processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path)


@pytest.fixture(scope="module")
def processor():
    vocabulary = train_wordpiece(["post 0 1 2 3 4 5 6 7 8 9 hello"] * 3)
    return HFMambaProcessor(HFMambaImageProcessor(size=32, patch_size=16), build_wordpiece_tokenizer(vocabulary))


def test_collator_gives_the_models_tensors(folder, processor):
    rows = list(load(folder, max_images=1).splits["train"])[:3]
    rows[1]["images"], rows[2]["text"] = [], None
    batch = PostCollator(processor)(rows)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "pixel_attention_mask", "labels"}
    assert batch["labels"].tolist() == [row["label"] for row in rows]
    assert batch["pixel_attention_mask"].sum(dim=1).tolist() == [4, 0, 4]
    assert batch["attention_mask"].sum(dim=1).tolist()[2] == 0
    unlabelled = [{name: row[name] for name in ("id", "text", "images")} for row in rows]
    assert "labels" not in PostCollator(processor)(unlabelled)


@pytest.mark.parametrize("settings", [{}, {"do_rescale": False}, {"do_normalize": False}])
def test_images_sent_as_bytes_become_the_same_floats(settings, folder, processor):
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.23]}
    image_processor = HFMambaImageProcessor(**{**processor.image_processor.to_dict(), **statistics, **settings})
    processor = HFMambaProcessor(image_processor, processor.tokenizer)
    rows = list(load(folder, max_images=1).splits["train"])[:3]
    floats, sent = PostCollator(processor)(rows), PostCollator(processor, as_bytes=True)(rows)
    assert sent["pixel_values"].dtype == torch.uint8
    scale = PixelScale(image_processor, sent["pixel_values"])
    assert torch.equal(scale(sent["pixel_values"]), floats["pixel_values"])
    assert all(torch.equal(sent[name], floats[name]) for name in floats if name != "pixel_values")


def test_images_of_more_than_8_bits_are_not_sent_as_bytes(processor):
    fine = HFMambaImageProcessor(**{**processor.image_processor.to_dict(), "do_convert_rgb": False})
    rows = [{"id": "1", "text": "post", "images": [torch.rand(3, 16, 16) * 255], "label": 0}]
    floats, sent = (PostCollator(HFMambaProcessor(fine, processor.tokenizer), as_bytes=x)(rows) for x in (False, True))
    assert torch.equal(floats["pixel_values"], sent["pixel_values"])


def test_texts_can_be_padded_to_one_length(folder, processor):
    rows = list(load(folder).splits["train"])[:3]
    length = processor.tokenizer.model_max_length
    assert PostCollator(processor)(rows)["input_ids"].shape[1] < length
    batch = PostCollator(processor, pad_to_max_length=True)(rows)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, length)
    assert batch["attention_mask"].sum() == PostCollator(processor)(rows)["attention_mask"].sum()


def test_collator_names_the_post_of_a_bad_image(folder, processor):
    rows = list(load(folder).splits["train"])[:3]
    damage(folder / "p1.png", "truncated")
    with pytest.raises(ValueError, match=rf"post '2': .*{re.escape(str(folder / 'p1.png'))}"):
        PostCollator(processor)(rows)
    with pytest.raises(ValueError, match=r"neither text nor an image.*ids of the batch: 7"):
        PostCollator(processor)([{"id": "7", "text": None, "images": []}])


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_collator_works_in_loader_workers(folder, processor, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    train = load(folder, max_train_samples=8).splits["train"]
    loaders = [
        DataLoader(train, batch_size=4, collate_fn=PostCollator(processor), num_workers=workers, **context)
        for workers, context in ((0, {}), (1, {"multiprocessing_context": method}))
    ]
    for here, there in zip(*loaders, strict=True):
        assert all(torch.equal(here[name], there[name]) for name in here)


def test_rows_and_collator_can_be_sent_to_another_process(folder, processor):
    train = load(folder).splits["train"]
    there, collator = pickle.loads(pickle.dumps((train, PostCollator(processor))))
    here_batch, there_batch = PostCollator(processor)(list(train)), collator(list(there))
    assert all(torch.equal(here_batch[name], there_batch[name]) for name in here_batch)
