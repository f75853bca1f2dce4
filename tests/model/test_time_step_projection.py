"""The projection to Δ: its gradients, written out, are those of a plain linear layer without its bias."""

import pytest
import torch
from torch.nn import functional as F

from hf_mamba.time_step_projection import TimeStepProjection, _NarrowLinear


@pytest.mark.parametrize("shape", [(3, 7, 4), (1, 1, 4), (2, 0, 4), (5, 4)])
@pytest.mark.parametrize("frozen", [(), ("weight",), ("dt",)])
def test_values_and_gradients_are_a_linear_layers(shape, frozen):
    torch.manual_seed(0)
    layer = TimeStepProjection(4, 9, dtype=torch.float64)
    layer.weight.requires_grad_("weight" not in frozen)
    dt = torch.randn(*shape[:-1], 11, dtype=torch.float64)[..., 2:6]  # a slice, as x_proj's output is cut
    results = []
    for function in (layer, lambda x: F.linear(x, layer.weight)):
        x = dt.clone().requires_grad_("dt" not in frozen)
        y = function(x)
        wanted = [t for t in (x, layer.weight) if t.requires_grad]
        results.append([y, *torch.autograd.grad(y, wanted, torch.cos(y.detach()))])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs)


def test_gradients_of_gradients():
    x, weight = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 2), (5, 2)))
    assert torch.autograd.gradgradcheck(_NarrowLinear.apply, (x, weight))


def test_autocast_is_a_linear_layers():
    layer, dt = TimeStepProjection(4, 9), torch.randn(2, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(dt)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32 and layer.bias.grad is None
