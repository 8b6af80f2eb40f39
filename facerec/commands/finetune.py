"""Go on from a trained model with what it still confuses: hard triplets, and batches of look-alikes.

The second stage. The network, its picture size and crop are the model's; learning rate, loss and miner are this run's
own. Batches are filled with people whom the network confuses, looked for anew each epoch, and the gain over the model
is logged as val/map_at_r_gain.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facerec.commands.train import run
from facerec.config.recipe import resolve
from facerec.config.settings import as_params
from facerec.config.values import canonical
from facerec.data.settings import AlignSettings, check_data
from facerec.errors import InputError
from facerec.inference.model_uri import check_model
from facerec.model.settings import NetworkSettings
from facerec.training.settings import FinetuneSettings, asked_to_resume

__all__ = ["SETTINGS", "run", "settings_of"]

FROM_MODEL = ("image_size", "crop", *AlignSettings.model_fields, *NetworkSettings.model_fields)
FREE = (
    "scan_backend",
    "dropout",
    "drop_path",
)  # settings of the network that do not change its weights' shapes


SETTINGS = FinetuneSettings


def settings_of(given: Mapping[str, Any], config: str | None) -> FinetuneSettings:
    """Settings from recipe and command line over those of the model's network.

    Raises:
        InputError: where they contradict the model; the setting is named.
    """
    if resumed := asked_to_resume(given, config):
        from facerec.training.resume import settings_of_checkpoint

        return settings_of_checkpoint(FinetuneSettings, {**given, "resume": resumed})
    asked = resolve(FinetuneSettings, given, config)
    check_data(asked.data)
    check_model(asked.model)
    from facerec.inference.embedder import FaceEmbedder

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
