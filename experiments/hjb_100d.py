"""The 100-dimensional log-quadratic HJB equation by Feynman-Kac, as a black box: no use is made of its symmetry.

r(x) = -log((1 + |x|^2)/2) on dY = sqrt(2) dB, temperature 1/strength: `feynman_kac` with its default method, at
strengths 1, 10 and 50, in 100 and 1 000 dimensions, and with |x|^2 replaced by (x - c)'A(x - c), A a random rotation of
a spectrum from 0.2 to 3, from a start away from c. Reference (derived): 1/(1 + q)^lam is a mixture over s of e^{-s q},
and E e^{-s q} of a Gaussian quadratic form is closed, so that h and grad h are integrals on the line: h to 30 digits
by mpmath, the gradient by the trapezoidal rule. Seconds are those of the processor, of one run each on one thread;
coverage is over seeds of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import mpmath
import numpy as np
import torch
from scipy.optimize import minimize_scalar

import sdecontrol as sc
from experiments.record import resumed
from sdecontrol.value import Adapted, ControlVariates, Laplace, Pathwise

SEEDS = {"round_form": 100, "turned_form": 50}
PUBLISHED = {"relative_error": 1.7e-3, "seconds": 330}  # deep BSDE: Han, Jentzen and E (2018)
SIZES = {1.0: 2**16, 10.0: 2**18, 50.0: 2**17}  # evaluations, by strength
ABSOLUTE = 2**18  # at which the standard error itself, not only its ratio to u, is below 3e-6 at strength 1
COVERED = 2**13  # the same, of each seed of the coverage: by the method that was chosen, its own pilot and fit included
METHODS = {"ControlVariates": ControlVariates(), "Adapted": Adapted(), "Laplace": Laplace()}
RULES = {1.0: Pathwise(ControlVariates()), 10.0: Pathwise(Adapted()), 50.0: Pathwise(Laplace())}
PLANES = 16  # points of a batch


class Form:
    """q(x) = (x - c)'A(x - c), A = V diag(a) V', with log E[(2/(1 + q(x + sqrt(2 tau) Z)))^lam] and its gradient."""

    def __init__(self, values: np.ndarray, vectors: np.ndarray, centre: np.ndarray):
        self.values, self.vectors, self.centre = values, vectors, centre
        self._root = torch.from_numpy(vectors * np.sqrt(values))
        self._centre = torch.from_numpy(centre)

    def reward(self, x: torch.Tensor) -> torch.Tensor:
        """-log((1 + q(x))/2): (n, d) -> (n,)."""
        return math.log(2) - torch.log1p(((x - self._centre) @ self._root).square().sum(-1))

    def _log_integrand(self, x: np.ndarray, strength: float, tau: float) -> Callable[[Any], Any]:
        """log of s^lam e^{-s} E e^{-s q} in y = log s, in mpmath's numbers."""
        squares = (self.vectors.T @ (x - self.centre)) ** 2
        terms, counts = np.unique(np.stack([self.values, self.values * squares], 1), axis=0, return_counts=True)
        parts = [(int(count), float(a), float(weight)) for count, (a, weight) in zip(counts, terms)]

        def log_f(y: Any) -> Any:
            s = mpmath.exp(y)
            shrunk = [(count, 1 + 4 * tau * a * s, weight) for count, a, weight in parts]
            return strength * y - s - sum(count * (mpmath.log(q) / 2 + s * weight / q) for count, q, weight in shrunk)

        return log_f

    def log_h(self, x: np.ndarray, strength: float, tau: float = 1.0) -> float:
        """By tanh-sinh quadrature around the largest value of the integrand."""
        with mpmath.workdps(30):
            log_f = self._log_integrand(x, strength, tau)
            peak = minimize_scalar(lambda y: -float(log_f(y)), bounds=(-40, 12), method="bounded").x
            top, width = log_f(peak), 1 / math.sqrt(strength)
            ends = [peak - 80 * width * max(1.0, width), *(peak + k * width for k in (-8, -3, 0, 3, 8)), peak + 12]
            mass = mpmath.quad(lambda y: mpmath.exp(log_f(y) - top), ends)
            return float(top + mpmath.log(mass) + strength * mpmath.log(2) - mpmath.loggamma(strength))

    def gradient(self, x: np.ndarray, strength: float, tau: float = 1.0) -> np.ndarray:
        """grad log h = -2 V E_s[s a/(1 + 4 tau a s)] V'(x - c), E_s under the integrand above: 13 digits."""
        moved = self.vectors.T @ (x - self.centre)
        y = np.linspace(-60, 8, 40_001)[:, None]
        q = 1 + 4 * tau * self.values * np.exp(y)
        log_f = strength * y[:, 0] - np.exp(y[:, 0])
        log_f -= (np.log(q) / 2 + np.exp(y) * self.values * moved**2 / q).sum(1)
        weights = np.exp(log_f - log_f.max())
        pull = weights @ (np.exp(y) * self.values / q) / weights.sum()
        return -2 * self.vectors @ (pull * moved)


def round_form(dim: int) -> tuple[Form, np.ndarray]:
    """|x|^2 from the origin."""
    return Form(np.ones(dim), np.eye(dim), np.zeros(dim)), np.zeros(dim)


def turned_form(dim: int) -> tuple[Form, np.ndarray]:
    """A random rotation, eigenvalues 0.2 to 3, centre and start drawn apart."""
    rng = np.random.default_rng(5)
    rotation = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    return Form(np.geomspace(0.2, 3.0, dim), rotation, 0.3 * rng.normal(size=dim)), 0.2 * rng.normal(size=dim)


def problem_of(form: Form, strength: float) -> sc.Problem:
    base = sc.problems.log_quadratic_hjb(len(form.centre), strength)
    return sc.Problem(base.process, form.reward, base.temperature)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Result, seconds of the processor, seconds of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    found = work()
    return found, time.process_time() - cpu, time.perf_counter() - clock


def value_row(
    make: Callable[[int], tuple[Form, np.ndarray]], dim: int, strength: float, seeds: int, n: int
) -> dict[str, Any]:
    """One estimate with its error, and how often the intervals of cheaper ones hold the truth."""
    form, start = make(dim)
    problem, x = problem_of(form, strength), torch.from_numpy(start)[None]
    exact = form.log_h(start, strength) / strength
    found, cpu, clock = timed(lambda: sc.feynman_kac(problem, 0.0, x, n, noise=sc.Noise(0)))
    again = [
        sc.feynman_kac(problem, 0.0, x, COVERED, METHODS[found.methods[0]], sc.Noise(100 + k)) for k in range(seeds)
    ]
    z = [float((one.value[0] - exact) / one.stderr[0]) for one in again]
    return {
        "form": make.__name__, "dim": dim, "strength": strength, "evaluations": n,
        "u": -exact, "estimate": -float(found.value[0]), "stderr": float(found.stderr[0]),
        "relative_error": abs(float(found.value[0]) / exact - 1),
        "relative_stderr": abs(float(found.stderr[0]) / exact),
        "method": found.methods[0], "ess": float(found.ess.value[0]), "pareto_k": float(found.pareto_k[0]),
        "cpu_seconds": cpu, "clock_seconds": clock,
        "coverage": {"seeds": seeds, "inside": sum(abs(c) < 1.96 for c in z), "z": z,
                     "z_mean": float(np.mean(z)), "z_std": float(np.std(z, ddof=1))} if seeds else None,
    }  # fmt: skip


def gradient_row(make: Callable[[int], tuple[Form, np.ndarray]], dim: int, strength: float) -> dict[str, Any]:
    """grad v at a start, all coordinates: relative error in the norm, and the z-scores' mean square."""
    form, start = make(dim)
    start = start + 0.2 * np.random.default_rng(6).normal(size=dim)
    problem, x = problem_of(form, strength), torch.from_numpy(start)[None]
    exact = form.gradient(start, strength) / strength
    found, cpu, clock = timed(lambda: sc.value_gradient(problem, 0.0, x, RULES[strength], 2**16))
    gap = found.value[0] - exact
    return {
        "form": make.__name__, "dim": dim, "strength": strength, "rule": repr(RULES[strength]),
        "relative_error": float(np.linalg.norm(gap) / np.linalg.norm(exact)),
        "mean_square_z": float(np.mean((gap / found.stderr[0]) ** 2)),
        "cpu_seconds": cpu, "clock_seconds": clock,
    }  # fmt: skip


def batch_row(dim: int, strength: float) -> dict[str, Any]:
    """Many (t, x) in one call: the largest z-score and relative error."""
    form, _ = round_form(dim)
    truth = sc.problems.log_quadratic_hjb(dim, strength).exact
    rng = np.random.default_rng(8)
    times, x = np.repeat([0.0, 0.5], PLANES // 2), 0.3 * rng.normal(size=(PLANES, dim))
    problem = problem_of(form, strength)
    exact = np.array([float(truth.value(t, torch.from_numpy(row)[None])) for t, row in zip(times.tolist(), x)])
    found, cpu, clock = timed(
        lambda: sc.feynman_kac(problem, torch.from_numpy(times), torch.from_numpy(x), 2**15, noise=sc.Noise(2))
    )
    return {
        "dim": dim, "strength": strength, "points": PLANES,
        "largest_z": float(np.abs((found.value - exact) / found.stderr).max()),
        "largest_relative_error": float(np.abs(found.value / exact - 1).max()),
        "cpu_seconds": cpu, "clock_seconds": clock,
    }  # fmt: skip


def parts() -> dict[str, Callable[[], Any]]:
    """Everything measured, by name."""
    forms = (round_form, turned_form)
    found: dict[str, Callable[[], Any]] = {"published": lambda: PUBLISHED}
    for make in forms:
        for s in SIZES:
            found[f"value {make.__name__} {s:g}"] = partial(value_row, make, 100, s, SEEDS[make.__name__], SIZES[s])
            found[f"gradient {make.__name__} {s:g}"] = partial(gradient_row, make, 100, s)
    return found | {
        "value absolute": partial(value_row, round_form, 100, 1.0, 0, ABSOLUTE),
        "value 1000": partial(value_row, round_form, 1_000, 1.0, 0, COVERED), "batch": partial(batch_row, 100, 1.0),
    }  # fmt: skip


def main() -> None:
    resumed("hjb_100d", parts())


if __name__ == "__main__":
    main()
