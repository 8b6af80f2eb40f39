"""Where the tracking store is: its URI made absolute, its account taken out of it, and whether it answers."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from facerec.errors import InputError
from facerec.runtime.database_url import account_to_move, with_driver
from facerec.runtime.mlflow_client import few_retries, patiently
from facerec.runtime.mlflow_errors import trouble
from facerec.runtime.paths import folder_of_command
from facerec.tracking.experiment import find_experiment
from facerec.tracking.settings import TrackingSettings

SQLITE = "sqlite:///"
SERVERS = ("http://", "https://")
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
DATABASES = ("postgresql", "mysql", "mssql")


def absolute_tracking_uri() -> None:
    """Makes a relative sqlite URI absolute, and names PostgreSQL's driver, once, before MLflow opens it.

    `mlflow run` changes into the project, where the same relative URI would be another database; there the folder
    in which `mlflow run` was typed counts. A server's account moves from its URI to MLflow's own variables, since
    MLflow prints the URI.

    Raises:
        InputError: if an old file store in ./mlruns would make MLflow refuse to work.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or (
        mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else ""
    )
    if not uri:
        old = next(Path("mlruns").glob("[0-9]*/meta.yaml"), None)
        if old:
            raise InputError(
                f"{old.resolve()} is of MLflow's old file store, which it no longer opens: move {old.parent.parent}/ "
                "away, or set MLFLOW_TRACKING_URI"
            )
        return
    if uri.startswith(SQLITE) and not uri.startswith(SQLITE + "/") and ":memory:" not in uri:
        absolute = SQLITE + str((folder_of_command() / uri.removeprefix(SQLITE)).resolve())
    else:
        absolute = with_driver(uri)
    if uri.startswith(SERVERS):
        absolute, user, password = account_to_move(uri)
        if password:
            os.environ[USERNAME], os.environ[PASSWORD] = unquote(user), unquote(password)
    if absolute != uri:
        os.environ["MLFLOW_TRACKING_URI"] = absolute
        mlflow.set_tracking_uri(absolute)


def reach_tracking(settings: TrackingSettings | None = None) -> None:
    """Finds out before any work is done whether the tracking store answers, and takes the run of these settings.

    Raises:
        InputError: it does not, or its experiment is deleted, or MLflow refuses the experiment's name.
    """
    try:
        absolute_tracking_uri()
        uri = mlflow.get_tracking_uri()
        if uri.startswith(DATABASES):  # MLflow would try for minutes
            create_engine(uri).connect().close()
        with few_retries():
            if settings is None or os.environ.get("MLFLOW_RUN_ID"):
                patiently(lambda: MlflowClient().search_experiments(max_results=1))
            else:
                patiently(lambda: find_experiment(settings.experiment))
    except (MlflowException, OSError, ImportError, SQLAlchemyError) as error:  # of a driver, too
        raise InputError(trouble(error)) from error
