"""The fused CPU kernels as PyTorch operators: `scan`, `conv` and `inner`, each with a written backward.

`inner` is everything between a mixer's two large projections in one operator; its two small projections
are plain matrix products. Operators have fake kernels and autograd, so that torch.compile and
torch.export take them as they are; none has an autocast rule, since A, D and the bias must stay float32.
Computation is float32; 16-bit tensors are converted on the way in and out.

Axes: B batch, L tokens, D channels, N states, G groups of B and C, R rank of delta, W taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from facerec.model import scan_cpu
from facerec.model.jobs_cpu import as_view, launch
from facerec.model.simd_cpu import LANES

_LOG2_E = 1.4426950408889634
_MOST_PARTS = 64  # of a batch; bounds the memory that gradients of weights are summed from
_LEAST_TASKS = 12  # of the backward scan: a small batch cuts its channels into as many
_CHUNK_ROWS = 2048  # tokens that `inner` takes at a time


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    reverse: bool,
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """`facerec.model.scan.selective_scan` with B and C (B, G, N, L); (out, last state or empty)."""
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep = _wants_gradient(tensors)
    out, last, _ = _scan_forward(*tensors, delta_softplus, reverse, return_last_state, keep)
    return out, last


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """`facerec.model.scan.causal_conv1d`."""
    return _conv_forward(x, weight, bias, silu, reverse)


def inner(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj_weight: Tensor,
    dt_proj_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    reverse: bool,
) -> Tensor:
    """`facerec.model.scan.mamba_inner`."""
    tensors = (xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    return _inner_forward(*tensors, reverse, _wants_gradient(tensors))[0]


def _wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _chunk(states: int, length: int) -> int:
    """Tokens between kept states: so many that these never outweigh the input."""
    return max(1, min(length, max(32, states)))


def _token_major(
    batch: int, channels: int, length: int, like: Tensor, dtype=torch.float32
) -> Tensor:
    """(B, D, L) with the channels innermost."""
    return like.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)


def _float(tensor: Tensor | None) -> Tensor | None:
    return tensor.float() if tensor is not None else None


def _like(gradient: Tensor, tensor: Tensor | None) -> Tensor:
    """The gradient in its tensor's dtype; empty where there is no tensor."""
    return gradient.to(tensor.dtype) if tensor is not None else gradient.new_empty(0)


def _split_sum(shares: Tensor, states: int) -> tuple[Tensor, ...]:
    """(parts, states + k, D), summed over parts: (D, states), then the k others, each its own memory."""
    matrix = torch.sum(shares[:, :states].transpose(1, 2), 0)
    return matrix.contiguous(), *(shares[:, k].sum(0) for k in range(states, shares.shape[1]))


def _operator(name: str, schema: str) -> Callable[[Callable], Callable]:
    """Make a function an operator of PyTorch, facerec::name, for CPU tensors.

    `torch.library.custom_op` does as much, but imports torch.compile's machinery (seconds) when called.
    """

    def register(function: Callable) -> Callable:
        torch.library.define(f"facerec::{name}", schema)
        torch.library.impl(f"facerec::{name}", "CPU", function)
        return getattr(torch.ops.facerec, name).default

    return register


# Kernels launched on float32 tensors.


def _launch_scan(
    u, delta, A, B, C, D, z, delta_bias, softplus, reverse, out, last=None, kept=None
) -> None:
    batch, channels, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    group_blocks = -(-(channels // groups) // LANES)
    rates = torch.mul(A.t(), _LOG2_E, out=A.new_empty(states, channels))
    tokens, matrix = (2, 3) if reverse else (None, None)
    launch(
        scan_cpu.scan_forward,
        batch * groups * group_blocks,
        [
            length,
            states,
            channels // groups,
            group_blocks,
            groups,
            int(softplus),
            _chunk(states, length),
        ],
        [
            as_view(u, tokens),
            as_view(delta, tokens),
            as_view(rates),
            as_view(B, matrix),
            as_view(C, matrix),
            as_view(D),
            as_view(z, tokens),
            as_view(delta_bias),
            as_view(out, tokens),
            as_view(last),
            as_view(kept),
        ],
        scratch=2 * states * 4 * LANES,
    )


def _new_kept(batch: int, channels: int, length: int, states: int, groups: int, like: Tensor):
    """Room for the states before every chunk but the first: (B, chunks - 1, blocks, N * LANES)."""
    chunks = max(1, -(-length // _chunk(states, length)))
    blocks = groups * -(-(channels // groups) // LANES)
    return like.new_empty((batch, chunks - 1, blocks, states * LANES), dtype=torch.float32)


def _launch_scan_backward(
    grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse, grads, grad_bc
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, delta, z go into `grads`, of B, C into `grad_bc`; returns A's, D's, bias'."""
    batch, channels, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    group_blocks = -(-(channels // groups) // LANES)
    pictures = max(1, -(-batch // _MOST_PARTS))
    parts = -(-batch // pictures)
    splits = _splits(batch, groups, group_blocks)
    every = _chunk(states, length)
    rates = torch.mul(A.t(), _LOG2_E, out=A.new_empty(states, channels))
    tokens, matrix = (2, 3) if reverse else (None, None)
    partial = grad_bc
    if splits > 1:
        partial = [u.new_empty(batch, groups * splits, states, length) for _ in range(2)]
    shares = u.new_empty(parts, states + 2, channels)
    launch(
        scan_cpu.scan_backward,
        parts * groups * splits,
        [
            length,
            states,
            channels // groups,
            group_blocks,
            groups,
            int(softplus),
            every,
            splits,
            batch,
            pictures,
        ],
        [
            as_view(u, tokens),
            as_view(delta, tokens),
            as_view(rates),
            as_view(B, matrix),
            as_view(C, matrix),
            as_view(D),
            as_view(z, tokens),
            as_view(delta_bias),
            as_view(grad, tokens),
            as_view(kept),
            as_view(grad_last),
            *(as_view(gradient, tokens) for gradient in grads),
            *(as_view(gradient, matrix) for gradient in partial),
            as_view(shares),
            as_view(shares[:, states]),
            as_view(shares[:, states + 1]),
        ],
        scratch=scan_cpu.scan_backward_scratch(states, every, -(-group_blocks // splits)),
    )
    if splits > 1:
        for whole, part in zip(grad_bc, partial, strict=True):
            whole.copy_(part.view(batch, groups, splits, states, length).sum(2))
    return _split_sum(shares, states)


def _splits(batch: int, groups: int, group_blocks: int) -> int:
    """Into how many tasks the backward scan cuts a picture's channels; shapes alone decide."""
    tasks = groups * min(batch, _MOST_PARTS)
    return min(group_blocks, max(1, -(-_LEAST_TASKS // max(1, tasks))))


def _launch_conv(x, weight, bias, silu, reverse, out) -> None:
    batch, channels, length = x.shape
    tokens = 2 if reverse else None
    taps = weight.t().contiguous()
    launch(
        scan_cpu.conv_forward,
        batch * -(-channels // LANES),
        [length, 0, channels, 0, weight.shape[1], int(silu)],
        [
            as_view(x, tokens),
            as_view(taps),
            as_view(bias),
            as_view(out, tokens),
        ],
    )


def _launch_conv_backward(grad, x, weight, bias, silu, reverse, grad_x) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x into `grad_x`; returns those of weight and bias."""
    batch, channels, length = x.shape
    width = weight.shape[1]
    pictures = max(1, -(-batch // _MOST_PARTS))
    parts = -(-batch // pictures)
    tokens = 2 if reverse else None
    taps = weight.t().contiguous()
    shares = x.new_empty(parts, width + 1, channels)
    launch(
        scan_cpu.conv_backward,
        parts * -(-channels // LANES),
        [length, 0, channels, 0, width, int(silu), batch, pictures],
        [
            as_view(x, tokens),
            as_view(taps),
            as_view(bias),
            as_view(grad, tokens),
            as_view(grad_x, tokens),
            as_view(shares),
            as_view(shares[:, width]),
        ],
    )
    return _split_sum(shares, width)


# The scan.

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool softplus, bool reverse"
)


@_operator(
    "scan_forward",
    f"({_SCAN_INPUTS}, bool last, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _scan_forward(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, last, keep):
    batch, channels, length = u.shape
    states = A.shape[1]
    out = _token_major(batch, channels, length, u)
    h = u.new_empty((batch, channels, states) if last else (0,), dtype=torch.float32)
    kept = u.new_empty(0, dtype=torch.float32)
    if keep:
        kept = _new_kept(batch, channels, length, states, B.shape[1], u)
    _launch_scan(
        *map(_float, (u, delta, A, B, C, D, z, delta_bias)),
        softplus,
        reverse,
        out,
        h if last else None,
        kept if keep and kept.numel() else None,
    )
    return out.to(u.dtype), h, kept


@torch.library.register_fake("facerec::scan_forward")
def _(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, last, keep):
    batch, channels, length = u.shape
    states = A.shape[1]
    out = _token_major(batch, channels, length, u, u.dtype)
    h = u.new_empty((batch, channels, states) if last else (0,), dtype=torch.float32)
    kept = u.new_empty(0, dtype=torch.float32)
    if keep:
        kept = _new_kept(batch, channels, length, states, B.shape[1], u)
    return out, h, kept


@_operator(
    "scan_backward",
    f"(Tensor grad, Tensor? grad_last, Tensor kept, {_SCAN_INPUTS}) -> Tensor[]",
)
def _scan_backward(grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
    batch, channels, length = u.shape
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    floats = list(map(_float, tensors))
    grads = [_token_major(batch, channels, length, u) for _ in range(2)]
    grads.append(_token_major(batch, channels, length, u) if z is not None else None)
    grad_bc = [torch.empty(B.shape, dtype=torch.float32) for _ in range(2)]
    grad_a, grad_d, grad_bias = _launch_scan_backward(
        grad.float(),
        _float(grad_last),
        kept if kept.numel() else None,
        *floats,
        softplus,
        reverse,
        grads,
        grad_bc,
    )
    empty = grad_a.new_empty(0)
    gradients = (
        *grads[:2],
        grad_a,
        *grad_bc,
        grad_d,
        grads[2],
        grad_bias,
    )
    return [_like(empty if g is None else g, t) for g, t in zip(gradients, tensors, strict=True)]


@torch.library.register_fake("facerec::scan_backward")
def _(grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
    batch, channels, length = u.shape
    shapes = []
    for tensor in (u, delta, A, B, C, D, z, delta_bias):
        if tensor is None:
            shapes.append(u.new_empty(0, dtype=torch.float32))
        elif tensor is u or tensor is delta or tensor is z:
            shapes.append(_token_major(batch, channels, length, u, tensor.dtype))
        else:
            shapes.append(tensor.new_empty(tensor.shape))
    return shapes


def _scan_setup(ctx, inputs, output) -> None:
    *tensors, ctx.softplus, ctx.reverse, _, ctx.kept = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _scan_autograd(ctx, grad, grad_last, _):
    kept, *tensors = ctx.saved_tensors
    u = tensors[0]
    if not ctx.kept:  # the operator was called by hand, without a word of gradients
        kept = _scan_forward(*tensors, ctx.softplus, ctx.reverse, False, True)[2]
    if grad is None:
        grad = torch.zeros_like(u)
    if grad_last is not None and not grad_last.numel():
        grad_last = None
    grads = _scan_backward(grad, grad_last, kept, *tensors, ctx.softplus, ctx.reverse)
    grads = [g if t is not None else None for g, t in zip(grads, tensors, strict=True)]
    return (*grads, None, None, None, None)


torch.library.register_autograd("facerec::scan_forward", _scan_autograd, setup_context=_scan_setup)


# The convolution.


@_operator(
    "conv_forward",
    "(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor",
)
def _conv_forward(x, weight, bias, silu, reverse):
    out = _token_major(*x.shape, x)
    _launch_conv(*map(_float, (x, weight, bias)), silu, reverse, out)
    return out.to(x.dtype)


@torch.library.register_fake("facerec::conv_forward")
def _(x, weight, bias, silu, reverse):
    return _token_major(*x.shape, x, x.dtype)


@_operator(
    "conv_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse)"
    " -> (Tensor, Tensor, Tensor)",
)
def _conv_backward(grad, x, weight, bias, silu, reverse):
    grad_x = _token_major(*x.shape, x)
    grad_w, grad_bias = _launch_conv_backward(
        *map(_float, (grad, x, weight, bias)), silu, reverse, grad_x
    )
    return (
        grad_x.to(x.dtype),
        _like(grad_w, weight),
        _like(grad_bias, bias),
    )


@torch.library.register_fake("facerec::conv_backward")
def _(grad, x, weight, bias, silu, reverse):
    grad_bias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return (
        _token_major(*x.shape, x, x.dtype),
        weight.new_empty(weight.shape),
        grad_bias,
    )


def _conv_setup(ctx, inputs, output) -> None:
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _conv_autograd(ctx, grad):
    tensors = ctx.saved_tensors
    grads = _conv_backward(grad, *tensors, ctx.silu, ctx.reverse)
    return (*grads[:2], grads[2] if tensors[2] is not None else None, None, None)


torch.library.register_autograd("facerec::conv_forward", _conv_autograd, setup_context=_conv_setup)


# Everything between a mixer's two large projections.

_INNER_INPUTS = (
    "Tensor xz, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj_weight, "
    "Tensor dt_proj_weight, Tensor A, Tensor? D, Tensor? delta_bias, bool reverse"
)


def _halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, 2 D) as two (B, D, L)."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    return x, z


def _matrices(projected: Tensor, rank: int, states: int) -> list[Tensor]:
    """The parts B and C of (B, L, R + 2 N), each as (B, 1, N, L)."""
    return [
        projected[:, None, :, first : first + states].transpose(2, 3)
        for first in (rank, rank + states)
    ]


@_operator("inner_forward", f"({_INNER_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)")
def _inner_forward(
    xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse, keep
):
    tensors = (xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    floats = list(map(_float, tensors))
    out, projected, kept = _inner_buffers(xz, x_proj_weight, A, True)
    rank, states = dt_proj_weight.shape[1], A.shape[1]
    for part, u, delta in _chunks(floats[0], A.shape[0]):
        x, z = _halves(floats[0][part])
        rows = projected[part].view(-1, projected.shape[2])
        _launch_conv(x, *floats[1:3], True, reverse, u.transpose(1, 2))
        # With `out=`, so that a surrounding autocast leaves the products alone.
        torch.mm(u.view(-1, u.shape[2]), floats[3].t(), out=rows)
        torch.mm(rows[:, :rank], floats[4].t(), out=delta.view(-1, u.shape[2]))
        _launch_scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            floats[5],
            *_matrices(projected[part], rank, states),
            floats[6],
            z,
            floats[7],
            True,
            reverse,
            out[part].transpose(1, 2),
            None,
            kept[part] if keep and kept.numel() else None,
        )
    if not keep:
        projected, kept = out.new_empty(0), out.new_empty(0)
    return out.to(xz.dtype), projected, kept


def _chunks(xz: Tensor, channels: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """The batch, some pictures at a time: (which, room for u, room for delta), both (b, L, D).

    A chunk's u and delta stay in the processor's caches and are made again for the backward pass, which is
    cheaper than to write and read back whole ones. How many pictures: shapes alone decide.
    """
    batch, length, _ = xz.shape
    pictures = min(batch, max(1, _CHUNK_ROWS // max(1, length)))
    pictures = -(-batch // max(1, -(-batch // max(1, pictures))))  # chunks of equal size
    u, delta = (xz.new_empty((pictures, length, channels), dtype=torch.float32) for _ in range(2))
    for first in range(0, batch, max(1, pictures)):
        count = min(pictures, batch - first)
        yield slice(first, first + count), u[:count], delta[:count]


def _inner_buffers(xz, x_proj_weight, A, keep) -> tuple[Tensor, Tensor, Tensor]:
    """out (B, L, D), projected (B, L, R + 2 N), kept states; the last two empty unless kept."""
    batch, length, _ = xz.shape
    channels, states = A.shape
    like = xz.new_empty(0, dtype=torch.float32)
    out = like.new_empty(batch, length, channels)
    if not keep:
        return out, like.new_empty(0), like.new_empty(0)
    projected = like.new_empty(batch, length, x_proj_weight.shape[0])
    return out, projected, _new_kept(batch, channels, length, states, 1, like)


@torch.library.register_fake("facerec::inner_forward")
def _(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse, keep):
    out, projected, kept = _inner_buffers(xz, x_proj_weight, A, keep)
    return out.to(xz.dtype), projected, kept


@_operator(
    "inner_backward", f"(Tensor grad, Tensor projected, Tensor kept, {_INNER_INPUTS}) -> Tensor[]"
)
def _inner_backward(
    grad,
    projected,
    kept,
    xz,
    conv_weight,
    conv_bias,
    x_proj_weight,
    dt_proj_weight,
    A,
    D,
    delta_bias,
    reverse,
):
    tensors = (xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    floats = list(map(_float, tensors))
    grad = grad.float()
    grad_xz = torch.empty_like(floats[0], memory_format=torch.contiguous_format)
    totals = None
    for part, u, delta in _chunks(floats[0], A.shape[0]):
        kept_part = kept[part] if kept.numel() else None
        grads = _inner_backward_chunk(
            grad[part],
            projected[part],
            kept_part,
            u,
            delta,
            [floats[0][part], *floats[1:]],
            reverse,
            grad_xz[part],
        )
        if totals is None:
            totals = grads
        else:
            for total, gradient in zip(totals, grads, strict=True):
                total += gradient
    if totals is None:
        totals = [torch.zeros_like(t) if t is not None else xz.new_zeros(0) for t in floats[1:]]
    return [_like(g, t) for g, t in zip((grad_xz, *totals), tensors, strict=True)]


def _inner_backward_chunk(
    grad, projected, kept, u, delta, floats, reverse, grad_xz
) -> list[Tensor]:
    """Writes the gradient of xz; returns those of the weights, for some pictures."""
    xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias = floats
    channels, states, rank = *A.shape, dt_proj_weight.shape[1]
    x, z = _halves(xz)
    grad_x, grad_z = _halves(grad_xz)
    _launch_conv(x, conv_weight, conv_bias, True, reverse, u.transpose(1, 2))
    rows, wide = projected.view(-1, projected.shape[2]), (-1, channels)
    torch.mm(rows[:, :rank], dt_proj_weight.t(), out=delta.view(wide))
    grad_u, grad_delta, grad_projected = (torch.empty_like(t) for t in (u, delta, projected))
    grad_a, grad_d, grad_bias = _launch_scan_backward(
        grad.transpose(1, 2),
        None,
        kept,
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A,
        *_matrices(projected, rank, states),
        D,
        z,
        delta_bias,
        True,
        reverse,
        [grad_u.transpose(1, 2), grad_delta.transpose(1, 2), grad_z],
        _matrices(grad_projected, rank, states),
    )
    flat_u, flat_delta = grad_u.view(wide), grad_delta.view(wide)
    grad_rows = grad_projected.view(-1, projected.shape[2])
    grad_x_proj, grad_dt_proj = torch.empty_like(x_proj_weight), torch.empty_like(dt_proj_weight)
    torch.mm(flat_delta, dt_proj_weight, out=grad_rows[:, :rank])
    torch.mm(flat_delta.t(), rows[:, :rank], out=grad_dt_proj)
    torch.mm(grad_rows.t(), u.view(wide), out=grad_x_proj)
    torch.addmm(flat_u, grad_rows, x_proj_weight, out=flat_u)
    grad_conv, grad_conv_bias = _launch_conv_backward(
        grad_u.transpose(1, 2), x, conv_weight, conv_bias, True, reverse, grad_x
    )
    return [grad_conv, grad_conv_bias, grad_x_proj, grad_dt_proj, grad_a, grad_d, grad_bias]


@torch.library.register_fake("facerec::inner_backward")
def _(grad, projected, kept, xz, *rest):
    weights = [
        xz.new_empty(0, dtype=torch.float32) if weight is None else weight.new_empty(weight.shape)
        for weight in rest[:-1]
    ]
    return [xz.new_empty(xz.shape), *weights]


def _inner_setup(ctx, inputs, output) -> None:
    *tensors, ctx.reverse, ctx.kept = inputs
    ctx.save_for_backward(*output[1:], *tensors)


def _inner_autograd(ctx, grad, *_):
    saved = ctx.saved_tensors
    kept, tensors = saved[:2], saved[2:]
    if not ctx.kept:  # the operator was called by hand, without a word of gradients
        kept = _inner_forward(*tensors, ctx.reverse, True)[1:]
    grads = _inner_backward(grad, *kept, *tensors, ctx.reverse)
    grads = [g if t is not None else None for g, t in zip(grads, tensors, strict=True)]
    return (*grads, None, None)


torch.library.register_autograd(
    "facerec::inner_forward", _inner_autograd, setup_context=_inner_setup
)
