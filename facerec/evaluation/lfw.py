"""LFW's own protocols: View 1 for development, and the ten folds of View 2 (Huang et al., 2007)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np

from facerec.data.splits import lfw_pairs
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.confidence import Figure, mean_draws, wilson
from facerec.evaluation.protocols import STUDENT_9, Pairs, Pictures, of_store
from facerec.evaluation.scores import Measured, accuracy, listed, people
from facerec.evaluation.verification import ten_fold, verification


@dataclass(frozen=True)
class View1:
    """LFW View 1: retrieval among DevTest people, and DevTest's listed pairs."""

    pictures: Pictures
    labels: np.ndarray
    pairs: Pairs
    train_pairs: Pairs
    title: str = "LFW View 1"
    note = (
        "Retrieval, ROC and TAR are of all DevTest pictures unless listed pairs are named; accuracies are of the "
        "listed DevTest pairs, at the threshold from validation people unless another is named."
    )

    def measure(
        self, features: np.ndarray, usable: np.ndarray, threshold: float | None
    ) -> Measured:
        """See `Identities.measure`."""
        found = Measured()
        kept = usable & (self.labels >= 0)
        people(found, features[kept], self.labels[kept], threshold)
        similarity, kept = self.pairs.similarity(features, usable)
        same = self.pairs.same[kept]
        # LFW's accuracy is of its listed pairs, so it takes the place of that of all pairs.
        accuracy(found, "verification_accuracy", similarity, same, threshold)
        known, kept = self.train_pairs.similarity(features, usable)
        learnt = verification(known, self.train_pairs.same[kept]).best_threshold
        accuracy(found, "devtrain_threshold_accuracy", similarity, same, learnt)
        listed(found, similarity, same, "pairs_")
        return found


@dataclass(frozen=True)
class View2:
    """LFW View 2: ten folds of listed pairs; beside it the pairs whose people are all in DevTest."""

    pictures: Pictures
    pairs: Pairs
    fold: np.ndarray
    devtest: np.ndarray
    title: str = "LFW View 2"
    note = (
        "Each fold of listed pairs is decided with the threshold that is best for the other nine."
    )

    def measure(
        self, features: np.ndarray, usable: np.ndarray, threshold: float | None
    ) -> Measured:
        """See `Identities.measure`; the thresholds come from the other nine folds instead."""
        found = Measured()
        similarity, kept = self.pairs.similarity(features, usable)
        same, fold, devtest = self.pairs.same[kept], self.fold[kept], self.devtest[kept]
        folds = ten_fold(similarity, same, fold)
        limit = folds.threshold[np.searchsorted(np.unique(fold), fold)]
        right = (similarity >= limit) == same
        half = STUDENT_9 * folds.standard_error
        note = f"standard error {folds.standard_error:.4f}"
        figure = Figure(folds.mean, max(0, folds.mean - half), min(1, folds.mean + half), note)
        draws = mean_draws(right, np.arange(len(right)))
        found.add("verification_accuracy", folds.mean, draws, figure)
        strangers = right[devtest]
        if len(strangers):
            figure = wilson(int(strangers.sum()), len(strangers))
            figure = replace(figure, note=f"{len(strangers):,} pairs")
            draws = mean_draws(strangers, np.arange(len(strangers)))
            found.add("devtest_accuracy", figure.value, draws, figure)
        listed(found, similarity, same)
        return found


def lfw_view1(store: Store) -> View1:
    """LFW View 1 with the thresholds' pairs.

    Raises:
        InputError: the data set is not LFW, or lacks its lists.
    """
    tested, known = (lfw_list(store, which) for which in ("devtest", "devtrain"))
    rows = np.union1d(store.indices("test"), [row for pair in tested + known for row in pair[:2]])
    test = store.split[rows] == "test"
    return View1(
        of_store(store, rows, np.flatnonzero(test)),
        np.where(test, store.labels[rows], -1),
        placed_pairs(tested, rows),
        placed_pairs(known, rows),
    )


def lfw_view2(store: Store) -> View2:
    """LFW View 2.

    Raises:
        InputError: the data set is not LFW, or lacks its list.
    """
    found = lfw_list(store, "view2")
    rows = np.unique([row for pair in found for row in pair[:2]])
    pairs, test = placed_pairs(found, rows), store.split[rows] == "test"
    return View2(
        of_store(store, rows),
        pairs,
        np.array([pair[3] for pair in found]),
        test[pairs.first] & test[pairs.second],
    )


def lfw_list(store: Store, which: str) -> list[tuple[int, int, bool, int]]:
    """(row, row, same, fold) of a list of LFW's, as far as the store holds the pictures."""
    if store.layout != "lfw":
        raise InputError(
            f"{store.name} is not LFW, whose protocol this is: use protocol=identities"
        )
    place = {path: i for i, path in enumerate(store.paths)}
    listed = [
        (PurePosixPath(a).as_posix(), PurePosixPath(b).as_posix(), same, fold)
        for a, b, same, fold in lfw_pairs(store.root, which)
    ]
    found = [
        (place[a], place[b], same, fold) for a, b, same, fold in listed if a in place and b in place
    ]
    if len({same for _, _, same, _ in found}) < 2:
        raise InputError(f"{store.root} lacks the pictures of LFW's pairs")
    return found


def placed_pairs(found: list[tuple[int, int, bool, int]], rows: np.ndarray) -> Pairs:
    """Store rows → places in `rows`, which is sorted."""
    first, second, same, _ = (np.array(column) for column in zip(*found, strict=True))
    return Pairs(np.searchsorted(rows, first), np.searchsorted(rows, second), same)
