"""An independent route for affine dynamics: the moments of Y_t under affine controls by scipy's Runge-Kutta of order 8.

dY = [A(t) Y + c(t) + sigma(t) u] dt + sigma(t) dB with u = B(t) Y + b(t):

    m' = (A + sigma B) m + c + sigma b,   V' = (A + sigma B) V + V (A + sigma B)' + sigma^2 I,
    energy' = E|u|^2 / 2,   apart' = E|u - u*|^2 / 2,   from_best' = E*|u - u*|^2 / 2 (under the optimal law),
    running' = E rho(Y_t), rho the running reward over the temperature.

Several (control, initial law) pairs share one solve, hence one call of the control in question a time. Every solve is
made at two tolerances; what they differ by is the error of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from sdecontrol.claims.base import EPS, NotApplicable
from sdecontrol.claims.routes.plain import Quadric
from sdecontrol.claims.routes.quadrature import Array

Feedback = tuple[Array, Array]


@dataclass(frozen=True, eq=False)
class LinearSDE:
    """drift(t) = (A (d, d), c (d,)), amplitude(t), on [0, horizon]."""

    dim: int
    horizon: float
    drift: Callable[[float], Feedback]
    amplitude: Callable[[float], float]


class Member(NamedTuple):
    """A start N(mean, covariance) and a control, told the best control (B*, b*) at that time."""

    mean: Array
    covariance: Array
    feedback: Callable[[float, Feedback], Feedback] | None


class Measured(NamedTuple):
    """A number and a bound on its error."""

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Solution:
    """Moments at the asked times and energies at the horizon, by member."""

    names: list[str]
    means: Array  # (times, members, d)
    covariances: Array  # (times, members, d, d)
    energies: Array  # (4, members)

    def moments(self, name: str, k: int = -1) -> tuple[Array, Array]:
        j = self.names.index(name)
        return self.means[k, j], self.covariances[k, j]

    def energy(self, name: str) -> float:
        """E int |u|^2 dt / 2."""
        return float(self.energies[0, self.names.index(name)])

    def apart(self, name: str) -> float:
        """E int |u - u*|^2 dt / 2 under the member's own law."""
        return float(self.energies[1, self.names.index(name)])

    def from_best(self, name: str) -> float:
        """E int |u - u*|^2 dt / 2 under the optimal law (the member called "optimum")."""
        return float(self.energies[2, self.names.index(name)])

    def running(self, name: str) -> float:
        """E int rho(Y_t) dt, the running reward over the temperature."""
        return float(self.energies[3, self.names.index(name)])


def check_smooth(process: Any) -> None:
    """Raises NotApplicable for tabulated schedules: solvers and differences in time need rates without jumps."""
    schedule = getattr(process, "schedule", None)
    if schedule is not None and not schedule.smooth:
        raise NotApplicable("the rates of a tabulated schedule jump from level to level")


class MomentFlow:
    """The moment equations of all members, solved at two tolerances."""

    def __init__(self, sde: LinearSDE, best: Callable[[float], Feedback], members: dict[str, Member],
                 times: list[float], rtol: float, running: Quadric | None = None):  # fmt: skip
        self.sde, self.best, self.members, self.times, self.running = sde, best, members, times, running
        self.fine, self.coarse = self._solve(rtol), self._solve(100 * rtol)
        del self.best  # what is solved is kept longer than the controls and their simulations
        self.members = {name: member._replace(feedback=None) for name, member in members.items()}
        pairs = zip((self.fine.means, self.fine.covariances), (self.coarse.means, self.coarse.covariances))
        self.relative = max(float(np.max(np.abs(a - b)) / np.max(np.abs(a))) for a, b in pairs) + 1e3 * EPS

    def read(self, quantity: Callable[[Solution], Any]) -> Measured:
        """A quantity (its largest entry counts) with the difference between the two solves as its error."""
        fine, coarse = np.asarray(quantity(self.fine)), np.asarray(quantity(self.coarse))
        error = float(np.max(np.abs(fine - coarse))) + self.relative * max(1.0, float(np.max(np.abs(fine))))
        return Measured(float(fine) if fine.ndim == 0 else float(np.max(np.abs(fine))), error)

    def _solve(self, rtol: float) -> Solution:
        d, count = self.sde.dim, len(self.members)
        means = np.stack([m.mean for m in self.members.values()])
        covariances = np.stack([m.covariance for m in self.members.values()])
        start = np.concatenate([means.ravel(), covariances.ravel(), np.zeros(4 * count)])
        cuts = (count * d, count * d * (d + 1))
        result = solve_ivp(
            self._rate, (0.0, self.sde.horizon), start, method="DOP853", t_eval=self.times, rtol=rtol, atol=rtol * 1e-3
        )
        if result.status != 0 or not np.isfinite(result.y).all():
            raise NotApplicable(f"the moment equations could not be solved: {result.message}")
        m, v, e = np.split(result.y, cuts)
        n = len(self.times)
        return Solution(
            list(self.members), m.T.reshape(n, count, d), v.T.reshape(n, count, d, d), e[:, -1].reshape(4, count)
        )

    def _rate(self, t: float, y: Array) -> Array:
        d, count = self.sde.dim, len(self.members)
        m, v, _ = np.split(y, (count * d, count * d * (d + 1)))
        m, v = m.reshape(count, d), v.reshape(count, d, d)
        matrix, offset = self.sde.drift(t)
        sigma = self.sde.amplitude(t)
        best = self.best(t)
        feedback = [member.feedback(t, best) for member in self.members.values() if member.feedback]
        gains, shifts = np.stack([f[0] for f in feedback]), np.stack([f[1] for f in feedback])
        closed = matrix + sigma * gains
        spread = closed @ v
        apart = gains - best[0], shifts - best[1]
        names = list(self.members)
        star = names.index("optimum") if "optimum" in names else 0
        rates = [
            (closed @ m[:, :, None])[:, :, 0] + offset + sigma * shifts,
            spread + spread.transpose(0, 2, 1) + sigma**2 * np.eye(d),
            _half_square(gains, shifts, m, v),
            _half_square(*apart, m, v),
            _half_square(*apart, m[star], v[star]),
            np.zeros(count) if self.running is None else self.running(m) - (self.running.curvature * v).sum((1, 2)) / 2,
        ]
        return np.concatenate([rate.ravel() for rate in rates])


def _half_square(gain: Array, shift: Array, mean: Array, covariance: Array) -> Array:
    """E |gain Y + shift|^2 / 2, stacked over members."""
    centre = (gain @ mean[..., None])[..., 0] + shift
    return ((centre**2).sum(-1) + ((gain @ covariance) * gain).sum((-2, -1))) / 2


class Riccati:
    """v/temperature = c + gamma . x - x' kappa x / 2 by the Riccati equations, backwards from the reward (derived).

    kappa' = -(A'kappa + kappa A) + sigma^2 kappa^2 - R, gamma' = -A'gamma + kappa b + sigma^2 kappa gamma - l,
    c' = -b . gamma + sigma^2 (tr kappa - |gamma|^2) / 2 - k: the HJB equation (3.18) on quadratics, with the running
    reward k + l . x - x' R x / 2 over the temperature.
    """

    def __init__(self, sde: LinearSDE, rho: Quadric, times: list[float], rtol: float, running: Quadric | None = None):
        self.sde, self.rho = sde, rho
        self.running = running or Quadric(0.0, np.zeros(sde.dim), np.zeros((sde.dim, sde.dim)))
        self.fine, self.coarse = self._solve(times, rtol), self._solve(times, 100 * rtol)

    def _solve(self, times: list[float], rtol: float) -> list[Quadric]:
        d = self.sde.dim
        end = np.concatenate([self.rho.curvature.ravel(), self.rho.linear, [self.rho.constant]])
        back = sorted(times, reverse=True)
        result = solve_ivp(
            self._rate, (self.sde.horizon, back[-1]), end, method="DOP853", t_eval=back, rtol=rtol, atol=rtol * 1e-3
        )
        if result.status != 0 or not np.isfinite(result.y).all():
            raise NotApplicable(f"the Riccati equations could not be solved: {result.message}")
        quadratics = {
            t: Quadric(float(y[-1]), y[d * d : -1], y[: d * d].reshape(d, d)) for t, y in zip(back, result.y.T)
        }
        return [quadratics[t] for t in times]

    def _rate(self, t: float, y: Array) -> Array:
        d = self.sde.dim
        kappa, gamma = y[: d * d].reshape(d, d), y[d * d : -1]
        a, b = self.sde.drift(t)
        s2 = self.sde.amplitude(t) ** 2
        pull = kappa @ a
        rates = [
            (-(pull + pull.T) + s2 * kappa @ kappa - self.running.curvature).ravel(),
            -a.T @ gamma + kappa @ b + s2 * kappa @ gamma - self.running.linear,
            [-b @ gamma + s2 * (np.trace(kappa) - gamma @ gamma) / 2 - self.running.constant],
        ]
        return np.concatenate(rates)
