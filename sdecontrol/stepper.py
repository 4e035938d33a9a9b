"""How `simulate` steps a chain: one model call at a time, or folded into one matrix product when it is affine.

All have the same methods, so the loop knows none of them. `start` makes an internal coordinate of the states,
`advance` moves it, `position` says where the path is, and `at_paths` is the stepper of one block of paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm
from sdecontrol.kernels import AffineStep, Transition
from sdecontrol.kernels_multistep import Memory, MultistepTransition
from sdecontrol.processes import Process
from sdecontrol.step import advance

_LARGEST_FOLDED = 16  # dimensions; above, a law's own diagonal or low-rank score is cheaper than a dense matrix


class Stepper(Protocol):
    """x -> x+ for a whole block of paths at step k."""

    def start(self, x: Tensor) -> Any:
        """The coordinate of the states (n, *event) at k = 0."""
        ...

    def advance(self, k: int, y: Any, xi: Tensor) -> tuple[Any, Tensor | None]:
        """(y+, w): the next coordinate and the control's shift of the noise, None where nothing is controlled."""
        ...

    def position(self, k: int, y: Any) -> Tensor:
        """The states (n, *event) at grid time k."""
        ...

    def at_paths(self, first: int) -> Stepper:
        """The stepper of the block of paths that starts with number `first`."""
        ...


class ModelStepper:
    """One call of the model a step; the coordinate is the state."""

    def __init__(self, process: Process, transitions: Sequence[Transition], control: Any):
        self.process, self.transitions, self.control = process, transitions, control

    def start(self, x: Tensor) -> Tensor:
        return x

    def advance(self, k: int, y: Tensor, xi: Tensor) -> tuple[Tensor, Tensor | None]:
        return advance(self.process, self.transitions[k], k, y, xi, self.control)

    def position(self, k: int, y: Tensor) -> Tensor:
        return y

    def at_paths(self, first: int) -> ModelStepper:
        return ModelStepper(self.process.at_paths(first), self.transitions, self.control)


class FoldedStepper:
    """x+ = M x + m + N z as y+ = y + (M - I) y + N z in the deviation y = x - c from the mean path c+ = M c + m, c = 0.

    The increment M - I is what is kept: in float32 a matrix M close to the identity would lose the drift's digits.
    """

    def __init__(self, steps: Sequence[AffineStep], dtype: torch.dtype):
        centre = torch.zeros_like(steps[0].offset)
        centres = [centre]
        for step in steps:
            centre = step.matrix @ centre + step.offset
            centres.append(centre)
        eye = torch.eye(len(centre), dtype=torch.float64)
        self.centres = torch.stack(centres).to(dtype)
        self.increments = torch.stack([step.matrix - eye for step in steps]).to(dtype).unbind()
        noises = torch.stack([step.noise for step in steps])
        amplitudes = noises[:, 0, 0]
        scalar = bool((noises == amplitudes[:, None, None] * eye).all())
        self.spread = _add_scaled if scalar else _add_product
        self.noises: Sequence[Any] = amplitudes.tolist() if scalar else noises.to(dtype).unbind()

    def start(self, x: Tensor) -> Tensor:
        return x

    def advance(self, k: int, y: Tensor, xi: Tensor) -> tuple[Tensor, None]:
        y, xi = y.mT, xi.mT
        return self.spread(torch.addmm(y, self.increments[k], y), self.noises[k], xi).mT, None

    def position(self, k: int, y: Tensor) -> Tensor:
        return y + self.centres[k]

    def at_paths(self, first: int) -> FoldedStepper:
        return self


def _add_scaled(y: Tensor, std: float, xi: Tensor) -> Tensor:
    return y.add_(xi, alpha=std)


def _add_product(y: Tensor, noise: Tensor, xi: Tensor) -> Tensor:
    return y.addmm_(noise, xi)


class MultistepStepper:
    """One call of the model a step; the coordinate is the state and what the calls before left behind.

    Only noiseless steps look back, and `prepare` lets no control meet them.
    """

    def __init__(self, process: Process, transitions: Sequence[Transition]):
        self.process, self.transitions = process, transitions

    def start(self, x: Tensor) -> tuple[Tensor, Memory]:
        return x, ()

    def advance(self, k: int, y: tuple[Tensor, Memory], xi: Tensor) -> tuple[tuple[Tensor, Memory], None]:
        x, memory = y
        transition = self.transitions[k]
        if not isinstance(transition, MultistepTransition):
            return (advance(self.process, transition, k, x, xi, None)[0], ()), None
        return transition.step(self.process.state(transition.t, x), memory), None

    def position(self, k: int, y: tuple[Tensor, Memory]) -> Tensor:
        return y[0]

    def at_paths(self, first: int) -> MultistepStepper:
        return MultistepStepper(self.process.at_paths(first), self.transitions)


def stepper_of(
    process: Process, transitions: Sequence[Transition], control: Any, dtype: torch.dtype, fold: bool = True
) -> Stepper:
    """Folded where nothing is controlled and the steps are matrices of moderate size, else one model call a step."""
    if any(isinstance(transition, MultistepTransition) for transition in transitions):
        return MultistepStepper(process, transitions)
    if fold and control is None and process.dim <= _LARGEST_FOLDED:
        try:
            return FoldedStepper([transition.affine(process) for transition in transitions], dtype)
        except NoClosedForm:
            pass
    return ModelStepper(process, transitions, control)
