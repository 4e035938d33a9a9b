"""The terminal: one block a claim and problem while the run goes on, counts and open points at its end."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdecontrol.claims import Report, Row
from sdecontrol.claims.base import Z_CRITICAL
from sdecontrol.report import mutants
from sdecontrol.report.numbers import BIASED_MEANS, SIGNS, agreement, allows_for_bias, duration, error, value
from sdecontrol.report.run import VERDICTS, Failure, Run

STYLES = {"holds": "green", "violated": "bold red", "inconclusive": "yellow", "not applicable": "dim"}


def console(quiet: bool = False, width: int = 110) -> Console:
    """Standard output; wide enough for every column where it is not a terminal."""
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else width, highlight=False)


def show(console: Console, report: Report | Failure, every_row: bool) -> None:
    """The head line of a report and its rows: all of them, or the least certain row of each rung."""
    if isinstance(report, Failure):
        console.print(Text(f"! {report}", style=STYLES["violated"]))
        return
    head = Text(f"{SIGNS.get(report.verdict, ' ')} {report.claim}", style=STYLES.get(report.verdict, ""))
    head.append(f"  {report.problem}  ", style="default")
    head.append(report.verdict, style=STYLES.get(report.verdict, ""))
    head.append(f"  {report.seconds:.1f} s", style="dim")
    console.print(head)
    if report.reason and report.verdict != "holds":
        console.print(Text(f"    {report.reason}", style="dim"), soft_wrap=True)
    rows = report.rows if every_row or report.verdict == "violated" else _weakest(report.rows)
    if rows:
        console.print(_rows(rows, with_notes=every_row))


def show_summary(console: Console, run: Run) -> None:
    """Counts of verdicts by problem, then what is violated or inconclusive, with the reason."""
    table = Table("problem", *VERDICTS, title=f"{len(run.reports)} of {run.size} in {duration(run.seconds)}")
    for name in run.problems:
        done = [report.verdict for report in run.reports if report.problem == name]
        table.add_row(name, *(str(done.count(verdict)) for verdict in VERDICTS))
    table.add_section()
    table.add_row("total", *(str(run.count(verdict)) for verdict in VERDICTS), style="bold")
    console.print(table)
    for report in run.reports:
        if report.verdict in ("violated", "inconclusive"):
            line = f"{SIGNS[report.verdict]} {report.claim} on {report.problem}: {report.reason}"
            console.print(Text(line, style=STYLES[report.verdict]), soft_wrap=True)
    for failure in run.failures:
        console.print(Text(f"! {failure}", style=STYLES["violated"]), soft_wrap=True)
    for line in mutants.summary(run.reports):
        console.print(Text(line), soft_wrap=True)
    if any(allows_for_bias(row) for report in run.reports for row in report.rows):
        console.print(Text(BIASED_MEANS, style="dim"), soft_wrap=True)
    for note in run.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)


def _rows(rows: list[Row], with_notes: bool) -> Table:
    """Columns of fixed width, so that blocks line up; the quantity takes what is left."""
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False, expand=True)
    table.add_column(width=3)
    table.add_column(width=11, style="dim")
    table.add_column(ratio=1, overflow="fold")
    for width in (12, 12, 9, 12):
        table.add_column(width=width, justify="right", no_wrap=True)
    for row in rows:
        sign = Text(f"  {SIGNS.get(row.verdict, ' ')}", style=STYLES.get(row.verdict, ""))
        quantity = Text(row.quantity)
        if with_notes and row.note:
            quantity.append(f" ({row.note})", style="dim")
        numbers = (value(row.left, 6), value(row.right, 6), error(row.error), agreement(row))
        table.add_row(sign, row.rung, quantity, *numbers)
    return table


def _weakest(rows: list[Row]) -> list[Row]:
    """Of each rung the row that agrees least: fewest digits, or largest |z|; rungs in order of appearance."""
    rungs = dict.fromkeys(row.rung for row in rows)
    return [max((row for row in rows if row.rung == rung), key=_doubt) for rung in rungs]


def _doubt(row: Row) -> tuple[bool, float]:
    """How near a row is to not holding; one that holds beyond the critical z is a bound, met with room to spare."""
    if row.z is not None:
        return row.verdict != "holds", abs(row.z) if abs(row.z) <= Z_CRITICAL else 0.0
    return row.verdict != "holds", -(row.digits if row.digits is not None else 99.0)
