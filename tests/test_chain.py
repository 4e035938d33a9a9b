"""The chain's own optimum against the joint law of all noises, numerical optimisation and closed forms."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_gaussian import Joint, joint_of, standard_kl
from scipy.integrate import solve_ivp
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NoTilt, ValueBlowUp
from sdecontrol.exact.chain.optimum import ChainExact, exact_chain
from sdecontrol.moments import moments
from sdecontrol.orders import observed_order

A2 = torch.tensor([[-0.8, 0.5], [-0.2, -1.1]], dtype=torch.float64)
START = sc.Gaussian([0.3, -0.2], [[1.0, 0.2], [0.2, 0.7]])
OU2 = sc.DiffusionProcess(sc.Affine(A2, [0.4, -0.1]), lambda t: 1 + 0.5 * t, START)
FROM_POINT = sc.DiffusionProcess(sc.Affine(A2, [0.4, -0.1]), 0.8, sc.Dirac([0.5, -1.0]))
DATA = sc.Gaussian([1.0, -0.5], [[0.8, 0.3], [0.3, 0.5]])
REVERSE = sc.ReverseProcess(sc.VP(0.3, 4.0), DATA)
TERMINAL = sc.Quadratic([0.7, -0.4], [[0.9, 0.2], [0.2, -0.15]], 0.3)
RUNNING = sc.Quadratic([-0.2, 0.1], [[0.4, -0.1], [-0.1, 0.3]], -0.1)
T = 0.6

CASES = {
    "euler, running reward": (OU2, RUNNING, sc.EulerMaruyama(), sc.TimeGrid.uniform(5)),
    "second order, running reward": (OU2, RUNNING, sc.SecondOrder(), sc.TimeGrid.uniform(4)),
    "from a point": (FROM_POINT, RUNNING, sc.EulerMaruyama(), sc.TimeGrid.uniform(5)),
    "noiseless last step": (REVERSE, None, sc.Ancestral(), sc.TimeGrid.geometric(5, s_min=0.01)),
    "reverse second order": (REVERSE, RUNNING, sc.SecondOrder(), sc.TimeGrid.geometric(4, s_min=0.05, close=False)),
    "exact transitions": (REVERSE, None, sc.ExactTransition(), sc.TimeGrid.explicit([0.0, 0.2, 0.7, 1.0])),
}


@pytest.fixture(params=CASES.values(), ids=CASES.keys(), scope="module")
def case(request):
    process, running, kernel, grid = request.param
    chain = (
        sc.Problem(process, TERMINAL, temperature=T, running_reward=running).discretise(kernel=kernel, grid=grid).exact
    )
    return chain, process, running, kernel, grid


def total_reward(joint, dts, running, first=0):
    """(r(x_K) + sum_{k >= first} dt_k running(x_k)) / T as a form in all noises."""
    total = joint.quadratic(len(dts), TERMINAL.curvature.numpy(), TERMINAL.linear.numpy(), TERMINAL.constant)
    if running is not None:
        for k, dt in enumerate(dts):
            total = total + joint.quadratic(
                k, running.curvature.numpy(), running.linear.numpy(), running.constant
            ).scaled(dt if k >= first else 0.0)
    return total.scaled(1 / T)


def from_point(joint, dts, k, x):
    """The rest of the chain from x_k = x."""
    d = len(x)
    return Joint(joint.steps[k:], x, np.zeros((d, d))), dts[k:]


def test_normaliser_laws_and_path_kl_are_those_of_the_tilted_joint_law(case):
    chain, process, running, kernel, grid = case
    joint, dts, times = joint_of(process, kernel, grid)
    form = total_reward(joint, dts, running)
    mean, covariance = form.tilted()
    assert chain.log_normalizer == pytest.approx(form.log_expectation(), rel=1e-11, abs=1e-12)
    assert chain.optimum == pytest.approx(T * form.log_expectation(), rel=1e-11, abs=1e-12)
    assert chain.path_kl == pytest.approx(standard_kl(mean, covariance), rel=1e-10)
    d = len(joint.mean)
    assert chain.kl_initial == pytest.approx(standard_kl(mean[:d], covariance[:d, :d]), rel=1e-10, abs=1e-13)
    for k, t in enumerate(times):
        m, c = joint.law(k, mean, covariance)
        np.testing.assert_allclose(chain.marginal(t).mean, m, atol=1e-11)
        np.testing.assert_allclose(chain.marginal(t).covariance, c, atol=1e-11)
    np.testing.assert_allclose(chain.initial.mean, joint.law(0, mean, covariance)[0], atol=1e-11)
    np.testing.assert_allclose(chain.terminal.mean, joint.law(len(dts), mean, covariance)[0], atol=1e-11)
    zero, eye = np.zeros(joint.size), np.eye(joint.size)
    np.testing.assert_allclose(chain.reference.covariance, joint.law(len(dts), zero, eye)[1], atol=1e-12)


def test_value_and_kernel_are_conditional_expectations(case):
    chain, process, running, kernel, grid = case
    joint, dts, times = joint_of(process, kernel, grid)
    points = np.array([[0.0, 0.0], [1.2, -0.7], [-0.4, 2.0]])
    for k in range(len(times) - 1):
        values = chain.value(times[k], torch.tensor(points))
        means, covariance = chain.kernel(k, torch.tensor(points))
        for x, value, mean in zip(points, values, means):
            rest, rest_dts = from_point(joint, dts, k, x)
            form = total_reward(rest, rest_dts, running)
            assert float(value) == pytest.approx(T * form.log_expectation(), rel=1e-11, abs=1e-12)
            m, c = rest.law(1, *form.tilted())
            np.testing.assert_allclose(mean, m, atol=1e-11)
            np.testing.assert_allclose(covariance, c, atol=1e-11)
    np.testing.assert_allclose(chain.value(times[-1], torch.tensor(points)), TERMINAL(torch.tensor(points)), rtol=1e-13)


def test_kept_initial_law_gives_the_biased_law_and_the_average_value(case):
    """x_0 ~ p_noise, then the optimal kernels: the tilted joint law reweighted in x_0, by conditioning on x_0."""
    chain, process, running, kernel, grid = case
    joint, dts, times = joint_of(process, kernel, grid)
    d, last = len(joint.mean), len(dts)

    def end(x):
        rest, rest_dts = from_point(joint, dts, 0, x)
        form = total_reward(rest, rest_dts, running)
        return T * form.log_expectation(), *rest.law(last, *form.tilted())

    centre, mean, covariance = end(joint.mean)
    nodes = [(end(joint.mean + s * column)) for column in joint.root.T for s in (1.0, -1.0)]
    average = centre + sum(value - centre for value, _, _ in nodes) / 2  # exact for quadratics: E y_i^2 = 1
    slopes = np.stack([(up[1] - down[1]) / 2 for up, down in zip(nodes[::2], nodes[1::2])], axis=1)
    assert chain.objective_untilted == pytest.approx(average, rel=1e-10)
    np.testing.assert_allclose(chain.untilted_terminal.mean, mean, atol=1e-11)
    np.testing.assert_allclose(chain.untilted_terminal.covariance, covariance + slopes @ slopes.T, atol=1e-11)
    assert chain.objective_untilted <= chain.optimum + 1e-13
    assert d == 2


def objective(chain, process, kernel, grid, running, control, initial):
    """E reward - T KL of an affine control, through `moments` (itself tested against the joint law)."""
    found = moments(process, kernel, grid, initial=initial, control=control)

    def expected(reward, k):
        m, c = found.means[k], found.covariances[k]
        return float(reward(m[None])[0] - (reward.curvature * c).sum() / 2)

    total = expected(TERMINAL, -1)
    if running is not None:
        total += sum((b - a) * expected(running, k) for k, (a, b) in enumerate(zip(found.times, found.times[1:])))
    return total - T * found.kl


def test_best_mean_shift_reaches_its_stated_objective_and_nothing_nearby_beats_it(case):
    chain, process, running, kernel, grid = case
    arguments = chain, process, kernel, grid, running
    best = objective(*arguments, chain.control, chain.initial)
    assert best == pytest.approx(chain.objective, rel=1e-10, abs=1e-12)
    assert chain.optimum - best == pytest.approx(chain.loss, rel=1e-6, abs=1e-12)
    assert chain.loss > 1e-3
    kept = objective(*arguments, chain.control, None)
    assert kept == pytest.approx(chain.control_objective_untilted, rel=1e-10, abs=1e-12)
    found = moments(process, kernel, grid, initial=chain.initial, control=chain.control)
    np.testing.assert_allclose(chain.control_terminal.covariance, found.covariances[-1], atol=1e-11)
    generator = np.random.default_rng(3)
    for size in (0.3, 0.03):
        for _ in range(5):
            gain, offset = size * generator.normal(size=(2, 2)), size * generator.normal(size=2)
            near = chain.control + sc.AffineControl(lambda t, g=gain: g * math.cos(5 * t), offset)
            assert objective(*arguments, near, chain.initial) < best


def ou_1d(steps, running=None, temperature=0.7, curvature=1.5):
    process = sc.DiffusionProcess(sc.Affine([[-0.6]], [0.2]), 1.1, sc.Gaussian(0.4, 0.9), horizon=1.0)
    reward = sc.Quadratic([0.8], [[curvature]], 0.1)
    problem = sc.Problem(process, reward, temperature=temperature, running_reward=running)
    return problem, problem.discretise(kernel=sc.EulerMaruyama(), grid=sc.TimeGrid.uniform(steps)).exact


def test_best_mean_shift_and_initial_law_by_numerical_optimisation():
    """BFGS over all affine feedbacks and Gaussian starts of a 3-step chain, in scalars: same value and argument."""
    running, temperature = sc.Quadratic([0.3], [[0.5]], 0.0), 0.7
    _, chain = ou_1d(3, running, temperature)
    dt = 1 / 3

    def loss(theta):
        mean, variance = theta[0], math.exp(theta[1])
        ratio, gap = variance / 0.9, mean - 0.4
        kl, reward = (ratio + gap**2 / 0.9 - 1 - math.log(ratio)) / 2, 0.0
        for gain, offset in theta[2:].reshape(3, 2):
            reward += dt * (0.3 * mean - 0.25 * (mean**2 + variance))
            kl += dt / 2 * ((gain * mean + offset) ** 2 + gain**2 * variance)
            a = 1 - 0.6 * dt + 1.1 * dt * gain
            mean, variance = a * mean + dt * (0.2 + 1.1 * offset), a * a * variance + 1.21 * dt
        return -(reward + 0.8 * mean - 0.75 * (mean**2 + variance) + 0.1 - temperature * kl)

    best = minimize(loss, np.zeros(8), method="BFGS", options={"gtol": 1e-9, "maxiter": 2000})
    assert -best.fun == pytest.approx(chain.objective, abs=1e-9)
    assert best.x[0] == pytest.approx(float(chain.initial.mean[0]), abs=1e-4)
    assert math.exp(best.x[1]) == pytest.approx(float(chain.initial.covariance[0, 0]), abs=1e-4)
    for k, (gain, offset) in enumerate(best.x[2:].reshape(3, 2)):
        exact_gain, exact_offset = chain.control.affine_at(k * dt)
        assert gain == pytest.approx(float(exact_gain[0, 0]), abs=1e-4)
        assert offset == pytest.approx(float(exact_offset[0]), abs=1e-4)


def test_best_mean_shift_is_best_among_nonlinear_shifts():
    """Dynamic programming over mean shifts with no ansatz: quadrature in the noise, maximisation at every point."""
    _, chain = ou_1d(2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    weights = weights / weights.sum()
    dt, temperature = 0.5, 0.7

    def step_back(continuation, x):
        def cost(w):
            after = x + dt * (0.2 - 0.6 * x) + 1.1 * math.sqrt(dt) * (nodes + w)
            return w * w / 2 - weights @ continuation(after)

        return -minimize_scalar(cost, bracket=(-2.0, 2.0), method="brent", tol=1e-10).fun

    def last(x):
        return (0.8 * x - 0.75 * x**2 + 0.1) / temperature

    for x in (-0.8, 1.5):
        w0 = step_back(lambda y: np.array([step_back(last, yi) for yi in y]), x)
        start = torch.tensor([[x]], dtype=torch.float64)
        assert temperature * w0 == pytest.approx(float(chain.value(0.0, start)[0]) - chain.loss, abs=1e-9)


@settings(max_examples=40)
@given(st.floats(0.05, 5.0), st.floats(-0.4, 4.0), st.integers(1, 8), st.floats(-2.0, 2.0), st.floats(-2.0, 2.0))
def test_no_control_exceeds_the_optimum(temperature, curvature, steps, gain, offset):
    problem, chain = ou_1d(steps, None, temperature, curvature * temperature)
    found = moments(
        problem.process, sc.EulerMaruyama(), sc.TimeGrid.uniform(steps), control=sc.AffineControl([[gain]], [offset])
    )
    m, v = float(found.means[-1]), float(found.covariances[-1])
    reached = 0.8 * m - curvature * temperature * (m * m + v) / 2 + 0.1 - temperature * found.kl
    slack = 1e-12 * (1 + abs(reached) + abs(chain.optimum))
    assert reached <= chain.objective + slack <= chain.optimum + 2 * slack
    assert reached <= chain.control_objective_untilted + slack


def test_discrete_step_of_theory():
    """Kernel N(m, V), continuation gamma x - kappa x^2/2: N((m + gamma V)/(1 + kappa V), V/(1 + kappa V)); its loss."""
    process = sc.DiffusionProcess(sc.Affine([[-0.6]], [0.2]), 1.1, sc.Dirac([0.4]))
    gamma, kappa, temperature, dt = 0.9, 1.7, 0.7, 0.5
    problem = sc.Problem(process, sc.Quadratic([gamma * temperature], [[kappa * temperature]]), temperature=temperature)
    chain = problem.discretise(kernel=sc.EulerMaruyama(), grid=sc.TimeGrid.explicit([0.0, dt])).exact
    x = 0.4
    m, v = x + dt * (0.2 - 0.6 * x), 1.21 * dt
    mean, covariance = chain.kernel(0, torch.tensor([[x]], dtype=torch.float64))
    assert float(mean[0, 0]) == pytest.approx((m + gamma * v) / (1 + kappa * v), rel=1e-14)
    assert float(covariance[0, 0]) == pytest.approx(v / (1 + kappa * v), rel=1e-14)
    assert chain.loss == pytest.approx(temperature * (kappa * v - math.log1p(kappa * v)) / 2, rel=1e-13)
    u = float(chain.control(0.0, torch.tensor([[x]], dtype=torch.float64))[0, 0])
    assert m + 1.1 * dt * u == pytest.approx((m + gamma * v) / (1 + kappa * v), rel=1e-14)


def gaussian_tilt(mean, covariance, reward, temperature):
    """The normaliser, mean and covariance rows of theory 1.2, in numpy."""
    k, g = reward.curvature.numpy(), reward.linear.numpy()
    q = np.linalg.inv(np.eye(len(mean)) + covariance @ k / temperature)
    log_c = -np.linalg.slogdet(np.eye(len(mean)) + covariance @ k / temperature)[1] / 2 + reward.constant / temperature
    log_c += (g @ q @ mean - mean @ k @ q @ mean / 2 + g @ q @ covariance @ g / (2 * temperature)) / temperature
    return log_c, q @ (mean + covariance @ g / temperature), q @ covariance


def continuous_output(schedule):
    a, h = schedule.alpha(1.0), schedule.h(1.0)
    sigma, mu = DATA.covariance.numpy(), DATA.mean.numpy()
    p = np.linalg.inv(np.linalg.inv(sigma) + a * a / h * np.eye(2))
    j = a / h * p
    return p @ np.linalg.solve(sigma, mu), p + schedule.prior_std**2 * j @ j


@pytest.mark.parametrize("schedule", [sc.VP(0.3, 4.0), sc.VE(0.05, 6.0), sc.SubVP(0.3, 4.0)], ids=["vp", "ve", "subvp"])
@pytest.mark.parametrize("grid", [sc.TimeGrid.uniform(1), sc.TimeGrid.uniform(7), sc.TimeGrid.geometric(9)], ids=str)
def test_exact_transitions_have_the_optimum_of_the_continuous_problem(schedule, grid):
    """Normaliser, laws and path KL of the continuum on any grid, within 1e-12."""
    process = sc.ReverseProcess(schedule, DATA)
    chain = sc.Problem(process, TERMINAL, temperature=T).discretise(kernel=sc.ExactTransition(), grid=grid).exact
    mean, covariance = continuous_output(schedule)
    log_c, tilted_mean, tilted_covariance = gaussian_tilt(mean, covariance, TERMINAL, T)
    assert chain.log_normalizer == pytest.approx(log_c, abs=1e-12)
    np.testing.assert_allclose(chain.terminal.mean, tilted_mean, atol=1e-12)
    np.testing.assert_allclose(chain.terminal.covariance, tilted_covariance, atol=1e-12)
    solved = np.linalg.solve(covariance, tilted_covariance)
    gap = tilted_mean - mean
    kl = (np.trace(solved) - 2 + gap @ np.linalg.solve(covariance, gap) - np.linalg.slogdet(solved)[1]) / 2
    assert chain.path_kl == pytest.approx(kl, abs=1e-12)


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.Exponential(), sc.Ancestral(), sc.SecondOrder()], ids=repr)
def test_optimum_converges_to_the_continuum_at_the_declared_order(kernel):
    """log Z and the terminal mean against exact transitions to the same last level."""
    problem = sc.Problem(REVERSE, TERMINAL, temperature=T)
    grid = sc.TimeGrid.geometric(6, s_min=0.02, close=False)
    exact = problem.discretise(kernel=sc.ExactTransition(), grid=grid).exact
    factors = [16, 32, 64, 128]  # the ancestral error of log Z changes sign on coarser grids
    chains = [problem.discretise(kernel=kernel, grid=grid.refine(f)).exact for f in factors]
    errors = [c.log_normalizer - exact.log_normalizer for c in chains]
    assert observed_order(errors, factors).limit == pytest.approx(kernel.order_weak, abs=0.02)
    means = [float((c.terminal.mean - exact.terminal.mean)[1]) for c in chains]
    assert observed_order(means, factors).limit == pytest.approx(kernel.order_weak, abs=0.02)
    assert observed_order([c.loss for c in chains], factors).limit == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.SecondOrder()], ids=repr)
def test_general_diffusion_converges_to_the_exact_answers_of_the_problem(kernel):
    """Normaliser, value and best shift of the chain against problem.exact, the Riccati equations of the continuum."""
    problem = sc.Problem(OU2, TERMINAL, temperature=T)
    x, steps = torch.tensor([[0.4, -0.9]], dtype=torch.float64), [16, 32, 64, 128]
    chains = [problem.discretise(kernel=kernel, grid=sc.TimeGrid.uniform(k)).exact for k in steps]
    exact = problem.exact
    errors = {
        "log Z": [c.log_normalizer - exact.log_normalizer for c in chains],
        "value": [float(c.value(0.0, x) - exact.value(0.0, x)) for c in chains],
        "start": [float((c.initial.mean - exact.initial.mean)[1]) for c in chains],
        "end": [float((c.terminal.covariance - exact.terminal.covariance).trace()) for c in chains],
    }
    for name, error in errors.items():
        assert observed_order(error, steps).limit == pytest.approx(kernel.order_weak, abs=0.02), name
    control = [float((c.control(0.5, x) - exact.control(0.5, x))[0, 0]) for c in chains]
    assert observed_order(control, steps).limit == pytest.approx(1, abs=0.02)  # one u for the whole step
    assert observed_order([c.path_kl - exact.path_kl for c in chains], steps).limit == pytest.approx(
        kernel.order_weak, abs=0.02
    )


@pytest.mark.parametrize(("a", "p", "q", "printed"), [(0.2, 0.2, 0.1, 4.055382123), (1.0, 1.0, 0.5, 20.697248488)])
def test_quadratic_ornstein_uhlenbeck_limit(a, p, q, printed):
    """d = 20, running reward: the chain's optimum extrapolates to the printed V(0, 0), and so does its best shift."""
    eye = torch.eye(20, dtype=torch.float64)
    process = sc.DiffusionProcess(sc.Affine(a * eye), 1.0, sc.Dirac(torch.zeros(20, dtype=torch.float64)))
    problem = sc.Problem(
        process,
        sc.Quadratic(curvature=2 * q * eye),
        temperature=1.0,
        running_reward=sc.Quadratic(curvature=2 * p * eye),
    )
    steps = [25, 50, 100, 200, 400]
    chains = [problem.discretise(kernel=sc.EulerMaruyama(), grid=sc.TimeGrid.uniform(k)).exact for k in steps]
    for found in ([-c.optimum for c in chains], [-c.objective for c in chains]):
        column = np.array(found)
        for power in range(1, len(steps)):
            column = (2**power * column[1:] - column[:-1]) / (2**power - 1)
        assert column[-1] == pytest.approx(printed, abs=2e-6)
    assert observed_order([-c.optimum - printed for c in chains], steps).limit == pytest.approx(1, abs=0.01)


def test_subspace_data_stay_on_their_subspace():
    """Rank-2 data in 5 dimensions: the latent optimum; off-subspace parts of the reward are invisible."""
    basis = torch.linalg.qr(torch.tensor(np.random.default_rng(0).normal(size=(5, 2)))).Q
    schedule, grid = sc.VP(0.3, 4.0), sc.TimeGrid.geometric(8)
    k = torch.diag(torch.tensor([0.5, 1.0, 0.2, 0.8, 0.4], dtype=torch.float64))
    reward = sc.Quadratic(torch.tensor([0.3, -0.6, 0.2, 0.5, 0.1]), k)
    chain = sc.Problem(sc.ReverseProcess(schedule, sc.Subspace(basis, DATA)), reward, temperature=T)
    chain = chain.discretise(kernel=sc.Ancestral(), grid=grid).exact
    latent = sc.Problem(
        sc.ReverseProcess(schedule, DATA), reward.restrict(basis, torch.zeros(5).double()), temperature=T
    )
    latent = latent.discretise(kernel=sc.Ancestral(), grid=grid).exact
    assert chain.optimum == pytest.approx(latent.optimum, abs=1e-11)
    assert chain.loss == pytest.approx(latent.loss, abs=1e-11)
    assert chain.path_kl == pytest.approx(latent.path_kl, abs=1e-10)
    assert isinstance(chain.terminal, sc.Subspace)
    np.testing.assert_allclose(basis.T @ chain.terminal.covariance @ basis, latent.terminal.covariance, atol=1e-11)
    np.testing.assert_allclose(chain.terminal.covariance @ basis @ basis.T, chain.terminal.covariance, atol=1e-12)


def test_mixture_start_is_tilted_as_a_mixture():
    """log Z and the terminal law from two components, each a Gaussian chain of its own."""
    parts = [sc.Gaussian([-1.0], 0.3), sc.Gaussian([1.5], 0.5)]
    weights = [0.4, 0.6]
    start = sc.GaussianMixture(weights, [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
    reward, kernel, grid = sc.Quadratic([0.5], [[0.8]]), sc.EulerMaruyama(), sc.TimeGrid.uniform(6)

    def chain_from(law):
        process = sc.DiffusionProcess(sc.Affine([[-0.6]], [0.2]), 1.1, law)
        problem = SimpleNamespace(process=process, reward=reward, temperature=T, running_reward=None)
        return ChainExact(problem, kernel, grid)

    chain, components = chain_from(start), [chain_from(law) for law in parts]
    z = np.array([w * math.exp(c.log_normalizer) for w, c in zip(weights, components)])
    assert chain.log_normalizer == pytest.approx(math.log(z.sum()), rel=1e-12)
    share = z / z.sum()
    mean = sum(s * float(c.terminal.mean) for s, c in zip(share, components))
    assert float(chain.terminal.mean) == pytest.approx(mean, rel=1e-11)
    total = sum(s * (float(c.terminal.covariance) + float(c.terminal.mean) ** 2) for s, c in zip(share, components))
    assert float(chain.terminal.covariance) == pytest.approx(total - mean**2, rel=1e-11)
    assert chain.path_kl == pytest.approx(
        (0.5 * mean - 0.4 * total) / T - chain.log_normalizer, rel=1e-10
    )  # E r / T - log Z


def test_existence_is_checked_and_the_error_says_where():
    """Theory, section 6.4: the tilt fails at |k|/T = 1/S_p, the value at an inner time at 1/P_T; VP beta = 1, S = 4."""
    s = 4.0
    process = sc.ReverseProcess(sc.VP(1.0, 1.0), sc.Gaussian(0.0, s))
    a2 = math.exp(-1.0)
    p_t = s * (1 - a2) / (a2 * s + 1 - a2)
    s_p = p_t + a2 * (s / (a2 * s + 1 - a2)) ** 2

    def chain_for(k):  # sc.Problem itself refuses these rewards, since the continuous problem is the same
        problem = SimpleNamespace(
            process=process, reward=sc.Quadratic(curvature=[[k]]), temperature=1.0, running_reward=None
        )
        return ChainExact(problem, sc.ExactTransition(), sc.TimeGrid.uniform(400))

    assert math.isfinite(chain_for(-1 / s_p + 1e-9).log_normalizer)
    between = chain_for(-(1 / s_p + 1 / p_t) / 2)
    assert bool(torch.isfinite(between.value(0.0, torch.zeros(1, 1))).all())  # the value is finite, the tilt is not
    for attribute in ("log_normalizer", "optimum", "initial", "terminal", "path_kl"):
        with pytest.raises(NoTilt) as caught:
            getattr(between, attribute)
        assert caught.value.eigenvalue == pytest.approx(1 - s_p * (1 / s_p + 1 / p_t) / 2, rel=1e-9)
        assert caught.value.largest_curvature == pytest.approx(1 / s_p, rel=1e-9)
    explosive = chain_for(-1.5 / p_t)
    level = 1 / (1.5 / p_t)
    alpha2 = (s - level) / (s - level + level * s)
    blow_up = 1 + math.log(alpha2)  # beta = 1: a^2 = exp(-s), t = 1 - s
    with pytest.raises(ValueBlowUp, match="step") as caught:
        explosive.value(1.0, torch.zeros(1, 1))
    assert caught.value.time == pytest.approx(blow_up, abs=1 / 400)
    with pytest.raises(NoTilt):
        _ = explosive.log_normalizer
    assert explosive.reference.covariance[0, 0] == pytest.approx(s_p, rel=1e-12)


def step_chain(kernel, grid, process=REVERSE, reward=None):
    reward = reward or sc.Step([0.6, 0.8], 0.5, 1.3)
    return exact_chain(sc.Problem(process, reward, temperature=T), kernel, grid)


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.Ancestral(), sc.ExactTransition()], ids=repr)
def test_step_reward(kernel):
    """log Z, value and start from P(direction . x_K > threshold), the joint law's own normal probability."""
    grid = sc.TimeGrid.geometric(5, s_min=0.02)
    chain = step_chain(kernel, grid)
    w, lift = np.array([0.6, 0.8]), math.expm1(1.3 / T)
    joint, dts, times = joint_of(REVERSE, kernel, grid)

    def log_z(joint, last):
        mean, covariance = joint.law(last, np.zeros(joint.size), np.eye(joint.size))
        spread = math.sqrt(w @ covariance @ w)
        return math.log1p(lift * norm.sf(0.5, w @ mean, spread) if spread else lift * (w @ mean > 0.5))

    assert chain.log_normalizer == pytest.approx(log_z(joint, len(dts)), rel=1e-11)
    points = np.array([[0.3, 0.2], [-1.0, 0.4], [2.0, 1.0]])
    for k in range(len(times)):
        expected = [T * log_z(from_point(joint, dts, k, x)[0], len(dts) - k) for x in points]
        np.testing.assert_allclose(chain.value(times[k], torch.tensor(points)), expected, rtol=1e-10)
    x = torch.tensor(points)
    ratio = chain.initial.log_prob(x) - REVERSE.initial_law().log_prob(x)
    np.testing.assert_allclose(ratio, chain.value(0.0, x) / T - chain.log_normalizer, rtol=1e-10)
    ratio = chain.terminal.log_prob(x) - chain.reference.log_prob(x)
    np.testing.assert_allclose(ratio, chain.problem.reward(x) / T - chain.log_normalizer, rtol=1e-9)
    for attribute in ("control", "objective", "loss"):
        with pytest.raises(NoClosedForm, match="mean shift"):
            getattr(chain, attribute)


def test_any_reward_on_the_line():
    """A cosine under the Euler chain: E e^{r/T} by the trapezoidal rule, and the path KL = E r / T - log Z."""
    process = sc.ReverseProcess(sc.VP(0.3, 4.0), sc.Gaussian(0.5, 0.8))
    chain = step_chain(sc.EulerMaruyama(), sc.TimeGrid.uniform(6), process, lambda x: torch.cos(2 * x[:, 0]))
    nodes = np.linspace(-9, 9, 2001)
    x = float(chain.reference.mean) + math.sqrt(float(chain.reference.covariance)) * nodes
    weights = np.exp(-(nodes**2) / 2)
    tilt = weights / weights.sum() * np.exp(np.cos(2 * x) / T)
    assert chain.log_normalizer == pytest.approx(math.log(tilt.sum()), abs=1e-10)
    assert chain.path_kl == pytest.approx(tilt @ np.cos(2 * x) / tilt.sum() / T - chain.log_normalizer, abs=1e-9)


def test_what_is_not_closed_says_so():
    chain = step_chain(sc.Ancestral(), sc.TimeGrid.geometric(4), reward=lambda x: x.abs().sum(1))
    for attribute in ("optimum", "control"):
        with pytest.raises(NoClosedForm, match="closed form"):
            getattr(chain, attribute)
    running = sc.Problem(REVERSE, TERMINAL, running_reward=lambda t, x: x.abs().sum(1))
    with pytest.raises(NoClosedForm, match="running reward"):
        _ = exact_chain(running, sc.EulerMaruyama(), sc.TimeGrid.uniform(3)).optimum
    mixture = sc.ReverseProcess(sc.VP(), sc.GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], [[[0.1]], [[0.1]]]))
    with pytest.raises(NoClosedForm, match="affine"):
        _ = ChainExact(sc.Problem(mixture, sc.Linear([1.0])), sc.Ancestral(), sc.TimeGrid.geometric(4)).log_normalizer
    _, chain = ou_1d(4)
    with pytest.raises(BadInput, match="grid time"):
        chain.value(0.3, torch.zeros(1, 1))


def test_value_of_fine_chains_solves_the_riccati_equation():
    """kappa_0 of exact transitions against scipy's solution of kappa' = 1.2 kappa + 1.21 kappa^2 (1-D)."""
    problem, _ = ou_1d(3)
    chain = problem.discretise(kernel=sc.ExactTransition(), grid=sc.TimeGrid.uniform(3)).exact
    rhs = lambda t, k: 1.2 * k + 1.21 * k**2  # noqa: E731
    kappa = solve_ivp(rhs, (1.0, 0.0), [1.5 / 0.7], rtol=1e-12, atol=1e-14).y[0, -1]
    x = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64)
    v = chain.value(0.0, x) / 0.7
    assert float(2 * v[1] - v[0] - v[2]) == pytest.approx(kappa, rel=1e-10)
