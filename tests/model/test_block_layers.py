"""The layers around the scan: the causal convolution and the projection to Δ against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from hf_mamba.block_layers import TimeStepProjection, _NarrowLinear, causal_conv_silu


# --- the causal convolution


def expected(x, weight, bias):
    k, l = weight.shape[-1], x.shape[1]
    y = F.conv1d(x.transpose(1, 2), weight, bias, padding=k - 1, groups=x.shape[2])[..., :l]
    return F.silu(y).transpose(1, 2)


@pytest.mark.parametrize(("l", "k"), [(1, 4), (2, 4), (3, 4), (9, 4), (9, 1), (9, 2), (33, 7)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_pytorchs_convolution_and_its_gradients(l, k, has_bias):
    torch.manual_seed(0)
    halves = torch.randn(3, l, 10, dtype=torch.float64)  # the model passes one half of a projection: not contiguous
    inputs = [halves[..., :5], torch.randn(5, 1, k, dtype=torch.float64), torch.randn(5, dtype=torch.float64)]
    inputs = [t.requires_grad_() for t in inputs[: 2 + has_bias]]
    x, weight, bias = [*inputs, None][:3]
    ours, theirs = causal_conv_silu(x, weight, bias), expected(x, weight, bias)
    torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(causal_conv_silu(x, weight, bias), theirs)
    upstream = torch.randn_like(ours)
    for mine, its in zip(torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream)):
        torch.testing.assert_close(mine, its)


def test_is_causal_and_depthwise():
    torch.manual_seed(0)
    x = torch.randn(1, 9, 4, requires_grad=True)
    y = causal_conv_silu(x, torch.randn(4, 1, 3), torch.randn(4))
    (gradient,) = torch.autograd.grad(y[0, 5, 2], x)
    assert gradient[0].nonzero().tolist() == [[3, 2], [4, 2], [5, 2]]


def test_length_zero():
    assert causal_conv_silu(torch.zeros(2, 0, 3), torch.zeros(3, 1, 4), torch.zeros(3)).shape == (2, 0, 3)


# --- the projection to Δ


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
