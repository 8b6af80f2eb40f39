"""Commands as users start them, in processes of their own, and the smallest training."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.helpers import PROJECT

TINY = {
    "image_size": "32", "d_model": "16", "depth": "1", "d_state": "4", "stem_depth": "1", "stem_width": "8",
    "embedding_dim": "8", "batch_size": "64", "epochs": "1",
}  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    """The test's environment for a child, this interpreter first on its PATH."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"],
        **more,
    }


def mlflow_run(*options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """`mlflow run PROJECT --env-manager local ...`."""
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECT), "--env-manager", "local"]
    command += ["--experiment-name", "facerec", *options]
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, timeout=240
    )


def flags(settings: dict[str, str]) -> list[str]:
    return [
        part for key, value in settings.items() for part in ("--" + key.replace("_", "-"), value)
    ]
