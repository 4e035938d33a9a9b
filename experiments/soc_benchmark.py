"""Every loss on every reference problem: how near the learned control comes to the optimum, against time.

The error is E sum dt |u - u_ref|^2 / E sum dt |u_ref|^2 along the reference's paths. u_ref is the best mean shift of
the chain itself, closed for quadratic and linear Ornstein-Uhlenbeck and by dynamic programming on a grid for mixtures
(`chain_optimum`); for the double well it is u* of the continuous problem, so the chain's own error is part of the
number. The distance of u* to u_ref is stated beside each problem.

A row is one fit on one thread. Its budget is in seconds of processor time, since machines are shared; wall seconds are
noted too. A fit is scored six times on its way, off the clock, and stops when two standard errors above its error
lie below the target. A row that fails says why.

    python -m experiments.soc_benchmark --problem linear-ou --loss adjoint-matching    # some rows
    python -m experiments.soc_benchmark --seconds 20                                   # another budget
    python -m experiments.soc_benchmark --table                                        # what is stored, as markdown

Rows that are done with the same budget are kept, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from rich.console import Console

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.chain_optimum import GridControl, best_mean_shift
from experiments.record import RESULTS, record
from sdecontrol.finetune.batch import returns
from sdecontrol.finetune.fit import batch_of

NAME = "soc_benchmark"
SCORES = 6  # along a fit, the last one included
SCORED_PATHS = 1024
QUIET = ("relative-entropy, sticking", "adjoint-matching, sticking")  # their noise vanishes where u* is smooth in x
RATIO = ("log-variance", "trajectory-balance")  # they read density ratios and differentiate nothing on the way
FEW, FALLING = 0.05, 0.5  # effective samples that are few; a last half of a fit that more than halves its error
OTHERS = 4.0  # seconds for the other losses of a family: enough to see what holds them


@dataclass(frozen=True)
class Entry:
    """A family to learn, what it has to reach and how long it may take."""

    make: Callable[[], ft.Family]
    target: float
    seconds: float  # of processor time
    suited: tuple[str, ...]  # losses that get all of it
    ridge: float = 1e-6  # of the natural gradient of a linear family
    paths: int = 256  # that its metric is taken on


@dataclass(frozen=True)
class Setting:
    """A problem with the chain that it is solved on, what it is scored against, and its families."""

    problem: sc.Problem
    grid: sc.TimeGrid
    reference: Any
    route: str
    initial: Any
    entries: dict[str, Entry]
    values: Callable[[], ft.ValueFamily]


def ornstein_uhlenbeck(problem: sc.Problem) -> Setting:
    d, grid, features = problem.process.dim, sc.TimeGrid.uniform(50), ft.Polynomials(5)
    entries = {
        "affine": Entry(lambda: ft.AffineFamily(d, features), 2e-5, 40.0, QUIET),
        "mlp": Entry(lambda: ft.MLPFamily(d, 64, 2), 1e-3, 30.0, QUIET),
    }
    reference = problem.discretise(grid=grid).exact.control
    return Setting(problem, grid, reference, "best mean shift of the chain, closed", None, entries,
                   lambda: ft.QuadraticValue(d, features))  # fmt: skip


@cache
def mixture_corrections(steps: int) -> Any:
    """Of the plane's chain; more dimensions add coordinates that the reward does not see."""
    return best_mean_shift(sc.problems.gaussian_mixture(2), sc.TimeGrid.log_snr(steps, s_min=0.03))


def mixture(dim: int, target: float, seconds: float, steps: int = 40) -> Setting:
    problem, grid = sc.problems.gaussian_mixture(dim), sc.TimeGrid.log_snr(steps, s_min=0.03)
    best = GridControl(problem, mixture_corrections(steps))
    entries = {"learned-guidance": Entry(lambda: ft.LearnedGuidance(problem), target, seconds, RATIO)}
    if dim == 2:
        entries = {"ridge-value": Entry(lambda: ft.RidgeValue(2), target, seconds, RATIO, 1e-8)}
    return Setting(problem, grid, best, "best mean shift of the chain, dynamic programming", problem.exact.initial,
                   entries, lambda: ft.NetworkValue(dim, 64, 2))  # fmt: skip


def double_well() -> Setting:
    problem, features = sc.problems.double_well(), ft.Decays(6)  # the wells forget fast: u* acts late
    make = lambda: ft.CoordinateFamily(10, features, 13)  # noqa: E731
    entries = {"coordinate": Entry(make, 1e-2, 80.0, (*RATIO, "adjoint-matching"), paths=1024)}
    return Setting(problem, sc.TimeGrid.uniform(200), problem.exact.control, "u* of the continuous problem", None,
                   entries, lambda: ft.NetworkValue(10, 64, 2, features))  # fmt: skip


SETTINGS: dict[str, Callable[[], Setting]] = {
    "linear-ou": lambda: ornstein_uhlenbeck(sc.problems.linear_ou()),
    "quadratic-ou-easy": lambda: ornstein_uhlenbeck(sc.problems.quadratic_ou("easy")),
    "quadratic-ou-hard": lambda: ornstein_uhlenbeck(sc.problems.quadratic_ou("hard")),
    "mixture-2d": lambda: mixture(2, 2e-3, 45.0),
    "mixture-16d": lambda: mixture(16, 5e-2, 15.0),
    "double-well": double_well,
}
FAMILIES: dict[str, tuple[str, ...]] = {name: ("affine", "mlp") for name in SETTINGS if "ou" in name}
FAMILIES |= {"mixture-2d": ("ridge-value",), "mixture-16d": ("learned-guidance",), "double-well": ("coordinate",)}


@dataclass(frozen=True)
class Recipe:
    """A loss, its paths an iteration, the rate of natural gradients; whether its noise grows with the parameters."""

    make: Callable[[ft.Family, int], ft.Loss]
    n: int = 256
    rate: float = 0.5
    grows: bool = False


LOSSES: dict[str, Recipe] = {
    "relative-entropy, sticking": Recipe(lambda family, d: ft.RelativeEntropy()),
    "relative-entropy": Recipe(lambda family, d: ft.RelativeEntropy(sticking=False)),
    "adjoint-matching, sticking": Recipe(lambda family, d: ft.AdjointMatching(sticking=True)),
    "adjoint-matching": Recipe(lambda family, d: ft.AdjointMatching(), 1024, 0.3),
    "soc-matching": Recipe(lambda family, d: ft.SOCMatching(ft.Reparametrisation(d, dtype=family.dtype)), 512, 0.3),
    "log-variance": Recipe(lambda family, d: ft.LogVariance(), 1024, grows=True),
    "trajectory-balance": Recipe(lambda family, d: ft.TrajectoryBalance(), 1024, grows=True),
    "cross-entropy": Recipe(lambda family, d: ft.CrossEntropy(), 1024, grows=True),
    "value-regression": Recipe(lambda family, d: ft.ValueRegression(), 512),
}
NETWORK_RATE, VALUE_RATE = 5e-3, 5e-2  # of Adam
CLIP = 1.0  # of the gradients of networks: adjoints have heavy tails between modes


def optimiser_of(family: ft.Family, loss: ft.Loss, recipe: Recipe, entry: Entry) -> torch.optim.Optimizer:
    """Natural gradients where the family is linear, slower where they have little to go by; else Adam."""
    if isinstance(family, ft.LinearFamily):
        most = recipe.n / (2 * family.theta.numel()) if recipe.grows else 1.0
        return ft.NaturalGradient(family, loss, rate=min(recipe.rate, most), ridge=entry.ridge, paths=entry.paths)
    return ft.adam(family, loss, VALUE_RATE if isinstance(family, ft.QuadraticValue) else NETWORK_RATE)


def learn(setting: Setting, entry: Entry, recipe: Recipe, values: bool, seconds: float) -> dict[str, Any]:
    """Fit for at most `seconds` of processor time, scored on the way."""
    problem = setting.problem
    family = setting.values() if values else entry.make()
    loss = recipe.make(family, problem.process.dim)
    loss.check(problem, family)
    optimiser = optimiser_of(family, loss, recipe, entry)
    rates = [group["lr"] for group in optimiser.param_groups]
    batch = ft.Batch(recipe.n, sc.Noise(0), setting.grid, problem.process.default_kernel, setting.initial, family.dtype)
    spent = wall = 0.0
    curve: list[dict[str, Any]] = []
    i = 0
    while len(curve) < SCORES:
        begin, begin_wall = time.process_time(), time.monotonic()
        for group, base in zip(optimiser.param_groups, rates):
            group["lr"] = base * ft.cosine(min(spent / seconds, 1.0))
        optimiser.zero_grad(set_to_none=True)
        value = loss(problem, family, batch_of(batch, i))
        value.backward()
        torch.nn.utils.clip_grad_norm_(family.parameters(), CLIP if family.dtype == torch.float32 else math.inf)
        optimiser.step()
        i, spent, wall = i + 1, spent + time.process_time() - begin, wall + time.monotonic() - begin_wall
        if spent >= seconds * (len(curve) + 1) / SCORES:
            found = ft.control_error(
                problem, family, setting.reference, setting.initial, grid=setting.grid, n=SCORED_PATHS
            )
            curve.append({"cpu": spent, "wall": wall, "iterations": i, "error": found.value, "stderr": found.stderr})
            if found.value + 2 * found.stderr <= entry.target:
                break
    last = {**curve[-1], "value": curve[-1]["error"]}
    return {"curve": curve, **{k: last[k] for k in ("cpu", "wall", "iterations", "error", "stderr")},
            "ess": effective(setting, family, batch)}  # fmt: skip


def effective(setting: Setting, control: Any, batch: ft.Batch) -> float:
    """Fraction of effective samples of the weights e^R under the learned control."""
    with torch.no_grad():
        path = batch.paths(setting.problem, control)
        weights = returns(setting.problem, path) - path.weights.log_ratio()
    return sc.effective_sample_size(weights) / batch.n


def row(problem: str, family: str, loss: str, seconds: float | None) -> dict[str, Any]:
    """One fit and its verdict."""
    setting, recipe = SETTINGS[problem](), LOSSES[loss]
    entry = setting.entries[family]
    budget = seconds or (entry.seconds if loss in entry.suited else OTHERS)
    named = {"problem": problem, "family": family, "loss": loss, "budget": budget, "target": entry.target}
    try:
        found = learn(setting, entry, recipe, loss == "value-regression", budget)
    except sc.SDEControlError as error:
        return {**named, "reached": False, "failure": f"{type(error).__name__}: {error}"}
    reached = found["error"] <= entry.target
    reason = None if reached else why([point["error"] for point in found["curve"]], found["ess"])
    return {**named, **found, "n": recipe.n, "reached": reached, "failure": reason}


def why(errors: list[float], ess: float) -> str:
    """What kept a fit from its target: weights, divergence, time or the noise of its gradients."""
    if ess < FEW:
        return f"few effective samples ({ess:.1%})"
    if errors[-1] > 1.5 * min(errors):
        return "unstable: its noise grows with the control"
    late = errors[-1] / errors[len(errors) // 2]
    return "still falling when its time was up" if late < FALLING else "noise of its gradients"


def reference_of(name: str) -> dict[str, Any]:
    """What the rows of a problem are scored against, and how far u* is from it."""
    setting = SETTINGS[name]()
    away = ft.control_error(setting.problem, setting.problem.exact.control, setting.reference, setting.initial,
                            grid=setting.grid, n=8192)  # fmt: skip
    return {"route": setting.route, "steps": setting.grid.steps, "distance_of_u_star": away.to_dict()}


def stored() -> dict[str, Any]:
    file = RESULTS / f"{NAME}.json"
    return json.loads(file.read_text()) if file.exists() else {"references": {}, "rows": []}


def keep(found: dict[str, Any]) -> None:
    """Add a row to what the file holds now; another piece of the run may have added its own."""
    key = lambda r: (r["problem"], r["family"], r["loss"])  # noqa: E731
    held = stored()
    if found["problem"] not in held["references"]:
        held["references"][found["problem"]] = reference_of(found["problem"])
    rows = [r for r in held["rows"] if key(r) != key(found)]
    record(NAME, {"references": held["references"], "rows": sorted([*rows, found], key=key)})


def wanted(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """(problem, family, loss) of the rows asked for; a network on an affine problem for the quiet losses only."""
    return [
        (problem, family, loss)
        for problem in options.problem or SETTINGS
        for family in options.family or FAMILIES[problem]
        for loss in options.loss or LOSSES
        if family in FAMILIES[problem] and (family != "mlp" or loss in QUIET)
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", action="append", choices=SETTINGS)
    parser.add_argument("--family", action="append")
    parser.add_argument("--loss", action="append", choices=LOSSES)
    parser.add_argument("--seconds", type=float, help="processor time a row; default the problem's own budget")
    parser.add_argument("--table", action="store_true", help="print the stored rows and run nothing")
    return parser.parse_args()


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown; a pair that is not listed was not run."""
    lines = [
        "| problem | family | loss | error | target | processor s (wall s) | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        error = f"{r['error']:.1e} ± {r['stderr']:.0e}" if "error" in r else "-"
        spent = f"{r['cpu']:.0f} ({r['wall']:.0f})" if "cpu" in r else "-"
        cells = (r["problem"], r["family"], r["loss"], error, f"{r['target']:.0e}", spent, r["failure"] or "reached")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    options, console = arguments(), Console()
    if options.table:
        print(table(stored()["rows"]))
        return
    torch.set_num_threads(1)
    for names in wanted(options):
        done = {(r["problem"], r["family"], r["loss"]): r["budget"] for r in stored()["rows"]}
        if names in done and options.seconds in (None, done[names]):
            continue
        found = row(*names, options.seconds)
        keep(found)
        verdict = found["failure"] or f"reached in {found['cpu']:.0f} s of processor time"
        console.print(f"{' '.join(names)}: {found.get('error', math.nan):.2e}  {verdict}", soft_wrap=True)


if __name__ == "__main__":
    main()
