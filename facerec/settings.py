"""Settings: one pydantic model an entry point is its command line, its YAML keys, its `-P` keys and its MLflow params.

A part of the package declares its own settings beside its code (`NetworkSettings` in network.py); an entry point's
model inherits from the parts that it needs. Precedence: built-in defaults < YAML recipe < command line.
Every value arrives as text, also from YAML, and is validated once, by pydantic, so that a mistake reads the same
wherever it was made.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import click
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from facerec import yaml_text
from facerec.values import bounds, canonical, read, wanted

LONGEST = 300  # characters of a bad value, or of an error, that a message repeats

# Settings are called `register` and `json`, and pydantic's models inherit methods of those names that nobody calls.
warnings.filterwarnings("ignore", message='Field name "(register|json)"', category=UserWarning)


class InputError(Exception):
    """Bad input, told in one sentence: what, where, what to do. The command line prints it and exits with 2."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error. `none` stands for a missing value."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
    group: ClassVar[str] = "Other"

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        return read(cls.model_fields[info.field_name], value)


def defaults(model: type[Settings]) -> dict[str, str]:
    """What every setting is where nobody says anything, as `as_params` has it."""
    return {
        name: canonical(field.default)
        for name, field in model.model_fields.items()
        if not field.is_required()
    }


def as_params(settings: Settings) -> dict[str, str]:
    """Every setting once, as the text that MLflow keeps."""
    return {name: canonical(value) for name, value in settings.model_dump().items()}


def grouped_fields(model: type[Settings]) -> dict[str, dict[str, FieldInfo]]:
    """Fields of `model` by the group of the class that declares them, an entry point's own group first."""
    groups: dict[str, dict[str, FieldInfo]] = {}
    for cls in model.__mro__:
        if not (isinstance(cls, type) and issubclass(cls, Settings)):
            continue
        for name in cls.__dict__.get("__annotations__", {}):
            if name in model.model_fields and not any(name in g for g in groups.values()):
                groups.setdefault(cls.group, {})[name] = model.model_fields[name]
    return groups


def read_recipe(path: str) -> dict[str, Any]:
    """Settings in a YAML file: one flat mapping of setting to value.

    Raises:
        InputError: if the file is missing, too large, not YAML, or not a flat mapping.
    """
    file = expanded(path)
    if not file.is_file():
        where = "" if file.is_absolute() else f" in {Path.cwd()}"
        raise InputError(
            f"config {path}: there is no such file{where}; give a YAML recipe, such as configs/demo.yaml"
        )
    try:
        values = yaml_text.read(file)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise InputError(
            f"config {path}: cannot be read as YAML: {brief(error, 2 * LONGEST)}"
        ) from error
    values = {} if values is None else values
    if not isinstance(values, dict) or any(
        isinstance(v, (dict, list, set)) for v in values.values()
    ):
        raise InputError(f"config {path}: a recipe is one flat list of `setting: value` lines")
    return {str(key): value for key, value in values.items()}


def resolve(model: type[Settings], given: Mapping[str, Any], config: str | None = None) -> Any:
    """Settings from defaults, then the recipe `config`, then `given` (the command line).

    Raises:
        InputError: for an unknown key (the nearest known one is named) or a value out of range.
    """
    recipe = read_recipe(config) if config else {}
    for key in recipe:
        if key not in model.model_fields:
            raise InputError(f"config {config}: {unknown_key(key, model.model_fields)}")
    return validate(
        model,
        {**recipe, **given},
        lambda key: "command line" if key in given else f"config {config}",
    )


def validate(
    model: type[Settings], values: Mapping[str, Any], source: Any = lambda key: "settings"
) -> Any:
    """`model(**values)`, with pydantic's errors told as one sentence.

    Args:
        source: key → the place it came from, for the sentence.

    Raises:
        InputError: on the first value that does not fit.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise InputError(sentence(model, error, source)) from None


def sentence(model: type[Settings], error: ValidationError, source: Any) -> str:
    """The first problem of a pydantic error in the words of a settings file."""
    problem = error.errors()[0]
    key = str(problem["loc"][0]) if problem["loc"] else ""
    reason = problem["msg"].removeprefix("Value error, ")
    if key not in model.model_fields:
        return reason if not key else unknown_key(key, model.model_fields)
    if problem["type"] == "missing":
        flag = "--" + key.replace("_", "-")
        return f"{key} is missing: give {flag} (or -P {key}=...): {model.model_fields[key].description}"
    reason = reason.replace("Input should be", "should be")
    return f"{key}={brief(problem['input'])} ({source(key)}): {reason}; wanted: {wanted(model.model_fields[key])}"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known setting."""
    key = brief(key)
    near = difflib.get_close_matches(key.replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f"there is no setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def brief(value: Any, longest: int = LONGEST) -> str:
    """A bad value or an error for a message: on one line, control characters escaped, of a long one the beginning."""
    try:
        text = one_line(value) if isinstance(value, BaseException) else canonical(value)
    except ValueError:  # Python spells no whole number of over 4,300 digits
        return "a number of thousands of digits"
    return beginning(" ".join(text[: 2 * longest].split()), longest)


def beginning(text: str, longest: int) -> str:
    """Text made printable, of a long one the beginning."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def one_line(error: BaseException) -> str:
    """The whole message of an exception on one line, for who takes secrets out of it; `brief` is for messages."""
    return " ".join(str(error).split()) or type(error).__name__


def expanded(path: str | PathLike[str]) -> Path:
    """The path with a leading `~` or `~user` put in; as it is where it exists so, or no such user does."""
    path = Path(path)
    try:
        return path if path.exists() else path.expanduser()
    except (OSError, RuntimeError, ValueError):
        return path


def shown(path: str | PathLike[str], longest: int = 200) -> str:
    """A file's name for a message: control characters and broken encodings escaped, of a long one the end."""
    text = printable(str(path)) or "''"
    return text if len(text) <= longest else "…" + text[1 - longest :]


def printable(text: str) -> str:
    """Text with control characters and what is no UTF-8 as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in as_utf8(text))


def as_utf8(text: str) -> str:
    r"""Text that UTF-8 can hold: of a file name that is not UTF-8, each such byte as an escape.

    >>> as_utf8("caf\udce9")
    'caf\\xe9'
    """
    return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in text)


def _escaped(surrogate: str) -> str:
    code = ord(surrogate)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class SettingsCommand(click.Command):
    """A click command made from a settings model: options grouped in --help, underscores accepted."""

    def __init__(self, name: str, model: type[Settings], **attributes: Any) -> None:
        params = [
            config_option(),
            *(option(n, f) for g in grouped_fields(model).values() for n, f in g.items()),
        ]
        super().__init__(name, params=params + attributes.pop("params", []), **attributes)
        self.settings_model = model
        self.context_settings = {
            "token_normalize_func": lambda token: token.replace("_", "-"),
            "max_content_width": 110,
        }

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Options under the heading of the part that they set."""
        by_name = {p.name: p for p in self.get_params(ctx)}
        groups = grouped_fields(self.settings_model)
        in_groups = {name for fields in groups.values() for name in fields}
        rest = [p for n, p in by_name.items() if n not in in_groups and isinstance(p, click.Option)]
        sections = [
            *((g, [by_name[n] for n in fields]) for g, fields in groups.items()),
            ("Common", rest),
        ]
        for title, params in sections:
            rows = [r for p in params if (r := p.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """An unknown option names the nearest setting."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            key = error.option_name.lstrip("-").replace("-", "_")
            raise InputError(
                unknown_key(key, [*self.settings_model.model_fields, "config"])
            ) from None


def config_option() -> click.Option:
    """`--config FILE`."""
    return click.Option(
        ["--config"],
        metavar="FILE",
        help="YAML recipe; what is given on the command line beats it.",
    )


def option(name: str, field: FieldInfo) -> click.Option:
    """The click option of one setting; pydantic validates it, so it is text here."""
    default = "required" if field.is_required() else canonical(field.default)
    kind = wanted(field)
    # `--json` alone is `--json true`.
    alone = {"is_flag": False, "flag_value": "true"} if field.annotation is bool else {}
    return click.Option(
        ["--" + name.replace("_", "-"), name],
        metavar=f"[{kind}]" if "|" in kind else kind.split(" ")[0].upper(),
        **alone,
        help=f"{field.description}  [{'; '.join([*bounds(field), default])}]",
    )


def mlproject(entries: Mapping[str, tuple[type[Settings], str, str | None]]) -> str:
    """The text of MLproject.

    MLflow substitutes and logs every default that is declared, which would beat the recipe. So an entry point
    declares its recipe and the settings without default; the others stand as comments and reach the command as
    `-P key=value` all the same.

    Args:
        entries: entry point → (settings, subcommand, default recipe or None).
    """
    lines = [
        "# Written by `facerec mlproject`; a test holds it equal to the code.",
        "name: facerec",
        "",
    ]
    lines += ["conda_env: conda.yaml", "", "entry_points:"]
    for entry, (model, command, recipe) in entries.items():
        required = [n for n, f in model.model_fields.items() if f.is_required()]
        lines += [f"  {entry}:"]
        declared = [f"      config: {{type: string, default: {recipe}}}"] if recipe else []
        declared += [f"      {name}: {{type: string}}" for name in required]
        lines += ["    parameters:", *declared] if declared else []
        for title, fields in grouped_fields(model).items():
            rest = {n: f for n, f in fields.items() if n not in required}
            lines += [f"      # {title}"] if rest else []
            lines += [
                f"      #   {n} ({wanted(f)}; {canonical(f.default)}): {f.description}"
                for n, f in rest.items()
            ]
        arguments = (["--config {config}"] if recipe else []) + [
            f"--{name.replace('_', '-')} {{{name}}}" for name in required
        ]
        lines += [f'    command: "python -m facerec {" ".join([command, *arguments])}"', ""]
    return "\n".join(lines).rstrip() + "\n"
