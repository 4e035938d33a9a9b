"""Variance times seconds of v and grad v: the library's methods against plain nested simulation by torchsde's Euler.

Plain: n paths of torchsde's Euler scheme from the state, 100 steps; v by the mean of e^F, its derivative along one
direction by central differences on common noise (two simulations), or by automatic differentiation through the solver.
Its step bias is not held against it. The library: every method that needs no control, at the same time and state; its
variance holds its own step error as well. Seconds are those of the processor on one thread, of everything a call does,
the pilot and the fit included. All in one run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchsde
from torch import Tensor

import sdecontrol as sc
from experiments.record import resumed
from sdecontrol import value as V
from sdecontrol.problems.builtin import resolve

STEPS, NESTED, EVALUATIONS = 100, 2**11, 2**15
STEP = 1e-3  # of the central differences, relative to a coordinate of order one
VALUES = (V.Plain(), V.QuasiMonteCarlo(), V.ControlVariates(), V.Adapted(), V.Laplace(), V.Portfolio())
GRADIENTS = (
    V.Pathwise(), V.Pathwise(V.ControlVariates()), V.LikelihoodRatio(), V.Pathwise(V.Adapted()),
    V.Pathwise(V.Laplace()),
)  # fmt: skip

Case = tuple[sc.Problem, float, Tensor]


def cases() -> dict[str, Case]:
    """Problem, time and state. The mixture's reward is quadratic: of a linear one the components leave no variance."""
    mixture = sc.problems.gaussian_mixture()
    bent = sc.Problem(mixture.process, sc.Quadratic([1.0, 0.0], [[0.5, 0.0], [0.0, 0.2]]), 1.0)
    digits = resolve("digits-mixture").problem
    return {
        "log-quadratic, 100-D, strength 10": (sc.problems.log_quadratic_hjb(100, 10.0), 0.0, torch.full((1, 100), 0.1)),
        "mixture, 2-D": (bent, 0.3, torch.tensor([[0.4, -0.3]])),
        "digits, 64-D": (digits, 0.9, digits.process.noised(0.9).sample(1, sc.Noise(3))),
    }


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    return work(), time.process_time() - start


def nested(case: Case, starts: Tensor, seed: int) -> Tensor:
    """F = (r(Y_T) + int rho)/temperature of Euler paths from starts (n, d): (n,)."""
    problem, t, _ = case
    times = torch.linspace(t, problem.process.horizon, STEPS + 1, dtype=torch.float64)
    brownian = torchsde.BrownianInterval(t, problem.process.horizon, tuple(starts.shape), torch.float64, entropy=seed)
    states = torchsde.sdeint(
        problem.process.to_torchsde(), starts, times, bm=brownian, method="euler", dt=float(times[1] - times[0])
    )
    total = problem.reward(states[-1])
    if problem.running_reward is not None:
        rates = [problem.running_rate(float(s), y) for s, y in zip(times[:-1], states[:-1])]
        total = total + torch.stack(rates).sum(0) * (times[1] - times[0])
    return total / problem.temperature


def plain_value(case: Case) -> tuple[float, float]:
    """v and its variance."""
    w = torch.exp(nested(case, case[2].double().expand(NESTED, -1), 1))
    return float(w.mean().log()) * case[0].temperature, float(w.var() / w.mean() ** 2) / NESTED * case[
        0
    ].temperature ** 2


def ratio(w: Tensor, slope: Tensor, scale: float) -> tuple[float, float]:
    """scale E[w slope]/E[w] and its variance by the delta method."""
    w = w / w.mean()
    value = (w * slope).mean()
    return float(value) * scale, float((w * (slope - value)).var()) / len(w) * scale**2


def plain_difference(case: Case, e: Tensor) -> tuple[float, float]:
    """The derivative along e by central differences on common noise."""
    start = case[2].double().expand(NESTED, -1)
    up, down = (torch.exp(nested(case, start + sign * STEP * e, 2)) for sign in (1, -1))
    terms = (up / up.mean() - down / down.mean()) / (2 * STEP)
    value = float((up.mean().log() - down.mean().log()) / (2 * STEP))
    return value * case[0].temperature, float(terms.var()) / NESTED * case[0].temperature ** 2


def plain_autograd(case: Case, e: Tensor) -> tuple[float, float]:
    """The same by automatic differentiation through the solver."""
    start = case[2].double().repeat(NESTED, 1).requires_grad_()
    f = nested(case, start, 3)
    (slope,) = torch.autograd.grad(f.sum(), start)
    return ratio(torch.exp(f.detach()), slope @ e[0], case[0].temperature)


def row(name: str, value: float, variance: float, seconds: float) -> dict[str, Any]:
    return {"name": name, "value": value, "stderr": math.sqrt(variance), "seconds": seconds, "work": variance * seconds}


def library_rows(case: Case, e: Tensor | None) -> list[dict[str, Any]]:
    """Every method on the value, or on the derivative along e; those that do not apply are left out."""
    problem, t, x = case
    estimate = sc.feynman_kac if e is None else partial(sc.value_gradient, along=e)
    rows = []
    for method in VALUES if e is None else GRADIENTS:
        try:
            call = partial(estimate, problem, t, x, method=method, n=EVALUATIONS, noise=sc.Noise(5))
            found, seconds = timed(call)
        except sc.errors.SDEControlError:
            continue
        value, stderr = float(found.value.flat[0]), float(found.stderr.flat[0])
        rows.append(row(repr(method), value, stderr**2, seconds))
    return rows


def compared(case: Case, plain: list[dict[str, Any]], e: Tensor | None, exact: float) -> dict[str, Any]:
    """The best of the library against the plain one."""
    rows = library_rows(case, e)
    for found in [*plain, *rows]:
        found["z"] = (found["value"] - exact) / found["stderr"]
    best = min((r for r in rows if abs(r["z"]) < 4), key=lambda r: r["work"])
    gains = [p["work"] / best["work"] for p in plain]
    return {"exact": exact, "plain": plain, "rows": rows, "best": best["name"], "gain": gains[0], "least": min(gains)}


def measured(case: Case) -> dict[str, Any]:
    """The value, and its derivative along the coordinate in which it is largest."""
    problem, t, x = case
    e, control = torch.zeros(1, problem.process.dim, dtype=torch.float64), problem.exact.control(t, x.double())
    e[0, int(control.abs().argmax())] = 1.0
    plain = []
    for label, work in (
        ("", lambda: plain_value(case)),
        (", differences", lambda: plain_difference(case, e)),
        (", automatic differentiation", lambda: plain_autograd(case, e)),
    ):
        (value, variance), seconds = timed(work)
        plain.append(row(f"torchsde, Euler{label}", value, variance, seconds))
    slope = float(control @ e[0]) * problem.temperature / problem.process.amplitude(t)
    return {
        "value": compared(case, plain[:1], None, float(problem.exact.value(t, x.double()))),
        "gradient": compared(case, plain[1:], e, slope),
    }


def main() -> None:
    resumed("value_efficiency", {name: partial(measured, case) for name, case in cases().items()})


if __name__ == "__main__":
    main()
