"""Files that appear whole or not at all, and what to say when the disk refuses."""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from facerec.settings import InputError, one_line

DRAFT = ".tmp-"  # what the names of files begin with that are being written


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
    draft = beside(folder)
    draft.mkdir()
    try:
        yield draft
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def beside(folder: Path) -> Path:
    """A hidden name beside a folder that nobody else has.

    Not by `tempfile`: what that makes is for its owner alone, and whoever widens it afterwards has to know the
    process's umask, which cannot be read without changing it for all threads.
    """
    return folder.with_name(f".{folder.name}-{secrets.token_hex(8)}")


def remove_folder(folder: Path) -> None:
    """Take a published folder away in one step: who has its files open keeps them."""
    trash = beside(folder)
    trash.mkdir()
    try:
        folder.rename(trash / "old")
    except FileNotFoundError:  # another process was faster
        pass
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def copy_folder(source: Path, target: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Copy a folder's files, but not who may read them: that is for the process's umask to say.

    Args:
        target: must not exist.
        leave_out: patterns of names, as in a shell, of files and folders that are not copied.

    Returns:
        `target`.
    """
    skip = shutil.ignore_patterns(*leave_out)
    target.mkdir()
    names = os.listdir(source)
    for name in sorted(set(names) - skip(str(source), names)):
        if (source / name).is_dir():
            copy_folder(source / name, target / name, leave_out)
        else:
            shutil.copyfile(source / name, target / name)
    return target


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
