"""`inner`: everything between a mixer's two large projections, as one PyTorch operator with a written backward.

Convolution and scan are the fused CPU kernels; the two small projections are plain matrix products. `scan` and
`conv` stand beside it, since a back end is a module with these three.

Axes: B batch, L tokens, D channels, N states, R rank of delta, W taps.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from facerec.model.kernels.cpu.launch import (
    launch_conv,
    launch_conv_backward,
    launch_scan,
    launch_scan_backward,
    new_kept,
)
from facerec.model.kernels.cpu.operators import (
    as_float,
    conv,
    gradient_like,
    operator,
    scan,
    wants_gradient,
)

__all__ = ["conv", "inner", "scan"]
_CHUNK_ROWS = 2048  # tokens that `inner` takes at a time


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
    return _inner_forward(*tensors, reverse, wants_gradient(tensors))[0]


_INNER_INPUTS = (
    "Tensor xz, Tensor conv_weight, Tensor? conv_bias, Tensor x_proj_weight, "
    "Tensor dt_proj_weight, Tensor A, Tensor? D, Tensor? delta_bias, bool reverse"
)


def _halves(xz: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L, 2 D) as two (B, D, L)."""
    x, z = xz.transpose(1, 2).chunk(2, dim=1)
    return x, z


def _matrices(projected: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor]:
    """The parts B and C of (B, L, R + 2 N), each as (B, 1, N, L)."""
    B, C = (
        projected[:, None, :, first : first + states].transpose(2, 3)
        for first in (rank, rank + states)
    )
    return B, C


@operator("inner_forward", f"({_INNER_INPUTS}, bool keep) -> (Tensor, Tensor, Tensor)")
def _inner_forward(
    xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse, keep
):
    conv_weight, x_proj_weight, dt_proj_weight, A = (
        t.float() for t in (conv_weight, x_proj_weight, dt_proj_weight, A)
    )
    conv_bias, D, delta_bias = map(as_float, (conv_bias, D, delta_bias))
    out, projected, kept = _inner_buffers(xz, x_proj_weight, A, keep)
    whole = projected
    if not keep:
        whole = projected.new_empty(*out.shape[:2], x_proj_weight.shape[0])
    rank, states = dt_proj_weight.shape[1], A.shape[1]
    for part, u, delta in _chunks(xz, A.shape[0]):
        x, z = _halves(xz[part].float())
        out_part, of_part = out[part], whole[part]
        gated = _float_room(out_part)
        rows = of_part.view(-1, of_part.shape[2])
        launch_conv(x, conv_weight, conv_bias, True, reverse, u.transpose(1, 2))
        # With `out=`, so that a surrounding autocast leaves the products alone.
        torch.mm(u.view(-1, u.shape[2]), x_proj_weight.t(), out=rows)
        torch.mm(rows[:, :rank], dt_proj_weight.t(), out=delta.view(-1, u.shape[2]))
        launch_scan(
            u.transpose(1, 2),
            delta.transpose(1, 2),
            A,
            *_matrices(of_part, rank, states),
            D,
            z,
            delta_bias,
            True,
            reverse,
            gated.transpose(1, 2),
            None,
            kept[part] if kept.numel() else None,
        )
        out_part.copy_(gated)  # nothing to do where they are one
    return out, projected, kept


def _float_room(tensor: Tensor) -> Tensor:
    """The float32 tensor in which to make what `tensor` shall hold: itself, where it is float32."""
    if tensor.dtype == torch.float32:
        return tensor
    return torch.empty_like(tensor, dtype=torch.float32)


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
    out = xz.new_empty(batch, length, channels)
    if not keep:
        return out, like.new_empty(0), like.new_empty(0)
    projected = like.new_empty(batch, length, x_proj_weight.shape[0])
    return out, projected, new_kept(batch, channels, length, states, 1, like)


@torch.library.register_fake("facerec::inner_forward")
def _(xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias, reverse, keep):
    return _inner_buffers(xz, x_proj_weight, A, keep)


@operator(
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
    weights = (conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias)
    floats = list(map(as_float, weights))
    grad_xz = torch.empty_like(xz, memory_format=torch.contiguous_format)
    totals = None
    for part, u, delta in _chunks(xz, A.shape[0]):
        grad_part = grad_xz[part]
        made = _float_room(grad_part)
        grads = _inner_backward_chunk(
            as_float(grad[part]),
            projected[part],
            kept[part] if kept.numel() else None,
            u,
            delta,
            [as_float(xz[part]), *floats],
            reverse,
            made,
        )
        grad_part.copy_(made)
        if totals is None:
            totals = grads
        else:
            for total, gradient in zip(totals, grads, strict=True):
                total += gradient
    if totals is None:
        totals = [torch.zeros_like(t) if t is not None else torch.zeros(0) for t in floats]
    return [grad_xz, *(gradient_like(g, t) for g, t in zip(totals, weights, strict=True))]


def _inner_backward_chunk(
    grad, projected, kept, u, delta, floats, reverse, grad_xz
) -> list[Tensor]:
    """Writes the gradient of xz; returns those of the weights, for some pictures."""
    xz, conv_weight, conv_bias, x_proj_weight, dt_proj_weight, A, D, delta_bias = floats
    (channels, states), rank = A.shape, dt_proj_weight.shape[1]
    x, z = _halves(xz)
    grad_x, grad_z = _halves(grad_xz)
    launch_conv(x, conv_weight, conv_bias, True, reverse, u.transpose(1, 2))
    rows, wide = projected.view(-1, projected.shape[2]), (-1, channels)
    torch.mm(rows[:, :rank], dt_proj_weight.t(), out=delta.view(wide))
    grad_u, grad_delta, grad_projected = (torch.empty_like(t) for t in (u, delta, projected))
    grad_a, grad_d, grad_bias = launch_scan_backward(
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
    grad_conv, grad_conv_bias = launch_conv_backward(
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
