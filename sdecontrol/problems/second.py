"""The second control problem: sampling nu* by steering Brownian motion from a point."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sdecontrol.controls import StateControl
from sdecontrol.errors import BadInput, NoClosedForm, check
from sdecontrol.laws import Dirac, Gaussian, Isotropic, Law
from sdecontrol.problems.base import Problem
from sdecontrol.processes import Affine, DiffusionProcess
from sdecontrol.rewards import Quadratic

if TYPE_CHECKING:
    from collections.abc import Callable

_SPREAD_ROUNDING = 1e-12


def initial_law_problem(problem: Problem, share: float = 0.0) -> Problem:
    """maximise E v(0, X_1) - temperature/2 E int |w|^2 dt over dX = eta sqrt(1 - share) (w dt + dB) on [0, 1].

    X_0 ~ N(m, share eta^2 I), so that without control X_1 ~ p_noise = N(m, eta^2 I). With share = 0 the start is the
    point m: the optimum is Follmer's drift, X_1 ~ nu*, and its cost is KL(nu* || p_noise). With share > 0 the start is
    kept as it is, and X_1 is not nu* unless E[e^{v(0, X_1)/temperature} | X_0] is constant: the initial law is a
    problem again, one level down; `exact.untilted_terminal` is what comes out.
    The reward is v(0, .) of `problem`: a Quadratic where the optimal control is affine, else a `ValueAtStart`.
    Raises: BadInput for a share outside [0, 1) or a p_noise that is not isotropic; NoClosedForm without an exact v.
    Source: Tang 2403.06279, (3.31)-(3.32); the condition on the start is derived (the tower rule).
    """
    check(0 <= share < 1, f"share = {share}", "a number in [0, 1)")
    mean, eta = _isotropic(problem.process.initial_law(0.0))
    spread = torch.full_like(mean, share * eta**2)
    start: Law = Gaussian(mean, spread) if share > 0 else Dirac(mean)
    d = len(mean)
    process = DiffusionProcess(Affine(torch.zeros(d, d)), eta * (1 - share) ** 0.5, start, horizon=1.0)
    name = f"initial law of {problem.name or 'a problem'}"
    return Problem(process, value_at_start(problem), problem.temperature, name=name)


class ValueAtStart:
    """x -> v(0, x), with its gradient temperature u*(0, x) / amplitude."""

    def __init__(self, problem: Problem):
        exact, self.amplitude, self.temperature = problem.exact, problem.process.amplitude(0.0), problem.temperature
        self.value, self.control = exact.value, exact.control

    def __call__(self, x: Tensor) -> Tensor:
        return self.value(0.0, x)

    def gradient(self, x: Tensor) -> Tensor:
        return self.control(0.0, x) * (self.temperature / self.amplitude)


def value_at_start(problem: Problem) -> Quadratic | Callable[[Tensor], Tensor]:
    """v(0, .) as a Quadratic where u* is affine, else as a `ValueAtStart`."""
    value = ValueAtStart(problem)
    try:
        gain, offset = value.control.affine_at(0.0)
    except NoClosedForm:
        return value
    scale = problem.temperature / value.amplitude
    curvature = -scale * (gain + gain.mT) / 2
    return Quadratic(scale * offset, curvature, float(value(torch.zeros(1, len(offset), dtype=torch.float64))))


class FollmerDrift(StateControl):
    """w*(t, x) = eta E[e^f grad f] / E e^f at x + eta sqrt(1 - t) xi, f = v(0, .)/temperature, by Gauss-Hermite nodes.

    For second problems without a closed form. n points cost n nodes^d values: up to d = 3. Exact for polynomials e^f of
    degree below 2 nodes; the weights of a simulation correct what is left. Source: derived (Follmer's drift).
    Raises: BadInput above three dimensions.
    """

    def __init__(self, second: Problem, nodes: int = 12):
        d = second.process.dim
        check(d <= 3, f"{d} dimensions", "at most 3, for nodes on a grid", "Estimate the value by sc.feynman_kac.")
        x, w = np.polynomial.hermite_e.hermegauss(nodes)
        self.xi = torch.tensor(list(product(x, repeat=d)), dtype=torch.float64)
        self.log_weights = torch.tensor([np.log(w / w.sum())[list(i)].sum() for i in product(range(nodes), repeat=d)])
        self.second = second
        super().__init__(self._drift)

    def _drift(self, t: float, x: Tensor) -> Tensor:
        eta, reward = self.second.process.amplitude(t), self.second.reward
        points = (x[:, None] + eta * (1 - t) ** 0.5 * self.xi).flatten(0, 1)
        f = reward(points).view(len(x), -1) / self.second.temperature
        slopes = reward.gradient(points).view(len(x), -1, x.shape[1]) / self.second.temperature  # type: ignore[attr-defined]
        return eta * torch.einsum("nm,nmd->nd", (f + self.log_weights).softmax(1), slopes)


def _isotropic(prior: Law) -> tuple[Tensor, float]:
    """(m, eta) of p_noise = N(m, eta^2 I) on vectors."""
    advice = 'With initial="marginal" no control is needed: draw from the tilted data law and noise it.'
    if isinstance(prior, Isotropic) and len(prior.event_shape) == 1:
        return prior.mean, float(prior.std)
    if not isinstance(prior, Gaussian):
        raise BadInput(f"saw p_noise = {type(prior).__name__}; wanted N(m, eta^2 I) on vectors. {advice}")
    low, high = float(prior.eigenvalues.min()), float(prior.eigenvalues.max())
    check(high - low <= _SPREAD_ROUNDING * high, f"a p_noise with variances from {low:.6g} to {high:.6g}",
          "N(m, eta^2 I)", advice)  # fmt: skip
    return prior.mean, high**0.5


__all__ = ["FollmerDrift", "ValueAtStart", "initial_law_problem", "value_at_start"]
