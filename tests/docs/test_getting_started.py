"""The tutorial and README are run as they stand, at tiny settings."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.models import picture

pytestmark = pytest.mark.slow

INSTALL = ("python3 -m venv", "mlflow run")  # which other tests, and `.ci/run`, do


def blocks(page: str, language: str) -> list[str]:
    """Code of a page: fenced with a language, or indented, which is shell."""
    text = (PROJECT / page).read_text()
    fenced = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    indented = re.findall(
        r"(?:^    \S.*\n)+", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M
    )
    return fenced + (
        [re.sub("^    ", "", code, flags=re.M) for code in indented] if language == "sh" else []
    )


@pytest.fixture
def desk(tmp_path: Path, own_tracking: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with photographs of as many people as a false accept rate of 1e-3 needs in validation."""
    for person in range(260):
        face = picture(person).astype(float)
        for shot in range(4):
            noise = np.random.default_rng(4 * person + shot).normal(0, 12, face.shape)
            path = tmp_path / f"faces/person {person}/{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.clip(face + noise, 0, 255).astype(np.uint8)).save(path)
    for name, shot in (("one", 0), ("two", 1), ("probe", 2)):
        (tmp_path / f"{name}.jpg").write_bytes(
            (tmp_path / f"faces/person 0/{shot}.png").read_bytes()
        )
    (tmp_path / "folder/of").mkdir(parents=True)
    (tmp_path / "faces").rename(tmp_path / "folder/of/people")
    (tmp_path / "faces").symlink_to(tmp_path / "folder/of/people")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    return tmp_path


def run(line: str) -> subprocess.CompletedProcess[str]:
    """A line that begins with `facerec`, with the smallest network where it trains one."""
    command, *words = shlex.split(line, comments=True)[1:]
    if command == "train":
        words = [*words, *flags({**TINY, "batch_size": "16", "images_per_identity": "2"})]
    if command == "finetune":
        words = [*words, "--epochs", "1", "--batch-size", "16", "--images-per-identity", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "facerec", command, *words],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{line}: {done.stderr[-2000:]}"
    return done


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_every_command_of_the_tutorial_works(desk: Path) -> None:
    lines = [
        line for block in blocks("docs/getting-started.md", "sh") for line in block.splitlines()
    ]
    run_id, port, server = "", free_port(), None
    for line in lines:
        line = line.replace("RUN_ID", run_id).replace("--port 5000", f"--port {port}")
        if line.startswith(INSTALL):
            continue
        if line.startswith("facerec serve"):
            server = subprocess.Popen([sys.executable, "-m", *shlex.split(line)], env=environment())
            continue
        done = run(line)
        if line.startswith("facerec train"):
            run_id = re.findall(r"model: runs:/(\w+)/model", done.stderr)[-1]
    try:
        answered(port, server)
        (code,) = blocks("docs/getting-started.md", "python")
        asked = subprocess.run(
            [sys.executable, "-c", code.replace(":5000", f":{port}")],
            capture_output=True,
            text=True,
        )
        embedding, verdict = asked.stdout.splitlines()
        assert len(eval(embedding)[0]) == int(TINY["embedding_dim"]), asked.stderr
        assert set(eval(verdict)[0]) == {"similarity", "probability", "same_person"}
    finally:
        server.terminate()
        server.wait(30)


def answered(port: int, server: subprocess.Popen) -> None:
    """Returns when the server answers; it ends, or pytest's time limit does."""
    while psutil.pid_exists(server.pid) and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            continue
    raise AssertionError("the server ended")


def test_readme_works(desk: Path) -> None:
    (code,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in "".join(blocks("README.md", "sh")).splitlines():
        if not line.startswith(INSTALL):
            assert "same person" in run(line).stdout
