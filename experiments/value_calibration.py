"""Are the error bars of `feynman_kac` and `value_gradient` honest? z-scores over random problems, one draw of each.

A problem: Gaussian data, or a mixture of two to four Gaussians, in one to four dimensions under VP or VE noising, a
random quadratic reward, temperature, time and state; or a linear process with a quadratic running reward, whose values
need paths. Every estimator sees every problem once, under noise of its own. Its z-scores against the exact value should
be standard normal (Student's t for the randomised nets): Kolmogorov-Smirnov at RATE, and intervals of 95 %. Counted
apart: estimates that warn of their weights, and those whose error bar is that of rounding (control variates are exact
for quadratic exponents). The cold problems have weights that must not be believed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import stats

import sdecontrol as sc
from experiments.record import resumed
from sdecontrol import value as V
from sdecontrol.value import UnreliableWeights
from sdecontrol.value.gradient_terms import GradientMethod
from sdecontrol.value.methods import Method

PROBLEMS, SAMPLES, PATHS = 100, 2**12, 2**10
RATE = 1e-3  # of each Kolmogorov-Smirnov test
ROUNDING = 1e-11  # error bars below say nothing about sampling
GRID = sc.TimeGrid.uniform(8)  # 8, 16 and 32 steps, extrapolated
BY_LAW: tuple[Method, ...] = (
    V.Plain(), V.Antithetic(), V.QuasiMonteCarlo(), V.ControlVariates(), V.Adapted(), V.Laplace(), V.Portfolio(),
)  # fmt: skip
BY_PATHS: tuple[Method, ...] = (V.Plain(), V.QuasiMonteCarlo(), V.Multilevel(3))
GRADIENTS: tuple[GradientMethod, ...] = (
    V.Pathwise(), V.Bismut(), V.LikelihoodRatio(), V.Pathwise(V.Adapted()), V.Pathwise(V.Laplace()),
    V.Pathwise(V.ControlVariates()),
)  # fmt: skip
COLD = (30.0, 100.0, 300.0)  # strengths of a 60-dimensional log-quadratic problem


def covariance(rng: np.random.Generator, d: int) -> np.ndarray:
    root = rng.normal(size=(d, d)) / np.sqrt(d)
    return 0.1 * np.eye(d) + 0.5 * root @ root.T


def by_law(seed: int) -> tuple[sc.Problem, float, torch.Tensor]:
    """A problem whose law of Y_T given Y_t is known, a time and a state."""
    rng = np.random.default_rng([seed, 1])
    d, modes = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    law: Any = sc.GaussianMixture(rng.dirichlet(np.full(modes, 3.0)), rng.normal(size=(modes, d)),
                                  np.stack([covariance(rng, d) for _ in range(modes)]))  # fmt: skip
    if modes == 1:
        law = sc.Gaussian(rng.normal(size=d), covariance(rng, d))
    schedule = sc.VP(0.1, 6.0) if rng.integers(2) else sc.VE(0.01, 4.0)
    bend = rng.normal(size=(d, d))
    reward = sc.Quadratic(rng.normal(size=d), 0.3 * (bend @ bend.T) / d - 0.1 * np.eye(d))
    problem = sc.Problem(sc.ReverseProcess(schedule, law, "marginal"), reward, float(rng.uniform(0.5, 2.0)))
    t = float(rng.uniform(0.0, 0.8))
    return problem, t, problem.process.noised(t).sample(1, sc.Noise(seed)).double()


def by_paths(seed: int) -> tuple[sc.Problem, float, torch.Tensor]:
    """Linear dynamics with a running reward, a time and a state."""
    rng = np.random.default_rng([seed, 2])
    d = int(rng.integers(1, 4))
    drift = sc.Affine(-0.5 * np.eye(d) + 0.3 * rng.normal(size=(d, d)), 0.2 * rng.normal(size=d))
    process = sc.DiffusionProcess(drift, float(rng.uniform(0.5, 1.2)), sc.Gaussian(np.zeros(d), np.eye(d)), horizon=1.0)
    running = sc.Quadratic(0.3 * rng.normal(size=d), covariance(rng, d))
    reward = sc.Quadratic(0.5 * rng.normal(size=d), covariance(rng, d))
    problem = sc.Problem(process, reward, float(rng.uniform(0.7, 2.0)), running)
    return problem, float(rng.uniform(0.0, 0.6)), torch.from_numpy(rng.normal(size=(1, d)))


def quietly(estimate: Any) -> tuple[Any, bool]:
    """An estimate, and whether it warned of its weights."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", UnreliableWeights)
        found = estimate()
    return found, any(issubclass(w.category, UnreliableWeights) for w in seen)


class Scores:
    """z-scores of one estimator, with what is counted apart."""

    def __init__(self) -> None:
        self.z: list[float] = []
        self.warned, self.rounding = 0, [0.0]

    def add(self, estimate: Callable[[], Any], exact: float) -> None:
        found, warns = quietly(estimate)
        gap, error = float(found.value.flat[0]) - exact, float(found.stderr.flat[0])
        if warns:
            self.warned += 1
        elif error < ROUNDING:
            self.rounding.append(abs(gap))
        else:
            self.z.append(gap / error)

    def summary(self, degrees: float = np.inf) -> dict[str, Any]:
        law, z = stats.t(degrees) if np.isfinite(degrees) else stats.norm(), self.z
        return {
            "problems": len(z), "warned": self.warned, "exact": len(self.rounding) - 1,
            "largest_rounding": max(self.rounding), "mean": float(np.mean(z)), "std": float(np.std(z)),
            "ks": float(stats.kstest(z, law.cdf).statistic), "p": float(stats.kstest(z, law.cdf).pvalue),
            "inside": float(np.mean(np.abs(z) < law.ppf(0.975))), "largest": float(np.abs(z).max()),
        }  # fmt: skip


def values(method: Method, make: Any, count: int, first: int, n: int, **options: Any) -> dict[str, Any]:
    """One method over `count` problems from seed `first` on."""
    scores = Scores()
    for seed in range(first, first + count):
        problem, t, x = make(seed)
        call = partial(sc.feynman_kac, problem, t, x, n, method, sc.Noise(seed + 7), **options)
        scores.add(call, float(problem.exact.value(t, x)))
    return scores.summary(method.randomisations - 1 if isinstance(method, V.QuasiMonteCarlo) else np.inf)


def gradients(rule: GradientMethod, count: int, first: int) -> dict[str, Any]:
    """One rule over the problems of known law, along one direction."""
    scores = Scores()
    for seed in range(first, first + count):
        problem, t, x = by_law(seed)
        e = torch.ones(1, problem.process.dim, dtype=torch.float64)
        chain = isinstance(rule, V.Bismut) and not problem.process.is_affine
        options: dict[str, Any] = {"along": e, "grid": sc.TimeGrid.log_snr(24) if chain else None}
        n, noise = PATHS if chain else SAMPLES, sc.Noise(seed + 9)
        exact = float(problem.exact.control(t, x) @ e[0]) * problem.temperature / problem.process.amplitude(t)
        scores.add(partial(sc.value_gradient, problem, t, x, rule, n, noise, **options), exact)
    return scores.summary()


def cold() -> list[dict[str, Any]]:
    """Plain weights where they collapse: every wrong answer must come with a warning."""
    rows = []
    for strength in COLD:
        problem = sc.problems.log_quadratic_hjb(60, strength)
        x = torch.zeros(1, 60, dtype=torch.float64)
        for seed in range(5):
            found, warns = quietly(lambda: sc.feynman_kac(problem, 0.0, x, SAMPLES, V.Plain(), sc.Noise(seed)))  # noqa: B023
            z = float((found.value[0] - float(problem.exact.value(0.0, x))) / found.stderr[0])
            rows.append({"strength": strength, "z": z, "warned": warns, "pareto_k": float(found.pareto_k[0])})
    return rows


def parts(count: int = PROBLEMS, first: int = 0) -> dict[str, Callable[[], Any]]:
    """Every estimator and the cold problems, by name."""
    found: dict[str, Callable[[], Any]] = {"cold": cold}
    for method in BY_LAW:
        found[method.name] = partial(values, method, by_law, count, first, SAMPLES)
    for rule in GRADIENTS:
        found[f"grad, {rule!r}"] = partial(gradients, rule, count, first)
    for method in BY_PATHS:
        found[f"{method.name} by paths"] = partial(values, method, by_paths, count, first, PATHS, grid=GRID)
    return found


def main() -> None:
    resumed("value_calibration", parts())


if __name__ == "__main__":
    main()
