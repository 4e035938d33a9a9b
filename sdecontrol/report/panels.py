"""Figures with one panel or one line a problem, where the exact answers of some problems are not known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sdecontrol.errors import NoClosedForm, NotDefined, NoTilt
from sdecontrol.problems.base import Problem
from sdecontrol.report.style import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
ACROSS = 4  # panels in a row
PANEL = (2.1, 1.75)  # inches


def where_known(problems: Iterable[Problem], compute: Callable[[Problem], T]) -> tuple[dict[str, T], str]:
    """What `compute` finds by problem, and a sentence on the problems where it has no closed form."""
    found, missing = dict[str, T](), dict[str, str]()
    for problem in problems:
        try:
            found[problem.name] = compute(problem)
        except (NoClosedForm, NotDefined, NoTilt) as reason:
            missing[problem.name] = str(reason).rstrip(".")
    reasons = "; ".join(f"{name} ({reason})" for name, reason in missing.items())
    return found, f" Left out: {reasons}." if missing else ""


@contextmanager
def panels(names: Iterable[str], xlabel: str, ylabel: str) -> Iterator[tuple[Figure, dict[str, Axes]]]:
    """A panel for each name, titled with it, in rows of ACROSS; the labels stand once, for all."""
    titles = list(names)
    rows, columns = -(-len(titles) // ACROSS), min(ACROSS, len(titles))
    width, height = max(columns * PANEL[0], 4.2), max(rows * PANEL[1], 2.6) + 0.5
    with canvas(rows, columns, (width, height)) as (figure, axes):
        for ax in axes[len(titles) :]:
            ax.set_axis_off()
        for ax, title in zip(axes, titles):
            ax.set_title(title, fontsize=8)
            ax.tick_params(labelsize=7)
        figure.supxlabel(xlabel, fontsize=9)
        figure.supylabel(ylabel, fontsize=9)
        yield figure, dict(zip(titles, axes))
