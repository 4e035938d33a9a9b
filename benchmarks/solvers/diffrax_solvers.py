"""diffrax on the reverse SDE and on the probability flow, jitted, float32, states (dim, paths).

The score is written in jax from the parameters of the data law. Compilation happens in the first call and is not
timed. Fixed steps draw from UnsafeBrownianPath, the fastest; with impulses a path of the same interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np

import sdecontrol as sc
from benchmarks.solvers.case import FINE, Case, Contender, Impulses

FAMILY = "diffrax"
SDE_STEPS: dict[str, tuple[type, int, tuple[int, ...]]] = {  # solver, score calls a step, steps
    "Euler": (diffrax.Euler, 1, (30, 120)),
    "Heun": (diffrax.Heun, 2, (12, 16, 20, 30, 60)),
    "SRA1": (diffrax.SRA1, 2, (16, 20, 60)),
    "ShARK": (diffrax.ShARK, 2, (12, 16, 20, 30, 60)),
}
MOST_STEPS = 120
ODE_TOLERANCES: dict[str, tuple[type, tuple[float, ...]]] = {
    "Heun, flow": (diffrax.Heun, (3e-2, 2e-2, 1e-2, 3e-3)),
    "Bosh3, flow": (diffrax.Bosh3, (3e-2, 2e-2, 1e-2, 3e-3, 1e-3)),
    "Tsit5, flow": (diffrax.Tsit5, (3e-2, 1e-2, 1e-3)),
    "Dopri8, flow": (diffrax.Dopri8, (1e-1, 1e-2)),
}
CALLS = {"Heun, flow": 2, "Bosh3, flow": 3, "Tsit5, flow": 6, "Dopri8, flow": 13}  # a step, the first call apart

Score = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # (x (dim, n), alpha, h) -> (dim, n)


def contenders(case: Case) -> Iterator[Contender]:
    """One compilation for each solver serves all its step counts or tolerances."""
    reverse = _Reverse(case)
    for name, (solver, calls, counts) in SDE_STEPS.items():
        scheme = _Scheme(reverse, solver, name in ("SRA1", "ShARK"))
        for steps in counts:
            yield _fixed(case, name, scheme, calls, steps)
    for name, (solver, tolerances) in ODE_TOLERANCES.items():
        flow = _flow_of(reverse, solver)
        for tolerance in tolerances:
            yield _adaptive(case, name, flow, tolerance)


def score_of(law: sc.laws.Law) -> Score:
    """The score of the law of alpha X + sqrt(h) Z."""
    if isinstance(law, sc.Subspace):
        return _subspace_score(law)
    if isinstance(law, sc.Gaussian):
        return _gaussian_score(law)
    assert isinstance(law, sc.GaussianMixture)
    return _mixture_score(law)


def _array(values: Any) -> jax.Array:
    return jnp.asarray(np.asarray(values), jnp.float32)


def _gaussian_score(law: sc.Gaussian) -> Score:
    values, vectors = (_array(part) for part in np.linalg.eigh(law.covariance.numpy()))
    mean = _array(law.mean)

    def score(x: jax.Array, alpha: jax.Array, h: jax.Array) -> jax.Array:
        precision = (vectors / (alpha**2 * values + h)) @ vectors.T
        return (precision @ (alpha * mean))[:, None] - precision @ x

    return score


def _mixture_score(law: sc.GaussianMixture) -> Score:
    values, vectors = (_array(part) for part in np.linalg.eigh(law.covariances.numpy()))
    log_weights, means = _array(law.log_weights), _array(law.means)
    k, d = means.shape

    def score(x: jax.Array, alpha: jax.Array, h: jax.Array) -> jax.Array:
        variances = alpha**2 * values + h
        whiten = jnp.swapaxes(vectors, 1, 2) / jnp.sqrt(variances)[:, :, None]
        shift = alpha * jnp.einsum("kij,kj->ki", whiten, means)
        flat = whiten.reshape(k * d, d)
        z = (flat @ x - shift.reshape(-1, 1)).reshape(k, d, -1)
        logits = (log_weights - jnp.log(variances).sum(1) / 2)[:, None] - (z * z).sum(1) / 2
        return -(flat.T @ (z * jax.nn.softmax(logits, axis=0)[:, None]).reshape(k * d, -1))

    return score


def _subspace_score(law: sc.Subspace) -> Score:
    latent, basis, offset = score_of(law.latent), _array(law.basis), _array(law.offset)

    def score(x: jax.Array, alpha: jax.Array, h: jax.Array) -> jax.Array:
        y = x - alpha * offset[:, None]
        u = basis.T @ y
        return basis @ (u / h + latent(u, alpha, h)) - y / h

    return score


class _Reverse:
    """Drift, amplitude and closing step of a case; t is generation time."""

    def __init__(self, case: Case):
        self.case, self.score, self.schedule = case, score_of(case.law), case.process.schedule
        self.end = case.process.horizon - case.stop

    def levels(self, t: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """beta, alpha and h at generation time t, for beta linear in s."""
        low, high = self.schedule.beta_min, self.schedule.beta_max
        s = 1 - t
        integral = low * s + (high - low) * s * s / 2
        return low + (high - low) * s, jnp.exp(-integral / 2), -jnp.expm1(-integral)

    def drift(self, t: jax.Array, y: jax.Array, args: None) -> jax.Array:
        beta, alpha, h = self.levels(t)
        return beta * (y / 2 + self.score(y, alpha, h))

    def flow(self, t: jax.Array, y: jax.Array, args: None) -> jax.Array:
        beta, alpha, h = self.levels(t)
        return beta / 2 * (y + self.score(y, alpha, h))

    def amplitude(self, t: jax.Array, y: jax.Array, args: None) -> lineax.AbstractLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.full(y.shape, jnp.sqrt(self.levels(t)[0])))

    def close(self, y: jax.Array) -> jax.Array:
        if self.case.stop == 0:
            return y
        _, alpha, h = self.levels(jnp.float32(self.end))
        return (y + h * self.score(y, alpha, h)) / alpha


class _TablePath(diffrax.AbstractBrownianPath):
    """Standardised increments of equal steps from a table (draws, dim, rows), two draws a step for the Levy area."""

    table: jax.Array
    length: jax.Array
    levy_area: Any

    @property
    def t0(self) -> float:
        return -jnp.inf

    @property
    def t1(self) -> float:
        return jnp.inf

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True, use_levy: bool = False) -> Any:
        dt = t1 - t0
        k = jnp.round(t0 / self.length).astype(int)
        if self.levy_area is diffrax.BrownianIncrement:
            w = jnp.sqrt(dt) * self.table[k]
            return diffrax.BrownianIncrement(dt=dt, W=w) if use_levy else w
        w, h = jnp.sqrt(dt) * self.table[2 * k], jnp.sqrt(dt / 12) * self.table[2 * k + 1]
        return diffrax.SpaceTimeLevyArea(dt=dt, W=w, H=h) if use_levy else w


class _Scheme:
    """An SDE solver at fixed steps, compiled for its own noise (`draw`) and for given noise (`given`)."""

    def __init__(self, reverse: _Reverse, solver: type, levy: bool):
        self.reverse, self.solver = reverse, solver
        self.area = diffrax.SpaceTimeLevyArea if levy else diffrax.BrownianIncrement
        self.draws = 2 if levy else 1  # a step
        self.draw, self.given = jax.jit(self._draw, static_argnums=1), jax.jit(self._given)

    def _run(self, start: jax.Array, brownian: diffrax.AbstractBrownianPath, dt: jax.Array) -> jax.Array:
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(self.reverse.drift), diffrax.ControlTerm(self.reverse.amplitude, brownian)
        )
        return self.reverse.close(_solve(terms, self.solver(), self.reverse.end, dt, start).ys[0])

    def _draw(self, key: jax.Array, shape: tuple[int, int], dt: jax.Array) -> jax.Array:
        first, second = jax.random.split(key)
        return self._run(jax.random.normal(first, shape), diffrax.UnsafeBrownianPath(shape, second, self.area), dt)

    def _given(self, start: jax.Array, table: jax.Array, dt: jax.Array) -> jax.Array:
        return self._run(start, _TablePath(table, dt, self.area), dt)


def _solve(terms: Any, solver: Any, end: float, dt: jax.Array | None, start: jax.Array, **options: Any) -> Any:
    return diffrax.diffeqsolve(terms, solver, 0.0, end, dt, start, adjoint=diffrax.ForwardMode(), max_steps=4096,
                               saveat=diffrax.SaveAt(t1=True), **options)  # fmt: skip


def _fixed(case: Case, name: str, scheme: _Scheme, calls: int, steps: int) -> Contender:
    dt = jnp.float32(scheme.reverse.end / steps)
    most = scheme.draws * MOST_STEPS

    def sample(n: int, seed: int) -> np.ndarray:
        return np.asarray(scheme.draw(jax.random.key(seed), (case.dim, n), dt).block_until_ready()).T

    def probe(impulses: Impulses) -> np.ndarray:
        """Rows and table are filled up to one size, so that all step counts share a compilation."""
        rows, draws = impulses.rows, scheme.draws * steps
        start, table = np.zeros((case.dim, 2 + most)), np.zeros((most, case.dim, 2 + most))
        start[:, :rows] = impulses.start().T
        for k in range(draws):
            table[k, :, :rows] = impulses.draw().T
        return np.asarray(scheme.given(_array(start), _array(table), dt)).T[:rows]

    def coupled(start: np.ndarray, increments: np.ndarray) -> np.ndarray:
        table = np.zeros((MOST_STEPS, case.dim, len(start)))
        table[:steps] = np.swapaxes(increments.reshape(steps, -1, *start.shape).sum(axis=1), 1, 2) / np.sqrt(dt)
        return np.asarray(scheme.given(_array(start.T), _array(table), dt)).T

    total = calls * steps + (case.stop > 0)
    return Contender(FAMILY, name, "uniform", steps, total, sample, probe=probe if case.affine else None,
                     coupled=coupled if scheme.draws == 1 and FINE % steps == 0 else None)  # fmt: skip


def _flow_of(reverse: _Reverse, solver: type) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """(start, tolerance) -> (terminal, steps): the probability flow with the PID controller, rtol = atol."""

    @jax.jit
    def run(start: jax.Array, tolerance: jax.Array) -> tuple[jax.Array, jax.Array]:
        controller = diffrax.PIDController(rtol=tolerance, atol=tolerance)
        terms = diffrax.ODETerm(reverse.flow)
        found = _solve(terms, solver(), reverse.end, None, start, stepsize_controller=controller)
        return reverse.close(found.ys[0]), found.stats["num_steps"]

    return run


_normals = jax.jit(jax.random.normal, static_argnums=1)


def _adaptive(case: Case, name: str, flow: Callable[..., Any], tolerance: float) -> Contender:
    seen: list[int] = []

    def run(start: jax.Array) -> np.ndarray:
        out, steps = flow(start, jnp.float32(tolerance))
        out = np.asarray(out.block_until_ready()).T
        seen[:] = [CALLS[name] * int(steps) + 1 + (case.stop > 0)]
        return out

    return Contender(FAMILY, f"{name}, tolerance {tolerance:g}", "adaptive", 0, 0,
                     lambda n, seed: run(_normals(jax.random.key(seed), (case.dim, n))),
                     push=lambda start: run(_array(start.T)), counted=lambda: seen[0])  # fmt: skip
