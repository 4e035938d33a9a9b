"""Claims at scale: what can be checked on a pretrained model, where nothing has a closed form.

Each compares the library's numbers (a `Ledger`) with a route that shares no code with them: a known constant, another
estimator, or the densities of an unmodified scheduler. They are found by id once this module is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdecontrol import guidance
from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.backends.runs import Runs
from sdecontrol.claims.base import DISCRETE, MONTE_CARLO, Case, Claim, NotApplicable
from sdecontrol.claims.mutants import mutant
from sdecontrol.estimate import Estimate
from sdecontrol.path import Path
from sdecontrol.problems.base import Problem

SMALL, LARGE = 0.1, 8.0  # nats: small enough for e^{-L} to have a small variance, large enough for L to be resolved
FEW = 3  # paths that are looked at step by step
EPS32 = float(torch.finfo(torch.float32).eps)


Numbers = Callable[[Path], Tensor]


@dataclass(frozen=True)
class Ledger:
    """The library's numbers about the paths (n,), as they are checked; mutants put others in their place."""

    log_ratio: Numbers = Path.log_ratio
    energy: Numbers = lambda path: path.weights.energy


def ledger(case: Case) -> Ledger:
    return getattr(case.answers, "ledger", None) or Ledger()


def claim(id: str, rung: str, title: str, source: str) -> Callable[[Callable[[Case], None]], Claim]:
    """A claim with one check, whose docstring is the statement."""

    def made(check: Callable[[Case], None]) -> Claim:
        found = Claim(id, title, source, inspect.getdoc(check) or "", listed=False)
        found.check(rung)(check)
        return found

    return made


@claim("scale-girsanov", MONTE_CARLO, "E exp(-log ratio) = 1 under bounded controls", "Girsanov for Gaussian steps")
def girsanov(case: Case) -> None:
    """Under Q^u the inverse of its density relative to Q has mean 1: E_u e^{-L} = E_Q 1, for bounded controls."""
    runs, book = Runs.of(case), ledger(case)
    for name in runs.directions:
        path = runs.sized(name, SMALL)
        estimate = Estimate.mean((-book.log_ratio(path)).exp(), "mean inverse density")
        case.sample(f"{name}: E exp(-log ratio)", estimate, 1.0)


@claim("scale-path-kl", MONTE_CARLO, "path KL by two routes", "Tang 2403.06279, (3.12)")
def path_kl(case: Case) -> None:
    """E_u L = E_u sum |sqrt(dt) u|^2 / 2, and both are K size^2 / 2 for a control of the given size on K steps."""
    runs, book = Runs.of(case), ledger(case)
    for name in runs.directions:
        path = runs.sized(name, LARGE)
        case.identity(f"{name}: mean energy", float(book.energy(path).mean()), LARGE, 100 * EPS32 * LARGE)
        case.sample(f"{name}: mean log ratio", Estimate.mean(book.log_ratio(path), "mean log ratio"), LARGE)


@claim("scale-log-z", MONTE_CARLO, "log Z by three estimators", "Tang 2403.06279, Lemma 3.1")
def log_z(case: Case) -> None:
    """log E_Q e^{r/T}: from reference paths, from guided paths weighed by e^{r/T - L}, and from resampled particles."""
    runs, book = Runs.of(case), ledger(case)
    plain = Estimate.log_mean_exp(runs.rewards("reference"), "reference paths")
    guided = runs.path("plug-in")
    weighed = Estimate.log_mean_exp(runs.rewards("plug-in") - book.log_ratio(guided), "guided paths, weighed")
    particles = runs.particles.log_normalizer
    assert particles is not None
    note = "scale: one nat"
    case.sample("guided paths against reference paths", weighed, plain, scale=1.0, note=note)
    case.sample("particles against reference paths", particles, plain, scale=1.0, note=note)
    case.sample("particles against guided paths", particles, weighed, scale=1.0, note=note)


@claim("scale-certificate", MONTE_CARLO, "the certificate of each control", "Tang 2403.06279, Prop. 3.6")
def certificate(case: Case) -> None:
    """E_u [r/T - L - log Z] = -KL(Q^u || Q*) <= 0, with log Z from particles, so that it could be positive."""
    runs, book = Runs.of(case), ledger(case)
    particles = runs.particles.log_normalizer
    assert particles is not None
    for name in runs.laws:
        residual = runs.rewards(name) - book.log_ratio(runs.path(name))
        estimate = Estimate.mean(residual, "mean certificate") + particles * -1.0
        rms = float((residual - particles.value).square().mean().sqrt())
        case.sample_bound(f"{name}: mean certificate", estimate, 0.0, note=f"rms {rms:.3g}; minus it is the gap over T")


@claim("scale-scheduler", DISCRETE, "discrete Girsanov through an unmodified scheduler", "Girsanov for Gaussian steps")
def through_a_scheduler(case: Case) -> None:
    """The stock scheduler, given the path's noise as variance_noise, makes the path's states; its own step with noise 0
    and 1 gives the densities N(mean + std w, std) and N(mean, std), whose log ratio along the states is L."""
    runs, book = Runs.of(case), ledger(case)
    process = runs.process
    stock = process.reading.scheduler
    if "variance_noise" not in inspect.signature(stock.step).parameters:
        raise NotApplicable(f"{type(stock).__name__}.step takes no variance_noise")
    path = runs.kept("plug-in", FEW)
    found = StockSteps(process, path, runs.laws["plug-in"])
    case.zero("states of the scheduler - states of the path, relative", found.worst_state, 100 * EPS32)
    size = float(found.log_ratio.abs().max())
    gap = float((found.log_ratio - book.log_ratio(path)).abs().max())
    case.zero("log ratio from the scheduler - log ratio of the path", gap, found.rounding, scale=size)
    gap = float((found.energy - book.energy(path)).abs().max())
    case.zero("energy from the scheduler - energy of the path", gap, found.rounding, scale=size)


class StockSteps:
    """A kept path gone through again by the scheduler's own `step`, in the order of its timesteps."""

    def __init__(self, process: StableDiffusionProcess, path: Path, law: Any):
        assert path.states is not None and path.noises is not None
        n = path.n
        self.worst_state = self.rounding = 0.0
        self.log_ratio, self.energy = torch.zeros(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
        for k, step in path.views(law.requires_jacobian):
            x, z = path.states[k], path.noises[k]
            ends = [self._step(process, k, x, noise) for noise in (z, torch.zeros_like(z), torch.ones_like(z))]
            size = float(path.states[k + 1].abs().max())
            self.worst_state = max(self.worst_state, float((ends[0] - path.states[k + 1]).abs().max()) / size)
            std = float((ends[2] - ends[1]).double().mean())
            w = (law(step) * step.dt**0.5).double()
            came = (path.states[k + 1].double() - ends[1].double()) / std
            self.log_ratio += (came.square() - (came - w).square()).flatten(1).sum(1) / 2
            self.energy += w.square().flatten(1).sum(1) / 2
            self.rounding += 8 * EPS32 * (1 + size / std) * float(w.abs().flatten(1).sum(1).max())

    def _step(self, process: StableDiffusionProcess, k: int, x: Tensor, noise: Tensor) -> Tensor:
        stock = process.reading.stepping(process.steps)
        eta = {"eta": process.default_kernel.eta} if "eta" in inspect.signature(stock.step).parameters else {}  # type: ignore[attr-defined]
        prediction = process.network.predict(x, torch.full((len(x),), process.levels[k]))
        if hasattr(stock, "_init_step_index"):
            stock._init_step_index(stock.timesteps[k])
        return stock.step(prediction, stock.timesteps[k], x, variance_noise=noise, **eta).prev_sample


@claim("scale-cfg-cost", DISCRETE, "what classifier-free guidance costs in KL", "2207.12598; the KL: derived")
def cfg_cost(case: Case) -> None:
    """CFG at scale w is a control on the conditional model, w = 1. As a control and as a model of its own it makes the
    same states, and its path KL to the conditional is 1/2 sum |mean_w - mean_1|^2 / std^2."""
    runs, book = Runs.of(case), ledger(case)
    process = runs.process
    if process.cfg == 1.0:
        raise NotApplicable("the process is the conditional model: cfg = 1")
    conditional = process.with_cfg(1.0)
    problem = Problem(conditional, runs.problem.reward, runs.problem.temperature)
    law = guidance.cfg(problem, process.unconditional, 1 - process.cfg)
    path = runs.simulated(law, FEW, process=conditional)
    alone = runs.simulated(None, FEW)
    assert path.states is not None and alone.states is not None
    size = float(alone.states.abs().max())
    apart = float((path.states - alone.states).abs().max()) / size
    case.zero("states under CFG as a control - as a model, relative", apart, 1_000 * EPS32)
    energy = torch.zeros(path.n, dtype=torch.float64)
    for k, transition in enumerate(path.transitions):
        if not transition.noiseless:
            with_w, with_1 = (
                transition.mean(p.state(transition.t, alone.states[k])).double() for p in (process, conditional)
            )
            energy += ((with_w - with_1) / transition.std).square().flatten(1).sum(1) / 2
    cost = float(energy.mean())
    case.identity(f"path KL of cfg = {process.cfg:g} to the conditional, nats", float(book.energy(path).mean()), cost,
                  1e-3 * cost, note="error: float32 states of two routes")  # fmt: skip


@claim("scale-batch", DISCRETE, "a law does not see the batch", "contract: guidance acts per sample")
def batch(case: Case) -> None:
    """The first images of many have the bits they have alone, under every law; so have their rewards and log ratios."""
    runs, book = Runs.of(case), ledger(case)
    more = runs.process.batch + FEW
    for name, law in runs.laws.items():
        few, many = runs.simulated(law, FEW), runs.simulated(law, more)
        worst = float((few.terminal - many.terminal[:FEW]).abs().max())
        case.zero(f"{name}: latents alone - among {more}", worst, 0.0)
        gap = float((book.log_ratio(few) - book.log_ratio(many)[:FEW]).abs().max())
        case.zero(f"{name}: log ratio alone - among {more}", gap, 0.0)
    rewards = runs.problem.reward(many.terminal)
    gap = float((runs.problem.reward(few.terminal) - rewards[:FEW]).abs().max())
    case.zero("rewards alone - among many", gap, 0.0)


def _changed(**numbers: Numbers) -> dict[str, Any]:
    return {"ledger": Ledger(**numbers)}


@mutant("log ratio without its martingale", "scale-girsanov scale-scheduler")
def _no_martingale(problem: Problem, e: Any) -> dict[str, Any]:
    return _changed(log_ratio=lambda path: path.weights.energy)


@mutant("sign of the log ratio", "scale-path-kl scale-scheduler scale-certificate")
def _negated(problem: Problem, e: Any) -> dict[str, Any]:
    return _changed(log_ratio=lambda path: -path.log_ratio())


@mutant("energy of the steps without its half", "scale-path-kl scale-scheduler scale-cfg-cost")
def _no_half(problem: Problem, e: Any) -> dict[str, Any]:
    return _changed(energy=lambda path: 2 * path.weights.energy)


@mutant("mean over the latent coordinates for the sum", "scale-path-kl scale-scheduler")
def _mean_for_sum(problem: Problem, e: Any) -> dict[str, Any]:
    size = problem.process.dim
    return _changed(log_ratio=lambda path: path.log_ratio() / size, energy=lambda path: path.weights.energy / size)


@mutant("log ratio of the batch's mean path", "scale-batch")
def _of_the_batch(problem: Problem, e: Any) -> dict[str, Any]:
    return _changed(log_ratio=lambda path: path.log_ratio() + path.log_ratio().mean())
