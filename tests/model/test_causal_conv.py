"""The causal depthwise convolution against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from hf_mamba.causal_conv import causal_conv_silu


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
