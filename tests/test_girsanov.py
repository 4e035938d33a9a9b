"""Divergences between path laws: Monte Carlo on paths against the chain's closed forms."""

import math

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.path_divergence import PathDivergence

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
PROCESS = sc.ReverseProcess(sc.VP(beta_min=0.5, beta_max=2.0), LAW)
CONTROL = sc.AffineControl([[-0.2, 0.1], [0.0, -0.1]], [0.3, -0.2])
START = sc.Gaussian([0.2, 0.1], [[0.9, 0.1], [0.1, 0.8]])
GRID, KERNEL = sc.TimeGrid.uniform(15), sc.EulerMaruyama()


@pytest.fixture(scope="module")
def path():
    return sc.simulate(PROCESS, CONTROL, START, grid=GRID, kernel=KERNEL, n=100_000)


@pytest.fixture(scope="module")
def exact():
    return PathDivergence(PROCESS, KERNEL, GRID, (CONTROL, START), (None, None))


def test_kl_and_its_split(path, exact):
    split = sc.kl_split(path)
    assert abs(split.total.z(exact.kl)) < 5
    assert split.initial.stderr == 0
    mu, s = START.mean.numpy(), START.covariance.numpy()
    wanted = 0.5 * (np.trace(s) - 2 + mu @ mu - math.log(np.linalg.det(s)))  # KL to the standard normal
    assert split.initial.value == pytest.approx(wanted, rel=1e-12)
    assert sc.path_kl(path).value == split.total.value


def test_chi_square_and_renyi(path, exact):
    assert abs(sc.chi_square(path).z(exact.chi2)) < 5
    for order in (0.5, 1.5, 2.0):
        assert abs(sc.renyi(path, order).z(exact.renyi(order))) < 5


def test_effective_sample_size(exact):
    reference = sc.simulate(PROCESS, grid=GRID, kernel=KERNEL, n=100_000, noise=sc.Noise(1))
    fraction = sc.effective_sample_size(reference.replay(CONTROL, START)) / 100_000
    assert fraction == pytest.approx(exact.ess_fraction(), rel=0.03)
    assert fraction == pytest.approx(math.exp(-exact.renyi(2.0)), rel=0.03)
    assert sc.effective_sample_size(torch.zeros(7)) == pytest.approx(7.0)
    assert sc.effective_sample_size(torch.tensor([0.0, -1e4])) == pytest.approx(1.0)


def test_reverse_kl_with_an_initial_law(exact):
    reference = sc.simulate(PROCESS, grid=GRID, kernel=KERNEL, n=100_000, noise=sc.Noise(1))
    assert abs(sc.reverse_path_kl(reference, CONTROL, START).z(exact.reverse_kl)) < 5


def test_reverse_kl_is_a_mean_under_the_reference(path):
    with pytest.raises(sc.NotDefined, match="under the reference"):
        sc.reverse_path_kl(path, CONTROL)
    ends = sc.simulate(PROCESS, grid=GRID, n=10, keep="ends")
    with pytest.raises(sc.NotDefined, match="keep"):
        sc.reverse_path_kl(ends, CONTROL)


def test_divergences_refuse_bad_orders(path):
    for order in (0.0, 1.0, -1.0):
        with pytest.raises(sc.BadInput, match="order"):
            sc.renyi(path, order)


def test_path_kl_is_never_negative_nor_nan():
    still = sc.simulate(PROCESS, sc.AffineControl(np.zeros((2, 2))), grid=GRID, n=100)
    assert sc.path_kl(still).value == 0.0
    assert sc.path_kl(sc.simulate(PROCESS, grid=GRID, n=100)).value == 0.0


@pytest.mark.parametrize("wrong", ["energy doubled", "martingale dropped", "sign of the martingale"])
def test_a_wrong_log_ratio_would_be_seen(path, wrong):
    """E e^{-L} Y_T = E_Q Y_T rejects the usual mistakes; E e^{-L} = 1 alone is blind to the martingale's sign."""
    w, truth = path.weights, sc.moments(PROCESS, KERNEL, GRID).means[-1].numpy()
    broken = {
        "energy doubled": w.log_initial + w.martingale + 2 * w.energy,
        "martingale dropped": w.log_initial + w.energy,
        "sign of the martingale": w.log_initial - w.martingale + w.energy,
    }[wrong]
    z = lambda log_ratio: np.max(np.abs(sc.Estimate.mean((-log_ratio).exp()[:, None] * path.terminal).z(truth)))  # noqa: E731
    assert z(path.log_ratio()) < 5
    assert z(broken) > 8
