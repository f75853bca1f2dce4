"""
CPU kernels, through Numba, of what surrounds the scan in a Mamba block: the causal convolution with its SiLU, and
RMSNorm. Each reads and writes memory once where PyTorch's operators go through it several times. fp32.

Symbols: b rows of the batch, l steps, e channels, k width of the convolution; for the norm, rows of d numbers.
"""

import math

import torch

from .vectors_numba import (
    ADDRESS,
    LANES,
    add,
    clear,
    compile_kernels,
    constant,
    float32,
    fma,
    int64,
    jit,
    load,
    load_first,
    load_one,
    mul,
    num_tasks,
    pointer,
    run_tasks,
    sigmoid,
    splat,
    split,
    store,
    store_first,
    store_one,
    sub,
    total,
    void,
)


BLOCK_SOURCE = __file__


@jit(void(ADDRESS, *[int64] * 8))
def _conv_silu(x, weight, bias, y, l, e, k, row0, row1):
    """weight (k, e) and y (b, l, e) contiguous."""
    for row in range(row0, row1):
        for channel in range(0, e, LANES):
            width = min(LANES, e - channel)
            start = load_first(bias, channel, width) if bias != 0 else constant(0.0)
            for t in range(l):
                value = start
                for j in range(max(0, k - 1 - t), k):
                    x_j = load_first(x[0], row * x[1] + (t - (k - 1) + j) * x[2] + channel, width)
                    value = fma(x_j, load_first(weight, j * e + channel, width), value)
                store_first(y, (row * l + t) * e + channel, width, mul(value, sigmoid(value)))


@jit(void(ADDRESS, ADDRESS, *[int64] * 10))
def _conv_silu_backward(grad_y, x, weight, bias, grad_x, sums, scratch, l, e, k, row0, row1):
    """grad_x (b, l, e) contiguous; the gradients of weight and bias over these rows are added to sums (k + 1, e)."""
    taps, later = scratch, scratch + 4 * (k + 1) * LANES  # sums of one block; the last k gradients, twice
    for row in range(row0, row1):  # outside, so that a row stays in the cache while its channels are gone through
        for channel in range(0, e, LANES):
            width = min(LANES, e - channel)
            start = load_first(bias, channel, width) if bias != 0 else constant(0.0)
            for j in range(k + 1):
                store(taps, j * LANES, load_first(sums, j * e + channel, width))
            clear(later, 2 * k * LANES)
            newest = 0
            for from_end in range(l):
                t = l - 1 - from_end
                value = start
                for j in range(max(0, k - 1 - t), k):
                    x_j = load_first(x[0], row * x[1] + (t - (k - 1) + j) * x[2] + channel, width)
                    value = fma(x_j, load_first(weight, j * e + channel, width), value)
                gate = sigmoid(value)
                slope = mul(gate, fma(value, sub(constant(1.0), gate), constant(1.0)))
                grad = mul(load_first(grad_y[0], row * grad_y[1] + t * grad_y[2] + channel, width), slope)
                newest = newest - 1 if newest > 0 else k - 1
                store(later, newest * LANES, grad)  # step t + i of the gradient is at newest + i
                store(later, (newest + k) * LANES, grad)
                grad_x_t = constant(0.0)
                for i in range(k):
                    w = load_first(weight, (k - 1 - i) * e + channel, width)
                    grad_x_t = fma(load(later, (newest + i) * LANES), w, grad_x_t)
                store_first(grad_x, (row * l + t) * e + channel, width, grad_x_t)
                for j in range(max(0, k - 1 - t), k):
                    x_j = load_first(x[0], row * x[1] + (t - (k - 1) + j) * x[2] + channel, width)
                    store(taps, j * LANES, fma(grad, x_j, load(taps, j * LANES)))
                store(taps, k * LANES, add(grad, load(taps, k * LANES)))
            for j in range(k + 1):
                store_first(sums, j * e + channel, width, load(taps, j * LANES))


@jit(void(*[int64] * 5, float32, int64, int64))
def _rms_norm(x, weight, y, scale, d, eps, row0, row1):
    """x and y (rows, d) contiguous; 1 / RMS of each row to scale (rows,)."""
    for row in range(row0, row1):
        squares = constant(0.0)
        for i in range(0, d, LANES):
            x_i = load_first(x, row * d + i, min(LANES, d - i))
            squares = fma(x_i, x_i, squares)
        r = float32(1.0) / math.sqrt(total(squares) / float32(d) + eps)
        store_one(scale, row, float32(r))
        for i in range(0, d, LANES):
            width = min(LANES, d - i)
            normed = mul(load_first(x, row * d + i, width), splat(float32(r)))
            store_first(y, row * d + i, width, mul(normed, load_first(weight, i, width)))


@jit(void(*[int64] * 9))
def _rms_norm_backward(grad_y, x, weight, scale, grad_x, grad_weight, d, row0, row1):
    """All (rows, d) contiguous; grad_weight (d rounded up to whole vectors,), summed over these rows."""
    clear(grad_weight, (d + LANES - 1) // LANES * LANES)
    for row in range(row0, row1):
        r = splat(load_one(scale, row))
        product = constant(0.0)
        for i in range(0, d, LANES):
            width = min(LANES, d - i)
            normed = mul(load_first(x, row * d + i, width), r)
            grad = load_first(grad_y, row * d + i, width)
            store(grad_weight, i, fma(grad, normed, load(grad_weight, i)))
            product = fma(mul(grad, load_first(weight, i, width)), normed, product)
        mean = splat(-total(product) / float32(d))
        for i in range(0, d, LANES):
            width = min(LANES, d - i)
            normed = mul(load_first(x, row * d + i, width), r)
            grad = mul(load_first(grad_y, row * d + i, width), load_first(weight, i, width))
            store_first(grad_x, row * d + i, width, mul(fma(normed, mean, grad), r))


def compile_block():
    """Compiles the kernels, or loads them from disk."""
    compile_kernels(_conv_silu, _conv_silu_backward, _rms_norm, _rms_norm_backward)


def conv_silu(x, weight, bias):
    """SiLU(causal depthwise convolution): x (b, l, e), weight (e, k), bias (e,) or None -> (b, l, e), all fp32."""
    b, l, e = x.shape
    y = torch.empty(b, l, e)
    if y.numel():
        x, taps = _neighbours(x), weight.t().contiguous()
        shared = (_address(x), taps.data_ptr(), pointer(bias), y.data_ptr(), l, e)
        parts = split(b, num_tasks(16 * b * l * e, b))
        run_tasks(_conv_silu, [(*shared, weight.shape[1], *rows) for rows in parts])
    return y


def conv_silu_backward(grad_y, x, weight, bias):
    """The gradients of x, weight and bias (None without one), all fp32."""
    (b, l, e), k = x.shape, weight.shape[1]
    grad_x = torch.empty(b, l, e)
    parts = split(b, num_tasks(32 * b * l * e, max(1, b)))
    sums = torch.zeros(len(parts), k + 1, e)
    if grad_x.numel():
        grad_y, x, taps = _neighbours(grad_y), _neighbours(x), weight.t().contiguous()
        scratch = torch.empty(len(parts), (3 * k + 1) * LANES)
        shared = (_address(grad_y), _address(x), taps.data_ptr(), pointer(bias))
        run_tasks(
            _conv_silu_backward,
            [
                (*shared, grad_x.data_ptr(), sums[i].data_ptr(), scratch[i].data_ptr(), l, e, k, *rows)
                for i, rows in enumerate(parts)
            ],
        )
    sums = sums.sum(0)
    return grad_x, sums[:k].t(), None if bias is None else sums[k]


def rms_norm(x, weight, eps):
    """x (..., d), weight (d,) -> the normed x and 1 / RMS of each row, for `rms_norm_backward`, all fp32."""
    x, d = x.contiguous(), x.shape[-1]
    rows = x.numel() // d
    y, scale = torch.empty_like(x), torch.empty(rows)
    parts = split(rows, num_tasks(8 * x.numel(), max(1, rows)))
    shared = (x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr(), d)
    run_tasks(_rms_norm, [(*shared, eps, *part) for part in parts])
    return y, scale


def rms_norm_backward(grad_y, x, weight, scale):
    """The gradients of x and weight."""
    grad_y, x, d = grad_y.contiguous(), x.contiguous(), x.shape[-1]
    grad_x = torch.empty_like(x)
    parts = split(len(scale), num_tasks(16 * x.numel(), max(1, len(scale))))
    sums = torch.empty(len(parts), -(-d // LANES) * LANES)
    shared = (grad_y.data_ptr(), x.data_ptr(), weight.data_ptr(), scale.data_ptr(), grad_x.data_ptr())
    tasks = [(*shared, part_sums.data_ptr(), d, *part) for part_sums, part in zip(sums, parts)]
    run_tasks(_rms_norm_backward, tasks)
    return grad_x, sums.sum(0)[:d]


def _neighbours(x):
    """Channels next to each other in memory: a copy if they weren't."""
    return x if x.stride(2) == 1 or x.shape[2] == 1 else x.contiguous()


def _address(x):
    return x.data_ptr(), x.stride(0), x.stride(1)
