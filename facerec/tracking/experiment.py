"""Which MLflow experiment a run goes to, and names that MLflow would refuse, told before any work is done."""

from __future__ import annotations

import os
from typing import NamedTuple

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils import validation

from facerec.config.settings import Settings
from facerec.errors import InputError
from facerec.runtime.database_url import without_password
from facerec.runtime.mlflow_errors import REFUSED
from facerec.runtime.text import as_utf8, brief, shown

DEFAULT = "facerec"
NAME, ID = "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"
# Columns of MLflow's databases, which SQLite does not enforce.
LONGEST = {"experiment": 256, "run_name": 250, "register": 256, "name": 256, "parameter": 250}
RULES = {
    "experiment": "_validate_experiment_name",
    "register": "_validate_model_name",
    "name": "_validate_model_name",
    "parameter": "_validate_tag_name",
}


class Asked(NamedTuple):
    """The experiment that is asked for: by `id`, or else by `name`. by: setting or variable, for messages."""

    by: str
    name: str | None = None
    id: str | None = None


def asked(experiment: str | None) -> Asked:
    """MLflow's rules, save that a setting beats its variables: the name, the id, and our own default last."""
    if experiment is not None:
        return Asked(f"experiment={shown(experiment, 80)}", name=as_utf8(experiment))
    name, number = os.environ.get(NAME), os.environ.get(ID)
    if name:
        return Asked(f"{NAME}={shown(name, 80)}", as_utf8(name), number or None)
    return Asked(f"{ID}={shown(number, 80)}", id=number) if number else Asked(DEFAULT, name=DEFAULT)


def find_experiment(experiment: str | None) -> Experiment | None:
    """The experiment that a new run goes to, None where it is to be made.

    Args:
        experiment: as the setting says it; None takes MLflow's variables, then `facerec`.

    Raises:
        InputError: an id that is not there, or not that of the name beside it; a deleted experiment; a name that
            MLflow refuses.
        MlflowException: the store is away.
    """
    wanted, client = asked(experiment), MlflowClient()
    where = without_password(mlflow.get_tracking_uri())
    if wanted.name is None:
        try:
            assert wanted.id is not None  # what has no name has an id
            found = client.get_experiment(wanted.id)
        except MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            found = None
        if found is None:
            raise InputError(f"{wanted.by}: there is no such experiment in {where}")
    else:
        check_name("experiment", wanted.name, wanted.by)
        found = client.get_experiment_by_name(wanted.name)
        if found and wanted.id not in (None, found.experiment_id):
            raise InputError(
                f"{wanted.by} is experiment {found.experiment_id}, and {ID}={wanted.id}: unset one of them"
            )
    if found and found.lifecycle_stage != "active":
        raise InputError(
            f"{wanted.by}: the experiment is deleted in {where}: mlflow experiments restore --experiment-id "
            f"{found.experiment_id} brings it back; or choose another with --experiment"
        )
    return found


def experiment_id(experiment: str | None) -> str:
    """Id of the experiment that a new run goes to, which is made where it is not there. Raises as find_experiment."""
    found = find_experiment(experiment)
    if found is None:
        try:
            name = asked(experiment).name
            assert name is not None  # an id is found, or refused
            return MlflowClient().create_experiment(name)
        except MlflowException as error:  # another run was faster
            found = find_experiment(experiment)
            if found is None:
                raise error
    return found.experiment_id


def check_names(settings: Settings) -> None:
    """Raises InputError for a name in the settings that MLflow would refuse, maybe only at the end."""
    for setting in ("experiment", "run_name", "register"):
        if (value := getattr(settings, setting, None)) is not None:
            check_name(setting, value)


def check_name(setting: str, value: str, by: str | None = None) -> None:
    """Raises InputError for a value that MLflow would refuse.

    Args:
        setting: experiment, run_name, register or name (of registered models), or parameter (a tag of a study).
        by: where it was said, for the message.
    """
    by = by or f"{setting}={shown(value, 80)}"
    rule = getattr(
        validation, RULES.get(setting, ""), lambda value: None
    )  # MLflow's own, not public
    try:
        rule(value)
    except MlflowException as error:
        raise InputError(f"{by}: {brief(error)}") from None
    if not value.strip():
        raise InputError(f"{by}: the name is empty")
    if len(value) > (longest := LONGEST.get(setting, len(value))):
        raise InputError(f"{by}: {len(value)} characters, and MLflow keeps {longest}")
