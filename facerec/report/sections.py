"""The sections of a page about embeddings: map, metrics, pairs, occlusion, notice.

Each returns HTML that is already escaped.

Axes: N faces, E embedding size, K neighbours, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from facerec.report.html import asset, image_uri, light, sprite, sprite_css
from facerec.report.projections import Pairs, neighbours, pca, tsne

TSNE_NOTE = (
    "t-SNE keeps neighbourhoods: faces close together are similar, while the size of a cluster "
    "and the distance between clusters mean little."
)


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Attributes:
        value: None where it cannot be measured; `note` then says why.
        low, high: 95 % interval, where there is one.
        note: a few words beside the figure.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Occlusion:
    """An occlusion map to be shown.

    Attributes:
        image: (H, W, 3) uint8.
        loss: (H', W') similarity lost with a patch over each place, from `occlusion_map`.
        caption: plain text, such as the person's name.
    """

    image: np.ndarray
    loss: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class MapSection:
    """The map: its HTML, its CSS, the CSS with the faces, and what the script reads."""

    html: str
    styles: str
    sheets: str
    data: dict[str, Any]

    def without_faces(self) -> MapSection:
        """The same map of nobody in particular: grey squares and numbers."""
        people = [f"person {number}" for number in range(1, len(self.data["people"]) + 1)]
        grey = f'[class*="{self.data["faces"]["prefix"]}-"]{{background:#888}}'
        return MapSection(self.html, self.styles, grey, {**self.data, "people": people})


def check_faces(
    embeddings: np.ndarray, labels: np.ndarray, names: Sequence[str], images: np.ndarray
) -> None:
    """Refuse arrays that do not belong together.

    Raises:
        ValueError: naming the array that does not fit.
    """
    if len(labels) != len(embeddings) or np.ndim(labels) != 1:
        raise ValueError(f"{np.shape(labels)} labels for {len(embeddings)} embeddings")
    if images.shape[:1] != (len(embeddings),) or images.shape[3:] != (3,):
        raise ValueError(f"images must be ({len(embeddings)}, H, W, 3), not {images.shape}")
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, not {images.dtype}")
    if len(labels) and not 0 <= np.min(labels) <= np.max(labels) < len(names):
        raise ValueError(f"labels reach {np.max(labels)}, but there are {len(names)} names")


def map_section(
    embeddings: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    total: int | None = None,
    near: int = 12,
    thumbnail: int = 64,
    dimensions: Sequence[int] = (2, 3),
    seed: int = 0,
) -> MapSection:
    """The map of the embeddings with search, thumbnails and neighbours.

    Args:
        embeddings: (N, E) of unit length.
        labels: (N,) index into `names`.
        names: of the people.
        images: (N, H, W, 3) uint8.
        total: faces that there were before sampling; N where None.
        near: neighbours a face.
        thumbnail: longest side of a thumbnail in pixels.
        dimensions: of the maps to offer, 2 first.
        seed: of t-SNE.
    """
    index, similarity = neighbours(embeddings, near)
    people, labels = np.unique(labels, return_inverse=True)
    sheets, faces = sprite_css(images, "sheet", size=thumbnail)
    data = {
        "people": [shown_name(names[person]) for person in people],
        "labels": labels.tolist(),
        "faces": faces,
        "near": {
            "count": index.shape[1],
            "index": index.ravel().tolist(),
            "similarity": np.rint(similarity * 1000).astype(int).ravel().tolist(),
        },
        "views": _views(embeddings, dimensions, seed),
    }
    height, width = images.shape[1:3]
    ratio = f":root{{--face-ratio:{width}/{height}}}"
    note = _map_note(len(embeddings), len(people), total or len(embeddings))
    html = asset("map.html").replace("{{note}}", escape(note))
    return MapSection(html, f"{asset('map.css')}{ratio}\n", sheets, data)


def _map_note(faces: int, people: int, total: int) -> str:
    shown = f"{faces:,} faces of {people:,} people"
    if total > faces:
        shown += f", drawn at random from {total:,} faces; neighbours are sought among these"
    return f"{shown}. Each point is a face, at the place of its embedding."


def _views(embeddings: np.ndarray, dimensions: Sequence[int], seed: int) -> list[dict[str, Any]]:
    components, shares = pca(embeddings, 3)
    axes = [f"PC {n} ({share:.1%} of the variance)" for n, share in enumerate(shares, start=1)]
    views = []
    for d in dimensions:
        kept = f"The first {d} principal components keep {shares[:d].sum():.1%} of the variance."
        views.append(_view("PCA", components[:, :d], axes[:d], kept))
        views.append(_view("t-SNE", tsne(embeddings, d, seed=seed), [""] * d, TSNE_NOTE))
    return views


def _view(method: str, points: np.ndarray, axes: list[str], note: str) -> dict[str, Any]:
    """A projection as the script reads it, with four digits across its range."""
    extent = float(np.abs(points).max()) or 1.0
    columns = [[round(float(v), 4) for v in column] for column in points.T / extent]
    return {
        "method": method,
        "dimensions": points.shape[1],
        "points": columns,
        "axes": axes,
        "note": note,
    }


def shown_name(name: str) -> str:
    """A folder's name as a person's: with spaces for underscores."""
    return str(name).replace("_", " ").strip() or "(no name)"


def notice_section(notice: str) -> str:
    """A warning above everything else, such as that probes were met in training."""
    if not notice:
        return ""
    return f'<p class="notice" role="note"><strong>Note.</strong> {escape(notice)}</p>'


def metrics_section(columns: Mapping[str, Mapping[str, Metric]], note: str = "") -> str:
    """The table of figures, one column a model or reference line.

    Args:
        columns: name of the column -> name of the figure -> the figure. The first column is the
            one the page is about, and gets bars.
        note: below the heading.
    """
    rows = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = []
    for row in rows:
        cells = (
            _metric_cell(figures.get(row), bar=number == 0)
            for number, figures in enumerate(columns.values())
        )
        body.append(f'<tr><th scope="row">{escape(row)}</th>{"".join(cells)}</tr>')
    return (
        '<section class="card" id="metrics"><h2>Metrics</h2>'
        f'<p class="note">{escape(note or "Brackets hold 95 % intervals.")}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Metrics">'
        f"<table><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div></section>"
    )


def _metric_cell(metric: Metric | None, bar: bool) -> str:
    if metric is None:
        return '<td><span class="interval">–</span></td>'
    note = f'<span class="interval">{escape(metric.note)}</span>' if metric.note else ""
    if metric.value is None:
        return f"<td>{note or 'not measurable'}</td>"
    interval = ""
    if metric.low is not None and metric.high is not None:
        interval = f'<span class="interval">[{metric.low:.3f}, {metric.high:.3f}]</span>'
    drawn = (
        _metric_bar(metric.value, metric.low, metric.high) if bar and 0 <= metric.value <= 1 else ""
    )
    return f"<td><b>{metric.value:.3f}</b> {interval} {note}{drawn}</td>"


def _metric_bar(value: float, low: float | None, high: float | None) -> str:
    low = value if low is None else max(low, 0.0)
    high = value if high is None else min(high, 1.0)
    return (
        '<span class="meter" aria-hidden="true">'
        f'<i style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
        f'<b style="left:{100 * value:.2f}%"></b></span>'
    )


def pairs_section(
    genuine: Pairs,
    impostor: Pairs,
    labels: np.ndarray,
    names: Sequence[str],
    images: np.ndarray,
    *,
    size: int = 112,
) -> tuple[str, str]:
    """The hardest genuine and the most confusable impostor pairs, as pictures.

    Returns:
        HTML, and the CSS with the pictures.
    """
    ends = np.unique(np.concatenate([genuine.left, genuine.right, impostor.left, impostor.right]))
    styles, layout = sprite_css(images[ends], "pair", size=size, quality=80, per_sheet=256)

    def picture(face: int) -> str:
        return sprite(layout, int(np.searchsorted(ends, face)), shown_name(names[labels[face]]))

    def listing(pairs: Pairs) -> str:
        items = []
        for a, b, score in zip(pairs.left, pairs.right, pairs.similarity, strict=True):
            people = dict.fromkeys(shown_name(names[labels[face]]) for face in (a, b))
            captions = "".join(f'<span class="who">{escape(name)}</span>' for name in people)
            value = f'<span class="value">{score:.3f}</span>'.replace("-0", "\N{MINUS SIGN}0")
            items.append(f"<li>{picture(a)}{picture(b)}{value}{captions}</li>")
        return f'<ul class="pairs">{"".join(items)}</ul>' if items else '<p class="note">None.</p>'

    return (
        '<div class="split"><section class="card" id="genuine-pairs">'
        "<h2>Hardest genuine pairs</h2>"
        '<p class="note">One person, the lowest similarity first. No face is shown twice.</p>'
        f'{listing(genuine)}</section><section class="card" id="impostor-pairs">'
        "<h2>Most confusable impostor pairs</h2>"
        '<p class="note">Two people, the highest similarity first; a wrong label shows here too.</p>'
        f"{listing(impostor)}</section></div>",
        styles,
    )


def occlusion_section(maps: Sequence[Occlusion]) -> str:
    """Faces, each with what a patch over each place costs laid over it."""
    if not maps:
        return ""
    items = []
    for shown in maps:
        loss, caption = float(shown.loss.max()), escape(shown_name(shown.caption))
        face = image_uri(Image.fromarray(np.ascontiguousarray(shown.image)))
        items.append(
            f'<li><figure><img src="{face}" alt="{caption}"></figure>'
            f'<figure class="heat"><img src="{face}" alt="">'
            f'<img src="{image_uri(_heat(shown), None)}" alt="occlusion map"></figure>'
            f'<p><b>{caption}</b><span class="interval">up to {loss:.3f} lost'
            "</span></p></li>"
        )
    return (
        '<section class="card" id="occlusion"><h2>Which patches matter</h2>'
        '<p class="note">Similarity lost when a plain patch covers a place. '
        '<span class="swatch" style="background:var(--vermilion)"></span> covering it costs '
        'similarity, <span class="swatch" style="background:var(--blue)"></span> covering it helps; '
        "the stronger the colour, the more, scaled for each face.</p>"
        f'<ul class="occlusion">{"".join(items)}</ul></section>'
    )


def _heat(shown: Occlusion) -> Image.Image:
    """The loss as a see-through picture of the face's size."""
    height, width = shown.image.shape[:2]
    cells = Image.fromarray(np.asarray(shown.loss, dtype=np.float32))
    loss = np.asarray(cells.resize((width, height), Image.Resampling.BICUBIC))
    tones = [
        [int(light(tone)[at : at + 2], 16) for at in (1, 3, 5)] for tone in ("vermilion", "blue")
    ]
    pixels = np.empty((height, width, 4), dtype=np.uint8)
    pixels[..., :3] = np.where(loss[..., None] >= 0, *tones)
    strength = np.abs(loss) / max(float(np.abs(shown.loss).max()), 1e-9)
    pixels[..., 3] = np.rint(np.clip(strength, 0, 1) * 210)
    return Image.fromarray(pixels)
