"""CTRL, Lemma 4: e^v is the reference mean of the likelihood's power."""

from __future__ import annotations

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.conditioning.rows import FRACTIONS, POINTS, bench_of, finite, likelihood_row, titled, value_row
from sdecontrol.claims.routes.labels import answers_of, subject_of
from sdecontrol.claims.routes.local import order_row, rms, steps_at
from sdecontrol.claims.routes.posterior import rule
from sdecontrol.claims.routes.quadrature import OTHER_SPACING, SPACING, log_sum_exp

WEAK, STRONG = 0.5, 3.0

CLAIM = Claim(
    "ctrl-lemma-4",
    "e^v is the mean of the likelihood's power under the reference process",
    "CTRL 2406.12120, Lemma 4, (15), (18)-(19)",
    r"""e^{v^*_t(x)} = E_{P^{pre}}[p(y | x_T)^\gamma | x_t = x], v^* the best objective to go; so e^{v^*} is a
martingale of the reference process, \frac{\sigma^2}{2} \Delta e^v + f^{pre} \cdot \nabla e^v + \partial_t e^v = 0.""",
)


@CLAIM.check(EXACT)
def value_by_bayes(case: Case) -> None:
    """v at three strengths against the law of the label given x_t; at the horizon it is the log likelihood."""
    subject = subject_of(case)
    for label in subject.labels:
        for strength in (1.0,) if label is not subject.linear else (WEAK, STRONG):
            value_row(case, label, strength)
            horizon = case.problem.process.horizon
            z = subject.reference.draw(POINTS, case.rng)
            found = answers_of(case, label, strength).value(horizon, subject.latent.lift(horizon, z)).numpy()
            expected = label.log_likelihood(z, strength)
            size = max(1.0, float(np.abs(expected).max()))
            error = rounding(size, condition=subject.reference.condition)
            gap = float(np.abs(found - expected).max())
            case.zero(titled(label, strength, "v(T, .) - strength log p"), gap, error, scale=size)


@CLAIM.check(EXACT)
def martingale(case: Case) -> None:
    """E[e^{v(t', Y_t')} | Y_t] = e^{v(t, Y_t)} by a product rule over the exact transition, up to two dimensions."""
    subject, rng = subject_of(case), case.rng
    answers = answers_of(case, subject.linear, STRONG)
    t, t_next = (fraction * case.problem.process.horizon for fraction in FRACTIONS[:2])
    step = subject.step(t, t_next)
    z = subject.points(t, 2, rng)
    now = answers.value(t, subject.latent.lift(t, z)).numpy()
    worst, error = 0.0, rounding(*now, condition=subject.reference.condition, operations=10_000)
    for row, value in zip(z, now):
        law, totals = step.given(row[None], np.zeros(1)), []
        for spacing in (SPACING / 2, OTHER_SPACING / 2):
            nodes, weights = rule(law, spacing)
            ahead = answers.value(t_next, subject.latent.lift(t_next, nodes)).numpy()
            kept = weights > 0
            totals.append(float(log_sum_exp(np.log(weights[kept]) + ahead[kept])))
        worst, error = max(worst, abs(totals[1] - value)), error + 3 * abs(totals[1] - totals[0])
    case.zero("log E[e^v(t') | x_t] - v(t), exact transition", worst, error)


@CLAIM.check(DISCRETE)
def martingale_of_a_step(case: Case) -> None:
    """One step of the chain: the mean of e^v changes by dt^2, as (18)-(19) say; expectations by a rule."""
    if case.quick:
        raise NotApplicable("steps of four lengths are left out of a quick run")
    bench = bench_of(case, subject_of(case).linear, STRONG)
    steps = steps_at(bench, FRACTIONS[1] * case.problem.process.horizon)
    errors = [rms(step.mean(np.expm1(change))) for step, change in steps.free]
    order_row(case, "mean change of e^v over a step, relative", errors, 2, 1.0)


@CLAIM.check(DISCRETE)
def finite_chain(case: Case) -> None:
    """log h by the recursion against conditional means over all paths."""
    _, all_paths, log_p = finite(case)
    weight = STRONG * log_p
    found = all_paths.chain.log_values(weight)
    worst, size = 0.0, 1.0
    for k in range(len(found) - 1):
        for state in range(all_paths.chain.states):
            through = all_paths.paths[:, k] == state
            log_joint = all_paths.log_reference[through]
            direct = log_sum_exp(log_joint + weight[all_paths.paths[through, -1]]) - log_sum_exp(log_joint)
            worst, size = max(worst, abs(float(found[k, state] - direct))), max(size, abs(float(direct)))
    case.zero("finite chain: log h - log E[w(x_K) | x_k]", worst, rounding(size), scale=size)


@CLAIM.check(MONTE_CARLO)
def draws_of_the_output(case: Case) -> None:
    """E[p^strength | x_t] over draws of x_T given x_t."""
    subject = subject_of(case)
    for label in subject.labels:
        for strength in (1.0,) if label is not subject.linear else (WEAK, STRONG):
            likelihood_row(case, label, strength)
