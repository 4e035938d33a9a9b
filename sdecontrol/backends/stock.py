"""A control handed to a stock pipeline: its own loop, its own scheduler, with the noise of each step shifted."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.controls import as_control
from sdecontrol.errors import NotDefined, check
from sdecontrol.path import half_square, inner
from sdecontrol.step import StepView, noise_shift


class ControlledScheduler:
    """The pipeline's scheduler, unmodified, whose `step` is given variance_noise = xi + sqrt(dt) u.

    `martingale` and `energy` (n,), on the CPU, add up along the run: log dQ^u/dQ = martingale + energy, as in a `Path`.
    Everything else is the scheduler's own.
    """

    def __init__(self, process: StableDiffusionProcess, control: Any, eta: float):
        self._inner = process.reading.stepping(process.steps)
        self._process, self._control, self._eta = process, as_control(control), eta
        self._takes_eta = "eta" in inspect.signature(self._inner.step).parameters
        self.martingale = self.energy = torch.zeros(0, dtype=torch.float64)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def __len__(self) -> int:
        return len(self._inner)

    def set_timesteps(self, *args: Any, **options: Any) -> None:
        self._inner.set_timesteps(*args, **options)
        levels = self._process.levels
        seen = [int(t) for t in self._inner.timesteps]
        check(seen[: len(levels) - 1] == levels[:-1], f"timesteps {seen[:3]}...",
              f"{levels[:3]}..., those of the process",
              "Give the pipeline num_inference_steps=process.steps.")  # fmt: skip
        transitions = zip(levels[:-1], levels[1:], strict=True)
        time, kernel = self._process.reading.time, self._process.default_kernel
        self._transitions = {a: kernel.transition(self._process, time(a), time(b)) for a, b in transitions}
        self._steps = {a: k for k, a in enumerate(levels[:-1])}
        self.martingale = self.energy = torch.zeros(1, dtype=torch.float64)

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, *, eta: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None, return_dict: bool = True,
    ) -> Any:  # fmt: skip
        from diffusers.utils.torch_utils import randn_tensor

        check(not self._takes_eta or eta == self._eta, f"eta = {eta}", f"eta = {self._eta}, that of the process",
              "Pass eta to the pipeline's call.")  # fmt: skip
        xi = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=torch.float32)
        shifted = xi + self._shift(int(timestep), sample.float(), model_output.float(), xi)
        options = {"eta": eta} if self._takes_eta else {}
        noise = shifted.to(sample.dtype)
        return self._inner.step(
            model_output, timestep, sample, variance_noise=noise, return_dict=return_dict, **options
        )

    def _shift(self, timestep: int, x: Tensor, prediction: Tensor, xi: Tensor) -> Tensor:
        transition = self._transitions.get(timestep)
        if self._control is None or transition is None or transition.noiseless:
            return torch.zeros_like(xi)
        state = self._process.state_from(transition.t, x, prediction)
        w = noise_shift(StepView(self._process, transition, self._steps[timestep], state), self._control).detach()
        self.martingale = self.martingale + inner(w, xi).cpu()
        self.energy = self.energy + half_square(w).cpu()
        return w


@contextmanager
def controlled(process: StableDiffusionProcess, control: Any) -> Iterator[tuple[Any, ControlledScheduler]]:
    """(pipe, scheduler): the process's pipeline with a control in its scheduler, and back as it was afterwards.

    Call it as ever, with the process's prompts (image i gets prompt i mod m), guidance_scale=process.cfg,
    num_inference_steps=process.steps and, for DDIM, eta=process.default_kernel.eta.
    Raises: NotDefined for a scheduler whose `step` takes no variance_noise; BadInput for other steps or eta.
    """
    stock = process.reading.scheduler
    if "variance_noise" not in inspect.signature(stock.step).parameters:
        raise NotDefined(f"{type(stock).__name__}.step takes no variance_noise, so its noise cannot be shifted; use "
                         'scheduler="ddim", whose eta = 1 is the same chain, or sc.simulate.')  # fmt: skip
    before = process.pipe.scheduler
    eta = float(getattr(process.default_kernel, "eta", 1.0))
    scheduler = ControlledScheduler(process, control, eta)
    process.pipe.scheduler = scheduler
    try:
        yield process.pipe, scheduler
    finally:
        process.pipe.scheduler = before
