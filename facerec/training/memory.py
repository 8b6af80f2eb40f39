"""A batch that memory does not hold, told in a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from facerec.data.settings import BatchSettings
from facerec.errors import InputError

NO_MEMORY = re.compile("DefaultCPUAllocator|not enough memory|out of memory", re.IGNORECASE)


@contextmanager
def memory_told(settings: BatchSettings, device: torch.device) -> Iterator[None]:
    """Tells of a batch that does not fit into memory in a sentence, with the batch_size to try.

    Raises:
        InputError: where torch, or the kernels, could not get the memory that they asked for.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not known and not NO_MEMORY.search(str(error)):
            raise
        size, people = settings.batch_size, settings.images_per_identity
        half = size // 2 // people * people
        advice = f"set batch_size to {half}" if half >= 2 * people else "take a smaller network"
        raise InputError(
            f"a batch of {size} pictures does not fit into the memory of {device}: {advice}; "
            "what was trained until then is in the last checkpoint"
        ) from error
