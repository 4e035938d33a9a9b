"""Tilted laws: quadrature, inversion, rejection and resampling against scipy and closed tilts."""

import math

import numpy as np
import pytest
import torch
from laws_tools import assert_derivatives, assert_prefix_stable, assert_z, points, positive
from scipy import integrate, stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, NoTilt
from sdecontrol.laws import Gaussian, GaussianMixture, Isotropic, TiltedLaw
from sdecontrol.laws.line import Line

D = torch.float64
MIXTURE = GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.2, 0.7])


def wavy(x):
    return torch.sin(3 * x[:, 0]) - 0.1 * x[:, 0] ** 4


def moments_by_scipy(base, log_weight, low=-8.0, high=8.0):
    """Normaliser, mean and variance of base * exp(log_weight) on the line."""

    def density(x: float) -> float:
        point = torch.tensor([[x]], dtype=D)
        return math.exp(float(base.log_prob(point)) + float(log_weight(point)))

    edges = np.linspace(low, high, 17)
    total, first, second = (
        sum(
            integrate.quad(lambda x, k=k: x**k * density(x), a, b, epsabs=1e-13)[0]
            for a, b in zip(edges, edges[1:])
        )
        for k in range(3)
    )
    return total, first / total, second / total - (first / total) ** 2


@pytest.mark.parametrize(
    "base", [MIXTURE, Gaussian(0.3, 0.8), Isotropic((1,), 0.7)], ids=["mixture", "gaussian", "isotropic"]
)
def test_any_reward_on_the_line(base):
    law = base.tilt(wavy, 0.4)
    total, mean, variance = moments_by_scipy(base, lambda x: wavy(x) / 0.4)
    assert law.log_normalizer == pytest.approx(math.log(total), abs=1e-10)
    assert float(law.mean) == pytest.approx(mean, abs=1e-10)
    assert float(law.covariance) == pytest.approx(variance, abs=1e-10)
    sample = assert_prefix_stable(law, sc.Noise(2), 60_000)
    assert_z(sample, torch.tensor([mean], dtype=D), torch.tensor([[variance]], dtype=D))
    assert_derivatives(law, points(6, 1))


def test_a_step_is_cut_exactly():
    base, reward = Gaussian(0.3, 0.8), sc.Step([1.0], 0.7, 1.5)
    law = base.tilt(reward, 0.5)
    above = stats.norm.sf(0.7, 0.3, math.sqrt(0.8))
    wanted = math.log(1 - above + math.exp(3.0) * above)
    assert law.log_normalizer == pytest.approx(wanted, abs=1e-13)
    assert TiltedLaw(base, lambda x: reward(x) / 0.5).log_normalizer == pytest.approx(wanted, abs=1e-12)
    hits = (law.sample(50_000, sc.Noise(1)) > 0.7).double().mean()
    chance = math.exp(3.0 - wanted) * above
    assert abs(float(hits) - chance) < stats.norm.isf(5e-7) * math.sqrt(chance * (1 - chance) / 50_000)


def test_rejection_in_several_dimensions():
    base, reward = Gaussian([0.3, -0.5], positive(2, 1)), sc.Step([1.0, 1.0], 0.4, 1.0)
    law = base.tilt(reward, 0.5)
    assert law.log_bound == 2.0
    sample = assert_prefix_stable(law, sc.Noise(1), 40_000)
    line = base.along(torch.ones(2, dtype=D))
    above = stats.norm.sf(0.4, float(line.mean), math.sqrt(float(line.covariance)))
    chance = math.exp(2.0) * above / (1 - above + math.exp(2.0) * above)
    hits = (sample.sum(1) > 0.4).double().mean()
    assert abs(float(hits) - chance) < stats.norm.isf(5e-7) * math.sqrt(chance * (1 - chance) / 40_000)
    total, error = integrate.dblquad(
        lambda y, x: math.exp(float(law.log_prob(torch.tensor([[x, y]], dtype=D)))),
        -6, 6, lambda x: 0.4 - x, 8, epsabs=1e-7,
    )  # fmt: skip
    assert total == pytest.approx(chance, abs=1e-6)


def test_rejection_is_exact_for_a_quadratic_weight():
    base, reward = (
        Gaussian([0.3, -0.5], positive(2, 1)),
        sc.Quadratic(curvature=torch.tensor([[1.0, 0.2], [0.2, 0.5]])),
    )
    wanted = base.tilt(reward, 0.7)
    law = TiltedLaw(base, lambda x: reward(x) / 0.7, base.log_expectation(reward, 0.7), log_bound=0.0)
    assert_z(assert_prefix_stable(law, sc.Noise(6), 60_000), wanted.mean, wanted.covariance)
    torch.testing.assert_close(law.log_prob(points(5, 2)), wanted.log_prob(points(5, 2)))
    torch.testing.assert_close(law.score(points(5, 2)), wanted.score(points(5, 2)))
    torch.testing.assert_close(
        law.score_jvp(points(5, 2), points(5, 2, 1)), wanted.score_jvp(points(5, 2), points(5, 2, 1))
    )


def test_resampling_by_importance():
    """Biased by O(1/ess), dependent within blocks: the mean of 16 blocks against their spread."""
    base, reward = Gaussian([0.3, -0.5], positive(2, 1)), sc.Linear([0.6, 0.2])
    law = TiltedLaw(base, lambda x: reward(x) / 0.7)
    wanted = base.tilt(reward, 0.7)
    noise = sc.Noise(6)
    n = 16 * noise.block_size((2,))
    means = assert_prefix_stable(law, noise, n).reshape(16, -1, 2).mean(1)
    z = (means.mean(0) - wanted.mean) / (means.std(0) / 4)
    assert float(z.abs().max()) < stats.t.isf(1e-6 / 4, 15)
    shift = wanted.mean - base.mean  # E w^2 / (E w)^2 = exp(g' S g) for a linear reward g
    overlap = math.exp(-float(shift @ torch.linalg.solve(base.covariance, shift)))
    assert law.ess(200_000, noise) / 200_000 == pytest.approx(overlap, rel=0.05)
    with pytest.raises(NotDefined, match="normaliser"):
        law.log_prob(points(2, 2))
    with pytest.raises(NoClosedForm):
        _ = law.mean


def test_tilts_compose():
    law = MIXTURE.tilt(wavy, 0.4).tilt(sc.Linear([0.5]), 0.4)
    once = MIXTURE.tilt(lambda x: wavy(x) + 0.5 * x[:, 0], 0.4)
    assert law.log_normalizer == pytest.approx(once.log_normalizer, abs=1e-11)
    torch.testing.assert_close(law.log_prob(points(5, 1)), once.log_prob(points(5, 1)))


def test_steep_and_far_tilts():
    """Mass moved by 200 standard deviations, and squeezed by 1e4, is found."""
    base = Gaussian(0.0, 1.0)
    far, squeezed = sc.Linear([200.0]), sc.Quadratic([3e8], [[1e8]])
    for reward in (far, squeezed):
        closed = base.tilt(reward, 1.0)
        law = TiltedLaw(base, reward)
        assert law.log_normalizer == pytest.approx(base.log_expectation(reward, 1.0), rel=1e-12)
        assert float(law.mean) == pytest.approx(float(closed.mean), rel=1e-7)
        assert float(law.covariance) == pytest.approx(
            float(closed.covariance), rel=1e-5
        )  # log weights of 4e8 are rounded to 1e-7


def test_infinite_normalisers_are_errors():
    for reward in (lambda x: x[:, 0] ** 2, lambda x: x[:, 0].abs() ** 3):
        with pytest.raises(NoTilt, match="infinite"):
            Gaussian(0.0, 1.0).tilt(reward, 0.5)
    assert Gaussian(0.0, 1.0).log_expectation(lambda x: x[:, 0] ** 2 / 4, 1.0) == pytest.approx(
        0.5 * math.log(2.0)
    )
    with pytest.raises(NoTilt, match="vanishes"):
        _ = TiltedLaw(Gaussian(0.0, 1.0), lambda x: torch.full_like(x[:, 0], -torch.inf)).line
    with pytest.raises(NoClosedForm, match="NaN"):
        Gaussian(0.0, 1.0).log_expectation(lambda x: x[:, 0].log(), 1.0)


def test_bad_bounds():
    law = TiltedLaw(Gaussian([0.0, 0.0], 1.0), lambda x: x[:, 0], log_bound=0.0)
    with pytest.raises(BadInput, match="above log_bound"):
        law.sample(10, sc.Noise(0))


def test_quadrature_line_against_scipy():
    """Distribution function and quantiles, tails included, and integrands with kinks and singularities."""
    line = Line(lambda x: -x.square() / 2, torch.zeros(1, dtype=D), torch.ones(1, dtype=D))
    assert line.log_normalizer == pytest.approx(0.5 * math.log(2 * math.pi), abs=1e-14)
    x = torch.tensor([-5.0, -2.0, -0.3, 0.0, 1.7, 8.0], dtype=D)
    np.testing.assert_allclose(line.cdf(x).numpy(), stats.norm.cdf(x.numpy()), rtol=1e-11)
    u = torch.tensor([1e-9, 1e-4, 0.2, 0.5, 0.99], dtype=D)
    np.testing.assert_allclose(line.quantile(u).numpy(), stats.norm.ppf(u.numpy()), rtol=1e-12, atol=1e-14)
    top = torch.tensor([1 - 1e-12], dtype=D)  # u itself is rounded there
    assert stats.norm.sf(float(line.quantile(top))) == pytest.approx(1e-12, abs=3e-16)
    assert line.expect(torch.abs) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-13)
    wanted = math.gamma(0.25) / (2**0.25 * math.sqrt(math.pi))  # E |X|^{-1/2}
    assert line.expect(lambda y: y.abs().rsqrt()) == pytest.approx(wanted, rel=1e-10)
    assert line.expect(lambda y: (y > 0.7).double()) == pytest.approx(stats.norm.sf(0.7), abs=1e-14)


@pytest.mark.parametrize("step", [False, True], ids=["smooth", "with a jump"])
def test_draws_on_the_line_invert_the_distribution_function(step):
    base = sc.GaussianMixture([0.5, 0.5], [[-3.0], [3.0]], [0.3, 0.5])
    law = TiltedLaw(base, lambda x: torch.sin(x[:, 0]) + (2.0 * (x[:, 0] > 2.5) if step else 0.0))
    u = torch.linspace(1e-7, 1 - 1e-7, 5_001, dtype=torch.float64)
    x = law.line.draw(u)
    assert float((law.line.cdf(x) - u).abs().max()) < 1e-9
    assert bool((x.diff() >= 0).all())
