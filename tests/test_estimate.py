"""Estimates: the standard error is that of a mean, intervals cover, and errors add as they should."""

import numpy as np
import pytest
import torch
from scipy import stats

import sdecontrol as sc


def test_mean_and_standard_error_against_scipy():
    x = np.random.default_rng(0).gamma(2.0, size=500)
    e = sc.Estimate.mean(torch.tensor(x))
    assert e.value == pytest.approx(x.mean(), rel=1e-14)
    assert e.stderr == pytest.approx(stats.sem(x), rel=1e-14)
    assert e.n == 500


def test_intervals_cover_at_their_level():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2_000):
        low, high = sc.Estimate.mean(rng.exponential(size=400)).interval(0.9)
        hits += low <= 1 <= high
    # binomial(2000, 0.9) stays within 5 standard deviations, plus the skewness error of order 1/sqrt(400)/10
    assert abs(hits / 2_000 - 0.9) < 5 * np.sqrt(0.09 / 2_000) + 0.005


def test_log_mean_exp_matches_a_lognormal():
    w = np.random.default_rng(2).normal(1.0, 0.5, 200_000)
    e = sc.Estimate.log_mean_exp(w)
    assert abs(e.z(1.0 + 0.125)) < 4.5
    assert e.stderr == pytest.approx(np.sqrt(np.expm1(0.25) / 200_000), rel=0.05)
    assert sc.Estimate.log_mean_exp(w + 800).value == pytest.approx(e.value + 800)


def test_paired_difference_uses_the_pairing():
    rng = np.random.default_rng(3)
    common = rng.normal(size=1_000)
    e = sc.Estimate.difference(common + 0.1, common + 1e-3 * rng.normal(size=1_000))
    assert e.stderr < 1e-4
    assert abs(e.z(0.1)) < 4.5


def test_z_of_exact_values():
    assert sc.Estimate.exact(1.0).z(1.0) == 0
    assert np.isinf(sc.Estimate.exact(1.0).z(1.1))


def test_sums_of_independent_estimates():
    total = sc.Estimate(1.0, 0.3, 10) + sc.Estimate(2.0, 0.4, 10)
    assert (total.value, total.stderr) == (3.0, pytest.approx(0.5))
    assert (2 * total).stderr == pytest.approx(1.0)


def test_samples_for_a_gap():
    e = sc.Estimate(0.0, 0.1, 100)
    n = e.samples_for(0.05, z=4.0)
    assert 4.0 * 0.1 * np.sqrt(100 / n) == pytest.approx(0.05, rel=1e-2)


def test_needs_two_samples():
    with pytest.raises(sc.BadInput, match="two"):
        sc.Estimate.mean(torch.zeros(1))


def test_arrays_keep_their_shape():
    e = sc.Estimate.mean(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    assert np.shape(e.value) == np.shape(e.stderr) == (3,)
    assert np.shape(e.z(np.zeros(3))) == (3,)
