"""Output never raises: encodings that lack a character, readers that go, streams that are closed."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from facerec.cli import without_telemetry
from tests.helpers import PROJECT

PREPARED = "from facerec.runtime.console import answer, prepare; prepare(); import sys; "
NAMES = r"'Jos\xe9 D\u0169ng \u2212 \u2013 \u2026 \udce9 \U0001f600'"


def python(code: str, shell: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """`python -c` with redirections of a shell."""
    command = ["sh", "-c", f'exec "$0" "$@" {shell}', sys.executable, "-c", code]
    child = {**os.environ, "PYTHONPATH": str(PROJECT), **variables}
    return subprocess.run(command, env=child, capture_output=True, cwd=PROJECT)


@pytest.mark.parametrize(
    ("variables", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, rb"Jos\xe9 D\u0169ng - - ... \udce9 \U0001f600"),
        ({"PYTHONIOENCODING": "cp1252"}, b"Jos\xe9 D\\u0169ng - \x96 \x85 \\udce9 \\U0001f600"),
        ({"PYTHONIOENCODING": "utf-8"}, "José Dũng − – … \\udce9 😀".encode()),
        ({"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"Jos"),
    ],
)
def test_a_character_that_the_console_lacks_is_shown_otherwise(variables, shown):
    code = f"{PREPARED} answer({NAMES}); print({NAMES}, file=sys.stderr)"
    code += f"; from facerec.tracking.run import say; say({NAMES})"
    code += f"; import warnings, logging; warnings.warn({NAMES}); logging.warning({NAMES})"
    done = python(code, **variables)
    assert done.returncode == 0 and shown in done.stdout, done.stderr
    assert done.stderr.count(shown) >= 4 and b"Traceback" not in done.stderr


def test_help_and_errors_do_not_raise_either():
    for arguments in (["--help"], ["pr\xe9dict"], ["train", "--epochs", "\xe9"]):
        code = f"from facerec.cli import main; main({arguments!r})"
        done = python(code, PYTHONIOENCODING="ascii")
        assert b"Traceback" not in done.stderr and done.returncode in (0, 2)


@pytest.mark.parametrize(
    ("variables", "disabled"),
    [
        ({}, "true"),
        ({"FACEREC_TELEMETRY": "1"}, "false"),
        ({"MLFLOW_DISABLE_TELEMETRY": "false"}, "false"),
        ({"MLFLOW_DISABLE_TELEMETRY": "true", "FACEREC_TELEMETRY": "1"}, "true"),
    ],
)
def test_mlflow_collects_no_usage_statistics_unless_asked_to(variables, disabled, monkeypatch):
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    without_telemetry()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == disabled
    assert (
        "mlflow" not in python(IMPORTED).stdout.decode().split()
    )  # which looks at it when imported


IMPORTED = "import sys, facerec.cli; print(*sys.modules)"
CLOSED = (
    "import os; from facerec.runtime.console import answer, prepare; prepare();"
    "handle = os.open('{file}', os.O_RDWR | os.O_CREAT); print('lost'); answer('lost');"
    "import sys; print('lost', file=sys.stderr); sys.exit(os.fstat(handle).st_size)"
)


@pytest.mark.parametrize("shell", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_not_given_to_the_next_file(tmp_path, shell):
    done = python(CLOSED.format(file=tmp_path / "file"), shell)
    assert done.returncode == 0, done.stderr


def test_a_training_does_not_die_of_a_stderr_that_nobody_reads():
    loop = "[print('epoch', i, file=sys.stderr, flush=True) for i in range(20000)]; answer('done')"
    done = python(PREPARED + loop, "2>&1 >/dev/full | head -1")
    assert done.stdout == b"epoch 0\n"
    for shell in ("2>/dev/full", "2>&-"):
        done = python(PREPARED + loop, shell)
        assert (done.returncode, done.stdout) == (0, b"done\n")


def test_an_answer_that_could_not_be_given_is_an_error():
    code = (
        "import click; from facerec import cli; from facerec.runtime import console;"
        "cli.facerec.add_command(click.Command('ask', callback=lambda: console.answer('yes')));"
        "cli.main(['ask'])"
    )
    done = python(code, ">/dev/full")
    assert done.returncode == 2 and done.stderr.count(b"\n") == 1
    assert b"the answer cannot be written" in done.stderr
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=PROJECT)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")  # as `| head` has it


def test_text_files_name_their_encoding():
    """Python's own default is the machine's: a recipe written on one would not be read on another."""
    unnamed = []
    for path in [*PROJECT.glob("facerec/**/*.py"), *PROJECT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            named = {k.arg for k in node.keywords}
            constants = [getattr(a, "value", None) for a in node.args]
            text = name in ("read_text", "write_text") and "utf-8" not in constants
            text |= (
                name == "open"
                and isinstance(node.func, ast.Name)
                and not any(isinstance(c, str) and "b" in c for c in constants[1:])
            )
            text |= name == "run" and "text" in named
            if text and "encoding" not in named:
                unnamed.append(f"{path.relative_to(PROJECT)}:{node.lineno}")
    assert not unnamed
