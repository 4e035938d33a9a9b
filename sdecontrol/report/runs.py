"""What a law drew, as tensors that are stored and come back as the same bits; and what it cost."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import ControlRun
from sdecontrol.kernels import Kernel
from sdecontrol.noise import block_size
from sdecontrol.path import Path as Paths
from sdecontrol.path import PathWeights
from sdecontrol.problems.base import Problem
from sdecontrol.report.atomic import write
from sdecontrol.report.memory import peak_memory
from sdecontrol.simulate import prepare
from sdecontrol.steering import Particles
from sdecontrol.time import TimeGrid

Run = ControlRun | Particles


@dataclass
class Cost:
    """Wall seconds, peak memory in bytes (0 where it is not known), and calls and pullbacks of the model a sample.

    Calls are 0 where steps are folded into matrices.
    """

    seconds: float = 0.0
    calls: float = 0.0
    pullbacks: float = 0.0
    peak: int = 0

    def discount(self, run: Run, n: int) -> None:
        """Closed forms run on whole blocks of paths: of the last one the n paths that are wanted count.

        Samplers that run whole paths (best of n, rejection) keep the part of their last block that they did not need.
        """
        if isinstance(run, ControlRun):
            size = block_size(run.path.process.event_shape)
            computed = self.calls * n / max(len(run.path.transitions), 1)
            if computed > n:
                self.calls *= n / (size * -(-n // size))
                self.pullbacks *= n / (size * -(-n // size))


@contextmanager
def metered(problem: Problem, n: int) -> Iterator[Cost]:
    """What the calls of the problem's model inside the block cost, n samples being made."""
    process, cost, lock = problem.process, Cost(), threading.Lock()
    model = getattr(process, "model", None)
    state, pullback = process.state, getattr(model, "pullback", None)

    def called(t: float, x: Tensor, **options: Any) -> Any:
        with lock:
            cost.calls += len(x) / n
        return state(t, x, **options)

    def pulled(x: Tensor, *rest: Any) -> Tensor:
        with lock:
            cost.pullbacks += len(x) / n
        assert pullback is not None
        answer: Tensor = pullback(x, *rest)
        return answer

    begin = time.perf_counter()
    process.state = called  # type: ignore[method-assign]
    if model is not None:
        model.pullback = pulled
    try:
        with peak_memory() as peak:
            yield cost
            cost.peak = peak()
    finally:
        cost.seconds = time.perf_counter() - begin
        del process.state
        if model is not None:
            del model.pullback


def particles(run: Run) -> Particles:
    """Any run as samples with weights; paths weigh the same and are populations of one."""
    if isinstance(run, Particles):
        return run
    return Particles(run.path.terminal, torch.zeros(run.path.n, dtype=torch.float64), None, run.reward, run.path.n)


def store(file: Path, run: Run, cost: Cost, notes: list[str]) -> None:
    """One safetensors file, whole or absent."""
    meta: dict[str, Any] = {"cost": vars(cost), "notes": notes}
    if isinstance(run, Particles):
        log_z = run.log_normalizer
        meta |= {"populations": run.populations, "log_normalizer": None if log_z is None else log_z.to_dict()}
        tensors = {"x": run.x, "log_weights": run.log_weights, "rewards": run.rewards}
    else:
        path, w = run.path, run.path.weights
        meta |= {"controlled": path.controlled, "started": path.initial_law is not path.reference_initial}
        tensors = {
            "initial": path.initial, "terminal": path.terminal, "rewards": run.reward, "log_initial": w.log_initial,
            "martingale": w.martingale, "energy": w.energy,
        }  # fmt: skip
    write(file, save({name: t.contiguous() for name, t in tensors.items()}, {"run": json.dumps(meta)}))


def restore(
    file: Path, problem: Problem, entry: Callable[[], Any], grid: TimeGrid, kernel: Kernel
) -> tuple[Run, Cost, list[str]]:
    """The run as it was; `entry` makes the law anew where it started from a law of its own."""
    with safe_open(file, "pt") as stored:
        meta = json.loads(stored.metadata()["run"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a mapping
    cost, notes = Cost(**meta["cost"]), meta["notes"]
    if "populations" in meta:
        log_z = None if meta["log_normalizer"] is None else Estimate(**meta["log_normalizer"])
        x, log_weights, rewards = (tensors[name] for name in ("x", "log_weights", "rewards"))
        return Particles(x, log_weights, log_z, rewards, meta["populations"]), cost, notes
    resolved, process = grid.resolve(problem.process), problem.process
    reference = process.initial_law(float(resolved.times[0]))
    initial = entry()[1] if meta["started"] else reference
    weights = PathWeights(*(tensors[name] for name in ("log_initial", "martingale", "energy")))
    path = Paths(
        process, resolved, prepare(process, kernel, resolved), meta["controlled"], initial, reference,
        tensors["initial"], tensors["terminal"], weights,
    )  # fmt: skip
    return ControlRun(path, tensors["rewards"], problem.temperature), cost, notes
