"""What a study is, as settings."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from facerec.config.recipe import shipped
from facerec.runtime.paths import PathText, located
from facerec.training.settings import TrainSettings

SPACES = shipped("spaces")
SpaceText = Annotated[str, AfterValidator(partial(located, names=SPACES))]


class SweepSettings(TrainSettings):
    """Everything that `sweep` can be told."""

    group: ClassVar[str] = "Sweep"

    space: SpaceText = Field(
        "demo",
        min_length=1,
        description="YAML file of what is searched, or the name of one that comes with facerec.",
    )
    trials: int = Field(
        20, ge=1, le=100_000, description="Complete or pruned trials that the study is to have."
    )
    study: str | None = Field(
        None, min_length=1, description="Name of the study; none takes the space file's."
    )
    storage: PathText | None = Field(
        None,
        min_length=1,
        description="Where the study is kept: a file for one machine, postgresql://user@host/database for several; "
        "none takes a file in output.",
    )
    workers: int = Field(1, ge=1, le=256, description="Processes on this machine.")
    sampler: Literal["tpe", "gp", "random"] | None = Field(
        None, description="How parameters are chosen; none takes the space's, or tpe."
    )
    pruner: Literal["median", "hyperband", "none"] | None = Field(
        None, description="What stops hopeless trials; none takes the space's, or median."
    )
    heartbeat_seconds: int = Field(
        20, ge=1, le=3600, description="Between a worker's signs of life; after three it is dead."
    )
    train_best: bool = Field(
        False, description="Train the best recipe at the end and register the model."
    )
    # Declared again: pydantic would take the metaclass's method of that name for the default of a subclass.
    register: str | None = Field(
        None, description="Name of the model of train_best; none takes facerec- and the study's."
    )
    best_epochs: int | None = Field(
        None, ge=1, le=100_000, description="Epochs of train_best; none takes those of the trial."
    )
