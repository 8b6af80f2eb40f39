"""YAML files of strangers: what one of them may ask for, in a sentence and at once."""

from __future__ import annotations

import pytest

from facerec.config.recipe import resolve, validate
from facerec.errors import InputError
from facerec.runtime.text import LONGEST
from facerec.sweep.space_yaml import read_space
from facerec.training.settings import TrainSettings

SEARCH = "parameters: {lr: {float: [0.1, 1]}}\n"
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{n}: &{n} [*{p}, *{p}]\n" for p, n in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS + "parameters: {lr: {categorical: *i}}", r"an alias \(\*name\) is not taken"),
        ("a: &a [*a]", "an alias"),
        ("x: &x {a: b}\ny: {<<: *x}", "an alias"),
        ("x: " + "[" * 900 + "]" * 900, "nested deeper than 16 levels"),
        ("x: " + "{a: " * 10_000 + "}" * 10_000, "nested deeper than 16 levels"),
        ("lr: 0x" + "f" * 5000, "a value of more than 4096 characters"),
        ("{" + "a" * 5000 + ": 1}", "line 1"),
        (r'output: "\uD800"', "half of a UTF-16 pair"),
        ("a: 1\n" * 50_000, "more than 100,000 bytes"),
        ("- \xff", "cannot be read"),
    ],
)  # fmt: skip
def test_what_a_file_may_not_hold_is_one_short_sentence(tmp_path, text, said):
    file = tmp_path / "of_a_stranger.yaml"
    file.write_text(text, encoding="latin-1")
    for read in (
        lambda: read_space(str(file), TrainSettings),
        lambda: resolve(TrainSettings, {}, str(file)),
    ):
        with pytest.raises(InputError, match=said) as caught:
            read()
        assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters: {depth: {int: [1, " + "9" * 4000 + "]}}", "is no number"),
        (SEARCH + "fixed: {epochs: " + "9" * 4000 + "}", "epochs=999"),
        (SEARCH + "fixed: {epochs: 2026-99-99}", "valid integer"),
        (SEARCH + "fixed: {" + "a" * 1000 + ": 1}", "there is no setting"),
        (SEARCH + 'sampler: "\\e[31m' + "a" * 1000 + '"', r"there is no sampler .*x1b\[31m"),
        (SEARCH + "objective: {}", "objective: give a metric"),
        (SEARCH + "objective: {minimize: parameters, maximize: parameters}", "objective: give"),
        ("parameters: {lr: {float: [0.1, 1], step: 1e-300}}", "over 1,000,000 steps"),
        ("parameters: {lr: {float: [0.1, 1], when: {loss: " + "a" * 1000 + "}},\n"
         " loss: {categorical: [triplet]}}", "never aaa"),
    ],
)  # fmt: skip
def test_messages_repeat_the_beginning_of_a_long_value(tmp_path, text, said):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_space(str(file), TrainSettings)
    assert len(str(caught.value)) < len(str(file)) + 3 * LONGEST and str(caught.value).isprintable()


def test_a_number_that_python_cannot_spell_is_one_sentence():
    with pytest.raises(InputError, match="epochs=a number of thousands of digits"):
        validate(TrainSettings, {"epochs": 10**6000})
