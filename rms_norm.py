"""
RMSNorm: `nn.RMSNorm`, with its fp32 form on a CPU in one pass over memory, forward and backward.

Knows nothing of text or images.
"""

import torch
from torch import nn

from .cpu_kernels import runs_on_cpu_kernels


try:  # absent where Numba is
    from .block_numba import rms_norm, rms_norm_backward
except Exception:
    rms_norm = rms_norm_backward = None


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
