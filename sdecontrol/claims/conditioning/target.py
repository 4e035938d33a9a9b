"""CTRL, Theorem 1: the maximiser of the objective samples p(y|x)^strength p_pre."""

from __future__ import annotations

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, NotApplicable, rounding
from sdecontrol.claims.conditioning.rows import along, bench_of, chain_rows, finite, output_row, titled
from sdecontrol.claims.routes.labels import answers_of, subject_of
from sdecontrol.claims.routes.simulations import LOW, clock
from sdecontrol.estimate import Estimate
from sdecontrol.moments import moments
from sdecontrol.simulate import simulate

STRENGTH = 3.0

CLAIM = Claim(
    "ctrl-theorem-1",
    "The maximiser of CTRL's objective samples p(y|x)^strength p_pre(x), for one label and for two",
    "CTRL 2406.12120, Theorem 1, (2), (5), (20); the gap, and the start that is not a point: derived",
    r"""g^* = \arg\max_g E_{P^g}[\gamma \log p(y|x_T)] - KL(P^g \| P^{pre}) gives
p^{g^*}_T = p_\gamma = p(y|x)^\gamma p^{pre}(x) / C; for every g,
\log C - J(g) = KL(P^g \| P^*) \ge KL(p^g_T \| p_\gamma).""",
)


@CLAIM.check(EXACT)
def one_label(case: Case) -> None:
    """The output of the optimum against Bayes' rule, one label at a time."""
    subject = subject_of(case)
    for label in subject.labels:
        output_row(case, label, STRENGTH if label is subject.linear else 1.0)


@CLAIM.check(EXACT)
def two_labels(case: Case) -> None:
    """Two labels that are independent given x, of strengths 3 and 3/2: one update after the other."""
    output_row(case, subject_of(case).joint, STRENGTH)


@CLAIM.check(EXACT)
def kept_start(case: Case) -> None:
    """The law from the start that is kept: Y_0 ~ p_noise and Y_T | Y_0 tilted by Kalman's update; not p_gamma."""
    subject = subject_of(case)
    label, clean = subject.linear, subject.clean(0.0)
    answers = answers_of(case, label, STRENGTH)
    if len(clean.covariances) > 1:
        raise NotApplicable("from a kept start the law is closed for Gaussian data")
    mean, covariance = subject.latent.gaussian_start
    spread = clean.covariances[0] @ label.w
    gain = spread / (float(label.w @ spread) + label.noise**2 / STRENGTH)
    keep = np.eye(len(gain)) - np.outer(gain, label.w)
    centre = keep @ (clean.offsets[0] + clean.gains[0] @ mean) + gain * label.target
    turned = keep @ clean.gains[0]
    whole = keep @ clean.covariances[0] + turned @ covariance @ turned.T
    found = subject.latent.moments(case.problem.process.horizon, answers.untilted_terminal)
    for name, left, right in (
        ("mean", float(label.w @ found[0]), float(label.w @ centre)),
        ("variance", float(label.w @ found[1] @ label.w), float(label.w @ whole @ label.w)),
    ):
        error = rounding(abs(right) + 1, condition=subject.reference.condition)
        target = along(label.tilt(subject.reference, STRENGTH)[0], label.w)[0 if name == "mean" else 1]
        note = f"p_gamma has {target:.6g}"
        case.identity(f"from p_noise kept: {name} of w.x", left, right, error, note=note)


@CLAIM.check(DISCRETE)
def chain_to_the_target(case: Case) -> None:
    """Exact chains under u* from nu*, refined, against the mean and variance of p_gamma."""
    subject = subject_of(case)
    label = subject.linear
    answers = answers_of(case, label, STRENGTH)
    law = along(label.tilt(subject.reference, STRENGTH)[0], label.w)
    chain_rows(case, label, STRENGTH, answers.control, answers.initial, law, "u* from nu*")


@CLAIM.check(DISCRETE)
def gap_on_a_finite_chain(case: Case) -> None:
    """log C - J(g) = KL(P^g||P*) >= KL of the ends, for the scaled kernels and for the reference; all paths."""
    _, all_paths, log_p = finite(case)
    chain, weight = all_paths.chain, STRENGTH * log_p
    best, log_c = chain.conditioned(weight), chain.log_normalizer(weight)
    log_target, direct_c = all_paths.log_tilted(weight)
    target = all_paths.ends(log_target)
    case.identity("finite chain: log C", log_c, direct_c, rounding(log_c, 1.0))
    for name, other in (("scaled kernels", chain.scaled(log_p, STRENGTH)), ("reference", chain)):
        log_path, ends = all_paths.log_p_of(other), other.marginals()[-1]
        gap = log_c - (float(ends @ weight) - sum(other.path_kl(chain)))
        direct = float(np.exp(log_path) @ (log_path - log_target))
        error = rounding(gap, log_c, float(ends @ weight))
        case.identity(f"finite chain, {name}: log C - J = KL(P^g||P*)", gap, direct, error)
        case.identity(f"finite chain, {name}: the same by steps", sum(other.path_kl(best)), direct, error)
        case.bound(f"finite chain, {name}: KL of the ends <= the gap", float(ends @ np.log(ends / target)), gap, error)


@CLAIM.check(MONTE_CARLO)
def drawn_output(case: Case) -> None:
    """Draws of the library's output law: mean of the label's likelihood against p_gamma's by reweighted p_pre."""
    subject = subject_of(case)
    for label in subject.labels:
        strength = STRENGTH if label is subject.linear else 1.0
        law, log_c = label.tilt(subject.reference, strength)
        draws = answers_of(case, label, strength).terminal.sample(case.paths // 2, case.noise)
        z = subject.latent.encode(case.problem.process.horizon, draws)
        before = subject.reference.draw(2 * case.paths, case.rng)
        weights = np.exp(label.log_likelihood(before, strength) - log_c)
        left = Estimate.mean(np.exp(label.log_likelihood(z, 1.0)))
        right = Estimate.mean(weights * np.exp(label.log_likelihood(before, 1.0)))
        case.sample(titled(label, strength, "E p(y|x) under p_gamma, drawn and reweighted"), left, right)


@CLAIM.check(MONTE_CARLO)
def simulated_chain(case: Case) -> None:
    """Affine processes: simulated w . x_K under u* from nu* against the exact moments of the same chain."""
    subject, process = subject_of(case), case.problem.process
    if not process.is_affine:
        raise NotApplicable("the chain's moments are known for affine dynamics")
    label = subject.linear
    answers, bench = answers_of(case, label, STRENGTH), bench_of(case, label, STRENGTH)
    grid, w = clock(bench.latent, 12), torch.as_tensor(subject.latent.frame.basis @ label.w)
    exact = moments(process, process.default_kernel, grid, answers.initial, answers.control)
    n = max(3_000, case.paths // 4)
    path = simulate(process, answers.control, answers.initial, grid=grid, n=n, noise=case.noise,
                    keep="ends")  # fmt: skip
    ends, mean = path.terminal @ w, float(w @ exact.means[-1])
    variance = float(w @ exact.covariances[-1] @ w)
    case.sample("mean of w.x under u*", Estimate.mean(ends), mean, scale=variance**0.5)
    case.sample("variance of w.x under u*", Estimate.mean((ends - mean) ** 2), variance)


@CLAIM.check(MONTE_CARLO)
def simulated_mixture(case: Case) -> None:
    """Mixtures of few dimensions: mean of w . x under u* from nu* as the steps vanish, against p_gamma."""
    subject, process = subject_of(case), case.problem.process
    if process.is_affine or process.dim > LOW:
        raise NotApplicable("affine chains are known exactly; mixtures in many dimensions by draws")
    if case.quick:
        raise NotApplicable("three nested grids are left out of a quick run")
    label, bench = subject.linear, bench_of(case, subject.linear, STRENGTH)
    mean, variance = along(label.tilt(subject.reference, STRENGTH)[0], label.w)
    w = torch.as_tensor(label.w)

    def ends(level: int) -> torch.Tensor:
        path = bench.path("optimum", level)
        return bench.start_weights(path) * (path.terminal @ w - mean)

    found, bias = bench.extrapolated(ends, scale=variance**0.5)
    case.sample("mean of w.x under u*, less that of p_gamma", found, 0.0, bias=bias, scale=variance**0.5)
