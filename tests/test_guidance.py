"""Every law of guidance against Doob's h-transform: equal where it should be exact, apart where it should not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol import guidance
from sdecontrol.errors import BadInput, NotDefined
from sdecontrol.kernels import Ancestral
from sdecontrol.step import StepView

RNG = np.random.default_rng(0)
DIRECTION = [1.0, -0.5, 0.3, 0.8]


def covariance(rng: np.random.Generator, d: int = 4) -> torch.Tensor:
    root = rng.normal(size=(d, d))
    return torch.tensor(root @ root.T / d + 0.2 * np.eye(d))


def anisotropic(reward: Any, temperature: float = 0.7, schedule: Any = None, seed: int = 1) -> sc.Problem:
    rng = np.random.default_rng(seed)
    law = sc.Gaussian(torch.tensor(rng.normal(size=4)), covariance(rng))
    return sc.Problem(sc.ReverseProcess(schedule or sc.VP(), law), reward, temperature)


def subspace(reward: Any, latent: Any = 1.0) -> tuple[sc.Problem, torch.Tensor]:
    """Data N(0, latent) on a 3-dimensional subspace of R^8."""
    basis = torch.linalg.qr(torch.tensor(RNG.normal(size=(8, 3)))).Q
    law = sc.SubspaceGaussian(basis, torch.zeros(3), latent * torch.ones(3))
    return sc.Problem(sc.ReverseProcess(sc.VP(), law), reward, 1.0), basis


LABEL = sc.GaussianLabel(DIRECTION, 1.3, 0.5, strength=2.0)
CURVED = sc.Quadratic([0.3, -0.2, 0.5, 0.1], np.diag([0.6, -0.15, 0.0, 0.4]), 0.2)


def at(problem: sc.Problem, t: float, n: int = 16, seed: int = 0, rows: slice = slice(None)) -> StepView:
    """A step of the ancestral kernel at n states of the marginal at time t."""
    process = problem.process
    transition = Ancestral().transition(process, t, t + 0.02)
    x = process.noised(t).sample(n, sc.Noise(seed))[rows]
    return StepView(process, transition, 0, process.state(t, x, jacobian=True))


def shifts(problem: sc.Problem, control: Any, other: Any, t: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    return control(at(problem, t)), other(at(problem, t))


def far_apart(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).norm() / b.norm()) > 0.03


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("reward", [LABEL, CURVED], ids=["label", "indefinite"])
@pytest.mark.parametrize("schedule", [sc.VP(), sc.VE()], ids=["VP", "VE"])
def test_the_exact_variance_is_doob_for_gaussian_data(reward, schedule, t):
    problem = anisotropic(reward, schedule=schedule)
    a, b = shifts(problem, guidance.exact_variance(problem), guidance.doob(problem, form="score"), t)
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-9 * float(b.abs().max()))


def test_the_exact_variance_is_not_doob_for_a_mixture():
    law = sc.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], [0.2, 0.2])
    process = sc.ReverseProcess(sc.VP(), law, initial="marginal")
    problem = sc.Problem(process, sc.GaussianLabel([1.0], 1.0, 0.5), 1.0)
    assert far_apart(*shifts(problem, guidance.exact_variance(problem), guidance.doob(problem, form="score")))


def test_g_loss_with_the_exact_weight_is_the_exact_variance_of_a_label():
    problem = anisotropic(LABEL)
    a, b = shifts(problem, guidance.g_loss(problem, "exact"), guidance.exact_variance(problem))
    assert torch.allclose(a, b, rtol=1e-10)
    assert far_apart(*shifts(problem, guidance.g_loss(problem, "code"), guidance.exact_variance(problem)))


def test_a_linear_surrogate_is_the_label_that_moves_gaussian_data_as_the_tilt_does():
    """The gradient by differences, moments by numpy; the label's posterior mean by its own formula is the tilt's."""
    reward = lambda x: torch.sin(x @ torch.tensor(DIRECTION, dtype=torch.float64)) - 0.3 * x[:, 0] ** 2  # noqa: E731
    problem = anisotropic(reward)
    law = problem.process.data_law
    samples = law.sample(400, sc.Noise(5))
    z, step = samples.mean(0), 1e-5 * torch.eye(4, dtype=torch.float64)
    g = (reward(z + step) - reward(z - step)) / 2e-5
    along = samples.numpy() @ g.numpy()
    s, y = along.var(ddof=1), along.mean() + 2 * along.var(ddof=1) / 0.7
    label = sc.Problem(problem.process, sc.GaussianLabel(g, y, math.sqrt(s)), 1.0)
    for beta in ("code", "exact"):
        a, b = shifts(problem, guidance.surrogate_loss(problem, samples, beta), guidance.g_loss(label, beta))
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)
    mean, S = samples.mean(0), samples.T.cov()
    posterior = mean + S @ g * float((y - g @ mean) / (g @ S @ g + s))
    assert torch.allclose(posterior, mean + S @ g / 0.7, rtol=1e-9)
    linear = anisotropic(sc.Linear(DIRECTION))
    drawn = linear.process.data_law.sample(40_000, sc.Noise(6))
    control = guidance.surrogate_loss(linear, drawn, "exact")
    end = sc.simulate(linear.process, control, grid=sc.TimeGrid.log_snr(100), n=20_000).terminal
    wanted = linear.exact.terminal
    error = (end.mean(0) - wanted.mean) / (wanted.covariance.diagonal() / 20_000).sqrt()
    assert float(error.abs().max()) < 4.5, "of 4 entries; the moments of 40 000 samples and the start add a little"


def test_a_surrogate_on_events_of_any_shape_is_that_of_flat_ones():
    values = torch.tensor([[1.0, -0.5], [0.3, 0.8]], dtype=torch.float64)
    flat = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Isotropic((4,), 0.6)), lambda x: (x @ values.flatten()).exp(), 0.5)
    grid = sc.Problem(
        sc.ReverseProcess(sc.VP(), sc.Isotropic((2, 2), 0.6)), lambda x: (x * values).sum((1, 2)).exp(), 0.5
    )
    samples = flat.process.data_law.sample(50, sc.Noise(2)).double()
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def control(problem: sc.Problem, drawn: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        transition = Ancestral().transition(problem.process, 0.6, 0.62)
        state = problem.process.state(0.6, x, jacobian=True)
        return guidance.surrogate_loss(problem, drawn)(StepView(problem.process, transition, 0, state))

    a, b = control(flat, samples, x), control(grid, samples.reshape(-1, 2, 2), x.reshape(-1, 2, 2))
    assert b.shape == (7, 2, 2) and torch.allclose(a, b.flatten(1), rtol=1e-10) and float(a.abs().min()) > 0


def test_a_surrogate_needs_a_gradient_that_is_not_zero():
    samples = anisotropic(LABEL).process.data_law.sample(10, sc.Noise(0))
    for reward in (sc.Step(DIRECTION, 0.0, 1.0), lambda x: 0 * x.sum(1), lambda x: x.sum(1).detach()):
        problem = anisotropic(reward)
        with pytest.raises(NotDefined, match="gradient"):
            guidance.surrogate_loss(problem, samples)
    with pytest.raises(BadInput, match="n >= 2"):
        guidance.surrogate_loss(anisotropic(LABEL), samples[:1])
    with pytest.raises(BadInput, match=r"\(n, 4\)"):
        guidance.surrogate_loss(anisotropic(LABEL), samples[:, :3])
    general = sc.problems.double_well()
    with pytest.raises(NotDefined, match="ReverseProcess"):
        guidance.surrogate_loss(general, torch.randn(5, general.process.dim, dtype=torch.float64))


def test_the_weight_of_the_code_is_exact_where_the_covariance_is_a_projector():
    reward = sc.GaussianLabel(RNG.normal(size=8), 1.0, 0.4)
    problem, basis = subspace(reward)
    doob = guidance.doob(problem, form="score")
    a, b = shifts(problem, guidance.g_loss(problem), doob)
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
    spread, _ = subspace(reward, latent=0.3)
    assert far_apart(*shifts(spread, guidance.g_loss(spread), guidance.doob(spread, form="score")))


def test_naive_guidance_is_exact_for_unit_gaussian_data_and_leaves_a_subspace():
    unit = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian(np.zeros(4), np.ones(4))), LABEL, 1.0)
    a, b = shifts(unit, guidance.naive(unit), guidance.doob(unit, form="score"))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
    problem, basis = subspace(sc.GaussianLabel(RNG.normal(size=8), 1.0, 0.4))

    def off(control: Any) -> float:
        u = control(at(problem, 0.5))
        return float((u - u @ basis @ basis.T).norm() / u.norm())

    for law in (guidance.g_loss, guidance.exact_variance, guidance.plug_in, guidance.pigdm, guidance.doob):
        assert off(law(problem)) < 1e-10
    assert off(guidance.naive(problem)) > 0.3


@pytest.mark.parametrize("schedule", [sc.VP(), sc.VE()], ids=["VP", "VE"])
def test_guidance_stays_in_the_span_in_a_hundred_thousand_dimensions(schedule):
    """Data of rank 16, at levels from pure noise to nearly clean; a dense curvature would take 80 GB."""
    ambient, generator = 100_000, torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(ambient, 16, dtype=torch.float64, generator=generator)).Q
    law = sc.SubspaceGaussian(basis, torch.randn(16, generator=generator), 0.1 + torch.rand(16, generator=generator))
    g = torch.randn(ambient, dtype=torch.float64, generator=generator)
    problem = sc.Problem(sc.ReverseProcess(schedule, law, "marginal"), sc.GaussianLabel(g / g.norm(), 1.0, 0.3), 1.0)
    value = guidance.doob(problem, form="value")
    laws = (guidance.doob, guidance.g_loss, guidance.exact_variance, guidance.plug_in, guidance.pigdm)
    for t in (0.0, 0.05, 0.5, 0.95):
        step = at(problem, t, n=2)
        for control in (problem.exact.control, value, *(law(problem) for law in laws)):
            u = control(step)
            assert float((u - (u @ basis) @ basis.mT).norm()) <= 1e-10 * float(u.norm()) > 0
    u = guidance.naive(problem)(step)
    assert float((u - (u @ basis) @ basis.mT).norm()) > 0.9 * float(u.norm())


def test_plug_in_is_exact_for_linear_rewards_and_too_strong_for_concave_ones():
    linear = anisotropic(sc.Linear(DIRECTION))
    transition_of_value = guidance.doob(linear, form="value")
    a, b = guidance.plug_in(linear)(at(linear, 0.5)), transition_of_value(at(linear, 0.5))
    ratio = a / b  # both are proportional to grad v; the step's amplitude against that of the process
    assert float(ratio.std() / ratio.mean().abs()) < 1e-9
    one = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian([0.0], [[1.0]])), sc.Quadratic([0.0], [[2.0]]), 0.5)
    s = one.process.noise_level(0.5)
    a, h = one.process.schedule.alpha(s), one.process.schedule.h(s)
    posterior = h / (a * a + h)
    step = at(one, 0.5)
    grad_v = one.exact.control(0.5, step.x) * one.temperature / one.process.amplitude(0.5)
    strong = guidance.plug_in(one)(step) / step.from_value(grad_v, one.temperature)
    assert torch.allclose(strong, torch.full_like(strong, 1 + 2.0 * posterior / 0.5), rtol=1e-9)


@pytest.mark.parametrize(
    "reward", [LABEL, sc.Step([1.0, 0.0, 0.0, 0.0], 0.5, 1.0), CURVED], ids=["label", "step", "curved"]
)
def test_pigdm_is_doob_for_unit_gaussian_data(reward):
    unit = sc.Problem(sc.ReverseProcess(sc.VP(), sc.Gaussian(np.zeros(4), np.ones(4))), reward, 0.9)
    a, b = shifts(unit, guidance.pigdm(unit), guidance.doob(unit, form="score"))
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)
    assert far_apart(*shifts(anisotropic(reward), guidance.pigdm(anisotropic(reward)),
                             guidance.doob(anisotropic(reward), form="score")))  # fmt: skip


def test_dps_moves_the_mean_by_the_gradient_through_the_posterior_mean():
    problem = anisotropic(LABEL)
    step, eps = at(problem, 0.6), 1e-6

    def moved(energy: Any) -> torch.Tensor:
        """-finite differences of an energy of x0_hat(x) along each coordinate."""
        columns = []
        for e in torch.eye(4, dtype=torch.float64):
            up, down = (problem.process.state(0.6, step.x + sign * eps * e).x0_hat for sign in (1, -1))
            columns.append(-(energy(up) - energy(down)) / (2 * eps))
        return torch.stack(columns, 1)

    g = torch.tensor(DIRECTION, dtype=torch.float64)
    for squared, energy in ((True, lambda x: -LABEL(x)), (False, lambda x: (1.3 - x @ g).abs())):
        u = guidance.dps(problem, squared=squared, scale=0.3)(at(problem, 0.6))
        assert torch.allclose(u * step.std * math.sqrt(step.dt), 0.3 * moved(energy), rtol=1e-5, atol=1e-7)


def test_a_classifier_that_is_exact_is_doob_and_its_strength_is_not_a_power():
    problem = anisotropic(LABEL, temperature=1.0)
    exact = problem.exact

    class LogH(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return exact.value(0.6, x)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            (x,) = ctx.saved_tensors
            return grad[:, None] * exact.control(0.6, x) / problem.process.amplitude(0.6)

    log_h = lambda x, s: LogH.apply(x)  # noqa: E731
    a, b = shifts(problem, guidance.classifier(problem, log_h), guidance.doob(problem, form="score"))
    assert torch.allclose(a, b, rtol=1e-9)
    power = anisotropic(sc.GaussianLabel(DIRECTION, 1.3, 0.5, strength=8.0), temperature=1.0)
    assert far_apart(4 * a, guidance.doob(power, form="score")(at(power, 0.6)))


def test_classifier_free_guidance_towards_the_tilted_law_is_doob_and_two_strengths_add():
    rng = np.random.default_rng(1)
    law = sc.Gaussian(torch.tensor(rng.normal(size=4)), covariance(rng))
    process = sc.ReverseProcess(sc.VP(), law, initial="marginal")
    problem = sc.Problem(process, LABEL, 1.0)
    tilted = law.tilt(LABEL, 1.0)
    doob = guidance.doob(problem, form="score")
    a, b = shifts(problem, guidance.cfg(problem, tilted), doob)
    assert torch.allclose(a, b, rtol=1e-8, atol=1e-9)
    other = law.tilt(sc.Linear(DIRECTION), 1.0)
    both = guidance.cfg(problem, other, 2.0) + guidance.cfg(problem, tilted, 3.0, unconditional=other)
    step = at(problem, 0.6)
    s = process.noise_level(0.6)
    score = {k: sc.ReverseProcess(sc.VP(), p).state(0.6, step.x).score for k, p in (("o", other), ("t", tilted))}
    assert s == pytest.approx(0.4)
    wanted = step.from_score(2 * (score["o"] - step.score) + 3 * (score["t"] - score["o"]))
    assert torch.allclose(both(step), wanted, rtol=1e-10)


LAWS = {
    "doob": guidance.doob,
    "doob value": lambda p: guidance.doob(p, form="value"),
    "plug-in": guidance.plug_in,
    "dps": guidance.dps,
    "dps norm": lambda p: guidance.dps(p, squared=False),
    "pigdm": guidance.pigdm,
    "g_loss": guidance.g_loss,
    "surrogate loss": lambda p: guidance.surrogate_loss(p, p.process.data_law.sample(64, sc.Noise(9))),
    "naive": guidance.naive,
    "exact variance": guidance.exact_variance,
    "classifier": lambda p: guidance.classifier(p, lambda x, s: -(x * x).sum(1)),
    "cfg": lambda p: guidance.cfg(p, sc.Gaussian(torch.zeros(4), torch.ones(4)), 2.0),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_acts_on_each_sample_alone(name):
    problem = anisotropic(LABEL)
    control = LAWS[name](problem)
    whole = control(at(problem, 0.5))
    for rows in (slice(3, 4), slice(0, 7), slice(None, None, 2)):
        assert torch.allclose(control(at(problem, 0.5, rows=rows)), whole[rows], rtol=1e-9, atol=1e-11)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(control(at(problem, 0.5, rows=order)), whole[order], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LAWS)
def test_a_law_runs_in_simulate_and_never_beats_the_chain(name):
    problem = anisotropic(LABEL)
    found = sc.evaluate(problem, LAWS[name](problem), grid=sc.TimeGrid.log_snr(20, s_min=1e-2), n=200)
    assert found.gap.value > -5 * found.gap.stderr and math.isfinite(found.gap.value)


def test_a_control_is_refused_on_another_problem():
    problem, other = anisotropic(LABEL), anisotropic(CURVED)
    control = guidance.plug_in(problem)
    with pytest.raises(BadInput, match="a control made for"):
        sc.evaluate(other, control, n=10)
    with pytest.raises(BadInput, match="a control made for"):
        sc.evaluate(other, 0.5 * control, n=10)
    with pytest.raises(BadInput, match="different problems"):
        control + guidance.plug_in(other)


def test_bad_input_is_named():
    general = sc.Problem(sc.DiffusionProcess(sc.Affine(-torch.eye(4)), 1.0, sc.Dirac(torch.zeros(4))), LABEL, 1.0)
    for law in (
        guidance.plug_in,
        guidance.dps,
        guidance.pigdm,
        guidance.g_loss,
        guidance.naive,
        guidance.exact_variance,
    ):
        with pytest.raises(NotDefined, match="x0_hat"):
            law(general)
    with pytest.raises(NotDefined, match="has none"):
        guidance.classifier(general, lambda x, s: x.sum(1))
    with pytest.raises(NotDefined, match="has none"):
        guidance.cfg(general, sc.Gaussian(torch.zeros(4), torch.ones(4)))
    step = anisotropic(sc.Step(DIRECTION, 0.0, 1.0))
    for law in (guidance.plug_in, guidance.dps):
        with pytest.raises(NotDefined, match="step reward"):
            law(step)
    for blind in (lambda x: x.detach().sum(1), lambda x: (x > 0).double().sum(1)):
        for law in (guidance.plug_in, guidance.dps, lambda problem: sc.steering.twisted(problem, 4)):
            with pytest.raises(NotDefined, match="without gradient.*sc.steering.fk"):
                law(anisotropic(blind))
    with pytest.raises(BadInput, match="strength of nan"):
        math.nan * guidance.plug_in(anisotropic(CURVED))
    for law in (guidance.g_loss, guidance.naive):
        with pytest.raises(NotDefined, match="GaussianLabel"):
            law(anisotropic(CURVED))
    with pytest.raises(NotDefined, match="quadratic"):
        guidance.exact_variance(step)
    problem = anisotropic(LABEL)
    for bad in (math.nan, math.inf):
        with pytest.raises(BadInput, match="finite"):
            guidance.dps(problem, scale=bad)
        with pytest.raises(BadInput, match="finite"):
            guidance.classifier(problem, lambda x, s: x.sum(1), scale=bad)
        with pytest.raises(BadInput, match="finite"):
            guidance.cfg(problem, sc.Gaussian(torch.zeros(4), torch.ones(4)), bad)
    with pytest.raises(BadInput, match="form"):
        guidance.doob(problem, form="ahead")
    with pytest.raises(BadInput, match="beta"):
        guidance.g_loss(problem, beta="mine")
    with pytest.raises(BadInput, match="classifier output of shape"):
        guidance.classifier(problem, lambda x, s: x)(at(problem, 0.5))
