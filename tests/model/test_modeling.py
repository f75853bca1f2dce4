"""HFMambaModel computes what the paper says, exactly, whatever the padding and whoever else is in the batch."""

import weakref

import pytest
import torch
from small_model import BACKBONES, SMALL, alone, batch, each_variant, make_model, make_posts
from torch.nn import functional as F
from transformers.models.mamba.modeling_mamba import MambaBlock
from transformers.models.mamba.modeling_mamba import MambaConfig as TransformersMambaConfig

from hf_mamba import HFMambaConfig, HFMambaModel
from hf_mamba.modeling_hf_mamba import HFMambaBlock, HFMambaMixer, sinusoid
from hf_mamba.selective_scan import selective_scan_reference


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


# --- what is kept


@torch.no_grad()
def test_hidden_states_live_on_only_where_they_are_asked_for():
    model = make_model(num_text_layers=6, num_image_layers=6, num_fusion_layers=6)
    outputs, alive = [], []

    def remember(module, inputs, output):
        outputs.append(weakref.ref(output))
        alive.append(sum(ref() is not None for ref in outputs))

    for module in model.modules():
        if isinstance(module, HFMambaBlock):
            module.register_forward_hook(remember)
    inputs = batch(make_posts(model.config))
    for ask, most in ((False, 3), (True, 18)):  # the last of the text stack, and a block's input and output
        outputs.clear(), alive.clear()
        model(**inputs, output_hidden_states=ask)
        assert len(alive) == 18 and max(alive) <= most and (max(alive) > 3) == ask
