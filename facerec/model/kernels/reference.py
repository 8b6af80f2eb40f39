"""The scan and the convolution in plain PyTorch, which every kernel is held against."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """`selective_scan` as a loop over tokens, in float32, or in float64 where u is.

    Shapes as in `selective_scan`, B and C with groups. Returns out (B, D, L) and h (B, D, N).
    """
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    x, dt, B, C = (t.to(dtype) for t in (u, delta, B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(dtype)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    per_group = u.shape[1] // B.shape[1]
    state = x.new_zeros(*x.shape[:2], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(dt[:, :, t, None] * A.to(dtype))
        b, c = (m[..., t].repeat_interleave(per_group, dim=1) for m in (B, C))  # (B, D, N)
        state = decay * state + (dt[:, :, t] * x[:, :, t])[..., None] * b
        outputs.append((state * c).sum(-1))
    out = torch.stack(outputs, dim=-1) if outputs else torch.zeros_like(x)
    if D is not None:
        out = out + D.to(dtype)[:, None] * x
    if z is not None:
        out = out * F.silu(z.to(dtype))
    return out.to(u.dtype), state


def reference_conv(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """`causal_conv1d` of x (B, D, L) with weight (D, width), in float32, or in float64 where x is."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    width = weight.shape[1]
    padded = F.pad(x.to(dtype), (width - 1, 0))
    taps = weight.to(dtype)[:, None]
    out = F.conv1d(padded, taps, bias.to(dtype) if bias is not None else None, groups=x.shape[1])
    return (F.silu(out) if silu else out).to(x.dtype)


def grouped(matrix: Tensor) -> Tensor:
    """B or C of a scan, (B, N, L) or (B, G, N, L), with groups."""
    return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix
