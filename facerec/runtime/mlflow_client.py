"""MLflow's client: patience where a store is locked, few retries where a server is away, no bars."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mlflow.exceptions import MlflowException

BUSY_SECONDS = 60


RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def patiently(call: Callable[[], Any]) -> Any:
    """Calls again, for up to a minute, while another run has the SQLite store locked."""
    deadline, pause = time.monotonic() + BUSY_SECONDS, 0.05
    while True:
        try:
            return call()
        except MlflowException as error:
            if "locked" not in str(error).lower() or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(2.0, pause * 2)


@contextmanager
def few_retries() -> Iterator[None]:
    """MLflow's client asks a silent server for minutes; whether it is there at all is known sooner."""
    before = os.environ.get(RETRIES)
    os.environ.setdefault(RETRIES, "1")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(RETRIES)


@contextmanager
def no_artifact_bars() -> Iterator[None]:
    """MLflow draws no progress bars for small files."""
    name = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    told = name in os.environ
    os.environ.setdefault(name, "false")
    try:
        yield
    finally:
        if not told:
            os.environ.pop(name, None)
