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
from sdecontrol.report.front import front
from sdecontrol.report.run import Picture, Run
from sdecontrol.report.style import REFERENCE, TILT, canvas, save

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
    """Mean reward against path KL: a point with error bars a control, the exact front, and the optimum's objective."""
    rows, chain = comparison.rows, comparison.chain
    points = front(chain.problem, chain.grid, chain.kernel, 0, comparison.free)
    kl, reward = (np.array([getattr(row, name).value for row in rows.values()]) for name in ("kl", "reward"))
    optimum = next(iter(rows.values())).optimum.value
    with canvas(1, 1, size=(4.6, 3.2)) as (figure, (ax,)):
        edge = 1.1 * max(float(kl.max()), 1e-12)
        seen = [p for p in points if p.kl <= 1.5 * edge]
        ax.plot([p.kl for p in points], [p.reward for p in points], color=TILT, lw=1.2, label="exact front")
        x = np.linspace(0, edge, 2)
        ax.plot(x, optimum + comparison.temperature * x, color=REFERENCE, lw=0.9, ls="--",
                label="objective of the optimum")  # fmt: skip
        for (name, row), marker in zip(rows.items(), cycle("osD^vP*X")):
            ax.errorbar(row.kl.value, row.reward.value, xerr=row.kl.stderr, yerr=row.reward.stderr, fmt=marker, ms=4,
                        label=name)  # fmt: skip
        heights = [*reward, optimum, *(p.reward for p in seen)]
        margin = 0.08 * (max(heights) - min(heights) + 1e-12)
        ax.set(xlabel=r"$\mathrm{KL}(Q^{u,\nu}\Vert Q)$", ylabel="mean total reward")
        ax.set(xlim=(-0.04 * edge, 1.1 * edge), ylim=(min(heights) - margin, max(heights) + margin))
        ax.legend()
        save(figure, file)
