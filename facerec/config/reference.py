"""The settings of every command as a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping

from facerec.config.settings import Settings, grouped_fields
from facerec.config.values import canonical, wanted


def settings_page(commands: Mapping[str, type[Settings]]) -> str:
    """Markdown with a table for each group of settings of each command; a group that two commands share stands once."""
    seen: dict[tuple[str, str], str] = {}
    lines = [
        "<!-- Written by `facerec settings-reference`; a test holds it equal to the code. -->",
        "# Settings",
        "",
    ]
    lines += [
        "One pydantic model a command is its command line, YAML keys, `-P` keys and MLflow parameters.",
        "",
    ]
    for command, model in commands.items():
        lines += [f"## {command}", ""]
        for title, fields in grouped_fields(model).items():
            rows = [
                f"| `{name}` | {wanted(field).replace('|', ' &#124; ')} | "
                f"{'required' if field.is_required() else '`' + canonical(field.default) + '`'} | {field.description} |"
                for name, field in fields.items()
            ]
            table = "\n".join(["| setting | value | default | |", "|---|---|---|---|", *rows])
            first = seen.setdefault((title, table), command)
            lines += [f"**{title}**" + (f": as of {first}" if first != command else ""), ""]
            lines += [] if first != command else [table, ""]
    return "\n".join(lines).rstrip() + "\n"
