"""When Novikov's condition fails although everything it is meant to guarantee is true.

For an affine process dY = (A Y + c) dt + sigma dB and a quadratic reward, v/T = f is quadratic, u* = sigma grad f, and
both E exp(r/T) and E exp(1/2 int |u*|^2) solve the same backward equation (derived: Feynman-Kac for exp f)

    f' + (A x + c) . grad f + sigma^2 (|grad f|^2 + Laplacian f)/2 + q = 0,

with q = 0, f(T) = r/T for the value and q = |u*|^2/2, f(T) = 0 for Novikov's exponential: matrix Riccati equations
kappa' = -(A'kappa + kappa A) + sigma^2 kappa^2 - (curvature of q). The second one explodes at a finite curvature of
the reward, while the stochastic exponential of u* stays a martingale: u* has linear growth, and E_y E_T = 1 is checked
here by a route of its own, the Gaussian law of Y_T given Y_0 = y.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from sdecontrol.errors import NoClosedForm, NotDefined
from sdecontrol.exact.pushforward import gaussian_parameters
from sdecontrol.exact.quadratic import LogQuadratic, NotPositive, covariance_root, symmetric
from sdecontrol.kernels import ExactTransition
from sdecontrol.rewards import as_quadratic

Array = np.ndarray
_EXPLODED = 1e8  # a curvature this many times the reward's own counts as infinite
_LARGEST_FACTOR = 1e6


class _Riccati:
    """The backward equations of one problem: the value alone, or with Novikov's exponential driven by it."""

    def __init__(self, problem: Any):
        reward = as_quadratic(problem.reward)
        if reward is None or problem.running_reward is not None:
            raise NoClosedForm("Novikov's exponential is closed for a quadratic reward without a running reward")
        initial = gaussian_parameters(problem.process.initial_law(0.0))
        if initial is None:
            raise NoClosedForm("Novikov's exponential is closed for a Gaussian initial law")
        problem.process.affine_drift(0.0)  # raises before the solver starts
        self.process, self.initial = problem.process, initial
        self.reward = LogQuadratic.of(reward, 1 / float(problem.temperature))

    def value(self) -> tuple[LogQuadratic, float | None]:
        """v(0, .)/T, or the time at which it explodes."""
        (value,), explosion = self._integrate([self.reward])
        return value, explosion

    def novikov(self, factor: float = 1.0) -> tuple[LogQuadratic, float | None]:
        """y -> log E[exp(1/2 int |u*|^2) | Y_0 = y] for factor * reward, or the time at which it explodes."""
        start = [self.reward * factor, LogQuadratic.zero(len(self.reward.linear))]
        (_, exponential), explosion = self._integrate(start)
        return exponential, explosion

    def margin(self, factor: float) -> float:
        """Positive iff Novikov's condition holds for factor * reward; continuous in the factor if the start has spread.

        (1 - L)/(1 + L), L the largest eigenvalue of S^1/2 P S^1/2 for exp(y'Py/2) averaged over covariance S; below -1
        after an explosion at an inner time.
        """
        exponential, explosion = self.novikov(factor)
        if explosion is not None:
            return -1 - explosion / self.process.horizon
        root = covariance_root(self.initial[1])
        largest = -float(torch.linalg.eigvalsh(root.mT @ exponential.curvature @ root)[0])
        return (1 - largest) / (1 + largest)

    def average(self, f: LogQuadratic) -> float:
        """log E_{p_noise} exp f, +inf where it does not exist."""
        mean, covariance = self.initial
        try:
            return float(f.expected(f.noise_law(covariance_root(covariance)))(mean))
        except NotPositive:
            return math.inf

    def _integrate(self, start: list[LogQuadratic]) -> tuple[list[LogQuadratic], float | None]:
        """The quadratics at t = 0, from `start` at T: the first with q = 0, the others with q = |u*|^2/2."""
        ceiling = _EXPLODED * (1 + float(start[0].curvature.abs().max()))

        def slopes(t: float, y: Array) -> Array:
            a, c = (part.numpy() for part in self.process.affine_drift(t))
            g2 = self.process.amplitude(t) ** 2
            parts = [self._unpack(part) for part in np.split(y, len(start))]
            kappa, gamma, _ = parts[0]
            rates = [_slope(a, c, g2, *part) for part in parts]
            running = np.concatenate([(g2 * kappa @ kappa).ravel(), g2 * kappa @ gamma, [-g2 * gamma @ gamma / 2]])
            return np.concatenate([rates[0], *(rate + running for rate in rates[1:])])

        def event(t: float, y: Array) -> float:
            curvatures = [self._unpack(part)[0] for part in np.split(y, len(start))]
            return ceiling + min(float(np.linalg.eigvalsh(kappa)[0]) for kappa in curvatures)

        event.terminal = True  # type: ignore[attr-defined]
        y0 = np.concatenate([np.concatenate([f.curvature.ravel(), f.linear, [f.constant]]) for f in start])
        out = solve_ivp(slopes, (self.process.horizon, 0.0), y0, method="DOP853", rtol=1e-11, atol=1e-12, events=event)
        if not out.success:
            raise NotDefined(f"the Riccati equation could not be integrated: {out.message}")
        # near its pole kappa ~ -1/(g2 (t - pole)), so the pole lies 1/(g2 ceiling) before the event
        poles = [t - 1 / (self.process.amplitude(t) ** 2 * ceiling) for t in out.t_events[0]]
        parts = [self._unpack(part) for part in np.split(out.y[:, -1], len(start))]
        found = [LogQuadratic(symmetric(torch.tensor(k)), torch.tensor(g), float(c)) for k, g, c in parts]
        return found, float(poles[0]) if poles else None

    def _unpack(self, y: Array) -> tuple[Array, Array, float]:
        d = len(self.reward.linear)
        return y[: d * d].reshape(d, d), y[d * d : d * d + d], y[-1]


def _slope(a: Array, c: Array, g2: float, kappa: Array, gamma: Array, _: float) -> Array:
    """Time derivative of (kappa, gamma, constant) with q = 0."""
    curvature = -(a.T @ kappa + kappa @ a) + g2 * kappa @ kappa
    linear = -a.T @ gamma + kappa @ c + g2 * kappa @ gamma
    return np.concatenate([curvature.ravel(), linear, [-c @ gamma + g2 * (np.trace(kappa) - gamma @ gamma) / 2]])


@dataclass(frozen=True, eq=False)
class NovikovDiagnostic:
    """What holds for the optimal control of a linear-quadratic problem.

    tilt_exists: E exp(r/T) is finite. novikov_holds: E_Q exp(1/2 int |u*|^2) is finite, Y_0 ~ p_noise; its log is
    log_moment. explosion_time: the generation time at which the exponential moment from (t, y) becomes infinite; 0 when
    only the initial law's average is infinite, None when Novikov holds. martingale: E E_T = 1 from every start, where
    martingale_defect is the largest difference between the coefficients of v(0, .)/T and of log E[e^{r/T} | Y_0 = .]
    (inf when the value does not exist).
    """

    tilt_exists: bool
    novikov_holds: bool
    log_moment: float
    explosion_time: float | None
    martingale: bool
    martingale_defect: float
    _riccati: _Riccati

    @cached_property
    def threshold(self) -> float:
        """The factor of the reward at which Novikov's condition first fails: > 1 iff it holds for the problem itself.

        Found by doubling and Brent's method to a relative 1e-10; inf for a linear reward, and when it holds up to a
        factor 1e6. The condition is monotone in the factor in one dimension and for commuting matrices; otherwise this
        is one factor at which it changes.
        """
        if not bool(self._riccati.reward.curvature.any()):
            return math.inf
        low, high = 0.0, 1.0
        while self._riccati.margin(high) > 0:
            low, high = high, 2 * high
            if high > _LARGEST_FACTOR:
                return math.inf
        return float(brentq(self._riccati.margin, low, high, xtol=1e-10 * high))


def novikov(problem: Any) -> NovikovDiagnostic:
    """The diagnostic of an affine process with a quadratic reward and a Gaussian initial law.

    Raises NoClosedForm for anything else. Accuracy: Riccati equations by DOP853 at relative tolerance 1e-11.
    """
    riccati = _Riccati(problem)
    value, explosion = riccati.value()
    exponential, novikov_explosion = riccati.novikov()
    log_moment = math.inf if novikov_explosion is not None else riccati.average(exponential)
    holds = math.isfinite(log_moment)
    explosion_time = None if holds else novikov_explosion or 0.0
    exists, defect, size = False, math.inf, 1.0
    if explosion is None:
        exists = math.isfinite(riccati.average(value))
        defect = _martingale_defect(riccati, value)
        size += float(value.curvature.abs().max() + value.linear.abs().max()) + abs(value.constant)
    return NovikovDiagnostic(exists, holds, log_moment, explosion_time, defect <= 1e-8 * size, defect, riccati)


def _martingale_defect(riccati: _Riccati, value: LogQuadratic) -> float:
    """Largest coefficient of v(0, y)/T - log E[e^{r(Y_T)/T} | Y_0 = y], whose exponential is 1 / E_y E_T."""
    step = ExactTransition().affine_step(riccati.process, 0.0, riccati.process.horizon)
    r = riccati.reward
    try:
        direct = r.expected(r.noise_law(step.noise)).compose(step.matrix, step.offset)
    except NotPositive:
        return math.inf
    difference = value + direct * -1.0
    return max(float(difference.curvature.abs().max()), float(difference.linear.abs().max()), abs(difference.constant))
