"""Families linear in their parameters, and adjoint matching whose noise vanishes at the optimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_losses import on_grid, quadratic, reverse
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.chain_optimum import GridControl, best_mean_shift
from sdecontrol.finetune.matching import noise_feedback, step_pullback
from sdecontrol.laws import Law

FAMILIES = {
    "affine": (quadratic, lambda: ft.AffineFamily(2, ft.Polynomials(3))),
    "coordinate": (quadratic, lambda: ft.CoordinateFamily(2, ft.Polynomials(2), degree=4)),
    "guidance": (reverse, lambda: ft.LearnedGuidance(reverse(), count=3)),
    "ridges": (reverse, lambda: ft.RidgeValue(2, count=5)),
}


def sample(problem: sc.Problem, steps: int = 6, n: int = 400) -> Any:
    return sc.simulate(problem.process, None, grid=sc.TimeGrid.uniform(steps), n=n, noise=sc.Noise(2))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_linear_family_is_linear_in_its_features_and_they_are_orthonormal(name: str) -> None:
    """u = psi B theta entry by entry; along the paths that B was made of the Gram matrix is the identity."""
    make_problem, make = FAMILIES[name]
    problem, grid = make_problem(), sc.TimeGrid.uniform(6)
    family = make().orthonormalise(problem, grid=grid, n=400, ridge=0.0)
    with torch.no_grad():
        family.theta.copy_(torch.sin(torch.arange(family.theta.numel()).double()).view_as(family.theta))
    path, gram = sample(problem), torch.zeros_like(family.basis)
    for _, step in path.views(family.requires_jacobian):
        features = family.psi(step) @ family.basis.mT  # (sets, rows, size)
        gram += features.mT @ features * (step.dt / path.n)
        u = features @ family.theta[..., None] if len(features) == len(family.theta) else features @ family.theta.mT
        expected = u[..., 0].mT if len(u) > 1 else u[0]
        assert torch.allclose(family(step), expected.reshape(family(step).shape), atol=1e-9)
    identity = torch.eye(gram.shape[-1], dtype=torch.float64)
    assert torch.allclose(gram, identity.expand_as(gram), atol=1e-6)
    with pytest.raises(sc.BadInput, match="learned already"):
        family.orthonormalise(problem, grid=grid)


@pytest.mark.parametrize("name", ["relative entropy", "adjoint matching"])
def test_sgd_on_orthonormal_features_takes_newton_s_steps(name: str) -> None:
    """Forty steps of plain SGD with rate 1/2 bring the error from 1 to 1e-4, by two losses that share no gradient."""
    problem, grid = quadratic(), sc.TimeGrid.uniform(20)
    loss = {"relative entropy": ft.RelativeEntropy(), "adjoint matching": ft.AdjointMatching(sticking=True)}[name]
    family = ft.AffineFamily(2, ft.Polynomials(5)).orthonormalise(problem, grid=grid)
    optimiser = torch.optim.SGD(family.parameters(), lr=0.5)
    ft.fit(problem, family, loss, optimiser=optimiser, steps=40, n=256, grid=grid, progress=False)
    best = problem.discretise(grid=grid).exact.control
    assert ft.control_error(problem, family, best, grid=grid, n=1000).value < 1e-4


# ------------------------------------------------------------------------------------------------ noise of the targets


class WrongSign(ft.AdjointMatching):
    """The planted bug: the feedback of the noise added, not subtracted. Its mean is the same, its noise is not."""

    def targets(self, problem: sc.Problem, path: Any, control: Any) -> dict[int, Tensor]:
        targets: dict[int, Tensor] = {}
        p = torch.func.grad(lambda x: problem.reward(x).sum())(path.terminal) / problem.temperature
        for k in reversed(range(len(path.transitions))):
            in_x, targets[k] = step_pullback(path, k, p)
            slope = torch.func.grad(lambda x: problem.running_reward(x).sum())(path.states[k])
            p = in_x + slope * float(path.grid.dt[k]) / problem.temperature + noise_feedback(path, k, control)
        return targets


def residual(loss: Any, steps: int) -> float:
    """E sum_k |w_k - target_k|^2 at the best mean shift: the noise of the targets."""
    problem, grid = quadratic(), sc.TimeGrid.uniform(steps)
    control = on_grid(problem, grid, problem.discretise(grid=grid).exact.control)
    batch = ft.Batch(2000, sc.Noise(4), grid, None, None, torch.float64)
    return 2 * loss(problem, control, batch).item()


def test_the_noise_of_sticking_targets_is_of_the_order_of_the_step() -> None:
    """Per unit of time the published targets keep their noise as the steps halve; with feedback it halves as well."""
    plain = [residual(ft.AdjointMatching(), steps) for steps in (20, 40)]
    quiet = [residual(ft.AdjointMatching(sticking=True), steps) for steps in (20, 40)]
    assert plain[1] == pytest.approx(plain[0], rel=0.1)
    assert 1.7 < quiet[0] / quiet[1] < 2.4
    assert quiet[1] < 0.1 * plain[1]
    assert residual(WrongSign(), 40) > 2 * plain[1]


def test_trajectory_balance_starts_at_the_mean_certificate() -> None:
    problem, loss = quadratic(), ft.TrajectoryBalance()
    batch = ft.Batch(64, sc.Noise(1), sc.TimeGrid.uniform(6), None, None, torch.float64)
    control = ft.AffineFamily(2)
    first = loss(problem, control, batch).item()
    assert first == pytest.approx(ft.LogVariance()(problem, control, batch).item() * 63 / 64)
    held = loss.log_z.item()
    loss(problem, control, ft.Batch(64, sc.Noise(2), batch.grid, None, None, torch.float64))
    assert loss.log_z.item() == held  # later batches move it by the optimiser alone


# -------------------------------------------------------------------------------- best mean shifts without closed form


def gaussian(law: Law) -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(0.1, 8.0), law, "marginal")
    return sc.Problem(process, sc.Quadratic([1.0, 0.4], [[0.8, 0.2], [0.2, 0.5]]), 0.7)


def test_dynamic_programming_finds_the_closed_best_mean_shift() -> None:
    """One Gaussian: at 8 steps the continuous optimum is several per cent away, and the grid's answer is not."""
    problem, grid = gaussian(sc.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.6]])), sc.TimeGrid.log_snr(8, s_min=0.03)
    chain = problem.discretise(grid=grid).exact.control
    found = GridControl(problem, best_mean_shift(problem, grid, half_width=5.0, points=21, order=3))
    start = problem.exact.initial
    assert ft.control_error(problem, found, chain, start, grid=grid, n=500).value < 1e-8
    assert ft.control_error(problem, problem.exact.control, chain, start, grid=grid, n=500).value > 1e-2
