"""Feynman-Kac estimates against exact values in units of their own standard errors, and coverage over seeds.

Each z-test has a two-sided rate of 1e-5 (4.42 normal deviations; 16 randomisations of a net: Student's t), so the file
fails by chance less than once in a thousand runs of new seeds.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm, t

import sdecontrol as sc
from sdecontrol import value as V
from sdecontrol.errors import NotDefined
from sdecontrol.value import estimate, paths
from sdecontrol.value.integrand import Task, normals
from sdecontrol.value.surrogates import Surrogates, cross_fitted

P = sc.problems
RATE = 1e-5
BOUND = float(norm.isf(RATE / 2))


def bound(method: V.methods.Method) -> float:
    degrees = method.randomisations - 1 if isinstance(method, V.QuasiMonteCarlo) else 10_000
    return float(t.isf(RATE / 2, degrees))


def rows(n: int, dim: int, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(7))


def scores(problem: sc.Problem, time: float, x: torch.Tensor, method, n: int, seed: int = 1, **options) -> np.ndarray:
    found = sc.feynman_kac(problem, time, x, n, method, sc.Noise(seed), **options)
    return (found.value - problem.exact.value(time, x).numpy()) / found.stderr


BY_LAW = [V.Plain(), V.Antithetic(), V.QuasiMonteCarlo(), V.ControlVariates(), V.Laplace(), V.Adapted(), V.Portfolio()]
KNOWN = [P.log_quadratic_hjb(5, 3.0), P.gaussian_mixture(), P.linear_ou(3)]


@pytest.mark.parametrize("problem", KNOWN, ids=lambda p: p.name)
@pytest.mark.parametrize("method", BY_LAW, ids=lambda m: m.name)
def test_known_transitions(problem: sc.Problem, method) -> None:
    x = rows(3, problem.process.dim)
    assert np.abs(scores(problem, 0.4, x, method, 2**13)).max() < bound(method)


@pytest.mark.parametrize("method", [m for m in BY_LAW if m.name != "Laplace"], ids=lambda m: m.name)
def test_step_reward(method) -> None:
    assert np.abs(scores(P.step_reward(), 0.5, rows(2, 1), method, 2**13)).max() < bound(method)


def test_subspace() -> None:
    basis = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    law = sc.SubspaceGaussian(basis, [0.5, -0.2], [[0.8, 0.2], [0.2, 0.5]], offset=0.1)
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law), sc.Linear(torch.ones(6)), 0.8)
    for method in (V.Plain(), V.QuasiMonteCarlo(), V.Laplace()):
        assert np.abs(scores(problem, 0.5, rows(2, 6), method, 2**12)).max() < bound(method)


# ---------------------------------------------------------------------- chains

OU = P.quadratic_ou("easy", 3)
GRID = sc.TimeGrid.uniform(12)  # 12, 24, 48 steps
BY_PATHS = [V.Plain(), V.Antithetic(), V.QuasiMonteCarlo(), V.ControlVariates(), V.Adapted(), V.Laplace(),
            V.ImportanceSampling(OU.exact.control), V.Multilevel(3)]  # fmt: skip


@pytest.mark.parametrize("method", BY_PATHS, ids=lambda m: m.name)
def test_running_reward(method) -> None:
    assert np.abs(scores(OU, 0.2, rows(2, 3), method, 2**11, grid=GRID)).max() < bound(method)


@pytest.mark.parametrize(
    "method", [V.Plain(), V.ImportanceSampling(P.double_well(3, 1).exact.control)], ids=lambda m: m.name
)
def test_double_well(method) -> None:
    grid = sc.TimeGrid.uniform(40)
    assert np.abs(scores(P.double_well(3, 1), 0.1, rows(1, 3), method, 2**9, grid=grid)).max() < bound(method)


def test_a_control_takes_away_the_variance() -> None:
    x = rows(1, 3)
    plain, steered = (
        sc.feynman_kac(OU, 0.2, x, 1024, method, sc.Noise(2), grid=GRID).ess.value[0]
        for method in (V.Plain(), V.ImportanceSampling(OU.exact.control))
    )
    assert 1024 - steered < 0.05 * (1024 - plain)


def test_multilevel_counts_the_finer_levels() -> None:
    """On 3, 6 and 12 steps the last difference's missing half is many standard errors."""
    x, grid = rows(1, 3), sc.TimeGrid.uniform(3)
    found = sc.feynman_kac(OU, 0.2, x, 2**14, V.Multilevel(3), sc.Noise(1), grid=grid)
    exact = OU.exact.value(0.2, x).numpy()
    assert np.abs((found.value - exact) / found.stderr).max() < BOUND
    finest = OU.discretise(sc.EulerMaruyama(), sc.TimeGrid.explicit([0.2, 1 / 3, 2 / 3, 1.0]).refine(4)).exact
    bias = abs(float(finest.value(0.2, x)) - exact[0])
    assert bias > 6 * found.stderr[0]


# ---------------------------------------------------------------------- planted mistakes


def test_forgotten_running_reward_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "total_reward", lambda problem, path: problem.reward(path.terminal).double())
    assert np.abs(scores(OU, 0.2, rows(2, 3), V.Plain(), 2**11, grid=GRID)).min() > 20


def test_wrong_weight_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The martingale part of the log ratio without its energy."""
    simulate = V.importance.simulate

    def without_energy(*args, **options):
        path = simulate(*args, **options)
        path.weights.energy.zero_()
        return path

    monkeypatch.setattr(V.importance, "simulate", without_energy)
    x = rows(2, 3)
    assert np.abs(scores(OU, 0.2, x, V.ImportanceSampling(OU.exact.control), 2**11, grid=GRID)).min() > 20


def test_laplace_with_another_scale_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws a tenth wider than the density says."""
    monkeypatch.setattr(torch.linalg, "solve_triangular", lambda a, b, upper: 1.1 * torch.linalg.solve(a, b))
    assert np.abs(scores(P.log_quadratic_hjb(5, 3.0), 0.4, rows(2, 5), V.Laplace(), 2**14)).min() > 6


def path_matrix(steps: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The normals of the fine and the next grid as matrices of the integrand's normals."""
    problem = P.double_well(dim, dim)
    integrand = Task(problem, 0.0, torch.zeros(1, dim, dtype=torch.float64), sc.TimeGrid.uniform(steps)).chain
    columns = integrand.normals(torch.eye(integrand.dim, dtype=torch.float64))
    return tuple(part.permute(0, 2, 1).reshape(-1, integrand.dim) for part in columns[:2])


def test_path_normals_are_standard() -> None:
    """A A' = I for the map from (modes, steps) to the path's normals, fine and coarse, on one Brownian path."""
    for matrix in path_matrix(5, 2):
        assert torch.allclose(matrix @ matrix.mT, torch.eye(len(matrix), dtype=torch.float64), atol=1e-13)
    fine, coarse = path_matrix(5, 1)
    summed = (fine[0::2] + fine[1::2]) / math.sqrt(2)
    assert torch.allclose(coarse, summed, atol=1e-14)


def test_bridge_without_variance_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leading modes alone, the noise between them left out."""
    right = paths.PathIntegrand.normals

    def smooth(self, z):
        z = z.clone()
        z[:, self.leading :] = 0
        return right(self, z)

    monkeypatch.setattr(paths, "leading_modes", lambda steps, dim: 2)
    monkeypatch.setattr(paths.PathIntegrand, "normals", smooth)
    assert np.abs(scores(OU, 0.2, rows(2, 3), V.QuasiMonteCarlo(), 2**12, grid=GRID)).min() > 8


# ---------------------------------------------------------------------- coverage


@pytest.mark.filterwarnings("ignore::sdecontrol.value.UnreliableWeights")  # few carriers at 1024 draws; it holds anyhow
@pytest.mark.parametrize("method", BY_LAW, ids=lambda m: m.name)
def test_coverage(method) -> None:
    """Over 40 seeds: mean z within 4.4/sqrt(40) and its mean square within chi-square quantiles of the same rate."""
    problem, x, seeds = P.log_quadratic_hjb(4, 2.0), rows(1, 4), 40
    z = np.array([scores(problem, 0.3, x, method, 1024, seed)[0] for seed in range(100, 100 + seeds)])
    wide = 15 / 13 if isinstance(method, V.QuasiMonteCarlo | V.Portfolio) else 1.0  # variance of Student's t
    assert abs(z.mean()) < norm.isf(RATE / 2) * math.sqrt(wide / seeds)
    low, high = chi2.ppf([RATE, 1 - RATE], seeds) / seeds
    assert low < (z**2).mean() < wide * high


@pytest.mark.parametrize(
    ("strength", "method", "relative"),
    [(1.0, V.ControlVariates(), 1.2e-6), (10.0, V.Adapted(), 2.5e-5), (50.0, V.Laplace(), 3e-5)],
)
def test_hundred_dimensions(strength: float, method, relative: float) -> None:
    """Standard errors that scale to `relative` of the value at 2^18 evaluations, and values within their errors."""
    problem, x, n = P.log_quadratic_hjb(100, strength), torch.zeros(1, 100, dtype=torch.float64), 2**14
    truth, z = float(problem.exact.value(0.0, x)), []
    for seed in (1, 2, 3):
        found = sc.feynman_kac(problem, 0.0, x, n, method, sc.Noise(seed))
        assert found.stderr[0] < 2 * relative * abs(truth) * math.sqrt(2**18 / n)  # 2: the pilot is smaller too
        z.append((found.value[0] - truth) / found.stderr[0])
    assert max(map(abs, z)) < norm.isf(RATE / 2)


@pytest.mark.parametrize(("strength", "chosen"), [(1.0, "ControlVariates"), (10.0, "Adapted"), (50.0, "Laplace")])
def test_portfolio_chooses(strength: float, chosen: str) -> None:
    x = torch.zeros(1, 100, dtype=torch.float64)
    found = sc.feynman_kac(P.log_quadratic_hjb(100, strength), 0.0, x, 4096)
    assert found.methods == (chosen,)
    assert found.pareto_k[0] <= 0.7


def test_collapsed_weights_are_called_so() -> None:
    x = torch.zeros(1, 100, dtype=torch.float64)
    with pytest.warns(V.UnreliableWeights, match="Pareto k"):
        found = sc.feynman_kac(P.log_quadratic_hjb(100, 50.0), 0.0, x, 4096, V.Plain())
    assert found.ess.value[0] < 10


# ---------------------------------------------------------------------- parts


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_pareto_k(k: float) -> None:
    """Pareto weights of shape k: the maximum-likelihood error of the shape from m tail points is (1 + k)/sqrt(m)."""
    n, rng = 40_000, np.random.default_rng(0)
    found = [estimate.pareto_k(torch.tensor(-k * np.log(rng.uniform(size=n)))) for _ in range(4)]
    assert abs(np.mean(found) - k) < 4 * (1 + k) / math.sqrt(4 * 3 * math.sqrt(n))
    assert estimate.pareto_k(torch.zeros(1000)) == -math.inf


def test_extrapolation_of_a_known_error() -> None:
    """f_d = f + c d^p + e d^{p+1}: what is left of the limit is what it says."""
    for order in (1, 2):
        levels = torch.tensor(
            [2.0 + 0.3 * d**order + 0.2 * d ** (order + 1) for d in (0.1, 0.2, 0.4)], dtype=torch.float64
        )
        limit, left, _ = estimate.extrapolated(levels[:, None], torch.zeros(3, 3, 1), order)
        assert float((limit - 2).abs()) == pytest.approx(float(left), rel=1e-5)


def test_known_means_of_the_surrogate() -> None:
    """E Q^m and E e^Q of c.z + z'Bz - tr B against Gauss-Hermite quadrature in two dimensions."""
    linear = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    matrix = torch.tensor([[[0.1, 0.04], [0.04, -0.1]]], dtype=torch.float64)
    surrogates = Surrogates(linear, matrix)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    z = torch.tensor(np.array([(a, b) for a in x for b in x]))
    weights = torch.tensor(np.outer(w, w).ravel() / (2 * math.pi))
    q = surrogates(z)[:, 0]
    moments = surrogates.moments(6)
    for m in range(7):
        assert float(moments[m, 0]) == pytest.approx(float(weights @ q**m), rel=1e-11)
    for power in (1.0, 2.0):
        found = float(surrogates.log_growth(power)[0])
        assert math.exp(found) == pytest.approx(float(weights @ torch.exp(power * q)), rel=1e-8)
    assert float((weights @ surrogates.controls(q[:, None], 3)[:, 0]).abs().max()) < 1e-8
    assert float((weights @ surrogates.moved_controls(z, 3)).abs().max()) < 1e-8
    wild = Surrogates(10 * linear, matrix)  # e^Q is of no use: z Q in its place
    assert not bool(wild.has_exponential[0])
    assert float((weights @ wild.moved_controls(z, 3)).abs().max()) < 1e-8


def test_surrogates_of_a_turned_quadratic() -> None:
    """In 40 dimensions slopes find a matrix that squares cannot: nothing of a quadratic F is left."""
    rotation = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    curvature = rotation @ torch.diag(torch.linspace(0.1, 1, 40).double()) @ rotation.mT
    base = P.log_quadratic_hjb(40, 1.0)
    problem = sc.Problem(base.process, sc.Quadratic(0.1 * torch.ones(40), (curvature + curvature.mT) / 2), 2.0)
    x = rows(2, 40)
    found = sc.feynman_kac(problem, 0.5, x, 1024, V.ControlVariates(), sc.Noise(1))
    assert np.abs(found.value - problem.exact.value(0.5, x).numpy()).max() < 1e-9
    assert found.stderr.max() < 1e-9


def test_control_variates_are_exact_for_quadratic_exponents() -> None:
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.5, -0.2], [[0.6, 0.2], [0.2, 0.4]]))
    problem = sc.Problem(process, sc.Quadratic([1.0, -0.5], [[0.4, 0.1], [0.1, -0.2]]), 0.8)
    x = rows(3, 2)
    found = sc.feynman_kac(problem, 0.3, x, 1024, V.ControlVariates(), sc.Noise(1))
    assert np.abs(found.value - problem.exact.value(0.3, x).numpy()).max() < 1e-12
    assert found.stderr.max() < 1e-12


def test_regressions_are_cross_fitted() -> None:
    """100 controls that know nothing of 400 targets: their own fit leaves 3/4 of the variance, another one adds."""
    draws = torch.randn(400, 101, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    left = cross_fitted(draws[:, :1], draws[:, 1:], folds=8)
    assert 1.1 < float(left.var() / draws[:, 0].var()) < 2.0
    exact = cross_fitted(draws[:, 1:3].sum(1, keepdim=True) + 5, draws[:, 1:], folds=8)
    assert torch.allclose(exact, torch.full_like(exact, 5.0), atol=1e-10)


def test_the_error_of_heavy_contributions_is_widened() -> None:
    """Of n values m ones, the others zero: about m carriers, and the variance 2 (1/m - 1/n)^{1/2} above its own."""
    n, m = 10_000, 25
    values = torch.zeros(n, 1, dtype=torch.float64)
    values[:m] = 1.0
    error, carriers = estimate.spread(values)
    assert float(carriers) == pytest.approx(m, rel=0.02)
    assert float(error) ** 2 == pytest.approx(float(values.var()) / n * (1 + 2 / math.sqrt(m)), rel=0.02)
    halves = estimate.spread(values[: n // 2] / 2, values[n // 2 :] / 2)
    assert float(halves[0]) == pytest.approx(float(error), rel=0.02)  # the mean of two halves of the same values


def test_nets_with_equal_means_still_doubt_their_largest_weights() -> None:
    """Exchangeable nets without any spread: the error is that of the excesses of the R largest weights."""
    weights = torch.linspace(1, 3, 64, dtype=torch.float64).repeat(16, 1)
    weights[torch.arange(16), 60] = torch.linspace(5, 8, 16, dtype=torch.float64)
    weights[:, 0] += weights[:, 60].max() - weights[:, 60]  # equal means
    found = estimate.of_nets(weights.log()[:, :, None, None], 1, "nets")
    wanted = np.linspace(5, 8, 16).std(ddof=1) * 4 / float(weights.sum())
    assert float(found.stderr) == pytest.approx(wanted, rel=0.3)


def test_diagonal_and_dense_transitions_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = torch.diag(torch.tensor([-1.0, 0.3], dtype=torch.float64))
    drift = sc.Affine(lambda s: (1 + s) * matrix, [0.2, -0.1])
    process = sc.DiffusionProcess(drift, lambda s: 1 + s, sc.Gaussian([0.0, 0.0], 1.0))
    dense = V.transition.affine_transition(process, 0.3)
    monkeypatch.setattr(V.transition, "_DENSE", 0)
    diagonal = V.transition.affine_transition(process, 0.3)
    x = rows(4, 2)
    assert torch.allclose(dense.centre(x), diagonal.centre(x), atol=1e-10)
    assert torch.allclose(dense.covariance, diagonal.covariance, atol=1e-10)


def test_rows_times_and_the_end() -> None:
    problem, x = KNOWN[0], rows(4, 5)
    times = torch.tensor([0.5, 1.0, 0.2, 0.5], dtype=torch.float64)
    found = sc.feynman_kac(problem, times, x, 4096, noise=sc.Noise(5))
    truth = np.array([float(problem.exact.value(float(s), y[None])) for s, y in zip(times, x)])
    exact = np.array([False, True, False, False])
    assert np.array_equal(found.stderr == 0, exact)
    assert found.value[1] == pytest.approx(truth[1], rel=1e-14)
    assert np.abs((found.value - truth)[~exact] / found.stderr[~exact]).max() < t.isf(RATE / 2, 15)
    again = sc.feynman_kac(problem, times, x, 4096, noise=sc.Noise(5))
    assert np.array_equal(again.value, found.value)
    assert np.allclose(found.log_h.value * problem.temperature, found.value)


def test_normals_are_cut_and_joined() -> None:
    whole = torch.cat(list(normals(sc.Noise(3), "value", 700, 200, chunk=300)))
    apart = torch.cat(list(normals(sc.Noise(3), "value", 700, 200)))
    assert whole.shape == (700, 200)
    assert torch.equal(whole, apart)


def test_refusals() -> None:
    problem, x = KNOWN[0], rows(2, 5)
    for bad in (x[0], x[:, :3], x * math.nan):
        with pytest.raises(sc.BadInput, match="saw"):
            sc.feynman_kac(problem, 0.2, bad)
    for time in (-0.1, 1.5, torch.tensor([0.1, 0.2, 0.3])):
        with pytest.raises(sc.BadInput, match="saw"):
            sc.feynman_kac(problem, time, x)
    with pytest.raises(sc.BadInput, match="method"):
        sc.feynman_kac(problem, 0.2, x, method="plain")
    with pytest.raises(NotDefined, match="no gradient"):
        jump = sc.Problem(problem.process, lambda y: (y[:, 0] > 0).double())
        sc.feynman_kac(jump, 0.2, x, 1024, V.Laplace())
    with pytest.raises(sc.errors.NotFinite):
        late = sc.Problem(problem.process, lambda y: torch.where(y[:, 0] > 3, torch.nan, 0.0))
        sc.feynman_kac(late, 0.2, x, 4096, V.Plain())


def test_black_box_rewards_and_networks_by_chains() -> None:
    """A reverse process whose score is a function: the chain's value extrapolated, against the posterior's."""
    law = sc.Gaussian([0.5], [[0.6]])
    schedule = sc.VP(0.1, 5.0)
    network = sc.Score(lambda x, s: law.noised(schedule.alpha(s), schedule.h(s)).score(x))
    reward = lambda y: -(y[:, 0] ** 2)  # noqa: E731
    problem = sc.Problem(sc.ReverseProcess(schedule, network, event_shape=(1,)), reward)
    exact = sc.Problem(sc.ReverseProcess(schedule, law), sc.Quadratic(curvature=[[2.0]])).exact
    x = torch.tensor([[0.3]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sc.feynman_kac(problem, 0.2, x, 2048, V.QuasiMonteCarlo(), sc.Noise(3), grid=sc.TimeGrid.log_snr(20))
    assert abs(found.value[0] - float(exact.value(0.2, x))) / found.stderr[0] < t.isf(RATE / 2, 15)
    assert found.step_error[0] > 0


# ---------------------------------------------------------------------- bad input, and what may not be believed


def test_fewer_than_two_effective_samples_are_called_so() -> None:
    x = torch.zeros(1, 100, dtype=torch.float64)
    with pytest.warns(V.UnreliableWeights, match="an effective sample size of 1"):
        found = sc.feynman_kac(P.log_quadratic_hjb(100, 500.0), 0.0, x, 512, V.Plain())
    assert found.ess.value[0] < 2


def test_a_control_that_breaks_names_its_step() -> None:
    """NaN from the sixth step of the finest of three grids on: 4, 8 and 16 steps."""
    control = sc.StateControl(lambda t, x: x * (math.nan if t > 0.3 else 1.0))
    with pytest.raises(sc.NotFinite, match=r"step 5 \(t = 0\.3125\)"):
        sc.feynman_kac(OU, 0.0, rows(1, 3), 64, V.ImportanceSampling(control), grid=sc.TimeGrid.uniform(4))


def test_a_portfolio_does_not_need_gradients_switched_on() -> None:
    """Laplace's mode is differentiated whatever the caller has switched off."""
    x = torch.zeros(1, 100, dtype=torch.float64)
    with torch.no_grad():
        assert sc.feynman_kac(P.log_quadratic_hjb(100, 50.0), 0.0, x, 4096).methods == ("Laplace",)


def test_equal_weights_are_no_tail() -> None:
    """Two values only: the largest weights are equal, or tie at the threshold of the tail."""
    for ups in (20, 80, 600):
        log_w = torch.zeros(1_000, dtype=torch.float64)
        log_w[:ups] = 1.0
        assert estimate.pareto_k(log_w) < 0.7
