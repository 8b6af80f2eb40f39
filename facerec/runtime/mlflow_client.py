"""MLflow's client: patience where a store is locked, few retries where a server is away, no bars."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from mlflow.exceptions import MlflowException

BUSY_SECONDS = 60


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


def few_retries() -> AbstractContextManager[None]:
    """MLflow's client asks a silent server for minutes; whether it is there at all is known sooner."""
    return variable("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def no_artifact_bars() -> AbstractContextManager[None]:
    """MLflow draws no progress bars for small files."""
    return variable("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within the block an environment variable has this value, unless the user has given it another one."""
    given = name in os.environ
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if not given:
            os.environ.pop(name, None)
