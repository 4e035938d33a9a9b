"""Gradients of the value by four rules against closed forms, in units of their standard errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

import sdecontrol as sc
from sdecontrol import value as V
from sdecontrol.errors import NotDefined
from sdecontrol.value import gradient_rules
from sdecontrol.value.smoothness import jumps

P = sc.problems
RATE = 1e-5  # two-sided, of one z-test; under a hundred of them in this file
BOUND = float(norm.isf(RATE / 2))


def gaussian(reward) -> sc.Problem:
    law = sc.Gaussian([0.5, -0.5, 0.0], [[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.8]])
    return sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law), reward, 0.7)


LINEAR = gaussian(sc.Linear([1.0, 0.5, -0.3]))
QUADRATIC = gaussian(sc.Quadratic([1.0, 0.5, -0.3], torch.diag(torch.tensor([1.0, 0.5, 0.2]))))
STEP = gaussian(sc.Step([1.0, 0.5, -0.3], 0.5, 2.0))
MIXTURE = P.gaussian_mixture(temperature=3.0)
RUNNING = P.quadratic_ou("easy", 3)
WELLS = P.double_well(2, 0)
BLACK_BOX = P.log_quadratic_hjb(6, 2.0)


def rows(problem: sc.Problem, n: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return 0.6 * torch.randn(n, problem.process.dim, dtype=torch.float64, generator=generator)


def truth(problem: sc.Problem, t: float, x: torch.Tensor) -> np.ndarray:
    """temperature u* / amplitude."""
    return problem.exact.control(t, x).numpy() * problem.temperature / problem.process.amplitude(t)


def scores(problem: sc.Problem, method, n: int = 2**11, seed: int = 1, exact=None, x=None, **options) -> np.ndarray:
    x = rows(problem) if x is None else x
    found = sc.value_gradient(problem, 0.4, x, method, n, sc.Noise(seed), **options)
    assert found.value.shape == found.stderr.shape == x.shape
    return (found.value - (truth(problem, 0.4, x) if exact is None else exact)) / found.stderr


SHORT = dict(grid=sc.TimeGrid.uniform(20))
# paths that part between two modes stretch a moved start a thousandfold: a few of them carry the error bar, which warns
few_carry = pytest.mark.filterwarnings("ignore:saw an error bar that hangs:sdecontrol.value.UnreliableWeights")


@pytest.mark.parametrize(
    ("problem", "method", "options"),
    [(p, m, {}) for p in (LINEAR, QUADRATIC, BLACK_BOX) for m in (V.Pathwise(), V.Bismut(), V.LikelihoodRatio())]
    + [(STEP, m, {}) for m in (V.Bismut(), V.Bismut(lambda s: 1.0 - 0.9 * s), V.LikelihoodRatio())]
    + [(MIXTURE, m, {}) for m in (V.Pathwise(), V.LikelihoodRatio())]
    + [pytest.param(MIXTURE, V.Bismut(), dict(grid=sc.TimeGrid.log_snr(25)), marks=few_carry)]
    + [(p, m, SHORT) for p in (RUNNING, WELLS) for m in (V.Pathwise(), V.Bismut(), V.LikelihoodRatio())],
    ids=lambda a: getattr(a, "name", None) or (type(a).__name__ if not isinstance(a, dict) else "on"),
)
def test_rules_against_closed_forms(problem: sc.Problem, method, options) -> None:
    assert np.abs(scores(problem, method, **options)).max() < BOUND


def test_subspace() -> None:
    """The normal part of the gradient is zero, and the last, singular step carries no weight."""
    basis = torch.linalg.qr(torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    law = sc.SubspaceGaussian(basis, [0.5, -0.2], [[0.8, 0.2], [0.2, 0.5]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 5.0), law), sc.Quadratic(curvature=torch.eye(5)), 0.8)
    for method in (V.Pathwise(), V.Bismut(), V.LikelihoodRatio()):
        assert np.abs(scores(problem, method)).max() < BOUND


def test_pathwise_is_exact_for_linear_rewards() -> None:
    found = sc.value_gradient(LINEAR, 0.4, rows(LINEAR), V.Pathwise(), 512)
    assert found.stderr.max() < 1e-13


@pytest.mark.parametrize("method", [V.Pathwise(), V.Bismut(), V.LikelihoodRatio()], ids=lambda m: type(m).__name__)
def test_coverage(method) -> None:
    """30 seeds, three coordinates of one row: mean square of z within chi-square quantiles of each coordinate."""
    x, seeds = rows(QUADRATIC, 1), 30
    z = np.array([scores(QUADRATIC, method, 512, seed, x=x)[0] for seed in range(seeds)])
    low, high = chi2.ppf([RATE, 1 - RATE], seeds) / seeds
    assert ((z**2).mean(0) > low).all()
    assert ((z**2).mean(0) < high).all()
    assert np.abs(z.mean(0)).max() < BOUND / math.sqrt(seeds)


# ---------------------------------------------------------------------- the swap


def swapped(problem: sc.Problem, x: torch.Tensor) -> np.ndarray:
    """grad E[r(Y_T) | Y_t = x] = G'(g - K m(x)) from the posterior's mean m(x) = offset + G x."""
    process, reward = problem.process, problem.reward
    s = process.noise_level(0.4)
    posterior = process.data_law.posterior(process.schedule.alpha(s), process.schedule.h(s))
    slope = reward.linear - (posterior.offsets[0] + x @ posterior.gains[0].mT) @ reward.curvature
    return (slope @ posterior.gains[0]).numpy()


@pytest.mark.parametrize("rule", [V.Pathwise(), V.Bismut(), V.LikelihoodRatio()], ids=lambda m: type(m).__name__)
def test_swap(rule) -> None:
    x = rows(QUADRATIC)
    z = scores(QUADRATIC, V.Swap(rule), exact=swapped(QUADRATIC, x))
    assert np.abs(z).max() < BOUND
    assert np.abs(scores(QUADRATIC, V.Swap(rule), 2**13)).max() > 6  # it is not grad v
    linear = scores(LINEAR, V.Swap(rule))
    assert np.abs(linear).max() < BOUND  # but it is for linear rewards


@few_carry
def test_swap_of_a_mixture_is_not_its_value() -> None:
    """grad E[Y_T | Y_t = x] for r = first coordinate, by differences of the posterior mean."""
    process, x, step = MIXTURE.process, rows(MIXTURE), 1e-5
    s = process.noise_level(0.4)
    posterior = process.data_law.posterior(process.schedule.alpha(s), process.schedule.h(s))
    mean = lambda y: posterior.mean(y)[:, 0]  # noqa: E731
    eye = step * torch.eye(2, dtype=torch.float64)
    exact = torch.stack([(mean(x + e) - mean(x - e)) / (2 * step) for e in eye], 1).numpy()
    z = scores(MIXTURE, V.Swap(), exact=exact, grid=sc.TimeGrid.log_snr(25))
    assert np.abs(z).max() < BOUND


# ---------------------------------------------------------------------- refusals and planted mistakes


def test_pathwise_refuses_jumps() -> None:
    """An indicator has no gradient, a linear reward with a jump has a wrong one; a kink is no jump."""
    for rule in (V.Pathwise(), V.Swap()):
        with pytest.raises(NotDefined, match="Bismut"):
            sc.value_gradient(STEP, 0.4, rows(STEP), rule)
    hidden = gaussian(lambda x: x[:, 0] + (x[:, 0] > 0.3).to(x.dtype))
    with pytest.raises(NotDefined, match="jumps"):
        sc.value_gradient(hidden, 0.4, rows(hidden), V.Pathwise())
    sc.value_gradient(gaussian(lambda x: x[:, 0].abs()), 0.4, rows(STEP), V.Pathwise(), 512)


def test_jumps() -> None:
    a, b = torch.linspace(-2, 0.5, 40)[:, None].double(), torch.linspace(1, 2, 40)[:, None].double()
    for smooth in (torch.sin, torch.abs, lambda x: 0 * x, lambda x: torch.sigmoid(300 * x)):
        assert not jumps(lambda x, f=smooth: f(x[:, 0]), a, b)
    for broken in (torch.floor, torch.sign, lambda x: x.square() + 0.05 * (x > 0.7)):
        assert jumps(lambda x, f=broken: f(x[:, 0]), a, b)


def test_forgotten_running_reward_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight alone, without what the running reward sees of the moved start."""
    right = gradient_rules._sweep
    monkeypatch.setattr(gradient_rules, "_sweep", lambda *a: (*right(*a)[:2], torch.zeros_like(right(*a)[2])))
    x = torch.ones(1, 3, dtype=torch.float64)
    assert np.abs(scores(RUNNING, V.Bismut(), x=x, **SHORT)).min() > 6


def test_wrong_first_variation_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights psi dt that sum to 0.8."""
    right = V.Bismut._shares
    monkeypatch.setattr(V.Bismut, "_shares", lambda self, path: 0.8 * right(self, path))
    assert np.abs(scores(LINEAR, V.Bismut(), 2**13)).max() > 6


def test_collapsed_weights_are_called_so() -> None:
    problem = P.log_quadratic_hjb(100, 50.0)
    with pytest.warns(V.UnreliableWeights, match="effective sample size of 1"):
        sc.value_gradient(problem, 0.0, torch.ones(1, 100), V.LikelihoodRatio(), 1024)


def test_refusals() -> None:
    x = rows(LINEAR)
    with pytest.raises(sc.BadInput, match="t = T"):
        sc.value_gradient(LINEAR, 1.0, x)
    with pytest.raises(sc.BadInput, match="method"):
        sc.value_gradient(LINEAR, 0.4, x, "bismut")
    with pytest.raises(sc.BadInput, match="weights"):
        sc.value_gradient(LINEAR, 0.4, x, V.Bismut(lambda s: -1.0))
    with pytest.raises(NotDefined, match="two model calls"):
        sc.value_gradient(WELLS, 0.4, rows(WELLS), V.Bismut(), 64, kernel=sc.SecondOrder(), **SHORT)
    stepwise = sc.Problem(RUNNING.process, sc.Linear([1.0, 0, 0]), running_reward=lambda t, y: (y[:, 0] > 0).double())
    with pytest.raises(NotDefined, match="running reward has no gradient"):
        sc.value_gradient(stepwise, 0.4, rows(RUNNING), V.Bismut(), 64, **SHORT)


# ---------------------------------------------------------------------- directions, other laws of the normals


def test_along_a_direction() -> None:
    """The derivative along e is e . grad, with an error that knows how the coordinates go together."""
    e = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    x = rows(QUADRATIC)
    whole = sc.value_gradient(QUADRATIC, 0.4, x, V.Bismut(), 1024)
    along = sc.value_gradient(QUADRATIC, 0.4, x, V.Bismut(), 1024, along=e)
    assert np.allclose(along.value, whole.value @ e.numpy().T, atol=1e-12)
    again = [sc.value_gradient(QUADRATIC, 0.4, x[:1], V.Bismut(), 256, sc.Noise(k), along=e) for k in range(40)]
    spread = np.std([found.value[0, 0] for found in again]) / (2 * along.stderr[0, 0])  # a quarter of the samples
    assert 0.6 < spread < 1.5
    with pytest.raises(sc.BadInput, match="directions"):
        sc.value_gradient(QUADRATIC, 0.4, x, along=torch.ones(3))


@pytest.mark.parametrize(
    "rule",
    [V.Pathwise(V.Adapted()), V.Pathwise(V.Laplace()), V.LikelihoodRatio(V.Adapted())],
    ids=lambda rule: type(rule).__name__ + type(rule.way).__name__,
)
@pytest.mark.parametrize("problem", [QUADRATIC, BLACK_BOX, MIXTURE], ids=["quadratic", "black box", "mixture"])
def test_under_a_proposal(problem: sc.Problem, rule) -> None:
    assert np.abs(scores(problem, rule, 2**12)).max() < BOUND


BENT = sc.Problem(MIXTURE.process, sc.Quadratic([1.0, 0.0], [[0.5, 0.0], [0.0, 0.2]]), 1.0)
CONTROLLED = [V.Pathwise(V.ControlVariates()), V.LikelihoodRatio(V.ControlVariates())]


@pytest.mark.parametrize("rule", CONTROLLED, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize(
    ("problem", "gain"), [(QUADRATIC, 2.5), (BLACK_BOX, 1.1), (BENT, 3)], ids=["quadratic", "black box", "mixture"]
)
@few_carry
def test_with_control_variates(problem: sc.Problem, gain: float, rule) -> None:
    """Errors that hold, down to rounding for a quadratic exponent, and are smaller than the plain ones."""
    x = rows(problem)
    plain, controlled = (sc.value_gradient(problem, 0.4, x, r, 2**12) for r in (type(rule)(), rule))
    assert (np.abs(controlled.value - truth(problem, 0.4, x)) < BOUND * controlled.stderr + 1e-12).all()
    assert (controlled.stderr / plain.stderr).max() < 1 / gain, controlled.stderr / plain.stderr


@few_carry
def test_control_variates_cover() -> None:
    """40 seeds on the mixture: mean square of z within chi-square quantiles."""
    x, seeds = rows(BENT, 1), 40
    z = np.array([scores(BENT, CONTROLLED[0], 2**12, seed, x=x)[0] for seed in range(seeds)])
    low, high = chi2.ppf([RATE, 1 - RATE], seeds) / seeds
    assert ((z**2).mean(0) > low / 2).all()  # error bars are widened by what they do not know
    assert ((z**2).mean(0) < high).all()
    assert np.abs(z.mean(0)).max() < BOUND / math.sqrt(seeds)


@few_carry
def test_a_control_off_its_mean_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Controls that are taken for centred and are not, by a twentieth of their spread."""
    right = V.ControlVariates.moved
    monkeypatch.setattr(V.ControlVariates, "moved", lambda *a: right(*a) + 0.05)
    assert np.abs(scores(BENT, CONTROLLED[0], 2**12)).max() > 6


def test_controls_along_paths() -> None:
    assert np.abs(scores(RUNNING, V.Pathwise(V.ControlVariates()), 2**11, **SHORT)).max() < BOUND


def test_too_few_samples_for_the_controls() -> None:
    with pytest.raises(sc.BadInput, match="control variates"):
        sc.value_gradient(P.log_quadratic_hjb(100, 1.0), 0.0, torch.ones(1, 100), CONTROLLED[0], 512)


def test_a_proposal_where_weights_collapse() -> None:
    """100 dimensions at strength 50: error bars to believe, without a warning, where plain weights warn."""
    problem, x = P.log_quadratic_hjb(100, 50.0), torch.full((1, 100), 0.2, dtype=torch.float64)
    found = sc.value_gradient(problem, 0.0, x, V.Pathwise(V.Laplace()), 2**13)
    exact = problem.exact.control(0.0, x).numpy() * problem.temperature / problem.process.amplitude(0.0)
    z = (found.value - exact) / found.stderr
    low, high = chi2.ppf([RATE, 1 - RATE], 100) / 100
    assert low < (z**2).mean() < high


def test_a_forgotten_ratio_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    right = V.Adapted.draws
    monkeypatch.setattr(V.Adapted, "draws", lambda *a: ((z, 0 * ratio) for z, ratio in right(*a)))
    assert np.abs(scores(QUADRATIC, V.Pathwise(V.Adapted()), 2**12)).max() > 6


def test_gradients_need_none_switched_on() -> None:
    with torch.no_grad():
        assert np.abs(scores(LINEAR, V.Bismut())).max() < BOUND


def test_a_proposal_needs_a_known_law() -> None:
    with pytest.raises(sc.BadInput, match="proposal"):
        sc.value_gradient(WELLS, 0.4, rows(WELLS), V.LikelihoodRatio(V.Adapted()), 64, **SHORT)
