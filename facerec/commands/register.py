"""Register the model of a run in MLflow's registry, and promote it if it is better.

`facerec register RUN_ID --name facerec --alias champion`: the alias moves only if the model beats the one that has
it, on the run's own validation pictures. Exit code 1 says that an alias was asked for and did not move.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from pydantic import Field

from facerec.config.settings import Settings


class RegisterSettings(Settings):
    """Which run, under which name."""

    group: ClassVar[str] = "Registry"

    run_id: str = Field(min_length=1, description="Run whose model is registered.")
    name: str = Field("facerec", min_length=1, description="Registered model.")
    alias: str | None = Field(
        None, min_length=1, description="Alias, such as champion, that moves to it if it is better."
    )
    force: bool = Field(
        False,
        description="Move the alias without a comparison, for which 20 validation people with two pictures are needed.",
    )


SETTINGS = RegisterSettings
ARGUMENTS = ("run_id",)


def run(settings: RegisterSettings, config: str | None = None) -> None:
    """Registers and, if asked, promotes; says what it did.

    Raises:
        InputError: no such run, no model in it, or the comparison cannot be made.
    """
    from facerec.runtime.console import answer
    from facerec.tracking.address import reach_tracking
    from facerec.tracking.experiment import check_name
    from facerec.tracking.registry import register

    check_name("name", settings.name)
    reach_tracking()
    done = register(settings.run_id, settings.name, settings.alias, settings.force)
    answer(done.told)
    if settings.alias and not done.promoted:
        sys.exit(1)
