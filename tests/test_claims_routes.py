"""The second routes of the control claims (plain numpy and scipy), against brute force and elementary cases."""

import numpy as np
import pytest
import torch
from scipy import stats

from sdecontrol.claims.base import Case, get_claim
from sdecontrol.claims.entropy.kernels_one_step import moments_of, next_state
from sdecontrol.claims.routes.differences import Slopes, divergence
from sdecontrol.claims.routes.draws import OptimalDraws, TimeRule, clenshaw_curtis, extrapolated
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.local import HALVINGS, normal_rule, order_row, take_step, vanishing_row
from sdecontrol.claims.routes.ode import LinearSDE, Member, MomentFlow, Riccati
from sdecontrol.claims.routes.plain import Cloud, GaussianSum, Quadric
from sdecontrol.claims.routes.posterior import Clean, gaussian, gaussian_kl, noised, rule, score
from sdecontrol.controls import StateControl
from sdecontrol.kernels import EulerMaruyama, ExactTransition, SecondOrder
from sdecontrol.laws import Gaussian, GaussianMixture
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import resolve
from sdecontrol.processes import Affine, DiffusionProcess
from sdecontrol.rewards import Quadratic
from sdecontrol.step import advance

LAW = GaussianSum(
    (
        Cloud(np.log([0.4]), np.array([[0.5, -1.0]]), np.array([[0.5, 0.2], [0.2, 0.4]])),
        Cloud(np.log([0.6]), np.array([[-0.7, 0.3]]), np.array([[0.3, -0.1], [-0.1, 0.6]])),
    )
)
RHO = Quadric(0.3, np.array([0.7, -0.4]), np.array([[0.5, 0.1], [0.1, -0.3]]))
Y = np.array([[0.3, 0.8], [-1.0, 0.1]])


def _posterior_on_a_grid(y, f):
    """E[f(X) | a X + sqrt(h) Z = y] by brute force on a grid."""
    line = np.linspace(-6, 6, 481)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    density = sum(
        np.exp(c.log_weights[0]) * stats.multivariate_normal(c.means[0], c.covariance).pdf(x) for c in LAW.clouds
    )
    weight = density * np.exp(-((y - 0.6 * x) ** 2).sum(1) / (2 * 0.3))
    return float(weight @ f(x) / weight.sum())


def test_posterior_of_a_mixture_against_a_grid():
    clean = Clean.of(LAW, 0.6, 0.3)
    for i, y in enumerate(Y):
        assert clean.mean(RHO, Y)[i] == pytest.approx(_posterior_on_a_grid(y, RHO), rel=1e-9)
        growth = np.log(_posterior_on_a_grid(y, lambda x: np.exp(RHO(x))))
        assert clean.log_growth(RHO, Y)[i] == pytest.approx(growth, rel=1e-9)
    draws = clean.draw(Y[:1], 40_000, np.random.default_rng(0))
    mean = [_posterior_on_a_grid(Y[0], lambda x, j=j: x[:, j]) for j in (0, 1)]
    assert np.abs((draws.mean(0) - mean) / (draws.std(0) / 200)).max() < 4


def test_gradients_of_the_second_route_against_differences():
    clean, law = Clean.of(LAW, 0.6, 0.3), noised(LAW, 0.6, 0.3)
    step = 1e-5 * np.eye(2)
    for f, gradient in ((lambda y: clean.mean(RHO, y), clean.mean_gradient(RHO, Y)), (law.log_density, score(law, Y))):
        numeric = np.stack([(f(Y + e) - f(Y - e)) / 2e-5 for e in step], 1)
        assert np.abs(numeric - gradient).max() < 1e-8


def test_gaussian_kl_against_torch():
    first, second = Gaussian([0.5, 0.0], [[1.0, 0.3], [0.3, 0.5]]), Gaussian([0.0, 1.0], [[0.7, 0.0], [0.0, 2.0]])
    normal = torch.distributions.MultivariateNormal
    truth = torch.distributions.kl_divergence(*(normal(law.mean, law.covariance) for law in (first, second)))
    pairs = [(law.mean.numpy(), law.covariance.numpy()) for law in (first, second)]
    assert gaussian_kl(*pairs) == pytest.approx(float(truth), rel=1e-12)


def test_moment_equations_and_riccati_of_an_ornstein_uhlenbeck_process():
    """dY = -Y dt + sqrt(2) dB + ...: everything is elementary."""
    sde = LinearSDE(1, 1.0, lambda t: (-np.eye(1), np.zeros(1)), lambda t: np.sqrt(2.0))
    zero = np.zeros((1, 1)), np.zeros(1)
    members = {
        "optimum": Member(np.array([2.0]), np.array([[0.5]]), lambda t, best: zero),
        "pushed": Member(np.array([0.0]), np.array([[1.0]]), lambda t, best: (np.zeros((1, 1)), np.ones(1))),
    }
    flow = MomentFlow(sde, lambda t: zero, members, [0.0, 1.0], 1e-10)
    mean, covariance = flow.fine.moments("optimum")
    assert mean[0] == pytest.approx(2 * np.exp(-1), rel=1e-9)
    assert covariance[0, 0] == pytest.approx(1 - 0.5 * np.exp(-2), rel=1e-9)
    assert flow.read(lambda s: s.energy("pushed")).value == pytest.approx(0.5, rel=1e-9)
    assert flow.fine.moments("pushed")[0][0] == pytest.approx(np.sqrt(2) * (1 - np.exp(-1)), rel=1e-9)
    value = Riccati(sde, Quadric(0.0, np.array([1.0]), np.zeros((1, 1))), [0.0], 1e-10).fine[0]
    assert value(np.array([[3.0]]))[0] == pytest.approx(3 * np.exp(-1) + (1 - np.exp(-2)) / 2, rel=1e-9)


QUADRATIC_OU = (  # dY = a Y dt + dB in 20-D, minus p |y|^2 as a rate, q |y|^2 at the end: F(0) and V(0, 0)
    (0.2, 0.2, 0.1, 0.292553916743, 4.055382123),
    (1.0, 1.0, 0.5, 1.313455773269, 20.697248488),
)


def test_running_rewards_of_the_second_route():
    """dY = dB from a point: E int |Y|^2 dt = |y|^2 + 1/2; then the published quadratic Ornstein-Uhlenbeck problems."""
    zero = np.zeros((1, 1)), np.zeros(1)
    square, still = Quadric(0.0, np.zeros(1), -2 * np.eye(1)), LinearSDE(1, 1.0, lambda t: zero, lambda t: 1.0)
    members = {"optimum": Member(np.array([2.0]), np.zeros((1, 1)), lambda t, best: zero)}
    flow = MomentFlow(still, lambda t: zero, members, [0.0, 1.0], 1e-10, square)
    assert flow.read(lambda s: s.running("optimum")).value == pytest.approx(4.5, rel=1e-9)
    d, eye = 20, np.eye(20)
    for a, p, q, slope, value in QUADRATIC_OU:
        rho, running = Quadric(0.0, np.zeros(d), 2 * q * eye), Quadric(0.0, np.zeros(d), 2 * p * eye)
        sde = LinearSDE(d, 1.0, lambda t, a=a: (a * eye, np.zeros(d)), lambda t: 1.0)
        found = Riccati(sde, rho, [0.0], 1e-10, running).fine[0]
        assert found.constant == pytest.approx(-value, rel=1e-8)
        assert np.abs(found.curvature - 2 * slope * eye).max() < 1e-9
        process = DiffusionProcess(Affine(a * eye), 1.0, Gaussian(np.zeros(d), 0.1 * eye))
        problem = Problem(process, Quadratic(np.zeros(d), 2 * q * eye), 1.0, Quadratic(np.zeros(d), 2 * p * eye))
        at_zero = float(problem.exact.value(0.0, torch.zeros(1, d, dtype=torch.float64)))
        assert at_zero == pytest.approx(-value, rel=1e-8)


@pytest.mark.parametrize(("dim", "degree"), [(1, 5), (2, 5), (4, 5), (5, 3), (29, 3)])
def test_rule_over_the_noise_of_a_step(dim, degree):
    """Moments of N(0, I): E z_i^2 = 1, E z_i^4 = 3, E z_i^2 z_j^2 = 1, odd ones 0."""
    z, w = normal_rule(dim)
    assert w.sum() == pytest.approx(1.0) and np.abs(w @ z).max() < 1e-12 and np.abs(w @ z**3).max() < 1e-12
    assert np.abs((z * w[:, None]).T @ z - np.eye(dim)).max() < 1e-12
    if degree == 5:
        squares = (z**2 * w[:, None]).T @ z**2
        assert np.abs(squares - np.ones((dim, dim)) - 2 * np.eye(dim)).max() < 1e-12
        assert np.abs((z**3 * w[:, None]).T @ z**2).max() < 1e-12


def test_law_of_the_next_state_against_a_grid():
    """X_s' given X_s = y, density p_s'(x) N(y; r x, q): mean and covariance by brute force."""
    latent = Latent(resolve("mixture-2d-vp").problem)
    t, t_next, y = 0.5, 0.6, np.array([[0.4, -0.3]])
    (a, h), (b, k) = latent.level(t), latent.level(t_next)
    mean, covariance = (part[0] for part in moments_of(next_state(latent, latent.known_data, t, t_next), y))
    line = np.linspace(-4, 4, 401)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    r = a / b
    log_weight = noised(latent.known_data, b, k).log_density(x) - ((y - r * x) ** 2).sum(1) / (2 * (h - r * r * k))
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert np.abs(weight @ x - mean).max() < 1e-10
    assert np.abs((x - mean).T @ ((x - mean) * weight[:, None]) - covariance).max() < 1e-10


@pytest.mark.parametrize("kernel", [EulerMaruyama(), SecondOrder(), ExactTransition()], ids=repr)
def test_a_step_over_the_nodes_is_the_step_of_the_loop(kernel):
    process = resolve("gaussian-4d-vp").problem.process
    x = torch.as_tensor(np.random.default_rng(0).normal(size=(2, 4)))
    control = StateControl(lambda t, y: torch.sin(y + t))
    step = take_step(process, kernel, 0.3, 0.4, x, np.eye(4), control(0.3, x))
    transition = kernel.transition(process, 0.3, 0.4)
    for j, node in enumerate(step.nodes):
        xi = torch.as_tensor(node).expand(2, 4)
        assert (advance(process, transition, 0, x, xi, control)[0] - step.ends[:, j]).abs().max() < 1e-14


def test_orders_and_limits_are_judged():
    case = Case(get_claim("prop-3.5"), resolve("gaussian-1d-vp").problem)
    step = 0.1 / np.array(HALVINGS)
    order_row(case, "second order", 3 * step**2 + step**3, 2, 1.0)
    order_row(case, "first order", 0.01 * step + step**2, 2, 1.0)
    order_row(case, "none", 1e-9 * np.ones(4), 2, 1.0)
    order_row(case, "rounding", 1e-14 * np.ones(4), 2, 1.0)
    vanishing_row(case, "vanishes", [np.array([h, h**2]) for h in step], 1.0)
    vanishing_row(case, "does not", [np.array([h, 1e-3 + h]) for h in step], 1.0)
    assert [row.verdict for row in case.rows] == ["holds", "violated", "violated", "holds", "holds", "violated"]


def test_rules_in_time():
    x, w = clenshaw_curtis(9)
    assert w @ x**8 == pytest.approx(1 / 9, rel=1e-13) and w.sum() == pytest.approx(1.0)
    value, error = extrapolated([3 + h + 2 * h**2 for h in (0.4, 0.2, 0.1)])
    assert value == pytest.approx(3.0, abs=1e-12) and error < 1
    latent = Latent(resolve("mixture-2d-vp").problem)  # beta from 0.1 to 8, linear
    total, error = TimeRule(latent).integrate(lambda t: latent.process.amplitude(t) ** 2)
    assert abs(total - 4.05) < error < 1e-2
    s, v = latent.level(0.0), latent.size
    gain = lambda a, h: a * v / (a * a * v + h)  # noqa: E731  the posterior's, for a Gaussian of that variance
    total, error = TimeRule(latent).integrate(lambda t: (latent.process.amplitude(t) * gain(*latent.level(t))) ** 2)
    assert total == pytest.approx(v * s[1] / (s[0] ** 2 * v + s[1]), rel=1e-8)  # the posterior variance at t = 0


def test_normal_coordinates_of_a_subspace():
    """log Q_t off the subspace, from the library's noised law when the start is matched."""
    problem = resolve("subspace-16-in-64-ve").problem
    latent, t = Latent(problem), 0.3
    x = latent.draw(t, 5, np.random.default_rng(0))
    law = problem.process.noised(t)
    z = latent.reference(t).log_density(latent.encode(t, x))
    assert np.abs(law.log_prob(x).numpy() - z - latent.log_normal(t, x)).max() < 1e-9


def test_gaussian_and_mixture_laws_are_read_as_numbers():
    law = GaussianMixture([0.4, 0.6], [[0.5, -1.0], [-0.7, 0.3]], np.stack([c.covariance for c in LAW.clouds]))
    assert np.abs(law.log_prob(torch.as_tensor(Y)).numpy() - LAW.log_density(Y)).max() < 1e-13
    assert gaussian(np.zeros(2), np.eye(2)).log_density(np.zeros((1, 2)))[0] == pytest.approx(-np.log(2 * np.pi))


def test_differences_are_of_fourth_order():
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=torch.float64)
    f = lambda t, x: torch.exp(t * x[:, 0]) * torch.sin(x[:, 1])  # noqa: E731
    field = lambda x: torch.stack([x[:, 0] ** 2 * x[:, 1], torch.sin(x[:, 1])], 1)  # noqa: E731
    grow, wave = torch.exp(0.7 * x[:, 0]), torch.sin(x[:, 1])
    errors = []
    for step in (0.1, 0.05):
        found = Slopes.of(f, 0.7, x, step, step)
        slope = torch.stack([0.7 * grow * wave, grow * torch.cos(x[:, 1])], 1)
        spread = (0.49 - 1) * grow * wave
        away = divergence(field, x, step) - 2 * x[:, 0] * x[:, 1] - torch.cos(x[:, 1])
        gaps = (found.in_time - x[:, 0] * grow * wave, found.gradient - slope, found.laplacian - spread, away)
        errors.append([float(gap.abs().max()) for gap in gaps])
    assert np.allclose(np.log2(np.array(errors[0]) / np.array(errors[1])), 4, atol=0.1)


def test_optimal_draws_have_the_marginals_of_the_optimum():
    problem = resolve("mixture-2d-vp").problem
    latent = Latent(problem)
    draws = OptimalDraws(latent, 20_000, np.random.default_rng(0))
    assert abs(draws.weights.mean() - 1) < 5 * draws.weights.std() / np.sqrt(20_000)
    nodes, weights = rule(latent.start, 0.3)
    growth = latent.clean(0.0).log_growth(latent.rho, nodes)
    weights = weights * np.exp(growth - growth.max())
    truth = (weights / weights.sum()) @ nodes
    found = draws.weights[:, None] * (draws.states[0] - truth)
    assert np.abs(found.mean(0) / (found.std(0) / np.sqrt(20_000))).max() < 4.5
