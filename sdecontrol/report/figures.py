"""The figures of a report, each drawn from the run's problems and results; and the plot of compared controls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdecontrol.errors import NoClosedForm, NotDefined
from sdecontrol.problems.fitted import Subject
from sdecontrol.report import figures_chains, figures_kl, figures_laws, figures_mutants
from sdecontrol.report.run import Picture, Run
from sdecontrol.report.style import TILT, canvas, save

if TYPE_CHECKING:
    from sdecontrol.evaluate import Comparison


def drawings(run: Run, subjects: Sequence[Subject], folder: Path) -> Iterator[Picture]:
    """Write the figures as PNG and PDF into `folder`, one after another; why one is missing is noted in the run."""
    problems, seed = [subject.problem for subject in subjects], run.checking.seed
    yield from figures_mutants.draw(run.reports, folder)
    yield from figures_kl.split(problems, folder, seed)
    yield from figures_kl.bounds(problems, folder, seed)
    yield from figures_chains.certificates(problems, folder, seed)
    yield from figures_chains.orders(problems, folder)
    for subject in subjects:
        try:
            yield from figures_laws.draw(subject, folder, seed)
        except (NoClosedForm, NotDefined) as reason:
            run.notes.append(f"No figure of {subject.problem.name}: {reason}")


def reward_against_kl(comparison: Comparison, file: Path) -> None:
    """Mean reward against path KL, one point with error bars a control; the line is the optimum."""
    rows = comparison.rows
    kl = np.array([row.kl.value for row in rows.values()])
    optimum = next(iter(rows.values())).optimum.value
    with canvas(1, 1, size=(4.6, 3.2)) as (figure, (ax,)):
        x = np.linspace(0, 1.1 * max(float(kl.max()), 1e-12), 2)
        ax.plot(x, optimum + comparison.temperature * x, color=TILT, lw=0.9, label="objective of the optimum")
        for (name, row), marker in zip(rows.items(), cycle("osD^vP*X")):
            ax.errorbar(row.kl.value, row.reward.value, xerr=row.kl.stderr, yerr=row.reward.stderr, fmt=marker, ms=4,
                        label=name)  # fmt: skip
        ax.set(xlabel=r"$\mathrm{KL}(Q^{u,\nu}\Vert Q)$", ylabel=r"$\mathbb{E}\,r(Y_T)$")
        ax.legend()
        save(figure, file)
