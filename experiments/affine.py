"""Continuous time for affine controls: the controlled process as a diffusion of its own, and mean squares along it."""

from __future__ import annotations

from typing import Any

import numpy as np

import sdecontrol as sc


def controlled(problem: sc.Problem, control: Any, initial: sc.laws.Law) -> sc.DiffusionProcess:
    """dY = (A + g B) Y + (c + g b) dt + g dB for u = B y + b."""
    process = problem.process

    def closed_loop(t: float) -> tuple[Any, Any]:
        (a, c), (gain, offset), g = process.affine_drift(t), control.affine_at(t), process.amplitude(t)
        return a + g * gain, c + g * offset

    drift = sc.Affine(lambda t: closed_loop(t)[0], lambda t: closed_loop(t)[1])
    return sc.DiffusionProcess(drift, process.amplitude, initial, process.horizon)


def terminal(process: sc.DiffusionProcess) -> sc.Gaussian:
    """The law of Y_T from a Gaussian start, by the fundamental solution at a relative 1e-13."""
    end = sc.moments(process, sc.ExactTransition(), sc.TimeGrid.uniform(1))
    return sc.Gaussian(end.means[-1], end.covariances[-1])


def half_square(process: sc.DiffusionProcess, control: Any, nodes: int = 32) -> float:
    """E int |u|^2 dt / 2 along the process, by Gauss's rule in time."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    times = (x + 1) / 2 * process.horizon
    grid = sc.TimeGrid.explicit([0.0, *times.tolist(), process.horizon])
    path = sc.moments(process, sc.ExactTransition(), grid)
    total = 0.0
    for t, weight, m, v in zip(times, weights, path.means[1:-1], path.covariances[1:-1]):
        gain, offset = control.affine_at(float(t))
        square = float((gain @ m + offset).square().sum() + ((gain @ v) * gain).sum())
        total += weight * process.horizon / 2 * square / 2
    return total
