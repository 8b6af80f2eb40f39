"""Figures and pages of a run: the door to charts.py, sections.py and html.py.

`training_curves`, `similarity_histogram` and `roc_curve` return Plotly figures; `embedding_map` and
`report_page` return whole pages as text; `write_html` writes either to one file that needs no
network. Everything takes plain arrays: nothing here knows a model, a data set or a tracker.

Axes: N faces, E embedding size, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import NamedTuple

import numpy as np

from facerec.report.charts import training_curves
from facerec.report.html import document, figure_block, write_html
from facerec.report.projections import extreme_pairs, normalise, occlusion_map, sample_faces
from facerec.report.roc_charts import Curve, roc_curve, similarity_histogram
from facerec.report.sections import (
    MapSection,
    Metric,
    Occlusion,
    check_faces,
    map_section,
    metrics_section,
    notice_section,
    occlusion_section,
    pairs_section,
)

__all__ = [
    "Metric",
    "Occlusion",
    "embedding_map",
    "evaluation_page",
    "occlusion_map",
    "report_page",
    "roc_curve",
    "similarity_histogram",
    "training_curves",
    "write_html",
]

HOLDS_FACES = (
    "This page holds faces and names of people: pass it on only as you would pass on those."
)
WITHOUT_FACES = "Without faces and names: see page_faces."
PAIR_FACES = 10_000  # among which the hardest pairs are sought; comparing them takes seconds


def embedding_map(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    faces: bool = True,
    title: str = "Map of the embeddings",
    max_faces: int = 2000,
    seed: int = 0,
) -> str:
    """A page with one map: the face on hover, search by name, neighbours on click.

    Args:
        embeddings: (N, E), N at least 2; scaled to unit length here.
        labels: (N,) identity of each face, an index into `names`.
        names: of the people: `names[labels[i]]` is who face i shows. They may hold any characters.
        images: (N, H, W, 3) uint8 RGB.
        faces: show them, and the names; otherwise grey squares and numbers.
        title: plain text.
        max_faces: where there are more, whole people are drawn at random; the page says so.
        seed: of that draw and of t-SNE.

    Returns:
        HTML, for `write_html`.

    Raises:
        ValueError: if the arrays do not belong together or hold non-finite numbers.
    """
    check_faces(embeddings, labels, names, images)
    kept = sample_faces(labels, max_faces, seed)
    section = map_section(
        normalise(embeddings[kept]),
        labels[kept],
        names,
        images[kept],
        total=len(labels),
        seed=seed,
    )
    return _map_page(title, section if faces else section.without_faces(), section.html, "", faces)


class Report(NamedTuple):
    """The page of `visualize`, and the same without anything of a person that could be recognised."""

    page: str
    without_faces: str


def report_page(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    title: str = "Face embeddings",
    subtitle: str = "",
    notice: str = "",
    metrics: Mapping[str, Mapping[str, Metric]] | None = None,
    metrics_note: str = "",
    curve: Curve | None = None,
    thresholds: Mapping[str, float] | None = None,
    occlusions: Sequence[Occlusion] = (),
    pairs: int = 12,
    max_faces: int = 2000,
    seed: int = 0,
) -> Report:
    """The page of `visualize`: metrics, map, similarities, ROC, pairs, occlusion; and without the faces in it.

    Args:
        embeddings, labels, names, images: as in `embedding_map`. The map shows at most
            `max_faces` of them; the hardest pairs are sought among 10,000.
        title, subtitle: plain text.
        notice: a warning shown first, such as that probes were met in training; plain text.
        metrics: column -> figure -> Metric, the model first, then reference lines.
        metrics_note: below the table's heading.
        curve: accepted pairs over thresholds, such as `metrics.all_pairs` returns; without
            it the histograms and the ROC are left out.
        thresholds: to mark in the histograms, by their name: {"FAR 1e-3": 0.41}.
        occlusions: occlusion maps of a few faces.
        pairs: genuine and impostor pairs to show.
        max_faces, seed: as in `embedding_map`.

    Returns:
        Two pages of HTML, for `write_html`.

    Raises:
        ValueError: if the arrays do not belong together or hold non-finite numbers.
    """
    check_faces(embeddings, labels, names, images)
    embeddings = normalise(embeddings)
    kept = sample_faces(labels, max_faces, seed)
    faces = map_section(
        embeddings[kept], labels[kept], names, images[kept], total=len(labels), seed=seed
    )
    among = sample_faces(labels, PAIR_FACES, seed)
    genuine, impostor = extreme_pairs(embeddings[among], labels[among], pairs)
    pictures, pair_styles = pairs_section(genuine, impostor, labels[among], names, images[among])
    figures = [
        notice_section(notice),
        metrics_section(metrics, metrics_note) if metrics else "",
        faces.html,
        _curves({"model": curve}, thresholds) if curve is not None else "",
    ]
    whole = replace(faces, styles=faces.styles + pair_styles)
    people = [pictures, occlusion_section(occlusions)]
    return Report(
        _map_page(title, whole, "\n".join(figures + people), subtitle, faces=True),
        _map_page(title, faces.without_faces(), "\n".join(figures), subtitle, faces=False),
    )


def _map_page(title: str, section: MapSection, body: str, subtitle: str, faces: bool) -> str:
    """A page with a map in it; whether it holds faces stands below its title."""
    told = HOLDS_FACES if faces else WITHOUT_FACES
    return document(
        title,
        body,
        subtitle=" ".join(filter(None, [subtitle and subtitle.rstrip(".") + ".", told])),
        data={"map": section.data},
        styles=section.styles + section.sheets,
        scripts=("map.js",),
    )


def evaluation_page(
    metrics: Mapping[str, Mapping[str, Metric]],
    curves: Mapping[str, Curve] | None = None,
    *,
    title: str = "Evaluation",
    subtitle: str = "",
    notice: str = "",
    metrics_note: str = "",
    thresholds: Mapping[str, float] | None = None,
) -> str:
    """A page of figures alone: several models in one table and one ROC.

    Args:
        metrics: column -> figure -> Metric; models first, then reference lines.
        curves: one a model; the histograms are those of the first.
        title, subtitle, notice, metrics_note, thresholds: as in `report_page`.

    Returns:
        HTML, for `write_html`.
    """
    body = [
        notice_section(notice),
        metrics_section(metrics, metrics_note),
        _curves(curves, thresholds) if curves else "",
    ]
    return document(title, "\n".join(body), subtitle=subtitle)


def _curves(curves: Mapping[str, Curve], thresholds: Mapping[str, float] | None) -> str:
    name, first = next(iter(curves.items()))
    of = f" of {escape(name)}" if len(curves) > 1 else ""
    histogram = figure_block(
        similarity_histogram(first, thresholds), "similarities", "Histograms of similarity"
    )
    roc = figure_block(roc_curve(curves), "roc", "ROC curve")
    return (
        f'<div class="split"><section class="card"><h2>Genuine and impostor similarities{of}</h2>'
        '<p class="note">The less the two overlap, the better; dotted lines are thresholds.</p>'
        f'{histogram}</section><section class="card"><h2>ROC</h2>'
        '<p class="note">Shaded: fewer than 10 false accepts, where the curve is chance.</p>'
        f"{roc}</section></div>"
    )
