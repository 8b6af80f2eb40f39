"""Files that appear whole or not at all, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from facerec.errors import InputError
from facerec.runtime.text import one_line

fcntl = import_module("fcntl") if os.name == "posix" else None  # Windows has none

DRAFT = ".tmp-"  # what the names of files begin with that are being written
DRAFT_FOLDER = re.compile(r"\.facerec-([0-9a-f]{8})-[0-9a-f]{16}")  # folders that are, on a host

Lock = Literal["held", "taken", "unknown"]


@contextmanager
def cache_errors(cache: Path) -> Iterator[None]:
    """Turn the file system's refusals in the cache folder into one sentence each."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"The disk of the cache folder {cache} is full: free some space, or choose another with --cache."
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise InputError(
                f"The cache folder {cache} cannot be written ({error.strerror}): choose another with --cache "
                "or FACEREC_CACHE."
            ) from None
        raise


@contextmanager
def disk_told(path: Path) -> Iterator[None]:
    """Turn a refusal of the disk while `path` is written into one sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {one_line(error)}; free space or choose another folder"
        ) from error


@contextmanager
def publish_folder(folder: Path) -> Iterator[Path]:
    """A draft folder that is renamed to `folder` when the block ends, removed when it fails.

    If another process has published `folder` meanwhile, its copy stays and the draft goes: both makers
    must write the same contents for the same name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_beside(folder) as draft:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise


@contextmanager
def draft_beside(folder: Path) -> Iterator[Path]:
    """An empty folder with a hidden name beside `folder`, which is removed at the end if it is still there.

    A process that is killed leaves its draft behind, and the next one that makes a draft there removes it: as long as
    its maker lives, a draft is locked. Where there are no locks, drafts are left alone, and so are those of other
    hosts: a network file system may keep its locks on each host for itself.
    """
    # Not by `tempfile`: what that makes is for its owner alone, and whoever widens it afterwards has to know the
    # process's umask, which cannot be read without changing it for all threads.
    host = hashlib.sha256(os.fsencode(socket.gethostname())).hexdigest()[:8]
    draft = folder.with_name(f".facerec-{host}-{secrets.token_hex(8)}")
    with ExitStack() as held:
        # So that nobody takes a draft for left behind that is not locked yet.
        with locked(folder.parent, wait=True):
            for left in folder.parent.iterdir():
                name = DRAFT_FOLDER.fullmatch(left.name)
                if name and name[1] == host and _is_left(left):
                    shutil.rmtree(left, ignore_errors=True)
            draft.mkdir()
            held.enter_context(locked(draft))
        held.callback(shutil.rmtree, draft, ignore_errors=True)
        yield draft


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[Lock]:
    """Hold the lock of a file or folder, which goes with the process, however it ends.

    Args:
        wait: for the process that has it.

    Yields:
        held; taken, by another process; or unknown where the system or the file system has no locks.

    Raises:
        OSError: if there is no such file.
    """
    if fcntl is None:
        yield "unknown"
        return
    # NFS locks only files that are open for writing, which a folder never is.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    state: Lock = "held"
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            state = "taken"
        except OSError:
            state = "unknown"
        yield state
    finally:
        os.close(handle)


def _is_left(draft: Path) -> bool:
    """Whether the process that made a draft has ended."""
    try:
        with locked(draft) as state:
            return state == "held"
    except OSError:  # no folder, or gone meanwhile
        return False


def remove_folder(folder: Path) -> None:
    """Take a published folder away in one step: who has its files open keeps them."""
    with draft_beside(folder) as trash, suppress(FileNotFoundError):  # another process was faster
        folder.rename(trash / "old")


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that it is whole or absent: temporary file, sync, rename. What stood there stays on failure.

    Raises:
        OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{DRAFT}{secrets.token_hex(8)}")
    try:
        with open(draft, "xb") as file:  # for whom the umask says
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """`write_file`, with a refusal of the disk told in a sentence.

    Raises:
        InputError: if the disk is full or the folder cannot be written; what stood at `path` is still there.
    """
    with disk_told(path):
        write_file(path, content)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_file` does."""
    write_file(path, json.dumps(value, separators=(",", ":")).encode())


def read_json(path: Path) -> Any | None:
    """What `write_json` wrote, or None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
