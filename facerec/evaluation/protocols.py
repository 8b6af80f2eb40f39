"""Protocols: which pictures are probes, and what is measured on them.

A protocol lists pictures. Features of them go in, a model's embeddings or a reference line's; figures come out.

Axes: N pictures, E features, P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from facerec.data.decoding import PictureError, read_file
from facerec.data.names import fold_name
from facerec.data.splits import pairs_csv
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.confidence import Figure, mean_draws
from facerec.evaluation.identification import identification
from facerec.evaluation.retrieval import unit
from facerec.evaluation.scores import Measured, accuracy, listed, people
from facerec.evaluation.verification import power
from facerec.inference.gallery import gallery_files
from facerec.runtime.paths import expanded

STUDENT_9 = 2.262  # two-sided 95 % of Student's t with ten folds' nine degrees of freedom


@dataclass(frozen=True)
class Pictures:
    """What a protocol needs features of.

    Attributes:
        paths: N, as in `Store.paths`, or absolute.
        names: N people; empty where they are not known.
        hashes: N SHA-256 of the files, hex.
        probes: (K,) places of those whom the model ought not to know.
    """

    paths: Sequence[str]
    names: Sequence[str]
    hashes: Sequence[str]
    probes: np.ndarray


@dataclass(frozen=True)
class Pairs:
    """(P,) places in the pictures, and whether both show one person."""

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def similarity(self, features: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cosine similarity of the pairs whose pictures are usable, and (P,) which these are."""
        kept = usable[self.first] & usable[self.second]
        rows = unit(np.where(usable[:, None], features, 0)).numpy()
        return np.sum(rows[self.first[kept]] * rows[self.second[kept]], axis=1), kept


@dataclass(frozen=True)
class Identities:
    """Retrieval among people, and all pairs of their pictures."""

    pictures: Pictures
    labels: np.ndarray
    title: str
    note = (
        "Pairs are all pairs of two pictures; accuracy weighs genuine and impostor pairs alike, at the threshold from "
        "validation people."
    )

    def measure(
        self, features: np.ndarray, usable: np.ndarray, threshold: float | None
    ) -> Measured:
        """Figures of one column.

        Args:
            features: (N, E); rows that are not usable are not read.
            usable: (N,) bool.
            threshold: similarity that tells one person from two, learnt elsewhere.

        Raises:
            InputError: too few pictures are left.
        """
        found = Measured()
        people(found, features[usable], self.labels[usable], threshold)
        return found


@dataclass(frozen=True)
class PairList:
    """Any list of pairs."""

    pictures: Pictures
    pairs: Pairs
    title: str
    note = "Accuracy is at the threshold from validation people."

    def measure(
        self, features: np.ndarray, usable: np.ndarray, threshold: float | None
    ) -> Measured:
        """See `Identities.measure`."""
        found = Measured()
        similarity, kept = self.pairs.similarity(features, usable)
        accuracy(found, "verification_accuracy", similarity, self.pairs.same[kept], threshold)
        listed(found, similarity, self.pairs.same[kept])
        return found


@dataclass(frozen=True)
class Search:
    """Probes searched among the people of a gallery.

    Attributes:
        labels: (N,) people. known: (N,) bool, True for pictures of the gallery.
        notes: what was left out, and names to look at, in sentences.
    """

    pictures: Pictures
    labels: np.ndarray
    known: np.ndarray
    title: str
    notes: tuple[str, ...] = ()
    note = (
        "A person's nearest picture counts. TPIR: found first and above the threshold that the given share of searches "
        "for nobody passes."
    )

    def measure(
        self, features: np.ndarray, usable: np.ndarray, threshold: float | None
    ) -> Measured:
        """See `Identities.measure`; there is no threshold but those of the open set."""
        probes, gallery = usable & ~self.known, usable & self.known
        try:
            found = identification(
                features[probes], self.labels[probes], features[gallery], self.labels[gallery]
            )
        except ValueError as error:
            raise InputError(f"{self.title}: {error}") from None
        measured, identity = Measured(), self.labels[probes][found.mated]
        for rank in found.ranks:
            hits = found.rank <= rank
            measured.add(f"rate_at_rank_{rank}", hits.mean(), mean_draws(hits, identity))
        for fpir in found.fpir:
            rate, name = found.tpir_at_fpir(fpir), f"tpir_at_fpir_{power(fpir)}"
            if not rate.measurable:
                measured.figures[name] = Figure.missing(str(rate))
                continue
            hits = (found.rank == 1) & (found.score >= rate.threshold)
            measured.add(name, rate.tar, mean_draws(hits, identity))
        return measured


def identities(store: Store, part: str) -> Identities:
    """Retrieval among the people of `train`, `val`, `test` or `all`.

    Raises:
        InputError: the data set has no such part.
    """
    rows = store.indices(part)
    if len(rows) == 0:
        raise InputError(f"split={part}: {store.name} has too few people for such a part; try all")
    name = f"{store.name}, {'all' if part == 'all' else part} people"
    return Identities(of_store(store, rows), store.labels[rows], name)


def pair_list(path: str | Path) -> PairList:
    """Pairs of a CSV of path, path, same.

    Raises:
        InputError: the CSV cannot be read, or holds one kind of pair only.
    """
    found = pairs_csv(path)
    if len({pair[2] for pair in found}) < 2:
        raise InputError(f"{path} holds pairs of one kind only: both, same and not, are due")
    paths = sorted({path for pair in found for path in pair[:2]})
    place = {path: i for i, path in enumerate(paths)}
    first = np.array([place[pair[0]] for pair in found])
    second = np.array([place[pair[1]] for pair in found])
    same = np.array([pair[2] for pair in found])
    hashes = [_hash(Path(path)) for path in paths]
    pictures = Pictures(paths, (), hashes, np.arange(len(paths)))
    return PairList(pictures, Pairs(first, second, same), Path(path).name)


def search(gallery: str | Path, probes: str | Path) -> Search:
    """Probes of one folder among the people of another; a folder, or a picture, for each person.

    A probe that is one of the gallery's pictures, by content, is left out.

    Raises:
        InputError: a folder is missing, or nobody in it can be searched.
    """
    found = [gallery_files(expanded(folder)) for folder in (gallery, probes)]
    files = [part.people for part in found]
    hashes = [[_hash(path) for _, path in part] for part in files]
    known = set(hashes[0])
    kept = [i for i, value in enumerate(hashes[1]) if value not in known]
    if not files[0] or not kept:
        raise InputError(
            f"gallery={gallery}, data={probes}: pictures are due in both, not the same ones"
        )
    both = [*files[0], *(files[1][i] for i in kept)]
    names = [name for name, _ in both]
    is_known = np.arange(len(both)) < len(files[0])
    pictures = Pictures(
        [str(path.resolve()) for _, path in both],
        names,
        hashes[0] + [hashes[1][i] for i in kept],
        np.flatnonzero(~is_known),
    )
    title = f"{Path(probes).name} searched in {Path(gallery).name}"
    copies = len(files[1]) - len(kept)
    known_already = f"{copies:,} of the probes are images of the gallery, by content, and left out"
    notes = (*found[0].notes, *found[1].notes, *([known_already] if copies else []))
    notes = (*notes, *_spellings(names[: len(files[0])], names))
    return Search(pictures, np.array(names), is_known, title, notes)


def _spellings(known: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """A sentence on probes whose name the gallery has in another spelling or folder: they count as strangers."""
    people = set(known)
    similar = {_leaf(name): name for name in sorted(people)}
    strange = [name for name in sorted(set(names) - people) if _leaf(name) in similar]
    if not strange:
        return ()
    first = f"{strange[0]}, where the gallery has {similar[_leaf(strange[0])]}"
    return (
        f"names of the probes that the gallery has in another spelling or folder: {len(strange):,} (the first, "
        f"{first}). They count as strangers; where they are one person, give both one name and place",
    )


def _leaf(name: str) -> str:
    """The last part of a gallery's name, as it is compared for a suggestion."""
    return fold_name(name.rpartition("/")[2])


def of_store(store: Store, rows: np.ndarray, probes: np.ndarray | None = None) -> Pictures:
    """The images of these rows of a store; `probes` as in `Pictures`, all of them where None."""
    return Pictures(
        [store.paths[i] for i in rows],
        [store.names[store.labels[i]] for i in rows],
        [store.picture_hashes[i] for i in rows],
        np.arange(len(rows)) if probes is None else probes,
    )


def _hash(path: Path) -> str:
    """SHA-256 of a file; of one that cannot be read, of nothing else."""
    try:
        return hashlib.sha256(read_file(path)).hexdigest()
    except PictureError:
        return f"unreadable {path}"
