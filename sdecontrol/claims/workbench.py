"""What the control claims share on one problem: the moment equations, test points, simulated paths.

Everything is made once for a set of answers and kept while they live, so that nine claims cost one solve of the moment
equations and a handful of simulations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import Case, NotApplicable
from sdecontrol.claims.draws import OptimalDraws
from sdecontrol.claims.latent import Latent
from sdecontrol.claims.ode import Feedback, Measured, Member, MomentFlow, Riccati, Solution
from sdecontrol.claims.posterior import gaussian_kl
from sdecontrol.claims.quadrature import Array
from sdecontrol.claims.static import draws_exactly
from sdecontrol.controls import Control, StateControl
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.processes import ReverseProcess
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

THETA = 0.8  # strength of the weakened control
S_MIN = 1e-4  # of the horizon: where simulated paths take their closing step
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the horizon: where marginals are compared
_KEPT: WeakKeyDictionary[Any, dict[tuple[bool, int], Workbench]] = WeakKeyDictionary()


class Workbench:
    """The shared work of one (problem, answers, quick, seed)."""

    def __init__(self, case: Case):
        self.problem, self.answers, self.quick, self.seed = case.problem, case.answers, case.quick, case.seed
        self.process, self.temperature = self.problem.process, self.problem.temperature
        self.horizon = self.process.horizon
        self.times = [self.horizon * fraction for fraction in FRACTIONS]
        self._case_paths = case.paths
        self._paths: dict[tuple[str, bool], Path] = {}

    @classmethod
    def of(cls, case: Case) -> Workbench:
        kept = _KEPT.setdefault(case.answers, {})
        key = (case.quick, case.seed)
        if key not in kept:
            kept[key] = cls(case)
        return kept[key]

    @cached_property
    def latent(self) -> Latent:
        return Latent(self.problem)

    def rng(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode()])

    # ------------------------------------------------------------------ moment equations

    @cached_property
    def flow(self) -> MomentFlow:
        """The moments under every test control, solved together. Raises NotApplicable unless all is affine and Gaussian."""
        members, rtol = self._members(), 1e-8 if self.quick else 1e-10
        return MomentFlow(self.latent.sde, self._best, members, self.times, rtol)

    def _best(self, t: float) -> Feedback:
        return self.latent.read(self.answers.control, t)

    def _members(self) -> dict[str, Member]:
        """Named pairs of a control and an initial law; "best" stands for the control in question."""
        latent = self.latent
        latent.sde  # noqa: B018  raises NotApplicable
        start, star = latent.gaussian_start, latent.moments(0.0, self.answers.initial)
        zero = np.zeros((latent.dim, latent.dim)), np.zeros(latent.dim)
        members = {
            "reference": Member(*start, lambda t, best: zero),
            "optimum": Member(*star, lambda t, best: best),
            "untilted": Member(*start, lambda t, best: best),
            "weak": Member(*star, lambda t, best: (THETA * best[0], THETA * best[1])),
            "weak, untilted": Member(*start, lambda t, best: (THETA * best[0], THETA * best[1])),
            "weak, shifted": Member(*self.shifted_start, lambda t, best: (THETA * best[0], THETA * best[1])),
            "turned": Member(*star, lambda t, best: (self.rotation @ best[0], self.rotation @ best[1])),
        }
        for name, test in self.tests.items():
            members[name] = Member(*test.start, lambda t, best, test=test: test.feedback(t))  # type: ignore[misc]
        for i, y in enumerate(self.starts):
            members[f"from {i}"] = Member(y, np.zeros_like(star[1]), lambda t, best: best)
            members[f"test from {i}"] = Member(y, np.zeros_like(star[1]), lambda t, best: self.tests["affine 1"].feedback(t))
        if latent.data is not None:
            members["swapped"] = Member(*star, lambda t, best: self.swapped(t))
        return members

    @cached_property
    def rotation(self) -> Array:
        """A rotation by a third of a turn in one plane; in one dimension, the reversed sign."""
        d = self.latent.dim
        if d == 1:
            return -np.eye(1)
        q = np.linalg.qr(self.rng("rotation").normal(size=(d, d)))[0]
        turn = np.eye(d)
        c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
        turn[:2, :2] = [[c, -s], [s, c]]
        return q @ turn @ q.T

    @cached_property
    def tests(self) -> dict[str, TestControl]:
        return {f"affine {i}": TestControl(self, i) for i in (1, 2)}

    @cached_property
    def starts(self) -> Array:
        """Two starting points (2, d)."""
        return self.latent.start.draw(2, self.rng("starts"))

    @cached_property
    def shifted_start(self) -> tuple[Array, Array]:
        mean, covariance = self.latent.gaussian_start
        return mean + 0.3 * np.sqrt(np.diag(covariance)) / math.sqrt(len(mean)), covariance

    def swapped(self, t: float) -> Feedback:
        """The control sigma grad E[r | y] / temperature, affine for Gaussian data: gain and offset."""
        latent = self.latent
        clean = latent.clean(min(t, self.horizon * (1 - 1e-12)))  # the posterior is a point at the horizon itself
        gain, offset, pull = clean.gains[0], clean.offsets[0], self.process.amplitude(t) * latent.rho.curvature
        return -gain.T @ pull @ gain, gain.T @ (self.process.amplitude(t) * latent.rho.linear - pull @ offset)

    def objective(self, name: str) -> Measured:
        """(E r - temperature KL) / temperature of a member started from a law; KL of the initial laws by Cholesky."""
        member = self.flow.members[name]
        start = gaussian_kl((member.mean, member.covariance), self.latent.gaussian_start)
        return self.flow.read(lambda s: self.latent.rho_mean(*s.moments(name)) - s.energy(name) - start)

    def conditional_objective(self, name: str) -> Measured:
        """E[r(Y_T)/temperature - int |u|^2 dt / 2] of a member started from a point."""
        return self.flow.read(lambda s: self.latent.rho_mean(*s.moments(name)) - s.energy(name))

    def read(self, quantity: Callable[[Solution], Any]) -> Measured:
        return self.flow.read(quantity)

    @cached_property
    def riccati(self) -> Riccati:
        """The value at the inner times by Riccati equations."""
        return Riccati(self.latent.sde, self.latent.rho, self.times[:-1], 1e-8 if self.quick else 1e-11)

    @cached_property
    def optimal_draws(self) -> OptimalDraws:
        return OptimalDraws(self.latent, self.paths, self.rng("draws"))

    # ------------------------------------------------------------------ simulations

    @property
    def paths(self) -> int:
        """Paths of one simulation: fewer where a path costs more."""
        components = 1 if self.latent.data is None else len(self.latent.data.clouds)
        cost = math.sqrt(self.process.dim * components) / 1.5
        return max(1024 if self.quick else 2048, int(self._case_paths / max(1.0, cost)))

    def grid(self, fine: bool = False) -> TimeGrid:
        steps = 8 if self.quick else 20
        if isinstance(self.process, ReverseProcess):
            coarse: TimeGrid = TimeGrid.log_snr(steps, s_min=S_MIN)
        else:
            coarse = TimeGrid.uniform(steps)
        return coarse.refine(2) if fine else coarse

    def noise(self, fine: bool = False) -> Noise:
        """Both grids see one Brownian path."""
        noise = Noise(self.seed)
        return noise if fine else noise.coarsened(self.grid(fine=True).resolve(self.process).times)

    def path(self, name: str, fine: bool = False) -> Path:
        """Paths of a named pair: "optimum", "untilted", "weak", "reversed", "test", "bounded" or "reference"."""
        key = (name, fine)
        if key not in self._paths:
            control, initial = self.pair(name)
            self._paths[key] = simulate(
                self.process, control, initial, grid=self.grid(fine), n=self.paths, noise=self.noise(fine),
                keep="all" if name == "reference" else "ends",
            )  # fmt: skip
        return self._paths[key]

    def pair(self, name: str) -> tuple[Any, Any]:
        """A control and an initial law; where nu* cannot be drawn exactly, starts are from p_noise, see `log_start`."""
        if name == "reference":
            return None, None
        if name == "bounded":
            return self.bounded, None
        if name == "test":
            return self.tests["affine 1"].control, self.tests["affine 1"].initial
        strength = {"optimum": 1.0, "untilted": 1.0, "weak": THETA, "reversed": -1.0}[name]
        control = self.answers.control
        kept = name == "untilted" or not self.draws_initial
        return (control if strength == 1.0 else strength * control), None if kept else self.answers.initial

    @cached_property
    def draws_initial(self) -> bool:
        return draws_exactly(self.answers.initial)

    def log_start(self, path: Path) -> Tensor:
        """log d nu*/d p_noise at the starts where the paths were drawn from p_noise in its stead, else zero: (n,)."""
        if self.draws_initial:
            return torch.zeros(path.n, dtype=torch.float64)
        return self.answers.initial.log_prob(path.initial) - path.reference_initial.log_prob(path.initial)

    @cached_property
    def bounded(self) -> Control:
        """A control with |u|^2 <= 0.2 / horizon: its exponential martingale has all moments."""
        size = math.sqrt(0.2 / self.horizon / self.process.dim)
        signs = torch.as_tensor(self.rng("bounded").choice([-1.0, 1.0], size=self.process.dim))
        return StateControl(lambda t, x: size * torch.tanh(signs * x / self.latent.spread(t) + 0.5), elementwise=True)

    def grid_from(self, t: float, fine: bool = False) -> TimeGrid:
        """Times from t to the horizon, as `grid`; the coarse times are every other fine one."""
        steps = (2 if self.quick else 4) * 4
        if isinstance(self.process, ReverseProcess):
            schedule, s = self.process.schedule, self.process.noise_level(t)
            levels = np.linspace(schedule.log_snr(s), schedule.log_snr(S_MIN * self.horizon), steps + 1)[1:]
            inner = [self.horizon - schedule.noise_level_at(float(level)) for level in levels]
            times = [t, *inner]
            times = (times if fine else times[::2]) + [self.horizon]
        else:
            times = list(np.linspace(t, self.horizon, steps + 1))[:: 1 if fine else 2]
        return TimeGrid.explicit(times)


class TestControl:
    """An affine control with smooth random coefficients, of energy about 1, and a Gaussian initial law."""

    def __init__(self, bench: Workbench, index: int):
        self.bench, latent, rng = bench, bench.latent, bench.rng(f"affine {index}")
        self.gain = 0.6 * np.linalg.qr(rng.normal(size=(latent.dim, latent.dim)))[0] / math.sqrt(latent.dim)
        push = rng.normal(size=latent.dim)
        self.offset = 0.8 * push / np.linalg.norm(push)
        self.phase = float(rng.uniform(0, math.pi))
        mean, covariance = latent.start.mean, latent.start.covariance
        stds = np.sqrt(np.diag(covariance))
        self.scale = 1 - 0.2 / latent.dim * (-1) ** index
        self.shift = (0.3 * rng.choice([-1.0, 1.0], size=latent.dim) / math.sqrt(latent.dim)) * stds
        self.start = self.scale * mean + self.shift, self.scale**2 * covariance

    def feedback(self, t: float) -> Feedback:
        latent, horizon = self.bench.latent, self.bench.horizon
        wave = math.cos(self.phase + math.pi * t / horizon) / math.sqrt(horizon)
        return wave * self.gain / latent.spread(t), self.offset * (1 + wave * math.sqrt(horizon)) / math.sqrt(horizon)

    @cached_property
    def control(self) -> Control:
        return self.bench.latent.control(self.feedback)

    @cached_property
    def initial(self) -> Any:
        return self.bench.latent.moved_start(self.scale, self.shift)


def no_running_reward(case: Case) -> None:
    """Raises NotApplicable with a running reward: then r(Y_T) alone does not make the optimum."""
    if case.problem.running_reward is not None:
        raise NotApplicable("with a running reward the optimum is not the tilt by e^{r(Y_T)/temperature}")
