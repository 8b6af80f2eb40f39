"""A study on PostgreSQL that several machines share: nothing is lost when some of them die."""

from __future__ import annotations

import getpass
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from facerec.sweep.optuna_factory import open_storage
from tests.helpers.servers import free_port
from tests.helpers.sweeping import (
    at_work,
    check_accounts,
    eventually,
    given,
    make_people,
    runs_of,
    start_sweep,
    study_of,
    sweep_here,
)

pytestmark = pytest.mark.slow


def postgres_folder() -> Path:
    """Where pg_ctl is; Debian keeps it off the PATH."""
    pytest.importorskip("psycopg2", reason="no driver: pip install 'facerec[postgres]'")
    found = shutil.which("pg_ctl") or next(
        (str(p) for p in Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")), None
    )
    if found is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    return Path(found).parent


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """URL of a PostgreSQL server of our own, started as the user `postgres` where we are root."""
    binaries = postgres_folder()
    folder = Path(tempfile.mkdtemp(prefix="facerec-pg-"))
    user = getpass.getuser()
    prefix: list[str] = []
    if os.geteuid() == 0:
        user, prefix = "postgres", ["runuser", "-u", "postgres", "--"]
        try:
            shutil.chown(folder, user)
        except LookupError:
            pytest.skip("root cannot run PostgreSQL, and there is no user postgres")
    port = free_port()

    def call(*command: str) -> None:
        done = subprocess.run(
            [*prefix, *command], cwd=folder, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr

    data = str(folder / "data")
    call(str(binaries / "initdb"), "-D", data, "-A", "trust", "-U", user, "--no-sync")
    flags = (
        f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=300"
    )
    call(
        str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(folder / "log"), "-o", flags, "start"
    )
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        call(str(binaries / "pg_ctl"), "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def options(tmp_path, server, own_tracking, monkeypatch):
    monkeypatch.chdir(tmp_path)
    people = make_people(tmp_path / "data" / "people")
    MlflowClient().search_experiments()  # makes the tracking database, before several want to
    return {**given(tmp_path, people), "storage": server}


def test_three_workers_of_which_two_are_killed(options, tmp_path):
    """Three sessions as on three machines; the survivor ends with every trial accounted for."""
    seed = random.randrange(2**31)
    chance = random.Random(seed)
    options = {**options, "study": "three", "trials": "8", "epochs": "120"}
    sessions = [start_sweep(options, tmp_path / f"log{n}") for n in range(3)]
    try:
        eventually(lambda: len(at_work(options)) == 3)
        victims = chance.sample(sessions, 2)
        for victim in victims:
            time.sleep(chance.uniform(0, 1))
            eventually(
                lambda pid=victim.pid: (
                    pid in {t.user_attrs["worker"]["pid"] for t in at_work(options)}
                )
            )
            victim.send_signal(signal.SIGKILL)
            victim.wait()
        (survivor,) = (session for session in sessions if session not in victims)
        log = tmp_path / f"log{sessions.index(survivor)}"
        assert survivor.wait(150) == 0, (seed, log.read_text())
    finally:
        for session in sessions:
            session.kill()
            session.wait()
    study = study_of(options)
    failed = check_accounts(options, 8)
    dead = {session.pid for session in victims}
    lost = [n for n in failed if study.trials[n].user_attrs["worker"]["pid"] in dead]
    assert 1 <= len(lost) <= 2, (seed, [(t.number, t.state, t.user_attrs) for t in study.trials])
    again = [t for t in study.trials if t.system_attrs.get("failed_trial") in lost]
    assert len(again) == len(lost) and all(t.state != TrialState.FAIL for t in again), seed
    parents = {
        r.data.tags["mlflow.parentRunId"] for r in runs_of(study.user_attrs["mlflow_run"]).values()
    }
    assert parents == {study.user_attrs["mlflow_run"]}
    artifacts = MlflowClient().list_artifacts(study.user_attrs["mlflow_run"])
    assert {"study.html", "best.yaml"} <= {a.path for a in artifacts}


def test_a_machine_that_falls_silent_is_noticed_by_its_heartbeat(options):
    options = {**options, "study": "silent", "epochs": "1"}
    sweep_here({**options, "trials": "1"})
    storage = open_storage(options["storage"], 1)
    study = optuna.load_study(study_name="silent", storage=storage)
    lost = study.ask()
    lost.suggest_float("lr", 1e-4, 1e-2, log=True)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
    storage.record_heartbeat(lost._trial_id)
    started = time.monotonic()
    sweep_here({**options, "trials": "2"})
    assert time.monotonic() - started > 2
    assert check_accounts(options, 2) == [1]
    assert study_of(options).trials[2].params["lr"] == lost.params["lr"]
