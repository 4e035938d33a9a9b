"""Eq. (3.27) on a chain: what a control sees of a step, and gradients, scores and means in its units."""

from __future__ import annotations

import math

import numpy as np
import torch

from sdecontrol.claims.base import DISCRETE, Case, rounding
from sdecontrol.claims.entropy.feynman_kac import CONTROL
from sdecontrol.claims.entropy.kernels_one_step import levels, moments_of
from sdecontrol.claims.routes.local import steps_at
from sdecontrol.claims.routes.workbench import Workbench, no_running_reward
from sdecontrol.controls import StepControl
from sdecontrol.kernels import Ancestral, EulerMaruyama, Kernel
from sdecontrol.step import StepView, advance


@CONTROL.check(DISCRETE)
def posterior_mean_of_a_step(case: Case) -> None:
    """Tweedie: a step's x0_hat is E[X_0 | y], and pullback(c) is its Jacobian (alpha/h) Cov(X_0 | y) times c."""
    no_running_reward(case)
    bench, latent, process = Workbench.of(case), Workbench.of(case).latent, case.problem.process
    latent.known_data  # noqa: B018  raises NotApplicable
    steps = steps_at(bench, bench.middle)
    a, h = latent.level(steps.t)
    mean, covariance = moments_of(latent.clean(steps.t), latent.encode(steps.t, steps.x))
    direction = torch.as_tensor(bench.rng("direction").normal(size=process.dim)).expand(len(steps.x), -1)
    step = _view(case, Ancestral())
    found, truth = step.x0_hat, latent.lift(bench.horizon, mean)
    size = float(steps.x.abs().max()) / a
    error = rounding(1.0, operations=1_000 * latent.dim, condition=max(1.0, h / a**2) * bench.condition)
    case.zero("x0_hat - E[X_0|y], relative", float((found - truth).abs().max()) / size, error)
    pulled, basis = step.pullback(direction).numpy(), latent.frame.basis
    slope = a / h * np.einsum("nij,nj->ni", covariance, direction.numpy() @ basis) @ basis.T
    gap = float(np.abs(pulled - slope).max()) / float(direction.abs().max())
    case.zero("pullback - Jacobian of E[X_0|y]", gap, error, scale=float(np.abs(slope).max()))


@CONTROL.check(DISCRETE)
def units_of_a_step(case: Case) -> None:
    """from_value, from_score, from_mean: sqrt(dt) u = std grad v/temperature, c_f delta/std and delta/std.

    std and c_f are written out for the ancestral kernel, sqrt(h' q/h) and q/r, and for Euler's, sqrt(dt) g and dt g^2.
    A simulated step under the control must move by what was asked for.
    """
    no_running_reward(case)
    bench, process, alpha = Workbench.of(case), case.problem.process, case.problem.temperature
    latent = bench.latent
    latent.known_data  # noqa: B018  raises NotApplicable
    steps = steps_at(bench, bench.middle)
    t, t_next, root = steps.t, steps.ends[0], math.sqrt(steps.longest)
    r, q, h, h_next = levels(latent, t, t_next)
    amplitude = process.amplitude(t)
    delta = torch.as_tensor(bench.rng("delta").normal(size=(len(steps.x), process.dim)))
    written: dict[str, tuple[Kernel, float, float]] = {
        "ancestral": (Ancestral(), math.sqrt(h_next * q / h), q / r),
        "Euler": (EulerMaruyama(), root * amplitude, steps.longest * amplitude**2),
    }
    for name, (kernel, std, weight) in written.items():
        step = _view(case, kernel)
        asked = {
            "from_value": (step.from_value(delta, alpha), std / (alpha * root)),
            "from_score": (step.from_score(delta), weight / (std * root)),
            "from_mean": (step.from_mean(delta), 1 / (std * root)),
        }
        error = rounding(1.0, condition=h / q)
        worst = max(float((u - factor * delta).abs().max()) / factor for u, factor in asked.values())
        case.zero(f"{name}: a gradient, a score and a mean as a control, relative", worst, error)
        push = StepControl(lambda s: s.from_mean(delta))
        zero = torch.zeros_like(steps.x)
        moved, free = (advance(process, step.transition, 0, steps.x, zero, control)[0] for control in (push, None))
        size = float(steps.x.abs().max()) + float(delta.abs().max())
        gap = float((moved - free - delta).abs().max())
        case.zero(f"{name}: what from_mean moves a step by", gap, rounding(size, condition=h / q), scale=size)


def _view(case: Case, kernel: Kernel) -> StepView:
    """The longest step of the problem's test states as a control sees it."""
    bench, process = Workbench.of(case), case.problem.process
    steps = steps_at(bench, bench.middle)
    transition = kernel.transition(process, steps.t, steps.ends[0])
    return StepView(process, transition, 0, process.state(steps.t, steps.x, jacobian=True))
