"""Controls: units, algebra, and what a step shows."""

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.step import StepView

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
PROCESS = sc.ReverseProcess(sc.VP(), LAW)
X = torch.tensor(np.random.default_rng(0).normal(size=(5, 2)))
A = sc.AffineControl([[0.1, 0.2], [0.0, -0.3]], [0.5, 0.1])


def step(kernel, t=0.5, t_next=0.52, process=PROCESS):
    return StepView(process, kernel.transition(process, t, t_next), 3, process.state(t, X))


@pytest.mark.parametrize("kernel", [sc.EulerMaruyama(), sc.Ancestral(), sc.DDIM(0.7), sc.ExactTransition()], ids=repr)
def test_from_mean_moves_the_mean(kernel):
    """A control is a shift of the noise: x+ with it minus x+ without it is the change of the mean."""
    delta = torch.tensor([[0.3, -0.2]]).double().expand(5, 2)
    one = sc.TimeGrid.explicit([0.5, 0.52])
    moved = sc.simulate(PROCESS, lambda s: s.from_mean(delta), X, grid=one, kernel=kernel, n=5).terminal
    still = sc.simulate(PROCESS, None, X, grid=one, kernel=kernel, n=5).terminal
    assert torch.allclose(moved - still, delta, atol=1e-12)


def test_from_score_is_the_kernel_of_the_changed_score():
    delta = torch.tensor([0.4, -0.7], dtype=torch.float64)
    changed = sc.ReverseProcess(sc.VP(), sc.PerturbedScore(LAW, bias=delta))
    one = sc.TimeGrid.explicit([0.5, 0.52])
    for kernel in (sc.EulerMaruyama(), sc.Exponential(), sc.Ancestral(), sc.DDIM(0.7)):
        ours = sc.simulate(
            PROCESS, lambda s: s.from_score(delta.expand(5, 2)), X, grid=one, kernel=kernel, n=5
        ).terminal
        assert torch.allclose(ours, sc.simulate(changed, None, X, grid=one, kernel=kernel, n=5).terminal, atol=1e-12)


def test_the_three_conversions_agree_for_euler():
    """u = g grad v / T; as a score change it is grad v / T, as a mean change dt g^2 grad v / T."""
    gradient, temperature = torch.tensor([[0.3, -0.2]]).double().expand(5, 2), 0.7
    s = step(sc.EulerMaruyama())
    u = s.from_value(gradient, temperature)
    assert torch.allclose(u, PROCESS.amplitude(0.5) * gradient / temperature, rtol=1e-12)
    assert torch.allclose(u, s.from_score(gradient / temperature), rtol=1e-12)
    assert torch.allclose(u, s.from_mean(s.dt * PROCESS.amplitude(0.5) ** 2 * gradient / temperature), rtol=1e-12)


def test_tweedie_and_its_pullback():
    """x0_hat is the posterior mean of two Gaussians multiplied; its Jacobian by autograd."""
    s = step(sc.Ancestral())
    a, h = PROCESS.schedule.alpha(0.5), PROCESS.schedule.h(0.5)
    prior = torch.linalg.inv(LAW.covariance)
    p = torch.linalg.inv(prior + a**2 / h * torch.eye(2).double())
    assert torch.allclose(s.x0_hat, (LAW.mean @ prior + a / h * X) @ p, rtol=1e-10)
    c = torch.tensor([[1.0, -2.0]]).double().expand(5, 2)
    assert torch.allclose(s.pullback(c), a / h * c @ p, rtol=1e-10)
    reward = sc.Quadratic([0.3, 0.1], [[1.0, 0.2], [0.2, -0.5]])
    wanted = a / h * reward.gradient(s.x0_hat) @ p
    assert torch.allclose(s.reward_gradient(reward), wanted, rtol=1e-10)
    assert torch.allclose(s.reward_gradient(lambda x: reward(x)), wanted, rtol=1e-10)


def test_a_general_diffusion_has_no_score():
    general = sc.DiffusionProcess(sc.Affine(-np.eye(2)), 1.0, sc.Dirac([0.0, 0.0]))
    s = step(sc.EulerMaruyama(), process=general)
    for ask in (lambda: s.score, lambda: s.x0_hat, lambda: s.pullback(X)):
        with pytest.raises(sc.NotDefined, match="ReverseProcess"):
            ask()


def test_algebra():
    b = sc.StateControl(lambda t, x: torch.sin(x) + t)
    total = 2 * A + b * 0.5 - 0.25 * A
    wanted = 1.75 * A(0.3, X) + 0.5 * (torch.sin(X) + 0.3)
    assert torch.allclose(total(0.3, X), wanted, rtol=1e-12)
    gain, offset = (3 * A + (-A)).affine_at(0.1)
    assert torch.allclose(X @ gain.T + offset, 2 * A(0.1, X), rtol=1e-12)
    with pytest.raises(sc.NoClosedForm, match="affine"):
        total.affine_at(0.1)


def test_affine_control_on_a_grid():
    times = np.array([0.0, 0.3, 1.0])
    gains, offsets = (
        torch.stack([torch.eye(2), 2 * torch.eye(2)]).double(),
        torch.tensor([[0.0, 1.0], [2.0, 3.0]]).double(),
    )
    control = sc.AffineControl.on_grid(times, gains, offsets)
    assert torch.allclose(control(0.3, X), 2 * X + offsets[1])
    with pytest.raises(sc.BadInput, match="grid times"):
        control(0.5, X)


def test_plain_functions_are_controls_and_others_are_refused():
    one = sc.TimeGrid.uniform(3)
    a, b = (sc.simulate(PROCESS, c, grid=one, n=20).terminal for c in (lambda s: A(s.t, s.x), A))
    assert torch.allclose(a, b, rtol=1e-12)
    with pytest.raises(sc.BadInput, match="control"):
        A + 3
    with pytest.raises(sc.BadInput, match="strength"):
        A * float("nan")
    with pytest.raises(sc.NotDefined, match="needs a step"):
        sc.StepControl(lambda s: s.x)(0.1, X)
