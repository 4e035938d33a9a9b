"""Handwritten digits: every law of guidance beside the exact tilt, under the exact score and under a trained one.

The data law is one Gaussian a digit on the principal subspace of two thirds of the images, so that the tilt by a class,
by ink, by both and by a label of the ink is closed. Three parts:

- compare: four tasks, every law, 5 000 samples each on 100 ancestral steps, exact score;
- network: one of the tasks under a score network trained here on draws of the same law: what an imperfect score does;
- moments: 50 000 paths of the optimum by its exact kernels, from the exact start; every first and second latent moment
  against the exact tilt. No discretisation error has to be allowed for.

    python -m experiments.digits                # all parts; each law that is done is kept in reports/digits
    python -m experiments.digits --part moments # one of them, into the results of the others (--task, --n as well)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

import sdecontrol as sc
import sdecontrol.finetune as ft
from experiments.record import RESULTS, record, results
from sdecontrol.methods import METHODS, choose
from sdecontrol.problems.digit_tasks import TASKS, Digits, labelled_digits, task
from sdecontrol.report.comparison import Chain, Parts, Trial
from sdecontrol.report.comparison_figures import picked
from sdecontrol.report.progress import iterations_bar
from sdecontrol.report.questions import Question

NAME, FOLDER = "digits", Path("reports/digits")
GRID, KERNEL = sc.TimeGrid.log_snr(100, s_min=1e-3), sc.Ancestral()
KERNEL_GRID = sc.TimeGrid.log_snr(10, s_min=1e-3)  # of the exact kernels, which are right on every grid
WIDTH, BLOCKS, ITERATIONS, ROWS = 64, 2, 800, 256
NETWORK_LAWS = ["tilt", "exact", "none", "cfg", "dps:0.03", "pigdm", "plug-in", "gloss", "naive", "exact-variance"]
IMAGES = 12  # of each law that are written down


def trial(question: Question, n: int, specs: list[str]) -> dict[str, Any]:
    """One task with every law, as numbers and a few images."""
    made = Trial(question, Chain(GRID, KERNEL, n, 0), choose(specs))
    parts, began, cpu = Parts(FOLDER, {}), time.perf_counter(), time.process_time()
    with iterations_bar() as bar:
        job = bar.add_task("comparing", total=len(made.choices), note="")
        for choice in made.choices:
            bar.update(job, description=f"{choice.spec} on {question.name}")
            made.attempt(choice, parts)
            bar.update(job, advance=1)
    made.finish()
    spent = {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    images = {row.name: [as_text(image) for image in picked(row.run, IMAGES).double().numpy()] for row in made.ranked}
    return {**made.to_dict(), "images": images, "rank": [row.name for row in made.ranked], **spent}


def as_text(image: np.ndarray) -> str:
    """An image with ink from 0 to 1 as two hexadecimal digits a pixel, as it is shown."""
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8).tobytes().hex()


def compared(n: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: trial(Question.of_task(task(name)), n, list(METHODS)) for name in names}


def trained(digits: Digits, schedule: sc.VP) -> tuple[ft.DenoiserNetwork, ft.FitRecord, float]:
    """The network, its record and the CPU seconds of what was left to do."""
    network = ft.DenoiserNetwork.of(digits.law, schedule, width=WIDTH, blocks=BLOCKS)
    began = time.process_time()
    network, fit = ft.fit_score(digits.law, network, steps=ITERATIONS, n=ROWS, checkpoint=FOLDER / "score")
    return network.requires_grad_(False), fit, time.process_time() - began


def score_kl(process: sc.ReverseProcess, exact: sc.ReverseProcess, n: int = 1_024) -> sc.Estimate:
    """KL(Q_exact || Q_network) = 1/2 E int g^2 |s - s_network|^2 dt along the chain of the exact score, as a control.

    The network's chain is the exact one with its mean moved by the score's error, so its replay on exact paths is the
    KL of the two chains; it bounds the KL of their outputs.
    """

    def moved(step: Any) -> torch.Tensor:
        return step.from_score(process.state(step.t, step.x).score - step.score)

    path = sc.simulate(exact, n=n, grid=GRID, kernel=KERNEL, noise=sc.Noise(3))
    weights = path.replay_weights(moved)
    return sc.Estimate.mean(weights.energy, "mean energy of the score's error along exact paths")


def network(n: int, names: Sequence[str]) -> dict[str, Any]:
    digits, schedule = labelled_digits(), sc.VP()
    model, fit, cpu = trained(digits, schedule)
    exact = task("3").problem.process
    assert isinstance(exact, sc.ReverseProcess)
    process = sc.ReverseProcess(schedule, sc.Denoiser(model, event_shape=(64,)), exact.noised(0.0))
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()), "iterations": fit.iterations,
        "training_wall_s": fit.seconds[-1], "training_cpu_s": cpu, "loss": float(np.mean(fit.loss[-200:])),
        "score_kl": score_kl(process, exact).to_dict(),
    }  # fmt: skip
    for name in names:
        asked = task(name)
        problem = sc.Problem(process, asked.problem.reward, asked.problem.temperature, name=f"digits-{name}-network")
        found[name] = trial(Question.of_task(asked, problem), n, NETWORK_LAWS)
    return found


def latent_moments(x: torch.Tensor) -> torch.Tensor:
    """Coordinates and their products i <= j: (n, d) -> (n, d + d (d + 1) / 2)."""
    rows, columns = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, x[:, rows] * x[:, columns]], 1)


def optimal_paths(exact: Any, schedule: sc.VP, times: np.ndarray, n: int, noise: sc.Noise) -> torch.Tensor:
    """Ends of n paths of Q* by its exact transitions: no step has an error, whatever its size.

    Backwards in time Q* is forward noising from p_ft, so its kernel from x at t to t' is the law of X' given
    r X' + sqrt(q) Z = x for X' ~ Q*_t' (derived); tests/test_labels.py holds it against the reference's kernel times
    h(t', .)/h(t, x).
    """
    levels = [schedule.horizon - float(t) for t in times]
    kernels = [
        exact.marginal(float(t)).posterior(schedule.ratio(s, s_next), schedule.transition_variance(s, s_next))
        for t, s, s_next in zip(times[1:], levels[:-1], levels[1:])
    ]
    ends = []
    for block in noise.blocks("optimal", n, exact.initial.event_shape):
        x = exact.initial.draw(block)
        for kernel in kernels:
            x = kernel.draw(x, block)
        ends.append(x[: block.count])
    return torch.cat(ends)


def moments(name: str, paths: int) -> dict[str, Any]:
    """z of every first and second moment of the output of Q*, its paths drawn by exact kernels, against the exact tilt.

    The problem is that of the latent coordinates, on which the rest of the space does not act.
    """
    whole, digits, schedule = task(name).problem, labelled_digits().law, sc.VP()
    reward = whole.reward.restrict(digits.basis, digits.offset)  # type: ignore[attr-defined]
    process = sc.ReverseProcess(schedule, digits.latent, initial="marginal")
    exact = sc.Problem(process, reward, whole.temperature).exact
    times = KERNEL_GRID.resolve(process).times
    law = exact.terminal
    x = optimal_paths(exact, schedule, times, paths, sc.Noise(5)) - law.mean
    rows, columns = torch.triu_indices(law.dim, law.dim)
    truth = torch.cat([torch.zeros(law.dim, dtype=torch.float64), law.covariance[rows, columns]])
    estimate = sc.Estimate.mean(latent_moments(x))
    z = (estimate.value - truth.numpy()) / estimate.stderr
    return {
        "paths": paths, "steps": len(times) - 1, "moments": len(z), "threshold": float(norm.isf(0.005 / len(z))),
        "largest": float(abs(z).max()), "rms": float((z**2).mean() ** 0.5), "mean": float(z.mean()),
    }  # fmt: skip


def moment_checks(n: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: moments(name, n) for name in names}


# part -> (what makes it, samples, tasks)
PARTS = {
    "compare": (compared, 5_000, TASKS),
    "network": (network, 512, ("label",)),
    "moments": (moment_checks, 50_000, ("3", "ink")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--task", action="append", help="some of the part's tasks")
    parser.add_argument("--n", type=int, help="samples, in the place of the part's own")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in arguments.part or PARTS:
        make, n, names = PARTS[part]
        made = make(arguments.n or n, arguments.task or names)
        found = results(NAME) if (RESULTS / f"{NAME}.json").exists() else {}
        record(NAME, {**found, part: {**found.get(part, {}), **made}})


if __name__ == "__main__":
    main()
