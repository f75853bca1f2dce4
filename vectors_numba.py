"""
SIMD for Numba: a `vector` type of 16 fp32 lanes, the arithmetic and functions that the CPU kernels need on it, and
threads. LLVM turns a vector into whatever the machine has (one AVX-512 register, two of AVX, four of NEON), which is
steadier than hoping that it vectorises a loop; memory is reached by address, so that no kernel depends on a layout.

Every function takes and returns vectors unless its docstring says otherwise; addresses are integers in bytes,
indices count fp32 elements. Importing this file without Numba raises ImportError.
"""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch


try:  # guarded here too: transformers looks for missing packages in every file of a checkpoint
    from llvmlite import ir
    from numba import boolean, float32, int64, njit, types, void
    from numba.extending import intrinsic, models, register_model
except Exception as error:
    raise ImportError(f"numba: {type(error).__name__}: {error}") from error


VECTORS_SOURCE = __file__
_SOURCE_HASH = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8] if Path(__file__).is_file() else ""
LANES = 16
ADDRESS = types.UniTuple(int64, 3)  # of the first element, and the strides over rows and over steps, in elements
_logger = logging.getLogger(__name__)
_FLOATS, _INTEGERS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name=f"float32x{LANES}")


vector = _Vector()


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, _FLOATS)


# ---------------------------------------------------------------------------------------------------------------------
# Compilation


def jit(signature):
    """
    A kernel, compiled by `compile_kernels`, whose machine code is kept on disk for the next process.
    Multiplications and additions may be fused, and nothing else is relaxed: NaN and infinity stay what they are.
    """

    def decorate(function):
        # Numba goes by the time of the file that a kernel is in; what it takes from here must count too
        function.__qualname__ += f"_{_SOURCE_HASH}"
        options = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
        try:
            kernel = njit(cache=True, **options)(function)
        except RuntimeError:  # Numba found no folder that it may write to
            _say_that_nothing_is_kept()
            kernel = njit(**options)(function)
        kernel.signature_to_compile = signature
        return kernel

    return decorate


inline = njit(forceinline=True, error_model="numpy")  # parts of kernels


def compile_kernels(*kernels):
    """Compiles or loads kernels now, so that a failure shows here and not in the middle of a step."""
    for kernel in kernels:
        kernel.compile(kernel.signature_to_compile)
        kernel.disable_compile()


@cache
def _say_that_nothing_is_kept():
    _logger.warning(
        "Numba found no folder to keep its kernels in: every process compiles them anew, which takes seconds. To fix "
        "it: set NUMBA_CACHE_DIR to a folder that can be written to"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def pointer(x):
    """The address of a tensor's first element as kernels take it; 0 for None."""
    return 0 if x is None else x.data_ptr()


def _pointer(builder, address, index, pointee):
    element = builder.gep(builder.inttoptr(address, ir.FloatType().as_pointer()), [index])
    return builder.bitcast(element, pointee.as_pointer())


def _lane_mask(builder, count):
    """True in the first `count` lanes."""
    count = builder.trunc(count, ir.IntType(32))
    lanes = ir.Constant(_INTEGERS, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, count, _INTEGERS))


def _splat(builder, scalar, vector_type):
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTEGERS, [0] * LANES))


def _declare(builder, name, result, arguments):
    module = builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name=name)


@intrinsic
def load(typing, address, index):
    """All lanes from address + index."""

    def generate(context, builder, signature, arguments):
        return builder.load(_pointer(builder, *arguments, _FLOATS), align=4)

    return vector(int64, int64), generate


@intrinsic
def store(typing, address, index, values):
    """All lanes to address + index."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(builder, *arguments[:2], _FLOATS), align=4)
        return context.get_dummy_value()

    return void(int64, int64, vector), generate


@intrinsic
def load_first(typing, address, index, count):
    """The first `count` lanes from address + index, zeros in the others, which aren't touched in memory."""

    def generate(context, builder, signature, arguments):
        address, index, count = arguments
        masks = ir.VectorType(ir.IntType(1), LANES)
        pointer = _pointer(builder, address, index, _FLOATS)
        name = f"llvm.masked.load.v{LANES}f32.p0"
        function = _declare(builder, name, _FLOATS, [pointer.type, ir.IntType(32), masks, _FLOATS])
        zeros = ir.Constant(_FLOATS, [0.0] * LANES)
        return builder.call(function, [pointer, ir.Constant(ir.IntType(32), 4), _lane_mask(builder, count), zeros])

    return vector(int64, int64, int64), generate


@intrinsic
def store_first(typing, address, index, count, values):
    """The first `count` lanes to address + index."""

    def generate(context, builder, signature, arguments):
        address, index, count, values = arguments
        masks = ir.VectorType(ir.IntType(1), LANES)
        pointer = _pointer(builder, address, index, _FLOATS)
        name = f"llvm.masked.store.v{LANES}f32.p0"
        function = _declare(builder, name, ir.VoidType(), [_FLOATS, pointer.type, ir.IntType(32), masks])
        builder.call(function, [values, pointer, ir.Constant(ir.IntType(32), 4), _lane_mask(builder, count)])
        return context.get_dummy_value()

    return void(int64, int64, int64, vector), generate


@intrinsic
def load_one(typing, address, index):
    """The fp32 number at address + index."""

    def generate(context, builder, signature, arguments):
        return builder.load(_pointer(builder, *arguments, ir.FloatType()), align=4)

    return float32(int64, int64), generate


@intrinsic
def store_one(typing, address, index, value):
    """An fp32 number to address + index."""

    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(builder, *arguments[:2], ir.FloatType()), align=4)
        return context.get_dummy_value()

    return void(int64, int64, float32), generate


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic


def _elementwise(number, build):
    """An intrinsic from `number` vectors to one."""

    def generate(context, builder, signature, arguments):
        return build(builder, *arguments)

    if number == 1:
        return intrinsic(lambda typing, a: (vector(vector), generate))
    if number == 2:
        return intrinsic(lambda typing, a, b: (vector(vector, vector), generate))
    return intrinsic(lambda typing, a, b, c: (vector(vector, vector, vector), generate))


def _fma(builder, a, b, c):
    name = f"llvm.fmuladd.v{LANES}f32"  # fused where the machine can, else two roundings rather than a library call
    return builder.call(_declare(builder, name, _FLOATS, [_FLOATS] * 3), [a, b, c])


def _bits(builder, a):
    return builder.bitcast(a, _INTEGERS)


def _add_exponent(builder, a, b):
    shifted = builder.shl(_bits(builder, b), ir.Constant(_INTEGERS, [23] * LANES))
    return builder.bitcast(builder.add(_bits(builder, a), shifted), _FLOATS)


def _select_less(builder, a, b, c):
    return builder.select(builder.fcmp_ordered("<", a, b), c, a)


def _absolute(builder, a):
    return builder.select(builder.fcmp_ordered("<", a, builder.fneg(a)), builder.fneg(a), a)


def _zero_below(builder, a, b, c):
    return builder.select(builder.fcmp_ordered("<", a, b), ir.Constant(_FLOATS, [0.0] * LANES), c)


add = _elementwise(2, lambda builder, a, b: builder.fadd(a, b))
sub = _elementwise(2, lambda builder, a, b: builder.fsub(a, b))
mul = _elementwise(2, lambda builder, a, b: builder.fmul(a, b))
div = _elementwise(2, lambda builder, a, b: builder.fdiv(a, b))
fma = _elementwise(3, _fma)  # a * b + c
negative = _elementwise(1, lambda builder, a: builder.fneg(a))
# What NaN is in the first argument stays NaN in these
at_least = _elementwise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), b, a))
at_most = _elementwise(2, lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), b, a))
absolute = _elementwise(1, _absolute)
zero_below = _elementwise(3, _zero_below)  # c, but 0 where a < b
_plus_exponent = _elementwise(2, _add_exponent)  # a * 2^n where b = ROUND + n, without any care for over- or underflow


@intrinsic
def splat(typing, value):
    """An fp32 number in every lane."""

    def generate(context, builder, signature, arguments):
        return _splat(builder, arguments[0], _FLOATS)

    return vector(float32), generate


@intrinsic
def total(typing, a):
    """The fp32 sum of the lanes, by halves."""

    def generate(context, builder, signature, arguments):
        name = f"llvm.vector.reduce.fadd.v{LANES}f32"
        function = _declare(builder, name, ir.FloatType(), [ir.FloatType(), _FLOATS])
        return builder.call(function, [ir.Constant(ir.FloatType(), -0.0), arguments[0]], fastmath=["reassoc"])

    return float32(vector), generate


@intrinsic
def all_within(typing, a, bound):
    """Whether every lane lies in [-bound, bound]; NaN doesn't."""

    def generate(context, builder, signature, arguments):
        a, bound = arguments
        bound = _splat(builder, bound, _FLOATS)
        inside = builder.and_(builder.fcmp_ordered("<=", a, bound), builder.fcmp_ordered(">=", a, builder.fneg(bound)))
        name = f"llvm.vector.reduce.and.v{LANES}i1"
        return builder.call(_declare(builder, name, ir.IntType(1), [inside.type]), [inside])

    return boolean(vector, float32), generate


# ---------------------------------------------------------------------------------------------------------------------
# Functions

_ROUND = 1.5 * 2**23  # adding it rounds to an integer, which is then in the lowest bits
LOG2_E, LN_2 = 1.4426950408889634, 0.6931471805599453
# (2^r - 1) / r on [-1/2, 1/2] and (atanh(x) / x - 1) / x^2 on [0, 1/3] as a polynomial in x^2: least maximum of the
# relative error of 2^r (9e-8) and of log(1 + y) (5e-9)
_EXP2 = (0.6931469775914957, 0.24022242080363385, 0.05550733754247001, 0.009671512869551199, 0.001326472389315649)
_LOG1P = (0.3333320656480541, 0.20010849594348792, 0.1399956970354659, 0.1401223282346721)


@inline
def clear(address, size):
    """Zeros in `size` elements, a multiple of LANES."""
    for i in range(0, size, LANES):
        store(address, i, splat(float32(0.0)))


@inline
def constant(value):
    """A number of any type in every lane."""
    return splat(float32(value))


# In memory, for LLVM would rather reload known constants in every step of a loop than keep them in registers
_EXP2_CONSTANTS = torch.tensor([_ROUND, 1.0, *_EXP2])
EXP2_CONSTANTS = _EXP2_CONSTANTS.data_ptr()


@inline
def load_exp2_constants(address):
    """What `exp2_of_product` needs, from EXP2_CONSTANTS, once before a loop."""
    return (
        splat(load_one(address, 0)),
        splat(load_one(address, 1)),
        splat(load_one(address, 2)),
        splat(load_one(address, 3)),
        splat(load_one(address, 4)),
        splat(load_one(address, 5)),
        splat(load_one(address, 6)),
    )


@inline
def exp2_of_product(a, b, constants):
    """2^(a·b) for a·b in [-125, 125]."""
    rounding, one, c1, c2, c3, c4, c5 = constants
    rounded = fma(a, b, rounding)
    r = fma(a, b, sub(rounding, rounded))
    p = fma(r, fma(r, fma(r, fma(r, fma(r, c5, c4), c3), c2), c1), one)
    return _plus_exponent(p, rounded)


@inline
def exp2(x):
    """
    2^x for any x, NaN and infinity included. Where fp32 underflows and float64 doesn't (x in [-1075, -126]) it is
    2^-126 rather than zero: as nothing in a sum, but infinity times it is infinity, as it would be in float64.
    """
    bounded = at_most(at_least(x, constant(-126.0)), constant(128.0))
    rounded = add(bounded, constant(_ROUND))
    r = sub(bounded, sub(rounded, constant(_ROUND)))
    scale = _plus_exponent(constant(1.0), rounded)  # 2^128 is infinity this way
    p = fma(r, constant(_EXP2[4]), constant(_EXP2[3]))
    p = fma(r, fma(r, p, constant(_EXP2[2])), constant(_EXP2[1]))
    p = fma(r, fma(r, p, constant(_EXP2[0])), constant(1.0))
    return zero_below(x, constant(-1075.0), mul(p, scale))


@inline
def sigmoid(x):
    """1 / (1 + e^-x)"""
    return div(constant(1.0), add(constant(1.0), exp2(mul(x, constant(-LOG2_E)))))


@inline
def softplus(x):
    """log(1 + e^x), as max(x, 0) + log(1 + e^-|x|)"""
    positive = at_least(x, constant(0.0))
    y = exp2(mul(constant(-LOG2_E), absolute(x)))  # e^-|x|, in [0, 1]
    s = div(y, add(constant(2.0), y))  # log(1 + y) = 2 atanh(s)
    s2 = mul(s, s)
    p = fma(s2, constant(_LOG1P[3]), constant(_LOG1P[2]))
    p = fma(s2, p, constant(_LOG1P[1]))
    p = fma(s2, p, constant(_LOG1P[0]))
    return add(positive, fma(mul(add(s, s), s2), p, add(s, s)))


# ---------------------------------------------------------------------------------------------------------------------
# Threads

_SERIAL_WORK = 2**19  # operations, a fraction of a millisecond: below it, waking threads costs more than it saves
_pool = None


def _forget_pool():
    global _pool
    _pool = None  # its threads stayed behind in the parent


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def num_tasks(work, most):
    """Into how many parts a job of `work` operations is cut: torch's number of threads, `most` or fewer."""
    return 1 if work < _SERIAL_WORK else max(1, min(torch.get_num_threads(), most))


def split(size, parts):
    """`size` things in `parts` ranges of nearly equal length, as (start, stop) each."""
    bounds = [size * i // parts for i in range(parts + 1)]
    return list(zip(bounds, bounds[1:]))


def split_work(work, b, blocks):
    """Ranges of rows and of blocks of channels, (row0, row1, block0, block1), for each task of `work` operations."""
    most = num_tasks(work, max(b, blocks))
    if b >= most:
        return [(start, stop, 0, blocks) for start, stop in split(b, most)]
    return [(0, b, start, stop) for start, stop in split(blocks, min(most, blocks))]


def run_tasks(function, tasks):
    """Calls function(*task) for every task, on a thread each; kernels release the GIL."""
    global _pool
    if len(tasks) == 1:
        return function(*tasks[0])
    if _pool is None or _pool._max_workers < len(tasks) - 1:
        _pool = ThreadPoolExecutor(len(tasks) - 1, thread_name_prefix="hf_mamba")
    futures = [_pool.submit(function, *task) for task in tasks[1:]]
    function(*tasks[0])
    for future in futures:
        future.result()
