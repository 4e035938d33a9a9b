"""What the claims about the static tilt share: the second route's numbers for a problem, its points and its draws."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import Case, NotApplicable, rounding
from sdecontrol.claims.routes.output import Output, output_law
from sdecontrol.claims.routes.plain import GaussianSum, Quadric, Tilt
from sdecontrol.claims.routes.quadrature import OTHER_SPACING, Array, NormalLine
from sdecontrol.laws import Law, Subspace, TiltedLaw
from sdecontrol.noise import Noise
from sdecontrol.rewards import Quadratic, Step, as_quadratic

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

POINTS = 64  # where densities are compared
DRAWS = 20_000  # of a static law: they cost microseconds, quick or not


class Numbers(NamedTuple):
    """log C, E_pre r / temperature, E_ft r / temperature."""

    log_c: float
    before: float
    after: float


class Static:
    """The tilt of one problem by the second route, in units of the temperature, with its errors."""

    def __init__(self, output: Output, numbers: Numbers, errors: Numbers, tilt: Tilt | None):
        self.output, self.numbers, self.errors, self.tilt = output, numbers, errors, tilt

    @property
    def log_c(self) -> float:
        return self.numbers.log_c

    @property
    def divergence(self) -> float:
        """D = (E_ft r - E_pre r) / temperature."""
        return self.numbers.after - self.numbers.before

    @property
    def kl(self) -> float:
        """KL(p_ft || p_pre) = E_ft r / temperature - log C."""
        return self.numbers.after - self.numbers.log_c

    @property
    def error(self) -> float:
        """Of any difference of two of the numbers."""
        return sum(self.errors)


def check_static(problem: Problem) -> None:
    """Raises NotApplicable with a running reward: then the law of Y_T under the optimum is not the static tilt."""
    if problem.running_reward is not None:
        raise NotApplicable("with a running reward the law of Y_T under the optimum is not the static tilt")


@lru_cache(maxsize=8)
def static(problem: Problem) -> Static:
    """Raises NotApplicable with a running reward, or for rewards that are neither quadratic nor steps."""
    check_static(problem)
    output = output_law(problem)
    numbers, own, tilt = _numbers(problem, output)
    if output.by_rule:
        other, _, _ = _numbers(problem, output_law(problem, OTHER_SPACING))
        own = Numbers(*(e + abs(a - b) for e, a, b in zip(own, numbers, other)))
    if output.error:
        own = Numbers(*(e + output.error * (1 + abs(a)) for e, a in zip(own, numbers)))
    return Static(output, numbers, own, tilt)


def _numbers(problem: Problem, output: Output) -> tuple[Numbers, Numbers, Tilt | None]:
    quadratic, reward = as_quadratic(problem.reward), problem.reward
    if quadratic is not None:
        return _quadratic_numbers(output, exponent(output, quadratic, problem.temperature))
    if isinstance(reward, Step):
        step = StepRoute.of(output, reward, problem.temperature)
        error = rounding(step.height, 1.0)
        return (
            Numbers(step.log_c, step.height * step.mass, step.height * step.tilted_mass),
            Numbers(error, error, error),
            None,
        )
    raise NotApplicable(f"the second route knows quadratic and step rewards, not {type(reward).__name__}")


def _quadratic_numbers(output: Output, q: Quadric) -> tuple[Numbers, Numbers, Tilt]:
    law, tilt = output.law, output.law.tilt(q)
    numbers = Numbers(tilt.log_mass, law.mean_of(q), tilt.mean_q)
    # q cancels between its terms where means are far out: their size, not the result's, sets the rounding
    reach = max(float(np.abs(q(c.means) - q.constant).max()) for c in (*law.clouds, *tilt.law.clouds))
    size = rounding(reach, q.constant, law.dim, condition=math.sqrt(max(law.condition, tilt.law.condition)))
    rule = abs(tilt.log_mass - law.log_mass(q, OTHER_SPACING))
    return numbers, Numbers(size + rule, size, size + rule), tilt


def exponent(output: Output, reward: Quadratic, temperature: float) -> Quadric:
    """r / temperature on the latent coordinates."""
    q = Quadric(reward.constant, reward.linear.numpy(), reward.curvature.numpy())
    return output.frame.restrict(q).times(1 / temperature)


class StepRoute(NamedTuple):
    """height 1{direction . x > threshold}, the height in units of the temperature; mass above under p_pre and p_ft."""

    height: float
    mass: float
    below: float

    @classmethod
    def of(cls, output: Output, reward: Step, temperature: float) -> StepRoute:
        direction = reward.direction.numpy()
        line = output.law.along(output.frame.basis.T @ direction)
        threshold = reward.threshold - float(direction @ output.frame.offset)
        return cls(reward.height / temperature, line.above(threshold), line.below(threshold))

    @property
    def log_c(self) -> float:
        return float(np.log(self.below + self.mass * math.exp(self.height)))

    @property
    def tilted_mass(self) -> float:
        return self.mass * math.exp(self.height - self.log_c)

    @property
    def total_variation(self) -> float:
        return abs(self.tilted_mass - self.mass)

    @property
    def divergence(self) -> float:
        return self.height * (self.tilted_mass - self.mass)

    @property
    def kl(self) -> float:
        """KL(p_ft || p_pre)."""
        return self.height * self.tilted_mass - self.log_c

    @property
    def reverse_kl(self) -> float:
        return self.log_c - self.height * self.mass


class Ramp(NamedTuple):
    """The direction in which the reward rises at the mean of p_pre, in latent and in all coordinates."""

    direction: Array
    ambient: Tensor
    shift: float
    line: NormalLine

    def step(self, probability: float, height: float) -> Step:
        """height on the part of p_pre's mass of that probability where ambient . x is largest."""
        return Step(self.ambient, self.threshold(probability) + self.shift, height)

    def threshold(self, probability: float) -> float:
        """What direction . u exceeds with that probability."""
        return self.line.quantile(1 - probability)


@lru_cache(maxsize=8)
def ramp(problem: Problem) -> Ramp:
    """Along the gradient of the reward, of unit deviation under p_pre; along the first axis where it vanishes."""
    output = output_law(problem)
    law, frame = output.law, output.frame
    reward = problem.reward
    centre = frame.lift(law.mean[None])
    if isinstance(reward, Step):
        direction = frame.basis.T @ reward.direction.numpy()
    elif as_quadratic(reward) is not None:
        direction = frame.basis.T @ reward.gradient(centre)[0].numpy()  # type: ignore[attr-defined]
    else:
        direction = np.zeros(law.dim)
    if not np.abs(direction).max() > 1e-12:
        direction = np.eye(law.dim)[0]
    direction = direction / law.along(direction).std
    ambient = frame.basis @ direction
    return Ramp(direction, torch.as_tensor(ambient), float(ambient @ frame.offset), law.along(direction))


def log_density(law: Law, x: Tensor) -> Array:
    """log of the density at points (n, D); on a subspace, with respect to its own Lebesgue measure."""
    values = law.latent.log_prob(law.encode(x)) if isinstance(law, Subspace) else law.log_prob(x)
    return values.numpy()


def core(law: Law) -> Law:
    return law.latent if isinstance(law, Subspace) else law


def draws_exactly(law: Law) -> bool:
    """Whether its samples are independent draws of the law itself, not resampled ones."""
    inner = core(law)
    if not isinstance(inner, TiltedLaw) or inner.on_line:
        return True
    return inner.log_bound is not None and draws_exactly(inner.base)


@lru_cache(maxsize=4)
def _drawn(law: Law, seed: int, stream: str, n: int) -> Tensor:
    """Kept for the next check that asks for the same draws; not to be written to."""
    return law.sample(n, Noise(seed), stream).to(torch.float64)


def draws(case: Case, law: Law, plain: GaussianSum | None, stream: str, n: int) -> Tensor:
    """n draws of the library's law; of the second route's where the library's would be resampled."""
    if draws_exactly(law):
        return (_drawn if n <= DRAWS else _drawn.__wrapped__)(law, case.seed, stream, n)
    if plain is None:
        raise NotApplicable(f"{type(core(law)).__name__} is drawn from by importance resampling only")
    return output_law(case.problem).frame.lift(plain.draw(n, np.random.default_rng([case.seed, *stream.encode()])))


def plain_laws(case: Case) -> tuple[GaussianSum | None, GaussianSum | None]:
    """p_pre and p_ft by the second route, to draw from where the library can only resample; None where it draws."""
    if draws_exactly(case.answers.reference) and draws_exactly(case.answers.terminal):
        return None, None
    route = static(case.problem)
    return route.output.law, route.tilt.law if route.tilt else None


def log_weights(case: Case, x: Tensor) -> Array:
    """log dp_ft/dp_pre at points, as the answers say: r / temperature - log C."""
    rewards = case.problem.reward(x).to(torch.float64).numpy()
    return rewards / case.problem.temperature - float(case.answers.log_normalizer)
