"""Problems on real data: a law fitted to an array, VP noising, and two rewards that mean something on any array.

Both rewards have unit standard deviation over the data, so that one temperature suits any array:
  * total: the sum of the entries (the ink of an image), centred; linear.
  * regular: for images, minus the squared left-right asymmetry |x - flip x|^2; for other arrays, minus the squared
    first principal coordinate. A concave quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdecontrol.data import DataSet, FitSummary, PrincipalSubspace, fit
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Quadratic
from sdecontrol.schedules import VP

TEMPERATURE = 0.5


@dataclass(frozen=True)
class Subject:
    """What is verified: a problem and, unless its law was given, the data it comes from and what was fitted."""

    problem: Problem
    data: DataSet | None = None
    fit: FitSummary | None = None

    def named(self, name: str) -> Subject:
        """The same subject under another name."""
        p = self.problem
        renamed = Problem(p.process, p.reward, p.temperature, p.running_reward, name=name, exact=p.find_exact)
        return replace(self, problem=renamed)


def total(data: DataSet) -> Quadratic:
    """(1 . x - E 1 . x) / sd(1 . x), mean and standard deviation over the data."""
    sums = data.values.sum(axis=1)
    scale = float(sums.std()) or 1.0
    return Quadratic(linear=np.full(data.values.shape[1], 1 / scale), constant=-float(sums.mean()) / scale)


def regular(data: DataSet) -> Quadratic:
    """-|A (x - m)|^2 / sd(|A (x - m)|^2): images A = I - flip, m = 0; else A the top direction and m the mean."""
    columns = data.values.shape[1]
    if data.is_image:
        flip = np.arange(columns).reshape(data.event_shape)[:, ::-1].ravel()
        a, centre = np.eye(columns) - np.eye(columns)[flip], np.zeros(columns)
    else:
        space = PrincipalSubspace.of(data.values, rank=1)
        a, centre = space.basis.T, space.offset
    squares = np.sum(((data.values - centre) @ a.T) ** 2, axis=1)
    curvature = 2 * a.T @ a / (float(squares.std()) or 1.0)
    pull = curvature @ centre
    return Quadratic(linear=pull, curvature=curvature, constant=-float(centre @ pull) / 2)


def subjects(
    data: DataSet, components: int = 1, rank: int | None = None, rewards: tuple[str, ...] = ("total", "regular")
) -> list[Subject]:
    """One subject a reward: the fitted law under VP noising, from N(0, I), or from the noised law for mixtures.

    Mixtures start from their own noised law because that keeps every law a mixture, hence closed, in any dimension.
    """
    law, summary = fit(data, components, rank)
    process = ReverseProcess(VP(), law, initial="standard" if components == 1 else "marginal")
    family = "gaussian" if components == 1 else "mixture"
    build = {"total": total, "regular": regular}
    return [
        Subject(Problem(process, build[name](data), TEMPERATURE, name=f"{data.name}-{family}-{name}"), data, summary)
        for name in rewards
    ]
