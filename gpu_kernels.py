"""
Whether the scan's GPU kernel can be used in this process. Where Triton is missing or doesn't work, as on a machine
without a C compiler, the scan runs in plain PyTorch: the answers are the same, only later.
"""

import logging
from functools import cache

import torch


try:
    from .selective_scan_triton import CHUNK as TRITON_CHUNK
    from .selective_scan_triton import INTERPRETED, LARGEST_STATE, TRITON_SOURCE, triton_backward, triton_forward

    TRITON_SOURCES, _import_problem = (__file__, TRITON_SOURCE), None
except Exception as error:
    TRITON_CHUNK = triton_backward = triton_forward = None
    TRITON_SOURCES, LARGEST_STATE, INTERPRETED, _import_problem = (), 0, False, str(error)

logger = logging.getLogger(__name__)


@torch.compiler.assume_constant_result
def why_not_triton(device_type):
    """None if the kernel works on such a device, which is found out by a first call; else what is wrong, in words."""
    if _import_problem is not None:
        return _import_problem
    if INTERPRETED:
        return None if device_type == "cpu" else "TRITON_INTERPRET=1 is for tensors on CPU"
    if device_type != "cuda":
        return f"its kernels are for CUDA, not for {device_type}"
    if torch.compiler.is_compiling():  # an export, whose tensors are fake; the operator looks when it runs
        return None
    return _problem()


@torch.no_grad()
def small_scan(device):
    """There and back."""
    u, A = torch.ones(1, 1, 1, device=device), torch.zeros(1, 1, device=device)
    y, states = triton_forward(u, u, A, u, u, None, None, None, False, keep_states=True)
    triton_backward(y, u, u, A, u, u, None, None, None, False, states, [True] * 5 + [False] * 3)


@cache
def _problem():
    """Whether a small scan fails; says so once where it fails, since torch.compile can't trace a logger."""
    try:
        small_scan("cuda")
        torch.cuda.synchronize()
    except Exception as error:
        problem = (f"{type(error).__name__}: {error}".splitlines() or [""])[0]
        logger.warning(
            f"The scan's GPU kernel can't be used ({problem}): PyTorch does its work, several times slower."
        )
        return problem
    return None
