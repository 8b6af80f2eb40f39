"""Go on from a trained model with what it still confuses: hard triplets, and batches of look-alikes.

The second stage. The network, its picture size and crop are the model's; learning rate, loss and miner are this run's
own. Batches are filled with people whom the network confuses, looked for anew each epoch, and the gain over the model
is logged as val/map_at_r_gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from facerec.commands.train import TrainSettings, run
from facerec.data.align import AlignSettings
from facerec.embedder import FaceEmbedder
from facerec.model.network import NetworkSettings
from facerec.model_source import ModelText
from facerec.resume import asked_to_resume, settings_of_checkpoint
from facerec.settings import InputError, as_params, canonical, resolve

__all__ = ["SETTINGS", "run", "settings_of"]

FROM_MODEL = ("image_size", "crop", *AlignSettings.model_fields, *NetworkSettings.model_fields)
FREE = (
    "scan_backend",
    "dropout",
    "drop_path",
)  # settings of the network that do not change its weights' shapes


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


SETTINGS = FinetuneSettings


def settings_of(given: Mapping[str, Any], config: str | None) -> FinetuneSettings:
    """Settings from recipe and command line over those of the model's network.

    Raises:
        InputError: where they contradict the model; the setting is named.
    """
    if resumed := asked_to_resume(given, config):
        return settings_of_checkpoint(FinetuneSettings, {**given, "resume": resumed})
    asked = resolve(FinetuneSettings, given, config)
    config_of_model = FaceEmbedder.load(asked.model, "cpu").config
    known = {**as_params(config_of_model.network), **as_params(config_of_model)}
    known = {name: known[name] for name in FROM_MODEL}
    for name in asked.model_fields_set & set(known) - set(FREE):
        if canonical(getattr(asked, name)) != known[name]:
            raise InputError(
                f"{name}={canonical(getattr(asked, name))}, and the model {asked.model} has {known[name]}"
            )
    if asked.init not in (None, asked.model):
        raise InputError("init and model name two models: give model alone")
    known = {name: value for name, value in known.items() if name not in asked.model_fields_set}
    return resolve(FinetuneSettings, {**known, **given, "init": asked.model}, config)
