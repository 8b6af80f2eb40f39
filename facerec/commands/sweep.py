"""Search settings of train with an Optuna study, every trial a run in MLflow, and write the best as a recipe.

A space file says what is searched; every setting of train is an option too, and holds for all trials. Started again
with the same study, it goes on; started elsewhere on the same database, it helps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from facerec.config.recipe import resolve
from facerec.data.settings import check_data
from facerec.errors import InputError
from facerec.sweep.settings import SweepSettings
from facerec.sweep.space_yaml import read_space
from facerec.training.settings import TrainSettings

SETTINGS = SweepSettings


def settings_of(given: Mapping[str, Any], config: str | None) -> SweepSettings:
    """Defaults < recipe < the space's fixed values < command line.

    Raises:
        InputError: also for a value on the command line that every trial would overrule.
    """
    space = read_space(resolve(SweepSettings, given, config).space, TrainSettings)
    for name in space.always_searched & given.keys():
        raise InputError(
            f"{name}={given[name]} (command line): the space searches it; leave it out, or take it out of the space"
        )
    return resolve(SweepSettings, {**space.fixed, **given}, config)


def run(settings: SweepSettings, config: str | None = None) -> None:
    """Searches, and says what was found; see `sweep.run`."""
    check_data(settings.data)
    from facerec.sweep.run import run as search

    search(settings, config)
