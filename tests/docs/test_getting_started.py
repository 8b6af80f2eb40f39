"""The tutorial and README are run as they stand, at tiny settings."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.models import photographs
from tests.helpers.servers import free_port, wait_for

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
    people = photographs(tmp_path / "folder/of/people", 260, 4)
    for name, shot in (("one", 0), ("two", 1), ("probe", 2)):
        (tmp_path / f"{name}.jpg").write_bytes((people / f"Person_0/{shot}.png").read_bytes())
    (tmp_path / "faces").symlink_to(people)
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
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        (code,) = blocks("docs/getting-started.md", "python")
        asked = subprocess.run(
            [sys.executable, "-c", code.replace(":5000", f":{port}")],
            capture_output=True,
            text=True,
        )
        embedding, verdict = asked.stdout.splitlines()
        assert len(ast.literal_eval(embedding)[0]) == int(TINY["embedding_dim"]), asked.stderr
        assert set(ast.literal_eval(verdict)[0]) == {"similarity", "probability", "same_person"}
    finally:
        server.terminate()
        server.wait(30)


def test_readme_works(desk: Path) -> None:
    (code,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in "".join(blocks("README.md", "sh")).splitlines():
        if not line.startswith(INSTALL):
            assert "same person" in run(line).stdout
