"""Affine processes: the Riccati answers against printed values, the exact-score closed forms and direct
expectations.
"""

import math

import numpy as np
import pytest
import torch
from exact_oracles import hjb_residual, moments

from sdecontrol.errors import NoClosedForm, NoTilt, ValueBlowUp
from sdecontrol.exact.continuum.riccati import RiccatiExact
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture, kl
from sdecontrol.models import PerturbedScore
from sdecontrol.problems.base import Problem
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Linear, Quadratic
from sdecontrol.schedules import VE, VP

# Reference values to the digits shown; dX = a X dt + dW, cost int p|x|^2 + q|x|^2 at T = 1 (value = -cost).
# Domingo-Enrich et al. (2023), Nusken & Richter (2021).
QUADRATIC_OU = {
    "easy": (0.2, 0.2, 0.1, 0.292553916743, 4.055382123),
    "hard": (1.0, 1.0, 0.5, 1.313455773269, 20.697248488),
}


@pytest.mark.parametrize("name", QUADRATIC_OU)
def test_quadratic_ornstein_uhlenbeck(name):
    a, p, q, f0, v0 = QUADRATIC_OU[name]
    process = DiffusionProcess(Affine(a * np.eye(20)), 1.0, Dirac(np.zeros(20)))
    problem = Problem(
        process, Quadratic(curvature=2 * q * np.eye(20)), 1.0, Quadratic(curvature=2 * p * np.eye(20))
    )
    exact, zero = problem.exact, torch.zeros(1, 20, dtype=torch.float64)
    assert -float(exact.value(0.0, zero)) == pytest.approx(v0, abs=5.1e-10)
    x = torch.ones(1, 20, dtype=torch.float64)
    assert torch.allclose(exact.control(0.0, x), -2 * f0 * x, atol=2.1e-12)
    assert exact.log_normalizer == pytest.approx(float(exact.value(0.0, zero)), rel=1e-13)
    assert exact.kl_initial == 0


def test_linear_ornstein_uhlenbeck():
    process = DiffusionProcess(Affine(-np.eye(10)), 1.0, Dirac(np.zeros(10)))
    exact = Problem(process, Linear(-np.ones(10)), 1.0).exact
    assert -float(exact.value(0.0, torch.zeros(1, 10, dtype=torch.float64))) == pytest.approx(
        -2.161661791908, abs=5.1e-13
    )
    t = 0.3
    u = exact.control(t, torch.zeros(1, 10, dtype=torch.float64))
    assert np.allclose(u, -math.exp(-(1 - t)), rtol=1e-11)
    assert exact.path_kl == pytest.approx(10 * (1 - math.exp(-2)) / 4, rel=1e-11)


def perturbed(scale, bias, schedule, initial, d=3, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(d, d)) / 2
    law = Gaussian(rng.normal(size=d), root @ root.T + 0.3 * np.eye(d))
    curvature = rng.normal(size=(d, d))
    reward = Quadratic(rng.normal(size=d), 0.15 * (curvature + curvature.T), 0.2)
    model = PerturbedScore(law, scale, bias)
    return Problem(ReverseProcess(schedule, model, initial), reward, 0.8), law, reward


@pytest.mark.parametrize("schedule", [VP(1.0, 1.0), VP(0.1, 20.0), VE(0.01, 3.0), VE(0.01, 50.0)], ids=repr)
def test_an_unperturbed_score_gives_the_closed_forms(schedule):
    problem, law, reward = perturbed(1.0, 0.0, schedule, "standard")
    ode, closed = problem.exact, Problem(ReverseProcess(schedule, law, "standard"), reward, 0.8).exact
    assert isinstance(ode, RiccatiExact) and not isinstance(closed, RiccatiExact)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.0, 0.21, 0.77, 1.0):
        assert torch.allclose(ode.value(t, x), closed.value(t, x), rtol=1e-9, atol=1e-9)
        u = closed.control(t, x)
        assert torch.allclose(ode.control(t, x), u, rtol=1e-8, atol=1e-8 * float(u.abs().max()))
    for name in ("log_normalizer", "path_kl", "kl_initial", "energy", "objective_untilted"):
        assert getattr(ode, name) == pytest.approx(getattr(closed, name), rel=1e-9), name
    for name in ("initial", "terminal", "reference", "untilted_terminal"):
        found, expected = getattr(ode, name), getattr(closed, name)
        assert np.allclose(found.mean, expected.mean, atol=1e-9), name
        assert np.allclose(found.covariance, expected.covariance, atol=1e-9), name
    found, expected = ode.marginal(0.4), closed.marginal(0.4)
    assert np.allclose(found.mean, expected.mean, atol=1e-9) and np.allclose(
        found.covariance, expected.covariance, atol=1e-9
    )


def test_a_biased_score_keeps_the_identities():
    problem, law, reward = perturbed(0.8, [0.3, -0.2, 0.1], VP(1.0, 1.0), "standard")
    exact = problem.exact
    assert isinstance(exact, RiccatiExact)
    assert float((exact.reference.mean - law.mean).abs().max()) > 0.01  # p_pre is not the data law
    tilted = exact.reference.tilt(reward, 0.8)  # (3.2), by a forward and a backward equation
    assert np.allclose(exact.terminal.mean, tilted.mean, atol=1e-9)
    assert np.allclose(exact.terminal.covariance, tilted.covariance, atol=1e-9)
    assert exact.log_normalizer == pytest.approx(
        exact.reference.log_expectation(reward, 0.8), rel=1e-10
    )  # (3.26)
    assert exact.path_kl == pytest.approx(float(kl(exact.terminal, exact.reference)), rel=1e-9)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert hjb_residual(problem, x) < 1e-7


def test_a_running_reward_against_brute_force():
    """1-D OU, running reward rho(x) = g x - k x^2/2: E exp by Euler on a Gaussian vector, extrapolated in the
    step.
    """
    a, sigma, temperature, running, final = -0.7, 0.9, 0.6, Quadratic([0.4], 0.5), Quadratic([-0.3], 0.8)
    process = DiffusionProcess(Affine([[a]], [0.2]), sigma, Gaussian(0.3, 0.5))
    exact = Problem(process, final, temperature, running).exact

    def log_c(n):
        """log E exp of a quadratic of (x_0, ..., x_n), exact transitions, the running reward by Simpson's
        rule.
        """
        dt = 1 / n
        decay = math.exp(a * dt)
        variance = sigma**2 * (decay**2 - 1) / (2 * a)
        mean, covariance = np.zeros(n + 1), np.zeros((n + 1, n + 1))
        mean[0], covariance[0, 0] = 0.3, 0.5
        for k in range(n):
            mean[k + 1] = decay * mean[k] + 0.2 * (decay - 1) / a
            covariance[k + 1, : k + 1] = covariance[: k + 1, k + 1] = decay * covariance[k, : k + 1]
            covariance[k + 1, k + 1] = decay**2 * covariance[k, k] + variance
        w = np.ones(n + 1) * 2 / 3 * dt
        w[1::2] = 4 / 3 * dt
        w[[0, -1]] = dt / 3
        g, k = 0.4 * w, 0.5 * w
        g[-1] -= 0.3
        k[-1] += 0.8
        g, k = g / temperature, np.diag(k) / temperature
        q = np.linalg.inv(np.eye(n + 1) + covariance @ k)
        quadratic = g @ q @ mean - mean @ k @ q @ mean / 2 + g @ q @ covariance @ g / 2
        return quadratic - np.linalg.slogdet(np.eye(n + 1) + covariance @ k)[1] / 2

    truth = (4 * log_c(400) - log_c(200)) / 3
    assert exact.log_normalizer == pytest.approx(truth, rel=1e-7)

    def parts(pair):
        return tuple(part.numpy() for part in pair)

    nu = exact.initial
    mean, covariance, energy = moments(
        lambda t: parts(process.affine_drift(t)), lambda t: parts(exact.control.affine_at(t)),
        lambda t: sigma, nu.mean.numpy(), nu.covariance.numpy(),
    )  # fmt: skip
    assert float(exact.terminal.mean) == pytest.approx(mean[0], rel=1e-9)
    assert float(exact.terminal.covariance) == pytest.approx(covariance[0, 0], rel=1e-9)
    assert exact.energy == pytest.approx(energy, rel=1e-9)
    # optimum = E[r + int rho] - temperature KL
    nodes, w = np.polynomial.legendre.leggauss(12)
    total = float(final(exact.terminal.mean[None])) - 0.8 * float(exact.terminal.covariance) / 2
    for t, weight in zip((nodes + 1) / 2, w / 2):
        law = exact.marginal(float(t))
        total += weight * (float(running(law.mean[None])) - 0.5 * float(law.covariance) / 2)
    assert exact.optimum == pytest.approx(total - temperature * exact.path_kl, rel=1e-8)
    with pytest.raises(NoClosedForm):
        Problem(process, final, temperature, lambda t, x: x[:, 0].cos()).exact.value(0.0, torch.zeros(1, 1))


def test_a_time_dependent_drift_and_amplitude():
    """dY = A(t) Y dt + g(t) dB, linear reward: the value is the mean plus half the variance of r."""
    process = DiffusionProcess(
        Affine(lambda t: [[0.0, 1.0], [-1.0 - t, -0.5]], [0.1, -0.2]), lambda t: 0.5 + t, Dirac([0.5, 0.0])
    )
    exact = Problem(process, Linear([1.0, 0.5]), 0.4).exact
    zero = np.zeros((2, 2))
    mean, covariance, _ = moments(
        lambda t: tuple(part.numpy() for part in process.affine_drift(t)), lambda t: (zero, np.zeros(2)),
        process.amplitude, np.array([0.5, 0.0]), zero,
    )  # fmt: skip
    g = np.array([1.0, 0.5])
    assert exact.optimum == pytest.approx(g @ mean + g @ covariance @ g / 0.8, rel=1e-10)
    assert exact.path_kl == pytest.approx(g @ covariance @ g / 0.32, rel=1e-10)


def test_blow_up_and_window():
    """dY = dB from N(0, 1), r = k x^2/2: C is infinite for k >= 1/2, the value blows up inside for k > 1, at
    t = 1 - 1/k.
    """
    process = DiffusionProcess(Affine([[0.0]]), 1.0, Gaussian(0.0, 1.0))
    assert Problem(process, Quadratic([0.0], -0.49)).exact.path_kl > 0
    with pytest.raises(NoTilt) as window:
        Problem(process, Quadratic([0.0], -0.7))
    assert not isinstance(window.value, ValueBlowUp)
    assert window.value.largest_curvature == pytest.approx(0.5, rel=1e-10)
    with pytest.raises(ValueBlowUp) as inside:
        Problem(process, Quadratic([0.0], -2.5))
    assert inside.value.time == pytest.approx(0.6, rel=1e-8)
    # a running reward x^2 k/2 with k = (pi/2)^2 4 blows up at time to go 1/2: cos(sqrt(k) tau) = 0
    with pytest.raises(ValueBlowUp) as running:
        Problem(process, Linear([0.0]), 1.0, Quadratic([0.0], -(math.pi**2)))
    assert running.value.time == pytest.approx(0.5, rel=1e-8)


def test_a_mixture_start():
    """The affine process from a mixture, the data Gaussian, against quadrature over the start and over the
    end.
    """
    law = GaussianMixture([0.4, 0.6], [[-1.0], [1.0]], [0.2, 0.3])
    reward, temperature = Quadratic([0.5], 0.7), 0.5
    for process in (
        DiffusionProcess(Affine([[-1.0]]), 1.0, law),
        ReverseProcess(VP(1.0, 1.0), Gaussian(0.3, 0.5), law),
    ):
        exact = Problem(process, reward, temperature).exact
        y = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
        log_dy = math.log(float(y[1] - y[0]))
        growth = exact.value(0.0, y) / temperature
        log_c = float((law.log_prob(y) + growth).logsumexp(0)) + log_dy
        assert exact.log_normalizer == pytest.approx(log_c, rel=1e-10)
        nu = (law.log_prob(y) + growth - log_c + log_dy).exp()
        assert exact.kl_initial == pytest.approx(float(nu @ growth) - log_c, rel=1e-9)
        assert exact.objective_untilted == pytest.approx(
            temperature * float((law.log_prob(y) + log_dy).exp() @ growth), rel=1e-10
        )
        tilted = exact.reference.tilt(reward, temperature)
        assert torch.allclose(
            exact.terminal.log_prob(y[::50]), tilted.log_prob(y[::50]), rtol=1e-8, atol=1e-8
        )
        ft = (exact.terminal.log_prob(y) + log_dy).exp()
        assert exact.path_kl == pytest.approx(float(ft @ reward(y)) / temperature - log_c, rel=1e-9)
