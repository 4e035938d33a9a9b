"""Reward against path KL: controls learned at several temperatures beside the exact front of their chain.

The front is the curve of (path KL, mean reward) of the chain's best mean shift as the temperature runs; no control of
the same chain lies above it. Both are exact moments of affine chains. Learned controls are points with standard errors.

    python -m experiments.pareto_front
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.record import record

NAME = "pareto_front"
GRID = sc.TimeGrid.uniform(50)
TEMPERATURES = (0.3, 1.0, 3.0)  # of the learned controls
FRONT = np.geomspace(0.1, 30.0, 41)
LOSSES = {
    "adjoint matching, sticking": (lambda: ft.AdjointMatching(sticking=True), 128, 40, 0.5),
    "log-variance": (lambda: ft.LogVariance(), 512, 40, 0.1),
}


def at_temperature(temperature: float) -> sc.Problem:
    easy = sc.problems.quadratic_ou("easy", dim=10)
    return sc.Problem(easy.process, easy.reward, temperature, easy.running_reward)


def exact_point(problem: sc.Problem, control: Any) -> tuple[float, float]:
    """(path KL, mean reward) of an affine control on the chain."""
    moments = sc.moments(problem.process, sc.EulerMaruyama(), GRID, control=control)
    seconds = [v + torch.outer(m, m) for m, v in zip(moments.means, moments.covariances)]
    reward = mean_of(problem.reward, moments.means[-1], seconds[-1])
    for k, dt in enumerate(GRID.resolve(problem.process).dt):
        reward += float(dt) * mean_of(problem.running_reward, moments.means[k], seconds[k])
    return moments.kl, reward


def mean_of(quadratic: Any, mean: Tensor, second: Tensor) -> float:
    """E of a quadratic from the first two moments."""
    return float(quadratic.constant + quadratic.linear @ mean - (quadratic.curvature * second).sum() / 2)


def learned(problem: sc.Problem, name: str) -> dict[str, Any]:
    make, n, steps, rate = LOSSES[name]
    family = ft.AffineFamily(problem.process.dim, ft.Polynomials(4)).orthonormalise(problem, grid=GRID)
    optimiser = torch.optim.SGD(family.parameters(), lr=rate)
    sc.fit(problem, family, make(), optimiser=optimiser, steps=steps, n=n, grid=GRID, progress=False)
    found = sc.evaluate(problem, family, grid=GRID, n=20_000)
    return {"loss": name, "temperature": problem.temperature, "kl": found.kl.to_dict(),
            "reward": found.reward.to_dict()}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    front = []
    for temperature in FRONT:
        problem = at_temperature(float(temperature))
        front.append(exact_point(problem, problem.discretise(grid=GRID).exact.control))
    points = [learned(at_temperature(t), name) for name in LOSSES for t in TEMPERATURES]
    record(NAME, {"temperatures": FRONT.tolist(), "kl": [a for a, _ in front], "reward": [b for _, b in front],
                  "learned": points})  # fmt: skip


if __name__ == "__main__":
    main()
