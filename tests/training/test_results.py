"""What a training leaves behind: faces and names on its map only where they were asked for."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from facerec.inference.provenance import provenance
from facerec.report.pages import HOLDS_FACES
from facerec.training.export import draw_map
from tests.helpers.trainers import colored_squares


@pytest.mark.parametrize("faces", [True, False])
def test_the_map_shows_people_only_where_asked(tmp_path, faces):
    store = dataclasses.replace(colored_squares(), names=[f"Jane Doe {i}" for i in range(16)])
    trainer = SimpleNamespace(store=store, val_indices=store.indices("val"))
    embeddings = np.random.default_rng(0).normal(size=(len(trainer.val_indices), 8))
    page = draw_map(trainer, tmp_path, embeddings, faces).read_text(encoding="utf-8")
    assert ("Jane Doe" in page) == faces and (HOLDS_FACES in page) == faces
    assert ("Without faces and names" in page) != faces


def test_provenance_tells_no_folder_of_the_user():
    settings = {
        "data": "/home/jane/faces",
        "init": "/home/jane/models/first",
        "model": "runs:/0123/model",
        "lr": "0.1",
    }
    made = provenance(colored_squares(), {**settings, "output": "C:/Users/jane/out"})
    assert "jane/models" not in str(made) and "/home" not in str(made)
    assert made.recipe["init"] == "first" and made.recipe["model"] == "runs:/0123/model"
