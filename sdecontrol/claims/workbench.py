"""What the control claims share on one problem: pairs and their moments, test points, draws, simulated paths.

Everything is made once for a set of answers, and that of the last few sets is kept, so that nine claims on a problem
cost one solve of the moment equations and a handful of simulations.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cached_property

import numpy as np
from torch import Tensor

from sdecontrol.claims.base import Case, NotApplicable
from sdecontrol.claims.draws import OptimalDraws
from sdecontrol.claims.latent import COARSER
from sdecontrol.claims.plain import GaussianSum, Quadric
from sdecontrol.claims.posterior import exponent, gaussian
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.simulations import Simulations

LAW_ACCURACY = 1e-8  # relative, of log densities that the library itself has by a rule over the start
WIDEST = 4.0  # E w^2 / (E w)^2 up to which weights have an honest standard error
_KEPT: deque[Workbench] = deque(maxlen=2)


class Workbench(Simulations):
    """The shared work of one (problem, answers, quick, seed)."""

    @classmethod
    def of(cls, case: Case) -> Workbench:
        """The workbench of this case, shared with the other claims on the same answers."""
        for kept in _KEPT:
            if kept.answers is case.answers and (kept.quick, kept.seed) == (case.quick, case.seed):
                return kept
        _KEPT.append(cls(case))
        return _KEPT[-1]

    @cached_property
    def optimal_draws(self) -> OptimalDraws:
        return OptimalDraws(self.latent, self.paths, self.rng("draws"))

    @cached_property
    def optimal_costs(self) -> tuple[Array, Array, float]:
        """log dnu*/dp_noise and int |u*|^2 dt / 2 along the optimal draws, (n,) each, and the time rule's error."""
        draws, latent = self.optimal_draws, self.latent
        first, start = latent.lift(0.0, draws.states[0]), self.process.initial_law(0.0)
        log_ratio = (self.answers.initial.log_prob(first) - start.log_prob(first)).numpy()
        energy, bias = draws.energy(lambda t, z: self.answers.control(t, latent.lift(t, z)).numpy())
        return log_ratio, energy, bias

    @cached_property
    def middle(self) -> float:
        """The time at which a third of the posterior variance is left: there the optimum has most to do."""
        if self.latent.data is None:
            return self.horizon / 2
        return self.horizon - self.latent.level_at_share(self.latent.share(0.0) / 3)

    # ------------------------------------------------------------------ points

    def points(self, t: float, n: int, rng: np.random.Generator) -> Tensor:
        """n states at time t, half as far out again as the reference process is: (n, D)."""
        if self.latent.data is not None:
            return self.latent.draw(t, n, rng, widen=1.5)
        mean, covariance = self.flow.fine.moments("reference", int(np.argmin(np.abs(np.array(self.times) - t))))
        return self.latent.lift(t, gaussian(mean, 2.25 * covariance).draw(n, rng))

    def reference(self, t: float) -> GaussianSum:
        """Q_t at one of `times`: by the posterior of an exact score, else by the moment equations."""
        if self.latent.data is not None:
            return self.latent.reference(t)
        return gaussian(*self.flow.fine.moments("reference", self.times.index(t)))

    def reference_error(self, t: float, z: Array, log_q: Array) -> float:
        """Error of log Q_t: of the rules over the start, or of the moment equations at points a few deviations out."""
        if self.latent.data is None:
            return 100 * self.flow.relative
        if not self.latent.by_rule:
            return 0.0
        changed = float(np.abs(self.latent.reference(t, COARSER).log_density(z) - log_q).max())
        return changed + LAW_ACCURACY * float(np.abs(log_q).max())

    def narrowest(self, t: float) -> float:
        """The smallest standard deviation at time t: the length over which answers change."""
        if self.latent.data is None:
            return self.latent.spread(t)
        a, h = self.latent.level(t)
        smallest = min(float(np.linalg.eigvalsh(c.covariance)[0]) for c in self.latent.data.clouds)
        return math.sqrt(a * a * smallest + h)

    def whole_reward_mean(self, mean: Array, covariance: Array) -> float:
        """E r / temperature for a law on the whole space of these moments."""
        rho = self.whole_reward
        return float(rho(mean) - (rho.curvature * covariance).sum() / 2)

    @cached_property
    def whole_reward(self) -> Quadric:
        """r/temperature on the whole space. Raises NotApplicable unless it is quadratic."""
        return exponent(self.problem.reward, self.temperature)


def mild(weights: Tensor) -> Tensor:
    """Weights as they are. Raises NotApplicable where they spread too widely, about any mean, for a plain mean."""
    square = float(weights.square().mean() / weights.mean().square())
    if not square <= WIDEST:
        raise NotApplicable(f"the weights spread too widely for a plain mean: E w^2 is {square:.3g} (E w)^2 or more")
    return weights


def no_running_reward(case: Case) -> None:
    """Raises NotApplicable with a running reward: then r(Y_T) alone does not make the optimum."""
    if case.problem.running_reward is not None:
        raise NotApplicable("with a running reward the optimum is not the tilt by e^{r(Y_T)/temperature}")
