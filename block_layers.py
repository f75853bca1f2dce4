"""
The layers around the scan in a block: the causal convolution (Activation(Conv(x)) of the paper's Eq. 7), RMSNorm, the
projection from the low-rank time step to Δ of every channel, and the parameters that are never decayed.

Nothing here depends on text or images. Symbols: b batch, l length, e channels, k width of the convolution, r rank of
the time step, s state size. The layout is (b, l, e) as the projections have it, so that nothing is transposed on the
way; `F.conv1d` would want (b, e, l).
"""

import torch
import torch.nn.functional as F
from torch import nn

from .scan_kernels import is_plain_eager, runs_on_cpu_kernels


try:  # absent where Numba is
    from .block_layers_numba import conv_silu, conv_silu_backward, rms_norm, rms_norm_backward
except Exception:
    conv_silu = conv_silu_backward = rms_norm = rms_norm_backward = None

try:  # a broken install counts as none, and so does one without its CUDA extension
    import causal_conv1d_cuda  # noqa: F401
    from causal_conv1d import causal_conv1d_fn
except Exception:
    causal_conv1d_fn = None


# ---------------------------------------------------------------------------------------------------------------------
# The causal convolution


def causal_conv_silu(x, weight, bias=None):
    """
    y[:, t] = SiLU(bias + sum over j of weight[:, j] * x[:, t - (k - 1) + j]), with x zero before the start.

    Args:
        x: shape (b, l, e)
        weight: shape (e, 1, k), as `nn.Conv1d(e, e, k, groups=e)` holds it
        bias: shape (e,) or None

    Returns:
        shape (b, l, e)
    """
    k = weight.shape[-1]
    if causal_conv1d_fn is not None and x.is_cuda and 2 <= k <= 4:  # the widths that the kernel has
        return causal_conv1d_fn(x.transpose(1, 2), weight[:, 0], bias, activation="silu").transpose(1, 2)
    dtype = x.dtype if x.is_cuda else None  # under autocast, where half the memory is half the time
    if torch.is_autocast_enabled(x.device.type):
        x, weight = x.float(), weight.float()
        bias = bias if bias is None else bias.float()
    if torch.compiler.is_compiling():
        return F.silu(_convolve_in_one_expression(x, weight[:, 0], bias)).to(dtype or x.dtype)
    needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if runs_on_cpu_kernels(x, weight, bias):
        return (_FusedConvSilu.apply if needs_grad else conv_silu)(x, weight[:, 0], bias)
    convolve = _CausalConv.apply if needs_grad else _convolve
    return F.silu(convolve(x, weight[:, 0], bias)).to(dtype or x.dtype)


def _convolve(x, weight, bias):
    """x (b, l, e), weight (e, k), bias (e,) or None -> (b, l, e): one shifted multiply-add for each tap."""
    k, l = weight.shape[-1], x.shape[1]
    y = x * weight[:, -1] if bias is None else torch.addcmul(bias, x, weight[:, -1])
    for shift in range(1, min(k, l)):
        y[:, shift:].addcmul_(x[:, : l - shift], weight[:, k - 1 - shift])
    return y


def _convolve_in_one_expression(x, weight, bias):
    """`_convolve` without writing in place: a compiler makes one kernel of it, and one of its gradient."""
    k, l = weight.shape[-1], x.shape[1]
    padded = F.pad(x, (0, 0, k - 1, 0))
    y = sum(padded[:, j : j + l] * weight[:, j] for j in range(k))
    return y if bias is None else y + bias


class _CausalConv(torch.autograd.Function):
    """`_convolve` with its gradient written out: autograd's own would fill a full-size gradient for every shift."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        k, l = weight.shape[-1], x.shape[1]
        grad_x = grad * weight[:, -1]
        taps = [torch.zeros_like(weight[:, 0]) for _ in range(k)]
        taps[-1] = (grad * x).sum((0, 1))
        for shift in range(1, min(k, l)):
            later, earlier = grad[:, shift:], x[:, : l - shift]
            grad_x[:, : l - shift].addcmul_(later, weight[:, k - 1 - shift])
            taps[k - 1 - shift] = (later * earlier).sum((0, 1))
        grad_bias = grad.sum((0, 1)) if ctx.has_bias else None
        return grad_x, torch.stack(taps, dim=-1), grad_bias


class _FusedConvSilu(torch.autograd.Function):
    """Convolution and SiLU in one pass over memory, and one for all gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight, bias)
        return conv_silu(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return conv_silu_backward(grad, *ctx.saved_tensors)


# ---------------------------------------------------------------------------------------------------------------------
# RMSNorm


class RMSNorm(nn.RMSNorm):
    """x / RMS(x) * weight over the last axis; parameters and answers are those of `nn.RMSNorm`."""

    def forward(self, x):
        """x (..., d) -> (..., d)"""
        if not runs_on_cpu_kernels(x, self.weight) or x.numel() == 0:
            return super().forward(x)
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return _FusedRMSNorm.apply(x, self.weight, self.eps)
        return rms_norm(x, self.weight, self.eps)[0]


class _FusedRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, eps):
        y, scale = rms_norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        return (*rms_norm_backward(grad_y, *ctx.saved_tensors), None)


# ---------------------------------------------------------------------------------------------------------------------
# Parameters of the scan


class UndecayedParameters(nn.Module):
    """A (as log(-A)) and the skip D of Eq. 3, one row per channel."""

    def __init__(self, e, s):
        super().__init__()
        self.A_log = nn.Parameter(torch.empty(e, s))
        self.D = nn.Parameter(torch.empty(e))


class TimeStepProjection(nn.Linear):
    """dt (b, l, r) -> Δ before softplus (b, l, e), without the bias, which the scan adds in fp32."""

    def forward(self, dt):
        """dt (b, l, r) -> (b, l, e)"""
        on_cpu = dt.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        if on_cpu and torch.is_grad_enabled() and is_plain_eager(dt, self.weight):
            return _NarrowLinear.apply(dt, self.weight)
        return F.linear(dt, self.weight)


class _NarrowLinear(torch.autograd.Function):
    """
    `F.linear` with the products of its gradient in an order that suits a narrow x: the CPU's library is three to seven
    times slower at autograd's own, with r = 4.
    """

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        columns = weight.t().contiguous().t()  # the same (e, r) numbers, column by column
        grad_x = grad @ columns if ctx.needs_input_grad[0] else None
        grad_weight = (x.flatten(0, -2).t() @ grad.flatten(0, -2)).t() if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight
