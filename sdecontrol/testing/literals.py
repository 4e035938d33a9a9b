"""Python source of the library's objects, with literal numbers."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from sdecontrol.controls import AffineControl
from sdecontrol.errors import BadInput
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Dirac, DiscreteLaw, Gaussian, GaussianMixture, Isotropic, Subspace
from sdecontrol.models import ExactScore
from sdecontrol.problems.base import Discretised, Problem
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import Quadratic, Step
from sdecontrol.schedules import VE, VP, Cosine, SubVP
from sdecontrol.testing.tilts import StaticTilt
from sdecontrol.time import ExplicitGrid, GeometricGrid, LogSNRGrid, UniformGrid


@singledispatch
def literal(value: Any) -> str:
    """Python source that makes `value` again, in terms of `sc`; `literal.register` teaches it your own classes.

    Accuracy: numbers are written in full; matrices that a law keeps by their spectrum come back to rounding.
    Raises: BadInput for values it has not been taught.
    """
    raise BadInput(
        f"saw a {type(value).__name__}; wanted a value whose source is known. "
        "Register it: @sdecontrol.testing.literal.register."
    )


def _call(name: str, *positional: Any, **named: Any) -> str:
    parts = [literal(value) for value in positional]
    parts += [f"{key}={literal(value)}" for key, value in named.items() if value is not None]
    return f"{name}({', '.join(parts)})"


@literal.register(bool | int | str | None)
def _(value: Any) -> str:
    return repr(value)


@literal.register(float | np.floating | np.integer)
def _(value: Any) -> str:
    number = value.item() if isinstance(value, np.generic) else value
    return repr(number) if math.isfinite(number) else f'float("{number}")'


@literal.register(list | tuple)
def _(value: Any) -> str:
    inner = ", ".join(literal(item) for item in value)
    return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"


@literal.register(np.ndarray | torch.Tensor)
def _(value: Any) -> str:
    return literal(value.tolist())


@literal.register
def _(value: StaticTilt) -> str:
    return f"sc.testing.{value!r}"


@literal.register(VP | VE | SubVP | Cosine | Kernel)
def _(value: Any) -> str:
    return f"sc.{value!r}"


@literal.register
def _(value: Gaussian) -> str:
    return _call("sc.Gaussian", value.mean, value.eigenvalues if value.diagonal else value.covariance)


@literal.register
def _(value: GaussianMixture) -> str:
    return _call("sc.GaussianMixture", value.weights, value.means, value.covariances)


@literal.register
def _(value: Subspace) -> str:
    return _call("sc.Subspace", value.basis, value.latent, offset=value.offset)


@literal.register
def _(value: Isotropic) -> str:
    return _call("sc.Isotropic", value.event_shape, value.std)


@literal.register
def _(value: Dirac) -> str:
    return _call("sc.Dirac", value.mean)


@literal.register
def _(value: DiscreteLaw) -> str:
    return _call("sc.laws.DiscreteLaw", value.points, value.weights)


@literal.register
def _(value: Quadratic) -> str:
    if value.is_linear and not value.constant:
        return _call("sc.Linear", value.linear)
    return _call("sc.Quadratic", linear=value.linear, curvature=value.curvature, constant=value.constant)


@literal.register
def _(value: Step) -> str:
    return _call("sc.Step", value.direction, value.threshold, value.height)


@literal.register
def _(value: AffineControl) -> str:
    (gain, offset), later = value.affine_at(0.0), value.affine_at(0.5)
    if not (torch.equal(gain, later[0]) and torch.equal(offset, later[1])):
        raise BadInput("saw an affine control that changes in time; wanted constants. Write its source by hand.")
    return _call("sc.AffineControl", gain, offset)


@literal.register
def _(value: UniformGrid) -> str:
    return _call("sc.TimeGrid.uniform", value.steps)


@literal.register
def _(value: GeometricGrid) -> str:
    return _call("sc.TimeGrid.geometric", value.steps, s_min=value.s_min, close=value.close)


@literal.register
def _(value: LogSNRGrid) -> str:
    return _call("sc.TimeGrid.log_snr", value.steps, s_min=value.s_min, close=value.close)


@literal.register
def _(value: ExplicitGrid) -> str:
    source = _call("sc.TimeGrid.explicit", list(value.times))
    return source if value.parts == 1 else f"{source}.refine({value.parts})"


@literal.register
def _(value: ReverseProcess) -> str:
    if not isinstance(value.model, ExactScore):
        raise BadInput("saw a reverse process without an exact score; wanted one. Write its source by hand.")
    initial = None if value.initial == "standard" else value.initial
    return _call("sc.ReverseProcess", value.schedule, value.model.law, initial=initial)


@literal.register
def _(value: DiffusionProcess) -> str:
    return _call("sc.DiffusionProcess", value.drift, value.amplitude(0.0), value.initial, value.horizon)


@literal.register
def _(value: Affine) -> str:
    return _call("sc.Affine", *value.at(0.0))


@literal.register
def _(value: Problem) -> str:
    running = value.running_reward
    return _call("sc.Problem", value.process, value.reward, temperature=value.temperature, running_reward=running)


@literal.register
def _(value: Discretised) -> str:
    return f"{literal(value.problem)}.discretise(kernel={literal(value.kernel)}, grid={literal(value.grid)})"
