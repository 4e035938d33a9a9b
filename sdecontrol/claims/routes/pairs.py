"""The (control, initial law) pairs against which the optimum is tested, and the moments of Y_t under each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.ode import Feedback, Measured, Member, MomentFlow, Riccati, Solution
from sdecontrol.claims.routes.posterior import gaussian_kl
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.controls import Control
from sdecontrol.laws import Law

if TYPE_CHECKING:
    from sdecontrol.claims.base import Case

KEPT_FLOWS = 12
THETA = 0.5  # strength of the weakened control
FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the horizon: where marginals are compared


_FLOWS: dict[tuple[Hashable, ...], tuple[Any, MomentFlow]] = {}


class Pairs:
    """The pairs of one (problem, answers, quick, seed); everything is solved at most once."""

    def __init__(self, case: Case):
        self.problem, self.answers, self.quick, self.seed = case.problem, case.answers, case.quick, case.seed
        self.process, self.temperature = self.problem.process, self.problem.temperature
        self.horizon = self.process.horizon
        self.times = [self.horizon * fraction for fraction in FRACTIONS]

    @cached_property
    def latent(self) -> Latent:
        return Latent.of(self.problem)

    def rng(self, stream: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, *stream.encode()])

    @cached_property
    def flow(self) -> MomentFlow:
        """The moments of all pairs, solved together. Raises NotApplicable unless everything is affine and Gaussian.

        They depend on u* and nu* alone: answers that are wrong elsewhere share them.
        """
        control, members = self.answers.control, self._members()
        known = [self.problem, self.quick, self.seed, id(control)]
        key = (*known, *(part.tobytes() for part in members["optimum"][:2]))
        if key not in _FLOWS:
            while len(_FLOWS) >= KEPT_FLOWS:
                del _FLOWS[next(iter(_FLOWS))]
            rtol = 1e-6 if self.quick else 1e-9
            flow = MomentFlow(self.latent.sde, self._best, members, self.times, rtol, self.latent.running)
            _FLOWS[key] = control, flow  # with the control, lest another be born with its id
        return _FLOWS[key][1]

    def _best(self, t: float) -> Feedback:
        return self.latent.read(self.answers.control, t)

    def _members(self) -> dict[str, Member]:
        """Named pairs of a control and an initial law; "best" stands for the control in question."""
        latent = self.latent
        latent.sde, latent.rho  # noqa: B018  raise NotApplicable where the dynamics or the best control are not affine
        start, star = latent.gaussian_start, latent.moments(0.0, self.answers.initial)
        zero = np.zeros((latent.dim, latent.dim)), np.zeros(latent.dim)
        members = {
            "reference": Member(*start, lambda t, best: zero),
            "optimum": Member(*star, lambda t, best: best),
            "untilted": Member(*start, lambda t, best: best),
            "weak": Member(*star, lambda t, best: (THETA * best[0], THETA * best[1])),
        }
        if not self.quick:
            members |= {
                "weak, untilted": Member(*start, lambda t, best: (THETA * best[0], THETA * best[1])),
                "weak, shifted": Member(*self.shifted_start, lambda t, best: (THETA * best[0], THETA * best[1])),
                "turned": Member(*star, lambda t, best: (self.rotation @ best[0], self.rotation @ best[1])),
            }
        for name, test in list(self.tests.items())[: 1 if self.quick else None]:
            members[name] = Member(*test.start, lambda t, best, test=test: test.feedback(t))  # type: ignore[misc]
        for i, y in enumerate(self.starts):
            members[f"from {i}"] = Member(y, np.zeros_like(star[1]), lambda t, best: best)
            members[f"test from {i}"] = Member(
                y, np.zeros_like(star[1]), lambda t, best: self.tests["affine 1"].feedback(t)
            )
        if latent.data is not None and not self.quick:
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
        """Starting points (1 or 2, d)."""
        return self.latent.start.draw(1 if self.quick else 2, self.rng("starts"))

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

    def start_kl(self, name: str) -> float:
        """KL(nu || nu*) of a pair."""
        member = self.flow.members[name]
        return gaussian_kl((member.mean, member.covariance), self.latent.moments(0.0, self.answers.initial))

    def objective(self, name: str) -> Measured:
        """(E r - temperature KL) / temperature of a pair; KL of the initial laws by Cholesky."""
        member = self.flow.members[name]
        start = gaussian_kl((member.mean, member.covariance), self.latent.gaussian_start)
        return self.flow.read(lambda s: self._earned(s, name) - start)

    def conditional_objective(self, name: str) -> Measured:
        """E[r(Y_T)/temperature - int |u|^2 dt / 2] of a pair started from a point, with the running reward."""
        return self.flow.read(lambda s: self._earned(s, name))

    def _earned(self, solution: Solution, name: str) -> float:
        return self.latent.rho_mean(*solution.moments(name)) + solution.running(name) - solution.energy(name)

    def energy(self, name: str) -> Measured:
        """E int |u|^2 dt / 2 of a pair."""
        return self.flow.read(lambda s: s.energy(name))

    def apart(self, name: str) -> Measured:
        """E int |u - u*|^2 dt / 2 of a pair, under its own law."""
        return self.flow.read(lambda s: s.apart(name))

    def read(self, quantity: Callable[[Solution], Any]) -> Measured:
        return self.flow.read(quantity)

    @cached_property
    def riccati(self) -> Riccati:
        """The value at the inner times by Riccati equations."""
        latent = self.latent
        return Riccati(latent.sde, latent.rho, self.times[:-1], 1e-6 if self.quick else 1e-11, latent.running)


class TestControl:
    """An affine control with smooth random coefficients, of energy about 1, and a Gaussian initial law."""

    def __init__(self, pairs: Pairs, index: int):
        self.pairs, latent, rng = pairs, pairs.latent, pairs.rng(f"affine {index}")
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
        unit = 1 / math.sqrt(self.pairs.horizon)
        wave = math.cos(self.phase + math.pi * t / self.pairs.horizon)
        return (unit * wave / self.pairs.latent.spread(t)) * self.gain, unit * (1 + wave) * self.offset

    @cached_property
    def control(self) -> Control:
        return self.pairs.latent.control(self.feedback)

    @cached_property
    def initial(self) -> Law:
        return self.pairs.latent.moved_start(self.scale, self.shift)
