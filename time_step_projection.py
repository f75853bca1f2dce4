"""
From the rank-r time step to Δ of every channel, and back at a practical speed on a CPU.

Knows nothing of text or images. Symbols: b batch, l length, r rank, e channels.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .cpu_kernels import is_plain_eager


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
