"""The second control problem: Follmer's drift ends in nu*, and a start that is kept does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad

import sdecontrol as sc
from sdecontrol.problems.builtin import resolve
from sdecontrol.problems.second import FollmerDrift, ValueAtStart, initial_law_problem


def one_dimensional(reward: object, law: object) -> sc.Problem:
    return sc.Problem(sc.ReverseProcess(sc.VP(0.1, 3.1), law), reward, 0.3)


GAUSSIAN = one_dimensional(sc.Quadratic([1.2], [[0.4]]), sc.Gaussian([0.3], [[1.5]]))
MIXTURE = one_dimensional(sc.Linear([0.4]), sc.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [[0.3], [0.5]]))


def test_the_optimum_from_a_point_is_nu_star_and_costs_its_kl():
    exact = initial_law_problem(GAUSSIAN).exact
    star = GAUSSIAN.exact.initial
    assert torch.allclose(exact.terminal.mean, star.mean, rtol=1e-12)
    assert torch.allclose(exact.terminal.covariance, star.covariance, rtol=1e-12)
    assert exact.path_kl == pytest.approx(sc.laws.kl(star, GAUSSIAN.process.initial_law(0.0)), rel=1e-12)
    assert exact.log_normalizer == pytest.approx(GAUSSIAN.exact.log_normalizer, rel=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_start_that_is_kept_misses_nu_star(share):
    """The mixture over the start of the tilted conditional laws, by quadrature."""
    reward, temperature = initial_law_problem(GAUSSIAN, share).reward, GAUSSIAN.temperature
    points = np.linspace(-9, 9, 1201)
    log_tilt = reward(torch.tensor(points[:, None])).numpy() / temperature
    starts, weights = np.polynomial.hermite_e.hermegauss(40)
    mean = second = 0.0
    for x0, w in zip(starts * share**0.5, weights / weights.sum(), strict=True):
        p = np.exp(log_tilt - (points - x0) ** 2 / (2 * (1 - share)))
        mean, second = mean + w * (p @ points) / p.sum(), second + w * (p @ points**2) / p.sum()
    law = initial_law_problem(GAUSSIAN, share).exact.untilted_terminal
    assert float(law.mean) == pytest.approx(mean, rel=1e-8)
    assert float(law.covariance) == pytest.approx(second - mean**2, rel=1e-8)
    assert sc.laws.kl(law, GAUSSIAN.exact.initial) > 1e-3


def test_the_value_of_a_mixture_has_its_gradient():
    value = ValueAtStart(MIXTURE)
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    slope = (value(x + 1e-5) - value(x - 1e-5)) / 2e-5
    assert torch.allclose(value.gradient(x)[:, 0], slope, rtol=1e-7, atol=1e-9)
    assert isinstance(initial_law_problem(MIXTURE).reward, ValueAtStart)


@pytest.mark.parametrize("t", [0.0, 0.6, 0.95])
def test_follmer_drift_of_a_mixture_by_quadrature(t):
    """w* = d/dx log E e^{v(0, x + sqrt(1 - t) xi)/temperature}, by adaptive quadrature and finite differences."""
    second = initial_law_problem(MIXTURE)
    drift = FollmerDrift(second, nodes=30)

    def log_mean(x: float) -> float:
        def integrand(z: float) -> float:
            y = torch.tensor([[x + (1 - t) ** 0.5 * z]], dtype=torch.float64)
            return float(torch.exp(second.reward(y) / second.temperature)) * np.exp(-z * z / 2)

        return float(np.log(quad(integrand, -9, 9, epsabs=1e-13, epsrel=1e-12, limit=400)[0]))

    for x in (-1.5, 0.2, 2.0):
        found = float(drift(t, torch.tensor([[x]], dtype=torch.float64)))
        assert found == pytest.approx((log_mean(x + 1e-3) - log_mean(x - 1e-3)) / 2e-3, rel=2e-6)


def test_paths_under_the_drift_of_a_mixture_end_in_nu_star():
    second = initial_law_problem(MIXTURE)
    path = sc.simulate(second.process, FollmerDrift(second), n=4_000, grid=sc.TimeGrid.uniform(40), noise=sc.Noise(3))
    p = torch.linspace(-7, 7, 4001, dtype=torch.float64)[:, None]
    density = MIXTURE.exact.initial.log_prob(p).exp()
    mean = float((density @ p[:, 0]) / density.sum())
    assert abs(sc.Estimate.mean(path.terminal[:, 0]).z(mean)) < 4
    assert abs(mean) > 0.1  # p_noise is centred: the drift has something to do


def test_priors_that_are_not_isotropic_and_bad_shares_are_refused():
    matched = sc.Problem(
        sc.ReverseProcess(sc.VP(), GAUSSIAN.process.data_law, initial="marginal"), sc.Linear([1.0]), 1.0
    )
    assert initial_law_problem(matched).exact.log_normalizer == pytest.approx(matched.exact.log_normalizer, rel=1e-10)
    for name in ("mixture-2d-ve", "subspace-16-in-64-ve"):
        with pytest.raises(sc.BadInput, match="no control is needed"):
            initial_law_problem(resolve(name).problem)
    with pytest.raises(sc.BadInput, match="share = 1"):
        initial_law_problem(GAUSSIAN, 1.0)
    wide = initial_law_problem(resolve("subspace-16-in-64-vp").problem)
    with pytest.raises(sc.BadInput, match="at most 3"):
        FollmerDrift(wide)
