"""Which exact answers a problem has: the families with closed forms, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sdecontrol.errors import NoClosedForm
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.exact.continuum.flow import components, flow_from
from sdecontrol.exact.continuum.labels import ClassScore, StartedClass
from sdecontrol.exact.continuum.riccati import affine_quadratic
from sdecontrol.exact.continuum.score import GaussianScore, MixtureScore, ScoreExact
from sdecontrol.exact.continuum.started import StartedStep
from sdecontrol.exact.continuum.started_quadratic import StartedQuadratic
from sdecontrol.exact.continuum.step import StepScore
from sdecontrol.exact.continuum.subspace import SubspaceScore, latent_start
from sdecontrol.laws import ClassPosterior, Gaussian, GaussianMixture, Isotropic, Law, Subspace
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Quadratic, Step
from sdecontrol.schedules import Schedule

if TYPE_CHECKING:
    from sdecontrol.problems.base import Problem

_REASON = (
    'the laws of Y_t are not closed from this initial law; they are from "marginal" and from points, '
    "and for Gaussian data also from Gaussians and mixtures"
)


def exact_score(problem: Problem) -> ContinuumExact:
    """The exact score of a Gaussian or a mixture, or of one on a subspace; a quadratic, step or label reward."""
    process, reward = problem.process, problem.reward
    if not isinstance(process, ReverseProcess) or not process.has_exact_score:
        raise NoClosedForm("the process is not the reverse diffusion of an exact score")
    if not isinstance(reward, (Quadratic, Step, ClassPosterior)):
        raise NoClosedForm(
            "the reward is not Quadratic, Step or ClassPosterior, whose means under a posterior are closed"
        )
    if isinstance(reward, ClassPosterior) and not reward.is_bayes(process.data_law, problem.temperature):
        raise NoClosedForm(
            "p(class | x)^(strength/temperature) has a closed mean at strength = temperature, for a class made of the "
            "data law's own components"
        )
    if problem.running_reward is not None:
        raise NoClosedForm("with a running reward the value is not a function of the posterior of Y_T alone")
    law, schedule = process.data_law, process.schedule
    start = None if process.initial == "marginal" else process.initial_law()
    if not isinstance(law, Subspace):
        return _on_space(law, schedule, reward, problem.temperature, start)
    inner = None if start is None else latent_start(law.frame, start, schedule.alpha(schedule.horizon))
    restricted = reward.restrict(law.basis, law.offset)
    return SubspaceScore(law, _on_space(law.latent, schedule, restricted, problem.temperature, inner), start)


def _on_space(
    law: Law, schedule: Schedule, reward: Quadratic | Step | ClassPosterior, temperature: float, start: Law | None
) -> ScoreExact:
    """The family on all of R^d, by the data law, the start (None: the noised data law) and the reward."""
    law = law.as_gaussian() if isinstance(law, Isotropic) else law
    start = start.as_gaussian() if isinstance(start, Isotropic) else start
    if not isinstance(law, (Gaussian, GaussianMixture)):
        raise NoClosedForm(
            f"the data law is a {type(law).__name__}, not a Gaussian, a mixture or one of them on a subspace"
        )
    flow = flow_from(law, schedule, start)
    gaussian_start = start if flow is None and isinstance(start, Gaussian) else None
    if isinstance(reward, Quadratic):
        if gaussian_start is not None:
            return StartedQuadratic(law, schedule, reward, temperature, gaussian_start)
        family = GaussianScore if len(components(law)) == 1 else MixtureScore
        return family(law, schedule, reward, temperature, flow, _REASON)
    if isinstance(reward, ClassPosterior):
        if gaussian_start is not None and reward.extra is None:
            return StartedClass(law, schedule, reward, temperature, gaussian_start)
        return ClassScore(law, schedule, reward, temperature, flow, _REASON)
    if gaussian_start is not None:
        return StartedStep(law, schedule, reward, temperature, gaussian_start)
    return StepScore(law, schedule, reward, temperature, flow, _REASON)


FAMILIES: tuple[Callable[[Problem], ContinuumExact], ...] = (exact_score, affine_quadratic)


def continuum(problem: Problem) -> ContinuumExact:
    """The exact answers of a problem, by the first family that contains it; each refuses with its reason."""
    reasons = []
    for family in FAMILIES:
        try:
            return family(problem)
        except NoClosedForm as error:
            reasons.append(str(error))
    return ContinuumExact(problem.process.horizon, problem.temperature, "; and ".join(reasons))
