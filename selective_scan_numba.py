"""
The CPU kernel of the selective scan, through Numba: `numba_forward` and `numba_backward`, with the signatures of
`torch_forward` and `torch_backward` in selective_scan.py, whose glossary holds here too.

One pass over time for a block of 16 channels at once (a vector), CHUNK steps at a time, so that all that a chunk needs
stays in the first-level cache; the innermost loop runs over the steps of one component n of the state, with h in a
register. Δ's softplus, the skip D and the gate z are part of the pass. The state is fp32: float64 is left to torch.
"""

import torch
from numba import boolean, int64, void

from .vectors_numba import (
    ADDRESS,
    LANES,
    LN_2,
    LOG2_E,
    absolute,
    add,
    all_within,
    at_least,
    constant,
    exp2,
    exp2_of_product,
    float32,
    fma,
    inline,
    jit,
    load,
    load_first,
    load_one,
    mul,
    num_tasks,
    run_tasks,
    sigmoid,
    softplus,
    splat,
    split,
    store,
    store_first,
    store_one,
    sub,
    total,
)


CHUNK = 16  # steps between two states kept for the backward pass, as in selective_scan.py
STEPS = CHUNK * LANES  # elements of one quantity over one chunk of one block

# ---------------------------------------------------------------------------------------------------------------------
# Parts of both kernels. What is per parameter or state lies in scratch memory as (block, n, lane), what is per step as
# (step, lane); the lanes beyond the last channel hold zeros.


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
            largest = fma(value, constant(0.0), at_least(value, largest))  # NaN or infinity in any makes it NaN
        store(largest_A, block * LANES, largest)


@inline
def load_steps(u, delta, bias, with_softplus, row, start, steps, channel, width, largest_A, x, raw, dt, dtx):
    """
    u, delta + bias, Δ and Δ·u of a chunk to scratch memory. Returns whether 2^(Δ·A2) stays clear of over- and
    underflow in all of it, and neither Δ nor A2 is NaN anywhere.
    """
    largest = constant(0.0)
    for t in range(steps):
        u_t = load_first(u[0], row * u[1] + (start + t) * u[2] + channel, width)
        raw_t = add(load_first(delta[0], row * delta[1] + (start + t) * delta[2] + channel, width), bias)
        dt_t = softplus(raw_t) if with_softplus else raw_t
        store(x, t * LANES, u_t)
        store(raw, t * LANES, raw_t)
        store(dt, t * LANES, dt_t)
        store(dtx, t * LANES, mul(dt_t, u_t))
        largest = fma(dt_t, constant(0.0), at_least(absolute(dt_t), largest))
    return all_within(mul(largest, load(largest_A, 0)), float32(125.0))


@inline
def run_steps(h, A2, B, C, at_B, at_C, steps, bounded, dt, dtx, o):
    """Eq. 5 for one component of the state, from h before the chunk: adds C·h to o and returns h after the chunk."""
    for t in range(steps):
        dt_t = load(dt, t * LANES)
        decay = exp2_of_product(dt_t, A2) if bounded else exp2(mul(dt_t, A2))
        b = splat(load_one(B[0], at_B + t * B[2]))
        c = splat(load_one(C[0], at_C + t * C[2]))
        h = fma(decay, h, mul(load(dtx, t * LANES), b))
        store(o, t * LANES, fma(h, c, load(o, t * LANES)))
    return h


@inline
def run_and_keep_steps(h, A2, B, C, at_B, at_C, steps, bounded, dt, dtx, o, kept_h, kept_decay):
    """`run_steps` that also keeps h before and after every step, and every decay."""
    store(kept_h, 0, h)
    for t in range(steps):
        dt_t = load(dt, t * LANES)
        decay = exp2_of_product(dt_t, A2) if bounded else exp2(mul(dt_t, A2))
        b = splat(load_one(B[0], at_B + t * B[2]))
        c = splat(load_one(C[0], at_C + t * C[2]))
        h = fma(decay, h, mul(load(dtx, t * LANES), b))
        store(kept_decay, t * LANES, decay)
        store(kept_h, (t + 1) * LANES, h)
        store(o, t * LANES, fma(h, c, load(o, t * LANES)))


@inline
def reverse_steps(g, A2, B, C, at_B, at_C, steps, dt, dtx, grad_o, kept_h, kept_decay, grad_dtx, grad_dtA, sum_B, sum_C):
    """
    Back through the chunk for one component of the state, from g = Ā·dL/dh of the step after it. Adds to what the
    last four point to. Returns g for the chunk before, and dL/dA of the chunk.
    """
    grad_A = constant(0.0)
    for i in range(steps):
        at = (steps - 1 - i) * LANES
        b = splat(load_one(B[0], at_B + (steps - 1 - i) * B[2]))
        c = splat(load_one(C[0], at_C + (steps - 1 - i) * C[2]))
        grad_o_t = load(grad_o, at)
        g = fma(c, grad_o_t, g)  # dL/dh of this step
        store(sum_C, at, fma(load(kept_h, at + LANES), grad_o_t, load(sum_C, at)))
        store(sum_B, at, fma(g, load(dtx, at), load(sum_B, at)))
        store(grad_dtx, at, fma(g, b, load(grad_dtx, at)))
        g = mul(g, load(kept_decay, at))
        grad_x = mul(g, load(kept_h, at))  # of Δ·A
        store(grad_dtA, at, fma(grad_x, A2, load(grad_dtA, at)))
        grad_A = fma(grad_x, load(dt, at), grad_A)
    return g, grad_A


# ---------------------------------------------------------------------------------------------------------------------
# The kernels


def scratch_size(e, s):
    """Elements of scratch memory of one task, for either kernel."""
    blocks = -(-e // LANES)
    return blocks * LANES * (3 * s + 3) + 2 * s * STEPS + 12 * STEPS


@jit(void(*[ADDRESS] * 7, *[int64] * 3, int64, int64, int64, boolean, int64, int64, int64, int64, int64))
def _forward(u, delta, B, C, z, y, A, D, delta_bias, states, e, l, s, with_softplus, scratch, row0, row1, block0, block1):
    """Rows row0 to row1 of the channels in blocks block0 to block1. Addresses are 0 for what is absent."""
    blocks, chunks = (e + LANES - 1) // LANES, (l + CHUNK - 1) // CHUNK
    A2, h, largest_A = scratch, scratch + 4 * blocks * s * LANES, scratch + 8 * blocks * s * LANES
    x = largest_A + 4 * blocks * LANES
    raw, dt, dtx, o = x + 4 * STEPS, x + 8 * STEPS, x + 12 * STEPS, x + 16 * STEPS
    load_parameters(A, e, s, block0, block1, A2, largest_A)
    for row in range(row0, row1):
        for i in range(block0 * s, block1 * s):
            store(h, i * LANES, constant(0.0))
        for chunk in range(chunks):
            start = chunk * CHUNK
            steps = min(CHUNK, l - start)
            for block in range(block0, block1):
                channel = block * LANES
                width = min(LANES, e - channel)
                bias = load_first(delta_bias, channel, width) if delta_bias != 0 else constant(0.0)
                bounded = load_steps(
                    u, delta, bias, with_softplus, row, start, steps, channel, width,
                    largest_A + 4 * channel, x, raw, dt, dtx,
                )  # fmt: skip
                skip = load_first(D, channel, width) if D != 0 else constant(0.0)
                for t in range(steps):
                    store(o, t * LANES, mul(skip, load(x, t * LANES)) if D != 0 else constant(0.0))
                for n in range(s):
                    at = (block * s + n) * LANES
                    h_n, A2_n = load(h, at), load(A2, at)
                    at_B, at_C = row * B[1] + start * B[2] + n, row * C[1] + start * C[2] + n
                    if states != 0:
                        store_first(states, ((row * chunks + chunk) * s + n) * e + channel, width, h_n)
                    if bounded:
                        h_n = run_steps(h_n, A2_n, B, C, at_B, at_C, steps, True, dt, dtx, o)
                    else:
                        h_n = run_steps(h_n, A2_n, B, C, at_B, at_C, steps, False, dt, dtx, o)
                    store(h, at, h_n)
                for t in range(steps):
                    y_t = load(o, t * LANES)
                    if z[0] != 0:
                        z_t = load_first(z[0], row * z[1] + (start + t) * z[2] + channel, width)
                        y_t = mul(y_t, mul(z_t, sigmoid(z_t)))
                    store_first(y[0], row * y[1] + (start + t) * y[2] + channel, width, y_t)


@inline
def load_gate(grad_y, z, row, start, steps, channel, width, grad_o, grad_gate):
    """dL/do of a chunk, and what o must be multiplied by for dL/dz."""
    for t in range(steps):
        grad_y_t = load_first(grad_y[0], row * grad_y[1] + (start + t) * grad_y[2] + channel, width)
        if z[0] != 0:
            z_t = load_first(z[0], row * z[1] + (start + t) * z[2] + channel, width)
            sigma = sigmoid(z_t)
            slope = mul(sigma, fma(z_t, sub(constant(1.0), sigma), constant(1.0)))
            store(grad_gate, t * LANES, mul(grad_y_t, slope))
            grad_y_t = mul(grad_y_t, mul(z_t, sigma))
        store(grad_o, t * LANES, grad_y_t)


@inline
def clear(address, size):
    for i in range(size // LANES):
        store(address, i * LANES, constant(0.0))


@inline
def store_sums(sums, grad_B, row, start, steps, s):
    """The chunk's sums over channels, kept by lane as (n, t, lane), to grad_B or grad_C."""
    for t in range(steps):
        for n in range(s):
            value = total(load(sums, (n * CHUNK + t) * LANES))
            store_one(grad_B[0], row * grad_B[1] + (start + t) * grad_B[2] + n, value)


@jit(void(*[ADDRESS] * 11, *[int64] * 3, int64, int64, int64, boolean, int64, int64, *[int64] * 4))
def _backward(
    grad_y, u, delta, B, C, z, grad_u, grad_delta, grad_B, grad_C, grad_z, A, D, delta_bias, states, e, l, s,
    with_softplus, sums, scratch, row0, row1, block0, block1,
):  # fmt: skip
    """
    The gradients of those rows and channels. What is summed over rows goes to sums (s + 2, e): A's, D's, delta_bias's.
    """
    blocks, chunks = (e + LANES - 1) // LANES, (l + CHUNK - 1) // CHUNK
    per_state, per_channel, per_step = 4 * blocks * s * LANES, 4 * blocks * LANES, 4 * STEPS
    A2, carry, grad_A = scratch, scratch + per_state, scratch + 2 * per_state
    largest_A = scratch + 3 * per_state
    grad_D, grad_bias = largest_A + per_channel, largest_A + 2 * per_channel
    sum_B = largest_A + 3 * per_channel
    sum_C = sum_B + s * per_step
    x = sum_C + s * per_step
    raw, dt, dtx, o, grad_o = x + per_step, x + 2 * per_step, x + 3 * per_step, x + 4 * per_step, x + 5 * per_step
    grad_gate, grad_dtx, grad_dtA = x + 6 * per_step, x + 7 * per_step, x + 8 * per_step
    kept_decay, kept_h = x + 9 * per_step, x + 10 * per_step
    load_parameters(A, e, s, block0, block1, A2, largest_A)
    clear(grad_A, blocks * s * LANES)
    clear(grad_D, 2 * blocks * LANES)
    for row in range(row0, row1):
        clear(carry, blocks * s * LANES)
        for chunk_from_end in range(chunks):
            chunk = chunks - 1 - chunk_from_end
            start = chunk * CHUNK
            steps = min(CHUNK, l - start)
            clear(sum_B, 2 * s * STEPS)
            for block in range(block0, block1):
                channel = block * LANES
                width = min(LANES, e - channel)
                bias = load_first(delta_bias, channel, width) if delta_bias != 0 else constant(0.0)
                bounded = load_steps(
                    u, delta, bias, with_softplus, row, start, steps, channel, width,
                    largest_A + 4 * channel, x, raw, dt, dtx,
                )  # fmt: skip
                load_gate(grad_y, z, row, start, steps, channel, width, grad_o, grad_gate)
                clear(o, STEPS)
                clear(grad_dtx, 2 * STEPS)
                for n in range(s):
                    at = (block * s + n) * LANES
                    A2_n = load(A2, at)
                    h = load_first(states, ((row * chunks + chunk) * s + n) * e + channel, width)
                    at_B, at_C = row * B[1] + start * B[2] + n, row * C[1] + start * C[2] + n
                    if bounded:
                        run_and_keep_steps(h, A2_n, B, C, at_B, at_C, steps, True, dt, dtx, o, kept_h, kept_decay)
                    else:
                        run_and_keep_steps(h, A2_n, B, C, at_B, at_C, steps, False, dt, dtx, o, kept_h, kept_decay)
                    g, grad_A_n = reverse_steps(
                        load(carry, at), A2_n, B, C, at_B, at_C, steps, dt, dtx, grad_o, kept_h, kept_decay,
                        grad_dtx, grad_dtA, sum_B + n * per_step, sum_C + n * per_step,
                    )  # fmt: skip
                    store(carry, at, g)
                    store(grad_A, at, add(load(grad_A, at), grad_A_n))
                skip = load_first(D, channel, width) if D != 0 else constant(0.0)
                grad_D_sum, grad_bias_sum = load(grad_D, channel), load(grad_bias, channel)
                for t in range(steps):
                    at = t * LANES
                    x_t, grad_o_t, grad_dtx_t = load(x, at), load(grad_o, at), load(grad_dtx, at)
                    grad_dt = fma(grad_dtx_t, x_t, mul(load(grad_dtA, at), constant(LN_2)))
                    if with_softplus:
                        grad_dt = mul(grad_dt, sigmoid(load(raw, at)))
                    grad_x = mul(grad_dtx_t, load(dt, at))
                    o_t = load(o, at)
                    if D != 0:
                        grad_x = fma(grad_o_t, skip, grad_x)
                        o_t = fma(skip, x_t, o_t)
                    grad_D_sum = fma(grad_o_t, x_t, grad_D_sum)
                    grad_bias_sum = add(grad_bias_sum, grad_dt)
                    position = start + t
                    store_first(grad_u[0], row * grad_u[1] + position * grad_u[2] + channel, width, grad_x)
                    store_first(grad_delta[0], row * grad_delta[1] + position * grad_delta[2] + channel, width, grad_dt)
                    if z[0] != 0:
                        grad_z_t = mul(o_t, load(grad_gate, at))
                        store_first(grad_z[0], row * grad_z[1] + position * grad_z[2] + channel, width, grad_z_t)
                store(grad_D, channel, grad_D_sum)
                store(grad_bias, channel, grad_bias_sum)
            store_sums(sum_B, grad_B, row, start, steps, s)
            store_sums(sum_C, grad_C, row, start, steps, s)
    for block in range(block0, block1):
        channel = block * LANES
        width = min(LANES, e - channel)
        for n in range(s):
            store_first(sums, n * e + channel, width, load(grad_A, (block * s + n) * LANES))
        store_first(sums, s * e + channel, width, load(grad_D, channel))
        store_first(sums, (s + 1) * e + channel, width, load(grad_bias, channel))


# ---------------------------------------------------------------------------------------------------------------------
# From tensors to addresses


def numba_forward(u, delta, A, B, C, D, z, delta_bias, delta_softplus, keep_states):
    """As `torch_forward` in selective_scan.py; the state is fp32."""
    (b, e, l), s = u.shape, A.shape[1]
    y = u.new_empty(b, l, e).transpose(1, 2)
    result = y if u.dtype == torch.float32 else u.new_empty(b, l, e, dtype=torch.float32).transpose(1, 2)
    states = u.new_empty(b, -(-l // CHUNK), s, e, dtype=torch.float32) if keep_states else None
    if result.numel():
        tensors, addresses = _by_channel(u, delta, B, C, z)
        D, delta_bias = _flat(D), _flat(delta_bias)
        A = A.float()
        arguments = (*addresses, _address(result), _address_of_A(A), *map(_first, (D, delta_bias, states)))
        arguments += (e, l, s, delta_softplus)
        tasks = _tasks(b, e, l, s)
        scratch = torch.empty(len(tasks), scratch_size(e, s))
        run_tasks(_forward, [(*arguments, work.data_ptr(), *task) for work, task in zip(scratch, tasks)])
        del tensors
    return y if result is y else y.copy_(result), states


def numba_backward(grad_y, u, delta, A, B, C, D, z, delta_bias, delta_softplus, states, needs):
    """As `torch_backward` in selective_scan.py."""
    (b, e, l), s = u.shape, A.shape[1]
    tasks = _tasks(b, e, l, s)
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
            parameters = (_address_of_A(A32), *map(_first, (D32, bias32, states)), e, l, s, delta_softplus)
            calls.append((*addresses, *grads, *parameters, sums[i].data_ptr(), scratch[i].data_ptr(), *task))
        run_tasks(_backward, calls)
        del kept
    grad_A, grad_D, grad_bias = sums.sum(0).split([s, 1, 1])
    grad_B, grad_C = (x.sum(0).transpose(1, 2) if split_channels else x[0].transpose(1, 2) for x in (grad_B, grad_C))
    # clones: the results of an operator may not share memory
    grad_A, grad_D, grad_bias = grad_A.clone().t(), grad_D[0].clone(), grad_bias[0].clone()
    grads = (grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias)
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    return [grad.to(x.dtype) if needed else None for grad, x, needed in zip(grads, tensors, needs)]


def _by_channel(*tensors):
    """fp32 tensors (b, k, l) whose neighbours in memory are channels (copies if they weren't), and their addresses."""
    tensors = [x if x is None or x.dtype == torch.float32 else x.float() for x in tensors]
    tensors = [
        x if x is None or x.stride(1) == 1 or x.shape[1] == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)
        for x in tensors
    ]
    return tensors, [_address(x) for x in tensors]


def _address(x):
    return (0, 0, 0) if x is None else (x.data_ptr(), x.stride(0), x.stride(2))


def _address_of_A(A):
    return (A.data_ptr(), *A.stride())


def _flat(x):
    return None if x is None else x.float().contiguous()


def _first(x):
    return 0 if x is None else x.data_ptr()


def _tasks(b, e, l, s):
    """Ranges of rows and blocks of channels, (row0, row1, block0, block1) for each thread."""
    blocks = -(-e // LANES)
    most = num_tasks(b * e * l * s, max(b, blocks))
    if b >= most:
        return [(start, stop, 0, blocks) for start, stop in split(b, most)]
    return [(0, b, start, stop) for start, stop in split(blocks, min(most, blocks))]
