"""Exact moments, path divergences and orders against the joint Gaussian of all noises, and against printed values."""

import math

import numpy as np
import pytest
import torch
from joint_gaussian import joint_of

import sdecontrol as sc
from sdecontrol.errors import BadInput, InfiniteKL
from sdecontrol.moments import moments
from sdecontrol.orders import observed_order
from sdecontrol.path_divergence import PathDivergence

RNG = np.random.default_rng(7)
A2 = torch.tensor([[-0.8, 0.5], [-0.2, -1.1]], dtype=torch.float64)
START = sc.Gaussian([0.3, -0.2], [[1.0, 0.2], [0.2, 0.7]])
OU2 = sc.DiffusionProcess(sc.Affine(A2, [0.4, -0.1]), lambda t: 1 + 0.5 * t, START, horizon=1.0)
DATA = sc.Gaussian([1.0, -0.5], [[0.8, 0.3], [0.3, 0.5]])
REVERSE = sc.ReverseProcess(sc.VP(0.3, 4.0), DATA)
CONTROL = sc.AffineControl(lambda t: [[-0.6 + t, 0.2], [0.1, -0.4]], lambda t: [0.3, 0.5 - t])
OTHER = sc.AffineControl([[0.1, 0.0], [0.3, 0.2]], [-0.2, 0.1])
KERNELS = [sc.EulerMaruyama(), sc.Exponential(), sc.Ancestral(), sc.DDIM(1.0), sc.SecondOrder(), sc.ExactTransition()]


def ids(kernel):
    return repr(kernel)


def log_ratio(joint, dts, times, control):
    """log dP^u/dP of every path, as a form in zeta ~ reference; the last step is left out when it has no noise."""
    total = joint.zero
    for k, dt in enumerate(dts):
        if joint.steps[k][2].any():
            gain, offset = (part.numpy() for part in control.affine_at(times[k]))
            total = total + joint.log_ratio(k, gain, offset, dt)
    return total


@pytest.mark.parametrize("process", [OU2, REVERSE], ids=["ou", "reverse"])
@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.SecondOrder(), sc.ExactTransition()], ids=ids)
def test_moments_and_energy_are_those_of_the_tilted_joint_law(process, kernel):
    """Under Q^u the joint of all noises is the reference tilted by the log ratio, and KL(Q^u||Q) its KL."""
    grid = sc.TimeGrid.uniform(5)
    found = moments(process, kernel, grid, control=CONTROL)
    joint, dts, times = joint_of(process, kernel, grid)
    form = log_ratio(joint, dts, times, CONTROL)
    mean, covariance = form.tilted()
    assert form.log_expectation() == pytest.approx(0, abs=1e-12)
    for k in range(6):
        m, c = joint.law(k, mean, covariance)
        np.testing.assert_allclose(found.means[k], m, atol=1e-12)
        np.testing.assert_allclose(found.covariances[k], c, atol=1e-12)
    assert found.kl == pytest.approx(form.mean(mean, covariance), rel=1e-12)
    assert found.kl_initial == 0.0


def test_initial_law_enters_the_moments_and_the_kl():
    other = sc.Gaussian([0.0, 1.0], [[0.5, 0.1], [0.1, 0.9]])
    found = moments(OU2, sc.EulerMaruyama(), sc.TimeGrid.uniform(3), initial=other)
    s, p = other.covariance.numpy(), START.covariance.numpy()
    gap = (other.mean - START.mean).numpy()
    solved = np.linalg.solve(p, s)
    expected = (np.trace(solved) - 2 + gap @ np.linalg.solve(p, gap) - np.linalg.slogdet(solved)[1]) / 2
    assert found.kl == found.kl_initial == pytest.approx(expected, rel=1e-12)
    np.testing.assert_array_equal(found.means[0], other.mean)
    assert moments(OU2, sc.EulerMaruyama(), sc.TimeGrid.uniform(3), initial=sc.Dirac([0.0, 0.0])).kl == math.inf


@pytest.mark.parametrize(
    ("steps", "printed"), [(10, 0.2570746305719569), (20, 0.2535454048539287), (40, 0.2517736545511725)]
)
def test_girsanov_kl_of_two_ornstein_uhlenbeck_chains(steps, printed):
    """Q: dX = -X dt + sqrt 2 dW against P: dX = -2X dt + sqrt 2 dW from x_0 = 1: published to 16 digits."""
    grid, kernel, start = sc.TimeGrid.uniform(steps), sc.EulerMaruyama(), sc.Dirac([1.0])
    p = sc.DiffusionProcess(sc.Affine([[-2.0]]), math.sqrt(2), start)
    q = sc.DiffusionProcess(sc.Affine([[-1.0]]), math.sqrt(2), start)
    up, down = sc.AffineControl([[1 / math.sqrt(2)]]), sc.AffineControl([[-1 / math.sqrt(2)]])
    assert moments(p, kernel, grid, control=up).kl == pytest.approx(printed, rel=1e-14)
    assert PathDivergence(q, kernel, grid, (None, None), (down, None)).kl == pytest.approx(printed, rel=1e-14)
    assert PathDivergence(q, kernel, grid, (down, None), (None, None)).reverse_kl == pytest.approx(printed, rel=1e-14)


PAIR = ((CONTROL, None), (OTHER, sc.Gaussian([0.1, 0.1], [[0.9, 0.1], [0.1, 0.8]])))
REWARD = sc.Quadratic([0.4, -0.3], [[0.5, 0.1], [0.1, -0.1]], 0.2)


def brute_log_moment(process, kernel, grid, order, reward=None, temperature=1.0):
    """log E_2 (e^{r/T} dP_1/dP_2)^order = log E_0 of (dP_1/dP_0)^order (dP_2/dP_0)^(1-order) e^{order r/T}."""
    joint, dts, times = joint_of(process, kernel, grid)
    total = log_ratio(joint, dts, times, CONTROL).scaled(order)
    total = total + log_ratio(joint, dts, times, OTHER).scaled(1 - order)
    second, first = PAIR[1][1], process.initial_law(0.0)
    precision, m = np.linalg.inv(second.covariance.numpy()), second.mean.numpy()
    base, m0 = np.linalg.inv(first.covariance.numpy()), first.mean.numpy()
    constant = (m0 @ base @ m0 - m @ precision @ m + np.linalg.slogdet(precision)[1] - np.linalg.slogdet(base)[1]) / 2
    initial = joint.quadratic(0, precision - base, precision @ m - base @ m0, constant)
    total = total + initial.scaled(1 - order)
    if reward is not None:
        terminal = joint.quadratic(len(dts), reward.curvature.numpy(), reward.linear.numpy(), reward.constant)
        total = total + terminal.scaled(order / temperature)
    return total.log_expectation()


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.SecondOrder()], ids=ids)
@pytest.mark.parametrize("process", [OU2, REVERSE], ids=["ou", "reverse"])
def test_every_moment_of_the_log_ratio(process, kernel):
    grid = sc.TimeGrid.uniform(4)
    divergence = PathDivergence(process, kernel, grid, *PAIR)
    for order in (-0.5, 0.3, 1.0, 2.0, 3.0):
        expected = brute_log_moment(process, kernel, grid, order)
        assert divergence.log_moment(order) == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert divergence.log_moment(order, REWARD, 0.7) == pytest.approx(
            brute_log_moment(process, kernel, grid, order, REWARD, 0.7), rel=1e-10
        )
    assert divergence.renyi(2.0) == pytest.approx(math.log1p(divergence.chi2), rel=1e-12)
    assert divergence.ess_fraction() == pytest.approx(math.exp(-divergence.renyi(2.0)), rel=1e-12)
    around = [divergence.renyi(1 + e) for e in (-1e-4, 1e-4)]
    assert sum(around) / 2 == pytest.approx(divergence.kl, rel=1e-6)
    assert -divergence.log_moment(1e-4) / 1e-4 == pytest.approx(divergence.reverse_kl, rel=1e-3)


def test_moments_that_do_not_exist_are_infinite():
    """Orders up to which E (dP_1/dP_2)^order exists, by bisection on the determinant of the joint law."""
    grid, kernel = sc.TimeGrid.uniform(6), sc.EulerMaruyama()
    strong = sc.AffineControl([[2.5]])
    p = sc.DiffusionProcess(sc.Affine([[-0.5]]), 1.0, sc.Gaussian(0.0, 1.0))
    joint, dts, times = joint_of(p, kernel, grid)
    low, high = 1.0, 50.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        finite = math.isfinite(log_ratio(joint, dts, times, strong).scaled(middle).log_expectation())
        low, high = (middle, high) if finite else (low, middle)
    divergence = PathDivergence(p, kernel, grid, (strong, None), (None, None))
    assert math.isfinite(divergence.log_moment(low - 1e-6))
    assert divergence.log_moment(high + 1e-6) == math.inf
    assert divergence.ess_fraction() == (0.0 if high < 2 else pytest.approx(math.exp(-divergence.log_moment(2.0))))


def test_constant_shift_has_the_textbook_divergences():
    """u constant: sum sqrt(dt) u . z is N(0, |u|^2), so R_a = a |u|^2 / 2 for every order a."""
    u = torch.tensor([0.6, -0.3], dtype=torch.float64)
    shift = sc.AffineControl(torch.zeros(2, 2), u)
    d = PathDivergence(REVERSE, sc.EulerMaruyama(), sc.TimeGrid.uniform(7), (shift, None), (None, None))
    for order in (0.5, 1.0, 2.0, 5.0):
        assert d.renyi(order) == pytest.approx(order * float(u @ u) / 2, rel=1e-12)


def test_weights_of_the_normaliser_under_its_own_optimum_are_constant():
    """ESS of e^{r/T} dQ/dQ^u is 1 at the optimum of a linear reward, where a mean shift is optimal."""
    problem = sc.Problem(REVERSE, sc.Linear([0.7, -0.4]), temperature=0.5)
    grid, kernel = sc.TimeGrid.uniform(6), sc.ExactTransition()
    chain = problem.discretise(kernel=kernel, grid=grid).exact
    d = PathDivergence(REVERSE, kernel, grid, (None, None), (chain.control, chain.initial))
    assert d.log_moment(1.0, problem.reward, 0.5) == pytest.approx(chain.log_normalizer, rel=1e-11)
    assert d.ess_fraction(problem.reward, 0.5) == pytest.approx(1.0, abs=1e-10)
    half = PathDivergence(REVERSE, kernel, grid, (None, None), (0.5 * chain.control, None))
    assert half.ess_fraction(problem.reward, 0.5) < 0.9


def test_simulated_paths_have_the_exact_divergences():
    """KL and moments 1/2, 1, 2 of simulated weights, within 4.5 standard errors; those of the moments are exact too."""
    grid, kernel, n = sc.TimeGrid.geometric(6, s_min=0.02), sc.Ancestral(), 40_000
    control, start = 0.2 * CONTROL, sc.Gaussian([0.2, -0.1], [[1.1, 0.1], [0.1, 1.2]])
    ratio = sc.simulate(REVERSE, control, start, grid=grid, kernel=kernel, n=n, noise=sc.Noise(5)).log_ratio()
    controlled, reference = (control, start), (None, None)
    d = PathDivergence(REVERSE, kernel, grid, controlled, reference)
    assert float(ratio.mean()) == pytest.approx(d.kl, abs=4.5 * float(ratio.std()) / n**0.5)
    half = torch.exp(-ratio / 2)  # E_1 (dP_2/dP_1)^{1/2} = E_2 (dP_1/dP_2)^{1/2}
    assert float(half.mean()) == pytest.approx(math.exp(d.log_moment(0.5)), abs=4.5 * float(half.std()) / n**0.5)
    back = PathDivergence(REVERSE, kernel, grid, reference, controlled)
    first, second, fourth = (math.exp(back.log_moment(order)) for order in (1.0, 2.0, 4.0))
    w = torch.exp(-ratio)
    assert first == pytest.approx(1, abs=1e-12) and fourth < 100
    assert float(w.mean()) == pytest.approx(1, abs=4.5 * ((second - 1) / n) ** 0.5)
    assert float((w * w).mean()) == pytest.approx(second, abs=4.5 * ((fourth - second**2) / n) ** 0.5)


def test_a_control_without_noise_costs_an_infinite_kl():
    with pytest.raises(InfiniteKL, match="step 0 of 4"):
        moments(REVERSE, sc.DDIM(0.0), sc.TimeGrid.uniform(4), control=CONTROL)
    assert moments(REVERSE, sc.DDIM(0.0), sc.TimeGrid.uniform(4)).kl == 0.0
    closed = moments(REVERSE, sc.Ancestral(), sc.TimeGrid.geometric(4), control=CONTROL)
    assert float(closed.energy[-1]) == 0.0 and math.isfinite(closed.kl)  # the noiseless last step has no control


GRIDS = {
    "geometric": sc.TimeGrid.geometric(12, s_min=0.02, close=False),
    "log_snr": sc.TimeGrid.log_snr(12, s_min=0.02, close=False),
}


def terminal(process, kernel, grid):
    found = moments(process, kernel, grid)
    return found.means[-1].numpy(), found.covariances[-1].numpy()


def truth(process, s):
    """The law at level s of the reverse process from the standard prior (theory, section 1.2), in numpy."""
    a, h = process.schedule.alpha(s), process.schedule.h(s)
    big, sigma, mu = process.schedule, DATA.covariance.numpy(), DATA.mean.numpy()
    a_t, h_t = big.alpha(process.horizon), big.h(process.horizon)
    s_t, s_s, r = a_t**2 * sigma + h_t * np.eye(2), a**2 * sigma + h * np.eye(2), a_t / a
    gain = r * s_s @ np.linalg.inv(s_t)
    start = process.initial_law(0.0)
    mean = a * mu + gain @ (start.mean.numpy() - a_t * mu)
    return mean, s_s - r * gain @ s_s + gain @ start.covariance.numpy() @ gain.T


def gaussian_kl(m, c, m0, c0):
    solved = np.linalg.solve(c0, c)
    eigenvalues = np.linalg.eigvals(solved - np.eye(len(m))).real  # c0^{-1} c - I: small, kept apart from I
    return (np.sum(eigenvalues - np.log1p(eigenvalues)) + (m - m0) @ np.linalg.solve(c0, m - m0)) / 2


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
@pytest.mark.parametrize("kernel", KERNELS[:-1], ids=ids)
def test_weak_order_of_mean_and_covariance_is_the_declared_one(kernel, grid):
    """Five nested grids, no sampling: order within 1e-3, and twice that in KL."""
    exact_mean, exact_covariance = truth(REVERSE, 0.02)
    factors = [2, 4, 8, 16, 32]
    means, covariances, kls = [], [], []
    for factor in factors:
        mean, covariance = terminal(REVERSE, kernel, grid.refine(factor))
        means.append((mean - exact_mean)[0])
        covariances.append(np.trace(covariance - exact_covariance))
        kls.append(gaussian_kl(mean, covariance, exact_mean, exact_covariance))
    if isinstance(kernel, (sc.Ancestral, sc.DDIM, sc.SecondOrder)):  # E[X_0 | x] is a martingale: their means are exact
        np.testing.assert_allclose(means, 0, atol=1e-14)
    else:
        assert observed_order(means, factors).limit == pytest.approx(kernel.order_weak, abs=1e-3)
    assert observed_order(covariances, factors).limit == pytest.approx(kernel.order_weak, abs=1e-3)
    assert observed_order(kls, factors).limit == pytest.approx(2 * kernel.order_weak, abs=1e-3)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
def test_exact_transitions_have_no_error_on_any_grid(grid):
    mean, covariance = terminal(REVERSE, sc.ExactTransition(), grid)
    exact_mean, exact_covariance = truth(REVERSE, 0.02)
    np.testing.assert_allclose(mean, exact_mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(covariance, exact_covariance, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.SecondOrder()], ids=ids)
def test_weak_order_of_a_general_diffusion(kernel):
    """Against the moment equations of the process, solved by the exact transition (order 8, 1e-13)."""
    exact_mean, exact_covariance = terminal(OU2, sc.ExactTransition(), sc.TimeGrid.uniform(1))
    steps = [8, 16, 32, 64, 128]
    found = [terminal(OU2, kernel, sc.TimeGrid.uniform(k)) for k in steps]
    assert observed_order([(m - exact_mean)[0] for m, _ in found], steps).limit == pytest.approx(
        kernel.order_weak, abs=1e-3
    )
    traces = [np.trace(c - exact_covariance) for _, c in found]
    assert observed_order(traces, steps).limit == pytest.approx(kernel.order_weak, abs=1e-3)


def test_observed_order_finds_the_limit_slope_and_refuses_nonsense():
    steps = [10, 20, 40, 80, 160]
    found = observed_order([3 * n**-1.5 * (1 + 4 / n - 7 / n**2) for n in steps], steps)
    assert abs(found.limit - 1.5) <= found.uncertainty < 2e-3 and abs(found.slopes[-1] - 1.5) > 0.02
    for errors in ([1.0, -0.5, 0.2, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]):
        with pytest.raises(BadInput):
            observed_order(errors, steps)
    with pytest.raises(BadInput, match="ratio"):
        observed_order([1.0, 0.5, 0.2], [10, 20, 50])
