"""Gradient-guided optimisation against numpy, scipy and regressions that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize, stats

import sdecontrol as sc
from sdecontrol import guidance
from sdecontrol.errors import BadInput, NotDefined
from sdecontrol.guidance import ascent
from sdecontrol.laws import NoisySubspace, Sphere

RNG = np.random.default_rng(3)
D, LATENT = 9, 3
BASIS = np.linalg.qr(RNG.normal(size=(D, LATENT)))[0]
MEAN, OFFSET = RNG.normal(size=LATENT), 0.3 * RNG.normal(size=D)
ROOT = RNG.normal(size=(LATENT, LATENT))
SPREAD = ROOT @ ROOT.T / LATENT + 0.2 * np.eye(LATENT)
LAW = sc.SubspaceGaussian(BASIS, MEAN, SPREAD, OFFSET)
BEND = RNG.normal(size=(4, D)) / 2  # more curved directions than the subspace has: one maximum on it
OBJECTIVE = sc.Quadratic(RNG.normal(size=D), BEND.T @ BEND, 0.5)
PROCESS = sc.ReverseProcess(sc.VP(), LAW)
GRID = sc.TimeGrid.log_snr(60, s_min=1e-3)


def norm_objective(x):
    """5 - |x - b| / 2, concave and not quadratic."""
    return 5 - 0.5 * (x - 4.0).norm(dim=-1)


def curvature() -> float:
    """L by numpy: the largest eigenvalue of S^1/2 A'KA S^1/2."""
    inside = BASIS.T @ BEND.T @ BEND @ BASIS
    return float(np.linalg.eigvals(SPREAD @ inside).real.max())


def by_scipy(objective, strength: float) -> np.ndarray:
    """(13) by BFGS over latent coordinates, finite differences for the gradient."""
    inverse = np.linalg.inv(SPREAD)

    def loss(u):
        x = torch.tensor(OFFSET + BASIS @ u)[None]
        return -float(objective(x)) + strength / 2 * (u - MEAN) @ inverse @ (u - MEAN)

    return OFFSET + BASIS @ optimize.minimize(loss, MEAN, tol=1e-12).x


@pytest.mark.parametrize("strength", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("objective", [OBJECTIVE, norm_objective], ids=["quadratic", "norm"])
def test_the_regularised_maximum_is_that_of_a_general_optimiser(objective, strength):
    found = ascent.regularised_maximum(LAW, objective, strength)
    assert np.allclose(found, by_scipy(objective, strength), atol=2e-6)
    assert float(LAW.frame.normal(found[None] - LAW.offset).abs().max()) < 1e-12


def test_the_fixed_point_is_the_mean_of_the_tilt_at_the_strength_as_temperature():
    assert torch.allclose(ascent.regularised_maximum(LAW, OBJECTIVE, 0.7), LAW.tilt(OBJECTIVE, 0.7).mean, atol=1e-11)


def test_means_contract_at_l_over_lambda_and_diverge_below_l():
    largest = curvature()
    assert ascent.largest_curvature(LAW, OBJECTIVE) == pytest.approx(largest, rel=1e-10)
    for share in (1.25, 2.0, 5.0):
        run = ascent.mean_field(LAW, OBJECTIVE, ascent.Regularised(share * largest), rounds=40)
        gaps = (run.means - ascent.regularised_maximum(LAW, OBJECTIVE, share * largest)).norm(dim=1)
        steady = [k for k in range(5, 40) if gaps[k] > 1e-9]
        assert float(gaps[steady[-1]] / gaps[steady[-2]]) == pytest.approx(1 / share, abs=2e-4)
    run = ascent.mean_field(LAW, OBJECTIVE, ascent.Regularised(0.8 * largest), rounds=120, label_noise=1e6)
    gaps = (run.means - ascent.regularised_maximum(LAW, OBJECTIVE, 0.8 * largest)).norm(dim=1)
    assert float(gaps[-1] / gaps[-2]) == pytest.approx(1.25, abs=2e-4) and gaps[-1] > 1e3 * gaps[0]


def test_the_practical_rule_ends_at_strength_noise_over_delta():
    delta, noise = 0.002, 0.1
    run = ascent.mean_field(LAW, OBJECTIVE, ascent.Increment(delta), rounds=3_000, label_noise=noise)
    assert torch.allclose(run.means[-1], ascent.regularised_maximum(LAW, OBJECTIVE, noise**2 / delta), atol=1e-8)


def by_numpy(weights, strength: float, noise: float, rounds: int) -> list[float]:
    """Algorithm 2 with moment matching in the ambient space, Kalman updates written out."""
    m0, s0 = OFFSET + BASIS @ MEAN, BASIS @ SPREAD @ BASIS.T
    m, s, z, pieces, values = m0, s0, m0, [(m0, s0)], []
    for k in range(1, rounds + 1):
        g = OBJECTIVE.linear.numpy() - BEND.T @ BEND @ z
        gain = s @ g / (noise**2 + g @ s @ g)
        eta = (g @ s0 @ g) / (g @ s @ g) / strength
        z = m + gain * eta * (noise**2 + g @ s @ g)
        pieces.append((z, s - np.outer(gain, g @ s)))
        w = weights(k).numpy()
        m = sum(a * b for a, (b, _) in zip(w, pieces))
        s = sum(a * (c + np.outer(b - m, b - m)) for a, (b, c) in zip(w, pieces))
        values.append(float(OBJECTIVE(torch.tensor(z)[None])))
    return values


@pytest.mark.parametrize("weights", [ascent.anchored, ascent.uniform], ids=lambda w: w.__name__)
def test_rounds_with_refits_are_kalman_updates_and_mixed_moments(weights):
    strength = 2 * curvature()
    run = ascent.mean_field(
        LAW, OBJECTIVE, ascent.Rescaled(strength), rounds=12, refit=ascent.MomentMatching(weights)
    )
    assert run.values[1:].numpy() == pytest.approx(by_numpy(weights, strength, 0.1, 12), rel=1e-8)


def test_the_refit_reaches_the_maximum_at_the_rate_of_its_weights_and_algorithm_1_stops_short():
    theta = torch.tensor(BASIS @ np.array([0.6, 0.0, 0.8]))
    line = sc.Quadratic.low_rank(6 * theta, theta[None], [2.0], 1.0)  # 10 - (theta . x - 3)^2
    strength = 2 * ascent.largest_curvature(LAW, line)

    def gaps(target, weights=None, rounds=160):
        refit = None if weights is None else ascent.MomentMatching(weights)
        return 10 - ascent.mean_field(LAW, line, target, rounds=rounds, refit=refit).values

    def slope(values):
        return float((values[-1] / values[len(values) // 4]).log()) / math.log(4)

    alone = gaps(ascent.Regularised(strength))[-1]
    assert alone == pytest.approx(float(10 - line(ascent.regularised_maximum(LAW, line, strength)[None])), rel=1e-9)
    assert alone > 0.1
    assert gaps(ascent.Rescaled(strength), ascent.last, 60)[-1] < 1e-12
    assert slope(gaps(ascent.Rescaled(strength), ascent.anchored)) == pytest.approx(-2, abs=0.05)
    assert -1.2 < slope(gaps(ascent.Rescaled(strength), ascent.uniform)) < -0.5
    stalled = gaps(ascent.Regularised(strength), ascent.last)  # steps that shrink with the covariance
    assert stalled[-1] > 0.05 and stalled[-1] > 0.99 * stalled[len(stalled) // 2]
    fifth = gaps(ascent.Rescaled(strength), lambda k: 0.8 * ascent.last(k) + 0.2 * torch.eye(k + 1)[0].double())
    assert fifth[-1] > 0.1 and fifth[-1] == pytest.approx(float(fifth[-2]), rel=1e-9)


def test_moment_matching_minimises_the_weighted_score_loss_over_affine_scores():
    """Least squares of grad log phi on x_t over draws of two batches, at one level; batches of unequal weight."""
    first, second = sc.Gaussian([0.0, 1.0], np.diag([1.0, 0.5])), sc.Gaussian([2.0, -1.0], [[0.4, 0.1], [0.1, 0.3]])
    weights = torch.tensor([0.3, 0.7]).double()
    matched = ascent.MomentMatching(lambda k: weights).law(first, [first, second])
    a, h, n = 0.7, 0.6, 400_000
    parts = [law.sample(int(w * n), sc.Noise(1)) for w, law in zip(weights.tolist(), (first, second))]
    x = torch.cat(parts).numpy()
    eps = RNG.normal(size=x.shape)
    design = np.c_[a * x + math.sqrt(h) * eps, np.ones(len(x))]
    fitted, *_ = np.linalg.lstsq(design, -eps / math.sqrt(h), rcond=None)
    exact = matched.noised(a, h)
    matrix = exact.score_jvp(torch.zeros(2, 2).double(), torch.eye(2).double()).numpy()
    assert np.allclose(fitted[:2], matrix, atol=0.01)
    assert np.allclose(fitted[2], exact.score(torch.zeros(1, 2).double())[0], atol=0.015)


def test_a_sampled_round_follows_the_infinite_one():
    strength = 2 * curvature()
    run = guidance.optimise(PROCESS, OBJECTIVE, ascent.Regularised(strength), rounds=2, batch=65_536, grid=GRID)
    limit = ascent.mean_field(LAW, OBJECTIVE, ascent.Regularised(strength), rounds=2)
    sampling = 4 * math.sqrt(np.trace(SPREAD) / 65_536)
    moved = float((limit.means[-1] - limit.means[0]).norm())
    assert float((run.means[-1] - limit.means[-1]).norm()) < sampling + 0.03 * moved < moved / 2
    assert all(off < 1e-12 for off in run.off_support)
    again = guidance.optimise(PROCESS, OBJECTIVE, ascent.Regularised(strength), rounds=1, batch=65_536, grid=GRID)
    assert torch.equal(again.means, run.means[:2])


def imperfect(extra: float = 0.01):
    """The score of LAW with variance h + extra on the normal coordinates."""

    def score(x, s):
        a, h = PROCESS.schedule.alpha(s), PROCESS.schedule.h(s)
        return NoisySubspace.from_frame(LAW.frame, a, LAW.latent.noised(a, h), h + extra, torch.float64).score(x)

    return sc.ReverseProcess(sc.VP(), sc.Score(score, (D,)))


def test_the_naive_law_leaves_the_subspace_where_the_score_is_imperfect_and_only_there():
    across = LAW.frame.normal(torch.tensor(RNG.normal(size=(1, D))))[0]
    along = torch.tensor(BASIS @ np.array([0.6, 0.0, 0.8]))
    theta = (along + 9 * across / across.norm()) / math.sqrt(82)
    line = sc.Quadratic.low_rank(6 * theta, theta[None], [2.0], 1.0)

    def off(process, guide, delta):
        run = guidance.optimise(
            process, line, ascent.Increment(delta), rounds=6, batch=256, guide=guide, grid=GRID, support=LAW
        )
        return run.off_support

    laws = ((guidance.naive, 0.9), (guidance.g_loss, 0.2))
    assert max(max(off(PROCESS, *law)) for law in laws) < 1e-12
    naive, loss = (off(imperfect(), *law) for law in laws)
    assert naive[0] == loss[0] > 1e-3  # without guidance the two are one: what is off is the score's
    assert naive[-1] > 1.5 * naive[0] and loss[-1] < 1.1 * loss[0]


def test_a_network_is_refitted_to_the_batches():
    """A small network, 2-D: near the moment-matched score after training, nearer the new data after the refit."""
    torch.manual_seed(0)
    first, second = sc.Gaussian([0.0, 0.0], [1.0, 0.5]), sc.Gaussian([1.5, -0.5], [0.2, 0.3])

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64),
                                            torch.nn.SiLU(), torch.nn.Linear(64, 2))  # fmt: skip

        def forward(self, x, s):
            features = torch.tensor([math.log(s + 1e-4), s], dtype=x.dtype).expand(len(x), 2)
            return self.body(torch.cat([x, features], 1))

    refit = ascent.NetworkRefit(Net(), ascent.last, steps=400, warm_up=1_500, size=256)
    process = refit(sc.ReverseProcess(sc.VP(), first), [first])
    drawn = second.sample(4_000, sc.Noise(0))

    def error(law):
        """Mean square error of the score times sigma, relative to that of the law's own, at a middle level."""
        s = 0.3
        a, h = process.schedule.alpha(s), process.schedule.h(s)
        exact = law.noised(a, h)
        x = exact.sample(2_000, sc.Noise(5)).float()
        truth = exact.score(x)
        with torch.no_grad():
            return float((process.model.score(x, s)[0] - truth).square().mean() / truth.square().mean())

    before, other = error(first), error(second)
    assert before < 0.03 < 0.2 < other
    process = refit(sc.ReverseProcess(sc.VP(), first), [first, drawn])
    assert error(second) < 0.05
    assert len(refit.losses) == 1_900


def test_a_network_is_climbed_with_increments_and_refuses_targets_that_need_its_law():
    process = sc.ReverseProcess(sc.VP(), sc.Denoiser(lambda x, s: sc.VP().alpha(s) * x, (2,)))  # N(0, I)
    objective = sc.Linear([1.0, 0.0])
    run = guidance.optimise(process, objective, ascent.Increment(0.1), rounds=3, batch=500, grid=GRID)
    assert run.rewards[-1] > run.rewards[0] + 0.05 and run.off_support == [None] * 4
    with pytest.raises(NotDefined, match="Increment"):
        guidance.optimise(process, objective, ascent.Regularised(1.0), rounds=1, batch=4, grid=GRID)


def test_on_the_sphere_the_climb_follows_its_surface():
    theta = torch.zeros(8).double()
    theta[0] = 1.0
    basis = torch.linalg.qr(torch.tensor(RNG.normal(size=(12, 8)))).Q
    law = sc.Subspace(basis, Sphere(8))
    process = sc.ReverseProcess(sc.VP(), law)
    seen = []
    run = guidance.optimise(
        process, sc.Linear(basis @ theta), ascent.Increment(0.2), rounds=8, batch=256, guide=guidance.g_loss, grid=GRID,
        observe=lambda k, r: seen.append(k),
    )  # fmt: skip
    assert seen == list(range(1, 9))
    assert run.rewards[-1] > 0.8 and max(run.off_support) < 1e-10
    assert float((run.samples.norm(dim=1) - 1).abs().max()) < 0.02  # the end of the grid is s_min


def test_the_climb_stops_where_the_gradient_is_zero():
    flat = sc.Quadratic(linear=[0.0] * D, constant=1.0)
    assert len(guidance.optimise(PROCESS, flat, ascent.Increment(0.1), rounds=3, batch=4, grid=GRID).rounds) == 1
    assert len(ascent.mean_field(LAW, flat, ascent.Increment(0.1), rounds=3).means) == 1


def test_bad_input_is_named():
    for make in (ascent.Increment, ascent.Regularised, ascent.Rescaled):
        with pytest.raises(BadInput, match="positive"):
            make(-1.0)
    with pytest.raises(BadInput, match="rounds"):
        guidance.optimise(PROCESS, OBJECTIVE, ascent.Increment(0.1), rounds=0)
    with pytest.raises(BadInput, match="batch"):
        guidance.optimise(PROCESS, OBJECTIVE, ascent.Increment(0.1), rounds=1, batch=1)
    with pytest.raises(BadInput, match="NaN"):
        guidance.optimise(PROCESS, lambda x: (x.sum(1) * math.nan), ascent.Increment(0.1), rounds=1, batch=4, grid=GRID)
    general = sc.DiffusionProcess(sc.Affine(-torch.eye(2)), 1.0, sc.Dirac(torch.zeros(2)))
    with pytest.raises(NotDefined, match="x0_hat"):
        guidance.optimise(general, sc.Linear([1.0, 0.0]), ascent.Increment(0.1), rounds=1)
    with pytest.raises(BadInput, match="more draws"):
        guidance.optimise(
            PROCESS, OBJECTIVE, ascent.Increment(0.1), rounds=1, batch=3, grid=GRID, refit=ascent.MomentMatching()
        )
    with pytest.raises(NotDefined, match="upwards"):
        ascent.regularised_maximum(LAW, sc.Quadratic(curvature=-np.eye(D)), 0.1)


# ------------------------------------------------------------------ the sphere


def test_the_noisy_sphere_is_the_law_of_its_draws_and_its_score_the_derivative():
    for dim in (2, 3, 16):
        law = Sphere(dim).noised(0.7, 0.3)
        x = law.sample(6, sc.Noise(0))
        x[0] *= 1e-4
        moved = x.clone().requires_grad_()
        c, e = torch.tensor(RNG.normal(size=x.shape)), 1e-5
        steps = e * torch.eye(dim).double()
        slopes = torch.stack([(law.log_prob(x + v) - law.log_prob(x - v)) / (2 * e) for v in steps], 1)
        assert torch.allclose(law.score(x), slopes, atol=1e-8)
        bends = (law.score(x + e * c) - law.score(x - e * c)) / (2 * e)
        assert torch.allclose(law.score_jvp(x, c), bends, atol=1e-7) and moved.requires_grad
        size = law.sample(4_000, sc.Noise(1)).norm(dim=1).numpy()
        # |a u + sqrt(h) z|^2 / h is noncentral chi-square of noncentrality a^2/h
        assert stats.kstest(size**2 / 0.3, stats.ncx2(dim, 0.7**2 / 0.3).cdf).pvalue > 1e-3
    assert torch.allclose(Sphere(3).sample(5, sc.Noise(0)).norm(dim=1), torch.ones(5).double())
    with pytest.raises(BadInput, match="dim"):
        Sphere(1)
