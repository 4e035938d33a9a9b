"""Losses: their gradients against finite differences, against each other and against the chain's closed optimum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft
from sdecontrol.finetune.matching import Matching, running_slope, slope, step_pullback
from sdecontrol.noise import Block

EYE = torch.eye(2, dtype=torch.float64)
COUPLED = torch.tensor([[0.3, 0.8], [-0.5, -0.2]], dtype=torch.float64)


def quadratic(horizon: float = 1.0) -> sc.Problem:
    """A coupled two-dimensional chain with running and terminal quadratics and a Gaussian start."""
    process = sc.DiffusionProcess(
        sc.Affine(COUPLED, [0.3, -0.1]), lambda t: 0.7 + 0.4 * t, sc.Gaussian([0.2, -0.4], 0.3), horizon
    )
    reward = sc.Quadratic([0.5, -0.3], [[1.1, 0.3], [0.3, 0.7]])
    return sc.Problem(process, reward, 0.8, sc.Quadratic([0.2, 0.1], 0.6 * EYE))


def reverse() -> sc.Problem:
    """A reverse diffusion of Gaussian data with a quadratic reward; its ancestral chain ends without noise."""
    law = sc.Gaussian([0.5, -0.5], [[1.0, 0.3], [0.3, 0.6]])
    return sc.Problem(
        sc.ReverseProcess(sc.VP(0.1, 6.0), law, "marginal"), sc.Quadratic([1.0, 0.4], [[0.8, 0.2], [0.2, 0.5]]), 0.7
    )


def linear() -> sc.Problem:
    """A linear reward from a fixed start: the best mean shift is the exact tilt of the chain."""
    process = sc.DiffusionProcess(sc.Affine(COUPLED), 0.9, sc.Dirac(torch.tensor([0.3, -0.2], dtype=torch.float64)))
    return sc.Problem(process, sc.Linear([0.9, -0.6]), 0.9)


# ------------------------------------------------------- cubature: exact expectations of quadratics of the noise


@dataclass(frozen=True)
class Cubature(sc.Noise):
    """Two points +-sqrt(N) e_i for each of the N normals of a path: means and covariances of all normals are exact."""

    normals: Tensor = field(default_factory=lambda: torch.zeros(0))  # (K, n, d)

    def block_size(self, event_shape: Any) -> int:  # type: ignore[override]
        return self.normals.shape[1]

    def steps(self, index: int, event_shape: Any, times: np.ndarray, start: int = 0) -> Iterator[Tensor]:
        return iter(self.normals)

    def block(self, stream: str, index: int, n: int, event_shape: Any) -> Block:
        raise AssertionError("the starts are given")


def cubature(problem: sc.Problem, kernel: sc.kernels.Kernel, grid: sc.TimeGrid) -> ft.Batch:
    """A batch whose averages of products of affine functions of the start and the noises are exact."""
    d, steps = problem.process.dim, grid.steps
    start = problem.process.initial_law(0.0)
    root = torch.linalg.cholesky(start.covariance)
    size = d * (steps + 1)
    points = torch.cat([torch.eye(size, dtype=torch.float64), -torch.eye(size, dtype=torch.float64)]) * size**0.5
    per_step = points.view(2 * size, steps + 1, d)
    initial = start.mean + per_step[:, 0] @ root.mT
    noise = Cubature(normals=per_step[:, 1:].transpose(0, 1).contiguous())
    return ft.Batch(2 * size, noise, grid, kernel, initial, torch.float64)


def gradient(loss: ft.Loss, problem: sc.Problem, control: Any, batch: ft.Batch) -> Tensor:
    """d loss / d theta, flattened."""
    parameters = list(control.parameters())
    found = torch.autograd.grad(loss(problem, control, batch), parameters)
    return torch.cat([g.flatten() for g in found])


def value(loss: ft.Loss, problem: sc.Problem, control: Any, batch: ft.Batch) -> float:
    """The loss as a number."""
    return loss(problem, control, batch).item()


def on_grid(problem: sc.Problem, grid: sc.TimeGrid, control: Any = None) -> ft.AffineFamily:
    """One gain and offset a step, set to those of `control`."""
    times = grid.resolve(problem.process).times[:-1]
    family = ft.AffineFamily(problem.process.dim, ft.GridTimes(times))
    if control is not None:
        with torch.no_grad():
            for k, t in enumerate(times):
                set_affine(family, k, *control.affine_at(float(t)))
    return family


def set_affine(family: ft.AffineFamily, k: int, gain: Tensor, offset: Tensor) -> None:
    """The coefficients of feature k of time."""
    d = len(offset)
    family.theta.data.view(d, -1, d + 1)[:, k] = torch.cat([gain, offset[:, None]], 1)


def silenced(problem: sc.Problem, kernel: Any, grid: sc.TimeGrid, family: ft.AffineFamily) -> list[int]:
    """Steps that a control acts on."""
    times = grid.resolve(problem.process).times
    pairs = zip(times[:-1], times[1:])
    return [k for k, (a, b) in enumerate(pairs) if not kernel.transition(problem.process, a, b).noiseless]


SETTINGS = [
    pytest.param(quadratic, sc.EulerMaruyama(), id="euler"),
    pytest.param(quadratic, sc.ExactTransition(), id="exact transition, matrix noise"),
    pytest.param(quadratic, sc.SecondOrder(), id="heun"),
    pytest.param(reverse, sc.Ancestral(), id="ancestral, noiseless last step"),
    pytest.param(reverse, sc.DDIM(1.0), id="ddim"),
]


def policy_iteration(
    loss: Matching, problem: sc.Problem, kernel: Any, grid: sc.TimeGrid, sweeps: int
) -> tuple[ft.AffineFamily, list[int]]:
    """Solve the regression of every step by least squares, then simulate again with what was found."""
    batch = cubature(problem, kernel, grid)
    family = on_grid(problem, grid)
    steps = silenced(problem, kernel, grid, family)
    dt = grid.resolve(problem.process).dt
    for _ in range(sweeps):
        with torch.no_grad():
            path = batch.paths(problem, family)
            targets = loss.targets(problem, path, family)
            for k in steps:
                design = torch.cat([path.states[k], torch.ones(path.n, 1, dtype=torch.float64)], 1)
                solution = torch.linalg.lstsq(design, targets[k] / dt[k] ** 0.5).solution
                set_affine(family, k, solution[:-1].mT, solution[-1])
    return family, steps


def furthest(family: ft.AffineFamily, best: Any, problem: sc.Problem, grid: sc.TimeGrid, steps: list[int]) -> float:
    """Largest entry of the difference of gains and offsets, over all steps."""
    times = grid.resolve(problem.process).times
    gaps = [
        max(float((a - b).abs().max()) for a, b in zip(family.affine_at(float(times[k])), best.affine_at(times[k])))
        for k in steps
    ]
    return max(gaps)


class IndexK(Matching):
    """The planted bug: the regression on the adjoint before the step instead of after it."""

    def targets(self, problem: sc.Problem, path: Any, control: Any) -> dict[int, Tensor]:
        targets, p = {}, slope(problem.reward, path.terminal) / problem.temperature
        for k in reversed(range(len(path.transitions))):
            p = step_pullback(path, k, p)[0] + running_slope(problem, path, k)
            targets[k] = path.transitions[k].spread_transposed(p)
        return targets


@pytest.mark.parametrize(("make", "kernel"), SETTINGS)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_adjoint_matching_stands_still_at_the_best_mean_shift(
    make: Callable[[], sc.Problem], kernel: Any, steps: int
) -> None:
    """Exact population gradient by cubature: zero to rounding there, and only for the adjoint after the step.

    The control variate has mean zero under the cubature too, so it moves nothing.
    """
    problem, grid = make(), sc.TimeGrid.uniform(steps)
    best = problem.discretise(kernel, grid).exact.control
    family, batch = on_grid(problem, grid, best), cubature(problem, kernel, grid)
    size = gradient(ft.AdjointMatching(), problem, on_grid(problem, grid), batch).abs().max()
    for loss in (ft.AdjointMatching(), ft.AdjointMatching(sticking=True)):
        assert gradient(loss, problem, family, batch).abs().max() < 1e-11 * size
    assert gradient(IndexK(), problem, family, batch).abs().max() > 1e-3 * size


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_adjoint_matching_converges_to_the_best_mean_shift(steps: int) -> None:
    """Policy iteration by exact regressions ends at the chain's own optimum; from index k it ends O(dt) beside."""
    problem, grid, kernel = quadratic(), sc.TimeGrid.uniform(steps), sc.EulerMaruyama()
    best = problem.discretise(kernel, grid).exact.control
    for loss in (ft.AdjointMatching(), ft.AdjointMatching(sticking=True)):
        found, acted = policy_iteration(loss, problem, kernel, grid, sweeps=20)
        assert furthest(found, best, problem, grid, acted) < 1e-6
    wrong, _ = policy_iteration(IndexK(), problem, kernel, grid, sweeps=20)
    assert furthest(wrong, best, problem, grid, acted) > 0.5 / steps


# ----------------------------------------------------------------------------- gradients of the simulation itself


@pytest.mark.parametrize("family", ["affine", "mlp", "denoiser", "guidance"])
@pytest.mark.parametrize("make", [quadratic, reverse])
def test_pathwise_gradient_is_the_derivative_of_the_objective(make: Callable[[], sc.Problem], family: str) -> None:
    """Central differences with the same noise; error h^2 and rounding 1e-16 / h, both below 1e-7 of the slope."""
    problem, grid = make(), sc.TimeGrid.uniform(8)
    if family in ("denoiser", "guidance") and make is quadratic:
        pytest.skip("a general diffusion has no x0_hat")
    made: dict[str, Callable[[], ft.Family]] = {
        "affine": lambda: ft.AffineFamily(2, ft.Polynomials(3)),
        "mlp": lambda: ft.MLPFamily(2, 8, 1, dtype=torch.float64),
        "denoiser": lambda: ft.DenoiserFamily(2, 8, 1, dtype=torch.float64),
        "guidance": lambda: ft.LearnedGuidance(black_box, 3),
    }
    black_box = sc.Problem(problem.process, lambda x: problem.reward(x), problem.temperature)  # no gradient of its own
    control = made[family]()
    perturb(control, 0.2)
    batch = ft.Batch(16, sc.Noise(3, torch.float64), grid, None, None, torch.float64)
    direction = [torch.cos(torch.arange(p.numel(), dtype=torch.float64)).view_as(p) for p in control.parameters()]
    loss = ft.RelativeEntropy(sticking=False)
    slopes = torch.autograd.grad(loss(problem, control, batch), list(control.parameters()))
    predicted = sum(float((g * v).sum()) for g, v in zip(slopes, direction))
    h = 1e-5

    def objective(step: float) -> float:
        with torch.no_grad():
            for p, v in zip(control.parameters(), direction):
                p.add_(v, alpha=step)
            path = batch.paths(problem, control)
            value = float((path.log_ratio() - rewards(problem, path)).mean())
            for p, v in zip(control.parameters(), direction):
                p.add_(v, alpha=-step)
        return value

    assert predicted == pytest.approx((objective(h) - objective(-h)) / (2 * h), rel=1e-6)


def rewards(problem: sc.Problem, path: Any) -> Tensor:
    """Total reward over temperature, written out."""
    total = problem.reward(path.terminal)
    if problem.running_reward is not None:
        for k, dt in enumerate(path.grid.dt):
            total = total + dt * problem.running_reward(path.states[k])
    return total / problem.temperature


def perturb(control: torch.nn.Module, size: float) -> None:
    """Fixed parameters that are not zero."""
    linear = isinstance(control, ft.LinearFamily)  # whose rows hold the coefficients of all features
    with torch.no_grad():
        for i, p in enumerate(control.parameters()):
            width = len(p) if linear else p.shape[-1]
            p.add_(torch.sin(1.0 + i + torch.arange(p.numel(), dtype=p.dtype)).view_as(p), alpha=size / width**0.5)


# ------------------------------------------------------------------------ one mean gradient, several estimators

BATCHES, PATHS = 24, 2048
SAME = {
    "sticking": lambda: ft.RelativeEntropy(),
    "log-variance": lambda: ft.LogVariance(),
    "trajectory balance": lambda: ft.TrajectoryBalance(),
}


def gradients(loss: ft.Loss, problem: sc.Problem, control: Any, grid: sc.TimeGrid, seed: int) -> Tensor:
    """One gradient a batch, (BATCHES, parameters)."""
    batch = ft.Batch(PATHS, sc.Noise(0), grid, None, None, torch.float64)
    return torch.stack([
        gradient(loss, problem, control, replace(batch, noise=sc.Noise(seed + i))) for i in range(BATCHES)
    ])  # fmt: skip


def largest_z(a: Tensor, b: Tensor) -> float:
    """Largest |z| of the difference of two means of independent rows."""
    error = (a.var(0) + b.var(0)) / len(a)
    return float(((a.mean(0) - b.mean(0)) / error.sqrt()).abs().max())


# 18 parameters, t statistics with about 40 degrees of freedom: |t| > 4.8 in one of them by chance once in 2000 runs.
Z_LIMIT = 4.8


@pytest.fixture(scope="module")
def off_the_optimum() -> tuple[sc.Problem, ft.AffineFamily, sc.TimeGrid]:
    control = ft.AffineFamily(2, ft.Polynomials(3))
    perturb(control, 0.3)
    return quadratic(), control, sc.TimeGrid.uniform(6)


@pytest.fixture(scope="module")
def entropy_gradients(off_the_optimum: Any) -> Tensor:
    problem, control, grid = off_the_optimum
    return gradients(ft.RelativeEntropy(sticking=False), problem, control, grid, seed=1000)


@pytest.mark.parametrize("name", SAME)
def test_on_policy_losses_share_their_mean_gradient(name: str, off_the_optimum: Any, entropy_gradients: Tensor) -> None:
    problem, control, grid = off_the_optimum
    found = gradients(SAME[name](), problem, control, grid, seed=2000)
    assert largest_z(found, entropy_gradients) < Z_LIMIT
    assert largest_z(found * 1.4, entropy_gradients) > 2 * Z_LIMIT  # a factor 1.4 would be seen


def test_the_stochastic_adjoint_of_torchsde_agrees_up_to_its_step() -> None:
    """Another engine, its own noise: the mean gradients differ by noise and by O(dt), which twice the steps halve."""
    problem = linear()
    control = ft.AffineFamily(2, ft.Polynomials(2))
    perturb(control, 0.3)
    differences, errors = [], []
    for steps in (16, 32):
        batch = ft.Batch(512, sc.Noise(0), sc.TimeGrid.uniform(steps), None, None, torch.float64)
        rows = [
            torch.stack([gradient(loss, problem, control, replace(batch, noise=sc.Noise(7000 + i))) for i in range(6)])
            for loss in (ft.TorchsdeAdjoint(), ft.RelativeEntropy(sticking=False))
        ]
        differences.append(rows[0].mean(0) - rows[1].mean(0))
        errors.append(((rows[0].var(0) + rows[1].var(0)) / 6).sqrt())
        size = float(rows[1].mean(0).abs().max())
    discretisation = 2 * (differences[0] - differences[1]).abs()
    assert bool((differences[1].abs() < 5 * errors[1] + discretisation).all())
    assert float((5 * errors[1] + discretisation).max()) < 0.3 * size  # what a wrong sign or factor 2 would exceed


class MissingHalf(ft.LogVariance):
    """The planted bug: Var(R) without its half."""

    def forward(self, problem: sc.Problem, control: Any, batch: ft.Batch) -> Tensor:
        return 2 * super().forward(problem, control, batch)


class NotDetached(ft.LogVariance):
    """The planted bug: the paths move with the parameters too."""

    def _paths(self, problem: sc.Problem, control: Any, batch: ft.Batch) -> Any:
        return batch.paths(problem, control, grad=True)


class HalfEnergy(ft.RelativeEntropy):
    """The planted bug: the energy without its half."""

    def forward(self, problem: sc.Problem, control: Any, batch: ft.Batch) -> Tensor:
        return super().forward(problem, control, batch) + batch.paths(problem, control, grad=True).weights.energy.mean()


@pytest.mark.parametrize("bug", [MissingHalf, NotDetached, HalfEnergy])
def test_planted_bugs_are_seen(bug: type[ft.Loss], off_the_optimum: Any, entropy_gradients: Tensor) -> None:
    problem, control, grid = off_the_optimum
    assert largest_z(gradients(bug(), problem, control, grid, seed=3000), entropy_gradients) > 2 * Z_LIMIT


# --------------------------------------------------------------------------------- forward KL: weighted regressions


def test_weighted_losses_share_their_mean_gradient_whatever_the_matrices() -> None:
    """Cross-entropy and SOC matching both regress on the optimal kernel's mean; near it their weights are even.

    Both weigh by a softmax over the batch: a common bias O(1/n), removed here by pairing (the same paths).
    """
    problem, grid = quadratic(), sc.TimeGrid.uniform(6)
    best = problem.discretise(grid=grid).exact.control
    control = on_grid(problem, grid, best)
    perturb(control, 0.25)
    matrices = ft.Reparametrisation(2, dtype=torch.float64)
    cross = gradients(ft.CrossEntropy(), problem, control, grid, seed=4000)
    for size in (0.0, 0.7):
        perturb(matrices.network[-1], size)
        matched = gradients(ft.SOCMatching(matrices), problem, control, grid, seed=4000)
        difference = matched - cross
        z = difference.mean(0) / (difference.var(0) / BATCHES).sqrt()
        assert float(z.abs().max()) < Z_LIMIT
        assert float((cross.mean(0) / (cross.var(0) / BATCHES).sqrt()).abs().max()) > 2 * Z_LIMIT


class IndexKSOC(ft.SOCMatching):
    """The planted bug: the target of the state before the step."""

    def _pieces(self, problem: sc.Problem, path: Any) -> tuple[Tensor, Tensor]:
        first, changes = super()._pieces(problem, path)
        return first.roll(1, 0), changes.roll(1, 0)


def test_soc_matching_of_the_wrong_index_is_seen() -> None:
    problem, grid = quadratic(), sc.TimeGrid.uniform(6)
    control = on_grid(problem, grid, problem.discretise(grid=grid).exact.control)
    matrices = ft.Reparametrisation(2, dtype=torch.float64)
    wrong = gradients(IndexKSOC(matrices), problem, control, grid, seed=5000)
    right = gradients(ft.SOCMatching(matrices), problem, control, grid, seed=5000)
    standard_error = lambda g: (g.var(0) / BATCHES).sqrt()  # noqa: E731
    assert float((right.mean(0) / standard_error(right)).abs().max()) < Z_LIMIT
    assert float((wrong.mean(0) / standard_error(wrong)).abs().max()) > 2 * Z_LIMIT


# ---------------------------------------------------------------------------------------- where the optimum is attained


def test_certificate_losses_vanish_where_the_optimum_is_attained() -> None:
    """Linear reward, fixed start: R is the constant log Z on every path, so values and gradients are rounding."""
    problem, grid = linear(), sc.TimeGrid.uniform(20)
    chain = problem.discretise(grid=grid).exact
    assert chain.loss == pytest.approx(0, abs=1e-12)
    control = on_grid(problem, grid, chain.control)
    batch = ft.Batch(256, sc.Noise(1), grid, None, None, torch.float64)
    balance = ft.TrajectoryBalance(behaviour=sc.AffineControl(0.4 * EYE))  # off policy as well
    with torch.no_grad():
        balance.log_z.fill_(chain.log_normalizer)
    for loss in (ft.LogVariance(), ft.LogVariance(behaviour=sc.AffineControl(-0.3 * EYE)), balance):
        assert value(loss, problem, control, batch) < 1e-24
        assert gradient(loss, problem, control, batch).abs().max() < 1e-12
    sticking = ft.RelativeEntropy()
    assert value(sticking, problem, control, batch) == pytest.approx(-chain.log_normalizer, abs=1e-12)
    assert gradient(sticking, problem, control, batch).abs().max() < 1e-12
    plain = gradient(ft.RelativeEntropy(sticking=False), problem, control, batch).abs().max()
    assert plain > 1e-2  # the same mean gradient, whose noise does not vanish
    perturb(control, 0.1)
    assert value(ft.LogVariance(), problem, control, batch) > 1e-4


def test_value_regression_is_still_at_the_chain_s_value() -> None:
    """Linear reward: V_k is linear, its look-ahead is the best shift, and the returns to go equal V_k exactly."""
    problem, grid = linear(), sc.TimeGrid.uniform(20)
    chain = problem.discretise(grid=grid).exact
    times = grid.resolve(problem.process).times
    family = ft.QuadraticValue(2, ft.GridTimes(times))
    with torch.no_grad():
        for k, t in enumerate(times):
            at = chain.value(float(t), torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) / problem.temperature
            family.constants[k], family.linear[k] = at[0], at[1:] - at[0]
    batch = ft.Batch(128, sc.Noise(2), grid, None, None, torch.float64)
    assert value(ft.ValueRegression(), problem, family, batch) < 1e-24
    error = ft.control_error(problem, family, chain.control, grid=grid, n=64)
    assert error.value < 1e-24
    with torch.no_grad():
        family.linear.mul_(0.9)
    assert value(ft.ValueRegression(), problem, family, batch) > 1e-3


def test_value_regression_learns_from_a_black_box() -> None:
    """Values of the reward alone bring the control, at error 1 before, within one per cent of the best mean shift."""
    problem, grid = linear(), sc.TimeGrid.uniform(10)
    closed = problem.reward
    black_box = sc.Problem(problem.process, lambda x: closed(x.detach()).detach(), problem.temperature)
    family = ft.QuadraticValue(2, ft.Polynomials(4))
    ft.fit(black_box, family, ft.ValueRegression(), steps=150, n=128, rate=0.1, grid=grid, progress=False)
    best = problem.discretise(grid=grid).exact.control
    assert ft.control_error(problem, family, best, grid=grid, n=512).value < 1e-2
    with pytest.raises(sc.NotDefined, match="no gradient"):
        ft.fit(black_box, ft.AffineFamily(2), ft.AdjointMatching(), steps=1, grid=grid, progress=False)


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("loss", [ft.RelativeEntropy(), ft.AdjointMatching(), ft.SOCMatching(ft.Reparametrisation(1))])
def test_rewards_without_gradient_are_refused_before_work(loss: ft.Loss) -> None:
    process = sc.DiffusionProcess(sc.Affine([[0.0]]), 1.0, sc.Dirac(torch.zeros(1, dtype=torch.float64)))
    calls = []

    def spy(t: float, x: Tensor) -> Tensor:
        calls.append(t)
        return 0 * x

    process.drift = spy
    with pytest.raises(sc.NotDefined, match="no gradient"):
        ft.fit(sc.Problem(process, sc.Step([1.0], 0.3, 1.5)), ft.AffineFamily(1), loss, progress=False)
    assert not calls


def test_soc_matching_refuses_kernels_whose_noise_is_not_added() -> None:
    batch = ft.Batch(8, sc.Noise(0), sc.TimeGrid.uniform(4), sc.SecondOrder(), None, torch.float64)
    with pytest.raises(sc.NotDefined, match="mean \\+ std z"):
        ft.SOCMatching(ft.Reparametrisation(2, dtype=torch.float64))(quadratic(), ft.AffineFamily(2), batch)
