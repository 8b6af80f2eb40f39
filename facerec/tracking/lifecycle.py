"""How a run begins and ends: opened or joined, FINISHED, FAILED on an error, KILLED on Ctrl-C."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from facerec.errors import InputError
from facerec.runtime.mlflow_client import few_retries, patiently
from facerec.runtime.mlflow_errors import trouble
from facerec.runtime.signals import held, stop_at_once
from facerec.runtime.text import as_utf8
from facerec.tracking.address import absolute_tracking_uri
from facerec.tracking.experiment import experiment_id
from facerec.tracking.mlflow_run import check_known, git_tags, give_up, joined_run
from facerec.tracking.run import Run
from facerec.tracking.settings import TrackingSettings


@contextmanager
def track(settings: TrackingSettings, run_id: str | None = None) -> Iterator[Run]:
    """The MLflow run of an entry point: FINISHED at the end, KILLED on Ctrl-C, FAILED on an error.

    Args:
        run_id: a run to go on in; otherwise that of `mlflow run`, otherwise a new one.

    Raises:
        InputError: if the tracking store cannot be reached.
    """
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
    with stop_at_once(), ending():
        try:
            with held(), few_retries():  # a run that has been made is known, and ends as KILLED
                run = open_run(settings, run_id)
            yield run
        except MlflowException as error:
            raise InputError(trouble(error)) from error


def open_run(settings: TrackingSettings, run_id: str | None) -> Run:
    """The active run of `track`."""
    try:
        absolute_tracking_uri()
        if settings.system_metrics:
            mlflow.set_system_metrics_sampling_interval(10)
        started = joined_run()
        joined = run_id or started
        if joined:
            check_known(joined)
        if run_id and started and started != run_id:
            give_up(started, run_id)
        above = None if joined else patiently(lambda: experiment_id(settings.experiment))
        active = patiently(
            lambda: mlflow.start_run(
                run_id=joined,
                experiment_id=above,
                run_name=None if joined or not settings.run_name else as_utf8(settings.run_name),
                log_system_metrics=settings.system_metrics,
            )
        )
    except (MlflowException, OSError, ImportError, SQLAlchemyError) as error:  # of a driver, too
        raise InputError(trouble(error)) from error
    run = Run(active.info.run_id)
    run.tag(git_tags(active.data.tags))
    if joined and settings.run_name:
        run.tag({"mlflow.runName": settings.run_name})
    return run


@contextmanager
def nested(parent: str, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """A run under another one, in its experiment, also from another process; it ends as that of `track` does.

    Args:
        parent: id of the run above.
        name: of the new run.
        tags: that it is born with.
    """
    # MLflow would take the run that `mlflow run` has made for the new one.
    os.environ.pop("MLFLOW_RUN_ID", None)
    above = patiently(lambda: MlflowClient().get_run(parent))
    with ending():
        active = patiently(
            lambda: mlflow.start_run(
                experiment_id=above.info.experiment_id,
                run_name=as_utf8(name),
                nested=True,
                parent_run_id=parent,
                tags={key: as_utf8(text) for key, text in tags.items()},
                log_system_metrics=False,
            )
        )
        yield Run(active.info.run_id)


def bury_nested(parent: str, having: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Ends, as KILLED, the runs under `parent` that carry the tags `having`, and tags them."""
    client = MlflowClient()
    above = patiently(lambda: client.get_run(parent))
    terms = [f"tags.`{k}` = '{v}'" for k, v in {"mlflow.parentRunId": parent, **having}.items()]
    found = patiently(lambda: client.search_runs([above.info.experiment_id], " and ".join(terms)))
    for run in found:
        Run(run.info.run_id).tag(tags)
        if run.info.status == "RUNNING":
            patiently(partial(client.set_terminated, run.info.run_id, "KILLED"))


@contextmanager
def ending() -> Iterator[None]:
    """Ends the run that the block makes active: FINISHED, KILLED on Ctrl-C, FAILED on an error."""
    status, before = "FAILED", mlflow.active_run()
    try:
        yield
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        if mlflow.active_run() is not before:
            end_run(status)


def end_run(status: str) -> None:
    """Ends the active run; a signal meanwhile comes when that is done.

    Raises:
        InputError: if a run that is to be FINISHED cannot be told so. Any other has its reason to be told already.
    """
    with held(), few_retries():
        try:
            patiently(lambda: mlflow.end_run(status))
        except (MlflowException, OSError) as error:
            if status == "FINISHED":
                raise InputError(trouble(error)) from error
