"""The fused CPU scan and convolution as PyTorch operators, each with a written backward.

Operators have fake kernels and autograd, so that torch.compile and torch.export take them as they are; none has an
autocast rule, since A, D and the bias must stay float32. Computation is float32; 16-bit tensors are converted on the
way in and out.

Axes: B batch, L tokens, D channels, N states, G groups of B and C, W taps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from facerec.model.kernels.cpu.launch import (
    launch_conv,
    launch_conv_backward,
    launch_scan,
    launch_scan_backward,
    new_kept,
)


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
    keep = wants_gradient(tensors)
    out, last, _ = _scan_forward(*tensors, delta_softplus, reverse, return_last_state, keep)
    return out, last


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, reverse: bool) -> Tensor:
    """`facerec.model.scan.causal_conv1d`."""
    return _conv_forward(x, weight, bias, silu, reverse)


def wants_gradient(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd will ask for a backward pass."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def token_major(like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Room in the shape of `like` (B, D, L), with the channels innermost."""
    batch, channels, length = like.shape
    return like.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)


def as_float(tensor: Tensor | None) -> Tensor | None:
    """A float32 tensor, or None."""
    return tensor.float() if tensor is not None else None


def _scan_floats(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The tensors of a scan as the kernels take them, in float32."""
    needed = u.float(), delta.float(), A.float(), B.float(), C.float()
    return *needed, as_float(D), as_float(z), as_float(delta_bias)


def gradient_like(gradient: Tensor, tensor: Tensor | None) -> Tensor:
    """The gradient in its tensor's dtype; empty where there is no tensor."""
    return gradient.to(tensor.dtype) if tensor is not None else gradient.new_empty(0)


def operator(name: str, schema: str) -> Callable[[Callable], Callable]:
    """Make a function an operator of PyTorch, facerec::name, for CPU tensors.

    `torch.library.custom_op` does as much, but imports torch.compile's machinery (seconds) when called.
    """

    def register(function: Callable) -> Callable:
        torch.library.define(f"facerec::{name}", schema)
        torch.library.impl(f"facerec::{name}", "CPU", function)
        return getattr(torch.ops.facerec, name).default

    return register


# The scan.

_SCAN_INPUTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, "
    "Tensor? delta_bias, bool softplus, bool reverse"
)


@operator(
    "scan_forward",
    f"({_SCAN_INPUTS}, bool last, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _scan_forward(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, last, keep):
    batch, channels, length = u.shape
    states = A.shape[1]
    out = token_major(u)
    h = u.new_empty((batch, channels, states) if last else (0,), dtype=torch.float32)
    kept = u.new_empty(0, dtype=torch.float32)
    if keep:
        kept = new_kept(batch, channels, length, states, B.shape[1], u)
    launch_scan(
        *_scan_floats(u, delta, A, B, C, D, z, delta_bias),
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
    out = token_major(u, u.dtype)
    h = u.new_empty((batch, channels, states) if last else (0,), dtype=torch.float32)
    kept = u.new_empty(0, dtype=torch.float32)
    if keep:
        kept = new_kept(batch, channels, length, states, B.shape[1], u)
    return out, h, kept


@operator(
    "scan_backward",
    f"(Tensor grad, Tensor? grad_last, Tensor kept, {_SCAN_INPUTS}) -> Tensor[]",
)
def _scan_backward(grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
    tensors = (u, delta, A, B, C, D, z, delta_bias)
    grads: list[Tensor | None] = [token_major(u) for _ in range(2)]
    grads.append(token_major(u) if z is not None else None)
    grad_bc = [torch.empty(B.shape, dtype=torch.float32) for _ in range(2)]
    grad_a, grad_d, grad_bias = launch_scan_backward(
        grad.float(),
        as_float(grad_last),
        kept if kept.numel() else None,
        *_scan_floats(*tensors),
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
    return [
        gradient_like(empty if g is None else g, t) for g, t in zip(gradients, tensors, strict=True)
    ]


@torch.library.register_fake("facerec::scan_backward")
def _(grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse):
    shapes = []
    for tensor in (u, delta, A, B, C, D, z, delta_bias):
        if tensor is None:
            shapes.append(u.new_empty(0, dtype=torch.float32))
        elif tensor is u or tensor is delta or tensor is z:
            shapes.append(token_major(u, tensor.dtype))
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


@operator(
    "conv_forward",
    "(Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse) -> Tensor",
)
def _conv_forward(x, weight, bias, silu, reverse):
    out = token_major(x)
    launch_conv(x.float(), weight.float(), as_float(bias), silu, reverse, out)
    return out.to(x.dtype)


@torch.library.register_fake("facerec::conv_forward")
def _(x, weight, bias, silu, reverse):
    return token_major(x, x.dtype)


@operator(
    "conv_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse)"
    " -> (Tensor, Tensor, Tensor)",
)
def _conv_backward(grad, x, weight, bias, silu, reverse):
    grad_x = token_major(x)
    grad_w, grad_bias = launch_conv_backward(
        grad.float(), x.float(), weight.float(), as_float(bias), silu, reverse, grad_x
    )
    return (
        grad_x.to(x.dtype),
        gradient_like(grad_w, weight),
        gradient_like(grad_bias, bias),
    )


@torch.library.register_fake("facerec::conv_backward")
def _(grad, x, weight, bias, silu, reverse):
    grad_bias = x.new_empty(0, dtype=torch.float32) if bias is None else bias.new_empty(bias.shape)
    return (
        token_major(x, x.dtype),
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
