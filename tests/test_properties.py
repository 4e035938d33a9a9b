"""Properties that every problem has, at problems drawn by the library's own strategies."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

import sdecontrol as sc
from sdecontrol.errors import NoTilt, ValueBlowUp
from sdecontrol.schedules import convert_level
from sdecontrol.testing import (
    StaticTilt,
    affine_controls,
    assert_bound,
    assert_identity,
    assert_unbiased,
    gaussians,
    grids,
    kernels,
    laws,
    problems,
    rewards_admitting_a_tilt,
    schedules,
    temperatures,
    tilts,
    vectors,
)
from sdecontrol.testing.strategies import rewards

quick = settings(max_examples=30)


def quadratics(dim: int, variance: float, temperature: float) -> st.SearchStrategy[sc.Quadratic]:
    return rewards(dim, variance, temperature).filter(lambda reward: isinstance(reward, sc.Quadratic))


def expected(reward: sc.Quadratic, mean: torch.Tensor, covariance: torch.Tensor) -> float:
    """E r from two moments, whatever the law."""
    return float(reward(mean[None])) - float((reward.curvature * covariance).sum()) / 2


def size(reward: sc.Quadratic, law: sc.laws.Law) -> float:
    """Sum of the magnitudes of the terms of E r: what its rounding is relative to."""
    bend = (reward.curvature * (law.covariance + torch.outer(law.mean, law.mean))).abs().sum()
    return float(reward.linear.abs() @ law.mean.abs() + bend) + abs(reward.constant)


def condition(*covariances: torch.Tensor) -> float:
    """The largest of their ratios of eigenvalues."""
    spectra = [torch.linalg.eigvalsh(c) for c in covariances]
    return max(float(values[-1] / values[0]) for values in spectra)


# ---------------------------------------------------------------------- static tilts


@quick
@given(tilts())
def test_static_tilts_are_the_tilts_of_discrete_laws(p: StaticTilt) -> None:
    law = sc.laws.DiscreteLaw(np.arange(len(p.reward)), p.reference)
    reward = torch.tensor(p.reward)
    tilted = law.tilt(lambda x: reward[x[:, 0].long()], p.temperature)
    largest = float(np.abs(p.log_ratio).max())
    logs = max(1.0, largest, abs(p.log_normalizer))
    assert_identity(
        p.log_normalizer, law.log_expectation(lambda x: reward[x[:, 0].long()], p.temperature), 1e-14 * logs
    )
    assert_identity(p.tilt, tilted.weights, 1e-14 * logs)
    assert_identity(p.tv, float(sc.laws.tv(tilted, law)), 1e-14 * logs)
    assert_identity(p.kl, sc.laws.kl(tilted, law), 1e-14 * logs)
    assert_identity(p.optimum, p.tilt @ p.reward - p.temperature * p.kl, 1e-12 * p.temperature * logs)
    assert_identity(p.jeffreys, p.kl + p.reverse_kl, 1e-13 * logs)
    assert_identity(p.jeffreys, (p.tilt - p.reference) @ p.reward / p.temperature, 1e-13 * logs**2)


# ---------------------------------------------------------------------- laws


@quick
@given(st.data(), st.integers(1, 3).flatmap(laws), temperatures())
def test_tilting_twice_is_tilting_by_the_sum(data: DataObject, law: sc.laws.Law, temperature: float) -> None:
    is_quadratic = lambda reward: isinstance(reward, sc.Quadratic)  # noqa: E731
    first = data.draw(rewards_admitting_a_tilt(law, temperature).filter(is_quadratic))
    once = law.tilt(first, temperature)
    second = data.draw(rewards_admitting_a_tilt(once, temperature).filter(is_quadratic))
    both = sc.Quadratic(
        first.linear + second.linear, first.curvature + second.curvature, first.constant + second.constant
    )
    twice, directly = once.tilt(second, temperature), law.tilt(both, temperature)
    logs = [law.log_expectation(first, temperature), once.log_expectation(second, temperature)]
    assert_identity(law.log_expectation(both, temperature), sum(logs), 1e-10 * (1 + max(map(abs, logs))))
    assert_identity(twice.mean, directly.mean, 1e-10 * (1 + float(directly.mean.abs().max())))
    assert_identity(twice.covariance, directly.covariance, 1e-10 * (1 + float(directly.covariance.abs().max())))


# ---------------------------------------------------------------------- continuous time


@quick
@given(problems(dims=(1, 2), laws=gaussians, rewards=quadratics))
def test_kl_plus_reverse_kl_is_jeffreys(p: sc.Problem) -> None:
    pre, ft = p.exact.reference, p.exact.terminal
    both_ways = sc.laws.kl(ft, pre) + sc.laws.kl(pre, ft)
    d = (expected(p.reward, ft.mean, ft.covariance) - expected(p.reward, pre.mean, pre.covariance)) / p.temperature
    terms = (size(p.reward, ft) + size(p.reward, pre)) / p.temperature
    assert_identity(both_ways, d, 1e-13 * (1 + terms) * condition(pre.covariance, ft.covariance))
    assert_bound(float(sc.laws.tv(ft, pre).lower), math.sqrt(max(both_ways, 0.0)) / 2, slack=1e-10)


@quick
@given(problems(dims=(1,), initial=("marginal",), rewards=quadratics))
def test_jeffreys_of_mixtures_by_quadrature(p: sc.Problem) -> None:
    pre, ft = p.exact.reference, p.exact.terminal
    both_ways = sc.laws.kl(ft, pre) + sc.laws.kl(pre, ft)
    d = (expected(p.reward, ft.mean, ft.covariance) - expected(p.reward, pre.mean, pre.covariance)) / p.temperature
    assert_identity(both_ways, d, 1e-9 * (1 + (size(p.reward, ft) + size(p.reward, pre)) / p.temperature))
    assert_identity(p.exact.path_kl, sc.laws.kl(ft, pre), 1e-9 * (1 + d))


@quick
@given(problems(initial=("standard", "marginal", "gaussian", "point")))
def test_the_value_at_the_horizon_is_the_reward(p: sc.Problem) -> None:
    x = p.process.data_law.sample(3, sc.Noise(0))  # off the subspace of a law on one, Y_T never is
    assert_identity(
        p.exact.value(p.process.horizon, x), p.reward(x), 1e-12 * (p.temperature + float(p.reward(x).abs().max()))
    )


@quick
@given(problems(dims=(1, 2), rewards=lambda dim, variance, temperature: st.just(sc.Linear([0.0] * dim))), st.data())
def test_without_a_reward_nothing_is_controlled(p: sc.Problem, data: DataObject) -> None:
    (dim,) = p.process.event_shape
    t = data.draw(st.floats(0.0, 0.99)) * p.process.horizon
    x = torch.tensor(np.array([data.draw(vectors(dim)) for _ in range(3)]))
    assert_identity(p.exact.log_normalizer, 0.0, 1e-12)
    assert_identity(p.exact.path_kl, 0.0, 1e-12)
    assert_identity(p.exact.control(t, x), torch.zeros_like(x), 1e-12 * (1 + p.process.amplitude(t)))


@quick
@given(problems(dims=(1, 2), laws=gaussians, initial=("standard", "marginal", "gaussian"), rewards=quadratics))
def test_the_initial_part_of_the_path_kl_is_that_of_the_initial_laws(p: sc.Problem) -> None:
    start, tilted = p.process.initial_law(), p.exact.initial
    spread = condition(start.covariance, tilted.covariance)
    assert_identity(p.exact.kl_initial, sc.laws.kl(tilted, start), 1e-11 * (1 + p.exact.path_kl) * spread)
    assert_bound(p.exact.kl_initial, p.exact.path_kl, slack=1e-11 * (1 + p.exact.path_kl))


@quick
@given(problems(dims=(1, 2), initial=("standard", "marginal", "point")), st.data())
def test_the_control_is_the_amplitude_times_the_slope_of_the_value(p: sc.Problem, data: DataObject) -> None:
    """Central differences with h = 1e-5: h^2 of the third derivative and rounding / h, below 1e-6 of the scale."""
    (dim,), h = p.process.event_shape, 1e-5
    t = data.draw(st.floats(0.0, 0.5)) * p.process.horizon
    x = p.process.noised(t).sample(2, sc.Noise(0))
    steps = h * torch.eye(dim, dtype=torch.float64)
    slope = torch.stack([p.exact.value(t, x + e) - p.exact.value(t, x - e) for e in steps], 1) / (2 * h)
    amplitude = p.process.schedule.g2(p.process.horizon - t) ** 0.5
    scale = amplitude * (1 + float(p.exact.value(t, x).abs().max()) / p.temperature)
    assert_identity(p.exact.control(t, x), amplitude * slope / p.temperature, 1e-6 * scale)


@quick
@given(st.data(), schedules(sc.VP, sc.SubVP, sc.Cosine), st.integers(1, 2).flatmap(laws), temperatures())
def test_ve_with_the_same_noise_to_signal_is_the_same_problem(
    data: DataObject, schedule: sc.schedules.Schedule, law: sc.laws.Law, temperature: float
) -> None:
    """y -> y / a carries every schedule into VE with h_VE = h / a^2, when both start from their marginal."""
    s = schedule.horizon
    last = schedule.h(s) / schedule.alpha(s) ** 2
    exploding = sc.VE(0.01, math.sqrt(last + 1e-4), horizon=1.0)
    reward = data.draw(quadratics(law.dim, sc.testing.strategies.widest(law), temperature))
    ours, theirs = (
        sc.Problem(sc.ReverseProcess(kind, law, "marginal"), reward, temperature).exact
        for kind in (schedule, exploding)
    )
    assert_identity(ours.log_normalizer, theirs.log_normalizer, 1e-12 * (1 + abs(ours.log_normalizer)))
    assert_identity(ours.path_kl, theirs.path_kl, 1e-11 * (1 + abs(ours.path_kl) + abs(ours.log_normalizer)))
    assert_identity(ours.kl_initial, theirs.kl_initial, 1e-7 * (1 + ours.path_kl))  # 2-D mixtures: quadrature
    level = data.draw(st.floats(0.01, 0.99)) * schedule.horizon
    there, scale = convert_level(schedule, level, exploding)
    x = torch.tensor(np.array([data.draw(vectors(law.dim)) for _ in range(3)]))
    left, right = ours.value(s - level, x), theirs.value(1.0 - there, scale * x)
    # a rounding of the clock t = 1 - s moves the level of VE, whose rate of change at small s is largest
    clock = 1e-15 * exploding.g2(there) / exploding.h(there)
    assert_identity(left, right, (1e-10 + 100 * clock) * (temperature + float(right.abs().max())))


# ---------------------------------------------------------------------- chains


@st.composite
def chains(draw: st.DrawFn) -> sc.problems.base.Discretised:
    """Affine chains whose optimum exists: a coarse chain's output can be wider than the continuous one's."""
    p = draw(problems(dims=(1, 2, 3), laws=gaussians, rewards=quadratics))
    chain = p.discretise(draw(kernels(affine=True)), draw(grids(8)))
    try:
        chain.exact.log_normalizer  # noqa: B018  asks whether it exists
    except (NoTilt, ValueBlowUp):
        assume(False)
    return chain


@quick
@given(chains())
def test_the_path_kl_of_a_chain_is_the_kl_of_its_output(chain: sc.problems.base.Discretised) -> None:
    exact = chain.exact
    pre, ft = exact.reference, exact.terminal
    spread = condition(pre.covariance, ft.covariance)
    assert_identity(exact.path_kl, sc.laws.kl(ft, pre), 1e-11 * (1 + exact.path_kl) * spread)
    reached = expected(chain.problem.reward, ft.mean, ft.covariance) - exact.temperature * exact.path_kl
    scale = size(chain.problem.reward, ft) + exact.temperature * (1 + exact.path_kl)
    assert_identity(reached, exact.optimum, 1e-11 * scale)


@quick
@given(chains(), st.data())
def test_no_control_beats_the_optimum_of_its_chain(chain: sc.problems.base.Discretised, data: DataObject) -> None:
    p, exact = chain.problem, chain.exact
    control = (
        data.draw(affine_controls(p.process.dim, 0.5)) + data.draw(st.sampled_from([0.0, 0.9, 1.0])) * exact.control
    )
    initial = data.draw(st.sampled_from([None, exact.initial]))
    made = sc.moments(p.process, chain.kernel, chain.grid, initial, control)
    objective = expected(p.reward, made.means[-1], made.covariances[-1]) - p.temperature * made.kl
    scale = float(p.reward.curvature.abs().max() * made.covariances[-1].abs().max()) + p.temperature * (1 + made.kl)
    assert_bound(objective, exact.objective, slack=1e-11 * (scale + abs(objective)))
    assert_bound(exact.objective, exact.optimum, slack=1e-11 * scale)


@quick
@given(chains())
def test_the_best_mean_shift_reaches_its_objective(chain: sc.problems.base.Discretised) -> None:
    p, exact = chain.problem, chain.exact
    made = sc.moments(p.process, chain.kernel, chain.grid, exact.initial, exact.control)
    objective = expected(p.reward, made.means[-1], made.covariances[-1]) - p.temperature * made.kl
    law = sc.Gaussian(made.means[-1], made.covariances[-1])
    assert_identity(objective, exact.objective, 1e-11 * (size(p.reward, law) + p.temperature * (1 + made.kl)))


RUNS = 6


@settings(max_examples=RUNS)
@given(problems(dims=(1, 2), laws=gaussians, rewards=quadratics), kernels(affine=True), grids(6), st.data())
def test_simulated_chains_have_their_moments(
    p: sc.Problem, kernel: sc.kernels.Kernel, grid: sc.TimeGrid, data: DataObject
) -> None:
    control = data.draw(affine_controls(p.process.dim, 0.5))
    truth = sc.moments(p.process, kernel, grid, control=control)
    mean, variance = truth.means[-1], truth.covariances[-1].diagonal()

    def samples(noise: sc.Noise) -> torch.Tensor:
        path = sc.simulate(p.process, control, grid=grid, kernel=kernel, n=4_000, noise=noise, keep="ends")
        return torch.cat([path.terminal, path.terminal.square(), path.log_ratio()[:, None]], 1)

    means = torch.cat([mean, mean.square() + variance, torch.tensor([truth.kl], dtype=torch.float64)])
    assert_unbiased(samples, means, false_fail_rate=1e-6 / RUNS)
