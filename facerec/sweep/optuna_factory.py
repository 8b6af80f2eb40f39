"""Where a study is kept, and how its next trial is chosen: storages, samplers and pruners by name."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import (
    JournalFileBackend,
    JournalFileOpenLock,
    JournalFileSymlinkLock,
)
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial
from sqlalchemy.exc import IntegrityError, ProgrammingError

from facerec.errors import InputError
from facerec.runtime.database_url import with_driver, without_password, without_secrets
from facerec.runtime.paths import expanded, is_uri
from facerec.runtime.text import brief, one_line, shown


class Journal(JournalFileBackend):
    """Optuna's journal; a last line that a full disk or a power failure has cut is dropped before the next one.

    Otherwise the next line would be glued to it, and nobody could read the file again.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with get_lock_file(self._lock), open(self._file_path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if size and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        super().append_logs(logs)


def open_storage(
    where: str,
    heartbeat: int,
    on_stale: Callable[[optuna.Study, FrozenTrial], None] | None = None,
) -> BaseStorage:
    """A journal file, safe for several processes of a machine, or a database, for several machines.

    Args:
        where: path of the journal, or a URL such as `postgresql://user@host/database`.
        heartbeat: seconds between the signs of life of a trial on a database; after three without one it is stale.
        on_stale: called with (study, trial) for a stale trial that has been failed.

    Raises:
        InputError: if it cannot be opened.
    """
    try:
        if not is_uri(where):
            path = expanded(where)
            path.parent.mkdir(parents=True, exist_ok=True)
            check_journal(path)
            lock = (JournalFileOpenLock if os.name == "nt" else JournalFileSymlinkLock)(str(path))
            return JournalStorage(Journal(str(path), lock))
        return open_database(with_driver(where), heartbeat, on_stale)
    except InputError:
        raise
    except Exception as error:  # each database driver has errors of its own
        raise InputError(
            f"storage {without_password(where)} cannot be opened: {brief(without_secrets(one_line(error), where))}"
        ) from error


def check_journal(path: Path) -> None:
    """Raises InputError where a line of a journal cannot be one of Optuna's; a last one that is cut short can."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                if isinstance(entry["op_code"], int) and isinstance(entry["worker_id"], str):
                    continue
            except (ValueError, RecursionError, TypeError, LookupError):
                if not line.endswith(b"\n"):
                    return
            raise InputError(
                f"storage {shown(path)}: line {number} is not an entry of an Optuna journal: restore the file from "
                "a copy, or choose another study; a database is given as a URL, such as sqlite:///study.db"
            )


def open_database(
    url: str, heartbeat: int, on_stale: Callable[[optuna.Study, FrozenTrial], None] | None
) -> RDBStorage:
    """Optuna's storage in a database, whose tables it makes; of several that make them at once, one succeeds."""
    for last in (False, False, False, True):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return RDBStorage(
                    url,
                    engine_kwargs={"pool_pre_ping": True},
                    heartbeat_interval=heartbeat,
                    grace_period=3 * heartbeat,
                    heartbeat_stale_trial_callback=on_stale,
                )
        except (IntegrityError, ProgrammingError):
            if last:
                raise
        time.sleep(1)
    raise AssertionError("unreachable")


def make_sampler(name: str, seed: int, conditional: bool) -> optuna.samplers.BaseSampler:
    """`tpe` (Watanabe, 2023; grouped where parameters come and go), `gp` or `random`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match name:
            case "tpe" if conditional:
                return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def make_pruner(name: str, epochs: int | None) -> optuna.pruners.BasePruner:
    """`median`, `hyperband` (Li et al., 2018) or `none`; epochs is None where trials differ in it."""
    match name:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=epochs or "auto")
        case _:
            return optuna.pruners.NopPruner()
