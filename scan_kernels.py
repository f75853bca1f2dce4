"""
The kernels of the selective scan: `KERNELS`, the one table in which each has its line, and whether it works in this
process. Where a kernel is missing or broken, PyTorch does its work: the results are the same, only later.

What the table holds of a kernel is in `Kernel`. Beside it stands what the layers around the scan need to know: whether
a call may use the CPU kernels at all.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from .selective_scan_torch import CHUNK as TORCH_CHUNK
from .selective_scan_torch import TORCH_SOURCE, torch_backward, torch_forward


try:
    from .block_layers_numba import BLOCK_SOURCE, compile_block
    from .selective_scan_numba import CHUNK as NUMBA_CHUNK
    from .selective_scan_numba import SCAN_SOURCE, compile_scan, numba_backward, numba_forward
    from .vectors_numba import VECTORS_SOURCE

    NUMBA_SOURCES, _no_numba = (VECTORS_SOURCE, SCAN_SOURCE, BLOCK_SOURCE), None
except Exception as error:
    NUMBA_CHUNK = numba_backward = numba_forward = None
    NUMBA_SOURCES, _no_numba = (), str(error)

try:
    from .selective_scan_triton import CHUNK as TRITON_CHUNK
    from .selective_scan_triton import INTERPRETED, LARGEST_STATE, TRITON_SOURCE, triton_backward, triton_forward

    TRITON_SOURCES, _no_triton = (TRITON_SOURCE,), None
except Exception as error:
    TRITON_CHUNK = triton_backward = triton_forward = LARGEST_STATE = None
    TRITON_SOURCES, INTERPRETED, _no_triton = (), False, str(error)

try:  # a broken install counts as none, and so does one without its CUDA extension, which would fail at the first call
    import selective_scan_cuda  # noqa: F401
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as mamba_ssm_selective_scan

    _no_mamba_ssm = None
except Exception as error:
    mamba_ssm_selective_scan, _no_mamba_ssm = None, f"{type(error).__name__}: {error}"

KERNELS_SOURCE = __file__
logger = logging.getLogger(__name__)


def _in_one_line(error):
    return (f"{type(error).__name__}: {error}".splitlines() or [""])[0]


# ---------------------------------------------------------------------------------------------------------------------
# Numba


def why_not_numba(device_type="cpu"):
    """None if the CPU kernels work, which is found out by compiling or loading them; else what is wrong, in words."""
    if device_type not in ("cpu", None):
        return f"its kernels are for the CPU, not for {device_type}"
    if torch.compiler.is_compiling():  # which can't look into that; an operator will, when it runs
        return _no_numba
    return _numba_problem()


@cache
def _numba_problem():
    """Found out and logged once."""
    problem = _no_numba
    if problem is None:
        try:
            compile_scan()
            compile_block()
        except Exception as error:
            problem = _in_one_line(error)
    if problem is not None:
        logger.warning(
            "This CPU runs the model in plain PyTorch, several times slower than with Numba, which can't be used "
            f"({problem}). To fix it: pip install numba"
        )
    return problem


# ---------------------------------------------------------------------------------------------------------------------
# Triton


@torch.compiler.assume_constant_result
def why_not_triton(device_type):
    """None if the GPU kernel works on such a device, found out by a first call; else what is wrong, in words."""
    if _no_triton is not None or device_type is None:
        return _no_triton
    if INTERPRETED:
        return None if device_type == "cpu" else "TRITON_INTERPRET=1 is for tensors on CPU"
    if device_type != "cuda":
        return f"its kernels are for CUDA, not for {device_type}"
    if torch.compiler.is_compiling():  # an export, whose tensors are fake; the operator looks when it runs
        return None
    return _triton_problem()


@torch.no_grad()
def small_scan(device):
    """Triton's kernels on one step of one channel, forward and backward: raises what they raise."""
    u, A = torch.ones(1, 1, 1, device=device), torch.zeros(1, 1, device=device)
    y, states = triton_forward(u, u, A, u, u, None, None, None, False, keep_states=True)
    triton_backward(y, u, u, A, u, u, None, None, None, False, states, [True] * 5 + [False] * 3)


@cache
def _triton_problem():
    """Found out once, by a small scan, and logged where it fails, since torch.compile can't trace a logger."""
    try:
        small_scan("cuda")
        torch.cuda.synchronize()
    except Exception as error:  # a machine without a C compiler, for one
        problem = _in_one_line(error)
        logger.warning(
            f"The scan's GPU kernel can't be used ({problem}): PyTorch does its work, several times slower."
        )
        return problem
    return None


# ---------------------------------------------------------------------------------------------------------------------
# mamba_ssm


def why_not_mamba_ssm(device_type):
    """None if mamba_ssm's kernel can be called on such a device, else what is wrong, in words."""
    if _no_mamba_ssm is not None or device_type in ("cuda", None):
        return _no_mamba_ssm
    return f"its kernels are for CUDA, not for {device_type}"


def scan_with_mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """mamba_ssm's CUDA kernel: wants one dtype for what has a length, fp32 for the rest, the last axis contiguous."""
    delta, B, C, z = (None if x is None else x.to(u.dtype).contiguous() for x in (delta, B, C, z))
    A, D, delta_bias = (None if x is None else x.float().contiguous() for x in (A, D, delta_bias))
    return mamba_ssm_selective_scan(u.contiguous(), delta, A, B, C, D, z, delta_bias, delta_softplus)


# ---------------------------------------------------------------------------------------------------------------------
# The table


@dataclass(frozen=True)
class Kernel:
    """
    One way to compute the selective scan. Autograd, torch.compile and torch.export are taken care of by
    selective_scan.py, for kernels that have `forward` and `backward`.

    forward, backward: functions with the signatures of `torch_forward` and `torch_backward` (selective_scan_torch.py)
    chunk: steps between two of the states that `forward` keeps for `backward`
    sources: paths of the files that decide what it computes
    why_not: takes a type of device and returns None if the kernel works there, else what is wrong, in words; given
        None, whether it can be used on any device
    largest_state: the largest state size s that it takes, None for any; PyTorch scans with larger ones
    device: the type of device on which "auto" may take it, None for any
    torch_elsewhere: whether PyTorch quietly does its work on another device; if not, naming it there is an error
    install: how to get it, in words
    whole: instead of `forward` and `backward`, a function of the eight tensors and `delta_softplus` that returns y and
        has its own autograd
    """

    forward: Callable | None
    backward: Callable | None
    chunk: int | None
    sources: tuple[str, ...]
    why_not: Callable[[str | None], str | None]
    largest_state: int | None = None
    device: str | None = None
    torch_elsewhere: bool = False
    install: str = ""
    whole: Callable | None = None


# In the order in which "auto" prefers them. A new kernel is named here and nowhere else.
KERNELS = {
    "mamba_ssm": Kernel(
        *(None, None, None, ()),
        why_not=why_not_mamba_ssm,
        largest_state=256,
        device="cuda",
        install="install it with `pip install --no-build-isolation mamba-ssm` on a CUDA machine",
        whole=scan_with_mamba_ssm,
    ),
    "triton": Kernel(
        *(triton_forward, triton_backward, TRITON_CHUNK, TRITON_SOURCES),
        why_not=why_not_triton,
        largest_state=LARGEST_STATE,
        device="cuda",
        install="install it with `pip install triton` on a machine with a GPU",
    ),
    "numba": Kernel(
        *(numba_forward, numba_backward, NUMBA_CHUNK, NUMBA_SOURCES),
        why_not=why_not_numba,
        device="cpu",
        torch_elsewhere=True,  # a model that was made on a CPU may move
        install="`pip install numba`",
    ),
    "torch": Kernel(
        *(torch_forward, torch_backward, TORCH_CHUNK, (TORCH_SOURCE,)),
        why_not=lambda device_type: None,
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Calls


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
