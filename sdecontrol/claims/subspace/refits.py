"""Theorem 3 of Guo et al.: with refits of the score the means reach the maximum over the subspace, unregularised.

The score is refitted by moments, the exact minimiser of (14) over affine scores; steps are rescaled as it narrows.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, rounding
from sdecontrol.claims.routes.local import HALVINGS, order_row
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.subspace.fixed_point import ABOVE, NOISE
from sdecontrol.claims.subspace.setting import (
    COARSEST,
    SAMPLED,
    Answers,
    Rounds,
    Setting,
    batch_of,
    compare_batch,
    full_only,
)
from sdecontrol.guidance import ascent
from sdecontrol.guidance.ascent.targets import Slope
from sdecontrol.laws import Law
from sdecontrol.problems.base import Problem
from sdecontrol.rewards import GaussianLabel

ROUNDS, LONG = 8, 64
REMAINDER = 4.0  # of the gap of `limits`, for lambda = 2 L: at most 4/j^2 of its root, j = k + 1 >= 8

CLAIM = Claim(
    "guo-theorem-3",
    "Algorithm 2, which refits the score to what it drew, reaches the maximum over the span; Algorithm 1 stops short",
    "Guo et al. 2404.14743, (14) and Theorem 3; the moment-matched recursion and the rates of its weights: derived",
    r"""\lim f(m_k) = \max_{span(A)} f for Algorithm 2; f(m_k) \to f(x^*_{A,\lambda}) < \max f for Algorithm 1.
Weight 1/(k+1) kept on the original data: gap \sim k^{-2}; all on the last batch: geometric (\Sigma_k \eta_k kept).""",
)


@CLAIM.check(EXACT)
def moments_of_the_rounds(case: Case) -> None:
    """The means of Algorithm 2 against conditioning and mixing of moments written out."""
    setting, answers = Setting.of(case), Answers.of(case)
    refit, target = answers.refit(ascent.anchored), ascent.Rescaled(ABOVE)
    rounds = setting.rounds
    run = answers.mean_field(
        setting.linear_law, rounds.objective, target, rounds=ROUNDS, label_noise=NOISE, refit=refit
    )
    truth, spread = _written_out(rounds)
    _, found = setting.latent.frame.moments(run.law)
    for name, left, right in (
        (f"means of {ROUNDS} rounds with refits", rounds.encode(run.means), truth),
        (f"covariance of the model after {ROUNDS} refits", found, spread),
    ):
        size = float(np.abs(right).max())
        error = rounding(size, condition=setting.condition, operations=100_000 * setting.dim)
        case.zero(name, float(np.abs(left - right).max()), error, scale=size)


def _written_out(rounds: Rounds) -> tuple[Array, Array]:
    """Kalman updates and mixtures of moments, weight 1/(k+1) on the data: means (ROUNDS + 1, d), covariance."""
    m, s = m0, s0 = rounds.mean, rounds.spread
    z, means = m0, [m0]
    for k in range(1, ROUNDS + 1):
        g = rounds.gradient(z)
        variance = NOISE**2 + g @ s @ g
        gain = s @ g / variance
        z = m + s @ g * (g @ s0 @ g) / (g @ s @ g) / ABOVE
        c, w = s - np.outer(gain, gain) * variance, 1 / (k + 1)
        m = w * m0 + (1 - w) * z
        s = w * s0 + (1 - w) * c + w * (1 - w) * np.outer(m0 - z, m0 - z)
        means.append(z)
    return np.stack(means), s


@CLAIM.check(EXACT)
def limits(case: Case) -> None:
    """Gaps to the maximum over the support by round, along one curved direction: the recursion of a line.

    There f = 2u - u^2/2 in standard deviations, and with 1/(k+1) on the original data x_j = 2 - u_{j-1} follows
    x_{j+1} = 2/j + (1 - 1/lambda - 1/j) x_j. By induction 1 - 4/j^2 <= x_j j/(2 lambda) <= 1 for lambda = 2, j >= 8
    (derived), so the gap x_j^2/2 is 2 lambda^2/j^2 to a known remainder.
    """
    setting, answers = Setting.of(case), Answers.of(case)
    rounds, law = setting.rounds, setting.linear_law
    line = rounds.one_direction
    top = float(line(answers.maximum(law, line)[None]))

    def gaps(target: ascent.Target, weights: ascent.refits.Weights | None, count: int) -> Array:
        refit = None if weights is None else answers.refit(weights)
        run = answers.mean_field(law, line, target, rounds=count, label_noise=NOISE, refit=refit)
        return np.asarray(top - run.values)

    alone = gaps(ascent.Regularised(ABOVE), None, 25)
    first, error = alone[0], rounding(max(abs(top), alone[0]), condition=setting.condition, operations=10_000)
    shrunk = (ABOVE / (1 + ABOVE)) ** 2  # L = 1: the distance to the maximum falls by lambda / (lambda + L)
    left = 4 / ABOVE**25 + error / first
    case.identity("Algorithm 1: gap at the end / at the start", alone[-1] / first, shrunk, left)
    kept = gaps(ascent.Rescaled(ABOVE), ascent.last, 8)
    rate = (1 - 1 / ABOVE) ** 2
    case.identity("Algorithm 2, last batch: ratio of gaps", kept[8] / kept[7], rate, 2 * error / kept[8])
    if case.quick:
        return
    long, j = gaps(ascent.Rescaled(ABOVE), ascent.anchored, LONG), 1 + np.array([LONG // 4, LONG])
    scaled = long[j - 1] * j**2 / (2 * ABOVE**2)
    left = 1 - (1 - REMAINDER / j**2) ** 2
    error = error / long[LONG]
    case.identity(f"Algorithm 2, 1/(k+1) on the data: (k+1)^2 gap / (2 lambda^2), k = {LONG}", scaled[1], 1,
                  left[1] + error)  # fmt: skip
    octaves = math.log(j[1] / j[0])
    power = math.log(long[LONG] / long[LONG // 4]) / octaves
    case.identity("power of the gap in k + 1", power, -2, -math.log(1 - left[0]) / octaves + error)
    case.bound(f"gap after {LONG} rounds <= where Algorithm 1 ends", long[LONG], alone[-1])


@CLAIM.check(DISCRETE)
def round_of_the_refitted_chain(case: Case) -> None:
    """A round by the chain of a refitted score: its mean tends to that of the conditional law at the kernel's order."""
    setting, answers = Setting.of(case), Answers.of(case)
    full_only(case)
    rounds = setting.rounds
    law = _refitted(setting, answers)
    problem, truth = _next_round(setting, law)
    errors = [setting.miss(problem, answers.loss(problem), truth, COARSEST * k) for k in HALVINGS]
    order_row(case, "a round of the chain after a refit, minus the conditional mean", errors, 1, 1.0)
    before, after = rounds.value(rounds.mean), rounds.value(rounds.encode(law.mean[None])[0])
    case.bound("f at the mean of the data <= f at that of the refitted model", before, after)


def _refitted(setting: Setting, answers: Answers) -> Law:
    """The model after one round of infinite size."""
    return answers.mean_field(
        setting.linear_law, setting.rounds.objective, ascent.Rescaled(ABOVE), rounds=1, label_noise=NOISE,
        refit=answers.refit(ascent.anchored),
    ).law  # fmt: skip


def _next_round(setting: Setting, law: Law) -> tuple[Problem, Array]:
    """The label of the next round on that model, and the conditional mean in latent coordinates, by numpy."""
    z = law.mean
    g = setting.rounds.objective.gradient(z[None])[0]
    y = ascent.Regularised(ABOVE)(Slope(g, z, law, law), NOISE**2)
    frame = setting.latent.frame
    mean, spread = frame.moments(law)
    inside = frame.basis.T @ g.numpy()
    gap = y - float(g @ torch.as_tensor(frame.offset)) - inside @ mean
    truth = mean + spread @ inside * gap / (NOISE**2 + inside @ spread @ inside)
    return Problem(setting.process(law), GaussianLabel(g, y, NOISE), 1.0), truth


@CLAIM.check(MONTE_CARLO)
def sampled_rounds(case: Case) -> None:
    """The second round of `optimise` with refits, given the first: its batch's mean along the gradient."""
    setting, answers = Setting.of(case), Answers.of(case)
    full_only(case)
    process, options = setting.process(setting.linear_law), {
        "batch": batch_of(case), "label_noise": NOISE, "grid": SAMPLED, "noise": case.noise,
        "refit": answers.refit(ascent.anchored),
    }  # fmt: skip
    objective, target = setting.rounds.objective, ascent.Rescaled(ABOVE)
    first = answers.optimise(process, objective, target, rounds=1, **options)
    second = answers.optimise(process, objective, target, rounds=2, **options)
    compare_batch(case, first.process, second)
