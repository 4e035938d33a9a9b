"""What the control claims share on one problem: pairs and their moments, test points, draws, simulated paths.

Everything is made once for a set of answers; that of the problem's own answers is kept while wrong ones come and go, so
that nine claims on a problem cost one solve of the moment equations and a handful of simulations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from sdecontrol.claims.base import Case, NotApplicable, rounding
from sdecontrol.claims.routes.draws import OptimalDraws
from sdecontrol.claims.routes.latent import COARSER, Latent
from sdecontrol.claims.routes.plain import GaussianSum, Quadric
from sdecontrol.claims.routes.posterior import exponent, gaussian
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.simulations import LOW, Simulations
from sdecontrol.moments import Moments

LAW_ACCURACY = 1e-8  # relative, of log densities that the library itself has by a rule over the start
WIDEST = 4.0  # E w^2 / (E w)^2 up to which weights have an honest standard error
_OWN: deque[Workbench] = deque(maxlen=1)  # of a problem's own answers
_OTHER: deque[Workbench] = deque(maxlen=1)  # of wrong ones


class Workbench(Simulations):
    """The shared work of one (problem, answers, quick, seed)."""

    @classmethod
    def of(cls, case: Case) -> Workbench:
        """The workbench of this case, shared with the other claims on the same answers."""
        shelf = _OWN if case.answers is case.problem.exact else _OTHER
        for kept in shelf:
            if kept.answers is case.answers and (kept.quick, kept.seed) == (case.quick, case.seed):
                return kept
        shelf.append(cls(case))
        return shelf[-1]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` made the first time it was asked under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @cached_property
    def _made(self) -> dict[Hashable, Any]:
        return {}

    @cached_property
    def optimal_draws(self) -> OptimalDraws:
        share = 2 if self.quick and self.process.dim > LOW else 1
        return OptimalDraws(self.latent, self.paths // share, self.rng("draws"))

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
        return self.narrowed(3)

    def narrowed(self, factor: float) -> float:
        """The time at which the posterior variance is that of the start over `factor`; half-way without data."""
        if self.latent.data is None:
            return self.horizon / 2
        return self.horizon - self.latent.level_at_share(self.latent.share(0.0) / factor)

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
        return self.latent.narrowest(t)

    @cached_property
    def condition(self) -> float:
        """Of the covariances of the data, the worst."""
        return max(10.0, *(float(np.linalg.cond(c.covariance)) for c in self.latent.known_data.clouds))

    def whole_reward_mean(self, mean: Array, covariance: Array) -> float:
        """E r / temperature for a law on the whole space of these moments."""
        rho = self.whole_reward
        return float(rho(mean) - (rho.curvature * covariance).sum() / 2)

    def chain_reward(self, found: Moments) -> float:
        """E r(x_K)/temperature of a chain, with the running reward summed at the left end of each step."""
        means, covariances = found.means.numpy(), found.covariances.numpy()
        total, running = self.whole_reward_mean(means[-1], covariances[-1]), self.whole_running
        if running is not None:
            rates = running(means) - (running.curvature * covariances).sum((1, 2)) / 2
            total += float(np.diff(found.times) @ rates[:-1])
        return total

    @cached_property
    def whole_running(self) -> Quadric | None:
        """The running reward over the temperature on the whole space. Raises NotApplicable unless it is quadratic."""
        running = self.problem.running_reward
        return None if running is None else exponent(running, self.temperature)

    @cached_property
    def whole_reward(self) -> Quadric:
        """r/temperature on the whole space. Raises NotApplicable unless it is quadratic."""
        return exponent(self.problem.reward, self.temperature)


def compare_with_riccati(case: Case, points: int) -> None:
    """v against the Riccati equations of affine dynamics, at all times."""
    bench, rng = Workbench.of(case), case.rng
    latent, riccati = bench.latent, bench.riccati
    worst, error, size = 0.0, 0.0, 1.0
    for t, fine, coarse in zip(bench.times, riccati.fine, riccati.coarse):
        x = bench.points(t, points, rng)
        z = latent.encode(t, x)
        value = case.answers.value(t, x).numpy() / bench.temperature
        worst = max(worst, float(np.abs(value - fine(z)).max()))
        size = max(size, float(np.abs(value).max()))
        error = max(error, float(np.abs(coarse(z) - fine(z)).max()))
    error += rounding(size, condition=10.0, operations=100 * latent.dim)
    case.zero("v/temperature - Riccati solution, at all times", worst, error, scale=size)


def mild(weights: Tensor) -> Tensor:
    """Weights as they are. Raises NotApplicable where they spread too widely, about any mean, for a plain mean."""
    square = float(weights.square().mean() / weights.mean().square())
    if not square <= WIDEST:
        raise NotApplicable(f"the weights spread too widely for a plain mean: E w^2 is {square:.3g} (E w)^2 or more")
    return weights


def mixture_of(case: Case) -> Latent:
    """The latent problem of a mixture. Raises NotApplicable for Gaussian data, which the moment equations settle."""
    latent = Workbench.of(case).latent
    if len(latent.known_data.clouds) == 1:
        raise NotApplicable("Gaussian data are settled by the moment equations")
    return latent


def no_running_reward(case: Case) -> None:
    """Raises NotApplicable with a running reward: then r(Y_T) alone does not make the optimum."""
    if case.problem.running_reward is not None:
        raise NotApplicable("with a running reward the optimum is not the tilt by e^{r(Y_T)/temperature}")
