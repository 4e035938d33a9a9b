"""Potentials of Feynman-Kac steering: what the promises v_0, ..., v_k of a path make of its weight before the end.

A promise is the value read at step k over the temperature, rewards collected so far included. phi_k = sum_j log G_j is
the log potential up to step k. At the end phi is taken back and the reward over the temperature put in its place, so
every potential has the same target; they differ in who survives on the way there.
Source: the difference, max and sum potentials of Feynman-Kac steering (2501.06848), with G_K their correction.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sdecontrol.errors import UnknownName


class Potential(ABC):
    """(phi_{k-1}, memory, promise v_k) -> (phi_k, memory), each (n,); phi starts at 0, the memory at `start`."""

    start: float = 0.0

    @abstractmethod
    def accumulate(self, phi: Tensor, memory: Tensor, promise: Tensor) -> tuple[Tensor, Tensor]:
        """phi_k = phi_{k-1} + log G_k, and what the next step needs to know."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Difference(Potential):
    """log G_k = v_k - v_{k-1}, so phi_k = v_k: the weight of a path is the latest promise."""

    def accumulate(self, phi: Tensor, memory: Tensor, promise: Tensor) -> tuple[Tensor, Tensor]:
        return promise, memory


class Maximum(Potential):
    """log G_k = max_{j <= k} v_j: a path keeps the best promise that it ever made."""

    start = float("-inf")

    def accumulate(self, phi: Tensor, memory: Tensor, promise: Tensor) -> tuple[Tensor, Tensor]:
        best = torch.maximum(memory, promise)
        return phi + best, best


class Sum(Potential):
    """log G_k = sum_{j <= k} v_j: a path keeps every promise."""

    def accumulate(self, phi: Tensor, memory: Tensor, promise: Tensor) -> tuple[Tensor, Tensor]:
        total = memory + promise
        return phi + total, total


POTENTIALS: dict[str, type[Potential]] = {"difference": Difference, "max": Maximum, "sum": Sum}


def potential_of(potential: str | Potential) -> Potential:
    """A potential by name, or itself. Raises UnknownName."""
    if isinstance(potential, Potential):
        return potential
    if potential not in POTENTIALS:
        raise UnknownName("potential", str(potential), POTENTIALS)
    return POTENTIALS[potential]()
