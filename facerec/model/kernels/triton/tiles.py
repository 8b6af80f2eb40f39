"""What the Triton kernels share: tiles of tokens, and the functions of softplus and SiLU.

A tile of tokens is (rows, channels). With 32 channels or more a thread holds all rows of its
channels, so that a row can be picked out of a tile and put into one by an index known at compile
time, at no cost; narrower tiles, of small batches, spread rows over lanes and pick by shuffles.
Arithmetic is float32; exp(x) is exp2(x log2 e).

Axes: B batch, L tokens, D channels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def wide(number):
    """A number as int64."""
    # A cast would do, but loop counters are plain integers under the interpreter.
    return number + tl.zeros([], tl.int64)


@triton.jit
def pick(tile, here):
    """(channels,) the one row of a tile where `here` (rows, 1) is true."""
    # A sum of integers with zeros folds away at compile time; of floats it would not (-0.0, NaN).
    bits = tl.where(here, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def load_tile(base, stride, offsets, inside):
    """(rows, channels) float32 of rows that lie `stride` numbers apart; zeros where not `inside`."""
    rows = tl.arange(0, inside.shape[0])
    return tl.load(base + rows[:, None] * stride + offsets[None, :], mask=inside, other=0.0).to(
        tl.float32
    )


@triton.jit
def load_vector(pointer, d, own):
    """A number a channel; zeros where there is no such vector."""
    numbers = tl.zeros(d.shape, tl.float32)
    if pointer is not None:
        numbers = tl.load(pointer + d, mask=own, other=0.0).to(tl.float32)
    return numbers


@triton.jit
def store_tile(base, stride, offsets, inside, tile):
    """Writes what `load_tile` reads, in the type of the memory."""
    rows = tl.arange(0, inside.shape[0])
    tl.store(
        base + rows[:, None] * stride + offsets[None, :],
        tile.to(base.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    # exp2 of a negative number alone, so that neither end overflows.
    power = tl.exp2(-tl.abs(x) * LOG2_E)
    return tl.where(x >= 0, 1.0, power) / (1.0 + power)


@triton.jit
def softplus(x):
    """max(x, 0) + log1p(exp(-|x|)); log1p(p) = 2 artanh(s), s = p / (2 + p) <= 1/3, keeps small steps exact."""
    power = tl.exp2(-tl.abs(x) * LOG2_E)
    s = power / (2.0 + power)
    q = s * s
    series = q * (1 / 15) + 1 / 13
    series = q * series + 1 / 11
    series = q * series + 1 / 9
    series = q * series + 1 / 7
    series = q * series + 1 / 5
    series = q * series + 1 / 3
    series = q * series + 1.0
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def step(raw, inside, SOFTPLUS: tl.constexpr):
    """The scan's step size delta of a tile."""
    # Tokens past the end and channels past the last get step 0: the state passes through them unchanged.
    return tl.where(inside, softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def first_token(pointer, picture, picture_stride, length, token_stride, REVERSE: tl.constexpr):
    """Where the first token that is scanned lies."""
    base = pointer + wide(picture) * picture_stride
    if REVERSE:
        base += wide(length - 1) * token_stride
    return base


_COUNTS = ("batch", "length", "channels", "states", "width", "pictures", "intervals")
_TOKEN_STRIDES = tuple(f"{name}_t" for name in ("u", "delta", "z", "out", "grad", "du", "dd", "dz"))
_PICTURE_STRIDES = tuple(
    f"{name}_b" for name in ("u", "delta", "z", "out", "grad", "du", "dd", "dz", "B", "C")
)
_GROUP_STRIDES = ("B_g", "C_g", "B_t", "C_t")


def unspecialised(function):
    """Arguments for which no kernel of their own is compiled.

    Token strides must be among them: a divisor known to the compiler makes it load vectors across channels, and then
    a thread no longer holds all rows of its channel. The rest would multiply kernels for nothing.
    """
    names = {*_COUNTS, *_TOKEN_STRIDES, *_PICTURE_STRIDES, *_GROUP_STRIDES}
    return [name for name in function.__code__.co_varnames if name in names]


def like(tensor: Tensor) -> Tensor:
    """Fresh memory for a tensor (B, D, L) of the same dtype, dense, with the same axis innermost."""
    batch, channels, length = tensor.shape
    if tensor.stride(2) == 1 and tensor.stride(1) != 1:
        return tensor.new_empty((batch, channels, length))
    return tensor.new_empty((batch, length, channels)).transpose(1, 2)


def dense(vector: Tensor | None) -> Tensor | None:
    """The vector without strides, if there is one."""
    return vector.contiguous() if vector is not None else None
