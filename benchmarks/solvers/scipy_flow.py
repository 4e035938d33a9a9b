"""The probability flow by scipy.integrate.solve_ivp on all paths at once, float64: a curiosity on small problems."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.integrate import solve_ivp

from benchmarks.solvers.case import Case, Contender, strided_normals

FAMILY = "scipy"
METHODS = {"RK23": (1e-2,), "RK45": (1e-2, 1e-3)}


def contenders(case: Case) -> Iterator[Contender]:
    if case.stop == 0:
        for method, tolerances in METHODS.items():
            for tolerance in tolerances:
                yield _contender(case, method, tolerance)


def _contender(case: Case, method: str, tolerance: float) -> Contender:
    process, seen = case.process, [0]

    def push(start: np.ndarray) -> np.ndarray:
        shape = start.T.shape

        def flow(t: float, y: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(y.reshape(shape)).mT
            velocity = process.linear_rate(t) * x + process.field_gain(t) / 2 * process.state(t, x).field
            return velocity.mT.numpy().ravel()

        found = solve_ivp(flow, (0.0, process.horizon), start.T.ravel(), method, [process.horizon],
                          rtol=tolerance, atol=tolerance)  # fmt: skip
        seen[:] = [found.nfev]
        return found.y[:, -1].reshape(shape).T

    def sample(n: int, seed: int) -> np.ndarray:
        return push(strided_normals(n, case.dim, seed).numpy().astype(np.float64))

    return Contender(FAMILY, f"{method}, flow, tolerance {tolerance:g}", "adaptive", 0, 0, sample, push=push,
                     threads=True, counted=lambda: seen[0])  # fmt: skip
