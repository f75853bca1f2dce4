"""
The GPU kernel of the selective scan, in Triton: `triton_forward` and `triton_backward`, with the signatures of
`torch_forward` and `torch_backward` in selective_scan_torch.py. The glossary is that of selective_scan.py.

A program has one row, a block of channels and a segment of the length. Its state is a tile (N, CHANNELS) in registers:
channels lie side by side in a warp, so that what has channels is read in whole sectors, and few lanes share a sum over
n. Every step is Eq. 5 as it is printed; the backward pass recomputes CHUNK states at a time from the kept one. Where
rows and channels are too few to fill a GPU, the length is cut into segments: a first pass finds what each of them adds
to the state, a short one chains them, then all run at once. Nothing is added up atomically: sums over channels and
rows go through a buffer with a place for each program, so the same call gives the same bits.

With TRITON_INTERPRET=1, set before Triton is imported, Triton runs the kernels on CPU, for tests alone.
"""

import torch

from .selective_scan_torch import LOG2_E as LOG2_E_FLOAT
from .selective_scan_torch import like


try:  # guarded here too: transformers looks for missing packages in every file of a checkpoint
    import triton
    import triton.language as tl
    from triton import knobs
except Exception as error:
    raise ImportError(f"triton: {type(error).__name__}: {error}") from error


TRITON_SOURCE = __file__
INTERPRETED = bool(knobs.runtime.interpret)
LARGEST_STATE = 256  # tiles of more states outgrow the registers
CHUNK = 4  # steps between two kept states, which the backward pass holds in registers; 8 would not fit
TILE = 512  # states of a warp, 16 for each lane: what fits; with fewer, more of the work is sums across lanes
GROUP = 4  # steps whose inputs are read together, before anything that waits for them; divides CHUNK
WANTED_PROGRAMS = 2048  # 4 warps for each of the 528 schedulers of an H100
SHORTEST_SEGMENT = 64  # steps; a segment costs a state written and read
ADDED, ADDED_COLUMNS = 1024, 32  # numbers that a program adds up at a time, and how many side by side
LOG2_E = tl.constexpr(LOG2_E_FLOAT)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of the kernels. A tensor with a length is a tuple: pointer, strides over rows and over steps; its channels or
# states lie side by side. Every argument costs time at every launch.


@triton.jit
def _load(x, row, index, at, mask):
    """One step of x as fp32, shape of `index`; 0 outside `mask`."""
    address = x[0] + row * x[1] + at * x[2] + index
    return tl.load(address, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _time_step(raw, mask, SOFTPLUS: tl.constexpr):
    """
    Δ, and 0 outside `mask`, whatever the bias is. As log(1 + p) errs by 6e-5 of itself where p is 1e-3, Kahan's: the
    error of 1 + p cancels in log(w) / (w - 1).
    """
    if SOFTPLUS:
        p = tl.exp(raw)
        w = 1.0 + p
        raw = tl.where(raw > 20.0, raw, tl.where(w == 1.0, p, tl.log(w) * (p / (w - 1.0))))
    return tl.where(mask, raw, 0.0)


@triton.jit
def _decay(dt, A2, valid):
    """Ā (N, CHANNELS), and 1 beyond the length, the channels or the states: infinity times 0 is NaN."""
    return tl.exp2(tl.where(valid, dt[None, :] * A2, 0.0))


@triton.jit
def _outer(per_state, per_channel, in_tile):
    """Products (N, CHANNELS), and 0 beyond the channels or the states, for the same reason."""
    return tl.where(in_tile, per_state[:, None] * per_channel[None, :], 0.0)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _silu(x):
    return x * _sigmoid(x)


@triton.jit
def _locate(e: tl.constexpr, s: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr):
    """row, block of channels, and the channels and states of the tile with their masks."""
    blocks = tl.cdiv(e, CHANNELS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    n = tl.arange(0, N)
    in_e = d < e if e % CHANNELS else d >= 0  # a mask that the compiler sees through costs nothing
    return row, block, d, n, in_e, n < s


# ---------------------------------------------------------------------------------------------------------------------
# The kernels


@triton.jit
def _forward(
    u, u_b, u_l, delta, delta_b, delta_l, B, B_b, B_l, C, C_b, C_l, z, z_b, z_l,
    A2, D, delta_bias, y, states, starts, l, steps, e: tl.constexpr, s: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    KEEP: tl.constexpr, SEGMENTED: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y (b, l, e), and states (b, chunks, s, e), of the segment whose state before it is in starts (b, k, s, e)."""
    row, block, d, n, in_e, in_s = _locate(e, s, N, CHANNELS)
    u, delta, z = (u, u_b, u_l), (delta, delta_b, delta_l), (z, z_b, z_l)
    B, C = (B, B_b, B_l), (C, C_b, C_l)
    tile, in_tile = n[:, None] * e + d[None, :], in_s[:, None] & in_e[None, :]
    A2 = tl.load(A2 + n[:, None] * e + d[None, :], mask=in_s[:, None] & in_e[None, :], other=0.0)
    bias = tl.load(delta_bias + d, mask=in_e, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
    skip = tl.load(D + d, mask=in_e, other=0.0).to(tl.float32) if HAS_D else 0.0  # which nothing is multiplied by
    segment = tl.program_id(1)
    h = tl.zeros((N, CHANNELS), tl.float32)
    if SEGMENTED:
        h = tl.load(starts + (row * tl.num_programs(1) + segment) * s * e + tile, mask=in_tile, other=0.0)
    first = segment.to(tl.int64) * steps
    for start in range(first, tl.minimum(first + steps, l), GROUP):
        if KEEP:
            at_state = states + (row * tl.cdiv(l, CHUNK) + start // CHUNK) * s * e + tile
            tl.store(at_state, h, mask=in_tile & (start % CHUNK == 0))
        inputs = ()
        for t in tl.static_range(GROUP):
            at, in_l = start + t, start + t < l
            gate = 1.0
            if HAS_Z:
                gate = _silu(_load(z, row, d, at, in_e & in_l))
            u_t = _load(u, row, d, at, in_e & in_l)
            dt = _time_step(_load(delta, row, d, at, in_e & in_l) + bias, in_e & in_l, SOFTPLUS)
            B_t, C_t = _load(B, row, n, at, in_s & in_l), _load(C, row, n, at, in_s & in_l)
            inputs = inputs + ((u_t, dt, B_t, C_t, gate),)
        for t in tl.static_range(GROUP):
            u_t, dt, B_t, C_t, gate = inputs[t]
            h = _decay(dt, A2, in_tile & (start + t < l)) * h + _outer(B_t, dt * u_t, in_tile)
            y_t = tl.sum(h * C_t[:, None], 0)
            if HAS_D:
                y_t += skip * u_t
            if HAS_Z:
                y_t *= gate
            tl.store(y + (row * l + start + t) * e + d, y_t.to(y.dtype.element_ty), mask=in_e & (start + t < l))


@triton.jit
def _segment_ends(
    x, x_b, x_l, delta, delta_b, delta_l, B, B_b, B_l, z, z_b, z_l,
    A2, delta_bias, ends, totals, l, steps, e: tl.constexpr, s: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, REVERSE: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """
    What a segment adds to the state after it, ends (b, k, s, e), and its sum of Δ, totals (b, k, e). With REVERSE what
    it adds to Ā·dL/dh of its first step: then x is grad_y, B is C, and z is the gate.
    """
    row, block, d, n, in_e, in_s = _locate(e, s, N, CHANNELS)
    x, delta, B, z = (x, x_b, x_l), (delta, delta_b, delta_l), (B, B_b, B_l), (z, z_b, z_l)
    in_tile = in_s[:, None] & in_e[None, :]
    A2 = tl.load(A2 + n[:, None] * e + d[None, :], mask=in_s[:, None] & in_e[None, :], other=0.0)
    bias = tl.load(delta_bias + d, mask=in_e, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
    segment = tl.program_id(1)
    h, total = tl.zeros((N, CHANNELS), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    for i in range(0, steps, GROUP):
        inputs = ()
        for t in tl.static_range(GROUP):  # read together, before anything that waits for them
            at = segment.to(tl.int64) * steps + (steps - 1 - i - t if REVERSE else i + t)
            in_l = at < l
            gate = 1.0
            if HAS_Z:
                gate = _silu(_load(z, row, d, at, in_e & in_l))
            dt = _time_step(_load(delta, row, d, at, in_e & in_l) + bias, in_e & in_l, SOFTPLUS)
            x_t, B_t = _load(x, row, d, at, in_e & in_l), _load(B, row, n, at, in_s & in_l)
            inputs = inputs + ((x_t * gate, dt, B_t, in_l),)
        for t in tl.static_range(GROUP):
            x_t, dt, B_t, in_l = inputs[t]
            decay = _decay(dt, A2, in_tile & in_l)
            if REVERSE:
                h = decay * (h + _outer(B_t, x_t, in_tile))
            else:
                h = decay * h + _outer(B_t, dt * x_t, in_tile)
            total += dt
    at_segment = row * tl.num_programs(1) + segment
    tl.store(ends + at_segment * s * e + n[:, None] * e + d[None, :], h, mask=in_tile)
    tl.store(totals + at_segment * e + d, total, mask=in_e)


@triton.jit
def _chain_segments(
    ends, totals, A2, segments, e: tl.constexpr, s: tl.constexpr,
    REVERSE: tl.constexpr, N: tl.constexpr, CHANNELS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """
    In place: from what segments add to the state to the state that each begins with. The decay of a whole segment may
    over- or underflow where that of no step does: a state of 0 or infinity then stays, as it would step by step.
    """
    row, block, d, n, in_e, in_s = _locate(e, s, N, CHANNELS)
    in_tile = in_s[:, None] & in_e[None, :]
    A2 = tl.load(A2 + n[:, None] * e + d[None, :], mask=in_s[:, None] & in_e[None, :], other=0.0)
    h = tl.zeros((N, CHANNELS), tl.float32)
    for i in range(0, segments, GROUP):
        inputs = ()
        for t in tl.static_range(GROUP):
            at = row * segments + (segments - 1 - i - t if REVERSE else i + t)
            here = in_tile & (i + t < segments)
            added = tl.load(ends + at * s * e + n[:, None] * e + d[None, :], mask=here, other=0.0)
            total = tl.load(totals + at * e + d, mask=in_e & (i + t < segments), other=0.0)[None, :]
            inputs = inputs + ((added, total, at, here),)
        for t in tl.static_range(GROUP):
            added, total, at, here = inputs[t]
            tl.store(ends + at * s * e + n[:, None] * e + d[None, :], h, mask=here)
            decay = tl.exp2(tl.where(in_tile, total * A2, 0.0))
            stays = ((h == 0.0) | (tl.abs(h) == float("inf"))) & (tl.abs(total) < float("inf")) & (decay == decay)
            h = added + tl.where(stays, h, decay * h)


@triton.jit
def _backward(
    u, u_b, u_l, delta, delta_b, delta_l, B, B_b, B_l, C, C_b, C_l, z, z_b, z_l,
    grad_y, grad_y_b, grad_y_l, A2, D, delta_bias, states, carries,
    grad_u, grad_delta, grad_z, sums_B, sums_C, sums, l, steps, b, e: tl.constexpr, s: tl.constexpr,
    SOFTPLUS: tl.constexpr, HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SEGMENTED: tl.constexpr,
    N: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """
    The gradients of a segment: grad_u, grad_delta and grad_z (b, l, e), sums over its channels in sums_B and sums_C
    (blocks, b, l, s), over its steps, those of A, D and delta_bias, in sums (b, k, s + 2, e).
    """
    row, block, d, n, in_e, in_s = _locate(e, s, N, CHANNELS)
    u, delta, z = (u, u_b, u_l), (delta, delta_b, delta_l), (z, z_b, z_l)
    B, C, grad_y = (B, B_b, B_l), (C, C_b, C_l), (grad_y, grad_y_b, grad_y_l)
    tile, in_tile = n[:, None] * e + d[None, :], in_s[:, None] & in_e[None, :]
    A2 = tl.load(A2 + n[:, None] * e + d[None, :], mask=in_s[:, None] & in_e[None, :], other=0.0)
    bias = tl.load(delta_bias + d, mask=in_e, other=0.0).to(tl.float32) if HAS_BIAS else 0.0
    skip = tl.load(D + d, mask=in_e, other=0.0).to(tl.float32) if HAS_D else 0.0  # which nothing is multiplied by
    at_segment = row * tl.num_programs(1) + tl.program_id(1)
    carry = tl.zeros((N, CHANNELS), tl.float32)  # Ā·dL/dh of the step after
    if SEGMENTED:
        carry = tl.load(carries + at_segment * s * e + tile, mask=in_tile, other=0.0)
    grad_A = tl.zeros((N, CHANNELS), tl.float32)
    grad_D, grad_bias = tl.zeros((CHANNELS,), tl.float32), tl.zeros((CHANNELS,), tl.float32)
    first = tl.program_id(1).to(tl.int64) * steps
    chunks = tl.cdiv(tl.minimum(steps, l - first), CHUNK)
    for i in range(chunks):
        start = first + (chunks - 1 - i) * CHUNK
        h = tl.load(states + (row * tl.cdiv(l, CHUNK) + start // CHUNK) * s * e + tile, mask=in_tile, other=0.0)
        inputs = ()
        for t in tl.static_range(CHUNK):  # read together, before a store that reading might have to wait for
            at, mask = start + t, in_e & (start + t < l)
            z_t = 0.0
            if HAS_Z:
                z_t = _load(z, row, d, at, mask)
            u_t, raw = _load(u, row, d, at, mask), _load(delta, row, d, at, mask) + bias
            grad_o = _load(grad_y, row, d, at, mask)
            B_t, C_t = _load(B, row, n, at, in_s & (at < l)), _load(C, row, n, at, in_s & (at < l))
            inputs = inputs + ((u_t, raw, grad_o, z_t, B_t, C_t),)
        kept = ()
        for t in tl.static_range(CHUNK):  # forward once more
            u_t, raw, grad_o, z_t, B_t, C_t = inputs[t]
            at, mask = start + t, in_e & (start + t < l)
            dt = _time_step(raw, mask, SOFTPLUS)
            before = h
            h = _decay(dt, A2, in_tile & (at < l)) * h + _outer(B_t, dt * u_t, in_tile)
            if HAS_Z:
                gate = _sigmoid(z_t)
                o = tl.sum(h * C_t[:, None], 0)
                if HAS_D:
                    o += skip * u_t
                grad_z_t = o * grad_o * (gate * (1.0 + z_t * (1.0 - gate)))
                tl.store(grad_z + (row * l + at) * e + d, grad_z_t.to(grad_z.dtype.element_ty), mask=mask)
                grad_o *= z_t * gate
            kept = kept + ((before, h, dt, grad_o),)
        chunk_A = tl.zeros((N, CHANNELS), tl.float32)  # sums of sums lose less than one long sum
        for t in tl.static_range(CHUNK - 1, -1, -1):
            at, mask = start + t, in_e & (start + t < l)
            before, h, dt, grad_o = kept[t]
            u_t, raw, _, _, B_t, C_t = inputs[t]
            g = _outer(C_t, grad_o, in_tile) + carry  # dL/dh
            at_sums = ((block.to(tl.int64) * b + row) * l + at) * s + n
            tl.store(sums_B + at_sums, tl.sum(g * (dt * u_t)[None, :], 1), mask=in_s & (at < l))
            tl.store(sums_C + at_sums, tl.sum(h * grad_o[None, :], 1), mask=in_s & (at < l))
            grad_dtu = tl.sum(g * B_t[:, None], 0)
            carry = g * _decay(dt, A2, in_tile & (at < l))
            grad_dtA = tl.where(in_tile & (at < l), carry * before, 0.0)
            chunk_A += grad_dtA * dt[None, :]
            grad_dt = grad_dtu * u_t + tl.sum(grad_dtA * A2, 0) / LOG2_E
            if SOFTPLUS:
                grad_dt *= _sigmoid(raw)
            grad_bias += tl.where(mask, grad_dt, 0.0)
            grad_D += grad_o * u_t
            at_channel = (row * l + at) * e + d
            grad_u_t = grad_dtu * dt
            if HAS_D:
                grad_u_t += grad_o * skip
            tl.store(grad_u + at_channel, grad_u_t.to(grad_u.dtype.element_ty), mask=mask)
            tl.store(grad_delta + at_channel, grad_dt.to(grad_delta.dtype.element_ty), mask=mask)
        grad_A += chunk_A
    sums += at_segment * (s + 2) * e
    tl.store(sums + tile, grad_A, mask=in_tile)
    tl.store(sums + s * e + d, grad_D, mask=in_e)
    tl.store(sums + (s + 1) * e + d, grad_bias, mask=in_e)


@triton.jit
def _add_up(
    sums_B, sums_C, sums, grad_B, grad_C, grad_A, grad_D, grad_bias, size, parts, blocks: tl.constexpr,
    e: tl.constexpr, s: tl.constexpr, HAS_D: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The sums (blocks, size) of B and C over blocks, and, by other programs, sums (parts, s + 2, e) over parts."""
    if tl.program_id(1) == 0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        B, C, place = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), at
        for _ in range(blocks):
            B += tl.load(sums_B + place, mask=at < size, other=0.0)
            C += tl.load(sums_C + place, mask=at < size, other=0.0)
            place += size
        tl.store(grad_B + at, B.to(grad_B.dtype.element_ty), mask=at < size)
        tl.store(grad_C + at, C.to(grad_C.dtype.element_ty), mask=at < size)
    else:
        ROWS: tl.constexpr = BLOCK // COLUMNS
        column, row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, ROWS).to(tl.int64)
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, parts, ROWS):
            part = (first + row)[:, None]
            inside = (part < parts) & (column < (s + 2) * e)[None, :]
            total += tl.load(sums + part * ((s + 2) * e) + column[None, :], mask=inside, other=0.0)
        total, n, d = tl.sum(total, 0), column // e, column % e
        tl.store(grad_A + column, total.to(grad_A.dtype.element_ty), mask=n < s)  # channels side by side
        if HAS_D:
            tl.store(grad_D + d, total.to(grad_D.dtype.element_ty), mask=n == s)
        if HAS_BIAS:
            tl.store(grad_bias + d, total.to(grad_bias.dtype.element_ty), mask=n == s + 1)


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to programs


def triton_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states, *, segments=None):
    """As `torch_forward`; the state is fp32. `segments`: how many to cut the length into, by default what pays."""
    (b, e, l), s = u.shape, A.shape[1]
    y = like(u)
    states = u.new_empty(b, -(-l // CHUNK), s, e, dtype=torch.float32) if keep_states else None
    if y.numel() == 0:
        return y, states
    A2, D, delta_bias = _parameters(A, D, delta_bias)
    u, delta, B, C, z = _side_by_side(u, delta, B, C, z)
    sizes, grid, steps = _programs(u, s, segments)
    flags = {"SOFTPLUS": delta_softplus, "HAS_Z": z is not None, "HAS_BIAS": delta_bias is not None}
    with torch.cuda.device_of(u):  # which Triton does not look up
        starts = u
        if grid[1] > 1:
            starts = _states_between(grid, steps, sizes, flags | {"HAS_Z": False}, u, delta, B, None, A2, delta_bias)
        _forward[grid](
            *_strided(u, delta, B, C, z), A2, _or(D, u), _or(delta_bias, u), y, _or(states, u), starts, l, steps, e, s,
            **flags, **sizes, HAS_D=D is not None, KEEP=keep_states, SEGMENTED=grid[1] > 1, CHUNK=CHUNK, GROUP=GROUP,
        )  # fmt: skip
    return y, states


def triton_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, states, needs, *, segments=None):
    """As `torch_backward`; `segments` as in `triton_forward`."""
    tensors, (b, e, l), s = (u, delta, A, B, C, D, z, delta_bias), u.shape, A.shape[1]
    if u.numel() == 0:
        return [like(x).zero_() if needed else None for x, needed in zip(tensors, needs)]
    A2, D, delta_bias = _parameters(A, D, delta_bias)
    u, delta, B, C, z, grad_y = _side_by_side(u, delta, B, C, z, grad_y)
    sizes, grid, steps = _programs(u, s, segments)
    flags = {"SOFTPLUS": delta_softplus, "HAS_Z": z is not None, "HAS_BIAS": delta_bias is not None}
    grads = grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias = [
        None if x is None else like(x) for x in tensors
    ]
    size, blocks = b * l * s, -(-e // sizes["CHANNELS"])
    sums_B, sums_C = states.new_empty(blocks, size), states.new_empty(blocks, size)
    sums = states.new_empty(b * grid[1], s + 2, e)
    has_D = {"HAS_D": D is not None}
    with torch.cuda.device_of(u):
        carries = u
        if grid[1] > 1:
            carries = _states_between(grid, steps, sizes, flags, grad_y, delta, C, z, A2, delta_bias, reverse=True)
        _backward[grid](
            *_strided(u, delta, B, C, z, grad_y), A2, _or(D, u), _or(delta_bias, u), states, carries,
            grad_u, grad_delta, _or(grad_z, u), sums_B, sums_C, sums, l, steps, b, e, s,
            **flags, **has_D, **sizes, SEGMENTED=grid[1] > 1, CHUNK=CHUNK,
        )  # fmt: skip
        programs = max(triton.cdiv(size, ADDED), triton.cdiv((s + 2) * e, ADDED_COLUMNS))
        _add_up[programs, 2](
            sums_B, sums_C, sums, grad_B, grad_C, grad_A, _or(grad_D, u), _or(grad_bias, u), size, len(sums), blocks,
            e, s, **has_D, HAS_BIAS=flags["HAS_BIAS"], BLOCK=ADDED, COLUMNS=ADDED_COLUMNS,
        )  # fmt: skip
    return [grad if needed else None for grad, needed in zip(grads, needs)]


def _states_between(grid, steps, sizes, flags, x, delta, B, z, A2, delta_bias, reverse=False):
    """The state that each segment begins with, (b, segments, s, e), or what its last step takes over from the next."""
    (b, e, l), s, segments = x.shape, len(A2), grid[1]
    ends = x.new_empty(b, segments, s, e, dtype=torch.float32)
    totals = x.new_empty(b, segments, e, dtype=torch.float32)
    _segment_ends[grid](
        *_strided(x, delta, B, z), A2, _or(delta_bias, x), ends, totals, l, steps, e, s,
        **flags, **sizes, REVERSE=reverse, GROUP=GROUP,
    )  # fmt: skip
    _chain_segments[grid[:1]](ends, totals, A2, segments, e, s, REVERSE=reverse, **sizes, GROUP=GROUP)
    return ends


def _parameters(A, D, delta_bias):
    """A times log2(e), shape (s, e): as the tile lies, or else every step would change the layout of registers."""
    A2 = (A.float() * LOG2_E_FLOAT).t().contiguous()
    return A2, *(x if x is None else x.contiguous() for x in (D, delta_bias))


def _programs(u, s, segments):
    """The tile and its warps; the grid, (rows times blocks of channels, segments); and steps of a segment."""
    b, e, l = u.shape
    states = triton.next_power_of_2(s)
    channels = min(max(TILE // states, 8), 32)
    warps = max(1, states * channels // TILE)
    programs = b * -(-e // channels)
    if segments is None:
        segments = min(WANTED_PROGRAMS // programs, l // SHORTEST_SEGMENT)
    steps = -(-l // max(1, segments))
    steps = -(-steps // CHUNK) * CHUNK
    return {"N": states, "CHANNELS": channels, "num_warps": warps}, (programs, -(-l // steps)), steps


def _side_by_side(*tensors):
    """With channels, or states, that lie side by side in memory, as the model's do."""
    return [x if x is None or x.stride(1) == 1 else like(x).copy_(x) for x in tensors]


def _strided(*tensors):
    """Pointers and strides over rows and steps; the first tensor's stand in where there is none."""
    tensors = [_or(x, tensors[0]) for x in tensors]
    return [argument for x in tensors for argument in (x, x.stride(0), x.stride(2))]


def _or(x, other):
    """Kernels never look at what stands in for an absent tensor."""
    return other if x is None else x
