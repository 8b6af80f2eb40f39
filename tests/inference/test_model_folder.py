"""Model folders: written whole, read with suspicion; provenance tells leaks and no names."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from facerec.errors import InputError
from facerec.inference.calibration import Curve
from facerec.inference.model_io import read_config, read_model, to_json
from facerec.inference.provenance import (
    DataSet,
    Provenance,
    Seen,
    check_hashes,
    met,
    model_card,
    provenance,
)
from facerec.inference.weights_file import read_network
from facerec.runtime.untrusted import MAX_TEXT, read_up_to
from tests.helpers.models import CALIBRATION, make_model, recipe, seen


def test_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    network = make_model(tmp_path / "model", scan_backend="reference", crop=0.6)
    before = torch.get_rng_state()
    model = read_model(tmp_path / "model")
    assert torch.equal(before, torch.get_rng_state())
    assert model.calibration == CALIBRATION and model.provenance == seen()
    assert (model.config.image_size, model.config.crop, model.config.align) == (16, 0.6, "none")
    assert model.config.network.scan_backend == "auto" and not model.network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name])


@pytest.mark.parametrize("backbone", ["resnet18", "vit"])
def test_baselines_come_back_too(tmp_path: Path, backbone: str) -> None:
    network = make_model(tmp_path / "model", backbone=backbone)
    x = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        again = read_model(tmp_path / "model").network(x)
        assert torch.allclose(network(x), again, atol=1e-6)


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    network = make_model(tmp_path / "model")
    weights(lambda t: t.update({k: v.half() for k, v in t.items() if v.is_floating_point()}))(
        tmp_path / "model"
    )
    found = read_model(tmp_path / "model").network.state_dict()
    for name, tensor in network.state_dict().items():
        assert found[name].dtype == tensor.dtype
        assert torch.allclose(found[name], tensor, rtol=1e-3, atol=1e-5)


def edit(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Alter config.json."""

    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Alter the weights, and the checksum with them, as somebody with intent would."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / "weights.safetensors")
        change(tensors)
        save_file(tensors, folder / "weights.safetensors")
        restamp(folder)

    return apply


def replaced(name: str, data: bytes) -> Callable[[Path], None]:
    """Other bytes under a right checksum."""

    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)
        restamp(folder)

    return apply


def restamp(folder: Path) -> None:
    import hashlib

    edit(
        lambda config: config["sha256"].update(
            {
                name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
                for name in config["sha256"]
            }
        )
    )(folder)


def cut(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def link_out(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        outside = folder.parent / "outside"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)

    return apply


def record(name: str, **changes: object) -> Callable[[Path], None]:
    """Other values in a JSON file, under a right checksum."""

    def apply(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        replaced(name, json.dumps(values).encode())(folder)

    return apply


def sparse(folder: Path) -> None:
    """Gigabytes that take no space, under a header that says so."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}})
    data = len(header).to_bytes(8, "little") + header.encode()
    (folder / "weights.safetensors").write_bytes(data)
    os.truncate(folder / "weights.safetensors", len(data) + 2**32)


def pipe(folder: Path) -> None:
    (folder / "calibration.json").unlink()
    os.mkfifo(folder / "calibration.json")


def swap(folder: Path) -> None:
    make_model(folder.parent / "other", d_state=4, crop=0.5)
    other = load_file(folder.parent / "other" / "weights.safetensors")
    save_file({n: t + 1 for n, t in other.items()}, folder / "weights.safetensors")


def head(tensors: dict) -> None:
    tensors["head.weight"] = torch.zeros(9, 16)


SEEN = {"people_hashes": [], "picture_hashes": []}
CURVE = {"slope": 10**400, "intercept": 0, "prior": 0.5}
THRESHOLD = {"far": "x", "threshold": None, "measurable": True}
HUGE = dict(d_model=2048, depth=64, expand=4, direction="bidirectional")
ATTACKS = {
    "missing config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "missing weights": (
        lambda f: (f / "weights.safetensors").unlink(),
        "weights.safetensors is missing",
    ),
    "missing calibration": (
        lambda f: (f / "calibration.json").unlink(),
        "calibration.json is missing",
    ),
    "truncated config": (cut("config.json"), "not valid JSON"),
    "truncated weights": (cut("weights.safetensors"), "cut short"),
    "truncated provenance": (cut("provenance.json"), "SHA-256"),
    "swapped weights": (swap, "belongs to another model"),
    "truth value for a number": (edit(lambda c: c.update(image_size=True)), "image_size=true"),
    "truth value for a choice": (
        edit(lambda c: c["network"].update(patch_size=True)),
        "patch_size=true",
    ),
    "number for a name": (edit(lambda c: c.update(facerec=1)), "facerec=1"),
    "extra key": (edit(lambda c: c.update(trust=True)), "no setting 'trust'"),
    "extra network key": (edit(lambda c: c["network"].update(dmodel=8)), "did you mean 'd_model'"),
    "wrong type": (edit(lambda c: c.update(image_size="huge")), "image_size=huge"),
    "patch does not divide": (edit(lambda c: c.update(image_size=17)), "does not divide"),
    "newer format": (edit(lambda c: c.update(format=2)), "update facerec"),
    "no checksums": (edit(lambda c: c.update(sha256={})), "SHA-256"),
    "no network": (edit(lambda c: c.pop("network")), "network is missing"),
    "not an object": (lambda f: (f / "config.json").write_text("[1]"), "JSON object"),
    "nested": (lambda f: (f / "config.json").write_text('{"a":' * 50_000), "config.json"),
    "binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "not valid JSON"),
    "oversize": (lambda f: (f / "config.json").write_bytes(b" " * (2**20 + 1)), "above"),
    "NaN": (replaced("calibration.json", b'{"impostor": NaN}'), "not valid JSON"),
    "thresholds of text": (record("calibration.json", thresholds="abc"), "thresholds: Input"),
    "no list of thresholds": (record("calibration.json", thresholds=None), "thresholds: Input"),
    "a rate of text": (record("calibration.json", thresholds=[THRESHOLD]), "thresholds.0.far"),
    "numbers beyond numbers": (record("calibration.json", probability=CURVE), "probability.slope"),
    "a teacher's number": (record("provenance.json", teacher={"sha256": 5}), "teacher.sha256"),
    "half a character of salt": (record("provenance.json", salt="\ud800"), "salt: "),
    "hashes of another kind": (
        record("provenance.json", val=SEEN | {"picture_hashes": ["g" * 32]}),
        "val.picture_hashes: a hash",
    ),
    "pictures of nobody": (
        record("provenance.json", val={"picture_hashes": []}),
        "hashes of names are missing",
    ),
    "a million values": (
        replaced("provenance.json", b'{"x":[' + b"[]," * 200_000 + b"0]}"),
        "provenance.json holds too many values",
    ),
    "4 GiB of nothing": (sparse, "is of another network"),
    "weights longer than their header": (
        lambda f: os.truncate(f / "weights.safetensors", 2**33),
        "weights.safetensors has 8,589,934,592 bytes, and its header makes it ",
    ),
    "gigabytes an image": (
        edit(lambda c: (c["network"].update(stem_width=512), c.update(image_size=1024))),
        "MiB of activations in this network, above 1,024 MiB",
    ),
    "huge network": (edit(lambda c: c["network"].update(HUGE)), "larger network"),
    "terabytes": (
        edit(lambda c: (c["network"].update(HUGE, pooling="flatten"), c.update(image_size=1024))),
        "config",
    ),
    "wider network": (edit(lambda c: c["network"].update(d_model=24)), "config.json makes it"),
    "other shape": (weights(head), "head.weight is (9, 16)"),
    "missing tensor": (weights(lambda t: t.pop("head.bias")), "lacks tensor head.bias"),
    "extra tensor": (weights(lambda t: t.update(extra=torch.zeros(1))), "unknown tensor extra"),
    "double precision": (
        weights(lambda t: t.update(positions=t["positions"].double())),
        "should be 'F32'",
    ),
    "not finite": (weights(lambda t: t["head.bias"].fill_(float("nan"))), "NaN"),
    "pickle": (replaced("weights.safetensors", pickle.dumps({"a": 1})), "no safetensors file"),
    "zip": (replaced("weights.safetensors", b"PK\x03\x04" * 100), "no safetensors file"),
    "link out": (link_out("weights.safetensors"), "leads out of the folder"),
    "link to nothing": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("none")),
        "missing",
    ),
    "ring": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("config.json")),
        "config.json",
    ),
    "pipe": (pipe, "no regular file"),
    "folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "config.json",
    ),
    "gone": (lambda f: f.rename(f.parent / "elsewhere"), "no such folder"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_hostile_folder_is_one_sentence(tmp_path: Path, name: str) -> None:
    attack, expected = ATTACKS[name]
    make_model(tmp_path / "model")
    attack(tmp_path / "model")
    with pytest.raises(InputError) as caught:
        read_model(tmp_path / "model")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_replacing_is_whole_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(tmp_path / "model", d_model=16)
    make_model(tmp_path / "model", d_model=24)
    assert read_model(tmp_path / "model").config.network.d_model == 24

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="No space left"):
        make_model(tmp_path / "model", d_model=16)
    assert read_model(tmp_path / "model").config.network.d_model == 24
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_model_folder_is_there_at_every_moment(tmp_path: Path, monkeypatch) -> None:
    """Its maker is killed at each of the renames and removals that replace it, and then it is replaced after all."""
    folder, calls = tmp_path / "model", 0

    class Killed(BaseException):
        pass

    def killing(function: Callable, at: int) -> Callable:
        def counted(*args, **how):
            nonlocal calls
            calls += 1
            if calls >= at:
                raise Killed
            return function(*args, **how)

        return counted

    for at in range(1, 6):
        make_model(folder, d_model=16)
        with monkeypatch.context() as patch:
            calls = 0
            patch.setattr(Path, "rename", killing(Path.rename, at))
            patch.setattr(shutil, "rmtree", killing(shutil.rmtree, at))
            with contextlib.suppress(Killed):
                make_model(folder, d_model=24)
        assert calls >= at
        assert read_model(folder).config.network.d_model in (16, 24)
    make_model(folder, d_model=24)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(InputError, match=r"holiday\.jpg"):
        make_model(tmp_path)
    with pytest.raises(InputError, match="a file or a link"):
        make_model(tmp_path / "holiday.jpg")
    assert (tmp_path / "holiday.jpg").read_bytes() == b"dear"


def test_numbers_that_json_lacks_are_not_written() -> None:
    with pytest.raises(ValueError):
        to_json({"x": float("nan")})
    with pytest.raises(ValueError):
        Curve(slope=float("inf"), intercept=0.0)


def store() -> SimpleNamespace:
    """Three people: two pictures of Ann and of Bob to train on, one of Cy to validate with, one of Di to test with."""
    parts = np.array(["train", "train", "train", "train", "val", "test"])
    return SimpleNamespace(
        names=["Ann Ó", "Bob", "Cy", "Di"],
        labels=np.array([0, 0, 1, 1, 2, 3]),
        picture_hashes=list("abcdef"),
        digest="0123456789abcdef0123",
        split_version=2,
        name="toy",
        indices=lambda part: np.flatnonzero(parts == part),
    )


def test_provenance_tells_who_was_met_and_names_nobody() -> None:
    made = provenance(store(), recipe(data="/home/somebody/faces"))
    decomposed = "Ann O\u0301"  # "Ann Ó" as a Mac writes it
    assert met(made, [decomposed, "Ann O", "CY", "Di", "Eve"], ["a", "e", "f", "z"]) == {
        **{"people": 5, "pictures": 4},
        **{"train_people": 1, "train_similar": 1, "train_pictures": 1},
        **{"val_people": 0, "val_similar": 1, "val_pictures": 1},
    }
    whole = hashlib.sha256(f"{made.salt}:d".encode()).hexdigest()  # as older files have it
    older_val = Seen(**{**made.val.model_dump(), "picture_hashes": [whole]})
    older = made.model_copy(update={"val": older_val})
    assert met(older, [], ["d"])["val_pictures"] == 1
    assert provenance(store(), recipe(), older).val.pictures == 2
    text = made.model_dump_json()
    assert not any(name in text for name in ("Ann", "ann", "Bob", "Cy", "somebody"))
    assert made.train.people == 2 and made.train.pictures == 4
    again = provenance(store(), recipe())
    for kind in ("name_hashes", "similar_hashes"):
        assert made.train.hashes()[kind].isdisjoint(again.train.hashes()[kind])
    with pytest.raises(InputError, match="leaks cannot be told"):
        met(Provenance(salt="x"), ["Ann"], [])


def test_people_whose_names_fold_alike_are_counted_apart() -> None:
    toy = store()
    toy.names = ["Dung", "Dũng", "C+", "C#"]
    made = provenance(toy, recipe())
    assert (made.train.people, made.val.people) == (2, 1)
    assert met(made, ["Dung", "Dũng", "C#"], [])["train_people"] == 2
    found = met(made, ["Dụng"], [])
    assert (found["train_people"], found["train_similar"]) == (0, 1)


def test_a_model_of_before_and_what_is_trained_from_it_know_people_by_folded_names() -> None:
    before = seen("Ann", "Bea_Ó")
    assert met(before, ["ann", "Bea O", "Cy"], [])["train_people"] == 2
    after = provenance(store(), recipe(), before)  # of Ann Ó and Bob
    assert after.train.people == 4 and after.val.people == 1
    found = met(after, ["ANN", "Bea Ó", "Bob", "bob", "Cy"], [])
    assert (found["train_people"], found["train_similar"], found["val_people"]) == (3, 1, 1)
    again = provenance(store(), recipe(), after)
    assert again.train == after.train  # the same people once more


def test_more_hashes_than_a_folder_may_hold_are_refused_before_a_training(monkeypatch) -> None:
    check_hashes(store(), seen("Ann"))
    monkeypatch.setattr("facerec.inference.provenance.MAX_HASHES", 2 * 4 + 6)
    check_hashes(store(), None)
    with pytest.raises(InputError, match=r"at most 14 .* these are 15: take fewer people"):
        check_hashes(store(), seen("Ann"))


def test_reading_reserves_no_more_than_there_is() -> None:
    class File(io.BytesIO):
        def read(self, size: int = -1) -> bytes:
            assert 0 <= size <= 2**22
            return super().read(size)

    content = bytes(range(256)) * 2**15  # 8 MiB
    assert read_up_to(2**33, File(content)) == content
    assert read_up_to(5_000_000, File(content)) == content[:5_000_000]


def test_weights_are_held_once_when_they_have_been_read(tmp_path: Path, monkeypatch) -> None:
    make_model(tmp_path, d_model=256, depth=2)
    config, size = read_config(tmp_path), (tmp_path / "weights.safetensors").stat().st_size
    read_network(tmp_path, config)  # what is imported at the first call counts for nothing
    peaks = []
    monkeypatch.setattr(
        "facerec.inference.weights_file.check_sum",
        lambda *args: peaks.append(tracemalloc.get_traced_memory()[1]),
    )
    tracemalloc.start()
    try:
        read_network(tmp_path, config)
    finally:
        tracemalloc.stop()
    assert size > 2**21 and size < peaks[0] < 1.5 * size


def test_of_a_text_that_is_too_long_the_beginning_is_kept() -> None:
    kept = Provenance(run_id="first\n  " + "x" * MAX_TEXT).run_id
    assert kept.startswith("first\\n  x") and kept.endswith("x…") and len(kept) == MAX_TEXT


def test_card_says_what_it_must() -> None:
    made = provenance(store(), recipe())
    card = model_card(recipe(), {"val/map_at_r": 0.51234}, made)
    assert "| val/map_at_r | 0.5123 |" in card
    assert "can still be\nguessed" in card and "4 pictures of 2 people" in card
    assert "## Limits" in card and "## Intended use" in card and "Labeled Faces" not in card
    lfw = made.model_copy(update={"data": DataSet(name="lfw", digest="0")})
    assert "research only" in model_card(recipe(), {}, lfw)
