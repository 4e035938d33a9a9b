"""Figures of the output law: simulated ends on the exact tilt, and images drawn from both laws."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from sdecontrol.controls import Control
from sdecontrol.data import DataSet
from sdecontrol.laws import Law
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.problems.fitted import Subject
from sdecontrol.report.run import Picture
from sdecontrol.report.style import REFERENCE, SAMPLES, TILT, canvas, save
from sdecontrol.simulate import simulate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PATHS = 20_000
TILES = 7


def draw(subject: Subject, folder: Path, seed: int = 0) -> list[Picture]:
    """The figures that suit the subject: ends of paths in one and two dimensions, images for image data, else none.

    Raises: NoClosedForm or NotDefined where the problem has no exact control, or its laws no density.
    """
    if subject.data is not None and subject.data.is_image:
        return [_images(subject.problem, subject.data, folder, seed)]
    if subject.problem.process.event_shape == (1,):
        return [_line(subject.problem, folder, seed)]
    if subject.problem.process.event_shape == (2,):
        return [_plane(subject.problem, folder, seed)]
    return []


def _terminal_states(problem: Problem, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) twice: the chain without control, and under the exact control from the exact initial law."""

    def ends(control: Control | None, initial: Law | None) -> np.ndarray:
        path = simulate(problem.process, control, initial, n=n, noise=Noise(seed), keep="ends")
        return path.terminal.double().numpy()

    return ends(None, None), ends(problem.exact.control, problem.exact.initial)


def _density(law: Law, points: np.ndarray) -> np.ndarray:
    """Density at points (n, d), a few hundred at a time: where it is a quadrature, more would not fit the cache."""
    return torch.cat([law.log_prob(x) for x in torch.from_numpy(points).split(256)]).exp().numpy()


def _line(problem: Problem, folder: Path, seed: int) -> Picture:
    """1-D: histogram of simulated terminal states over the densities of p_pre and of the tilt."""
    free, states = _terminal_states(problem, PATHS, seed)
    low, high = np.quantile(np.concatenate([free, states]), [5e-4, 1 - 5e-4])
    margin = 0.1 * (high - low)
    x = np.linspace(low - margin, high + margin, 600)
    with canvas(1, 1, size=(4.6, 2.9)) as (figure, (ax,)):
        ax.hist(states[:, 0], bins=80, range=(x[0], x[-1]), density=True, color=SAMPLES, alpha=0.5,
                label=f"{PATHS:,} controlled paths")  # fmt: skip
        ax.plot(x, _density(problem.exact.reference, x[:, None]), color=REFERENCE, ls="--", label=r"$p_{\rm pre}$")
        ax.plot(x, _density(problem.exact.terminal, x[:, None]), color=TILT,
                label=r"$p_{\rm ft}\propto e^{r/\alpha}\,p_{\rm pre}$")  # fmt: skip
        ax.set(xlabel="$y$", ylabel="density", xlim=(x[0], x[-1]), title=problem.name)
        ax.legend()
        save(figure, folder / f"terminal-{problem.name}")
    return Picture(
        f"terminal-{problem.name}", f"Output law of {problem.name}",
        "Ends of paths under the exact control from the exact initial law, on the density of the tilt.",
    )  # fmt: skip


def _plane(problem: Problem, folder: Path, seed: int) -> Picture:
    """2-D: contours of p_pre and of the tilt, simulated terminal states as dots."""
    free, states = _terminal_states(problem, PATHS // 10, seed)
    low, high = np.quantile(np.concatenate([free, states]), [2e-3, 1 - 2e-3], axis=0)
    margin = 0.15 * (high - low)
    xs, ys = (np.linspace(low[i] - margin[i], high[i] + margin[i], 72) for i in (0, 1))
    points = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    with canvas(1, 1, size=(4.2, 3.6)) as (figure, (ax,)):
        ax.plot(*states.T, ".", color=SAMPLES, ms=1.5, alpha=0.6)
        for law, color, style in (
            (problem.exact.reference, REFERENCE, "dashed"),
            (problem.exact.terminal, TILT, "solid"),
        ):
            z = _density(law, points).reshape(len(ys), len(xs))
            ax.contour(xs, ys, z, levels=z.max() * np.array([0.03, 0.15, 0.4, 0.8]), colors=color, linestyles=style,
                       linewidths=0.9)  # fmt: skip
        _contour_legend(ax, len(states))
        ax.set(xlabel="$y_1$", ylabel="$y_2$", title=problem.name)
        save(figure, folder / f"terminal-{problem.name}")
    return Picture(
        f"terminal-{problem.name}", f"Output law of {problem.name}",
        "Ends of paths under the exact control from the exact initial law, on contours of the tilt's density.",
    )  # fmt: skip


def _contour_legend(ax: Axes, paths: int) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=REFERENCE, ls="--", label=r"$p_{\rm pre}$"),
        Line2D([], [], color=TILT, label=r"$p_{\rm ft}$"),
        Line2D([], [], color=SAMPLES, ls="", marker=".", label=f"{paths:,} controlled paths"),
    ]
    ax.legend(handles=handles)


def _images(problem: Problem, data: DataSet, folder: Path, seed: int) -> Picture:
    """Images drawn from p_pre on the left and from the exact tilt on the right, from the same noise."""
    laws = (problem.exact.reference, problem.exact.terminal)
    low, high = float(data.original(data.values).min()), float(data.original(data.values).max())
    titles = (r"$p_{\rm pre}$", r"exact tilt $p_{\rm ft}\propto e^{r/\alpha}\,p_{\rm pre}$")
    with canvas(1, 2, size=(5.8, 3.4)) as (figure, axes):
        for ax, law, title in zip(axes, laws, titles):
            samples = law.sample(TILES**2, Noise(seed))
            mean = float(problem.reward(samples).mean())
            mosaic = _mosaic(data.original(samples.numpy()), data.event_shape, blank=low)
            ax.imshow(mosaic, cmap="gray_r", vmin=low, vmax=high, interpolation="nearest")
            ax.set_title(f"{title}\nmean reward {mean:.2f}")
            ax.set_axis_off()
        figure.suptitle(problem.name, fontsize=9)
        save(figure, folder / f"images-{problem.name}")
    return Picture(
        f"images-{problem.name}", f"Images of {problem.name}",
        "Drawn from the pretrained law and from the exact tilt, with the same random numbers.",
    )  # fmt: skip


def _mosaic(samples: np.ndarray, shape: tuple[int, ...], blank: float) -> np.ndarray:
    """TILES x TILES images in one, with a blank pixel between them."""
    height, width = shape
    tiles = np.pad(
        samples.reshape(TILES, TILES, height, width), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=blank
    )
    return tiles.transpose(0, 2, 1, 3).reshape(TILES * (height + 1), TILES * (width + 1))
