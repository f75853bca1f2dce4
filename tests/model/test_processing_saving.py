"""Saving and loading: a processor read back, here or where the package is not installed, gives the same tensors."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_processor import VOCAB, make_processor
from transformers import AutoTokenizer

from hf_mamba import processing_hf_mamba
from hf_mamba.processing_hf_mamba import HFMambaImageProcessor, HFMambaProcessor, build_wordpiece_tokenizer


RGBA = Image.fromarray(np.random.default_rng(0).integers(0, 256, size=(24, 40, 4), dtype=np.uint8))


def assert_same(first, second):
    assert set(first) == set(second)
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0)


def test_wordpiece_tokenizer_adds_nothing_and_survives_reloading(tmp_path):
    tokenizer = build_wordpiece_tokenizer(VOCAB, max_length=5)
    expected = [[2, 3, 4, 5, 6], [7, 8, 9], []]
    texts = ["A GREAT day at the sea", "seaside!", ""]
    assert tokenizer(texts, truncation=True)["input_ids"] == expected
    tokenizer.save_pretrained(tmp_path / "once")
    AutoTokenizer.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    again = AutoTokenizer.from_pretrained(tmp_path / "twice")
    assert again(texts, truncation=True)["input_ids"] == expected
    assert again.get_vocab() == {piece: index for index, piece in enumerate(VOCAB)} == tokenizer.get_vocab()
    by_dict = build_wordpiece_tokenizer(tokenizer.get_vocab())
    assert by_dict(texts)["input_ids"][1:] == expected[1:] and by_dict.model_max_length == 64
    for bad in (["[UNK]", "[PAD]"], ["a", "b"], [*VOCAB, "a"], {"[PAD]": 0, "[UNK]": 1, "a": 3}, []):
        with pytest.raises(ValueError, match="PAD"):
            build_wordpiece_tokenizer(bad)


REMOTE = """
import sys
sys.modules["hf_mamba"] = None  # importing the package raises ImportError, as where it is not installed
import torch
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # below 5.18 else only with torchvision

folder, picture, saved_again, results = sys.argv[1:]
text = ["A great day", None]
first = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(first).__module__.startswith("transformers_modules."), type(first)
first.save_pretrained(saved_again)
outputs = []
for source in (folder, saved_again, "user/repo"):
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True)
    assert type(image_processor).__module__.startswith("transformers_modules."), type(image_processor)
    outputs.append(dict(processor(text=text, images=[None, picture], return_tensors="pt")))
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True)
    rebuilt = type(processor)(image_processor, tokenizer)
    outputs.append(dict(rebuilt(text=text, images=[None, picture], return_tensors="pt")))
torch.save(outputs, results)
"""


def test_a_saved_folder_loads_where_the_package_is_not_installed(tmp_path):
    processor = make_processor(image_mean=[0.1, 0.2, 0.3])
    folder = tmp_path / "checkpoint"
    processor.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "hf_mamba"}')
    RGBA.save(tmp_path / "picture.png")
    snapshot = tmp_path / "hub" / "models--user--repo" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    arguments = [folder, tmp_path / "picture.png", tmp_path / "again", tmp_path / "results.pt"]
    command = [sys.executable, "-c", REMOTE, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = processor(text=["A great day", None], images=[None, tmp_path / "picture.png"], return_tensors="pt")
    outputs = torch.load(tmp_path / "results.pt")
    assert len(outputs) == 6
    for output in outputs:
        assert_same(output, expected)


def test_round_trip_without_remote_code_or_registration(tmp_path, monkeypatch):
    processor = make_processor(image_std=[0.25, 0.5, 1.0])
    processor.save_pretrained(tmp_path)
    # a checkpoint's config.json refers to code: loading must neither run it nor ask
    config = {"model_type": "hf_mamba", "auto_map": {"AutoConfig": "configuration_hf_mamba.HFMambaConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("loading asked whether to trust the code"))
    again = HFMambaProcessor.from_pretrained(tmp_path)
    assert type(again.image_processor) is HFMambaImageProcessor
    assert again.to_dict() == processor.to_dict()
    posts = {"text": ["A great day", None], "images": [None, RGBA], "return_tensors": "pt"}
    assert_same(again(**posts), processor(**posts))
    assert HFMambaProcessor.from_pretrained(tmp_path, size=48).image_processor.size["height"] == 48
    alone = HFMambaImageProcessor.from_pretrained(tmp_path)
    assert alone.to_dict() == processor.image_processor.to_dict()
    auto_map = json.loads((tmp_path / "processor_config.json").read_text())
    assert auto_map["auto_map"]["AutoProcessor"] == "processing_hf_mamba.HFMambaProcessor"
    own = auto_map["image_processor"]["auto_map"]["AutoImageProcessor"]
    assert own == "processing_hf_mamba.HFMambaImageProcessor"
    assert HFMambaProcessor(tokenizer=processor.tokenizer).image_processor.size["height"] == 224


def test_saving_into_the_folder_of_the_code(tmp_path, monkeypatch):
    source = Path(processing_hf_mamba.__file__)
    folder = tmp_path / "code_in_place"
    folder.mkdir()
    for path in source.parent.glob("*.py"):
        if path.name != "__init__.py":
            shutil.copy(path, folder)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("code_in_place.processing_hf_mamba")
    image_processor = module.HFMambaImageProcessor(size=32)
    inside = module.HFMambaProcessor(image_processor, build_wordpiece_tokenizer(VOCAB))
    for part in (image_processor, inside, inside):
        part.save_pretrained(folder)
        assert (folder / source.name).read_bytes() == source.read_bytes()
    inside.save_pretrained(tmp_path / "elsewhere")
    folders = (folder, tmp_path / "elsewhere")
    here, there = (json.loads((folder / "processor_config.json").read_text()) for folder in folders)
    assert here["auto_map"] == there["auto_map"] == {"AutoProcessor": "processing_hf_mamba.HFMambaProcessor"}
    assert "_auto_class" not in here["image_processor"]
    assert (tmp_path / "elsewhere" / source.name).exists()
