"""Score a control or a sampler: reward, path KL and distance from its own chain's optimum, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, NotFinite, check
from sdecontrol.estimate import Estimate
from sdecontrol.girsanov import effective_sample_size, path_kl
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.path import Path
from sdecontrol.simulate import rows_not_finite, simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Discretised, Problem

TV_STDERRS = 3.0  # standard errors added to the gap before it is turned into a bound


@dataclass(frozen=True)
class Evaluation:
    """What n paths say about a control; temperature T, L = log dQ^{u,nu}/dQ of a path, r its total reward.

    reward: E r. kl: path KL. objective: E r - T KL. optimum: T log Z of the chain (closed form, stderr 0; else T log of
    the mean weight, biased low). gap = T (log Z - E[r/T - L]) = T KL(Q^{u,nu} || Q*), joint standard error.
    excess: objective of the best mean shift - objective, where that is closed, else None.
    certificate: R = r/T - L - log Z, zero on every path iff the control is optimal; its mean is -KL(Q^{u,nu} || Q*).
    tv_bound: min(1, sqrt((gap + 3 stderr) / (2 T))), a bound on the distance of the terminal law from the tilt; with an
    estimated optimum it is tv_estimate instead, no bound. ess: effective samples of the n weights e^{r/T - L}.
    Where paths have several conditions, an estimated optimum is the mean over them of T log Z of each, log Z in gap and
    certificate is that of the path's own, and the errors of reward and objective count the spread between conditions.
    Source: derived (Pinsker and data processing on Tang 2403.06279, Prop. 3.6).
    """

    reward: Estimate
    kl: Estimate
    objective: Estimate
    optimum: Estimate
    gap: Estimate
    excess: Estimate | None
    certificate_mean: Estimate
    certificate_rms: Estimate
    ess: Estimate
    tv_bound: Estimate | None
    tv_estimate: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: None if e is None else e.to_dict() for name, e in named.items()}


@runtime_checkable
class SamplerLike(Protocol):
    """It draws from the tilt by itself instead of being simulated."""

    def run(self, problem: Problem, *, grid: Any, kernel: Any, n: int, noise: Noise | None) -> Drawn: ...


class Drawn(Protocol):
    """What a sampler drew; it says what can be said of it: a sc.steering.SamplerEvaluation."""

    def evaluation(self, chain: Discretised, optimum: Estimate | None) -> Any:
        """`optimum` is temperature * log Z where it is known or shared."""


def evaluate(
    problem: Problem,
    control: Any,
    initial: Law | None = None,
    *,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    n: int = 10_000,
    noise: Noise | None = None,
) -> Evaluation | Any:
    """Simulate n paths under (control, initial) and score them against the optimum of their own chain: an `Evaluation`.

    For a sampler of sc.steering n is its number of samples, and the result is a sc.steering.SamplerEvaluation.
    Raises: NotFinite when a reward is NaN or infinite; whatever `simulate` raises.
    """
    run = collect(problem, (control, initial), grid=grid, kernel=kernel, n=n, noise=noise)
    optimum = _closed_optimum(problem, grid, kernel)
    if isinstance(run, ControlRun):
        return _score(run, optimum)
    return run.evaluation(problem.discretise(kernel, grid), None if optimum is None else optimum.value)


@dataclass(frozen=True)
class ControlRun:
    """Paths of one control with their total rewards (n,)."""

    path: Path
    reward: Tensor
    temperature: float

    @property
    def log_weight(self) -> Tensor:
        """log of e^{r/T} dQ/dQ^{u,nu}: its mean exponential is Z for every control."""
        return self.reward / self.temperature - self.path.log_ratio()

    @property
    def log_normalizer(self) -> Estimate:
        """log Z by these paths: the log of their mean weight, biased low."""
        return Estimate.log_mean_exp(self.log_weight)


def collect(
    problem: Problem, entry: Any, *, grid: TimeGrid | None = None, kernel: Kernel | None = None, n: int = 10_000,
    noise: Noise | None = None,
) -> ControlRun | Drawn:  # fmt: skip
    """n paths of a control or (control, initial law), or what a sampler draws: all that `score` needs to know."""
    control, initial = entry if isinstance(entry, tuple) else (entry, None)
    if not isinstance(control, SamplerLike):
        return _run(problem, control, initial, grid, kernel, n, noise)
    check(initial is None, f"an initial law beside {control!r}", "none",
          "Give it to the sampler, as in sc.steering.fk(problem, particles, initial=law).")  # fmt: skip
    return control.run(problem, grid=grid, kernel=kernel, n=n, noise=noise)


@dataclass(frozen=True)
class _Optimum:
    """T log Z of the chain and, where closed, the objective of its best mean shift."""

    value: Estimate
    best_mean_shift: float | None
    log_z: Tensor | None = None  # of each path's condition, (n,), when it was estimated from paths
    influence: Tensor | None = None  # of that estimate, (n,)


def total_reward(problem: Problem, path: Path) -> Tensor:
    """r(Y_T) plus the running reward summed at the left end of each step: (n,), float64."""
    total = problem.reward(path.terminal)
    check(tuple(total.shape) == (path.n,), f"a reward of shape {tuple(total.shape)} at the last step", f"({path.n},)")
    if not torch.isfinite(total).all():
        error = NotFinite("the reward", len(path.transitions), float(path.times[-1]),
                          f"a value that is not finite for {rows_not_finite(total)}")  # fmt: skip
        error.finished = (torch.arange(path.n), path.terminal)
        raise error
    total = total.double()
    if path.observed is not None:
        total = total + torch.tensor(path.grid.dt) @ path.observed[:-1].double()
    return total


def _run(
    problem: Problem, control: Any, initial: Law | None, grid: Any, kernel: Any, n: int, noise: Noise | None
) -> ControlRun:
    made_for = getattr(control, "problem", None)
    check(made_for in (None, problem), f"a control made for {made_for!r}", f"one made for {problem!r}",
          "Make the control again from this problem.")  # fmt: skip
    observe = None
    if problem.running_reward is not None:
        observe = lambda k, t, x: problem.running_rate(t, x)  # noqa: E731
    path = simulate(
        problem.process, control, initial, grid=grid, kernel=kernel, n=n, noise=noise, keep="ends", observe=observe
    )
    return ControlRun(path, total_reward(problem, path), problem.temperature)


def _closed_optimum(problem: Problem, grid: TimeGrid | None, kernel: Kernel | None) -> _Optimum | None:
    chain = problem.discretise(kernel=kernel, grid=grid).exact
    try:
        optimum = Estimate.exact(chain.optimum, "closed form of the chain")
    except NoClosedForm:
        return None
    try:
        return _Optimum(optimum, float(chain.objective))
    except NoClosedForm:  # a reward whose best mean shift is not closed
        return _Optimum(optimum, None)


def _estimated_optimum(run: ControlRun) -> _Optimum:
    """T log Z by the mean weight of the paths; with several conditions the mean over them of T log Z of each."""
    w, group, groups = run.log_weight, run.path.group, run.path.process.groups
    check(len(w) >= 2 * groups, f"n = {len(w)} paths for {groups} conditions", "at least two paths for each")
    route = "log of the mean weight, biased low" + (f"; mean over {groups} conditions" if groups > 1 else "")
    each = [Estimate.log_mean_exp(w[group == g], route) for g in range(groups)]
    total = sum(each[1:], each[0]) * (1 / groups)
    log_z = torch.tensor([e.value for e in each], dtype=torch.float64)[group]
    value = Estimate(total.value, total.stderr, len(w), route) * run.temperature
    return _Optimum(value, None, log_z, torch.exp(w - log_z) - 1)


def _score(run: ControlRun, optimum: _Optimum | None) -> Evaluation:
    shared = optimum is not None
    optimum = optimum or _estimated_optimum(run)
    path, t, w = run.path, run.temperature, run.log_weight
    log_z = torch.full_like(w, float(optimum.value.value) / t) if optimum.log_z is None else optimum.log_z
    gap_samples = t * (log_z - w) if optimum.influence is None else t * (log_z - w + optimum.influence)
    gap = Estimate.mean(gap_samples, "temperature (log Z - E[r/T - L])")
    initial_kl = path.initial_kl()
    if initial_kl.stderr == 0:
        objective = Estimate.mean(run.reward - t * path.weights.energy, "E r - T KL", -t * initial_kl.value)
    else:
        objective = Estimate.mean(run.reward - t * (path.weights.energy + path.weights.log_initial), "E r - T KL")
    best = optimum.best_mean_shift
    excess = None if best is None else Estimate.mean(best - t * w, "best mean shift - objective")
    residual = w - log_z
    squares = Estimate.mean(residual**2)
    rms = math.sqrt(squares.value)
    bound = Estimate.exact(
        min(1.0, math.sqrt(max(gap.value + TV_STDERRS * gap.stderr, 0.0) / (2 * t))), "Pinsker on the gap"
    )
    closed = shared and optimum.value.stderr == 0
    return Evaluation(
        reward=Estimate.mean(run.reward, "mean reward"),
        kl=path_kl(path),
        objective=objective,
        optimum=optimum.value,
        gap=gap,
        excess=excess,
        certificate_mean=Estimate.mean(residual, "mean certificate"),
        certificate_rms=Estimate(
            rms, squares.stderr / (2 * rms) if rms else 0.0, path.n, "root mean square certificate"
        ),
        ess=Estimate(effective_sample_size(w), 0.0, path.n, "effective samples of n"),
        tv_bound=bound if closed else None,
        tv_estimate=None if closed else bound,
    )


@dataclass(frozen=True)
class Comparison:
    """Evaluations by name, with paired noise and one shared optimum; samplers' rows are SamplerEvaluations.

    chain: what all of them ran on. free: rewards of the paths that nothing moved, where they are among the rows.
    """

    rows: dict[str, Any]
    chain: Discretised
    free: Tensor | None = None

    @property
    def temperature(self) -> float:
        return self.chain.problem.temperature

    def to_dict(self) -> dict[str, Any]:
        return {name: row.to_dict() for name, row in self.rows.items()}

    def __str__(self) -> str:
        from sdecontrol.report.tables import comparison_table, render

        return render(comparison_table(self))

    def plot(self, file: str | FilePath) -> None:
        """Reward against path KL with error bars, one point a control, and the exact front, which no control is above.

        The front is `sdecontrol.report.front`'s, of continuous time and with the start free. It is left out where it
        needs paths of a network that are not among the rows. Samplers have no path KL and are left out.
        """
        from sdecontrol.report.figures import reward_against_kl

        controls = {name: row for name, row in self.rows.items() if isinstance(row, Evaluation)}
        check(len(controls) > 0, "samplers only", "a control, which has a path KL")
        reward_against_kl(replace(self, rows=controls), FilePath(file))


def compare(
    problem: Problem,
    controls: Mapping[str, Any],
    *,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    n: int = 10_000,
    noise: Noise | None = None,
    show: bool = True,
) -> Comparison:
    """Evaluate several controls on the same noise against one optimum; entries are controls or (control, initial law).

    An entry may also be a sampler of sc.steering, which draws n samples at its own cost. The optimum is the chain's
    closed form, else the estimate of the control with the largest effective sample size.
    """
    check(len(controls) > 0, "no controls", "a dictionary of name -> control or (control, initial)")
    entries = {name: c if isinstance(c, tuple) else (c, None) for name, c in controls.items()}
    for name, entry in entries.items():
        if len(entry) != 2:
            raise BadInput(f"saw a tuple of {len(entry)} for {name!r}; wanted (control, initial law).")
    runs = {
        name: collect(problem, entry, grid=grid, kernel=kernel, n=n, noise=noise) for name, entry in entries.items()
    }
    rows = score(problem, runs, grid=grid, kernel=kernel)
    table = Comparison(rows, problem.discretise(kernel, grid), free_rewards(runs.values()))
    if show:
        print(table)
    return table


def free_rewards(runs: Iterable[Any]) -> Tensor | None:
    """Total rewards of the first run that neither a control nor a start moved: (n,), or None."""
    controls = [run for run in runs if isinstance(run, ControlRun)]
    free = [run for run in controls if not run.path.controlled and run.path.initial_law is run.path.reference_initial]
    return free[0].reward if free else None


def score(
    problem: Problem, runs: Mapping[str, Any], *, grid: TimeGrid | None = None, kernel: Kernel | None = None
) -> dict[str, Any]:
    """What `collect` gave by name, scored against one optimum: an Evaluation or a SamplerEvaluation each."""
    controls = {name: run for name, run in runs.items() if isinstance(run, ControlRun)}
    optimum = _closed_optimum(problem, grid, kernel)
    if optimum is None and controls:
        best = max(controls, key=lambda name: effective_sample_size(controls[name].log_weight))
        estimated = _estimated_optimum(controls[best])
        route = f"log of the mean weight under {best!r}, biased low"
        value = Estimate(estimated.value.value, estimated.value.stderr, controls[best].path.n, route)
        optimum = replace(estimated, value=value)
    chain, value_or_none = problem.discretise(kernel, grid), None if optimum is None else optimum.value
    return {
        name: _score(run, optimum) if isinstance(run, ControlRun) else run.evaluation(chain, value_or_none)
        for name, run in runs.items()
    }


__all__ = [
    "Comparison",
    "ControlRun",
    "Evaluation",
    "collect",
    "compare",
    "evaluate",
    "free_rewards",
    "score",
    "total_reward",
]
