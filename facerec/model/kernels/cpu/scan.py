"""The fused selective scan, forward, for any CPU.

One task is one picture and `LANES` channels: their states stay in the nearest cache for the whole sequence. It keeps
the states before every chunk of `every` tokens, if a gradient will be asked for, and nothing else.

Arithmetic is float32, exp(dt A) = 2**(dt A log2 e); `rates` are A log2 e throughout.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

from numba import njit

from facerec.model.kernels.cpu.jobs import Kernel, at, next_task, size, view, worker_scratch
from facerec.model.kernels.cpu.simd import (
    absolute,
    all_within,
    exp2,
    exp2_within,
    larger,
    load,
    load_float,
    load_vector,
    prefetch,
    sigmoid,
    softplus,
    splat,
    store,
    store_vector,
)
from facerec.model.kernels.cpu.tiles import AHEAD, ROW, channels_of, load_optional

# The scan forward. Sizes: L, N, channels a group, blocks a group, G, softplus, tokens a chunk.


@njit(forceinline=True)
def _scan_forward_task(job, task, scratch):
    length, states, group_blocks, groups = size(job, 0), size(job, 1), size(job, 3), size(job, 4)
    every = size(job, 6)
    rates_of, last, kept = view(job, 2), view(job, 9), view(job, 10)
    b = task // (groups * group_blocks)
    block = task - b * groups * group_blocks
    group = block // group_blocks
    first, count = channels_of(job, group, block - group * group_blocks)
    rates, h = scratch, scratch + states * ROW
    steepest = splat(0.0)
    for n in range(states):
        rate = load(at(rates_of, n, first, 0), 4, count)
        steepest = larger(steepest, absolute(rate))
        store_vector(rates + n * ROW, rate)
        store_vector(h + n * ROW, splat(0.0))
    for chunk in range((length + every - 1) // every):
        start = chunk * every
        if chunk > 0 and kept[0] != 0:
            target = at(kept, b, chunk - 1, block)
            for n in range(states):
                store_vector(target + n * ROW, load_vector(h + n * ROW))
        _scan_forward_tokens(
            job, b, group, first, count, start, min(start + every, length), rates, h, steepest
        )
    if last[0] != 0:
        for n in range(states):
            store(at(last, b, first, n), last[2], count, load_vector(h + n * ROW))


@njit(forceinline=True)
def _scan_forward_tokens(job, b, group, first, count, start, stop, rates, h, steepest):
    states, B, C = size(job, 1), view(job, 3), view(job, 4)
    z, out = view(job, 6), view(job, 8)
    skip = load_optional(view(job, 5), first, count)
    shift = load_optional(view(job, 7), first, count)
    next_x, next_dt = _scan_input(job, b, first, count, start, shift)
    for t in range(start, stop):
        x, dt = next_x, next_dt
        # Ahead of the states, so that the processor has it done by the time they are.
        if t + 1 < stop:
            next_x, next_dt = _scan_input(job, b, first, count, t + 1, shift)
        gate = splat(1.0)
        if z[0] != 0:
            gate = load(at(z, b, first, t), z[2], count)
            prefetch(at(z, b, first, t + AHEAD))
            gate = gate * sigmoid(gate)
        y = x * skip
        x = x * dt
        b_n = at(B, b, group, 0) + t * B[4]
        c_n = at(C, b, group, 0) + t * C[4]
        if all_within(dt * steepest, 126.0):
            y = _advance(states, dt, x, y, rates, h, b_n, B[3], c_n, C[3], True)
        else:
            y = _advance(states, dt, x, y, rates, h, b_n, B[3], c_n, C[3], False)
        store(at(out, b, first, t), out[2], count, y * gate)


@njit(forceinline=True)
def _scan_input(job, b, first, count, t, shift):
    """(u, dt) of a token."""
    u, delta = view(job, 0), view(job, 1)
    x = load(at(u, b, first, t), u[2], count)
    dt = load(at(delta, b, first, t), delta[2], count) + shift
    prefetch(at(u, b, first, t + AHEAD))
    prefetch(at(delta, b, first, t + AHEAD))
    if size(job, 5):
        dt, _ = softplus(dt)
    return x, dt


@njit(forceinline=True)
def _advance(states, dt, x, y, rates, h, b_n, b_stride, c_n, c_stride, within):
    """All states of a block by one token; y plus what they put out."""
    for n in range(states):
        exponent = dt * load_vector(rates + n * ROW)
        decay = exp2_within(exponent) if within else exp2(exponent)
        state = load_vector(h + n * ROW) * decay + x * load_float(b_n)
        store_vector(h + n * ROW, state)
        y = state * load_float(c_n) + y
        b_n += b_stride
        c_n += c_stride
    return y


@Kernel
def scan_forward(job):
    """Views: u, delta, rates (N, D), B, C, D, z, delta_bias, out, last state, kept states."""
    scratch = worker_scratch(job)
    task = next_task(job)
    while task >= 0:
        _scan_forward_task(job, task, scratch)
        task = next_task(job)
