"""Plotly figures: training curves, similarity histograms, ROC.

All are drawn in the light colours of `page.PALETTE` on no ground of their own, so that a page can
show them in light and in dark. They take plain arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Protocol

import numpy as np
import plotly.graph_objects as go

from facerec.report.html import FONT, light

# Metric name -> words, colour, marker and its glyph: a line is told apart by more than its colour.
VALIDATION = {
    "val/recall_at_1": ("Recall@1", "blue", "circle", "●"),
    "val/r_precision": ("R-Precision", "vermilion", "square", "■"),
    "val/map_at_r": ("MAP@R", "green", "triangle-up", "▲"),
    "val/verification_accuracy": ("verification accuracy", "purple", "diamond", "◆"),
    "val/tar_at_far_1e-3": ("TAR at FAR 1e-3", "gold", "triangle-down", "▼"),
}
TRAINING = {
    "train/loss": "Training loss",
    "train/lr": "Learning rate",
    "train/triplets": "Active triplets",
    "train/images_per_second": "Images per second",
}
SPARE_STYLES = [("sky", "cross", "✚"), ("indigo", "x", "✖"), ("brown", "star", "★")]

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


def base_layout(height: int, **layout: Any) -> dict[str, Any]:
    """What every figure shares: no ground of its own, quiet text, room for tick labels."""
    return {
        "template": "none",
        "height": height,
        "margin": {"l": 52, "r": 16, "t": 34, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": 12.5, "color": light("muted")},
        "hoverlabel": {
            "bgcolor": light("surface"),
            "bordercolor": light("line"),
            "font": {"color": light("ink"), "family": FONT, "size": 12.5},
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": light("muted"),
            "activecolor": light("ink"),
        },
        "showlegend": False,
        **layout,
    }


def axis(**options: Any) -> dict[str, Any]:
    """An axis with hairlines only."""
    return {
        "gridcolor": light("line"),
        "linecolor": light("line"),
        "zeroline": False,
        "automargin": False,
        "title": {"standoff": 8, "font": {"size": 12.5}},
        **options,
    }


def panel_title(text: str, number: int | str = "") -> dict[str, Any]:
    """A heading above the left corner of subplot `number`; it moves with the subplot."""
    return {
        "text": text,
        "xref": f"x{number} domain",
        "yref": f"y{number} domain",
        "x": 0,
        "y": 1,
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 8,
        "align": "left",
        "showarrow": False,
        "font": {"size": 13, "color": light("ink")},
    }


def training_curves(
    history: Sequence[Mapping[str, float]],
    references: Mapping[str, float] | None = None,
    *,
    title: str = "Training curves",
) -> go.Figure:
    """How a run went, epoch by epoch: validation large on top, what explains it in small below.

    Args:
        history: one mapping an epoch, keyed by the names of the metrics in MLflow: "epoch" (else
            counted from 1), "train/loss", "val/recall_at_1" ... Every `val/` metric shares the
            first panel; each `train/` metric has its own. Missing or non-finite values are gaps.
        references: validation Recall@1 of something simple, drawn as a line: {"raw pixels": 0.31}.
        title: for a reader of the figure alone; `write_html` shows its own.

    Returns:
        The figure; one that says so where no epoch has ended yet.
    """
    epochs = [_number(row.get("epoch", n)) for n, row in enumerate(history, start=1)]
    names = list(dict.fromkeys(key for row in history for key in row if "/" in key))
    series = {name: [_number(row.get(name)) for row in history] for name in names}
    series = {name: values for name, values in series.items() if any(v is not None for v in values)}
    figure = go.Figure(layout=base_layout(320, meta={"title": title}))
    if not series:
        figure.add_annotation(text="No epoch has ended yet", showarrow=False, font={"size": 15})
        return figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False})

    validation = [name for name in [*VALIDATION, *names] if name in series and name[:4] == "val/"]
    panels: list[list[str]] = [list(dict.fromkeys(validation))] if validation else []
    training = [name for name in [*TRAINING, *names] if name in series and name[:4] != "val/"]
    panels += [[name] for name in dict.fromkeys(training)]
    for number, members in enumerate(panels, start=1):
        suffix = "" if number == 1 else str(number)
        draw = _validation_panel if members[0].startswith("val/") else _training_panel
        draw(figure, suffix, members, epochs, series)
    if validation:
        _reference_lines(figure, references or {})
    return _arrange(figure, panels, epochs)


def _number(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(float(value)) else None


def _validation_panel(
    figure: go.Figure, suffix: str, members: list[str], epochs: list, series: dict[str, list]
) -> None:
    spare = iter(SPARE_STYLES * (1 + len(members) // len(SPARE_STYLES)))
    words = []
    for name in members:
        label, tone, marker, glyph = VALIDATION.get(name) or (name[4:], *next(spare))
        label = escape(label)
        words.append(f"<span style='color:{light(tone)}'>{glyph} {label}</span>")
        figure.add_scatter(
            x=epochs,
            y=series[name],
            name=label,
            mode="lines+markers",
            connectgaps=True,
            line={"color": light(tone), "width": 2},
            marker={"symbol": marker, "size": 7 if len(epochs) <= 40 else 4},
            hovertemplate="%{y:.3f}",
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
        )
    figure.add_annotation(panel_title("  ".join(words), suffix))
    _mark_best(figure, suffix, members[0], epochs, series)


def _mark_best(
    figure: go.Figure, suffix: str, name: str, epochs: list, series: dict[str, list]
) -> None:
    best = max((v, -n) for n, v in enumerate(series[name]) if v is not None)
    at = -best[1]
    figure.add_annotation(
        x=epochs[at],
        y=best[0],
        xref=f"x{suffix}",
        yref=f"y{suffix}",
        text=f" best {best[0]:.3f} ",
        ax=0,
        ay=-24,
        arrowwidth=1,
        arrowhead=0,
        arrowcolor=light("muted"),
        standoff=5,
        font={"color": light("ink")},
        xanchor="right" if at > 0.8 * (len(epochs) - 1) and at else "left" if at == 0 else "center",
    )


def _training_panel(
    figure: go.Figure, suffix: str, members: list[str], epochs: list, series: dict[str, list]
) -> None:
    name = members[0]
    few = len(epochs) <= 40
    figure.add_scatter(
        x=epochs,
        y=series[name],
        name=escape(TRAINING.get(name, name)),
        mode="lines+markers" if few else "lines",
        connectgaps=True,
        line={"color": light("ink"), "width": 1.75},
        marker={"size": 4},
        hovertemplate="%{y:.4~g}",
        xaxis=f"x{suffix}",
        yaxis=f"y{suffix}",
    )
    figure.add_annotation(panel_title(escape(TRAINING.get(name, name)), suffix))


def _reference_lines(figure: go.Figure, references: Mapping[str, float]) -> None:
    known = {label: value for label, value in references.items() if _number(value) is not None}
    for number, (label, value) in enumerate(sorted(known.items(), key=lambda item: item[1])):
        left = number % 2 == 0  # equal values would hide each other's labels
        figure.add_shape(
            type="line", xref="x domain", x0=0, x1=1, y0=value, y1=value,
            line={"color": light("muted"), "width": 1, "dash": "dash"}, layer="below",
        )  # fmt: skip
        figure.add_annotation(
            text=f"{escape(label)} {value:.3f}",
            xref="x domain", x=0 if left else 1, y=value, xanchor="left" if left else "right", yanchor="bottom",
            showarrow=False, font={"size": 11.5},
        )  # fmt: skip


def _arrange(figure: go.Figure, panels: list[list[str]], epochs: list) -> go.Figure:
    """Axes of the panels, and `meta.grid`, by which a page flows them into one or two columns."""
    grid = []
    for number, members in enumerate(panels, start=1):
        suffix = "" if number == 1 else str(number)
        wide = members[0].startswith("val/")
        grid.append({"axis": suffix, "height": 300 if wide else 150, "full": wide})
        span = [min(epochs, default=0), max(epochs, default=1)]
        pad = max(0.02 * (span[1] - span[0]), 0.25)
        figure.layout[f"xaxis{suffix}"] = axis(
            anchor=f"y{suffix}",
            range=[span[0] - pad, span[1] + pad],
            showgrid=False,
            nticks=8,
            tickformat="d",
            title={"text": "epoch", "standoff": 2, "font": {"size": 12}} if number == 1 else None,
            dtick=1 if span[1] - span[0] <= 8 else None,
            **({} if number == 1 else {"matches": "x"}),
        )
        figure.layout[f"yaxis{suffix}"] = axis(
            anchor=f"x{suffix}",
            rangemode="tozero",
            nticks=6 if wide else 4,
            tickformat=".2f" if wide else None,
            exponentformat="e" if members[0] == "train/lr" else "SI",
        )
    gap = 68
    _stack(figure, grid, gap)
    return figure.update_layout(
        hovermode="x unified",
        meta={**figure.layout.meta, "grid": {"panels": grid, "gap": gap, "wide": 760}},
    )


def _stack(figure: go.Figure, grid: list[dict[str, Any]], gap: int) -> None:
    """One column, for readers of the figure without the page's script."""
    inner = sum(panel["height"] for panel in grid) + gap * (len(grid) - 1)
    top = inner
    for panel in grid:
        bottom = top - panel["height"]
        figure.layout[f"yaxis{panel['axis']}"].domain = [max(bottom / inner, 0), top / inner]
        top = bottom - gap
    margin = figure.layout.margin
    figure.layout.height = inner + margin.t + margin.b


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
