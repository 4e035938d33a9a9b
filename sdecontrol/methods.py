"""Every law of guidance and every sampler by name: what `sdecontrol compare` runs.

A law joins the table by one entry here, or by the dictionary `controls` of a problem file, name -> function of the
problem (see CONTRIBUTING).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sdecontrol import guidance, steering
from sdecontrol.controls import Control
from sdecontrol.errors import NotDefined, NotFinite, UnknownName, check
from sdecontrol.evaluate import evaluate
from sdecontrol.guidance.base import check_gradient
from sdecontrol.kernels import Kernel
from sdecontrol.laws import ClassPosterior
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

PILOT, PILOT_SEED = 256, 1  # paths by which a scale is chosen
UNGUIDED = 64  # samples from which a reward's linear surrogate is taken
SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4)


@dataclass
class Setting:
    """For what a law is made: the problem, its chain, the law's number, and what chose it.

    ideal: the problem that knows the exact answers; another one than `problem` where a network stands for the score.
    pilot: paths of the pilot run by which a law without a number finds its own.
    """

    problem: Problem
    ideal: Problem
    number: float | None = None
    grid: TimeGrid | None = None
    kernel: Kernel | None = None
    pilot: int = PILOT
    notes: list[str] = field(default_factory=list)

    @property
    def noise(self) -> Noise:
        """Of pilot runs: of the process's own kind, a stream an image on pipelines."""
        return replace(self.problem.process.default_noise, seed=PILOT_SEED)

    @property
    def count(self) -> int:
        """The number as a count."""
        check(self.number is not None and self.number == int(self.number), f"number = {self.number}", "an integer")
        return int(self.number or 0)

    @property
    def gamma(self) -> float:
        """The power of the likelihood, strength / temperature, unless a number says otherwise; 1 without a label."""
        if self.number is not None:
            return self.number
        reward = self.ideal.reward
        return reward.strength / self.ideal.temperature if isinstance(reward, GaussianLabel | ClassPosterior) else 1.0

    @property
    def unit(self) -> Problem:
        """The problem whose tilt is p(x | label) itself, at the first power; without a label the ideal problem."""
        ideal, reward = self.ideal, self.ideal.reward
        if not isinstance(reward, GaussianLabel | ClassPosterior) or reward.strength == ideal.temperature:
            return ideal
        return Problem(ideal.process, reward, reward.strength)


@dataclass(frozen=True)
class Method:
    """A law by name. number: its default, None where it has none or finds its own; unit: what the number is."""

    name: str
    title: str
    make: Callable[[Setting], Any]
    number: float | None = None
    unit: str = ""


METHODS: dict[str, Method] = {}


def _method(name: str, title: str, number: float | None = None, unit: str = "") -> Callable[[Any], Any]:
    def register(make: Callable[[Setting], Any]) -> Callable[[Setting], Any]:
        METHODS[name] = Method(name, title, make, number, unit)
        return make

    return register


@_method("tilt", "independent draws of the exact tilt")
def _tilt(s: Setting) -> Any:
    return steering.exact_draws(s.problem, s.ideal)


@_method("exact", "Doob's h-transform from the optimal initial law")
def _exact(s: Setting) -> Any:
    return guidance.doob(s.problem, s.ideal.exact), s.ideal.exact.initial


@_method("none", "no guidance")
def _none(s: Setting) -> Any:
    return None


@_method("doob", "Doob's h-transform from p_noise")
def _doob(s: Setting) -> Any:
    return guidance.doob(s.problem, s.ideal.exact)


@_method("classifier", "score + scale grad log p(label | x_s), the exact classifier", None, "scale")
def _classifier(s: Setting) -> Any:
    exact, horizon, temperature = s.unit.exact, s.problem.process.horizon, s.unit.temperature
    exact.control  # noqa: B018  refuses here where there is no exact classifier
    return guidance.classifier(s.problem, lambda x, level: exact.value(horizon - level, x) / temperature, s.gamma)


@_method("cfg", "score + strength (score of p(x | label) - score)", None, "strength")
def _cfg(s: Setting) -> Any:
    process, unit = s.ideal.process, s.unit
    if not isinstance(process, ReverseProcess):
        raise NotDefined("classifier-free guidance moves a score; a general diffusion has none. Use doob.")
    law = process.data_law
    conditional = law.tilt(unit.reward, unit.temperature)
    conditional.noised(1.0, 1.0)  # refuses here where it is not closed
    return guidance.cfg(s.problem, conditional, s.gamma, None if s.ideal is s.problem else law)


@_method("dps", "mean + scale grad r(x0_hat); the scale of the best objective of a sweep", None, "scale")
def _dps(s: Setting) -> Any:
    make = lambda scale: guidance.dps(s.problem, scale=scale)  # noqa: E731
    return make(s.number) if s.number is not None else _tuned(s, make)


@_method("pigdm", "the posterior of x0 taken for that of unit Gaussian data")
def _pigdm(s: Setting) -> Any:
    return guidance.pigdm(s.problem)


@_method("plug-in", "the posterior of x0 taken for a point: v = r(x0_hat)")
def _plug_in(s: Setting) -> Any:
    return guidance.plug_in(s.problem)


@_method("gloss", "G_loss with the weight of the authors' code, of a linear surrogate where the reward is no label")
def _gloss(s: Setting) -> Any:
    problem = s.problem
    if isinstance(problem.reward, GaussianLabel) or not isinstance(problem.process, ReverseProcess):
        return guidance.g_loss(problem)
    check_gradient(problem)
    plain = simulate(problem.process, grid=s.grid, kernel=s.kernel, n=UNGUIDED, keep="ends", noise=s.noise)
    s.notes.append(f"surrogate: the gradient at the mean of {UNGUIDED} unguided samples")
    return guidance.surrogate_loss(problem, plain.terminal)


@_method("naive", "gradient guidance along the label's direction")
def _naive(s: Setting) -> Any:
    return guidance.naive(s.problem)


@_method("exact-variance", "the posterior of x0 taken for a Gaussian with its own covariance")
def _exact_variance(s: Setting) -> Any:
    return guidance.exact_variance(s.problem)


@_method("fk", "Feynman-Kac particles of the reference chain", 8, "particles")
def _fk(s: Setting) -> Any:
    return steering.fk(s.problem, s.count)


@_method("twisted", "particles moved by the plug-in gradient", 8, "particles")
def _twisted(s: Setting) -> Any:
    return steering.twisted(s.problem, s.count)


@_method("svdd", "one of several candidates at every step, by softmax", 4, "candidates")
def _svdd(s: Setting) -> Any:
    return steering.svdd(s.problem, s.count, temperature=s.problem.temperature)


@_method("best-of-n", "the best of n independent samples", 8, "samples")
def _best_of_n(s: Setting) -> Any:
    return steering.best_of(s.problem, s.count)


@_method("rejection", "von Neumann's rejection from the reference chain", 100, "proposals a draw at most")
def _rejection(s: Setting) -> Any:
    return steering.rejection(s.problem, budget=float(s.number or 1))


def _tuned(s: Setting, make: Callable[[float], Control]) -> Control:
    """The control of the scale with the largest objective on a pilot run; a scale that blows up does not count."""
    found = {}
    for scale in SCALES:
        control = make(scale)
        with suppress(NotFinite), np.errstate(over="ignore", invalid="ignore"):
            row = evaluate(s.problem, control, grid=s.grid, kernel=s.kernel, n=s.pilot, noise=s.noise)
            if math.isfinite(row.objective.value):
                found[scale] = row.objective.value
    check(len(found) > 0, "no scale that stays finite", "one", "Give a smaller one, as in dps:1e-5.")
    best = max(found, key=found.__getitem__)
    s.notes.append(f"scale {best:g}, best of {len(SCALES)} from {SCALES[-1]:g} to {SCALES[0]:g}")
    return make(best)


@dataclass(frozen=True)
class Choice:
    """A law that was asked for, as NAME or NAME:NUMBER."""

    spec: str
    method: Method
    number: float | None

    def entry(self, problem: Problem, ideal: Problem | None = None, **chain: Any) -> tuple[Any, list[str]]:
        """What `sc.compare` takes for this law, and notes about how it was made."""
        setting = Setting(problem, ideal or problem, self.number, **chain)
        return self.method.make(setting), setting.notes


def choose(specs: list[str], own: Mapping[str, Any] | None = None) -> list[Choice]:
    """The laws of a list of NAME or NAME:NUMBER, each once; `own` are those of a problem file. Raises: UnknownName,
    BadInput for a number that is none or that the law does not have."""
    known = {**METHODS, **{name: _own(name, made) for name, made in (own or {}).items()}}
    return [_choice(spec, known) for spec in dict.fromkeys(specs)]


def _choice(spec: str, known: Mapping[str, Method]) -> Choice:
    name, colon, text = spec.partition(":")
    if name not in known:
        raise UnknownName("law", name, known)
    method = known[name]
    if not colon:
        return Choice(spec, method, method.number)
    check(bool(method.unit), f"{spec!r}", f"{name!r}: this law has no number")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    check(math.isfinite(number), f"{spec!r}", f"{name}:NUMBER, the number of {method.unit}")
    return Choice(spec, method, number)


def _own(name: str, made: Any) -> Method:
    """An entry of `controls` in a problem file: a function of the problem, or what it would return."""
    ready = isinstance(made, Control | steering.Sampler | tuple) or made is None
    check(ready or callable(made), f"controls[{name!r}] of type {type(made).__name__}",
          "a function of the problem that returns a control, a sampler or (control, initial law)")  # fmt: skip
    return Method(name, "from the problem file", (lambda s: made) if ready else (lambda s: made(s.problem)))
