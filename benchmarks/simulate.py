"""Seconds to simulate, side by side with torchsde, diffrax and a bare jitted JAX scan, in one process.

Every contender runs Euler-Maruyama on the same reverse diffusion with the same closed-form score and keeps the ends
only; its terminal mean and covariance are checked against the exact moments of the chain before its time counts.
Each round times all contenders in turn, so that a drifting machine hits them alike; medians of the rounds are compared.

    python -m benchmarks.simulate [--rounds 5] [--quick]

Writes benchmarks/results/simulate.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torchsde
from rich.console import Console
from rich.table import Table

import sdecontrol as sc
from sdecontrol.report.atomic import write

RESULTS = Path(__file__).parent / "results" / "simulate.json"
Run = Callable[[], np.ndarray]  # -> terminal states (n, d)


@dataclass
class Task:
    """One comparison: contenders by name, the exact terminal moments, and the ratios that are wanted."""

    title: str
    contenders: dict[str, Run]
    mean: np.ndarray
    covariance: np.ndarray
    wanted: dict[str, float]  # prefix of the contenders -> ratio to the best of them


def gaussian_tables(process: sc.ReverseProcess, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drift matrices (K, d, d), offsets (K, d) and amplitudes (K,) at the left end of each uniform step."""
    times = np.linspace(0, process.horizon, steps + 1)[:-1]
    parts = [process.affine_drift(float(t)) for t in times]
    amplitudes = np.array([process.amplitude(float(t)) for t in times])
    return np.stack([a.numpy() for a, _ in parts]), np.stack([c.numpy() for _, c in parts]), amplitudes


class TorchSDE(torch.nn.Module):
    """The same drift as a torchsde object: f controlled, h reference, tables indexed by the step."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, drift: Callable, amplitudes: np.ndarray, control: Callable | None = None):
        super().__init__()
        self.drift, self.control = drift, control
        self.amplitudes = [float(a) for a in amplitudes]

    def index(self, t: torch.Tensor) -> int:
        return min(int(float(t) * len(self.amplitudes) + 0.5), len(self.amplitudes) - 1)

    def h(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.drift(self.index(t), y)

    def f(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        base = self.h(t, y)
        return base if self.control is None else base + self.amplitudes[self.index(t)] * self.control(y)

    def g(self, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.full_like(y, self.amplitudes[self.index(t)])


def torchsde_run(sde: TorchSDE, n: int, d: int, steps: int, dtype: torch.dtype, threads: int, logqp: bool) -> Run:
    def run() -> np.ndarray:
        torch.set_num_threads(threads)
        with torch.no_grad():
            start, times = torch.randn(n, d, dtype=dtype), torch.tensor([0.0, 1.0], dtype=dtype)
            out = torchsde.sdeint(sde, start, times, method="euler", dt=1.0 / steps, logqp=logqp)
        return (out[0] if logqp else out)[-1].numpy()

    return run


def affine_torch(matrices: np.ndarray, offsets: np.ndarray, dtype: torch.dtype) -> Callable:
    a, c = torch.tensor(matrices, dtype=dtype), torch.tensor(offsets, dtype=dtype)
    return lambda k, y: torch.addmm(c[k], y, a[k].T)


def jax_scan(matrices: np.ndarray, offsets: np.ndarray, amplitudes: np.ndarray, n: int, implementation: str) -> Run:
    steps, d = offsets.shape
    scale = jnp.asarray(amplitudes / np.sqrt(steps), jnp.float32)
    tables = (jnp.asarray(matrices / steps, jnp.float32), jnp.asarray(offsets / steps, jnp.float32), scale)

    @jax.jit
    def loop(key: jax.Array) -> jax.Array:
        start, rest = jax.random.split(key)

        def body(x: jax.Array, step: tuple) -> tuple[jax.Array, None]:
            (a, c, std), k = step
            return x + a @ x + c[:, None] + std * jax.random.normal(k, x.shape), None

        return jax.lax.scan(body, jax.random.normal(start, (d, n)), (tables, jax.random.split(rest, steps)))[0]

    keys = iter(jax.random.split(jax.random.key(0, impl=implementation), 64))
    return lambda: np.asarray(loop(next(keys)).block_until_ready()).T


def diffrax_run(matrices: np.ndarray, offsets: np.ndarray, amplitudes: np.ndarray, n: int) -> Run:
    import diffrax
    import lineax

    steps, d = offsets.shape
    a, c, g = (jnp.asarray(v, jnp.float32) for v in (matrices, offsets, amplitudes))

    def index(t: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round(t * steps).astype(int), 0, steps - 1)

    def drift(t: jax.Array, y: jax.Array, args: None) -> jax.Array:
        return a[index(t)] @ y + c[index(t)][:, None]

    def amplitude(t: jax.Array, y: jax.Array, args: None) -> lineax.AbstractLinearOperator:
        return lineax.DiagonalLinearOperator(jnp.full((d, n), g[index(t)]))

    @jax.jit
    def solve(key: jax.Array) -> jax.Array:
        start, path = jax.random.split(key)
        brownian = diffrax.UnsafeBrownianPath(shape=(d, n), key=path)
        terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(amplitude, brownian))
        return diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            0.0,
            1.0,
            1.0 / steps,
            jax.random.normal(start, (d, n)),
            max_steps=steps + 1,
            adjoint=diffrax.ForwardMode(),
            saveat=diffrax.SaveAt(t1=True),
        ).ys[0]

    keys = iter(jax.random.split(jax.random.PRNGKey(0), 64))
    return lambda: np.asarray(solve(next(keys)).block_until_ready()).T


def gaussian_process() -> sc.ReverseProcess:
    return sc.ReverseProcess(sc.VP(), sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]]))


def ours(process: sc.ReverseProcess, n: int, steps: int, dtype: torch.dtype, control: sc.Control | None = None) -> Run:
    seeds = iter(range(64))

    def run() -> np.ndarray:
        path = sc.simulate(
            process,
            control,
            grid=sc.TimeGrid.uniform(steps),
            kernel=sc.EulerMaruyama(),
            n=n,
            noise=sc.Noise(next(seeds)),
            keep="ends",
            dtype=dtype,
        )
        if control is not None:
            sc.path_kl(path), path.log_ratio()
        return path.terminal.numpy()

    return run


def exact_moments(
    process: sc.ReverseProcess, steps: int, control: sc.Control | None = None
) -> tuple[np.ndarray, np.ndarray]:
    m = sc.moments(process, sc.EulerMaruyama(), sc.TimeGrid.uniform(steps), control=control)
    return m.means[-1].numpy(), m.covariances[-1].numpy()


def gaussian_float32(n: int, steps: int, threads: list[int]) -> Task:
    process = gaussian_process()
    tables = gaussian_tables(process, steps)
    sde = TorchSDE(affine_torch(tables[0], tables[1], torch.float32), tables[2])
    contenders = {"sdecontrol": ours(process, n, steps, torch.float32)}
    contenders |= {f"torchsde, {k} threads": torchsde_run(sde, n, 2, steps, torch.float32, k, False) for k in threads}
    contenders["diffrax, UnsafeBrownianPath"] = diffrax_run(*tables, n)
    contenders |= {f"jax scan, {impl}": jax_scan(*tables, n, impl) for impl in ("threefry2x32", "rbg", "unsafe_rbg")}
    wanted = {"torchsde": 10.0, "diffrax": 2.0, "jax": 1.5}
    return Task(
        f"Gaussian score, d = 2, {n} x {steps}, float32, ends", contenders, *exact_moments(process, steps), wanted
    )


def gaussian_float64_kl(n: int, steps: int, threads: list[int]) -> Task:
    process = gaussian_process()
    gain, offset = -0.2 * torch.eye(2, dtype=torch.float64), torch.tensor([0.3, 0.1], dtype=torch.float64)
    control = sc.AffineControl(gain, offset)
    tables = gaussian_tables(process, steps)
    sde = TorchSDE(
        affine_torch(tables[0], tables[1], torch.float64), tables[2], lambda y: torch.addmm(offset, y, gain.T)
    )
    contenders = {"sdecontrol": ours(process, n, steps, torch.float64, control)}
    contenders |= {f"torchsde, {k} threads": torchsde_run(sde, n, 2, steps, torch.float64, k, True) for k in threads}
    title = f"the same, float64, with control, log ratio and KL, {n} x {steps}"
    return Task(title, contenders, *exact_moments(process, steps, control), {"torchsde": 3.0})


def mixture_float32(n: int, steps: int, threads: list[int]) -> Task:
    rng = np.random.default_rng(0)
    k, d = 8, 16
    roots = rng.normal(size=(k, d, d)) / np.sqrt(d)
    covariances = roots @ roots.transpose(0, 2, 1) + 0.2 * np.eye(d)
    law = sc.GaussianMixture(np.full(k, 1 / k), rng.normal(size=(k, d)), covariances)
    process = sc.ReverseProcess(sc.VP(beta_min=1.0, beta_max=1.0), law)
    times = np.linspace(0, 1, steps + 1)[:-1]
    amplitudes = np.array([process.amplitude(float(t)) for t in times])
    sde = TorchSDE(lambda j, y: process.state(float(times[j]), y).drift, amplitudes)
    contenders = {"sdecontrol": ours(process, n, steps, torch.float32)}
    contenders |= {f"torchsde, {j} threads": torchsde_run(sde, n, d, steps, torch.float32, j, False) for j in threads}
    reference = np.concatenate([ours(process, n, steps, torch.float64)() for _ in range(4)])
    title = f"8-component mixture score, d = 16, {n} x {steps}, float32, ends (the same score function)"
    return Task(title, contenders, reference.mean(0), np.cov(reference.T), {"torchsde": 6.0})


def agree(terminal: np.ndarray, task: Task) -> None:
    """Stop when a contender's terminal mean or covariance is more than 6 standard errors from the reference."""
    n = len(terminal)
    variances = np.diag(task.covariance)
    z_mean = np.abs(terminal.mean(0) - task.mean) / np.sqrt(2 * variances / n)
    spread = np.sqrt((np.outer(variances, variances) + task.covariance**2) * 4 / n)
    z_cov = np.abs(np.cov(terminal.T) - task.covariance) / spread
    if max(z_mean.max(), z_cov.max()) > 6:
        raise SystemExit(
            f"a contender solves another problem: z = {z_mean.max():.1f} (mean), {z_cov.max():.1f} (covariance)"
        )


def measure(task: Task, rounds: int) -> dict[str, list[float]]:
    for run in task.contenders.values():
        agree(run(), task)  # also the warm-up and the compilation
    seconds: dict[str, list[float]] = {name: [] for name in task.contenders}
    for _ in range(rounds):
        for name, run in task.contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the paths")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    threads = sorted({1, os.cpu_count() or 1})
    names = ("torch", "torchsde", "jax", "diffrax")
    machine = {"cores": os.cpu_count(), "processor": platform.machine(), "python": platform.python_version()}
    tasks = [
        gaussian_float32(65_536 // scale, 500, threads),
        gaussian_float64_kl(65_536 // scale, 500, threads),
        mixture_float32(8_192 // scale, 100, threads),
    ]
    console, records = Console(width=110), []
    for task in tasks:
        seconds = measure(task, options.rounds)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        table = Table("contender", "median s", "min", "max", "ratio to sdecontrol", title=task.title)
        for name, values in seconds.items():
            table.add_row(
                name,
                *(f"{v:.3f}" for v in (medians[name], min(values), max(values))),
                f"{medians[name] / medians['sdecontrol']:.2f}",
            )
        console.print(table)
        ratios = {}
        for prefix, wanted in task.wanted.items():
            best = min((m, name) for name, m in medians.items() if name.startswith(prefix))
            ratios[prefix] = {"best": best[1], "ratio": best[0] / medians["sdecontrol"], "wanted": wanted}
            console.print(f"{ratios[prefix]['ratio']:.1f}x the fastest {prefix} ({best[1]}); wanted {wanted:g}x")
        records.append({"title": task.title, "seconds": seconds, "medians": medians, "ratios": ratios})
        if not options.quick:
            content = {"machine": machine, "versions": {name: version(name) for name in names}, "tasks": records}
            RESULTS.parent.mkdir(exist_ok=True)
            write(RESULTS, json.dumps(content, indent=1) + "\n")  # after each task: what is measured is kept


if __name__ == "__main__":
    main()
