"""The CPU kernels launched on float32 tensors: how work is cut into tasks, and sums over tasks.

Axes: B batch, L tokens, D channels, N states, G groups of B and C, W taps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from facerec.model.kernels.cpu.conv import conv_backward, conv_forward
from facerec.model.kernels.cpu.jobs import as_view, launch
from facerec.model.kernels.cpu.scan import scan_forward
from facerec.model.kernels.cpu.scan_grad import scan_backward, scan_backward_scratch
from facerec.model.kernels.cpu.simd import LANES

_LOG2_E = 1.4426950408889634
_MOST_PARTS = 64  # of a batch; bounds the memory that gradients of weights are summed from
_LEAST_TASKS = 12  # of the backward scan: a small batch cuts its channels into as many


def _chunk(states: int, length: int) -> int:
    """Tokens between kept states: so many that these never outweigh the input."""
    return max(1, min(length, max(32, states)))


def _blocks(channels: int, groups: int) -> int:
    """Blocks of channels in a group; the last one may be partial."""
    return -(-(channels // groups) // LANES)


def _parts(batch: int) -> tuple[int, int]:
    """(pictures a part, parts): how a batch is cut where gradients of weights are summed part by part."""
    pictures = max(1, -(-batch // _MOST_PARTS))
    return pictures, -(-batch // pictures)


def _rates(A: Tensor) -> Tensor:
    """A log2 e, (N, D)."""
    return torch.mul(A.t(), _LOG2_E, out=A.new_empty(A.shape[1], A.shape[0]))


def _split_sum(shares: Tensor, states: int) -> tuple[Tensor, ...]:
    """(parts, states + k, D), summed over parts: (D, states), then the k others, each its own memory."""
    matrix = torch.sum(shares[:, :states].transpose(1, 2), 0)
    return matrix.contiguous(), *(shares[:, k].sum(0) for k in range(states, shares.shape[1]))


def launch_scan(
    u, delta, A, B, C, D, z, delta_bias, softplus, reverse, out, last=None, kept=None
) -> None:
    """Writes what the scan gives into `out`, and where they are given the last and the kept states."""
    batch, channels, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    group_blocks = _blocks(channels, groups)
    rates = _rates(A)
    tokens, matrix = (2, 3) if reverse else (None, None)
    launch(
        scan_forward,
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


def new_kept(batch: int, channels: int, length: int, states: int, groups: int, like: Tensor):
    """Room for the states before every chunk but the first: (B, chunks - 1, blocks, N * LANES)."""
    chunks = max(1, -(-length // _chunk(states, length)))
    blocks = groups * _blocks(channels, groups)
    return like.new_empty((batch, chunks - 1, blocks, states * LANES), dtype=torch.float32)


def launch_scan_backward(
    grad, grad_last, kept, u, delta, A, B, C, D, z, delta_bias, softplus, reverse, grads, grad_bc
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of u, delta, z go into `grads`, of B, C into `grad_bc`; returns A's, D's, bias'."""
    batch, channels, length = u.shape
    states, groups = A.shape[1], B.shape[1]
    group_blocks = _blocks(channels, groups)
    pictures, parts = _parts(batch)
    splits = _splits(batch, groups, group_blocks)
    every = _chunk(states, length)
    rates = _rates(A)
    tokens, matrix = (2, 3) if reverse else (None, None)
    partial = grad_bc
    if splits > 1:
        partial = [u.new_empty(batch, groups * splits, states, length) for _ in range(2)]
    shares = u.new_empty(parts, states + 2, channels)
    launch(
        scan_backward,
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
        scratch=scan_backward_scratch(states, every, -(-group_blocks // splits)),
    )
    if splits > 1:
        for whole, part in zip(grad_bc, partial, strict=True):
            whole.copy_(part.view(batch, groups, splits, states, length).sum(2))
    grad_a, grad_d, grad_bias = _split_sum(shares, states)
    return grad_a, grad_d, grad_bias


def _splits(batch: int, groups: int, group_blocks: int) -> int:
    """Into how many tasks the backward scan cuts a picture's channels; shapes alone decide."""
    tasks = groups * min(batch, _MOST_PARTS)
    return min(group_blocks, max(1, -(-_LEAST_TASKS // max(1, tasks))))


def launch_conv(x, weight, bias, silu, reverse, out) -> None:
    """Writes what the convolution gives into `out`."""
    batch, channels, length = x.shape
    tokens = 2 if reverse else None
    taps = weight.t().contiguous()
    launch(
        conv_forward,
        batch * -(-channels // LANES),
        [length, 0, channels, 0, weight.shape[1], int(silu)],
        [
            as_view(x, tokens),
            as_view(taps),
            as_view(bias),
            as_view(out, tokens),
        ],
    )


def launch_conv_backward(grad, x, weight, bias, silu, reverse, grad_x) -> tuple[Tensor, Tensor]:
    """Writes the gradient of x into `grad_x`; returns those of weight and bias."""
    batch, channels, length = x.shape
    width = weight.shape[1]
    pictures, parts = _parts(batch)
    tokens = 2 if reverse else None
    taps = weight.t().contiguous()
    shares = x.new_empty(parts, width + 1, channels)
    launch(
        conv_backward,
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
    grad_w, grad_bias = _split_sum(shares, width)
    return grad_w, grad_bias
