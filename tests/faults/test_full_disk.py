"""A disk that fills up for real: a small file system of memory, in a mount namespace of its own, under a training."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROJECT
from tests.helpers.commands import TINY, environment, flags
from tests.helpers.image_files import people
from tests.helpers.runs import MAIN, only_run

pytestmark = pytest.mark.slow

UNSHARE = ["unshare", "--map-root-user", "--mount", "sh", "-c"]

# Another process takes what is left of the disk at the moment when `target` is called for the nth time.
FILLING = """
import {module} as module
holder = module{holder}
whole, calls = holder.{name}, []
def fill_the_disk(*args, **named):
    calls.append(1)
    if len(calls) == {nth}:
        with open({ballast!r}, "wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
    return whole(*args, **named)
holder.{name} = fill_the_disk
"""

# What stands on the disk is gone with the namespace: all is done and listed within it.
SCRIPT = """
mount -t tmpfs -o size=96m none {disk} || exit 77
{first}
echo "code $?"
find {disk} -type f ! -name ballast | sed 's/^/left: /' >&2
rm {disk}/ballast
{second}
echo "code $?"
find {disk} -type f | sed 's/^/then: /' >&2
"""


def can_mount(folder: Path) -> bool:
    """Whether this machine lets us mount a file system of our own."""
    if shutil.which("unshare") is None:
        return False
    command = [*UNSHARE, f"mount -t tmpfs none {folder}"]
    return subprocess.run(command, capture_output=True).returncode == 0


def command(output: Path, *more: str, fault: str = "") -> str:
    return shlex.join([sys.executable, "-c", fault + MAIN, "train", "--output", str(output), *more])


@pytest.mark.parametrize(
    ("module", "holder", "name", "nth", "sentence"),
    [
        ("facerec.data.store", "", "_decoded", 1, "The disk of the cache folder .* is full"),
        (
            "facerec.training.checkpoint",
            ".Checkpoints",
            "save",
            2,
            "cannot be written: .*No space left",
        ),
        ("facerec.training.export", "", "draw_curves", 1, "cannot be written: .*No space left"),
    ],
    ids=["store", "checkpoint", "page"],
)
def test_a_disk_that_fills_up(tmp_path, own_tracking, module, holder, name, nth, sentence):
    disk = tmp_path / "disk"
    disk.mkdir()
    if not can_mount(disk):
        pytest.skip("no file system may be mounted here")
    faces = people(tmp_path / "faces", "Ann Bob Cy Di Ed Flo Gus Hal Ida", 4)
    ballast = str(disk / "ballast")
    fault = FILLING.format(module=module, holder=holder, name=name, nth=nth, ballast=ballast)
    settings = {**TINY, "batch_size": "8", "data": str(faces), "cache": str(disk / "cache")}
    given = flags(settings)
    again = given if name == "_decoded" else ["--resume", "last"]
    script = SCRIPT.format(
        disk=disk,
        first=command(disk / "out", *given, fault=fault),
        second=command(disk / "out", *again),
    )
    done = subprocess.run(
        [*UNSHARE, script], env=environment(), capture_output=True, text=True, cwd=PROJECT
    )
    print(done.stderr)
    assert done.stdout.split() == ["code", "2", "code", "0"]
    said = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    told = [line for line in said if line.startswith("facerec: ")]
    assert len(told) == 1 and re.search(sentence, told[0]), told
    left, then = (
        [line.removeprefix(when) for line in said if line.startswith(when)]
        for when in ("left: ", "then: ")
    )
    parts = [part for path in left + then for part in Path(path).relative_to(disk).parts]
    assert {part for part in parts if part.startswith(".")} <= {".lock"}  # no drafts
    assert not [path for path in left if path.endswith(".html")]
    if name == "_decoded":
        assert not [path for path in left if "/stores/" in path]
    else:
        assert [path for path in left if "/checkpoints/" in path]
    assert only_run().info.status == "FINISHED"
    assert sum(path.endswith(".html") for path in then) == 2
