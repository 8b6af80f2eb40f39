"""Draw one page about a model on a data set; MLflow keeps it, without faces and names unless page_faces is true.

A map of the embeddings with a face behind each point, neighbours on click, similarities, ROC, the hardest pairs and
occlusion maps: one HTML file that opens without a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from facerec import plots
from facerec.columns import Column, model_column
from facerec.data.align import AlignSettings
from facerec.data.sources import LayoutSettings
from facerec.data.store import DataSettings, DataText, Store, open_store
from facerec.embedder import FaceEmbedder
from facerec.experiment import check_names
from facerec.measures import Measured
from facerec.model_source import ModelText
from facerec.page import write_html
from facerec.paths import PathText, as_given
from facerec.privacy import may_keep_faces
from facerec.protocols import Identities, identities
from facerec.settings import InputError, validate
from facerec.tables import as_cells
from facerec.tracking import TrackingSettings, reach_tracking, say, track
from facerec.verdict import Calibration
from facerec.verification import power


class PageSettings(LayoutSettings):
    """Which model is shown on which faces."""

    group: ClassVar[str] = "Page"

    model: ModelText = Field(
        "pretrained",
        min_length=1,
        description="Model folder, runs:/ID/model, models:/NAME@ALIAS, pretrained or pretrained-lfw.",
    )
    data: DataText = Field(
        "demo", description="Data set, as in train; cut out as the model was trained on."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Which people; only test was not seen when the model was made."
    )
    cache: PathText | None = Field(
        None,
        description="Folder for decoded pictures; none: FACEREC_CACHE, else the user's cache folder.",
    )
    faces: int = Field(
        2000, ge=2, le=10_000, description="Most faces on the map; whole people are drawn."
    )
    pairs: int = Field(12, ge=0, le=100, description="Hardest pairs of either kind to show.")
    occlusions: int = Field(6, ge=0, le=50, description="Faces to show an occlusion map of.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of which faces, and of t-SNE.")
    device: str = Field("auto", description="Where to compute: auto, cpu, cuda or cuda:N.")


class VisualizeSettings(PageSettings, TrackingSettings):
    """Everything that `visualize` can be told."""

    system_metrics: bool = Field(False, description="Log CPU, memory and GPU use to MLflow.")


class _ModelData(DataSettings, AlignSettings):
    """How a store must be cut for a model."""


SETTINGS = VisualizeSettings


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


def model_store(settings: PageSettings, embedder: FaceEmbedder) -> Store:
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
) -> plots.Report:
    """The page as HTML, and without faces."""
    images, labels = store.images[store.indices(settings.split)], protocol.labels
    measured = measure(protocol, column)
    shown = f"{len(labels):,} pictures of {len(np.unique(labels)):,} people."
    return plots.report_page(
        column.features,
        labels,
        store.names,
        images,
        title=f"{store.name}: {settings.split} people",
        subtitle=f"Model {as_given(settings.model)}",
        notice=f"The model: {column.leak}." if column.leak.found else "",
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
) -> list[plots.Occlusion]:
    """Occlusion maps of one face each of some people: what it shares with their other faces."""
    people, counts = np.unique(labels, return_counts=True)
    people = np.random.default_rng(settings.seed).permutation(people[counts > 1])
    patch = max(4, images.shape[1] // 6)
    shown = []
    for person in people[: settings.occlusions]:
        face, *mates = np.flatnonzero(labels == person)
        loss = plots.occlusion_map(
            embedder.embed_faces, images[face], patch=patch, mate=embeddings[mates].mean(axis=0)
        )
        shown.append(plots.Occlusion(images[face], loss, names[person]))
    return shown
