"""Train a face-embedding network and keep the run in MLflow.

Pictures of people go in; a run with its parameters, metrics, pages and a model that `runs:/ID/model` loads comes out.
`facerec train` alone trains on rendered people for a few minutes, on any machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facerec.config.recipe import resolve
from facerec.data.settings import check_data
from facerec.inference.model_uri import check_model
from facerec.training.settings import TrainSettings, asked_to_resume

SETTINGS = TrainSettings


def settings_of(given: Mapping[str, Any], config: str | None) -> TrainSettings:
    """Settings from recipe and command line; from the checkpoint where a run is resumed."""
    if not (resumed := asked_to_resume(given, config)):
        return resolve(TrainSettings, given, config)
    from facerec.training.resume import settings_of_checkpoint

    return settings_of_checkpoint(TrainSettings, {**given, "resume": resumed})


def run(settings: TrainSettings, config: str | None = None) -> None:
    """Trains, validates and logs one run, or goes on with the one that `resume` names; see `training.run`."""
    check_data(settings.data)
    if settings.resume is None:  # a checkpoint holds what came from the model
        check_model(settings.init)
    from facerec.training.run import run as train

    train(settings, config)
