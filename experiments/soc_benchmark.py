"""Every loss on every reference problem: how near the learned control comes to the optimum, against wall time.

The error is E sum dt |u - u_ref|^2 / E sum dt |u_ref|^2 along the reference's paths, with u_ref the best mean shift
of the chain itself where that is closed (quadratic and linear Ornstein-Uhlenbeck) and u* of the continuous problem
where it is not (mixtures, double well; the chain's own error is then part of the number). A fit is scored a dozen times
on its way and the clock stops while it is scored. A row that fails says why: not defined there, not finite, or the
target missed, with the fraction of effective samples at the end.

    python -m experiments.soc_benchmark                          # all rows, about three hours and a half on two cores
    python -m experiments.soc_benchmark --problem linear-ou      # some of them
    python -m experiments.soc_benchmark --seconds 20 --loss log-variance

Rows that are done with the same settings are kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from rich.console import Console

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.record import RESULTS, record, results
from sdecontrol.finetune.batch import returns
from sdecontrol.finetune.fit import batch_of

NAME = "soc_benchmark"
SECONDS = 300.0
SCORES = 12  # along a fit, the last one included
SCORED_PATHS = 2048


@dataclass(frozen=True)
class Setting:
    """A problem with the chain that it is solved on, what it is scored against, and its families."""

    problem: sc.Problem
    grid: sc.TimeGrid
    reference: Any
    initial: Any
    families: dict[str, Callable[[], ft.Family]]
    values: Callable[[], ft.ValueFamily]
    targets: dict[str, float]


def ornstein_uhlenbeck(problem: sc.Problem) -> Setting:
    d, grid = problem.process.dim, sc.TimeGrid.uniform(50)
    features = ft.Polynomials(5)
    families: dict[str, Callable[[], ft.Family]] = {
        "affine": lambda: ft.AffineFamily(d, features),
        "diagonal": lambda: ft.DiagonalFamily(d, features),
        "mlp": lambda: ft.MLPFamily(d, 64, 2),
    }
    targets = {"affine": 2e-5, "diagonal": 2e-5, "mlp": 1e-3}
    reference = problem.discretise(grid=grid).exact.control
    return Setting(problem, grid, reference, None, families, lambda: ft.QuadraticValue(d, features), targets)


def mixture(dim: int, steps: int, target: float) -> Setting:
    """The control matters in the middle of the way: a grid that is dense near the data alone would be far from u*."""
    problem, grid = sc.problems.gaussian_mixture(dim), sc.TimeGrid.geometric(steps, s_min=0.1)
    exact = problem.exact
    families: dict[str, Callable[[], ft.Family]] = {
        "pulled": lambda: ft.PulledFamily(dim, 64, 2),
        "denoiser": lambda: ft.DenoiserFamily(dim, 64, 2),
    }
    return Setting(problem, grid, exact.control, exact.initial, families, lambda: ft.NetworkValue(dim, 64, 2),
                   {"pulled": target, "denoiser": target})  # fmt: skip


def double_well() -> Setting:
    problem, grid = sc.problems.double_well(), sc.TimeGrid.uniform(200)
    pulls, features = torch.tensor([3.0] * 3 + [1.0] * 7), ft.Decays(10)  # the wells forget fast: u* acts late

    def slope(x: torch.Tensor) -> torch.Tensor:
        """The gradient of the reward."""
        return -4 * pulls.to(x) * x * (x.square() - 1)

    families: dict[str, Callable[[], ft.Family]] = {"mlp": lambda: ft.MLPFamily(10, 64, 3, features, hint=slope)}
    return Setting(problem, grid, problem.exact.control, None, families, lambda: ft.NetworkValue(10, 64, 3, features),
                   {"mlp": 1e-2})  # fmt: skip


SETTINGS: dict[str, Callable[[], Setting]] = {
    "linear-ou": lambda: ornstein_uhlenbeck(sc.problems.linear_ou()),
    "quadratic-ou-easy": lambda: ornstein_uhlenbeck(sc.problems.quadratic_ou("easy")),
    "quadratic-ou-hard": lambda: ornstein_uhlenbeck(sc.problems.quadratic_ou("hard")),
    "mixture-2d": lambda: mixture(2, 160, 2e-3),
    "mixture-16d": lambda: mixture(16, 80, 5e-2),
    "double-well": double_well,
}

# loss -> (how it is made for a family, paths an iteration)
LOSSES: dict[str, tuple[Callable[[ft.Family, int], ft.Loss], int]] = {
    "relative-entropy, sticking": (lambda family, d: ft.RelativeEntropy(), 128),
    "relative-entropy": (lambda family, d: ft.RelativeEntropy(sticking=False), 128),
    "adjoint-matching": (lambda family, d: ft.AdjointMatching(), 256),
    "soc-matching": (lambda family, d: ft.SOCMatching(ft.Reparametrisation(d, dtype=family.dtype)), 256),
    "log-variance": (lambda family, d: ft.LogVariance(), 256),
    "trajectory-balance": (lambda family, d: ft.TrajectoryBalance(), 256),
    "cross-entropy": (lambda family, d: ft.CrossEntropy(), 1024),
    "value-regression": (lambda family, d: ft.ValueRegression(), 512),
}
RATES = {"affine": 0.1, "diagonal": 0.1, "value": 0.05}  # Adam's; networks below
NETWORK_RATE = 5e-3
CLIP = 1.0  # of the gradients of networks: adjoints have heavy tails between modes
TWINS = ("diagonal", "pulled")  # their value family is the one of another row


def decay(seconds: float, spent: float) -> float:
    """Cosine in the time that is spent, so that every loss has the same budget."""
    return ft.cosine(min(spent / seconds, 1.0))


def learn(setting: Setting, family: ft.Family, loss: ft.Loss, n: int, rate: float, seconds: float) -> dict[str, Any]:
    """Fit for `seconds` of training, scored on the way."""
    problem = setting.problem
    loss.check(problem, family)
    optimiser = ft.adam(family, loss, rate)
    rates = [group["lr"] for group in optimiser.param_groups]
    batch = ft.Batch(n, sc.Noise(0), setting.grid, problem.process.default_kernel, setting.initial, family.dtype)
    marks, spent, i = list(np.linspace(0, seconds, SCORES + 1)[1:]), 0.0, 0
    curve = []
    while marks:
        begin = time.monotonic()
        for group, base in zip(optimiser.param_groups, rates):
            group["lr"] = base * decay(seconds, spent)
        optimiser.zero_grad(set_to_none=True)
        value = loss(problem, family, batch_of(batch, i))
        value.backward()
        torch.nn.utils.clip_grad_norm_(family.parameters(), CLIP if rate == NETWORK_RATE else math.inf)
        optimiser.step()
        i, spent = i + 1, spent + time.monotonic() - begin
        if spent >= marks[0] or not np.isfinite(value.item()):
            marks = [mark for mark in marks if mark > spent]
            curve.append({"seconds": spent, "iterations": i, "loss": value.item(), "error": score(setting, family)})
    return {"curve": curve, "iterations": i, "error": curve[-1]["error"], "ess": effective(setting, family, batch)}


def score(setting: Setting, control: Any) -> dict[str, Any]:
    found = ft.control_error(
        setting.problem, control, setting.reference, setting.initial, grid=setting.grid, n=SCORED_PATHS
    )
    return found.to_dict()


def effective(setting: Setting, control: Any, batch: ft.Batch) -> float:
    """Fraction of effective samples of the weights e^R under the learned control."""
    with torch.no_grad():
        path = batch.paths(setting.problem, control)
        weights = returns(setting.problem, path) - path.weights.log_ratio()
    return sc.effective_sample_size(weights) / batch.n


def row(setting: Setting, family_name: str, loss_name: str, seconds: float) -> dict[str, Any]:
    make, n = LOSSES[loss_name]
    learns_value = loss_name == "value-regression"
    family = setting.values() if learns_value else setting.families[family_name]()
    rate = RATES.get("value" if learns_value and family_name in RATES else family_name, NETWORK_RATE)
    target = setting.targets[family_name]
    try:
        found = learn(setting, family, make(family, setting.problem.process.dim), n, rate, seconds)
    except sc.SDEControlError as error:
        return {"failure": f"{type(error).__name__}: {error}", "reached": False, "target": target}
    error = found["error"]["value"]
    reached = error <= target
    reason = None if reached else f"error {error:.2e} above {target:.0e} after {found['iterations']} iterations; "
    if reason is not None:
        reason += f"{found['ess']:.1%} effective samples"
    return {**found, "n": n, "rate": rate, "target": target, "reached": reached, "failure": reason}


def wanted(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(problem, family, loss) of the rows asked for."""
    rows = []
    for name in options.problem or SETTINGS:
        for family in SETTINGS[name]().families:
            losses = options.loss or LOSSES
            rows += [(name, family, loss) for loss in losses if loss != "value-regression" or family not in TWINS]
    return [r for r in rows if options.family is None or r[1] in options.family]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", action="append", choices=SETTINGS)
    parser.add_argument("--family", action="append")
    parser.add_argument("--loss", action="append", choices=LOSSES)
    parser.add_argument("--workers", type=int, default=2, help="rows at once, one thread each")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="training time a row")
    return parser.parse_args()


def work(task: tuple[str, str, str, float]) -> dict[str, Any]:
    """One row in a worker: one thread each, so that rows do not disturb one another."""
    torch.set_num_threads(1)
    x = torch.nn.Parameter(torch.zeros(1))
    x.grad = torch.zeros(1)
    torch.optim.Adam([x]).step()  # loads parts of torch, which is no part of any row
    name, family, loss, seconds = task
    return {"problem": name, "family": family, "loss": loss, "budget": seconds,
            **row(SETTINGS[name](), family, loss, seconds)}  # fmt: skip


def main() -> None:
    options, console = arguments(), Console()
    done = results(NAME)["rows"] if (RESULTS / f"{NAME}.json").exists() else []
    table = {(r["problem"], r["family"], r["loss"], r["budget"]): r for r in done}
    tasks = [task for task in ((*names, options.seconds) for names in wanted(options)) if task not in table]
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(work, task): task for task in tasks}
        for finished in as_completed(running):
            found = table[running[finished]] = finished.result()
            error = found.get("error", {}).get("value", float("nan"))
            line = f"{found['problem']:18} {found['family']:9} {found['loss']:27} {error:.2e}"
            console.print(f"{line}  {found['failure'] or 'reached'}", soft_wrap=True)
            record(NAME, {"workers": options.workers, "rows": list(table.values())})


if __name__ == "__main__":
    main()
