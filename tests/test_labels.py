"""The posterior of a class as a reward: against sums of scipy densities and quadrature on the plane."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined
from sdecontrol.laws import DiscreteLaw

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-1.0, 0.0], [1.0, 1.0], [0.6, -1.2]])
COVARIANCES = np.array([[[0.1, 0.0], [0.0, 0.3]], [[0.2, 0.08], [0.08, 0.1]], [[0.15, 0.0], [0.0, 0.15]]])
LAW = sc.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
SCHEDULE = sc.VP(0.1, 8.0)
EXTRAS = {
    "class": None,
    "and linear": sc.Quadratic([0.5, 0.3], constant=0.2),
    "and curved": sc.Quadratic([0.3, -0.6], [[0.8, 0.2], [0.2, -0.4]]),
}
LABELS = {"one": 1, "two": (0, 2)}
T = 0.7
LINE = np.linspace(-5.0, 5.0, 201)  # nodes 0.05 apart, a fifth of the smallest standard deviation: converged
NODES = np.stack(np.meshgrid(LINE, LINE, indexing="ij"), -1).reshape(-1, 2)


def log_joint(x: np.ndarray) -> np.ndarray:
    parts = [np.log(w) + stats.multivariate_normal(m, c).logpdf(x) for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES)]
    return np.stack(parts)


JOINT = log_joint(NODES)


def log_reward(joint: np.ndarray, x: np.ndarray, label: Any, extra: sc.Quadratic | None) -> np.ndarray:
    """r/T from scipy's densities and the quadratic written out."""
    rows = [label] if isinstance(label, int) else list(label)
    value = logsumexp(joint[rows], axis=0) - logsumexp(joint, axis=0)
    if extra is not None:
        g, k = extra.linear.numpy(), extra.curvature.numpy()
        value = value + (extra.constant + x @ g - np.einsum("ni,ij,nj->n", x, k, x) / 2) / T
    return value


def log_h(t: float, y: np.ndarray, label: Any, extra: sc.Quadratic | None) -> np.ndarray:
    """log E[e^{r/T} | Y_t = y] by the rectangle rule over clean points."""
    s = SCHEDULE.horizon - t
    a, h = float(SCHEDULE.alpha(s)), float(SCHEDULE.h(s))
    prior, r = logsumexp(JOINT, axis=0), log_reward(JOINT, NODES, label, extra)
    answers = []
    for point in y:
        likelihood = prior - ((point - a * NODES) ** 2).sum(1) / (2 * h)
        answers.append(logsumexp(likelihood + r) - logsumexp(likelihood))
    return np.array(answers)


def problem(label: str, extra: str, initial: object = "marginal") -> sc.Problem:
    reward = sc.ClassPosterior(LAW, LABELS[label], T, EXTRAS[extra])
    return sc.Problem(sc.ReverseProcess(SCHEDULE, LAW, initial), reward, T)  # type: ignore[arg-type]


CASES = [(label, extra) for label in LABELS for extra in EXTRAS]


@pytest.mark.parametrize(("label", "extra"), CASES)
def test_value_and_control_are_the_conditional_mean(label: str, extra: str) -> None:
    made, y = problem(label, extra), np.random.default_rng(0).normal(size=(4, 2))
    for t in (0.3, 0.85):
        found = made.exact.value(t, torch.tensor(y)).numpy() / T
        assert np.abs(found - log_h(t, y, LABELS[label], EXTRAS[extra])).max() < 1e-9
        step, amplitude = 1e-4, made.process.amplitude(t)
        slope = [
            (log_h(t, y + e, LABELS[label], EXTRAS[extra]) - log_h(t, y - e, LABELS[label], EXTRAS[extra])) / (2 * step)
            for e in step * np.eye(2)
        ]
        control = made.exact.control(t, torch.tensor(y)).numpy()
        assert np.abs(control - amplitude * np.stack(slope, 1)).max() < 1e-5


@pytest.mark.parametrize(("label", "extra"), CASES)
def test_normaliser_tilt_and_divergence(label: str, extra: str) -> None:
    made = problem(label, extra)
    prior, r = logsumexp(JOINT, axis=0), log_reward(JOINT, NODES, LABELS[label], EXTRAS[extra])
    cell = np.log(LINE[1] - LINE[0]) * 2
    log_c = logsumexp(prior + r) + cell
    tilt = np.exp(prior + r - log_c + cell)
    assert made.exact.log_normalizer == pytest.approx(log_c, abs=1e-9)
    assert made.exact.path_kl == pytest.approx(float(tilt @ r) - log_c, abs=1e-7)
    x = NODES[:: 2_503]
    density = log_joint(x)
    expected = logsumexp(density, axis=0) + log_reward(density, x, LABELS[label], EXTRAS[extra]) - log_c
    for law in (made.exact.terminal, LAW.tilt(made.reward, T)):
        assert np.abs(law.log_prob(torch.tensor(x)).numpy() - expected).max() < 1e-8
        assert np.abs(law.mean.numpy() - tilt @ NODES).max() < 1e-9
    assert LAW.log_expectation(made.reward, T) == pytest.approx(log_c, abs=1e-9)


def test_from_a_point_the_start_decides_the_normaliser() -> None:
    point = np.array([0.4, -0.3])
    made = problem("two", "and linear", sc.Dirac(point))
    expected = log_h(0.0, point[None], (0, 2), EXTRAS["and linear"])[0]
    assert made.exact.log_normalizer == pytest.approx(expected, abs=1e-9)


def test_reward_and_gradient_on_a_subspace() -> None:
    rng = np.random.default_rng(1)
    basis, offset = np.linalg.qr(rng.normal(size=(5, 2)))[0], rng.normal(size=5)
    law = sc.Subspace(basis, LAW, offset)
    reward = sc.ClassPosterior(law, 2, 1.3, sc.Linear(np.arange(5.0)))
    x = offset + rng.normal(size=(6, 2)) @ basis.T + 0.3 * rng.normal(size=(6, 5))
    joint = log_joint((x - offset) @ basis)
    expected = 1.3 * (joint[2] - logsumexp(joint, axis=0)) + x @ np.arange(5.0)
    assert np.abs(reward(torch.tensor(x)).numpy() - expected).max() < 1e-12
    for i, e in enumerate(1e-5 * np.eye(5)):
        slope = (reward(torch.tensor(x + e)) - reward(torch.tensor(x - e))) / 2e-5
        assert (reward.gradient(torch.tensor(x))[:, i] - slope).abs().max() < 1e-7
    made = sc.Problem(sc.ReverseProcess(sc.VP(), law, "marginal"), reward, 1.3)
    inner = sc.Problem(sc.ReverseProcess(sc.VP(), LAW, "marginal"), reward.restrict(law.basis, law.offset), 1.3)
    assert made.exact.log_normalizer == pytest.approx(inner.exact.log_normalizer, abs=1e-12)
    with pytest.raises(NoClosedForm, match="subspace of its mixture"):
        reward.restrict(torch.linalg.qr(torch.tensor(rng.normal(size=(5, 2)))).Q, law.offset)


def test_another_power_has_no_closed_form_and_says_so() -> None:
    for temperature in (0.5, 2.0):
        made = sc.Problem(sc.ReverseProcess(SCHEDULE, LAW, "marginal"), sc.ClassPosterior(LAW, 1), temperature)
        with pytest.raises(NoClosedForm, match="strength = temperature"):
            made.exact.log_normalizer  # noqa: B018
    again = sc.GaussianMixture(WEIGHTS, MEANS, COVARIANCES)  # the same law made twice is the same law
    made = sc.Problem(sc.ReverseProcess(SCHEDULE, again, "marginal"), sc.ClassPosterior(LAW, 1))
    assert made.exact.log_normalizer == pytest.approx(np.log(WEIGHTS[1]), abs=1e-12)
    twin = sc.GaussianMixture(WEIGHTS, MEANS, 2 * COVARIANCES)
    with pytest.raises(NoClosedForm, match="own components"):
        sc.Problem(sc.ReverseProcess(SCHEDULE, twin, "marginal"), sc.ClassPosterior(LAW, 1)).exact.value(
            0.5, torch.zeros(1, 2)
        )


@pytest.mark.parametrize("initial", ["marginal", "standard"])
def test_the_exact_control_ends_in_the_class(initial: str) -> None:
    """z of the mean of 8 000 paths; 150 steps leave a bias well below the standard error of 0.006."""
    made = sc.Problem(sc.ReverseProcess(sc.VP(), LAW, initial), sc.ClassPosterior(LAW, 1))
    control = sc.guidance.doob(made, form="score")
    path = sc.simulate(made.process, control, n=8_000, grid=sc.TimeGrid.log_snr(150, s_min=1e-4), keep="ends")
    estimate = sc.Estimate.mean(path.terminal)
    assert np.abs(estimate.z(MEANS[1])).max() < 5


def test_bad_input_is_named() -> None:
    for label in (3, -1, (0, 0), (), (0, 1.5), "1"):
        with pytest.raises(BadInput, match="a class from 0 to 2"):
            sc.ClassPosterior(LAW, label)  # type: ignore[arg-type]
    for law in (sc.Gaussian([0.0], [[1.0]]), DiscreteLaw(torch.zeros(3, 2))):
        with pytest.raises(BadInput, match="components are the classes"):
            sc.ClassPosterior(law, 0)
    with pytest.raises(BadInput, match="finite"):
        sc.ClassPosterior(LAW, 0, float("nan"))
    with pytest.raises(BadInput, match="dimension 2"):
        sc.ClassPosterior(LAW, 0, 1.0, sc.Linear([1.0]))
    made = problem("one", "class")
    for law in (sc.guidance.exact_variance, sc.guidance.naive):
        with pytest.raises(NotDefined):
            law(made)


@pytest.mark.parametrize(("label", "extra"), CASES)
def test_the_optimal_kernel_is_the_reference_kernel_times_h(label: str, extra: str) -> None:
    """p*(x' | x) = p(x' | x) h(t', x') / h(t, x): both kernels by Bayes' rule from their marginals, h by the value."""
    made, (t, t_next) = problem(label, extra), (0.3, 0.7)
    s, s_next = SCHEDULE.horizon - t, SCHEDULE.horizon - t_next
    r, q = float(SCHEDULE.ratio(s, s_next)), float(SCHEDULE.transition_variance(s, s_next))
    rng = np.random.default_rng(4)
    x, x_next = (torch.tensor(rng.normal(size=(5, 2))) for _ in range(2))
    kernels = [
        kernel(law(t_next), r, q, x, x_next) for law in (made.exact.marginal, lambda t: made.process.noised(t))
    ]
    ratio = (made.exact.value(t_next, x_next) - made.exact.value(t, x)).numpy() / T
    assert np.abs(kernels[0] - kernels[1] - ratio).max() < 1e-9


def kernel(law: Any, r: float, q: float, x: torch.Tensor, x_next: torch.Tensor) -> np.ndarray:
    """log density of X' at x_next given r X' + sqrt(q) Z = x, X' ~ law, by scipy."""
    posterior = law.posterior(r, q)
    weights, means = posterior.reweight(x).numpy(), posterior.component_means(x).numpy()
    covariances, points = posterior.covariances.numpy(), x_next.numpy()
    return np.array([
        logsumexp([
            w + stats.multivariate_normal(m, c).logpdf(point) for w, m, c in zip(weights[i], means[i], covariances)
        ])
        for i, point in enumerate(points)
    ])  # fmt: skip


def test_rejection_keeps_the_class_at_the_cost_of_its_share() -> None:
    reward = sc.ClassPosterior(LAW, 1, 1.0)
    made = sc.Problem(sc.ReverseProcess(sc.VP(), LAW, "marginal"), reward)
    drawn = sc.steering.rejection(made).run(made, n=2_000, grid=sc.TimeGrid.log_snr(60, s_min=1e-3))
    assert abs(drawn.proposals.value * WEIGHTS[1] - 1) < 0.15  # the chain's own share of the class is near the law's
    assert float(made.reward(drawn.x).exp().mean()) > 0.95
