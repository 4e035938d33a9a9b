"""Rows that several CTRL claims share: values, drifts and output laws of labels against Bayes' rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sdecontrol.claims.base import EPS, Case, rounding
from sdecontrol.claims.routes.draws import extrapolated
from sdecontrol.claims.routes.finite import Enumerated, enumerated
from sdecontrol.claims.routes.labels import Component, LinearLabel, Subject, answers_of, log_density, subject_of
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.simulations import clock
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.estimate import Estimate
from sdecontrol.moments import moments

FRACTIONS = (0.1, 0.5, 0.85)  # of the horizon
POINTS = 5
SAFETY = 3.0  # times what the last steps changed: their error is an estimate
_DIFFERENCE = 1e-3  # step of a difference, in standard deviations of a coordinate
_ROUNDED = 10_000  # roundings in a log density far out

Label = LinearLabel | Component


def titled(label: Any, strength: float, what: str) -> str:
    return f"{label.title}, strength {strength:g}: {what}"


def value_row(case: Case, label: Label, strength: float) -> None:
    """v(t, x) against log E[p(y|Y_T)^strength | Y_t = x] by the law of the label."""
    subject, answers, rng = subject_of(case), answers_of(case, label, strength), case.rng
    worst, size = 0.0, 1.0
    for fraction in FRACTIONS[1:2] if case.quick else FRACTIONS:
        t = fraction * case.problem.process.horizon
        z = subject.points(t, POINTS, rng)
        expected = label.log_h(t, z, strength)
        found = answers.value(t, subject.latent.lift(t, z)).numpy()
        worst, size = max(worst, float(np.abs(found - expected).max())), max(size, float(np.abs(expected).max()))
    error = rounding(size, condition=subject.reference.condition, operations=_ROUNDED)
    case.zero(titled(label, strength, "v - log E[p^strength | x_t]"), worst, error, scale=size)


def drift_row(case: Case, label: Label, strength: float) -> None:
    """u* against amplitude grad log E[p^strength | x_t], by central differences of Bayes' rule."""
    subject, answers, rng = subject_of(case), answers_of(case, label, strength), case.rng
    worst, error = 0.0, 0.0
    for fraction in FRACTIONS[1:2] if case.quick else FRACTIONS:
        t = fraction * case.problem.process.horizon
        z = subject.points(t, POINTS, rng)
        sigma = case.problem.process.amplitude(t)
        dx = _DIFFERENCE * subject.latent.spread(t)
        fine, coarse = (sigma * _slope(lambda y: label.log_h(t, y, strength), z, dx * k) for k in (1, 2))  # noqa: B023
        u = answers.control(t, subject.latent.lift(t, z)).numpy() @ subject.latent.frame.basis
        size = float(np.abs(fine).max())
        noise = 100 * EPS * sigma * float(np.abs(label.log_h(t, z, strength)).max() + z.shape[1]) / dx
        worst = max(worst, float(np.abs(u - fine).max()) / size)
        error = max(error, (float(np.abs(fine - coarse).max()) + noise) / size)
    case.zero(titled(label, strength, "u - amplitude grad log E[p^strength | x_t], relative"), worst, error)


def _slope(f: Callable[[Array], Array], z: Array, dx: float) -> Array:
    """Gradients by central differences: (n, d)."""
    n, d = z.shape
    steps = dx * np.concatenate([np.eye(d), -np.eye(d)])
    values = f((z[:, None] + steps).reshape(-1, d)).reshape(n, 2, d)
    return (values[:, 0] - values[:, 1]) / (2 * dx)


def output_row(case: Case, label: Any, strength: float) -> None:
    """log density of the library's output law against p(y|x)^strength p_pre / C by Kalman's update, and log C."""
    subject, answers = subject_of(case), answers_of(case, label, strength)
    law, log_c = label.tilt(subject.reference, strength)
    z = law.draw(2 * POINTS, case.rng)
    expected, found = law.log_density(z), log_density(answers.terminal, subject.latent, z)
    size = max(1.0, float(np.abs(expected).max()), abs(log_c))
    error = rounding(size, condition=max(subject.reference.condition, law.condition), operations=_ROUNDED)
    worst = float(np.abs(found - expected).max())
    case.zero(titled(label, strength, "log density of the output - Bayes"), worst, error, scale=size)
    case.identity(titled(label, strength, "log C"), answers.log_normalizer, log_c, error)


def bench_of(case: Case, label: LinearLabel, strength: float) -> Workbench:
    """The label problem as a case of its own: grids, moments and paths of its optimum."""
    problem = subject_of(case).problem_of(label, strength)
    return Workbench(Case(case.claim, problem, answers_of(case, label, strength), case.quick, case.seed))


def chain_rows(case: Case, label: LinearLabel, strength: float, control: Any, initial: Any, law: tuple[float, float],
               what: str) -> None:  # fmt: skip
    """Mean and variance of w . x_K on ever finer chains, extrapolated, against those of a law: (mean, variance)."""
    bench, process = bench_of(case, label, strength), case.problem.process
    counts = [8, 16, 32] if case.quick else [16, 32, 64, 128]
    frame = subject_of(case).latent.frame
    w = frame.basis @ label.w
    found = [moments(process, process.default_kernel, clock(bench.latent, n), initial, control) for n in counts]
    runs = {
        "mean": [float(w @ (m.means[-1].numpy() - frame.offset)) for m in found],
        "variance": [float(w @ m.covariances[-1].numpy() @ w) for m in found],
    }
    for (name, values), right in zip(runs.items(), law):
        value, error = extrapolated(values)
        error = SAFETY * error + abs(value - values[-1]) / 8 ** (len(counts) - 1)
        case.identity(f"{what}: {name} of w.x as the steps vanish", value, right, error, scale=abs(right) + law[1])


def along(law: Any, w: Array) -> tuple[float, float]:
    """Mean and variance of w . x under a Gaussian sum."""
    return float(w @ law.mean), float(w @ law.covariance @ w)


def finite(case: Case) -> tuple[Subject, Enumerated, Array]:
    """The enumerated chain, with log p(y | state) at strength 1."""
    subject = subject_of(case)
    chain = enumerated(subject)
    one = LinearLabel(subject, np.ones(1), subject.linear.target, subject.linear.noise)
    return subject, chain, one.log_likelihood(chain.nodes[:, None], 1.0)


def posterior_draws(case: Case, label: Label, t: float) -> tuple[Array, Array]:
    """Of several states at time t one at which the label says much, (1, d), and draws of Y_T given it, (n, d)."""
    subject, rng = subject_of(case), case.rng
    z = subject.points(t, 16, rng)
    best = z[[label.telling(label.log_h(t, z, 1.0))]]
    n = case.paths // 2 if label is subject.linear else 2 * case.paths
    return best, subject.clean(t).draw(best, n, rng)


def likelihood_row(case: Case, label: Label, strength: float) -> None:
    """E[p(y|Y_T)^strength | x_t] by draws of Y_T given x_t, over e^v."""
    t = 0.3 * case.problem.process.horizon
    z, ends = posterior_draws(case, label, t)
    value = float(answers_of(case, label, strength).value(t, subject_of(case).latent.lift(t, z)))
    ratio = np.exp(label.log_likelihood(ends, strength) - value)
    case.sample(titled(label, strength, "E[p^strength | x_t] e^-v"), Estimate.mean(ratio), 1.0)
