"""Mean and noise of every loss's gradient at the optimum of quadratic OU hard, before any tuning.

The family is affine with features orthonormal along the optimal paths: a parameter's square is control energy and
every loss has a Hessian near the identity. At the projection of the chain's best mean shift the mean gradient should
be zero up to the projection's own error and, for weights normalised over a batch, O(1/n). With noise v = n tr Cov(g),
N paths in all leave a relative error of v / (N E int |u*|^2), which gives the paths that 2e-5 takes at best.

    python -m experiments.gradient_noise
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.record import record
from sdecontrol.finetune.fit import batch_of

NAME = "gradient_noise"
GRID, DIM, TARGET = sc.TimeGrid.uniform(50), 20, 2e-5
BATCHES, PATHS = 24, 256
LOSSES: dict[str, Callable[[], ft.Loss]] = {
    "relative-entropy, sticking": lambda: ft.RelativeEntropy(),
    "relative-entropy": lambda: ft.RelativeEntropy(sticking=False),
    "adjoint-matching, sticking": lambda: ft.AdjointMatching(sticking=True),
    "adjoint-matching": lambda: ft.AdjointMatching(),
    "soc-matching, M = I": lambda: ft.SOCMatching(ft.Reparametrisation(DIM, dtype=torch.float64)),
    "log-variance": lambda: ft.LogVariance(),
    "cross-entropy": lambda: ft.CrossEntropy(),
}


def projected(problem: sc.Problem, best: Any) -> tuple[ft.AffineFamily, float]:
    """The affine family at its least squares fit of the best control, and E int |u*|^2."""
    paths: dict[str, Any] = {"grid": GRID, "n": 2048, "noise": sc.Noise(2)}  # the same twice: least squares
    family = ft.AffineFamily(DIM, ft.Polynomials(5)).orthonormalise(problem, best, ridge=1e-9, **paths)
    path = sc.simulate(problem.process, best, **paths)
    theta, energy = torch.zeros_like(family.theta), 0.0
    with torch.no_grad():
        for _, step in path.views():
            u = best(step)
            theta += u.mT @ (family.psi(step)[0] @ family.basis[0].mT) * (step.dt / path.n)
            energy += float(u.square().sum()) * step.dt / path.n
        family.theta.copy_(theta)
    return family, energy


def gradients(problem: sc.Problem, family: ft.AffineFamily, loss: ft.Loss) -> Tensor:
    """One gradient a batch: (BATCHES, parameters)."""
    batch = ft.Batch(PATHS, sc.Noise(5), GRID, None, None, torch.float64)
    rows = [torch.autograd.grad(loss(problem, family, batch_of(batch, i)), [family.theta])[0] for i in range(BATCHES)]
    return torch.stack(rows).flatten(1)


def main() -> None:
    torch.set_num_threads(1)
    problem = sc.problems.quadratic_ou("hard", DIM)
    family, energy = projected(problem, problem.discretise(grid=GRID).exact.control)
    table = {}
    for name, make in LOSSES.items():
        g = gradients(problem, family, make())
        variance = g.var(0).sum()
        mean = g.mean(0).square().sum() - variance / BATCHES  # unbiased for |E g|^2
        spread = 2 * (g.var(0).square().sum() / BATCHES**2) ** 0.5
        noise = PATHS * float(variance)
        table[name] = {"mean_squared_over_energy": float(mean) / energy, "stderr": float(spread) / energy,
                       "noise_over_energy": noise / energy, "paths_for_target": noise / energy / TARGET}  # fmt: skip
        print(name, table[name], flush=True)
    record(NAME, {"target": TARGET, "energy": energy, "batches": BATCHES, "paths": PATHS, "losses": table})


if __name__ == "__main__":
    main()
