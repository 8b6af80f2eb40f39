"""The selective scan in Triton, forward: on a CUDA card, with nothing to compile beforehand.

Plain functions over kernels, here and in `scan_grad_triton`; `mamba_triton` makes operators of
them. Formulas are those of `facerec.model.scan.selective_scan` (Gu and Dao, "Mamba", 2023). Tensors
may have any strides; arithmetic is float32; exp(x) is exp2(x log2 e) with log2 e multiplied into A
once. Nothing synchronises with the host.

One warp holds a tile (states, channels) of h in registers and walks over the tokens, eight rows of
u, delta, z at a time; with 32 channels a thread owns a whole channel, so the sum over states needs
no exchange, and rows of a token-major tensor are read coalesced. Per token, channel and state: one
exponential, two products, two FMAs. Per token and channel: four more exponentials and reciprocals;
u, delta, z read, out written: 16 bytes in float32, 8 in bfloat16. Where batch x channels cannot
fill a card, the tile narrows to as few as 4 channels and the warp's lanes share the states instead:
96 warps for 384 channels at batch 1. Of a channel-major tensor each thread reads eight tokens in a row:
whole sectors of 32 bytes in float32, out of L1 after the first, yet not coalesced across lanes.

The states that the backward pass starts from are kept every `interval` tokens, at least as many as
there are states, so that they take no more memory than a float32 tensor like u. Block sizes follow
from shapes alone, not from timing: a resumed run must add in the same order.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from facerec.model.kernels.triton.tiles import (
    LOG2_E,
    dense,
    first_token,
    like,
    load_tile,
    load_vector,
    pick,
    sigmoid,
    step,
    store_tile,
    unspecialised,
    wide,
)

FILL = (
    1024  # warps that keep a large card busy: 132 multiprocessors, registers for 8 to 11 warps each
)
ROWS = (
    8  # tokens that a thread holds at once; half of them in the backward pass, short of registers
)


class Plan(NamedTuple):
    """How a scan is cut. `channels` a warp, `rows` of tokens at once, `pictures` a warp (backward alone)."""

    channels: int
    rows: int
    pictures: int = 1


def forward_plan(batch: int, channels: int, groups: int, states: int) -> Plan:
    """Blocks of the forward pass: 16 numbers of h a thread, fewer where the card would idle."""
    padded, width = triton.next_power_of_2(states), channels // groups
    block = max(4, min(32, 512 // padded, triton.next_power_of_2(width)))
    while block > 4 and block * padded > 64 and batch * groups * -(-width // block) < FILL:
        block //= 2
    return Plan(block, ROWS)


def check_picture(channels: int, length: int) -> None:
    """Raises ValueError where places within a picture do not fit into the kernels' 32 bits."""
    if channels * length >= 2**31:
        raise ValueError(f"a picture of {channels} x {length} numbers: fewer than 2**31 are due")


def interval(states: int, length: int) -> int:
    """Tokens between two kept states: a multiple of `ROWS`, at least `states`."""
    return min(max(32, triton.next_power_of_2(states)), -(-max(length, 1) // ROWS) * ROWS)


def kept_shape(batch: int, channels: int, length: int, states: int) -> tuple[int, int, int, int]:
    """(B, intervals - 1, N, D): states before every interval but the first, which begins with zeros."""
    return batch, max(0, -(-length // interval(states, length)) - 1), states, channels


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
    skip = load_vector(D, d, own)
    shift = load_vector(bias, d, own)

    u_at = first_token(u, picture, u_b, length, u_t, REVERSE)
    delta_at = first_token(delta, picture, delta_b, length, delta_t, REVERSE)
    out_at = first_token(out, picture, out_b, length, out_t, REVERSE)
    B_at = first_token(B, picture, B_b, length, B_t, REVERSE) + group * B_g
    C_at = first_token(C, picture, C_b, length, C_t, REVERSE) + group * C_g
    ahead = -1 if REVERSE else 1
    if z is not None:
        z_at = first_token(z, picture, z_b, length, z_t, REVERSE)

    h = tl.zeros([STATES, CHANNELS], tl.float32)
    for start in range(0, length, ROWS):
        first = wide(start * ahead)
        inside = (start + rows < length)[:, None] & own[None, :]
        x = load_tile(u_at + first * u_t, ahead * u_t, d * u_d, inside)
        dt = load_tile(delta_at + first * delta_t, ahead * delta_t, d * delta_d, inside)
        dt = step(dt + shift[None, :], inside, SOFTPLUS)
        dtu = dt * x
        y = skip[None, :] * x
        if kept is not None and start > 0 and start % INTERVAL == 0:
            row = wide(picture) * (intervals - 1) + start // INTERVAL - 1
            at = kept + row * states * channels + n[:, None] * channels + d[None, :]
            tl.store(at, h, mask=owns)
        for i in tl.static_range(ROWS):
            here = (rows == i)[:, None]
            # Past the end the last token is read again: its step is 0 there, and no mask is needed.
            token = wide(tl.minimum(start + i, length - 1) * ahead)
            b = tl.load(B_at + token * B_t + n * B_n, mask=known, other=nothing).to(tl.float32)
            c = tl.load(C_at + token * C_t + n * C_n, mask=known, other=nothing).to(tl.float32)
            h = tl.exp2(pick(dt, here)[None, :] * rate) * h
            h += pick(dtu, here)[None, :] * b[:, None]
            y = tl.where(here, y + tl.sum(h * c[:, None], axis=0)[None, :], y)
        if z is not None:
            gate = load_tile(z_at + first * z_t, ahead * z_t, d * z_d, inside)
            y *= gate * sigmoid(gate)
        store_tile(out_at + first * out_t, ahead * out_t, d * out_d, inside, y)
    if last is not None:
        at = last + wide(picture) * channels * states
        tl.store(at + d[None, :] * states + n[:, None], h, mask=owns)


_forward_kernel = triton.jit(_forward, do_not_specialize=unspecialised(_forward))


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
    check_picture(channels, length)
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
            dense(D),
            z,
            dense(delta_bias),
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
