"""
The recurrence of a Mamba block: Eq. 5 of the HF-Mamba paper with Δ, B and C read off the input ("selective scan",
Gu and Dao, 2023). One interface, `selective_scan`; a reference to check against the equation; the dispatcher. The path
for any device and dtype is in selective_scan_torch.py, the CPU kernel in selective_scan_numba.py, the GPU kernel in
selective_scan_triton.py.

Glossary (logical shapes are those of mamba_ssm's `selective_scan_fn`; memory may be transposed (b, l, e) views):
    b: rows of the batch     u:     (b, e, l)  input, i_t in the paper     A: (e, s)     real diagonal, one per channel
    l: length                delta: (b, e, l)  time step Δ                 B: (b, s, l)  how the input enters the state
    e: channels              z:     (b, e, l)  gate, y * silu(z)           C: (b, s, l)  how the state is read
    s: state size            delta_bias: (e,)  added to Δ                  D: (e,)       skip connection

How another kernel joins: write `forward` and `backward` with the signatures of `torch_forward` and `torch_backward`,
and name it in one place, the table `KERNELS` of scan_kernels.py. Autograd, `torch.compile` and `torch.export` are
taken care of here, once.

What this file does not do: complex A, constant B or C, grouped B or C, an initial or returned last state.
"""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F

from .scan_kernels import KERNELS, KERNELS_SOURCE, is_plain_eager
from .selective_scan_torch import like, state_dtype


_DYNAMO_TELLS_EXPORT = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
_SHAPES = {"u": "bel", "delta": "bel", "A": "es", "B": "bsl", "C": "bsl", "D": "e", "z": "bel", "delta_bias": "e"}


# ---------------------------------------------------------------------------------------------------------------------
# The interface


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, *, scan_implementation="auto"
):
    """
    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t and y_t = (C_t h_t + D u_t) * silu(z_t), channel by channel.

    Args:
        u, delta, z: shape (b, e, l); z is optional. Views of (b, l, e) memory are the fast layout.
        A: shape (e, s), real
        B, C: shape (b, s, l)
        D, delta_bias: shape (e,), optional
        delta_softplus: Δ = softplus(delta + delta_bias) rather than delta + delta_bias
        scan_implementation: one of SCAN_IMPLEMENTATIONS, see `resolve_scan_implementation`

    Returns:
        y, shape (b, e, l), in u's dtype. The state is at least fp32, float64 if any of u, delta, A, B, C is.

    Raises:
        ValueError: a shape, dtype or device that doesn't fit, or an unknown or impossible `scan_implementation`.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    _check_arguments(*tensors)
    name = resolve_scan_implementation(scan_implementation, u.device, state_dtype(u, delta, A, B, C))
    if name == "reference":
        return selective_scan_reference(*tensors, delta_softplus)
    kernel = KERNELS[name]
    if kernel.largest_state is not None and A.shape[1] > kernel.largest_state:
        name, kernel = "torch", KERNELS["torch"]
    if kernel.whole is not None:
        if u.numel() > 0:
            return kernel.whole(*tensors, delta_softplus)
        name, kernel = "torch", KERNELS["torch"]
    # An exported program is for inference, and kept states, one every so many steps, would pin its length.
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    needs_grad = needs_grad and not _is_exporting()
    if is_plain_eager(*tensors):  # a call of an operator costs more than a short scan
        if needs_grad:
            return _Scan.apply(*tensors, delta_softplus, name)
        return kernel.forward(*tensors, delta_softplus, keep_states=False)[0]
    if needs_grad:
        return _training_op(*tensors, delta_softplus, name)[0]
    return _inference_op(*tensors, delta_softplus, name)


def resolve_scan_implementation(scan_implementation, device, dtype=torch.float32):
    """
    Which implementation runs for tensors on `device` whose state has `dtype`. This is all there is to it:

    | scan_implementation | on CUDA | on CPU | elsewhere |
    |---|---|---|---|
    | "auto" | the first that works: mamba_ssm, triton, torch | numba if it works, else torch | torch |
    | "numba" | torch | numba | torch |
    | "triton" | triton | ValueError, but triton with TRITON_INTERPRET=1, a slow one for tests | ValueError |
    | "mamba_ssm" | mamba_ssm | ValueError | ValueError |
    | "torch", "reference" | the same | the same | the same |

    In float64 it is torch where this says numba, triton or mamba_ssm: their states are fp32.

    Raises:
        ValueError: an unknown name, or a kernel that can't run there.
    """
    check_scan_implementation(scan_implementation)
    device_type = torch.device(device).type
    if scan_implementation not in ("auto", "reference"):
        kernel = KERNELS[scan_implementation]
        problem = kernel.why_not(device_type)
        if problem is not None:
            if not kernel.torch_elsewhere:
                raise ValueError(
                    f"scan_implementation is {scan_implementation!r}, but it can't be used on {device} ({problem}); "
                    f"move the model and its inputs to a {kernel.device} device where it works, or choose 'auto'"
                )
            return "torch"
    if scan_implementation == "reference":
        return "reference"
    if dtype == torch.float64:
        return "torch"
    if scan_implementation == "auto":
        return _first_that_works(device_type)
    return scan_implementation


def _first_that_works(device_type):
    for name, kernel in KERNELS.items():
        if kernel.device in (device_type, None) and kernel.why_not(device_type) is None:
            return name
    return "torch"


def check_scan_implementation(scan_implementation):
    """
    What can be checked before it is known where the tensors will be: a model may be made on CPU and moved to CUDA
    later.

    Raises:
        ValueError: an unknown name, or one of a kernel that can't be used in this process.
    """
    choices = scan_implementations()
    if scan_implementation not in choices:
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"scan_implementation is {scan_implementation!r}; choose one of {listed}")
    if scan_implementation in ("auto", "reference"):
        return
    kernel = KERNELS[scan_implementation]
    problem = kernel.why_not(None)
    if problem is not None:
        raise ValueError(
            f"scan_implementation is {scan_implementation!r}, but it can't be used ({problem}); {kernel.install}, or "
            "choose 'auto'"
        )


def scan_implementations():
    """The names that `selective_scan` takes."""
    return ("auto", "reference", *KERNELS)


def _is_exporting():
    """`torch.compiler.is_exporting`, which dynamo before 2.13 takes to be true whenever it compiles."""
    return torch.compiler.is_exporting() and (_DYNAMO_TELLS_EXPORT or not torch.compiler.is_dynamo_compiling())


def _check_arguments(*tensors):
    u, A, device = tensors[0], tensors[2], tensors[0].device
    if u.dim() == 3 and A.dim() == 2:  # the usual case without the words: this runs in every block of every step
        (b, e, l), s = u.shape, A.shape[1]
        shapes = ((b, e, l), (b, e, l), (e, s), (b, s, l), (b, s, l), (e,), (b, e, l), (e,))
        for x, shape in zip(tensors, shapes):
            if x is not None and (x.shape != shape or not x.dtype.is_floating_point or x.device != device):
                break
        else:
            return
    sizes = {}
    for (name, symbols), tensor in zip(_SHAPES.items(), tensors):
        if tensor is None:
            continue
        known = dict(zip(symbols, tensor.shape)) | sizes  # u says what b, e and l are, A what s is
        if tuple(tensor.shape) != tuple(known.get(symbol) for symbol in symbols):
            expected = ", ".join(f"{symbol} = {sizes[symbol]}" if symbol in sizes else symbol for symbol in symbols)
            raise ValueError(f"{name} must have shape ({expected}), got {tuple(tensor.shape)}")
        sizes = known
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be real floating point, got {tensor.dtype}; convert it with .float()")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, but u is on {device}; move them to one device")


# ---------------------------------------------------------------------------------------------------------------------
# The reference


def selective_scan_reference(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
    """
    Eq. 5 step by step, in plain autograd: slow, and meant for checking the others. Arguments as in `selective_scan`.
    """
    dtype = state_dtype(u, delta, A, B, C)
    i, delta, A, B, C = (x.to(dtype) for x in (u, delta, A, B, C))
    if delta_bias is not None:
        delta = delta + delta_bias[:, None].to(dtype)
    if delta_softplus:
        delta = F.softplus(delta)
    h = i.new_zeros(i.shape[0], i.shape[1], A.shape[1])  # (b, e, s)
    outputs = []
    for t in range(i.shape[2]):
        A_bar = torch.exp(delta[:, :, t, None] * A)  # (b, e, s), zero-order hold, Eq. 4
        # Eq. 4 prints zero-order hold for B too; every Mamba implementation takes Euler's Δ·B instead, its limit for
        # small Δ·A, since the difference is absorbed by the learnt B and Δ.
        B_bar = delta[:, :, t, None] * B[:, None, :, t]  # (b, e, s)
        h = A_bar * h + B_bar * i[:, :, t, None]  # Eq. 5, first line
        outputs.append((h * C[:, None, :, t]).sum(-1))  # (b, e), Eq. 5, second line
    o = torch.stack(outputs, dim=2) if outputs else i  # (b, e, l)
    if D is not None:
        o = o + D[:, None].to(dtype) * i
    if z is not None:
        o = o * F.silu(z.to(dtype))
    return o.to(u.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels as operators: one node for torch.compile and torch.export, whatever the length


_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
_INPUTS += "bool delta_softplus, str implementation"


def _source_hash():
    """Of the files that decide what the operators compute."""
    digest = hashlib.sha256()
    for path in (__file__, KERNELS_SOURCE, *(path for kernel in KERNELS.values() for path in kernel.sources)):
        digest.update(Path(path).read_bytes() if Path(path).is_file() else str(path).encode())
    return digest.hexdigest()[:12]


def _register_op(name, schema, function, fake, backward=None, setup_context=None):
    """
    Registers an operator, or returns the one that this very code has registered already. torch would otherwise let a
    second copy of this file (that of another checkpoint, say) silently replace the operator under the first's users. A
    copy whose code differs gets a name of its own; the version is for who reads an exported program.
    """
    source = _source_hash()
    for full_name in (name, f"{name}_{source}"):
        if not hasattr(torch.ops.hf_mamba, full_name):
            op = torch.library.custom_op(f"hf_mamba::{full_name}", function, mutates_args=(), schema=schema)
            op.register_fake(fake)
            if backward is not None:
                op.register_autograd(backward, setup_context=setup_context)
            getattr(torch.ops.hf_mamba, full_name).hf_mamba_source = source
        if getattr(getattr(torch.ops.hf_mamba, full_name), "hf_mamba_source", None) == source:
            return getattr(torch.ops.hf_mamba, full_name).default
    raise RuntimeError(f"hf_mamba::{full_name} was registered by something else")


def _kernel_for(inputs):
    """An exported program may have been moved to another device, or to a machine where its kernel doesn't work."""
    kernel = KERNELS.get(inputs[-1])
    if kernel is None or kernel.forward is None or kernel.why_not(inputs[0].device.type) is not None:
        return KERNELS["torch"]
    return kernel


def _inference(*inputs):
    return _kernel_for(inputs).forward(*inputs[:-1], keep_states=False)[0]


def _inference_fake(u, *_):
    return like(u)


def _training(*inputs):
    return _kernel_for(inputs).forward(*inputs[:-1], keep_states=True)


def _training_fake(u, delta, A, B, C, *others):
    (b, e, l), s = u.shape, A.shape[1]
    kernel = KERNELS.get(others[-1], KERNELS["torch"])
    chunk = kernel.chunk or KERNELS["torch"].chunk
    states = u.new_empty(b, (l + chunk - 1) // chunk, s, e, dtype=state_dtype(u, delta, A, B, C))
    return like(u), states


def _gradients(grad_y, states, needs, *inputs):
    grads = _kernel_for(inputs).backward(grad_y, *inputs[:-1], states, needs)
    return [grad for grad in grads if grad is not None]


def _gradients_fake(grad_y, states, needs, *inputs):
    return [like(x) for x, needed in zip(inputs, needs) if needed]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus, ctx.implementation = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or the kept states would get a gradient of zeros, as large as they are
    ctx.save_for_backward(*tensors, output[1])


def _training_backward(ctx, grad_y, _):
    *tensors, states = ctx.saved_tensors
    needs = [bool(needed) and grad_y is not None for needed in ctx.needs_input_grad[: len(tensors)]]
    grads = iter(())
    if any(needs):
        grads = iter(_gradients_op(grad_y, states, needs, *tensors, ctx.delta_softplus, ctx.implementation))
    return (*(next(grads) if needed else None for needed in needs), None, None)


class _Scan(torch.autograd.Function):
    """The same as the operator that keeps states, for eager mode."""

    @staticmethod
    def forward(ctx, *inputs):
        y, states = _training(*inputs)
        *tensors, ctx.delta_softplus, ctx.implementation = inputs
        ctx.save_for_backward(*tensors, states)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y):
        *tensors, states = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[: len(tensors)])
        backward = _kernel_for((*tensors, ctx.implementation)).backward
        return (*backward(grad_y, *tensors, ctx.delta_softplus, states, needs), None, None)


_inference_op = _register_op("selective_scan_v2", f"({_INPUTS}) -> Tensor", _inference, _inference_fake)
_gradients_schema = f"(Tensor grad_y, Tensor states, bool[] needs, {_INPUTS}) -> Tensor[]"
_gradients_op = _register_op("selective_scan_backward_v2", _gradients_schema, _gradients, _gradients_fake)
_training_ops = (_training, _training_fake, _training_backward, _setup_context)
_training_op = _register_op("selective_scan_with_states_v2", f"({_INPUTS}) -> (Tensor, Tensor)", *_training_ops)
