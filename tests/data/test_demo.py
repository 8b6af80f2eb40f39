"""Rendered people: the same everywhere, and hard enough for features that look at no face."""

from __future__ import annotations

import hashlib

import numpy as np

from facerec.data.demo.person import Person
from facerec.data.demo.render import (
    PEOPLE,
    PICTURES,
    SEED,
    VERSION,
    color_histogram,
    demo_faces,
    raw_pixels,
    render,
)
from facerec.data.settings import DataSettings
from facerec.data.splits import split_by_identity
from facerec.data.store import open_store

PIXELS = "19b653d4cb0825b3"  # of VERSION 1; a new digest needs a new VERSION


def test_pixels_are_the_same_on_every_machine() -> None:
    digest = hashlib.sha256()
    for number in range(0, PEOPLE, 40):
        for k in range(PICTURES):
            digest.update(render(Person(SEED, number), number, k).tobytes())
    assert (VERSION, digest.hexdigest()[:16]) == (1, PIXELS)


def test_neither_pixels_nor_colours_tell_who_it_is() -> None:
    people = [f"person_{i:03d}" for i in range(PEOPLE)]
    parts = split_by_identity([name for name in people for _ in range(PICTURES)])
    val = [i for i, name in enumerate(people) if parts[name] == "val"]
    images = np.stack([render(Person(SEED, i), i, k) for i in val for k in range(PICTURES)])
    labels = np.repeat(val, PICTURES)
    for features in (raw_pixels(images), color_histogram(images)):
        assert features.dtype == np.float32 and features.shape[0] == len(images)
        similarity = features @ features.T
        np.fill_diagonal(similarity, -np.inf)
        recall = (labels[similarity.argmax(1)] == labels).mean()
        assert 0.1 < recall < 0.5


def test_demo_is_rendered_once_and_opens_as_a_store(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("facerec.data.demo.render.PEOPLE", 12)
    got = open_store(DataSettings(image_size=32, cache=str(tmp_path)), progress=False)
    assert got.layout == got.name == "demo" and got.images.shape == (12 * PICTURES, 32, 32, 3)
    assert (got.images[5] != got.images[6]).any() and len(set(got.picture_hashes)) == len(got.paths)
    folder = demo_faces(tmp_path)
    made = folder.stat().st_mtime_ns
    assert demo_faces(tmp_path).stat().st_mtime_ns == made
