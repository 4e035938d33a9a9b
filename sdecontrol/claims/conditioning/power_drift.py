"""CTRL, Lemma 2: with a strength the drift is sigma^2 grad log E[p^strength | x_t], not strength times Lemma 1's."""

from __future__ import annotations

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.conditioning.rows import (
    along,
    chain_rows,
    drift_row,
    finite,
    output_row,
    posterior_draws,
    value_row,
)
from sdecontrol.claims.routes.labels import Subject, answers_of, subject_of
from sdecontrol.claims.routes.quadrature import Array, log_sum_exp
from sdecontrol.estimate import Estimate
from sdecontrol.exact.combined_scores import combined_gaussian
from sdecontrol.laws import Dirac, Gaussian
from sdecontrol.processes import ReverseProcess

WEAK, STRONG = 0.5, 4.0

CLAIM = Claim(
    "ctrl-lemma-2",
    "With a strength the drift is sigma^2 grad log E[p^strength | x_t], and no multiple of Lemma 1's",
    "CTRL 2406.12120, Lemma 2; what the scaled drift samples: derived",
    r"""g^* = f^{pre} + \sigma^2 \nabla_x \log E_{P^{pre}}[p(y | x_T)^\gamma | x_t = x] samples
p_\gamma \propto p(y|x)^\gamma p^{pre}(x); \gamma \sigma^2 \nabla \log E[p(y | x_T) | x_t] does not if \gamma \ne 1.""",
)


@CLAIM.check(EXACT)
def power_of_the_label(case: Case) -> None:
    """Value, drift and output at two strengths against Bayes' rule on the label's law."""
    label = subject_of(case).linear
    for strength in (STRONG,) if case.quick else (WEAK, STRONG):
        value_row(case, label, strength)
        drift_row(case, label, strength)
        output_row(case, label, strength)


@CLAIM.check(EXACT)
def scaled_over_exact(case: Case) -> None:
    """Gaussian data: strength u_1 = u_strength (tau^2 + strength P)/(tau^2 + P), P the posterior variance of w . x."""
    subject = subject_of(case)
    label = subject.linear
    if len(subject.reference.weights) > 1:
        raise NotApplicable("one posterior variance stands for all states where the data are Gaussian")
    t = 0.5 * case.problem.process.horizon
    variance = float(label.w @ subject.clean(t).covariances[0] @ label.w)
    x = subject.latent.lift(t, subject.points(t, 4, case.rng))
    one, four = (answers_of(case, label, g).control(t, x).numpy() for g in (1.0, STRONG))
    ratio = STRONG * float((one * four).sum() / (four * four).sum())
    expected = (label.noise**2 + STRONG * variance) / (label.noise**2 + variance)
    error = rounding(expected, condition=subject.reference.condition)
    case.identity("scaled drift over the exact one", ratio, expected, error)


@CLAIM.check(DISCRETE)
def chains(case: Case) -> None:
    """Exact chains, refined: u_strength ends in p_strength, strength u_1 in the law of the combined scores."""
    subject = subject_of(case)
    label, process = subject.linear, case.problem.process
    power, one = answers_of(case, label, STRONG), answers_of(case, label, 1.0)
    target = along(label.tilt(subject.reference, STRONG)[0], label.w)
    chain_rows(case, label, STRONG, power.control, power.initial, target, "power drift")
    if not isinstance(process, ReverseProcess):
        return
    data, w = along(subject.latent.known_data, label.w), label.w
    if np.abs(subject.latent.known_data.covariance @ w - data[1] * w).max() > 1e-9 * data[1]:
        raise NotApplicable("w . Y decouples from the other coordinates where it is a principal direction")
    start = subject.latent.moments(0.0, power.initial)
    gain = data[1] / (data[1] + label.noise**2)
    posterior = data[0] + gain * (label.target - data[0]), data[1] * (1 - gain)
    laws = [Gaussian([m], [[v]]) for m, v in (data, posterior)]
    mean, variance = float(w @ start[0]), float(w @ start[1] @ w)
    first = Gaussian([mean], [[variance]]) if variance > 0 else Dirac([mean])
    scaled = combined_gaussian(process.schedule, laws, [1 - STRONG, STRONG], first)
    ends = float(scaled.mean), float(scaled.covariance)
    chain_rows(case, label, STRONG, STRONG * one.control, power.initial, ends, "scaled drift")
    case.bound("variance of w.x: scaled drift, below that of the power", ends[1], target[1],
               note="a strength above 1, from the same start")  # fmt: skip


@CLAIM.check(DISCRETE)
def finite_chain(case: Case) -> None:
    """The h-transform of the power ends in w^strength p/C; kernels scaled by the strength do not."""
    _, all_paths, log_p = finite(case)
    direct = all_paths.ends(all_paths.log_tilted(STRONG * log_p)[0])
    power = all_paths.chain.conditioned(STRONG * log_p).marginals()[-1]
    scaled = all_paths.chain.scaled(log_p, STRONG).marginals()[-1]
    case.zero("finite chain: law of x_K - w^strength p/C", float(np.abs(power - direct).max()), rounding(1.0))
    apart = float(np.abs(scaled - direct).sum() / 2)
    case.bound("finite chain: TV from the scaled kernels' law to it is not 0", rounding(1.0), apart)


@CLAIM.check(MONTE_CARLO)
def shift_of_the_posterior_mean(case: Case) -> None:
    """w . u = amplitude q . (E[x_T | x_t, y^strength] - E[x_T | x_t]), by weighted draws of x_T given x_t."""
    subject, process = subject_of(case), case.problem.process
    label, t = subject.linear, 0.3 * process.horizon
    z, ends = posterior_draws(case, label, t)
    clean = subject.clean(t)
    mean = (np.exp(clean.log_omega(z))[..., None] * clean.means(z)).sum(0)[0]
    log_w = label.log_likelihood(ends, STRONG)
    weights = np.exp(log_w - log_sum_exp(log_w)) * len(log_w)
    shifts = process.amplitude(t) * (ends - mean) @ _pull(subject, t)
    centre = float((weights * shifts).mean())
    estimate = Estimate.mean(weights * (shifts - centre) + centre)  # of a ratio, by the delta method
    u = answers_of(case, label, STRONG).control(t, subject.latent.lift(t, z)).numpy() @ subject.latent.frame.basis
    case.sample(f"w.u at strength {STRONG:g}", estimate, float(u[0] @ label.w), scale=float(shifts.std()))


def _pull(subject: Subject, t: float) -> Array:
    """q (d,) with w . grad log p(x_T | x_t) = q . (x_T - E[x_T | x_t]) + what the label does not see.

    (alpha/h) w for a reverse diffusion of any data; P^-1 G w for a Gaussian x_T given x_t, of gain G and covariance P.
    """
    w = subject.linear.w
    if subject.latent.data is not None:
        a, h = subject.latent.level(t)
        return a / h * w
    clean = subject.clean(t)
    return np.asarray(np.linalg.solve(clean.covariances[0], clean.gains[0] @ w))
