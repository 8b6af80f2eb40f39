"""How a network is trained, as settings: of the loop, of `train` and of `finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from facerec.config.recipe import read_recipe
from facerec.config.settings import Settings
from facerec.data.settings import AlignSettings, BatchSettings, DataSettings
from facerec.inference.model_uri import ModelText
from facerec.losses.settings import ObjectiveSettings
from facerec.model.settings import NetworkSettings
from facerec.tracking.settings import TrackingSettings


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


class TrainSettings(
    DataSettings,
    AlignSettings,
    NetworkSettings,
    ObjectiveSettings,
    TrainingSettings,
    TrackingSettings,
):
    """Everything that `train` can be told."""

    group: ClassVar[str] = "Run"

    init: ModelText | None = Field(
        None,
        description="Model whose weights to start from: a folder, runs:/ID/model, models:/NAME@ALIAS or a shipped one.",
    )
    resume: str | None = Field(
        None,
        description="Run to go on with, or `last`: same run in MLflow, settings of its checkpoint.",
    )
    register: str | None = Field(
        None, description="Name under which the model is registered at the end."
    )


class FinetuneSettings(TrainSettings):
    """Everything that `finetune` can be told: the settings of `train`, with defaults of a second stage."""

    group: ClassVar[str] = "Run"

    model: ModelText = Field(
        min_length=1,
        description="Model to go on from: a folder, runs:/ID/model, models:/NAME@ALIAS or a shipped one.",
    )
    miner: Literal["all", "semihard", "hard", "batch_hard", "multi_similarity", "none"] = Field(
        "hard", description="Which triplets or pairs of a batch count."
    )
    confusable: bool = Field(
        True,
        description="Fill batches with people whom the network confuses, looked for anew each epoch.",
    )
    lr: float = Field(2e-4, gt=0, le=10, description="Peak learning rate of AdamW.")
    epochs: int = Field(6, ge=1, le=100_000, description="Passes over the training people.")
    register: str | None = Field(
        None, description="Name under which the model is registered at the end."
    )


def asked_to_resume(given: Mapping[str, Any], config: str | None) -> str | None:
    """The run that command line or recipe asks to go on with; the rest of the recipe does not count then."""
    recipe = read_recipe(config) if config and "resume" not in given else {}
    asked = str(given.get("resume", recipe.get("resume", "none")))
    return None if asked.lower() == "none" else asked
