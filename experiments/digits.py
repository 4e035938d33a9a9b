"""Handwritten digits: every law of guidance beside the exact tilt, under the exact score and under a trained one.

The data law is one Gaussian a digit on the principal subspace of two thirds of the images, so that the tilt by a class,
by ink, by both and by a label of the ink is closed. Three parts:

- compare: four tasks, every law, 5 000 samples each on 100 ancestral steps, exact score;
- network: two of the tasks under a score network trained here on draws of the same law: what an imperfect score does;
- moments: 50 000 paths of the exact control from the exact start, every first and second latent moment against the
  exact tilt. The chain's own error is taken away by extrapolation over 75, 150 and 300 steps on the same noise.

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
COARSE = sc.TimeGrid.log_snr(75, s_min=1e-5)  # of the moments: its closing step leaves out a variance of 1e-6
WIDTH, BLOCKS, ITERATIONS = 128, 3, 2_500
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
    images = {row.name: np.round(picked(row.run, IMAGES), 2).tolist() for row in made.ranked}
    return {**made.to_dict(), "images": images, "rank": [row.name for row in made.ranked], **spent}


def compared(n: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: trial(Question.of_task(task(name)), n, list(METHODS)) for name in names}


def trained(digits: Digits, schedule: sc.VP) -> tuple[ft.DenoiserNetwork, ft.FitRecord, float]:
    """The network, its record and the CPU seconds of what was left to do."""
    network = ft.DenoiserNetwork.of(digits.law, schedule, width=WIDTH, blocks=BLOCKS)
    began = time.process_time()
    network, fit = ft.fit_score(digits.law, network, steps=ITERATIONS, checkpoint=FOLDER / "score")
    return network.requires_grad_(False), fit, time.process_time() - began


def score_kl(process: sc.ReverseProcess, exact: sc.ReverseProcess, n: int = 4_000) -> sc.Estimate:
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
    specs = [name for name in METHODS if name != "rejection"]  # its cost is that of the reference, ten times over
    for name in names:
        asked = task(name)
        problem = sc.Problem(process, asked.problem.reward, asked.problem.temperature, name=f"digits-{name}-network")
        found[name] = trial(Question.of_task(asked, problem), n, specs)
    return found


def latent_moments(x: torch.Tensor) -> torch.Tensor:
    """Coordinates and their products i <= j: (n, d) -> (n, d + d (d + 1) / 2)."""
    rows, columns = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, x[:, rows] * x[:, columns]], 1)


def moments(name: str, paths: int) -> dict[str, Any]:
    """z of every latent moment of the output, at 300 steps and extrapolated: (8 m_300 - 6 m_150 + m_75) / 3.

    The problem is that of the latent coordinates, on which the rest of the space does not act; states in float32, whose
    rounding is a thousandth of the standard errors. The weights cancel the error's terms of order 1 and 2 in the step,
    path by path on one Brownian path, so that the standard error of the extrapolated means is that of the combination.
    """
    whole, digits = task(name).problem, labelled_digits().law
    reward = whole.reward.restrict(digits.basis, digits.offset)  # type: ignore[attr-defined]
    process = sc.ReverseProcess(sc.VP(), digits.latent, initial="marginal")
    problem = sc.Problem(process, reward, whole.temperature)
    law, fine = problem.exact.terminal, COARSE.refine(4)
    times, control = fine.resolve(problem.process).times, sc.guidance.doob(problem)
    total: torch.Tensor | None = None
    last = torch.empty(0)
    for factor, weight in ((1, 1 / 3), (2, -2.0), (4, 8 / 3)):
        noise = sc.Noise(5) if factor == 4 else sc.Noise(5).coarsened(times)
        path = sc.simulate(
            problem.process, control, problem.exact.initial, grid=COARSE.refine(factor), kernel=KERNEL, n=paths,
            noise=noise, keep="ends", dtype=torch.float32,
        )  # fmt: skip
        last = latent_moments(path.terminal.double() - law.mean)
        total = weight * last if total is None else total + weight * last
    rows, columns = torch.triu_indices(law.dim, law.dim)
    truth = torch.cat([torch.zeros(law.dim, dtype=torch.float64), law.covariance[rows, columns]])
    assert total is not None
    z = {label: _z(samples, truth) for label, samples in (("300 steps", last), ("extrapolated", total))}
    count = len(truth)
    return {
        "paths": paths, "moments": count, "threshold": float(norm.isf(0.005 / count)),
        **{label: {"largest": float(abs(v).max()), "rms": float((v**2).mean() ** 0.5)} for label, v in z.items()},
    }  # fmt: skip


def _z(samples: torch.Tensor, truth: torch.Tensor) -> np.ndarray:
    estimate = sc.Estimate.mean(samples)
    found: np.ndarray = (estimate.value - truth.numpy()) / estimate.stderr
    return found


def moment_checks(n: int, names: Sequence[str]) -> dict[str, Any]:
    return {name: moments(name, n) for name in names}


# part -> (what makes it, samples, tasks)
PARTS = {
    "compare": (compared, 5_000, TASKS),
    "network": (network, 1_000, ("3", "label")),
    "moments": (moment_checks, 50_000, ("ink",)),
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
