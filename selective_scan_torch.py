"""
The selective scan in PyTorch, for any device and dtype: `torch_forward` and `torch_backward`. The glossary is that of
selective_scan.py, and so is the interface.

Sequential over time, in place, the rest in bulk over CHUNK steps of a slab of rows. Work tensors are (t, b, s, e): a
step is one contiguous block, the innermost loop runs over channels. Reductions are multiply-and-sum: torch.bmm with a
vector is no faster, and may round to TF32 or bf16 where the user allows that for matrices.
"""

import math
from collections import namedtuple

import torch
import torch.nn.functional as F


TORCH_SOURCE = __file__
CHUNK = 16  # steps between two states kept for the backward pass
LOG2_E = math.log2(math.e)
_PerInput = namedtuple("_PerInput", "u delta A B C D z delta_bias")


def state_dtype(*tensors):
    """At least fp32, whatever comes in: rounding a bf16 state at every step adds up."""
    for x in tensors:
        if x.dtype == torch.float64:
            return torch.float64
    return torch.float32


def torch_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):
    """
    Args: as in `selective_scan`; keep_states: whether a backward pass will follow.

    Returns:
        y (b, e, l), a view of (b, l, e) memory, and the states before steps 0, CHUNK, 2 * CHUNK, ..., shape
        (b, ceil(l / CHUNK), s, e), or None.
    """
    (b, e, l), s = u.shape, A.shape[1]
    dtype = state_dtype(u, delta, A, B, C)
    y = like(u)
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


def like(x, dtype=None):
    """Uninitialised, the shape of x, the last two axes swapped in memory: (b, l, k) for x (b, k, l)."""
    return _transposed(x.new_empty(_transposed(x).shape, dtype=dtype))


def _grad_like(x, sum_dtype):
    """What has a length is filled slab by slab; the rest are sums, taken in the state's precision."""
    return like(x) if x.dim() == 3 else like(x, sum_dtype).zero_()


def _slabs(u, s):
    """
    Cuts the batch into slabs of so many rows that a step outweighs the cost of its call, and no more, that a chunk may
    stay in the cache: on CPU 1 MiB of fp32 a thread for each work tensor. Accelerators have more to fill.
    """
    b, e, l = u.shape
    elements_per_step = 2**14 * torch.get_num_threads() if u.device.type == "cpu" else 2**20
    size = max(1, min(b, elements_per_step // max(1, s * e)))
    return [slice(start, min(start + size, b)) for start in range(0, b if l else 0, size)], size
