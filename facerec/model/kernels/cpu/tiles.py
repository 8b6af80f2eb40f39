"""What the CPU kernels share: blocks of channels, and how far ahead they read."""

from __future__ import annotations

from numba import njit

from facerec.model.kernels.cpu.jobs import at, size
from facerec.model.kernels.cpu.simd import LANES, load, splat

ROW = 4 * LANES  # bytes of a vector
AHEAD = 4  # tokens


@njit(forceinline=True)
def load_optional(tensor, first, count):
    """LANES elements of a vector that may be None: zeros then."""
    if tensor[0] == 0:
        return splat(0.0)
    return load(at(tensor, first, 0, 0), tensor[1], count)


@njit(forceinline=True)
def channels_of(job, group, within):
    """(first channel, how many) of a group's block."""
    per_group = size(job, 2)
    return group * per_group + within * LANES, min(LANES, per_group - within * LANES)
