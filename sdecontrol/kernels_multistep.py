"""The probability flow by a linear multistep method: one model call a step, the calls before it are remembered.

With y = x / alpha, tau = h / alpha^2 and rho = sqrt(width^2 + tau) the flow dy/dtau = -(alpha / 2) score is

    d(y / rho) / d(1 / rho) = c,        c = y + rho^2 alpha score,

and c is constant along the flow on N(m, width^2 I): there c = m (derived). At width 0 it is x0_hat, the variable of
DPM-Solver++; a positive width keeps it smooth down to tau = 0. A step interpolates the last c's:

    y' = (rho' / rho) y + rho' int_{1/rho}^{1/rho'} c d(1/rho).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.kernels import DDIM, AffineStep, Kernel, Transition
from sdecontrol.processes import Process, ReverseProcess, State

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)  # of the integral over log rho, to 1e-9 over ten units of it

Memory = tuple[Tensor, ...]  # the c's of the calls before, the latest first


@dataclass(frozen=True)
class MultistepTransition(Transition):
    """mean = field_scale x + field_weight score + sum_j past_j c_{-j}; then c of this call joins the memory.

    centre: (a, b) with c = a x + b score. kept: how many c's the next step looks back on.
    """

    past: tuple[float, ...] = ()
    centre: tuple[float, float] = (0.0, 0.0)
    kept: int = 0

    def step(self, state: State, memory: Memory) -> tuple[Tensor, Memory]:
        """The mean (n, *event), and the memory for the next step."""
        mean = super().mean(state)
        for weight, c in zip(self.past, memory, strict=True):
            mean.add_(c, alpha=weight)
        if not self.kept:
            return mean, ()
        scale, weight = self.centre
        return mean, ((state.x * scale).add_(state.field, alpha=weight), *memory)[: self.kept]

    def mean(self, state: State) -> Tensor:
        """That of a step without memory. Raises: NotDefined for any other, which `simulate` alone can make."""
        if self.past:
            raise NotDefined(
                f"the step at t = {self.t:.6g} looks back on {len(self.past)} calls of the model, which only simulate "
                "keeps; use a one-step kernel such as sc.kernels_flow.Flow here"
            )
        return super().mean(state)


class Adams(Kernel):
    """Exponential Adams-Bashforth method for the probability flow: x from the model's last `order` calls.

    c is interpolated through its last values by a polynomial in chi = log((tau + narrow^2) / (tau + wide^2)), the
    coordinate in which `flow_grid` is even: it is bounded, so nothing is extrapolated far at either end.
    One model call a step. The first step looks back on nothing and the second on one call, so the order of the
    terminal law is min(order, 2); higher orders have local errors h^(order + 1) from step number `order` on.
    eta > 0 (order 1 only) flows further and returns by exact noise, of the variance of DDIM(eta), which forgets a wrong
    start faster. A step to s = 0 is Tweedie's x0_hat, as data on a subspace need, or the flow with tweedie=False.
    Raises: BadInput for an order outside 1 to 4, eta outside [0, 1], eta > 0 at a higher order, a negative width, or
    unless 0 < narrow < wide; NotDefined for a process that is not a ReverseProcess; NoClosedForm for the matrices of a
    step that looks back.
    Source: derived; width = 0 and a polynomial in log rho would be the multistep DPM-Solver++.
    """

    def __init__(
        self,
        order: int = 3,
        eta: float = 0.0,
        width: float = 0.0,
        narrow: float = 0.3,
        wide: float = 10.0,
        tweedie: bool = True,
    ):
        check(order in (1, 2, 3, 4), f"order = {order!r}", "1, 2, 3 or 4")
        check(math.isfinite(width) and width >= 0, f"width = {width}", "a standard deviation of the data, or 0")
        check(0 < narrow < wide, f"narrow = {narrow}, wide = {wide}", "0 < narrow < wide")
        self.order, self.eta, self.width = order, DDIM(eta).eta, float(width)
        check(eta == 0 or order == 1, f"eta = {eta} at order {order}", "eta = 0 above order 1",
              "Noise breaks the line of the calls before: use Switch(Adams(1, eta), Adams(order), level).")  # fmt: skip
        self.narrow, self.wide, self.tweedie = float(narrow), float(wide), tweedie
        self.order_weak = min(order, 2)

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        """Those of a step that looks back on nothing: mean = x / r + alpha alpha' rho (rho - rho_end) score."""
        c_x, c_f, std = DDIM(self.eta).coefficients(process, t, t_next)
        at, after = _level(process, t), _level(process, t_next)
        if after.tau == 0 and self.tweedie:
            return c_x, c_f, std
        end = after.tau * (1 - self.eta**2 * (1 - after.tau / at.tau))
        rho = math.hypot(self.width, math.sqrt(at.tau))
        shrink = -math.expm1(math.log((self.width**2 + end) / rho**2) / 2) if self.width**2 + end > 0 else 1.0
        return c_x, after.alpha * at.alpha * rho**2 * shrink, std

    def transition(self, process: Process, t: float, t_next: float) -> Transition:
        """The step that begins a chain: it looks back on nothing."""
        return super().transition(process, t, t_next) if self.order == 1 else self.transitions(process, [t, t_next])[0]

    def transitions(self, process: Process, times: Sequence[float]) -> list[Transition]:
        """Step k looks back on the min(k, order - 1) calls before its own."""
        if self.order == 1:
            return super().transitions(process, times)
        levels = [_level(process, t) for t in times[:-1]]
        last = len(levels) - 1
        alone = [k == last and self.tweedie and process.noise_level(times[-1]) == 0 for k in range(len(levels))]
        reach = [0 if alone[k] else min(k, self.order - 1) for k in range(len(levels))] + [0]
        return [
            self._step(process, times[k], times[k + 1], levels[k - reach[k] : k + 1][::-1], reach[k + 1])
            for k in range(len(levels))
        ]

    def _step(
        self, process: Process, t: float, t_next: float, seen: list[_Level], kept: int
    ) -> MultistepTransition:
        """The step over the levels seen, the latest first."""
        at, after = seen[0], _level(process, t_next)
        square = self.width**2 + at.tau
        centre = (1 / at.alpha, square * at.alpha)
        if len(seen) == 1:
            return MultistepTransition(t, t_next, *self.coefficients(process, t, t_next), (), centre, kept)
        taus = tuple(level.tau for level in seen)
        ratio, weights = _integrated(self.width, self.narrow, self.wide, taus, after.tau)
        c_x = after.alpha * (ratio / at.alpha + weights[0] * centre[0])
        past = tuple(after.alpha * weight for weight in weights[1:])
        return MultistepTransition(t, t_next, c_x, after.alpha * weights[0] * centre[1], 0.0, past, centre, kept)

    def affine_step(self, process: Process, t: float, t_next: float) -> AffineStep:
        """Raises: NoClosedForm above order 1, whose steps are not functions of x alone."""
        if self.order > 1:
            raise NoClosedForm(f"{self!r} looks back on earlier calls, so a step is no matrix; use Flow or order 1")
        return super().affine_step(process, t, t_next)

    def consistent_with(self, process: Process) -> bool:
        return self.eta == 1.0


@dataclass(frozen=True)
class _Level:
    alpha: float
    tau: float  # h / alpha^2


def _level(process: Process, t: float) -> _Level:
    if not isinstance(process, ReverseProcess):
        raise NotDefined("Adams needs a ReverseProcess; use EulerMaruyama or SecondOrder for a general diffusion")
    s, schedule = process.noise_level(t), process.schedule
    return _Level(schedule.alpha(s), math.exp(-schedule.log_snr(s)) if schedule.h(s) > 0 else 0.0)


@lru_cache(maxsize=4096)
def _integrated(
    width: float, narrow: float, wide: float, taus: tuple[float, ...], tau_next: float
) -> tuple[float, tuple[float, ...]]:
    """(rho' / rho, weights) with y' = (rho' / rho) y + sum_j weights_j c_j: Gauss-Legendre in log rho."""

    def chi(tau: np.ndarray) -> np.ndarray:
        return np.log((tau + narrow**2) / (tau + wide**2))

    start, end = width**2 + taus[0], width**2 + tau_next
    nodes = [chi(np.array(tau)) for tau in taus]
    if end == 0:
        return 0.0, tuple(_lagrange(nodes, chi(np.zeros(1)))[:, 0].tolist())
    half = math.log(start / end) / 4
    log_rho = math.log(start * end) / 4 + half * _NODES
    factors = half * _WEIGHTS * np.exp(math.log(end) / 2 - log_rho)
    points = chi(np.clip(np.exp(2 * log_rho) - width**2, tau_next, taus[0]))
    return math.sqrt(end / start), tuple((_lagrange(nodes, points) @ factors).tolist())


def _lagrange(nodes: Sequence[np.ndarray], points: np.ndarray) -> np.ndarray:
    """Lagrange's polynomials of the nodes at the points: (nodes, points)."""
    rows = []
    for i, node in enumerate(nodes):
        others = [(points - other) / (node - other) for j, other in enumerate(nodes) if j != i]
        rows.append(np.prod(others, axis=0) if others else np.ones_like(points))
    return np.array(rows)
