"""What is minimised, as settings."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from facerec.config.settings import Settings

DEFAULT_MARGIN = {"triplet": 0.2, "arcface": 0.5, "cosface": 0.35, "subcenter_arcface": 0.5}


CLASSIFYING = ("arcface", "cosface", "subcenter_arcface")


MINING = ("triplet", "multi_similarity", "supcon")


class ObjectiveSettings(Settings):
    """What is minimised."""

    group: ClassVar[str] = "Objective"

    loss: Literal[
        "triplet",
        "arcface",
        "cosface",
        "subcenter_arcface",
        "multi_similarity",
        "supcon",
        "distill",
    ] = Field(
        "triplet",
        description="Loss, as in pytorch-metric-learning; distill: 1 - cosine to the teacher's embedding.",
    )
    teacher: Literal["dlib"] | None = Field(
        None,
        description="Network whose embeddings distill learns (dlib needs facerec[teacher], embedding_dim 128).",
    )
    blends: int = Field(
        0,
        ge=0,
        le=16,
        description="Faces blended from two people's, per training picture, that distill learns from too; an epoch is "
        "so much longer.",
    )
    miner: Literal["all", "semihard", "hard", "batch_hard", "multi_similarity", "none"] = Field(
        "all",
        description="Which triplets or pairs of a batch count (all: of a pair loss every pair); distill and the losses "
        "over all identities ignore it.",
    )
    margin: float | None = Field(
        None,
        gt=0,
        le=2,
        description="Margin of loss and miner, in the loss's unit; none takes the loss's usual one.",
    )
    margin_warmup_epochs: float = Field(
        0.0,
        ge=0,
        description="Epochs over which the margin rises linearly from 0, for arcface and cosface.",
    )
    scale: float = Field(
        32.0, gt=0, le=256, description="Scale of the logits of arcface and cosface."
    )
    temperature: float = Field(0.1, gt=0, le=10, description="Temperature of supcon.")
