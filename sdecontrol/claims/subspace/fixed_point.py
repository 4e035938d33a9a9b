"""Theorem 2 of Guo et al.: without refits the means end at a regularised maximum, at the rate L/lambda.

The score is the best affine one: that of the Gaussian with the data's moments. The objective is a concave quadratic of
L = 1 (see `setting.Rounds`); its part off the support is arbitrary and must not be seen.
"""

from __future__ import annotations

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, rounding
from sdecontrol.claims.routes.local import HALVINGS, order_row
from sdecontrol.claims.subspace.setting import COARSEST, SAMPLED, SECOND, Answers, Setting, batch_of, compare_batch
from sdecontrol.guidance import ascent
from sdecontrol.guidance.ascent.targets import Slope
from sdecontrol.problems.base import Problem
from sdecontrol.rewards import GaussianLabel

ABOVE, BELOW = 2.0, 0.8  # lambda in units of L
ROUNDS, NOISE = 14, 1.0

CLAIM = Claim(
    "guo-theorem-2",
    "Algorithm 1 ends at argmax f - lambda/2 |x - mean|^2 in the metric of the data, at rate L/lambda if lambda > L",
    "Guo et al. 2404.14743, (13) and Theorem 2; recursion, rate and the need of lambda > L: derived",
    r"""m_{k+1} = \bar\mu + \bar\Sigma \nabla f(m_k) / \lambda;
x^*_{A,\lambda} = \arg\max_{x \in span(A)} f(x) - \tfrac{\lambda}{2} \|x - \bar\mu\|^2_{\bar\Sigma^{-1}};
|m_k - x^*| \sim (L/\lambda)^k; y_k = \delta + g_k^\top z_k ends at \lambda = \sigma^2 / \delta.""",
)


@CLAIM.check(EXACT)
def fixed_point(case: Case) -> None:
    """(13) by the library and by normal equations; the rates of the means above and below L."""
    setting, answers = Setting.of(case), Answers.of(case)
    rounds, law = setting.rounds, setting.linear_law
    operations = 10_000 * setting.dim
    for strength in (ABOVE, BELOW):
        truth, point = rounds.maximum(strength), answers.maximum(law, rounds.objective, strength)
        size = float(np.abs(truth).max())
        error = rounding(size, condition=setting.condition, operations=operations)
        apart = float(np.abs(rounds.encode(point[None])[0] - truth).max())
        case.zero(f"lambda = {strength:g} L: argmax (13)", apart, error, scale=size)
        target = ascent.Regularised(strength)
        run = answers.mean_field(law, rounds.objective, target, rounds=ROUNDS, label_noise=NOISE)
        gaps = np.linalg.norm(rounds.encode(run.means) - truth, axis=1)
        left = 10 * (SECOND if len(rounds.weights) > 1 else 0.0) ** (ROUNDS - 1) + error / max(1e-300, gaps[-1])
        note = "it diverges" if strength < 1 else ""
        case.identity(f"lambda = {strength:g} L: rate", gaps[-1] / gaps[-2], 1 / strength, left, note=note)


@CLAIM.check(EXACT)
def practical_rule(case: Case) -> None:
    """y = delta + g . x at the fixed point of lambda = sigma^2/delta gives that point back."""
    setting, answers = Setting.of(case), Answers.of(case)
    rounds, law = setting.rounds, setting.linear_law
    point = answers.maximum(law, rounds.objective, ABOVE)
    g = rounds.objective.gradient(point[None])[0]
    y = ascent.Increment(NOISE**2 / ABOVE)(Slope(g, point, law, law), NOISE**2)
    back = law.tilt(GaussianLabel(g, y, NOISE), 1.0).mean
    truth = rounds.maximum(ABOVE)
    size, apart = float(np.abs(truth).max()), float(np.abs(rounds.encode(back[None])[0] - truth).max())
    error = rounding(size, condition=setting.condition, operations=10_000 * setting.dim)
    case.zero("mean after a round with y = delta + g . x*, minus x*", apart, error, scale=size)


@CLAIM.check(DISCRETE)
def round_of_the_chain(case: Case) -> None:
    """One round from (13) by the guided chain: it stays there, up to the order of the kernel."""
    setting, answers = Setting.of(case), Answers.of(case)
    rounds = setting.rounds
    truth = rounds.maximum(ABOVE)
    label = _label(setting, truth)
    problem = Problem(setting.process(setting.linear_law), label, 1.0)
    errors = [setting.miss(problem, answers.loss(problem), truth, COARSEST * k) for k in HALVINGS]
    order_row(case, "a round of the chain from (13), minus (13)", errors, 1, 1.0)


def _label(setting: Setting, u: np.ndarray) -> GaussianLabel:
    """The label of the round after the means were at u (d,), for lambda = ABOVE L."""
    rounds, law = setting.rounds, setting.linear_law
    g = rounds.objective.gradient(rounds.lift(u))[0]
    y = ascent.Regularised(ABOVE)(Slope(g, rounds.lift(u)[0], law, law), NOISE**2)
    return GaussianLabel(g, y, NOISE)


@CLAIM.check(MONTE_CARLO)
def sampled_round(case: Case) -> None:
    """A round of `optimise`: its batch's mean along the gradient, against the mean of the same chain without noise."""
    setting, answers = Setting.of(case), Answers.of(case)
    process = setting.process(setting.linear_law)
    run = answers.optimise(process, setting.rounds.objective, ascent.Regularised(ABOVE), rounds=1, batch=batch_of(case),
                           label_noise=NOISE, grid=SAMPLED, noise=case.noise)  # fmt: skip
    compare_batch(case, process, run)
