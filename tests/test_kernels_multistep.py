"""The Adams kernel: local order from exact history, global order by deterministic moments, a fine reference."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sdecontrol as sc
from sdecontrol.kernels_flow import Flow, Switch, flow_grid
from sdecontrol.kernels_multistep import Adams
from sdecontrol.orders import observed_order
from sdecontrol.step import advance

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
MIXTURE = sc.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[0.2, 0.4], [0.3, 0.3]])
SCHEDULES = [sc.VP(), sc.VE(sigma_max=8.0), sc.SubVP(), sc.Cosine()]
NARROW, WIDE = 0.3, 4.0


def flow_in_tau(process, x, taus):
    """y = x / alpha along dy/dtau = -(alpha / 2) score at the levels `taus`, by an eighth-order method."""
    schedule = process.schedule

    def rhs(log_tau, y):
        tau = math.exp(log_tau)
        s = schedule.noise_level_at(-log_tau)
        alpha = schedule.alpha(s)
        return -tau * alpha / 2 * process.model.score(torch.tensor(alpha * y[None]), s)[0][0].numpy()

    found = [x / schedule.alpha(schedule.noise_level_at(-math.log(taus[0])))]
    for ends in zip(np.log(taus[:-1]), np.log(taus[1:])):
        found.append(solve_ivp(rhs, ends, found[-1], method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1])
    return found


def centre(process, y, tau, width):
    s = process.schedule.noise_level_at(-math.log(tau))
    alpha = process.schedule.alpha(s)
    return y + (width**2 + tau) * alpha * process.model.score(torch.tensor(alpha * y[None]), s)[0].numpy()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [0.0, 0.6])
def test_a_step_from_exact_history_has_the_local_error_of_its_order(order, width):
    """Levels h apart in chi; the memory is filled from the exact flow, so only the new step errs: h^(order + 1)."""
    p, x, errors = sc.ReverseProcess(sc.VP(), MIXTURE), np.array([0.4, -0.3]), []
    sizes = 0.4 * 0.5 ** np.arange(6) if order < 4 else 0.1 * 0.5 ** np.arange(4)
    base = math.log((0.5 + NARROW**2) / (0.5 + WIDE**2))
    for size in sizes:
        ratios = np.exp(base - size * np.arange(1 - order, 2))  # of the levels behind, the step's own and the next
        taus = (ratios * WIDE**2 - NARROW**2) / (1 - ratios)
        back = flow_in_tau(p, x, taus[order - 1 :: -1])[::-1]
        exact = flow_in_tau(p, x, taus[order - 1 :])[1]
        times = [1 - p.schedule.noise_level_at(-math.log(tau)) for tau in taus]
        memory = [torch.tensor(centre(p, y, tau, width)) for y, tau in zip(back[:-1], taus[: order - 1])][::-1]
        step = Adams(order, 0.0, width, NARROW, WIDE).transitions(p, times)[-1]
        state = p.state(step.t, torch.tensor(x[None]))
        mean = step.mean(state) if order == 1 else step.step(state, tuple(memory))[0]
        errors.append(float(mean[0, 0]) / p.schedule.alpha(1 - times[-1]) - exact[0])
    assert observed_order(errors, 1 / sizes).limit == pytest.approx(order + 1, abs=0.06)


def terminal_moments(process, kernel, grid):
    """Of the chain from its own start: it is x -> M x + m, read off from the images of 0 and of the unit vectors.

    The score is wrapped as a function, so that no more than these three paths are computed.
    """
    start = torch.cat([torch.zeros(1, 2), torch.eye(2)]).double()
    hidden = sc.ReverseProcess(process.schedule, sc.Score(lambda x, s: process.model.score(x, s)[0]), event_shape=(2,))
    ends = sc.simulate(hidden, initial=start, grid=grid, kernel=kernel, n=3, keep="ends").terminal
    matrix, offset = (ends[1:] - ends[0]).mT, ends[0]
    law = process.initial_law(float(grid.resolve(process).times[0]))
    return matrix @ law.mean + offset, matrix @ law.covariance @ matrix.mT


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [0.0, 0.7])
def test_terminal_law_has_the_declared_order(order, width):
    """From the exact marginal at s = 0.6, where the first step's lack of a past can be seen; no sampling."""
    p = sc.ReverseProcess(sc.VP(), LAW, initial="marginal")
    grid, factors = sc.TimeGrid.explicit([0.4, 0.55, 0.7, 0.85, 0.95]), [4, 8, 16, 32, 64]
    target, kernel = p.noised(0.95), Adams(order, 0.0, width, NARROW, WIDE)
    found = [terminal_moments(p, kernel, grid.refine(factor)) for factor in factors]
    traces = [float((covariance - target.covariance).trace()) for _, covariance in found]
    assert observed_order(traces, factors).limit == pytest.approx(kernel.order_weak, abs=0.06)
    for mean, _ in found:  # c is the mean of the data along the path of the means
        assert torch.allclose(mean, target.mean, rtol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("order", [1, 3])
def test_data_of_its_own_width_are_exact_about_any_mean(order, schedule):
    """N(m, width^2 I) from the exact marginal on three long steps, down to the data themselves."""
    law = sc.Gaussian([0.7, -2.0], 0.36)
    p = sc.ReverseProcess(schedule, law, initial="marginal")
    grid = sc.TimeGrid.explicit([t * schedule.horizon for t in (0.0, 0.5, 0.9, 1.0)])
    mean, covariance = terminal_moments(p, Adams(order, 0.0, 0.6, tweedie=False), grid)
    assert torch.allclose(mean, law.mean, rtol=1e-9)
    assert torch.allclose(covariance, law.covariance, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_noise_leads_up_from_where_the_flow_ended(eta):
    """On data of its own width a noisy step keeps the exact marginal; its variance is that of DDIM(eta)."""
    p = sc.ReverseProcess(sc.VP(), sc.Gaussian([0.7, -2.0], 0.36), initial="marginal")
    grid = sc.TimeGrid.explicit([0.0, 0.4, 0.8])
    m, target = sc.moments(p, Adams(1, eta, 0.6), grid), p.noised(0.8)
    assert torch.allclose(m.means[-1], target.mean, rtol=1e-9)
    assert torch.allclose(m.covariances[-1], target.covariance, rtol=1e-9)
    std = Adams(1, eta, 0.6).transition(p, 0.4, 0.8).std
    assert std == pytest.approx(sc.DDIM(eta).coefficients(p, 0.4, 0.8)[2], rel=1e-12)


def test_first_order_at_width_0_is_ddim():
    p = sc.ReverseProcess(sc.VP(), MIXTURE)
    for eta, end in ((0.0, 0.7), (0.6, 0.7), (0.0, 1.0)):
        ours, theirs = (kernel.coefficients(p, 0.5, end) for kernel in (Adams(1, eta), sc.DDIM(eta)))
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_mixture_against_a_fine_reference():
    """Four starts against an eighth-order solution: second order at least, and 2e-4 at 160 calls."""
    p = sc.ReverseProcess(sc.VP(), MIXTURE)
    hidden = sc.ReverseProcess(p.schedule, sc.Score(lambda x, s: p.model.score(x, s)[0]), event_shape=(2,))
    starts = torch.tensor(np.random.default_rng(0).normal(size=(4, 2)))
    taus, errors = [math.exp(-p.schedule.log_snr(s)) for s in (1.0, 1e-3)], []
    exact = np.stack([flow_in_tau(p, x, taus)[-1] for x in starts.numpy()])
    for steps in (40, 80, 160):
        levels = flow_grid(p, steps + 1, NARROW, 60.0, 1e-3).resolve(p).times[:-1]
        kernel = Adams(3, 0.0, 0.5, NARROW, 60.0)
        path = sc.simulate(hidden, initial=starts, grid=sc.TimeGrid.explicit(levels), kernel=kernel, n=4, keep="ends")
        errors.append(float(np.abs(path.terminal.numpy() / p.schedule.alpha(1e-3) - exact).max()))
    assert errors[2] < 2e-4 and errors[2] < errors[1] / 3.5 < errors[0] / 3.5**2, errors


def test_the_memory_belongs_to_a_block_and_the_noise_to_its_step():
    """The same bits for any number of paths and workers, and with the record; a noisy start included."""
    p = sc.ReverseProcess(sc.VP(), MIXTURE)
    kernel = Switch(Adams(1, 1.0, 0.5), Adams(3, 0.0, 0.5, NARROW, WIDE), 0.999)
    options = {"grid": flow_grid(p, 8, NARROW, WIDE, first=20.0), "kernel": kernel, "noise": sc.Noise(3)}
    few, many = (sc.simulate(p, n=n, keep="ends", workers=w, **options) for n, w in ((50, 1), (40_000, 2)))
    kept = sc.simulate(p, n=50, **options)
    assert torch.equal(few.terminal, many.terminal[:50]) and torch.equal(kept.terminal, few.terminal)
    assert torch.equal(kept.states[-1], kept.terminal) and few.terminal.std() > 0.5
    assert [len(getattr(t, "past", ())) for t in kept.transitions] == [0, 0, 1, 2, 2, 2, 2, 0]


def test_gradients_flow_through_the_memory():
    p = sc.ReverseProcess(sc.VP(), LAW)
    grid, kernel = flow_grid(p, 6, NARROW, WIDE), Adams(3, 0.0, 0.5, NARROW, WIDE)
    start = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    end = sc.simulate(p, initial=start, grid=grid, kernel=kernel, n=1, grad=True, keep="ends").terminal
    slope = torch.autograd.grad(end[0, 0], start)[0]
    moved = [sc.simulate(p, initial=torch.tensor([[e, 0.0]], dtype=torch.float64), grid=grid, kernel=kernel, n=1)
             for e in (1.0, 0.0)]  # fmt: skip
    assert float(slope[0, 0]) == pytest.approx(float((moved[0].terminal - moved[1].terminal)[0, 0]), rel=1e-9)


def test_what_has_no_meaning_is_refused():
    p, general = sc.ReverseProcess(sc.VP(), LAW), sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Dirac([0.0]))
    grid, kernel = flow_grid(p, 6, NARROW, WIDE), Adams(3)
    with pytest.raises(sc.NoClosedForm, match="looks back"):
        sc.moments(p, kernel, grid)
    with pytest.raises(sc.InfiniteKL):
        sc.simulate(p, sc.AffineControl(torch.zeros(2, 2)), grid=grid, kernel=kernel, n=5)
    with pytest.raises(sc.NotDefined, match="only simulate keeps"):
        step = kernel.transitions(p, [0.1, 0.2, 0.3])[1]
        advance(p, step, 1, torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2), None)
    with pytest.raises(sc.NotDefined, match="ReverseProcess"):
        kernel.transition(general, 0.0, 0.1)
    for bad in ({"order": 5}, {"order": 2, "eta": 0.5}, {"width": -1.0}, {"narrow": 2.0, "wide": 1.0}):
        with pytest.raises(sc.BadInput):
            Adams(**bad)
    with pytest.raises(sc.BadInput, match="first"):
        flow_grid(p, 6, NARROW, WIDE, first=1e9)
    assert not Adams(3).consistent_with(p) and Adams(1, 1.0).consistent_with(p)


def test_grids_end_at_the_data_and_begin_with_a_long_step():
    p = sc.ReverseProcess(sc.VP(), LAW)
    tau = lambda s: math.exp(-p.schedule.log_snr(s)) if s > 0 else 0.0  # noqa: E731
    for options, steps in (({"s_min": 0.0}, 5), ({"s_min": 1e-3, "first": 9.0}, 6), ({"s_min": 0.0, "first": 9.0}, 4)):
        levels = flow_grid(p, steps, NARROW, WIDE, **options).resolve(p).noise_levels
        assert len(levels) == steps + 1 and levels[0] == 1 and levels[-1] == 0
        even = [tau(s) for s in levels[("first" in options) : len(levels) - (options["s_min"] > 0)]]
        assert "first" not in options or even[0] == pytest.approx(81.0, rel=1e-9)
        gaps = np.diff([math.log((t + NARROW**2) / (t + WIDE**2)) for t in even])
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)


def test_one_call_a_step_beats_runge_kutta_at_equal_calls():
    """The terminal covariance of a Gaussian at 13 calls."""
    p = sc.ReverseProcess(sc.VP(), LAW, initial="marginal")
    adams = terminal_moments(p, Adams(3, 0.0, 0.5, 0.3, 10.0), flow_grid(p, 13, 0.3, 10.0))[1]
    kutta = terminal_moments(p, Flow(4, 0.0, 0.5), flow_grid(p, 4, 0.3, 10.0))[1]
    errors = [float((found - LAW.covariance).norm()) for found in (adams, kutta)]
    assert errors[0] < errors[1] / 2
