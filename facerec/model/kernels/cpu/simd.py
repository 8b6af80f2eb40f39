"""Explicit float32 vectors for Numba: arithmetic, exponentials, loads and stores.

Numba leaves vectorisation to LLVM, which gives it up wherever two arrays might overlap; a vector type
does not ask. LLVM cuts it into what the processor has (AVX-512, AVX2, NEON ...), so that one source
serves every CPU. Memory is seen through addresses (int64): no bounds are checked.
"""

from __future__ import annotations

import operator

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
LOG2_E = np.float32(1.4426950408889634)

_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _IVECTOR = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES)
# A product may be fused into a sum; sums are never reordered: an order is what makes results exact.
_FAST = ("contract",)


class VectorType(types.Type):
    """Numba's type of `LANES` float32 in one register."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, frontend_type) -> None:
        super().__init__(manager, frontend_type, _VECTOR)


def _splat(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    kind = ir.VectorType(value.type, LANES)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)


def _pointer(builder: ir.IRBuilder, address: ir.Value, pointee: ir.Type) -> ir.Value:
    return builder.inttoptr(address, pointee.as_pointer())


# Arithmetic.


@intrinsic
def splat(typingctx, x):
    """All lanes equal to one number."""

    def codegen(context, builder, signature, args):
        return _splat(builder, context.cast(builder, args[0], signature.args[0], types.float32))

    return vector(x), codegen


def _binary(instruction: str):
    @intrinsic
    def operation(typingctx, a, b):
        def codegen(context, builder, signature, args):
            return getattr(builder, instruction)(*args, flags=_FAST)

        return vector(vector, vector), codegen

    return operation


def _overload_operator(symbol, instruction: str) -> None:
    operation = _binary(instruction)

    @overload(symbol, jit_options={"forceinline": True})
    def impl(a, b):
        if a is vector and b is vector:
            return lambda a, b: operation(a, b)
        if a is vector and isinstance(b, types.Number):
            return lambda a, b: operation(a, splat(b))
        if b is vector and isinstance(a, types.Number):
            return lambda a, b: operation(splat(a), b)
        return None


for _symbol, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _overload_operator(_symbol, _instruction)


@intrinsic
def clamp(typingctx, x, low, high):
    """min(max(x, low), high); a NaN stays one."""

    def codegen(context, builder, signature, args):
        bounds = [
            _splat(builder, context.cast(builder, value, kind, types.float32))
            for value, kind in zip(args[1:], signature.args[1:], strict=True)
        ]
        x = args[0]
        x = builder.select(builder.fcmp_ordered("<", x, bounds[0]), bounds[0], x)
        return builder.select(builder.fcmp_ordered(">", x, bounds[1]), bounds[1], x)

    return vector(x, low, high), codegen


@intrinsic
def absolute(typingctx, x):
    """|x|."""

    def codegen(context, builder, signature, args):
        magnitude = ir.Constant(_IVECTOR, [0x7FFFFFFF] * LANES)
        bits = builder.and_(builder.bitcast(args[0], _IVECTOR), magnitude)
        return builder.bitcast(bits, _VECTOR)

    return vector(vector), codegen


@njit(forceinline=True)
def larger(a, b):
    """Maximum; a NaN in b stays one."""
    return where_positive(a - b, a, b)


@intrinsic
def where_positive(typingctx, x, a, b):
    """a where x > 0, b elsewhere."""

    def codegen(context, builder, signature, args):
        x, a, b = args
        return builder.select(builder.fcmp_ordered(">", x, ir.Constant(_VECTOR, None)), a, b)

    return vector(vector, vector, vector), codegen


@intrinsic
def _times_power_of_two(typingctx, x, shifted):
    """x * 2**n for the n in the low bits of `shifted`: n goes into x's exponent."""

    def codegen(context, builder, signature, args):
        x, shifted = (builder.bitcast(value, _IVECTOR) for value in args)
        exponent = builder.shl(shifted, ir.Constant(_IVECTOR, [23] * LANES))
        return builder.bitcast(builder.add(x, exponent), _VECTOR)

    return vector(vector, vector), codegen


@intrinsic
def lane_sum(typingctx, x):
    """Sum of all lanes, pairwise: a float32."""

    def codegen(context, builder, signature, args):
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(_I32, width), list(range(first, first + width))),
                )
                for first in (0, width)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, _I32(0))

    return types.float32(vector), codegen


@intrinsic
def all_within(typingctx, x, limit):
    """Whether every lane is in [-limit, limit]; a NaN is not."""

    def codegen(context, builder, signature, args):
        limit = context.cast(builder, args[1], signature.args[1], types.float32)
        upper, lower = _splat(builder, limit), _splat(builder, builder.fneg(limit))
        inside = builder.and_(
            builder.fcmp_ordered("<=", args[0], upper), builder.fcmp_ordered(">=", args[0], lower)
        )
        mask = builder.bitcast(inside, ir.IntType(LANES))
        return builder.icmp_unsigned("==", mask, ir.Constant(mask.type, (1 << LANES) - 1))

    return types.boolean(vector, limit), codegen


@njit(forceinline=True)
def exp2(x):
    """2**x within 2 units of the last place, x held to [-126, 126]; 2**0 is exactly 1."""
    return exp2_within(clamp(x, -126.0, 126.0))


@njit(forceinline=True)
def exp2_within(x):
    """`exp2` for x known to be in [-126, 126]."""
    shifted = x + 12582912.0  # 1.5 * 2**23 pushes the fraction out and rounds
    f = x - (shifted - 12582912.0)
    p = f * 0.0013265119632706046 + 0.009671499952673912
    p = p * f + 0.05550732463598251
    p = p * f + 0.24022242426872253
    p = p * f + 0.6931470036506653
    return _times_power_of_two(p * f + 1.0, shifted)


@njit(forceinline=True)
def sigmoid(x):
    """1 / (1 + e**-x)."""
    return splat(1.0) / (exp2(x * -LOG2_E) + 1.0)


@njit(forceinline=True)
def softplus(x):
    """(log(1 + e**x), its derivative)."""
    e = exp2(where_positive(x, x * -LOG2_E, x * LOG2_E))  # e**-|x|
    p = e * 0.005232694558799267 - 0.02950524352490902
    p = p * e + 0.07822596281766891
    p = p * e - 0.13663247227668762
    p = p * e + 0.19106008112430573
    p = p * e - 0.2484298199415207
    p = p * e + 0.3331909775733948
    p = p * e - 0.4999949336051941
    p = p * e + 0.9999999403953552
    value = p * e + where_positive(x, x, splat(0.0))
    return value, where_positive(x, splat(1.0), e) / (e + 1.0)


# Memory.


@intrinsic
def load_int(typingctx, address, index):
    """The index-th int64 from an address on."""

    def codegen(context, builder, signature, args):
        pointer = builder.gep(_pointer(builder, args[0], _I64), [args[1]])
        return builder.load(pointer)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_float(typingctx, address):
    """The float32 at an address."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[0], _F32), align=4)

    return types.float32(types.int64), codegen


@intrinsic
def store_float(typingctx, address, value):
    """A float32 to an address."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], _F32), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def load_vector(typingctx, address):
    """`LANES` float32 that lie side by side."""

    def codegen(context, builder, signature, args):
        return builder.load(_pointer(builder, args[0], _VECTOR), align=4)

    return vector(types.int64), codegen


@intrinsic
def store_vector(typingctx, address, value):
    """`LANES` float32 side by side from an address on."""

    def codegen(context, builder, signature, args):
        builder.store(args[1], _pointer(builder, args[0], _VECTOR), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic
def prefetch(typingctx, address):
    """Ask for the cache lines of a vector at an address; never faults."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, _I32, _I32, _I32])
        call = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        for line in range(0, 4 * LANES, 64):
            place = builder.inttoptr(builder.add(args[0], _I64(line)), byte)
            builder.call(call, [place, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def insert_lane(typingctx, x, lane, value):
    """x with another number in one lane."""

    def codegen(context, builder, signature, args):
        return builder.insert_element(args[0], args[2], builder.trunc(args[1], _I32))

    return vector(vector, types.int64, types.float32), codegen


@intrinsic
def extract_lane(typingctx, x, lane):
    """The number in one lane: a float32."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(args[0], builder.trunc(args[1], _I32))

    return types.float32(vector, types.int64), codegen


@njit
def _load_lanes(address, stride, count):
    x = splat(0.0)
    for lane in range(count):
        x = insert_lane(x, lane, load_float(address + lane * stride))
    return x


@njit
def _store_lanes(address, stride, count, x):
    for lane in range(count):
        store_float(address + lane * stride, extract_lane(x, lane))


@njit(forceinline=True)
def load(address, stride, count):
    """`count` float32 that lie `stride` bytes apart; zeros in the other lanes."""
    if stride == 4 and count == LANES:
        return load_vector(address)
    return _load_lanes(address, stride, count)


@njit(forceinline=True)
def store(address, stride, count, x):
    """The first `count` lanes to float32 places that lie `stride` bytes apart."""
    if stride == 4 and count == LANES:
        store_vector(address, x)
    else:
        _store_lanes(address, stride, count, x)


@intrinsic
def fetch_add(typingctx, address, index):
    """Add one to the index-th int64 from an address on, atomically; its value before."""

    def codegen(context, builder, signature, args):
        pointer = builder.gep(_pointer(builder, args[0], _I64), [args[1]])
        return builder.atomic_rmw("add", pointer, _I64(1), "monotonic")

    return types.int64(types.int64, types.int64), codegen
