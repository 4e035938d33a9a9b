"""Four rules for the numerator of grad h / h: pathwise, Bismut-Elworthy-Li, likelihood ratio, and the swap."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.kernels import ExactTransition, HeunTransition, Transition
from sdecontrol.noise import Noise
from sdecontrol.path import Path, inner
from sdecontrol.time import TimeGrid
from sdecontrol.value.gradient_terms import Gradient, GradientMethod, Terms
from sdecontrol.value.importance import Proposal
from sdecontrol.value.integrand import Integrand, Task, TerminalIntegrand
from sdecontrol.value.methods import ControlVariates
from sdecontrol.value.paths import PathIntegrand
from sdecontrol.value.smoothness import check_smooth

_EXACT_STEPS, _EXACT_DIM = 16, 64  # of a chain without step error, whose matrices are dense


Way = Proposal | ControlVariates | None


def _pieces(integrand: Integrand, n: int, noise: Noise, way: Way = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Normals and log p/q of them, in pieces."""
    if isinstance(way, Proposal):
        yield from way.draws(integrand, n, noise)
        return
    for z in integrand.draws(noise, "gradient", n):
        yield z, torch.zeros(len(z), dtype=z.dtype)


def _gathered(
    integrand: Integrand, n: int, noise: Noise, way: Way, rule: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor | None]:
    """F with its ratio, what the rule says beside it, and the controls, if any, of all pieces."""
    growth, terms, normals = [], [], []
    for z, log_ratio in _pieces(integrand, n, noise, way):
        f, term = rule(z)
        growth.append(f + log_ratio[:, None])
        terms.append(term)
        normals.append(z)
    controls = way.moved(integrand, torch.cat(normals), noise) if isinstance(way, ControlVariates) else None
    return torch.cat(growth), torch.cat(terms), controls


@dataclass(frozen=True)
class Pathwise(GradientMethod):
    """grad h = E[e^F grad_x F], F differentiated along each path: grad F = Z_T' grad r(Y_T)/temperature + ... with the
    first variation dZ = grad b Z dt, Z_t = I, by one backward sweep.

    The smallest variance where r is smooth; blind to jumps, hence refused (NotDefined) for a reward that has any.
    way: `ControlVariates()` regresses numerator and denominator on the normals, on a quadratic surrogate of F and on
    their products, of known means; `Laplace()` or `Adapted()` draws the normals, for weights that collapse under their
    own law. Source: Tang 2403.06279, (3.30) and below; the ways: derived.
    """

    way: Way = None

    def terms(self, task: Task, n: int, noise: Noise) -> Terms:
        integrand = task.integrand
        check_smooth(task, noise)
        growth, p, controls = _gathered(integrand, n, noise, self.way, integrand.slopes)
        return Terms(growth, torch.zeros_like(p), p, integrand.order, controls)


@dataclass(frozen=True)
class Bismut(GradientMethod):
    """Bismut-Elworthy-Li: grad h = E[e^F int_t^T psi(s) amplitude(s)^{-1} Z_s' dB_s], int psi = 1, any measurable r.

    On a chain x+ = m_k(x) + std_k xi, with J_k the derivative of x_k in the start and sum a_k = 1, exactly

        grad h = E[e^F (sum_k a_k J_{k+1}' std_k^{-T} xi_k + sum_k (1 - A_k) dt_k J_k' grad rho / temperature)],

    A_k = a_0 + ... + a_{k-1}:
    the noise steers a moved start back by the share a_k at step k, and the running reward sees what is left. Both
    sums are the gradient of one number along the path, so one backward sweep makes them for all coordinates.
    psi: weight in time, a function of the generation time (default constant), normalised here; a_k = 0 on noiseless
    steps. Affine dynamics without running reward take 16 exact transitions. Variance grows like 1/(T - t), and where
    amplitude is small while psi is not. Kernels of one model call only (NotDefined).
    Source: Tang 2403.06279, (3.29)-(3.30); the chain's formula: derived.
    """

    psi: Callable[[float], float] | None = None

    def terms(self, task: Task, n: int, noise: Noise) -> Terms:
        return _swept(task, n, noise, self._shares)

    def _shares(self, path: Path) -> Tensor:
        """a_k: psi dt on steps with noise, of sum one."""
        psi = self.psi or (lambda s: 1.0)
        raw = [psi(tr.t) * tr.dt if _invertible(tr) else 0.0 for tr in path.transitions]
        check(min(raw) >= 0 and sum(raw) > 0, f"weights psi(s) dt = {raw[:4]} ...", "weights >= 0, not all of them 0")
        return torch.tensor(raw, dtype=torch.float64) / sum(raw)


def _invertible(transition: Transition) -> bool:
    """Whether the noise of a step reaches every direction."""
    if transition.noiseless:
        return False
    spread = torch.linalg.svdvals(torch.atleast_2d(torch.as_tensor(transition.std, dtype=torch.float64)))
    return float(spread[-1]) > 1e-9 * float(spread[0])


def _swept(task: Task, n: int, noise: Noise, shares: Callable[[Path], Tensor]) -> Terms:
    """Scores and slopes of the chain's levels by one backward sweep each."""
    chain, levels = _exact_chain(task)
    kinds: tuple[list[Tensor], ...] = ([], [], [])
    for z, _ in _pieces(chain, n, noise):
        x, normals = task.x.expand(len(z), -1).contiguous(), chain.normals(z)
        found = [_sweep(chain, x, normals[level], level, shares) for level in levels]
        for kind, part in zip(kinds, zip(*found)):
            kind.append(torch.stack(part, 1))
    growth, score, slope = map(torch.cat, kinds)
    return Terms(growth, score, slope, chain.order)


def _exact_chain(task: Task) -> tuple[PathIntegrand, list[int]]:
    """The chain and the levels to run: one level of exact transitions where the dynamics are affine."""
    process = task.problem.process
    told = task.problem.running_reward is not None or task.kernel is not None or task.grid is not None
    if process.dim <= _EXACT_DIM and process.is_affine and not told:
        ends = torch.linspace(task.t, process.horizon, _EXACT_STEPS + 1, dtype=torch.float64).tolist()
        grid = TimeGrid.explicit(ends[:-1] + [process.horizon])
        try:
            return PathIntegrand(task.problem, task.x, [grid], ExactTransition()), [0]
        except NoClosedForm:
            pass
    return task.chain, [0, 1, 2]


@torch.enable_grad()
def _sweep(
    chain: PathIntegrand, x: Tensor, xi: Tensor, level: int, shares: Callable[[Path], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """F (m,), score and slope (m, d) of one piece of paths."""
    x = x.clone().requires_grad_()
    path = chain.simulated(x, xi, level, grad=True, keep="all")
    if any(isinstance(transition, HeunTransition) for transition in path.transitions):
        raise NotDefined("a step of two model calls is not linear in its noise; use EulerMaruyama or Ancestral")
    a = shares(path)
    states = path.states
    assert states is not None
    steered = sum(
        float(a[k]) * inner(transition.unspread(states[k + 1]), noise)
        for k, (transition, noise) in enumerate(zip(path.transitions, xi)) if a[k] > 0
    )  # fmt: skip
    (score,) = torch.autograd.grad(torch.as_tensor(steered).sum(), x, retain_graph=True)
    slope = torch.zeros_like(score)
    if path.observed is not None:
        left = torch.cat([torch.ones(1, dtype=torch.float64), 1 - a.cumsum(0)[:-1]]) * torch.tensor(path.grid.dt)
        running = (left @ path.observed[:-1].double()).sum() / chain.problem.temperature
        if not running.requires_grad:
            raise NotDefined("the running reward has no gradient, which every rule needs; wanted a differentiable one")
        (slope,) = torch.autograd.grad(running, x)
    return chain.growth(path).detach(), score, slope


@dataclass(frozen=True)
class LikelihoodRatio(GradientMethod):
    """grad h = E[e^F grad_x log p(Y_T | Y_t = x)], for any measurable r.

    Where the law of Y_T given Y_t is a known Gaussian mixture its score is exact, and the variance is the smallest of
    all weights that depend on Y_T only. Elsewhere (and with a running reward) the score is that of the chain's first
    step, whose variance grows like 1/dt: then prefer `Bismut`. way: as in `Pathwise`, for known laws only.
    Source: Tang 2403.06279, (3.27), as the score-function rule (derived).
    """

    way: Way = None

    def terms(self, task: Task, n: int, noise: Noise) -> Terms:
        integrand, way = task.integrand, self.way
        if not isinstance(integrand, TerminalIntegrand):
            check(way is None, "a proposal or controls where the law of Y_T is not known", "none", "Take Pathwise().")
            return _swept(task, n, noise, _first_step)
        growth, s, controls = _gathered(integrand, n, noise, way, integrand.scores)
        # with several components, or another law, e^F s is not the product of F with one score of mean zero
        lone = not integrand.several and not isinstance(way, Proposal)
        score, slope = (s, torch.zeros_like(s)) if lone else (torch.zeros_like(s), s)
        return Terms(growth, score, slope, 1, controls)


def _first_step(path: Path) -> Tensor:
    check(not path.transitions[0].noiseless, "a first step without noise", "a kernel with noise")
    return torch.eye(len(path.transitions), dtype=torch.float64)[0]


@dataclass(frozen=True)
class Swap(GradientMethod):
    """grad E[r(Y_T) + int rho | Y_t = x] in the place of grad v: the logarithm and the expectation swapped.

    Exact iff the reward is linear and Y_T given Y_t Gaussian; else a named approximation whose standard error says
    nothing about its distance from grad v. `rule` differentiates: Pathwise() for smooth rewards, Bismut() for others.
    Source: Tang 2403.06279, (3.28).
    """

    rule: GradientMethod = Pathwise()

    def terms(self, task: Task, n: int, noise: Noise) -> Terms:
        """By paths where e^F averages over components, whose logarithm is not the mean reward."""
        return self.rule.terms(replace(task, by_paths=True) if task.integrand.several else task, n, noise)

    def gradient(self, task: Task, n: int, noise: Noise, directions: Tensor | None = None) -> Gradient:
        terms = self.terms(task, n, noise)
        terms = terms if directions is None else terms.along(directions)
        return Gradient(*terms.linear(), terms.order, -math.inf, math.inf, 0.0)
