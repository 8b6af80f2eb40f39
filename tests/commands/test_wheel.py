"""What a wheel holds is enough, in a folder that knows nothing of the checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.models import picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the project, unpacked beside the environment."""
    folder = tmp_path_factory.mktemp("wheel")
    # Of a copy: a build leaves a folder behind, which the next one would take from.
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        copy = folder / "project" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, copy, follow_symlinks=False)
    build = [
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(folder / "project"),
    ]
    subprocess.run([sys.executable, *build], check=True)
    (wheel,) = folder.glob("facerec-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_trains_predicts_and_knows_its_recipes(
    unpacked: Path, tmp_path: Path, own_tracking: Path
) -> None:
    child = environment(PYTHONPATH=str(unpacked), FACEREC_CACHE=str(tmp_path / "cache"))

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "facerec", *words]
        done = subprocess.run(command, cwd=tmp_path, env=child, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for name in ("a.png", "b.png"):
        Image.fromarray(picture(1, 96)).save(tmp_path / name)
    assert "--lr" in run("train", "--config", "lfw", "--help")
    assert "the same person" in run("predict", "a.png", "b.png", "--model", "pretrained")
    assert "model: runs:/" in run("train", "--config", "demo", *flags(TINY))
    assert (unpacked / "facerec/spaces/patch_lr_warmup.yaml").is_file()
