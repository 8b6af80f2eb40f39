"""Everything said to MLflow about a run.

A run started by `mlflow run` is joined (MLFLOW_RUN_ID), otherwise one is made in the experiment that the settings
name. `mlflow run` has logged the parameters that were given, as text, before we start: only missing ones are added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made as MLflow starts
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient, fluent

from facerec.config.settings import Settings, as_params, canonical
from facerec.data.store import Store
from facerec.errors import InputError
from facerec.runtime.console import say
from facerec.runtime.database_url import without_password
from facerec.runtime.files import disk_told
from facerec.runtime.mlflow_client import few_retries, patiently
from facerec.runtime.mlflow_errors import is_away, is_final, reason_of
from facerec.runtime.paths import as_given, folder_of_command
from facerec.runtime.text import as_utf8
from facerec.tracking.outbox import REFUSED as REFUSED_ENTRIES
from facerec.tracking.outbox import Entry, Outbox, Refused

SILENT_SECONDS = 20  # after which a training does not wait any longer for its tracking server
AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}  # that MLflow takes in a request


class Run:
    """One MLflow run: what is logged, under which name.

    Attributes:
        id: the run's id.
        uri: of the tracking store.
    """

    def __init__(self, run_id: str) -> None:
        self.id, self.uri, self.client = run_id, mlflow.get_tracking_uri(), MlflowClient()
        self.outbox: Outbox | None = None
        self.steps: dict[str, set[int]] = {}  # metric → steps that are there, of those asked for

    @contextmanager
    def keeping(self, folder: Path) -> Iterator[None]:
        """Within this block metrics, parameters and tags go through an outbox in the run's folder.

        Raises:
            InputError: if the tracking store is away when the block begins or ends.
        """
        with few_retries():
            path = folder / "outbox.jsonl"
            with disk_told(path):
                self.outbox = Outbox(
                    path,
                    self.try_to_send,
                    lambda count, why: self.tell(path, why),
                    lambda why: self.set_aside(path, why),
                )
            try:
                self.deliver()  # what an earlier process left
                yield
                self.deliver()
            finally:
                self.outbox.close(1)
                self.outbox = None

    def deliver(self) -> None:
        """Waits until all is sent.

        Raises:
            InputError: if the tracking store is silent for `SILENT_SECONDS`; all is kept.
        """
        if self.outbox is None:
            return
        started, before = time.monotonic(), len(self.outbox.waiting)

        def progress(left: int) -> None:
            seconds, sent = time.monotonic() - started, before - left
            rate = (
                f"{sent / seconds:.1f} a second, {left * seconds / sent:.0f} s left" if sent else ""
            )
            say(f"MLflow: {sent} of {before} entries sent{', ' + rate if rate else ''}")

        if self.outbox.flush(SILENT_SECONDS, progress):
            raise self.kept(self.outbox.trouble or "it does not answer")

    def kept(self, reason: str) -> InputError:
        """The sentence for a training whose tracking store is away at its end."""
        assert self.outbox is not None  # within `keeping`
        folder, store = self.outbox.path.parent, without_password(self.uri)
        return InputError(
            f"not all of run {self.id} could be sent to {store} ({reason}): metrics, checkpoints and what else was "
            f"made are kept in {folder}; the same command with --resume {self.id} sends them when that is mended"
        )

    def tell(self, path: Path, reason: str | None) -> None:
        """Says that the tracking store is away, with `path` keeping what is logged, or is back."""
        if reason:
            say(
                f"MLflow at {without_password(self.uri)}: {reason}; what is logged is kept in {path}"
            )
            return
        say(f"MLflow at {without_password(self.uri)} is back: all that was kept has been sent")
        monitor = fluent.run_id_to_system_metrics_monitor.get(self.id)
        thread = getattr(monitor, "_process", None)
        # It gives up when a server is away.
        if monitor is not None and thread is not None and not thread.is_alive():
            monitor.start()

    def set_aside(self, path: Path, reason: str) -> None:
        """Says, on the console and in the run, that the store refuses an entry.

        Raises:
            MlflowException: the store does not take this either, so that the entry is not to blame.
        """
        patiently(lambda: self.client.set_tag(self.id, "outbox.refused", as_utf8(reason)))
        kept = path.with_name(REFUSED_ENTRIES)
        with suppress(Exception):  # a console that has gone does not matter to the store
            say(
                f"MLflow at {without_password(self.uri)}: {reason}; the entry is set aside in {kept}, and the rest is "
                "sent"
            )

    def put(self, entry: Entry) -> None:
        """Sends an entry, through the outbox where there is one."""
        if self.outbox:
            with disk_told(self.outbox.path):
                self.outbox.put(entry)
        else:
            self.send([entry])

    def try_to_send(self, entries: Sequence[Entry], again: bool) -> None:
        """`send`, whose error says whether the store refuses for good what it is sent, or may take it later."""
        try:
            self.send(entries, again)
        except Exception as error:  # of a store or a network
            self.steps.clear()  # it may have done what it did not answer
            reason = reason_of(error)[:200]
            if is_final(error):
                raise Refused(f"it refuses: {reason}") from error
            state = "is away" if is_away(error) else "cannot take it now"
            raise RuntimeError(f"it {state}: {reason}") from error

    def send(self, entries: Sequence[Entry], again: bool = False) -> None:
        """Logs metrics, parameters and tags; `again` leaves out metrics whose step is there."""
        params: dict[str, str] = {}
        tags: dict[str, str] = {}
        metrics: list[Metric] = []
        for entry in entries:
            params = {**entry.get("params", {}), **params}  # the first counts
            tags |= entry.get("tags", {})
            metrics += [Metric(*row) for row in entry.get("metrics", [])]
            again = again or entry.get("once", False)
        if params:
            known = self.ask(lambda: self.client.get_run(self.id)).data.params
            self.log_batches(
                "params", [Param(k, as_utf8(v)) for k, v in params.items() if k not in known]
            )
        self.log_batches("metrics", self.new(metrics) if again else metrics)
        self.log_batches("tags", [RunTag(as_utf8(k), as_utf8(v)) for k, v in tags.items()])

    def log_batches(self, kind: str, items: Sequence[Any]) -> None:
        """As few requests as MLflow allows."""
        size = AT_ONCE[kind]
        for first in range(0, len(items), size):
            part: dict[str, Any] = {kind: items[first : first + size]}
            self.ask(partial(self.client.log_batch, self.id, **part))

    def new(self, metrics: Sequence[Metric]) -> list[Metric]:
        """Those whose step is not there."""
        for key in {metric.key for metric in metrics} - self.steps.keys():
            self.steps[key] = self.logged_steps(key)
        kept = []
        for metric in metrics:
            if metric.step not in self.steps[metric.key]:
                self.steps[metric.key].add(metric.step)
                kept.append(metric)
        return kept

    def ask(self, call: Callable[[], Any]) -> Any:
        """`patiently`; an answer is a sign of life."""
        answer = patiently(call)
        if self.outbox:
            self.outbox.alive()
        return answer

    def log_params(self, params: Mapping[str, str]) -> None:
        """Adds what the run does not hold yet; a parameter is never said twice, and a path as it was given."""
        typed_in = folder_of_command()
        self.put({"params": {key: as_given(value, typed_in) for key, value in params.items()}})

    def log_settings(self, settings: Settings, config: str | None = None) -> None:
        """Every setting once, canonical, and the recipe's name."""
        self.log_params({**as_params(settings), **({"config": config} if config else {})})

    def log_metrics(self, values: Mapping[str, float], step: int, once: bool = False) -> None:
        """Metrics of one epoch; `once` leaves out those whose step is there."""
        now = int(time.time() * 1000)
        rows = [[key, float(value), now, step] for key, value in values.items()]
        self.put({"metrics": rows, "once": once})

    def logged_steps(self, key: str) -> set[int]:
        """Steps at which a metric stands already."""
        return {m.step for m in self.ask(lambda: self.client.get_metric_history(self.id, key))}

    def tag(self, tags: Mapping[str, Any]) -> None:
        """Sets tags."""
        self.put({"tags": {key: canonical(value) for key, value in tags.items()}})

    def tags(self) -> dict[str, str]:
        """Tags that the run has."""
        return patiently(lambda: self.client.get_run(self.id)).data.tags

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keeps a file, or a folder's files, as artifacts.

        Raises:
            InputError: the artifact store does not take it.
        """
        log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
        try:
            patiently(lambda: log(self.id, str(path), folder))
        except (MlflowException, OSError, ImportError) as error:  # ImportError: of a store's client
            store = without_password(self.client.get_run(self.id).info.artifact_uri)
            raise InputError(
                f"{path.name} cannot be kept among the artifacts of run {self.id} in {store}: "
                f"{reason_of(error)[:200]}; it lies in {path}"
            ) from error

    def log_data(self, store: Store, context: str) -> None:
        """The data set, by name and digest, as the run's input."""
        source = LocalArtifactDatasetSource(as_given(as_utf8(str(store.root))))
        # MLflow leaves its own class abstract by the name, and makes it nevertheless.
        dataset = MetaDataset(  # type: ignore[abstract]
            source=source, name=as_utf8(store.name), digest=store.digest[:32]
        )
        patiently(lambda: mlflow.log_input(dataset, context=context))
        counts = {part: len(store.indices(part)) for part in ("train", "val", "test")}
        self.tag(
            {
                "data.digest": store.digest,
                "data.split_version": store.split_version,
                "data.pictures": len(store.labels),
                "data.people": len(store.names),
            }
        )
        self.tag({f"data.{part}_pictures": count for part, count in counts.items()})
