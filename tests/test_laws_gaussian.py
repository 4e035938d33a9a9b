"""Gaussian, Isotropic and Dirac laws against scipy.stats, autograd, conditioning and quadrature."""

import math

import numpy as np
import pytest
import torch
from laws_tools import assert_derivatives, assert_prefix_stable, assert_z, points, positive, symmetric
from scipy import integrate, stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, NoTilt
from sdecontrol.laws import Dirac, Gaussian, Isotropic

D = torch.float64
MEAN = torch.tensor([0.4, -1.1, 2.0], dtype=D)
LAWS = {
    "dense": Gaussian(MEAN, positive(3, 1)),
    "diagonal": Gaussian(MEAN, [0.3, 1.2, 2.5]),
    "scalar": Gaussian(MEAN, 0.7),
    "isotropic": Isotropic((3,), 1.3, [0.4, -1.1, 2.0]),
}


@pytest.fixture(params=LAWS.values(), ids=LAWS.keys())
def law(request):
    return request.param


def test_log_prob_against_scipy(law):
    x = points(7, 3)
    wanted = stats.multivariate_normal(law.mean.numpy(), law.covariance.numpy()).logpdf(x.numpy())
    np.testing.assert_allclose(law.log_prob(x).numpy(), wanted, rtol=1e-12)


def test_score_and_hessian(law):
    assert_derivatives(law, points(7, 3))
    assert_derivatives(law.noised(0.6, 0.2), points(7, 3))


def test_samples(law):
    assert_z(assert_prefix_stable(law, sc.Noise(3)), law.mean, law.covariance)


def test_noised_is_the_law_of_the_sum(law):
    noised = law.noised(0.6, 0.2)
    wanted = stats.multivariate_normal(
        0.6 * law.mean.numpy(), 0.36 * law.covariance.numpy() + 0.2 * np.eye(3)
    )
    x = points(5, 3)
    np.testing.assert_allclose(noised.log_prob(x).numpy(), wanted.logpdf(x.numpy()), rtol=1e-12)


def test_noising_reuses_the_eigenvectors():
    law = LAWS["dense"]
    assert law.noised(0.6, 0.2).eigenvectors is law.eigenvectors


@pytest.mark.parametrize(("a", "h"), [(0.6, 0.2), (1.0, 1e-8), (0.0, 1.0), (0.7, 0.0)])
def test_posterior_is_joint_gaussian_conditioning(law, a, h):
    posterior, y = law.posterior(a, h), points(4, 3)
    s, m = law.covariance.numpy(), law.mean.numpy()
    gain = a * np.linalg.solve(a * a * s + h * np.eye(3), s).T
    wanted = m + (y.numpy() - a * m) @ gain.T
    np.testing.assert_allclose(posterior.mean(y).numpy(), wanted, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(posterior.covariances[0].numpy(), s - a * gain @ s, atol=1e-9)
    np.testing.assert_allclose(posterior.gains[0].numpy(), gain, rtol=1e-9, atol=1e-9)


def test_posterior_draws():
    posterior = LAWS["dense"].posterior(0.6, 0.2)
    noise, y = sc.Noise(5), torch.tensor([[0.3, -0.2, 1.0]], dtype=D)
    draws = [posterior.draw(y.expand(b.count, 3), b) for b in noise.blocks("posterior", 60_000, (3,))]
    assert_z(torch.cat(draws), posterior.mean(y)[0], posterior.covariances[0])


def test_reference_tilt():
    """m=(1,-.5), S=[[1,.3],[.3,.5]], r = -(x-c)'A(x-c)/2, A = diag(2,.5), c = (0,1), temperature .7."""
    base = Gaussian([1, -0.5], [[1, 0.3], [0.3, 0.5]])
    reward = sc.Quadratic([0.0, 0.5], [[2.0, 0.0], [0.0, 0.5]], -0.25)
    tilted = base.tilt(reward, 0.7)
    np.testing.assert_allclose(tilted.mean, [0.33232323, -0.31515152], atol=5e-9)
    np.testing.assert_allclose(
        tilted.covariance, [[0.2559596, 0.05939394], [0.05939394, 0.33090909]], atol=5e-9
    )
    assert base.log_expectation(reward, 0.7) == pytest.approx(-1.989088071242, abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, -0.3], ids=["concave and convex", "mostly convex"])
def test_tilt_is_the_normalised_product(law, scale):
    reward, temperature, x = sc.Quadratic([0.5, -1.0, 0.2], scale * symmetric(3, 2), 0.3), 1.4, points(6, 3)
    log_c = law.log_expectation(reward, temperature)
    tilted = law.tilt(reward, temperature)
    wanted = law.log_prob(x) + reward(x) / temperature - log_c
    torch.testing.assert_close(tilted.log_prob(x), wanted, rtol=1e-10, atol=1e-10)


def test_log_expectation_against_two_dimensional_quadrature():
    law, reward = Gaussian([0.3, -0.4], positive(2, 4)), sc.Quadratic([0.5, -1.0], 0.3 * symmetric(2, 5), 0.1)

    def integrand(y: float, x: float) -> float:
        point = torch.tensor([[x, y]], dtype=D)
        return math.exp(float(law.log_prob(point)) + float(reward(point)) / 0.9)

    total, _ = integrate.dblquad(integrand, -12, 12, -12, 12, epsabs=1e-9)
    assert law.log_expectation(reward, 0.9) == pytest.approx(math.log(total), abs=1e-7)


def test_linear_tilt_shifts_and_keeps_the_spectrum():
    law = LAWS["dense"]
    tilted = law.tilt(sc.Linear([1.0, 0.0, -2.0]), 0.5)
    assert tilted.eigenvectors is law.eigenvectors
    shift = law.covariance @ torch.tensor([1.0, 0.0, -2.0], dtype=D) / 0.5
    torch.testing.assert_close(tilted.mean, law.mean + shift, rtol=1e-12, atol=1e-12)
    g, s, m = (
        np.array([2.0, 0.0, -4.0]),
        law.covariance.numpy(),
        law.mean.numpy(),
    )  # log E e^{g.x} = g.m + g'Sg/2
    log_c = law.log_expectation(sc.Linear([1.0, 0.0, -2.0]), 0.5)
    assert log_c == pytest.approx(g @ m + g @ s @ g / 2, rel=1e-13)


@pytest.mark.parametrize(("variance", "curvature", "temperature"), [(4.0, -0.6, 2.0), (0.5, -3.0, 1.0)])
def test_no_tilt_names_eigenvalue_and_largest_curvature(variance, curvature, temperature):
    law = Gaussian(0.0, variance)
    with pytest.raises(NoTilt, match="eigenvalue") as caught:
        law.tilt(sc.Quadratic(curvature=curvature), temperature)
    assert caught.value.eigenvalue == pytest.approx(1 + variance * curvature / temperature)
    assert caught.value.largest_curvature == pytest.approx(temperature / variance)
    law.tilt(sc.Quadratic(curvature=-0.999 * temperature / variance), temperature)  # just below it exists
    with pytest.raises(NoTilt):
        law.log_expectation(sc.Quadratic(curvature=curvature), temperature)


def test_largest_curvature_is_the_edge_along_the_ray():
    law, k = LAWS["dense"], -positive(3, 9)
    with pytest.raises(NoTilt) as caught:
        law.tilt(sc.Quadratic(curvature=20 * k), 1.0)
    edge = caught.value.largest_curvature / -float(torch.linalg.eigvalsh(k)[0])
    law.tilt(sc.Quadratic(curvature=0.999 * edge * k), 1.0)
    with pytest.raises(NoTilt):
        law.tilt(sc.Quadratic(curvature=1.001 * edge * k), 1.0)


def test_along_and_affine_against_samples_of_scipy():
    law, w = LAWS["dense"], torch.tensor([1.0, -2.0, 0.5], dtype=D)
    line = law.along(w)
    assert float(line.mean) == pytest.approx(float(w @ law.mean))
    assert float(line.covariance) == pytest.approx(float(w @ law.covariance @ w))
    matrix, offset, x = positive(3, 7) - 1.0, torch.tensor([1.0, 2.0, 3.0], dtype=D), points(5, 3)
    wanted = law.log_prob(x) - torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(law.affine(matrix, offset).log_prob(x @ matrix.mT + offset), wanted)


def test_float32_points_and_parameters():
    law, x = LAWS["dense"], points(5, 3)
    assert law.score(x.float()).dtype == torch.float32
    torch.testing.assert_close(law.score(x.float()).double(), law.score(x), rtol=1e-5, atol=1e-5)
    assert law.log_prob(x.float()).dtype == torch.float64
    single = Gaussian(MEAN.float(), positive(3, 1).float())
    assert single.dtype == single.sample(3, sc.Noise(0)).dtype == torch.float32
    assert (
        single.noised(0.5, 0.1).dtype
        == single.tilt(sc.Quadratic(curvature=torch.eye(3)), 1.0).dtype
        == torch.float32
    )
    assert Gaussian([0.1, 0.2], 1.0).mean.tolist() == [0.1, 0.2]  # numbers are float64 from the start


def test_images_are_summed_over_all_coordinates():
    law, x = Isotropic((2, 3, 4), 0.7), points(5, 24).reshape(5, 2, 3, 4)
    wanted = stats.norm.logpdf(x.numpy(), 0, 0.7).sum((1, 2, 3))
    np.testing.assert_allclose(law.log_prob(x).numpy(), wanted, rtol=1e-12)
    assert_derivatives(law, x)
    assert law.noised(0.5, 0.3).std == pytest.approx(math.sqrt(0.25 * 0.49 + 0.3))
    sample = assert_prefix_stable(law, sc.Noise(1), 20_000)
    assert_z(sample.flatten(1)[:, :3], torch.zeros(3, dtype=D), 0.49 * torch.eye(3, dtype=D))
    with pytest.raises(NoClosedForm, match="vectors"):
        law.posterior(0.5, 0.3)


def test_dirac():
    law, x = Dirac([0.5, -1.0]), points(5, 2)
    wanted = stats.multivariate_normal([0.3, -0.6], 0.2 * np.eye(2)).logpdf(x.numpy())
    np.testing.assert_allclose(law.noised(0.6, 0.2).log_prob(x).numpy(), wanted, rtol=1e-12)
    assert law.log_expectation(sc.Linear([1.0, 2.0]), 0.5) == pytest.approx(-3.0)
    assert law.tilt(sc.Linear([1.0, 2.0]), 0.5) is law
    assert torch.equal(law.sample(3, sc.Noise(0)), law.point.expand(3, 2))
    assert torch.equal(law.noised(0.6, 0.0).mean, 0.6 * law.mean)
    image = Dirac(torch.ones(2, 2, 2)).noised(0.5, 0.1)
    assert isinstance(image, Isotropic)
    assert float(image.mean.sum()) == 4.0
    with pytest.raises(NotDefined, match="density"):
        law.log_prob(x)


def test_large_dimensions_stay_linear():
    law = Gaussian(torch.zeros(200_000), 2.0).noised(0.5, 0.1)
    assert law.log_prob(torch.zeros(1, 200_000)).isfinite().all()
    with pytest.raises(BadInput, match="4096"):
        _ = law.covariance


NAN = float("nan")


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        ([[0.0]], 1.0, "vector"),
        ([0.0, NAN], 1.0, "NaN"),
        ([0.0, 0.0], [[1.0, 0.1], [0.2, 1.0]], "asymmetric by 0.1"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "smallest eigenvalue -1 "),
        ([0.0, 0.0], [[1.0, 1.0], [1.0, 1.0]], "Subspace"),
        ([0.0, 0.0], [1.0, 0.0], "smallest eigenvalue 0 "),
        ([0.0, 0.0], [1.0, 1.0, 1.0], r"\(3,\)"),
        ([0.0, 0.0], NAN, "covariance with NaN"),
        (0.0, -1.0, "smallest eigenvalue -1 "),
    ],
)
def test_bad_gaussians(mean, covariance, message):
    with pytest.raises(BadInput, match=message):
        Gaussian(mean, covariance)


def test_bad_points_and_temperatures():
    law = LAWS["dense"]
    for method in (law.log_prob, law.score):
        with pytest.raises(BadInput, match=r"\(n, 3\)"):
            method(torch.zeros(3, dtype=D))
    with pytest.raises(BadInput, match="temperature"):
        law.tilt(sc.Linear([1.0, 0.0, 0.0]), 0.0)
    with pytest.raises(BadInput, match="dimensions"):
        law.tilt(sc.Linear([1.0]), 1.0)
    with pytest.raises(BadInput, match="std"):
        Isotropic((3,), 0.0)
    with pytest.raises(BadInput, match="event_shape"):
        Isotropic((), 1.0)
