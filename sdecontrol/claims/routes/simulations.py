"""Simulated paths that the control claims share, on three nested grids that see one Brownian path."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import EPS, NotApplicable
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.pairs import THETA, Pairs
from sdecontrol.claims.routes.static import draws_exactly
from sdecontrol.controls import Control, StateControl
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import total_reward
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.claims.base import Case

LEVELS = (0, 1, 2)  # of the nested grids, coarsest first
CLOCK = 2  # power of the posterior variance in which steps are even; an integer, for errors in whole powers of the step
TOO_COARSE = 0.2  # share of a quantity that the finest grid may still miss for an extrapolation to be trusted
SHRINKS = 0.75  # of the change by one halving, the largest that the next may be: order 1 has 0.5
LOW = 4  # dimensions up to which everything is cheap


def clock(latent: Latent, steps: int, t: float = 0.0) -> TimeGrid:
    """Times from t to the horizon, nested when the steps are doubled: even in a power of the posterior variance."""
    horizon = latent.process.horizon
    if latent.data is None:
        return TimeGrid.explicit(np.linspace(t, horizon, steps + 1).tolist())
    first = latent.share(t)
    shares = [first * (1 - k / steps) ** CLOCK for k in range(1, steps)]
    return TimeGrid.explicit([t, *(horizon - latent.level_at_share(share) for share in shares), horizon])


class Simulations(Pairs):
    """Paths of the pairs of one (problem, answers, quick, seed); each simulation is made at most once."""

    def __init__(self, case: Case):
        super().__init__(case)
        self._case_paths = case.paths
        self._paths: dict[tuple[str, int], Path] = {}

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
        low = self.process.dim <= LOW
        return max(self._case_paths, 10_000 if self.quick and not low else 20_000) * (4 if low else 1)

    @cached_property
    def affine(self) -> bool:
        """Whether the chain is affine, hence known exactly."""
        return self.process.is_affine

    @property
    def steps(self) -> int:
        """Steps of the middle grid; few where the chain is known exactly."""
        extrapolates = not self.affine and (self.process.dim <= LOW or not self.quick)
        return (16 if extrapolates else 8) * (1 if self.quick else 2)

    def grid(self, level: int = 1, t: float = 0.0) -> TimeGrid:
        """The three nested grids from t: half as many steps, as many, twice as many."""
        return clock(self.latent, self.steps * 2**level // 2, t)

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

    def noise(self, level: int, t: float = 0.0) -> Noise:
        """The three grids see one Brownian path."""
        finest = LEVELS[-1]
        noise = Noise(self.seed)
        return noise if level == finest else noise.coarsened(self.grid(finest, t).resolve(self.process).times)

    def path(self, name: str, level: int = 1) -> Path:
        """Paths of a named pair: "optimum", "untilted", "weak", "reversed", "moved", "test", "bounded", "reference"."""
        key = (name, level)
        if key not in self._paths:
            control, initial = self.pair(name)
            self._paths[key] = simulate(
                self.process, control, initial, grid=self.grid(level), n=self.paths, noise=self.noise(level),
                keep="all" if name == "reference" else "ends", observe=self.observe,
            )  # fmt: skip
        return self._paths[key]

    def path_from(self, t: float, x: Tensor, control: Any, level: int = 1) -> Path:
        """Paths that all start at the state x (1, D) at time t."""
        starts = x.expand(self.paths, -1).contiguous()
        return simulate(
            self.process, control, starts, grid=self.grid(level, t), n=self.paths, noise=self.noise(level, t),
            keep="ends", observe=self.observe,
        )  # fmt: skip

    @property
    def observe(self) -> Callable[[int, float, Tensor], Tensor] | None:
        """The running reward along paths, where there is one."""
        return None if self.problem.running_reward is None else lambda k, t, x: self.problem.running_rate(t, x)

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

    def start_weights(self, path: Path) -> Tensor:
        """d nu*/d p_noise at starts that stand for draws of nu*: (n,), of mean 1."""
        return torch.exp(self.log_start(path))

    def profit(self, name: str, level: int = 1) -> Tensor:
        """r/temperature - int |u|^2 dt / 2 of each path, weighted where nu* is reached by weights: (n,).

        The martingale int u dB is taken away: its mean is zero, and near the optimum little variance is left.
        """
        path = self.path(name, level)
        weight = self.start_weights(path) if name in ("optimum", "weak", "reversed") else 1.0
        cost = path.weights.martingale + path.weights.energy
        return weight * (total_reward(self.problem, path) / self.temperature - cost)

    @staticmethod
    def mean(samples: Any) -> Estimate:
        """The mean; without an error where the samples differ by rounding only."""
        found = Estimate.mean(samples)
        settled = found.stderr <= 1e3 * EPS * abs(found.value)
        return Estimate(found.value, 0.0, found.n, "the same on every path") if settled else found

    def extrapolated(self, samples: Callable[[int], Tensor], scale: float | None = None) -> tuple[Estimate, float]:
        """The mean at vanishing steps of samples(level) (n,), paired over the nested grids, and the error of the steps.

        Kernels are of weak order 1: 2 f(h/2) - f(h) has an error of order 2, which the coarser pair of grids shows
        (three times over); a fifth of the correction is added, lest the two agree by chance. Raises NotApplicable where
        the finest grid is still far from the limit, by `scale`, or where halving the steps does not yet shrink what
        they change, as an error of order 1 would (by half).
        """
        half, coarse, fine = (samples(level) for level in LEVELS)
        found, before = self.mean(2 * fine - coarse), float((2 * coarse - half).mean())
        left, size = abs(found.value - float(fine.mean())), abs(found.value) if scale is None else scale
        if left > TOO_COARSE * size:
            raise NotApplicable(f"steps too coarse to extrapolate from: the finest is off by {left:.2g} of {size:.2g}")
        first, last = Estimate.mean(coarse - half), Estimate.mean(fine - coarse)
        if abs(last.value) > SHRINKS * abs(first.value) + 5 * math.hypot(first.stderr, last.stderr):
            changes = f"they changed {first.value:.2g}, then {last.value:.2g}"
            raise NotApplicable(f"steps too coarse to extrapolate from: halved twice, {changes}")
        return found, abs(found.value - before) + left / 5

    @cached_property
    def bounded(self) -> Control:
        """A control with |u|^2 <= 0.2 / horizon: its exponential martingale has all moments."""
        size = math.sqrt(0.2 / self.horizon / self.process.dim)
        signs = torch.as_tensor(self.rng("bounded").choice([-1.0, 1.0], size=self.process.dim))
        return StateControl(lambda t, x: size * torch.tanh(signs * x / self.latent.spread(t) + 0.5), elementwise=True)
