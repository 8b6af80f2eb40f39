"""Sweeps as their users run them: what MLflow and Optuna hold afterwards, also when processes die."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import time
from pathlib import Path

import mlflow
import numpy as np
import optuna
import psutil
import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from facerec.config.recipe import resolve, validate
from facerec.data.store import open_store
from facerec.errors import InputError
from facerec.runtime.database_url import with_driver
from facerec.sweep import trial as sweep_trial
from facerec.sweep.optuna_factory import Journal, open_storage
from facerec.sweep.report import best_trial, study_page
from facerec.sweep.space import METRICS
from facerec.sweep.study import give_up_failing, retry_history
from facerec.sweep.workers import runs_here, this_worker
from facerec.training.run import run as run_train
from facerec.training.settings import TrainSettings
from tests.helpers.commands import mlflow_run
from tests.helpers.sweeping import (
    SPACE,
    at_work,
    check_accounts,
    eventually,
    given,
    make_people,
    runs_of,
    start_sweep,
    states,
    study_of,
    sweep_here,
    write_space,
)

COMPLETE, PRUNED, FAIL = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    return make_people(tmp_path_factory.mktemp("data") / "people")


@pytest.fixture
def options(tmp_path, people, own_tracking, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return given(tmp_path, people)


def figures_on(page: str) -> list[dict]:
    blocks = re.findall(
        r'<script type="application/json" id="study-\d+-json">(.*?)</script>', page, re.S
    )
    return [json.loads(block) for block in blocks]


def test_a_study_in_mlflow_its_page_and_a_recipe_that_train_accepts(options):
    sweep_here(options)
    study = study_of(options)
    parent = study.user_attrs["mlflow_run"]
    trials = study.get_trials()
    assert [t.state for t in trials] == [COMPLETE] * 3

    client = MlflowClient()
    above = client.get_run(parent)
    assert above.info.status == "FINISHED" and above.info.run_name == "study s"
    assert above.data.metrics["best/val/map_at_r"] == study.best_value
    assert above.data.tags["best.trial"] == str(study.best_trial.number)
    assert float(above.data.tags["best.lr"]) == study.best_params["lr"]
    assert above.data.params["epochs"] == "2" and "lr" not in above.data.params
    runs = runs_of(parent)
    assert sorted(runs) == [0, 1, 2]
    for trial in trials:
        run = runs[trial.number]
        assert run.info.status == "FINISHED" and run.data.tags["trial.state"] == "complete"
        assert run.data.params["lr"] == str(trial.params["lr"]) and run.data.params["epochs"] == "2"
        history = [m.value for m in client.get_metric_history(run.info.run_id, "val/map_at_r")]
        assert len(history) == 3 and trial.value == max(history)
        assert trial.intermediate_values == {1: history[1], 2: history[2]}
        assert not list(client.list_artifacts(run.info.run_id))  # no model, no pages
        assert not (Path(options["output"]) / run.info.run_id).exists()

    page = Path(client.download_artifacts(parent, "study.html")).read_text()
    forest = optuna.importance.FanovaImportanceEvaluator(seed=0)
    importances = optuna.importance.get_param_importances(study, evaluator=forest)
    (bars,) = [
        f["data"][0]
        for f in figures_on(page)
        if f["data"][0]["type"] == "bar" and "base" not in f["data"][0]
    ]
    assert dict(zip(bars["y"], bars["x"], strict=True)) == pytest.approx(importances, abs=1e-12)
    best_line = figures_on(page)[0]["data"][1]["y"]
    assert best_line[-1] == study.best_value and f"<b>{study.best_value:.4f}</b>" in page
    assert "http://" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)

    recipe = client.download_artifacts(parent, "best.yaml")
    settings = resolve(TrainSettings, {"output": "trained", "cache": options["cache"]}, recipe)
    assert settings.lr == study.best_params["lr"] and settings.data == options["data"]
    run_train(settings, recipe)
    (trained,) = [r for r in client.search_runs([above.info.experiment_id]) if r.info.run_id != parent
                  and "trial.number" not in r.data.tags]  # fmt: skip
    values = [m.value for m in client.get_metric_history(trained.info.run_id, "val/map_at_r")]
    assert max(values) == study.best_value
    rows = set(trained.data.metrics) | {"parameters"}
    assert set(METRICS) - {"val/tar_at_far_1e-3"} <= rows


def test_seeds_are_fixed_and_a_study_that_goes_on_is_the_study_in_one_go(options):
    sweep_here({**options, "trials": "12", "epochs": "1", "study": "whole"})
    sweep_here({**options, "trials": "5", "epochs": "1", "study": "parts"})
    first = study_of({**options, "study": "parts"}).user_attrs["mlflow_run"]
    sweep_here({**options, "trials": "12", "epochs": "1", "study": "parts"})
    whole, parts = (study_of({**options, "study": name}) for name in ("whole", "parts"))
    assert [t.params for t in whole.trials] == [t.params for t in parts.trials]
    assert [t.values for t in whole.trials] == [t.values for t in parts.trials]
    assert len({t.params["lr"] for t in whole.trials}) == 12
    assert parts.user_attrs["mlflow_run"] == first and sorted(runs_of(first)) == list(range(12))
    assert MlflowClient().get_run(first).data.tags["best.trial"] == str(parts.best_trial.number)
    # The quickest, since other work on the machine must not count; its training is included.
    assert min(t.duration.total_seconds() for t in whole.trials) < 2


def test_another_study_under_the_same_name_is_refused_with_what_differs(options, tmp_path):
    sweep_here({**options, "trials": "1", "epochs": "1"})
    other = write_space(tmp_path, SPACE.replace("1e-2", "1e-1"), "other.yaml")
    with pytest.raises(InputError, match=re.escape("parameters.lr.values [0.0001, 0.1] was")):
        sweep_here({**options, "space": other, "epochs": "1"})
    with pytest.raises(InputError, match=re.escape("settings.epochs 2 was 1")):
        sweep_here(options)
    assert len(study_of(options).trials) == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"lr": "0.1"}, "the space searches it"),
        ({"space": "nowhere.yaml"}, "no such file"),
        ({"trials": "0"}, "trials=0"),
        ({"resume": "last"}, "a study goes on when it is started again"),
        ({"workers": "2", "storage": "sqlite:///s.db"}, "SQLite"),
        ({"storage": "nosuch://u:secret@host/db"}, "cannot be opened"),
        ({"epcohs": "2"}, "did you mean 'epochs'"),
        ({"register": "name", "lr": "0.1"}, "the space searches it"),
    ],
)
def test_bad_input_is_one_sentence(options, more, said):
    with pytest.raises(InputError) as caught:
        sweep_here({**options, **more})
    assert said in str(caught.value) and "secret" not in str(caught.value)


def test_two_objectives_with_constraints(options, tmp_path):
    text = (
        SPACE
        + "objective: [val/map_at_r, train/images_per_second]\nconstraints: {parameters: {at_most: 5500}}\n"
    )
    space = write_space(tmp_path, text, "two.yaml")
    sweep_here({**options, "space": space, "trials": "4", "epochs": "1"})
    study = study_of(options)
    runs = runs_of(study.user_attrs["mlflow_run"])
    for trial in study.trials:
        metrics = runs[trial.number].data.metrics
        assert trial.values == [
            pytest.approx(v, rel=0.5) if i else v for i, v in enumerate(trial.values)
        ]
        assert trial.constraints == {"parameters at_most 5500": metrics["parameters"] - 5500}
    best = best_trial(study)
    assert best in study.best_trials and all(v <= 0 for v in best.constraints.values())
    page = Path(MlflowClient().download_artifacts(study.user_attrs["mlflow_run"], "study.html"))
    assert "Pareto front" in page.read_text()
    with pytest.raises(InputError, match="one objective"):
        sweep_here({**options, "space": space, "pruner": "median", "study": "other"})


def test_importances_name_what_matters_though_the_sampler_has_settled_it():
    """One of three values is far better, and TPE soon takes no other: it still explains nearly everything."""
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=0)
    )

    def objective(trial):
        patch, warmup = (
            trial.suggest_categorical("patch", [4, 8, 16]),
            trial.suggest_float("warmup", 0, 1),
        )
        return (patch == 16) + 0.05 * warmup, warmup

    study.optimize(objective, 30)
    page = study_page(study, ["a", "b"])
    bars = [f["data"][0] for f in figures_on(page) if f["data"][0]["type"] == "bar"]
    first, second = (dict(zip(bar["y"], bar["x"], strict=True)) for bar in bars[:2])
    assert first["patch"] > 0.9 and second["warmup"] > 0.9


def test_a_hopeless_and_a_diverging_trial_are_pruned_and_counted(options, tmp_path, monkeypatch):
    judged = iter([False, True])
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda trial: next(judged, False))
    failing = {2}
    make = sweep_trial.make_trainer

    def diverging(settings, *rest, **more):
        trainer = make(settings, *rest, **more)
        if len(list(Path(options["output"]).glob("seen*"))) in failing:
            trainer.check_loss = lambda *_, **__: (_ for _ in ()).throw(
                InputError("the loss became nan")
            )
        (Path(options["output"]) / f"seen{time.time_ns()}").touch()
        return trainer

    monkeypatch.setattr(sweep_trial, "make_trainer", diverging)
    sweep_here({**options, "trials": "4"})
    study = study_of(options)
    assert [t.state for t in study.trials] == [COMPLETE, PRUNED, PRUNED, COMPLETE]
    assert "no hope" in study.trials[1].user_attrs["reason"]
    assert study.trials[2].user_attrs["reason"] == "the loss became nan"
    runs = runs_of(study.user_attrs["mlflow_run"])
    assert [runs[n].data.tags["trial.state"] for n in range(4)] == [
        "complete",
        "pruned",
        "pruned",
        "complete",
    ]


def test_a_study_whose_trials_only_fail_is_given_up(options, monkeypatch):
    def broken(*arguments, **more):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(sweep_trial, "make_trainer", broken)
    with pytest.raises(InputError, match="5 trials in a row failed, the last with: out of memory"):
        sweep_here(options)
    study = study_of(options)
    assert [t.state for t in study.trials] == [FAIL] * 5
    assert all(
        run.info.status == "FAILED" for run in runs_of(study.user_attrs["mlflow_run"]).values()
    )
    with pytest.raises(InputError):
        give_up_failing(study)


def test_tuning_reads_the_pictures_of_training_and_validation_people_alone(options, monkeypatch):
    touched: set[int] = set()

    class Watched:
        def __init__(self, images):
            self.images = images

        def __getitem__(self, index):
            touched.update(np.atleast_1d(np.arange(len(self.images))[index]).tolist())
            return self.images[index]

        def __getattr__(self, name):
            raise AssertionError(f"images.{name}: pictures are read by index alone")

    def watched(settings, progress=True):
        store = open_store(settings, progress)
        return dataclasses.replace(store, images=Watched(store.images))

    monkeypatch.setattr("facerec.sweep.run.open_store", watched)
    monkeypatch.setattr(sweep_trial, "open_store", watched)
    sweep_here(options)
    settings = validate(
        TrainSettings, {k: options[k] for k in ("data", "cache")} | {"image_size": 16}
    )
    store = open_store(settings)
    allowed = set(store.indices("train").tolist()) | set(store.indices("val").tolist())
    assert len(store.indices("test")) > 0
    assert touched == allowed


def test_the_best_is_trained_in_full_and_registered(options):
    sweep_here(
        {
            **options,
            "trials": "2",
            "epochs": "1",
            "train_best": "true",
            "best_epochs": "3",
            "register": "faces",
        }
    )
    client = MlflowClient()
    study = study_of(options)
    (version,) = client.search_model_versions("name='faces'")
    best = client.get_run(version.run_id)
    assert best.data.params["epochs"] == "3" and best.data.params["lr"] == str(
        study.best_params["lr"]
    )
    assert best.data.tags["mlflow.parentRunId"] == study.user_attrs["mlflow_run"]
    assert mlflow.pyfunc.load_model("models:/faces/1") is not None


def test_a_run_that_mlflow_run_made_for_a_joining_worker_is_given_up(options, monkeypatch):
    sweep_here({**options, "trials": "1", "epochs": "1"})
    parent = study_of(options).user_attrs["mlflow_run"]
    client = MlflowClient()
    extra = client.create_run(client.get_run(parent).info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", extra)
    sweep_here({**options, "trials": "2", "epochs": "1"})
    assert sorted(runs_of(parent)) == [0, 1]
    given_up = client.get_run(extra)
    assert given_up.info.lifecycle_stage == "deleted"
    assert given_up.data.tags["facerec.continues"] == parent
    client.delete_run(parent)
    with pytest.raises(InputError, match="which is deleted"):
        sweep_here({**options, "trials": "3", "epochs": "1"})


@pytest.mark.slow
def test_ctrl_c_saves_the_trial_which_goes_on_to_the_same_weights(options, tmp_path):
    options = {**options, "trials": "2", "epochs": "20"}
    process = start_sweep(options, tmp_path / "log")
    eventually(lambda: bool(at_work(options)))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    study = study_of(options)
    parent = study.user_attrs["mlflow_run"]
    assert [t.state for t in study.trials] == [FAIL, TrialState.WAITING]
    assert MlflowClient().get_run(parent).info.status == "KILLED"
    assert "Traceback" not in (tmp_path / "log").read_text()

    sweep_here(options)
    assert check_accounts(options, 2) == [0]
    first, again, _ = study_of(options).trials
    assert again.params == first.params and retry_history(again) == [0, 1]
    assert again.intermediate_values.items() >= first.intermediate_values.items()
    assert again.user_attrs["continues"] == first.user_attrs["mlflow_run"]
    sweep_here({**options, "study": "undisturbed", "trials": "1"})
    assert study_of({**options, "study": "undisturbed"}).trials[0].value == again.value
    left = [p.name for p in Path(options["output"]).iterdir() if p.is_dir()]
    assert set(left) <= {
        "studies",
        parent,
        study_of({**options, "study": "undisturbed"}).user_attrs["mlflow_run"],
    }


@pytest.mark.slow
def test_ctrl_c_ends_all_workers_cleanly(options, tmp_path):
    options = {**options, "trials": "9", "epochs": "200", "workers": "2"}
    process = start_sweep(options, tmp_path / "log")
    eventually(lambda: len(at_work(options)) == 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130, (tmp_path / "log").read_text()
    eventually(lambda: not any(c.is_running() and c.status() != "zombie" for c in children), 10)
    assert states(options).count(FAIL) == 2 and states(options).count(TrialState.WAITING) == 2
    assert "Traceback" not in (tmp_path / "log").read_text()
    runs = runs_of(study_of(options).user_attrs["mlflow_run"]).values()
    assert {run.info.status for run in runs} == {"KILLED"}


def test_mlflow_run_keeps_the_study_in_its_own_run(options):
    pairs = [f"-P{key}={value}" for key, value in {**options, "trials": "2", "epochs": "1"}.items()]
    done = mlflow_run("-e", "sweep", "--experiment-name", "sweeps", *pairs)
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("sweeps").experiment_id])
    parent = study_of(options).user_attrs["mlflow_run"]
    assert sorted(runs_of(parent)) == [0, 1] and len(runs) == 3
    assert client.get_run(parent).data.params["trials"] == "2"
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_its_trial_tried_again(options, tmp_path):
    options = {**options, "trials": "4", "epochs": "20", "workers": "2"}
    process = start_sweep(options, tmp_path / "log")
    eventually(lambda: len(at_work(options)) == 2)
    victim = at_work(options)[0]
    os.kill(victim.user_attrs["worker"]["pid"], signal.SIGKILL)
    assert process.wait(120) == 0, (tmp_path / "log").read_text()
    assert "killed by SIGKILL" in (tmp_path / "log").read_text()
    failed = check_accounts(options, 4)
    assert victim.number in failed
    study = study_of(options)
    run = runs_of(study.user_attrs["mlflow_run"])[victim.number]
    assert run.info.status == "KILLED" and run.data.tags["trial.reason"] == "its worker died"
    again = [t for t in study.trials if retry_history(t)[0] == victim.number][-1]
    assert again.state in (COMPLETE, PRUNED) and again.params == study.trials[victim.number].params
    assert not any(psutil.pid_exists(t.user_attrs["worker"]["pid"]) for t in study.trials)


@pytest.mark.slow
def test_everything_killed_at_once_goes_on_at_the_next_start(options, tmp_path):
    options = {**options, "trials": "3", "epochs": "20", "workers": "2"}
    process = start_sweep(options, tmp_path / "log")
    eventually(lambda: len(at_work(options)) == 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    workers = {
        t.user_attrs["worker"]["pid"] for t in study_of(options).trials if "worker" in t.user_attrs
    }
    # Workers whose parent is gone stop by themselves, their trials saved and queued again.
    eventually(lambda: not any(c.is_running() and c.status() != "zombie" for c in children))
    assert workers and states(options).count(TrialState.RUNNING) == 0
    sweep_here({**options, "workers": "1"})
    failed = check_accounts(options, 3)
    assert len(failed) == 2


def test_a_trial_of_a_lost_machine_is_failed_after_a_silence(options):
    sweep_here({**options, "trials": "1", "epochs": "1"})
    study = study_of(options)
    lost = study.ask()
    lost.suggest_float("lr", 1e-4, 1e-2, log=True)
    lost.set_user_attr("worker", {"host": "elsewhere", "pid": 1, "started": 0.0})
    started = time.monotonic()
    sweep_here({**options, "trials": "2", "epochs": "1"})
    assert time.monotonic() - started > 3  # three heartbeats of a second
    assert check_accounts(options, 2) == [1]


def test_a_cut_line_does_not_spoil_the_journal(tmp_path):
    path = tmp_path / "s.journal"
    study = optuna.create_study(study_name="s", storage=open_storage(str(path), 20))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    with open(path, "ab") as file:
        file.write(b'{"op_code":4,"wor')
    study = optuna.load_study(study_name="s", storage=open_storage(str(path), 20))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 2)
    storage = optuna.storages.JournalStorage(Journal(str(path)))
    assert len(optuna.load_study(study_name="s", storage=storage).trials) == 4


@pytest.mark.parametrize(
    "damage", [b"banana\n", b"[1]\n", b"{}\n", b"\xe9\n", b"[" * 10_000 + b"\n"]
)
def test_a_damaged_journal_is_named_with_its_line(tmp_path, damage):
    path = tmp_path / "s.journal"
    study = optuna.create_study(study_name="s", storage=open_storage(str(path), 20))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), 1)
    lines = path.read_bytes().splitlines(keepends=True)
    for before in (2, len(lines)):
        path.write_bytes(b"".join([*lines[:before], damage, *lines[before:]]))
        with pytest.raises(InputError, match=f"line {before + 1} is not an entry"):
            open_storage(str(path), 20)


def test_addresses_of_storages():
    assert with_driver("mysql://h/d") == "mysql://h/d"
    assert runs_here(this_worker()) and not runs_here({**this_worker(), "started": 1.0})


@pytest.mark.parametrize("name", ["lr (cosface)", "a//b", "lr/", "lr=", "l" * 246])
def test_a_parameter_whose_name_mlflow_refuses_is_told_before_any_work(options, name):
    text = SPACE.replace("  lr: {", f"  {json.dumps(name)}: {{setting: lr, ")
    space = write_space(Path(options["space"]).parent, text)
    with pytest.raises(InputError, match=f"parameter {re.escape(name)}: "):
        sweep_here({**options, "space": space})
    assert not Path(options["output"]).exists()
