"""The fused selective scan, backward, for any CPU.

One task is a group of pictures and some blocks of channels. It walks the chunks of tokens from the last to the first,
and within a chunk takes two states at a time, recomputes them forward from the kept ones and walks back at once, so
that only two states of one chunk are ever written down. Gradients of B and C are summed over channels lane by lane
and over the lanes once a chunk. Which task adds what, in which order, depends on shapes alone: results are the same
bit for bit for any number of threads.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from facerec.model.kernels.cpu.jobs import Kernel, at, next_task, size, view, worker_scratch
from facerec.model.kernels.cpu.simd import (
    LANES,
    absolute,
    all_within,
    exp2,
    exp2_within,
    lane_sum,
    larger,
    load,
    load_float,
    load_vector,
    prefetch,
    sigmoid,
    softplus,
    splat,
    store,
    store_float,
    store_vector,
)
from facerec.model.kernels.cpu.tiles import ROW, channels_of, load_optional

LN_2 = np.float32(0.6931471805599453)
# Vectors between the rows of a chunk. Without them a token's entries in all rows lie a multiple of 2 KB
# apart, and a load waits for stores whose addresses end in the same twelve bits.
GAP = 3


# The scan backward. Sizes as forward, then splits of a group's blocks, B, pictures a task.
# Scratch of a task: B and C of a chunk (2 N rows of floats), their gradients lane by lane (2 N rows of
# vectors), eight rows of vectors for the chunk, two states' values and decays, then what each block
# carries from chunk to chunk: rates, gradient of the state, gradient of A (N each), of D, of the bias.


def scan_backward_scratch(states: int, every: int, blocks: int) -> int:
    """Bytes a worker of `scan_backward` needs."""
    pairs = states + states % 2
    vectors = (every + GAP) * (2 * pairs + 8) + every * 4 + blocks * (3 * pairs + 2)
    return 8 * pairs * every + ROW * vectors


@njit(forceinline=True)
def _row(job):
    """Bytes from one row of a chunk's vectors to the next."""
    return (size(job, 6) + GAP) * ROW


@njit(forceinline=True)
def _layout(job, scratch):
    """Addresses of the parts of the scratch memory, and how many states with the odd one paired."""
    states, every = size(job, 1), size(job, 6)
    pairs = states + (states & 1)
    grads = scratch + 8 * pairs * every
    rows = grads + _row(job) * 2 * pairs
    tile = rows + _row(job) * 8
    carried = tile + ROW * every * 4
    return grads, rows, tile, carried, pairs


@njit(forceinline=True)
def _scan_backward_task(job, task, scratch):
    length, group_blocks, groups = size(job, 0), size(job, 3), size(job, 4)
    every, splits, batch, pictures = size(job, 6), size(job, 7), size(job, 8), size(job, 9)
    grads, rows, _, carried, pairs = _layout(job, scratch)
    part = task // (groups * splits)
    column = task - part * groups * splits  # of the gradients of B and C
    group = column // splits
    split = column - group * splits
    low, high = split * group_blocks // splits, (split + 1) * group_blocks // splits
    _clear(carried, (high - low) * (3 * pairs + 2))
    for b in range(part * pictures, min((part + 1) * pictures, batch)):
        _start_picture(job, b, group, low, high, carried)
        chunk = (length - 1) // every
        while chunk >= 0:
            start, stop = chunk * every, min((chunk + 1) * every, length)
            _fetch_matrices(job, b, group, start, stop, scratch)
            _clear(grads, 2 * pairs * (every + GAP))
            for within in range(low, high):
                own = carried + (within - low) * (3 * pairs + 2) * ROW
                first, count = channels_of(job, group, within)
                calm = _open_chunk(job, b, first, count, start, stop, rows, own)
                block = group * group_blocks + within
                if calm:
                    for n in range(0, pairs, 2):
                        _two_states(job, b, block, chunk, n, stop - start, scratch, own, True)
                else:
                    for n in range(0, pairs, 2):
                        _two_states(job, b, block, chunk, n, stop - start, scratch, own, False)
                _close_chunk(job, b, first, count, start, stop, rows, own + 3 * pairs * ROW)
            _sum_lanes(job, b, column, start, stop, grads, pairs)
            chunk -= 1
    _store_weights(job, part, group, low, high, carried)


@njit(forceinline=True)
def _clear(address, vectors):
    for i in range(vectors):
        store_vector(address + i * ROW, splat(0.0))


@njit(forceinline=True)
def _start_picture(job, b, group, low, high, carried):
    """Rates and the gradient of the last state into each block's own memory."""
    states = size(job, 1)
    pairs = states + (states & 1)
    rates, grad_last = view(job, 2), view(job, 10)
    for within in range(low, high):
        own = carried + (within - low) * (3 * pairs + 2) * ROW
        first, count = channels_of(job, group, within)
        for n in range(states):
            store_vector(own + n * ROW, load(at(rates, n, first, 0), 4, count))
            g = splat(0.0)
            if grad_last[0] != 0:
                g = load(at(grad_last, b, first, n), grad_last[2], count)
            store_vector(own + (pairs + n) * ROW, g)


@njit(forceinline=True)
def _fetch_matrices(job, b, group, start, stop, scratch):
    """B and C of a chunk, tokens side by side; zeros for a state that only completes a pair."""
    states, every = size(job, 1), size(job, 6)
    pairs = states + (states & 1)
    B, C = view(job, 3), view(job, 4)
    for n in range(pairs):
        for t in range(stop - start):
            x = y = np.float32(0.0)
            if n < states:
                x = load_float(at(B, b, group, n) + (start + t) * B[4])
                y = load_float(at(C, b, group, n) + (start + t) * C[4])
            store_float(scratch + 4 * (n * every + t), x)
            store_float(scratch + 4 * ((pairs + n) * every + t), y)


@njit(forceinline=True)
def _open_chunk(job, b, first, count, start, stop, rows, own):
    """Rows of the chunk: dt, dt u, grad of y, softplus', sigmoid of z; zeros for three sums."""
    soft, row = size(job, 5), _row(job)
    u, delta, z, grad = view(job, 0), view(job, 1), view(job, 6), view(job, 8)
    grad_u, grad_delta, grad_z = view(job, 11), view(job, 12), view(job, 13)
    shift = load_optional(view(job, 7), first, count)
    longest, steepest = splat(0.0), splat(0.0)
    for n in range(size(job, 1)):
        steepest = larger(steepest, absolute(load_vector(own + n * ROW)))
    for t in range(start, stop):
        place = rows + (t - start) * ROW
        dt = load(at(delta, b, first, t), delta[2], count) + shift
        x = load(at(u, b, first, t), u[2], count)
        prefetch(at(u, b, first + LANES, t))
        prefetch(at(delta, b, first + LANES, t))
        prefetch(at(grad, b, first + LANES, t))
        prefetch(at(grad_u, b, first, t))
        prefetch(at(grad_delta, b, first, t))
        slope = splat(1.0)
        if soft:
            dt, slope = softplus(dt)
        g = load(at(grad, b, first, t), grad[2], count)
        if z[0] != 0:
            gate = load(at(z, b, first, t), z[2], count)
            prefetch(at(z, b, first + LANES, t))
            prefetch(at(grad_z, b, first, t))
            s = sigmoid(gate)
            store_vector(place + 4 * row, s)
            g = g * (gate * s)
        store_vector(place, dt)
        store_vector(place + row, dt * x)
        store_vector(place + 2 * row, g)
        store_vector(place + 3 * row, slope)
        store_vector(place + 5 * row, splat(0.0))
        store_vector(place + 6 * row, splat(0.0))
        store_vector(place + 7 * row, splat(0.0))
        longest = larger(longest, absolute(dt))
    return all_within(longest * steepest, 126.0)


@njit(forceinline=True)
def _two_states(job, b, block, chunk, n, tokens, scratch, own, within):
    """States n and n + 1 of a block through a chunk: forward from the kept ones, then back."""
    states, every = size(job, 1), size(job, 6)
    grads, rows, tile, _, pairs = _layout(job, scratch)
    kept, row = view(job, 9), _row(job)
    rate0, rate1 = load_vector(own + n * ROW), load_vector(own + n * ROW + ROW)
    h0, h1 = splat(0.0), splat(0.0)
    if chunk > 0:
        source = at(kept, b, chunk - 1, block) + n * ROW
        h0 = load_vector(source)
        if n + 1 < states:
            h1 = load_vector(source + ROW)
    b0 = scratch + 4 * n * every
    c0 = b0 + 4 * pairs * every
    for t in range(tokens):
        place, here = rows + t * ROW, tile + t * 4 * ROW
        dt, x = load_vector(place), load_vector(place + row)
        a0, a1 = dt * rate0, dt * rate1
        if within:
            a0, a1 = exp2_within(a0), exp2_within(a1)
        else:
            a0, a1 = exp2(a0), exp2(a1)
        # What the way back multiplies the state's gradient with: decay times the state before.
        h0, h1 = h0 * a0, h1 * a1
        store_vector(here, a0)
        store_vector(here + ROW, a1)
        store_vector(here + 2 * ROW, h0)
        store_vector(here + 3 * ROW, h1)
        h0 = x * load_float(b0 + 4 * t) + h0
        h1 = x * load_float(b0 + 4 * (every + t)) + h1
        y = load_vector(place + 5 * row)
        y = h0 * load_float(c0 + 4 * t) + y
        y = h1 * load_float(c0 + 4 * (every + t)) + y
        store_vector(place + 5 * row, y)

    g0 = load_vector(own + (pairs + n) * ROW)
    g1 = load_vector(own + (pairs + n + 1) * ROW)
    rate_grad0 = load_vector(own + (2 * pairs + n) * ROW)
    rate_grad1 = load_vector(own + (2 * pairs + n + 1) * ROW)
    grad_b = grads + n * row
    grad_c = grad_b + pairs * row
    for back in range(tokens):
        t = tokens - 1 - back
        place, here = rows + t * ROW, tile + t * 4 * ROW
        dt, x, dy = load_vector(place), load_vector(place + row), load_vector(place + 2 * row)
        b_t0, b_t1 = load_float(b0 + 4 * t), load_float(b0 + 4 * (every + t))
        q0, q1 = load_vector(here + 2 * ROW), load_vector(here + 3 * ROW)
        spot = grad_c + t * ROW
        store_vector(spot, (x * b_t0 + q0) * dy + load_vector(spot))
        store_vector(spot + row, (x * b_t1 + q1) * dy + load_vector(spot + row))
        g0 = dy * load_float(c0 + 4 * t) + g0
        g1 = dy * load_float(c0 + 4 * (every + t)) + g1
        spot = grad_b + t * ROW
        store_vector(spot, g0 * x + load_vector(spot))
        store_vector(spot + row, g1 * x + load_vector(spot + row))
        store_vector(place + 6 * row, g1 * b_t1 + (g0 * b_t0 + load_vector(place + 6 * row)))
        q0, q1 = g0 * q0, g1 * q1
        store_vector(place + 7 * row, q1 * rate1 + (q0 * rate0 + load_vector(place + 7 * row)))
        rate_grad0 = q0 * dt + rate_grad0
        rate_grad1 = q1 * dt + rate_grad1
        g0, g1 = g0 * load_vector(here), g1 * load_vector(here + ROW)
    store_vector(own + (pairs + n) * ROW, g0)
    store_vector(own + (pairs + n + 1) * ROW, g1)
    store_vector(own + (2 * pairs + n) * ROW, rate_grad0)
    store_vector(own + (2 * pairs + n + 1) * ROW, rate_grad1)


@njit(forceinline=True)
def _close_chunk(job, b, first, count, start, stop, rows, sums):
    """Gradients of u, delta and z from the chunk's sums; those of D and the bias go on adding up."""
    row = _row(job)
    u, z, grad = view(job, 0), view(job, 6), view(job, 8)
    grad_u, grad_delta, grad_z = view(job, 11), view(job, 12), view(job, 13)
    skip = load_optional(view(job, 5), first, count)
    skip_grad, shift_grad = load_vector(sums), load_vector(sums + ROW)
    for t in range(start, stop):
        place = rows + (t - start) * ROW
        x = load(at(u, b, first, t), u[2], count)
        dt, dy = load_vector(place), load_vector(place + 2 * row)
        dx, slope = load_vector(place + 6 * row), load_vector(place + 3 * row)
        store(at(grad_u, b, first, t), grad_u[2], count, dx * dt + dy * skip)
        ddt = (dx * x + load_vector(place + 7 * row) * LN_2) * slope
        store(at(grad_delta, b, first, t), grad_delta[2], count, ddt)
        skip_grad = dy * x + skip_grad
        shift_grad = shift_grad + ddt
        if z[0] != 0:
            y = load_vector(place + 5 * row) + x * skip
            s = load_vector(place + 4 * row)
            gate = load(at(z, b, first, t), z[2], count)
            g = load(at(grad, b, first, t), grad[2], count)
            slope = s * (gate * (splat(1.0) - s) + 1.0)
            store(at(grad_z, b, first, t), grad_z[2], count, g * y * slope)
    store_vector(sums, skip_grad)
    store_vector(sums + ROW, shift_grad)


@njit(forceinline=True)
def _sum_lanes(job, b, column, start, stop, grads, pairs):
    states, row = size(job, 1), _row(job)
    grad_b, grad_c = view(job, 14), view(job, 15)
    for t in range(start, stop):
        for n in range(states):
            spot = grads + n * row + (t - start) * ROW
            x = lane_sum(load_vector(spot))
            store_float(at(grad_b, b, column, n) + t * grad_b[4], x)
            x = lane_sum(load_vector(spot + pairs * row))
            store_float(at(grad_c, b, column, n) + t * grad_c[4], x)


@njit(forceinline=True)
def _store_weights(job, part, group, low, high, carried):
    """This task's share of the gradients of A, D and the bias."""
    states = size(job, 1)
    pairs = states + (states & 1)
    grad_a, grad_skip, grad_bias = view(job, 16), view(job, 17), view(job, 18)
    for within in range(low, high):
        own = carried + ((within - low) * (3 * pairs + 2) + 2 * pairs) * ROW
        first, count = channels_of(job, group, within)
        for n in range(states):
            store(at(grad_a, part, n, first), 4, count, load_vector(own + n * ROW))
        store(at(grad_skip, part, first, 0), 4, count, load_vector(own + pairs * ROW))
        store(at(grad_bias, part, first, 0), 4, count, load_vector(own + (pairs + 1) * ROW))


@Kernel
def scan_backward(job):
    """Views: u, delta, rates, B, C, D, z, delta_bias, grad of out, kept states, grad of last state;
    gradients of u, delta, z, B and C (B, G * splits, N, L), and shares (parts, ...) of A, D, bias.
    """
    scratch = worker_scratch(job)
    task = next_task(job)
    while task >= 0:
        _scan_backward_task(job, task, scratch)
        task = next_task(job)
