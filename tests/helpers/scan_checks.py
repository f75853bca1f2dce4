"""Inputs of the selective scan, and what is checked of every implementation."""

import pytest
import torch

from hf_mamba.scan_kernels import why_not_numba
from hf_mamba.selective_scan import selective_scan


needs_numba = pytest.mark.skipif(why_not_numba() is not None, reason=f"needs Numba: {why_not_numba()}")
IMPLEMENTATIONS = ["torch", pytest.param("numba", marks=needs_numba)]  # those checked against the reference
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
REFERENCE = {"scan_implementation": "reference"}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


def make_inputs(b=2, e=6, l=33, s=4, dtype=torch.float32, seed=0):
    """The eight tensors, those with a length as views of (b, l, k) memory like the model's."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    u, delta, z = (randn(b, l, e).transpose(1, 2) for _ in range(3))
    B, C = (randn(b, l, s).transpose(1, 2) for _ in range(2))
    return dict(zip(NAMES, (u, delta, -randn(e, s).exp(), B, C, randn(e), z, randn(e))))


def outputs_and_grads(inputs, implementation, dtype=None, delta_softplus=True, grad_y=None):
    """y and the gradient of every input; unless `grad_y` is given, the loss weighs every element of y differently."""
    leaves = {
        name: None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for name, x in inputs.items()
    }
    y = selective_scan(**leaves, delta_softplus=delta_softplus, scan_implementation=implementation)
    if grad_y is None:
        grad_y = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).cos()
    y.backward(grad_y.to(y))
    leaves = {name: x for name, x in leaves.items() if x is not None}
    # without any step the reference never touches some inputs
    grads = {f"grad of {name}": torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()}
    return {"y": y.detach()} | grads


def assert_close(got, expected, tolerance):
    """`tolerance` is relative to the largest expected value."""
    assert got.keys() == expected.keys()
    for name, x in expected.items():
        if x.numel() == 0:
            assert got[name].shape == x.shape, name
            continue
        error = (got[name].double() - x.double()).abs().max() / x.double().abs().max().clamp(min=1e-30)
        assert error <= tolerance, f"{name}: {error:.1e}"


def check_against_float64(inputs, implementation, tolerance=1e-5, **kwargs):
    expected = outputs_and_grads(inputs, "reference", torch.float64, **kwargs)
    assert_close(outputs_and_grads(inputs, implementation, **kwargs), expected, tolerance)


def check_operators(inputs, implementation):
    """Torch's own checks, of which one is that memory lies as a compiler is told: what it makes relies on it."""
    inputs = [x.detach().requires_grad_() for x in inputs.values()]
    utilities = {"test_utils": ("test_schema", "test_faketensor")}
    for op in (torch.ops.hf_mamba.selective_scan_v2, torch.ops.hf_mamba.selective_scan_with_states_v2):
        torch.library.opcheck(op.default, (*inputs, True, implementation), **utilities)
    y, states = torch.ops.hf_mamba.selective_scan_with_states_v2(*inputs, True, implementation)
    arguments = (torch.ones_like(y), states, [True] * len(inputs), *(x.detach() for x in inputs), True, implementation)
    torch.library.opcheck(torch.ops.hf_mamba.selective_scan_backward_v2.default, arguments, **utilities)


def check_what_is_not_finite(inputs, implementation):
    """Of inf - inf and inf the order of summation decides, so for gradients just: finite or not."""
    got, expected = outputs_and_grads(inputs, implementation), outputs_and_grads(inputs, "reference", torch.float64)
    torch.testing.assert_close(got["y"], expected["y"].float(), rtol=1e-4, atol=1e-4, equal_nan=True)
    for name in expected:
        finite = expected[name].isfinite()
        assert torch.equal(got[name].isfinite(), finite), name
        torch.testing.assert_close(got[name][finite], expected[name][finite].float(), rtol=1e-4, atol=1e-4)
    return got


class Mixer(torch.nn.Module):
    """The smallest module that reads all it scans with off its input, as the model does."""

    def __init__(self, e=6, s=4):
        super().__init__()
        self.sizes = [e, e, s, s]
        self.proj = torch.nn.Linear(e, sum(self.sizes))
        self.A_log, self.D, self.bias = (torch.nn.Parameter(torch.rand(shape)) for shape in ((e, s), (e,), (e,)))

    def forward(self, x):
        delta, z, B, C = (part.transpose(1, 2) for part in self.proj(x).split(self.sizes, dim=-1))
        y = selective_scan(x.transpose(1, 2), delta, -self.A_log.exp(), B, C, self.D, z, self.bias, True)
        return y.transpose(1, 2)
