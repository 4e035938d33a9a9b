"""A comparison as a table in the terminal and in markdown, with the same cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rich import box
from rich.table import Table

from sdecontrol.errors import NotDefined
from sdecontrol.report.comparison import Row, Trial
from sdecontrol.report.markdown import table
from sdecontrol.report.numbers import compact, estimate

Column = Callable[[Row], str]


def _scored(name: str) -> Column:
    """A number of the score; a dash where it is not defined, as a sampler's path KL."""

    def cell(row: Row) -> str:
        with suppress(NotDefined):
            return compact(getattr(row.score, name))
        return "–"

    return cell


def _variation(row: Row) -> str:
    with suppress(NotDefined):
        return compact(row.score.tv_bound or row.score.tv_estimate)
    return "–"


def _calls(row: Row) -> str:
    """Calls, and pullbacks after a plus."""
    return f"{row.cost.calls:.3g}" + (f" + {row.cost.pullbacks:.3g}" if row.cost.pullbacks else "")


def columns(trial: Trial) -> dict[str, Column]:
    """What is shown of each law: name of the column -> cell."""
    closed = any(getattr(row.score, "optimum", None) and row.score.optimum.stderr == 0 for row in trial.rows)
    names = list(dict.fromkeys(name for row in trial.rows for name in row.measures))
    measured: dict[str, Column] = {name: lambda row, name=name: compact(row.measures.get(name)) for name in names}  # type: ignore[misc]
    return {
        "reward": _scored("reward"),
        "path KL": _scored("kl"),
        "gap": _scored("gap"),
        "TV bound" if closed else "TV est.": _variation,
        "W2": lambda row: compact(row.distance),
        **measured,
        "calls": _calls,
        "s": lambda row: f"{row.cost.seconds:.1f}",
        **({} if trial.question.problem.process.elementwise else OF_NETWORKS),
    }


OF_NETWORKS: dict[str, Column] = {  # where nothing is closed and memory is short
    "log Z": lambda row: compact(row.run.log_normalizer),
    "ESS": lambda row: f"{float(row.score.ess.value):.0f}",
    "MB": lambda row: f"{row.cost.peak / 2**20:.0f}" if row.cost.peak else "–",
}


def title(trial: Trial) -> str:
    """The problem in words, its temperature and the optimum."""
    name = f"{trial.question.name}: {trial.question.title}" if trial.question.title else trial.question.name
    optimum = next((row.score.optimum for row in trial.rows if row.score.optimum is not None), None)
    known = "" if optimum is None else f", optimum {estimate(optimum)} ({optimum.route})"
    return f"{name}, temperature {trial.question.problem.temperature:g}, {trial.chain.n:,} samples{known}"


def terminal(trial: Trial) -> Table:
    shown = columns(trial)
    found = Table("law", *shown, title=title(trial), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in trial.ranked:
        found.add_row(row.name, *(cell(row) for cell in shown.values()))
    return found


def markdown(trials: Sequence[Trial], figures: Callable[[Trial], list[tuple[str, str]]]) -> str:
    """The whole report: for each problem its table, what is not defined, notes and figures (file, caption)."""
    lines = ["# Comparison", ""]
    for trial in trials:
        shown = columns(trial)
        lines += [f"## {title(trial)}", "", *(_figure(*f) for f in figures(trial))]
        lines += table(["law", *shown], [[row.name, *(cell(row) for cell in shown.values())] for row in trial.ranked])
        lines += ["", LEGEND, ""] + [f"- {line}" for line in remarks(trial)] + [""]
    return "\n".join(lines)


LEGEND = (
    "Nearest to the exact tilt first. 0.899(19) is 0.899 with a standard error of 0.019. gap: temperature times KL to "
    "the optimal path law of the chain. TV: of the output to the tilt, by Pinsker on the gap. W2: of the first two "
    "moments to those of the exact tilt; draws of the tilt itself show what this many samples leave. calls: of the "
    "model for one sample, + pullbacks; 0 where the chain is folded into matrices. s: wall seconds. For "
    "networks also log Z by the law's own samples, biased low, their effective number as ESS, and peak memory in MB."
)


def remarks(trial: Trial) -> list[str]:
    """What a reader should know beside the numbers."""
    said = [f"{row.name}: {note}" for row in trial.rows for note in row.notes]
    said += [f"{name} is not defined here: {reason}" for name, reason in trial.reasons.items()]
    said += [f"{name} failed: {reason}" for name, reason in trial.failures.items()]
    waiting = len(trial.choices) - len(trial.rows) - len(trial.reasons) - len(trial.failures)
    return said + ([f"stopped before {waiting} of {len(trial.choices)} laws"] if waiting else [])


def _figure(file: str, caption: str) -> str:
    return f"![{caption}]({file})\n"


def payload(trials: Sequence[Trial], versions: dict[str, str]) -> dict[str, Any]:
    """comparison.json."""
    return {"versions": versions, "problems": {trial.question.name: trial.to_dict() for trial in trials}}
