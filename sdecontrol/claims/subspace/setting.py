"""What the claims about gradient guidance share: a label on a problem's data, and the library's answers about it.

The data are those of the problem; the label g . x + noise = y is put two prior deviations out along the gradient of its
reward, with a noise of half a deviation; the start is the noised data law, so that only the guidance is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import Case, NotApplicable
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.plain import GaussianSum
from sdecontrol.claims.routes.posterior import exponent, score
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.claims.routes.workbench import no_running_reward
from sdecontrol.estimate import Estimate
from sdecontrol.guidance import ascent
from sdecontrol.guidance.ascent.rounds import exactly_weighted
from sdecontrol.guidance.base import gradient_at
from sdecontrol.guidance.doob import doob
from sdecontrol.laws import Law
from sdecontrol.problems.base import Problem
from sdecontrol.processes import Process, ReverseProcess
from sdecontrol.rewards import GaussianLabel, Quadratic
from sdecontrol.step import StepView
from sdecontrol.time import TimeGrid

SHARES = (0.95, 0.5, 0.1)  # of the posterior variance at the start, at which answers are compared
COARSEST = 6  # steps of the coarsest chain
END = 1e-2  # noise level at which the chains of the discrete rung end, as a share of the horizon
SECOND = 0.25  # the objective's second curvature in units of its first, L


@dataclass(frozen=True)
class Answers:
    """The library's answers; a mutant has others."""

    loss: Callable[[Problem], Any] = exactly_weighted
    posterior: Callable[[Problem], Any] = lambda problem: doob(problem, form="score")
    mean_field: Callable[..., ascent.MeanField] = ascent.mean_field
    maximum: Callable[..., Tensor] = ascent.regularised_maximum
    refit: Callable[..., ascent.MomentMatching] = ascent.MomentMatching
    optimise: Callable[..., ascent.Trajectory] = ascent.optimise

    @classmethod
    def of(cls, case: Case) -> Answers:
        found: Answers | None = getattr(case.answers, "gradient_guidance", None)
        return found or cls()


class Setting:
    """A label on the data of a case; raises NotApplicable unless the data law is known and its score exact."""

    @classmethod
    def of(cls, case: Case) -> Setting:
        """That of this case, shared by its checks."""
        return _setting(case)

    def __init__(self, case: Case):
        no_running_reward(case)
        self.case, self.latent = case, Latent(case.problem)
        self.data: GaussianSum = self.latent.known_data
        process = self.latent.process
        assert isinstance(process, ReverseProcess)
        self.schedule, self.law = process.schedule, process.data_law
        self.dim = self.latent.dim
        g = self._direction(case)
        inside = self.latent.frame.basis.T @ g.numpy()
        deviation = math.sqrt(float(inside @ self.data.covariance @ inside))
        self.g, self.inside = g / deviation, inside / deviation
        centre = float(g @ self.law.mean) / deviation
        self.label = GaussianLabel(self.g, centre + 2.0, 0.5)
        self.y = centre + 2.0 - float(self.g @ torch.as_tensor(self.latent.frame.offset))  # in latent coordinates

    def _direction(self, case: Case) -> Tensor:
        """The gradient of the reward at the data's mean, where it is seen on the support; else a random direction."""
        basis = torch.as_tensor(self.latent.frame.basis)
        g = gradient_at(case.problem.reward, self.law.mean.double())
        seen = float((basis.mT @ g).norm()) > 1e-6 * max(1e-300, float(g.norm()))
        return g if seen else torch.as_tensor(case.rng.normal(size=len(basis)))

    def process(self, law: Law | None = None) -> ReverseProcess:
        """The reverse diffusion of the data, or of another law, from its own noised law."""
        return ReverseProcess(self.schedule, law or self.law, "marginal")

    @cached_property
    def problem(self) -> Problem:
        return Problem(self.process(), self.label, 1.0)

    @property
    def times(self) -> list[float]:
        """Times at which the given shares of the posterior variance are left."""
        start = self.latent.share(0.0)
        return [self.schedule.horizon - self.latent.level_at_share(share * start) for share in SHARES]

    # ------------------------------------------------------------------ the label by the second route

    @cached_property
    def conditional(self) -> GaussianSum:
        """The data law given the label, components tilted by quadrature and precisions."""
        return self.data.tilt(self.latent.frame.restrict(exponent(self.label, 1.0))).law

    def push(self, t: float, z: Array) -> Array:
        """grad log p_t(y | z) = score of the noised conditional law - score of the noised law (Bayes): (n, d)."""
        return score(self.latent.noised(self.conditional, t), z) - score(self.latent.noised(self.data, t), z)

    def log_likelihood(self, t: float, z: Array) -> Array:
        """log p_t(y | z) by the posterior of the clean point: (n, d) -> (n,)."""
        clean = self.latent.clean(t)
        variance = self.label.noise**2 + np.einsum("i,kij,j->k", self.inside, clean.covariances, self.inside)[:, None]
        gaps = self.y - clean.means(z) @ self.inside
        log_terms = clean.log_omega(z) - gaps**2 / (2 * variance) - np.log(2 * math.pi * variance) / 2
        return log_sum_exp(log_terms, axis=0)

    def states(self, t: float, n: int, widen: float = 1.0) -> tuple[Tensor, Array]:
        """n states at time t of paths that meet the label, and their latent coordinates."""
        law = self.latent.noised(self.conditional, t)
        z = law.mean + widen * (law.draw(n, self.case.rng) - law.mean)
        return self.latent.lift(t, z), z

    @property
    def condition(self) -> float:
        return max(10.0, self.data.condition)

    def shift_of_the_score(self, problem: Problem, control: Any, t: float, x: Tensor) -> Array:
        """What a control adds to the score, read off one step: (n, D)."""
        step = view(problem.process, t, t + 1e-3 * (self.schedule.horizon - t), x)
        return np.asarray(step.std * step.dt**0.5 * control(step) / step.transition.field_weight)

    def miss(self, problem: Problem, control: Any, truth: Array, steps: int) -> float:
        """How far the mean of a guided chain goes from the truth (d,): from its noised mean at T to that at END."""
        grid, latent = open_grid(steps), self.latent
        start = latent.lift(0.0, latent.level(0.0)[0] * truth[None])
        t = float(grid.resolve(problem.process).times[-1])
        end = latent.encode(t, mean_path(problem.process, control, start, grid))[0]
        return float(np.linalg.norm(end - latent.level(t)[0] * truth))

    # ------------------------------------------------------------------ the objective of the theorems on rounds

    @cached_property
    def linear_law(self) -> Law:
        """The law whose score is the best affine one for the data: the Gaussian of the same moments, on its support."""
        return ascent.MomentMatching(ascent.last).law(self.law, [self.law])

    @cached_property
    def rounds(self) -> Rounds:
        return Rounds(self)


@lru_cache(maxsize=2)
def _setting(case: Case) -> Setting:
    return Setting(case)


def view(process: Process, t: float, t_next: float, x: Tensor) -> StepView:
    """One step of the process's own kernel from x (n, D)."""
    transition = process.default_kernel.transition(process, t, t_next)
    return StepView(process, transition, 0, process.state(t, x, jacobian=True))


def mean_path(process: Process, control: Any, x: Tensor, grid: TimeGrid) -> Tensor:
    """The chain without its noise, which is the chain of the means where all is affine: (1, D) -> (1, D)."""
    times = grid.resolve(process).times.tolist()
    for t, t_next in zip(times[:-1], times[1:]):
        step = view(process, t, t_next, x)
        x = step.mean if step.transition.noiseless else step.mean + step.std * step.dt**0.5 * control(step)
    return x


def open_grid(steps: int) -> TimeGrid:
    """Steps of equal log SNR that end at the level END, for orders."""
    return TimeGrid.log_snr(steps, s_min=END, close=False)


SAMPLED = TimeGrid.log_snr(12, s_min=END)


def compare_batch(case: Case, process: ReverseProcess, run: ascent.Trajectory) -> None:
    """The mean of the last batch of a run along its own gradient, against that of the same chain without noise."""
    label = run.rounds[-1].label
    assert label is not None
    control = exactly_weighted(Problem(process, label, 1.0))
    truth = mean_path(process, control, process.initial_law().mean[None], SAMPLED)[0] @ label.direction
    drawn = run.samples @ label.direction
    case.sample("mean of g . x over a batch", Estimate.mean(drawn), float(truth), scale=float(drawn.std()))


def full_only(case: Case) -> None:
    """Raises NotApplicable in a quick run."""
    if case.quick:
        raise NotApplicable("not in quick runs")


def batch_of(case: Case) -> int:
    return 1_024 if case.quick else 2_048


class Rounds:
    """A concave quadratic, L = 1 by construction: f = l . x - sum_i w_i (v_i . x)^2 / 2, w = (1, SECOND).

    On the support v_i = S^{-1/2} q_i with orthonormal q_i, so that S^{1/2} K S^{1/2} has the eigenvalues w_i; off
    it the v_i and l are anything, since that part is invisible.
    """

    def __init__(self, setting: Setting):
        self.latent, rng = setting.latent, setting.case.rng
        self.mean, self.spread = setting.data.mean, setting.data.covariance
        d, basis = setting.dim, self.latent.frame.basis
        values, vectors = np.linalg.eigh(self.spread)
        whitening = (vectors / np.sqrt(values)) @ vectors.T
        self.weights = np.array([1.0, SECOND])[: min(2, d)]
        q = np.linalg.qr(rng.normal(size=(d, d)))[0][:, : len(self.weights)]
        self.bends, pull = whitening @ q, whitening @ (q @ rng.choice([-2.0, 2.0], size=len(self.weights)))
        self.linear = pull + (self.bends * self.weights) @ (self.bends.T @ self.mean)  # slope `pull` at the mean
        normal = rng.normal(size=(len(basis), len(self.weights) + 1))
        normal -= basis @ (basis.T @ normal)
        centre = self.latent.frame.offset
        v = basis @ self.bends + normal[:, 1:]
        linear = basis @ self.linear + normal[:, 0] + v @ (self.weights * (centre @ v))
        self.objective = Quadratic.low_rank(linear, v.T, self.weights)
        self.curvature = (self.bends * self.weights) @ self.bends.T

    @property
    def one_direction(self) -> Quadratic:
        """2 v . (x - m) - (v . (x - m))^2 / 2 + constant, v the first curved direction: L = 1, top 2 deviations out."""
        v = torch.as_tensor(self.latent.frame.basis @ self.bends[:, 0])
        at_mean = float(v @ self.lift(self.mean)[0])
        return Quadratic.low_rank((2 + at_mean) * v, v[None], [1.0])

    def gradient(self, u: Array) -> Array:
        """In latent coordinates."""
        return self.linear - self.curvature @ u

    def value(self, u: Array) -> float:
        return float(self.objective(self.lift(u))[0])

    def lift(self, u: Array) -> Tensor:
        return self.latent.frame.lift(u[None])

    def encode(self, x: Tensor) -> Array:
        """(n, D) -> (n, d)."""
        return (x.numpy() - self.latent.frame.offset) @ self.latent.frame.basis

    def maximum(self, strength: float) -> Array:
        """(13) by its normal equations: strength S^{-1} (u - m) = l - K u; the least one where strength is 0."""
        precision = strength * np.linalg.inv(self.spread)
        if strength == 0:
            start, root = self.mean, self.bends * np.sqrt(self.weights)
            return start + self.spread @ root @ np.linalg.solve(
                root.T @ self.spread @ root, np.linalg.lstsq(root, self.gradient(start), rcond=None)[0]
            )
        return np.linalg.solve(precision + self.curvature, precision @ self.mean + self.linear)

