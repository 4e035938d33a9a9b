"""Prop. 3.3, path by path: the log ratio of two path laws is the log ratio of the Gaussian densities of the states."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import DISCRETE, Case, NotApplicable, rounding
from sdecontrol.claims.entropy.girsanov_identity import CLAIM
from sdecontrol.claims.routes.posterior import gaussian
from sdecontrol.claims.routes.quadrature import Array
from sdecontrol.claims.routes.workbench import Workbench
from sdecontrol.controls import StateControl
from sdecontrol.kernels import EulerMaruyama
from sdecontrol.laws import Law
from sdecontrol.path import Path
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

PATHS = 16
STEPS, PARTS = 4, 16  # the first steps of so many

Push = Callable[[float, Tensor], Tensor]


@CLAIM.check(DISCRETE)
def densities_of_paths(case: Case) -> None:
    """Euler's chain under a bounded control: log ratio, its replay and the replay of another control, by densities.

    A step is N(x + dt (b + g u), dt g^2 I) against N(x + dt b, dt g^2 I), written out.
    """
    bench, process = Workbench.of(case), case.problem.process
    start = _moved_start(bench)
    grid = TimeGrid.explicit([process.horizon * k / PARTS for k in range(STEPS + 1)])
    spread = bench.latent.spread
    controls = [StateControl(_push(spread, wave)) for wave in (1.0, -2.0)]
    path = simulate(process, controls[0], start, grid=grid, kernel=EulerMaruyama(), n=PATHS, noise=case.noise)
    initial_ratio = np.zeros(PATHS) if start is None else _initial_ratio(bench, path)
    own, other = (initial_ratio + _log_density_ratio(path, control.f) for control in controls)
    size = max(float(np.abs(own).max()), float(np.abs(other).max()), 1.0)
    assert path.states is not None
    smallest = min(math.sqrt(step.dt) * process.amplitude(step.t) for step in path.transitions)
    scale = float(path.states.abs().max()) / smallest
    error = rounding(size, scale, operations=1_000 * process.dim)
    pairs = {
        "log ratio": (path.log_ratio(), own),
        "replay of the same control": (path.replay(controls[0], start), own),
        "replay of another control": (path.replay(controls[1], start), other),
    }
    for name, (found, densities) in pairs.items():
        gap = float(np.abs(found.numpy() - densities).max())
        case.zero(f"{name} of {PATHS} paths - that of the densities of their states", gap, error, scale=size)
    pushes = zip(path.transitions, path.states)
    energy = torch.stack([step.dt / 2 * controls[0].f(step.t, x).square().sum(1) for step, x in pushes]).sum(0)
    gap = float((path.weights.energy - energy).abs().max())
    case.zero("energy of the same paths - sum dt |u|^2 / 2", gap, error, scale=size)


def _moved_start(bench: Workbench) -> Law | None:
    """A Gaussian initial law; None, the process's own, for a start in a point and for a mixture on a subspace."""
    try:
        return bench.tests["affine 1"].initial
    except NotApplicable:
        return None


def _push(spread: Callable[[float], float], wave: float) -> Push:
    return lambda t, x: torch.tanh(wave * x / spread(t) + 0.5) / math.sqrt(x.shape[1])


def _initial_ratio(bench: Workbench, path: Path) -> Array:
    """log d nu/d p_noise at the starts, by densities in the coordinates that nu changes."""
    z = bench.latent.encode(0.0, path.initial)
    return gaussian(*bench.tests["affine 1"].start).log_density(z) - bench.latent.start.log_density(z)


def _log_density_ratio(path: Path, push: Push) -> Array:
    """Sum over the steps of log N(x'; x + dt (b + g u), dt g^2 I) - log N(x'; x + dt b, dt g^2 I): (n,)."""
    assert path.states is not None
    process, times, total = path.process, path.times, np.zeros(path.n)
    for k, (x, x_next) in enumerate(zip(path.states[:-1], path.states[1:])):
        t, dt = float(times[k]), float(times[k + 1] - times[k])
        g = process.amplitude(t)
        free = x + dt * process.state(t, x).drift
        moved = free + dt * g * push(t, x)
        squares = (x_next - free) ** 2 - (x_next - moved) ** 2
        total += (squares.sum(1) / (2 * dt * g * g)).numpy()
    return total
