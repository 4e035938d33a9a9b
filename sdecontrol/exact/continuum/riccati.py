"""Affine dynamics dY = (A Y + b) dt + sigma dB, a quadratic reward and running reward: Riccati equations.

With v/temperature = c + gamma . x - x' kappa x / 2, and the running reward rho/temperature likewise,

    kappa' = -(A'kappa + kappa A) + sigma^2 kappa^2 - rho_K,        kappa(T) = reward's,
    gamma' = -A'gamma + kappa b + sigma^2 kappa gamma - rho_g,
    c'     = -b . gamma + sigma^2 (tr kappa - |gamma|^2) / 2 - rho_c,

and u* = sigma (gamma - kappa x). The energy to go, E*[int_t^T |u*|^2/2 | Y_t = x] = e_c + e_g . x + x'Ex/2,
obeys a linear equation of the controlled process, A_* = A - sigma^2 kappa, b_* = b + sigma^2 gamma.
Source: derived (the HJB equation, Tang 2403.06279 (3.18), with a quadratic ansatz).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdecontrol.controls import AffineControl, Control
from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.base import BlowUp, ContinuumExact
from sdecontrol.exact.continuum.flow import mixture
from sdecontrol.exact.continuum.score import tilt_kl
from sdecontrol.exact.pushforward import gaussian_law, gaussian_parameters
from sdecontrol.exact.quadratic import LogQuadratic, symmetric
from sdecontrol.laws import GaussianMixture, Law
from sdecontrol.processes import Process
from sdecontrol.rewards import Quadratic, as_quadratic

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

_TOLERANCES = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
_DIVERGED = 1e9  # -kappa int sigma^2 dt at which the value has blown up, 1e-9 of the horizon before its pole
_EAGER_DIMENSION = 64  # a problem is checked when it is made up to here: O(d^3) a step of the integrator
Array = np.ndarray


class Backward:
    """(kappa, gamma, c, E, e_g, e_c) on [0, T] by one backward solve, interpolated to 1e-11 relative."""

    def __init__(self, process: Process, reward: LogQuadratic, running: LogQuadratic):
        self.process, self.dim, self.horizon = process, process.dim, process.horizon
        self._running = [np.asarray(part) for part in (running.curvature, running.linear, running.constant)]
        end = np.concatenate([reward.curvature.numpy().ravel(), reward.linear.numpy(), [reward.constant]])
        times = np.linspace(0, self.horizon, 64)
        clock = self.horizon * float(np.mean([process.amplitude(float(t)) ** 2 for t in times]))

        def diverged(t: float, y: Array) -> float:
            return float(np.linalg.eigvalsh(self._split(y)[0])[0]) * clock + _DIVERGED

        diverged.terminal = True  # type: ignore[attr-defined]
        with np.errstate(over="ignore", invalid="ignore"):
            self.solution = solve_ivp(
                self._rate, (self.horizon, 0.0), np.concatenate([end, np.zeros_like(end)]),
                events=diverged, dense_output=True, **_TOLERANCES,
            )  # fmt: skip
        if self.solution.status == 1:
            raise self._blow_up(float(self.solution.t[-1]), self.solution.y[:, -1])
        if self.solution.status != 0:
            raise NoClosedForm(
                f"the Riccati equation could not be solved below t = {self.solution.t[-1]:.6g}"
            )

    def _blow_up(self, t: float, y: Array) -> BlowUp:
        """Close to its pole an eigenvalue of kappa is -1 / (sigma^2 (t - t_pole))."""
        steepest = -float(np.linalg.eigvalsh(self._split(y)[0])[0])
        return BlowUp(max(t - 1 / (self.process.amplitude(t) ** 2 * steepest), 0.0))

    def _split(self, y: Array) -> tuple[Array, Array, Array]:
        """The first quadratic in y: matrix, vector, number."""
        d = self.dim
        return y[: d * d].reshape(d, d), y[d * d : d * d + d], y[d * d + d]

    def _rate(self, t: float, y: Array) -> Array:
        half = len(y) // 2
        kappa, gamma, _ = self._split(y)
        energy, slope, _ = self._split(y[half:])
        a, b = (part.numpy() for part in self.process.affine_drift(float(t)))
        s2 = self.process.amplitude(float(t)) ** 2
        rho_k, rho_g, rho_c = self._running
        a_star, b_star = a - s2 * kappa, b + s2 * gamma
        d_kappa = -(a.T @ kappa + kappa @ a) + s2 * kappa @ kappa - rho_k
        d_gamma = -a.T @ gamma + kappa @ b + s2 * kappa @ gamma - rho_g
        d_c = -b @ gamma + s2 * (np.trace(kappa) - gamma @ gamma) / 2 - rho_c
        d_energy = -(a_star.T @ energy + energy @ a_star) - s2 * kappa @ kappa
        d_slope = -a_star.T @ slope - energy @ b_star + s2 * kappa @ gamma
        d_rest = -b_star @ slope - s2 * (np.trace(energy) + gamma @ gamma) / 2
        return np.concatenate([d_kappa.ravel(), d_gamma, [d_c], d_energy.ravel(), d_slope, [d_rest]])

    def _at(self, t: float) -> Array:
        return self.solution.y[:, -1] if t == 0 else self.solution.sol(t)

    def value(self, t: float) -> LogQuadratic:
        """v(t, .) / temperature."""
        kappa, gamma, c = self._split(self._at(t))
        return LogQuadratic(
            symmetric(torch.from_numpy(kappa.copy())), torch.from_numpy(gamma.copy()), float(c)
        )

    def energy(self, t: float) -> LogQuadratic:
        """e(t, .)."""
        matrix, slope, rest = self._split(self._at(t)[self.dim * (self.dim + 1) + 1 :])
        return LogQuadratic(
            -symmetric(torch.from_numpy(matrix.copy())), torch.from_numpy(slope.copy()), float(rest)
        )


class RiccatiExact(ContinuumExact):
    """Every answer for an affine process, to the integrator's accuracy: DOP853, about 1e-11 relative."""

    def __init__(self, process: Process, reward: Quadratic, running: Quadratic | None, temperature: float):
        super().__init__(process.horizon, temperature, "the start is not Gaussian, a mixture or a point")
        self.process, self.start, self.reward, self.running = process, process.initial_law(), reward, running

    @cached_property
    def backward(self) -> Backward:
        """The solution on [0, T]. Raises ValueBlowUp."""
        running = LogQuadratic.zero(self.process.dim)
        if self.running is not None:
            running = LogQuadratic.of(self.running, 1 / self.temperature)
        return Backward(self.process, LogQuadratic.of(self.reward, 1 / self.temperature), running)

    def check_existence(self) -> None:
        if self.process.dim <= _EAGER_DIMENSION:
            self.backward, self.log_normalizer  # noqa: B018  raise ValueBlowUp and NoTilt

    def value(self, t: float, x: Tensor) -> Tensor:
        return self.temperature * self.backward.value(self._check_time(t))(x.to(torch.float64))

    @cached_property
    def control(self) -> Control:
        return AffineControl(lambda t: self._affine(t)[0], lambda t: self._affine(t)[1]).of_the_continuum()

    def _affine(self, t: float) -> tuple[Tensor, Tensor]:
        growth, amplitude = self.backward.value(self._check_time(t)), self.process.amplitude(t)
        return -amplitude * growth.curvature, amplitude * growth.linear

    @cached_property
    def first_growth(self) -> Quadratic:
        return self.backward.value(0.0).as_reward()

    @cached_property
    def log_normalizer(self) -> float:
        """log E_{p_noise} e^{v(0, .)/temperature}."""
        self.backward  # noqa: B018  a blow-up is reported first
        if self.running is None:
            self.reference.log_expectation(
                self.reward, self.temperature
            )  # names the curvature that p_pre admits
        return self.start.log_expectation(self.first_growth, 1.0)

    @cached_property
    def initial(self) -> Law:
        return self.start.tilt(self.first_growth, 1.0)

    @cached_property
    def kl_initial(self) -> float:
        return tilt_kl(LogQuadratic.of(self.first_growth), self.start, self.initial, self.log_normalizer)

    @cached_property
    def energy(self) -> float:
        nu = self.initial
        return self.backward.energy(0.0).mean(nu.mean, nu.covariance)

    @property
    def path_kl(self) -> float:
        return self.kl_initial + self.energy

    @cached_property
    def objective_untilted(self) -> float:
        return self.temperature * LogQuadratic.of(self.first_growth).mean(
            self.start.mean, self.start.covariance
        )

    @cached_property
    def reference(self) -> Law:
        return self._forward(self.start, self.horizon, controlled=False)

    @cached_property
    def untilted_terminal(self) -> Law:
        return self._forward(self.start, self.horizon, controlled=True)

    @cached_property
    def terminal(self) -> Law:
        return self.marginal(self.horizon)

    def marginal(self, t: float) -> Law:
        return self._forward(self.initial, self._check_time(t), controlled=True)

    def _forward(self, law: Law, t: float, controlled: bool) -> Law:
        """The law at t of the process from `law`: m' = A m + b, V' = A V + V A' + sigma^2 I, with A_*, b_*
        under control.
        """
        if t == 0:
            return law
        if isinstance(law, GaussianMixture):
            return mixture(
                law.log_weights, [self._forward(component, t, controlled) for component in law.components]
            )
        parameters = gaussian_parameters(law)
        if parameters is None:
            raise self._no("the law of Y_t")
        d = self.process.dim
        drift = self._controlled_drift if controlled else self._drift

        def rate(tau: float, y: Array) -> Array:
            a, b = drift(tau)
            v = y[d:].reshape(d, d)
            spread = a @ v
            return np.concatenate(
                [a @ y[:d] + b, (spread + spread.T + self.process.amplitude(tau) ** 2 * np.eye(d)).ravel()]
            )

        start = np.concatenate([parameters[0].numpy(), parameters[1].numpy().ravel()])
        y = torch.from_numpy(_solved(rate, start, t))
        return gaussian_law(y[:d], symmetric(y[d:].reshape(d, d)))

    def _drift(self, t: float) -> tuple[Array, Array]:
        a, b = self.process.affine_drift(float(t))
        return a.numpy(), b.numpy()

    def _controlled_drift(self, t: float) -> tuple[Array, Array]:
        a, b = self._drift(t)
        growth, s2 = self.backward.value(float(t)), self.process.amplitude(float(t)) ** 2
        return a - s2 * growth.curvature.numpy(), b + s2 * growth.linear.numpy()


def _solved(rate: Callable[[float, Array], Array], start: Array, t: float) -> Any:
    solution = solve_ivp(rate, (0.0, t), start, **_TOLERANCES)
    if solution.status != 0:
        raise NoClosedForm(f"the moment equations could not be solved beyond t = {solution.t[-1]:.6g}")
    return solution.y[:, -1]


def affine_quadratic(problem: Problem) -> ContinuumExact:
    """An affine process, a quadratic reward and a quadratic running reward or none."""
    process, reward, running = (
        problem.process,
        as_quadratic(problem.reward),
        as_quadratic(problem.running_reward),
    )
    if reward is None or (problem.running_reward is not None and running is None):
        raise NoClosedForm("the reward and the running reward are not both Quadratic")
    for t in (0.0, process.horizon):
        parts = process.affine_drift(t)
        if not all(bool(torch.isfinite(part).all()) for part in parts):
            raise NoClosedForm(f"the drift is singular at t = {t:g}, as on a subspace")
    return RiccatiExact(process, reward, running, problem.temperature)
