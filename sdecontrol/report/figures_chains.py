"""Figures of chains: the certificate of optimality path by path, and the orders at which kernels converge."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sdecontrol.controls import Control
from sdecontrol.errors import NoClosedForm
from sdecontrol.kernels import Ancestral, EulerMaruyama, ExactTransition, Exponential, Kernel, SecondOrder
from sdecontrol.moments import moments
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.report.panels import panels, where_known
from sdecontrol.report.run import Picture
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas, save
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATHS, SCALE, CERTIFICATE_STEPS = 1_000, 0.5, 100
ROUNDING = 1e-12
STEPS = [16, 32, 64, 128, 256]
FRACTION = 0.9  # of the horizon: a closing step to the data is noiseless and has an error of its own
KERNELS: dict[str, Kernel] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential": Exponential(),
    "ancestral": Ancestral(),
    "second order": SecondOrder(),
}


def certificates(problems: Sequence[Problem], folder: Path, seed: int) -> list[Picture]:
    """Histograms of r/temperature - log dQ^{u,nu}/dQ - log C, which vanishes on every path of the optimum."""
    found, left_out = where_known(problems, lambda problem: _certificates(problem, seed))
    if not found:
        return []
    label = r"$r(Y_T)/\alpha-\log\,dQ^{u,\nu^{*}}/dQ-\log C$ (nats)"
    with panels(found, label, "paths, share of the fullest bin") as (figure, axes):
        for name, ax in axes.items():
            exact, scaled = found[name]
            reach = float(np.quantile(np.abs(np.concatenate([exact, scaled])), 0.99)) or 1.0
            bins = np.linspace(-reach, reach, 36)
            for values, color, style, text in (
                (exact, TILT, "-", r"exact control $u^{*}$"),
                (scaled, REFERENCE, "--", rf"${SCALE}\,u^{{*}}$"),
            ):
                counts, _ = np.histogram(values, bins)
                heights = counts / max(counts.max(), 1)
                ax.stairs(heights, bins, color=color, ls=style, lw=1.1, fill=False, label=text)
            ax.set(ylim=(0, 1.45), yticks=[0, 0.5, 1])
            for values, color, place, side in ((exact, TILT, 0.02, "left"), (scaled, REFERENCE, 0.98, "right")):
                said = f"rms {_rms(values):.2g}"
                ax.text(place, 0.98, said, color=color, transform=ax.transAxes, ha=side, va="top", fontsize=7)
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2)
        save(figure, folder / "certificate")
    return [Picture(
        "certificate", "Certificate of optimality",
        f"What (3.20) says is 0 on every path of the optimum, on {PATHS:,} paths under the exact control and under "
        f"{SCALE} of it, from the exact initial law, on {CERTIFICATE_STEPS} steps. Left and right: root mean squares "
        f"of the two. The width under the exact control is that of the steps.{left_out}",
        wide=len(found) > 2,
    )]  # fmt: skip


def _rms(values: np.ndarray) -> float:
    return math.sqrt(float(np.mean(values**2)))


def _certificates(problem: Problem, seed: int, steps: int = CERTIFICATE_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """(PATHS,) each, under the exact control and under SCALE of it, with the same noise."""
    if problem.running_reward is not None:
        raise NoClosedForm("with a running reward the certificate has another term")
    exact, reverse = problem.exact, isinstance(problem.process, ReverseProcess)
    grid = TimeGrid.log_snr(steps) if reverse else TimeGrid.uniform(steps)

    def residual(control: Control) -> np.ndarray:
        path = simulate(problem.process, control, exact.initial, grid=grid, n=PATHS, noise=Noise(seed), keep="ends")
        reward = problem.reward(path.terminal).double()
        return (reward / problem.temperature - path.log_ratio() - exact.log_normalizer).numpy()

    return residual(exact.control), residual(SCALE * exact.control)


def orders(problems: Iterable[Problem], folder: Path) -> list[Picture]:
    """Error of each kernel's mean and variance against the steps, with its declared slope, on an affine problem."""
    affine = [p for p in problems if isinstance(p.process, ReverseProcess) and p.process.is_affine]
    if not affine:
        return []
    problem = min(affine, key=lambda p: p.process.dim)
    found = {name: np.array([_errors(problem, kernel, steps) for steps in STEPS]).T for name, kernel in KERNELS.items()}
    with canvas(1, 2, size=(6.6, 2.9)) as (figure, axes):
        for i, (ax, what) in enumerate(zip(axes, ("mean", "total variance"))):
            _order_panel(ax, {name: errors[i] for name, errors in found.items()})
            ax.set(xlabel="steps", ylabel=f"error of the {what}")
        handles, labels = axes[0].get_legend_handles_labels()
        title = f"{problem.name}, without control"
        figure.legend(handles, labels, loc="outside upper center", ncols=4, title=title, title_fontsize=9)
        save(figure, folder / "orders")
    return [Picture(
        "orders", "Orders of the kernels",
        f"Markers: absolute error of the chain's mean and covariance at {FRACTION} of the horizon, from exact moments "
        f"on {problem.name}, without sampling. Lines: the declared order through the last marker. A kernel without a "
        "marker has no error but rounding.",
    )]  # fmt: skip


def _order_panel(ax: Axes, errors: dict[str, np.ndarray]) -> None:
    """Markers and the declared slope of each kernel that has an error at all."""
    for (name, seen), color, marker in zip(errors.items(), CYCLE, "os^v"):
        seen = seen if seen.min() > ROUNDING else np.full(len(STEPS), np.nan)
        ax.plot(STEPS, seen, color=color, marker=marker, ms=4, ls="", label=name)
        declared = seen[-1] * (np.array(STEPS) / STEPS[-1]) ** -float(KERNELS[name].order_weak)
        ax.plot(STEPS, declared, color=color, lw=0.8)
    ax.set(xscale="log", xlim=(STEPS[0] / 1.2, STEPS[-1] * 1.2))
    ax.set_xticks(STEPS, [str(k) for k in STEPS])
    if any(seen.min() > ROUNDING for seen in errors.values()):
        ax.set_yscale("log")
    else:
        ax.text(0.5, 0.5, "only rounding", transform=ax.transAxes, ha="center")
        ax.set_yticks([])
    ax.minorticks_off()


def _errors(problem: Problem, kernel: Kernel, steps: int) -> tuple[float, float]:
    """|mean - exact mean| and |trace of the covariance - exact trace| of the uncontrolled chain."""
    end = FRACTION * problem.process.horizon
    chain = moments(problem.process, kernel, TimeGrid.explicit([end * k / steps for k in range(steps + 1)]))
    exact = moments(problem.process, ExactTransition(), TimeGrid.explicit([0.0, end]))
    off = (chain.covariances[-1] - exact.covariances[-1]).trace()
    return float((chain.means[-1] - exact.means[-1]).norm()), abs(float(off))
