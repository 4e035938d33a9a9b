"""What every exact answer about a chain shares: the affine chain itself, its own output law, and its grid times."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from sdecontrol.controls import AffineControl
from sdecontrol.errors import NoClosedForm, check
from sdecontrol.exact.pushforward import pushforward
from sdecontrol.laws import Law
from sdecontrol.moments import AffineChain


class ChainAnswers:
    """Closed forms of `problem` on the chain that `kernel` makes of it on `grid`; float64, times are grid times.

    Nothing is computed before it is asked for; what does not exist raises then: NoClosedForm with the reason (every
    attribute that a subclass does not override), NoTilt (log Z infinite), ValueBlowUp (the value infinite at an inner
    step, named).
    """

    reason = "the process is not affine"

    def __init__(self, problem: Any, kernel: Any, grid: Any):
        self.problem, self._kernel, self._grid = problem, kernel, grid
        self.temperature = float(problem.temperature)

    def _no(self, what: str) -> NoClosedForm:
        return NoClosedForm(f"{what} of the chain has no closed form here: {self.reason}")

    @cached_property
    def chain(self) -> AffineChain:
        """The steps. Raises NoClosedForm for a process that is not affine."""
        return AffineChain.of(self.problem.process, self._kernel, self._grid)

    @cached_property
    def reference(self) -> Law:
        """The chain's own p_pre."""
        return pushforward(self.chain.initial, self.chain.steps)

    def _index(self, t: float) -> int:
        times = np.asarray(self.chain.times)
        k = int(np.abs(times - t).argmin())
        check(abs(times[k] - t) <= 1e-12 * (1 + abs(t)), f"t = {t}", f"a grid time; the nearest is {times[k]:.17g}",
              "The continuous problem's value, at any time, is problem.exact.value.")  # fmt: skip
        return k

    def value(self, t: float, x: Tensor) -> Tensor:
        """v(t_k, x) = T log E[exp((r(x_K) + sum_{j >= k} dt_j running(x_j))/T) | x_k = x]: (n, d) -> (n,)."""
        raise self._no("the value")

    @property
    def log_normalizer(self) -> float:
        """log Z = log E exp((r(x_K) + sum_k dt_k running(x_k))/T) under the reference chain. Raises NoTilt."""
        raise self._no("log Z")

    @property
    def optimum(self) -> float:
        """T log Z, the largest objective over all laws of (x_0, z_1, ..., z_K)."""
        return self.temperature * self.log_normalizer

    @property
    def initial(self) -> Law:
        """nu*, the optimal initial law: e^{v(0, .)/T} p_noise / Z."""
        raise self._no("the optimal initial law")

    @property
    def terminal(self) -> Law:
        """The law of x_K under the optimum: the tilt of `reference` when there is no running reward."""
        raise self._no("the law of x_K under the optimum")

    @property
    def path_kl(self) -> float:
        """KL(P* || P), P* the optimal law of (x_0, z_1, ..., z_K)."""
        raise self._no("KL(P* || P)")

    def kernel(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """The optimal kernel of step k from x (n, d): N(mean (n, d), covariance (d, d))."""
        raise self._no("the optimal kernel")

    @property
    def control(self) -> AffineControl:
        """The best mean shift, as a control at the grid times: sqrt(dt) u is the shift of the standard noise."""
        raise self._no("the best mean shift")

    @property
    def objective(self) -> float:
        """E reward - T KL of `control` started from `initial`: the best of all mean shifts and initial laws."""
        raise self._no("the objective of the best mean shift")

    @property
    def loss(self) -> float:
        """optimum - objective >= 0, the price of a fixed variance."""
        return self.optimum - self.objective
