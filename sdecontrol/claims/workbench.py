"""What the control claims share on one problem: pairs and their moments, test points, draws, simulated paths.

Everything is made once for a set of answers, and that of the last few sets is kept, so that nine claims on a problem
cost one solve of the moment equations and a handful of simulations.
"""

from __future__ import annotations

import math
from collections import deque
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import EPS, Case, NotApplicable
from sdecontrol.claims.draws import OptimalDraws
from sdecontrol.claims.pairs import THETA, Pairs
from sdecontrol.claims.plain import GaussianSum, Quadric
from sdecontrol.claims.posterior import exponent, gaussian
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.static import draws_exactly
from sdecontrol.controls import Control, StateControl
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

CLOCK = 2  # power of the posterior variance in which steps are even; an integer, for errors in whole powers of the step
RULE_ERROR = 1e-9  # of log densities by a rule over the start, the library's and the second route's
WIDEST = 4.0  # E w^2 up to which weights have an honest standard error
LOW = 4  # dimensions up to which everything is cheap
_KEPT: deque[Workbench] = deque(maxlen=2)


class Workbench(Pairs):
    """The shared work of one (problem, answers, quick, seed)."""

    def __init__(self, case: Case):
        super().__init__(case)
        self._case_paths = case.paths
        self._paths: dict[tuple[str, bool], Path] = {}

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

    @property
    def reference_error(self) -> float:
        """Error of log Q_t: of the rule over the start, or of the moment equations at points a few deviations out."""
        if self.latent.data is None:
            return 100 * self.flow.relative
        return RULE_ERROR if not self.latent.matched and len(self.latent.data.clouds) > 1 else 0.0

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

    # ------------------------------------------------------------------ simulations

    @property
    def paths(self) -> int:
        """Paths of one simulation: fewer where a path costs more."""
        components = 1 if self.latent.data is None else len(self.latent.data.clouds)
        cost = math.sqrt(self.process.dim * components) / 1.5
        fewest = 6_000 if self.process.dim <= LOW else 2048 if self.affine else 1536
        return max(fewest, int(self._case_paths / max(1.0, cost)))

    @property
    def draws(self) -> int:
        """Independent draws where no path is simulated."""
        return max(self._case_paths, 20_000) * (4 if self.process.dim <= LOW else 1)

    def clock(self, steps: int, t: float = 0.0) -> TimeGrid:
        """Times from t to the horizon, nested when the steps are doubled: even in a power of the posterior variance."""
        latent, horizon = self.latent, self.horizon
        if latent.data is None:
            return TimeGrid.explicit(np.linspace(t, horizon, steps + 1).tolist())
        first = latent.share(t)
        shares = [first * (1 - k / steps) ** CLOCK for k in range(1, steps)]
        return TimeGrid.explicit([t, *(horizon - latent.level_at_share(share) for share in shares), horizon])

    @cached_property
    def affine(self) -> bool:
        """Whether the chain is affine, hence known exactly."""
        return self.process.is_affine

    @property
    def steps(self) -> int:
        """Steps of the coarse simulations, half those of the fine ones; few where the chain is known exactly."""
        extrapolates = not self.affine and (self.process.dim <= LOW or not self.quick)
        return (16 if extrapolates else 8) * (1 if self.quick else 2)

    def grid(self, fine: bool = False) -> TimeGrid:
        return self.clock(self.steps * (1 + fine))

    def check_grids(self) -> None:
        """Raises NotApplicable where the steps are too few to extrapolate from."""
        if self.quick and self.process.dim > LOW:
            raise NotApplicable("in many dimensions the steps of a quick run are too few to extrapolate from")

    def check_chain(self) -> None:
        """Raises NotApplicable where paths from a point would have to be extrapolated in many dimensions."""
        if not self.affine and self.process.dim > LOW:
            raise NotApplicable(
                "in many dimensions draws of the posterior, which need no steps, stand for paths from a point"
            )

    def noise_on(self, finest: TimeGrid, fine: bool) -> Noise:
        """Both of two nested grids see one Brownian path."""
        noise = Noise(self.seed)
        return noise if fine else noise.coarsened(finest.resolve(self.process).times)

    def path(self, name: str, fine: bool = False) -> Path:
        """Paths of a named pair: "optimum", "untilted", "weak", "reversed", "moved", "test", "bounded", "reference"."""
        key = (name, fine)
        if key not in self._paths:
            control, initial = self.pair(name)
            self._paths[key] = simulate(
                self.process, control, initial, grid=self.grid(fine), n=self.paths,
                noise=self.noise_on(self.grid(True), fine), keep="all" if name == "reference" else "ends",
            )  # fmt: skip
        return self._paths[key]

    def path_from(self, t: float, x: Tensor, control: Any, fine: bool) -> Path:
        """Paths that all start at the state x (1, D) at time t."""
        grids = [self.clock(self.steps * factor, t) for factor in (1, 2)]
        starts = x.expand(self.paths, -1).contiguous()
        noise = self.noise_on(grids[1], fine)
        return simulate(self.process, control, starts, grid=grids[fine], n=self.paths, noise=noise, keep="ends")

    def pair(self, name: str) -> tuple[Any, Any]:
        """A control and an initial law; where nu* cannot be drawn exactly, starts are from p_noise, see `log_start`."""
        if name == "reference":
            return None, None
        if name == "bounded":
            return self.bounded, None
        if name == "test":
            return self.tests["affine 1"].control, self.tests["affine 1"].initial
        control = self.answers.control
        if name == "moved":
            return control, self.tests["affine 1"].initial
        strength = {"optimum": 1.0, "untilted": 1.0, "weak": THETA, "reversed": -1.0}[name]
        kept = name == "untilted" or not self.draws_initial
        return (control if strength == 1.0 else strength * control), None if kept else self.answers.initial

    @cached_property
    def draws_initial(self) -> bool:
        """Whether draws of nu* are independent draws of nu* itself."""
        return draws_exactly(self.answers.initial)

    def log_start(self, path: Path) -> Tensor:
        """log d nu*/d p_noise at the starts where the paths were drawn from p_noise in its stead, else zero: (n,)."""
        if self.draws_initial:
            return torch.zeros(path.n, dtype=torch.float64)
        return self.answers.initial.log_prob(path.initial) - path.reference_initial.log_prob(path.initial)

    def profit(self, name: str, fine: bool = False) -> Tensor:
        """r/temperature - int |u|^2 dt / 2 of each path, weighted where nu* is reached by weights: (n,).

        The martingale int u dB is taken away: its mean is zero, and near the optimum little variance is left.
        """
        path = self.path(name, fine)
        weight = torch.exp(self.log_start(path)) if name in ("optimum", "weak", "reversed") else 1.0
        cost = path.weights.martingale + path.weights.energy
        return weight * (total_reward(self.problem, path) / self.temperature - cost)

    @staticmethod
    def mean(samples: Any) -> Estimate:
        """The mean; without an error where the samples differ by rounding only."""
        found = Estimate.mean(samples)
        settled = found.stderr <= 1e3 * EPS * abs(found.value)
        return Estimate(found.value, 0.0, found.n, "the same on every path") if settled else found

    @classmethod
    def extrapolate(cls, coarse: Tensor, fine: Tensor) -> tuple[Estimate, float]:
        """The mean at vanishing steps from paired samples on nested grids, and what the extrapolation moved.

        The kernels are of weak order 1; the error left is of order 2, smaller than the correction.
        """
        return cls.mean(2 * fine - coarse), abs(float((fine - coarse).mean()))

    @cached_property
    def bounded(self) -> Control:
        """A control with |u|^2 <= 0.2 / horizon: its exponential martingale has all moments."""
        size = math.sqrt(0.2 / self.horizon / self.process.dim)
        signs = torch.as_tensor(self.rng("bounded").choice([-1.0, 1.0], size=self.process.dim))
        return StateControl(lambda t, x: size * torch.tanh(signs * x / self.latent.spread(t) + 0.5), elementwise=True)


def mild(weights: Tensor) -> Tensor:
    """Weights of mean 1, as they are. Raises NotApplicable where they spread too widely for a plain mean."""
    square = float(weights.square().mean())
    if square > WIDEST:
        raise NotApplicable(f"dnu/dp_noise spreads too widely for a plain mean: E w^2 is {square:.3g} or more")
    return weights


def no_running_reward(case: Case) -> None:
    """Raises NotApplicable with a running reward: then r(Y_T) alone does not make the optimum."""
    if case.problem.running_reward is not None:
        raise NotApplicable("with a running reward the optimum is not the tilt by e^{r(Y_T)/temperature}")
