"""The loop over time. Blocks of paths run on worker threads, one intra-op thread each."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import torch
from torch import Tensor

from sdecontrol.controls import Control, as_control, check_consistent
from sdecontrol.errors import BadInput, InfiniteKL, NotDefined, NotFinite, check
from sdecontrol.kernels import Kernel, Transition
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.path import Path, PathWeights, _log_initial, half_square, inner
from sdecontrol.processes import Process
from sdecontrol.stepper import Stepper, stepper_of
from sdecontrol.time import ResolvedGrid, TimeGrid

Observer = Callable[[int, float, Tensor], Tensor]
_NOTHING = torch.zeros(1, dtype=torch.float64)  # the log ratio of paths that nothing weighs
_SMALL_EVENT = 4096  # below it a block of paths is one worker's job and intra-op threads only get in the way


def simulate(
    process: Process,
    control: Any = None,
    initial: Law | Tensor | None = None,
    *,
    grid: TimeGrid | None = None,
    kernel: Kernel | None = None,
    n: int = 10_000,
    noise: Noise | None = None,
    keep: str = "all",
    observe: Observer | None = None,
    grad: bool = False,
    workers: int | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """n paths of the chain x_{k+1} = mean_k + std_k (xi_k + sqrt(dt_k) u_k), started from `initial` (default p_noise).

    control: None, an sc.Control or a function f(step) -> u (n, *event). initial: a law, or states (n, *event).
    keep: "all" stores states and noises; "ends" stores ends and running sums, O(n d). observe(k, t, x) is called at
    every grid time and its results are stacked. grad: keep the autograd graph (one worker, nothing detached).
    dtype: of the states; default the process's (that of its law; float32 for a network).
    Exact for the chain; its distance to the continuum is the kernel's.
    The same noise bits for any n and workers; the same state bits too when model and control are closed forms.
    Raises: InfiniteKL when a control meets a noiseless step before the last; NotFinite naming step, time and culprit.
    """
    control, grid, kernel = as_control(control), grid or process.default_grid, kernel or process.default_kernel
    noise = noise or process.default_noise
    check(keep in ("all", "ends"), f"keep={keep!r}", '"all" or "ends"')
    check(isinstance(n, int) and n >= 1, f"n = {n!r}", "a positive number of paths")
    check(isinstance(noise, Noise), f"noise of type {type(noise).__name__}", "sc.Noise(seed)")
    resolved = grid.resolve(process)
    reference = process.initial_law(float(resolved.times[0]))
    start = _start(process, reference if initial is None else initial, n)
    transitions = prepare(process, kernel, resolved, control)
    dtype = dtype or (start.dtype if isinstance(start, Tensor) else process.dtype)
    stepper = stepper_of(process, transitions, control, dtype, fold=not grad)
    keep_all = keep == "all"
    job = _Job(
        process, control, start, reference, resolved, transitions, stepper, noise, n, keep_all, observe, grad, dtype
    )
    out = _Buffers(job)
    indices = range(-(-n // noise.block_size(process.event_shape)))
    small = process.dim < _SMALL_EVENT
    workers = 1 if grad or not small else min(workers or os.cpu_count() or 1, len(indices))
    with _intra_op_threads(1 if small else None), out.kept_on_error():
        if workers == 1:
            for index in indices:
                job.run(index, out)
        else:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(lambda index: job.run(index, out), indices))
    return Path(
        process,
        resolved,
        transitions,
        control is not None,
        None if isinstance(start, Tensor) else start,
        reference,
        **out.collect(),
    )


def prepare(process: Process, kernel: Kernel, grid: ResolvedGrid, control: Any = None) -> list[Transition]:
    """The kernel's transitions on a grid. Raises InfiniteKL when a control would meet a noiseless inner step."""
    times = [float(t) for t in grid.times]
    transitions = kernel.transitions(process, times)
    check_consistent(control, kernel, process)
    if control is not None:
        if not all(transition.gaussian for transition in transitions):
            raise NotDefined(f"a control shifts the mean of a Gaussian step, and those of {kernel!r} are not Gaussian")
        for k, transition in enumerate(transitions[:-1]):
            if transition.noiseless:
                raise InfiniteKL(
                    f"step {k} (t = {transition.t:.6g}) of {kernel!r} has no noise, so any control there has "
                    "infinite KL; wanted std > 0 before the last step. Use eta > 0 or another kernel."
                )
    return transitions


def _start(process: Process, initial: Law | Tensor, n: int) -> Law | Tensor:
    if isinstance(initial, Tensor):
        check(
            tuple(initial.shape) == (n, *process.event_shape),
            f"initial states of shape {tuple(initial.shape)}",
            f"{(n, *process.event_shape)}: one state a path",
        )
        return initial
    check(isinstance(initial, Law), f"initial of type {type(initial).__name__}", "a law or a tensor of states")
    check(
        tuple(initial.event_shape) == process.event_shape,
        f"an initial law on {tuple(initial.event_shape)}",
        f"event shape {process.event_shape}, that of the process",
    )
    return initial


@contextmanager
def _intra_op_threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Job:
    """Everything a worker needs to run one block of paths."""

    process: Process
    control: Control | None
    start: Law | Tensor
    reference: Law
    grid: ResolvedGrid
    transitions: list[Transition]
    stepper: Stepper
    noise: Noise
    n: int
    keep: bool
    observe: Observer | None
    grad: bool
    dtype: torch.dtype

    @property
    def whole_blocks(self) -> bool:
        """Closed forms are computed on whole blocks, so that a path's bits do not depend on the number of paths."""
        return self.process.elementwise and (self.control is None or self.control.elementwise) and not self.grad

    @property
    def weighted(self) -> bool:
        """Whether a path can have a log ratio other than 0, by its start or by a control."""
        same_start = isinstance(self.start, Tensor) or self.start is self.reference
        return self.control is not None or self.grad or not same_start

    def run(self, index: int, out: _Buffers) -> None:
        with torch.set_grad_enabled(self.grad):
            self._run(index, out, checked=not self.whole_blocks)
            if self.whole_blocks and not out.finite(index):
                self._run(index, out, checked=True)  # the same bits again, to name the step and the culprit

    def _run(self, index: int, out: _Buffers, checked: bool) -> None:
        size = self.noise.block_size(self.process.event_shape)
        count = min(size, self.n - index * size)
        rows = size if self.whole_blocks else count
        x = self._initial(index, size, count)[:rows].to(self.dtype)
        law = self.reference if isinstance(self.start, Tensor) else self.start
        log_initial = _log_initial(law, self.reference, x) if self.weighted else _NOTHING
        martingale, energy = torch.zeros_like(log_initial), torch.zeros_like(log_initial)
        out.begin(index, count, x)
        looked_at = checked or self.keep or self.observe is not None
        stepper, normals = self.stepper.at_paths(index * size), self._normals(index, size)
        y = stepper.start(x)
        for k, xi in zip(range(len(self.transitions)), normals, strict=False):
            xi = (xi if rows == size else xi[:rows]).to(self.dtype)
            y, w = stepper.advance(k, y, xi)
            if w is not None:
                energy = energy + half_square(w)
                martingale = martingale + inner(w, xi)
            if looked_at:
                x = stepper.position(k + 1, y)
                if checked:
                    _diagnose(k, self.transitions[k], x, w, index * size)
                out.step(index, count, k, x, xi if w is None else xi + w)
        x = stepper.position(len(self.transitions), y)
        out.end(index, count, x, PathWeights(log_initial, martingale, energy))

    def _normals(self, index: int, size: int) -> Iterator[Tensor]:
        """Those of the block's steps; zeros, at no cost, after the last step with noise."""
        drawn = max((k + 1 for k, transition in enumerate(self.transitions) if not transition.noiseless), default=0)
        silence = repeat(torch.zeros(1).expand(size, *self.process.event_shape))
        if drawn == 0:
            return silence
        steps = self.noise.steps(index, self.process.event_shape, self.grid.times[: drawn + 1])
        return chain(islice(steps, drawn), silence)

    def _initial(self, index: int, size: int, count: int) -> Tensor:
        if isinstance(self.start, Tensor):
            x = self.start[index * size : index * size + count]
            return (
                torch.cat([x, x[-1:].expand(size - count, *x.shape[1:])]) if self.whole_blocks and count < size else x
            )
        return self.start.draw(self.noise.block("initial", index, self.n, self.process.event_shape))


def _diagnose(k: int, transition: Transition, x: Tensor, w: Tensor | None, first: int = 0) -> None:
    """Raise NotFinite naming the control or the model, and the paths, when a state stops being finite."""
    if w is not None and not _is_finite(w):
        raise NotFinite("the control", k, transition.t, f"a value that is not finite for {rows_not_finite(w, first)}",
                        "Check the control's formula (or the reward in it) at this time.")  # fmt: skip
    if not _is_finite(x):
        raise NotFinite(
            "the process's drift or score",
            k,
            transition.t,
            f"a state that is not finite for {rows_not_finite(x, first)}",
            "A finer grid near the data, or another kernel, may keep the chain stable.",
        )


def rows_not_finite(x: Tensor, first: int = 0) -> str:
    """The paths whose rows of x (n, ...) are not finite, by number from `first` on: "path 3" or "paths 3, 5, ..."."""
    bad = (~torch.isfinite(x).reshape(len(x), -1).all(1)).nonzero()[:, 0] + first
    shown = ", ".join(str(int(i)) for i in bad[:5])
    return f"path{'s' if len(bad) > 1 else ''} {shown}{', ...' if len(bad) > 5 else ''}"


def _is_finite(x: Tensor) -> bool:
    """Whether all entries are: by one sum, and one by one only where the sum is not finite itself."""
    return math.isfinite(float(x.detach().sum())) or bool(torch.isfinite(x).all())


def _empty(shape: tuple[int, ...], vectors: bool, dtype: torch.dtype) -> Tensor:
    """An array (..., n, *event); vectors lie with the paths contiguous, as they are drawn and stepped."""
    if not vectors:
        return torch.empty(shape, dtype=dtype)
    return torch.empty(*shape[:-2], shape[-1], shape[-2], dtype=dtype).mT


class _Buffers:
    """Where blocks write their results: preallocated tensors, or lists of blocks when a graph is kept."""

    def __init__(self, job: _Job):
        self.job, self.grad = job, job.grad
        n, event, steps = job.n, job.process.event_shape, len(job.transitions)
        self.size = job.noise.block_size(event)
        self.done: list[int] = []
        self.blocks: dict[str, dict[Any, Tensor]] = {}
        self.arrays: dict[str, Tensor] = {}
        if not self.grad:
            shapes = {"initial": (n, *event), "terminal": (n, *event)}
            if job.keep:
                shapes |= {"states": (steps + 1, n, *event), "noises": (steps, n, *event)}
            self.arrays = {name: _empty(shape, len(event) == 1, job.dtype) for name, shape in shapes.items()}
            self.arrays["weights"] = torch.empty(3, n, dtype=torch.float64) if job.weighted else _NOTHING.expand(3, n)

    def _put(self, name: str, index: int, k: int | None, value: Tensor) -> None:
        if name not in self.arrays:
            self.blocks.setdefault(name, {})[index, k] = value if self.grad else value.clone()
            return
        target = self.arrays[name] if k is None else self.arrays[name][k]
        target.narrow(0, index * self.size, len(value)).copy_(value)

    def _observe(self, index: int, count: int, k: int, x: Tensor) -> None:
        if self.job.observe is None:
            return
        t = float(self.job.grid.times[k])
        seen = self.job.observe(k, t, x[:count])
        if not isinstance(seen, Tensor) or len(seen) != count:
            shape = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
            raise BadInput(
                f"saw an observer result of {shape} at step {k} (t = {t:.6g}); wanted a tensor ({count}, ...)."
            )
        if not torch.isfinite(seen).all():
            raise NotFinite("the observer (or running reward)", k, t)
        self._put("observed", index, k, seen)

    def begin(self, index: int, count: int, x: Tensor) -> None:
        self._put("initial", index, None, x[:count])
        if self.job.keep:
            self._put("states", index, 0, x[:count])
        self._observe(index, count, 0, x)

    def step(self, index: int, count: int, k: int, x: Tensor, z: Tensor) -> None:
        if self.job.keep:
            self._put("states", index, k + 1, x[:count])
            self._put("noises", index, k, z[:count])
        self._observe(index, count, k + 1, x)

    def end(self, index: int, count: int, x: Tensor, weights: PathWeights) -> None:
        self._put("terminal", index, None, x[:count])
        for i, part in enumerate((weights.log_initial, weights.martingale, weights.energy)):
            if self.grad:
                self._put("weights", index, i, part[:count])
            elif self.job.weighted:
                self.arrays["weights"][i].narrow(0, index * self.size, count).copy_(part[:count])

        self.done.append(index)

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """A NotFinite leaves with the paths that were finished before it: `.finished`, their numbers and ends."""
        try:
            yield
        except NotFinite as error:
            if not self.grad:
                blocks = [torch.arange(self.job.n)[i * self.size : (i + 1) * self.size] for i in sorted(self.done)]
                paths = torch.cat([torch.empty(0, dtype=torch.long), *blocks])
                error.finished = (paths, self.arrays["terminal"][paths])
            raise

    def finite(self, index: int) -> bool:
        rows = slice(index * self.size, (index + 1) * self.size)
        parts = [self.arrays["terminal"][rows], *([self.arrays["weights"][:, rows]] if self.job.weighted else [])]
        return all(_is_finite(part) for part in parts)

    def collect(self) -> dict[str, Any]:
        """The fields of a Path: blocks joined along the paths, steps stacked in front."""
        fields: dict[str, Any] = dict(self.arrays)
        for name, blocks in self.blocks.items():
            indices = sorted({index for index, _ in blocks})
            steps = sorted({k for _, k in blocks if k is not None})
            if steps:
                fields[name] = torch.stack([torch.cat([blocks[i, k] for i in indices]) for k in steps])
            else:
                fields[name] = torch.cat([blocks[i, None] for i in indices])
        fields["weights"] = PathWeights(*fields["weights"])
        return fields
