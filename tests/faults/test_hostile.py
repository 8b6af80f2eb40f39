"""Hostile bytes, sought by hypothesis: pictures, model folders, recipes and checkpoints work or are one sentence.

`python -m tests.faults.fuzz` tries thousands more.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facerec.cli import ENTRIES, load
from facerec.config.recipe import resolve, validate
from facerec.data.decoding import PictureError, decode
from facerec.errors import InputError
from facerec.tracking import outbox
from tests.faults.fuzz import Fuzz

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TRAIN = load(ENTRIES["train"])[0]
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Fuzz:
    return Fuzz(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", ["picture", "model", "recipe", "checkpoint"])
@QUICK
@given(chance=st.randoms(use_true_random=False))
def test_a_mutated_file_works_or_is_one_sentence(fuzz: Fuzz, kind: str, chance: random.Random):
    try:
        getattr(fuzz, f"of_{kind}")(chance)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) <= 2000


@QUICK
@given(data=st.binary(max_size=2000))
def test_any_bytes_are_a_picture_or_refused(data: bytes):
    try:
        assert decode(data).ndim == 3
    except PictureError as error:
        assert str(error)


@QUICK
@given(data=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_a_recipe_or_refused(tmp_path: Path, data: bytes):
    (tmp_path / "recipe.yaml").write_bytes(data)
    try:
        resolve(TRAIN, {}, str(tmp_path / "recipe.yaml"))
    except InputError as error:
        assert "\n" not in str(error)


@QUICK
@given(values=st.dictionaries(st.sampled_from(sorted(TRAIN.model_fields)), scalars, max_size=4))
def test_any_values_are_settings_or_refused(values: dict):
    try:
        assert validate(TRAIN, values).lr > 0
    except InputError as error:
        assert "\n" not in str(error)


@QUICK
@given(data=st.binary(max_size=300))
def test_any_bytes_are_an_outbox(tmp_path: Path, data: bytes):
    (tmp_path / "outbox.jsonl").write_bytes(data + b'\n{"tags": {}}\n')
    assert outbox.read(tmp_path / "outbox.jsonl")[-1] == {"tags": {}}
