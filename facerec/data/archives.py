"""Data sets that arrive packed or from afar: unpacking a tar archive safely, fetching LFW."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from facerec.data.decoding import MAX_FILE_BYTES, SUFFIXES
from facerec.errors import InputError
from facerec.runtime.files import cache_errors, publish_folder
from facerec.runtime.text import brief, shown

MAX_UNPACKED_BYTES = 16 * 2**30
MAX_MEMBERS = 1_000_000
MAX_HEADER_BYTES = 2**16  # of a name, or a pax header, of which hundreds may precede a member
HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
PIECE = 2**20  # bytes read at a time


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
        InputError: damaged, over a million members or 16 GiB, or a member would leave the folder or is a link.
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


class _Member(tarfile.TarInfo):
    """A member whose header is not read beyond a limit: tarfile reads long names and pax headers whole."""

    # tarfile's hook for subclasses.
    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and not 0 <= self.size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]  # private, so without stubs


def _extract(archive: Path, folder: Path, wanted: frozenset[str]) -> None:
    for member, content in _members(archive):
        target = _target(folder, member, archive)
        if target.suffix.lower() not in SUFFIXES and target.name not in wanted:
            continue
        if not member.isfile():
            continue
        if member.size > MAX_FILE_BYTES or member.issparse():
            raise InputError(
                f"{archive}: {shown(member.name)} is too large for an image, or sparse."
            )
        with _name_told(archive, member):
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(target, "wb") as file:
                for piece in content():
                    file.write(piece)


def _members(archive: Path) -> Iterator[tuple[tarfile.TarInfo, Callable[[], Iterator[bytes]]]]:
    """Members of a tar archive, each with a call that reads its bytes in pieces.

    Raises:
        InputError: damaged, or too many members or bytes to be unpacked.
    """
    with _open(archive) as tar:
        count = total = 0
        while True:
            with _damage_told(archive):
                member = tar.next()
            if member is None:
                return
            if member.size < 0:  # and so the next one, without end
                raise InputError(f"{archive} is damaged, download it again: {member.size} bytes.")
            # Or the one would hold all members, the other the headers of all.
            tar.members.clear()  # type: ignore[attr-defined]  # not public
            tar.pax_headers.clear()  # type: ignore[attr-defined]  # a dict
            count, total = count + 1, total + member.size
            if count > MAX_MEMBERS or total > MAX_UNPACKED_BYTES:
                raise InputError(
                    f"{archive} is too large to be unpacked safely, over {MAX_MEMBERS:,} files or "
                    f"{MAX_UNPACKED_BYTES >> 30} GiB: unpack it yourself, and give the folder with --data."
                )
            yield member, functools.partial(_content, archive, tar, member)


def _open(archive: Path) -> tarfile.TarFile:
    with _damage_told(archive), open(archive, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        return tarfile.open(archive, "r:gz" if packed else "r:", tarinfo=_Member)


def _content(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[bytes]:
    with _damage_told(archive):
        file = tar.extractfile(member)
    assert file is not None  # of a regular file
    while True:
        with _damage_told(archive):
            piece = file.read(PIECE)
        if not piece:
            return
        yield piece


@contextmanager
def _damage_told(archive: Path) -> Iterator[None]:
    """Whatever tarfile and zlib raise on hostile bytes is one sentence; what the disk says is not theirs."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's own carry none
            raise
        raise InputError(f"{archive} is damaged, download it again: {brief(error)}.") from None


@contextmanager
def _name_told(archive: Path, member: tarfile.TarInfo) -> Iterator[None]:
    """A file that cannot be made for its name's sake: in a file's place, or a folder's, or too long in all."""
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(
            f"{archive}: {shown(member.name)} is both a file and a folder: {error.strerror}."
        ) from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise InputError(f"{archive}: {shown(member.name)} is too long a name.") from None


def _target(folder: Path, member: tarfile.TarInfo, archive: Path) -> Path:
    name = PurePosixPath(member.name)
    said = f"{archive} is not to be trusted: its member {shown(member.name)}"
    if name.is_absolute() or ".." in name.parts or set(member.name) & set("\\:\0"):
        raise InputError(f"{said} leaves the folder, or is no name of a file.")
    if not (member.isfile() or member.isdir()):
        raise InputError(f"{said} is a link or device.")
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
