"""Mixtures and discrete laws against sums of scipy densities, autograd, Tweedie's formula and quadrature."""

import math

import numpy as np
import pytest
import torch
from laws_tools import (
    FAMILY_WISE,
    assert_derivatives,
    assert_prefix_stable,
    assert_z,
    points,
    positive,
    symmetric,
)
from scipy import integrate, stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NotDefined, NoTilt
from sdecontrol.laws import DiscreteLaw, Gaussian, GaussianMixture

D = torch.float64
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=D)
MEANS = torch.tensor([[-2.0, 0.5], [1.0, 1.0], [0.3, -1.5]], dtype=D)
WIDE = 50  # dimension at which diagonal components leave the matrix products
LAWS = {
    "dense": GaussianMixture(WEIGHTS, MEANS, positive(2, 1, 3)),
    "diagonal": GaussianMixture(WEIGHTS, MEANS, [[0.3, 1.2], [0.5, 0.5], [2.0, 0.1]]),
    "wide diagonal": GaussianMixture(WEIGHTS, points(3, WIDE, 4), 0.2 + points(3, WIDE, 5).square()),
    "isotropic": GaussianMixture(WEIGHTS, MEANS, [0.3, 1.2, 0.5]),
    "shared": GaussianMixture(WEIGHTS, MEANS, positive(2, 2).expand(3, 2, 2)),
    "shared scalar": GaussianMixture(WEIGHTS, MEANS, 0.4),
    "shared far": GaussianMixture(WEIGHTS, MEANS + 100.0, 0.4),
    "one": GaussianMixture([1.0], MEANS[:1], positive(2, 2)[None]),
}


@pytest.fixture(params=LAWS.values(), ids=LAWS.keys())
def law(request):
    return request.param


def near(law, n: int = 7):
    return points(n, law.dim) + law.mean


def scipy_log_prob(law, x, a: float = 1.0, h: float = 0.0):
    eye = np.eye(law.dim)
    logs = [
        math.log(w) + stats.multivariate_normal(a * m.numpy(), a * a * c.numpy() + h * eye).logpdf(x.numpy())
        for w, m, c in zip(law.weights, law.means, law.covariances, strict=True)
    ]
    return np.logaddexp.reduce(logs)


def test_log_prob_against_scipy(law):
    x = near(law)
    np.testing.assert_allclose(law.log_prob(x).numpy(), scipy_log_prob(law, x), rtol=1e-11)
    np.testing.assert_allclose(
        law.noised(0.6, 0.2).log_prob(0.6 * x), scipy_log_prob(law, 0.6 * x, 0.6, 0.2), rtol=1e-11
    )


def test_score_and_hessian(law):
    assert_derivatives(law, near(law))
    assert_derivatives(law.noised(0.6, 0.2), 0.6 * near(law))


def test_score_far_from_every_component(law):
    """In the far tail one component decides; nothing overflows or divides by zero."""
    x = law.mean + 1e4 * torch.ones(1, law.dim, dtype=D)
    best = int(law.log_responsibilities(x).argmax())
    torch.testing.assert_close(law.score(x), law.components[best].score(x), rtol=1e-9, atol=0.0)


def test_samples(law):
    sample = assert_prefix_stable(law, sc.Noise(3), 60_000)
    few = min(law.dim, 3)
    assert_z(sample[:, :few], law.mean[:few], law.covariance[:few, :few])


def test_responsibilities_are_bayes(law):
    x = near(law)
    joint = torch.stack([c.log_prob(x) + w for c, w in zip(law.components, law.log_weights, strict=True)], 1)
    torch.testing.assert_close(law.log_responsibilities(x), joint.log_softmax(1), rtol=1e-9, atol=1e-9)


def test_posterior_mean_is_tweedie(law):
    y = 0.6 * near(law)
    wanted = (y + 0.2 * law.noised(0.6, 0.2).score(y)) / 0.6
    torch.testing.assert_close(law.posterior(0.6, 0.2).mean(y), wanted, rtol=1e-10, atol=1e-10)


def test_posterior_draws_against_the_reweighted_law():
    """On the line: the posterior is p(x) N(y; a x, h), normalised by scipy."""
    law, a, h, y = GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.2, 0.7]), 0.6, 0.5, 0.2

    def density(x: float) -> float:
        return math.exp(float(law.log_prob(torch.tensor([[x]], dtype=D)))) * stats.norm.pdf(
            y, a * x, math.sqrt(h)
        )

    total, first, second = (integrate.quad(lambda x, k=k: x**k * density(x), -8, 8)[0] for k in range(3))
    mean = first / total
    posterior = law.posterior(a, h)
    at = torch.tensor([[y]], dtype=D)
    assert float(posterior.mean(at)) == pytest.approx(mean, rel=1e-8)
    blocks = sc.Noise(2).blocks("posterior", 60_000, (1,))
    draws = torch.cat([posterior.draw(at.expand(b.count, 1), b) for b in blocks])
    variance = second / total - mean**2
    assert_z(draws, torch.tensor([mean], dtype=D), torch.tensor([[variance]], dtype=D))


@pytest.mark.parametrize("name", ["dense", "diagonal", "shared", "shared scalar"])
def test_tilt_is_the_normalised_product(name):
    law, reward, temperature, x = (
        LAWS[name],
        sc.Quadratic([0.5, -1.0], 0.4 * symmetric(2, 3), 0.3),
        1.4,
        points(6, 2),
    )
    log_c = law.log_expectation(reward, temperature)
    tilted = law.tilt(reward, temperature)
    wanted = law.log_prob(x) + reward(x) / temperature - log_c
    torch.testing.assert_close(tilted.log_prob(x), wanted, rtol=1e-10, atol=1e-10)
    assert float(tilted.weights.sum()) == pytest.approx(1.0, abs=1e-12)


def test_log_expectation_against_quadrature():
    law = GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.2, 0.7])
    for reward in (
        sc.Quadratic([0.5], [[-0.3]], 0.1),
        sc.Step([2.0], 1.0, 1.5),
        lambda x: torch.sin(2 * x[:, 0]),
    ):

        def integrand(x: float, reward=reward) -> float:
            point = torch.tensor([[x]], dtype=D)
            return math.exp(float(law.log_prob(point)) + float(reward(point)) / 0.8)

        total = sum(
            integrate.quad(integrand, a, b, epsabs=1e-13)[0]
            for a, b in [(-10, -1), (-1, 0.5), (0.5, 2), (2, 14)]
        )
        assert law.log_expectation(reward, 0.8) == pytest.approx(math.log(total), abs=1e-9)


def test_one_component_without_a_tilt_is_enough():
    law = GaussianMixture([0.999, 0.001], [[0.0], [0.0]], [[0.1], [5.0]])
    with pytest.raises(NoTilt) as caught:
        law.tilt(sc.Quadratic(curvature=-0.3), 1.0)
    assert caught.value.eigenvalue == pytest.approx(-0.5)


def test_along_and_affine():
    law, w = LAWS["dense"], torch.tensor([0.6, -1.3], dtype=D)
    line = law.along(w)
    assert float(line.mean) == pytest.approx(float(w @ law.mean))
    assert float(line.covariance) == pytest.approx(float(w @ law.covariance @ w))
    matrix, offset, x = (
        torch.tensor([[1.0, 2.0], [-0.5, 1.0]], dtype=D),
        torch.tensor([1.0, -2.0], dtype=D),
        points(5, 2),
    )
    wanted = law.log_prob(x) - torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(law.affine(matrix, offset).log_prob(x @ matrix.mT + offset), wanted)


def test_float32(law):
    x = near(law)
    single = law.score(x.float())
    assert single.dtype == torch.float32
    tolerance = 1e-4 * float(law.score(x).abs().max()) * (1 + float(x.abs().max()) / 10)
    torch.testing.assert_close(single.double(), law.score(x), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize(
    ("weights", "means", "covariances", "message"),
    [
        ([0.5, 0.6], [[0.0], [1.0]], 1.0, "sum to 1 within 0.1"),
        ([1.0, 0.0], [[0.0], [1.0]], 1.0, "a weight of 0"),
        ([1.5, -0.5], [[0.0], [1.0]], 1.0, "a weight of -0.5"),
        ([0.5, 0.5], [[0.0], [1.0], [2.0]], 1.0, r"means of shape \(3, 1\)"),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, -1.0], "smallest eigenvalue -1 "),
        ([0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], "smallest eigenvalue 0 "),
        ([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0], r"covariances of shape \(3,\)"),
        ([0.5, 0.5], [[0.0], [float("inf")]], 1.0, "means with NaN or infinite"),
        ([[1.0]], [[0.0]], 1.0, "weights of shape"),
    ],
)
def test_bad_mixtures(weights, means, covariances, message):
    with pytest.raises(BadInput, match=message):
        GaussianMixture(weights, means, covariances)


def test_discrete_law():
    atoms, weights = (
        torch.tensor([[-1.0, 0.0], [0.5, 2.0], [1.0, -1.0]], dtype=D),
        torch.tensor([0.2, 0.5, 0.3], dtype=D),
    )
    law = DiscreteLaw(atoms, weights)
    counts = (assert_prefix_stable(law, sc.Noise(4), 50_000)[:, None] == atoms).all(2).sum(0).double()
    z = (counts - 50_000 * weights) / (50_000 * weights * (1 - weights)).sqrt()
    assert float(z.abs().max()) < stats.norm.isf(FAMILY_WISE / 6)
    x = points(5, 2)
    wanted = sum(
        w * stats.multivariate_normal(0.6 * m, 0.2 * np.eye(2)).pdf(x)
        for w, m in zip(weights.numpy(), atoms.numpy(), strict=True)
    )
    np.testing.assert_allclose(law.noised(0.6, 0.2).log_prob(x).numpy(), np.log(wanted), rtol=1e-11)
    reward = sc.Linear([1.0, 0.5])
    e = weights.numpy() * np.exp(atoms.numpy() @ [1.0, 0.5] / 0.7)
    assert law.log_expectation(reward, 0.7) == pytest.approx(math.log(e.sum()))
    np.testing.assert_allclose(law.tilt(reward, 0.7).weights, e / e.sum())
    np.testing.assert_allclose(law.covariance, np.cov(atoms.numpy().T, aweights=weights.numpy(), ddof=0))
    with pytest.raises(NotDefined):
        law.score(x)
    with pytest.raises(BadInput, match="sum to 1"):
        DiscreteLaw(atoms, [0.5, 0.5, 0.5])


def test_a_single_component_is_the_gaussian():
    law, x = LAWS["one"], points(5, 2)
    single = Gaussian(MEANS[0], positive(2, 2))
    torch.testing.assert_close(law.score(x), single.score(x), rtol=1e-12, atol=1e-12)
