"""The command line: `facerec train ...` for every file of commands/, and `facerec mlproject` to write MLproject."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import click

from facerec.config.mlproject import mlproject
from facerec.config.options import SettingsCommand
from facerec.config.recipe import RECIPES, resolve
from facerec.config.reference import settings_page
from facerec.config.settings import Settings
from facerec.errors import InputError
from facerec.runtime.console import drain, prepare
from facerec.runtime.paths import located
from facerec.runtime.text import as_utf8


class Entry(NamedTuple):
    """A command: module of facerec.commands, default recipe in MLproject, names under which MLproject offers it."""

    module: str
    recipe: str | None = None
    names: tuple[str, ...] = ()


ENTRIES = {
    "train": Entry("train", "configs/demo.yaml", ("main", "train")),
    "sweep": Entry("sweep", None, ("sweep",)),
    "finetune": Entry("finetune", None, ("finetune",)),
    "evaluate": Entry("evaluate", None, ("evaluate",)),
    "visualize": Entry("visualize", None, ("visualize",)),
    "predict": Entry("predict", None, ("predict",)),
    "register": Entry("register"),
    "serve": Entry("serve", None, ("serve",)),
}


def load(entry: Entry) -> tuple[type[Settings], ModuleType]:
    """Settings model and module of a command, imported when it is needed: --help must not wait for torch."""
    module = importlib.import_module(f"facerec.commands.{entry.module}")
    return module.SETTINGS, module


class Commands(click.Group):
    """Commands found by name in ENTRIES."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*ENTRIES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in ENTRIES:
            return super().get_command(ctx, name)
        model, module = load(ENTRIES[name])
        return command(name, model, module)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and first lines, read from the sources so that torch is not imported."""
        rows = [(name, first_line(entry.module)) for name, entry in ENTRIES.items()]
        rows += [
            (name, self.commands[name].get_short_help_str(100))
            for name in super().list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def first_line(module: str) -> str:
    """First line of a command's docstring."""
    text = (Path(__file__).parent / "commands" / f"{module}.py").read_text(encoding="utf-8")
    return text.split('"""', 2)[1].strip().splitlines()[0]


def command(name: str, model: type[Settings], module: ModuleType) -> click.Command:
    """The click command of an entry point: options resolved into its settings, then `run`."""
    positional = getattr(module, "ARGUMENTS", ())

    def callback(config: str | None, **given: str | None) -> None:
        given = {key: value for key, value in given.items() if value is not None}
        for key in positional:
            value = given.pop(f"{key}_argument", None)
            if value is not None:
                given.setdefault(key, value)
        settings_of = getattr(
            module, "settings_of", lambda given, config: resolve(model, given, config)
        )
        file = located(config, RECIPES) if config else config
        module.run(settings_of(given, file), config)

    arguments = [
        click.Argument([f"{key}_argument"], required=False, metavar=f"[{key.upper()}]")
        for key in positional
    ]
    return SettingsCommand(name, model, callback=callback, help=module.__doc__, params=arguments)


@click.group(cls=Commands, context_settings={"max_content_width": 110})
@click.version_option(package_name="facerec")
def facerec() -> None:
    """Face embeddings from Mamba networks: train, track, tune and serve them on any CPU and any CUDA GPU."""


@facerec.command("mlproject")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 where the file differs.")
@click.option("--file", default="MLproject", show_default=True, type=click.Path(path_type=Path))
def write_mlproject(check: bool, file: Path) -> None:
    """Write MLproject from the settings."""
    text = project_text()
    if check:
        current = file.read_text(encoding="utf-8") if file.is_file() else ""
        sys.exit(0 if current == text else 1)
    file.write_text(text, encoding="utf-8")
    click.echo(f"wrote {file}")


@facerec.command("settings-reference")
@click.option(
    "--file",
    default="docs/reference/settings.md",
    show_default=True,
    type=click.Path(path_type=Path),
)
def write_reference(file: Path) -> None:
    """Write the docs' page of settings."""
    file.write_text(reference_text(), encoding="utf-8")
    click.echo(f"wrote {file}")


def reference_text() -> str:
    """What docs/reference/settings.md has to hold."""
    return settings_page({command: load(entry)[0] for command, entry in ENTRIES.items()})


def project_text() -> str:
    """What MLproject has to hold."""
    return mlproject(
        {
            name: (load(entry)[0], subcommand, entry.recipe)
            for subcommand, entry in ENTRIES.items()
            for name in entry.names
        }
    )


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line; bad input is one sentence and exit code 2, an interrupted run 130 or 143."""
    prepare()
    without_telemetry()
    try:
        facerec.main(arguments, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        if mine_to_tell():
            error.show(file=sys.stderr)
        sys.exit(2)
    except InputError as error:
        if mine_to_tell():
            print(f"facerec: {as_utf8(str(error))}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        print("facerec: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        drain(sys.stdout)
        sys.exit(1)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        drain(sys.stdout)
        print("facerec: the disk is full: the output cannot be written", file=sys.stderr)
        sys.exit(2)


def without_telemetry() -> None:
    """MLflow's usage statistics are off in our commands and what they start, unless somebody has chosen otherwise."""
    wanted = os.environ.get("FACEREC_TELEMETRY", "").lower() in ("1", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "false" if wanted else "true")


def mine_to_tell() -> bool:
    """Whether this process tells an error: of several that torchrun has started, one does."""
    if "WORLD_SIZE" not in os.environ:
        return True  # without torch, which takes seconds to import
    from facerec.training.distributed import first_to_tell

    return first_to_tell()
