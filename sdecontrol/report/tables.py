"""Tables of evaluated controls, for print(table) and for the terminal."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sdecontrol.report.numbers import estimate

if TYPE_CHECKING:
    from sdecontrol.evaluate import Comparison


def comparison_table(comparison: Comparison) -> Table:
    """One row a control: reward, KL, objective, distance from the optimum, each with its standard error."""
    rows = comparison.rows
    closed = all(row.tv_bound is not None for row in rows.values())
    optimum = next(iter(rows.values())).optimum
    table = Table(
        "control", "reward", "KL", "objective", "gap", "excess", "TV bound" if closed else "TV estimate", "ESS",
        title=f"temperature {comparison.temperature:g}, optimum {estimate(optimum)} ({optimum.route})",
    )  # fmt: skip
    for name, row in rows.items():
        tv = row.tv_bound if closed else row.tv_estimate
        cells = (row.reward, row.kl, row.objective, row.gap, row.excess, tv)
        table.add_row(name, *(estimate(cell) for cell in cells), f"{float(row.ess):.0f}")
    return table


def render(table: Table, width: int = 120) -> str:
    """The table as text without colours."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()
