"""FaceEmbedder: every kind of picture, many threads, galleries, verdicts, hostile bytes; no MLflow for a folder."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facerec import FaceEmbedder
from facerec.data import decoding as pictures
from facerec.errors import InputError
from facerec.inference.model_uri import WEIGHTS
from facerec.model.network import activation_bytes, build_network
from tests.helpers.models import encoded, hostile_pictures, make_model, picture, recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder") / "model"
    make_model(folder)
    return folder


@pytest.fixture(autouse=True)
def reference_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to compile."""
    monkeypatch.setenv("FACEREC_SCAN", "reference")


@pytest.fixture
def embedder(folder: Path) -> FaceEmbedder:
    return FaceEmbedder.load(folder, device="cpu")


def test_kinds_of_picture_are_one(embedder: FaceEmbedder, tmp_path: Path) -> None:
    pixels = picture(1)
    path = tmp_path / "one.png"
    path.write_bytes(encoded(pixels))
    lazy = Image.open(io.BytesIO(path.read_bytes()))
    kinds = [
        pixels,
        path,
        str(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        lazy,
        Image.fromarray(pixels),
    ]
    embeddings = embedder.embed(kinds)
    assert embeddings.shape == (7, 8) and embeddings.dtype == np.float32
    assert np.allclose(embeddings, embeddings[0], atol=1e-6)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert embedder.embed(path).shape == (1, 8) and embedder.embed([]).shape == (0, 8)
    assert embedder.embed(np.stack([pixels, pixels])).shape == (2, 8)


def test_modes_and_rotation_of_pil_images(embedder: FaceEmbedder) -> None:
    pixels = picture(2)
    for mode in ("CMYK", "RGBA", "P", "L", "I;16", "1", "HSV", "F"):
        image = (
            Image.fromarray(pixels)
            .convert("L")
            .convert("I")
            .point(lambda v: v * 257)
            .convert("I;16")
        )
        image = image if mode == "I;16" else Image.fromarray(pixels).convert(mode)
        assert np.isfinite(embedder.embed(image)).all(), mode
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera on its side
    turned = encoded(np.rot90(pixels), "PNG", exif=exif)
    both = embedder.embed([turned, Image.open(io.BytesIO(turned)), pixels])
    assert np.allclose(both, both[2], atol=1e-5)


def test_one_lazy_image_given_twice(embedder: FaceEmbedder) -> None:
    for _ in range(5):
        lazy = Image.open(io.BytesIO(encoded(picture(1, 600), "JPEG")))
        assert embedder.similarity(lazy, lazy) == pytest.approx(1, abs=1e-5)


def test_a_pil_image_is_judged_by_its_pixels(embedder: FaceEmbedder, monkeypatch) -> None:
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 1000)
    assert embedder.embed(Image.fromarray(picture(1, 100))).shape == (1, 8)
    frames = [Image.fromarray(picture(seed)) for seed in range(3)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="animated"):
        embedder.embed(Image.open(io.BytesIO(moving)))


def test_warnings_are_left_to_the_caller(embedder: FaceEmbedder) -> None:
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(embedder.embed, [encoded(picture(seed)) for seed in range(100)]))
    assert list(warnings.filters) == before


def test_faces_as_the_network_sees_them(embedder: FaceEmbedder) -> None:
    shown = embedder.faces([picture(1), picture(2)])
    assert np.allclose(embedder.embed_faces(shown), embedder.embed([picture(1), picture(2)]))
    assert embedder.faces([picture(1)], side=100).shape == (1, 100, 100, 3)
    with pytest.raises(InputError, match=r"\(N, 16, 16, 3\) uint8 is expected"):
        embedder.embed_faces(shown.astype(np.float32))


def test_batches_and_flips(embedder: FaceEmbedder) -> None:
    pictures = [picture(seed) for seed in range(7)]
    whole = embedder.embed(pictures)
    assert np.allclose(embedder.embed(pictures, batch_size=3), whole, atol=1e-6)
    flipped = embedder.embed([p[:, ::-1] for p in pictures])
    mean = whole + flipped
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    assert np.allclose(embedder.embed(pictures, flip=True), mean, atol=1e-5)


def test_many_faces_are_embedded_as_many_at_a_time_as_memory_holds(
    folder: Path, monkeypatch
) -> None:
    faces = np.stack([picture(seed, 16) for seed in range(5)])
    expected = FaceEmbedder.load(folder, "cpu").embed_faces(faces, flip=True)
    monkeypatch.setattr("facerec.inference.embedder.MEMORY", 2 * activation_bytes(recipe(), 16))
    few, sizes = FaceEmbedder.load(folder, "cpu"), []
    few.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert np.allclose(few.embed_faces(faces, flip=True), expected, atol=1e-6)
    assert sizes == [2, 2, 2, 2, 1, 1] and few.embed_faces(faces[:0]).shape == (0, 8)


def test_threads_get_what_one_gets(embedder: FaceEmbedder) -> None:
    pictures = [encoded(picture(seed)) for seed in range(24)]
    expected = embedder.embed(pictures)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda p: embedder.embed(p)[0], pictures * 4))
    assert np.allclose(found, np.tile(expected, (4, 1)), atol=1e-5)


def test_verdicts(embedder: FaceEmbedder) -> None:
    verdict = embedder.judge(0.5)
    assert (verdict.same_person, verdict.threshold, verdict.impostor_pairs) == (True, 0.5, 20_000)
    assert verdict.probability == pytest.approx(0.5)
    assert not embedder.judge(0.4999).same_person and embedder.judge(0.3, far=0.1).same_person
    assert embedder.same_person(picture(1), picture(1))
    assert -1 <= embedder.similarity(picture(1), picture(2)) <= 1
    with pytest.raises(InputError, match=r"too few pairs .* \(20,000\); .* it has: 0\.1, 0\.001"):
        embedder.same_person("nobody looks", "here", far=1e-4)
    with pytest.raises(InputError, match=r"no threshold for it; give one"):
        embedder.judge(0.5, far=0.02)


def test_a_name_that_begins_like_a_home(embedder: FaceEmbedder, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~nobody.png").write_bytes(encoded(picture(1)))
    assert embedder.embed("~nobody.png").shape == (1, 8)
    assert embedder.gallery(".").names == ("~nobody",)
    with pytest.raises(InputError, match=r"~nosuchuser/x.png: no such file"):
        embedder.embed("~nosuchuser/x.png")
    with pytest.raises(InputError, match="no such folder"):
        FaceEmbedder.load("~nosuchuser/x", "cpu")


def test_a_frame_that_nobody_knows(embedder: FaceEmbedder) -> None:
    with pytest.raises(InputError, match=r"how the pictures of .* were framed is not known"):
        embedder.embed(picture(1), align="find")
    with pytest.raises(InputError, match="without alignment no face is looked for"):
        embedder.embed(picture(1), choice="central")


def test_identify_in_a_folder_and_a_mapping(embedder: FaceEmbedder, tmp_path: Path) -> None:
    gallery, outside = tmp_path / "gallery", tmp_path / "elsewhere/1.png"
    for name, seed in (("Ann/1.png", 1), ("Ann/2.png", 2), ("Bob.png", 3), ("team/Cy/1.png", 4)):
        (gallery / name).parent.mkdir(parents=True, exist_ok=True)
        (gallery / name).write_bytes(encoded(picture(seed)))
    (gallery / "broken.jpg").write_bytes(b"no picture")
    outside.parent.mkdir()
    outside.write_bytes(encoded(picture(9)))
    (gallery / "Di").symlink_to(outside.parent)
    (gallery / "Ann/.ipynb_checkpoints").mkdir()
    (gallery / "Ann/.ipynb_checkpoints/1.png").write_bytes(encoded(picture(3)))
    known = embedder.gallery(gallery)
    assert sorted(known.names) == ["Ann", "Ann", "Bob", "Di", "team/Cy"]
    assert known.notes[0] == "gallery: 6 images of 5 people" and len(known.notes) == 2
    assert "1 hidden image left out" in known.notes[1]
    assert len(known.skipped) == 1 and "not a picture" in known.skipped[0][1]
    matches = embedder.identify(picture(2), known)
    assert matches[0].name == "Ann" and matches[0].picture.endswith("2.png")
    assert len(matches) == 4 and matches[0].similarity == pytest.approx(1, abs=1e-5)
    assert (
        embedder.identify(picture(3), {"Ann": [picture(1)], "Bob": picture(3)}, top=1)[0].name
        == "Bob"
    )
    with pytest.raises(InputError, match="a list, where one probe is expected"):
        embedder.identify([picture(1), picture(2)], known)
    with pytest.raises(InputError, match="top=0"):
        embedder.identify(picture(2), known, top=0)
    with pytest.raises(InputError, match="another model"):
        embedder.identify(picture(2), replace(known, model="f" * 64))
    with pytest.raises(InputError, match="no such folder"):
        embedder.identify(picture(1), tmp_path / "nowhere")
    with pytest.raises(InputError, match="empty"):
        embedder.gallery({})


@pytest.mark.parametrize("name", hostile_pictures())
def test_hostile_pictures_are_one_sentence(
    embedder: FaceEmbedder, tmp_path: Path, name: str
) -> None:
    data = hostile_pictures()[name]
    path = tmp_path / "face.jpg"
    path.write_bytes(data)
    for bad, called in ((data, "picture 2: "), (path, "face.jpg: ")):
        with pytest.raises(InputError) as caught:
            embedder.embed([picture(1), bad])
        assert called in str(caught.value) and "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400
    assert embedder.embed_usable([picture(1), data, picture(2)])[1] == [0, 2]


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("http://example.org/face.jpg", "a URL where a path is due"),
        ("../../../no/such/face.jpg", "no such file"),
        ("a\0b.jpg", "cannot be read"),
        (".", "a folder"),
        ("/dev/zero", "no regular file"),
        (np.zeros((40, 40), np.uint8), r"\(H, W, 3\) uint8 is due"),
        (np.zeros((40, 40, 3)), "float64"),
        (np.zeros((2, 900, 3), np.uint8), "too small"),
        ("file:///face.jpg", "a URL where a path is due"),
        (io.BytesIO(b"GIF89a"), "a BytesIO, where"),
        (None, "a NoneType"),
        (7, "a int"),
    ],
)
def test_what_is_no_picture(embedder: FaceEmbedder, bad: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        embedder.embed([bad])
    with pytest.raises(InputError, match=reason):
        embedder.embed(bad)


@pytest.mark.parametrize(
    "source, device, reason",
    [
        ("nowhere", "cpu", "no such folder"),
        ("https://example.org/model", "cpu", "is a URL"),
        ("models:/nobody@champion", "cpu", "cannot be fetched"),
        ("models:/nobody", "cpu", "NAME@ALIAS or models:/NAME/VERSION is due"),
        ("runs:/0123456789abcdef0123456789abcdef", "cpu", "runs:/RUN_ID/model"),
        ("pretraind", "cpu", "did you mean pretrained"),
        ("runs:/0123456789abcdef0123456789abcdef/model", "cpu", "cannot be fetched"),
        (".", "tpu", "device=tpu"),
        (".", "cuda:99", "CUDA devices are here"),
    ],
)
def test_what_is_no_model(source: str, device: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        FaceEmbedder.load(source, device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "teacher"), [("pretrained", True), ("pretrained-lfw", False)])
def test_a_shipped_model_works_and_says_whom_it_has_met(name: str, teacher: bool) -> None:
    faces = FaceEmbedder.load(name, "cpu")
    pictures = [Image.new("RGB", (80, 80), color) for color in ("gray", "brown")]
    embeddings = faces.embed(pictures)
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)
    folder = WEIGHTS / name
    card = (folder / "MODEL_CARD.md").read_text()
    assert "For research only" in card and ("It has learnt from a teacher" in card) == teacher
    assert json.loads((folder / "provenance.json").read_text())["train"]["people"] == 3432
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*")) < 16e6


def test_shipped_models_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facerec.inference.model_uri.WEIGHTS", tmp_path)
    network = make_model(tmp_path / "pretrained")
    found = FaceEmbedder.load("pretrained", "cpu").network
    assert torch.equal(found.head.weight, network.head.weight)
    with pytest.raises(InputError, match="pretrained-lfw did not come with"):
        FaceEmbedder.load("pretrained-lfw")


def test_a_folder_needs_no_mlflow(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(picture(1)))
    program = (
        "import sys\n"
        "from facerec import FaceEmbedder\n"
        f"FaceEmbedder.load({str(folder)!r}, 'cpu').embed({str(tmp_path / 'one.png')!r})\n"
        "heavy = {'mlflow', 'plotly', 'sklearn', 'pandas', 'scipy', 'optuna', 'sympy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- what others have set in the same process


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() is dtype
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def raised_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


STATES = {
    **{str(t): lambda t=t: default_dtype(t) for t in (torch.float64, torch.bfloat16, torch.half)},
    "default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "numpy errors": lambda: np.errstate(all="raise"),
    "warnings": raised_warnings,
}
NETWORKS = (
    {},
    {"norm": "group", "direction": "bidirectional"},
    {"mixer": "attention", "d_model": 64},
    {"backbone": "resnet18"},
    {"backbone": "vit", "d_model": 64},
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("networks") / "model" for _ in NETWORKS]
    for folder, network in zip(folders, NETWORKS, strict=True):
        make_model(folder, **network)
    return folders


@pytest.mark.parametrize("state", STATES.values(), ids=list(STATES))
def test_load_and_embed_do_not_depend_on_global_state(
    folders: list[Path], state: Callable[[], AbstractContextManager]
) -> None:
    faces = [picture(1), encoded(picture(2))]
    plain = [FaceEmbedder.load(folder, "cpu") for folder in folders]
    expected = [embedder.embed(faces, flip=True) for embedder in plain]
    before = torch.get_rng_state()
    with state():
        embedders = [FaceEmbedder.load(folder, "cpu") for folder in folders]
        found = [embedder.embed(faces, flip=True) for embedder in embedders]
        cut = embedders[0].faces(faces)
        cut.flags.writeable = False  # as the faces of a store are
        found.append(embedders[0].embed_faces(cut, flip=True))
    for one, other in zip(found, [*expected, expected[0]], strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    for one, other in zip(plain, embedders, strict=True):
        weights = other.network.state_dict()
        for name, tensor in one.network.state_dict().items():
            assert weights[name].dtype == tensor.dtype and torch.equal(weights[name], tensor), name
    assert torch.equal(torch.get_rng_state(), before)  # loading draws no weights
    pixels = torch.zeros(2, 3, 16, 16)
    for embedder in embedders:  # of inference mode, they could not be trained
        embedder.network(pixels).sum().backward()


@pytest.mark.parametrize("name", [name for name in STATES if name != "default device"])
def test_fresh_weights_do_not_depend_on_global_state(
    name: str,
) -> None:
    def weights(network: dict) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        return build_network(recipe(**network)).state_dict()

    for network in NETWORKS:
        expected = weights(network)
        with STATES[name]():
            found = weights(network)
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
