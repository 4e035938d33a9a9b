"""Laws on subspaces against dense Gaussians of scipy and autograd; large dimensions stay cheap."""

import numpy as np
import pytest
import torch
from laws_tools import (
    assert_derivatives,
    assert_prefix_stable,
    assert_z,
    orthonormal,
    points,
    positive,
    symmetric,
)
from scipy import stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NotDefined, NoTilt
from sdecontrol.laws import Gaussian, GaussianMixture, NoisySubspace, Subspace, SubspaceGaussian

D = torch.float64
BASIS = orthonormal(7, 2, 1)
OFFSET = points(1, 7, 2)[0]
MEAN, COVARIANCE = torch.tensor([0.5, -1.0], dtype=D), positive(2, 3)
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 0.5]], positive(2, 4, 2))
LAWS = {
    "gaussian": SubspaceGaussian(BASIS, MEAN, COVARIANCE),
    "gaussian with offset": SubspaceGaussian(BASIS, MEAN, COVARIANCE, OFFSET),
    "mixture": Subspace(BASIS, MIXTURE, OFFSET),
}


@pytest.fixture(params=LAWS.values(), ids=LAWS.keys())
def law(request):
    return request.param


def components(law):
    """The latent law as (weight, mean, covariance) triples."""
    latent = law.latent
    if isinstance(latent, Gaussian):
        return [(1.0, latent.mean, latent.covariance)]
    return list(zip(latent.weights, latent.means, latent.covariances, strict=True))


def dense_density(law, x, a, h):
    return sum(
        float(w)
        * stats.multivariate_normal(
            (a * (law.offset + BASIS @ m)).numpy(),
            (a * a * BASIS @ c @ BASIS.mT + h * torch.eye(7, dtype=D)).numpy(),
        ).pdf(x.numpy())
        for w, m, c in components(law)
    )


def test_noised_density_against_dense_gaussians(law):
    x = points(5, 7) * 0.5
    noised = law.noised(0.6, 0.2)
    np.testing.assert_allclose(
        noised.log_prob(x).numpy(), np.log(dense_density(law, x, 0.6, 0.2)), rtol=1e-11
    )
    again = noised.noised(0.5, 0.1)  # noising twice is noising once
    np.testing.assert_allclose(
        again.log_prob(x).numpy(), np.log(dense_density(law, x, 0.3, 0.05 + 0.1)), rtol=1e-11
    )


def test_score_and_hessian(law):
    assert_derivatives(law.noised(0.6, 0.2), points(6, 7))
    assert_derivatives(law.noised(0.6, 0.2).noised(0.5, 0.1), points(6, 7))


def test_moments_and_samples(law):
    for tested in (law, law.noised(0.6, 0.2)):
        assert_z(assert_prefix_stable(tested, sc.Noise(3), 50_000), tested.mean, tested.covariance)


def test_samples_lie_on_the_plane(law):
    x = law.sample(100, sc.Noise(0)) - law.offset
    assert float((x - x @ BASIS @ BASIS.mT).abs().max()) < 1e-14 * 10
    torch.testing.assert_close(law.decode(law.encode(x)), law.offset + (x - law.offset) @ BASIS @ BASIS.mT)


def test_moments_of_the_noised_law(law):
    noised = law.noised(0.6, 0.2)
    wanted = 0.36 * law.covariance + 0.2 * torch.eye(7, dtype=D)
    torch.testing.assert_close(noised.covariance, wanted, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(noised.mean, 0.6 * law.mean)


def test_posterior_mean_is_tweedie(law):
    y = points(5, 7)
    wanted = (y + 0.2 * law.noised(0.6, 0.2).score(y)) / 0.6
    torch.testing.assert_close(law.posterior(0.6, 0.2).mean(y), wanted, rtol=1e-10, atol=1e-10)


def test_posterior_draws():
    law, y = LAWS["gaussian with offset"], points(1, 7, 8)
    s = law.covariance
    gain = 0.6 * s @ torch.linalg.inv(0.36 * s + 0.2 * torch.eye(7, dtype=D))
    mean = law.mean + gain @ (y[0] - 0.6 * law.mean)
    posterior = law.posterior(0.6, 0.2)
    blocks = sc.Noise(2).blocks("posterior", 40_000, (7,))
    draws = torch.cat([posterior.draw(y.expand(b.count, 7), b) for b in blocks])
    latent = (draws - law.offset) @ BASIS
    assert_z(latent, (mean - law.offset) @ BASIS, BASIS.mT @ (s - 0.6 * gain @ s) @ BASIS)


def test_tilt_sees_the_reward_on_the_plane_only(law):
    reward = sc.Quadratic(points(1, 7, 5)[0], 0.3 * symmetric(7, 6), 0.2)
    u = points(5, 2)
    tilted = law.tilt(reward, 0.9)
    wanted = law.latent.log_prob(u) + reward(law.decode(u)) / 0.9 - law.log_expectation(reward, 0.9)
    torch.testing.assert_close(tilted.latent.log_prob(u), wanted, rtol=1e-10, atol=1e-10)
    normal = torch.eye(7, dtype=D) - BASIS @ BASIS.mT
    steep = sc.Quadratic(curvature=-1e6 * (normal + normal.mT) / 2)  # off the plane nobody is there to see it
    assert law.tilt(steep, 1.0).event_shape == (7,)
    with pytest.raises(NoTilt):
        law.tilt(sc.Quadratic(curvature=-1e6 * torch.eye(7, dtype=D)), 1.0)


def test_any_callable_is_restricted():
    law = Subspace(orthonormal(5, 1, 2), Gaussian(0.3, 0.8), points(1, 5, 3)[0])
    tilted = law.tilt(lambda x: torch.sin(x.sum(1)), 0.5)
    quadratic = law.tilt(sc.Quadratic(torch.ones(5)), 0.5)
    same = law.tilt(lambda x: x.sum(1), 0.5)
    assert float(same.latent.mean) == pytest.approx(float(quadratic.latent.mean), abs=1e-10)
    assert tilted.sample(3, sc.Noise(0)).shape == (3, 5)


def test_along():
    law, w = LAWS["mixture"], points(1, 7, 9)[0]
    assert float(law.along(w).mean) == pytest.approx(float(w @ law.mean))
    assert float(law.along(w).covariance) == pytest.approx(float(w @ law.covariance @ w))


def test_hundred_thousand_dimensions():
    d, rows = 16, 100_000
    generator = torch.Generator().manual_seed(0)
    basis = torch.zeros(rows, d, dtype=D)
    basis[torch.randperm(rows, generator=generator)[:d], torch.arange(d)] = 1.0
    law = SubspaceGaussian(basis, torch.zeros(d), positive(d, 1))
    noised = law.noised(0.7, 0.3)
    x = noised.sample(2, sc.Noise(0))
    y = law.encode(x)
    torch.testing.assert_close(law.encode(noised.score(x)), noised.latent.score(y), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(noised.score(x)[:, basis.sum(1) == 0], -x[:, basis.sum(1) == 0] / 0.3)
    assert law.tilt(sc.Step(basis[:, 0], 0.0, 1.0), 1.0).event_shape == (rows,)
    with pytest.raises(BadInput, match="4096"):
        _ = law.covariance


def test_no_density_without_noise(law):
    for method in (law.log_prob, law.score):
        with pytest.raises(NotDefined, match="density"):
            method(points(2, 7))
    assert isinstance(law.noised(0.5, 0.0), Subspace)
    torch.testing.assert_close(law.noised(0.5, 0.0).mean, 0.5 * law.mean)


def test_float32_basis():
    law = SubspaceGaussian(BASIS.float(), MEAN.float(), COVARIANCE.float())
    assert law.dtype == law.sample(2, sc.Noise(0)).dtype == torch.float32
    x = points(4, 7)
    score = law.noised(0.6, 0.2).score(x.float())
    torch.testing.assert_close(
        score.double(), LAWS["gaussian"].noised(0.6, 0.2).score(x), rtol=1e-4, atol=1e-4
    )


def test_bad_subspaces():
    with pytest.raises(BadInput, match="off orthonormal by 0.21"):
        SubspaceGaussian(1.1 * BASIS, MEAN, COVARIANCE)
    with pytest.raises(BadInput, match="columns of the basis"):
        Subspace(BASIS, Gaussian([0.0, 0.0, 0.0], 1.0))
    with pytest.raises(BadInput, match="d <= D"):
        SubspaceGaussian(BASIS.mT, MEAN, COVARIANCE)
    with pytest.raises(BadInput, match="offset of shape"):
        SubspaceGaussian(BASIS, MEAN, COVARIANCE, [1.0, 2.0])
    with pytest.raises(BadInput, match="variance"):
        NoisySubspace(BASIS, Gaussian(MEAN, COVARIANCE), 0.0)
