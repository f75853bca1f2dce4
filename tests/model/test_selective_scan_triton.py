"""
The GPU kernel of the scan computes Eq. 5 and its gradients. On CPU in Triton's interpreter, the way CI runs it, where
a step of the scan takes 20 ms, hence the sizes; and on a GPU, if there is one, by the same tests:

    pip install triton && TRITON_INTERPRET=1 python -m pytest tests/test_selective_scan_triton.py
    python -m pytest -m gpu tests/test_selective_scan_triton.py
"""

import importlib

import pytest
import torch
from scan_checks import (
    Mixer,
    assert_close,
    check_against_float64,
    check_operators,
    check_what_is_not_finite,
    make_inputs,
    outputs_and_grads,
)
from small_model import batch, make_model, make_posts

from hf_mamba.scan_kernels import INTERPRETED, small_scan, why_not_triton
from hf_mamba.selective_scan import resolve_scan_implementation, selective_scan


try:
    triton_module = importlib.import_module("hf_mamba.selective_scan_triton")
except ImportError as error:
    pytest.skip(f"needs Triton: {error}", allow_module_level=True)
if not INTERPRETED:
    pytestmark = [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, or TRITON_INTERPRET=1"),
    ]
DEVICE = "cpu" if INTERPRETED else "cuda"
on_a_gpu = pytest.mark.skipif(INTERPRETED, reason="takes a GPU")
scan_module = importlib.import_module("hf_mamba.selective_scan")


def inputs_there(**sizes):
    return {name: x.to(DEVICE) for name, x in make_inputs(**{"b": 1, "e": 3, "l": 9, "s": 3} | sizes).items()}


def cut(monkeypatch):
    """Cuts every length into segments of one chunk."""
    monkeypatch.setattr(triton_module, "WANTED_PROGRAMS", 10**9)
    monkeypatch.setattr(triton_module, "SHORTEST_SEGMENT", 1)


@pytest.fixture(params=[False, True], ids=["whole", "segments"])
def both_ways(request, monkeypatch):
    """The length whole, then cut: two runs of each test that asks for it."""
    if request.param:
        cut(monkeypatch)


# ---------------------------------------------------------------------------------------------------------------------
# The numbers


@pytest.mark.parametrize("l", [0, 1, 7, 8, 9, 17, 33])
def test_lengths(l, both_ways):
    check_against_float64(inputs_there(l=l), "triton")


@pytest.mark.parametrize("b", [0, 2, 129])
def test_batches(b, monkeypatch):
    for name in ("CHUNK", "GROUP") if b > 100 else ():  # or a length of 1 would be computed as one of 8
        monkeypatch.setattr(triton_module, name, 1)
    check_against_float64(inputs_there(b=b, l=1), "triton")


@pytest.mark.parametrize("s, e", [(1, 33), (2, 1), (7, 16), (8, 17), (16, 9), (64, 5), (70, 3)])
def test_state_sizes_and_odd_channel_counts(s, e, both_ways):
    check_against_float64(inputs_there(s=s, e=e, l=10), "triton")


def test_the_trial_that_decides_whether_the_kernel_works_does_work():
    small_scan(DEVICE)


def test_a_state_too_large_for_a_tile_is_left_to_torch():
    check_against_float64(inputs_there(s=triton_module.LARGEST_STATE + 1, e=2, l=3), "triton")


@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",), ("D", "z")])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_optional_inputs(present, delta_softplus, monkeypatch):
    cut(monkeypatch)
    inputs = inputs_there()
    absent = {name: None for name in ("D", "z", "delta_bias") if name not in present}
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    check_against_float64(inputs | absent, "triton", delta_softplus=delta_softplus)


def test_slow_fast_and_frozen_states(both_ways):
    inputs = inputs_there(e=6, l=24, s=4)
    inputs["A"] = -torch.logspace(-3, 1.9, 24, device=DEVICE).reshape(6, 4)  # up to 80 with delta = 1
    inputs["delta"] = torch.rand(inputs["delta"].shape).to(DEVICE)
    inputs["delta"][:, :, ::3] = 0
    inputs["delta"][:, :, 1::5] = 1
    check_against_float64(inputs | {"delta_bias": None}, "triton", delta_softplus=False)


def test_growing_states(both_ways):
    inputs = inputs_there(l=20)
    check_against_float64(inputs | {"A": inputs["A"].abs() / 10}, "triton")
    check_against_float64(inputs | {"A": torch.zeros_like(inputs["A"])}, "triton")


def test_small_time_steps_are_exact():
    """Δ as at initialisation: softplus of about -7, of which log(1 + exp(x)) would lose all but three digits."""
    inputs = inputs_there(l=16) | {"delta_bias": None}
    inputs["delta"] = inputs["delta"] - 7
    check_against_float64(inputs, "triton", tolerance=2e-6)


def test_memory_layout_does_not_matter_and_the_models_is_returned():
    inputs = inputs_there()
    expected = outputs_and_grads(inputs, "triton")
    assert expected["y"].transpose(1, 2).is_contiguous()
    contiguous = {name: x.contiguous() for name, x in inputs.items()}
    gaps = {name: torch.stack([x, x * 9], dim=-1)[..., 0] for name, x in inputs.items()}
    assert_close(outputs_and_grads(contiguous, "triton"), expected, 1e-6)
    assert_close(outputs_and_grads(gaps, "triton"), expected, 1e-6)
    expanded = torch.ones((), device=DEVICE).expand(expected["y"].shape)
    got = outputs_and_grads(inputs, "triton", grad_y=expanded)
    assert_close(got, outputs_and_grads(inputs, "triton", grad_y=expanded.contiguous()), 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_and_out_with_a_full_state(dtype, both_ways):
    inputs = {name: x.to(dtype) for name, x in inputs_there(l=20).items()}
    got = outputs_and_grads(inputs, "triton")
    assert all(x.dtype == dtype for x in got.values())
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(dtype).eps)


def test_mixed_dtypes_as_under_autocast():
    inputs = inputs_there()
    for name in ("delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    got = outputs_and_grads(inputs, "triton")
    assert {name: x.dtype for name, x in got.items()} == {"y": torch.float32} | {
        f"grad of {name}": x.dtype for name, x in inputs.items()
    }
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["u", "delta", "B", "C", "z"])
def test_nan_and_infinity_come_out_as_in_the_reference(where, value, monkeypatch):
    cut(monkeypatch)
    inputs = inputs_there(b=2, l=10)
    inputs[where][1, 2, 7] = value
    got = check_what_is_not_finite(inputs, "triton")
    assert got["y"][0].isfinite().all()  # the other row knows nothing of it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["A", "D", "delta_bias"])
def test_nan_and_infinity_in_a_parameter_stay_in_its_channel(where, value, monkeypatch):
    cut(monkeypatch)
    inputs = inputs_there(l=10)
    inputs[where][1] = value
    got = check_what_is_not_finite(inputs, "triton")
    assert got["y"][:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("absent", ["D", "z", "delta_bias"])
def test_infinity_without_optional_inputs(absent):
    inputs = inputs_there() | {absent: None}
    inputs["u"][0, 2, 3] = float("inf")
    check_what_is_not_finite(inputs, "triton")


@pytest.mark.parametrize("first, a", [(float("inf"), -30.0), (0.0, 30.0)], ids=["infinity decays", "nothing grows"])
def test_segments_keep_what_single_steps_keep(first, a, monkeypatch):
    """Of eight steps fp32 can't tell the decay, exp(-240) or exp(240), from zero and infinity; of one it can."""
    cut(monkeypatch)
    inputs = inputs_there(e=1, s=1, l=32) | {"delta_bias": None, "z": None, "D": None}
    inputs["A"], inputs["delta"] = torch.full((1, 1), a, device=DEVICE), torch.ones(1, 1, 32, device=DEVICE)
    inputs["u"][..., :-1], inputs["u"][..., 0] = 0, first
    y = selective_scan(**inputs, scan_implementation="triton")
    expected = selective_scan(**{k: v if v is None else v.double() for k, v in inputs.items()})
    torch.testing.assert_close(y, expected.float(), equal_nan=True)


def test_same_call_same_bits_and_a_gradient_alone_is_the_same(monkeypatch):
    cut(monkeypatch)
    inputs = inputs_there(e=9, s=16)
    first, second = (outputs_and_grads(inputs, "triton") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    inputs["A"].requires_grad_()
    y = selective_scan(*inputs.values(), True, scan_implementation="triton")
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos().to(y))
    assert torch.equal(inputs["A"].grad, first["grad of A"])
    assert all(x.grad is None for name, x in inputs.items() if name != "A")


# ---------------------------------------------------------------------------------------------------------------------
# Inside torch and inside the model


def test_one_state_is_kept_each_chunk_and_only_for_training():
    inputs = inputs_there(l=3 * triton_module.CHUNK)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        selective_scan(**inputs, scan_implementation="triton")
        assert kept == []
        inputs["A"].requires_grad_()
        selective_scan(**inputs, scan_implementation="triton")
    own = {x.data_ptr() for x in inputs.values()}
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) == 3 * 3 * 3  # chunks * s * e


def test_operators_pass_torchs_own_checks_and_are_the_same_kernel(monkeypatch):
    inputs = inputs_there()
    expected = outputs_and_grads(inputs, "triton")
    monkeypatch.setattr(scan_module, "is_plain_eager", lambda *_: False)
    got = outputs_and_grads(inputs, "triton")
    assert all(torch.equal(got[name], x) for name, x in expected.items())
    for b in (0, 2):
        check_operators(inputs_there(b=b), "triton")


@torch.no_grad()
def test_a_model_computes_by_it():
    model = make_model().to(DEVICE)
    posts = batch(make_posts(model.config, texts=(3, 0), images=(1, 1)))
    posts = {name: x.to(DEVICE) if torch.is_tensor(x) else x for name, x in posts.items()}
    logits = []
    for name in ("reference", "triton"):
        model.set_scan_implementation(name)
        logits.append(model(**posts).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    assert "by: triton." in model.describe_scan()


def test_only_the_interpreter_takes_tensors_on_cpu():
    assert (why_not_triton("cpu") is None) == INTERPRETED
    assert "not" in why_not_triton("mps") or INTERPRETED
    if not INTERPRETED:
        with pytest.raises(ValueError, match="'triton'.*on cpu"):
            selective_scan(**make_inputs(), scan_implementation="triton")
    assert resolve_scan_implementation("auto", "cpu") != "triton"


@on_a_gpu
@pytest.mark.parametrize("b, l", [(128, 324), (8, 4096), (1, 65536)])
def test_sizes_of_the_benchmark(b, l):
    inputs = {name: x.to(DEVICE) for name, x in make_inputs(b=b, e=128, l=l, s=16).items()}
    inputs["delta"] = inputs["delta"] - 4
    expected = outputs_and_grads(inputs, "torch", torch.float64)
    assert_close(outputs_and_grads(inputs, "triton"), expected, 1e-5)


@on_a_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])  # the latter: CUDA graphs
def test_compiled_whole_is_eager_on_a_gpu(mode, monkeypatch):
    monkeypatch.setattr(scan_module, "mamba_ssm_selective_scan", None)
    torch.manual_seed(0)
    mixer = Mixer().to(DEVICE)
    compiled = torch.compile(mixer, fullgraph=True, mode=mode)
    for l in (20, 33, 33, 33):
        x, grads = torch.randn(2, l, 6, device=DEVICE), []
        for module in (compiled, mixer):
            mixer.zero_grad()
            module(x).square().sum().backward()
            grads.append([p.grad.clone() for p in mixer.parameters()])
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)
    assert resolve_scan_implementation("auto", DEVICE) == "triton"
