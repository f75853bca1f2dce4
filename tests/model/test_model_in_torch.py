"""The model in other dtypes, compiled, given other inputs, saved and loaded again."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_model import SMALL, batch, each_variant, loss_inputs, make_model, make_posts

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaModel
from hf_mamba.modeling_hf_mamba import HFMambaBlock


# --- dtypes and compilation


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_is_close_and_keeps_the_recurrence_in_fp32(dtype, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    half = HFMambaForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    assert half.model.text_stack.layers[0].mixer.ssm.bias_like.A_log.dtype == torch.float32
    assert half.classifier.weight.dtype == dtype
    inputs = batch(make_posts(model.config))
    torch.testing.assert_close(half(**inputs).logits.float(), model(**inputs).logits, rtol=0.05, atol=0.05)


def test_autocast_trains():
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**loss_inputs(model), labels=torch.tensor([0, 1, 2, 0]))
    outputs.loss.backward()
    assert outputs.loss.dtype == torch.float32
    images = {name: x for name, x in loss_inputs(model).items() if name.startswith("pixel")}
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**images, output_hidden_states=True)
    assert {states.dtype for states in outputs.hidden_states} == {torch.float32}  # what blocks add to
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_compiled_forward_gives_the_same_logits():
    model = make_model(num_image_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for texts in [(7, 3), (4, 9)]:
        inputs = batch(make_posts(model.config, texts=texts, images=(1, 2)))
        torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


def test_compiled_training_gives_the_same_gradients():
    model = make_model(num_image_layers=1, hidden_dropout=0, classifier_dropout=0).train()
    inputs = loss_inputs(model) | {"labels": torch.tensor([0, 1, 2, 0])}
    gradients = []
    for forward in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        forward(**inputs).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch's inductor compiles C++")
def test_inductor_gives_the_same_logits():
    """In a process of its own: inductor needs setuptools' distutils, but another test may have loaded Python's."""
    code = (
        "import torch; from small_model import *; torch.set_grad_enabled(False); "
        "model = make_model(num_image_layers=1); inputs = batch(make_posts(model.config)); "
        "torch.testing.assert_close(torch.compile(model)(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1] / "helpers", capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


# --- inputs


@torch.no_grad()
def test_inputs_embeds_are_the_tokens_embeddings():
    model = make_model()
    inputs = batch(make_posts(model.config))
    expected = model(**inputs).logits
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_every_scan_implementation_is_chosen_at_loading(tmp_path):
    make_model().save_pretrained(tmp_path)
    model = HFMambaForSequenceClassification.from_pretrained(tmp_path, scan_implementation="reference")
    assert model.model.fusion_stack.layers[0].mixer.ssm.scan_implementation == "reference"
    model.set_scan_implementation("torch")
    assert model.model.fusion_stack.layers[0].mixer.ssm.scan_implementation == "torch"
    assert "scan_implementation" not in model.config.to_dict()
    with pytest.raises(ValueError, match="scan_implementation"):
        HFMambaModel(HFMambaConfig(**SMALL), scan_implementation="fast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": None, "attention_mask": None, "pixel_values": None}, "Nothing to classify"),
        ({"pixel_values": torch.zeros(4, 4, 10)}, "must be .batch, patches, 192."),
        ({"pixel_values": torch.zeros(4, 3, 16, 16)}, "checkpoint's own processor"),
        ({"attention_mask": torch.ones(4, 2)}, "attention_mask has shape"),
        ({"inputs_embeds": torch.zeros(4, 7, 16)}, "Both input_ids and inputs_embeds"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": None}, "2 texts were given with 4"),
    ],
)
def test_inputs_that_do_not_fit(change, message):
    model = make_model()
    with pytest.raises(ValueError, match=message):
        model(**{**batch(make_posts(model.config)), **change})


# --- saving


@each_variant
@torch.no_grad()
def test_reloaded_model_gives_the_same_logits(variant, tmp_path):
    model = make_model(**variant)
    model.save_pretrained(tmp_path)
    inputs = batch(make_posts(model.config))
    reloaded = HFMambaForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(reloaded(**inputs).logits, model(**inputs).logits)


@torch.no_grad()
def test_base_model_loads_from_a_classifier(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    inputs = batch(make_posts(model.config))
    expected = model.model(**inputs).pooler_output
    assert torch.equal(HFMambaModel.from_pretrained(tmp_path)(**inputs).pooler_output, expected)


def test_block_classes_do_not_split_across_devices():
    assert HFMambaModel._no_split_modules == [HFMambaBlock.__name__]
