"""Loading as users of a library do: devices, dtypes, new vocabularies and labels, missing weights, attention."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_model import BACKBONES, SMALL, batch, make_model, make_posts
from transformers import AttentionInterface

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaModel
from hf_mamba.self_attention import eager_attention_forward


@pytest.fixture
def model():
    return make_model()


@pytest.fixture
def inputs(model):
    return batch(make_posts(model.config))


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def load(*args, **kwargs):
    return HFMambaForSequenceClassification.from_pretrained(*args, **kwargs)


# --- devices


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
@torch.no_grad()
def test_a_device_map_changes_no_logit(device_map, model, inputs, checkpoint):
    assert torch.equal(load(checkpoint, device_map=device_map)(**inputs).logits, model(**inputs).logits)


def test_weights_on_the_meta_device_need_no_memory(model, checkpoint):
    loaded = load(checkpoint, device_map="meta")
    assert {tensor.device.type for tensor in [*loaded.parameters(), *loaded.buffers()]} == {"meta"}
    assert loaded.num_parameters() == model.num_parameters()


@torch.no_grad()
def test_a_model_made_on_the_meta_device_is_initialised_in_place():
    with torch.device("meta"):
        model = HFMambaForSequenceClassification(HFMambaConfig(**SMALL))
    model = model.to_empty(device="cpu").eval()
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.fill_(float("nan"))
    model.init_weights()
    assert model(**batch(make_posts(model.config))).logits.isfinite().all()
    ssm = model.model.text_stack.layers[0].mixer.ssm
    torch.testing.assert_close(ssm.bias_like.A_log.exp()[0], torch.arange(1.0, 5))


PARTS = [f"model.{name}" for name in ("embeddings", "text_stack", "image_stack", "segment_embeddings", "fusion_stack")]
PARTS += ["model.norm", "classifier", "dropout"]


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_parts_may_wait_on_disk(backbone, tmp_path):
    """All but the stacks of Mamba blocks: their kernels read the weights of several modules at once."""
    model = make_model(backbone=backbone)
    model.save_pretrained(tmp_path)
    inputs = batch(make_posts(model.config))
    held = {part for part in PARTS if backbone == "mamba" and part.endswith("_stack")}
    device_map = {part: "cpu" if part in held else "disk" for part in PARTS}
    offloaded = load(tmp_path, device_map=device_map | {"model.norm": "cpu"}, offload_folder=tmp_path / "offloaded")
    assert offloaded.classifier.weight.device.type == "meta"
    assert torch.equal(offloaded(**inputs).logits, model(**inputs).logits)


# --- dtypes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_dtype_auto_is_the_checkpoints_own(dtype, model, inputs, tmp_path):
    model.to(dtype).save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="auto")
    assert loaded.dtype == loaded.classifier.weight.dtype == dtype
    assert loaded.config.dtype == dtype
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("backbone", BACKBONES)
@torch.no_grad()
def test_half_and_back(backbone):
    """A user's own model.half(), which converts everything, keeps the meaning."""
    model = make_model(backbone=backbone)
    inputs = batch(make_posts(model.config))
    expected = model(**inputs).logits
    logits = model.half()(**inputs).logits
    assert logits.dtype == torch.float16
    torch.testing.assert_close(logits.float(), expected, rtol=0.05, atol=0.05)
    torch.testing.assert_close(model.float()(**inputs).logits, expected, rtol=0.02, atol=0.02)


# --- another vocabulary, other labels


@pytest.mark.parametrize("size", [50, 90])
@torch.no_grad()
def test_resizing_the_vocabulary_through_the_classifier(size, model, inputs, tmp_path):
    inputs["input_ids"] = inputs["input_ids"].clamp(max=min(size, model.config.vocab_size) - 1)
    expected, old = model(**inputs).logits, model.get_input_embeddings().weight.clone()
    embeddings = model.resize_token_embeddings(size)
    assert embeddings is model.get_input_embeddings() is model.model.embeddings.token_embeddings
    assert embeddings.num_embeddings == model.config.vocab_size == model.model.config.vocab_size == size
    kept = min(size, len(old))
    assert torch.equal(embeddings.weight[:kept], old[:kept]) and embeddings.weight.isfinite().all()
    assert torch.equal(model(**inputs).logits, expected)
    model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path)(**inputs).logits, expected)


@torch.no_grad()
def test_a_new_number_of_labels_keeps_all_but_the_classifier(model, inputs, checkpoint):
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(checkpoint, num_labels=7)
    torch.manual_seed(0)
    loaded, info = load(checkpoint, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert torch.equal(loaded.model(**inputs).pooler_output, model.model(**inputs).pooler_output)
    assert loaded(**inputs).logits.shape == (4, 7)
    assert len(loaded.config.id2label) == len(loaded.config.label2id) == 7
    bound = loaded.classifier.in_features**-0.5  # as initialised, not what lay in memory
    for parameter in loaded.classifier.parameters():
        assert parameter.abs().max() <= bound and parameter.std() > 0


def test_weights_of_old_labels_are_dropped_when_asked(tmp_path):
    make_model(class_weights=[1.0, 2.0, 3.0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="class_weights=None"):
        load(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    loaded = load(tmp_path, num_labels=7, ignore_mismatched_sizes=True, class_weights=None)
    assert loaded.config.class_weights is None


# --- incomplete checkpoints


@torch.no_grad()
def test_missing_weights_are_initialised_and_named(model, inputs, checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    ending = (
        "A_log",
        "D",
        "dt_proj.bias",
        "norm.weight",
        "token_embeddings.weight",
        "classifier.weight",
        "conv1d.bias",
    )
    missing = {name for name in weights if name.endswith(ending)}
    save_file({name: weights[name] for name in weights.keys() - missing}, checkpoint / "model.safetensors")
    loaded, info = load(checkpoint, output_loading_info=True)
    assert {*info["missing_keys"]} == missing and not info["unexpected_keys"]
    for name, value in loaded.state_dict().items():
        if name not in missing:
            assert torch.equal(value, weights[name]), name
        elif name.endswith("A_log"):
            torch.testing.assert_close(value.exp(), torch.arange(1.0, 5).expand_as(value))
        elif name.endswith(("D", "norm.weight")):
            assert (value == 1).all(), name
        elif name.endswith("dt_proj.bias"):
            delta = torch.nn.functional.softplus(value)
            assert delta.min() >= 0.001 * 0.99 and delta.max() <= 0.1 * 1.01, name
        elif name.endswith("token_embeddings.weight"):
            assert 0.015 < value.std() < 0.025
    assert loaded(**inputs).logits.isfinite().all()


@torch.no_grad()
def test_a_classifier_from_a_base_model_misses_only_its_head(inputs, tmp_path):
    base = make_model(HFMambaModel)
    base.save_pretrained(tmp_path)
    loaded, info = load(tmp_path, num_labels=3, output_loading_info=True)
    assert {*info["missing_keys"]} == {"classifier.weight", "classifier.bias"} and not info["unexpected_keys"]
    assert torch.equal(loaded.model(**inputs).pooler_output, base(**inputs).pooler_output)


# --- attention


@pytest.mark.parametrize("backbone", ["self_attention", "transformer"])
@torch.no_grad()
def test_every_attention_implementation_gives_the_same_logits(backbone, tmp_path):
    model = make_model(backbone=backbone)
    model.save_pretrained(tmp_path)
    inputs = batch(make_posts(model.config, texts=(7, 3, 0, 5, 0), images=(1, 2, 1, 0, 0)))  # the last has nothing
    expected = model(**inputs).logits
    assert model.config._attn_implementation == "sdpa"
    AttentionInterface.register("a_users_own", lambda *args, **kwargs: eager_attention_forward(*args, **kwargs))
    for implementation in ("eager", "a_users_own"):
        loaded = load(tmp_path, attn_implementation=implementation)
        torch.testing.assert_close(loaded(**inputs).logits, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="Flash Attention 2"):
        model.set_attn_implementation("flash_attention_2")


@pytest.mark.parametrize("fields", [{"num_image_layers": 1}, {"num_text_layers": 0}, {"fusion": "flatten"}], ids=str)
@torch.no_grad()
def test_attentions_stand_where_the_caller_had_them(fields):
    """Whatever the padding, a row's weights are those of the post alone, and of each real position they sum to 1."""
    model = make_model(backbone="transformer", **fields)
    model.set_attn_implementation("eager")
    posts = make_posts(model.config, texts=(7, 3, 5), images=(1, 2, 1))
    inputs = batch(posts, side="left", extra_text=2, extra_image=3)
    attentions = model(**inputs, output_attentions=True).attentions
    mask = torch.cat([inputs["attention_mask"], inputs["pixel_attention_mask"]], dim=1).bool()
    assert len(attentions) == model.config.num_hidden_layers
    for row, (text, image) in enumerate(posts):
        n = len(text)
        alone = model(input_ids=text[None], pixel_values=image[None], output_attentions=True).attentions
        for depth, weights in enumerate(attentions):
            assert (weights[row][:, ~mask[row]] == 0).all() and (weights[row][:, :, ~mask[row]] == 0).all()
            real = weights[row][:, mask[row]][:, :, mask[row]]  # (heads, n + m, n + m)
            torch.testing.assert_close(real, alone[depth][0], rtol=0, atol=1e-5)
            fused = depth >= len(attentions) - model.config.num_fusion_layers
            assert fused == bool(real[:, :n, n:].any()) == bool(real[:, n:, :n].any())
            waits = not fused and depth >= model.config.num_text_layers
            expected = torch.tensor([0.0 if waits else 1.0] * n + [1.0] * len(image))
            torch.testing.assert_close(real.sum(-1), expected.expand(real.shape[:2]))


@torch.no_grad()
def test_attention_weights_are_there_only_where_they_exist(model, inputs):
    assert model(**inputs, output_attentions=True).attentions is None  # Mamba has none
    transformer = make_model(backbone="transformer")  # SDPA does not return them
    assert transformer(**inputs, output_attentions=True).attentions is None
    transformer.set_attn_implementation("eager")
    assert transformer(**inputs).attentions is None
    text = {"input_ids": inputs["input_ids"][:1]}
    assert transformer(**text, output_attentions=True).attentions[0].shape == (1, 4, 7, 7)
