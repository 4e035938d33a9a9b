"""Lemma 3.1, the remark on rejection sampling: e^{sup r/temperature} / C proposals from p_pre a draw from p_ft."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sdecontrol.claims.base import EXACT, MONTE_CARLO, Case, NotApplicable, rounding
from sdecontrol.claims.entropy.tilt import LEMMA
from sdecontrol.claims.routes.output import Output, output_law
from sdecontrol.claims.routes.static import check_static, draws, draws_exactly, exponent, ramp, static
from sdecontrol.errors import NoClosedForm
from sdecontrol.estimate import Estimate
from sdecontrol.rewards import GaussianLabel, Quadratic, Step, as_quadratic

SHARE = 0.3  # of p_pre's mass, on which the step reward that every problem gets is paid
HEIGHT = math.log(8.0)  # of that step, in units of the temperature
LABEL_NOISE = 0.7  # of a Gaussian label, in standard deviations of p_pre
LABELLED = 16  # points at which its likelihood is compared
PROPOSALS = 8 / (1 + 7 * SHARE)
LARGEST_RUN = 50.0  # proposals a draw beyond which rejection sampling is not run
ACCEPTED = 2_000  # accepted draws aimed at
FEWEST = 30  # accepted draws below which their mean waiting time says nothing


def supremum(output: Output, reward: object, temperature: float) -> float:
    """sup r / temperature over the support of p_pre. Raises NotApplicable where infinite, with Wald's argument."""
    if isinstance(reward, Step):
        return max(reward.height, 0.0) / temperature
    quadratic = as_quadratic(reward)
    if quadratic is None:
        raise NotApplicable("the supremum of the reward is not known")
    q = exponent(output, quadratic, temperature)
    bends, vectors = np.linalg.eigh(q.curvature)
    slopes, scale = vectors.T @ q.linear, max(float(np.abs(bends).max()), 1e-300)
    flat = np.abs(bends) <= 1e-9 * scale
    if (bends < 0)[~flat].any() or (np.abs(slopes[flat]) > 1e-9 * (1 + np.abs(slopes).max())).any():
        raise NotApplicable(
            "r is unbounded above on the support of p_pre, so no stopping rule on draws from p_pre has a finite mean: "
            "Wald gives p_ft(A) <= E[N] p_pre(A), hence E[N] >= sup dp_ft/dp_pre = infinity"
        )
    return q.constant + float((slopes[~flat] ** 2 / bends[~flat]).sum()) / 2


def step_reward(case: Case) -> Step:
    """A step along the gradient of r that pays on SHARE of p_pre's mass."""
    check_static(case.problem)
    return ramp(case.problem).step(SHARE, HEIGHT * case.problem.temperature)


@LEMMA.check(EXACT)
def proposals_for_a_step(case: Case) -> None:
    """e^{height/temperature} / C for a step reward along the gradient of r, C by the library's law of p_pre."""
    step, output = step_reward(case), output_law(case.problem)
    try:
        log_c = case.answers.reference.log_expectation(step, case.problem.temperature)
    except NoClosedForm as reason:
        raise NotApplicable(f"the mass of p_pre above a threshold is not closed: {reason}") from reason
    error = rounding(8.0, condition=math.sqrt(output.law.condition)) + 100 * output.error
    case.identity(f"proposals a draw, step on {SHARE:.0%} of the mass", math.exp(HEIGHT - log_c), PROPOSALS, error)


@LEMMA.check(EXACT)
def proposals_for_a_label(case: Case) -> None:
    """A Gaussian label of the same direction, log N(target; direction . x, noise^2): its values, and e^{sup r/T} / C.

    The label is one deviation of p_pre away, and the reward twice the temperature a nat.
    """
    check_static(case.problem)
    temperature, along, output = case.problem.temperature, ramp(case.problem), output_law(case.problem)
    target, strength = along.line.mean + along.shift + 1.0, 2 * temperature
    label = GaussianLabel(along.ambient, target, LABEL_NOISE, strength)
    log_norm = math.log(LABEL_NOISE * math.sqrt(2 * math.pi))
    u = output.law.draw(LABELLED, case.rng)
    seen = u @ along.direction + along.shift
    r = -strength * (((seen - target) / LABEL_NOISE) ** 2 / 2 + log_norm)
    x = output.frame.lift(u)
    size = float((np.abs(x.numpy()) @ np.abs(along.ambient.numpy())).max())
    error = rounding(strength * (size + abs(target)) ** 2 / LABEL_NOISE**2, operations=100 * x.shape[1])
    case.zero("a label's log likelihood, both routes", float(np.abs(label(x).numpy() - r).max()), error, scale=strength)
    nodes, weights = along.line.nodes()
    log_c = math.log(float(weights @ np.exp(-(((nodes + along.shift - target) / LABEL_NOISE) ** 2))))
    error = rounding(1.0, condition=math.sqrt(output.law.condition)) + 100 * output.error + error / temperature
    found = -2 * log_norm - float(case.answers.reference.log_expectation(label, temperature))
    case.identity("log of proposals a draw, a label", found, -log_c, error)


@LEMMA.check(EXACT)
def proposals(case: Case) -> None:
    """e^{sup r/temperature} / C for the reward itself, in logarithms; a note with the reason where r is unbounded."""
    route = static(case.problem)
    top = supremum(route.output, case.problem.reward, case.problem.temperature)
    error = route.errors.log_c + rounding(top, condition=route.output.law.condition)
    note = f"{math.exp(min(top - route.log_c, 700)):.4g} proposals a draw"
    case.identity("log of proposals a draw", top - case.answers.log_normalizer, top - route.log_c, error, note=note)


@LEMMA.check(MONTE_CARLO)
def rejection_for_a_step(case: Case) -> None:
    """A run of rejection sampling for the step reward."""
    run(case, step_reward(case), HEIGHT, PROPOSALS, "step reward")


@LEMMA.check(MONTE_CARLO)
def rejection(case: Case) -> None:
    """A run of rejection sampling for the reward itself, where it is bounded above and the run is not too long."""
    check_static(case.problem)
    top = supremum(output_law(case.problem), case.problem.reward, case.problem.temperature)
    wanted = math.exp(min(top - float(case.answers.log_normalizer), 700.0))
    if wanted > LARGEST_RUN:
        raise NotApplicable(f"rejection would need {wanted:.3g} proposals a draw")
    run(case, case.problem.reward, top, wanted, "the reward")


def run(case: Case, reward: Callable[[Tensor], Tensor], log_bound: float, wanted: float, label: str) -> None:
    """Propose from p_pre, accept with probability e^{r/temperature - bound}; the waiting times are geometric."""
    law = case.answers.reference
    plain = None if draws_exactly(law) else output_law(case.problem).law
    x = draws(case, law, plain, f"proposals, {label}", math.ceil(ACCEPTED * wanted))
    log_accept = reward(x).to(torch.float64).numpy() / case.problem.temperature - log_bound
    accepted = np.flatnonzero(np.log(case.rng.uniform(size=len(x))) < log_accept)
    if len(accepted) < FEWEST:
        raise NotApplicable(f"only {len(accepted)} of {len(x)} proposals were accepted")
    waits = np.diff(np.concatenate([[-1], accepted]))
    case.sample(f"proposals a draw, {label}, run", Estimate.mean(waits), wanted)
    if isinstance(reward, Quadratic):
        truth = static(case.problem).numbers.after * case.problem.temperature
        r = reward(x[torch.as_tensor(accepted)]).numpy()
        case.sample("E_ft r from accepted draws", Estimate.mean(r), truth, scale=abs(truth) + float(r.std()))
