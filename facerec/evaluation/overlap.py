"""Whom of the probes a model or a reference line has met: people by name, pictures by content."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.protocols import Pictures
from facerec.inference.provenance import Provenance, met


@dataclass(frozen=True)
class Leak:
    """Whom of the probes a model has met.

    Attributes:
        counts: as of `provenance.met`; empty where the model does not say.
        same_data: whether the model was made from this very data set, so that equal names are one person.
        teacher: name of the network that it has learnt from, whose own pictures nobody can look up; "" without.
    """

    counts: dict[str, int]
    same_data: bool
    teacher: str = ""

    @property
    def found(self) -> bool:
        return not self.counts or any(
            self.counts[f"{part}_{kind}"]
            for part in ("train", "val")
            for kind in ("people", "similar", "pictures")
        )

    def __str__(self) -> str:
        """One sentence."""
        if not self.counts:
            return "it does not say whom it was made from, so whether it knows these people is open"
        of = f"{self.counts['people']:,} people and {self.counts['pictures']:,} pictures"
        if not self.found:
            taught = f"; whether its teacher {self.teacher} has cannot be checked"
            return f"it has met none of these {of}{taught if self.teacher else ''}"
        parts = []
        for part, verb in (("train", "trained on"), ("val", "tuned on")):
            people, similar, pictures = (
                self.counts[f"{part}_{kind}"] for kind in ("people", "similar", "pictures")
            )
            if people or similar or pictures:
                sure = "people" if self.same_data else "people (possibly: by name)"
                more = f", {similar:,} people of similar names (possibly others)" if similar else ""
                parts.append(f"{verb} {people:,} {sure}{more} and {pictures:,} pictures")
        return (
            f"of these {of} it was {', and '.join(parts)}: its figures are better than on strangers"
        )

    def tags(self, prefix: str = "leak") -> dict[str, Any]:
        """What a run is tagged with: the sentence, and the counts."""
        counts = {f"{prefix}.{kind}": count for kind, count in self.counts.items()}
        return {f"{prefix}.told": str(self), **counts}


def leak(provenance: Provenance, pictures: Pictures, digest: str | None) -> Leak:
    """Look for a protocol's probes in a model's provenance.

    Args:
        digest: of the data set that the pictures are from, if they are of one.
    """
    names = [pictures.names[i] for i in pictures.probes] if len(pictures.names) else []
    hashes = [pictures.hashes[i] for i in pictures.probes]
    try:
        counts = met(provenance, names, hashes)
    except InputError:
        counts = {}
    same_data = digest is not None and provenance.data.digest == digest
    if same_data and counts:  # whose names tell people apart
        counts |= {f"{part}_similar": 0 for part in ("train", "val")}
    teacher = provenance.teacher
    taught_by = "" if teacher is None else teacher.get("name", "unknown")[:50]
    return Leak(counts, same_data, taught_by)


def split_leak(store: Store, rows: np.ndarray) -> Leak:
    """The same for what is learnt from the store's own training people.

    Args:
        rows: (K,) of the probes.
    """
    counts = {"people": len(np.unique(store.labels[rows])), "pictures": len(rows)}
    for part in ("train", "val"):
        inside = rows[store.split[rows] == part]
        counts[f"{part}_people"] = len(np.unique(store.labels[inside]))
        counts[f"{part}_similar"] = 0
        counts[f"{part}_pictures"] = len(inside)
    return Leak(counts, same_data=True)
