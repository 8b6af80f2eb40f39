"""The run that `mlflow run` has made for us: joined, or given up for one that is resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from facerec.errors import InputError
from facerec.runtime.database_url import without_password
from facerec.runtime.mlflow_client import patiently
from facerec.runtime.mlflow_errors import REFUSED, reason_of
from facerec.runtime.paths import launcher


def joined_run() -> str | None:
    """Id of the run that `mlflow run` has made for this process."""
    return os.environ.get("MLFLOW_RUN_ID") or None


def git_tags(known: Mapping[str, str]) -> dict[str, str]:
    """The commit of the code that runs, where MLflow has not found it."""
    if "mlflow.source.git.commit" in known:
        return {}
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return {"mlflow.source.git.commit": commit.stdout.strip()} if commit.returncode == 0 else {}


def check_known(run_id: str) -> None:
    """Raises InputError where the tracking store does not hold the run that is to be joined, or holds it as deleted."""
    client, where = MlflowClient(), without_password(mlflow.get_tracking_uri())
    try:
        info = patiently(lambda: client.get_run(run_id)).info
        above = patiently(lambda: client.get_experiment(info.experiment_id))
    except MlflowException as error:
        if error.error_code not in REFUSED:
            raise
        raise InputError(f"run {run_id}: {reason_of(error)[:200]} in {where}") from error
    if above.lifecycle_stage != "active":
        raise InputError(
            f"run {run_id}: its experiment {above.name} is deleted in {where}: mlflow experiments restore "
            f"--experiment-id {above.experiment_id} brings both back"
        )
    if info.lifecycle_stage != "active":
        raise InputError(
            f"run {run_id} is deleted in {where}: mlflow runs restore --run-id {run_id} brings it back"
        )


DELETE_WHEN_GONE = """
import sys, psutil
try:
    psutil.Process(int(sys.argv[1])).wait()
except psutil.NoSuchProcess:
    pass
from mlflow.tracking import MlflowClient
MlflowClient().delete_run(sys.argv[2])
"""


def give_up(run_id: str, continues: str) -> None:
    """Deletes (restorably) the run that `mlflow run` made in vain, since another one is gone on with.

    `mlflow run` sets its run's status once more when its command has ended, and fails where the run is deleted by
    then: a small process deletes the run when `mlflow run` has gone.
    """
    client, parent = MlflowClient(), launcher()
    patiently(lambda: client.set_tag(run_id, "facerec.continues", continues))
    if parent is None:
        patiently(lambda: client.delete_run(run_id))
    else:
        subprocess.Popen(
            [sys.executable, "-c", DELETE_WHEN_GONE, str(parent.pid), run_id],
            # Not an argument: everybody on the machine can read those, and it may hold a password.
            env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    os.environ.pop("MLFLOW_RUN_ID")
