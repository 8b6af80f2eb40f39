"""Help, and what cannot work, are answered without the imports that take seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from facerec.cli import ENTRIES
from tests.helpers import PROJECT

HEAVY = ("torch", "mlflow", "plotly", "sklearn", "numba", "pandas")
CODE = """
import sys
from facerec.cli import main
try:
    main({arguments!r})
finally:
    print(*[name for name in {heavy!r} if name in sys.modules], "imported", file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = CODE.format(arguments=list(arguments), heavy=HEAVY)
    child = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "100"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=child, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.parametrize("command", ENTRIES)
def test_help_imports_nothing_heavy(command):
    done = run(command, "--help")
    assert done.returncode == 0 and "Usage" in done.stdout
    assert done.stderr.splitlines() == ["imported"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "nowhere"], "data=nowhere was not found"),
        (["train", "--lr", "banana"], "lr=banana"),
        (["train", "--config", "nowhere.yaml"], "there is no such file"),
        (["train", "--init", "nowhere"], "model folder nowhere: there is no such folder"),
        (["train", "--epoks", "3"], "did you mean 'epochs'"),
        (["finetune", "--model", "pretraned"], "did you mean pretrained?"),
        (["evaluate", "--model", "nowhere"], "there is no such folder"),
        (["visualize", "--data", "https://example.org/faces"], "is a URL"),
        (["sweep", "--space", "nowhere.yaml"], "there is no such file"),
        (["sweep", "--data", "nowhere"], "data=nowhere was not found"),
        (["predict", "a.jpg"], "give two pictures"),
        (["predict", "a.jpg", "b.jpg", "--model", "nowhere"], "there is no such folder"),
        (["serve", "--model", "nowhere"], "there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_before_heavy_imports(arguments, said):
    done = run(*arguments)
    assert done.returncode == 2 and said in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "imported"


def test_the_package_itself_is_light():
    code = f"import sys, facerec; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.stdout == "\n"
