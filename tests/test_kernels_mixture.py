"""The exact transition of mixtures against Bayes' formula on a grid, marginals, and the Gaussian case."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, norm

import sdecontrol as sc
from sdecontrol.kernels_mixture import ExactPosterior, split

LINE = sc.GaussianMixture([0.3, 0.5, 0.2], [-1.5, 0.2, 2.0], [0.1, 0.4, 0.05])
PLANE = sc.GaussianMixture(
    [0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[[0.4, 0.2], [0.2, 0.3]], [[0.3, -0.1], [-0.1, 0.2]]]
)
LEVEL = 1e-4  # of each test below: seeds are fixed, so a pass is a pass


def test_one_normal_gives_a_component_and_an_independent_normal():
    n = 40_000
    rng = np.random.default_rng(0)
    masses = torch.tensor([[0.1], [0.6], [0.3]], dtype=torch.float64).expand(3, n)
    chosen, z = split(torch.tensor(rng.normal(size=n)), masses)
    assert chisquare(np.bincount(chosen, minlength=3), n * np.array([0.1, 0.6, 0.3])).pvalue > LEVEL
    for i in range(3):
        assert kstest(z[chosen == i].numpy(), "norm").pvalue > LEVEL


@pytest.mark.parametrize(("t", "t_next"), [(0.5, 0.8), (0.0, 1.0), (0.7, 1.0)])
@pytest.mark.parametrize("schedule", [sc.VP(), sc.VE(sigma_max=4.0)], ids=["VP", "VE"])
def test_step_on_the_line_is_bayes_formula(schedule, t, t_next):
    """p(x' | x) proportional to p_{s'}(x') N(x; r x', q), by the trapezium rule on 40 001 points."""
    p, x, n = sc.ReverseProcess(schedule, LINE), 0.6, 30_000
    s, s_next = p.noise_level(t), p.noise_level(t_next)
    a, a_next, h, h_next = schedule.alpha(s), schedule.alpha(s_next), schedule.h(s), schedule.h(s_next)
    r, q = a / a_next, h - (a / a_next) ** 2 * h_next
    points = np.linspace(-8, 8, 40_001)
    prior = sum(
        w * norm.pdf(points, a_next * m, math.sqrt(a_next**2 * v + h_next))
        for w, m, v in zip((0.3, 0.5, 0.2), (-1.5, 0.2, 2.0), (0.1, 0.4, 0.05))
    )
    density = prior * norm.pdf(x, r * points, math.sqrt(q))
    cdf = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    found = sc.simulate(p, initial=torch.full((n, 1), x, dtype=torch.float64), kernel=ExactPosterior(), n=n,
                        grid=sc.TimeGrid.explicit([t, t_next]), noise=sc.Noise(1), keep="ends").terminal  # fmt: skip
    assert kstest(found[:, 0].numpy(), lambda y: np.interp(y, points, cdf / cdf[-1])).pvalue > LEVEL


@pytest.mark.parametrize("kind", ["plane", "subspace"])
def test_marginals_are_kept_on_any_grid(kind):
    """From the exact marginal over three steps, in between and at the data: two moments within 5 standard errors."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0]
    law = PLANE if kind == "plane" else sc.Subspace(basis, PLANE, offset=[0.3, -0.2, 0.0, 0.1, 0.5])
    p = sc.ReverseProcess(sc.VP(), law, initial="marginal")
    grid = sc.TimeGrid.explicit([0.2, 0.85, 0.95, 1.0])  # h is small at the last two: noise across must shrink
    path = sc.simulate(p, kernel=ExactPosterior(), grid=grid, n=60_000, noise=sc.Noise(2))
    for states, target in ((path.states[1], p.noised(0.85)), (path.states[2], p.noised(0.95)), (path.terminal, law)):
        gap = states - target.mean
        products = gap[:, :, None] * gap[:, None, :] - target.covariance
        for errors in (gap, products):
            estimate = sc.Estimate.mean(errors)
            moving = estimate.stderr > 1e-9
            assert np.abs(np.asarray(estimate.value)[moving] / estimate.stderr[moving]).max() < 5
            assert np.abs(np.asarray(estimate.value)[~moving]).max(initial=0) < 1e-9  # across a subspace nothing moves


def test_one_component_is_the_exact_gaussian_transition():
    """The same start and noise; a positive root of the covariance makes the step a function of both."""
    law = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
    single = sc.GaussianMixture([1.0], [[1.0, -0.5]], [[[1.0, 0.3], [0.3, 0.5]]])
    options = {"grid": sc.TimeGrid.explicit([0.0, 0.6, 1.0]), "n": 500, "noise": sc.Noise(4)}
    one = sc.simulate(sc.ReverseProcess(sc.VP(), law), kernel=sc.ExactTransition(), **options)
    other = sc.simulate(sc.ReverseProcess(sc.VP(), single), kernel=ExactPosterior(), **options)
    assert torch.allclose(one.states, other.states, atol=1e-6)  # Phi and its inverse, in double precision


def test_what_has_no_meaning_is_refused():
    gaussian = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0], [1.0]))
    plane = sc.ReverseProcess(sc.VP(), PLANE)
    grid, kernel = sc.TimeGrid.uniform(2), ExactPosterior()
    with pytest.raises(sc.NoClosedForm, match="ExactTransition"):
        sc.simulate(gaussian, kernel=kernel, grid=grid, n=5)
    with pytest.raises(sc.NoClosedForm):
        sc.simulate(sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: -x), event_shape=(1,)), kernel=kernel, grid=grid)
    with pytest.raises(sc.NotDefined, match="not Gaussian"):
        sc.simulate(plane, sc.AffineControl(torch.zeros(2, 2)), kernel=kernel, grid=grid, n=5)
    with pytest.raises(sc.NoClosedForm, match="no matrix"):
        sc.moments(plane, kernel, grid)
    with pytest.raises(sc.NotDefined):
        kernel.transition(sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Dirac([0.0])), 0.0, 0.1)
