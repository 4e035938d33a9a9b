"""One-step Gaussian kernels: (state, next time) -> x+ = mean + std z with z standard normal.

Most kernels are three float64 numbers a step: mean = c_x x + c_f field. With r = alpha(s)/alpha(s') and
q = h(s) - r^2 h(s') (s the level left, s' the level reached), all of them are written in r, q, h and h' only,
so one formula serves every (alpha, h), VE included.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.processes import Process, ReverseProcess, State


@dataclass(frozen=True)
class AffineStep:
    """x+ = matrix x + offset + noise z in float64: (d, d), (d,), (d, d)."""

    matrix: Tensor
    offset: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Transition:
    """A kernel prepared for one step, shared by all blocks of paths: mean = c_x x + c_f field, noise std z."""

    calls_model: ClassVar[bool] = True  # whether mean and finish read the state's field
    gaussian: ClassVar[bool] = True  # whether the step is mean + std z, which a control can shift

    t: float
    t_next: float
    field_scale: float
    field_weight: float
    std: Any

    @property
    def dt(self) -> float:
        return self.t_next - self.t

    @property
    def noiseless(self) -> bool:
        return self.std == 0.0

    def mean(self, state: State) -> Tensor:
        """Mean of the step (n, *event)."""
        return (state.x * self.field_scale).add_(state.field, alpha=self.field_weight)

    def finish(self, process: Process, state: State, mean: Tensor, z: Tensor) -> Tensor:
        """mean + std z."""
        return mean if self.std == 0.0 else mean.add(z, alpha=self.std)

    def affine(self, process: Process) -> AffineStep:
        """`mean` and `finish` as matrices. Raises NoClosedForm when the process is not affine.

        A subclass that overrides one of the two says its own matrices, or has none.
        """
        matrix, offset = process.affine_field(self.t)
        eye = torch.eye(process.dim, dtype=torch.float64)
        pull = torch.add(self.field_scale * eye, matrix, alpha=self.field_weight)
        return AffineStep(pull, self.field_weight * offset, self.std * eye)

    def __init_subclass__(cls) -> None:
        if {"mean", "finish"} & set(vars(cls)) and "affine" not in vars(cls):
            cls.affine = _no_matrices  # type: ignore[method-assign,assignment]

    def spread_transposed(self, v: Tensor) -> Tensor:
        """std' v."""
        return v * self.std

    def unspread(self, v: Tensor) -> Tensor:
        """std^{-1} v."""
        return v / self.std


def _no_matrices(transition: Transition, process: Process) -> AffineStep:
    raise NoClosedForm(f"{type(transition).__name__} does not give its step as matrices; define its method `affine`")


class Kernel(ABC):
    """(process, t, t_next) -> Gaussian step. `order_weak` is the declared weak order in the step size."""

    order_weak: int = 1

    @abstractmethod
    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        """(c_x, c_f, std) with mean = c_x x + c_f field."""

    def transition(self, process: Process, t: float, t_next: float) -> Transition:
        """The kernel prepared for the step from t to t_next."""
        return Transition(t, t_next, *self.coefficients(process, t, t_next))

    def transitions(self, process: Process, times: Sequence[float]) -> list[Transition]:
        """The kernel prepared for all steps of a chain; a multistep kernel looks back from one to the ones before."""
        return [self.transition(process, t, t_next) for t, t_next in zip(times[:-1], times[1:], strict=True)]

    def affine_step(self, process: Process, t: float, t_next: float) -> AffineStep:
        """The step as x+ = M x + m + N z. Raises NoClosedForm when the process is not affine."""
        return self.transition(process, t, t_next).affine(process)

    def consistent_with(self, process: Process) -> bool:
        """Whether the chain converges to the process itself as the steps shrink."""
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


@dataclass(frozen=True)
class _Levels:
    """The numbers every reverse kernel is made of; primes are the level reached."""

    r: float  # alpha / alpha'
    q: float  # h - r^2 h'
    h: float
    h_next: float
    alpha: float
    alpha_next: float


def _levels(kernel: Kernel, process: Process, t: float, t_next: float) -> _Levels:
    if not isinstance(process, ReverseProcess):
        raise NotDefined(f"{kernel!r} needs a ReverseProcess; use EulerMaruyama or SecondOrder for a general diffusion")
    s, s_next, schedule = process.noise_level(t), process.noise_level(t_next), process.schedule
    return _Levels(
        schedule.ratio(s, s_next),
        schedule.transition_variance(s, s_next),
        schedule.h(s),
        schedule.h(s_next),
        schedule.alpha(s),
        schedule.alpha(s_next),
    )


class EulerMaruyama(Kernel):
    """x+ = x + dt drift(t, x) + sqrt(dt) amplitude(t) z. Weak order 1."""

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        dt = t_next - t
        return 1 + dt * process.linear_rate(t), dt * process.field_gain(t), math.sqrt(dt) * process.amplitude(t)


class Exponential(Kernel):
    """Exact in the linear part, with the score frozen over the step: weak order 1.

    mean = x / r + (alpha' int g2 / alpha ds) score, variance q / r^2 (derived: variation of constants).
    """

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        v = _levels(self, process, t, t_next)
        assert isinstance(process, ReverseProcess)
        weight = process.schedule.score_weight(process.noise_level(t), process.noise_level(t_next))
        return 1 / v.r, weight, math.sqrt(v.q) / v.r


class DDIM(Kernel):
    """DDIM with stochasticity eta: x0_hat kept, variance eta^2 h' q / h (2010.02502, written for every (alpha, h)).

    eta = 1 is the ancestral kernel and converges to the reverse SDE with weak order 1; eta < 1 is another SDE with
    the same marginals, so continuum controls are not defined on it: use problem.discretise(kernel, grid).
    """

    def __init__(self, eta: float = 1.0):
        check(0 <= eta <= 1, f"eta = {eta}", "a number in [0, 1]")
        self.eta = float(eta)

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        v = _levels(self, process, t, t_next)
        kept = v.h_next * (1 - self.eta**2 * v.q / v.h)  # h' - variance
        target = v.h_next + v.q / v.r**2  # h / r^2
        # c_f = h / r - sqrt(h kept), as a quotient that does not cancel when the step is small
        weight = (
            math.sqrt(v.h) * (v.q / v.r**2 + self.eta**2 * v.h_next * v.q / v.h) / (math.sqrt(target) + math.sqrt(kept))
        )
        return 1 / v.r, weight, self.eta * math.sqrt(v.h_next * v.q / v.h)

    def consistent_with(self, process: Process) -> bool:
        return self.eta == 1.0


class Ancestral(Kernel):
    """The posterior of x' given x and x0 = x0_hat: weak order 1; exact for point data.

    mean = (r h'/h) x + (alpha' q/h) x0_hat = x / r + (q / r) score; variance h' q / h ("small") or q ("large").
    Source: DDPM (2006.11239), its two variances, written for every (alpha, h).
    """

    def __init__(self, variance: str = "small"):
        check(variance in ("small", "large"), f"variance={variance!r}", '"small" (h\' q / h) or "large" (q)')
        self.variance = variance

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        v = _levels(self, process, t, t_next)
        large = self.variance == "large" and v.h_next > 0  # a step to the data stays noiseless
        return 1 / v.r, v.q / v.r, math.sqrt(v.q if large else v.h_next * v.q / v.h)


@dataclass(frozen=True)
class HeunTransition(Transition):
    """Two calls: the slope (x0_hat, or the drift) is averaged over the step's start and its predicted, noisy end."""

    slope_weight: float = 0.0

    def finish(self, process: Process, state: State, mean: Tensor, z: Tensor) -> Tensor:
        end = super().finish(process, state, mean, z)
        if self.slope_weight == 0.0:
            return end
        change = _slope(process.state(self.t_next, end)) - _slope(state)
        return torch.add(end, change, alpha=self.slope_weight / 2)

    def affine(self, process: Process) -> AffineStep:
        first, weight = super().affine(process), self.slope_weight / 2
        if weight == 0.0:
            return first
        (a, b), (a_next, b_next) = _affine_slope(process, self.t), _affine_slope(process, self.t_next)
        eye = torch.eye(process.dim, dtype=torch.float64)
        return AffineStep(
            first.matrix + weight * (a_next @ first.matrix - a),
            first.offset + weight * (a_next @ first.offset + b_next - b),
            (eye + weight * a_next) @ first.noise,
        )


def _slope(state: State) -> Tensor:
    return state.x0_hat if isinstance(state.process, ReverseProcess) else state.drift


class SecondOrder(Kernel):
    """Stochastic Heun of weak order 2, in the variable in which the noise is constant.

    For a reverse diffusion w = alpha x / h solves dw = E[X_0 | w] d rho + dW_rho in the clock rho = alpha^2 / h
    (derived from the reverse SDE by Ito's formula); Heun's scheme on it predicts with the ancestral step and then
    averages x0_hat over both ends. A closing step to s = 0 is the ancestral one. For a general diffusion it is
    Heun's scheme with the mean square of the amplitude (Simpson) as the step's variance. Two model calls a step.
    """

    order_weak = 2

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        """Those of the predictor; the second call is made by the transition."""
        if isinstance(process, ReverseProcess):
            return Ancestral().coefficients(process, t, t_next)
        dt = t_next - t
        squares = [process.amplitude(tau) ** 2 for tau in (t, t + dt / 2, t_next)]
        return 1.0, dt, math.sqrt(dt * (squares[0] + 4 * squares[1] + squares[2]) / 6)

    def transition(self, process: Process, t: float, t_next: float) -> HeunTransition:
        return HeunTransition(t, t_next, *self.coefficients(process, t, t_next), self._slope_weight(process, t, t_next))

    def _slope_weight(self, process: Process, t: float, t_next: float) -> float:
        if not isinstance(process, ReverseProcess):
            return t_next - t
        v = _levels(self, process, t, t_next)
        return v.alpha_next * v.q / v.h if v.h_next > 0 else 0.0


def _affine_slope(process: Process, t: float) -> tuple[Tensor, Tensor]:
    """(A, b) with slope = A x + b."""
    if not isinstance(process, ReverseProcess):
        return process.affine_drift(t)
    s = process.noise_level(t)
    matrix, offset = process.affine_field(t)
    h, alpha = process.schedule.h(s), process.schedule.alpha(s)
    return (torch.eye(process.dim, dtype=torch.float64) + h * matrix) / alpha, h * offset / alpha


@dataclass(frozen=True, eq=False)
class MatrixTransition(Transition):
    """x+ = matrix x + offset + std z with a matrix std (d, d): the exact transition of an affine process."""

    calls_model: ClassVar[bool] = False

    step: AffineStep | None = None

    @property
    def noiseless(self) -> bool:
        return not bool(self.std.any())

    def mean(self, state: State) -> Tensor:
        assert self.step is not None
        x = state.x
        return torch.addmm(self.step.offset.to(x)[:, None], self.step.matrix.to(x), x.mT).mT

    def finish(self, process: Process, state: State, mean: Tensor, z: Tensor) -> Tensor:
        return torch.addmm(mean.mT, self.std.to(mean), z.to(mean).mT).mT

    def affine(self, process: Process) -> AffineStep:
        assert self.step is not None
        return self.step

    def spread_transposed(self, v: Tensor) -> Tensor:
        return v @ self.std.to(v)

    def unspread(self, v: Tensor) -> Tensor:
        return torch.linalg.solve(self.std.to(v), v.mT).mT


class ExactTransition(Kernel):
    """The exact transition law of an affine process: no discretisation error at any step size.

    Exact Gaussian score, S' = covariance at the level reached, S at the level left: gain r S' S^{-1}, covariance
    q S' S^{-1} (derived: conditioning of the forward chain). Other affine processes: the fundamental solution by a
    Runge-Kutta method of order 8 at relative tolerance 1e-13.
    Raises: NoClosedForm when the process is not affine.
    """

    order_weak = 1000  # no error at any order

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        raise NotDefined("the exact transition has a matrix standard deviation, not three numbers; use affine_step")

    def transition(self, process: Process, t: float, t_next: float) -> MatrixTransition:
        step = self._step(process, t, t_next)
        return MatrixTransition(t, t_next, 1.0, t_next - t, step.noise, step)

    def _step(self, process: Process, t: float, t_next: float) -> AffineStep:
        if isinstance(process, ReverseProcess) and process.has_exact_score:
            return self._conditional(process, t, t_next)
        return _fundamental_solution(process, t, t_next)

    def _conditional(self, process: ReverseProcess, t: float, t_next: float) -> AffineStep:
        v = _levels(self, process, t, t_next)
        law = process.data_law
        if not process.noised(t).affine_score:
            raise NoClosedForm("the exact transition is Gaussian only for Gaussian data; use SecondOrder or Ancestral")
        eye = torch.eye(process.dim, dtype=torch.float64)
        s_next = v.alpha_next**2 * law.covariance + v.h_next * eye
        eigenvalues, vectors = torch.linalg.eigh(s_next)
        ratio = eigenvalues.clamp(min=0) / (
            v.r**2 * eigenvalues.clamp(min=0) + v.q
        )  # S' S^{-1} in the shared eigenbasis
        shrink = (vectors * ratio) @ vectors.mT
        centre = law.mean
        return AffineStep(
            v.r * shrink,
            v.alpha_next * centre - v.r * shrink @ (v.alpha * centre),
            (vectors * torch.sqrt(v.q * ratio)) @ vectors.mT,
        )


def _fundamental_solution(process: Process, t: float, t_next: float) -> AffineStep:
    """Solve Phi' = A Phi, m' = A m + c, V' = A V + V A' + amplitude^2 I from (I, 0, 0)."""
    d = process.dim
    process.affine_drift(t)  # raises before the solver starts

    def rhs(tau: float, y: np.ndarray) -> np.ndarray:
        a, c = (part.numpy() for part in process.affine_drift(tau))
        phi, m, v = y[: d * d].reshape(d, d), y[d * d : d * d + d], y[d * d + d :].reshape(d, d)
        noise = process.amplitude(tau) ** 2 * np.eye(d)
        return np.concatenate([(a @ phi).ravel(), a @ m + c, (a @ v + v @ a.T + noise).ravel()])

    start = np.concatenate([np.eye(d).ravel(), np.zeros(d), np.zeros(d * d)])
    y = solve_ivp(rhs, (t, t_next), start, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
    phi, m, v = y[: d * d].reshape(d, d), y[d * d : d * d + d], y[d * d + d :].reshape(d, d)
    eigenvalues, vectors = np.linalg.eigh((v + v.T) / 2)
    root = (vectors * np.sqrt(np.clip(eigenvalues, 0, None))) @ vectors.T
    return AffineStep(torch.tensor(phi), torch.tensor(m), torch.tensor(root))
