"""What pages are made of, and a reader of what they hold."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np

EVIL = "Eve </script><script>alert(1)</script> <b>\"'&amp; <!-- \u2028 é"


HISTORY = [
    {
        "epoch": epoch,
        "train/loss": 0.2 / epoch,
        "train/lr": 1e-3,
        "train/triplets": 1000.0 / epoch,
        "val/recall_at_1": recall,
        "val/map_at_r": recall / 2,
    }
    for epoch, recall in enumerate((0.2, 0.7, 0.6), start=1)
]


def faces(people: int = 6, each: int = 4, size: int = 24, seed: int = 0):
    """Embeddings in one cluster a person, with a picture of its own colour for each."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), each)
    centres = rng.normal(size=(people, 16))
    embeddings = centres[labels] + 0.2 * rng.normal(size=(len(labels), 16))
    images = np.broadcast_to(
        rng.integers(0, 256, (len(labels), 1, 1, 3), dtype=np.uint8), (len(labels), size, size, 3)
    )
    names = [f"Person_{n}" for n in range(people)]
    return embeddings.astype(np.float32), labels, names, images


def curve(genuine, impostor) -> SimpleNamespace:
    """A curve over the given similarities, worked out the plain way."""
    thresholds = np.unique(np.concatenate([genuine, impostor]))[::-1]
    accepted = [
        np.array([(np.asarray(kind) >= t).sum() for t in thresholds])
        for kind in (genuine, impostor)
    ]
    return SimpleNamespace(
        thresholds=thresholds, true_accepts=accepted[0], false_accepts=accepted[1]
    )


class Reader(HTMLParser):
    """The scripts of a page, and every address that it names outside of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict, str]] = []
        self.addresses: list[str] = []
        self.text: list[str] = []
        self._script: dict | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.addresses += [found[name] for name in ("src", "href", "action") if name in found]
        if tag == "script":
            self._script = found
            self.scripts.append((found, ""))

    def handle_endtag(self, tag):
        if tag == "script":
            self._script = None

    def handle_data(self, data):
        if self._script is None:
            self.text.append(data)
        else:
            self.scripts[-1] = (self._script, self.scripts[-1][1] + data)

    def json(self, key: str):
        return json.loads(next(body for head, body in self.scripts if head.get("id") == key))
