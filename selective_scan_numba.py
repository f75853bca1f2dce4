"""
The CPU kernel of the selective scan, through Numba: `numba_forward` and `numba_backward`, with the signatures of
`torch_forward` and `torch_backward` in selective_scan_torch.py. The glossary is that of selective_scan.py.

One pass over time for a block of 16 channels at once (a vector), CHUNK steps at a time, so that all that a chunk needs
stays in the first-level cache; the innermost loop runs over the steps of one component n of the state, with h in a
register. Δ's softplus, the skip D and the gate z are part of the pass. The state is fp32: float64 is left to torch.
"""

import torch

from .vectors_numba import (
    ADDRESS,
    EXP2_CONSTANTS,
    LANES,
    LN_2,
    LOG2_E,
    absolute,
    add,
    all_within,
    at_least,
    boolean,
    clear,
    compile_kernels,
    constant,
    exp2,
    exp2_of_product,
    float32,
    fma,
    inline,
    int64,
    jit,
    load,
    load_exp2_constants,
    load_first,
    load_one,
    mul,
    pointer,
    run_tasks,
    sigmoid,
    softplus,
    splat,
    split_work,
    store,
    store_first,
    store_one,
    sub,
    total,
    void,
)


SCAN_SOURCE = __file__
CHUNK = 32  # steps between two states kept for the backward pass

# Scratch memory of a task, in vectors: what belongs to parameters and states as (block, n), what belongs to the steps
# of one chunk of one block as (step, quantity), so that a loop over steps needs one pointer. Lanes beyond the last
# channel hold zeros. B and C of a chunk lie there as (n, step, 2) numbers, sums over channels for their gradients as
# (n, step, 2) vectors: only after the last block are lanes added up.
U, RAW, DT, DTU, O, GRAD_O, GATE_SLOPE, GRAD_DTU, GRAD_DTA, DECAY, H, DECAY2, H2 = range(0, 13 * LANES, LANES)
STEP = 13 * LANES
PAIR = 2 * LANES
NEXT_PAIRS, NEXT_SUMS = 2 * CHUNK, CHUNK * PAIR  # from component n of the state to n + 1


def scratch_size(e, s):
    """Elements of scratch memory of one task, for either kernel."""
    blocks = -(-e // LANES)
    return blocks * LANES * (3 * s + 4) + (CHUNK + 1) * STEP + s * CHUNK * (2 + PAIR)


# ---------------------------------------------------------------------------------------------------------------------
# Parts of both kernels


@inline
def load_parameters(A, e, s, first, last, A2, largest_A):
    """A (e, s), times log2(e), as vectors over channels, and the largest absolute value of each channel."""
    for block in range(first, last):
        largest = constant(0.0)
        for n in range(s):
            at = (block * s + n) * LANES
            store(A2, at, constant(0.0))
            for lane in range(min(LANES, e - block * LANES)):
                value = load_one(A[0], (block * LANES + lane) * A[1] + n * A[2])
                store_one(A2, at + lane, value * float32(LOG2_E))
            value = absolute(load(A2, at))
            largest = fma(value, constant(0.0), at_least(largest, value))  # NaN or infinity in any makes it NaN
        store(largest_A, block * LANES, largest)


@inline
def load_B_and_C(B, C, row, start, steps, s, pairs):
    """B and C of a chunk, side by side."""
    for t in range(steps):
        for n in range(s):
            store_one(pairs, 2 * (n * CHUNK + t), load_one(B[0], row * B[1] + (start + t) * B[2] + n))
            store_one(pairs, 2 * (n * CHUNK + t) + 1, load_one(C[0], row * C[1] + (start + t) * C[2] + n))


@inline
def load_steps(u, delta, bias, with_softplus, row, start, steps, channel, width, largest_A, work):
    """
    u, delta + bias, Δ and Δ·u of a chunk. Returns whether 2^(Δ·A2) stays clear of over- and underflow in all of it,
    and neither Δ nor A2 is NaN anywhere.
    """
    largest = constant(0.0)
    for t in range(steps):
        u_t = load_first(u[0], row * u[1] + (start + t) * u[2] + channel, width)
        raw = add(load_first(delta[0], row * delta[1] + (start + t) * delta[2] + channel, width), bias)
        dt = softplus(raw) if with_softplus else raw
        store(work, t * STEP + U, u_t)
        store(work, t * STEP + RAW, raw)
        store(work, t * STEP + DT, dt)
        store(work, t * STEP + DTU, mul(dt, u_t))
        store(work, t * STEP + O, constant(0.0))
        largest = fma(dt, constant(0.0), at_least(largest, absolute(dt)))
    return all_within(mul(largest, load(largest_A, 0)), float32(125.0))


@inline
def run_steps(h, h2, A2, at_n, two, pairs, steps, bounded, keep, powers, work):
    """
    Eq. 5 for a component of the state, or `two` at once so that neither waits for the other's results: from h before
    the chunk adds C·h to o and returns h after it. `keep`s the decays, and h before and after every step. Callers pass
    `two`, `bounded` and `keep` as literals: the code is inlined, and what a literal rules out falls away.
    """
    a, a2 = load(A2, at_n), load(A2, at_n + LANES)
    if keep:
        store(work, H, h)
        if two:
            store(work, H2, h2)
    for t in range(steps):
        at = t * STEP
        dt, dtu, o = load(work, at + DT), load(work, at + DTU), load(work, at + O)
        decay = exp2_of_product(dt, a, powers) if bounded else exp2(mul(dt, a))
        h = fma(decay, h, mul(dtu, splat(load_one(pairs, 2 * t))))
        o = fma(h, splat(load_one(pairs, 2 * t + 1)), o)
        if keep:
            store(work, at + DECAY, decay)
            store(work, at + STEP + H, h)
        if two:
            decay = exp2_of_product(dt, a2, powers) if bounded else exp2(mul(dt, a2))
            h2 = fma(decay, h2, mul(dtu, splat(load_one(pairs, NEXT_PAIRS + 2 * t))))
            o = fma(h2, splat(load_one(pairs, NEXT_PAIRS + 2 * t + 1)), o)
            if keep:
                store(work, at + DECAY2, decay)
                store(work, at + STEP + H2, h2)
        store(work, at + O, o)
    return h, h2


@inline
def reverse_steps(at_n, two, A2, carry, grad_A, pairs, steps, work, sums):
    """
    Back through the chunk for one component of the state or two. carry is Ā·dL/dh of the step after the chunk, and
    becomes that of its first step. Adds to dL/d(Δ·u) and dL/d(Δ·A)·A of the chunk, to dL/dA and to the sums
    over channels.
    """
    a, a2 = load(A2, at_n), load(A2, at_n + LANES)
    g, g2 = load(carry, at_n), load(carry, at_n + LANES)
    grad_a, grad_a2 = constant(0.0), constant(0.0)  # sums of sums lose less than one long sum
    for i in range(steps):
        t = steps - 1 - i
        at, at_sum = t * STEP, t * PAIR
        grad_o, dt, dtu = load(work, at + GRAD_O), load(work, at + DT), load(work, at + DTU)
        grad_dtu, grad_dta = load(work, at + GRAD_DTU), load(work, at + GRAD_DTA)
        g = fma(splat(load_one(pairs, 2 * t + 1)), grad_o, g)  # dL/dh of this step
        store(sums, at_sum, fma(g, dtu, load(sums, at_sum)))
        store(sums, at_sum + LANES, fma(load(work, at + STEP + H), grad_o, load(sums, at_sum + LANES)))
        grad_dtu = fma(g, splat(load_one(pairs, 2 * t)), grad_dtu)
        g = mul(g, load(work, at + DECAY))
        grad_x = mul(g, load(work, at + H))  # of Δ·A
        grad_dta = fma(grad_x, a, grad_dta)
        grad_a = fma(grad_x, dt, grad_a)
        if two:
            at_sum += NEXT_SUMS
            g2 = fma(splat(load_one(pairs, NEXT_PAIRS + 2 * t + 1)), grad_o, g2)
            store(sums, at_sum, fma(g2, dtu, load(sums, at_sum)))
            store(sums, at_sum + LANES, fma(load(work, at + STEP + H2), grad_o, load(sums, at_sum + LANES)))
            grad_dtu = fma(g2, splat(load_one(pairs, NEXT_PAIRS + 2 * t)), grad_dtu)
            g2 = mul(g2, load(work, at + DECAY2))
            grad_x = mul(g2, load(work, at + H2))
            grad_dta = fma(grad_x, a2, grad_dta)
            grad_a2 = fma(grad_x, dt, grad_a2)
        store(work, at + GRAD_DTU, grad_dtu)
        store(work, at + GRAD_DTA, grad_dta)
    store(carry, at_n, g)
    store(grad_A, at_n, add(load(grad_A, at_n), grad_a))
    if two:
        store(carry, at_n + LANES, g2)
        store(grad_A, at_n + LANES, add(load(grad_A, at_n + LANES), grad_a2))


# ---------------------------------------------------------------------------------------------------------------------
# The kernels. Addresses are 0 for what is absent.


@jit(void(*[ADDRESS] * 7, *[int64] * 6, boolean, *[int64] * 6))
def _forward(
    u, delta, B, C, z, y, A, D, delta_bias, states, e, l, s, with_softplus,
    constants, scratch, row0, row1, block0, block1,
):  # fmt: skip
    """y, and states (b, chunks, s, e), of rows row0 to row1 and the channels in blocks block0 to block1."""
    blocks, chunks = (e + LANES - 1) // LANES, (l + CHUNK - 1) // CHUNK
    A2, h, largest_A = scratch, scratch + 4 * blocks * s * LANES, scratch + 8 * blocks * s * LANES
    work = largest_A + 4 * blocks * LANES
    pairs = work + 4 * (CHUNK + 1) * STEP
    load_parameters(A, e, s, block0, block1, A2, largest_A)
    for row in range(row0, row1):
        clear(h, blocks * s * LANES)
        for chunk in range(chunks):
            start = chunk * CHUNK
            steps = min(CHUNK, l - start)
            load_B_and_C(B, C, row, start, steps, s, pairs)
            for block in range(block0, block1):
                channel = block * LANES
                width = min(LANES, e - channel)
                bias = load_first(delta_bias, channel, width) if delta_bias != 0 else constant(0.0)
                bounded = load_steps(
                    u, delta, bias, with_softplus, row, start, steps, channel, width, largest_A + 4 * channel, work
                )  # fmt: skip
                powers = load_exp2_constants(constants)
                at_state = (row * chunks + chunk) * s * e + channel
                n = 0
                while n < s:
                    two = bounded and n + 1 < s
                    at_n, pairs_n = (block * s + n) * LANES, pairs + 4 * n * NEXT_PAIRS
                    h_n, h_n2 = load(h, at_n), load(h, at_n + LANES)
                    if states != 0:
                        store_first(states, at_state + n * e, width, h_n)
                        if two:
                            store_first(states, at_state + (n + 1) * e, width, h_n2)
                    if two:
                        h_n, h_n2 = run_steps(h_n, h_n2, A2, at_n, True, pairs_n, steps, True, False, powers, work)
                        store(h, at_n + LANES, h_n2)
                    elif bounded:
                        h_n, h_n2 = run_steps(h_n, h_n2, A2, at_n, False, pairs_n, steps, True, False, powers, work)
                    else:
                        h_n, h_n2 = run_steps(h_n, h_n2, A2, at_n, False, pairs_n, steps, False, False, powers, work)
                    store(h, at_n, h_n)
                    n += 2 if two else 1
                skip = load_first(D, channel, width) if D != 0 else constant(0.0)
                for t in range(steps):
                    y_t = load(work, t * STEP + O)
                    if D != 0:
                        y_t = fma(skip, load(work, t * STEP + U), y_t)
                    if z[0] != 0:
                        z_t = load_first(z[0], row * z[1] + (start + t) * z[2] + channel, width)
                        y_t = mul(y_t, mul(z_t, sigmoid(z_t)))
                    store_first(y[0], row * y[1] + (start + t) * y[2] + channel, width, y_t)


@inline
def load_gate(grad_y, z, row, start, steps, channel, width, work):
    """dL/do of a chunk, and what o must be multiplied by for dL/dz."""
    for t in range(steps):
        grad_o = load_first(grad_y[0], row * grad_y[1] + (start + t) * grad_y[2] + channel, width)
        if z[0] != 0:
            z_t = load_first(z[0], row * z[1] + (start + t) * z[2] + channel, width)
            gate = sigmoid(z_t)
            slope = mul(gate, fma(z_t, sub(constant(1.0), gate), constant(1.0)))
            store(work, t * STEP + GATE_SLOPE, mul(grad_o, slope))
            grad_o = mul(grad_o, mul(z_t, gate))
        store(work, t * STEP + GRAD_O, grad_o)
        store(work, t * STEP + GRAD_DTU, constant(0.0))
        store(work, t * STEP + GRAD_DTA, constant(0.0))


@inline
def store_sums(sums, grad_B, grad_C, row, start, steps, s):
    """The chunk's sums over channels."""
    for t in range(steps):
        for n in range(s):
            at = (n * CHUNK + t) * PAIR
            store_one(grad_B[0], row * grad_B[1] + (start + t) * grad_B[2] + n, total(load(sums, at)))
            store_one(grad_C[0], row * grad_C[1] + (start + t) * grad_C[2] + n, total(load(sums, at + LANES)))


@jit(void(*[ADDRESS] * 12, *[int64] * 6, boolean, *[int64] * 7))
def _backward(
    grad_y, u, delta, B, C, z, grad_u, grad_delta, grad_B, grad_C, grad_z, A, D, delta_bias, states, e, l, s,
    with_softplus, sums_over_rows, constants, scratch, row0, row1, block0, block1,
):  # fmt: skip
    """
    The gradients of those rows and channels. What is summed over rows, those of A, D and delta_bias, goes to
    `sums_over_rows` (s + 2, e).
    """
    blocks, chunks = (e + LANES - 1) // LANES, (l + CHUNK - 1) // CHUNK
    per_state, per_channel = 4 * blocks * s * LANES, 4 * blocks * LANES
    A2, carry, grad_A = scratch, scratch + per_state, scratch + 2 * per_state
    largest_A = scratch + 3 * per_state
    grad_D, grad_bias = largest_A + per_channel, largest_A + 2 * per_channel
    work = largest_A + 3 * per_channel
    pairs = work + 4 * (CHUNK + 1) * STEP
    sums = pairs + 8 * s * CHUNK
    load_parameters(A, e, s, block0, block1, A2, largest_A)
    clear(grad_A, blocks * s * LANES)
    clear(grad_D, 2 * blocks * LANES)
    for row in range(row0, row1):
        clear(carry, blocks * s * LANES)
        for chunk_from_end in range(chunks):
            chunk = chunks - 1 - chunk_from_end
            start = chunk * CHUNK
            steps = min(CHUNK, l - start)
            load_B_and_C(B, C, row, start, steps, s, pairs)
            clear(sums, s * CHUNK * PAIR)
            for block in range(block0, block1):
                channel = block * LANES
                width = min(LANES, e - channel)
                bias = load_first(delta_bias, channel, width) if delta_bias != 0 else constant(0.0)
                bounded = load_steps(
                    u, delta, bias, with_softplus, row, start, steps, channel, width, largest_A + 4 * channel, work
                )  # fmt: skip
                load_gate(grad_y, z, row, start, steps, channel, width, work)
                powers = load_exp2_constants(constants)
                at_state = (row * chunks + chunk) * s * e + channel
                n = 0
                while n < s:
                    two = bounded and n + 1 < s
                    at_n = (block * s + n) * LANES
                    pairs_n, sums_n = pairs + 4 * n * NEXT_PAIRS, sums + 4 * n * NEXT_SUMS
                    h = load_first(states, at_state + n * e, width)
                    if two:
                        h2 = load_first(states, at_state + (n + 1) * e, width)
                        run_steps(h, h2, A2, at_n, True, pairs_n, steps, True, True, powers, work)
                        reverse_steps(at_n, True, A2, carry, grad_A, pairs_n, steps, work, sums_n)
                    else:
                        if bounded:
                            run_steps(h, h, A2, at_n, False, pairs_n, steps, True, True, powers, work)
                        else:
                            run_steps(h, h, A2, at_n, False, pairs_n, steps, False, True, powers, work)
                        reverse_steps(at_n, False, A2, carry, grad_A, pairs_n, steps, work, sums_n)
                    n += 2 if two else 1
                skip = load_first(D, channel, width) if D != 0 else constant(0.0)
                grad_D_sum, grad_bias_sum = constant(0.0), constant(0.0)
                for t in range(steps):
                    at, place = t * STEP, start + t
                    u_t, grad_o, grad_dtu = load(work, at + U), load(work, at + GRAD_O), load(work, at + GRAD_DTU)
                    grad_dt = fma(grad_dtu, u_t, mul(load(work, at + GRAD_DTA), constant(LN_2)))
                    if with_softplus:
                        grad_dt = mul(grad_dt, sigmoid(load(work, at + RAW)))
                    grad_u_t = mul(grad_dtu, load(work, at + DT))
                    o = load(work, at + O)
                    if D != 0:
                        grad_u_t = fma(grad_o, skip, grad_u_t)
                        o = fma(skip, u_t, o)
                    grad_D_sum = fma(grad_o, u_t, grad_D_sum)
                    grad_bias_sum = add(grad_bias_sum, grad_dt)
                    store_first(grad_u[0], row * grad_u[1] + place * grad_u[2] + channel, width, grad_u_t)
                    store_first(grad_delta[0], row * grad_delta[1] + place * grad_delta[2] + channel, width, grad_dt)
                    if z[0] != 0:
                        grad_z_t = mul(o, load(work, at + GATE_SLOPE))
                        store_first(grad_z[0], row * grad_z[1] + place * grad_z[2] + channel, width, grad_z_t)
                store(grad_D, channel, add(load(grad_D, channel), grad_D_sum))
                store(grad_bias, channel, add(load(grad_bias, channel), grad_bias_sum))
            store_sums(sums, grad_B, grad_C, row, start, steps, s)
    for block in range(block0, block1):
        channel = block * LANES
        width = min(LANES, e - channel)
        for n in range(s):
            store_first(sums_over_rows, n * e + channel, width, load(grad_A, (block * s + n) * LANES))
        store_first(sums_over_rows, s * e + channel, width, load(grad_D, channel))
        store_first(sums_over_rows, (s + 1) * e + channel, width, load(grad_bias, channel))


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to addresses


def compile_scan():
    """Compiles the kernels, or loads them from disk, so that a failure shows before the first step."""
    compile_kernels(_forward, _backward)


def numba_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):
    """As `torch_forward`; the state is fp32."""
    (b, e, l), s = u.shape, A.shape[1]
    y = u.new_empty(b, l, e).transpose(1, 2)
    result = y if u.dtype == torch.float32 else u.new_empty(b, l, e, dtype=torch.float32).transpose(1, 2)
    states = u.new_empty(b, -(-l // CHUNK), s, e, dtype=torch.float32) if keep_states else None
    if result.numel():
        kept, addresses = _by_channel(u, delta, B, C, z)
        A, D, delta_bias = A.float(), _flat(D), _flat(delta_bias)
        arguments = (*addresses, _address(result), (A.data_ptr(), *A.stride()), *map(pointer, (D, delta_bias, states)))
        arguments += (e, l, s, delta_softplus)
        tasks = split_work(b * e * l * s, b, -(-e // LANES))
        scratch = torch.empty(len(tasks), scratch_size(e, s))
        run_tasks(
            _forward, [(*arguments, EXP2_CONSTANTS, work.data_ptr(), *task) for work, task in zip(scratch, tasks)]
        )
    return y if result is y else y.copy_(result), states


def numba_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, states, needs):
    """As `torch_backward`."""
    (b, e, l), s = u.shape, A.shape[1]
    tasks = split_work(b * e * l * s, b, -(-e // LANES))
    split_channels = len(tasks) > 1 and tasks[0][:2] == tasks[1][:2]
    fp32 = {"dtype": torch.float32, "device": u.device}
    grad_u, grad_delta = (torch.empty(b, l, e, **fp32).transpose(1, 2) for _ in range(2))
    grad_z = None if z is None else torch.empty(b, l, e, **fp32).transpose(1, 2)
    # sums over channels: one for each task that has only some of them
    grad_B, grad_C = (torch.empty(len(tasks) if split_channels else 1, b, l, s, **fp32) for _ in range(2))
    sums = torch.zeros(len(tasks), s + 2, e, **fp32)
    if u.numel():
        (grad_y, *kept), addresses = _by_channel(grad_y, u, delta, B, C, z)
        D32, bias32, A32 = _flat(D), _flat(delta_bias), A.float()
        scratch = torch.empty(len(tasks), scratch_size(e, s))
        calls = []
        for i, task in enumerate(tasks):
            parts = (x[i if split_channels else 0].transpose(1, 2) for x in (grad_B, grad_C))
            grads = map(_address, (grad_u, grad_delta, *parts, grad_z))
            parameters = (
                (A32.data_ptr(), *A32.stride()),
                *map(pointer, (D32, bias32, states)),
                e,
                l,
                s,
                delta_softplus,
            )
            calls.append(
                (*addresses, *grads, *parameters, sums[i].data_ptr(), EXP2_CONSTANTS, scratch[i].data_ptr(), *task)
            )
        run_tasks(_backward, calls)
    grad_A, grad_D, grad_bias = sums.sum(0).split([s, 1, 1])
    grad_B, grad_C = (x.sum(0).transpose(1, 2) if split_channels else x[0].transpose(1, 2) for x in (grad_B, grad_C))
    # clones: the results of an operator may not share memory
    grad_A, grad_D, grad_bias = grad_A.clone().t(), grad_D[0].clone(), grad_bias[0].clone()
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias)
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    return [grad.to(x.dtype) if needed else None for grad, x, needed in zip(grads, tensors, needs)]


def _by_channel(*tensors):
    """fp32 tensors (b, k, l), channels side by side, which must live while a kernel runs; and their addresses."""
    tensors = [x if x is None or x.dtype == torch.float32 else x.float() for x in tensors]
    tensors = [
        x if x is None or x.stride(1) == 1 or x.shape[1] == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)
        for x in tensors
    ]
    return tensors, [_address(x) for x in tensors]


def _address(x):
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(2))


def _flat(x):
    return None if x is None else x.float().contiguous()
