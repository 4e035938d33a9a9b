"""(3.29)-(3.30): gradients of v by the weight on the noise, for a smooth reward and for an indicator.

N(0, 1) under VP noising: r = x - x^2/4, and r = 3 1{x > 1}. The estimates at half-time against the closed forms, with
what derivatives along paths say (nothing, of the indicator); the deviation of one sample against the time that is left,
for three weights psi: constant, the squared amplitude, and the squared amplitude over the squared first variation,
which is the likelihood ratio of the end (derived) and the least that a weight with psi can have in one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import sdecontrol as sc
from experiments.record import record
from sdecontrol.problems.builtin import resolve

SAMPLES, TIME = 20_000, 0.5
POINTS = np.linspace(-2.5, 2.5, 11)
LEFT = np.geomspace(1.0, 1e-3, 13)  # time to the end
SEEDS = 500
SCHEDULE = sc.VP(0.1, 5.0)


def smooth() -> sc.Problem:
    process = sc.ReverseProcess(SCHEDULE, sc.Gaussian([0.0], [[1.0]]), "marginal")
    return sc.Problem(process, sc.Quadratic([1.0], [[0.5]]), 1.0)


def weights(problem: sc.Problem) -> dict[str, Callable[[float], float]]:
    process = problem.process
    assert isinstance(process, sc.ReverseProcess)
    amplitude, level, alpha = process.amplitude, process.noise_level, process.schedule.alpha
    return {
        "constant": lambda t: 1.0,
        "amplitude": lambda t: amplitude(t) ** 2,
        "best": lambda t: (amplitude(t) * alpha(level(t))) ** 2,  # the first variation falls like 1/alpha here
    }


def truth(problem: sc.Problem, t: float, x: torch.Tensor) -> np.ndarray:
    """grad v by the closed form."""
    control = problem.exact.control(t, x)[:, 0].numpy()
    return control * problem.temperature / problem.process.amplitude(t)


def curve(problem: sc.Problem, pathwise: bool) -> dict[str, Any]:
    """grad v over the line: exact, by Bismut's weight, and by derivatives along paths."""
    x = torch.from_numpy(POINTS)[:, None]
    exact = truth(problem, TIME, x)
    found = sc.value_gradient(problem, TIME, x, sc.value.Bismut(), SAMPLES, sc.Noise(1))
    rows: dict[str, Any] = {"exact": exact, "bismut": found.value[:, 0], "bismut_stderr": found.stderr[:, 0]}
    if pathwise:
        along = sc.value_gradient(problem, TIME, x, sc.value.Pathwise(), SAMPLES, sc.Noise(2))
        rows |= {"pathwise": along.value[:, 0], "pathwise_stderr": along.stderr[:, 0]}
    else:  # the library refuses; almost every path has a derivative of zero
        rows |= {"pathwise": problem.reward.gradient(x)[:, 0].numpy(), "pathwise_stderr": np.zeros(len(x))}
    z = (rows["bismut"] - exact) / rows["bismut_stderr"]
    return {name: [float(c) for c in row] for name, row in rows.items()} | {"largest_z": float(np.abs(z).max())}


def deviations(problem: sc.Problem, at: float, pathwise: bool) -> dict[str, list[float]]:
    """sqrt(n) stderr of grad v at x = `at`, by time left, for each weight (and by paths)."""
    rules: dict[str, Any] = {name: sc.value.Bismut(psi) for name, psi in weights(problem).items()}
    if pathwise:
        rules["pathwise"] = sc.value.Pathwise()
    x = torch.tensor([[at]], dtype=torch.float64)
    return {
        name: [
            float(sc.value_gradient(problem, 1 - s, x, rule, SAMPLES, sc.Noise(3)).stderr[0, 0]) * math.sqrt(SAMPLES)
            for s in LEFT.tolist()
        ]
        for name, rule in rules.items()
    }


def coverage(problem: sc.Problem) -> dict[str, float]:
    """Share of 95 % intervals that hold the truth, over seeds, and the spread of the z-scores."""
    x = torch.tensor([[0.5]], dtype=torch.float64)
    exact = truth(problem, TIME, x)[0]
    found = [sc.value_gradient(problem, TIME, x, sc.value.Bismut(), 1_000, sc.Noise(10 + k)) for k in range(SEEDS)]
    z = np.array([(f.value[0, 0] - exact) / f.stderr[0, 0] for f in found])
    return {"inside": float((np.abs(z) < 1.96).mean()), "z_std": float(z.std(ddof=1)), "seeds": SEEDS}


def measure() -> dict[str, Any]:
    jump = sc.problems.step_reward()
    jump = sc.Problem(sc.ReverseProcess(SCHEDULE, sc.Gaussian([0.0], [[1.0]]), "marginal"), jump.reward, 1.0)
    found: dict[str, Any] = {"points": POINTS.tolist(), "left": LEFT.tolist(), "time": TIME, "samples": SAMPLES}
    for name, problem, at, pathwise in (("smooth", smooth(), 0.5, True), ("indicator", jump, 1.0, False)):
        spread = deviations(problem, at, pathwise)
        slope = np.polyfit(np.log(LEFT[-5:]), np.log(spread["constant"][-5:]), 1)[0]
        found[name] = curve(problem, pathwise) | {
            "deviation": spread,
            "slope": float(slope),
            "constant_over_best": spread["constant"][0] / spread["best"][0],
            "coverage": coverage(problem),
        }
    spread = found["smooth"]["deviation"]
    found["smooth"]["best_over_pathwise"] = spread["best"][0] / spread["pathwise"][0]
    found["exploding"] = exploding()
    return found


def exploding() -> dict[str, float]:
    """What a constant psi costs where the amplitude runs over decades: the named problem with VE noising, at t = 0."""
    problem, x = resolve("gaussian-1d-ve").problem, torch.tensor([[0.5]], dtype=torch.float64)
    rules = (sc.value.Bismut(), sc.value.Bismut(lambda t: problem.process.amplitude(t) ** 2))
    constant, amplitude = (float(sc.value_gradient(problem, 0.0, x, r, SAMPLES).stderr[0, 0]) for r in rules)
    return {"constant_over_amplitude": constant / amplitude}


def main() -> None:
    record("bismut", measure())


if __name__ == "__main__":
    main()
