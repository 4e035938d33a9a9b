"""Natural gradients: their metric is the Fisher information of the path law, their steps are Newton's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_losses import linear, quadratic
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft

GRID = sc.TimeGrid.uniform(20)


class Recorded(ft.NaturalGradient):
    """Keeps the metric of the last step."""

    def _metric(self, theta: Tensor) -> Tensor:
        self.last = super()._metric(theta)
        return self.last


class WithoutSteps(Recorded):
    """The planted bug: psi psi' of a step without its dt."""

    def see(self, step: Any) -> None:
        new = step.k not in self.seen
        super().see(step)
        if new:
            self.seen[step.k] = self.seen[step.k] / step.dt


def relative_distance(kind: type[Recorded]) -> float:
    """From the optimiser's metric to E S S', S the derivative of log dQ^u/dQ of a path, by automatic differentiation.

    The same 3 000 paths in both; only the second has the noise of S S', about sqrt(size / n) relative.
    """
    problem, grid, n = quadratic(), sc.TimeGrid.uniform(6), 3000
    family = ft.CoordinateFamily(2, ft.Polynomials(2), degree=2)
    with torch.no_grad():
        family.theta.copy_(0.2 * torch.sin(torch.arange(family.theta.numel()).double()).view_as(family.theta))
    batch = ft.Batch(n, sc.Noise(3), grid, None, None, torch.float64)
    with torch.no_grad():
        path = batch.paths(problem, family)
    weights = torch.ones(n, dtype=torch.float64, requires_grad=True)
    total = torch.autograd.grad((weights * path.replay(family)).sum(), family.theta, create_graph=True)[0]
    scores = torch.stack([torch.autograd.grad(total[0, j], weights, retain_graph=True)[0] for j in range(6)])
    fisher = scores @ scores.mT / n
    optimiser = kind(family, paths=n)
    ft.LogVariance()(problem, family, batch).backward()
    optimiser.step()
    return float((optimiser.last[0] - fisher).norm() / fisher.norm())


def test_the_metric_is_the_fisher_information_of_the_path_law() -> None:
    assert relative_distance(Recorded) < 0.15  # 3 (6/3000)^(1/2)
    assert relative_distance(WithoutSteps) > 1


@pytest.mark.parametrize("name", ["relative entropy", "adjoint matching", "log-variance"])
def test_twenty_steps_find_a_control_that_moves_the_paths_far(name: str) -> None:
    """A linear reward six times as strong: plain steps at the same rate leave the problem, natural ones solve it.

    R is constant on paths at the optimum, so what is left is the family's own error, a cubic polynomial for e^{At}.
    """
    mild = linear()
    reward = sc.Linear(6 * mild.reward.linear)
    problem = sc.Problem(mild.process, reward, mild.temperature)
    best = problem.discretise(grid=GRID).exact.control
    loss = {"relative entropy": ft.RelativeEntropy(), "adjoint matching": ft.AdjointMatching(sticking=True),
            "log-variance": ft.LogVariance()}[name]  # fmt: skip
    errors = []
    for natural in (True, False):
        family = ft.AffineFamily(2, ft.Polynomials(4)).orthonormalise(problem, grid=GRID)
        optimiser = ft.NaturalGradient(family, trust=20.0) if natural else torch.optim.SGD([family.theta], 0.5)
        try:
            ft.fit(problem, family, loss, optimiser=optimiser, steps=20, n=256, grid=GRID, progress=False)
            errors.append(ft.control_error(problem, family, best, grid=GRID, n=400).value)
        except sc.NotFinite:
            errors.append(float("inf"))
    assert errors[0] < 1e-3
    assert errors[1] > 100 * errors[0]


def test_a_step_moves_the_path_law_by_the_trust_at_most() -> None:
    """KL from the pretrained chain after one step, by exact moments, not by the metric."""
    problem, trust = quadratic(), 0.05
    family = ft.AffineFamily(2, ft.Polynomials(3))
    optimiser = ft.NaturalGradient(family, rate=1.0, trust=trust, paths=4000)
    ft.fit(problem, family, ft.RelativeEntropy(), optimiser=optimiser, steps=1, n=4000, grid=GRID, progress=False)
    kl = sc.moments(problem.process, sc.EulerMaruyama(), GRID, control=family).kl
    assert kl == pytest.approx(trust, rel=0.25)  # the metric is that of the paths before the step


def test_it_resumes_with_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path | None, stop: int | None = None) -> Tensor:
        family, loss = ft.AffineFamily(2, ft.Polynomials(3)), ft.TrajectoryBalance()
        optimiser = ft.NaturalGradient(family, loss)
        if stop is not None:
            optimiser.register_step_post_hook(power_cut_after(stop))
        ft.fit(quadratic(), family, loss, optimiser=optimiser, steps=12, n=64, grid=GRID, checkpoint=folder,
               save_every=0.0, progress=False)  # fmt: skip
        return torch.cat([family.theta.detach().flatten(), loss.log_z.detach()[None]])

    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, stop=7)
    assert torch.equal(run(tmp_path), run(None))


def power_cut_after(steps: int) -> Any:
    left = [steps]

    def hook(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("power cut")

    return hook


def test_learned_guidance_learns_how_far_to_trust_the_guess() -> None:
    """Gaussian data, linear reward: u* is guidance by r(x0_hat) with a scale of the chain that only time decides."""
    law = sc.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.6]])
    problem = sc.Problem(sc.ReverseProcess(sc.VP(0.1, 6.0), law, "marginal"), sc.Linear([1.0, 0.4]), 0.5)
    grid = sc.TimeGrid.log_snr(20, s_min=0.02)
    chain = problem.discretise(grid=grid).exact
    family = ft.LearnedGuidance(problem, 20)
    with torch.no_grad():
        family.theta[0, 0] = 1.0
    plain = ft.control_error(problem, family, chain.control, chain.initial, grid=grid, n=500).value
    with torch.no_grad():
        family.theta.zero_()
    ft.fit(problem, family, ft.LogVariance(), optimiser=ft.NaturalGradient(family), steps=25, n=256, grid=grid,
           initial=chain.initial, progress=False)  # fmt: skip
    learned = ft.control_error(problem, family, chain.control, chain.initial, grid=grid, n=500).value
    assert plain < 0.05  # the continuous optimum, off by the steps of the chain
    assert learned < 0.05 * plain


def test_it_says_what_it_cannot_do() -> None:
    with pytest.raises(sc.BadInput, match="linear in its parameters"):
        ft.NaturalGradient(ft.MLPFamily(2, 8, 1))  # type: ignore[arg-type]
    with pytest.raises(sc.BadInput, match="ridge = 0"):
        ft.NaturalGradient(ft.AffineFamily(2), ridge=0.0)
