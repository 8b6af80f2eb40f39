"""Draw one page about a model on a data set, and keep it in MLflow.

A map of the embeddings with a face behind each point, neighbours on click, similarities, ROC, the hardest pairs and
occlusion maps: one HTML file that opens without a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from tqdm import tqdm

from facerec import plots
from facerec.data.align import AlignSettings
from facerec.data.store import DataSettings, Store, open_store
from facerec.embedder import FaceEmbedder
from facerec.intervals import bootstrap
from facerec.metrics import all_pairs, retrieval
from facerec.page import write_html
from facerec.provenance import met
from facerec.settings import InputError, Settings, validate
from facerec.tracking import TrackingSettings, reach_tracking, say, track
from facerec.verification import FARS, Verification

BATCH = 256
RETRIEVAL = {"recall_at_1": "Recall@1", "r_precision": "R-Precision", "map_at_r": "MAP@R"}


class PageSettings(Settings):
    """Which model is shown on which faces."""

    group: ClassVar[str] = "Page"

    model: str = Field(
        "pretrained",
        min_length=1,
        description="Model folder, runs:/ID/model, models:/NAME@ALIAS, pretrained or pretrained-lfw.",
    )
    data: str = Field(
        "demo", description="Data set, as in train; cut out as the model was trained on."
    )
    split: Literal["train", "val", "test", "all"] = Field(
        "test", description="Which people; only test was not seen when the model was made."
    )
    cache: str | None = Field(
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
    embedder = FaceEmbedder.load(settings.model, settings.device)
    reach_tracking()
    store = model_store(settings, embedder)
    rows = store.indices(settings.split)
    if len(rows) < 2:
        raise InputError(f"split={settings.split}: {store.name} has {len(rows)} pictures in it")
    with track(settings) as mlflow_run:
        mlflow_run.log_settings(settings, config)
        mlflow_run.log_data(store, settings.split)
        seen = leak(embedder, store, rows)
        mlflow_run.tag({f"leak.{name}": count for name, count in seen.items()})
        notice = leak_notice(seen, settings.split, same_data=is_same_data(embedder, store))
        if notice:
            say(notice)
        page = draw(settings, embedder, store, rows, notice)
        path = Path(settings.output) / mlflow_run.id / "embeddings.html"
        mlflow_run.log_file(write_html(page, path))
        say(f"page: {path.resolve()}, and in MLflow run {mlflow_run.id} as embeddings.html")


def model_store(settings: PageSettings, embedder: FaceEmbedder) -> Store:
    """The data set, cut out as the model was trained."""
    config = embedder.config
    wanted = {
        "data": settings.data,
        "cache": settings.cache,
        "image_size": config.image_size,
        "crop": config.crop,
        "align": config.align,
        "face_choice": config.face_choice,
    }
    return open_store(validate(_ModelData, wanted, lambda key: f"model {settings.model}"))


def leak(embedder: FaceEmbedder, store: Store, rows: np.ndarray) -> dict[str, int]:
    """How many of the people and pictures the model has met; empty where it cannot say."""
    names = {store.names[label] for label in store.labels[rows]}
    try:
        return met(embedder.provenance, names, (store.picture_hashes[row] for row in rows))
    except InputError:
        return {}


def is_same_data(embedder: FaceEmbedder, store: Store) -> bool:
    """Whether the model was made from this very data set, so that equal names are one person."""
    return embedder.provenance.get("data", {}).get("digest") == store.digest


def leak_notice(seen: Mapping[str, int], split: str, same_data: bool) -> str:
    """What the page says first about people whom the model knows; empty if there are none."""
    if not seen:
        return (
            "The model does not say whom it was trained on: whether it knows these people is open."
        )
    verb = "were" if same_data else "may have been"
    parts = []
    for part, use in (("train", "trained on"), ("val", "tuned on")):
        people, pictures = seen[f"{part}_people"], seen[f"{part}_pictures"]
        if people or pictures:
            parts.append(
                f"{people:,} of these {seen['people']:,} people {verb} {use}, and "
                f"{pictures:,} of the {seen['pictures']:,} pictures were"
            )
    return f"{'; '.join(parts)}. What this page shows is better than on strangers." if parts else ""


def draw(
    settings: PageSettings, embedder: FaceEmbedder, store: Store, rows: np.ndarray, notice: str
) -> str:
    """The page as HTML."""
    images, labels = store.images[rows], store.labels[rows]
    embeddings = embed(embedder, images)
    curve = pairs_curve(embeddings, labels)
    metrics = {"model": figures(embeddings, labels, curve)} if curve else None
    return plots.report_page(
        embeddings,
        labels,
        store.names,
        images,
        title=f"{store.name}: {settings.split} people",
        subtitle=f"Model {settings.model}",
        notice=notice,
        metrics=metrics,
        metrics_note=(
            f"{len(rows):,} pictures of {len(np.unique(labels)):,} people; brackets hold 95 % intervals, "
            "bootstrapped over people. Pairs are all pairs of two pictures."
        ),
        curve=curve,
        thresholds=thresholds(embedder.calibration),
        occlusions=occlusions(settings, embedder, embeddings, labels, store.names, images),
        pairs=settings.pairs,
        max_faces=settings.faces,
        seed=settings.seed,
    )


def embed(embedder: FaceEmbedder, faces: np.ndarray) -> np.ndarray:
    """(N, E) embeddings of (N, S, S, 3) faces, with a bar."""
    starts = tqdm(range(0, len(faces), BATCH), desc="embedding", unit_scale=BATCH, unit="face")
    return np.concatenate([embedder.embed_faces(faces[at : at + BATCH]) for at in starts])


def pairs_curve(embeddings: np.ndarray, labels: np.ndarray) -> Verification | None:
    """All pairs; None where nobody has two pictures, or all are of one person."""
    counts = np.unique(labels, return_counts=True)[1]
    return all_pairs(embeddings, labels) if len(counts) > 1 and counts.max() > 1 else None


def figures(
    embeddings: np.ndarray, labels: np.ndarray, curve: Verification
) -> dict[str, plots.Metric]:
    """The table's rows."""
    found = retrieval(embeddings, labels)
    table = {}
    for name, values in found.per_probe().items():
        figure = bootstrap(values, found.identity)
        table[RETRIEVAL[name]] = plots.Metric(figure.value, figure.low, figure.high)
    table["ROC AUC"] = plots.Metric(curve.auc)
    table["EER"] = plots.Metric(curve.eer)
    for far in FARS:
        rate = curve.tar_at_far(far)
        value = plots.Metric(rate.tar) if rate.measurable else plots.Metric(None, note=str(rate))
        table[f"TAR at FAR {far:g}"] = value
    return table


def thresholds(calibration: Mapping[str, Any]) -> dict[str, float]:
    """The model's own, from its validation people, where enough pairs stand behind them."""
    return {
        f"FAR {entry['far']:g}": float(entry["threshold"])
        for entry in calibration.get("thresholds", [])
        if entry["measurable"]
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
