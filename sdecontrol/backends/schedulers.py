"""A stock scheduler read as a schedule, a kernel and pairs of timesteps; its own `step` is never called.

The table alphas_cumprod is the schedule (index j at level s_j, -1 is the data). The Gaussian steps of diffusers are
kernels of the library: DDIM(eta); DDPM, Euler ancestral and the first-order SDE-DPM-Solver++ are all the ancestral one
(the last two written in sigma/alpha; derived, and tested against `step`); SDE-DPM-Solver has a kernel here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdecontrol.errors import BadInput, NotDefined, check
from sdecontrol.kernels import DDIM, Ancestral, Kernel
from sdecontrol.processes import Process, ReverseProcess
from sdecontrol.schedules import Tabulated
from sdecontrol.time import TimeGrid

DATA = -1  # the index that stands for s = 0, alpha = 1
SWITCH = "Take scheduler=DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False), or scheduler=\"ddim\"."
PREDICTIONS = ("epsilon", "v_prediction", "sample")


class FrozenNoise(Kernel):
    """The reverse SDE with the predicted noise frozen over the step, exact in the rest: weak order 1.

    mean = x / r + 2 (h/r - sqrt(h h')) score, variance q / r^2, r = alpha/alpha'.
    Source: the first-order SDE-DPM-Solver (2211.01095, appendix), its e^{lambda'-lambda} = sqrt(h)/(r sqrt(h'))
    written in r and h (derived).
    """

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        if not isinstance(process, ReverseProcess):
            raise NotDefined(f"{self!r} needs a ReverseProcess; use EulerMaruyama for a general diffusion")
        s, s_next, schedule = process.noise_level(t), process.noise_level(t_next), process.schedule
        r, q = schedule.ratio(s, s_next), schedule.transition_variance(s, s_next)
        h, h_next = schedule.h(s), schedule.h(s_next)
        return 1 / r, 2 * (h / r - math.sqrt(h * h_next)), math.sqrt(q) / r


@dataclass(frozen=True)
class Reading:
    """What a scheduler says: `levels(steps)` are table indices from noisy to clean, the last one reached included."""

    scheduler: Any
    schedule: Tabulated
    kernel: Kernel
    prediction: str

    @property
    def name(self) -> str:
        return type(self.scheduler).__name__

    def levels(self, steps: int) -> list[int]:
        """Table indices j_0 > j_1 > ... with DATA for the data itself, as `set_timesteps(steps)` orders them.

        A last step from a level to itself (DDIM with offset 0 and the least noisy level as its last) is left out.
        Raises: BadInput where timesteps are not integers, or the level that `step` reaches is not the next one.
        """
        stock = self.stepping(steps)
        times = [float(t) for t in stock.timesteps]
        odd = [t for t in times if t != round(t)]
        if odd:
            raise BadInput(f"saw a timestep between those of the table, {odd[0]:.6g}, from {self.name}; wanted "
                           'integers. Use timestep_spacing="leading" or "trailing".')  # fmt: skip
        indices = [int(t) for t in times]
        reached = REACHED[self.name](stock, indices)
        self._check_chained(indices, reached)
        return indices if reached[-1] == indices[-1] else [*indices, reached[-1]]

    def stepping(self, steps: int) -> Any:
        """A copy of the scheduler with its timesteps set."""
        check(isinstance(steps, int) and 1 <= steps <= self.schedule.size, f"steps = {steps!r}",
              f"an integer from 1 to {self.schedule.size}")  # fmt: skip
        stock = copy.deepcopy(self.scheduler)
        stock.set_timesteps(steps)
        return stock

    def _check_chained(self, indices: list[int], reached: list[int]) -> None:
        for t, expected, came in zip(indices, indices[1:], reached, strict=False):
            check(came == expected, f"{self.name} with timestep_spacing={self.scheduler.config.timestep_spacing!r} and "
                  f"{len(indices)} steps: from timestep {t} its table goes to {expected}, its step to {came}",
                  "a table and a step that agree",
                  f'Use timestep_spacing="leading", or "trailing" with a number of steps that divides '
                  f"{self.schedule.size}.")  # fmt: skip

    def time(self, index: int) -> float:
        """Generation time of a table index: horizon - s_j, and the horizon for DATA."""
        return self.schedule.horizon - (0.0 if index == DATA else self.schedule.level(index))

    def grid(self, steps: int) -> TimeGrid:
        levels = self.levels(steps)
        self._check_last_step(levels)
        return TimeGrid.explicit([self.time(j) for j in levels])

    def _check_last_step(self, levels: list[int]) -> None:
        """DDPM with its large variance adds noise on a last step to the data unless it leaves from timestep 0."""
        large = isinstance(self.kernel, Ancestral) and self.kernel.variance == "large"
        check(not large or levels[-2] == 0, f"DDPMScheduler with variance_type='fixed_large' and a last timestep of "
              f"{levels[-2]}", "one of 0, since its step to the data adds noise otherwise",
              "Use variance_type='fixed_small', or timestep_spacing='leading' with steps_offset=0.")  # fmt: skip

    def prior_std(self, index: int) -> float:
        """Standard deviation of a start at this level, in the scale alpha x_0 + sqrt(h) eps, from init_noise_sigma."""
        if self.name not in SIGMA_SCALED:
            return float(self.scheduler.init_noise_sigma)
        s = self.schedule.level(index)
        starting = copy.copy(self.scheduler)  # init_noise_sigma is of the largest sigma that is set
        starting.sigmas = torch.tensor([self.schedule.sigma(s) / self.schedule.alpha(s)], dtype=torch.float64)
        return float(starting.init_noise_sigma) * self.schedule.alpha(s)


def read(scheduler: Any, eta: float = 1.0) -> Reading:
    """A stock scheduler as a schedule, a kernel and timesteps. eta is used by DDIM alone.

    Raises: BadInput naming the scheduler and the setting for everything whose step is not x+ = mean + std z with a mean
    affine in x and one prediction.
    """
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    check(name in KERNELS, f"{name}, whose step has no Gaussian noise or uses earlier predictions",
          f"one of {', '.join(sorted(KERNELS))}", SWITCH)  # fmt: skip
    for setting in ("clip_sample", "thresholding"):
        check(not config.get(setting, False), f"{name} with {setting}=True",
              f"{setting}=False: a clipped mean is not affine in the prediction, so it has no control and no log ratio",
              SWITCH if setting == "clip_sample" else "Set thresholding=False.")  # fmt: skip
    for setting in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas",
                    "use_flow_sigmas", "use_dynamic_shifting"):  # fmt: skip
        check(not config.get(setting, False), f"{name} with {setting}=True", "levels of the table",
              f"Set {setting}=False.")  # fmt: skip
    prediction = config.get("prediction_type", "epsilon")
    check(prediction in PREDICTIONS, f"prediction_type={prediction!r}", f"one of {', '.join(PREDICTIONS)}",
          "The network's output must be the noise, v or the clean sample.")  # fmt: skip
    return Reading(scheduler, _table(scheduler, name), KERNELS[name](scheduler, eta), prediction)


def _table(scheduler: Any, name: str) -> Tabulated:
    table = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)
    check(table[-1] > 0, f"{name} with rescale_betas_zero_snr=True: alphas_cumprod ends at 0",
          "a positive last entry, since the first step divides by it",
          "Set rescale_betas_zero_snr=False, or use EulerAncestralDiscreteScheduler, which ends above 0.")  # fmt: skip
    return Tabulated(table)


def _ddim(scheduler: Any, eta: float) -> Kernel:
    return DDIM(eta)


def _ddpm(scheduler: Any, eta: float) -> Kernel:
    variances = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
    kind = scheduler.config.variance_type
    check(kind in variances, f"DDPMScheduler with variance_type={kind!r}", f"one of {', '.join(variances)}",
          "A learned variance depends on the state, and its control has no constant cost.")  # fmt: skip
    return Ancestral(variances[kind])


def _euler_ancestral(scheduler: Any, eta: float) -> Kernel:
    return Ancestral()


def _dpm_solver(scheduler: Any, eta: float) -> Kernel:
    config = scheduler.config
    check(config.solver_order == 1, f"DPMSolverMultistepScheduler with solver_order={config.solver_order}",
          "solver_order=1: higher orders use earlier predictions, so the chain is not Markov", SWITCH)  # fmt: skip
    kernels = {"sde-dpmsolver++": Ancestral, "sde-dpmsolver": FrozenNoise}
    kind = config.algorithm_type
    check(kind in kernels, f"DPMSolverMultistepScheduler with algorithm_type={kind!r}, a step without noise",
          f"one of {', '.join(kernels)}", SWITCH)  # fmt: skip
    return kernels[kind]()


def _reached_by_ratio(stock: Any, indices: list[int]) -> list[int]:
    """DDIM steps by num_train_timesteps // steps, whatever its table says."""
    last = DATA if float(stock.final_alpha_cumprod) == 1.0 else 0
    before = [t - stock.config.num_train_timesteps // stock.num_inference_steps for t in indices]
    return [t if t >= 0 else last for t in before]


def _reached_by_table(stock: Any, indices: list[int]) -> list[int]:
    ends_at_the_least_noisy = stock.config.get("final_sigmas_type") == "sigma_min"
    return [*indices[1:], 0 if ends_at_the_least_noisy else DATA]


KERNELS: dict[str, Callable[[Any, float], Kernel]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "DPMSolverMultistepScheduler": _dpm_solver,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
}
REACHED: dict[str, Callable[[Any, list[int]], list[int]]] = dict.fromkeys(KERNELS, _reached_by_table)
REACHED["DDIMScheduler"] = _reached_by_ratio
SIGMA_SCALED = ("EulerAncestralDiscreteScheduler",)  # their latents are x / alpha
