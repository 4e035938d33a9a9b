"""Figures of divergences: where the KL of the optimum is paid, and how loose the bounds of Proposition 3.2 become."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from sdecontrol.errors import NoClosedForm, NoTilt
from sdecontrol.estimate import Estimate
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.laws import Law, TiltedLaw
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.report.panels import panels, where_known
from sdecontrol.report.run import Picture
from sdecontrol.report.style import CYCLE, REFERENCE, TILT, canvas, save
from sdecontrol.rewards import Quadratic, as_quadratic

DRAWS = 4_000
FACTORS = 2.0 ** np.arange(4, -7, -1)  # temperatures, in units of the problem's


def split(problems: Sequence[Problem], folder: Path, seed: int) -> list[Picture]:
    """KL(Q* || Q) = KL(nu* || p_noise) + E int |u*|^2 dt / 2 of each problem."""
    found, left_out = where_known(problems, lambda problem: _parts(problem, seed))
    if not any(part.value > 0 for parts in found.values() for part in parts):
        return []
    with canvas(1, 1, size=(6.2, 0.9 + 0.24 * len(found))) as (figure, (ax,)):
        places = np.arange(len(found))
        initial, energy = ([parts[i] for parts in found.values()] for i in (0, 1))
        for y, (first, second) in zip(places, found.values()):
            ax.plot([first.value, second.value], [y, y], color="#cccccc", lw=1, zorder=0)
        for estimates, marker, color, label in (
            (initial, "o", REFERENCE, r"initial law, $\mathrm{KL}(\nu^{*}\Vert p_{\rm noise})$"),
            (energy, "s", TILT, r"path energy, $\frac{1}{2}\,\mathbb{E}\,\int\ \,|u^{*}|^2\,dt$"),
        ):
            values, errors = [e.value for e in estimates], [2 * float(e.stderr) for e in estimates]
            ax.errorbar(
                values, places, xerr=errors, fmt=marker, color=color, ms=5, elinewidth=1, capsize=2, label=label
            )
        shown = [part.value for parts in found.values() for part in parts if part.value > 0]
        ax.set(xscale="log", xlabel=r"nats of $\mathrm{KL}(Q^{*}\Vert Q)$", yticks=places, yticklabels=list(found))
        ax.set_xlim(10 ** math.floor(math.log10(min(shown))), 10 ** (math.floor(math.log10(max(shown))) + 1))
        ax.set_ylim(len(found) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        save(figure, folder / "kl-split")
    caption = "The KL of the optimum is paid at the start, by the initial law, and along the path, by the control."
    bars = " Bars: two standard errors, where the start has no closed form."
    return [
        Picture(
            "kl-split", "Where the KL is paid", caption + (bars if any(e.stderr for e in initial) else "") + left_out
        )
    ]


def _parts(problem: Problem, seed: int) -> tuple[Estimate, Estimate]:
    """KL of the initial law, closed or from draws of it, and the energy that is left of the whole."""
    exact = problem.exact
    try:
        initial = Estimate.exact(exact.kl_initial)
    except NoClosedForm:
        x = exact.initial.sample(DRAWS, Noise(seed))
        prior = problem.process.initial_law(0.0)
        log_ratio = exact.initial.log_prob(x) - prior.log_prob(x)
        initial = Estimate.mean(
            torch.expm1(-log_ratio) + log_ratio
        )  # less E (dp_noise/dnu* - 1) = 0: far less variance
    return initial, Estimate(exact.path_kl - initial.value, initial.stderr, initial.n)


class Cooling(NamedTuple):
    """The problem's own temperature; by falling temperature d_TV(p_ft, p_pre), and the divergence D in its bounds."""

    own: float
    temperatures: list[float]
    distances: list[Estimate]
    divergences: list[float]


def bounds(problems: Sequence[Problem], folder: Path, seed: int) -> list[Picture]:
    """d_TV(p_ft, p_pre) and its bounds sqrt(D)/2 and sqrt(D/2) as the temperature falls."""
    found, left_out = where_known(problems, lambda problem: _cooled(problem, seed))
    if not found:
        return []
    with panels(found, r"temperature $\alpha$, falling", "total variation distance, 0 to 1") as (figure, axes):
        for name, ax in axes.items():
            t, root = found[name].temperatures, np.sqrt(found[name].divergences)
            ax.axhspan(1, 1.6, color="#eeeeee", lw=0)
            ax.plot(t, root / math.sqrt(2), color=CYCLE[3], ls=":", label=r"$\sqrt{D/2}$, (3.3)")
            ax.plot(t, root / 2, color=REFERENCE, ls="--", label=r"$\sqrt{D}/2$")
            distances = found[name].distances
            ax.errorbar(t, [e.value for e in distances], yerr=[2 * float(e.stderr) for e in distances], color=TILT,
                        marker="o", ms=3, lw=1.2, label=r"$d_{\rm TV}(p_{\rm ft},p_{\rm pre})$")  # fmt: skip
            own = found[name].own
            ax.axvline(own, color="#999999", lw=0.8, label="the problem's own temperature")
            ax.set(xscale="log", ylim=(0, 1.6), xlim=(1.3 * own * FACTORS[0], own * FACTORS[-1] / 1.3))
        handles, labels = ax.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4)
        save(figure, folder / "bound-slack")
    return [Picture(
        "bound-slack", "Slack of Proposition 3.2",
        "Distance of the tilt from the pretrained law, and its bounds with D = (E_ft r - E_pre r) / temperature. "
        "Above 1 (grey) a bound says nothing. Vertical line: the problem's own temperature; a curve that ends early "
        f"has no tilt below. Bars: two standard errors of {DRAWS:,} draws.{left_out}",
        wide=len(found) > 2,
    )]  # fmt: skip


def _cooled(problem: Problem, seed: int) -> Cooling:
    """d_TV = E_pre (1 - w)_+ over draws of p_pre, w = e^{r/temperature} / C; D from closed means of the reward."""
    reward, reference = as_quadratic(problem.reward), problem.exact.reference
    if reward is None or problem.running_reward is not None:
        raise NoClosedForm("the means of the reward are closed for a quadratic reward at the end")
    if isinstance(reference, TiltedLaw):
        raise NoClosedForm("p_pre has no exact draws and moments")
    rewards = problem.reward(reference.sample(DRAWS, Noise(seed))).numpy()
    before, rows = _mean_reward(reward, reference), Cooling(problem.temperature, [], [], [])
    for temperature in FACTORS * problem.temperature:
        try:
            exact = Problem(problem.process, problem.reward, float(temperature)).exact
            log_c = exact.log_normalizer
        except NoTilt:
            break
        rows.temperatures.append(float(temperature))
        rows.distances.append(Estimate.mean(np.clip(-np.expm1(rewards / temperature - log_c), 0, None)))
        rows.divergences.append(_divergence(exact, reward, before, float(temperature)))
    return rows


def _divergence(exact: ContinuumExact, reward: Quadratic, before: float, temperature: float) -> float:
    return (_mean_reward(reward, exact.terminal) - before) / temperature


def _mean_reward(reward: Quadratic, law: Law) -> float:
    """E r = c + g . m - (m' K m + tr K S) / 2 for a law of mean m and covariance S."""
    m, covariance = law.mean, law.covariance
    bend = m @ reward.curvature @ m + (reward.curvature * covariance).sum()
    return float(reward.constant + reward.linear @ m - bend / 2)
