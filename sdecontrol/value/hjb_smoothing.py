"""Exact scores: v is the log of a ratio of two smoothed densities, so a level needs no time step.

With p the data law, w = p e^{r/temperature}, and N the noising kernel N(. ; alpha x, h I) of the level s = T - t,

    v(t, y) = temperature [log int w(x) N(y; alpha x, h) dx - log int p(x) N(y; alpha x, h) dx],
    grad v(t, y) = temperature (alpha/h) (E_w[X - y/alpha | y] - E_p[X - y/alpha | y]).

The kernel is a product over the axes. Source: theory of the exact score (derived; Tang 2403.06279, (3.24)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import NotDefined
from sdecontrol.exact.continuum.base import BlowUp
from sdecontrol.laws import Law, TiltedLaw
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Reward, Step
from sdecontrol.value.hjb_axes import box_of_density, density_outside, points_of
from sdecontrol.value.hjb_growth import blow_up_ratio
from sdecontrol.value.hjb_quadrature import HermiteRule, TrapezoidRule
from sdecontrol.value.hjb_scheme import Field, Nodes, Scheme

Array = np.ndarray
_CHUNK = 2**18  # points whose densities are computed at once
_ACCURACY = {1: 1e-10, 2: 1e-10, 3: 1e-6}  # of the sums, relative
_SPREAD = 8.0  # half width of the nodes at a level, in standard deviations of the noise


@dataclass(frozen=True)
class Smoothing(Scheme):
    """Apply the separable noising kernel to the data law and to its tilt, in the log domain, and divide.

    For a ReverseProcess with an exact score whose law has log_prob, without a running reward. Each level is computed
    on its own: nothing accumulates. Integrals over x are trapezoidal sums on the box, padded by a sixth on each side
    and refined until the kernel is resolved (spectral accuracy); where that would take too many nodes, Gauss-Hermite
    sums over the noise. Between nodes the sums are taken at the points themselves, without interpolation.
    Accuracy: 1e-10 relative in one and two dimensions, 1e-6 in three, when two nodes or more lie within a standard
    deviation of the narrowest component of p and r is as smooth; first order in the node distance for a reward that
    jumps.
    """

    smallest = 16

    def floor(self, dim: int) -> float:
        return _ACCURACY[dim]

    def suits(self, problem: Any) -> bool:
        process = problem.process
        if not isinstance(process, ReverseProcess) or not process.has_exact_score or isinstance(problem.reward, Step):
            return False
        return problem.running_reward is None and _has_density(process.data_law)

    def check(self, problem: Any) -> None:
        process = problem.process
        if not isinstance(process, ReverseProcess) or not process.has_exact_score:
            raise NotDefined(
                "Smoothing needs the exact score of a law; take sc.value.FiniteDifference() for other drifts"
            )
        if problem.running_reward is not None:
            raise NotDefined("Smoothing knows no running reward; take sc.value.FiniteDifference()")
        if not _has_density(process.data_law):
            raise NotDefined(f"the data law {type(process.data_law).__name__} has no density to put on a grid")

    def box(self, problem: Any) -> tuple[Array, Array]:
        weights, law = LogWeights(problem), problem.process.data_law
        base = law.base if isinstance(law, TiltedLaw) else law  # a tilted law in the plane has no closed moments
        spread = base.covariance.diagonal().sqrt().numpy()
        return box_of_density(weights, base.mean.numpy(), spread)

    def outside(self, problem: Any, axes: list[Array]) -> float:
        weights = LogWeights(problem)
        return density_outside(lambda x: weights(x)[1:], axes)

    def solve(self, problem: Any, axes: list[Array]) -> SmoothedField:
        return SmoothedField(problem, axes)


def _has_density(law: Law) -> bool:
    try:
        law.log_prob(torch.zeros(1, *law.event_shape, dtype=torch.float64))
    except NotDefined:
        return isinstance(law, TiltedLaw)  # its unknown normaliser cancels
    return True


class LogWeights:
    """(log p, log p + r/temperature) at points (n, d), up to one constant: (2, n)."""

    def __init__(self, problem: Any):
        self.law, self.reward, self.temperature = problem.process.data_law, problem.reward, problem.temperature

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([self._at(part) for part in x.split(_CHUNK)], dim=1)

    def _at(self, x: Tensor) -> Tensor:
        density = _log_density(self.law, x)
        return torch.stack([density, density + self.reward(x).detach().double() / self.temperature])


def _log_density(law: Law, x: Tensor) -> Tensor:
    """log p up to a constant: a tilted law's normaliser is not asked for."""
    return law.base.log_prob(x) + law.log_weight(x).double() if isinstance(law, TiltedLaw) else law.log_prob(x)


def reward_gradient(reward: Any, x: Tensor) -> Tensor:
    """grad r at points (n, d), by reverse mode where the reward does not know it."""
    if isinstance(reward, Reward):
        return reward.gradient(x)
    with torch.enable_grad():
        y = x.detach().clone().requires_grad_()
        return torch.autograd.grad(reward(y).sum(), y)[0]


class SmoothedField(Field):
    """v at each level from the two densities; see `Smoothing`."""

    def __init__(self, problem: Any, axes: list[Array]):
        super().__init__()
        self.problem, self.process, self.temperature = problem, problem.process, problem.temperature
        self.reward, self.weights, self.axes = problem.reward, LogWeights(problem), axes
        self.schedule = self.process.schedule
        self._trapezoid = TrapezoidRule(self.weights, axes)
        self._check_blow_up()

    def _check_blow_up(self) -> None:
        """e^{r/temperature} grows faster than p N decays from the level on where h/alpha^2 reaches the ratio."""
        ratio = blow_up_ratio(lambda x: self.weights(x)[1], self.axes)
        end = self.schedule.horizon
        if self._noise_ratio(end) >= ratio:
            level = self.schedule.noise_level_at(-math.log(ratio)) if ratio > 0 else 0.0
            raise BlowUp(self.process.horizon - level)

    def _noise_ratio(self, s: float) -> float:
        """h/alpha^2: the variance of y/alpha about x."""
        return math.exp(-self.schedule.log_snr(s))

    def _rule(self, ratio: float, at_points: bool) -> TrapezoidRule | HermiteRule:
        if self._trapezoid.resolves(ratio, at_points):
            return self._trapezoid
        return HermiteRule(self.weights, len(self.axes), at_points)

    def _level(self, t: float) -> tuple[float, float]:
        s = self.process.noise_level(t)
        return self.schedule.alpha(s), self.schedule.h(s)

    def _combine(self, log_mass: Tensor, shift: Tensor, a: float, h: float) -> tuple[Tensor, Tensor]:
        """v and grad v from the log masses (2, ...) and the mean shifts E[X - y/alpha] (2, ..., d)."""
        value = self.temperature * (log_mass[1] - log_mass[0])
        return value, self.temperature * (a / h) * (shift[1] - shift[0])

    def read(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """The sums at the points themselves. Raises BadInput where the clean state would lie outside the box."""
        x = x.detach().to(torch.float64)
        a, h = self._level(t)
        if h == 0:
            return self.reward(x).detach().double(), reward_gradient(self.reward, x)
        return self._combine(*self._rule(h / a**2, True).at_points(x / a, h / a**2), a, h)

    def on_nodes(self, t: float, axes: list[Array]) -> Tensor:
        return self._on(t, axes).value

    def nodes(self, t: float) -> Nodes:
        """On the box as the forward noising carries it: half width sqrt(alpha^2 W^2 + 64 h) around alpha centre."""
        a, h = self._level(t)
        middle = [(x[0] + x[-1]) / 2 for x in self.axes]
        half = [math.hypot(a * (x[-1] - x[0]) / 2, _SPREAD * math.sqrt(h)) for x in self.axes]
        return self._on(t, [np.linspace(a * c - w, a * c + w, len(x)) for c, w, x in zip(middle, half, self.axes)])

    def _on(self, t: float, axes: list[Array]) -> Nodes:
        a, h = self._level(t)
        shape = [len(x) for x in axes]
        if h == 0:
            value, gradient = self.read(t, points_of(axes))
            return Nodes(axes, value.reshape(shape), gradient.reshape(*shape, len(axes)))
        rule = self._rule(h / a**2, False)
        return Nodes(axes, *self._combine(*rule.on_axes([x / a for x in axes], h / a**2), a, h))
