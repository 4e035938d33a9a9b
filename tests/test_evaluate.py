"""Scores of controls against the chain's closed forms, and the refusals of `evaluate` and `compare`."""

import math

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.report import figures

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
REWARD = sc.Quadratic([0.5, 0.2], [[0.6, 0.1], [0.1, -0.3]])
GRID, KERNEL, N = sc.TimeGrid.log_snr(30, s_min=1e-2), sc.Ancestral(), 40_000


@pytest.fixture(scope="module")
def problem():
    return sc.Problem(sc.ReverseProcess(sc.VP(), LAW), REWARD, temperature=0.5)


@pytest.fixture(scope="module")
def chain(problem):
    return problem.discretise(kernel=KERNEL, grid=GRID).exact


def score(problem, control, initial=None, **options):
    return sc.evaluate(problem, control, initial, **{"grid": GRID, "kernel": KERNEL, "n": N, **options})


def test_the_best_mean_shift_reaches_its_closed_objective(problem, chain):
    ev = score(problem, chain.control, chain.initial)
    assert ev.optimum.value == chain.optimum and ev.optimum.stderr == 0
    assert abs(ev.objective.z(chain.objective)) < 5
    assert abs(ev.gap.z(chain.loss)) < 5
    assert abs(ev.excess.z(0.0)) < 5
    assert ev.gap.stderr < ev.objective.stderr / 3  # the certificate cancels most of the noise


def test_every_field_of_a_wrong_control_against_exact_moments(problem, chain):
    control = 0.7 * chain.control
    m = sc.moments(problem.process, KERNEL, GRID, control=control)
    mean, covariance = m.means[-1], m.covariances[-1]
    reward = float(REWARD(mean[None])[0] - 0.5 * (REWARD.curvature @ covariance).trace())
    objective = reward - 0.5 * m.kl
    ev = score(problem, control)
    assert abs(ev.reward.z(reward)) < 5
    assert abs(ev.kl.z(m.kl)) < 5
    assert abs(ev.objective.z(objective)) < 5
    assert abs(ev.gap.z(chain.optimum - objective)) < 5
    assert abs(ev.excess.z(chain.objective - objective)) < 5
    assert abs(ev.certificate_mean.z((objective - chain.optimum) / 0.5)) < 5
    bound = math.sqrt((ev.gap.value + 3 * ev.gap.stderr) / 1.0)
    assert ev.tv_bound.value == pytest.approx(min(1.0, bound)) and ev.tv_estimate is None


def test_the_certificate_tells_controls_apart_that_the_objective_cannot(problem, chain):
    """A control scaled by 0.9 on 500 paths of a fine grid: seen by the certificate, not by the objective."""
    process = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.5], [[1.2]]))
    one = sc.Problem(process, sc.Quadratic([0.4], [[1.0]]), temperature=0.5)
    options = dict(grid=sc.TimeGrid.log_snr(400, s_min=1e-3), n=500)
    right, wrong = (score(one, c, one.exact.initial, **options) for c in (one.exact.control, 0.9 * one.exact.control))
    seen = wrong.certificate_rms.value - right.certificate_rms.value
    assert seen > 4 * math.hypot(right.certificate_rms.stderr, wrong.certificate_rms.stderr)
    gap = wrong.objective.value - right.objective.value
    assert abs(gap) < 2 * math.hypot(right.objective.stderr, wrong.objective.stderr)


def test_estimated_optimum_where_the_chain_has_no_closed_form():
    mixture = sc.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
    process = sc.ReverseProcess(sc.VP(), mixture, initial="marginal")
    problem = sc.Problem(process, sc.Linear([0.8]), temperature=1.0)
    ev = score(problem, problem.exact.control, problem.exact.initial, kernel=sc.SecondOrder())
    assert "biased low" in ev.optimum.route and ev.excess is None and ev.tv_bound is None
    assert 0 < ev.tv_estimate.value < 0.2
    # the chain of 30 steps is close to the continuum, whose optimum is the log of a one-dimensional integral
    weights, means, variances = np.array([0.4, 0.6]), np.array([-1.0, 1.5]), np.array([0.3, 0.5])
    log_c = math.log(np.sum(weights * np.exp(0.8 * means + 0.32 * variances)))
    assert abs(ev.optimum.value - log_c) < 0.02
    assert ev.ess.value > 0.95 * N


def test_running_reward_is_summed_at_the_left_ends():
    process = sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Gaussian([0.3], [[0.5]]))
    running = sc.Quadratic([0.2], [[0.8]])
    problem = sc.Problem(process, sc.Linear([0.5]), temperature=0.7, running_reward=running)
    grid = sc.TimeGrid.uniform(12)
    chain = problem.discretise(sc.EulerMaruyama(), grid).exact
    ev = sc.evaluate(problem, chain.control, chain.initial, grid=grid, kernel=sc.EulerMaruyama(), n=N)
    assert abs(ev.gap.z(chain.loss)) < 5
    m = sc.moments(process, sc.EulerMaruyama(), grid, initial=chain.initial, control=chain.control)
    running_total = sum(
        (float(running(x[None])[0]) - 0.4 * float(c)) / 12 for x, c in zip(m.means[:-1], m.covariances[:-1, 0, 0])
    )
    assert abs(ev.reward.z(running_total + 0.5 * float(m.means[-1]))) < 5


def test_compare_shares_noise_and_optimum(problem, chain, capsys):
    table = sc.compare(
        problem,
        {"best": (chain.control, chain.initial), "none": None, "none again": (None, None)},
        grid=GRID,
        kernel=KERNEL,
        n=2_000,
    )
    assert table.rows["none"].reward.value == table.rows["none again"].reward.value
    assert {row.optimum.value for row in table.rows.values()} == {chain.optimum}
    printed = capsys.readouterr().out
    assert "best" in printed and "gap" in printed
    assert table.to_dict()["best"]["gap"]["n"] == 2_000


def test_compare_draws_its_figure(problem, chain, tmp_path):
    table = sc.compare(problem, {"best": chain.control, "none": None}, grid=GRID, kernel=KERNEL, n=500, show=False)
    table.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 5_000


def test_the_plotted_front_passes_through_the_optimum_and_above_the_rest(problem, monkeypatch, tmp_path):
    """The curve of the figure, read back from it: the chain's optimum lies on it, the opposite control far below."""
    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, file: drawn.append(figure.axes[0]))
    chain = {"grid": sc.TimeGrid.log_snr(60), "kernel": sc.ExactTransition()}
    exact = problem.discretise(**chain).exact
    entries = {"best": (exact.control, exact.initial), "opposite": (-1 * exact.control, exact.initial), "none": None}
    table = sc.compare(problem, entries, n=4_000, show=False, **chain)
    table.plot(tmp_path / "front.png")
    line = next(line for line in drawn[0].lines if line.get_label() == "exact front")
    kl, reward = (np.asarray(values, dtype=float) for values in line.get_data())
    excess = {name: row.reward.value - np.interp(row.kl.value, kl, reward) for name, row in table.rows.items()}
    spread = 4 * table.rows["best"].reward.stderr + 0.01  # sampling, and the chords of the curve
    assert abs(excess["best"]) < spread
    assert abs(excess["none"]) < 4 * table.rows["none"].reward.stderr
    assert excess["opposite"] < -4 * spread


def test_the_best_row_lends_its_optimum():
    mixture = sc.GaussianMixture([0.4, 0.6], [[-1.0], [1.5]], [[[0.3]], [[0.5]]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), mixture, initial="marginal"), sc.Linear([2.0]))
    exact = problem.exact
    table = sc.compare(problem, {"none": None, "exact": (exact.control, exact.initial)}, grid=GRID, n=4_000, show=False)
    assert {row.optimum.value for row in table.rows.values()} == {table.rows["exact"].optimum.value}
    assert "'exact'" in table.rows["none"].optimum.route
    assert table.rows["none"].gap.value > 10 * table.rows["exact"].gap.value


def bad_reward(kind):
    def reward(x):
        if len(x) <= 2:  # the probe of the constructor
            return x.sum(1)
        return {"nan": x.sum(1) * np.nan, "shape": x}[kind]

    return reward


@pytest.mark.parametrize(
    "kind, error, message",
    [("nan", sc.NotFinite, "the reward .* at step 30 \\(t = 1\\)"), ("shape", sc.BadInput, "shape")],
)
def test_bad_rewards_are_named(kind, error, message):
    problem = sc.Problem(sc.ReverseProcess(sc.VP(), LAW), bad_reward(kind))
    with pytest.raises(error, match=message):
        score(problem, None, n=100)


def test_a_running_reward_that_breaks_midway_is_named():
    problem = sc.Problem(
        sc.ReverseProcess(sc.VP(), LAW), REWARD, running_reward=lambda t, x: x.sum(1) * (math.nan if t > 0.45 else 1.0)
    )
    with pytest.raises(sc.NotFinite, match="running reward.* at step 5 \\(t = 0.5\\)"):
        score(problem, None, grid=sc.TimeGrid.uniform(10), n=100)


def test_continuum_controls_are_refused_on_inconsistent_kernels(problem):
    for control in (problem.exact.control, 0.5 * problem.exact.control):
        with pytest.raises(sc.NotDefined, match="discretise"):
            score(problem, control, kernel=sc.DDIM(0.5))
    chain = problem.discretise(sc.DDIM(0.5), GRID).exact
    assert abs(score(problem, chain.control, chain.initial, kernel=sc.DDIM(0.5)).gap.z(chain.loss)) < 5


def test_compare_needs_controls(problem):
    with pytest.raises(sc.BadInput, match="no controls"):
        sc.compare(problem, {})
    with pytest.raises(sc.BadInput, match="tuple of 3"):
        sc.compare(problem, {"a": (None, None, None)})


def test_a_doubled_path_kl_would_be_seen(problem, chain):
    """Planted: with the energy counted twice the objective leaves its closed form by many standard errors."""
    ev = score(problem, chain.control, chain.initial)
    wrong = ev.reward.value - 2 * 0.5 * ev.kl.value
    assert abs(wrong - chain.objective) > 10 * ev.objective.stderr
    assert torch.isfinite(torch.tensor(wrong))
