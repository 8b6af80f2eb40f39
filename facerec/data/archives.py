"""Data sets that arrive packed or from afar: unpacking a tar archive safely, fetching LFW."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from facerec.data.files import cache_errors, publish_folder
from facerec.data.pictures import MAX_FILE_BYTES, SUFFIXES
from facerec.settings import InputError

MAX_UNPACKED_BYTES = 16 * 2**30
MAX_MEMBERS = 2_000_000


def unpack(archive: Path, cache: Path, lists: Iterable[str] = ()) -> Path:
    """Unpack the pictures and lists of a tar archive, once, into the cache.

    Only regular files that are pictures or named in `lists` are written. Files named in `lists` that stand
    beside the archive are copied too.

    Args:
        archive: a .tar, .tgz or .tar.gz file.
        cache: the cache folder.
        lists: names of files without which the pictures are of less use.

    Returns:
        The folder of its contents.

    Raises:
        InputError: damaged, or a member would leave the folder or is a link.
    """
    stat = archive.stat()
    key = f"{archive}\n{stat.st_size}\n{stat.st_mtime_ns}"
    folder = (
        cache / "unpacked" / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    )
    wanted = frozenset(lists)
    with cache_errors(cache):
        if not folder.is_dir():
            with publish_folder(folder) as draft:
                _extract(archive, draft, wanted)
        for name in sorted(wanted):
            if (archive.parent / name).is_file() and not (folder / name).exists():
                shutil.copyfile(archive.parent / name, folder / name)
    return folder


def _extract(archive: Path, folder: Path, wanted: frozenset[str]) -> None:
    written = 0
    try:
        with tarfile.open(archive) as tar:
            for count, member in enumerate(tar):
                target = _target(folder, member, archive)
                if target.suffix.lower() not in SUFFIXES and target.name not in wanted:
                    continue
                written += member.size
                if not member.isfile():
                    continue
                if (
                    member.size > MAX_FILE_BYTES
                    or written > MAX_UNPACKED_BYTES
                    or count > MAX_MEMBERS
                ):
                    raise InputError(
                        f"{archive}: {member.name} makes it too large to unpack safely."
                    )
                target.parent.mkdir(parents=True, exist_ok=True)
                with open(target, "wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{archive} is damaged, download it again: {error}.") from None
    except OSError as error:
        if error.errno is None:  # gzip's own complaints carry no errno; those of the disk do
            raise InputError(f"{archive} is damaged, download it again: {error}.") from None
        raise


def _target(folder: Path, member: tarfile.TarInfo, archive: Path) -> Path:
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
        raise InputError(
            f"{archive} is not to be trusted: its member {member.name} leaves the folder."
        )
    if not (member.isfile() or member.isdir()):
        raise InputError(
            f"{archive} is not to be trusted: its member {member.name} is a link or device."
        )
    return folder / name


def fetch_lfw() -> Path:
    """Folder of LFW in scikit-learn's data home, downloaded there first if it is not.

    Raises:
        InputError: the download failed; says how to do it by hand.
    """
    from sklearn.datasets import fetch_lfw_people, get_data_home

    home = Path(get_data_home()) / "lfw_home"
    if (home / "lfw_funneled").is_dir():
        return home
    try:
        # 500 pictures a person leaves one person: the smallest decoding that the function offers
        fetch_lfw_people(min_faces_per_person=500, resize=0.1)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise InputError(
            f"LFW could not be downloaded ({str(error) or type(error).__name__}): put lfw-funneled.tgz and "
            f"pairs*.txt from https://ndownloader.figshare.com/files/5976015 (and 5976012, 5976009, 5976006) "
            f"into {home}{os.sep}, or give the folder of Kaggle's copy as data."
        ) from None
    return home
