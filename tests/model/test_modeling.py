"""HFMambaModel and its classifier: exactness, variants, losses, dtypes, compilation, saving."""

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.models.mamba.modeling_mamba import MambaBlock
from transformers.models.mamba.modeling_mamba import MambaConfig as TransformersMambaConfig

from hf_mamba import HFMambaConfig, HFMambaForSequenceClassification, HFMambaModel
from hf_mamba.modeling_hf_mamba import HFMambaBlock, HFMambaMixer, sinusoid
from hf_mamba.selective_scan import selective_scan_reference


NUM_LABELS = 3
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_text_layers": 1,
    "num_image_layers": 2,
    "num_fusion_layers": 1,
    "state_size": 4,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": NUM_LABELS,
}
BACKBONES = ["mamba", "self_attention", "transformer"]
VARIANTS = [
    *({"backbone": b, "fusion": f, "pooling": p}
      for b, f, p in itertools.product(BACKBONES, ["hierarchical", "flatten"], ["mean_max", "mean", "max", "last"])),
    {"gating": "add"},
    {"bidirectional": True},
    {"bidirectional": True, "gating": "add", "pooling": "max"},
    {"segment_embeddings": "none"},
    {"num_text_layers": 0},
    {"num_fusion_layers": 0},
    {"use_bias": True, "use_conv_bias": False},
]  # fmt: skip
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))


def make_model(cls=HFMambaForSequenceClassification, **fields):
    torch.manual_seed(0)
    model = cls(HFMambaConfig(**{**SMALL, **fields})).eval()
    with torch.no_grad():  # away from the initial values, at which biases and D could hide a mistake
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_posts(config, texts=(7, 3, 0, 5), images=(1, 2, 1, 0), seed=0):
    """Posts as lists of (token ids, patches): `texts` tokens and `images` images each."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(2, config.vocab_size, (n,), generator=generator),
            torch.randn(k * config.num_patches, config.patch_dim, generator=generator),
        )
        for n, k in zip(texts, images)
    ]


def pad(rows, length, side="right", fill=0.0):
    """Rows of unequal length as one tensor and its mask."""
    values = rows[0].new_full((len(rows), length, *rows[0].shape[1:]), fill)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        values[i, where], mask[i, where] = row, 1
    return values, mask


def batch(posts, *, side="right", extra_text=0, extra_image=0, fill=0.0):
    texts, images = zip(*posts)
    input_ids, attention_mask = pad(texts, max(map(len, texts)) + extra_text, side)
    pixel_values, pixel_attention_mask = pad(images, max(map(len, images)) + extra_image, side, fill)
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "pixel_values": pixel_values,
        "pixel_attention_mask": pixel_attention_mask,
    }


def alone(post):
    """One post without any padding, a missing part left out."""
    text, image = post
    inputs = {"input_ids": text[None]} if len(text) else {}
    return inputs | ({"pixel_values": image[None]} if len(image) else {})


# --- exactness


@each_variant
@torch.no_grad()
def test_padding_and_company_change_no_logit(variant):
    model = make_model(**variant)
    posts = make_posts(model.config)
    expected = torch.cat([model(**alone(post)).logits for post in posts])
    for side, extra_text, extra_image in [("right", 0, 0), ("left", 0, 0), ("right", 9, 3), ("left", 4, 8)]:
        logits = model(**batch(posts, side=side, extra_text=extra_text, extra_image=extra_image)).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@each_variant
@torch.no_grad()
def test_masked_images_are_not_seen(variant):
    """A masked image between two real ones, whatever it holds, is as good as absent."""
    model = make_model(**variant)
    (text, image), p = make_posts(model.config, texts=[5], images=[2])[0], model.config.num_patches
    expected = model(input_ids=text[None], pixel_values=image[None]).logits
    for garbage in (0.0, 1e6, float("nan"), float("inf")):
        between = torch.cat([image[:p], torch.full_like(image[:p], garbage), image[p:]])[None]
        mask = torch.tensor([[1] * p + [0] * p + [1] * p])
        logits = model(input_ids=text[None], pixel_values=between, pixel_attention_mask=mask).logits
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_garbage_in_a_masked_image_reaches_no_gradient():
    model = make_model().train()
    inputs = batch(make_posts(model.config), fill=float("nan"))
    model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@torch.no_grad()
def test_every_part_of_a_post_matters():
    """The complement of the tests above: what is real is seen."""
    model = make_model()
    (text, image) = make_posts(model.config, texts=[5], images=[2])[0]
    logits = model(input_ids=text[None], pixel_values=image[None]).logits
    for i in range(len(text)):
        other = text.clone()
        other[i] = 2 + (other[i] + 7) % 50
        assert not torch.allclose(model(input_ids=other[None], pixel_values=image[None]).logits, logits, atol=1e-4)
    for i in range(len(image)):
        other = image.clone()
        other[i] += 1
        assert not torch.allclose(model(input_ids=text[None], pixel_values=other[None]).logits, logits, atol=1e-4)


@torch.no_grad()
def test_a_row_with_nothing_real_is_finite_and_disturbs_nobody():
    for backbone in BACKBONES:
        model = make_model(backbone=backbone)
        posts = make_posts(model.config, texts=(4, 0), images=(1, 0))
        logits = model(**batch(posts)).logits
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[:1], model(**alone(posts[0])).logits, rtol=0, atol=1e-5)


@each_variant
@torch.no_grad()
def test_hidden_states_stand_where_the_caller_had_them(variant):
    model = make_model(HFMambaModel, **variant)
    posts = make_posts(model.config)
    inputs = batch(posts, side="left", extra_text=2, extra_image=3)
    outputs = model(**inputs, output_hidden_states=True)
    n, m = inputs["input_ids"].shape[1], inputs["pixel_values"].shape[1]
    assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
    mask = torch.cat([inputs["attention_mask"], inputs["pixel_attention_mask"]], dim=1).bool()
    single = [model(**alone(post), output_hidden_states=True) for post in posts]
    for index in range(len(outputs.hidden_states)):
        states = outputs.hidden_states[index]
        assert states.shape == (len(posts), n + m, model.config.hidden_size)
        assert (states[~mask] == 0).all()
        for row, other in enumerate(single):
            if index < len(other.hidden_states) and all(map(len, posts[row])):  # one modality alone may be shallower
                torch.testing.assert_close(states[row][mask[row]], other.hidden_states[index][0], rtol=0, atol=1e-5)
    for row, other in enumerate(single):
        torch.testing.assert_close(outputs.last_hidden_state[row][mask[row]], other[0][0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_image_of_a_post_counts_its_patches_from_zero():
    model = make_model(HFMambaModel)
    image = make_posts(model.config, texts=[0], images=[1])[0][1]
    states = model(pixel_values=image.repeat(2, 1)[None], output_hidden_states=True).hidden_states[0]  # embeddings
    first, second = states[0].chunk(2)
    torch.testing.assert_close(second, first)
    assert not torch.allclose(first[0] - first[1], model.embeddings.patch_embeddings(image[0] - image[1]))


@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_only_a_bidirectional_stack_sees_what_follows(bidirectional):
    model = make_model(HFMambaModel, bidirectional=bidirectional)
    ids = torch.arange(2, 9)[None]
    other = ids.clone()
    other[0, -1] += 20
    before, after = (model(input_ids=x, output_hidden_states=True).hidden_states[1] for x in (ids, other))
    same = torch.isclose(before, after, rtol=0, atol=1e-6).all(-1)[0]  # after the text stack, position by position
    assert not same[-1] and same[:-1].tolist() == [not bidirectional] * 6


# --- against other implementations


@torch.no_grad()
def test_block_equals_transformers_mamba_block():
    """With gating="multiply" our block is Mamba's own: the same weights give the same numbers."""
    config = HFMambaConfig(**SMALL)
    theirs_config = TransformersMambaConfig(
        hidden_size=16, state_size=4, num_hidden_layers=1, expand=2, conv_kernel=4, time_step_rank=1
    )
    torch.manual_seed(0)
    ours, theirs = HFMambaModel(config).text_stack.layers[0].eval(), MambaBlock(theirs_config, 0).eval()
    mixer, ssm = ours.mixer, ours.mixer.ssm
    pairs = {
        theirs.norm.weight: ours.norm.weight,
        theirs.mixer.in_proj.weight: mixer.in_proj.weight,
        theirs.mixer.out_proj.weight: mixer.out_proj.weight,
        theirs.mixer.conv1d.weight: ssm.conv1d.weight,
        theirs.mixer.conv1d.bias: ssm.conv1d.bias,
        theirs.mixer.x_proj.weight: ssm.x_proj.weight,
        theirs.mixer.dt_proj.weight: ssm.dt_proj.weight,
        theirs.mixer.dt_proj.bias: ssm.dt_proj.bias,
        theirs.mixer.A_log: ssm.bias_like.A_log,
        theirs.mixer.D: ssm.bias_like.D,
    }
    assert len(pairs) == len(list(theirs.parameters())) == len(list(ours.parameters()))
    for target, source in pairs.items():
        target.copy_(source)
    x = torch.randn(2, 37, 16)
    torch.testing.assert_close(ours(x, torch.ones(2, 37).bool()), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gating", ["multiply", "add"])
@torch.no_grad()
def test_mixer_is_equation_7(gating):
    mixer = make_model(gating=gating).model.text_stack.layers[0].mixer
    assert type(mixer) is HFMambaMixer
    hidden_states, ssm = torch.randn(2, 9, 16), mixer.ssm
    x, z = mixer.in_proj(hidden_states).transpose(1, 2).chunk(2, dim=1)  # (b, e, l) each
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), ssm.conv1d.weight, ssm.conv1d.bias, groups=32))
    dt, B, C = (ssm.x_proj.weight @ x).split([1, 4, 4], dim=1)
    A = -ssm.bias_like.A_log.exp()
    delta = F.softplus(ssm.dt_proj.weight @ dt + ssm.dt_proj.bias[:, None])
    y = selective_scan_reference(x, delta, A, B, C, ssm.bias_like.D)
    y = y * F.silu(z) if gating == "multiply" else y + F.silu(z)
    expected = mixer.out_proj(y.transpose(1, 2))
    torch.testing.assert_close(mixer(hidden_states, torch.ones(2, 9).bool()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ("mean", lambda z: z.mean(1)),
        ("max", lambda z: z.amax(1)),
        ("mean_max", lambda z: torch.cat([z.mean(1), z.amax(1)], dim=1)),
        ("last", lambda z: z[:, -1]),
    ],
)
@torch.no_grad()
def test_pooling(pooling, expected):
    model = make_model(HFMambaModel, pooling=pooling)
    outputs = model(**batch(make_posts(model.config, texts=(6, 6), images=(1, 1))))
    torch.testing.assert_close(outputs.pooler_output, expected(outputs.last_hidden_state))


def test_sinusoid_is_equation_1():
    d, positions = 6, torch.arange(5)
    pe = sinusoid(positions, d)
    for pos in range(5):
        for i in range(d // 2):
            angle = torch.tensor(pos / 10000 ** (2 * i / d))
            torch.testing.assert_close(pe[pos, 2 * i], angle.sin())
            torch.testing.assert_close(pe[pos, 2 * i + 1], angle.cos())


# --- losses


def loss_inputs(model):
    return batch(make_posts(model.config))


@pytest.mark.parametrize("problem_type", ["single_label_classification", None])
def test_single_label_loss(problem_type):
    model = make_model(problem_type=problem_type, class_weights=[1.0, 2.0, 0.5], label_smoothing=0.1)
    labels = torch.tensor([0, 1, 2, 1])
    outputs = model(**loss_inputs(model), labels=labels)
    expected = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.1)
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_multi_label_loss(problem_type, weights):
    """Weights are the labels', not the rows'."""
    model = make_model(problem_type=problem_type, class_weights=weights)
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    outputs = model(**loss_inputs(model), labels=labels)
    expected = torch.nn.BCEWithLogitsLoss(weight=weights and torch.tensor(weights))
    torch.testing.assert_close(outputs.loss, expected(outputs.logits, labels))


@pytest.mark.parametrize("problem_type", ["regression", None])
def test_regression_loss(problem_type):
    model = make_model(problem_type=problem_type, num_labels=1)
    labels = torch.tensor([0.5, -1.0, 3.0, 2.0])
    outputs = model(**loss_inputs(model), labels=labels)
    torch.testing.assert_close(outputs.loss, torch.nn.MSELoss()(outputs.logits[:, 0], labels))


def test_class_weights_must_fit_the_labels():
    with pytest.raises(ValueError, match="class_weights has 2 weights for num_labels=3"):
        make_model(class_weights=[1.0, 1.0])


# --- training


@each_variant
def test_every_parameter_learns(variant):
    model = make_model(**variant).train()
    model(**loss_inputs(model), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(use_reentrant):
    model = make_model(hidden_dropout=0, classifier_dropout=0).train()
    inputs = loss_inputs(model) | {"labels": torch.tensor([0, 1, 2, 0])}
    model(**inputs).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(**inputs).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def make_trainer(model, output_dir, rows=None, **arguments):
    """transformers' own, as any user of a checkpoint would make it."""
    arguments |= {"output_dir": output_dir, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    arguments = TrainingArguments(use_cpu=True, remove_unused_columns=False, max_steps=1, **arguments)
    return Trainer(model=model, args=arguments, train_dataset=rows)


@pytest.mark.parametrize(("problem_type", "num_labels"), [("multi_label_classification", 3), ("regression", 1)])
def test_accumulated_gradients_are_those_of_one_batch(problem_type, num_labels, tmp_path):
    fields = {"problem_type": problem_type, "num_labels": num_labels, "hidden_dropout": 0, "classifier_dropout": 0}
    weights = []
    for size in (8, 4):
        model = make_model(**fields)
        inputs = batch(make_posts(model.config, texts=[5] * 8, images=[1] * 8))
        generator = torch.Generator().manual_seed(0)
        inputs["labels"] = torch.rand(8, num_labels, generator=generator).round()
        rows = [{name: values[i] for name, values in inputs.items()} for i in range(8)]
        sgd = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0}
        steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        make_trainer(model, tmp_path, rows, **sgd, **steps).train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    untrained = torch.cat([parameter.detach().flatten() for parameter in make_model(**fields).parameters()])
    assert (weights[0] - untrained).abs().max() > 1e-3
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)


@each_variant
def test_a_plain_trainer_decays_weights_alone(variant, tmp_path):
    """No A_log, no D, no norm, no bias."""
    model = make_model(**variant)
    layers = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Embedding)
    expected = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}
    assert {*make_trainer(model, tmp_path).get_decay_parameter_names(model)} == expected


def test_initial_values():
    torch.manual_seed(0)
    model = HFMambaModel(HFMambaConfig())
    embedded = model.embeddings.forward_text(
        model.embeddings.token_embeddings(torch.arange(2000)[None]), torch.ones(1, 2000).bool()
    )
    tokens = model.embeddings.token_embeddings.weight * model.embeddings.scale
    assert 0.5 < tokens.square().mean().sqrt() / 0.5**0.5 < 2  # comparable to the sinusoid's RMS
    assert embedded.states[-1].isfinite().all()
    ssm = model.text_stack.layers[0].mixer.ssm
    delta = torch.nn.functional.softplus(ssm.dt_proj.bias)
    assert delta.min() >= 0.001 * 0.99 and delta.max() <= 0.1 * 1.01
    torch.testing.assert_close(ssm.bias_like.A_log.exp()[5], torch.arange(1.0, 17))
    assert (ssm.bias_like.D == 1).all()


# --- dtypes, compilation, other inputs


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
        "import torch; from test_modeling import *; torch.set_grad_enabled(False); "
        "model = make_model(num_image_layers=1); inputs = batch(make_posts(model.config)); "
        "torch.testing.assert_close(torch.compile(model)(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


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
