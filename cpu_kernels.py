"""
Which CPU kernels there are in this process, and whether a call may use them. Without Numba, or with a broken one,
everything runs in plain PyTorch: the answers are the same, only later.
"""

import logging
from functools import cache

import torch


try:
    from .block_numba import BLOCK_SOURCE, compile_block
    from .selective_scan_numba import SCAN_SOURCE, compile_scan
    from .vectors_numba import VECTORS_SOURCE

    KERNEL_SOURCES, _import_problem = (VECTORS_SOURCE, SCAN_SOURCE, BLOCK_SOURCE), None
except Exception as error:
    KERNEL_SOURCES, _import_problem = (), str(error)

logger = logging.getLogger(__name__)


def why_not_numba():
    """None if the CPU kernels work, which is found out by compiling or loading them; else what is wrong, in words."""
    if torch.compiler.is_compiling():  # which can't look into that; an operator will, when it runs
        return _import_problem
    return _problem()


@cache
def _problem():
    if _import_problem is not None:
        return _import_problem
    try:
        compile_scan()
        compile_block()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


@cache
def say_that_numba_is_missing():
    """One line in the log of this process."""
    logger.warning(
        "This CPU runs the model in plain PyTorch, several times slower than with Numba, which can't be used "
        f"({why_not_numba()}). To fix it: pip install numba"
    )


def is_plain_eager(*tensors):
    """Whether a kernel may read the tensors' memory here and now: nothing is compiled, exported or transformed."""
    if torch.compiler.is_compiling():
        return False
    for x in tensors:
        if x is not None and type(x) is not torch.Tensor and type(x) is not torch.nn.Parameter:
            return False
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.jit.is_tracing()
    )


def runs_on_cpu_kernels(*tensors):
    """Whether Numba's kernels of the block take these tensors: plain fp32 on a CPU, and Numba works."""
    for x in tensors:
        if x is not None and (x.dtype != torch.float32 or x.device.type != "cpu"):
            return False
    return is_plain_eager(*tensors) and why_not_numba() is None
