"""Checkpoints of earlier versions load and give the logits they gave: see fixtures/make_checkpoints.py."""

import json
from pathlib import Path

import pytest
import torch

from hf_mamba import HFMambaForSequenceClassification, HFMambaProcessor


FIXTURES = Path(__file__).parents[1] / "fixtures"
CHECKPOINTS = sorted(path.parent for path in FIXTURES.glob("checkpoints_*/*/config.json"))


@pytest.mark.parametrize("folder", CHECKPOINTS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
@torch.no_grad()
def test_an_earlier_checkpoint_gives_the_same_logits(folder):
    model, loaded = HFMambaForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded.values()), loaded
    processor = HFMambaProcessor.from_pretrained(folder)
    posts = json.loads((folder / "expected.json").read_text("utf-8"))
    images = [[folder.parent / name for name in post["images"]] for post in posts]
    inputs = processor(text=[post["text"] for post in posts], images=images, return_tensors="pt")
    expected = torch.tensor([post["logits"] for post in posts])
    assert expected.std(dim=0).min() > 0.01  # else no difference would show
    torch.testing.assert_close(model(**inputs).logits, expected, rtol=1e-4, atol=1e-4)
    assert [*model.config.id2label.values()] == ["calm", "glad", "sad"]


def test_there_are_checkpoints_of_the_first_version():
    assert {folder.name for folder in CHECKPOINTS if folder.parent.name == "checkpoints_0.1.0"} == {
        "default",
        "flatten",
        "other",
        "transformer",
    }
