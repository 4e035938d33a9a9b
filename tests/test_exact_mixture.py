"""Mixture data: the closed forms, and the quadratures over the start, against quadrature on the line and
finite differences.
"""

import math

import numpy as np
import pytest
import torch
from exact_oracles import Line, hjb_residual, log_normal, panels, ve, vp
from scipy.special import logsumexp

from sdecontrol.errors import NoClosedForm
from sdecontrol.laws import Dirac, Gaussian, GaussianMixture
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Linear, Quadratic, Step
from sdecontrol.schedules import VE, VP, Cosine

WEIGHTS, MEANS, VARIANCES = np.array([0.5, 0.3, 0.2]), np.array([-1.5, 0.5, 2.0]), np.array([0.3, 0.1, 0.6])
SCHEDULES = {
    "vp-flat": (VP(1.0, 1.0), lambda s: vp(s, 1.0, 1.0)),
    "vp": (VP(0.1, 20.0), lambda s: vp(s, 0.1, 20.0)),
    "ve": (VE(0.1, 2.0), lambda s: ve(s, 0.1, 2.0)),
}
NUMBERS = ("path_kl", "kl_initial", "objective_untilted")


def log_mixture(x, a=1.0, h=0.0):
    terms = np.log(WEIGHTS)[:, None] + log_normal(x, (a * MEANS)[:, None], (a * a * VARIANCES + h)[:, None])
    return logsumexp(terms, axis=0)


def one_dimensional(schedule, initial, reward, temperature):
    law = GaussianMixture(WEIGHTS, MEANS, VARIANCES)
    return Problem(ReverseProcess(SCHEDULES[schedule][0], law, initial), reward, temperature)


def oracle(schedule, initial, reward, temperature, edges=()):
    level = SCHEDULES[schedule][1]
    a, h, _ = level(1.0)
    x, log_wx = panels(np.sort(np.concatenate([np.linspace(-24, 24, 70), edges])), 24)
    y, log_wy = panels(np.linspace(-30, 30, 45), 30)
    log_noise = log_mixture(y, a, h) if initial == "marginal" else log_normal(y, 0.0, 1.0 if a < 1 else h)
    return Line(x, log_wx, y, log_wy, log_mixture(x), log_noise, reward(x), (a, h), temperature), level


QUADRATIC = [("vp-flat", 0.3), ("vp-flat", 5.0), ("vp", 1.0), ("ve", 0.7)]


@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize(("schedule", "temperature"), QUADRATIC)
def test_quadratic_reward_against_quadrature(schedule, initial, temperature):
    g, k = 0.7, -0.8 * temperature  # 1 + k S / temperature is positive for every component
    exact = one_dimensional(schedule, initial, Quadratic([g], k), temperature).exact
    line, level = oracle(schedule, initial, lambda x: g * x - k * x * x / 2, temperature)
    truth = line.solve()
    assert truth["log_c"] == pytest.approx(truth["log_c_start"], rel=1e-10)  # (3.26)
    assert exact.log_normalizer == pytest.approx(truth["log_c"], rel=1e-9)
    for name in NUMBERS:
        assert getattr(exact, name) == pytest.approx(truth[name], rel=1e-8, abs=1e-10), name
    check_densities(exact, line, truth)
    check_values(exact, line, level)


STEP = [("vp-flat", 0.5, 1.0), ("vp-flat", 0.05, 2.0), ("ve", 1.0, -1.5)]


@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize(("schedule", "temperature", "height"), STEP)
def test_step_reward_against_quadrature(schedule, initial, temperature, height):
    exact = one_dimensional(schedule, initial, Step([1.0], 0.8, height), temperature).exact
    line, level = oracle(schedule, initial, lambda x: height * (x > 0.8), temperature, edges=[0.8])
    truth = line.solve()
    assert exact.log_normalizer == pytest.approx(truth["log_c"], rel=1e-9)
    for name in NUMBERS:
        assert getattr(exact, name) == pytest.approx(truth[name], rel=1e-8, abs=1e-10), name
    check_densities(exact, line, truth)
    check_values(exact, line, level)


def check_densities(exact, line, truth):
    pairs = [
        (exact.terminal, line.x, "log_ft"),
        (exact.reference, line.x, "log_pre"),
        (exact.initial, line.y, "log_nu"),
    ]
    for law, points, name in pairs:
        where = truth[name] > truth[name].max() - 35
        found = law.log_prob(torch.tensor(points[where])[:, None]).numpy()
        assert np.allclose(found, truth[name][where], rtol=1e-8, atol=1e-8), name
    assert float(exact.terminal.mean) == pytest.approx(truth["mean"], rel=1e-8)
    assert float(exact.terminal.covariance) == pytest.approx(truth["variance"], rel=1e-8)


def check_values(exact, line, level):
    y = np.linspace(-3, 3, 13)
    for t in (0.0, 0.3, 0.5):
        a, h, g2 = level(1 - t)
        v = line.value(y, a, h)
        assert np.allclose(exact.value(t, torch.tensor(y)[:, None]), v, rtol=1e-9, atol=1e-10)
        step = 1e-3
        slope = (8 * line.value(y + step, a, h) - 8 * line.value(y - step, a, h)
                 - line.value(y + 2 * step, a, h) + line.value(y - 2 * step, a, h)) / (12 * step)  # fmt: skip
        u = math.sqrt(g2) * slope / line.temperature
        assert np.allclose(
            exact.control(t, torch.tensor(y)[:, None])[:, 0], u, rtol=1e-7, atol=1e-7 * np.abs(u).max()
        )


def planar(initial, reward, temperature, schedule=None):
    covariances = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.1], [-0.1, 0.4]], [[0.3, 0.0], [0.0, 0.3]]])
    law = GaussianMixture([0.5, 0.3, 0.2], [[-1.0, 0.3], [1.0, 1.0], [0.5, -1.2]], covariances)
    return Problem(ReverseProcess(schedule or VP(1.0, 1.0), law, initial), reward, temperature)


INDEFINITE = Quadratic([0.6, -0.3], [[0.8, 0.3], [0.3, -0.4]])


@pytest.mark.parametrize("initial", ["standard", "marginal"])
@pytest.mark.parametrize(
    "reward",
    [INDEFINITE, Linear([1.0, 0.5]), Step([1.0, -0.5], 0.2, 1.0)],
    ids=["quadratic", "linear", "step"],
)
def test_hjb_residual_in_the_plane(initial, reward):
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 1.5
    assert hjb_residual(planar(initial, reward, 0.5), x, step=1e-3) < 1e-6


@pytest.mark.parametrize("reward", [INDEFINITE, Step([1.0, -0.5], 0.2, 1.0)], ids=["quadratic", "step"])
def test_a_gaussian_start_in_the_plane_against_the_matched_one(reward):
    """Started from a Gaussian; the laws under Q by brute force on a grid of starts, the kernel being Bayes'
    rule.
    """
    temperature, problem = 0.5, planar(Gaussian([0.3, -0.2], [[0.9, 0.2], [0.2, 0.7]]), reward, 0.5)
    exact, law = problem.exact, problem.process.data_law
    a, h, _ = vp(1.0, 1.0, 1.0)
    line = torch.linspace(-7, 7, 141, dtype=torch.float64)
    y = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    cell = float(line[1] - line[0]) ** 2
    p_noise = problem.process.initial_law().log_prob(y).exp() * cell
    v0 = exact.value(0.0, y) / temperature
    log_c = float((p_noise.log() + v0).logsumexp(0))
    assert exact.log_normalizer == pytest.approx(log_c, rel=1e-10)
    assert exact.log_normalizer_error < 1e-10
    nu = (p_noise.log() + v0 - log_c).exp()
    assert exact.kl_initial == pytest.approx(float(nu @ v0) - log_c, rel=1e-9)
    assert exact.objective_untilted == pytest.approx(temperature * float(p_noise @ v0), rel=1e-9)
    assert np.allclose(exact.initial.log_prob(y[::97]), (nu.log() - math.log(cell))[::97], atol=1e-9)

    points = torch.tensor([[0.2, 0.1], [-1.0, 0.5], [1.2, 0.8]], dtype=torch.float64)
    weight = p_noise / law.noised(a, h).log_prob(y).exp()
    kernel = torch.exp(-(y[:, None] - a * points).square().sum(2) / (2 * h)) / (2 * math.pi * h)
    log_pre = law.log_prob(points) + (weight @ kernel).log()
    assert np.allclose(exact.reference.log_prob(points), log_pre, atol=1e-9)
    log_ft = log_pre + reward(points) / temperature - log_c
    assert np.allclose(exact.terminal.log_prob(points), log_ft, atol=1e-9)

    s = 0.4  # Q_t: the two-step kernel by Bayes' rule
    a_s, h_s, _ = vp(s, 1.0, 1.0)
    ratio, q = a / a_s, h - (a / a_s) ** 2 * h_s
    kernel = torch.exp(-(y[:, None] - ratio * points).square().sum(2) / (2 * q)) / (2 * math.pi * q)
    log_q = law.noised(a_s, h_s).log_prob(points) + (weight @ kernel).log()
    log_marginal = log_q + exact.value(1 - s, points) / temperature - log_c
    assert np.allclose(exact.marginal(1 - s).log_prob(points), log_marginal, atol=1e-9)


def test_path_kl_by_quadrature_is_the_energy_of_the_control():
    """d/dt of E_{Q*_t} v: on the line, E int |u*|^2/2 from Q*_t on a grid of times, against path_kl -
    kl_initial.
    """
    exact = one_dimensional("vp-flat", "standard", Quadratic([0.7], 0.4), 0.5).exact
    nodes, log_w = panels(np.linspace(0, 1, 5), 8)
    y, log_wy = panels(np.linspace(-8, 8, 40), 12)
    points = torch.tensor(y)[:, None]
    energy = 0.0
    for t, w in zip(nodes, np.exp(log_w)):
        p = np.exp(exact.marginal(float(t)).log_prob(points).numpy() + log_wy)
        assert p.sum() == pytest.approx(1, abs=1e-9)
        energy += w * float(p @ exact.control(float(t), points)[:, 0].numpy() ** 2) / 2
    assert exact.energy == pytest.approx(energy, rel=1e-7)


def test_matched_mixture_is_the_tilted_data_law_noised():
    problem = planar("marginal", INDEFINITE, 0.5)
    exact, x = (
        problem.exact,
        torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2,
    )
    tilted = problem.process.data_law.tilt(INDEFINITE, 0.5)
    for t in (0.0, 0.4, 0.999, 1.0):
        a, h, g2 = vp(1 - t, 1.0, 1.0)
        noised, plain = tilted.noised(a, h), problem.process.data_law.noised(a, h)
        assert torch.allclose(exact.marginal(t).log_prob(x), noised.log_prob(x), rtol=1e-10, atol=1e-10)
        u = math.sqrt(g2) * (noised.score(x) - plain.score(x))
        assert torch.allclose(exact.control(t, x), u, rtol=1e-8, atol=1e-8 * float(u.abs().max()))
        v = 0.5 * (exact.log_normalizer + noised.log_prob(x) - plain.log_prob(x))
        assert torch.allclose(exact.value(t, x), v, rtol=1e-9, atol=1e-9)
    assert exact.path_kl == pytest.approx(exact.expected_reward / 0.5 - exact.log_normalizer, rel=1e-12)


def test_mixture_from_a_point_is_a_mixture():
    start = torch.tensor([[0.4, -0.7]], dtype=torch.float64)
    problem = planar(Dirac(start[0]), INDEFINITE, 0.5)
    exact, law = problem.exact, problem.process.data_law
    a, h, _ = vp(1.0, 1.0, 1.0)
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    log_pre = law.log_prob(x) - (start - a * x).square().sum(1) / (2 * h) - math.log(2 * math.pi * h)
    log_pre = log_pre - law.noised(a, h).log_prob(start)
    assert torch.allclose(exact.reference.log_prob(x), log_pre, atol=1e-10)
    assert exact.log_normalizer == pytest.approx(float(exact.value(0.0, start)) / 0.5, rel=1e-11)
    assert torch.allclose(
        exact.terminal.log_prob(x), log_pre + INDEFINITE(x) / 0.5 - exact.log_normalizer, atol=1e-10
    )
    assert exact.kl_initial == 0 and exact.initial is problem.process.initial_law()
    s = 0.3
    a_s, h_s, _ = vp(s, 1.0, 1.0)
    q = h - (a / a_s) ** 2 * h_s
    log_q = (
        law.noised(a_s, h_s).log_prob(x)
        - (start - a / a_s * x).square().sum(1) / (2 * q)
        - math.log(2 * math.pi * q)
    )
    log_q = log_q - law.noised(a, h).log_prob(start) + exact.value(1 - s, x) / 0.5 - exact.log_normalizer
    assert torch.allclose(exact.marginal(1 - s).log_prob(x), log_q, atol=1e-10)


def test_far_apart_components_and_sharp_temperatures_stay_exact():
    """A short horizon keeps the components apart: the integrand has bumps far out in the start."""
    law = GaussianMixture([0.5, 0.5], [[-3.0], [3.0]], [0.05, 0.2])
    schedule, temperature = VP(0.3, 0.3), 0.05
    exact = Problem(ReverseProcess(schedule, law, "standard"), Linear([1.0]), temperature).exact
    a, h, _ = vp(1.0, 0.3, 0.3)
    y = torch.linspace(-40, 40, 400_001, dtype=torch.float64)[:, None]
    log_terms = -y[:, 0].square() / 2 - math.log(2 * math.pi) / 2 + exact.value(0.0, y) / temperature
    log_c = float(log_terms.logsumexp(0)) + math.log(float(y[1] - y[0]))
    assert exact.log_normalizer == pytest.approx(log_c, rel=1e-10)


def test_samples_of_the_quadrature_laws():
    """The tilted laws of the line are sampled by inversion: means within 4 standard errors."""
    exact = one_dimensional("vp-flat", "standard", Quadratic([0.7], 0.4), 0.5).exact
    for law in (exact.terminal, exact.initial, exact.reference):
        x = law.sample(4000, Noise(3, dtype=torch.float64))
        assert abs(float(x.mean() - law.mean)) < 4 * math.sqrt(float(law.covariance) / 4000)


def test_samples_in_the_plane():
    """Draws by running from nu*: first and second moments against sums over a grid, at 5 standard errors."""
    exact = planar("standard", INDEFINITE, 0.5).exact
    line = torch.linspace(-5, 5, 61, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    for law in (exact.marginal(0.7), exact.terminal, exact.reference):
        weights = law.log_prob(grid).softmax(0)
        mean = weights @ grid
        spread = (weights[:, None] * (grid - mean)).mT @ (grid - mean)
        x = law.sample(4000, Noise(1, dtype=torch.float64))
        z = (x.mean(0) - mean) / (spread.diagonal() / 4000).sqrt()
        assert float(z.abs().max()) < 5
        excess = (x - mean).mT @ (
            x - mean
        ) / 4000 / spread.diagonal().max() - spread / spread.diagonal().max()
        assert float(excess.abs().max()) < 5 * math.sqrt(3 / 4000)


def test_three_dimensions_have_value_and_control_but_no_normaliser():
    law = GaussianMixture([0.5, 0.5], [[-1.0, 0, 0], [1.0, 0, 0]], [0.5, 0.3])
    process = ReverseProcess(VP(1.0, 1.0), law, "standard")
    problem = Problem(process, Linear([1.0, 0.0, 0.0]), 0.5)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert hjb_residual(problem, x, step=1e-3) < 1e-6
    for name in ("log_normalizer", "terminal", "reference", "path_kl", "kl_initial"):
        with pytest.raises(NoClosedForm, match="marginal"):
            getattr(problem.exact, name).mean  # noqa: B018


def test_float32_and_column_layout():
    exact = planar("marginal", INDEFINITE, 0.5).exact
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    u = exact.control(0.3, x)
    assert u.dtype == torch.float32 and exact.value(0.3, x).dtype == torch.float64
    assert torch.allclose(u.double(), exact.control(0.3, x.double()), rtol=1e-4, atol=1e-4)
    assert torch.allclose(exact.control(0.3, x.mT.contiguous().mT), u, rtol=1e-5, atol=1e-5)


def test_components_whose_weight_underflows_still_rule_far_out():
    """Log masses of the tilt that differ by more than 745: log p_ft = log p + r/temperature - log C everywhere."""
    means = [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 3.0, 1.0]]
    law = GaussianMixture([0.4, 0.3, 0.3], means, [[1.0, 1.0, 1.0], [0.5, 0.5, 0.5], [0.7, 0.7, 0.7]])
    process = ReverseProcess(Cosine(), law, initial="marginal")
    problem = Problem(process, Linear([-50.0, -40.0, 0.0]), 0.13)
    exact = problem.exact
    assert float(exact.terminal.weights.min()) == 0.0
    x = torch.tensor([*means, [-50.0, -40.0, 0.0]], dtype=torch.float64)
    right = law.log_prob(x) + problem.reward(x) / problem.temperature - exact.log_normalizer
    assert torch.allclose(exact.terminal.log_prob(x), right, rtol=1e-12)
