"""Charts of verification: histograms of similarity, and the ROC."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np
import plotly.graph_objects as go

from facerec.report.charts import SPARE_STYLES, VALIDATION, axis, base_layout, panel_title
from facerec.report.html import light

MIN_FALSE_ACCEPTS = 10  # as in verification.py: a rate that fewer stand behind is noise


class Curve(Protocol):
    """Pairs accepted at each threshold, as `verification.Verification` has them.

    Attributes:
        thresholds: (T,) similarities, descending.
        true_accepts, false_accepts: (T,) genuine and impostor pairs at or above each.
    """

    @property
    def thresholds(self) -> np.ndarray: ...

    @property
    def true_accepts(self) -> np.ndarray: ...

    @property
    def false_accepts(self) -> np.ndarray: ...


def similarity_histogram(
    curve: Curve, thresholds: Mapping[str, float] | None = None, *, bins: int = 100
) -> go.Figure:
    """How similar genuine and impostor pairs are, each as a share of its own kind.

    Args:
        curve: the pairs.
        thresholds: to mark, by their name: {"FAR 1e-3": 0.41}.
        bins: over the range of similarities that occur.
    """
    low, high = float(curve.thresholds[-1]), float(curve.thresholds[0])
    pad = max(0.02 * (high - low), 1e-3)
    edges = np.linspace(max(low - pad, -1), min(high + pad, 1), bins + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    figure = go.Figure(layout=base_layout(360, hovermode="x unified", bargap=0, barmode="overlay"))
    styles = (
        (curve.false_accepts, "Impostor", "vermilion"),
        (curve.true_accepts, "Genuine", "blue"),
    )
    for accepts, name, tone in styles:
        counts = np.histogram(curve.thresholds, edges, weights=np.diff(accepts, prepend=0))[0]
        share = counts / accepts[-1]
        figure.add_bar(
            x=centres, y=share, marker={"color": light(tone), "line": {"width": 0}}, opacity=0.22,
            hoverinfo="skip",
        )  # fmt: skip
        figure.add_scatter(
            x=centres, y=share, name=name, mode="lines", hovertemplate="%{y:.2%}",
            line={"color": light(tone), "width": 1.75, "shape": "hvh"},
        )  # fmt: skip
    highest = max(float(np.max(trace.y)) for trace in figure.data)
    marked = sorted((thresholds or {}).items(), key=lambda item: item[1])
    _threshold_lines(figure, marked, 0.35 * edges[-1] + 0.65 * edges[0])
    totals = (_compact(int(kind[-1])) for kind in (curve.true_accepts, curve.false_accepts))
    words = zip(("blue", "vermilion"), ("■ Genuine", "■ Impostor"), totals, strict=True)
    key = "  ".join(
        f"<span style='color:{light(tone)}'>{word}</span> {n}" for tone, word, n in words
    )
    return figure.update_layout(
        annotations=[*figure.layout.annotations, panel_title(key)],
        xaxis=axis(title=_title("cosine similarity"), showgrid=False, hoverformat=".3f"),
        yaxis=axis(
            title=_title("share of its pairs"),
            tickformat=".1%",
            range=[0, 1.04 * highest / (1 - _label(marked) * len(marked))],
        ),
    )


def _compact(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count >= 1e6 else f"{count:,}"


def _title(text: str) -> dict[str, Any]:
    return {"text": text, "standoff": 8, "font": {"size": 12.5}}


def _label(marked: Sequence[tuple[str, float]]) -> float:
    """Height of a threshold's label as a share of the axis, of which all together take at most half."""
    return min(0.075, 0.5 / max(1, len(marked)))


def _threshold_lines(figure: go.Figure, marked: list[tuple[str, float]], middle: float) -> None:
    """Dotted lines with labels in steps above the curves, which no label and no other line crosses.

    Labels stand to the left of their lines where the lowest threshold lies beyond `middle`, else to the right.
    """
    left = bool(marked) and marked[0][1] > middle
    for number, (name, value) in enumerate(marked):
        top = 1 - _label(marked) * (len(marked) - 1 - number if left else number)
        figure.add_shape(
            type="line", yref="y domain", x0=value, x1=value, y0=0, y1=top,
            line={"color": light("ink"), "width": 1, "dash": "dot"},
        )  # fmt: skip
        figure.add_annotation(
            text=f" {escape(name)}: {value:.3f} ", x=value, yref="y domain", y=top,
            xanchor="right" if left else "left", yanchor="top", yshift=2, showarrow=False,
            font={"size": 11.5, "color": light("ink")},
        )  # fmt: skip


def roc_curve(curves: Mapping[str, Curve]) -> go.Figure:
    """ROC: TAR over FAR, FAR in powers of ten.

    Args:
        curves: one a model, by name. Where the expected false accepts are fewer than 10 for all of
            them the ground is shaded: what the curve does there is chance.
    """
    figure = go.Figure(layout=base_layout(360))
    styles = [style[1:] for style in VALIDATION.values()] + SPARE_STYLES
    least = 1.0
    words = []
    for number, (name, curve) in enumerate(curves.items()):
        far, tar, threshold = _thinned(curve)
        tone, _, glyph = styles[number % len(styles)]
        dash = ("solid", "dash", "dot", "dashdot")[number % 4]
        least = min(least, 1 / int(curve.false_accepts[-1]))
        words.append(f"<span style='color:{light(tone)}'>{glyph} {escape(name)}</span>")
        figure.add_scatter(
            x=far, y=tar, customdata=threshold, name=escape(name), mode="lines",
            line={"color": light(tone), "width": 2.25, "dash": dash, "shape": "hv"},
            hovertemplate="TAR %{y:.3f} at FAR %{x:.2~e}, similarity ≥ %{customdata:.3f}",
        )  # fmt: skip
    figure.add_shape(
        type="rect", yref="y domain", x0=least / 2, x1=min(MIN_FALSE_ACCEPTS * least, 1), y0=0,
        y1=1, fillcolor=light("raised"), line_width=0, layer="below",
    )  # fmt: skip
    if len(curves) > 1:
        figure.add_annotation(panel_title("  ".join(words)))
    start, stop = math.log10(least / 2), 0.0
    return figure.update_layout(
        xaxis=axis(
            title=_title("FAR (share of impostor pairs accepted)"),
            type="log", range=[start, stop], exponentformat="power",
            dtick=1 if start > -5 else 2, tick0=0, tickangle=0, tickfont={"size": 11},
        ),
        yaxis=axis(title=_title("TAR (share of genuine pairs accepted)"), range=[0, 1.02]),
    )  # fmt: skip


def _thinned(curve: Curve, points: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """FAR, TAR and threshold where the curve moves visibly; none at a FAR of 0, which has no log."""
    far = curve.false_accepts / curve.false_accepts[-1]
    tar = curve.true_accepts / curve.true_accepts[-1]
    shown = np.flatnonzero(far > 0)
    places = np.stack([np.log10(far[shown]) / -math.log10(far[shown[0]] / 2), tar[shown]])
    cells = np.floor(places * points)
    moved = np.append(True, (np.diff(cells, axis=1) != 0).any(axis=0))
    moved[-1] = True
    kept = shown[moved]
    return far[kept], tar[kept], curve.thresholds[kept]
