"""Lemma 1 of Guo et al.: for Gaussian data the conditional score of a label is the gradient of a lookahead loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.routes.local import HALVINGS, LATEST, LONGEST, order_row, rms, take_step
from sdecontrol.claims.subspace.setting import COARSEST, Answers, Setting
from sdecontrol.estimate import Estimate
from sdecontrol.problems.base import Problem

POINTS = 6

CLAIM = Claim(
    "guo-lemma-1",
    "Label on Gaussian data: grad log p_t(y | x_t) is the gradient of a square of the lookahead residual",
    "Guo et al. 2404.14743, (4), (6) and Lemma 1; sigma_y: derived",
    r"""\nabla \log p_t(x_t | y) = \nabla \log p_t(y | x_t) + \nabla \log p_t(x_t);
for Gaussian data \nabla \log p_t(y | x_t) = -\frac{1}{2\sigma_y^2} \nabla (y - g^\top E[x_0 | x_t])^2,
\sigma_y^2 = \sigma^2 + g^\top \mathrm{Cov}(x_0 | x_t) g.""",
)


@CLAIM.check(EXACT)
def lookahead_loss(case: Case) -> None:
    """Gaussian data: G_loss with the exact weight against Bayes' rule by dense precisions."""
    setting = Setting.of(case)
    if len(setting.data.clouds) > 1:
        raise NotApplicable("(6) is for Gaussian data; on mixtures Bayes' rule (4) is checked")
    _compare(setting, Answers.of(case).loss, "G_loss - grad log p_t(y|x)")


@CLAIM.check(EXACT)
def bayes(case: Case) -> None:
    """(4): what conditioning adds to the score, from the library's value of the label, against the second route."""
    setting = Setting.of(case)
    _compare(setting, Answers.of(case).posterior, "grad log E[p(y|x_0)|x] - grad log p_t(y|x)")


def _compare(setting: Setting, law: Callable[[Problem], Any], quantity: str) -> None:
    case, problem, basis = setting.case, setting.problem, setting.latent.frame.basis
    control = law(problem)
    for t in setting.times:
        x, z = setting.states(t, POINTS, widen=1.5)
        found, truth = setting.shift_of_the_score(problem, control, t, x), setting.push(t, z)
        size = max(float(np.abs(truth).max()), float(np.abs(found).max()))
        error = rounding(size, condition=setting.condition, operations=1_000 * setting.dim)
        apart = float(np.abs(found - truth @ basis.T).max())
        case.zero(f"t = {t:.3g}: {quantity}", apart, error, scale=size)


@CLAIM.check(DISCRETE)
def likelihood_over_a_step(case: Case) -> None:
    """p_t(y | x_t) has no drift along the process: over one step of the chain its mean changes by dt^2."""
    setting = Setting.of(case)
    process, t = setting.problem.process, setting.times[1]
    x, z = setting.states(t, 3)
    a, h = setting.latent.level(t)
    narrow = a * a * min(float(np.linalg.eigvalsh(c.covariance)[0]) for c in setting.conditional.clouds) + h
    longest = min(LONGEST * narrow / process.amplitude(t) ** 2, LATEST * (process.horizon - t))
    now, errors = setting.log_likelihood(t, z), []
    for k in HALVINGS:
        step = take_step(process, process.default_kernel, t, t + longest / k, x, setting.latent.frame.basis)
        ends = setting.latent.encode(step.t_next, step.ends.reshape(-1, step.ends.shape[-1]))
        later = setting.log_likelihood(step.t_next, ends).reshape(len(x), -1)
        errors.append(rms(step.mean(np.expm1(later - now[:, None]))))
    order_row(case, "mean change of p_t(y|x_t) over a step, relative", errors, 2, 1.0)


@CLAIM.check(DISCRETE)
def mean_of_the_guided_chain(case: Case) -> None:
    """Gaussian data: the chain guided by G_loss from the conditional start; its mean tends to E[x | y]."""
    setting = Setting.of(case)
    if len(setting.data.clouds) > 1:
        raise NotApplicable("the chain under G_loss is affine for Gaussian data")
    control, truth = Answers.of(case).loss(setting.problem), setting.conditional.mean
    errors = [setting.miss(setting.problem, control, truth, COARSEST * k) for k in HALVINGS]
    order_row(case, "mean of the guided chain - that of the noised conditional law", errors, 1, 1.0)


@CLAIM.check(MONTE_CARLO)
def likelihood_by_draws(case: Case) -> None:
    """E[N(y; g . x_0, sigma^2) | x_t] over the library's draws of x_0 given x_t, over p_t(y | x_t)."""
    setting = Setting.of(case)
    t = setting.times[1]
    x, z = setting.states(t, 1)
    posterior, label, log_ratios = setting.law.posterior(*setting.latent.level(t)), setting.label, []
    for block in case.noise.blocks("label", case.paths, setting.law.event_shape):
        drawn = posterior.draw(x.expand(block.size, -1), block)[: block.count]
        log_ratios.append(label(drawn).numpy())
    ratio = np.exp(np.concatenate(log_ratios) - setting.log_likelihood(t, z)[0])
    case.sample("E[p(y|x_0) | x_t] / p_t(y|x_t)", Estimate.mean(ratio), 1.0, scale=float(ratio.std()))
