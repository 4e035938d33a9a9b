"""(3.28): the control with log and expectation swapped, u_lin = (amplitude/temperature) grad_y E[r(Y_T) | Y_t = y].

Gaussian data, r = x - k x^2/2: u_lin is u* times 1 + k P_t/temperature, exact iff k = 0 (derived). Two Gaussians with a
linear reward: u_lin is wrong as soon as the modes are apart. Gaussian data: moment equations in continuous time, loss
by the objective and by E int |u_lin - u*|^2/2. Mixtures: the error of u_lin over draws of Q*_t, and the simulated mass
of the lighter mode under u_lin and, with the same noise, under u*.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy import stats

import sdecontrol as sc
from experiments.affine import controlled, half_square, terminal
from experiments.record import record

CURVATURES = [-0.5, -0.4, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0]
DISTANCES = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
WEIGHTS, SPREAD = [0.8, 0.2], 0.4  # of the modes: masses and standard deviation
STEPS, PATHS, TIMES = 200, 20_000, 12
SCHEDULE = sc.VP(0.1, 8.0)


def parts(problem: sc.Problem) -> tuple[sc.ReverseProcess, sc.Quadratic]:
    """The process and the reward, by their types."""
    assert isinstance(problem.process, sc.ReverseProcess) and isinstance(problem.reward, sc.Quadratic)
    return problem.process, problem.reward


def posterior(problem: sc.Problem, t: float) -> Any:
    process, _ = parts(problem)
    s = process.noise_level(t)
    return process.data_law.posterior(process.schedule.alpha(s), process.schedule.h(s))


def swapped_gaussian(problem: sc.Problem) -> sc.AffineControl:
    """(amplitude/temperature) J' (g - K m(y)), affine in y."""
    process, reward = parts(problem)

    def gain(t: float) -> torch.Tensor:
        p = posterior(problem, t)
        return -process.amplitude(t) / problem.temperature * p.gains[0].mT @ reward.curvature @ p.gains[0]

    def offset(t: float) -> torch.Tensor:
        p = posterior(problem, t)
        pull = reward.linear - reward.curvature @ p.offsets[0]
        return process.amplitude(t) / problem.temperature * p.gains[0].mT @ pull

    return sc.AffineControl(gain, offset)


def gaussian(curvature: float) -> dict[str, float]:
    """Loss of u_lin from nu* against temperature log C, two ways, and the distance of its output from p_ft."""
    process = sc.ReverseProcess(SCHEDULE, sc.Gaussian(0.0, 1.0), "marginal")
    problem = sc.Problem(process, sc.Quadratic([1.0], [[curvature]]), 1.0)
    exact, swapped = problem.exact, swapped_gaussian(problem)
    run = controlled(problem, swapped, exact.initial)
    output = terminal(run)
    mean, variance = float(output.mean), float(output.covariance)
    reward = mean - curvature * (mean**2 + variance) / 2
    loss = exact.optimum - (reward - exact.kl_initial - half_square(run, swapped))
    apart = half_square(run, swapped - exact.control)
    return {
        "curvature": curvature,
        "factor_at_start": 1 + curvature * float(posterior(problem, 0.0).covariances[0]),
        "optimum": exact.optimum,
        "loss": loss,
        "mean_square": apart,
        "tv": float(sc.laws.tv(output, exact.terminal)),
        "tv_bound": math.sqrt(apart / 2),
    }


def swapped_mixture(problem: sc.Problem) -> sc.StateControl:
    """(amplitude/temperature) grad_y g . E[Y_T | Y_t = y], by reverse mode."""

    def control(t: float, y: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            at = y.detach().double().requires_grad_()
            mean = posterior(problem, t).mean(at) @ parts(problem)[1].linear
            slope = torch.autograd.grad(mean.sum(), at)[0]
        return (problem.process.amplitude(t) / problem.temperature * slope).to(y.dtype)

    return sc.StateControl(control)


def mass_above(law: sc.laws.Law, threshold: float) -> float:
    assert isinstance(law, sc.GaussianMixture)
    means, stds = law.means[:, 0].numpy(), np.sqrt(law.covariances[:, 0, 0].numpy())
    return float(law.weights.numpy() @ stats.norm.sf((threshold - means) / stds))


def mixture(distance: float) -> dict[str, float]:
    """Relative rms of u_lin - u* under Q* over time; mass beyond the middle under u_lin, u* (from nu*) and the tilt."""
    law = sc.GaussianMixture(WEIGHTS, [[0.0], [distance]], [[[SPREAD**2]], [[SPREAD**2]]])
    problem = sc.Problem(sc.ReverseProcess(SCHEDULE, law, "marginal"), sc.Linear([1.0]), 1.0)
    exact, swapped, middle = problem.exact, swapped_mixture(problem), distance / 2
    gap, size = 0.0, 0.0
    for t in np.linspace(0, 0.95, TIMES).tolist():
        y = exact.marginal(t).sample(4_000, sc.Noise(1))
        best = exact.control(t, y)
        gap += float((swapped(t, y) - best).square().mean())
        size += float(best.square().mean())
    found = {"distance": distance, "relative_rms": math.sqrt(gap / size), "tilt": mass_above(exact.terminal, middle)}
    for name, control in (("swapped", swapped), ("exact", exact.control)):
        path = sc.simulate(problem.process, control, exact.initial, grid=sc.TimeGrid.log_snr(STEPS),
                           kernel=sc.SecondOrder(), n=PATHS, noise=sc.Noise(0), keep="ends")  # fmt: skip
        mass = sc.Estimate.mean((path.terminal[:, 0] > middle).double())
        found |= {name: mass.value, f"{name}_stderr": mass.stderr}
    return found


def measure() -> dict[str, Any]:
    rows, mixed = [gaussian(k) for k in CURVATURES], [mixture(d) for d in DISTANCES]
    by = {f"{row['curvature']:g}": row for row in rows}
    return {
        "gaussian": rows,
        "mixture": mixed,
        "linear": by["0"],
        "concave": by["1"],
        "convex": by["-0.5"],
        "loss_deviation": max(abs(row["loss"] - row["mean_square"]) for row in rows),
        "together": mixed[0],
        "apart": mixed[-1],
        "steps": STEPS,
        "paths": PATHS,
    }


def main() -> None:
    record("swap", measure())


if __name__ == "__main__":
    main()
