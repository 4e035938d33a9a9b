"""Theorem 1 of Guo et al.: the gradient of the lookahead loss lies in the span of the data, whatever g and the law are.

Data that fill their space are put on a subspace of a larger one first (Assumption 1 with U the data).
"""

from __future__ import annotations

import math
from functools import cached_property, lru_cache

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, rounding
from sdecontrol.claims.routes.local import HALVINGS, order_row
from sdecontrol.claims.routes.plain import Quadric
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.subspace.setting import (
    COARSEST,
    END,
    SAMPLED,
    Answers,
    Setting,
    batch_of,
    full_only,
    mean_path,
    open_grid,
    view,
)
from sdecontrol.estimate import Estimate
from sdecontrol.guidance import naive
from sdecontrol.laws import NoisySubspace, Subspace
from sdecontrol.models import Score
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel
from sdecontrol.simulate import simulate

POINTS = 6

CLAIM = Claim(
    "guo-theorem-1",
    "G_loss stays in the span of the data; the naive gradient leaves it where the score is imperfect",
    "Guo et al. 2404.14743, Definition 1, Assumption 1 and Theorem 1; the naive law's normal mean: derived",
    r"""X = AU, A^\top A = I: G_{loss}(x_t, t) = -\beta(t) \nabla (y - g^\top E[x_0 | x_t])^2 \in span(A) for any g;
= A \, G_{loss}^u(A^\top x_t). Under a bounded push b along g_\perp and the exact score the normal mean is
\int_s^T g^2(r) b \frac{h_s a_r}{a_s h_r} dr \to 0.""",
)


class Lifted:
    """The data of a setting on a subspace with normal directions, a label that sees them, and what is normal to it."""

    def __init__(self, setting: Setting):
        self.setting, rng = setting, setting.case.rng
        if setting.latent.codimension:
            law = setting.law
        else:
            basis = np.linalg.qr(rng.normal(size=(2 * setting.dim + 2, setting.dim)))[0]
            law = Subspace(basis, setting.law, rng.normal(size=len(basis)))
        assert isinstance(law, Subspace)
        self.law, self.schedule = law, setting.schedule
        across = law.frame.normal(torch.as_tensor(rng.normal(size=(1, law.dim))))[0]
        self.normal = across / across.norm()
        inside = torch.as_tensor(setting.inside if setting.latent.codimension else setting.g.numpy())
        self.g = law.basis @ inside + 3 * float(inside.norm()) * self.normal
        self.target = setting.y + float(self.g @ law.offset)
        self.process = ReverseProcess(self.schedule, law, "marginal")
        self.problem = Problem(self.process, GaussianLabel(self.g, self.target, setting.label.noise), 1.0)

    def off(self, u: Tensor) -> float:
        """Largest |normal part| relative to the whole, over the rows."""
        return float((self.law.frame.normal(u).norm(dim=1) / u.norm(dim=1)).max())

    def states(self, t: float) -> tuple[Tensor, Array]:
        """States of p_t, normal noise included, and their latent coordinates."""
        (a, h), frame = self.setting.latent.level(t), self.law.frame
        _, z = self.setting.states(t, POINTS, widen=1.5)
        noise = torch.as_tensor(self.setting.case.rng.normal(size=(POINTS, self.law.dim)))
        return frame.decode(torch.as_tensor(z), a) + math.sqrt(h) * frame.normal(noise), z

    @cached_property
    def imperfect(self) -> ReverseProcess:
        """Variance h + half of that at the end on the normal coordinates, instead of h."""
        schedule, frame, latent = self.schedule, self.law.frame, self.law.latent
        extra = 0.5 * schedule.h(END * schedule.horizon)

        def score(x: Tensor, s: float) -> Tensor:
            a, h = schedule.alpha(s), schedule.h(s)
            return NoisySubspace.from_frame(frame, a, latent.noised(a, h), h + extra, torch.float64).score(x)

        return ReverseProcess(schedule, Score(score, self.law.event_shape), self.process.initial_law())


def lifted_of(case: Case) -> Lifted:
    return _lifted(Setting.of(case))


@lru_cache(maxsize=2)
def _lifted(setting: Setting) -> Lifted:
    return Lifted(setting)


@CLAIM.check(EXACT)
def in_the_span(case: Case) -> None:
    """The library's G_loss: no normal part; in the span A times the latent one, by the posterior in numpy."""
    lifted = lifted_of(case)
    setting, schedule = lifted.setting, lifted.schedule
    control = Answers.of(case).loss(lifted.problem)
    reward = Quadric(0.0, setting.inside, np.zeros((setting.dim, setting.dim)))
    for t in setting.times:
        x, z = lifted.states(t)
        step = view(lifted.process, t, t + 1e-3 * (schedule.horizon - t), x)
        u = control(step)
        error = rounding(1.0, operations=100 * math.isqrt(lifted.law.dim))
        case.zero(f"t = {t:.3g}: |normal part of G_loss| / |G_loss|", lifted.off(u), error)
        direction = setting.latent.clean(t).mean_gradient(reward, z)  # grad g . E[x_0 | z]
        found = lifted.law.frame.project(u).numpy()
        cosine = (found * direction).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(direction, axis=1)
        error = rounding(1.0, condition=setting.condition, operations=1_000 * setting.dim)
        case.zero(f"t = {t:.3g}: 1 - |cosine with A grad E[g . x_0 | z]|", float(1 - np.abs(cosine).min()), error)


@CLAIM.check(DISCRETE)
def normal_mean(case: Case) -> None:
    """A bounded push off the subspace under the exact score: the normal mean of the chain against the integral."""
    lifted = lifted_of(case)
    schedule, process = lifted.schedule, lifted.process
    end = END * schedule.horizon

    def rate(log_r: float) -> float:
        r = math.exp(log_r)
        return r * schedule.g2(r) * schedule.alpha(r) / schedule.h(r)

    whole, _ = integrate.quad(rate, math.log(end), math.log(schedule.horizon), epsabs=0, epsrel=1e-11, limit=500)
    truth, errors = whole * schedule.h(end) / schedule.alpha(end), []
    start = schedule.alpha(schedule.horizon) * lifted.law.offset[None]
    push = lambda step: step.from_score(lifted.normal.expand_as(step.x))  # noqa: E731
    for k in HALVINGS:
        x = mean_path(process, push, start, open_grid(COARSEST * k))
        away = float((x[0] - schedule.alpha(end) * lifted.law.offset) @ lifted.normal)
        errors.append(abs(away / truth - 1))
    order_row(case, "normal mean under a push of 1, relative to the integral", errors, 1, 1.0)


@CLAIM.check(DISCRETE)
def guided_paths(case: Case) -> None:
    """Paths under G_loss and the naive law end on the subspace, whatever steps the chain takes: its score is exact."""
    lifted = lifted_of(case)
    full_only(case)
    for name, law in (("G_loss", Answers.of(case).loss), ("the naive law", naive)):
        path = simulate(lifted.process, law(lifted.problem), grid=SAMPLED, n=64, noise=case.noise, keep="ends")
        off = lifted.law.frame.normal(path.terminal - lifted.law.offset).norm(dim=1).max()
        size = float((path.terminal - lifted.law.offset).norm(dim=1).max())
        case.zero(f"{name}, exact score: normal part of the samples", float(off), rounding(size, operations=10_000))


@CLAIM.check(MONTE_CARLO)
def pushed_off(case: Case) -> None:
    """An imperfect score lets a push off the subspace through: the normal mean of paths against its recursion."""
    lifted = lifted_of(case)
    process, push = lifted.imperfect, 1.0 / math.sqrt(lifted.schedule.h(lifted.schedule.horizon))
    control = lambda step: step.from_score(push * lifted.normal.expand_as(step.x))  # noqa: E731
    path = simulate(process, control, grid=SAMPLED, n=batch_of(case), noise=case.noise, keep="ends")
    drawn = (path.terminal - lifted.law.offset) @ lifted.normal
    truth = _pushed(lifted, SAMPLED.resolve(process).times, push)
    found = Estimate.mean(drawn)
    case.sample("imperfect score: normal mean under a push", found, truth, scale=max(abs(truth), float(drawn.std())))


def _pushed(lifted: Lifted, times: Array, push: float) -> float:
    """The normal mean of that chain by its own two numbers a step: mean = c_x x + c_f score, score = push - x / v."""
    schedule, process, kernel = lifted.schedule, lifted.imperfect, lifted.imperfect.default_kernel
    mean, extra = 0.0, 0.5 * schedule.h(END * schedule.horizon)
    start = process.initial_law().mean
    mean = float((start - schedule.alpha(schedule.horizon) * lifted.law.offset) @ lifted.normal)
    for t, t_next in zip(times[:-1], times[1:]):
        c_x, c_f, std = kernel.coefficients(process, float(t), float(t_next))
        score = -mean / (schedule.h(process.noise_level(float(t))) + extra)
        mean = c_x * mean + c_f * (score + (push if std > 0 else 0.0))
    return mean
