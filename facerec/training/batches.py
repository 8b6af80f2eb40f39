"""The batch that all ranks make together."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from facerec.data.sampling import check_batches
from facerec.data.settings import BatchSettings
from facerec.errors import InputError
from facerec.training import distributed

BatchOrMore = TypeVar("BatchOrMore", bound=BatchSettings)


def whole_batch(settings: BatchOrMore) -> BatchOrMore:
    """The same settings with the pictures of all ranks as batch_size, which is a rank's own."""
    ranks = distributed.world().size
    return settings.model_copy(update={"batch_size": settings.batch_size * ranks})


def check_whole_batch(labels: np.ndarray, settings: BatchSettings) -> None:
    """Raises InputError where the batch of all ranks cannot be filled from the training pictures."""
    ranks = distributed.world().size
    try:
        check_batches(labels, whole_batch(settings))
    except InputError as error:
        if ranks == 1:
            raise
        raise InputError(f"counting the pictures of all {ranks} ranks, {error}") from None
