"""Figures of a comparison: reward against KL below the exact front, the laws by distance, and their pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sdecontrol.evaluate import Evaluation
from sdecontrol.noise import Noise
from sdecontrol.report.comparison import Row, Trial
from sdecontrol.report.runs import Run, particles
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLOSE = 2.0  # times the distance that the optimal control has on this chain: below it a law counts as close
PICTURES = 14
KINDS = {"exact": TILT, "control": REFERENCE, "sampler": CYCLE[3]}
LABELS = {"exact": "optimum", "control": "laws of guidance", "sampler": "samplers (no path KL)"}
EXACT = ("tilt", "exact")


def draw(trial: Trial, folder: Path) -> list[tuple[str, str]]:
    """Write the figures as PNG and PDF; (file, caption) of each."""
    if not trial.rows:
        return []
    name = trial.question.name
    reward_and_distance(trial, folder / name)
    found = [(f"{name}.png", "Left: reward against path KL, below the exact front. Right: distance from the tilt.")]
    if trial.question.show is not None:
        pictures(trial, folder / f"{name}-samples")
        found.append((f"{name}-samples.png", "Samples of every law, nearest to the exact tilt first."))
    return found


def kind(row: Row) -> str:
    if row.name in EXACT:
        return "exact"
    return "control" if isinstance(row.score, Evaluation) else "sampler"


def reward_and_distance(trial: Trial, file: Path) -> None:
    """Every law has a number, by rank; it stands beside its point on the left and its bar on the right."""
    rows = trial.ranked
    with canvas(1, 2, size=(7.6, max(3.0, 0.9 + 0.19 * len(rows)))) as (figure, (left, right)):
        _front(left, trial, rows)
        _ranking(right, rows)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=8)
        save(figure, file)


def _front(ax: Axes, trial: Trial, rows: list[Row]) -> None:
    points = trial.front
    if points:
        ax.plot([p.kl for p in points], [p.reward for p in points], color=TILT, lw=1.2, label="exact front", zorder=1)
    edge = _edge(trial, rows)
    low, high = _window([row.score.reward.value for row in rows] + [p.reward for p in points if p.kl <= edge])
    ax.set(xlabel=r"path $\mathrm{KL}(Q^{u,\nu}\Vert Q)$, nats", ylabel="mean reward")
    ax.set(xlim=(-0.04 * edge, 1.32 * edge), ylim=(low, high))
    places, shown = [], set[str]()
    for number, row in enumerate(rows, 1):
        if not isinstance(row.score, Evaluation):
            continue
        kl, reward, at = row.score.kl, row.score.reward, kind(row)
        marker = ">" if kl.value > edge else "*" if at == "exact" else "o"
        y = min(max(reward.value, low), high)
        ax.errorbar(min(kl.value, edge), y, xerr=0 if marker == ">" else kl.stderr, yerr=reward.stderr, fmt=marker,
                    color=KINDS[at], ms=8 if marker == "*" else 4.5, elinewidth=0.8, zorder=3 if at == "exact" else 2,
                    label=None if at in shown else LABELS[at])  # fmt: skip
        places.append((min(kl.value, edge), y, number))
        shown.add(at)
    _number(ax, places, edge, high - low)
    _samplers(ax, rows, edge, (low, high))


def _number(ax: Axes, places: list[tuple[float, float, int]], width: float, height: float) -> None:
    """The numbers of the points; those that lie together share one label, to the left of what stands at the edge."""
    while places:
        x, y, _ = places[0]
        together = [p for p in places if abs(p[0] - x) < 0.04 * width and abs(p[1] - y) < 0.05 * height]
        places = [p for p in places if p not in together]
        text = ", ".join(str(p[2]) for p in together)
        at_edge = x == width
        ax.annotate(text, (max(p[0] for p in together), y), xytext=(-6 if at_edge else 5, -2.5), fontsize=7,
                    textcoords="offset points", ha="right" if at_edge else "left")  # fmt: skip


def _samplers(ax: Axes, rows: list[Row], edge: float, window: tuple[float, float]) -> None:
    """Samplers have a reward and no path KL: ticks at the right edge."""
    places, labelled = [], False
    for number, row in enumerate(rows, 1):
        if not isinstance(row.score, Evaluation):
            y = min(max(row.score.reward.value, window[0]), window[1])
            ax.plot([1.14 * edge, 1.17 * edge], [y, y], color=KINDS[kind(row)], lw=2,
                    label=LABELS["sampler"] if kind(row) == "sampler" and not labelled else None)  # fmt: skip
            labelled = labelled or kind(row) == "sampler"
            places.append((1.17 * edge, y, number))
    ax.axvline(1.1 * edge, color="0.85", lw=0.8, zorder=0)
    _number(ax, places, edge, window[1] - window[0])


def _edge(trial: Trial, rows: list[Row]) -> float:
    """The largest KL that is drawn where it is: a few times that of the tilt, or the largest there is."""
    own = [p.kl for p in trial.front if abs(p.temperature / trial.question.exact.temperature - 1) < 1e-9]
    seen = sorted(row.score.kl.value for row in rows if isinstance(row.score, Evaluation))
    largest = seen[-1] if seen else 1.0
    if not own or own[0] <= 0:
        return max(largest, 1e-12)
    return max(min(largest, 4 * own[0]), 1.5 * own[0])


def _window(values: list[float]) -> tuple[float, float]:
    """Limits that hold the bulk of the values; what lies beyond them is far indeed."""
    a = np.array(values)
    middle, spread = float(np.median(a)), float(np.percentile(a, 90) - np.percentile(a, 10)) or 1.0
    low, high = max(float(a.min()), middle - 3 * spread), min(float(a.max()), middle + 3 * spread)
    pad = 0.08 * (high - low) or 0.1
    return low - pad, high + pad


def _ranking(ax: Axes, rows: list[Row]) -> None:
    """Distance to the tilt by law; the grey band is twice what the optimum has on this chain."""
    from matplotlib.ticker import LogLocator

    places = np.arange(len(rows))
    known = np.array([row.rank for row in rows])
    finite = np.isfinite(known)
    floor = max((row.rank for row in rows if row.name in EXACT and np.isfinite(row.rank)), default=None)
    if floor is not None:
        ax.axvspan(0, CLOSE * floor, color="0.92", lw=0)
        ax.text(CLOSE * floor, -0.55, "up to twice the optimum's ", ha="right", va="bottom", fontsize=7, color="0.35")
    for place, row in zip(places, rows):
        if not np.isfinite(row.rank):
            continue
        ax.plot([known[finite].min() / 3, row.rank], [place, place], color="0.8", lw=0.8, zorder=0)
        error = 0.0 if row.distance is None else row.distance.stderr
        ax.errorbar(row.rank, place, xerr=error if np.isfinite(error) else 0.0, fmt="o", ms=5, color=KINDS[kind(row)])
    distances = all(row.distance is not None for row in rows)
    ax.set(yticks=places, yticklabels=[f"{row.name}  {n}" for n, row in enumerate(rows, 1)],
           xlabel=r"$W_2$ of the first two moments to the exact tilt" if distances else "gap")  # fmt: skip
    if finite.any() and known[finite].min() > 0:
        ax.set_xscale("log")
        wide = known[finite].max() > 100 * known[finite].min()
        ax.xaxis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
        ax.set_xlim(known[finite].min() / 1.6, known[finite].max() * 1.6)
    ax.tick_params(axis="y", length=0, labelsize=8)
    ax.set_ylim(len(rows) - 0.4, -0.6)


def pictures(trial: Trial, file: Path) -> None:
    """A row of samples a law; particles are drawn by their weights, one of each population."""
    show = trial.question.show
    assert show is not None
    rows = trial.ranked
    with canvas(len(rows), 1, size=(5.6, 0.42 * len(rows))) as (figure, axes):
        strips = [np.concatenate(list(show(picked(row.run))), axis=1) for row in rows]
        widest = max(strip.shape[1] for strip in strips)
        for ax, row, strip in zip(axes, rows, strips):
            ax.set(xlim=(-0.5, widest - 0.5))
            ax.imshow(strip, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
            ax.set(xticks=[], yticks=[])
            ax.set_ylabel(row.name, rotation=0, ha="right", va="center", fontsize=8,
                          color=KINDS["exact"] if row.name in EXACT else "black")  # fmt: skip
            for spine in ax.spines.values():
                spine.set_visible(False)
        figure.set_layout_engine("constrained", h_pad=0.01, w_pad=0.02, hspace=0.0)
        save(figure, file)


def picked(run: Run, count: int = PICTURES) -> Tensor:
    """The first samples of a run, particles one a population by their weights: (count, *event)."""
    drawn = particles(run)
    x = drawn.x if drawn.populations == len(drawn.x) else drawn.pick(Noise(0))
    return x[:count]
