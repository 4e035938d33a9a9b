"""Controls: a control u shifts the standard noise of a step, x+ = mean + std (xi + sqrt(dt) u).

A control is anything callable as f(step) -> u of shape (n, *event); `Control` adds sums and strengths, and controls
that only need time and state can also be called as control(t, x).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, check
from sdecontrol.step import StepView


class Control(ABC):
    """u: a step (or time and state) -> shift of the standard noise per square root of time, (n, *event)."""

    requires_jacobian = False  # True when the control uses step.pullback, so that one network call serves both
    continuum = False  # True for the optimum of a continuous problem, which only consistent kernels approach
    elementwise = False  # True when a path's bits do not depend on the batch, once whole blocks are computed
    problem: Any = None  # the problem it was made for, where it was made for one

    @abstractmethod
    def shift(self, step: StepView) -> Tensor:
        """u for the paths at this step."""

    def at(self, t: float, x: Tensor) -> Tensor:
        """u at time t and states x, for controls that need no more than that."""
        raise NotDefined(f"{type(self).__name__} needs a step (kernel, score), not only (t, x)")

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        """(B (d, d), b (d,)) in float64 with u = B x + b. Raises NoClosedForm when the control is not affine."""
        raise NoClosedForm(f"{type(self).__name__} is not an affine control")

    def of_the_continuum(self) -> Self:
        """This control, marked as an answer about the continuous problem."""
        self.continuum = True
        return self

    def __call__(self, *args: Any) -> Tensor:
        return self.shift(args[0]) if len(args) == 1 else self.at(*args)

    def __add__(self, other: Any) -> Control:
        return Combination([(1.0, self), (1.0, require_control(other))])

    def __mul__(self, scale: float) -> Control:
        return Combination([(float(scale), self)])

    __rmul__ = __mul__

    def __sub__(self, other: Any) -> Control:
        return self + require_control(other) * -1.0

    def __neg__(self) -> Control:
        return self * -1.0


class StateControl(Control):
    """u = f(t, x)."""

    def __init__(self, f: Callable[[float, Tensor], Tensor], elementwise: bool = False):
        self.f, self.elementwise = f, elementwise

    def at(self, t: float, x: Tensor) -> Tensor:
        return self.f(t, x)

    def shift(self, step: StepView) -> Tensor:
        return self.f(step.t, step.x)


class StepControl(Control):
    """u = f(step)."""

    def __init__(self, f: Callable[[StepView], Tensor]):
        self.f = f

    def shift(self, step: StepView) -> Tensor:
        return self.f(step)


class AffineControl(Control):
    """u = gain(t) x + offset(t); gain (d, d) and offset (d,) are constants or functions of t, in float64."""

    elementwise = True

    def __init__(self, gain: Any, offset: Any = 0.0):
        self._gain = gain if callable(gain) else _constant("gain", gain)
        self._offset = offset if callable(offset) else _constant("offset", offset)
        self._cache: dict[tuple[float, torch.dtype], tuple[Tensor, Tensor]] = {}

    @classmethod
    def on_grid(cls, times: Any, gains: Any, offsets: Any) -> AffineControl:
        """Gains (K, d, d) and offsets (K, d) at the grid times t_0 .. t_{K-1} only; other times raise BadInput."""
        times = np.asarray(times, dtype=np.float64)[: len(gains)]

        def index(t: float) -> int:
            k = int(np.abs(times - t).argmin())
            check(
                abs(times[k] - t) <= 1e-12 * (1 + abs(t)),
                f"t = {t}",
                "one of the grid times the control was made for",
                "Simulate on the grid given to problem.discretise.",
            )
            return k

        return cls(lambda t: gains[index(t)], lambda t: offsets[index(t)])

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        gain = torch.atleast_2d(torch.as_tensor(self._gain(t), dtype=torch.float64))
        return gain, torch.as_tensor(self._offset(t), dtype=torch.float64) * torch.ones(len(gain), dtype=torch.float64)

    def at(self, t: float, x: Tensor) -> Tensor:
        key = (t, x.dtype)
        cast = self._cache.get(key)
        if cast is None:
            if len(self._cache) > 4096:
                self._cache.clear()
            gain, offset = self.affine_at(t)
            cast = self._cache[key] = (gain.to(x), offset.to(x)[:, None])
        return torch.addmm(cast[1], cast[0], x.mT).mT

    def shift(self, step: StepView) -> Tensor:
        return self.at(step.t, step.x)


def _constant(name: str, value: Any) -> Callable[[float], Tensor]:
    v = torch.as_tensor(value, dtype=torch.float64)
    check(bool(torch.isfinite(v).all()), f"a control {name} with NaN or infinite entries", "finite numbers")
    return lambda t: v


class Combination(Control):
    """sum_i scale_i control_i."""

    def __init__(self, terms: list[tuple[float, Control]]):
        for scale, _ in terms:
            check(np.isfinite(scale), f"a strength of {scale}", "a finite number")
        self.terms = terms
        self.requires_jacobian = any(c.requires_jacobian for _, c in terms)
        self.elementwise = all(c.elementwise for _, c in terms)
        self.continuum = any(c.continuum for _, c in terms)
        made_for = [c.problem for _, c in terms if c.problem is not None]
        check(all(p is made_for[0] for p in made_for), "controls made for different problems", "one problem")
        self.problem = made_for[0] if made_for else None

    def shift(self, step: StepView) -> Tensor:
        return _weighted_sum([(scale, control.shift(step)) for scale, control in self.terms])

    def at(self, t: float, x: Tensor) -> Tensor:
        return _weighted_sum([(scale, control.at(t, x)) for scale, control in self.terms])

    def affine_at(self, t: float) -> tuple[Tensor, Tensor]:
        parts = [(scale, control.affine_at(t)) for scale, control in self.terms]
        return _weighted_sum([(c, p[0]) for c, p in parts]), _weighted_sum([(c, p[1]) for c, p in parts])


def _weighted_sum(terms: list[tuple[float, Tensor]]) -> Tensor:
    total = terms[0][0] * terms[0][1]
    for scale, value in terms[1:]:
        total = total + scale * value
    return total


def as_control(control: Any) -> Control | None:
    """None, a Control, or a plain function of a step as a Control."""
    if control is None or isinstance(control, Control):
        return control
    if not callable(control):
        raise BadInput(
            f"saw a control of type {type(control).__name__}; wanted an sc.Control or a function f(step) -> u."
        )
    return StepControl(control)


def check_consistent(control: Control | None, kernel: Any, process: Any) -> None:
    """Raise NotDefined when a control of the continuous problem meets a kernel that converges to another process."""
    if control is not None and control.continuum and not kernel.consistent_with(process):
        raise NotDefined(
            f"the optimal control of the continuous problem on {kernel!r}, whose chain converges to another SDE; "
            "wanted a consistent kernel. Use problem.discretise(kernel, grid).exact.control, the optimum of that chain."
        )


def require_control(control: Any) -> Control:
    made = as_control(control)
    if made is None:
        raise BadInput("saw None; wanted a control.")
    return made
