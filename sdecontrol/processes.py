"""Reference dynamics dY = drift(t, Y) dt + amplitude(t) dB on generation time t: 0 (noise) -> horizon (data).

The drift of every process is split as linear_rate(t) x + field_gain(t) field(t, x). For a reverse diffusion the field
is the score; for a general one it is the drift itself. Kernels only ever see this split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, NotDefined, check
from sdecontrol.laws import Gaussian, Isotropic, Law
from sdecontrol.models import ExactScore, as_score_model
from sdecontrol.noise import Noise
from sdecontrol.schedules import Schedule
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from sdecontrol.kernels import Kernel


class State:
    """What one call of the model says at (t, x): shared by the kernel and the control.

    field (n, *event): the score of a reverse diffusion, the drift of a general one.
    """

    def __init__(self, process: Process, t: float, x: Tensor, field: Tensor):
        self.process, self.t, self.x, self.field = process, t, x, field

    def take(self, rows: Tensor) -> Self:
        """The same call at some of its rows, in any order and with repetitions; no graph is kept."""
        return type(self)(self.process, self.t, self.x[rows].detach(), self.field[rows].detach())

    @property
    def drift(self) -> Tensor:
        """linear_rate x + field_gain field, in the units of the state per unit time."""
        return self.process.linear_rate(self.t) * self.x + self.process.field_gain(self.t) * self.field

    @property
    def score(self) -> Tensor:
        raise NotDefined("a general diffusion has no score; use a ReverseProcess")

    @property
    def x0_hat(self) -> Tensor:
        raise NotDefined("a general diffusion has no posterior mean x0_hat; use a ReverseProcess")

    def pullback(self, c: Tensor) -> Tensor:
        raise NotDefined("a general diffusion has no posterior mean x0_hat; use a ReverseProcess")


class ReverseState(State):
    """State of a reverse diffusion: x0_hat = E[X_0 | X_s = x] = (x + h score) / alpha (Tweedie)."""

    process: ReverseProcess

    @property
    def score(self) -> Tensor:
        return self.field

    @cached_property
    def x0_hat(self) -> Tensor:
        s = self.process.noise_level(self.t)
        return (self.x + self.process.schedule.h(s) * self.field) / self.process.schedule.alpha(s)

    def pullback(self, c: Tensor) -> Tensor:
        """c times the Jacobian of x0_hat: (c + h J_score' c) / alpha, shape (n, *event)."""
        return self.process.model.pullback(self.x, self.process.noise_level(self.t), self.field, c)


class Process(ABC):
    """Base class of the reference dynamics; see the module's docstring for the split of the drift."""

    event_shape: tuple[int, ...]
    horizon: float
    dtype: torch.dtype  # of the states, unless `simulate` is told otherwise
    elementwise: bool  # the bits of a path do not depend on the batch it is computed in, when whole blocks are computed
    groups: int = 1  # conditions that the paths go through round robin: path i has condition i mod groups

    def group(self, paths: Tensor) -> Tensor:
        """The condition of each of these paths, given by their numbers."""
        return paths % self.groups

    def at_paths(self, first: int) -> Self:
        """This process as the paths first, first + 1, ... of a run see it: itself, unless conditions differ."""
        return self

    @property
    def default_noise(self) -> Noise:
        return Noise(0)

    @property
    def dim(self) -> int:
        return int(np.prod(self.event_shape))

    def noise_level(self, t: float) -> float:
        """s = horizon - t."""
        return self.horizon - t

    def linear_rate(self, t: float) -> float:
        return 0.0

    def field_gain(self, t: float) -> float:
        return 1.0

    @abstractmethod
    def amplitude(self, t: float) -> float:
        """Diffusion coefficient at generation time t."""

    @abstractmethod
    def state(self, t: float, x: Tensor, *, jacobian: bool = False) -> State:
        """One call of the model at (t, x (n, *event)); with `jacobian` the graph that `pullback` needs is kept."""

    def silent_state(self, t: float, x: Tensor) -> State:
        """(t, x) without a call of the model, for steps that read no field: it is empty."""
        return State(self, t, x, x.new_empty(0))

    @abstractmethod
    def initial_law(self, t: float = 0.0) -> Law:
        """p_noise: the law of the start when the grid's first time is t."""

    @abstractmethod
    def affine_field(self, t: float) -> tuple[Tensor, Tensor]:
        """(F (d, d), b (d,)) in float64 with field = F x + b. Raises NoClosedForm when the field is not affine."""

    def affine_drift(self, t: float) -> tuple[Tensor, Tensor]:
        """(A (d, d), c (d,)) in float64 with drift = A x + c. Raises NoClosedForm when the drift is not affine."""
        matrix, offset = self.affine_field(t)
        eye = torch.eye(self.dim, dtype=torch.float64)
        return self.linear_rate(t) * eye + self.field_gain(t) * matrix, self.field_gain(t) * offset

    @property
    def is_affine(self) -> bool:
        try:
            self.affine_field(0.0)
        except NoClosedForm:
            return False
        return True

    @property
    @abstractmethod
    def default_grid(self) -> TimeGrid: ...

    @property
    @abstractmethod
    def default_kernel(self) -> Kernel: ...

    def to_torchsde(self, control: Any = None) -> torch.nn.Module:
        """This process, controlled if a control is given, as an object that torchsde.sdeint takes."""
        from sdecontrol.torchsde_adapter import ProcessSDE

        return ProcessSDE(self, control)


class ReverseProcess(Process):
    """The pretrained model: dY = [-f(s) Y + g2(s) score(s, Y)] dt + g(s) dB with s = horizon - t.

    model: a law (its exact score), PerturbedScore(law, scale, bias), or a network as Score(f), NoisePrediction(f),
    VPrediction(f) or Denoiser(f) with f(x (n, *event), s float) -> (n, *event).
    initial: "standard" = N(0, eta^2 I), eta = schedule.prior_std; "marginal" = the noised law at the grid's first
    level (exact score only); or a law.
    Raises: BadInput for an unknown model or initial law, or shapes that differ.
    Source: Tang 2403.06279, section 3, the pretrained process; the conventions are those of Song et al.
    """

    def __init__(self, schedule: Schedule, model: Any, initial: str | Law = "standard", *, event_shape: Any = None):
        check(isinstance(schedule, Schedule), f"schedule {schedule!r}", "a Schedule such as sc.VP()")
        self.schedule, self.model = schedule, as_score_model(model, schedule)
        shape = event_shape or self.model.event_shape or (initial.event_shape if isinstance(initial, Law) else None)
        check(
            shape is not None,
            "a network without an event shape",
            "the shape of one sample",
            "Pass event_shape=(d,) to the process.",
        )
        self.event_shape: tuple[int, ...] = tuple(shape or ())
        self.horizon = schedule.horizon
        if isinstance(initial, str):
            check(initial in ("standard", "marginal"), f"initial={initial!r}", '"standard", "marginal" or a law')
            if initial == "marginal" and not self.has_exact_score:
                raise BadInput(
                    'saw initial="marginal" with a model that is not an exact score; wanted a law whose noised '
                    'marginal is known. Pass initial="standard" or a law.'
                )
        else:
            check(
                isinstance(initial, Law), f"initial of type {type(initial).__name__}", 'a law, "standard" or "marginal"'
            )
            check(
                initial.event_shape == self.event_shape,
                f"an initial law on {initial.event_shape}",
                f"event shape {self.event_shape}, that of the model",
            )
        self.initial = initial
        self.elementwise, self.dtype = self.model.elementwise, self.model.dtype

    @property
    def has_exact_score(self) -> bool:
        return isinstance(self.model, ExactScore)

    @property
    def data_law(self) -> Law:
        """The law whose exact score drives the process. Raises NoClosedForm for imperfect scores and networks."""
        if not isinstance(self.model, ExactScore):
            raise NoClosedForm("the score is not the exact score of a law, so the data law is not known")
        return self.model.law

    def noised(self, t: float) -> Law:
        """The exact marginal p_s at generation time t: the law of alpha X_0 + sqrt(h) Z."""
        s = self.noise_level(t)
        return self.data_law.noised(self.schedule.alpha(s), self.schedule.h(s))

    def linear_rate(self, t: float) -> float:
        return -self.schedule.f(self.noise_level(t))

    def field_gain(self, t: float) -> float:
        return self.schedule.g2(self.noise_level(t))

    def amplitude(self, t: float) -> float:
        return self.schedule.g2(self.noise_level(t)) ** 0.5

    def state(self, t: float, x: Tensor, *, jacobian: bool = False) -> ReverseState:
        score, x = self.model.score(x, self.noise_level(t), graph=jacobian)
        return ReverseState(self, t, x, score)

    def initial_law(self, t: float = 0.0) -> Law:
        if isinstance(self.initial, Law):
            return self.initial
        if self.initial == "marginal":
            return self.noised(t)
        eta = self.schedule.prior_std
        if len(self.event_shape) == 1:
            zeros = torch.zeros(self.event_shape, dtype=torch.float64)
            return Gaussian(zeros, zeros + eta**2)
        return Isotropic(self.event_shape, eta)

    def affine_field(self, t: float) -> tuple[Tensor, Tensor]:
        return self.model.affine(self.noise_level(t))

    @property
    def default_grid(self) -> TimeGrid:
        return TimeGrid.log_snr(200, s_min=1e-3)

    @property
    def default_kernel(self) -> Kernel:
        from sdecontrol.kernels import Ancestral

        return Ancestral()


class Affine:
    """Drift (t, x) -> matrix x + offset; matrix (d, d) and offset (d,) are constants or functions of t."""

    def __init__(self, matrix: Any, offset: Any = 0.0):
        self._matrix, self._offset = _time_function("matrix", matrix), _time_function("offset", offset)
        a = self.at(0.0)[0]
        check(a.ndim == 2 and a.shape[0] == a.shape[1], f"a drift matrix of shape {tuple(a.shape)}", "a square matrix")

    def at(self, t: float) -> tuple[Tensor, Tensor]:
        """(A (d, d), c (d,)) at time t, in float64."""
        matrix = torch.atleast_2d(self._matrix(t))
        return matrix, self._offset(t) * torch.ones(matrix.shape[0], dtype=torch.float64)

    def __call__(self, t: float, x: Tensor) -> Tensor:
        matrix, offset = self.at(t)
        return torch.addmm(offset.to(x)[:, None], matrix.to(x), x.mT).mT


def _time_function(name: str, value: Any) -> Callable[[float], Tensor]:
    if callable(value):
        return lambda t: torch.as_tensor(value(t), dtype=torch.float64)
    constant = torch.as_tensor(value, dtype=torch.float64)
    check(bool(torch.isfinite(constant).all()), f"a {name} with NaN or infinite entries", "finite numbers")
    return lambda t: constant


class DiffusionProcess(Process):
    """dY = drift(t, Y) dt + amplitude(t) dB on [0, horizon], with scalar, state-free noise.

    drift: (t float, x (n, *event)) -> (n, *event), or Affine(matrix, offset), which has closed forms.
    amplitude: a number or a function of t. initial: a law.
    """

    def __init__(self, drift: Callable[[float, Tensor], Tensor], amplitude: Any, initial: Law, horizon: float = 1.0):
        check(
            callable(drift),
            f"drift of type {type(drift).__name__}",
            "a function drift(t, x) or sc.Affine(matrix, offset)",
        )
        check(isinstance(initial, Law), f"initial of type {type(initial).__name__}", "a law")
        check(np.isfinite(horizon) and horizon > 0, f"horizon = {horizon}", "a positive number")
        if not callable(amplitude):
            check(
                np.isfinite(amplitude) and amplitude >= 0,
                f"amplitude = {amplitude}",
                "a number >= 0 or a function of t",
            )
        self.drift, self.initial, self.horizon = drift, initial, float(horizon)
        self.event_shape = tuple(initial.event_shape)
        self.dtype = initial.dtype
        self._amplitude = amplitude
        self.elementwise = isinstance(drift, Affine)
        if isinstance(drift, Affine):
            d = drift.at(0.0)[0].shape[0]
            check(d == self.dim, f"a {d}-dimensional drift", f"dimension {self.dim}, that of the initial law")

    def amplitude(self, t: float) -> float:
        return float(self._amplitude(t)) if callable(self._amplitude) else float(self._amplitude)

    def state(self, t: float, x: Tensor, *, jacobian: bool = False) -> State:
        return State(self, t, x, self.drift(t, x))

    def initial_law(self, t: float = 0.0) -> Law:
        return self.initial

    def affine_field(self, t: float) -> tuple[Tensor, Tensor]:
        if not isinstance(self.drift, Affine):
            raise NoClosedForm("the drift is a function that is not known to be affine; use sc.Affine(matrix, offset)")
        return self.drift.at(t)

    @property
    def default_grid(self) -> TimeGrid:
        return TimeGrid.uniform(200)

    @property
    def default_kernel(self) -> Kernel:
        from sdecontrol.kernels import EulerMaruyama

        return EulerMaruyama()

    @classmethod
    def from_torchsde(cls, sde: Any, initial: Law, horizon: float = 1.0) -> DiffusionProcess:
        """A torchsde object with scalar, state-free noise as a process. Raises BadInput for other noise."""
        from sdecontrol.torchsde_adapter import process_from_sde

        return process_from_sde(cls, sde, initial, horizon)


__all__ = ["Affine", "DiffusionProcess", "Process", "ReverseProcess", "ReverseState", "State"]
