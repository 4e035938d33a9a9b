"""The probability-flow kernels against ODE solutions by scipy, exact marginals, and their declared orders."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import sdecontrol as sc
from sdecontrol.kernels_flow import TABLEAUS, Flow, flow_grid
from sdecontrol.orders import observed_order
from sdecontrol.step import advance

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
MIXTURE = sc.GaussianMixture([0.6, 0.4], [[-1.0, 0.0], [1.0, 0.5]], [[0.2, 0.4], [0.3, 0.3]])
SCHEDULES = [sc.VP(), sc.VE(sigma_max=8.0), sc.SubVP(), sc.Cosine()]
ORDERS = sorted(TABLEAUS)


def probability_flow(process, s, s_next, x):
    """dx/ds = f x - g2 score / 2 from s down to s_next, by an eighth-order method."""
    vp = process.schedule

    def rhs(level, y):
        score = process.model.score(torch.tensor(y[None]), level)[0][0].numpy()
        return vp.f(level) * y - vp.g2(level) / 2 * score

    return solve_ivp(rhs, (s, s_next), x, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_one_step_is_the_flow_to_its_order_and_then_exact_noising(order, eta):
    """Local error h^(order + 1) in the step of log(width^2 + tau); the noise leads up from where the flow ended."""
    p, x = sc.ReverseProcess(sc.VP(), MIXTURE), np.array([0.4, -0.3])
    vp, s, width, errors = p.schedule, 0.4, 0.6, []
    tau = vp.h(s) / vp.alpha(s) ** 2
    sizes = 0.8 * 0.5 ** np.arange(6)
    for size in sizes:
        tau_next = (width**2 + tau) * math.exp(-size) - width**2
        s_next = vp.noise_level_at(-math.log(tau_next))
        transition = Flow(order, eta, width).transition(p, 1 - s, 1 - s_next)
        down = tau_next - (transition.std / vp.alpha(s_next)) ** 2  # noising adds alpha'^2 (tau' - tau_d)
        s_down = vp.noise_level_at(-math.log(down))
        exact = vp.alpha(s_next) / vp.alpha(s_down) * probability_flow(p, s, s_down, x)
        mean = transition.mean(p.state(1 - s, torch.tensor(x[None])))[0].numpy()
        errors.append((mean - exact)[0])
        assert transition.std == pytest.approx(sc.DDIM(eta).coefficients(p, 1 - s, 1 - s_next)[2], rel=1e-9, abs=1e-300)
    assert observed_order(errors, 1 / sizes).limit == pytest.approx(order + 1, abs=0.05)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_marginals_are_kept_to_the_flows_order_for_every_eta(order, eta):
    """From the exact marginal at the start, five nested grids, no sampling."""
    p = sc.ReverseProcess(sc.VP(), LAW, initial="marginal")
    grid, factors = sc.TimeGrid.log_snr(12, s_min=0.05, close=False), [1, 2, 4, 8, 16]
    target = p.noised(1 - 0.05)
    found = [sc.moments(p, Flow(order, eta, 0.7), grid.refine(factor)) for factor in factors]
    means = [float((m.means[-1] - target.mean)[0]) for m in found]
    traces = [float((m.covariances[-1] - target.covariance).trace()) for m in found]
    for errors in (means, traces):
        assert observed_order(errors, factors).limit == pytest.approx(order, abs=0.06)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_flow_is_exact_on_centred_data_of_its_own_width(order, schedule):
    """x scales by the ratio of the marginals' standard deviations, in one step of any length."""
    p = sc.ReverseProcess(schedule, sc.Gaussian([0.0], 0.36))
    t, t_next = 0.3 * schedule.horizon, 0.95 * schedule.horizon
    x = torch.tensor([[1.3]], dtype=torch.float64)
    moved = Flow(order, 0.0, width=0.6).transition(p, t, t_next).mean(p.state(t, x))
    scale = math.sqrt(float(p.noised(t_next).covariance / p.noised(t).covariance))
    assert float(moved) == pytest.approx(1.3 * scale, rel=1e-10)


@pytest.mark.parametrize("kernel", [Flow(1), Flow(2, 0.5), Flow(4, 1.0, 0.5)], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=["VP", "VE"])
def test_affine_step_is_what_the_simulated_step_does(kernel, schedule):
    p = sc.ReverseProcess(schedule, LAW)
    rng = np.random.default_rng(0)
    x, z = (torch.tensor(rng.normal(size=(7, 2))) for _ in range(2))
    for t, t_next in ((0.6, 0.7), (0.99, 1.0)):
        t, t_next = t * schedule.horizon, t_next * schedule.horizon
        step = kernel.affine_step(p, t, t_next)
        ours, _ = advance(p, kernel.transition(p, t, t_next), 0, x, z, None)
        assert torch.allclose(ours, x @ step.matrix.T + step.offset + z @ step.noise.T, rtol=1e-11, atol=1e-12)


def test_log_ratios_of_a_controlled_flow_are_exact():
    """Path KL from samples against the exact one of the chain, and E exp(-log ratio) = 1."""
    p = sc.ReverseProcess(sc.VP(), LAW)
    grid, kernel = flow_grid(p, 9, 0.5, 3.0), Flow(4, eta=1.0)
    control = sc.AffineControl(
        -0.05 * torch.eye(2, dtype=torch.float64), torch.tensor([0.2, -0.1], dtype=torch.float64)
    )
    path = sc.simulate(p, control, grid=grid, kernel=kernel, n=20_000, noise=sc.Noise(1), keep="ends")
    exact = sc.moments(p, kernel, grid, control=control)
    assert abs(sc.path_kl(path).z(exact.kl)) < 4.5
    assert abs(sc.Estimate.mean((-path.log_ratio()).exp()).z(1.0)) < 4.5
    for i in range(2):
        assert abs(sc.Estimate.mean(path.terminal[:, i]).z(float(exact.means[-1][i]))) < 4.5


def test_step_to_the_data_is_tweedies_estimate():
    p = sc.ReverseProcess(sc.VP(), MIXTURE)
    x = torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    state = p.state(0.97, x)
    mean = Flow(4, 0.3).transition(p, 0.97, 1.0).mean(state)
    assert torch.allclose(mean, p.data_law.posterior(p.schedule.alpha(0.03), p.schedule.h(0.03)).mean(x), rtol=1e-10)


def test_grid_is_even_in_its_coordinate():
    p = sc.ReverseProcess(sc.VP(), LAW)
    levels = flow_grid(p, 7, narrow=0.3, wide=4.0, s_min=2e-3).resolve(p).noise_levels
    assert len(levels) == 8 and levels[-1] == 0
    assert levels[0] == 1 and levels[-2] == pytest.approx(2e-3, rel=1e-12)
    tau = np.array([p.schedule.h(s) / p.schedule.alpha(s) ** 2 for s in levels[:-1]])
    gaps = np.diff(np.log((tau + 0.09) / (tau + 16)))
    np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)


def test_what_is_refused_and_declared():
    p = sc.ReverseProcess(sc.VP(), LAW)
    assert Flow(4, 1.0).consistent_with(p) and not Flow(4).consistent_with(p)
    with pytest.raises(sc.BadInput, match="order"):
        Flow(3)
    with pytest.raises(sc.BadInput, match="eta"):
        Flow(2, eta=1.2)
    with pytest.raises(sc.BadInput, match="width"):
        Flow(2, width=0.0)
    with pytest.raises(sc.BadInput, match="narrow"):
        flow_grid(p, 5, narrow=2.0, wide=1.0)
    with pytest.raises(sc.BadInput, match="steps"):
        flow_grid(p, 1, narrow=0.5, wide=1.0)
    general = sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Dirac([0.0]))
    with pytest.raises(sc.NotDefined, match="ReverseProcess"):
        Flow().transition(general, 0.0, 0.1)
