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

import torch
import torch.nn.functional as F


try:  # an optional CUDA kernel; a broken install counts as none
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn as mamba_ssm_selective_scan
except Exception:
    mamba_ssm_selective_scan = None


SCAN_IMPLEMENTATIONS = ("auto", "reference", "torch", "numba", "mamba_ssm")
_SHAPES = {"u": "bel", "delta": "bel", "A": "es", "B": "bsl", "C": "bsl", "D": "e", "z": "bel", "delta_bias": "e"}
_PerInput = namedtuple("_PerInput", _SHAPES)
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
    o = torch.stack(outputs, dim=2) if outputs else i  # (b, e, l)
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
# The torch path: sequential over time, in place, the rest in bulk over CHUNK steps of a slab of rows. Work tensors are
# (t, b, s, e): a step is one contiguous block, the innermost loop runs over channels. Reductions are multiply-and-sum:
# torch.bmm with a vector is no faster, and may round to TF32 or bf16 where the user allows that for matrices.


def torch_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):
    """
    Args: as in `selective_scan`; keep_states: whether a backward pass will follow.

    Returns:
        y (b, e, l), a view of (b, l, e) memory, and the states before steps 0, CHUNK, 2 * CHUNK, ..., shape
        (b, ceil(l / CHUNK), s, e), or None.
    """
    (b, e, l), s = u.shape, A.shape[1]
    dtype = _state_dtype(u, delta, A, B, C)
    y = _like(u)
    states = u.new_empty(b, -(-l // CHUNK), s, e, dtype=dtype) if keep_states else None
    A2 = (A.to(dtype) * LOG2_E).t().contiguous()  # (s, e)
    slabs, slab_size = _slabs(u, s)
    h_buffer = u.new_empty(CHUNK + 1, slab_size, s, e, dtype=dtype)
    decay_buffer = u.new_empty(CHUNK, slab_size, s, e, dtype=dtype)
    for rows in slabs:
        x, _, dt, gate = _slab_inputs(u, delta, z, delta_bias, delta_softplus, rows, dtype)
        dtx, o = dt * x, x.new_empty(x.shape)
        h, decay = (buffer[:, : len(x)] for buffer in (h_buffer, decay_buffer))
        h_steps, decay_steps = h.unbind(), decay.unbind()
        h_steps[0].zero_()
        projections = (_by_step(B, rows, dtype), _by_step(C, rows, dtype))
        chunks = zip(*map(_per_channel, (dt, dtx, o)), *map(_per_state, projections))
        for i, (dt_t, dtx_t, o_t, B_t, C_t) in enumerate(chunks):
            n = len(dt_t)
            if keep_states:
                states[rows, i] = h_steps[0]
            _fill_states(h, decay, h_steps, decay_steps, dt_t, dtx_t, B_t, A2)
            torch.mul(h[1 : n + 1], C_t, out=decay[:n])
            torch.sum(decay[:n], 2, keepdim=True, out=o_t)
            h_steps[0].copy_(h_steps[n])
        if D is not None:
            o.addcmul_(x, D.to(dtype))
        if gate is not None:
            o.mul_(torch.ops.aten.silu.out(gate, out=dtx))  # whose own use is over, and fresh memory is slow
        y[rows] = _transposed(o)
    return y, states


def torch_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, states, needs):
    """
    Args: grad_y (b, e, l); states as `torch_forward` kept them; needs: eight booleans, which of u, delta, A, B, C, D,
        z and delta_bias want a gradient; the rest as in `selective_scan`.

    Returns:
        list of the eight gradients, each in the shape and dtype of its tensor, None where not needed.
    """
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    need = _PerInput(*needs)
    grads = [_grad_like(x, states.dtype) if needed else None for x, needed in zip(tensors, needs)]
    out = _PerInput(*(grad if grad is None else _transposed(grad) for grad in grads))  # (b, l, k), (s, e) for A, (e,)
    At = A.to(states.dtype).t().contiguous()  # (s, e)
    e, s = A.shape
    slabs, slab_size = _slabs(u, s)
    work = _Work(*(states.new_empty(k, slab_size, s, e) for k in (CHUNK + 1, CHUNK, CHUNK, CHUNK, 1)))
    for rows in slabs:
        slab_work = _Work(*(x[:, : rows.stop - rows.start] for x in work))
        _backward_slab(rows, grad_y, tensors, delta_softplus, states[rows], At, slab_work, need, out)
    return [None if grad is None else grad.to(x.dtype) for grad, x in zip(grads, tensors)]


_Work = namedtuple("_Work", "h decay g scratch carry")
_Chunk = namedtuple("_Chunk", "dt dtx grad_o o grad_dtx grad_dt B C grad_B grad_C")


def _backward_slab(rows, grad_y, tensors, delta_softplus, states, At, work, need, out):
    """Gradients of one slab: written to `out` where they have rows, added where they are sums over the batch."""
    u, delta, _, B, C, D, z, delta_bias = tensors
    dtype = states.dtype
    x, raw, dt, gate = _slab_inputs(u, delta, z, delta_bias, delta_softplus, rows, dtype)  # (b, l, e) each
    grad_y = grad_y[rows].transpose(1, 2).to(dtype)
    grad_o = grad_y if gate is None else F.silu(gate).mul_(grad_y)
    o, grad_dtx, grad_dt = (x.new_empty(x.shape) for _ in range(3))
    B, C = _by_step(B, rows, dtype), _by_step(C, rows, dtype)  # (b, l, s)
    grad_B, grad_C = B.new_empty(B.shape), C.new_empty(C.shape)
    per_channel = map(_per_channel, (dt, dt * x, grad_o, o, grad_dtx, grad_dt))
    chunks = [_Chunk(*views) for views in zip(*per_channel, *map(_per_state, (B, C, grad_B, grad_C)))]
    steps = _Work(*(buffer.unbind() for buffer in work))
    A2 = At * LOG2_E
    work.carry.zero_()
    for i, chunk in reversed(list(enumerate(chunks))):
        steps.h[0].copy_(states[:, i])
        _fill_states(work.h, work.decay, steps.h, steps.decay, chunk.dt, chunk.dtx, chunk.B, A2)
        _backward_chunk(chunk, work, steps, At, need, out)

    D = None if D is None else D.to(dtype)
    if need.B:
        out.B[rows] = grad_B
    if need.C:
        out.C[rows] = grad_C
    if need.z:
        o = o if D is None else o.addcmul_(x, D)
        out.z[rows] = torch.ops.aten.silu_backward.grad_input(o.mul_(grad_y), gate, grad_input=o)
    if need.D:
        out.D.add_(torch.mul(grad_o, x, out=o).sum((0, 1)))
    if need.delta or need.delta_bias:
        grad_dt.addcmul_(grad_dtx, x)
        if delta_softplus:  # in place, with its default beta and threshold
            torch.ops.aten.softplus_backward.grad_input(grad_dt, raw, 1, 20, grad_input=grad_dt)
        if need.delta:
            out.delta[rows] = grad_dt
        if need.delta_bias:
            out.delta_bias.add_(grad_dt.sum((0, 1)))
    if need.u:
        grad_x = grad_dtx.mul_(dt)
        out.u[rows] = grad_x if D is None else grad_x.addcmul_(grad_o, D)


def _backward_chunk(chunk, work, steps, At, need, out):
    """From the chunk's states (t, b, s, e) to its gradients; `work.carry` brings dL/dh from the chunk after it."""
    n = len(chunk.dt)
    h, decay, g, scratch = work.h[1 : n + 1], work.decay[:n], work.g[:n], work.scratch[:n]

    def multiply_and_sum(a, b, dim, result):
        torch.mul(a, b, out=scratch)
        torch.sum(scratch, dim, keepdim=True, out=result)

    if need.z:
        multiply_and_sum(h, chunk.C, 2, chunk.o)
    if need.C:
        multiply_and_sum(h, chunk.grad_o, 3, chunk.grad_C)
    # g_t = dL/dh_t = C_t dL/do_t + Ā_{t+1} g_{t+1}
    torch.mul(chunk.C, chunk.grad_o, out=g)
    steps.g[n - 1].add_(steps.carry[0])
    for t in range(n - 2, -1, -1):
        steps.g[t].addcmul_(steps.decay[t + 1], steps.g[t + 1])
    torch.mul(steps.decay[0], steps.g[0], out=steps.carry[0])
    if need.u or need.delta or need.delta_bias:
        multiply_and_sum(g, chunk.B, 2, chunk.grad_dtx)
    if need.B:
        multiply_and_sum(g, chunk.dtx, 3, chunk.grad_B)
    if need.A or need.delta or need.delta_bias:
        g.mul_(work.h[:n]).mul_(decay)  # dL/d(Δ_t A)
        multiply_and_sum(g, At, 2, chunk.grad_dt)
    if need.A:
        out.A.add_(g.mul_(chunk.dt).sum((0, 1)))


def _fill_states(h, decay, h_steps, decay_steps, dt, dtx, B, A2):
    """
    Eq. 5's first line over one chunk: from h[0], the state before it, fills h[1:] and decay, that is Ā.

    Args:
        h, decay: shape (CHUNK + 1, b, s, e) and (CHUNK, b, s, e), and their steps, made once as making views is slow
        dt, dtx: Δ and Δ·u, shape (t, b, 1, e); B: shape (t, b, s, 1)
        A2: A times log2(e), shape (s, e): torch's exp2 is twice as fast as its exp
    """
    n = len(dt)
    torch.mul(dt, A2, out=decay[:n])
    torch.exp2(decay[:n], out=decay[:n])
    torch.mul(dtx, B, out=h[1 : n + 1])
    for t in range(n):
        h_steps[t + 1].addcmul_(decay_steps[t], h_steps[t])


def _slab_inputs(u, delta, z, delta_bias, delta_softplus, rows, dtype):
    """x (that is u), delta before softplus, Δ, and the gate or None, of some rows, shape (b, l, e) each."""
    raw = _by_step(delta, rows, dtype)
    if delta_bias is not None:
        raw = raw + delta_bias.to(dtype)
    dt = F.softplus(raw) if delta_softplus else raw
    return _by_step(u, rows, dtype), raw, dt, None if z is None else _by_step(z, rows, dtype)


def _by_step(x, rows, dtype):
    """Some rows of x (b, k, l) as (b, l, k): not a copy if x has the layout of a (b, l, k) tensor and the dtype."""
    x = x[rows].transpose(1, 2).to(dtype)
    return x if x.stride(2) == 1 else x.contiguous()


def _per_channel(x):
    """x (b, l, e) -> views of CHUNK steps each, shape (t, b, 1, e)"""
    return x.transpose(0, 1).unsqueeze(2).split(CHUNK)


def _per_state(x):
    """x (b, l, s) -> views of CHUNK steps each, shape (t, b, s, 1)"""
    return x.transpose(0, 1).unsqueeze(3).split(CHUNK)


def _transposed(x):
    return x if x.dim() == 1 else x.transpose(-2, -1)


def _like(x, dtype=None):
    """Uninitialised, the shape of x, the last two axes swapped in memory: (b, l, k) for x (b, k, l)."""
    return _transposed(x.new_empty(_transposed(x).shape, dtype=dtype))


def _grad_like(x, sum_dtype):
    """What has a length is filled slab by slab; the rest are sums, taken in the state's precision."""
    return _like(x) if x.dim() == 3 else _like(x, sum_dtype).zero_()


def _slabs(u, s):
    """
    Cuts the batch into slabs of so many rows that a step outweighs the cost of its call, and no more, that a chunk may
    stay in the cache: on CPU 1 MiB of fp32 a thread for each work tensor. Accelerators have more to fill.
    """
    b, e, l = u.shape
    elements_per_step = 2**14 * torch.get_num_threads() if u.device.type == "cpu" else 2**20
    size = max(1, min(b, elements_per_step // max(1, s * e)))
    return [slice(start, min(start + size, b)) for start in range(0, b if l else 0, size)], size


# ---------------------------------------------------------------------------------------------------------------------
# Kernels as operators: one node for torch.compile and torch.export, whatever the length


from .selective_scan_numba import numba_backward, numba_forward
KERNELS = {"numba": (numba_forward, numba_backward), "torch": (torch_forward, torch_backward)}  # implementation -> forward, backward
_INPUTS = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
_INPUTS += "bool delta_softplus, str implementation"


def _register_op(name, schema, function, fake, backward=None, setup_context=None):
    """
    Registers an operator, or returns the one that has the name already: with two copies of this file in one process
    (two checkpoints, say), torch would otherwise let the second silently replace the first under its users. So the
    name's version must change with the operator's meaning or schema (compile caches go by name too) and with KERNELS.
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


def _gradients(grad_y, states, needs, *inputs):
    grads = KERNELS[inputs[-1]][1](grad_y, *inputs[:-1], states, needs)
    return [grad for grad in grads if grad is not None]


def _gradients_fake(grad_y, states, needs, *inputs):
    return [_like(x) for x, needed in zip(inputs, needs) if needed]


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


_inference_op = _register_op("selective_scan_v1", f"({_INPUTS}) -> Tensor", _inference, _inference_fake)
_gradients_schema = f"(Tensor grad_y, Tensor states, bool[] needs, {_INPUTS}) -> Tensor[]"
_gradients_op = _register_op("selective_scan_backward_v1", _gradients_schema, _gradients, _gradients_fake)
_training_ops = (_training, _training_fake, _training_backward, _setup_context)
_training_op = _register_op("selective_scan_with_states_v1", f"({_INPUTS}) -> (Tensor, Tensor)", *_training_ops)
