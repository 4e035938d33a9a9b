"""How far each law of guidance ends from the exact tilt, on random anisotropic Gaussians, without sampling.

A label y = g . x + noise is put on Gaussian data in four dimensions, VP, from nu*. Every law is affine there, so its
chain's mean and covariance are exact: the law is probed at d + 1 points of each step and propagated by `sc.moments`.
Errors are those of the terminal mean, in posterior standard deviations, and KL(terminal || tilt). DPS is given the best
of 31 scales, chosen for each problem; a scale under which the chain blows up or collapses does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol import guidance
from sdecontrol.claims.routes.posterior import gaussian_kl
from sdecontrol.simulate import prepare
from sdecontrol.step import StepView

PROBLEMS, DIM, STEPS = 20, 4, 250
SCALES = np.logspace(-4, 0, 31)
GRID, KERNEL = sc.TimeGrid.log_snr(STEPS, s_min=1e-3), sc.Ancestral()

LAWS: dict[str, Callable[[sc.Problem], sc.Control]] = {
    "Doob, score form": lambda p: guidance.doob(p, form="score"),
    "Doob, lookahead": guidance.doob,
    "exact variance": guidance.exact_variance,
    "G_loss, exact weight": lambda p: guidance.g_loss(p, "exact"),
    "G_loss, the code's weight": guidance.g_loss,
    "PiGDM": guidance.pigdm,
    "naive gradient": guidance.naive,
    "plug-in": guidance.plug_in,
}


def problem(seed: int) -> sc.Problem:
    """Data N(m, S) with condition numbers around 30, a unit direction, a label two prior deviations out."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    covariance = (vectors * np.exp(rng.uniform(np.log(0.1), np.log(3.0), DIM))) @ vectors.T
    direction = rng.normal(size=DIM)
    direction /= np.linalg.norm(direction)
    mean = rng.normal(size=DIM)
    spread = float(np.sqrt(direction @ covariance @ direction))
    target = float(direction @ mean) + 2 * spread
    law = sc.Gaussian(mean, (covariance + covariance.T) / 2)
    return sc.Problem(sc.ReverseProcess(sc.VP(), law), sc.GaussianLabel(direction, target, 0.5 * spread), 1.0)


def probed(made: sc.Problem, control: sc.Control) -> sc.AffineControl:
    """The control as u = B x + b at every step, read off d + 1 states. Raises when it is not affine."""
    process, grid = made.process, GRID.resolve(made.process)
    eye = torch.eye(DIM, dtype=torch.float64)
    points = torch.cat([torch.zeros(1, DIM, dtype=torch.float64), eye, 2 * eye[:1] - eye[1:2]])
    gains, offsets = [], []
    for k, transition in enumerate(prepare(process, KERNEL, grid)[:-1]):
        state = process.state(transition.t, points, jacobian=True)
        u = control(StepView(process, transition, k, state))
        gain, offset = (u[1 : DIM + 1] - u[0]).T, u[0]
        if not torch.allclose(points[-1] @ gain.T + offset, u[-1], rtol=1e-7, atol=1e-9):
            raise ValueError(f"{control!r} is not affine at step {k}")
        gains.append(gain)
        offsets.append(offset)
    zero = torch.zeros_like(gains[0]), torch.zeros_like(offsets[0])
    return sc.AffineControl.on_grid(grid.times, [*gains, zero[0]], [*offsets, zero[1]])


def errors(made: sc.Problem, control: sc.Control) -> tuple[float, float, float]:
    """Error of the terminal mean in posterior deviations, KL(terminal || tilt) and path KL, all exact for the chain."""
    run = sc.moments(made.process, KERNEL, GRID, made.exact.initial, probed(made, control))
    tilt = made.exact.terminal
    mean, covariance = run.means[-1].numpy(), run.covariances[-1].numpy()
    spectrum = np.linalg.eigvalsh(covariance) if np.isfinite(covariance).all() else np.zeros(1)
    if spectrum[0] <= 1e-13 * spectrum[-1]:
        return np.inf, np.inf, np.inf  # blown up, or collapsed to a subspace
    off = mean - tilt.mean.numpy()
    distance = float(np.sqrt(off @ np.linalg.solve(tilt.covariance.numpy(), off)))
    kl = gaussian_kl((mean, covariance), (tilt.mean.numpy(), tilt.covariance.numpy()))
    return distance, kl, float(run.kl)


def best_dps(made: sc.Problem) -> tuple[tuple[float, float, float], float]:
    """The errors of DPS at the scale that makes its mean's the smallest."""
    tried = {float(scale): errors(made, guidance.dps(made, scale=float(scale))) for scale in SCALES}
    best = min(tried, key=lambda scale: tried[scale][0])
    return tried[best], best


def measure(problems: int = PROBLEMS) -> dict[str, Any]:
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in [*LAWS, "DPS, best scale"]}
    scales = []
    for seed in range(problems):
        made = problem(seed)
        for name, law in LAWS.items():
            rows[name].append(errors(made, law(made)))
        found, scale = best_dps(made)
        rows["DPS, best scale"].append(found)
        scales.append(scale)
    table = {
        name: dict(zip(("mean", "kl", "path_kl"), np.median(np.array(values), axis=0).tolist(), strict=True))
        for name, values in rows.items()
    }
    own = np.array([row[0] for row in rows["exact variance"]])
    ratio = {name: float(np.median(np.array([row[0] for row in values]) / own)) for name, values in rows.items()}
    return {
        "problems": problems,
        "steps": STEPS,
        "scales": {"low": float(SCALES[0]), "high": float(SCALES[-1]), "chosen": scales},
        "median": table,
        "error_of_the_mean_over_exact_variance": ratio,
        "rows": {name: [list(row) for row in values] for name, values in rows.items()},
    }


def main() -> None:
    record("guidance_table", measure())


if __name__ == "__main__":
    main()
