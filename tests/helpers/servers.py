"""Servers in processes of their own: a free port, a wait until one answers, a tracking server of MLflow."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.helpers.commands import environment


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Returns when the server answers, within two minutes."""
    for _ in range(480):
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.25)
    raise AssertionError("the server does not answer")


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A tracking server of MLflow's own, its artifacts behind it, in a process group of its own; it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/kept"]
    child = environment(MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    del child["MLFLOW_TRACKING_URI"]
    process = subprocess.Popen(
        command, env=child, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True
    )
    wait_for(f"http://127.0.0.1:{port}/health", process)
    return process


def kill(server: subprocess.Popen[bytes]) -> None:
    """Ends a server and its workers at once."""
    os.killpg(server.pid, signal.SIGKILL)
    server.wait(30)
