"""Plotly figures: training curves, similarity histograms, ROC.

All are drawn in the light colours of `page.PALETTE` on no ground of their own, so that a page can
show them in light and in dark. They take plain arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

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
