"""f-tilts against brute-force convex optimisation on finite grids, scipy quadrature, and their limits."""

import math

import numpy as np
import pytest
import torch
from laws_tools import assert_z
from scipy import integrate, optimize, stats

import sdecontrol as sc
from sdecontrol.errors import BadInput, NoClosedForm, NoTilt
from sdecontrol.laws import (
    KL,
    ChiSquare,
    DiscreteLaw,
    ForwardKL,
    GammaDivergence,
    Gaussian,
    GaussianMixture,
    Isotropic,
    f_tilt,
    surrogate,
)

D = torch.float64
DIVERGENCES = [KL(), ForwardKL(), GammaDivergence(0.3), GammaDivergence(0.8), ChiSquare()]
MIXTURE = GaussianMixture([0.4, 0.6], [-1.0, 1.5], [0.2, 0.7])
ATOMS, MASSES = np.array([-1.0, -0.2, 0.4, 1.0, 1.7]), np.array([0.1, 0.3, 0.25, 0.2, 0.15])
BY_HAND = {  # f and f' written again, for numpy
    "KL": (lambda x: x * np.log(x), lambda x: np.log(x) + 1),
    "ForwardKL": (lambda x: -np.log(x), lambda x: -1 / x),
    "ChiSquare": (lambda x: (x - 1) ** 2 / 2, lambda x: x - 1),
    "GammaDivergence": (
        lambda x, g: (x ** (1 - g) - (1 - g) * x - g) / (g * (g - 1)),
        lambda x, g: (x**-g - 1) / -g,
    ),
}


def by_hand(divergence):
    pair = BY_HAND[type(divergence).__name__]
    if isinstance(divergence, GammaDivergence):
        return tuple(lambda x, f=f: f(x, divergence.gamma) for f in pair)
    return pair


def bumpy(x):
    return torch.cos(2 * x[:, 0])


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_against_convex_optimisation(divergence, temperature):
    f, slope = by_hand(divergence)

    def loss(p):
        return -(p @ ATOMS) + temperature * (MASSES @ f(p / MASSES))

    found = optimize.minimize(
        loss, MASSES, jac=lambda p: -ATOMS + temperature * slope(p / MASSES), method="SLSQP",
        bounds=[(1e-12, 1.0)] * 5,
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
        options={"maxiter": 1000, "ftol": 1e-15},
    )  # fmt: skip
    base = DiscreteLaw(ATOMS, MASSES)
    tilted = f_tilt(base, sc.Linear([1.0]), temperature, divergence)
    np.testing.assert_allclose(tilted.weights, found.x, atol=2e-6)
    value = surrogate(base, sc.Linear([1.0]), temperature, divergence).value
    assert value == pytest.approx(-found.fun, abs=1e-9)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_on_the_line(divergence):
    """E_base w = 1, and the first-order condition r - temperature f'(w) is one constant wherever w > 0."""
    temperature = 0.4
    solved = surrogate(MIXTURE, bumpy, temperature, divergence)

    def integrand(x: float) -> float:
        point = torch.tensor([[x]], dtype=D)
        return math.exp(float(MIXTURE.log_prob(point))) * float(solved.weight(point))

    edges = np.linspace(-8, 9, 35)
    total = sum(integrate.quad(integrand, a, b, epsabs=1e-12)[0] for a, b in zip(edges, edges[1:]))
    assert total == pytest.approx(1.0, abs=1e-7)
    x = torch.linspace(-3, 3, 50, dtype=D)[:, None]
    w = solved.weight(x).numpy()
    constants = (bumpy(x).numpy() - temperature * by_hand(divergence)[1](w.clip(1e-300)))[w > 0]
    assert np.ptp(constants) < 1e-9
    assert constants[0] == pytest.approx(solved.multiplier, abs=1e-9)
    law = f_tilt(MIXTURE, bumpy, temperature, divergence)
    np.testing.assert_allclose(
        law.log_prob(x).exp().numpy(), MIXTURE.log_prob(x).exp().numpy() * w, atol=1e-9
    )
    torch.testing.assert_close(solved(x), temperature * solved.log_weight(x))


@pytest.mark.parametrize("divergence", [ForwardKL(), GammaDivergence(0.3), ChiSquare()], ids=str)
def test_samples_have_the_tilted_moments(divergence):
    law = f_tilt(MIXTURE, bumpy, 0.4, divergence)
    assert law.log_bound is not None  # a bounded reward: rejection, exact
    assert_z(law.sample(40_000, sc.Noise(3)), law.mean, law.covariance)


def test_limits_of_gamma():
    near_kl = f_tilt(MIXTURE, bumpy, 0.7, GammaDivergence(1e-6))
    near_forward = f_tilt(MIXTURE, bumpy, 0.7, GammaDivergence(1 - 1e-6))
    x = torch.linspace(-3, 3, 9, dtype=D)[:, None]
    torch.testing.assert_close(
        near_kl.log_prob(x), MIXTURE.tilt(bumpy, 0.7).log_prob(x), rtol=1e-4, atol=1e-4
    )
    forward = f_tilt(MIXTURE, bumpy, 0.7, ForwardKL())
    torch.testing.assert_close(near_forward.log_prob(x), forward.log_prob(x), rtol=1e-4, atol=1e-4)


def test_kl_is_the_exponential_tilt():
    solved = surrogate(MIXTURE, bumpy, 0.5, KL())
    log_c = MIXTURE.log_expectation(bumpy, 0.5)
    assert solved.value == pytest.approx(0.5 * log_c, abs=1e-11)
    assert solved.multiplier == pytest.approx(0.5 * (log_c - 1), abs=1e-11)


def test_chi_square_cuts_low_rewards():
    solved = surrogate(Gaussian(0.0, 1.0), sc.Linear([1.0]), 0.3, ChiSquare())
    cut = torch.tensor([[solved.multiplier - 0.3 - 1e-9], [solved.multiplier - 0.3 + 1e-9]], dtype=D)
    assert (solved.weight(cut) > 0).tolist() == [False, True]
    c = (solved.multiplier - 0.3) / 1.0  # E (r - c)_+ = phi(c) - c Phi(-c) = temperature
    assert stats.norm.pdf(c) - c * stats.norm.sf(c) == pytest.approx(0.3, abs=1e-12)
    gentle = surrogate(DiscreteLaw(ATOMS, MASSES), sc.Linear([1.0]), 50.0, ChiSquare())
    assert gentle.multiplier == pytest.approx(float(MASSES @ ATOMS), abs=1e-10)  # nothing cut: lam = E r


def test_linear_rewards_in_several_dimensions():
    base, g = Gaussian([0.3, -0.5, 0.1], [0.5, 1.0, 2.0]), torch.tensor([1.0, -0.5, 0.2], dtype=D)
    solved = surrogate(base, sc.Linear(g), 0.8, ChiSquare())
    on_line = surrogate(base.along(g), sc.Linear([1.0]), 0.8, ChiSquare())
    assert solved.multiplier == pytest.approx(on_line.multiplier, abs=1e-11)
    isotropic = Isotropic((3,), 1.0)
    assert surrogate(isotropic, sc.Linear(g), 0.8, ChiSquare()).value > 0
    with pytest.raises(NoClosedForm, match="DiscreteLaw"):
        f_tilt(base, sc.Quadratic(curvature=torch.eye(3)), 0.8, ChiSquare())


@pytest.mark.parametrize("divergence", [ForwardKL(), GammaDivergence(0.5)], ids=str)
def test_unbounded_rewards_have_no_maximiser(divergence):
    for reward in (sc.Linear([1.0]), lambda x: x[:, 0] ** 2, lambda x: x[:, 0].abs().sqrt()):
        with pytest.raises(NoTilt, match="unbounded") as caught:
            f_tilt(Gaussian(0.0, 1.0), reward, 1.0, divergence)
        assert caught.value.smallest_temperature == math.inf


@pytest.mark.parametrize(
    ("divergence", "power"), [(ForwardKL(), 1.0), (GammaDivergence(0.5), 0.5)], ids=["forward", "gamma"]
)
def test_smallest_admissible_temperature(divergence, power):
    """r = -|x|^{1/4}, too little mass near its supremum: from temperature g (E (sup r - r)^{-1/g})^{-g}."""
    exponent = 0.25 / power  # E |X|^{-exponent} of a standard normal
    moment = math.gamma((1 - exponent) / 2) / (2 ** (exponent / 2) * math.sqrt(math.pi))
    smallest = power * moment**-power
    base = Gaussian(0.0, 1.0)

    def reward(x):
        return -(x[:, 0].abs() ** 0.25)

    with pytest.raises(NoTilt, match="smallest admissible temperature") as caught:
        f_tilt(base, reward, 0.95 * smallest, divergence)
    assert caught.value.smallest_temperature == pytest.approx(smallest, rel=1e-6)
    law = f_tilt(base, reward, 1.05 * smallest, divergence)
    assert law.line.log_normalizer == pytest.approx(0.0, abs=1e-9)


def test_rewards_that_approach_their_supremum_at_infinity():
    law = f_tilt(Gaussian(0.0, 1.0), lambda x: torch.tanh(x[:, 0]), 0.5, ForwardKL())
    assert law.line.log_normalizer == pytest.approx(0.0, abs=1e-10)
    slow = f_tilt(Gaussian(0.0, 1.0), lambda x: -1 / (1 + x[:, 0] ** 2), 0.5, ForwardKL())
    assert slow.line.log_normalizer == pytest.approx(0.0, abs=1e-10)
    wrong = "above its supremum"
    with pytest.raises(BadInput, match=wrong):
        f_tilt(Gaussian(0.0, 1.0), bumpy, 0.5, ForwardKL(), supremum=0.9)


def test_bad_input():
    with pytest.raises(BadInput, match="strictly between"):
        GammaDivergence(1.0)
    with pytest.raises(BadInput, match="ForwardKL"):
        f_tilt(MIXTURE, bumpy, 0.5, "chi2")
    with pytest.raises(BadInput, match="temperature"):
        f_tilt(MIXTURE, bumpy, -0.5, ChiSquare())


@pytest.mark.parametrize("gap", [0.0, 3.0, 40.0])
def test_unbounded_rewards_on_separated_clusters_are_refused(gap):
    """The outermost landmarks of two clusters lie side by side; the growth is measured over octaves instead."""
    base = sc.GaussianMixture([0.5, 0.5], [[-gap], [gap]], [0.3, 0.5])
    for divergence in (ForwardKL(), GammaDivergence(0.5)):
        for reward in (sc.Linear([1.0]), lambda x: x[:, 0]):
            with pytest.raises(sc.NoTilt, match="unbounded") as caught:
                f_tilt(base, reward, 1.0, divergence)
            assert caught.value.smallest_temperature == math.inf
