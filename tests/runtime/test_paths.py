"""Which file a setting means, in every command, also where `mlflow run` was typed in another folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient

from facerec.cli import ENTRIES, load
from facerec.config.recipe import resolve
from facerec.errors import InputError
from facerec.inference.model_uri import SHIPPED
from facerec.runtime import paths
from facerec.tracking import run as tracking
from tests.helpers import PROJECT
from tests.helpers.commands import environment
from tests.helpers.models import encoded, make_model, picture

# Every setting that names a file or folder to be read, or a folder for what is made.
PATHS = {
    "train": ("data", "cache", "init", "output"),
    "finetune": ("model", "data", "cache", "init", "output"),
    "sweep": ("space", "storage", "data", "cache", "init", "output"),
    "evaluate": ("model", "data", "gallery", "cache", "output"),
    "visualize": ("model", "data", "cache", "output"),
    "predict": ("a", "b", "probe", "gallery", "model"),
}
NO_PATHS = ("runs:/0123/model", "models:/faces@champion", "postgresql://user@host/db", "s3://b/x")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The project, which is the working folder, and the folder in which `mlflow run` was typed."""
    project, launch = tmp_path / "project", tmp_path / "launch"
    for folder in (project, launch):
        (folder / "both").mkdir(parents=True)
    (project / "here").mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setattr(paths, "launch_folder", lambda: launch)
    return project, launch


@pytest.mark.parametrize("command", PATHS)
def test_one_rule_for_every_setting(command: str, folders: tuple[Path, Path]) -> None:
    model, _ = load(ENTRIES[command])
    needed = {"model": "here"} if command == "finetune" else {}

    def meant(setting: str, text: str) -> str:
        return getattr(resolve(model, {**needed, setting: text}), setting)

    for setting in PATHS[command]:
        for text in ("rel", "c:d.jpg", "a:b/", r"C:\faces", "./demo", "no/where"):
            assert meant(setting, text) == str(folders[1] / text), setting
        for text in ("here", "both", str(folders[0] / "gone"), *NO_PATHS):
            assert meant(setting, text) == text, setting
        assert meant(setting, "~/x") == os.path.expanduser("~/x"), setting
        names = {"data": ("demo", "lfw"), "model": SHIPPED, "init": SHIPPED}.get(setting, ())
        assert [meant(setting, name) for name in names] == list(names)


def test_what_else_a_setting_says(folders: tuple[Path, Path]) -> None:
    launch = folders[1]
    evaluate, predict = (load(ENTRIES[name])[0] for name in ("evaluate", "predict"))
    several = resolve(evaluate, {"model": "pretrained, here,m:1,runs:/1/model"}).model
    assert several == f"pretrained,here,{launch / 'm:1'},runs:/1/model"
    # A file that is written never takes the place of one of the project's.
    assert resolve(predict, {"picture": "both"}).picture == str(launch / "both")
    again = resolve(predict, {"a": str(launch / "rel")}).a
    assert again == str(launch / "rel")


def test_without_mlflow_run_paths_stay_as_they_are(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run_id in ("", "0" * 32):  # the second as in a process that a run's id was handed to
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        assert [paths.located(p) for p in ("rel", "c:d", "")] == ["rel", "c:d", ""]
        assert paths.written("rel") == "rel"


def test_what_others_read_holds_paths_as_they_were_given(folders: tuple[Path, Path], monkeypatch):
    launch = folders[1]
    monkeypatch.setenv("HOME", str(launch.parent))
    for given in (
        "rel/a.png",
        "~/faces",
        "one,two/model",
        "/elsewhere/a.png",
        "demo",
        "",
        "runs:/1/model",
    ):
        placed = ",".join(paths.written(part) for part in given.split(","))
        assert paths.as_given(placed) == given
    assert paths.as_given(str(launch)) == "~/launch"


def test_names_that_look_like_urls_are_files_where_there_are_such(tmp_path: Path, monkeypatch):
    from facerec.data.decoding import PictureError
    from facerec.inference.inputs import pixels

    monkeypatch.chdir(tmp_path)
    for name in ("c:d.png", "data:1.png", "runs:x.png"):
        Path(name).write_bytes(encoded(picture(1)))
        assert pixels(name).shape == (40, 40, 3)
    for name in ("https://example.org/a.jpg", "data:image/png;base64," + "A" * 5000):
        with pytest.raises(PictureError, match="a URL where a path is due"):
            pixels(name)


def test_mlflow_run_from_another_folder(tmp_path: Path, own_tracking: Path) -> None:
    make_model(tmp_path / "m:1")
    (tmp_path / "people").mkdir()
    for name in ("c:d.png", "people/ann.png"):
        (tmp_path / name).write_bytes(encoded(picture(1)))
    command = [sys.executable, "-m", "mlflow", "run", str(PROJECT), "--env-manager", "local"]
    command += ["--experiment-name", "facerec", "-e", "predict"]
    given = {"probe": "c:d.png", "gallery": "people", "model": "m:1", "picture": "both.png"}
    for key, value in given.items():
        command += ["-P", f"{key}={value}"]
    child = environment(FACEREC_SCAN="reference")
    done = subprocess.run(command, cwd=tmp_path, env=child, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "same person" in done.stdout + done.stderr and (tmp_path / "both.png").is_file()
    client = MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("facerec").experiment_id])
    answer = Path(client.download_artifacts(run.info.run_id, "answer.json")).read_text()
    assert not any(word in answer for word in ("ann", "c:d.png", str(tmp_path)))


def test_a_recipe_is_found_by_the_same_rule(folders: tuple[Path, Path], monkeypatch) -> None:
    from facerec.cli import facerec

    (folders[1] / "r:1.yaml").write_text("epochs: banana\n")
    for config, reason in (("r:1.yaml", "epochs=banana"), ("no.yaml", "there is no such file")):
        with pytest.raises(InputError, match=reason):
            facerec.main(["train", "--config", config], standalone_mode=False)


def test_parent_processes_are_looked_at_once_for_all_parameters(tmp_path: Path, monkeypatch):
    looked, put = [], []
    monkeypatch.setattr(paths, "launch_folder", lambda: looked.append(1) or tmp_path)
    params = {name: str(tmp_path / name) for name in "abc"}
    tracking.Run.log_params(SimpleNamespace(put=put.append), params)
    assert put == [{"params": {name: name for name in "abc"}}] and len(looked) == 1
