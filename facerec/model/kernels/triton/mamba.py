"""The Triton kernels as PyTorch operators: `scan` and `conv`, each with a written backward.

They have fake kernels and autograd, so that torch.compile and torch.export take them as they are;
none has an autocast rule, since A, D and the bias must stay float32. Inputs may be float32, float16
or bfloat16, mixed.

Axes: B batch, L tokens, D channels, N states, G groups of B and C.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import custom_op

from facerec.model.kernels.triton import conv as conv_triton
from facerec.model.kernels.triton import scan as scan_triton
from facerec.model.kernels.triton import scan_grad as scan_grad_triton
from facerec.model.kernels.triton.scan import kept_shape
from facerec.model.kernels.triton.tiles import like

_DENSE = torch.contiguous_format


def scan(
    u: Tensor,  # (B, D, L)
    delta: Tensor,  # (B, D, L)
    A: Tensor,  # (D, N)
    B: Tensor,  # (B, G, N, L)
    C: Tensor,  # (B, G, N, L)
    D: Tensor | None,  # (D,)
    z: Tensor | None,  # (B, D, L)
    delta_bias: Tensor | None,  # (D,)
    delta_softplus: bool,
    reverse: bool,
    return_last_state: bool,
) -> tuple[Tensor, Tensor]:
    """`facerec.model.scan.selective_scan`: (out, last state or empty)."""
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    out, last, _ = scan_forward(*tensors, delta_softplus, reverse, return_last_state, keep)
    return out, last


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """`facerec.model.scan.causal_conv1d`: (B, D, L) in x's dtype."""
    return conv_forward(x, weight, bias, silu, reverse)


@custom_op("facerec::triton_scan_forward", mutates_args=())
def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
    last: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Out, last state, states kept for the backward pass; the last two empty where not asked for."""
    out, state, kept = scan_triton.scan_forward(
        u, delta, A, B, C, D, z, delta_bias, softplus,
        reverse=reverse, return_last_state=last, keep=keep,
    )  # fmt: skip
    empty = u.new_empty(0, dtype=torch.float32)
    return out, empty if state is None else state, empty.clone() if kept is None else kept


@scan_forward.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, last, keep):
    batch, channels, length = u.shape
    states = A.shape[1]
    state = (batch, channels, states) if last else (0,)
    kept = kept_shape(batch, channels, length, states) if keep else (0,)
    return like(u), *(u.new_empty(shape, dtype=torch.float32) for shape in (state, kept))


@custom_op("facerec::triton_scan_backward", mutates_args=())
def scan_backward(
    grad: Tensor,
    grad_last: Tensor | None,
    kept: Tensor | None,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    softplus: bool,
    reverse: bool,
) -> list[Tensor]:
    """Gradients of the eight tensors; empty where there is no tensor."""
    gradients = scan_grad_triton.scan_backward(
        grad, grad_last, u, delta, A, B, C, D, z, delta_bias, softplus, reverse=reverse, kept=kept
    )
    # Operators may not return views of one another, and those of A, D and the bias are rows of one sum.
    return [
        u.new_empty(0) if g is None else g if g.dim() > 2 else g.clone(memory_format=_DENSE)
        for g in gradients
    ]


@scan_backward.register_fake
def _(grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
    shaped = [like(u), like(delta), A, B, C, D, like(z) if z is not None else None, delta_bias]
    for index in (2, 3, 4, 5, 7):
        tensor = shaped[index]
        shaped[index] = None if tensor is None else tensor.new_empty(tensor.shape)
    return [u.new_empty(0) if tensor is None else tensor for tensor in shaped]


def _scan_setup(ctx, inputs, output) -> None:
    *tensors, ctx.softplus, ctx.reverse, _, ctx.keep = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)


def _scan_gradients(ctx, grad, grad_last, _):
    kept, *tensors = ctx.saved_tensors
    grad = torch.zeros_like(tensors[0]) if grad is None else grad
    grad_last = None if grad_last is None or not grad_last.numel() else grad_last
    kept = kept if ctx.keep else None
    gradients = scan_backward(grad, grad_last, kept, *tensors, ctx.softplus, ctx.reverse)
    return *(None if t is None else g for g, t in zip(gradients, tensors, strict=True)), *[None] * 4


scan_forward.register_autograd(_scan_gradients, setup_context=_scan_setup)


@custom_op("facerec::triton_conv_forward", mutates_args=())
def conv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> Tensor:
    """The convolution of x (B, D, L) with weight (D, W)."""
    return conv_triton.conv_forward(x, weight, bias, silu, reverse=reverse)


@conv_forward.register_fake
def _(x, weight, bias, silu, reverse):
    return like(x)


@custom_op("facerec::triton_conv_backward", mutates_args=())
def conv_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; the last empty where there is no bias."""
    d_x, d_weight, d_bias = conv_triton.conv_backward(grad, x, weight, bias, silu, reverse=reverse)
    return (
        d_x,
        d_weight.clone(memory_format=_DENSE),
        x.new_empty(0) if d_bias is None else d_bias.clone(),
    )


@conv_backward.register_fake
def _(grad, x, weight, bias, silu, reverse):
    d_bias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return like(x), weight.new_empty(weight.shape), d_bias


def _conv_setup(ctx, inputs, output) -> None:
    x, weight, bias, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(x, weight, bias)


def _conv_gradients(ctx, grad):
    x, weight, bias = ctx.saved_tensors
    gradients = conv_backward(grad, x, weight, bias, ctx.silu, ctx.reverse)
    return *gradients[:2], None if bias is None else gradients[2], None, None


conv_forward.register_autograd(_conv_gradients, setup_context=_conv_setup)
