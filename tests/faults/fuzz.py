"""Hostile files by the thousand through the functions that read files of strangers.

    python -m tests.faults.fuzz [--pictures 5000] [--models 1000] [--recipes 1000] [--checkpoints 1000] [--folders 5000]
                         [--seed 0]

Each case is a valid file, mutated by a generator seeded with its number: bits flipped, bytes overwritten, cut,
repeated, moved; for model folders and checkpoints half of the time with checksums that are right again, so that the
layers behind them are reached. Folders of people are built at random (random_folders.py), and who was put into them
must be found, or the folder be refused for a reason. The function either works or refuses in one sentence; anything
else is a bug and is printed with the case's number. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
from PIL import Image

from facerec.cli import ENTRIES, load
from facerec.config.recipe import resolve
from facerec.data.decoding import MAX_PIXELS, decode, to_face
from facerec.errors import InputError
from facerec.inference.embedder import FaceEmbedder
from facerec.inference.model_io import CALIBRATION, CONFIG, PROVENANCE, WEIGHTS
from facerec.inference.provenance import met
from facerec.training.checkpoint import STATE, Checkpoints, state_tensor
from facerec.training.resume import settings_of_checkpoint
from tests.helpers import PROJECT, random_folders
from tests.helpers.models import encoded, make_model, picture
from tests.helpers.trainers import small, trainer

SLOW_SECONDS = 20
ODD = (0, 1, 127, 128, 255)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 2**63, 10**400, "", "none", "\0", "../..", "a" * 100_000, [], {}),
    *([[]], {"a": {}}, {"": None}, [1] * 1000),
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four mishaps."""
    content = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not content:
            break
        at = chance.randrange(len(content))
        size = chance.choice((1, 2, 4, 8, 64, 1024))
        kind = chance.randrange(7)
        if kind == 0:
            content[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            content[at : at + size] = bytes([chance.choice(ODD)] * size)
        elif kind == 2:
            content[at : at + size] = chance.randbytes(size)
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            del content[at : at + size]
        elif kind == 5:
            content[at:at] = content[at : at + size] * chance.randint(1, 3)
        else:  # of the header, where sizes and offsets stand
            at = chance.randrange(min(len(content), 64))
            content[at : at + 4] = chance.choice((2**31 - 1, 2**32 - 1, 0, 2**16)).to_bytes(
                4, "big"
            )
    return bytes(content)


def mutated_json(value: Any, chance: random.Random) -> Any:
    """A JSON value with one place in it changed, removed or added."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value))
        kind = chance.randrange(8)
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, chance.choice(("x", "", "self", "__class__")): value[key]}
        return {**value, key: mutated_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        return [*value[:at], mutated_json(value[at], chance), *value[at + 1 :]]
    if isinstance(value, (int, float)) and chance.random() < 0.5:
        return chance.choice((value * 2, -value, value + 1, value * 1_000_000, value / 3))
    return chance.choice(ODD_VALUES)


def pictures() -> list[bytes]:
    """One valid file of every format and of the odd colour modes."""
    pixels = picture(0, 48)
    image = Image.fromarray(pixels)
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        *(encoded(image, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF")),
        encoded(image, "JPEG", progressive=True, exif=turned),
        encoded(image, "TIFF", compression="tiff_lzw"),
        encoded(image, "TIFF", compression="jpeg"),
        encoded(image, "WEBP", lossless=True),
        *(encoded(image.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGBA")),
        *(encoded(image.convert(mode), "TIFF") for mode in ("CMYK", "F", "I", "YCbCr")),
        encoded(image.convert("CMYK"), "JPEG"),
        encoded(deep, "PNG"),
    ]


class Fuzz:
    """The kinds of hostile files and folders; each takes a generator, and works, or raises InputError.

    Args:
        folder: for what is written; a valid model and a valid checkpoint are made there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = pictures()
        self.face = encoded(picture(1))
        make_model(folder / "model")
        self.model = {p.name: p.read_bytes() for p in (folder / "model").iterdir()}
        self.recipes = [p.read_bytes() for p in sorted((PROJECT / "configs").glob("*.yaml"))]
        self.train_settings = load(ENTRIES["train"])[0]
        self.run = folder / "runs" / ("0" * 32) / "checkpoints"
        state = {"settings": {"lr": "0.001"}, "data_digest": "0"}
        training = trainer(
            small(epochs=1),
            save=lambda step, tensors, more: Checkpoints(self.run).save(
                step, tensors, {**more, **state}
            ),
        )
        list(training)
        (self.checkpoint,) = Checkpoints(self.run).paths()[-1:]
        for other in Checkpoints(self.run).paths()[:-1]:
            other.unlink()
        self.checkpoint_bytes = self.checkpoint.read_bytes()

    def of_picture(self, chance: random.Random) -> None:
        """Decoding of a picture, and the face cut out of it."""
        data = chance.choice(self.pictures)
        if chance.random() < 0.1:  # the head of one, the rest of another
            data = data[: chance.randrange(len(data))] + chance.choice(self.pictures)
        pixels = decode(mutated(data, chance))
        height, width, channels = pixels.shape
        assert pixels.dtype == np.uint8 and channels == 3, (pixels.dtype, pixels.shape)
        assert min(height, width) >= 8 and height * width <= MAX_PIXELS, pixels.shape
        assert to_face(pixels, 32, 0.6).shape == (32, 32, 3)

    def of_model(self, chance: random.Random) -> None:
        """Loading of a model folder, and its use."""
        content = dict(self.model)
        name = chance.choice((CONFIG, CONFIG, WEIGHTS, WEIGHTS, CALIBRATION, PROVENANCE))
        if name == WEIGHTS or chance.random() < 0.4:
            data = content[name]
            if name == WEIGHTS and chance.random() < 0.5:  # its header, which is a hundredth of it
                length = 8 + int.from_bytes(data[:8], "little")
                data = mutated(data[:length], chance) + data[length:]
            else:
                data = mutated(data, chance)
            content[name] = data
        else:
            content[name] = json.dumps(mutated_json(json.loads(content[name]), chance)).encode()
        if name != CONFIG and chance.random() < 0.8:
            config = json.loads(content[CONFIG])
            config["sha256"][name] = hashlib.sha256(content[name]).hexdigest()
            content[CONFIG] = json.dumps(config).encode()
        for file, data in content.items():
            (self.folder / "model" / file).write_bytes(data)
        model = FaceEmbedder.load(self.folder / "model", "cpu")
        embedding = model.embed(self.face)
        assert np.isfinite(embedding).all(), "an embedding that is no number"
        met(model.provenance, ["somebody"], ["0"])
        verdict = model.judge(0.5)
        assert verdict.probability is None or 0 <= verdict.probability <= 1, verdict

    def of_recipe(self, chance: random.Random) -> None:
        """Settings from a recipe."""
        if chance.random() < 0.5:
            data = mutated(chance.choice(self.recipes), chance)
        else:
            keys = chance.choices([*self.train_settings.model_fields, "szie", "", "0"], k=3)
            words = (
                "yes",
                "1e3",
                ".nan",
                ".inf",
                "-1",
                "0",
                "{}",
                "[]",
                "!!python/none",
                "&a [*a]",
            )
            words += (
                "2026-01-01",
                "0x10",
                "1:30",
                "~",
                "'\\0'",
                "!!binary aGk=",
                "99999999999",
                "none",
            )
            data = "\n".join(f"{key}: {chance.choice(words)}" for key in keys).encode()
        recipe = self.folder / "recipe.yaml"
        recipe.write_bytes(data)
        settings = resolve(self.train_settings, {}, str(recipe))
        assert 16 <= settings.image_size <= 512 and settings.lr > 0

    def of_folder(self, chance: random.Random) -> None:
        """Listing of a folder of people, as training data and as a gallery."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            random_folders.check(Path(folder), chance)

    def of_checkpoint(self, chance: random.Random) -> None:
        """Going on from a checkpoint."""
        data = self.checkpoint_bytes
        length = 8 + int.from_bytes(data[:8], "little")
        kind = chance.randrange(3)
        if kind == 0:
            data = mutated(data, chance)
        elif kind == 1:
            data = mutated(data[:length], chance) + data[length:]
        else:
            tensors = safetensors.torch.load(data)
            state = mutated_json(json.loads(tensors[STATE].numpy().tobytes()), chance)
            data = safetensors.torch.save({**tensors, STATE: state_tensor(state)})
        self.checkpoint.write_bytes(data)
        if chance.random() < 0.9:
            digest = hashlib.sha256(data).hexdigest()
            self.checkpoint.with_suffix(".sha256").write_text(digest)
        given = {"resume": "0" * 32, "output": str(self.folder / "runs")}
        settings_of_checkpoint(self.train_settings, given)
        newest, _ = Checkpoints(self.run).newest()
        restored = trainer(small(epochs=2))
        restored.restore(newest)
        assert restored.step >= 0


def run(
    case: Callable[[random.Random], None], count: int, seed: int
) -> tuple[collections.Counter[str], list[str]]:
    """Outcomes of `count` cases, and the bugs in words."""
    outcomes: collections.Counter[str] = collections.Counter()
    bugs = []
    for number in range(seed, seed + count):
        start = time.process_time()
        try:
            case(random.Random(number))
            outcomes["worked"] += 1
        except InputError as error:
            outcomes["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 2000:
                bugs.append(
                    f"seed {number}: a refusal of {len(str(error))} characters, or several lines"
                )
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            bugs.append(
                f"seed {number}: {type(error).__name__}: {str(error)[:200]} ({at.name}, {at.lineno})"
            )
        if time.process_time() - start > SLOW_SECONDS:
            bugs.append(f"seed {number}: {time.process_time() - start:.0f} s")
    return outcomes, bugs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    counts = {"pictures": 5000, "models": 1000, "recipes": 1000, "checkpoints": 1000}
    counts["folders"] = 5000
    for name, count in counts.items():
        parser.add_argument(f"--{name}", type=int, default=count)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = 0
    with tempfile.TemporaryDirectory(prefix="facerec-fuzz-") as folder:
        fuzz = Fuzz(Path(folder))
        for name in counts:
            case = getattr(fuzz, f"of_{name.removesuffix('s')}")
            outcomes, bugs = run(case, getattr(args, name), args.seed)
            found += len(bugs)
            figures = ", ".join(f"{count:,} {what}" for what, count in sorted(outcomes.items()))
            print(f"{name}: {figures}, {len(bugs)} bugs", flush=True)
            for bug in bugs[:40]:
                print(f"  {bug}", flush=True)
    sys.exit(min(found, 1))


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    main()
