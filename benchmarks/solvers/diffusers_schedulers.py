"""The schedulers of diffusers on the same continuous schedule, tabulated at 1000 levels, with the exact noise.

The table's betas are 1 - (alpha(s_j) / alpha(s_{j-1}))^2 with s_j = (j + 1) / 1000, so its alphas_cumprod are those of
the continuous schedule. The prediction is eps = -sigma(s) score(x, s), exact at every (also fractional) timestep.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.solvers.case import Case, Contender, Impulses, strided_normals

FAMILY = "diffusers"
LEVELS = 1000

# name -> (class, options, steps); of the spacings linspace, leading, trailing, Karras and Lu, those that did best
SCHEDULERS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "DPM-Solver++ 2M, lu": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, (20, 30)),
    "DPM-Solver++ 3M, lu": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_lu_lambdas": True},
                            (15, 20, 30, 40)),
    "DPM-Solver++ 3M, Karras": ("DPMSolverMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True},
                                (20, 30, 50)),
    "SDE-DPM-Solver++ 2M, lu": ("DPMSolverMultistepScheduler",
                                {"algorithm_type": "sde-dpmsolver++", "use_lu_lambdas": True}, (40, 130)),
    "UniPC 2, Karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, (30,)),
    "UniPC 3, Karras": ("UniPCMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, (30, 50)),
    "DEIS 3, Karras": ("DEISMultistepScheduler", {"solver_order": 3, "use_karras_sigmas": True}, (8, 10, 15, 20, 50)),
    "LMS": ("LMSDiscreteScheduler", {"timestep_spacing": "leading"}, (20, 50)),
    "PNDM": ("PNDMScheduler", {"timestep_spacing": "leading", "skip_prk_steps": True}, (15, 20, 40)),
    "Heun": ("HeunDiscreteScheduler", {"timestep_spacing": "leading"}, (20,)),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, (60,)),
    "DDIM": ("DDIMScheduler", {"timestep_spacing": "leading", "clip_sample": False}, (60,)),
    "DDPM": ("DDPMScheduler", {"clip_sample": False}, (200,)),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}, (60,)),
    "SA-Solver": ("SASolverScheduler", {"use_karras_sigmas": True}, (40,)),
}  # fmt: skip
RANDOM = {"SDE-DPM-Solver++ 2M, lu", "DDPM", "Euler ancestral", "SA-Solver"}


def contenders(case: Case) -> Iterator[Contender]:
    for name, (_, _, counts) in SCHEDULERS.items():
        for steps in counts:
            yield _contender(case, name, steps)


def _betas(case: Case) -> np.ndarray:
    alphas = np.array([case.process.schedule.alpha(j / LEVELS) for j in range(LEVELS + 1)])
    return 1 - (alphas[1:] / alphas[:-1]) ** 2


def _scheduler(case: Case, name: str, steps: int) -> Any:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    kind, options, _ = SCHEDULERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, kind)(num_train_timesteps=LEVELS, trained_betas=_betas(case), **options)
        scheduler.set_timesteps(steps)
    return scheduler


def _drive(case: Case, scheduler: Any, x: torch.Tensor, generator: torch.Generator | None = None) -> np.ndarray:
    """The loop of a pipeline without guidance: scale, predict, step."""
    schedule, model = case.process.schedule, case.process.model
    options = {"generator": generator} if generator is not None and _is_random(scheduler) else {}
    x = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for timestep in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, timestep)
            s = (float(timestep) + 1) / LEVELS
            eps = model.score(seen, s)[0] * -schedule.sigma(s)
            x = scheduler.step(eps, timestep, x, **options).prev_sample
    return x.numpy()


def _is_random(scheduler: Any) -> bool:
    return "generator" in type(scheduler).step.__code__.co_varnames


def _contender(case: Case, name: str, steps: int) -> Contender:
    made = _scheduler(case, name, steps)

    def scheduler_of() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made.set_timesteps(steps)  # begins anew; making the scheduler is not timed
        return made

    def sample(n: int, seed: int) -> np.ndarray:
        generator = torch.Generator().manual_seed(seed + 2**20)
        return _drive(case, scheduler_of(), strided_normals(n, case.dim, seed), generator)

    def push(start: np.ndarray) -> np.ndarray:
        return _drive(case, scheduler_of(), torch.from_numpy(start).float())

    def probe(impulses: Impulses) -> np.ndarray:
        def draw(shape: tuple[int, ...], **_: Any) -> torch.Tensor:
            return torch.from_numpy(impulses.draw()).float()

        scheduler = scheduler_of()
        start = torch.from_numpy(impulses.start()).float()
        module = sys.modules[type(scheduler).__module__]
        if not hasattr(module, "randn_tensor"):
            return _drive(case, scheduler, start)
        with patch.object(module, "randn_tensor", draw):
            return _drive(case, scheduler, start)

    calls = len(scheduler_of().timesteps)
    return Contender(FAMILY, name, "its own", steps, calls, sample, probe=probe if case.affine else None,
                     push=None if name in RANDOM else push, threads=True, slow=True)  # fmt: skip
