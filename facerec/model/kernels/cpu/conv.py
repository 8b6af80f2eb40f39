"""The causal depthwise convolution + SiLU, forward and backward, for any CPU.

Axes: B batch, L tokens, D channels, W taps.
"""

from __future__ import annotations

from numba import njit

from facerec.model.kernels.cpu.jobs import Kernel, at, next_task, size, view
from facerec.model.kernels.cpu.simd import LANES, load, prefetch, sigmoid, splat, store
from facerec.model.kernels.cpu.tiles import AHEAD, channels_of, load_optional

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
    return w0, w1, w2, w3, load_optional(view(job, 2), first, count)


@njit(forceinline=True)
def _conv_forward_task(job, task):
    length, channels, silu = size(job, 0), size(job, 2), size(job, 5)
    x, out = view(job, 0), view(job, 3)
    blocks = (channels + LANES - 1) // LANES
    b = task // blocks
    first, count = channels_of(job, 0, task - b * blocks)
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
    first, count = channels_of(job, 0, task - part * blocks)
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
