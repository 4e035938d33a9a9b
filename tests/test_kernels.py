"""Kernels against formulas written out from the papers, ODE solutions, and the schedulers of diffusers."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.linalg import sqrtm

import sdecontrol as sc
from sdecontrol.step import advance

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
SCHEDULES = [sc.VP(), sc.VE(sigma_max=8.0), sc.SubVP(), sc.Cosine(), sc.Tabulated.stable_diffusion()]
ALL = [
    sc.EulerMaruyama(),
    sc.Exponential(),
    sc.Ancestral(),
    sc.Ancestral(variance="large"),
    sc.DDIM(),
    sc.DDIM(0.4),
    sc.SecondOrder(),
    sc.ExactTransition(),
]


def process(schedule=SCHEDULES[0], law=LAW):
    return sc.ReverseProcess(schedule, law)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_ancestral_is_bayes_on_the_estimated_clean_point(schedule):
    """Posterior of x' given x and x0: two Gaussian likelihoods multiplied out."""
    p, t, t_next = process(schedule), 0.4 * schedule.horizon, 0.47 * schedule.horizon
    s, s_next = p.noise_level(t), p.noise_level(t_next)
    x = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    state = p.state(t, x)
    r = schedule.alpha(s) / schedule.alpha(s_next)
    q = schedule.h(s) - r**2 * schedule.h(s_next)
    precision = r**2 / q + 1 / schedule.h(s_next)
    mean = (r / q * x + schedule.alpha(s_next) / schedule.h(s_next) * state.x0_hat) / precision
    for kernel in (sc.Ancestral(), sc.DDIM(1.0)):
        transition = kernel.transition(p, t, t_next)
        assert torch.allclose(transition.mean(state), mean, rtol=1e-9)
        assert transition.std == pytest.approx(math.sqrt(1 / precision), rel=1e-9)
    assert sc.Ancestral(variance="large").transition(p, t, t_next).std == pytest.approx(math.sqrt(q), rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_ddim_is_the_papers_formula(eta):
    """x' = alpha' x0_hat + sqrt(h' - sigma^2) eps_hat + sigma z, sigma = eta sqrt(h'/h) sqrt(1 - alpha^2/alpha'^2)."""
    p, t, t_next = process(), 0.5, 0.58
    s, s_next, vp = p.noise_level(t), p.noise_level(t_next), p.schedule
    x = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    state = p.state(t, x)
    sigma = eta * math.sqrt(vp.h(s_next) / vp.h(s)) * math.sqrt(1 - vp.alpha(s) ** 2 / vp.alpha(s_next) ** 2)
    eps = -vp.sigma(s) * state.score
    mean = vp.alpha(s_next) * state.x0_hat + math.sqrt(vp.h(s_next) - sigma**2) * eps
    transition = sc.DDIM(eta).transition(p, t, t_next)
    assert torch.allclose(transition.mean(state), mean, rtol=1e-12)
    assert transition.std == pytest.approx(sigma, rel=1e-12, abs=1e-300)


def test_ddim_and_ddpm_match_the_schedulers_of_diffusers():
    """One epsilon prediction through `step` of both libraries, on Stable Diffusion's own table."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra; not installed here")
    table = sc.Tabulated.stable_diffusion()
    eps = torch.tensor([[0.31, -1.4, 0.6]], dtype=torch.float64)
    x = torch.tensor([[0.2, 0.9, -2.0]], dtype=torch.float64)
    p = sc.ReverseProcess(table, sc.NoisePrediction(lambda x, s: eps, event_shape=(3,)))
    config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    ddim = diffusers.DDIMScheduler(**config, set_alpha_to_one=False, steps_offset=1)
    ddpm = diffusers.DDPMScheduler(**config, variance_type="fixed_small")
    ddim.set_timesteps(50)
    ddpm.set_timesteps(1000)
    for scheduler, kernel, step in ((ddim, sc.DDIM(1.0), 20), (ddim, sc.DDIM(0.0), 20), (ddpm, sc.Ancestral(), 1)):
        timestep = 601
        t, t_next = (1 - (j + 1) / 1000 for j in (timestep, timestep - step))
        transition = kernel.transition(p, t, t_next)
        mean = transition.mean(p.state(t, x))
        if scheduler is ddim:
            theirs = ddim.step(eps, timestep, x, eta=kernel.eta, variance_noise=torch.zeros_like(x)).prev_sample
            std = kernel.eta * math.sqrt(float(ddim._get_variance(timestep, timestep - step)))
        else:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
            std = math.sqrt(float(ddpm._get_variance(timestep)))
            theirs = ddpm.step(eps, timestep, x, generator=generator).prev_sample - std * noise
        assert torch.allclose(mean, theirs, rtol=2e-5)  # their tables are float32
        assert transition.std == pytest.approx(std, rel=2e-4, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_exponential_solves_the_frozen_score_equation(schedule):
    """dx = (-f x + g2 score) dt with the score frozen, and the variance by quadrature."""
    p, t, t_next = process(schedule), 0.3 * schedule.horizon, 0.42 * schedule.horizon
    c_x, c_f, std = sc.Exponential().coefficients(p, t, t_next)
    ode = lambda tau, y: [p.linear_rate(tau) * y[0], p.linear_rate(tau) * y[1] + p.field_gain(tau)]  # noqa: E731
    kinks = np.linspace(t, t_next, 121)  # a tabulated schedule has a kink at each of its levels
    y = np.array([1.0, 0.0])
    for a, b in zip(kinks[:-1], kinks[1:], strict=True):
        y = solve_ivp(ode, (a, b), y, rtol=1e-11, atol=1e-12).y[:, -1]
    assert c_x == pytest.approx(y[0], rel=1e-7)
    assert c_f == pytest.approx(y[1], rel=1e-7)

    def growth(tau: float) -> float:
        return (p.amplitude(tau) * schedule.alpha(p.noise_level(t_next)) / schedule.alpha(p.noise_level(tau))) ** 2

    variance = sum(quad(growth, a, b, epsrel=1e-10)[0] for a, b in zip(kinks[:-1], kinks[1:], strict=True))
    assert std**2 == pytest.approx(variance, rel=1e-6)


@pytest.mark.parametrize("kernel", ALL, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=["VP", "VE"])
def test_affine_step_is_what_the_simulated_step_does(kernel, schedule):
    p, t, t_next = process(schedule), 0.6 * schedule.horizon, 0.7 * schedule.horizon
    rng = np.random.default_rng(0)
    x, z = (torch.tensor(rng.normal(size=(7, 2))) for _ in range(2))
    step = kernel.affine_step(p, t, t_next)
    ours, _ = advance(p, kernel.transition(p, t, t_next), 0, x, z, None)
    assert torch.allclose(ours, x @ step.matrix.T + step.offset + z @ step.noise.T, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=["VP", "VE"])
@pytest.mark.parametrize("t_next", [0.8, 1.0])
def test_exact_transition_is_conditioning_of_the_joint_law(schedule, t_next):
    """(X_s', X_s) is jointly Gaussian: condition it with dense matrices."""
    p, t = process(schedule), 0.5
    s, s_next = p.noise_level(t), p.noise_level(t_next)
    a, a_next, h, h_next = schedule.alpha(s), schedule.alpha(s_next), schedule.h(s), schedule.h(s_next)
    sigma, mu, eye = LAW.covariance.numpy(), LAW.mean.numpy(), np.eye(2)
    near, far = a_next**2 * sigma + h_next * eye, a**2 * sigma + h * eye
    cross = a / a_next * near
    gain = cross.T @ np.linalg.inv(far)
    covariance = near - gain @ cross
    step = sc.ExactTransition().affine_step(p, t, t_next)
    assert np.allclose(step.matrix.numpy(), gain, rtol=1e-9)
    assert np.allclose(step.offset.numpy(), a_next * mu - gain @ (a * mu), rtol=1e-9)
    assert np.allclose(step.noise.numpy(), sqrtm(covariance).real, rtol=1e-8, atol=1e-10)


def test_exact_transition_by_ode_agrees_with_conditioning():
    p = process()
    perturbed = sc.ReverseProcess(sc.VP(), sc.PerturbedScore(LAW, scale=1.0))
    for pair in ((0.1, 0.3), (0.6, 0.9)):
        one, two = (sc.ExactTransition().affine_step(q, *pair) for q in (p, perturbed))
        for a, b in ((one.matrix, two.matrix), (one.offset, two.offset), (one.noise, two.noise)):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_point_data_is_reached_exactly_by_the_ancestral_kernel():
    """With x0_hat known the ancestral chain has the right marginals at any number of steps."""
    p = sc.ReverseProcess(sc.VP(), sc.Dirac([2.0]), initial="marginal")
    path = sc.simulate(p, grid=sc.TimeGrid.geometric(4, s_min=0.05), kernel=sc.Ancestral(), n=40_000)
    for k, s in enumerate(path.grid.noise_levels[:-1]):
        x = path.states[k, :, 0]
        assert abs(sc.Estimate.mean(x).z(2 * p.schedule.alpha(s))) < 5
        assert abs(sc.Estimate.mean((x - 2 * p.schedule.alpha(s)) ** 2).z(p.schedule.h(s))) < 5
    assert torch.allclose(path.terminal, torch.full_like(path.terminal, 2.0), atol=1e-9)


def test_small_steps_keep_their_digits():
    p = process()
    for kernel in (sc.Exponential(), sc.Ancestral(), sc.DDIM(1.0)):
        c_x, c_f, std = kernel.coefficients(p, 0.5, 0.5 + 1e-9)
        assert c_f == pytest.approx(1e-9 * p.field_gain(0.5), rel=1e-6)
        assert std**2 == pytest.approx(1e-9 * p.field_gain(0.5), rel=1e-6)
        assert c_x - 1 == pytest.approx(1e-9 * p.linear_rate(0.5), rel=1e-6)


def test_consistency_is_declared():
    p = process()
    assert all(k.consistent_with(p) for k in ALL if getattr(k, "eta", 1.0) == 1.0)
    assert not sc.DDIM(0.5).consistent_with(p)


def test_kernels_refuse_what_they_cannot_do():
    general = sc.DiffusionProcess(sc.Affine([[-1.0]]), 1.0, sc.Dirac([0.0]))
    with pytest.raises(sc.NotDefined, match="ReverseProcess"):
        sc.Ancestral().transition(general, 0.0, 0.1)
    network = sc.ReverseProcess(sc.VP(), sc.Score(lambda x, s: -x, event_shape=(1,)))
    with pytest.raises(sc.NoClosedForm):
        sc.ExactTransition().transition(network, 0.0, 0.1)
    with pytest.raises(sc.BadInput, match="eta"):
        sc.DDIM(1.5)
    with pytest.raises(sc.BadInput, match="variance"):
        sc.Ancestral(variance="medium")
