"""The selective scan in Triton, backward: all gradients of `scan_triton.scan_forward`.

One warp owns 64 (or 32) channels of a few pictures and walks back over the intervals: it recomputes
h at every fourth token (into scratch of its own), then takes four tokens and one state at a time,
recomputes four h, walks back over them and adds to the gradients that it holds in registers. Per
token, channel and state: one exponential, and one more for 7 of 8 tokens in the recomputation; 12
other operations; two sums over the warp's channels, for B and C, of five shuffles each for two
channels. Per token and channel 28 bytes in float32, and the second reading of an interval, from
cache; the scratch adds 8 bytes a state for every fourth of them. At batch 1 this leaves most of a
card idle; nobody trains on one picture.

Sums across warps (B, C over channels; A, D, bias over pictures) go through partial sums in
memory, added by one reduction in a fixed order. No atomics.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from facerec.model.kernels.triton.scan import (
    FILL,
    ROWS,
    Plan,
    check_picture,
    interval,
    scan_forward,
)
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

MOST_PROGRAMS = 2048  # about two for every one that is resident on a large card
LEAST_SCRATCH = 2**26  # numbers (256 MiB) that the scratch may have however small the input is


def backward_plan(batch: int, channels: int, length: int, groups: int, states: int) -> Plan:
    """Blocks of the backward pass, and how many pictures a warp takes.

    So many that the scratch takes no more than u in float32 or LEAST_SCRATCH, whichever is more.
    """
    width = channels // groups
    block = 64 if batch * groups * -(-width // 64) >= FILL else 32
    blocks = groups * -(-width // block)
    room = max(batch * length * channels, LEAST_SCRATCH)
    most = room // scratch_of_a_part(channels, length, states)
    parts = max(1, min(batch, MOST_PROGRAMS // blocks, most))
    return Plan(block, ROWS // 2, -(-batch // parts))


def scratch_of_a_part(channels: int, length: int, states: int) -> int:
    """Numbers that the pictures of a warp need in all channels: states every fourth token, carries, shares."""
    return channels * (states * (interval(states, length) // (ROWS // 2) + 2) + 2)


@triton.jit
def _steps(u_at, u_t, delta_at, delta_t, u_d, delta_d, shift, inside, SOFTPLUS: tl.constexpr):
    """dt and dt u of a tile of tokens."""
    dt = load_tile(delta_at, delta_t, delta_d, inside)
    dt = step(dt + shift[None, :], inside, SOFTPLUS)
    return dt, dt * load_tile(u_at, u_t, u_d, inside)


@triton.jit
def _begin_carry(carry, grad_last, states, channels, own, CHANNELS: tl.constexpr):
    """What reaches h from behind the last token: the gradient of the last state, or nothing."""
    for n in range(0, states):
        g = tl.zeros([CHANNELS], tl.float32)
        if grad_last is not None:
            g = tl.load(grad_last + n, mask=own, other=0.0)
        tl.store(carry + n * channels, g, mask=own)


@triton.jit
def _begin_interval(scratch, kept, index, states, channels, own, CHANNELS: tl.constexpr):
    """h before the interval: what the forward pass kept, zeros before the first."""
    for n in range(0, states):
        h = tl.zeros([CHANNELS], tl.float32)
        if index > 0:
            h = tl.load(kept + n * channels, mask=own, other=0.0)
        tl.store(scratch + n * channels, h, mask=own)


@triton.jit
def _recompute(scratch, A, B_at, B_n, dt, dtu, states, channels, own, ROWS: tl.constexpr):
    """h after a tile of tokens, from h before it; kept behind it in scratch."""
    rows = tl.arange(0, ROWS)
    for n in range(0, states):
        rate = tl.load(A + n, mask=own, other=0.0).to(tl.float32)
        decay = tl.exp2(dt * (rate * LOG2_E)[None, :])
        b = tl.load(B_at + n * B_n).to(tl.float32)
        new = dtu * b[:, None]
        h = tl.load(scratch + n * channels, mask=own, other=0.0)
        for i in tl.static_range(ROWS):
            here = (rows == i)[:, None]
            h = pick(decay, here) * h + pick(new, here)
        tl.store(scratch + (states + n) * channels, h, mask=own)


@triton.jit
def _run_states(h, decay, new, ROWS: tl.constexpr):
    """(h after every token, what is left in it of h before), from h before the tile."""
    rows = tl.arange(0, ROWS)
    # Kept, not h - new, which would lose it where the decay is near 0.
    left = tl.zeros(new.shape, tl.float32)
    for i in tl.static_range(ROWS):
        here = (rows == i)[:, None]
        h *= pick(decay, here)
        left = tl.where(here, h[None, :], left)
        h += pick(new, here)
    return left + new, left


@triton.jit
def _run_gradients(g, gs, decay, ROWS: tl.constexpr):
    """(gradient of h after every token, gradient of h before the tile), from `gs` through y and `g` from behind."""
    rows = tl.arange(0, ROWS)
    for i in tl.static_range(ROWS):
        here = (rows == ROWS - 1 - i)[:, None]
        g += pick(gs, here)
        gs = tl.where(here, g[None, :], gs)
        g *= pick(decay, here)
    return gs, g


@triton.jit
def _walk_back(
    scratch,
    carry,
    share,
    dB_at,
    dC_at,
    A,
    B_at,
    B_n,
    C_at,
    C_n,
    dt,
    dtu,
    dy,
    valid,
    own,
    length,
    states,
    channels,
    ROWS: tl.constexpr,
):
    """A tile of tokens, state by state: adds to the gradients of A, B, C; returns y, d(dt u), d(dt) by the decay."""
    y = tl.zeros(dt.shape, tl.float32)
    d_new = tl.zeros(dt.shape, tl.float32)
    d_dt = tl.zeros(dt.shape, tl.float32)
    for n in range(0, states):
        a = tl.load(A + n, mask=own, other=0.0).to(tl.float32)
        decay = tl.exp2(dt * (a * LOG2_E)[None, :])
        b = tl.load(B_at + n * B_n).to(tl.float32)
        c = tl.load(C_at + n * C_n).to(tl.float32)
        h = tl.load(scratch + n * channels, mask=own, other=0.0)
        hs, left = _run_states(h, decay, dtu * b[:, None], ROWS)
        g = tl.load(carry + n * channels, mask=own, other=0.0)
        gs, g = _run_gradients(g, dy * c[:, None], decay, ROWS)
        tl.store(carry + n * channels, g, mask=own)
        tl.store(dB_at + n * length, tl.sum(gs * dtu, axis=1), mask=valid)
        tl.store(dC_at + n * length, tl.sum(hs * dy, axis=1), mask=valid)
        y += hs * c[:, None]
        d_new += gs * b[:, None]
        through = gs * left  # gradient of the decay times the decay
        d_dt += through * a[None, :]
        d_a = tl.load(share + n * channels, mask=own, other=0.0)
        d_a += tl.sum(through * dt, axis=0)
        tl.store(share + n * channels, d_a, mask=own)
    return y, d_new, d_dt


@triton.jit
def _gate_gradient(grad_at, grad_t, grad_d, z_at, z_t, z_d, y, inside):
    """Gradient of z, from y before the gate."""
    gate = load_tile(z_at, z_t, z_d, inside)
    open_ = sigmoid(gate)
    slope = open_ * (1.0 + gate * (1.0 - open_))
    return load_tile(grad_at, grad_t, grad_d, inside) * slope * y


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

    A_at = A + d * states
    skip = load_vector(D, d, own)
    shift = load_vector(bias, d, own)
    share = shares + wide(part) * (plane + 2 * channels) + d
    scratch = states_at + wide(part) * (INTERVAL // ROWS) * plane + d
    carry = carried + wide(part) * plane + d
    d_skip = tl.zeros([CHANNELS], tl.float32)
    d_shift = tl.zeros([CHANNELS], tl.float32)

    for picture in range(part * pictures, tl.minimum(part * pictures + pictures, batch)):
        grad_at = first_token(grad, picture, grad_b, length, grad_t, REVERSE)
        u_at = first_token(u, picture, u_b, length, u_t, REVERSE)
        delta_at = first_token(delta, picture, delta_b, length, delta_t, REVERSE)
        du_at = first_token(du, picture, du_b, length, du_t, REVERSE)
        dd_at = first_token(dd, picture, dd_b, length, dd_t, REVERSE)
        B_at = first_token(B, picture, B_b, length, B_t, REVERSE) + group * B_g
        C_at = first_token(C, picture, C_b, length, C_t, REVERSE) + group * C_g
        partial = (wide(picture) * per_part + column) * states * length
        if REVERSE:
            partial += length - 1
        if z is not None:
            z_at = first_token(z, picture, z_b, length, z_t, REVERSE)
            dz_at = first_token(dz, picture, dz_b, length, dz_t, REVERSE)
        last_at = None
        if grad_last is not None:
            last_at = grad_last + wide(picture) * plane + d * states
        _begin_carry(carry, last_at, states, channels, own, CHANNELS)

        for back in range(0, intervals):
            index = intervals - 1 - back
            origin = index * INTERVAL
            count = tl.cdiv(tl.minimum(length - origin, INTERVAL), ROWS)

            # h before every `ROWS` tokens of this interval.
            kept_at = kept + (wide(picture) * (intervals - 1) + index - 1) * plane + d
            _begin_interval(scratch, kept_at, index, states, channels, own, CHANNELS)
            tl.debug_barrier()
            for j in range(0, count - 1):
                start = origin + j * ROWS
                first = wide(start * ahead)
                token = wide(tl.minimum(start + rows, length - 1) * ahead)
                inside = (start + rows < length)[:, None] & own[None, :]
                dt, dtu = _steps(
                    u_at + first * u_t,
                    ahead * u_t,
                    delta_at + first * delta_t,
                    ahead * delta_t,
                    d * u_d,
                    d * delta_d,
                    shift,
                    inside,
                    SOFTPLUS,
                )
                at = scratch + j * plane
                _recompute(at, A_at, B_at + token * B_t, B_n, dt, dtu, states, channels, own, ROWS)
                tl.debug_barrier()

            for j_back in range(0, count):
                j = count - 1 - j_back
                start = origin + j * ROWS
                first = wide(start * ahead)
                token = wide(tl.minimum(start + rows, length - 1) * ahead)
                valid = start + rows < length
                inside = valid[:, None] & own[None, :]
                dt, dtu = _steps(
                    u_at + first * u_t,
                    ahead * u_t,
                    delta_at + first * delta_t,
                    ahead * delta_t,
                    d * u_d,
                    d * delta_d,
                    shift,
                    inside,
                    SOFTPLUS,
                )
                dy = load_tile(grad_at + first * grad_t, ahead * grad_t, d * grad_d, inside)
                if z is not None:
                    gate = load_tile(z_at + first * z_t, ahead * z_t, d * z_d, inside)
                    dy *= gate * sigmoid(gate)
                y, d_new, d_dt = _walk_back(
                    scratch + j * plane,
                    carry,
                    share,
                    dB + partial + first + rows * ahead,
                    dC + partial + first + rows * ahead,
                    A_at,
                    B_at + token * B_t,
                    B_n,
                    C_at + token * C_t,
                    C_n,
                    dt,
                    dtu,
                    dy,
                    valid,
                    own,
                    length,
                    states,
                    channels,
                    ROWS,
                )

                # Read again, not kept: registers are what this loop is short of.
                x = load_tile(u_at + first * u_t, ahead * u_t, d * u_d, inside)
                d_x = d_new * dt + dy * skip[None, :]
                store_tile(du_at + first * du_t, ahead * du_t, d * du_d, inside, d_x)
                d_skip += tl.sum(dy * x, axis=0)
                d_raw = d_dt + d_new * x
                if SOFTPLUS:
                    at = delta_at + first * delta_t
                    raw = load_tile(at, ahead * delta_t, d * delta_d, inside)
                    d_raw *= sigmoid(raw + shift[None, :])
                d_raw = tl.where(inside, d_raw, 0.0)
                d_shift += tl.sum(d_raw, axis=0)
                store_tile(dd_at + first * dd_t, ahead * dd_t, d * dd_d, inside, d_raw)
                if z is not None:
                    d_gate = _gate_gradient(
                        grad_at + first * grad_t,
                        ahead * grad_t,
                        d * grad_d,
                        z_at + first * z_t,
                        ahead * z_t,
                        d * z_d,
                        y + skip[None, :] * x,
                        inside,
                    )
                    store_tile(dz_at + first * dz_t, ahead * dz_t, d * dz_d, inside, d_gate)
                tl.debug_barrier()
    tl.store(share + plane, d_skip, mask=own)
    tl.store(share + plane + channels, d_shift, mask=own)


_backward_kernel = triton.jit(_backward, do_not_specialize=unspecialised(_backward))


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
    check_picture(channels, length)
    if kept is None:
        kept = scan_forward(
            *inputs, delta_softplus, reverse=reverse, return_last_state=False, keep=True
        )[2]
    assert kept is not None  # it was asked for
    plan = plan or backward_plan(batch, channels, length, groups, states)
    width = channels // groups
    blocks = triton.cdiv(width, plan.channels)
    parts = triton.cdiv(batch, plan.pictures)
    every = interval(states, length)
    du, dd, dz = like(u), like(delta), like(z) if z is not None else None
    device, dtype = u.device, torch.float32
    dB, dC = torch.empty((2, batch, groups * blocks, states, length), device=device, dtype=dtype)
    shares = torch.zeros((parts, states + 2, channels), device=device, dtype=dtype)
    with torch.cuda.device_of(u):
        _backward_kernel[(parts * groups * blocks,)](
            grad_out,
            grad_last_state.float().contiguous() if grad_last_state is not None else None,
            u,
            delta,
            A.contiguous(),
            B,
            C,
            dense(D),
            z,
            dense(delta_bias),
            kept,
            du,
            dd,
            dz,
            dB,
            dC,
            shares,
            torch.empty((parts, every // plan.rows, states, channels), device=device, dtype=dtype),
            torch.empty((parts, states, channels), device=device, dtype=dtype),
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
