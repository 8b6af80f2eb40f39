"""Whoever starts a command says by the umask who may read what it writes: stores, models, pages, artifacts."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator

import mlflow
import pytest
import torch

from facerec.data.settings import DataSettings
from facerec.data.store import open_store
from facerec.report.html import write_html
from facerec.tracking.outbox import Outbox
from facerec.tracking.registry import log_model
from facerec.training.checkpoint import Checkpoints
from tests.helpers.image_files import people
from tests.helpers.models import make_model


@pytest.fixture(params=[0o077, 0o027, 0o022], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_every_file_and_folder_is_for_whom_the_umask_says(tmp_path, own_tracking, umask):
    for number in range(2):  # a folder and an archive
        faces = people(tmp_path / "faces", "Ann Bob Cy", 2)
        if number:
            with tarfile.open(tmp_path / "faces.tar", "w") as tar:
                tar.add(faces, "faces")
            faces = tmp_path / "faces.tar"
        made = tmp_path / "made"
        settings = DataSettings(data=str(faces), image_size=16, cache=str(made / "cache"))
        open_store(settings, progress=False)
    Checkpoints(made / "run" / "checkpoints").save(1, {"weight": torch.zeros(1)}, {})
    write_html("<html>", made / "run" / "page.html", "Page")
    box = Outbox(made / "run" / "outbox.jsonl", lambda entry, again: None)
    box.closed = True  # it sends nothing, so the file stays
    box.put({"tags": {}})
    make_model(made / "model")
    with mlflow.start_run(experiment_id=mlflow.set_experiment("facerec").experiment_id):
        log_model(made / "model")
    found = [*made.rglob("*"), *(own_tracking / "artifacts").rglob("*")]
    assert {"images.u8", "0.png", "weights.safetensors", "pyfunc.py"} <= {p.name for p in found}
    wrong = {
        str(path): oct(mode)
        for path in found
        if (mode := path.stat().st_mode & 0o777) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert not wrong
