"""Models in MLflow: logged, loaded, registered, promoted, and served over HTTP to people who mean harm."""

from __future__ import annotations

import base64
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from facerec import FaceEmbedder
from facerec.config.settings import as_params
from facerec.data.decoding import PictureError
from facerec.data.store import open_store
from facerec.errors import InputError
from facerec.inference.model_io import FILES, write_model
from facerec.model.network import build_network
from facerec.tracking.registry import log_model, package_files, register
from tests.helpers import PROJECT
from tests.helpers.models import (
    CALIBRATION,
    encoded,
    hostile_pictures,
    make_model,
    many_scans,
    odd_pictures,
    picture,
    recipe,
    seen,
)
from tests.helpers.servers import free_port, wait_for


@pytest.fixture(autouse=True)
def reference_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to compile, also in the servers that tests start."""
    monkeypatch.setenv("FACEREC_SCAN", "reference")


def logged(folder: Path, params: dict[str, str] | None = None) -> str:
    """A run with the model in it."""
    with mlflow.start_run() as run:
        mlflow.log_params(params or {})
        mlflow.log_metric("val/map_at_r", 0.25, step=1)
        mlflow.log_metric("val/map_at_r", 0.5, step=2)
        mlflow.set_tag("best.epoch", "1")
    log_model(folder, run.info.run_id)
    return run.info.run_id


def test_a_logged_model_answers_like_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_model(tmp_path / "model")
    run_id = logged(tmp_path / "model")
    paths = []
    for seed in (1, 2):
        paths.append(str(tmp_path / f"{seed}.png"))
        Path(paths[-1]).write_bytes(encoded(picture(seed)))
    expected = FaceEmbedder.load(tmp_path / "model", "cpu").embed(paths)

    model = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    found = model.predict(pd.DataFrame({"image": [paths[0], Path(paths[1]).read_bytes()]}))
    assert np.allclose(found, expected, atol=1e-6)
    pairs = pd.DataFrame({"image_a": paths, "image_b": [paths[0]] * 2})
    verdicts = model.predict(pairs, params={"far": 0.1})
    assert list(verdicts.columns) == ["similarity", "probability", "same_person"]
    assert verdicts.similarity[1] == pytest.approx(float(expected[0] @ expected[1]), abs=1e-5)
    as_text = model.predict(pd.DataFrame({"image": [text(Path(p).read_bytes()) for p in paths]}))
    assert np.allclose(as_text, expected, atol=1e-6)
    wrapped = base64.encodebytes(Path(paths[0]).read_bytes()).decode()
    assert np.allclose(model.predict(pd.DataFrame({"image": [wrapped]})), expected[:1], atol=1e-6)
    assert model.predict(model.input_example).shape == (1, 8)
    far = "far/" * 20 + "nowhere"  # a path that could be base64 but for its length
    for bad, told in (
        ({"image": [paths[0], "nowhere.png"]}, "image, nowhere.png: no such file"),
        ({"image": [far]}, "no such file"),
        ({"image_a": paths, "image_b": [paths[0], b"text"]}, "image_b, picture 2: not a picture"),
        ({"picture": paths}, "a column image is expected"),
    ):
        with pytest.raises(MlflowException, match=told) as caught:
            model.predict(pd.DataFrame(bad))
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"

    with monkeypatch.context() as behind_a_server_of_ones_own:
        behind_a_server_of_ones_own.setenv("FACEREC_SERVING", "1")
        with pytest.raises(MlflowException, match="no paths or URLs"):
            model.predict(pd.DataFrame({"image": [paths[0]]}))

    monkeypatch.setenv("MLFLOW_ALLOW_MODEL_CODE_EXECUTION", "false")
    embedder = FaceEmbedder.load(f"runs:/{run_id}/model", "cpu")
    assert np.allclose(embedder.embed(paths), expected, atol=1e-6)


INDICES = {
    "a part of a frame": [3, 0, 2],
    "text": ["c", "a", "b"],
    "twice the same": [7, 7, 1],
    "two levels": pd.MultiIndex.from_tuples([("x", 1), ("x", 0), ("y", 1)], names=["k", None]),
    "dates": pd.date_range("2026-01-01", periods=3, name="day")[::-1],
}


def test_answers_have_the_index_of_what_was_asked(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    model = mlflow.pyfunc.load_model(f"runs:/{logged(tmp_path / 'model')}/model")
    files = [encoded(picture(seed)) for seed in range(3)]
    expected = FaceEmbedder.load(tmp_path / "model", "cpu").embed(files)
    pairs = {"image_a": files, "image_b": [files[0], files[0], files[2]]}
    for name, index in INDICES.items():
        frame = pd.DataFrame({"image": files}, index=index)
        found = model.predict(frame)
        assert found.index.equals(frame.index) and found.index.names == frame.index.names, name
        assert list(found) == [f"embedding_{i}" for i in range(8)]
        assert np.allclose(found, expected, atol=1e-6) and set(found.dtypes) == {np.dtype("f4")}
        frame = pd.DataFrame(pairs, index=index)
        verdicts = model.predict(frame)
        assert verdicts.index.equals(frame.index), name
        cosines = [1, float(expected[0] @ expected[1]), 1]
        assert np.allclose(verdicts.similarity, cosines, atol=1e-5)
    frame = pd.DataFrame(pairs)
    frame["similarity"] = model.predict(frame.iloc[[2, 1]])["similarity"]
    assert np.allclose(frame.similarity[1:], cosines[1:], atol=1e-5)
    assert np.isnan(frame.similarity[0])
    assert model.predict(frame.iloc[:0]).shape == (0, 3)
    many = pd.DataFrame({"image": files * 400})  # more than a server takes
    assert np.allclose(model.predict(many)[-3:], expected, atol=1e-5)


STRANGERS = (
    "credentials.env",
    "secrets.json",
    "photo.jpg",
    "mlflow.db",
    "embeddings.html",
    ".netrc",
)


def test_what_is_logged_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own files and the model's, whatever else lies there, and behind no link."""
    command = ["git", "ls-files", "facerec"]
    listed = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    apart = ("facerec/weights/", "facerec/recipes", "facerec/spaces")  # the last two are links
    own = {name for name in listed.stdout.split() if not name.startswith(apart)}
    package = tmp_path / "facerec"
    for name in own:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PROJECT / name, tmp_path / name)
    assert files_of(package) == own  # by the rule for a package that git does not know
    for command in (["git", "init", "-q"], ["git", "add", "facerec"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    make_model(tmp_path / "model")
    for folder in (package, package / "data", package / "mlruns/0/code/facerec", package / "venv"):
        for name in (*STRANGERS, "module.py", "local_settings.py"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("secret")
    (package / "linked.py").symlink_to(tmp_path / "facerec" / "venv" / "module.py")
    (package / "report/assets/page.css").unlink()
    (package / "report/assets/page.css").symlink_to(package / "secrets.json")
    (tmp_path / "model" / "secrets.json").write_text("secret")
    monkeypatch.setattr("facerec.tracking.registry.facerec.__file__", str(package / "__init__.py"))
    uri = f"runs:/{logged(tmp_path / 'model')}/model"
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    code = {name.removeprefix("code/") for name in names if name.startswith("code/")}
    assert code == own - {"facerec/report/assets/page.css"}
    assert {n for n in names if n.startswith("artifacts/")} == {
        f"artifacts/face_model/{name}" for name in FILES
    }
    assert not [p for p in folder.rglob("*") if p.is_file() and p.read_bytes() == b"secret"]
    wanted = (folder / "requirements.txt").read_text().split()
    assert "mlflow<4,>=3.17" in wanted and f"numpy=={np.__version__}" in wanted
    assert not [w for w in wanted if w.startswith(("facerec", "plotly", "optuna", "scikit"))]


def files_of(package: Path) -> set[str]:
    """What is logged of a package's folder, from the folder above it."""
    return {p.relative_to(package.parent).as_posix() for p in package_files(package)}


def test_of_an_installed_package_what_was_installed_is_logged(tmp_path, monkeypatch) -> None:
    package, info = tmp_path / "facerec", tmp_path / "facerec-0.1.0.dist-info"
    names = {"__init__.py", "page.css", "local_settings.py", "weights/w.py", "__pycache__/a.pyc"}
    for name in names:
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).touch()
    info.mkdir()
    (info / "METADATA").write_text("Name: facerec\nVersion: 0.1.0\n")
    listed = [f"facerec/{name},," for name in names - {"local_settings.py"}]
    listed.append("facerec-0.1.0.dist-info/RECORD,,")
    (info / "RECORD").write_text("\n".join(listed))
    monkeypatch.syspath_prepend(tmp_path)
    assert files_of(package) == {"facerec/__init__.py", "facerec/page.css"}


def environment(folder: Path, requirements: Path) -> Path:
    """A folder with links to the packages that requirements name, and to what those need in turn, and nothing else."""
    folder.mkdir()
    wanted, known = requirements.read_text().split("\n"), set()
    while wanted:
        name = re.match(r"[A-Za-z0-9._-]*", wanted.pop())[0]
        try:
            package = importlib.metadata.distribution(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue  # of another platform
        if package.name not in known:
            known.add(package.name)
            wanted += [r for r in package.requires or [] if "extra ==" not in r]
            for top in {file.parts[0] for file in package.files} - {"..", "__pycache__"}:
                if not (folder / top).exists():
                    (folder / top).symlink_to(package.locate_file(top))
    return folder


USE = """
import sys
sys.path.append(sys.argv[1])
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[2])
import facerec
print(facerec.__file__.startswith(sys.argv[2]), model.predict(model.input_example).shape)
"""


def test_the_requirements_suffice(tmp_path: Path) -> None:
    """Where no other package is, and no facerec but the model's own."""
    make_model(tmp_path / "model", backbone="resnet18")
    uri = f"runs:/{logged(tmp_path / 'model')}/model"
    model = mlflow.artifacts.download_artifacts(uri, dst_path=str(tmp_path / "there")).rstrip("/")
    packages = environment(tmp_path / "packages", Path(model) / "requirements.txt")
    assert (packages / "torch").exists() and not (packages / "optuna").exists()
    command = [sys.executable, "-I", "-S", "-c", USE, str(packages), model]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "True (1, 8)", done.stderr[-2000:]


# ---- registering and promoting


@pytest.fixture
def faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Parameters of runs on people who are told apart by colour: 160 of them with 4 pictures each."""
    monkeypatch.setenv("FACEREC_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0)
    for person in range(160):
        for number in range(4):
            shade = picture(person) // 2 + noise.integers(0, 60, (40, 40, 3), np.uint8)
            path = tmp_path / "faces" / f"person {person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(shade.astype(np.uint8)))
    return as_params(recipe(data=str(tmp_path / "faces")))


def trained(folder: Path, faces: dict[str, str], blind: bool, provenance: Any = None) -> str:
    """A run on those faces. A blind model sees nothing but the upper left corner's brightness."""
    torch.manual_seed(0)
    settings = recipe(data=faces["data"], backbone="resnet18")
    network = build_network(settings).eval()
    if blind:
        with torch.no_grad():
            network.backbone.fc.weight.mul_(1e-6)
    whole = {"calibration": CALIBRATION, "card": "", "provenance": provenance or seen()}
    write_model(folder, network, settings, **whole)
    run_id = logged(folder, faces)
    mlflow.MlflowClient().set_tag(run_id, "data.digest", open_store(settings).digest)
    return run_id


def test_the_alias_goes_to_the_better_model(tmp_path: Path, faces: dict[str, str]) -> None:
    client = mlflow.MlflowClient()
    blind = trained(tmp_path / "blind", faces, blind=True)
    sighted = trained(tmp_path / "sighted", faces, blind=False)
    first = register(blind, "faces", "champion")
    assert first.promoted and "nobody had" in first.told
    version = client.get_model_version("faces", first.version)
    assert version.tags["val/map_at_r"] == "0.250000"  # of the best epoch, not of the last

    second = register(sighted, "faces", "champion")
    assert (
        second.promoted and "better: val/map_at_r" in second.told and "95 % interval" in second.told
    )
    again = register(sighted, "faces", "champion")
    assert again.version == second.version and "has the alias champion already" in again.told
    third = register(blind, "faces", "champion")
    assert third.version == first.version and not third.promoted
    assert f"stays on version {second.version}" in third.told
    assert FaceEmbedder.load("models:/faces@champion", "cpu").config.network.backbone == "resnet18"
    assert register(blind, "faces", "champion", force=True).promoted
    assert str(client.get_model_version_by_alias("faces", "champion").version) == first.version


def test_few_people_decide_nothing(tmp_path: Path, faces: dict[str, str]) -> None:
    for person in range(40, 160):
        shutil.rmtree(tmp_path / "faces" / f"person {person}")
    register(trained(tmp_path / "blind", faces, blind=True), "faces", "champion")
    done = register(trained(tmp_path / "sighted", faces, blind=False), "faces", "champion")
    assert not done.promoted and "too few to tell, 20 are needed" in done.told


def test_a_model_that_refuses_pictures_does_not_take_over(
    tmp_path: Path, faces: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained(tmp_path / "blind", faces, blind=True), "faces", "champion")
    picky = trained(tmp_path / "sighted", faces, blind=False)
    embed_usable, calls = FaceEmbedder.embed_usable, []

    def choosy(self, pictures):
        embeddings, kept, failed = embed_usable(self, pictures)
        calls.append(len(kept))
        if len(calls) > 1:  # the champion
            return embeddings, kept, failed
        refused = {i: PictureError("no face") for i in kept[::10]}
        left = [i for i in kept if i not in refused]
        return embeddings[left], left, refused

    monkeypatch.setattr(FaceEmbedder, "embed_usable", choosy)
    done = register(picky, "faces", "champion")
    assert not done.promoted and re.search(r"cannot use \d+ of the \d+ validation", done.told)


def test_a_name_with_a_quote_is_another_name(tmp_path: Path, faces: dict[str, str]) -> None:
    run_id = trained(tmp_path / "blind", faces, blind=True)
    register(run_id, "obrien")
    register(run_id, "o'brien")
    names = {m.name for m in mlflow.MlflowClient().search_registered_models()}
    assert names == {"obrien", "o'brien"}


def test_a_champion_that_has_met_the_people_stays(tmp_path: Path, faces: dict[str, str]) -> None:
    store = open_store(recipe(data=faces["data"]))
    people = {store.names[i] for i in store.labels[store.indices("val")]}
    register(trained(tmp_path / "old", faces, True, seen(*people)), "faces", "champion")
    done = register(trained(tmp_path / "new", faces, blind=False), "faces", "champion")
    assert (
        not done.promoted
        and f"trained on {len(people)} of the {len(people)} validation people" in done.told
    )


def test_a_model_that_has_met_the_people_does_not_take_over(
    tmp_path: Path, faces: dict[str, str]
) -> None:
    store = open_store(recipe(data=faces["data"]))
    person = store.names[store.labels[store.indices("val")[0]]]
    register(trained(tmp_path / "old", faces, blind=True), "faces", "champion")
    done = register(trained(tmp_path / "new", faces, False, seen(person)), "faces", "champion")
    assert not done.promoted and "the new model was trained on 1 of the" in done.told


def test_what_cannot_be_registered(tmp_path: Path, faces: dict[str, str]) -> None:
    with pytest.raises(InputError, match="run nobody cannot be registered"):
        register("nobody")
    with mlflow.start_run() as empty:
        pass
    with pytest.raises(InputError, match="cannot be registered"):
        register(empty.info.run_id)
    assert not mlflow.MlflowClient().search_registered_models()
    register(trained(tmp_path / "old", faces, blind=True), "faces", "champion")
    run_id = trained(tmp_path / "new", faces, blind=False)
    (Path(faces["data"]) / "person 1" / "0.png").unlink()
    with pytest.raises(InputError, match=r"faces version 2 is registered, but .* changed"):
        register(run_id, "faces", "champion")
    for alias in ("latest", "v1", "bad alias!"):
        with pytest.raises(InputError, match=f"alias={alias}: letters"):
            register(run_id, "faces", alias)
    assert register(run_id, "faces", "champion", force=True).promoted


def test_validation_people_whom_no_model_can_use(
    tmp_path: Path, faces: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(trained(tmp_path / "old", faces, blind=True), "faces", "champion")
    run_id = trained(tmp_path / "new", faces, blind=False)
    nothing = (np.empty((0, 8), np.float32), [], {})
    monkeypatch.setattr(FaceEmbedder, "embed_usable", lambda self, pictures: nothing)
    with pytest.raises(InputError, match="both models can use 0"):
        register(run_id, "faces", "champion")


# ---- over HTTP


@pytest.fixture(scope="module", params=["mlflow models", "facerec"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """A logged model behind MLflow's server and ours: the address of its /invocations, and the model folder."""
    folder = tmp_path_factory.mktemp("served")
    make_model(folder / "model")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACEREC_SCAN", "reference")
        patch.setenv("FACEREC_LIMIT_PIXELS", "1000000")
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.chdir(folder)
        run_id = logged(folder / "model")
        port = free_port()
        how = {"mlflow models": ["-m", "--env-manager", "local"], "facerec": ["--model"]}
        option, *others = how[request.param]
        command = [*request.param.split(), "serve", option, f"runs:/{run_id}/model", *others]
        server = subprocess.Popen(
            [sys.executable, "-m", *command, "--host", "127.0.0.1", "--port", str(port)],
            start_new_session=True,
            env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server)
            yield f"http://127.0.0.1:{port}/invocations", folder / "model"
        finally:
            os.killpg(server.pid, 15)
            server.wait(20)


def ask(url: str, body: Any, kind: str = "application/json") -> tuple[int, Any]:
    """Status and answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, {"Content-Type": kind})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def rows(*records: dict[str, Any], **params: Any) -> dict[str, Any]:
    return {"dataframe_records": list(records), **({"params": params} if params else {})}


def test_served_to_many_at_once(served: tuple[str, Path]) -> None:
    url, folder = served
    pictures = [encoded(picture(seed)) for seed in range(16)]
    expected = FaceEmbedder.load(folder, "cpu").embed(pictures)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda p: ask(url, rows({"image": text(p)})), pictures))
    assert {status for status, _ in answers} == {200}
    found = [answer["predictions"][0] for _, answer in answers]
    assert np.allclose(found, expected, atol=1e-5)
    pair = {"image_a": text(pictures[0]), "image_b": text(pictures[0])}
    status, answer = ask(url, rows(pair, far=0.1, align="none"))
    assert status == 200 and answer["predictions"][0]["same_person"] is True


def test_served_to_people_who_mean_harm(served: tuple[str, Path]) -> None:
    url, folder = served
    good = text(encoded(picture(1)))
    secret = folder.parent / "secret.png"
    secret.write_bytes(encoded(picture(2)))
    bad = [rows({"image": text(data)}) for data in hostile_pictures().values()]
    bad += [
        rows({"image": str(secret)}),
        rows({"image": secret.as_uri()}),
        rows({"image": "secret.png"}),
    ]
    bad += [
        rows({"image": value})
        for value in ("http://localhost/x.png", "!", "", 7, None, {"path": str(secret)})
    ]
    bad += [
        rows({"image": good}, align="five-point"),
        rows({"image": good}, choice="x"),
    ]
    bad += [rows({"image_a": good}), rows({"face": good}), rows(), rows(*[{"image": good}] * 1025)]
    bad += [rows({"image_a": good, "image_b": good}, far=far) for far in (2.0, 1e-4, 0.0)]
    bad += [
        {"dataframe_split": {"columns": ["image"], "data": [[str(secret)]]}},
        {"inputs": {"image": [str(secret)]}},
    ]
    bad += [b"{", b"[]", {"instances": [1, 2]}, b"\xff\xfe"]
    for body in bad:
        status, answer = ask(url, body)
        assert status == 400, (str(body)[:200], status, answer)
        assert "Traceback" not in answer and 'File "' not in answer, answer
    status, answer = ask(url, f"image\n{secret}\n".encode(), "text/csv")
    assert status == 400 and "not valid base64" in answer
    odd = [{"image": text(data)} for data in odd_pictures().values()]
    assert ask(url, rows({"image": good}, *odd))[0] == 200


def test_served_within_limits(served: tuple[str, Path]) -> None:
    url, _ = served
    canvas = encoded(Image.new("RGB", (900, 900)), "WEBP", lossless=True)
    assert ask(url, rows(*[{"image": text(canvas)}] * 9))[0] == 200  # decoded once
    huge = [{"image": text(canvas + bytes([n]))} for n in range(9)]
    for body, limit in (
        (rows(*huge), "7,290,000 pixels, .* up to 1,000,000 .FACEREC_LIMIT_PIXELS"),
        (rows({"image": text(many_scans(7000, 400))}), "FACEREC_LIMIT_SCANS"),
        (rows(*[{"image": text(canvas)}] * 1025), "1,025 rows; .* 1,024 .FACEREC_LIMIT_ROWS"),
    ):
        status, answer = ask(url, body)
        assert status == 400 and re.search(limit, answer), answer
