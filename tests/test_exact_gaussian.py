"""Gaussian data, quadratic rewards: the closed forms against quadrature (1-D) and differential equations
(10-D).
"""

import math

import numpy as np
import pytest
import torch
from exact_oracles import Line, gaussian_kl, hjb_residual, log_normal, moments, panels, riccati, ve, vp

from sdecontrol.controls import AffineControl
from sdecontrol.laws import Dirac, Gaussian, kl
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel, Linear, Quadratic
from sdecontrol.schedules import VE, VP

SCHEDULES = {
    "vp-flat": (VP(1.0, 1.0), lambda s: vp(s, 1.0, 1.0)),
    "vp": (VP(0.1, 20.0), lambda s: vp(s, 0.1, 20.0)),
    "ve": (VE(0.01, 3.0), lambda s: ve(s, 0.01, 3.0)),
    "ve-50": (VE(0.01, 50.0), lambda s: ve(s, 0.01, 50.0)),
}


def prior(initial, level, mu, sigma):
    """Mean and covariance of p_noise from the schedule's own numbers at the horizon."""
    a, h, _ = level(1.0)
    if initial == "marginal":
        return a * mu, a * a * sigma + h * np.eye(len(mu))
    return np.zeros(len(mu)), (1.0 if a < 1 else h) * np.eye(len(mu))


def random_problem(d, seed, schedule, initial, temperature):
    """SPD covariance, indefinite K with lambda_min(S^1/2 K S^1/2) = -0.6 temperature, dense everything."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    sigma = (q * np.exp(rng.uniform(-2, 1, d))) @ q.T
    sigma = (sigma + sigma.T) / 2
    curvature = rng.normal(size=(d, d))
    curvature = curvature + curvature.T
    factor = np.linalg.cholesky(sigma)
    curvature *= 0.6 * temperature / abs(np.linalg.eigvalsh(factor.T @ curvature @ factor)[0])
    mu, linear = rng.normal(size=d), rng.normal(size=d)
    process = ReverseProcess(SCHEDULES[schedule][0], Gaussian(mu, sigma), initial)
    return Problem(process, Quadratic(linear, curvature, 0.3), temperature), mu, sigma, curvature, linear


@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("temperature", [0.05, 0.7, 10.0])
def test_ten_dimensions_against_differential_equations(schedule, initial, temperature):
    d, level = 10, SCHEDULES[schedule][1]
    problem, mu, sigma, curvature, linear = random_problem(d, 3, schedule, initial, temperature)
    exact = problem.exact

    def drift(t):
        a, h, g2 = level(1 - t)
        noised = np.linalg.inv(a * a * sigma + h * np.eye(d))
        f = -g2 / 2 if a < 1 else 0.0
        return -f * np.eye(d) - g2 * noised, g2 * noised @ (a * mu)

    def amplitude(t):
        return math.sqrt(level(1 - t)[2])

    solution = riccati(drift, amplitude, curvature, linear, 0.3, temperature)
    x = np.random.default_rng(0).normal(size=(4, d)) * 2
    for t in (0.0, 0.37, 0.9, 1.0):
        k, g, c = solution(t)
        v = c + x @ g - np.einsum("ni,ij,nj->n", x, k, x) / 2
        u = amplitude(t) * (g - x @ k) / temperature
        assert np.allclose(exact.value(t, torch.tensor(x)), v, rtol=1e-8, atol=1e-8)
        assert np.allclose(exact.control(t, torch.tensor(x)), u, rtol=1e-8, atol=1e-8 * np.abs(u).max())

    m0, s0 = prior(initial, level, mu, sigma)
    mean, covariance, _ = moments(drift, lambda t: (np.zeros((d, d)), np.zeros(d)), amplitude, m0, s0)
    assert np.allclose(exact.reference.mean, mean, atol=1e-8)
    assert np.allclose(exact.reference.covariance, covariance, atol=1e-8)

    def control(t):
        k, g, _ = solution(t)
        return -amplitude(t) * k / temperature, amplitude(t) * g / temperature

    nu, terminal = exact.initial, exact.terminal
    reached, spread, energy = moments(drift, control, amplitude, nu.mean.numpy(), nu.covariance.numpy())
    assert np.allclose(terminal.mean, reached, rtol=1e-8, atol=1e-8 * np.abs(reached).max())
    assert np.allclose(terminal.covariance, spread, rtol=1e-8, atol=1e-8 * np.abs(spread).max())
    assert exact.energy == pytest.approx(energy, rel=1e-8)
    start_kl = gaussian_kl(nu.mean.numpy(), nu.covariance.numpy(), m0, s0)
    assert exact.kl_initial == pytest.approx(start_kl, rel=1e-8, abs=1e-12)
    assert exact.path_kl == pytest.approx(start_kl + energy, rel=1e-8)

    biased, bias_spread, biased_energy = moments(drift, control, amplitude, m0, s0)
    assert np.allclose(exact.untilted_terminal.mean, biased, rtol=1e-8, atol=1e-8 * np.abs(biased).max())
    assert np.allclose(
        exact.untilted_terminal.covariance, bias_spread, rtol=1e-8, atol=1e-8 * np.abs(bias_spread).max()
    )
    reward = 0.3 + linear @ biased - (biased @ curvature @ biased + np.trace(curvature @ bias_spread)) / 2
    assert exact.objective_untilted == pytest.approx(reward - temperature * biased_energy, rel=1e-7)

    # optimum = E r - temperature KL at the optimum, by the moments just found
    reward = 0.3 + linear @ reached - (reached @ curvature @ reached + np.trace(curvature @ spread)) / 2
    optimum = reward - temperature * (start_kl + energy)
    assert exact.optimum == pytest.approx(optimum, rel=1e-8, abs=1e-8 * abs(reward))


@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize(
    ("schedule", "temperature"), [("vp-flat", 0.05), ("vp-flat", 0.7), ("vp", 10.0), ("ve", 0.5)]
)
def test_one_dimension_against_quadrature(schedule, initial, temperature):
    level, mu, s = SCHEDULES[schedule][1], 0.4, 1.3
    k, g = -0.5 * temperature / s, 0.8
    start = prior(initial, level, np.array([mu]), np.array([[s]]))
    problem = Problem(
        ReverseProcess(SCHEDULES[schedule][0], Gaussian(mu, s), initial), Quadratic([g], k), temperature
    )
    exact = problem.exact
    reach = 12 * math.sqrt(s * 3) + abs(g) * s * 3 / temperature
    x, log_wx = panels(np.linspace(mu - reach, mu + reach, 40))
    spread = (
        math.sqrt(float(exact.initial.covariance)) * 12
        + abs(float(exact.initial.mean))
        + 12 * math.sqrt(start[1][0, 0])
    )
    y, log_wy = panels(np.linspace(-spread, spread, 40))
    line = Line(
        x, log_wx, y, log_wy, log_normal(x, mu, s), log_normal(y, start[0][0], start[1][0, 0]),
        g * x - k * x * x / 2, level(1.0), temperature,
    )  # fmt: skip
    truth = line.solve()
    assert truth["log_c"] == pytest.approx(truth["log_c_start"], rel=1e-9)  # (3.26)
    assert exact.log_normalizer == pytest.approx(truth["log_c"], rel=1e-9)
    for name in ("path_kl", "kl_initial", "objective_untilted"):
        assert getattr(exact, name) == pytest.approx(truth[name], rel=1e-8, abs=1e-9), name
    for law, points, log_p in ((exact.terminal, x, truth["log_ft"]), (exact.initial, y, truth["log_nu"])):
        where = log_p > log_p.max() - 40  # all but 1e-17 of the mass
        assert np.allclose(
            law.log_prob(torch.tensor(points[where])[:, None]), log_p[where], rtol=1e-9, atol=1e-8
        )
    for t in (0.0, 0.2, 0.4):
        a, h, _ = level(1 - t)
        points = np.linspace(-2, 2, 7)
        assert np.allclose(
            exact.value(t, torch.tensor(points)[:, None]), line.value(points, a, h), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("d", [1, 10])
@pytest.mark.parametrize("seed", range(4))
def test_identities(d, seed):
    rng = np.random.default_rng(seed)
    temperature = float(np.exp(rng.uniform(math.log(0.05), math.log(10))))
    schedule, initial = list(SCHEDULES)[seed], ["standard", "marginal"][seed % 2]
    problem, *_ = random_problem(d, seed, schedule, initial, temperature)
    exact, p_noise = problem.exact, problem.process.initial_law()
    x = torch.tensor(rng.normal(size=(5, d)))
    # (3.26): the tower rule; (3.16): nu* by tilting; (3.2): p_ft by tilting p_pre; (3.20): the KL of the ends
    growth = exact.growth(1.0)[0]
    assert p_noise.log_expectation(growth, 1.0) == pytest.approx(exact.log_normalizer, rel=1e-10, abs=1e-10)
    ratio = (
        exact.initial.log_prob(x)
        - p_noise.log_prob(x)
        - exact.value(0, x) / temperature
        + exact.log_normalizer
    )
    assert float(ratio.abs().max()) < 1e-10 * (1 + float(exact.initial.log_prob(x).abs().max()))
    tilted = exact.terminal.log_prob(x) - exact.reference.log_prob(x) - problem.reward(x) / temperature
    assert float((tilted + exact.log_normalizer).abs().max()) < 1e-10 * (
        1 + float(exact.terminal.log_prob(x).abs().max())
    )
    assert float(kl(exact.terminal, exact.reference)) == pytest.approx(exact.path_kl, rel=1e-9)
    assert exact.kl_initial + exact.energy == pytest.approx(exact.path_kl, rel=1e-12)
    gap = exact.optimum - exact.objective_untilted  # theory 9
    assert gap == pytest.approx(
        temperature * float(kl(p_noise, exact.initial)), rel=1e-7, abs=1e-10 * abs(exact.optimum)
    )
    # matched prior: the fine-tuned model is the reverse process of the tilted data law
    if initial == "marginal":
        tilted_data = problem.process.data_law.tilt(problem.reward, temperature)
        for t in (0.0, 0.5, 0.999):
            s = 1 - t
            noised = tilted_data.noised(problem.process.schedule.alpha(s), problem.process.schedule.h(s))
            u = problem.process.amplitude(t) * (noised.score(x) - problem.process.noised(t).score(x))
            assert torch.allclose(exact.control(t, x), u, rtol=1e-9, atol=1e-9 * float(u.abs().max()))
            assert np.allclose(exact.marginal(t).covariance, noised.covariance, rtol=1e-10)


def test_marginals_follow_the_controlled_moments():
    problem, mu, sigma, _, _ = random_problem(3, 5, "vp-flat", "standard", 0.5)
    exact, process = problem.exact, problem.process

    def parts(pair):
        return tuple(part.numpy() for part in pair)

    nu = exact.initial
    for t in (0.2, 0.7, 1.0):
        mean, covariance, _ = moments(
            lambda tau: parts(process.affine_drift(tau)), lambda tau: parts(exact.control.affine_at(tau)),
            process.amplitude, nu.mean.numpy(), nu.covariance.numpy(), t,
        )  # fmt: skip
        law = exact.marginal(t)
        assert np.allclose(law.mean, mean, atol=1e-9) and np.allclose(law.covariance, covariance, atol=1e-9)


def test_hjb_residual_by_finite_differences():
    problem, *_ = random_problem(3, 2, "vp", "standard", 0.4)
    assert (
        hjb_residual(
            problem, torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )
        < 1e-7
    )


def test_linear_reward_has_a_state_free_control_and_symmetric_kl():
    sigma = np.array([[1.0, 0.3], [0.3, 0.5]])
    g, temperature = np.array([1.0, -0.4]), 0.7
    process = ReverseProcess(VP(1.0, 1.0), Gaussian([0.2, 0.1], sigma), "marginal")
    exact = Problem(process, Linear(g), temperature).exact
    assert isinstance(exact.control, AffineControl)
    gain, offset = exact.control.affine_at(0.3)
    a, h, g2 = vp(0.7, 1.0, 1.0)
    assert not gain.any()
    assert np.allclose(
        offset, math.sqrt(g2) / temperature * a * np.linalg.solve(a * a * sigma + h * np.eye(2), sigma @ g)
    )
    assert exact.path_kl == pytest.approx(g @ sigma @ g / (2 * temperature**2), rel=1e-12)
    assert float(kl(exact.reference, exact.terminal)) == pytest.approx(exact.path_kl, rel=1e-10)


def test_gaussian_label_of_ctrl():
    """theory section 3: p_pre = N(0, 1), tau^2 = 0.25, y = 1.5; the drift coefficient is gamma (y - m)/(tau^2
    + gamma P).
    """
    gamma, tau, label = 3.0, 0.5, 1.5
    process = ReverseProcess(VP(1.0, 1.0), Gaussian(0.0, 1.0), "marginal")
    exact = Problem(process, GaussianLabel([1.0], label, tau, strength=gamma)).exact
    a, h, g2 = vp(0.6, 1.0, 1.0)
    y = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    expected = math.sqrt(g2) * a * gamma * (label - a * y) / (tau**2 + gamma * h)
    assert torch.allclose(exact.control(0.4, y), expected, rtol=1e-12)


def test_reference_tilt(reference=(0.33232323, -0.31515152)):
    """A published table: m = (1, -.5), S = [[1, .3], [.3, .5]], r = -(x - c)'A(x - c)/2, temperature 0.7."""
    curvature, centre = np.diag([2.0, 0.5]), np.array([0.0, 1.0])
    reward = Quadratic(curvature @ centre, curvature, -centre @ curvature @ centre / 2)
    law = Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
    exact = Problem(ReverseProcess(VP(), law, "marginal"), reward, 0.7).exact
    assert np.allclose(exact.terminal.mean, reference, atol=5e-9)
    assert np.allclose(
        exact.terminal.covariance, [[0.2559596, 0.05939394], [0.05939394, 0.33090909]], atol=5e-9
    )
    assert exact.log_normalizer == pytest.approx(-1.989088071242, abs=5e-13)
    assert exact.path_kl == pytest.approx(0.7297573906992, abs=5e-14)


def test_start_from_a_point():
    problem, *_ = random_problem(2, 1, "vp-flat", Dirac([0.5, -1.0]), 0.6)
    exact, x0 = problem.exact, torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    assert exact.kl_initial == 0
    assert exact.log_normalizer == pytest.approx(float(exact.value(0, x0)) / 0.6, rel=1e-12)
    assert exact.objective_untilted == pytest.approx(exact.optimum, rel=1e-12)
    assert np.allclose(exact.untilted_terminal.covariance, exact.terminal.covariance, rtol=1e-10)
    a, h, _ = vp(1.0, 1.0, 1.0)
    sigma, mu = problem.process.data_law.covariance.numpy(), problem.process.data_law.mean.numpy()
    precision = np.linalg.inv(sigma) + a * a / h * np.eye(2)
    assert np.allclose(exact.reference.covariance, np.linalg.inv(precision), rtol=1e-10)
    mean = np.linalg.solve(precision, np.linalg.solve(sigma, mu) + a / h * x0[0].numpy())
    assert np.allclose(exact.reference.mean, mean, rtol=1e-10)


def test_float32_states_get_float32_controls_and_float64_values():
    problem, *_ = random_problem(3, 4, "vp", "standard", 0.5)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    u, v = problem.exact.control(0.4, x), problem.exact.value(0.4, x)
    assert u.dtype == torch.float32 and v.dtype == torch.float64
    assert torch.allclose(u.double(), problem.exact.control(0.4, x.double()), rtol=1e-5, atol=1e-5)
    columns = x.mT.contiguous().mT
    assert torch.equal(problem.exact.control(0.4, columns), u) or torch.allclose(
        problem.exact.control(0.4, columns), u
    )
