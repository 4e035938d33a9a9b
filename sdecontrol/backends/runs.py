"""What the claims at scale share: runs of one problem, made once a seed."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from sdecontrol import guidance, steering
from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.claims.base import Case, NotApplicable
from sdecontrol.controls import Control, StepControl, as_control
from sdecontrol.noise import PathNoise
from sdecontrol.path import Path
from sdecontrol.problems.base import Problem
from sdecontrol.simulate import simulate
from sdecontrol.steering.base import Particles
from sdecontrol.step import StepView

PARTICLES = 8
_RUNS: WeakKeyDictionary[Problem, dict[tuple[bool, int], Runs]] = WeakKeyDictionary()


class OfSize(Control):
    """A control's direction with |sqrt(dt) u| = size for every path and step, so that K steps cost K size^2 / 2."""

    def __init__(self, control: Any, size: float):
        made = as_control(control)
        assert made is not None
        self.control, self.size, self.requires_jacobian = made, size, made.requires_jacobian

    def shift(self, step: StepView) -> Tensor:
        u = self.control(step)
        length = u.flatten(1).norm(dim=1).reshape(-1, *[1] * (u.ndim - 1))
        return u * (self.size / (length * step.dt**0.5))


def fixed_direction(step: StepView) -> Tensor:
    """The same direction for every path and step: of random signs."""
    generator = torch.Generator().manual_seed(7)
    signs = torch.randint(0, 2, step.x.shape[1:], generator=generator).to(step.x) * 2 - 1
    return signs.expand_as(step.x)


class Runs:
    """Paths of one problem under named controls; n images where a mean is estimated."""

    def __init__(self, problem: Problem, quick: bool, seed: int):
        process = problem.process
        if not isinstance(process, StableDiffusionProcess) or process.groups > 1:
            raise NotApplicable("the claims at scale are about one prompt of a pipeline")
        self.problem, self.process, self.seed = problem, process, seed
        images = int(getattr(problem, "images", 512))
        self.n = max(2 * PARTICLES, images // 2 if quick else images)
        self._paths: dict[Any, Path] = {}

    @classmethod
    def of(cls, case: Case) -> Runs:
        known = _RUNS.setdefault(case.problem, {})
        key = (case.quick, case.seed)
        if key not in known:
            known[key] = cls(case.problem, case.quick, case.seed)
        return known[key]

    @cached_property
    def laws(self) -> dict[str, Any]:
        plug_in = guidance.plug_in(self.problem)
        return {"plug-in": plug_in, "half of it": 0.5 * plug_in, "dps": guidance.dps(self.problem, scale=0.1)}

    @cached_property
    def directions(self) -> dict[str, Any]:
        return {"plug-in": self.laws["plug-in"], "fixed direction": StepControl(fixed_direction)}

    def simulated(self, law: Any, n: int, keep: str = "all", stream: int = 0, process: Any = None) -> Path:
        noise = PathNoise(self.seed * 64 + stream, batch=self.process.batch)
        with torch.no_grad():
            return simulate(process or self.process, law, n=n, keep=keep, noise=noise)

    def kept(self, name: str, n: int) -> Path:
        return self._once(("kept", name, n), lambda: self.simulated(self.laws[name], n))

    def path(self, name: str) -> Path:
        """The ends of n paths under a law, or of the reference; each law has noise of its own."""
        stream = ["reference", *self.laws].index(name) + 1
        return self._once(name, lambda: self.simulated(self.laws.get(name), self.n, "ends", stream))

    def sized(self, name: str, cost: float) -> Path:
        """n paths under a direction, sized so that they cost `cost` nats."""
        stream = 32 + list(self.directions).index(name) + (16 if cost > 1 else 0)
        law = OfSize(self.directions[name], math.sqrt(2 * cost / self.controlled_steps))
        return self._once((name, cost), lambda: self.simulated(law, self.n, "ends", stream))

    def _once(self, key: Any, make: Any) -> Path:
        if key not in self._paths:
            self._paths[key] = make()
        return self._paths[key]

    @cached_property
    def controlled_steps(self) -> int:
        grid = self.process.default_grid.resolve(self.process)
        times = list(zip(grid.times[:-1], grid.times[1:], strict=True))
        kernel = self.process.default_kernel
        return sum(not kernel.transition(self.process, float(a), float(b)).noiseless for a, b in times)

    def rewards(self, name: str) -> Tensor:
        """r/T of the paths under a law: (n,), float64."""
        with torch.no_grad():
            return self.problem.reward(self.path(name).terminal).double() / self.problem.temperature

    @cached_property
    def particles(self) -> Particles:
        sampler = steering.fk(self.problem, PARTICLES)
        return sampler.run(self.problem, n=self.n, noise=PathNoise(self.seed * 64 + 63))
