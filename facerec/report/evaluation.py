"""What `evaluate` does: models and baselines on one protocol, as a table, a page, and metrics of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facerec.data.store import Store
from facerec.errors import InputError
from facerec.evaluation.candidates import Column, left_out, model_column, reference_columns
from facerec.evaluation.confidence import Figure
from facerec.evaluation.lfw import View1, View2, lfw_view1, lfw_view2
from facerec.evaluation.overlap import Leak
from facerec.evaluation.protocols import Identities, PairList, Search, identities, pair_list, search
from facerec.evaluation.scores import Measured, differences
from facerec.inference.embedder import FaceEmbedder
from facerec.report import pages
from facerec.report.explorer import model_store, thresholds
from facerec.report.html import write_html
from facerec.report.settings import STORE_PROTOCOLS, EvaluateSettings, separate
from facerec.report.tables import (
    Figures,
    as_cells,
    as_metrics,
    in_words,
    metric_name,
    plain,
    write_json,
)
from facerec.runtime.console import answer, say
from facerec.tracking.address import reach_tracking
from facerec.tracking.experiment import check_names
from facerec.tracking.lifecycle import track
from facerec.tracking.run import Run

Protocol = Identities | View1 | View2 | PairList | Search


def run(settings: EvaluateSettings, config: str | None = None) -> None:
    """Embeds, measures, prints, logs.

    Args:
        config: name of the recipe that the settings come from, for the record.

    Raises:
        InputError: a model or the data cannot be used, or the protocol does not fit the data.
    """
    check_names(settings)
    embedders = load(settings)
    reach_tracking(settings)
    first = next(iter(embedders.values()))
    store = model_store(settings, first) if settings.protocol in STORE_PROTOCOLS else None
    protocol = protocol_of(settings, store)
    text = ""
    try:
        with track(settings) as mlflow_run:
            mlflow_run.log_settings(settings, config)
            if store is not None:
                mlflow_run.log_data(store, "evaluation")
            columns = {}
            for name, embedder in embedders.items():
                own = model_store(settings, embedder) if store is not None else None
                columns[name] = model_column(embedder, protocol.pictures, own, settings.flip)
            if settings.references:
                columns |= reference_columns(first, protocol.pictures, store)
            measured = measure(protocol, columns)
            tables = Tables.of(settings, protocol, columns, measured)
            text = tables.in_words()
            report(settings, mlflow_run, tables, columns, measured, first)
    finally:  # when the run has ended, so that the console cannot spoil it; also where MLflow did not keep it
        if text:
            answer(text)


def load(settings: EvaluateSettings) -> dict[str, FaceEmbedder]:
    """The models by the names that the table gives them.

    Raises:
        InputError: no model, one twice, or one that cannot be loaded.
    """
    sources = separate(settings.model)
    if not sources or len(set(sources)) < len(sources):
        raise InputError(f"model={settings.model}: one or more models are due, each once")
    embedders: dict[str, FaceEmbedder] = {}
    for number, source in enumerate(sources, start=1):
        name = short_name(source)
        if metric_name(name) in map(metric_name, embedders):
            name = f"{name} ({number})"
        embedders[name] = FaceEmbedder.load(source, settings.device)
    return embedders


def short_name(source: str) -> str:
    """What a table calls a model: the run's first letters, the registered name, or the folder.

    >>> short_name("runs:/0123456789abcdef/model"), short_name("models:/facerec@champion"), short_name("out/1/model")
    ('run 01234567', 'facerec@champion', '1/model')
    """
    if source.startswith("runs:/"):
        return f"run {source.removeprefix('runs:/')[:8]}"
    if source.startswith("models:/"):
        return source.removeprefix("models:/")
    parts = [part for part in re.split(r"[\\/]", source) if part not in ("", ".")]
    parts = [part[:8] if re.fullmatch("[0-9a-f]{32}", part) else part for part in parts]
    return "/".join(parts[-2:]) if parts[-1:] == ["model"] else parts[-1] if parts else source


def protocol_of(settings: EvaluateSettings, store: Store | None) -> Protocol:
    """The protocol that the settings name.

    Raises:
        InputError: it does not fit the data.
    """
    if store is not None and settings.protocol == "identities":
        return identities(store, settings.split)
    if store is not None and settings.protocol == "lfw-view1":
        return lfw_view1(store)
    if store is not None and settings.protocol == "lfw-view2":
        return lfw_view2(store)
    if settings.protocol == "pairs":
        return pair_list(settings.data)
    if settings.gallery is None:
        raise InputError("protocol=gallery: gallery is missing: give the folder of known people")
    found = search(settings.gallery, settings.data)
    for note in found.notes:
        say(note)
    return found


def measure(protocol: Protocol, columns: Mapping[str, Column]) -> dict[str, Measured]:
    """Figures of every column, all on the pictures that are usable for all of them.

    Raises:
        InputError: too few of them are left.
    """
    usable = np.all([column.usable for column in columns.values()], axis=0)
    if not usable.all():
        failed = {path: why for column in columns.values() for path, why in column.failed.items()}
        example = next((f" (the first, {path}: {why})" for path, why in failed.items()), "")
        say(f"{np.sum(~usable):,} of {len(usable):,} pictures are left out for all{example}")
    try:
        return {
            name: protocol.measure(column.features, usable, column.threshold)
            for name, column in columns.items()
        }
    except ValueError as error:
        raise InputError(f"{protocol.title} cannot be measured: {error}") from None


def compared(
    measured: Mapping[str, Measured], columns: Mapping[str, Column]
) -> dict[str, dict[str, Figure]]:
    """Paired differences: the first model against the others, and against the best reference line."""
    models = [name for name, column in columns.items() if column.is_model]
    rest = [name for name in columns if name not in models]
    against = models[1:]
    if rest:
        main = next(iter(measured[rest[0]].draws))
        against.append(max(rest, key=lambda name: measured[name].figures[main].value))
    first = measured[models[0]]
    return {f"{models[0]} − {name}": differences(first, measured[name]) for name in against}


def told(columns: Mapping[str, Column]) -> list[str]:
    """What each model, and each reference line that has a leak, says of the probes."""
    return [
        f"{name}: {column.leak}"
        for name, column in columns.items()
        if column.leak is not None and (column.is_model or column.leak.found)
    ]


def marked(name: str, column: Column) -> str:
    """A column's heading; that of a model that has met its probes says so."""
    return f"{name} (leak)" if column.leak is not None and column.leak.found else name


class Tables(NamedTuple):
    """What an evaluation found, for people and programs.

    Attributes:
        title: of the protocol.
        leaks: a sentence for each model, and for each reference line that has one.
        note: how to read the figures.
        figures: column → its figures.
        gains: difference → its figures.
    """

    title: str
    leaks: list[str]
    note: str
    figures: Mapping[str, Figures]
    gains: Mapping[str, Figures]

    @classmethod
    def of(
        cls,
        settings: EvaluateSettings,
        protocol: Protocol,
        columns: Mapping[str, Column],
        measured: Mapping[str, Measured],
    ) -> Tables:
        """The tables of what was measured."""
        note = f"{protocol.note} Brackets hold 95 % intervals."
        if settings.references:
            note = f"{note} {left_out(protocol.pictures)}".rstrip()
        figures = {marked(name, columns[name]): found.figures for name, found in measured.items()}
        return cls(protocol.title, told(columns), note, figures, compared(measured, columns))

    def in_words(self) -> str:
        """As the console shows them."""
        gains = [f"\n{in_words({f'{name}, paired': found})}" for name, found in self.gains.items()]
        return "\n".join([self.title, *self.leaks, self.note, in_words(self.figures), *gains])


def report(
    settings: EvaluateSettings,
    mlflow_run: Run,
    tables: Tables,
    columns: Mapping[str, Column],
    measured: Mapping[str, Measured],
    first: FaceEmbedder,
) -> None:
    """Metrics, tags, page and JSON."""
    leaks = {
        name: column.leak
        for name, column in columns.items()
        if column.is_model and column.leak is not None
    }
    log(settings, mlflow_run, measured, leaks)
    folder = Path(settings.output) / mlflow_run.id
    page = draw(tables, measured, columns, first)
    mlflow_run.log_file(write_html(page, folder / "evaluation.html"))
    content = {
        "protocol": tables.title,
        "figures": plain(tables.figures),
        "differences": plain(tables.gains),
        "leaks": {name: {"told": str(met), **met.counts} for name, met in leaks.items()},
    }
    mlflow_run.log_file(write_json(folder / "evaluation.json", content))
    say(f"page: {(folder / 'evaluation.html').resolve()}, in MLflow run {mlflow_run.id}")


def log(
    settings: EvaluateSettings,
    mlflow_run: Run,
    measured: Mapping[str, Measured],
    leaks: Mapping[str, Leak],
) -> None:
    """Metrics and tags; the first model's own names are bare, those of the others carry theirs."""
    main = next(iter(measured))
    for name, found in measured.items():
        prefix = "test" if name == main else f"test/{metric_name(name)}"
        mlflow_run.log_metrics(as_metrics(found.figures, prefix), step=0)
    mlflow_run.tag({"evaluation.protocol": settings.protocol, "leak": leaks[main].found})
    for name, met in leaks.items():
        prefix = "leak" if name == main else f"leak.{metric_name(name)}"
        mlflow_run.tag(met.tags(prefix))


def draw(
    tables: Tables,
    measured: Mapping[str, Measured],
    columns: Mapping[str, Column],
    first: FaceEmbedder,
) -> str:
    """The page as HTML."""
    cells = {name: as_cells(found) for name, found in {**tables.figures, **tables.gains}.items()}
    leaks = any(column.leak is not None and column.leak.found for column in columns.values())
    curves = {name: found.curve for name, found in measured.items() if found.curve is not None}
    return pages.evaluation_page(
        cells,
        curves or None,
        title=f"Evaluation: {tables.title}",
        subtitle=", ".join(name for name, column in columns.items() if column.is_model),
        notice=". ".join([*tables.leaks, ""]).strip() if leaks else "",
        metrics_note=f"{tables.note} Differences are paired.",
        thresholds=thresholds(first.calibration),
    )
