"""How a network is trained, as settings; whether the batch that all ranks make together can be filled."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from facerec import parallel
from facerec.data.batches import BatchSettings, check_batches
from facerec.settings import InputError, Settings


class TrainerSettings(Settings):
    """How the weights are found."""

    group: ClassVar[str] = "Training"

    epochs: int = Field(24, ge=1, le=100_000, description="Passes over the training people.")
    lr: float = Field(2e-3, gt=0, le=10, description="Peak learning rate of AdamW.")
    warmup_epochs: float = Field(
        1.0, ge=0, description="Epochs of linear warm-up; a cosine to 0 follows."
    )
    weight_decay: float = Field(
        0.05, ge=0, le=10, description="Weight decay; norms, biases, A and D are left out."
    )
    grad_clip: float = Field(1.0, ge=0, description="Largest gradient norm; 0 = no clipping.")
    ema: float = Field(
        0.99, ge=0, lt=1, description="Decay of the averaged weights that are validated and kept."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Arithmetic of the network; auto = bf16 where that is faster (Ampere, AMX), else fp32.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto = CUDA if there is one."
    )
    compile: bool = Field(
        False,
        description="torch.compile the network: minutes at the start, for shorter steps on CUDA.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of weights, batches and augmentation.")
    checkpoint_minutes: float = Field(
        5.0,
        gt=0,
        description="Longest time between two checkpoints; an epoch's end is saved too where that costs under 1 %.",
    )


class TrainingSettings(TrainerSettings, BatchSettings):
    """What a Trainer reads."""


def whole_batch(settings: Any) -> Any:
    """The same settings with the pictures of all ranks as batch_size, which is a rank's own."""
    ranks = parallel.world().size
    return settings.model_copy(update={"batch_size": settings.batch_size * ranks})


def check_whole_batch(labels: np.ndarray, settings: Any) -> None:
    """Raises InputError where the batch of all ranks cannot be filled from the training pictures."""
    ranks = parallel.world().size
    try:
        check_batches(labels, whole_batch(settings))
    except InputError as error:
        if ranks == 1:
            raise
        raise InputError(f"counting the pictures of all {ranks} ranks, {error}") from None
