"""Handwritten digits: every law of guidance beside the exact tilt, under the exact score and under a trained one.

The data law is one Gaussian a digit on the principal subspace of two thirds of the images, so that the tilt by a class,
by ink, by both and by a label of the ink is closed. Two parts:

- compare: four tasks, every law, 5 000 samples each on 100 ancestral steps, exact score;
- network: the same under a score network trained here on draws of the same law: what an imperfect score does.

    python -m experiments.digits                           # goes on with what is missing
    python -m experiments.digits --part network --task ink # one of them anew (--n as well)
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
WIDTH, BLOCKS, ITERATIONS, ROWS = 64, 2, 800, 256
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


def compared(name: str, n: int) -> dict[str, Any]:
    return trial(Question.of_task(task(name)), n, list(METHODS))


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


def network(name: str, n: int) -> dict[str, Any]:
    """The network itself, or a task under it with every law."""
    digits, schedule = labelled_digits(), sc.VP()
    model, fit, cpu = trained(digits, schedule)
    exact = task("3").problem.process
    assert isinstance(exact, sc.ReverseProcess)
    process = sc.ReverseProcess(schedule, sc.Denoiser(model, event_shape=(64,)), exact.noised(0.0))
    if name == "score":
        return {
            "parameters": sum(p.numel() for p in model.parameters()), "iterations": fit.iterations,
            "training_wall_s": fit.seconds[-1], "training_cpu_s": cpu, "loss": float(np.mean(fit.loss[-200:])),
            "score_kl": score_kl(process, exact).to_dict(),
        }  # fmt: skip
    asked = task(name)
    problem = sc.Problem(process, asked.problem.reward, asked.problem.temperature, name=f"digits-{name}-network")
    return trial(Question.of_task(asked, problem), n, list(METHODS))


# part -> (what makes one task of it, samples, tasks)
PARTS = {
    "compare": (compared, 5_000, TASKS),
    "network": (network, 512, ("score", *TASKS)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="See the module's docstring.")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--task", action="append", help="some of the part's tasks, made anew")
    parser.add_argument("--n", type=int, help="samples, in the place of the part's own")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for part in arguments.part or PARTS:
        make, n, names = PARTS[part]
        for name in arguments.task or names:
            found = results(NAME) if (RESULTS / f"{NAME}.json").exists() else {}
            if arguments.task or name not in found.get(part, {}):
                made = make(name, arguments.n or n)
                record(NAME, {**found, part: {**found.get(part, {}), name: made}})


if __name__ == "__main__":
    main()
