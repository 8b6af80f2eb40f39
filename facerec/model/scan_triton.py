"""The selective scan in Triton: values and all gradients on a CUDA card, with nothing to compile beforehand.

Plain functions over kernels; `mamba_triton` makes operators of them. Formulas are those of
`facerec.model.scan.selective_scan` (Gu and Dao, "Mamba", 2023). Tensors may have any strides; arithmetic is
float32; exp(x) is exp2(x log2 e) with log2 e multiplied into A once. Nothing synchronises with the host.

**Forward.** One warp holds a tile (states, channels) of h in registers and walks over the tokens, eight rows of
u, delta, z at a time; with 32 channels a thread owns a whole channel, so the sum over states needs no exchange, and rows of
a token-major tensor are read coalesced. Per token, channel and state: one exponential, two products, two FMAs. Per token
and channel: four more exponentials and reciprocals; u, delta, z read, out written: 16 bytes in float32, 8 in
bfloat16. Where batch x channels cannot fill a card, the tile narrows to as few as 4 channels and the warp's lanes share the
states instead: 96 warps for 384 channels at batch 1.

**Backward.** The forward pass keeps h every `interval` tokens, at least as many as there are states, so that what it
keeps stays below a float32 tensor like u. One warp owns 64 (or 32) channels of a few pictures and walks back over the
intervals: it recomputes h at every fourth token (into scratch of its own, which lives in L2), then takes four tokens and
one state at a time, recomputes four h, walks back over them and adds to the gradients that it holds in registers. Per token,
channel and state: one exponential, and one more for 7 of 8 tokens in the recomputation; 12 other operations; two sums over the
warp's channels, for B and C, of five shuffles each for two channels. Per token and channel 28 bytes in float32, and the
second reading of an interval, from cache. At batch 1 this leaves most of a card idle; nobody trains on one picture.

**Determinism.** Sums across warps (B, C over channels; A, D, bias over pictures) go through partial sums in
memory, added by one reduction in a fixed order. No atomics. Block sizes follow from shapes alone, not from timing: a
resumed run must add in the same order.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)

_FILL = 2048  # warps that keep a large card busy: 132 multiprocessors x 16
_MOST_PROGRAMS = 8192  # of the backward pass; bounds its scratch
_ROWS = 8  # tokens that a thread holds at once; half of them in the backward pass, which has no registers left


class Plan(NamedTuple):
    """How a scan is cut. `channels` a warp, `rows` of tokens at once, `pictures` a warp (backward alone)."""

    channels: int
    rows: int
    pictures: int = 1


def forward_plan(batch: int, channels: int, groups: int, states: int) -> Plan:
    """Blocks of the forward pass: 16 numbers of h a thread, fewer where the card would idle."""
    padded, width = triton.next_power_of_2(states), channels // groups
    block = max(4, min(32, 512 // padded, triton.next_power_of_2(width)))
    while block > 4 and block * padded > 64 and batch * groups * -(-width // block) < _FILL:
        block //= 2
    return Plan(block, _ROWS)


def backward_plan(batch: int, channels: int, length: int, groups: int, states: int) -> Plan:
    """Blocks of the backward pass, and how many pictures a warp takes so that scratch stays below the input."""
    width = channels // groups
    block = 64 if batch * groups * -(-width // 64) >= _FILL else 32
    blocks = groups * -(-width // block)
    parts = min(batch, max(1, _MOST_PROGRAMS // blocks), max(1, batch * length // states))
    return Plan(block, _ROWS // 2, -(-batch // parts))


def interval(states: int, length: int) -> int:
    """Tokens between two kept states: a multiple of `_ROWS`, at least `states`."""
    return min(max(32, triton.next_power_of_2(states)), -(-max(length, 1) // _ROWS) * _ROWS)


def kept_shape(batch: int, channels: int, length: int, states: int) -> tuple[int, int, int, int]:
    """(B, intervals - 1, N, D): states before every interval but the first, which begins with zeros."""
    return batch, max(0, -(-length // interval(states, length)) - 1), states, channels


# What both passes share. A tile of tokens is (rows, channels); rows that a thread holds are picked and put by index.


@triton.jit
def _wide(number):
    # A cast would do, but loop counters are plain integers under the interpreter.
    return number + tl.zeros([], tl.int64)


@triton.jit
def _pick(tile, here):
    # A sum of integers with zeros folds away at compile time; of floats it would not (-0.0, NaN).
    bits = tl.where(here, tile.to(tl.int32, bitcast=True), 0)
    return tl.sum(bits, axis=0).to(tl.float32, bitcast=True)


@triton.jit
def _load(base, stride, offsets, inside):
    rows = tl.arange(0, inside.shape[0])
    return tl.load(base + rows[:, None] * stride + offsets[None, :], mask=inside, other=0.0).to(
        tl.float32
    )


@triton.jit
def _store(base, stride, offsets, inside, tile):
    rows = tl.arange(0, inside.shape[0])
    tl.store(
        base + rows[:, None] * stride + offsets[None, :],
        tile.to(base.dtype.element_ty),
        mask=inside,
    )


@triton.jit
def _sigmoid(x):
    # exp2 of a negative number alone, so that neither end overflows.
    power = tl.exp2(-tl.abs(x) * LOG2_E)
    return tl.where(x >= 0, 1.0, power) / (1.0 + power)


@triton.jit
def _softplus(x):
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
def _step(raw, inside, SOFTPLUS: tl.constexpr):
    # Tokens past the end and channels past the last get step 0: the state passes through them unchanged.
    return tl.where(inside, _softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def _start(pointer, picture, picture_stride, length, token_stride, REVERSE: tl.constexpr):
    """Where the first token that is scanned lies."""
    base = pointer + _wide(picture) * picture_stride
    if REVERSE:
        base += _wide(length - 1) * token_stride
    return base


_COUNTS = ("batch", "length", "channels", "states", "width", "pictures", "intervals")
_TOKEN_STRIDES = tuple(f"{name}_t" for name in ("u", "delta", "z", "out", "grad", "du", "dd", "dz"))
_PICTURE_STRIDES = tuple(
    f"{name}_b" for name in ("u", "delta", "z", "out", "grad", "du", "dd", "dz", "B", "C")
)
_GROUP_STRIDES = ("B_g", "C_g", "B_t", "C_t")


def _unspecialised(function):
    """Arguments for which no kernel of their own is compiled.

    Token strides must be among them: a divisor known to the compiler makes it load vectors across channels, and then
    a thread no longer holds all rows of its channel. The rest would multiply kernels for nothing.
    """
    names = {*_COUNTS, *_TOKEN_STRIDES, *_PICTURE_STRIDES, *_GROUP_STRIDES}
    return [name for name in function.__code__.co_varnames if name in names]


# Forward.


def _forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    out,
    last,  # (B, D, N), or None
    kept,  # (B, intervals - 1, N, D), or None
    length,
    channels,
    states,
    width,  # channels a group
    intervals,
    u_b,
    u_d,
    u_t,
    delta_b,
    delta_d,
    delta_t,
    z_b,
    z_d,
    z_t,
    out_b,
    out_d,
    out_t,
    B_b,
    B_g,
    B_n,
    B_t,
    C_b,
    C_g,
    C_n,
    C_t,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    STATES: tl.constexpr,
    PADDED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    INTERVAL: tl.constexpr,
):
    blocks = tl.cdiv(width, CHANNELS)
    per_picture = blocks * (channels // width)
    picture = tl.program_id(0) // per_picture
    group = tl.program_id(0) % per_picture // blocks
    lane = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = lane < width
    d = group * width + lane
    n = tl.arange(0, STATES)
    owns = (n < states)[:, None] & own[None, :]
    rows = tl.arange(0, ROWS)
    known = n < states if PADDED else None
    nothing = 0.0 if PADDED else None

    rate = tl.load(A + d[None, :] * states + n[:, None], mask=owns, other=0.0).to(tl.float32)
    rate *= LOG2_E
    skip = tl.zeros([CHANNELS], tl.float32)
    if D is not None:
        skip = tl.load(D + d, mask=own, other=0.0).to(tl.float32)
    shift = tl.zeros([CHANNELS], tl.float32)
    if bias is not None:
        shift = tl.load(bias + d, mask=own, other=0.0).to(tl.float32)

    u_at = _start(u, picture, u_b, length, u_t, REVERSE)
    delta_at = _start(delta, picture, delta_b, length, delta_t, REVERSE)
    out_at = _start(out, picture, out_b, length, out_t, REVERSE)
    B_at = _start(B, picture, B_b, length, B_t, REVERSE) + group * B_g
    C_at = _start(C, picture, C_b, length, C_t, REVERSE) + group * C_g
    ahead = -1 if REVERSE else 1
    if z is not None:
        z_at = _start(z, picture, z_b, length, z_t, REVERSE)

    h = tl.zeros([STATES, CHANNELS], tl.float32)
    for start in range(0, length, ROWS):
        first = _wide(start * ahead)
        inside = (start + rows < length)[:, None] & own[None, :]
        x = _load(u_at + first * u_t, ahead * u_t, d * u_d, inside)
        dt = _load(delta_at + first * delta_t, ahead * delta_t, d * delta_d, inside)
        dt = _step(dt + shift[None, :], inside, SOFTPLUS)
        dtu = dt * x
        y = skip[None, :] * x
        if kept is not None and start > 0 and start % INTERVAL == 0:
            row = _wide(picture) * (intervals - 1) + start // INTERVAL - 1
            at = kept + row * states * channels + n[:, None] * channels + d[None, :]
            tl.store(at, h, mask=owns)
        for i in tl.static_range(ROWS):
            here = (rows == i)[:, None]
            # Past the end the last token is read again: its step is 0 there, and no mask is needed.
            token = _wide(tl.minimum(start + i, length - 1) * ahead)
            b = tl.load(B_at + token * B_t + n * B_n, mask=known, other=nothing).to(tl.float32)
            c = tl.load(C_at + token * C_t + n * C_n, mask=known, other=nothing).to(tl.float32)
            h = tl.exp2(_pick(dt, here)[None, :] * rate) * h
            h += _pick(dtu, here)[None, :] * b[:, None]
            y = tl.where(here, y + tl.sum(h * c[:, None], axis=0)[None, :], y)
        if z is not None:
            gate = _load(z_at + first * z_t, ahead * z_t, d * z_d, inside)
            y *= gate * _sigmoid(gate)
        _store(out_at + first * out_t, ahead * out_t, d * out_d, inside, y)
    if last is not None:
        at = last + _wide(picture) * channels * states
        tl.store(at + d[None, :] * states + n[:, None], h, mask=owns)


_forward_kernel = triton.jit(_forward, do_not_specialize=_unspecialised(_forward))


# Backward.


def _backward(
    grad,
    grad_last,  # (B, D, N), or None
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    bias,
    kept,  # (B, intervals - 1, N, D)
    du,
    dd,
    dz,
    dB,  # (B, blocks, N, L)
    dC,  # (B, blocks, N, L)
    shares,  # (parts, N + 2, D): of the gradients of A, D and bias
    states_at,  # (parts, INTERVAL / ROWS, N, D): h before every `ROWS` tokens of an interval
    carried,  # (parts, N, D): the gradient that reaches h from the tokens after
    batch,
    length,
    channels,
    states,
    width,
    pictures,
    intervals,
    grad_b,
    grad_d,
    grad_t,
    u_b,
    u_d,
    u_t,
    delta_b,
    delta_d,
    delta_t,
    z_b,
    z_d,
    z_t,
    du_b,
    du_d,
    du_t,
    dd_b,
    dd_d,
    dd_t,
    dz_b,
    dz_d,
    dz_t,
    B_b,
    B_g,
    B_n,
    B_t,
    C_b,
    C_g,
    C_n,
    C_t,
    SOFTPLUS: tl.constexpr,
    REVERSE: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    INTERVAL: tl.constexpr,
):
    blocks = tl.cdiv(width, CHANNELS)
    per_part = blocks * (channels // width)
    part = tl.program_id(0) // per_part
    column = tl.program_id(0) % per_part
    group = column // blocks
    lane = column % blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = lane < width
    d = group * width + lane
    rows = tl.arange(0, ROWS)
    ahead = -1 if REVERSE else 1
    plane = states * channels

    skip = tl.zeros([CHANNELS], tl.float32)
    if D is not None:
        skip = tl.load(D + d, mask=own, other=0.0).to(tl.float32)
    shift = tl.zeros([CHANNELS], tl.float32)
    if bias is not None:
        shift = tl.load(bias + d, mask=own, other=0.0).to(tl.float32)
    share = shares + _wide(part) * (plane + 2 * channels) + d
    scratch = states_at + _wide(part) * (INTERVAL // ROWS) * plane + d
    carry = carried + _wide(part) * plane + d
    d_skip = tl.zeros([CHANNELS], tl.float32)
    d_shift = tl.zeros([CHANNELS], tl.float32)

    for picture in range(part * pictures, tl.minimum(part * pictures + pictures, batch)):
        grad_at = _start(grad, picture, grad_b, length, grad_t, REVERSE)
        u_at = _start(u, picture, u_b, length, u_t, REVERSE)
        delta_at = _start(delta, picture, delta_b, length, delta_t, REVERSE)
        du_at = _start(du, picture, du_b, length, du_t, REVERSE)
        dd_at = _start(dd, picture, dd_b, length, dd_t, REVERSE)
        B_at = _start(B, picture, B_b, length, B_t, REVERSE) + group * B_g
        C_at = _start(C, picture, C_b, length, C_t, REVERSE) + group * C_g
        partial = (_wide(picture) * per_part + column) * states * length
        if REVERSE:
            partial += length - 1
        if z is not None:
            z_at = _start(z, picture, z_b, length, z_t, REVERSE)
            dz_at = _start(dz, picture, dz_b, length, dz_t, REVERSE)

        for n in range(0, states):
            g = tl.zeros([CHANNELS], tl.float32)
            if grad_last is not None:
                at = grad_last + _wide(picture) * plane + d * states + n
                g = tl.load(at, mask=own, other=0.0)
            tl.store(carry + n * channels, g, mask=own)

        for back in range(0, intervals):
            index = intervals - 1 - back
            origin = index * INTERVAL
            count = tl.cdiv(tl.minimum(length - origin, INTERVAL), ROWS)

            # h before every `ROWS` tokens of this interval.
            for n in range(0, states):
                h = tl.zeros([CHANNELS], tl.float32)
                if index > 0:
                    at = _wide(picture) * (intervals - 1) + index - 1
                    h = tl.load(kept + at * plane + n * channels + d, mask=own, other=0.0)
                tl.store(scratch + n * channels, h, mask=own)
            tl.debug_barrier()
            for j in range(0, count - 1):
                start = origin + j * ROWS
                first = _wide(start * ahead)
                token = _wide(tl.minimum(start + rows, length - 1) * ahead)
                inside = (start + rows < length)[:, None] & own[None, :]
                dt = _load(delta_at + first * delta_t, ahead * delta_t, d * delta_d, inside)
                dt = _step(dt + shift[None, :], inside, SOFTPLUS)
                dtu = dt * _load(u_at + first * u_t, ahead * u_t, d * u_d, inside)
                for n in range(0, states):
                    rate = tl.load(A + d * states + n, mask=own, other=0.0).to(tl.float32)
                    decay = tl.exp2(dt * (rate * LOG2_E)[None, :])
                    b = tl.load(B_at + n * B_n + token * B_t).to(tl.float32)
                    new = dtu * b[:, None]
                    h = tl.load(scratch + (j * states + n) * channels, mask=own, other=0.0)
                    for i in tl.static_range(ROWS):
                        here = (rows == i)[:, None]
                        h = _pick(decay, here) * h + _pick(new, here)
                    tl.store(scratch + ((j + 1) * states + n) * channels, h, mask=own)
                tl.debug_barrier()

            for j_back in range(0, count):
                j = count - 1 - j_back
                start = origin + j * ROWS
                first = _wide(start * ahead)
                token = _wide(tl.minimum(start + rows, length - 1) * ahead)
                valid = start + rows < length
                inside = valid[:, None] & own[None, :]
                dt = _load(delta_at + first * delta_t, ahead * delta_t, d * delta_d, inside)
                dt = _step(dt + shift[None, :], inside, SOFTPLUS)
                dtu = dt * _load(u_at + first * u_t, ahead * u_t, d * u_d, inside)
                dy = _load(grad_at + first * grad_t, ahead * grad_t, d * grad_d, inside)
                if z is not None:
                    gate = _load(z_at + first * z_t, ahead * z_t, d * z_d, inside)
                    dy *= gate * _sigmoid(gate)
                y = tl.zeros([ROWS, CHANNELS], tl.float32)
                d_new = tl.zeros([ROWS, CHANNELS], tl.float32)  # of dt u
                d_dt = tl.zeros([ROWS, CHANNELS], tl.float32)  # of dt in the decay
                for n in range(0, states):
                    a = tl.load(A + d * states + n, mask=own, other=0.0).to(tl.float32)
                    decay = tl.exp2(dt * (a * LOG2_E)[None, :])
                    b = tl.load(B_at + n * B_n + token * B_t).to(tl.float32)
                    c = tl.load(C_at + n * C_n + token * C_t).to(tl.float32)
                    new = dtu * b[:, None]
                    h = tl.load(scratch + (j * states + n) * channels, mask=own, other=0.0)
                    hs = tl.zeros([ROWS, CHANNELS], tl.float32)
                    for i in tl.static_range(ROWS):
                        here = (rows == i)[:, None]
                        h = _pick(decay, here) * h + _pick(new, here)
                        hs = tl.where(here, h[None, :], hs)
                    gs = dy * c[:, None]
                    g = tl.load(carry + n * channels, mask=own, other=0.0)
                    for i in tl.static_range(ROWS):
                        here = (rows == ROWS - 1 - i)[:, None]
                        g += _pick(gs, here)
                        gs = tl.where(here, g[None, :], gs)
                        g *= _pick(decay, here)
                    tl.store(carry + n * channels, g, mask=own)
                    at = partial + n * length + first + rows * ahead
                    tl.store(dB + at, tl.sum(gs * dtu, axis=1), mask=valid)
                    tl.store(dC + at, tl.sum(hs * dy, axis=1), mask=valid)
                    y += hs * c[:, None]
                    d_new += gs * b[:, None]
                    through = gs * (hs - new)  # gradient of the decay times the decay
                    d_dt += through * a[None, :]
                    d_a = tl.load(share + n * channels, mask=own, other=0.0)
                    d_a += tl.sum(through * dt, axis=0)
                    tl.store(share + n * channels, d_a, mask=own)

                # Read again, not kept: registers are what this loop is short of.
                x = _load(u_at + first * u_t, ahead * u_t, d * u_d, inside)
                _store(
                    du_at + first * du_t,
                    ahead * du_t,
                    d * du_d,
                    inside,
                    d_new * dt + dy * skip[None, :],
                )
                d_skip += tl.sum(dy * x, axis=0)
                d_raw = d_dt + d_new * x
                if SOFTPLUS:
                    raw = _load(delta_at + first * delta_t, ahead * delta_t, d * delta_d, inside)
                    d_raw *= _sigmoid(raw + shift[None, :])
                d_raw = tl.where(inside, d_raw, 0.0)
                d_shift += tl.sum(d_raw, axis=0)
                _store(dd_at + first * dd_t, ahead * dd_t, d * dd_d, inside, d_raw)
                if z is not None:
                    gate = _load(z_at + first * z_t, ahead * z_t, d * z_d, inside)
                    open_ = _sigmoid(gate)
                    slope = open_ * (1.0 + gate * (1.0 - open_))
                    d_out = _load(grad_at + first * grad_t, ahead * grad_t, d * grad_d, inside)
                    d_gate = d_out * slope * (y + skip[None, :] * x)
                    _store(dz_at + first * dz_t, ahead * dz_t, d * dz_d, inside, d_gate)
                tl.debug_barrier()
    tl.store(share + plane, d_skip, mask=own)
    tl.store(share + plane + channels, d_shift, mask=own)


_backward_kernel = triton.jit(_backward, do_not_specialize=_unspecialised(_backward))


# Functions.


def like(tensor: Tensor) -> Tensor:
    """Fresh memory for a tensor (B, D, L) of the same dtype, dense, with the same axis innermost."""
    batch, channels, length = tensor.shape
    if tensor.stride(2) == 1 and tensor.stride(1) != 1:
        return tensor.new_empty((batch, channels, length))
    return tensor.new_empty((batch, length, channels)).transpose(1, 2)


def scan_forward(
    u: Tensor,  # (B, D, L)
    delta: Tensor,  # (B, D, L)
    A: Tensor,  # (D, N)
    B: Tensor,  # (B, G, N, L)
    C: Tensor,  # (B, G, N, L)
    D: Tensor | None,  # (D,)
    z: Tensor | None,  # (B, D, L)
    delta_bias: Tensor | None,  # (D,)
    delta_softplus: bool,
    *,
    reverse: bool = False,
    return_last_state: bool = True,
    keep: bool = False,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`facerec.model.scan.selective_scan`.

    Args:
        reverse: from the last token to the first.
        keep: keep states for `scan_backward`.
        plan: block sizes in place of `forward_plan`'s.

    Returns:
        out (B, D, L) in u's dtype and layout; the last state (B, D, N) float32, None unless asked for;
        states kept (`kept_shape`) float32, None unless asked for.
    """
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    out = like(u)
    last = (
        u.new_zeros((batch, channels, states), dtype=torch.float32) if return_last_state else None
    )
    shape = kept_shape(batch, channels, length, states)
    kept = u.new_empty(shape, dtype=torch.float32) if keep else None
    if not u.numel():
        return out, last, kept
    plan = plan or forward_plan(batch, channels, groups, states)
    width = channels // groups
    with torch.cuda.device_of(u):
        _forward_kernel[(batch * groups * triton.cdiv(width, plan.channels),)](
            u,
            delta,
            A.contiguous(),
            B,
            C,
            _dense(D),
            z,
            _dense(delta_bias),
            out,
            last,
            kept,
            length,
            channels,
            states,
            width,
            shape[1] + 1,
            *u.stride(),
            *delta.stride(),
            *(z if z is not None else u).stride(),
            *out.stride(),
            *B.stride(),
            *C.stride(),
            SOFTPLUS=delta_softplus,
            REVERSE=reverse,
            STATES=triton.next_power_of_2(states),
            PADDED=states != triton.next_power_of_2(states),
            CHANNELS=plan.channels,
            ROWS=plan.rows,
            INTERVAL=interval(states, length),
            num_warps=1,
        )
    return out, last, kept


def scan_backward(
    grad_out: Tensor,  # (B, D, L)
    grad_last_state: Tensor | None,  # (B, D, N)
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    *,
    reverse: bool = False,
    kept: Tensor | None = None,
    plan: Plan | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of `scan_forward`'s eight tensors, each in its tensor's dtype, None where there is no tensor.

    Args:
        grad_out, grad_last_state: gradients of the two outputs; None of the last state where nobody asked.
        kept: what the forward pass kept; computed again where it is missing.
        plan: block sizes in place of `backward_plan`'s.
    """
    inputs = (u, delta, A, B, C, D, z, delta_bias)
    batch, channels, length = u.shape
    groups, states = B.shape[1:3]
    if not u.numel():
        return tuple(None if t is None else torch.zeros_like(t) for t in inputs)
    if kept is None:
        kept = scan_forward(
            *inputs, delta_softplus, reverse=reverse, return_last_state=False, keep=True
        )[2]
    plan = plan or backward_plan(batch, channels, length, groups, states)
    width = channels // groups
    blocks = triton.cdiv(width, plan.channels)
    parts = triton.cdiv(batch, plan.pictures)
    every = interval(states, length)
    du, dd, dz = like(u), like(delta), like(z) if z is not None else None
    new = {"device": u.device, "dtype": torch.float32}
    dB, dC = torch.empty((2, batch, groups * blocks, states, length), **new)
    shares = torch.zeros((parts, states + 2, channels), **new)
    with torch.cuda.device_of(u):
        _backward_kernel[(parts * groups * blocks,)](
            grad_out,
            grad_last_state.float().contiguous() if grad_last_state is not None else None,
            u,
            delta,
            A.contiguous(),
            B,
            C,
            _dense(D),
            z,
            _dense(delta_bias),
            kept,
            du,
            dd,
            dz,
            dB,
            dC,
            shares,
            torch.empty((parts, every // plan.rows, states, channels), **new),
            torch.empty((parts, states, channels), **new),
            batch,
            length,
            channels,
            states,
            width,
            plan.pictures,
            kept.shape[1] + 1,
            *grad_out.stride(),
            *u.stride(),
            *delta.stride(),
            *(z if z is not None else u).stride(),
            *du.stride(),
            *dd.stride(),
            *(dz if dz is not None else du).stride(),
            *B.stride(),
            *C.stride(),
            SOFTPLUS=delta_softplus,
            REVERSE=reverse,
            CHANNELS=plan.channels,
            ROWS=plan.rows,
            INTERVAL=every,
            num_warps=1,
        )
    dB, dC = (t.view(batch, groups, blocks, states, length).sum(2) for t in (dB, dC))
    total = shares.sum(0)
    gradients = (du, dd, total[:states].t(), dB, dC, total[states], dz, total[states + 1])
    return tuple(
        None if t is None else g.to(t.dtype) for g, t in zip(gradients, inputs, strict=True)
    )


def _dense(vector: Tensor | None) -> Tensor | None:
    return vector.contiguous() if vector is not None else None
