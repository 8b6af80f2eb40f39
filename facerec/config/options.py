"""The command line of a settings model: click options grouped as the model is, by the names of its fields."""

from __future__ import annotations

from typing import Any

import click
from pydantic.fields import FieldInfo

from facerec.config.recipe import unknown_key
from facerec.config.settings import Settings, grouped_fields
from facerec.config.values import bounds, canonical, wanted
from facerec.errors import InputError


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
        rest: list[click.Parameter] = [
            p for n, p in by_name.items() if n not in in_groups and isinstance(p, click.Option)
        ]
        sections: list[tuple[str, list[click.Parameter]]] = [
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
        help="YAML recipe, or the name of one that comes with facerec; what is given on the command line beats it.",
    )


def option(name: str, field: FieldInfo) -> click.Option:
    """The click option of one setting; pydantic validates it, so it is text here."""
    default = "required" if field.is_required() else canonical(field.default)
    kind = wanted(field)
    # `--json` alone is `--json true`.
    alone: dict[str, Any] = (
        {"is_flag": False, "flag_value": "true"} if field.annotation is bool else {}
    )
    return click.Option(
        ["--" + name.replace("_", "-"), name],
        metavar=f"[{kind}]" if "|" in kind else kind.split(" ")[0].upper(),
        **alone,
        help=f"{field.description}  [{'; '.join([*bounds(field), default])}]",
    )
