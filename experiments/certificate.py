"""A control scaled by 0.9 told from the exact one: 500 paths of the certificate do, the objective does not.

1-D VP, temperature 0.5, quadratic reward, 400 steps. R = r/temperature - log dQ^{u,nu}/dQ - log Z vanishes on every
path of the optimum (3.20); its root mean square is compared between the two controls, each with 500 paths of its own
and a standard error, at three standard errors. The same rule is put to the objectives, with separate and with common
noise, and the certificate to two runs of the exact control (a false alarm).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import sdecontrol as sc
from experiments.record import record

SEEDS, PATHS, STEPS, THRESHOLD, SCALE = 100, 500, 400, 3.0, 0.9
GRID, KERNEL = sc.TimeGrid.log_snr(STEPS), sc.Ancestral()


def problem() -> sc.Problem:
    process = sc.ReverseProcess(sc.VP(0.1, 5.0), sc.Gaussian([0.5], [[0.6]]))
    return sc.Problem(process, sc.Quadratic([1.0], [[0.8]]), 0.5)


def z(first: Any, second: Any) -> float:
    """(first - second) over the standard error of independent estimates."""
    return float((first.value - second.value) / math.hypot(first.stderr, second.stderr))


def residuals(made: sc.Problem, control: Any, seed: int, log_z: float) -> tuple[np.ndarray, np.ndarray]:
    """Certificate and profit r - temperature (log ratio less its martingale) of each path."""
    path = sc.simulate(made.process, control, made.exact.initial, grid=GRID, kernel=KERNEL, n=PATHS,
                       noise=sc.Noise(seed), keep="ends")  # fmt: skip
    reward = made.reward(path.terminal).double()
    certificate = reward / made.temperature - path.log_ratio() - log_z
    profit = reward - made.temperature * path.weights.energy
    return certificate.numpy(), profit.numpy()


def rms(samples: np.ndarray) -> Any:
    """Root mean square with its standard error."""
    square = sc.Estimate.mean(samples**2)
    root = math.sqrt(square.value)
    return sc.Estimate(root, square.stderr / (2 * root), square.n)


def one_seed(made: sc.Problem, seed: int, log_z: float) -> dict[str, Any]:
    exact, scaled = made.exact.control, SCALE * made.exact.control
    r_exact, p_exact = residuals(made, exact, 3 * seed, log_z)
    r_other, p_other = residuals(made, exact, 3 * seed + 1, log_z)
    r_scaled, p_scaled = residuals(made, scaled, 3 * seed + 2, log_z)
    _, p_common = residuals(made, scaled, 3 * seed, log_z)
    return {
        "certificate": z(rms(r_scaled), rms(r_exact)),
        "false_alarm": z(rms(r_other), rms(r_exact)),
        "objective": z(sc.Estimate.mean(p_exact), sc.Estimate.mean(p_scaled)),
        "objective_paired": z(sc.Estimate.mean(p_exact - p_common), sc.Estimate.exact(0.0)),
        "rms_exact": rms(r_exact).value,
        "rms_scaled": rms(r_scaled).value,
        "objective_stderr": sc.Estimate.mean(p_exact).stderr,
    }


def measure(seeds: int = SEEDS) -> dict[str, Any]:
    made = problem()
    chain = made.discretise(KERNEL, GRID).exact
    log_z = chain.log_normalizer
    rows = [one_seed(made, seed, log_z) for seed in range(seeds)]
    column = lambda key: np.array([row[key] for row in rows])  # noqa: E731
    loss = {}
    for name, control in (("exact", made.exact.control), ("scaled", SCALE * made.exact.control)):
        run = sc.moments(made.process, KERNEL, GRID, made.exact.initial, control)
        mean, variance = float(run.means[-1]), float(run.covariances[-1])
        loss[name] = chain.optimum - (mean - 0.8 * (mean**2 + variance) / 2 - made.temperature * run.kl)
    names = ("certificate", "objective", "objective_paired")
    shown = residuals(made, made.exact.control, 0, log_z)[0], residuals(made, SCALE * made.exact.control, 2, log_z)[0]
    return {
        "seeds": seeds,
        "paths": PATHS,
        "steps": STEPS,
        "told": {name: int((column(name) > THRESHOLD).sum()) for name in names},
        "false_alarms": int((np.abs(column("false_alarm")) > THRESHOLD).sum()),
        "smallest_z": float(column("certificate").min()),
        "rms_exact": float(column("rms_exact").mean()),
        "rms_scaled": float(column("rms_scaled").mean()),
        "optimum": chain.optimum,
        "loss_exact": loss["exact"],
        "loss_scaled": loss["scaled"],
        "difference": loss["scaled"] - loss["exact"],
        "objective_stderr": float(column("objective_stderr").mean()),
        "z": {name: column(name).tolist() for name in (*names, "false_alarm")},
        "residuals": {"exact": shown[0].tolist(), "scaled": shown[1].tolist()},
    }


def main() -> None:
    record("certificate", measure())


if __name__ == "__main__":
    main()
