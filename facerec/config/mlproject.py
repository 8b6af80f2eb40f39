"""The text of MLproject, from the settings models of its entry points."""

from __future__ import annotations

from collections.abc import Mapping

from facerec.config.settings import Settings, grouped_fields
from facerec.config.values import canonical, wanted


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
