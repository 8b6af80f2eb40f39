"""What a training leaves behind: the best weights as a model in MLflow, the last ones beside it, and pages."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mlflow.exceptions import MlflowException

from facerec.errors import InputError
from facerec.evaluation.calibrate import calibration
from facerec.inference.calibration import Calibration
from facerec.inference.embed import embed_pictures
from facerec.inference.model_io import WEIGHTS, write_model
from facerec.inference.provenance import Provenance, model_card, provenance
from facerec.report import pages
from facerec.report.html import write_html
from facerec.runtime.console import say
from facerec.runtime.mlflow_errors import reason_of
from facerec.runtime.text import brief
from facerec.tracking.registry import log_model
from facerec.tracking.run import Run
from facerec.tracking.settings import may_keep_faces
from facerec.training.checkpoint import Checkpoints
from facerec.training.distillation.teacher import TEACHERS
from facerec.training.settings import TrainSettings
from facerec.training.trainer import Trainer

MAP_FACES = 2000


def keep_results(
    trainer: Trainer,
    run: Run,
    settings: TrainSettings,
    folder: Path,
    references: Mapping[str, float],
) -> None:
    """Writes, then logs model and pages of a training that has ended, or was stopped, and says where they are.

    Args:
        settings: TrainSettings of the run.
        folder: the run's own, on disk.
        references: Recall@1 of features that know nothing of faces, by name.

    Raises:
        InputError: if the disk is full, the tracking store is away (all is in `folder` then), or the store was altered.
    """
    last = trainer.average.network.state_dict()
    Checkpoints(folder / "last", keep=1).save(trainer.step, last, {})
    network, store, rows = trainer.average.network, trainer.store, trainer.val_indices
    network.load_state_dict(trainer.best)
    best = trainer.best_row()
    run.tag({"best.epoch": int(best["epoch"])})
    if best["epoch"] == 0 and len(trainer.history) > 1:
        say(
            "no epoch was better on the validation people than the weights at the start, so those are kept: "
            "train for longer, or at another lr"
        )
    if trainer.initial is not None:
        tell_gain(trainer, run, trainer.initial, best)
    store.check_unaltered()
    embeddings = embed_pictures(network, store.images, rows, trainer.device) if len(rows) else None
    teacher = None
    if settings.teacher:
        blends = {"blends": str(settings.blends)} if settings.blends else {}
        teacher = TEACHERS[settings.teacher].about | blends
    recipe = settings.model_copy(update={"precision": trainer.precision})  # what `auto` meant
    made_from = provenance(store, recipe, trainer.initial, run_id=run.id, teacher=teacher)
    figures = {name: value for name, value in best.items() if name.startswith("val/")}
    write_model(
        folder / "model",
        network.cpu(),
        settings,
        calibration=Calibration()
        if embeddings is None
        else calibration(embeddings, store.labels[rows]),
        provenance=made_from,
        card=model_card(settings, figures, made_from),
    )
    faces = may_keep_faces(settings, store.layout)
    curves = draw_curves(trainer, folder, references)
    maps = [] if embeddings is None else [draw_map(trainer, folder, embeddings.numpy(), faces)]
    run.deliver()
    try:
        for path in (curves, *maps):
            run.log_file(path)
        run.log_file(folder / "last", "last")
        weights = hashlib.sha256((folder / "model" / WEIGHTS).read_bytes()).hexdigest()
        if (
            run.tags().get("model.sha256") != weights
        ):  # there already, where a run is resumed in vain
            log_model(folder / "model", run.id)
            run.tag({"model.sha256": weights})
    # ImportError: of a store's client.
    except (InputError, MlflowException, OSError, ImportError) as error:
        raise run.kept(brief(reason_of(error))) from error
    say(f"model: runs:/{run.id}/model (epoch {int(best['epoch'])}); files in {folder}")


def tell_gain(trainer: Trainer, run: Run, initial: Provenance, best: Mapping[str, float]) -> None:
    """Says and logs what was gained over the model with the provenance `initial`."""
    run.tag({"init.run": initial.run_id or "unknown"})
    if "val/map_at_r" in best:
        gain = best["val/map_at_r"] - trainer.history[0]["val/map_at_r"]
        run.log_metrics({"val/map_at_r_gain": gain}, step=int(best["epoch"]), once=True)
        say(f"gain over the initial model: val MAP@R {gain:+.4f}")


def draw_curves(trainer: Trainer, folder: Path, references: Mapping[str, float]) -> Path:
    """The page of the run's curves."""
    lines = {name.replace("_", " "): value for name, value in references.items()}
    curves = pages.training_curves(trainer.history, lines)
    return write_html(curves, folder / "training_curves.html", "Training curves")


def draw_map(trainer: Trainer, folder: Path, embeddings: np.ndarray, faces: bool) -> Path:
    """The page with the map of the validation people.

    Args:
        faces: show their faces and names; otherwise grey squares and numbers.
    """
    store, rows = trainer.store, trainer.val_indices[:MAP_FACES]
    page = pages.embedding_map(
        embeddings[:MAP_FACES],
        store.labels[rows],
        store.names,
        store.images[rows],
        faces=faces,
        title="Validation people",
    )
    return write_html(page, folder / "embedding_map.html", "Validation people")
