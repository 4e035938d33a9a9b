"""Typed errors. Every message says what was seen, what was wanted and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class SDEControlError(Exception):
    """Base class of every error raised by this library."""


class BadInput(SDEControlError, ValueError):
    """An argument has the wrong shape, type or value."""


class UnknownName(BadInput):
    """A claim, problem, kernel or divergence of that name does not exist; the nearest names are listed."""

    def __init__(self, kind: str, seen: str, known: Iterable[str]):
        known = sorted(known)
        near = difflib.get_close_matches(seen, known, n=3, cutoff=0.4) or known
        super().__init__(f"unknown {kind} {seen!r}; wanted one of the known ones, nearest: {', '.join(near)}")
        self.nearest = near


class NoClosedForm(SDEControlError, NotImplementedError):
    """The quantity has no closed form (nor a stated quadrature) for this problem; the reason is the message."""


class NoTilt(BadInput):
    """The tilted law does not exist: E exp(reward / temperature) is infinite, or no maximiser of an f-problem exists.

    For a quadratic reward with curvature K and an output covariance S the tilt exists iff
    I + S^{1/2} K S^{1/2} / temperature is positive; `eigenvalue` is its smallest eigenvalue, `largest_curvature` the
    upward curvature -lambda_min(cK) at which the tilt of a multiple cK ceases to exist (temperature / S on the line).
    For an f-divergence `smallest_temperature` is the one below which no maximiser exists (infinite when none helps).
    """

    def __init__(
        self,
        message: str,
        eigenvalue: float | None = None,
        largest_curvature: float | None = None,
        smallest_temperature: float | None = None,
    ):
        super().__init__(message)
        self.eigenvalue = eigenvalue
        self.largest_curvature = largest_curvature
        self.smallest_temperature = smallest_temperature


class ValueBlowUp(SDEControlError, ArithmeticError):
    """The value function is infinite before the initial time is reached; `time` is the generation time."""

    def __init__(self, message: str, time: float):
        super().__init__(message)
        self.time = time


class InfiniteKL(SDEControlError, ValueError):
    """A control acts on a step without noise, or the laws are mutually singular: the path KL is infinite."""


class NotFinite(SDEControlError, ArithmeticError):
    """A state, control or reward is NaN or infinite; says at which step and time and who produced it.

    finished: numbers (m,) and ends (m, *event) of the paths that were finished before, worth keeping; else None.
    """

    def __init__(
        self, producer: str, step: int, time: float, what: str = "a value that is not finite", advice: str = ""
    ):
        super().__init__(f"{producer} produced {what} at step {step} (t = {time:.6g}). {advice}".rstrip())
        self.producer, self.step, self.time = producer, step, time
        self.finished: Any = None


class OutOfMemory(SDEControlError, MemoryError):
    """A model did not fit into memory; the message says what to lower."""


class NotDefined(SDEControlError):
    """The quantity is not defined for this combination of objects; the message says for which it is."""


def check(condition: bool, seen: str, wanted: str, do: str = "") -> None:
    """Raise `BadInput` with a message of three parts unless `condition` holds."""
    if not condition:
        raise BadInput(f"saw {seen}; wanted {wanted}." + (f" {do}" if do else ""))
