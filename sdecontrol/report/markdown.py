"""report.md: the verdicts of every claim on every problem first, the numbers behind them after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sdecontrol.claims import Report
from sdecontrol.report import mutants
from sdecontrol.report.numbers import BIASED_MEANS, SIGNS, agreement, allows_for_bias, duration, error, value
from sdecontrol.report.run import VERDICTS, Run, versions


def render(run: Run) -> str:
    """The whole report as markdown."""
    sections = [_head(run), _matrix(run), _fits(run), _figures(run), _attention(run), _mutants(run), _numbers(run)]
    return "\n".join(line for section in sections for line in section) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


def _head(run: Run) -> list[str]:
    counts = ", ".join(f"{run.count(verdict)} {verdict}" for verdict in VERDICTS)
    state = "" if run.complete else f" Stopped early: {len(run.reports)} of {run.size} are done."
    installed = ", ".join(f"{name} {number}" for name, number in versions().items())
    return [
        "# Verification report",
        "",
        f"{len(run.ids)} claims on {len(run.problems)} problems: {counts}.{state}",
        "",
        f"Seed {run.checking.seed}{', quick' if run.checking.quick else ''}; {duration(run.seconds)}; {installed}.",
        "",
    ]


def _matrix(run: Run) -> list[str]:
    titles = {report.claim: report.title for report in run.reports}
    rows = [
        [claim, titles.get(claim, ""), *(SIGNS.get(verdicts.get(name, ""), "") for name in run.problems)]
        for claim, verdicts in run.matrix().items()
    ]
    legend = ", ".join(f"{sign} {verdict}" for verdict, sign in SIGNS.items())
    return ["## Verdicts", "", *table(["claim", "statement", *run.problems], rows), "", legend + ".", ""]


def _fits(run: Run) -> list[str]:
    lines = [f"- {fit}" for fit in dict.fromkeys(run.fits.values())]
    return ["## What was fitted", "", *lines, ""] if lines else []


def _figures(run: Run) -> list[str]:
    lines = [f"![{p.name}]({p.name}.png)\n\n{p.title}. {p.caption}\n" for p in run.figures]
    return ["## Figures", "", *lines] if lines else []


def _attention(run: Run) -> list[str]:
    """Everything that is neither "holds" nor "not applicable", and notes of the run, with the reasons."""
    doubtful = [r for r in run.reports if r.verdict in ("violated", "inconclusive")]
    lines = [f"- {r.claim} on {r.problem}: **{r.verdict}**. {r.reason}" for r in doubtful]
    lines += [f"- {failure}" for failure in run.failures]
    lines += [f"- {note}" for note in run.notes]
    return ["## Needs attention", "", *lines, ""] if lines else []


def _mutants(run: Run) -> list[str]:
    lines = [f"- {line}" for line in mutants.summary(run.reports)]
    return ["## Wrong answers", "", *lines, ""] if lines else []


def _numbers(run: Run) -> list[str]:
    marked = any(allows_for_bias(row) for report in run.reports for row in report.rows)
    lines = ["## Numbers", "", *([f"{BIASED_MEANS}.", ""] if marked else [])]
    for report in run.reports:
        lines += [f"### {report.claim} on {report.problem}: {report.verdict}", "", *_rows(report), ""]
    return lines


def _rows(report: Report) -> list[str]:
    reason = [report.reason, ""] if report.reason else []
    rows = [
        [
            row.rung,
            row.quantity,
            value(row.left),
            value(row.right),
            error(row.error),
            agreement(row),
            row.verdict,
            row.note,
        ]
        for row in report.rows
    ]
    header = ["rung", "quantity", "left", "right", "error", "agreement", "verdict", "note"]
    skipped = ["", *(f"- Not checked: {reason}" for reason in report.skipped)] if rows and report.skipped else []
    return [*reason, *(table(header, rows) if rows else []), *skipped]
