"""Who is trained on, who is validated on, who is kept for the end; and LFW's own protocols.

Splits are by identity and follow from a hash of the name alone, so that no file order, seed or machine
changes them. On LFW the authors' lists decide, so that every download of it splits alike.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from facerec.data.csv_list import inside, read_csv
from facerec.data.layouts import lfw_list, lfw_pictures
from facerec.data.names import fold_name, identity, key_hash, name_key
from facerec.errors import InputError
from facerec.runtime.paths import expanded

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")
SPLIT_VERSION = 2
TEST_BELOW = 0.15
VAL_BELOW = 0.30
Pair = tuple[str, str, bool, int]  # path, path, same person, fold


def split_by_identity(
    names: Sequence[str], lfw: bool = False, version: int = SPLIT_VERSION
) -> dict[str, str]:
    """Part of every person: `train`, `val` or `test`.

    A name's hash below 0.15 is test, below 0.30 val, the rest train. Retrieval needs two people with two
    pictures: a part with fewer takes the next ones by hash, and says so. With fewer than six such people
    there is no test part, with fewer than four no val part either; train goes first. Names that differ in case or
    separators only go the same way, so that somebody spelt in two ways is not on both sides.

    Args:
        names: the person on each picture, as often as there are pictures.
        lfw: the names are LFW's: test is its DevTest list, val the lowest 15 % of DevTrain by hash.
        version: 2; 1 is how data sets were split before, by names without marks and signs, which merged people.

    Returns:
        Each distinct name -> its part.
    """
    key = fold_name if lfw or version == 1 else name_key
    person = key if version == 1 else identity
    images = Counter(map(person, names))
    counts: dict[str, int] = {}  # of each key, the images of the one of its people who has most
    for name in images:
        counts[key(name)] = max(images[name], counts.get(key(name), 0))
    hashes = {name: key_hash(name) for name in counts}
    order = sorted(counts, key=lambda name: (hashes[name], name))
    parts = _lfw_parts(order) if lfw else {name: _part(hashes[name]) for name in order}
    paired = [name for name in order if counts[name] >= 2]
    if lfw:  # the lists decide who is lowest
        paired.sort(key=lambda name: ("test", "val", "train").index(parts[name]))
    parts = _top_up(parts, paired)
    return {name: parts[key(name)] for name in names}


def _part(value: float) -> str:
    return "test" if value < TEST_BELOW else "val" if value < VAL_BELOW else "train"


def _top_up(parts: dict[str, str], paired: list[str]) -> dict[str, str]:
    """Move the boundaries until each part, as far as there are people, has two of `paired`.

    Args:
        parts: name -> part.
        paired: those with two pictures, in the order test, val, train.
    """
    total = len(paired)
    have = Counter(parts[name] for name in paired)
    test = 0 if total < 6 else max(2, min(have["test"], total - 4))
    val = 0 if total < 4 else max(2, min(have["test"] + have["val"] - test, total - 2 - test))
    topped = dict(parts)
    for i, name in enumerate(paired):
        topped[name] = "test" if i < test else "val" if i < test + val else "train"
    present = {"train"} | ({"val"} if val else set()) | ({"test"} if test else set())
    topped = {name: part if part in present else "train" for name, part in topped.items()}
    moved = sum(topped[name] != parts[name] for name in paired)
    if moved:
        log.warning(
            "So few people have two images that %d of %d were moved to another part: train, val and test have "
            "%d, %d and %d of them.",
            *(moved, total, total - val - test, val, test),
        )
    return topped


def _lfw_parts(names: Sequence[str]) -> dict[str, str]:
    """Parts by LFW's lists, whose spelling differs from its folders' in nothing but case and separators."""
    test = {fold_name(name) for name in lfw_list("test")}
    train = sorted({fold_name(name) for name in lfw_list("train")}, key=key_hash)
    val = set(train[: round(len(train) * 0.15)])
    folded = {name: fold_name(name) for name in names}
    return {n: "test" if f in test else "val" if f in val else "train" for n, f in folded.items()}


def lfw_view1_people(root: Path | str) -> dict[str, list[str]]:
    """LFW's people of View 1: `train` (4,038) and `test` (1,711), no one in both.

    Read from the download where it has the lists (peopleDevTrain.csv or .txt), else from the package.

    Raises:
        InputError: a list of the download is damaged.
    """
    found = {}
    for part, title in (("train", "peopleDevTrain"), ("test", "peopleDevTest")):
        path = _find(Path(root), f"{title}.csv") or _find(Path(root), f"{title}.txt")
        if path is None:
            found[part] = list(lfw_list(part))
            continue
        rows = [cells[0].split("\t") for _, cells in read_csv(path)][1:]
        found[part] = [cells[0].strip() for cells in rows]
        if not found[part]:
            raise InputError(f"{path} names nobody: download it again.")
    return found


def lfw_pairs(root: Path | str, which: str) -> list[Pair]:
    """LFW's verification pairs, from Kaggle's CSVs or the authors' pairs*.txt.

    Args:
        root: the download, as `FaceList.root` or `Store.root` has it.
        which: `devtrain` (2,200 pairs), `devtest` (1,000) or `view2` (6,000 in ten folds).

    Returns:
        (path, path, same person, fold): paths relative to `root` as in `FaceList.paths`; fold is 0..9 in
        View 2, else 0.

    Raises:
        InputError: the lists are missing or damaged, or the pictures are not there.
    """
    root = Path(root)
    pictures = lfw_pictures(root)
    if pictures is None:
        raise InputError(f"{root} is no LFW download, so LFW's pairs cannot be used with it.")
    prefix = PurePosixPath(pictures.relative_to(root).as_posix())
    titles = {"devtrain": "pairsDevTrain", "devtest": "pairsDevTest", "view2": "pairs"}
    if which not in titles:
        raise ValueError(f"which={which!r}: one of {', '.join(titles)}")
    title = titles[which]
    if path := _find(root, f"{title}.txt"):
        rows = _from_text(path)
    elif which == "view2" and (path := _find(root, "pairs.csv")):
        rows = _from_csvs([path], per_fold=300)
    else:
        names = [f"{kind}{title}.csv" for kind in ("match", "mismatch")]
        found = [path for name in names if (path := _find(root, name))]
        if which == "view2" or len(found) < 2:
            wanted = "pairs.csv" if which == "view2" else " and ".join(names)
            raise InputError(
                f"{root} has neither {title}.txt nor {wanted}: add LFW's lists beside the pictures."
            )
        rows = _from_csvs(found, per_fold=0)
    return [
        (str(prefix / a / f"{a}_{i:04d}.jpg"), str(prefix / b / f"{b}_{j:04d}.jpg"), a == b, fold)
        for a, i, b, j, fold in rows
    ]


def pairs_csv(path: Path | str) -> list[Pair]:
    """Pairs from a CSV of path,path,same; relative paths start at the CSV's folder.

    Args:
        path: the CSV; `same` is 1, true or yes, or 0, false or no. A heading is allowed.

    Returns:
        (absolute path, absolute path, same person, 0).

    Raises:
        InputError: unreadable, a line that is no pair, or a path that leaves the folder by `..`.
    """
    path = expanded(path).absolute()
    truth = dict.fromkeys(("1", "true", "yes"), True)
    truth |= dict.fromkeys(("0", "false", "no"), False)
    pairs = []
    for at, (line, cells) in enumerate(read_csv(path)):
        cells = [cell.strip() for cell in cells]
        same = truth.get(cells[2].lower()) if len(cells) == 3 else None
        if same is None:
            if (
                at == 0
                and len(cells) == 3
                and cells[2].lower() in ("same", "label", "match", "target")
            ):
                continue
            raise InputError(
                f"{path}, line {line}: path,path,same (1 or 0) is due, not {','.join(cells)[:80]!r}."
            )
        a, b = (str(inside(path.parent, cell, f"{path}, line {line}")) for cell in cells[:2])
        pairs.append((a, b, same, 0))
    if not pairs:
        raise InputError(f"{path} holds no pairs: lines of path,path,same are due.")
    return pairs


def _find(root: Path, name: str) -> Path | None:
    """A list of LFW, in the download's folder or one around the pictures."""
    for folder in (root, root / "lfw_home", root.parent, root.parent.parent):
        if (folder / name).is_file():
            return folder / name
    return None


Row = tuple[str, int, str, int, int]  # name, number, name, number, fold


def _from_text(path: Path) -> list[Row]:
    """pairs*.txt: a heading of counts, then blocks of matched and mismatched pairs."""
    try:
        heading, *lines = path.read_text("utf-8").strip().splitlines()
        counts = [int(cell) for cell in heading.split()]
        folds, size = counts if len(counts) == 2 else (1, *counts)
        rows = [_row(line.split(), k // (2 * size)) for k, line in enumerate(lines)]
    except (ValueError, OSError):
        raise InputError(f"{path} is not LFW's list of pairs: download it again.") from None
    return _checked(rows, path, folds * 2 * size)


def _from_csvs(paths: list[Path], per_fold: int) -> list[Row]:
    """Kaggle's CSVs: name,number,number or name,number,name,number under a heading."""
    rows = []
    for path in paths:
        for k, (line, cells) in enumerate(read_csv(path)[1:]):
            cells = [cell.strip() for cell in cells if cell.strip()]
            try:
                rows.append(_row(cells, k // (2 * per_fold) if per_fold else 0))
            except ValueError:
                raise InputError(
                    f"{path}, line {line}: not a pair of LFW: download it again."
                ) from None
    return _checked(rows, paths[0], 2 * per_fold * 10 if per_fold else len(rows))


def _row(cells: list[str], fold: int) -> Row:
    if len(cells) == 3:
        name, i, j = cells
        return name, int(i), name, int(j), fold
    a, i, b, j = cells
    return a, int(i), b, int(j), fold


def _checked(rows: list[Row], path: Path, expected: int) -> list[Row]:
    same = sum(row[0] == row[2] for row in rows)
    if len(rows) != expected or not rows or same * 2 != len(rows):
        raise InputError(
            f"{path} is cut short or altered: {len(rows):,} pairs, {same:,} of them of one person, where "
            f"{expected:,} were due, half of one person: download it again."
        )
    return rows
