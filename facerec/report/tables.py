"""Figures as a table for the console, cells of a page, names and values for MLflow, JSON for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facerec.evaluation.confidence import Figure
from facerec.evaluation.scores import title
from facerec.report.sections import Metric
from facerec.runtime.files import write_bytes

Figures = Mapping[str, Figure]
LONGEST = 100  # characters of a column in a metric's name, which MLflow limits to 250


def in_words(table: Mapping[str, Figures]) -> str:
    """A table for the console, one column a model or reference line, three digits a figure."""
    rows = list(dict.fromkeys(name for figures in table.values() for name in figures))
    cells = [["", *table]]
    for row in rows:
        figures = (column.get(row) for column in table.values())
        cells.append(
            [title(row), *("–" if figure is None else brief(figure) for figure in figures)]
        )
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in padded)


def brief(figure: Figure) -> str:
    """A figure in three digits."""
    if not figure.measured:
        return figure.note
    text = f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{text} {figure.note}".rstrip()


def as_cells(figures: Figures) -> dict[str, Metric]:
    """Figures as pages draw them, by their names for people."""
    return {
        title(name): Metric(figure.value, figure.low, figure.high, figure.note)
        if figure.measured
        else Metric(None, note=figure.note)
        for name, figure in figures.items()
    }


def as_metrics(figures: Figures, prefix: str) -> dict[str, float]:
    """Names and values for MLflow: what could be measured, and the ends of the intervals."""
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {
        f"{prefix}/{name}{suffix}": getattr(figure, attribute)
        for name, figure in figures.items()
        if figure.measured
        for suffix, attribute in ends.items()
    }


def metric_name(name: str) -> str:
    """A column's name as a part of a metric's.

    >>> metric_name("whitened PCA"), metric_name("facerec@champion")
    ('whitened_pca', 'facerec_champion')
    """
    text = re.sub(r"[^\w.-]+", "_", name).strip("_.").lower()
    return text[-LONGEST:] or "model"


def plain(table: Mapping[str, Figures]) -> dict[str, Any]:
    """A table of numbers and text; what could not be measured is None."""
    return {
        column: {
            name: {k: None if v != v else v for k, v in asdict(figure).items()}
            for name, figure in figures.items()
        }
        for column, figures in table.items()
    }


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON without NaN, making the folder; returns the path. InputError where the disk refuses."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    write_bytes(path, text.encode())
    return path
