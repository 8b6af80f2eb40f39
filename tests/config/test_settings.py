"""Settings: one model gives command line, YAML keys, `-P` keys and MLproject; mistakes are one sentence."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from pydantic import Field

from facerec.cli import ENTRIES, Commands, facerec, load, project_text, reference_text
from facerec.config.options import SettingsCommand
from facerec.config.recipe import resolve
from facerec.config.settings import Settings, as_params, canonical
from facerec.errors import InputError
from facerec.losses.objective import check_objective
from facerec.model.network import check_sizes
from facerec.runtime.text import LONGEST, brief
from tests.helpers import PROJECT


class Part(Settings):
    group: ClassVar[str] = "Part"
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    size: Literal[4, 8] = Field(8, description="Size.")


class Whole(Part):
    group: ClassVar[str] = "Whole"
    epochs: int = Field(1, ge=1, le=9000, description="Epochs.")
    name: str | None = Field(None, description="A name.")
    flag: bool = Field(True, description="A flag.")
    margin: float | None = Field(None, description="A margin.")


@pytest.mark.parametrize("kind", [str, ValueError])
def test_a_message_repeats_the_beginning_of_a_value_or_an_error_on_one_line(kind):
    text = brief(kind("first\n second \x1b[31m" + "x" * 1000))
    assert (
        text.startswith("first second \\x1b[31mx") and text.endswith("x…") and len(text) == LONGEST
    )
    assert brief(KeyError()) == "KeyError"


def test_precedence_and_text_values(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("lr: 1e-4\nsize: 4\nflag: false\n")
    settings = resolve(Whole, {"lr": "0.5", "margin": "none"}, str(recipe))
    assert (settings.lr, settings.size, settings.flag, settings.margin) == (0.5, 4, False, None)
    expected = {"lr": "0.5", "size": "4", "flag": "false", "margin": "none"}
    assert as_params(settings) == {"epochs": "1", "name": "none", **expected}
    assert resolve(Whole, {"size": "4"}).size == 4


@pytest.mark.parametrize(
    ("key", "text", "value", "own"),
    [
        ("epochs", "1.0", 1, 1.0),
        ("epochs", "1e3", 1000, 1e3),
        ("size", "8.0", 8, 8.0),
        ("lr", "1", 1.0, 1),
        ("lr", "1e-05", 1e-5, 1e-5),
        ("margin", "0.30000000000000004", 0.1 + 0.2, 0.1 + 0.2),
        ("flag", "no", False, 0),
        ("flag", "On", True, True),
        ("name", "010", "010", "010"),
        ("name", "2026-01-01", "2026-01-01", "2026-01-01"),
        ("name", "yes", "yes", "yes"),
        ("margin", "none", None, None),
    ],
)
def test_recipe_command_line_and_python_mean_the_same(tmp_path, key, text, value, own):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{key}: {text}\n")
    read = [resolve(Whole, {}, str(recipe)), resolve(Whole, {key: text}), Whole(**{key: own})]
    read.append(resolve(Whole, as_params(read[0])))  # as a checkpoint keeps them
    for settings in read:
        found = getattr(settings, key)
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        ("lr: 0.1", {"lr": "banana"}, "lr=banana (command line)"),
        ("lr: -1", {}, "recipe.yaml): should be greater than 0"),
        ("learning: 1\nszie: 4", {}, "no setting 'learning'"),
        ("szie: 4", {}, "did you mean 'size'"),
        ("size: 5", {}, "wanted: 4|8"),
        ("- 1", {}, "flat list"),
        ("lr: true", {}, "lr=true"),
        ("lr: yes", {}, "unable to parse string as a number; wanted: number > 0"),
        ("lr: 2026-01-01", {}, "lr=2026-01-01"),
        ("lr: 1:30", {}, "lr=1:30"),
        ("lr: .inf", {}, "lr=.inf"),
        ("size: true", {}, "wanted: 4|8"),
        ("size: 08", {}, "size=08"),
        ("epochs: true", {}, "wanted: integer 1 to 9000"),
        ("epochs: 010", {}, "epochs=010"),
        ("", {"epochs": "010"}, "leading zero"),
        ("", {"epochs": True}, "epochs=true"),
        ("", {"epochs": "1.5"}, "epochs=1.5"),
        ("", {"lr": True}, "lr=true"),
        ("", {"lr": np.True_}, "lr=true"),
        ("", {"flag": 2}, "flag=2"),
        ("lr: 1\nlr: 2", {}, "'lr' is given twice"),
        ("lr: !!timestamp 2026-01-01", {}, "cannot be read as YAML"),
        ("lr: {a: 1}", {}, "flat list"),
        ("lr: [", {}, "cannot be read as YAML"),
        ("!!python/object/apply:os.system ['true']", {}, "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, recipe, given, said):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    with pytest.raises(InputError) as error:
        resolve(Whole, given, str(file))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_recipe_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=str(tmp_path)):
        resolve(Whole, {}, "nowhere.yaml")


def test_canonical_text():
    assert [canonical(v) for v in (1e-4, 0.001, True, None, 8, "a")] == [
        "0.0001",
        "0.001",
        "true",
        "none",
        "8",
        "a",
    ]


@pytest.mark.parametrize("name", list(ENTRIES))
def test_command_line_is_the_model(name):
    """Every setting is an option under its own name and nothing else is; help shows it with its default."""
    model, _ = load(ENTRIES[name])
    command = Commands().get_command(None, name)
    options = {p.name for p in command.params if p.param_type_name == "option"}
    assert options == {"config", *model.model_fields}
    text = CliRunner().invoke(facerec, [name, "--help"], terminal_width=110).output
    for key, field in model.model_fields.items():
        assert f"--{key.replace('_', '-')} " in text, key
        assert field.description, key


def test_mlproject_is_the_model():
    text = (PROJECT / "MLproject").read_text()
    assert text == project_text(), "write it again: facerec mlproject"
    project = yaml.safe_load(text)
    for name, entry in ENTRIES.items():
        model, _ = load(entry)
        required = {key for key, field in model.model_fields.items() if field.is_required()}
        for alias in entry.names:
            declared = project["entry_points"][alias].get("parameters", {})
            assert set(declared) == required | ({"config"} if entry.recipe else set()), name


def test_the_reference_of_settings_is_the_model():
    text = (PROJECT / "docs/reference/settings.md").read_text()
    assert text == reference_text(), "write it again: facerec settings-reference"


def test_recipes_are_valid():
    for recipe in sorted((PROJECT / "configs").glob("*.yaml")):
        second_stage = recipe.stem.endswith("-hard")
        model, _ = load(ENTRIES["finetune" if second_stage else "train"])
        settings = resolve(model, {"model": "pretrained"} if second_stage else {}, str(recipe))
        check_objective(settings)
        check_sizes(settings, settings.image_size)


def test_conda_environment_lists_the_package_requirements():
    tomllib = pytest.importorskip("tomllib")
    wanted = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["dependencies"]
    environment = yaml.safe_load((PROJECT / "conda.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == wanted


def test_a_boolean_may_stand_alone_or_with_its_value():
    seen = []
    command = SettingsCommand("whole", Whole, callback=lambda **given: seen.append(given["flag"]))
    for arguments in (["--flag"], ["--flag", "false"], ["--flag", "--lr", "1"], []):
        command.main(arguments, standalone_mode=False)
    assert seen == ["true", "false", "true", None]
