"""What a study has found: one page of Optuna's figures, and a recipe for `train`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

import optuna
import optuna.visualization as draw
import plotly.graph_objects as go
import yaml
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from facerec.config.settings import canonical
from facerec.report.html import FONT, document, figure_block, light

BEST_SHOWN = 20  # rows of the table
STATE_COLOURS = {
    "COMPLETE": "blue",
    "PRUNED": "gold",
    "FAIL": "vermilion",
    "RUNNING": "green",
    "WAITING": "faint",
}

# Figure → what it is for; the sentence stands above it.
WORDS = {
    "History": "Each trial's value, and the best so far: a line that has long been flat says that more trials would "
    "change little.",
    "Importances": "How much of the difference between trials each parameter explains, over the whole space "
    "(functional ANOVA of a random forest; complete trials alone).",
    "Parallel coordinates": "One line a trial: see which values the most coloured ones, the good ones, have.",
    "Slices": "The value over each parameter alone: a cloud that leans against a border asks for a wider range.",
    "Intermediate values": "Validation epoch by epoch: what was pruned, and whether ranks still change at the end.",
    "Timeline": "When each trial ran, and how it ended.",
    "Pareto front": "No trial is better in one objective without being worse in the other than those of the front.",
}


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The best trial within the constraints; of a Pareto front, the one with the best first objective."""
    try:
        if len(study.directions) == 1:
            return study.best_trial
        front = study.best_trials
    except ValueError:
        return None
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    return max(front, key=lambda trial: (sign * trial.values[0], -trial.number), default=None)


def recipe_text(values: Mapping[str, Any], said: Sequence[str]) -> str:
    """A recipe for `train`.

    Args:
        values: setting → value.
        said: lines of comment above.
    """
    head = "".join(f"# {line}\n" for line in said)
    return head + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def study_page(
    study: optuna.Study,
    objectives: Sequence[str],
    recipe: str = "",
    subtitle: str = "",
) -> str:
    """The page of a study.

    Args:
        study: with any number of trials.
        objectives: names of the metrics.
        recipe: text of best.yaml.
        subtitle: plain text.

    Returns:
        HTML, for `page.write_html`.
    """
    figures = list(study_figures(study, objectives))
    cards = [summary(study, objectives), table(study, objectives)]
    if recipe:
        cards.append(f"<h2>best.yaml</h2><pre>{escape(recipe)}</pre>")
    for number, (title, words, figure) in enumerate(figures):
        drawn = (
            f'<p class="note">{escape(figure)}</p>'
            if isinstance(figure, str)
            else figure_block(dressed(figure), f"study-{number}", title)
        )
        cards.append(f'<h2>{escape(title)}</h2><p class="note">{escape(words)}</p>{drawn}')
    body = "".join(f'<section class="card">{card}</section>' for card in cards)
    return document(f"Study {study.study_name}", body, subtitle=subtitle)


def study_figures(
    study: optuna.Study, objectives: Sequence[str]
) -> list[tuple[str, str, go.Figure | str]]:
    """(title, words, figure or why there is none) of everything that Optuna draws of this study."""
    rows = []
    for index, name in enumerate(objectives):
        about = f" of {name}" if len(objectives) > 1 else ""
        # The default, PED-ANOVA, looks at the spread of good trials alone, and calls a parameter that TPE has settled
        # early unimportant.
        forest = FanovaImportanceEvaluator(seed=0)
        plots: dict[str, Callable[..., go.Figure]] = {
            "History": draw.plot_optimization_history,
            "Importances": partial(draw.plot_param_importances, evaluator=forest),
            "Parallel coordinates": draw.plot_parallel_coordinate,
            "Slices": draw.plot_slice,
        }
        target = target_of(study, index)
        for title, make in plots.items():
            figure = attempt(partial(make, study, target=target, target_name=name), study)
            rows.append((title + about, WORDS[title], figure))
    if len(objectives) == 1:
        figure = attempt(lambda: draw.plot_intermediate_values(study), study)
        rows.append(("Intermediate values", WORDS["Intermediate values"], figure))
    else:
        front = attempt(lambda: draw.plot_pareto_front(study, target_names=list(objectives)), study)
        rows.insert(0, ("Pareto front", WORDS["Pareto front"], front))
    rows.append(("Timeline", WORDS["Timeline"], attempt(lambda: draw.plot_timeline(study), study)))
    return rows


def target_of(study: optuna.Study, index: int) -> Callable[[FrozenTrial], float] | None:
    """What Optuna is to look at: one of two objectives, or None for the only one."""
    return None if len(study.directions) == 1 else lambda trial: trial.values[index]


def attempt(make: Callable[[], go.Figure], study: optuna.Study) -> go.Figure | str:
    """A figure, or a sentence where there are too few trials for it."""
    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < 2:
        return "Needs two complete trials."
    try:
        return make()
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        return f"Cannot be drawn of these trials: {error}"


def dressed(figure: go.Figure) -> go.Figure:
    """Optuna's figure on the page's ground, in its letters."""
    line = {"gridcolor": light("line"), "linecolor": light("line"), "zeroline": False}
    figure.update_layout(
        template="none",
        title=None,
        height=max(420, figure.layout.height or 0),
        margin={"l": 72, "r": 24, "t": 44, "b": 56},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12.5, "color": light("muted")},
        colorway=[light(name) for name in ("blue", "vermilion", "green", "purple", "gold")],
    )
    figure.update_xaxes(**line)
    figure.update_yaxes(automargin=True, title_standoff=14, **line)
    for trace in figure.data:
        recolour(trace)
    return figure


def recolour(trace: Any) -> None:
    """Colours that the page can turn for its dark theme, in place of Optuna's own."""
    front = trace.type == "scatter" and trace.marker.colorbar.title.text == "Best Trial"
    scale = [[0, light("faint")], [1, light("vermilion" if front else "blue")]]
    if trace.type == "parcoords":
        ink = {"color": light("muted")}
        trace.update(line_colorscale=scale, tickfont=ink, labelfont=ink, rangefont=ink)
    elif trace.type == "scatter" and trace.marker.colorscale:
        trace.marker.update(colorscale=scale, line={"width": 0.5, "color": light("muted")})
    elif trace.name in STATE_COLOURS:
        trace.marker.color = light(STATE_COLOURS[trace.name])


def summary(study: optuna.Study, objectives: Sequence[str]) -> str:
    """How many trials ended how, and what is best: HTML."""
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    counts = ", ".join(f"{states.count(s)} {s}" for s in sorted(set(states), key=states.index))
    best = best_trial(study)
    if best is None:
        return (
            f"<h2>Summary</h2><p>{escape(counts or 'no trials')}; none is complete and allowed.</p>"
        )
    values = " and ".join(
        f"{name} <b>{value:.4f}</b>"
        for name, value in zip(map(escape, objectives), best.values, strict=True)
    )
    return (
        f"<h2>Summary</h2><p>{escape(counts)}. Best: trial {best.number} with {values}, by "
        f"{escape(parameters(best))}. It was chosen among many on the same validation people: expect a little "
        "less on others.</p>"
    )


def table(study: optuna.Study, objectives: Sequence[str]) -> str:
    """The best trials, then the others, with their runs: HTML."""
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1

    def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
        complete = trial.state == TrialState.COMPLETE and bool(trial.values)
        value = sign * trial.values[0] if complete else math.inf
        return any(excess > 0 for excess in trial.constraints.values()), value, trial.number

    trials = sorted(study.get_trials(deepcopy=False), key=rank)[:BEST_SHOWN]
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    head = "".join(
        f"<th>{escape(name)}</th>" for name in ("trial", "state", *objectives, *names, "run")
    )
    rows = "".join(f"<tr>{row(trial, len(objectives), names)}</tr>" for trial in trials)
    more = len(study.get_trials(deepcopy=False)) - len(trials)
    note = f'<p class="note">{more} more are in MLflow.</p>' if more > 0 else ""
    return (
        f'<h2>Trials</h2>{note}<div style="overflow-x:auto"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def row(trial: FrozenTrial, objectives: int, names: Sequence[str]) -> str:
    """Cells of one trial: HTML."""
    values = list(trial.values or [])[:objectives]
    values += [None] * (objectives - len(values))
    broken = any(excess > 0 for excess in trial.constraints.values())
    state = trial.state.name.lower() + (", outside the constraints" if broken else "")
    cells = [str(trial.number), state, *(shown(value) for value in values)]
    cells += [shown(trial.params.get(name)) for name in names]
    cells.append(trial.user_attrs.get("mlflow_run", "")[:8])
    return "".join(f"<td>{escape(cell)}</td>" for cell in cells)


def shown(value: Any) -> str:
    """A value in the table; empty where there is none."""
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else canonical(value)


def parameters(trial: FrozenTrial) -> str:
    """`lr 0.002, patch_size 8`."""
    return ", ".join(f"{name} {shown(value)}" for name, value in trial.params.items())
