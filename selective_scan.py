"""
The recurrence of a Mamba block: Eq. 5 of the HF-Mamba paper with Δ, B and C read off the input ("selective scan",
Gu and Dao, 2023). One interface, `selective_scan`; a reference to check against the equation; a fast torch path.

Glossary (logical shapes are those of mamba_ssm's `selective_scan_fn`; memory may be transposed (b, l, e) views):
    b: rows of the batch     u:     (b, e, l)  input, i_t in the paper     A: (e, s)     real diagonal, one per channel
    l: length                delta: (b, e, l)  time step Δ                 B: (b, s, l)  how the input enters the state
    e: channels              z:     (b, e, l)  gate, y * silu(z)           C: (b, s, l)  how the state is read
    s: state size            delta_bias: (e,)  added to Δ                  D: (e,)       skip connection

How another kernel joins: write `forward` and `backward` with the signatures of `torch_forward` and `torch_backward`
and add them to `KERNELS`; autograd, `torch.compile` and `torch.export` are taken care of here, once.

What this file does not do: complex A, constant B or C, grouped B or C, an initial or returned last state.
"""

import math
from collections import namedtuple
from itertools import repeat
from types import SimpleNamespace

import torch
import torch.nn.functional as F


try:  # an optional CUDA kernel; a broken install counts as none
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as mamba_ssm_selective_scan
except Exception:
    mamba_ssm_selective_scan = None


SCAN_IMPLEMENTATIONS = ("auto", "reference", "torch", "mamba_ssm")
_SHAPES = {"u": "bel", "delta": "bel", "A": "es", "B": "bsl", "C": "bsl", "D": "e", "z": "bel", "delta_bias": "e"}
CHUNK = 16  # steps between two states kept for the backward pass
LOG2_E = math.log2(math.e)


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
        scan_implementation: "auto", "reference", "torch" or "mamba_ssm", see `resolve_scan_implementation`

    Returns:
        y, shape (b, e, l), in u's dtype. The state is at least fp32, float64 if any of u, delta, A, B, C is.

    Raises:
        ValueError: a shape, dtype or device that doesn't fit, or an unknown or impossible `scan_implementation`.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    _check_arguments(*tensors)
    implementation = resolve_scan_implementation(scan_implementation, u.device)
    if implementation == "reference":
        return selective_scan_reference(*tensors, delta_softplus)
    if implementation == "mamba_ssm":
        if u.dtype != torch.float64 and u.numel() > 0 and A.shape[1] <= 256:  # what its kernel can do
            return _scan_with_mamba_ssm(*tensors, delta_softplus)
        implementation = "torch"
    # An exported program is for inference, and kept states of size ceil(l / CHUNK) would pin its length.
    needs_grad = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if needs_grad and not torch.compiler.is_exporting():
        return _training_op(*tensors, delta_softplus, implementation)[0]
    return _inference_op(*tensors, delta_softplus, implementation)


def resolve_scan_implementation(scan_implementation, device):
    """
    Which implementation runs for tensors on `device`: "auto" is mamba_ssm's kernel if it is installed and the tensors
    are on CUDA, else "torch".

    Raises:
        ValueError: an unknown name, or "mamba_ssm" where it can't run.
    """
    if scan_implementation not in SCAN_IMPLEMENTATIONS:
        choices = ", ".join(map(repr, SCAN_IMPLEMENTATIONS))
        raise ValueError(f"scan_implementation is {scan_implementation!r}; choose one of {choices}")
    on_cuda = torch.device(device).type == "cuda"
    if scan_implementation == "auto":
        return "mamba_ssm" if on_cuda and mamba_ssm_selective_scan is not None else "torch"
    if scan_implementation == "mamba_ssm" and mamba_ssm_selective_scan is None:
        raise ValueError(
            "scan_implementation is 'mamba_ssm', but mamba_ssm can't be imported; install it with "
            "`pip install --no-build-isolation mamba-ssm` on a CUDA machine, or choose 'auto'"
        )
    if scan_implementation == "mamba_ssm" and not on_cuda:
        raise ValueError(
            f"scan_implementation is 'mamba_ssm', which runs on CUDA only, but the tensors are on {device}; move the "
            "model and its inputs to CUDA, or choose 'auto'"
        )
    return scan_implementation


def _scan_with_mamba_ssm(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """mamba_ssm's CUDA kernel: wants one dtype for what has a length, fp32 for the rest, the last axis contiguous."""
    delta, B, C, z = (None if x is None else x.to(u.dtype).contiguous() for x in (delta, B, C, z))
    A, D, delta_bias = (None if x is None else x.float().contiguous() for x in (A, D, delta_bias))
    return mamba_ssm_selective_scan(u.contiguous(), delta, A, B, C, D, z, delta_bias, delta_softplus)


def _check_arguments(*tensors):
    device = tensors[0].device
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
    dtype = _state_dtype(u, delta, A, B, C)
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
    o = torch.stack(outputs, dim=2) if outputs else torch.zeros_like(i)  # (b, e, l)
    if D is not None:
        o = o + D[:, None].to(dtype) * i
    if z is not None:
        o = o * F.silu(z.to(dtype))
    return o.to(u.dtype)


def _state_dtype(*tensors):
    """At least fp32, whatever comes in: rounding a bf16 state at every step adds up."""
    dtype = torch.float32
    for x in tensors:
        dtype = torch.promote_types(dtype, x.dtype)
    return dtype


# ---------------------------------------------------------------------------------------------------------------------
# The torch path: sequential over time, in place, everything else in bulk over a chunk of time and a slab of the batch
# that fit the cache. Work tensors are (t, b, s, e): a step is one contiguous block, the innermost loop runs over
# channels. Nearly all are allocated once a call, for fresh memory costs more than the arithmetic done in it.
# Reductions are multiply-and-sum: torch.bmm with a vector is no faster, and may round to TF32 or bf16 where the user
# allows that for matrices.


_PerInput = namedtuple("_PerInput", _SHAPES)


def torch_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):
    """
    Args: as in `selective_scan`; keep_states: whether a backward pass will follow.

    Returns:
        y (b, e, l), a view of (b, l, e) memory, and the states before steps 0, CHUNK, 2 * CHUNK, ..., shape
        (b, ceil(l / CHUNK), s, e), or None.
    """
    (b, e, l), s = u.shape, A.shape[1]
    inputs, A2, dtype = _prepare(u, delta, A, B, C, D, z, delta_bias)
    y = _like(u)
    states = u.new_empty(b, -(-l // CHUNK), s, e, dtype=dtype) if keep_states else None
    workspace = _Workspace(u, s, dtype, backward=False)
    for rows in workspace.slabs:
        for i, (chunk, y_t) in enumerate(zip(_chunks(inputs, rows), _channel_chunks(y, rows))):
            work = workspace.views(rows, len(y_t))
            if i == 0:
                work.h_steps[0].zero_()
            if keep_states:
                states[rows, i] = work.h_steps[0]
            x, _, dt = _run_chunk(chunk, work, A2, delta_softplus)
            torch.mul(work.h, chunk.C.to(dtype), out=work.decay)
            o = torch.sum(work.decay, 2, keepdim=True, out=work.o)  # (t, b, 1, e)
            if D is not None:
                o.addcmul_(x, chunk.D)
            if z is not None:
                o.mul_(torch.ops.aten.silu.out(_ready(chunk.z, dtype), out=work.gate))
            y_t.copy_(o)
            work.h_steps[0].copy_(work.h_steps[-1])
    return y, states


def torch_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, states, needs):
    """
    Args: grad_y (b, e, l); states as `torch_forward` kept them; needs: eight booleans, which of u, delta, A, B, C, D,
        z and delta_bias want a gradient; the rest as in `selective_scan`.

    Returns:
        list of the eight gradients, each in the shape and dtype of its tensor, None where not needed.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    inputs, A2, dtype = _prepare(*tensors)
    grads = _PerInput(*(_empty_grad(x, dtype) if needed else None for x, needed in zip(tensors, needs)))
    workspace = _Workspace(u, A.shape[1], dtype, backward=True)
    for rows in workspace.slabs:
        chunks = list(zip(_channel_chunks(grad_y, rows), _chunks(inputs, rows), _chunks(grads, rows)))
        workspace.carry.zero_()
        for i in range(len(chunks) - 1, -1, -1):
            work = workspace.views(rows, len(chunks[i][0]))
            work.h_steps[0].copy_(states[rows, i])
            _backward_chunk(*chunks[i], work, A2, delta_softplus)
    return [None if grad is None else grad.to(x.dtype) for grad, x in zip(grads, tensors)]


def _backward_chunk(grad_y, chunk, grads, work, A2, delta_softplus):
    """Fills or adds to `grads`; work.h_steps[0] is the state before, work.carry brings dL/dh from the chunk after."""
    dtype, h, decay, g = work.h.dtype, work.h, work.decay, work.g  # (t, b, s, e)
    x, raw, dt = _run_chunk(chunk, work, A2, delta_softplus)  # (t, b, 1, e)
    B, C, grad_o = chunk.B.to(dtype), chunk.C.to(dtype), _ready(grad_y, dtype)

    def multiply_and_sum(a, b, dim, out=None):
        return torch.sum(torch.mul(a, b, out=work.scratch), dim, keepdim=True, out=out)

    if chunk.z is not None:
        z = _ready(chunk.z, dtype)
        if grads.z is not None:
            o = multiply_and_sum(h, C, 2, out=work.o)
            o = o if chunk.D is None else o.addcmul_(x, chunk.D)
            grads.z.copy_(torch.ops.aten.silu_backward.grad_input(o.mul_(grad_o), z, grad_input=work.gate))
        grad_o = torch.ops.aten.silu.out(z, out=work.gate).mul_(grad_o)
    if grads.D is not None:
        grads.D.add_(torch.mul(grad_o, x, out=work.o).sum((0, 1, 2)))
    if grads.C is not None:
        grads.C.copy_(multiply_and_sum(h, grad_o, 3))
    # g_t = dL/dh_t = C_t dL/do_t + Ā_{t+1} g_{t+1}
    torch.mul(C, grad_o, out=g)
    work.g_steps[-1].add_(work.carry)
    for t in range(len(work.g_steps) - 2, -1, -1):
        work.g_steps[t].addcmul_(work.decay_steps[t + 1], work.g_steps[t + 1])
    torch.mul(work.decay_steps[0], work.g_steps[0], out=work.carry)
    if grads.B is not None:
        grads.B.copy_(multiply_and_sum(g, work.dtx, 3))
    grad_dtx = multiply_and_sum(g, B, 2, out=work.grad_dtx)
    if grads.u is not None:
        grad_x = torch.mul(grad_dtx, dt, out=work.o)
        grads.u.copy_(grad_x if chunk.D is None else grad_x.addcmul_(grad_o, chunk.D))
    g.mul_(work.h_before).mul_(decay)  # dL/d(Δ_t A)
    if grads.delta is not None or grads.delta_bias is not None:
        grad_dt = multiply_and_sum(g, chunk.A, 2, out=work.o).addcmul_(grad_dtx, x)
        if delta_softplus:
            grad_dt = torch.ops.aten.softplus_backward.grad_input(grad_dt, raw, 1, 20, grad_input=grad_dtx)
        if grads.delta is not None:
            grads.delta.copy_(grad_dt)
        if grads.delta_bias is not None:
            grads.delta_bias.add_(grad_dt.sum((0, 1, 2)))
    if grads.A is not None:
        grads.A.add_(g.mul_(dt).sum((0, 1)).t())


def _run_chunk(chunk, work, A2, delta_softplus):
    """
    Eq. 5's first line over one chunk: from work.h_steps[0], the state before it, fills work.h, work.decay (that is Ā)
    and work.dtx (Δ·u). A2 is A times log2(e), shape (s, e), because torch's exp2 is twice as fast as its exp.

    Returns:
        x (that is u), delta before softplus, and Δ, shape (t, b, 1, e) each
    """
    dtype = work.h.dtype
    x, raw = _ready(chunk.u, dtype), _ready(chunk.delta, dtype)
    if chunk.delta_bias is not None:
        raw = torch.add(raw, chunk.delta_bias, out=work.raw)
    dt = torch.ops.aten.softplus.out(raw, out=work.dt) if delta_softplus else raw
    torch.exp2(torch.mul(dt, A2, out=work.decay), out=work.decay)
    torch.mul(torch.mul(dt, x, out=work.dtx), chunk.B.to(dtype), out=work.h)
    for before, decay, h in zip(work.h_steps, work.decay_steps, work.h_steps[1:]):
        h.addcmul_(decay, before)
    return x, raw, dt


def _prepare(u, delta, A, B, C, D, z, delta_bias):
    """The inputs, A as (s, e), and what has no length in the state's dtype; A times log2(e); that dtype."""
    dtype = _state_dtype(u, delta, A, B, C)
    A = A.to(dtype).t().contiguous()
    D, delta_bias = (None if x is None else x.to(dtype) for x in (D, delta_bias))
    return _PerInput(u, delta, A, B, C, D, z, delta_bias), A * LOG2_E, dtype


class _Workspace:
    """The slabs of a call, and buffers for one chunk of one slab."""

    def __init__(self, u, s, dtype, backward):
        """
        Slabs have so many rows that a step outweighs the cost of its call, and no more, that a chunk may stay in the
        cache: on CPU 1 MiB of fp32 a thread for each buffer. Accelerators have more to fill.
        """
        b, e, l = u.shape
        elements_per_step = 2**14 * torch.get_num_threads() if u.device.type == "cpu" else 2**20
        size = max(1, min(b, elements_per_step // max(1, s * e)))
        self.slabs = [slice(start, min(start + size, b)) for start in range(0, b if l else 0, size)]
        n = min(l, CHUNK)
        self.h = u.new_empty(n + 1, size, s, e, dtype=dtype)
        self.wide = u.new_empty(3 if backward else 1, n, size, s, e, dtype=dtype)
        self.narrow = u.new_empty(6 if backward else 5, n, size, 1, e, dtype=dtype)
        self.carry = u.new_empty(size, s, e, dtype=dtype)
        self._views = {}

    def views(self, rows, n):
        """The buffers cut to some rows and n steps, (n, b, s, e) and (n, b, 1, e): kept, as making views is slow."""
        b = rows.stop - rows.start
        if (b, n) not in self._views:
            h, wide, narrow = self.h[: n + 1, :b], self.wide[:, :n, :b], self.narrow[:, :n, :b]
            views = SimpleNamespace(h_before=h[:-1], h=h[1:], h_steps=h.unbind(), carry=self.carry[:b])
            views.__dict__.update(zip(("decay", "g", "scratch"), wide))
            views.__dict__.update(zip(("raw", "dt", "dtx", "o", "gate", "grad_dtx"), narrow))
            views.decay_steps = views.decay.unbind()
            views.g_steps = views.g.unbind() if len(wide) > 1 else None
            self._views[b, n] = views
        return self._views[b, n]


def _empty_grad(x, dtype):
    """What has a length is filled chunk by chunk; the rest are sums, taken in the state's precision."""
    return _like(x) if x.dim() == 3 else _like(x, dtype).zero_()


def _ready(x, dtype):
    """x in `dtype` with its channels side by side: not a copy if x is a view of (b, l, e) memory in that dtype."""
    x = x.to(dtype)
    return x if x.stride(-1) == 1 else x.contiguous()


def _chunks(per_input, rows):
    """Cuts what has a length to some rows and into chunks, shape (t, b, 1, e) or (t, b, s, 1); repeats the rest."""
    cut = {"B": _state_chunks, "C": _state_chunks}
    columns = (
        repeat(x) if x is None or x.dim() < 3 else cut.get(name, _channel_chunks)(x, rows)
        for name, x in per_input._asdict().items()
    )
    return map(_PerInput._make, zip(*columns))


def _channel_chunks(x, rows):
    return x[rows].permute(2, 0, 1).unsqueeze(2).split(CHUNK)  # (t, b, 1, e) each


def _state_chunks(x, rows):
    return x[rows].permute(2, 0, 1).unsqueeze(3).split(CHUNK)  # (t, b, s, 1) each


def _transposed(x):
    return x if x.dim() == 1 else x.transpose(-2, -1)


def _like(x, dtype=None):
    """Uninitialised, the shape of x, the last two axes swapped in memory: (b, l, k) for x (b, k, l)."""
    return _transposed(x.new_empty(_transposed(x).shape, dtype=dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Kernels as operators: one node for torch.compile and torch.export, whatever the length


KERNELS = {"torch": (torch_forward, torch_backward)}  # implementation -> forward, backward


_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, bool softplus"
)


def _register_op(name, schema, function, fake, backward=None, setup_context=None):
    """
    Registers an operator, or returns the one that has the name already: with two copies of this file in one process
    (two checkpoints, say), torch would otherwise let the second silently replace the first under its users. So the
    name's version must change whenever the operator's meaning does.
    """
    if not hasattr(torch.ops.hf_mamba, name):
        op = torch.library.custom_op(f"hf_mamba::{name}", function, mutates_args=(), schema=schema)
        op.register_fake(fake)
        if backward is not None:
            op.register_autograd(backward, setup_context=setup_context)
    return getattr(torch.ops.hf_mamba, name).default


def _inference(*inputs):
    return KERNELS[inputs[-1]][0](*inputs[:-1], keep_states=False)[0]


def _inference_fake(u, *_):
    return _like(u)


def _training(*inputs):
    return KERNELS[inputs[-1]][0](*inputs[:-1], keep_states=True)


def _training_fake(u, delta, A, B, C, *_):
    (b, e, l), s = u.shape, A.shape[1]
    states = u.new_empty(b, (l + CHUNK - 1) // CHUNK, s, e, dtype=_state_dtype(u, delta, A, B, C))
    return _like(u), states


def _gradients(*inputs):
    grads = KERNELS[inputs[-1]][1](*inputs[:-1])
    return [grad for grad in grads if grad is not None]


def _gradients_fake(grad_y, *inputs):
    needs = inputs[-2]
    return [_like(x) for x, needed in zip(inputs, needs) if needed]


def _setup_context(ctx, inputs, output):
    *tensors, ctx.softplus, ctx.implementation = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or the kept states would get a gradient of zeros, as large as they are
    ctx.save_for_backward(*tensors, output[1])


def _training_backward(ctx, grad_y, _):
    *tensors, states = ctx.saved_tensors
    needs = [bool(needed) and grad_y is not None for needed in ctx.needs_input_grad[:8]]
    grads = iter(())
    if any(needs):
        grads = iter(_gradients_op(grad_y, *tensors, ctx.softplus, states, needs, ctx.implementation))
    return (*(next(grads) if needed else None for needed in needs), None, None)


_inference_op = _register_op(
    "selective_scan_v1", f"({_INPUTS}, str implementation) -> Tensor", _inference, _inference_fake
)
_gradients_op = _register_op(
    "selective_scan_gradients_v1",
    f"(Tensor grad_y, {_INPUTS}, Tensor states, bool[] needs, str implementation) -> Tensor[]",
    _gradients,
    _gradients_fake,
)
_training_op = _register_op(
    "selective_scan_training_v1",
    f"({_INPUTS}, str implementation) -> (Tensor, Tensor)",
    _training,
    _training_fake,
    _training_backward,
    _setup_context,
)
