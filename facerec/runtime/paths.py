"""Which file or folder a setting means: one rule for every command, also where `mlflow run` has changed folder.

A path is what exists. Under `mlflow run` a relative path that is not in the project counts from the folder in which
`mlflow run` was typed. A name with a colon is a path too (`c:d.jpg`), unless it is `runs:/`, `models:/` or `scheme://`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

if TYPE_CHECKING:
    import psutil

# A letter and :// is a drive of Windows.
URI = re.compile(r"(runs|models):/|[A-Za-z][A-Za-z0-9+.-]+://")


def is_uri(text: str | PathLike[str]) -> bool:
    """Whether this is no path: an URI of MLflow, or a URL."""
    return URI.match(str(text)) is not None


def located(path: str, names: Iterable[str] = ()) -> str:
    """The path that a setting means; as it was given wherever that will do.

    Args:
        names: those that the setting takes for something else than a path, such as `demo`.
    """
    if not path or path in names or is_uri(path):
        return path
    return path if os.path.exists(path) else written(path)


def written(path: str) -> str:
    """As `located`, of a file that is to be written, whatever there is in the project."""
    place = expanded(path) if path else Path(path)
    launch = launch_folder() if path and not place.is_absolute() else None
    if launch not in (None, Path.cwd()):
        return str(launch / place)
    return path if place == Path(path) else str(place)


def as_given(text: str, typed_in: Path | None = None) -> str:
    """Paths as the user may have typed them, for what others will read: relative to where that was, or to `~`.

    Args:
        text: a path, or several with commas between them; anything else stays as it is.
        typed_in: where that was, if it has been found out already, which takes a look at each parent process.
    """
    for folder, sign in ((typed_in or folder_of_command(), ""), (Path.home(), f"~{os.sep}")):
        if folder != Path(folder.anchor):
            start = rf"(^|(?<=,)){re.escape(f'{folder}{os.sep}')}"
            text = re.sub(start, sign.replace("\\", r"\\"), text)
    return text


def launcher() -> psutil.Process | None:
    """The `mlflow run` process that started this one, if one did."""
    if not os.environ.get("MLFLOW_RUN_ID"):
        return None
    try:
        import psutil
    except ImportError:  # beside a served model
        return None
    for parent in psutil.Process().parents():
        try:
            if any("mlflow" in Path(word).name for word in parent.cmdline()[:3]):
                return parent
        except psutil.Error:
            continue
    return None


def launch_folder() -> Path | None:
    """The folder in which the user typed `mlflow run`; None where nobody did."""
    parent = launcher()
    return Path(parent.cwd()) if parent else None


def folder_of_command() -> Path:
    """The folder in which the user typed `mlflow run`, or our command itself."""
    return launch_folder() or Path.cwd()


PathText = Annotated[str, AfterValidator(located)]
WrittenPath = Annotated[str, AfterValidator(written)]


def expanded(path: str | PathLike[str]) -> Path:
    """The path with a leading `~` or `~user` put in; as it is where it exists so, or no such user does."""
    path = Path(path)
    try:
        return path if path.exists() else path.expanduser()
    except (OSError, RuntimeError, ValueError):
        return path
