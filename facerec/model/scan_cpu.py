"""Fused kernels of the selective scan and of the causal convolution, for any CPU.

One task of the forward scan is one picture and `LANES` channels: their states stay in the nearest cache
for the whole sequence. It keeps the states before every chunk of `every` tokens, if a gradient will be
asked for, and nothing else. One task of the backward scan is a group of pictures and some blocks of
channels; it walks the chunks from the last to the first, and within a chunk takes two states at a time,
recomputes them forward from the kept ones and walks back at once, so that only two states of one chunk
are ever written down. Gradients of B and C are summed over channels lane by lane and over the lanes
once a chunk. Which task adds what, in which order, depends on shapes alone: results are the same bit
for bit for any number of threads.

Arithmetic is float32, exp(dt A) = 2**(dt A log2 e); `rates` are A log2 e throughout.

Axes: B batch, L tokens, D channels, N states, G groups of B and C, W taps.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from facerec.model.jobs_cpu import Kernel, at, next_task, size, view, worker_scratch
from facerec.model.simd_cpu import (
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

ROW = 4 * LANES  # bytes of a vector
LN_2 = np.float32(0.6931471805599453)
AHEAD = 4  # tokens
# Vectors between the rows of a chunk. Without them a token's entries in all rows lie a multiple of 2 KB
# apart, and a load waits for stores whose addresses end in the same twelve bits.
GAP = 3


@njit(forceinline=True)
def _load_optional(tensor, first, count):
    """LANES elements of a vector that may be None: zeros then."""
    if tensor[0] == 0:
        return splat(0.0)
    return load(at(tensor, first, 0, 0), tensor[1], count)


@njit(forceinline=True)
def _channels(job, group, within):
    """(first channel, how many) of a group's block."""
    per_group = size(job, 2)
    return group * per_group + within * LANES, min(LANES, per_group - within * LANES)


# The scan forward. Sizes: L, N, channels a group, blocks a group, G, softplus, tokens a chunk.


@njit(forceinline=True)
def _scan_forward_task(job, task, scratch):
    length, states, group_blocks, groups = size(job, 0), size(job, 1), size(job, 3), size(job, 4)
    every = size(job, 6)
    rates_of, last, kept = view(job, 2), view(job, 9), view(job, 10)
    b = task // (groups * group_blocks)
    block = task - b * groups * group_blocks
    group = block // group_blocks
    first, count = _channels(job, group, block - group * group_blocks)
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
    skip = _load_optional(view(job, 5), first, count)
    shift = _load_optional(view(job, 7), first, count)
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
                first, count = _channels(job, group, within)
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
        first, count = _channels(job, group, within)
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
    shift = _load_optional(view(job, 7), first, count)
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
    skip = _load_optional(view(job, 5), first, count)
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
        first, count = _channels(job, group, within)
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


# The convolution. Sizes: L, -, D, -, W, SiLU; backward also B, pictures a task.


@njit(forceinline=True)
def _load_taps(job, first, count):
    """Four taps, zeros in front where the convolution is narrower."""
    weight, width = view(job, 1), size(job, 4)
    w0 = w1 = splat(0.0)
    if width > 3:
        w0 = load(at(weight, width - 4, first, 0), 4, count)
    if width > 2:
        w1 = load(at(weight, width - 3, first, 0), 4, count)
    w2 = load(at(weight, width - 2, first, 0), 4, count)
    w3 = load(at(weight, width - 1, first, 0), 4, count)
    return w0, w1, w2, w3, _load_optional(view(job, 2), first, count)


@njit(forceinline=True)
def _conv_forward_task(job, task):
    length, channels, silu = size(job, 0), size(job, 2), size(job, 5)
    x, out = view(job, 0), view(job, 3)
    blocks = (channels + LANES - 1) // LANES
    b = task // blocks
    first, count = _channels(job, 0, task - b * blocks)
    w0, w1, w2, w3, shift = _load_taps(job, first, count)
    x0 = x1 = x2 = splat(0.0)
    for t in range(length):
        x3 = load(at(x, b, first, t), x[2], count)
        prefetch(at(x, b, first, t + 4 * AHEAD))
        y = x3 * w3 + (x2 * w2 + (x1 * w1 + (x0 * w0 + shift)))
        if silu:
            y = y * sigmoid(y)
        store(at(out, b, first, t), out[2], count, y)
        x0, x1, x2 = x1, x2, x3


@Kernel
def conv_forward(job):
    """Views: x, weight (W, D), bias, out."""
    task = next_task(job)
    while task >= 0:
        _conv_forward_task(job, task)
        task = next_task(job)


@njit(forceinline=True)
def _conv_token(x, b, first, count, t):
    """Token t of the input; zeros before the first."""
    if t < 0:
        return splat(0.0)
    return load(at(x, b, first, t), x[2], count)


@njit(forceinline=True)
def _conv_backward_task(job, task):
    length, channels, width, silu = size(job, 0), size(job, 2), size(job, 4), size(job, 5)
    batch, pictures = size(job, 6), size(job, 7)
    x, grad, grad_x, grad_w, grad_bias = (
        view(job, 0),
        view(job, 3),
        view(job, 4),
        view(job, 5),
        view(job, 6),
    )
    blocks = (channels + LANES - 1) // LANES
    part = task // blocks
    first, count = _channels(job, 0, task - part * blocks)
    w0, w1, w2, w3, shift = _load_taps(job, first, count)
    v0 = v1 = v2 = v3 = shift_grad = splat(0.0)
    for b in range(part * pictures, min((part + 1) * pictures, batch)):
        g1 = g2 = g3 = splat(0.0)  # of the tokens one, two and three later
        x1 = _conv_token(x, b, first, count, length - 1)
        x2 = _conv_token(x, b, first, count, length - 2)
        x3 = _conv_token(x, b, first, count, length - 3)
        for back in range(length):
            t = length - 1 - back
            x0, x1, x2 = x1, x2, x3
            x3 = _conv_token(x, b, first, count, t - 3)
            prefetch(at(x, b, first, max(t - 3 - 4 * AHEAD, 0)))
            prefetch(at(grad, b, first, max(t - 4 * AHEAD, 0)))
            g = load(at(grad, b, first, t), grad[2], count)
            if silu:
                y = x0 * w3 + (x1 * w2 + (x2 * w1 + (x3 * w0 + shift)))
                s = sigmoid(y)
                g = g * (s * (y * (splat(1.0) - s) + 1.0))
            store(
                at(grad_x, b, first, t),
                grad_x[2],
                count,
                g * w3 + (g1 * w2 + (g2 * w1 + g3 * w0)),
            )
            v3, v2, v1, v0 = g * x0 + v3, g * x1 + v2, g * x2 + v1, g * x3 + v0
            shift_grad = shift_grad + g
            g1, g2, g3 = g, g1, g2
    if width > 3:
        store(at(grad_w, part, width - 4, first), 4, count, v0)
    if width > 2:
        store(at(grad_w, part, width - 3, first), 4, count, v1)
    store(at(grad_w, part, width - 2, first), 4, count, v2)
    store(at(grad_w, part, width - 1, first), 4, count, v3)
    store(at(grad_bias, part, first, 0), 4, count, shift_grad)


@Kernel
def conv_backward(job):
    """Views: x, weight (W, D), bias, grad of out; grad of x, shares (parts, ...) of weight, bias."""
    task = next_task(job)
    while task >= 0:
        _conv_backward_task(job, task)
        task = next_task(job)
