"""Learn a control: the loop over iterations, the same for every loss and family."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from sdecontrol.controls import Control
from sdecontrol.errors import BadInput, NotFinite, check
from sdecontrol.finetune.batch import Batch, Loss
from sdecontrol.finetune.checkpoint import Checkpoint, FitRecord
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.report.progress import iterations_bar
from sdecontrol.simulate import prepare
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

Decay = Callable[[float], float]
Module = TypeVar("Module", bound=nn.Module)
SAVE_EVERY = 10.0  # seconds between checkpoints


def cosine(fraction: float) -> float:
    """(1 + cos(pi fraction)) / 2: from 1 at the first iteration to 0 after the last."""
    return (1 + math.cos(math.pi * fraction)) / 2


def constant(fraction: float) -> float:
    """1."""
    return 1.0


def fit(
    problem: Problem,
    control: Module,
    loss: Loss,
    *,
    optimiser: torch.optim.Optimizer | None = None,
    steps: int = 1000,
    n: int = 512,
    rate: float = 1e-2,
    decay: Decay = cosine,
    clip: float = math.inf,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    noise: Noise | None = None,
    initial: Law | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = True,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
) -> tuple[Module, FitRecord]:
    """Minimise `loss` over the parameters of `control` in `steps` iterations of n fresh paths each.

    control: a family, or any torch module that is an sc.Control; it is trained in place and returned.
    optimiser: a torch optimiser that holds the parameters (those of the loss too); default Adam with `rate` for the
    control and `loss.rate` for what the loss learns. Its rates are multiplied by decay(iteration / steps).
    clip: a longer gradient is shortened to this norm; for losses with heavy tails, as adjoint matching between modes.
    noise: iteration i draws from an address of its own, so parameters, optimiser state and i determine everything.
    initial: the law that the paths start from, default p_noise. Start at nu* (or a learned law) when it matters.
    checkpoint: a folder, written atomically every `save_every` seconds, at the end and on Ctrl-C, which stops after the
    iteration that is running and keeps what is done. resume: go on from there; the final weights have the same bits as
    those of a run that was never stopped (same machine, threads and versions).
    Raises, before work: BadInput, NotDefined (a loss that differentiates a reward without gradient), InfiniteKL;
    NotFinite naming the step (a control or model that is NaN) or the iteration (a gradient that is).
    """
    check(isinstance(control, nn.Module) and isinstance(control, Control), f"a {type(control).__name__}",
          "a torch module that is an sc.Control", "Use sc.finetune.AffineFamily, MLPFamily, ...")  # fmt: skip
    check(isinstance(loss, Loss), f"a loss of type {type(loss).__name__}", "one of sc.finetune's losses, an instance")
    check(isinstance(n, int) and n >= 2, f"n = {n!r}", "two paths or more")
    loss.check(problem, control)
    chosen_grid, chosen_kernel = grid or problem.process.default_grid, kernel or problem.process.default_kernel
    prepare(problem.process, chosen_kernel, chosen_grid.resolve(problem.process), control)
    batch = Batch(n, noise or Noise(0), chosen_grid, chosen_kernel, initial, _dtype(control))
    settings = {
        "loss": f"{type(loss).__name__}({loss.extra_repr()})", "control": type(control).__name__, "steps": steps,
        "n": n, "seed": batch.noise.seed, "rate": rate, "clip": str(clip), "grid": repr(chosen_grid),
        "kernel": repr(chosen_kernel), "problem": problem.name,
    }  # fmt: skip
    chosen = optimiser or adam(control, loss, rate)
    objective = lambda batch: loss(problem, control, batch)  # noqa: E731
    run = Training(control, loss, objective, batch, steps, chosen, decay, FitRecord(settings), clip)
    return control, run.carry_out(checkpoint, resume, save_every, progress)


def adam(control: nn.Module, loss: Loss, rate: float) -> torch.optim.Optimizer:
    """Adam with one rate for the control and the loss's own for what the loss learns."""
    groups: list[dict[str, Any]] = [{"params": list(control.parameters()), "lr": rate}]
    learned = list(loss.parameters())
    if learned:
        groups.append({"params": learned, "lr": loss.rate})
    return torch.optim.Adam(groups)


def batch_of(batch: Batch, iteration: int) -> Batch:
    """The same batch with the noise of one iteration: a seed hashed from (seed, iteration)."""
    digest = hashlib.blake2b(f"fit {batch.noise.seed} {iteration}".encode(), digest_size=8).digest()
    return replace(batch, noise=replace(batch.noise, seed=int.from_bytes(digest, "little")))


def _dtype(module: nn.Module) -> torch.dtype:
    parameters = [p for p in module.parameters() if p.requires_grad]
    check(len(parameters) > 0, f"a {type(module).__name__} without parameters to learn", "at least one")
    return parameters[0].dtype


@dataclass
class Training:
    """Iterations of an optimiser on a loss of addressed batches."""

    learned: nn.Module
    loss: nn.Module
    objective: Callable[[Batch], Tensor]
    batch: Batch
    steps: int
    optimiser: torch.optim.Optimizer
    decay: Decay
    record: FitRecord
    clip: float = math.inf

    def __post_init__(self) -> None:
        check(isinstance(self.steps, int) and self.steps >= 1, f"steps = {self.steps!r}", "a positive integer")
        self.rates = [group["lr"] for group in self.optimiser.param_groups]
        self.parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        held = {id(p) for p in self.parameters}
        missing = [name for name, p in self.learned.named_parameters() if p.requires_grad and id(p) not in held]
        check(not missing, f"an optimiser without the parameters {', '.join(missing[:3])}",
              "one that holds all of them")  # fmt: skip

    def carry_out(self, folder: str | Path | None, resume: bool, save_every: float, progress: bool) -> FitRecord:
        """All iterations that are left, saving on the way and however it ends."""
        checkpoint = None
        if folder is not None:
            modules = {"learned": self.learned, "loss": self.loss}
            checkpoint = Checkpoint(Path(folder), modules, self.optimiser)
            checkpoint.prepare()
            if resume and checkpoint.exists:
                checkpoint.restore(self.record)
        saved = time.monotonic()
        with iterations_bar(progress) as bar, _stop_requests() as stop:
            task = bar.add_task(type(self.loss).__name__, total=self.steps, completed=self.record.iterations, note="")
            for value in self._iterations():
                bar.update(task, advance=1, note=f"loss {value:.4g}")
                self.record.interrupted = stop.is_set() and self.record.iterations < self.steps
                done = stop.is_set() or self.record.iterations == self.steps
                if checkpoint is not None and (done or time.monotonic() - saved >= save_every):
                    checkpoint.save(self.record)
                    saved = time.monotonic()
                if done:
                    break
        return self.record

    def _iterations(self) -> Iterator[float]:
        """Do an iteration, note it, and yield its loss."""
        begin = time.monotonic() - (self.record.seconds[-1] if self.record.seconds else 0.0)
        for i in range(self.record.iterations, self.steps):
            for group, rate in zip(self.optimiser.param_groups, self.rates):
                group["lr"] = rate * self.decay(i / self.steps)
            self.optimiser.zero_grad(set_to_none=True)
            value = self.objective(batch_of(self.batch, i))
            value.backward()
            norm = _norm(self.parameters)
            if not math.isfinite(norm + value.item()):
                raise NotFinite(
                    f"the backward pass of iteration {i}", 0, 0.0, f"a gradient norm of {norm}, carried back",
                    "Lower the rate, or use a loss that does not differentiate paths.",
                )  # fmt: skip
            if norm > self.clip:
                for p in self.parameters:
                    if p.grad is not None:
                        p.grad.mul_(self.clip / norm)
            self.optimiser.step()
            self.record.add(value.item(), norm, time.monotonic() - begin)
            yield value.item()


def _norm(parameters: list[nn.Parameter]) -> float:
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        raise BadInput("saw a loss that depends on no parameter; wanted one that the control enters.")
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g).double() for g in gradients])))


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of cutting an iteration in two; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
