"""Mean and noise of every loss's gradient at the optimum of three problems, before any tuning.

The families are linear with features orthonormal along the optimal paths: a parameter's square is control energy and
every loss has a Hessian near the identity. At the projection of the chain's best mean shift the mean gradient should
be zero up to the projection's own error and, for weights normalised over a batch, O(1/n). With noise v = n tr Cov(g),
N paths in all leave a relative error of v / (N E int |u*|^2), which gives the paths that the target takes at best.

    python -m experiments.gradient_noise        # goes on with the problem at which it was stopped
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.record import resumed
from experiments.soc_benchmark import SETTINGS, Setting
from sdecontrol.finetune.fit import batch_of

NAME = "gradient_noise"
BATCHES, PATHS = 24, 256
FAMILIES: dict[str, tuple[str, float]] = {  # the benchmark's family on each problem, and the ridge of its features
    "quadratic-ou-hard": ("affine", 1e-9),
    "mixture-2d": ("ridge-value", 1e-8),
    "mixture-16d": ("learned-guidance", 1e-8),
}
LOSSES: dict[str, Callable[[int], ft.Loss]] = {
    "relative-entropy, sticking": lambda d: ft.RelativeEntropy(),
    "relative-entropy": lambda d: ft.RelativeEntropy(sticking=False),
    "adjoint-matching, sticking": lambda d: ft.AdjointMatching(sticking=True),
    "adjoint-matching": lambda d: ft.AdjointMatching(),
    "soc-matching, M = I": lambda d: ft.SOCMatching(ft.Reparametrisation(d, dtype=torch.float64)),
    "log-variance": lambda d: ft.LogVariance(),
    "cross-entropy": lambda d: ft.CrossEntropy(),
}


def projected(setting: Setting, family: ft.LinearFamily, ridge: float) -> float:
    """Put the family at its least squares fit of the best control; E int |u*|^2 of that one."""
    paths: dict[str, Any] = {"grid": setting.grid, "n": 2048, "noise": sc.Noise(2)}  # the same twice: least squares
    family.orthonormalise(setting.problem, setting.reference, setting.initial, ridge=ridge, **paths)
    path = sc.simulate(setting.problem.process, setting.reference, setting.initial, **paths)
    theta, energy = torch.zeros_like(family.theta), 0.0
    with torch.no_grad():
        for _, step in path.views(family.requires_jacobian):
            features = family.psi(step)[0] @ family.basis[0].mT
            u = setting.reference(step).reshape(len(features), -1)  # by path, or by path and coordinate
            theta += u.mT @ features * (step.dt / path.n)
            energy += float(u.square().sum()) * step.dt / path.n
        family.theta.copy_(theta)
    return energy


def gradients(setting: Setting, family: ft.LinearFamily, loss: ft.Loss) -> Tensor:
    """One gradient a batch: (BATCHES, parameters)."""
    kernel = setting.problem.process.default_kernel
    batch = ft.Batch(PATHS, sc.Noise(5), setting.grid, kernel, setting.initial, torch.float64)
    rows = [
        torch.autograd.grad(loss(setting.problem, family, batch_of(batch, i)), [family.theta])[0]
        for i in range(BATCHES)
    ]
    return torch.stack(rows).flatten(1)


def measure(name: str) -> dict[str, Any]:
    """Mean and noise of each loss's gradient on one problem."""
    setting, (kind, ridge) = SETTINGS[name](), FAMILIES[name]
    entry = setting.entries[kind]
    family: Any = entry.make()
    energy, table = projected(setting, family, ridge), {}
    for loss, make in LOSSES.items():
        g = gradients(setting, family, make(setting.problem.process.dim))
        variance = g.var(0).sum()
        mean = g.mean(0).square().sum() - variance / BATCHES  # unbiased for |E g|^2
        spread = 2 * (g.var(0).square().sum() / BATCHES**2) ** 0.5
        noise = PATHS * float(variance)
        table[loss] = {"mean_squared_over_energy": float(mean) / energy, "stderr": float(spread) / energy,
                       "noise_over_energy": noise / energy,
                       "paths_for_target": noise / energy / entry.target}  # fmt: skip
        print(name, loss, table[loss], flush=True)
    return {"family": kind, "parameters": family.theta.numel(), "target": entry.target, "energy": energy,
            "batches": BATCHES, "paths": PATHS, "losses": table}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    resumed(NAME, {name: partial(measure, name) for name in FAMILIES})


if __name__ == "__main__":
    main()
