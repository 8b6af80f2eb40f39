"""Figures and pages of a run: the door to figures.py, sections.py and page.py.

`training_curves`, `similarity_histogram` and `roc_curve` return Plotly figures; `embedding_map` and
`report_page` return whole pages as text; `write_html` writes either to one file that needs no
network. Everything takes plain arrays: nothing here knows a model, a data set or a tracker.

Axes: N faces, E embedding size, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facerec.explore import normalise, sample_faces
from facerec.figures import training_curves
from facerec.page import document, write_html
from facerec.sections import check_faces, map_section

__all__ = ["embedding_map", "training_curves", "write_html"]


def embedding_map(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    title: str = "Map of the embeddings",
    subtitle: str = "",
    max_faces: int = 2000,
    seed: int = 0,
) -> str:
    """A page with one map: the face on hover, search by name, neighbours on click.

    Args:
        embeddings: (N, E), N at least 2; scaled to unit length here.
        labels: (N,) identity of each face, an index into `names`.
        names: of the people: `names[labels[i]]` is who face i shows. They may hold any characters.
        images: (N, H, W, 3) uint8 RGB.
        title, subtitle: plain text.
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
    return document(
        title,
        section.html,
        subtitle=subtitle,
        data={"map": section.data},
        styles=section.styles,
        scripts=("map.js",),
    )
