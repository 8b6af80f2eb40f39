"""Where and in which arithmetic to compute: devices, autocast, copies to a device, embeddings without gradient."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facerec.errors import InputError

# malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
MALLOC_KEEPS = ((-4, 0), (-1, 2**31 - 1), (-2, 2**26))


def resolve_device(name: str) -> torch.device:
    """The device that a `device` setting means.

    Raises:
        InputError: if CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device=cuda, and torch sees no CUDA GPU here: set device to cpu or auto")
    return torch.device(name)


def autocast(precision: str, device: torch.device) -> Any:
    """The autocast context of a `precision` setting."""
    bf16 = resolve_precision(precision, device) == "bf16"
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def resolve_precision(name: str, device: torch.device) -> str:
    """What a `precision` setting means on a device: `auto` is bf16 where that is the faster, fp32 elsewhere.

    Faster it is where bfloat16 has circuits of its own: CUDA cards from Ampere on, CPUs with AMX tiles (Sapphire
    Rapids and later). A CPU without them spends more on conversions than it gains.
    """
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    capabilities: dict[str, bool] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # torch has them since 2.11
    return "bf16" if capabilities.get("amx_bf16") else "fp32"


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products in float32, not TF32: a distance of near embeddings is a small difference of them.

    That is of what is computed within: a backward pass that comes later computes as it finds.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of `array` on `device`.

    To CUDA through pinned memory, on a stream of its own: the host does not wait, and the copy for the next step runs
    while the device computes this one.
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor
    copies, computes = copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copies):
        copy = tensor.pin_memory().to(device, non_blocking=True)
    computes.wait_stream(copies)
    copy.record_stream(computes)  # its memory is not given away before `computes` has read it
    return copy


def keep_freed_memory() -> None:
    """Asks glibc to keep freed memory for the next step of this process instead of handing it back to the system.

    A training step on a CPU allocates the same tensors over and over. Handed back and asked for anew they cost tens of
    thousands of page faults a step: 5 to 13 % of its time (measured on two cores). Elsewhere than on glibc: nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; another operating system
        return
    for option, value in MALLOC_KEEPS:
        mallopt(option, value)


@functools.cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which a CUDA device receives."""
    return torch.cuda.Stream(device)
