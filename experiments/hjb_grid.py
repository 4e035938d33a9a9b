"""The HJB equation on grids: what each scheme reaches against the closed forms, and one plane in pictures.

Mixtures of three and two Gaussians under VP noising with a quadratic reward, read at noised draws of the data law and
of its tilt at ten noise levels between s = 1 and s = 0.001; a step reward on a Gaussian, read on [-2, 2]. Errors are
the largest ones, absolute; steps are those in time, all accepted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

import sdecontrol as sc
from experiments.record import record
from sdecontrol.value import FiniteDifference, Monotone, Smoothing, axes_for
from sdecontrol.value.hjb_scheme import Scheme

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
STEP_TIMES = (0.0, 0.5, 0.9)
DRAWS = 500
PICTURE_POINTS, PICTURE_TIME = 96, 0.85
SCHEDULE = sc.VP(0.1, 8.0)


def plane() -> sc.Problem:
    covariances = [[0.3, 0.3], [0.25, 0.35], [0.3, 0.25]]
    law = sc.GaussianMixture([0.4, 0.35, 0.25], [[-1.0, -0.4], [0.9, 0.7], [0.5, -1.0]], covariances)
    reward = sc.Quadratic([0.8, 0.4], [[0.3, 0.0], [0.0, 0.2]])
    return sc.Problem(sc.ReverseProcess(SCHEDULE, law, "marginal"), reward, 0.8)


def space() -> sc.Problem:
    law = sc.GaussianMixture([0.5, 0.5], [[-0.8, 0.0, 0.4], [0.7, 0.5, -0.4]], [0.3, 0.4])
    return sc.Problem(sc.ReverseProcess(SCHEDULE, law, "marginal"), sc.Quadratic([0.8, 0.4, 0.0], 0.2), 0.8)


def jump() -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.3], [[0.6]]))
    return sc.Problem(process, sc.Step([1.0], 0.5, 1.0), 0.5)


def on_paths(problem: sc.Problem, t: float) -> Tensor:
    """Noised draws of the data law and of its tilt, (2 DRAWS, d)."""
    process = problem.process
    assert isinstance(process, sc.ReverseProcess)
    s, laws = process.noise_level(t), (process.data_law, problem.exact.terminal)
    x = torch.cat([law.sample(DRAWS, sc.Noise(1 + i)).double() for i, law in enumerate(laws)])
    z = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return process.schedule.alpha(s) * x + process.schedule.sigma(s) * z


def accuracy(problem: sc.Problem, points: int, scheme: Scheme) -> dict[str, Any]:
    """Largest errors of v and u, beside the largest v and u."""
    solution, rows = sc.solve_hjb(problem, axes_for(problem, points, scheme), scheme), []
    line = torch.linspace(-2, 2, 401, dtype=torch.float64)[:, None]
    for t in STEP_TIMES if isinstance(scheme, Monotone) else TIMES:
        x = line if isinstance(scheme, Monotone) else on_paths(problem, t)
        v, u = problem.exact.value(t, x), problem.exact.control(t, x)
        rows.append([(solution.value(t, x) - v).abs(), (solution.control(t, x) - u).abs(), v.abs(), u.abs()])
    v_error, u_error, v_size, u_size = (max(float(part.max()) for part in column) for column in zip(*rows))
    return {
        "scheme": type(scheme).__name__, "dim": problem.process.dim, "points": points,
        "value": v_error, "control": u_error,
        "largest_value": v_size, "largest_control": u_size,
    }  # fmt: skip


def table() -> list[dict[str, Any]]:
    return [
        accuracy(plane(), 128, Smoothing()),
        accuracy(space(), 80, Smoothing()),
        *[accuracy(plane(), points, FiniteDifference()) for points in (64, 96, 128)],
        *[accuracy(space(), points, FiniteDifference()) for points in (40, 56)],
        *[accuracy(jump(), points, Monotone()) for points in (129, 257, 513)],
    ]


def picture() -> dict[str, Any]:
    """v, u, the residual and the reference density of the smoothed solution, on one grid."""
    problem = plane()
    axes = axes_for(problem, PICTURE_POINTS)
    solution = sc.solve_hjb(problem, axes)
    mesh = torch.from_numpy(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2))
    process = problem.process
    assert isinstance(process, sc.ReverseProcess)
    u = solution.control(PICTURE_TIME, mesh)
    fields = {
        "value": solution.value(PICTURE_TIME, mesh), "control_1": u[:, 0], "control_2": u[:, 1],
        "residual": solution.residual(PICTURE_TIME).flatten(),
        "log_density": process.noised(PICTURE_TIME).log_prob(mesh),
    }  # fmt: skip
    return {"t": PICTURE_TIME, "axes": [x.tolist() for x in axes],
            **{name: [float(f"{c:.5g}") for c in values.tolist()] for name, values in fields.items()}}  # fmt: skip


def main() -> None:
    record("hjb_grid", {"table": table(), "picture": picture()})


if __name__ == "__main__":
    main()
