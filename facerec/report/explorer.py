"""What `visualize` does: one page about a model on a data set, and how its thresholds and data are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facerec.config.recipe import validate
from facerec.data.settings import AlignSettings, DataSettings, LayoutSettings
from facerec.data.store import Store, open_store
from facerec.errors import InputError
from facerec.evaluation.candidates import Column, model_column
from facerec.evaluation.protocols import Identities, identities
from facerec.evaluation.scores import Measured
from facerec.evaluation.verification import power
from facerec.inference.calibration import Calibration
from facerec.inference.embedder import FaceEmbedder
from facerec.report import pages
from facerec.report.html import write_html
from facerec.report.settings import PageSettings, ProtocolSettings, VisualizeSettings
from facerec.report.tables import as_cells
from facerec.runtime.console import say
from facerec.runtime.paths import as_given
from facerec.tracking.address import reach_tracking
from facerec.tracking.experiment import check_names
from facerec.tracking.lifecycle import track
from facerec.tracking.settings import may_keep_faces


class _ModelData(DataSettings, AlignSettings):
    """How a store must be cut for a model."""


def run(settings: VisualizeSettings, config: str | None = None) -> None:
    """Embeds the faces, draws the page and logs it.

    Args:
        config: name of the recipe that the settings come from, for the record.

    Raises:
        InputError: the model or the data cannot be used, or hold fewer than two faces.
    """
    check_names(settings)
    embedder = FaceEmbedder.load(settings.model, settings.device)
    reach_tracking(settings)
    store = model_store(settings, embedder)
    protocol = identities(store, settings.split)
    if len(protocol.labels) < 2:
        raise InputError(f"split={settings.split}: {store.name} has one picture in it, two are due")
    with track(settings) as mlflow_run:
        mlflow_run.log_settings(settings, config)
        mlflow_run.log_data(store, settings.split)
        column = model_column(embedder, protocol.pictures, store, flip=False)
        assert column.leak is not None  # of a model
        mlflow_run.tag(column.leak.tags())
        if column.leak.found:
            say(f"the model: {column.leak}")
        report = draw(settings, embedder, store, protocol, column)
        folder = Path(settings.output) / mlflow_run.id
        path = kept = write_html(report.page, folder / "embeddings.html")
        if not may_keep_faces(settings, store.layout):
            kept = write_html(report.without_faces, folder / "embeddings_without_faces.html")
        mlflow_run.log_file(kept)
        say(f"page: {path.resolve()}; in MLflow run {mlflow_run.id}: {kept.name}")
        if kept != path:
            say("faces and names stay on this machine: --page-faces true lets MLflow keep them")


def model_store(settings: PageSettings | ProtocolSettings, embedder: FaceEmbedder) -> Store:
    """The data set, cut out as the model was trained, and split as then where it is the model's own."""
    config = embedder.config
    wanted = {
        "data": settings.data,
        **{name: getattr(settings, name) for name in LayoutSettings.model_fields},
        "cache": settings.cache,
        "image_size": config.image_size,
        "crop": config.crop,
        "align": config.align,
        "face_choice": config.face_choice,
    }
    store = open_store(validate(_ModelData, wanted, lambda key: f"model {settings.model}"))
    data = embedder.provenance.data
    if data.digest == store.digest:
        return store.split_as(2 if data.split_version == 2 else 1)
    return store


def draw(
    settings: PageSettings,
    embedder: FaceEmbedder,
    store: Store,
    protocol: Identities,
    column: Column,
) -> pages.Report:
    """The page as HTML, and without faces."""
    images, labels = store.images[store.indices(settings.split)], protocol.labels
    measured = measure(protocol, column)
    shown = f"{len(labels):,} pictures of {len(np.unique(labels)):,} people."
    return pages.report_page(
        column.features,
        labels,
        store.names,
        images,
        title=f"{store.name}: {settings.split} people",
        subtitle=f"Model {as_given(settings.model)}",
        notice=f"The model: {column.leak}." if column.leak and column.leak.found else "",
        metrics={"model": as_cells(measured.figures)} if measured.figures else None,
        metrics_note=f"{shown} {protocol.note} Brackets hold 95 % intervals.",
        curve=measured.curve,
        thresholds=thresholds(embedder.calibration),
        occlusions=occlusions(settings, embedder, column.features, labels, store.names, images),
        pairs=settings.pairs,
        max_faces=settings.faces,
        seed=settings.seed,
    )


def measure(protocol: Identities, column: Column) -> Measured:
    """The model's figures; none where nobody has two pictures, or all are of one person."""
    try:
        return protocol.measure(column.features, column.usable, column.threshold)
    except InputError as error:
        say(f"no figures: {error}")
        return Measured()


def thresholds(calibration: Calibration) -> dict[str, float]:
    """The model's own, from its validation people, where enough pairs stand behind them."""
    return {
        f"FAR {power(entry.far)}": entry.threshold
        for entry in calibration.thresholds
        if entry.measurable
    }


def occlusions(
    settings: PageSettings,
    embedder: FaceEmbedder,
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: list[str],
    images: np.ndarray,
) -> list[pages.Occlusion]:
    """Occlusion maps of one face each of some people: what it shares with their other faces."""
    people, counts = np.unique(labels, return_counts=True)
    people = np.random.default_rng(settings.seed).permutation(people[counts > 1])
    patch = max(4, images.shape[1] // 6)
    shown = []
    for person in people[: settings.occlusions]:
        face, *mates = np.flatnonzero(labels == person)
        loss = pages.occlusion_map(
            embedder.embed_faces, images[face], patch=patch, mate=embeddings[mates].mean(axis=0)
        )
        shown.append(pages.Occlusion(images[face], loss, names[person]))
    return shown
