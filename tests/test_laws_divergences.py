"""KL, Renyi, chi-squared, total variation, W2: closed forms against quadrature, matrices and each other."""

import math

import numpy as np
import pytest
import torch
from laws_tools import orthonormal, points, positive
from scipy import integrate, linalg, optimize, stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NotDefined
from sdecontrol.laws import (
    Dirac,
    DiscreteLaw,
    Gaussian,
    GaussianMixture,
    Isotropic,
    NoisySubspace,
    Subspace,
    chi2,
    kl,
    renyi,
    tv,
    w2,
)

D = torch.float64
P2, Q2 = Gaussian([0.3, -0.4], positive(2, 1)), Gaussian([0.0, 0.2], positive(2, 2))
LINE = [
    Gaussian(0.3, 1.7),
    Gaussian(-1.0, 0.4),
    Gaussian(0.5, 1.7),
    GaussianMixture([0.3, 0.7], [-2.0, 1.5], [0.1, 0.6]),
]
PAIRS = [(p, q) for p in LINE for q in LINE if p is not q]


def density(law, x: float) -> float:
    return math.exp(float(law.log_prob(torch.tensor([[x]], dtype=D))))


def scipy_integral(function) -> float:
    edges = np.concatenate([np.linspace(-4, 4, 33), [9.0]])
    edges = np.concatenate([[-9.0], edges])
    return sum(integrate.quad(function, a, b, epsabs=1e-13, limit=200)[0] for a, b in zip(edges, edges[1:]))


@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_on_the_line(p, q):
    wanted = scipy_integral(lambda x: density(p, x) * math.log(density(p, x) / density(q, x)))
    assert kl(p, q) == pytest.approx(wanted, abs=1e-8)
    wanted = scipy_integral(lambda x: math.sqrt(density(p, x) * density(q, x)))
    assert renyi(p, q, 0.5) == pytest.approx(-2 * math.log(wanted), abs=1e-8)
    wanted = scipy_integral(lambda x: abs(density(p, x) - density(q, x)) / 2)
    assert float(tv(p, q)) == pytest.approx(wanted, abs=1e-8)


def test_divergent_renyi():
    assert chi2(LINE[0], LINE[1]) == math.inf  # the wider law against the narrower
    assert chi2(LINE[0], LINE[3]) == math.inf  # by quadrature: against a mixture
    wanted = scipy_integral(lambda x: density(LINE[3], x) ** 2 / density(LINE[0], x)) - 1
    assert chi2(LINE[3], LINE[0]) == pytest.approx(wanted, rel=1e-8)
    wanted = scipy_integral(lambda x: density(LINE[1], x) ** 2 / density(LINE[0], x)) - 1
    assert chi2(LINE[1], LINE[0]) == pytest.approx(wanted, rel=1e-8)
    edge = 1.7 / 1.3  # order * 0.4 + (1 - order) * 1.7 = 0
    assert renyi(LINE[0], LINE[1], edge * 1.001) == math.inf
    assert math.isfinite(renyi(LINE[0], LINE[1], edge * 0.999))


def test_gaussians_in_the_plane():
    def both(y: float, x: float) -> tuple[float, float]:
        point = torch.tensor([[x, y]], dtype=D)
        return math.exp(float(P2.log_prob(point))), math.exp(float(Q2.log_prob(point)))

    def integral(term) -> float:
        return integrate.dblquad(lambda y, x: term(*both(y, x)), -7, 7, -7, 7, epsabs=1e-7)[0]

    s, t = P2.covariance.numpy(), Q2.covariance.numpy()
    gap = (P2.mean - Q2.mean).numpy()
    log_dets = math.log(np.linalg.det(t) / np.linalg.det(s))
    wanted = 0.5 * (np.trace(np.linalg.solve(t, s)) - 2 + gap @ np.linalg.solve(t, gap) + log_dets)
    assert kl(P2, Q2) == pytest.approx(wanted, rel=1e-12)
    assert math.exp(-renyi(P2, Q2, 0.5) / 2) == pytest.approx(
        integral(lambda p, q: math.sqrt(p * q)), abs=1e-6
    )
    distance = tv(P2, Q2)
    exact = integral(lambda p, q: abs(p - q) / 2)
    assert distance.lower - 1e-6 <= exact <= distance.upper + 1e-6
    assert distance.upper < 2.5 * distance.lower
    with pytest.raises(NotDefined, match="lie in"):
        _ = distance.value


@pytest.mark.parametrize("order", [0.3, 0.5, 2.0])
def test_renyi_matrix_formula(order):
    s, t = P2.covariance.numpy(), 3 * Q2.covariance.numpy()
    gap = (P2.mean - Q2.mean).numpy()
    mixed = (1 - order) * s + order * t
    logs = math.log(np.linalg.det(mixed) / (np.linalg.det(s) ** (1 - order) * np.linalg.det(t) ** order))
    wanted = order / 2 * gap @ np.linalg.solve(mixed, gap) - logs / (2 * (order - 1))
    assert renyi(P2, Gaussian(Q2.mean, 3 * Q2.covariance), order) == pytest.approx(wanted, rel=1e-12)


def test_nearly_equal_gaussians_do_not_cancel():
    p = Gaussian(0.0, 1.0)
    q = Gaussian(0.0, 1.0 + 1e-6)
    assert kl(p, q) == pytest.approx(1e-12 / 4, rel=1e-5)
    assert float(tv(p, q)) == pytest.approx(1e-6 * math.exp(-0.5) / math.sqrt(2 * math.pi), rel=1e-5)
    assert kl(P2, Gaussian(P2.mean, P2.covariance)) == pytest.approx(0.0, abs=1e-15)
    assert w2(P2, Gaussian(P2.mean, P2.covariance)) == pytest.approx(0.0, abs=1e-14)


def test_total_variation_closed_forms():
    shifted = Gaussian(P2.mean + 0.5, P2.covariance)
    gap = 0.5 * math.sqrt(float(torch.linalg.solve(P2.covariance, torch.ones(2, dtype=D)).sum()))
    assert float(tv(P2, shifted)) == pytest.approx(2 * stats.norm.cdf(gap / 2) - 1, rel=1e-12)
    wide = Gaussian(P2.mean, 3 * P2.covariance)  # |x|^2 of the whitened law is chi-squared with 2 degrees

    def radial(r: float) -> float:
        return abs(stats.chi2.pdf(r, 2) - stats.chi2.pdf(r / 3, 2) / 3) / 2

    cross = optimize.brentq(lambda r: stats.chi2.pdf(r, 2) - stats.chi2.pdf(r / 3, 2) / 3, 0.1, 20)
    wanted = integrate.quad(radial, 0, cross)[0] + integrate.quad(radial, cross, 300)[0]
    assert float(tv(wide, P2)) == pytest.approx(wanted, rel=1e-9)
    assert float(tv(P2, P2)) == 0.0
    assert float(tv(Dirac([0.0, 0.0]), P2)) == 1.0


def test_w2_of_gaussians_against_the_matrix_formula():
    s, t = P2.covariance.numpy(), Q2.covariance.numpy()
    root = linalg.sqrtm(s).real
    cross = linalg.sqrtm(root @ t @ root).real
    wanted = float((P2.mean - Q2.mean).square().sum()) + np.trace(s + t - 2 * cross)
    assert w2(P2, Q2) == pytest.approx(math.sqrt(wanted), rel=1e-10)
    basis, other = orthonormal(6, 2, 1), orthonormal(6, 3, 2)
    p, q = Subspace(basis, P2), Subspace(other, Gaussian([0.1, 0.2, 0.3], positive(3, 4)), points(1, 6)[0])
    s, t = p.covariance.numpy(), q.covariance.numpy()
    root = linalg.fractional_matrix_power(s + 1e-15 * np.eye(6), 0.5).real
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    wanted = float((p.mean - q.mean).square().sum()) + np.trace(s + t) - 2 * cross
    assert w2(p, q) == pytest.approx(math.sqrt(wanted), rel=1e-6)
    gap = float((p.mean - q.mean).square().sum())
    assert w2(p, Dirac(q.mean)) == pytest.approx(math.sqrt(gap + float(P2.covariance.trace())), rel=1e-12)


def test_w2_on_the_line_is_by_quantiles():
    p, q = LINE[3], GaussianMixture([0.5, 0.5], [0.0, 3.0], [1.0, 0.2])

    def quantile(law, u):
        def cdf(x):
            scales = law.spectrum.values[:, 0].sqrt().numpy()
            return float((law.weights.numpy() * stats.norm.cdf(x, law.means[:, 0].numpy(), scales)).sum())

        return optimize.brentq(lambda x: cdf(x) - u, -20, 20, xtol=1e-14)

    edges = [0.0, 1e-6, 1e-3, 0.1, 0.29, 0.3, 0.31, 0.49, 0.5, 0.51, 0.9, 1 - 1e-3, 1 - 1e-6, 1.0]
    wanted = sum(
        integrate.quad(lambda u: (quantile(p, u) - quantile(q, u)) ** 2, a, b, epsabs=1e-9)[0]
        for a, b in zip(edges, edges[1:])
    )
    assert w2(p, q) == pytest.approx(math.sqrt(wanted), rel=1e-7)
    assert w2(p, p) == pytest.approx(0.0, abs=1e-12)
    p_line, q_line = (
        law.tilt(lambda x: 0 * x[:, 0], 1.0) for law in LINE[:2]
    )  # hidden Gaussians: quadrature
    assert w2(p_line, q_line) == pytest.approx(w2(*LINE[:2]), rel=1e-10)


def test_laws_on_one_subspace_are_their_latents():
    basis, rotation = orthonormal(5, 2, 3), orthonormal(2, 2, 4)
    offset = points(1, 5)[0]
    p = Subspace(basis, P2, offset)
    shift = torch.tensor([0.3, -0.7], dtype=D)
    turned = Subspace(basis @ rotation, Q2.affine(rotation.mT, -rotation.mT @ shift), offset + basis @ shift)
    assert kl(p, turned) == pytest.approx(kl(P2, Q2), rel=1e-10)
    assert renyi(p, turned, 0.5) == pytest.approx(renyi(P2, Q2, 0.5), rel=1e-10)
    assert tv(p, turned).lower == pytest.approx(tv(P2, Q2).lower, rel=1e-9)
    assert w2(p, turned) == pytest.approx(w2(P2, Q2), rel=1e-10)
    lifted = Subspace(basis, P2, offset + 1e-3 * orthonormal(5, 5, 9)[:, 0])
    for singular in (Subspace(orthonormal(5, 2, 8), P2, offset), lifted, Isotropic((5,), 1.0), Dirac(offset)):
        assert kl(p, singular) == math.inf
        assert float(tv(p, singular)) == 1.0
    lines = [Subspace(orthonormal(5, 1, 3), law) for law in (LINE[3], LINE[0])]
    assert kl(*lines) == pytest.approx(kl(LINE[3], LINE[0]), rel=1e-12)
    assert w2(*lines) == pytest.approx(w2(LINE[3], LINE[0]), rel=1e-12)


def test_noise_around_a_subspace_against_dense_gaussians():
    basis, offset = orthonormal(5, 2, 3), points(1, 5)[0]
    p = NoisySubspace(basis, P2, 0.3, offset)
    q = NoisySubspace(basis, Q2, 0.5, 0.5 * offset)
    dense = [Gaussian(law.mean, law.covariance) for law in (p, q)]
    assert kl(p, q) == pytest.approx(kl(*dense), rel=1e-10)
    assert renyi(p, q, 0.7) == pytest.approx(renyi(*dense, 0.7), rel=1e-10)
    ball = Isotropic((5,), 0.8, offset)
    wanted = Gaussian(offset, 0.64)
    assert kl(p, ball) == pytest.approx(kl(dense[0], wanted), rel=1e-10)
    assert kl(ball, p) == pytest.approx(kl(wanted, dense[0]), rel=1e-10)
    same_noise = NoisySubspace(basis, Q2, 0.3, offset)
    assert tv(p, same_noise).lower == pytest.approx(tv(P2, Q2).lower, rel=1e-9)
    assert kl(Dirac(offset), p) == kl(p, Dirac(offset)) == math.inf
    with pytest.raises(NoClosedForm, match="spans"):
        kl(p, NoisySubspace(orthonormal(5, 2, 8), Q2, 0.5))


def test_images_and_large_dimensions():
    p, q = Isotropic((3, 64, 64), 1.0), Isotropic((3, 64, 64), 1.1)
    size, s2 = 3 * 64 * 64, 1 / 1.21
    assert kl(p, q) == pytest.approx(size / 2 * (s2 - 1 - math.log(s2)), rel=1e-12)
    assert w2(p, q) == pytest.approx(0.1 * math.sqrt(size), rel=1e-12)
    assert float(tv(Isotropic((4,), 1.0), Isotropic((4,), 2.0))) == pytest.approx(
        stats.chi2.cdf(4 * math.log(4) * 4 / 3, 4) - stats.chi2.cdf(math.log(4) * 4 / 3, 4), rel=1e-12
    )


def test_discrete_laws_and_diracs():
    p, q = DiscreteLaw([0.0, 1.0, 2.0], [0.2, 0.5, 0.3]), DiscreteLaw([0.0, 1.0, 2.0], [0.4, 0.1, 0.5])
    a, b = p.weights.numpy(), q.weights.numpy()
    assert kl(p, q) == pytest.approx(stats.entropy(a, b))
    assert chi2(p, q) == pytest.approx((a * a / b).sum() - 1)
    assert float(tv(p, q)) == pytest.approx(np.abs(a - b).sum() / 2)
    assert kl(Dirac([1.0]), Dirac([1.0])) == 0.0
    assert kl(Dirac([1.0]), Dirac([2.0])) == math.inf
    assert w2(Dirac([1.0, 0.0]), Dirac([2.0, 0.0])) == 1.0


def test_open_pairs_and_bad_input():
    mixture = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 0.0]], 1.0)
    for distance in (kl, tv, w2):
        with pytest.raises(NoClosedForm):
            distance(mixture, P2)
        with pytest.raises(BadInput, match="same events"):
            distance(P2, Gaussian(0.0, 1.0))
    with pytest.raises(BadInput, match="order"):
        renyi(P2, Q2, 1.0)


def test_tilt_identities():
    """KL(tilt||base) + KL(base||tilt) = (E_tilt r - E_base r) / temperature; both read the normaliser."""
    base, temperature = LINE[3], 0.6
    reward = sc.Quadratic([0.4], [[0.8]])
    tilted, log_c = base.tilt(reward, temperature), base.log_expectation(reward, temperature)

    def mean_reward(law):
        return float(0.4 * law.mean - 0.4 * (law.covariance + law.mean**2))

    assert kl(tilted, base) == pytest.approx(mean_reward(tilted) / temperature - log_c, abs=1e-10)
    assert kl(base, tilted) == pytest.approx(log_c - mean_reward(base) / temperature, abs=1e-10)
