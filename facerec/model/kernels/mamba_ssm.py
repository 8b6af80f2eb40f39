"""mamba-ssm's and causal-conv1d's CUDA kernels behind the signatures of `facerec.model.scan`.

Both are optional: nothing of them is imported before it is asked for. What their kernels want, and
what is done here: one dtype for u, delta, B, C, z, with the tokens innermost; A, D and the bias in
float32; weight and bias of the convolution in one dtype, which may differ from x's; the activation by keyword,
since the fourth argument of causal_conv1d_fn is seq_idx.
Token-major tensors therefore cost a copy each, which the Triton kernels do not ask for. Their
backward pass drops the gradient of the last state: who wants it is refused.

Axes: B batch, L tokens, D channels, N states, G groups of B and C, W taps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor


@functools.cache
def kernels() -> tuple[Callable, Callable] | None:
    """(selective_scan_fn, causal_conv1d_fn), or None where either cannot be imported."""
    try:
        from causal_conv1d import causal_conv1d_fn
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except Exception:  # compiled extensions fail in many ways: ImportError, OSError, RuntimeError
        return None
    return selective_scan_fn, causal_conv1d_fn


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
    return_last_state: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """`facerec.model.scan.selective_scan`: out (B, D, L), and h (B, D, N) float32, or None unless asked for.

    Raises:
        ValueError: if mamba-ssm is missing, or the last state is asked for where gradients are recorded.
    """
    function = _kernels()[0]
    wants_grad = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (u, delta, A, B, C, D, z, delta_bias)
    )
    if return_last_state and wants_grad:
        raise ValueError(
            "mamba-ssm drops the gradient of the last state: set the scan back end to triton, or use torch.no_grad()"
        )
    u, delta, B, C = (t.to(u.dtype).contiguous() for t in (u, delta, B, C))
    z = z.to(u.dtype).contiguous() if z is not None else None
    A = A.float().contiguous()
    D, delta_bias = (t.float().contiguous() if t is not None else None for t in (D, delta_bias))
    result = function(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    return result if return_last_state else (result, None)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """`facerec.model.scan.causal_conv1d`: x (B, D, L), weight (D, W), bias (D,) -> (B, D, L) in x's dtype.

    Raises:
        ValueError: if causal-conv1d is missing.
    """
    function = _kernels()[1]
    bias = bias.to(weight.dtype).contiguous() if bias is not None else None
    return function(x.contiguous(), weight.contiguous(), bias, activation="silu" if silu else None)


def _kernels() -> tuple[Callable, Callable]:
    found = kernels()
    if found is None:
        raise ValueError("scan back end 'mamba-ssm' was asked for, but it cannot be imported here")
    return found
