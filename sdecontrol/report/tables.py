"""Tables of evaluated controls, for print(table) and for the terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sdecontrol.errors import NotDefined
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import Evaluation
from sdecontrol.report.numbers import estimate

if TYPE_CHECKING:
    from sdecontrol.evaluate import Comparison


def comparison_table(comparison: Comparison) -> Table:
    """One row a control: reward, KL, objective, distance from the optimum, each with its standard error."""
    rows = comparison.rows
    scored = [row for row in rows.values() if isinstance(row, Evaluation)]
    closed = all(row.tv_bound is not None for row in scored)
    optimum = next((row.optimum for row in [*scored, *rows.values()] if row.optimum is not None), None)
    title = "" if optimum is None else f", optimum {estimate(optimum)} ({optimum.route})"
    table = Table(
        "control", "reward", "KL", "objective", "gap", "excess", "TV bound" if closed else "TV estimate", "ESS",
        title=f"temperature {comparison.temperature:g}{title}",
    )  # fmt: skip
    names = ("reward", "kl", "objective", "gap", "excess", "tv_bound" if closed else "tv_estimate")
    for name, row in rows.items():
        table.add_row(name, *(estimate(_cell(row, column)) for column in names), f"{float(row.ess):.0f}")
    return table


def _cell(row: Any, column: str) -> Estimate | None:
    """A number of a row; None where it is not defined, as a sampler's path KL."""
    try:
        found: Estimate | None = getattr(row, column)
    except NotDefined:
        return None
    return found


def render(table: Table, width: int = 120) -> str:
    """The table as text without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
