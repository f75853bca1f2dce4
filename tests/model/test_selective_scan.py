"""The scan: every implementation computes Eq. 5, and its gradients are those of Eq. 5."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_checks import (
    NAMES,
    REFERENCE,
    assert_close,
    check_against_float64,
    check_what_is_not_finite,
    each_implementation,
    make_inputs,
    needs_numba,
    outputs_and_grads,
)

from hf_mamba.scan_kernels import why_not_numba
from hf_mamba.selective_scan import selective_scan
from hf_mamba.selective_scan_torch import CHUNK


def test_reference_is_equation_5_by_hand():
    # one channel, one state: h1 = 0.5 * 3 * 2 = 3, h2 = exp(-1) * 3 + 1 * 1 * 4
    inputs = {"u": [[[2.0, 4.0]]], "delta": [[[0.5, 1.0]]], "A": [[-1.0]], "B": [[[3.0, 1.0]]], "C": [[[1.0, 10.0]]]}
    inputs = {name: torch.tensor(x) for name, x in inputs.items()}
    expected = torch.tensor([[[3.0, 10 * (3 * torch.tensor(-1.0).exp() + 4)]]])
    for implementation in ("reference", "torch", "auto", *([] if why_not_numba() else ["numba"])):
        torch.testing.assert_close(selective_scan(**inputs, scan_implementation=implementation), expected)


@each_implementation
@pytest.mark.parametrize("b", [0, 1, 5, 129])
@pytest.mark.parametrize(
    "l", [0, 1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 1, 4 * CHUNK + 1]
)
def test_lengths_and_batches(implementation, b, l):
    check_against_float64(make_inputs(b=b, l=l), implementation)


@each_implementation
@pytest.mark.parametrize("s", [1, 2, 7, 8, 16, 64, 70])
@pytest.mark.parametrize("e", [1, 7, 16, 33])
def test_state_sizes_and_odd_channel_counts(implementation, e, s):
    check_against_float64(make_inputs(e=e, s=s), implementation)


@each_implementation
@pytest.mark.parametrize("present", [(), ("D",), ("z",), ("delta_bias",), ("D", "z"), ("D", "z", "delta_bias")])
@pytest.mark.parametrize("delta_softplus", [False, True])
def test_optional_inputs(implementation, present, delta_softplus):
    inputs = make_inputs()
    absent = {name: None for name in ("D", "z", "delta_bias") if name not in present}
    if not delta_softplus:
        inputs["delta"] = inputs["delta"].abs()
    check_against_float64(inputs | absent, implementation, delta_softplus=delta_softplus)


@each_implementation
def test_slow_fast_and_frozen_states(implementation):
    inputs = make_inputs(l=40)
    inputs["A"] = -torch.logspace(-3, 1.9, inputs["A"].numel()).reshape(inputs["A"].shape)  # up to 80 with delta = 1
    inputs["delta"] = torch.rand(inputs["delta"].shape)
    inputs["delta"][:, :, ::3] = 0
    inputs["delta"][:, :, 1::5] = 1
    check_against_float64(inputs | {"delta_bias": None}, implementation, delta_softplus=False)


@each_implementation
def test_growing_states(implementation):
    inputs = make_inputs()
    check_against_float64(inputs | {"A": inputs["A"].abs() / 10}, implementation)
    check_against_float64(inputs | {"A": torch.zeros_like(inputs["A"])}, implementation)


@each_implementation
def test_memory_layout_does_not_matter_and_the_models_is_returned(implementation):
    inputs = make_inputs(l=21)
    contiguous = {name: x.contiguous() for name, x in inputs.items()}
    gaps = {name: torch.stack([x, x * 9], dim=-1)[..., 0] for name, x in inputs.items()}
    expected = outputs_and_grads(inputs, implementation)
    assert expected["y"].transpose(1, 2).is_contiguous()
    assert_close(outputs_and_grads(contiguous, implementation), expected, 1e-6)
    assert_close(outputs_and_grads(gaps, implementation), expected, 1e-6)
    expanded = torch.ones(()).expand(expected["y"].shape)
    assert_close(
        outputs_and_grads(inputs, implementation, grad_y=expanded),
        outputs_and_grads(inputs, implementation, grad_y=expanded.contiguous()),
        1e-6,
    )


def test_gradcheck():
    inputs = [x.requires_grad_() for x in make_inputs(b=2, e=2, l=CHUNK + 2, s=2, dtype=torch.float64).values()]
    assert torch.autograd.gradcheck(lambda *x: selective_scan(*x, True, scan_implementation="torch"), inputs)


@each_implementation
@pytest.mark.parametrize("wanted", NAMES)
def test_a_gradient_alone_is_the_same(implementation, wanted):
    inputs = make_inputs(l=20)
    expected = outputs_and_grads(inputs, implementation)[f"grad of {wanted}"]
    inputs[wanted].requires_grad_()
    y = selective_scan(*inputs.values(), True, scan_implementation=implementation)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos().to(y.dtype))
    torch.testing.assert_close(inputs[wanted].grad, expected, rtol=0, atol=0)
    assert all(x.grad is None for name, x in inputs.items() if name != wanted)


@each_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_in_and_out_with_a_full_state(implementation, dtype):
    inputs = {name: x.to(dtype) for name, x in make_inputs(l=50).items()}
    got = outputs_and_grads(inputs, implementation)
    assert all(x.dtype == dtype for x in got.values())
    # the inputs are exact in float64, so all that is lost is the rounding of the result
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(dtype).eps)


@each_implementation
def test_mixed_dtypes_as_under_autocast(implementation):
    inputs = make_inputs()
    for name in ("delta", "B", "C", "z"):
        inputs[name] = inputs[name].bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        got = outputs_and_grads(inputs, implementation)
    assert {name: x.dtype for name, x in got.items()} == {"y": torch.float32} | {
        f"grad of {name}": x.dtype for name, x in inputs.items()
    }
    assert_close(got, outputs_and_grads(inputs, "reference", torch.float64), torch.finfo(torch.bfloat16).eps)


@each_implementation
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["u", "delta", "B", "C", "z"])
def test_nan_and_infinity_come_out_as_in_the_reference(implementation, where, value):
    inputs = make_inputs(b=3, l=2 * CHUNK + 4)
    inputs[where][1, 2, 2 * CHUNK - 2] = value
    got = check_what_is_not_finite(inputs, implementation)
    assert got["y"][[0, 2]].isfinite().all()  # other rows know nothing of it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["A", "D", "delta_bias"])
@each_implementation
def test_nan_and_infinity_in_a_parameter_stay_in_its_channel(implementation, where, value):
    inputs = make_inputs(e=20, l=2 * CHUNK + 4)
    inputs[where][3] = value
    got = check_what_is_not_finite(inputs, implementation)
    assert got["y"][:, [*range(3), *range(4, 20)]].isfinite().all()


@needs_numba
def test_infinity_outlives_any_decay_that_float64_can_tell_from_zero():
    inputs = make_inputs(b=1, e=3, l=9, s=2) | {"delta_bias": None, "z": None, "D": None}
    inputs["A"] = torch.tensor([[-1.0, -1.0], [-150.0, -1.0], [-800.0, -1.0]])  # fp32 ends at 104, float64 at 745
    inputs["delta"], inputs["u"][0, :, 2] = torch.ones(1, 3, 9), float("inf")
    y = selective_scan(**inputs, scan_implementation="numba")
    expected = selective_scan(**{k: v if v is None else v.double() for k, v in inputs.items()}, **REFERENCE)
    torch.testing.assert_close(y, expected.float(), equal_nan=True)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    b=st.integers(1, 5),
    e=st.integers(1, 40),
    l=st.integers(1, 3 * CHUNK + 2),
    s=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@each_implementation
def test_any_shape(implementation, b, e, l, s, seed):
    check_against_float64(make_inputs(b, e, l, s, seed=seed), implementation, tolerance=2e-5)


@each_implementation
def test_time_and_memory_grow_with_length_alone(implementation):
    """65,536 positions, forward and backward: what is kept is a sixteenth of what every state would be."""
    inputs = make_inputs(b=1, e=2, l=2**16, s=2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        kept = []
        got = outputs_and_grads(inputs, implementation)
    own = {x.data_ptr() for x in inputs.values()}
    assert sum(x.numel() for x in kept if x.data_ptr() not in own) <= 2**16 // CHUNK * 2 * 2
    head = {name: x[:, :, :100] if x.dim() == 3 else x for name, x in inputs.items()}
    expected = selective_scan(**head, delta_softplus=True, **REFERENCE)
    torch.testing.assert_close(got["y"][:, :, :100], expected, rtol=1e-4, atol=1e-5)
    assert all(x.isfinite().all() for x in got.values())


@needs_numba
def test_threads_change_only_the_order_of_sums():
    inputs = make_inputs(b=3, e=70, l=400, s=16)
    for b in (1, 3):  # one row is cut by channels
        part = {name: x[:b] if x.dim() == 3 else x for name, x in inputs.items()}
        results, threads = [], torch.get_num_threads()
        try:
            for number in (1, 2, 2, 5):
                torch.set_num_threads(number)
                results.append(outputs_and_grads(part, "numba"))
        finally:
            torch.set_num_threads(threads)
        one, two, again, five = results
        assert all(torch.equal(two[name], again[name]) for name in two)
        assert torch.equal(one["y"], two["y"])
        assert_close(two, one, 1e-6)
        assert_close(five, one, 1e-6)


@each_implementation
def test_a_row_does_not_depend_on_its_company(implementation):
    inputs = make_inputs(b=300, e=32, s=16, l=35)  # several slabs
    whole = outputs_and_grads(inputs, implementation, grad_y=torch.ones(300, 32, 35))
    for rows in (slice(0, 1), slice(290, 300)):
        part = {name: x[rows] if x.dim() == 3 else x for name, x in inputs.items()}
        alone = outputs_and_grads(part, implementation, grad_y=torch.ones(300, 32, 35)[rows])
        for name in ("y", "grad of u", "grad of delta", "grad of B", "grad of C", "grad of z"):
            assert torch.equal(alone[name], whole[name][rows]), name


@each_implementation
def test_same_call_same_bits(implementation):
    inputs = make_inputs(b=64, e=32, s=16, l=35)
    first, second = (outputs_and_grads(inputs, implementation) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
