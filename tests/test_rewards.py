"""Rewards against autograd, scipy quadrature and plain numpy."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

import sdecontrol as sc

RNG = np.random.default_rng(0)


def quadratic(d: int) -> sc.Quadratic:
    k = RNG.normal(size=(d, d))
    return sc.Quadratic(RNG.normal(size=d), (k + k.T) / 2, 0.7)


LOW = sc.Quadratic.low_rank([0.3, -0.1, 0.2], [[1.0, 2.0, 0.5], [0.2, -1.0, 0.0]], [0.7, -0.2], 0.4)
REWARDS = [
    sc.Linear([1.0, -2.0, 0.5]), quadratic(3), sc.GaussianLabel([1.0, 2.0, 0.0], 0.3, 0.5, strength=2.0), LOW
]  # fmt: skip


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: type(r).__name__)
def test_gradient_is_that_of_the_reward(reward):
    x = torch.tensor(RNG.normal(size=(5, 3)), requires_grad=True)
    (auto,) = torch.autograd.grad(reward(x).sum(), x)
    assert torch.allclose(auto, reward.gradient(x), rtol=1e-12)


def test_quadratic_formula():
    reward, x = REWARDS[1], RNG.normal(size=3)
    g, k = reward.linear.numpy(), reward.curvature.numpy()
    assert float(reward(torch.tensor(x)[None])[0]) == pytest.approx(0.7 + g @ x - x @ k @ x / 2, rel=1e-13)


def test_gaussian_label_is_the_log_likelihood():
    reward, x = REWARDS[2], RNG.normal(size=(4, 3))
    wanted = 2.0 * stats.norm.logpdf(0.3, x @ np.array([1.0, 2.0, 0.0]), 0.5)
    assert np.allclose(reward(torch.tensor(x)).numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("temperature", [0.3, 2.0])
@pytest.mark.parametrize(
    "reward",
    [sc.Linear([0.8]), sc.Quadratic([0.5], [[0.9]], 0.2), sc.Quadratic([0.5], [[-0.2]]), sc.Step([1.5], 0.4, 1.2)],
    ids=["linear", "concave", "convex", "step"],
)
def test_log_expectation_against_quadrature(reward, temperature):
    mean, variance = 0.3, 0.7

    def integrand(x: float) -> float:
        r = float(reward(torch.tensor([[x]], dtype=torch.float64))[0])
        return np.exp(r / temperature) * stats.norm.pdf(x, mean, np.sqrt(variance))

    value, _ = integrate.quad(integrand, -30, 30, points=[0.4 / 1.5, mean], epsabs=0, epsrel=1e-12, limit=500)
    ours = reward.log_expectation(
        torch.tensor([[mean]], dtype=torch.float64), torch.tensor([[variance]], dtype=torch.float64), temperature
    )
    assert float(ours[0]) == pytest.approx(np.log(value), rel=1e-9, abs=1e-9)


def test_step_in_the_far_tail_keeps_its_digits():
    reward = sc.Step([1.0], 40.0, 1.0)
    ours = reward.log_expectation(torch.zeros(1, 1).double(), torch.ones(1, 1).double(), 1e-3)
    assert float(ours[0]) == pytest.approx(1e3 + stats.norm.logsf(40.0), rel=1e-12)


def test_restriction_to_a_subspace():
    basis = torch.linalg.qr(torch.tensor(RNG.normal(size=(3, 2))))[0]
    offset, u = torch.tensor(RNG.normal(size=3)), torch.tensor(RNG.normal(size=(6, 2)))
    for reward in [*REWARDS, sc.Step([1.0, 0.2, -0.4], 0.1, 2.0)]:
        assert torch.allclose(reward.restrict(basis, offset)(u), reward(offset + u @ basis.T), rtol=1e-12)


def test_no_expectation_beyond_the_admissible_curvature():
    reward = sc.Quadratic([0.0], [[-1.0]])
    ok, covariance = torch.zeros(1, 1).double(), torch.ones(1, 1).double()
    reward.log_expectation(ok, covariance, 1.001)
    with pytest.raises(sc.NoTilt, match="eigenvalue") as caught:
        reward.log_expectation(ok, covariance, 0.999)
    assert caught.value.eigenvalue == pytest.approx(1 - 1 / 0.999)


def test_a_curvature_of_low_rank_is_the_dense_one():
    v, w = np.array([[1.0, 2.0, 0.5], [0.2, -1.0, 0.0]]), np.array([0.7, -0.2])
    dense = sc.Quadratic(LOW.linear, v.T @ np.diag(w) @ v, 0.4)
    x = torch.tensor(RNG.normal(size=(6, 3)))
    assert torch.allclose(LOW.curvature, dense.curvature, rtol=1e-13)
    assert torch.allclose(LOW(x), dense(x), rtol=1e-13) and torch.allclose(LOW.gradient(x), dense.gradient(x))
    for reward in (LOW, dense, quadratic(3), REWARDS[0], REWARDS[2]):
        weights, directions = reward.curved()
        assert torch.allclose(directions.mT @ (weights[:, None] * directions), reward.curvature, atol=1e-13)
    assert len(dense.curved()[0]) == 2 and dense.active() is None
    for reward in (LOW, REWARDS[0], REWARDS[2], sc.Step([1.0, 0.2, -0.4], 0.1, 2.0)):
        basis = reward.active()
        assert torch.allclose(reward(x @ basis @ basis.mT), reward(x), atol=1e-13)
    with pytest.raises(sc.BadInput, match="directions of shape"):
        sc.Quadratic.low_rank([1.0, 2.0], [[1.0, 2.0, 3.0]], [1.0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sc.Quadratic([1.0, 2.0], np.array([[1.0, 0.5], [0.0, 1.0]])), "symmetric"),
        (lambda: sc.Quadratic([1.0, 2.0], np.eye(3)), "curvature of shape"),
        (lambda: sc.Linear([1.0, np.nan]), "NaN"),
        (lambda: sc.Linear(np.eye(2)), "vector"),
        (lambda: sc.Quadratic(), "at least one"),
        (lambda: sc.GaussianLabel([1.0], 0.0, 0.0), "positive"),
        (lambda: sc.Step([0.0, 0.0], 0.0, 1.0), "direction"),
        (lambda: sc.Step([1.0], np.inf, 1.0), "finite"),
    ],
)
def test_bad_rewards(make, message):
    with pytest.raises(sc.BadInput, match=message):
        make()
