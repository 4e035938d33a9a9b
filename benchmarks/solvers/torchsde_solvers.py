"""torchsde on the problem's own drift, steps uniform in time or adaptive, float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchsde

from benchmarks.solvers.case import FINE, Case, Contender, Impulses, denoise, strided_normals

FAMILY = "torchsde"
CALLS = {"euler": 1, "milstein": 1, "srk": 3, "heun": 2, "midpoint": 2, "reversible_heun": 1}
STRATONOVICH = ("heun", "midpoint", "reversible_heun")
STEPS = {"euler": (30, 120), "milstein": (30,), "srk": (20,), "heun": (12, 16, 20, 30, 60, 120),
         "midpoint": (16, 30, 60), "reversible_heun": (60,)}  # fmt: skip
TOLERANCES = (1e-1,)  # of the adaptive runs


class ReverseSDE(torch.nn.Module):
    """Drift and amplitude of the reverse diffusion; Ito and Stratonovich agree, the noise being state-free."""

    noise_type = "diagonal"

    def __init__(self, case: Case, sde_type: str):
        super().__init__()
        self.process, self.sde_type, self.calls = case.process, sde_type, 0

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.process.state(float(t), y).drift

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, self.process.amplitude(float(t)))


class ImpulseBrownian:
    """A Brownian motion whose increments are the impulses; the same increment for the same interval."""

    levy_area_approximation = "none"

    def __init__(self, impulses: Impulses):
        self.impulses, self.shape = impulses, (impulses.rows, len(impulses.impulse))
        self.dtype, self.device = torch.float64, torch.device("cpu")
        self.known: dict[float, torch.Tensor] = {}

    def __call__(self, ta: torch.Tensor, tb: torch.Tensor) -> torch.Tensor:
        start, end = float(ta), float(tb)
        if start not in self.known:
            self.known[start] = torch.from_numpy(self.impulses.draw())
        return math.sqrt(end - start) * self.known[start]


class TableBrownian:
    """A Brownian motion with given increments of equal steps of length dt; intervals end on their ends."""

    levy_area_approximation = "none"

    def __init__(self, increments: torch.Tensor, dt: float):
        zero = torch.zeros_like(increments[:1])
        self.values, self.dt = torch.cat([zero, increments.cumsum(0)]), dt
        self.shape, self.dtype, self.device = increments.shape[1:], increments.dtype, increments.device

    def __call__(self, ta: torch.Tensor, tb: torch.Tensor) -> torch.Tensor:
        start, end = (round(float(t) / self.dt) for t in (ta, tb))
        return self.values[end] - self.values[start]


def contenders(case: Case) -> Iterator[Contender]:
    for method, counts in STEPS.items():
        for steps in counts:
            yield _fixed(case, method, steps)
    for tolerance in TOLERANCES:
        yield _adaptive(case, "heun", tolerance)


def _sde(case: Case, method: str) -> ReverseSDE:
    return ReverseSDE(case, "stratonovich" if method in STRATONOVICH else "ito")


def _integrate(case: Case, sde: ReverseSDE, start: torch.Tensor, **options: object) -> np.ndarray:
    """From t = 0 to the stopping level, then x0_hat."""
    end = case.process.horizon - case.stop
    with torch.no_grad():
        out = torchsde.sdeint(sde, start, torch.tensor([0.0, end], dtype=start.dtype), **options)[-1]
        return denoise(case, out, case.stop).numpy()


def _fixed(case: Case, method: str, steps: int) -> Contender:
    options = {"method": method, "dt": (case.process.horizon - case.stop) / steps * (1 + 1e-7)}

    def sample(n: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        return _integrate(case, _sde(case, method), strided_normals(n, case.dim, seed), **options)

    def probe(impulses: Impulses) -> np.ndarray:
        start = torch.from_numpy(impulses.start())
        return _integrate(case, _sde(case, method), start, bm=ImpulseBrownian(impulses), **options)

    def coupled(start: np.ndarray, increments: np.ndarray) -> np.ndarray:
        table = TableBrownian(torch.from_numpy(increments), (case.process.horizon - case.stop) / FINE)
        return _integrate(case, _sde(case, method), torch.from_numpy(start), bm=table, **options)

    linear_in_noise = method not in ("srk", "milstein")  # these two use squares of the increments
    calls = CALLS[method] * steps + (case.stop > 0)
    return Contender(FAMILY, method, "uniform", steps, calls, sample, threads=True, slow=True,
                     probe=probe if case.affine and linear_in_noise else None,
                     coupled=coupled if linear_in_noise and FINE % steps == 0 else None)  # fmt: skip


def _adaptive(case: Case, method: str, tolerance: float) -> Contender:
    seen: list[int] = []

    def sample(n: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        sde = _sde(case, method)
        options = {"method": method, "adaptive": True, "rtol": tolerance, "atol": tolerance, "dt": 1e-2}
        out = _integrate(case, sde, strided_normals(n, case.dim, seed), **options)
        seen[:] = [sde.calls]
        return out

    counted: Callable[[], int] = lambda: seen[0]  # noqa: E731
    return Contender(FAMILY, f"{method}, adaptive {tolerance:g}", "adaptive", 0, 0, sample, threads=True,
                     slow=True, counted=counted)  # fmt: skip
