"""The causal depthwise convolution with SiLU in Triton, values and gradients.

out_t = silu(bias + sum_k weight_k x_(t - W + 1 + k)), as in `facerec.model.scan.causal_conv1d`. Any
strides; float32 arithmetic. Both passes are meant to be bound by memory (no card has told yet):
forward reads x and writes out, 8 bytes a token and channel in float32; backward reads x and the
gradient and writes one tensor, 12 bytes, reading each four times out of L1 for the taps. A program
takes tiles (tokens, channels) in turn.
Gradients of weight and bias are summed within a program, written once, and added by one reduction
in a fixed order: no atomics.

Axes: B batch, L tokens, D channels, W taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from facerec.model.kernels.triton.tiles import dense, like, load_vector, sigmoid, wide

_TOKENS, _CHANNELS, _WARPS = 16, 64, 4
_MOST_PARTS = 1024  # of the sums for the gradients of weight and bias


@triton.jit
def _tile(base, tokens, token_stride, offsets, own, length, REVERSE: tl.constexpr):
    """x at `tokens`, 0 before the first and after the last; token 0 is the first that is read."""
    inside = ((tokens >= 0) & (tokens < length))[:, None] & own[None, :]
    place = length - 1 - tokens if REVERSE else tokens
    at = base + wide(place)[:, None] * token_stride + offsets[None, :]
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _taps(weight, d, own, k, W: tl.constexpr):
    return tl.load(weight + d * W + k, mask=own, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["length", "channels"])
def _forward(
    x,
    weight,  # (D, W), dense
    bias,
    out,
    length,
    channels,
    x_b,
    x_d,
    x_t,
    out_b,
    out_d,
    out_t,
    W: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    spans = tl.cdiv(length, TOKENS)
    task = tl.program_id(0) // blocks
    d = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = d < channels
    tokens = task % spans * TOKENS + tl.arange(0, TOKENS)
    x_at = x + wide(task // spans) * x_b
    total = tl.zeros([TOKENS, CHANNELS], tl.float32) + load_vector(bias, d, own)[None, :]
    for k in tl.static_range(W):
        part = _tile(x_at, tokens - (W - 1 - k), x_t, d * x_d, own, length, REVERSE)
        total += _taps(weight, d, own, k, W) * part
    if SILU:
        total *= sigmoid(total)
    place = length - 1 - tokens if REVERSE else tokens
    at = out + wide(task // spans) * out_b + wide(place)[:, None] * out_t + (d * out_d)[None, :]
    inside = (tokens < length)[:, None] & own[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "length", "channels", "parts"])
def _backward(
    grad,
    x,
    weight,  # (D, W), dense
    bias,
    dx,
    shares,  # (parts, W + 1, D): of the gradients of weight and bias
    batch,
    length,
    channels,
    parts,
    grad_b,
    grad_d,
    grad_t,
    x_b,
    x_d,
    x_t,
    dx_b,
    dx_d,
    dx_t,
    W: tl.constexpr,
    SILU: tl.constexpr,
    REVERSE: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    blocks = tl.cdiv(channels, CHANNELS)
    spans = tl.cdiv(length, TOKENS)
    part = tl.program_id(0) // blocks
    d = tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS)
    own = d < channels
    shift = load_vector(bias, d, own)
    at = shares + wide(part) * (W + 1) * channels + d
    for k in tl.static_range(W + 1):
        tl.store(at + k * channels, tl.zeros([CHANNELS], tl.float32), mask=own)
    tl.debug_barrier()

    for task in range(part, batch * spans, parts):
        tokens = task % spans * TOKENS + tl.arange(0, TOKENS)
        x_at = x + wide(task // spans) * x_b
        grad_at = grad + wide(task // spans) * grad_b
        d_x = tl.zeros([TOKENS, CHANNELS], tl.float32)
        for ahead in tl.static_range(W):
            # Token t reaches out_(t + ahead) through tap W - 1 - ahead.
            d_sum = _tile(grad_at, tokens + ahead, grad_t, d * grad_d, own, length, REVERSE)
            if SILU:
                total = tl.zeros([TOKENS, CHANNELS], tl.float32) + shift[None, :]
                for k in tl.static_range(W):
                    behind = tokens + (ahead - (W - 1 - k))
                    value = _tile(x_at, behind, x_t, d * x_d, own, length, REVERSE)
                    total += _taps(weight, d, own, k, W) * value
                gate = sigmoid(total)
                d_sum *= gate * (1.0 + total * (1.0 - gate))
            d_x += _taps(weight, d, own, W - 1 - ahead, W) * d_sum
            if ahead == 0:
                for k in tl.static_range(W):
                    value = _tile(x_at, tokens - (W - 1 - k), x_t, d * x_d, own, length, REVERSE)
                    share = tl.load(at + k * channels, mask=own, other=0.0)
                    share += tl.sum(d_sum * value, axis=0)
                    tl.store(at + k * channels, share, mask=own)
                share = tl.load(at + W * channels, mask=own, other=0.0)
                tl.store(at + W * channels, share + tl.sum(d_sum, axis=0), mask=own)
        place = length - 1 - tokens if REVERSE else tokens
        to = dx + wide(task // spans) * dx_b + wide(place)[:, None] * dx_t + (d * dx_d)[None, :]
        inside = (tokens < length)[:, None] & own[None, :]
        tl.store(to, d_x.to(dx.dtype.element_ty), mask=inside)
        tl.debug_barrier()


def conv_forward(
    x: Tensor,  # (B, D, L)
    weight: Tensor,  # (D, W)
    bias: Tensor | None,  # (D,)
    silu: bool,
    *,
    reverse: bool = False,
) -> Tensor:
    """`facerec.model.scan.causal_conv1d`: (B, D, L) in x's dtype and layout."""
    batch, channels, length = x.shape
    out = like(x)
    if not x.numel():
        return out
    tasks = batch * triton.cdiv(length, _TOKENS)
    with torch.cuda.device_of(x):
        _forward[(tasks * triton.cdiv(channels, _CHANNELS),)](
            x,
            weight.contiguous(),
            dense(bias),
            out,
            length,
            channels,
            *x.stride(),
            *out.stride(),
            W=weight.shape[1],
            SILU=silu,
            REVERSE=reverse,
            TOKENS=_TOKENS,
            CHANNELS=_CHANNELS,
            num_warps=_WARPS,
        )
    return out


def conv_backward(
    grad_out: Tensor,  # (B, D, L)
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias (None where there is none), each in its tensor's dtype."""
    batch, channels, length = x.shape
    width = weight.shape[1]
    d_x = like(x)
    if not x.numel():
        return d_x, torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    parts = min(_MOST_PARTS, batch * triton.cdiv(length, _TOKENS))
    shares = torch.empty((parts, width + 1, channels), device=x.device, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _backward[(parts * triton.cdiv(channels, _CHANNELS),)](
            grad_out,
            x,
            weight.contiguous(),
            dense(bias),
            d_x,
            shares,
            batch,
            length,
            channels,
            parts,
            *grad_out.stride(),
            *x.stride(),
            *d_x.stride(),
            W=width,
            SILU=silu,
            REVERSE=reverse,
            TOKENS=_TOKENS,
            CHANNELS=_CHANNELS,
            num_warps=_WARPS,
        )
    total = shares.sum(0)
    d_bias = None if bias is None else total[width].to(bias.dtype)
    return d_x, total[:width].t().to(weight.dtype), d_bias
