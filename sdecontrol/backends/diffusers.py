"""Stable Diffusion as a reverse diffusion: every control, sampler and number of the library runs on it unchanged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from sdecontrol.backends.conditions import encode
from sdecontrol.backends.images import OnImages, decode, decoder
from sdecontrol.backends.loading import PIPELINES, load_pipeline, unclipped_ddim
from sdecontrol.backends.network import Network, named_memory
from sdecontrol.backends.schedulers import DATA, read
from sdecontrol.errors import check
from sdecontrol.kernels import Kernel
from sdecontrol.laws import Isotropic, Law
from sdecontrol.models import Denoiser, NetworkModel, NoisePrediction, VPrediction
from sdecontrol.noise import PathNoise
from sdecontrol.processes import ReverseProcess, ReverseState
from sdecontrol.schedules import Tabulated
from sdecontrol.time import TimeGrid

MODELS: dict[str, type[NetworkModel]] = {"epsilon": NoisePrediction, "v_prediction": VPrediction, "sample": Denoiser}
SMALL = 4096  # latent coordinates below which several images are computed together by default
TOGETHER = 16


class LatentState(ReverseState):
    """A call of the network; running out of memory on the way back says what to lower, too."""

    process: StableDiffusionProcess

    def pullback(self, c: Tensor) -> Tensor:
        with named_memory(self.process.batch, self.x):
            return super().pullback(c)


class StableDiffusionProcess(ReverseProcess):
    """The latents of a Stable Diffusion pipeline under one of its stock schedulers; t: 0 (noise) -> 1 (data).

    The reference is the CFG-combined model e_0 + cfg (e_c - e_0), not the conditional one; cfg = 1 is the conditional.
    With adapters (LoRA) in the UNet the reference has them off, and `adapted()` has them on.

    pipe: a StableDiffusionPipeline or StableDiffusionXLPipeline. prompts: one text, or m that the images go through
    round robin (image i has prompt i mod m). steps: of the default grid, as `scheduler.set_timesteps(steps)`.
    eta: DDIM's stochasticity; below 1 the chain is another SDE and cannot reach the tilt from a fixed start.
    scheduler: instead of the pipeline's; "ddim" makes a DDIMScheduler from its configuration, unclipped.
    batch: images a call of the UNet (default 1, or 16 for latents below 4096 numbers); each call is padded to it, so an
    image has the same bits whatever n is. `default_noise` gives every image a stream of its own.
    checkpoint: activations are recomputed in the backward pass. height, width: pixels, default the pipeline's.
    States are float32 and so are means, log ratios and KL sums, whatever the dtype of the UNet.
    Shapes: states are latents (n, C, height/8, width/8).
    Raises: BadInput for other pipelines, inpainting UNets, prompts that would be cut, and schedulers without a
    Gaussian step (see `sdecontrol.backends.schedulers.read`).
    """

    def __init__(
        self, pipe: Any, prompts: str | Sequence[str], *, cfg: float = 7.5, negative_prompt: str | None = None,
        steps: int = 50, eta: float = 1.0, scheduler: Any = None, batch: int | None = None, checkpoint: bool = False,
        height: int | None = None, width: int | None = None,
    ):  # fmt: skip
        check_pipeline(pipe)
        check(0 <= cfg < float("inf"), f"cfg = {cfg}", "a number >= 0; 1 is the conditional model")
        shape, pixels = _shapes(pipe, height, width)
        size = int(torch.Size(shape).numel())
        self.pipe, self.steps, self.cfg = pipe, steps, float(cfg)
        self.reading = read(_chosen(pipe, scheduler), eta)
        self.batch = batch or (1 if size >= SMALL else TOGETHER)
        conditions = encode(pipe, prompts, negative_prompt, pixels)
        network = Network(pipe.unet, self.reading.schedule, conditions, self.cfg, self.batch, checkpoint)
        self.levels = self.reading.levels(steps)
        super().__init__(self.reading.schedule, MODELS[self.reading.prediction](network), event_shape=shape)

    model: NetworkModel
    schedule: Tabulated

    @classmethod
    def from_pretrained(
        cls, source: str | Path, prompts: str | Sequence[str], *, dtype: torch.dtype | None = None, device: Any = None,
        revision: str | None = None, scheduler: Any = None, **options: Any,
    ) -> Self:  # fmt: skip
        """A folder's pipeline, or a hub id's, as a process; see `load_pipeline` and the class."""
        pipe = load_pipeline(source, dtype=dtype, device=device, scheduler=scheduler, revision=revision)
        return cls(pipe, prompts, **options)

    @property
    def network(self) -> Network:
        return self.model.f  # type: ignore[return-value]

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.network.conditions.prompts

    @property
    def groups(self) -> int:  # type: ignore[override]
        return len(self.prompts)

    def _with(self, network: Network) -> Self:
        other = copy.copy(self)
        other.cfg, other.model = network.cfg, MODELS[self.reading.prediction](network).bind(self.schedule)
        return other

    def at_paths(self, first: int) -> Self:
        return self if first % self.groups == self.network.first else self._with(self.network.at(first % self.groups))

    def one(self, prompt: int) -> Self:
        """This process with one of its prompts, by number: what samplers of several particles a sample need."""
        return self._with(replace(self.network, conditions=self.network.conditions.only(prompt), first=0))

    def adapted(self) -> Self:
        """This process with the UNet's adapters on: the fine-tuned model."""
        return self._with(replace(self.network, adapted=True))

    def with_cfg(self, cfg: float) -> Self:
        """This process at another CFG scale: 1 the conditional model, 0 the unconditional one."""
        return self._with(replace(self.network, cfg=float(cfg)))

    def state(self, t: float, x: Tensor, *, jacobian: bool = False) -> LatentState:
        score, x = self.model.score(x, self.noise_level(t), graph=jacobian)
        return LatentState(self, t, x, score)

    def state_from(self, t: float, x: Tensor, prediction: Tensor) -> LatentState:
        """The state at (t, x) where a stock pipeline has already computed the combined prediction (n, C, H, W)."""
        return LatentState(self, t, x, self.model.to_score(prediction, x, self.noise_level(t)))

    def step_between(self, x: Tensor, timesteps: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
        """(mean (n, C, H, W), std (n,)) of the chain's steps from `timesteps` to `reached`, both (n,) integers, mixed.

        -1 is the data itself. What training on single transitions needs; std is float64.
        Raises: BadInput for timesteps outside the table or a step that does not lower the noise.
        """
        pairs = list(zip(timesteps.tolist(), reached.tolist(), strict=True))
        check(all(DATA <= b < a < self.schedule.size for a, b in pairs), f"steps {pairs[:4]}...",
              f"{self.schedule.size} > timestep > reached >= {DATA}")  # fmt: skip
        time, kernel = self.reading.time, self.default_kernel
        numbers = [kernel.coefficients(self, time(a), time(b)) for a, b in pairs]
        c_x, c_f, std = torch.tensor(numbers, dtype=torch.float64, device=x.device).T
        levels = torch.tensor([self.schedule.level(a) for a, _ in pairs], dtype=torch.float64, device=x.device)
        along = (len(x),) + (1,) * (x.ndim - 1)
        score = self.model.to_score(self.network.predict(x, timesteps), x, levels.reshape(along))
        return (c_x.reshape(along) * x + c_f.reshape(along) * score).to(x.dtype), std

    @property
    def unconditional(self) -> Any:
        """The model without a prompt. Where the reference is the conditional model (cfg=1), CFG is the control
        sc.guidance.cfg(problem, process.unconditional, 1 - scale)."""
        return self.with_cfg(0.0).model

    @cached_property
    def vae(self) -> Any:
        """What decodes latents; the pipeline's own parts stay as they are."""
        return decoder(self.pipe)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (n, 3, height, width) in [0, 1] of latents, differentiable, `batch` of them at a time."""
        return decode(self.vae, latents, self.batch)

    def on_images(self, reward: Callable[[Tensor], Tensor]) -> OnImages:
        """A reward on latents from one on images (n, 3, height, width) in [0, 1] -> (n,)."""
        return OnImages(self.vae, reward, self.batch)

    @property
    def prior_gap(self) -> float:
        """sqrt(alpha_bar) at the first level: the share of the data's mean that a start from pure noise leaves out."""
        return self.schedule.alpha(self.schedule.level(self.levels[0]))

    def describe(self) -> dict[str, Any]:
        """What the numbers of a report depend on, and what to keep in mind about them."""
        kernel = self.default_kernel
        notes = [f"the start leaves out sqrt(alpha_bar_T) = {self.prior_gap:.4g} of the data's mean"]
        if not kernel.consistent_with(self):
            notes.append(f"{kernel!r}: with eta < 1 the output remembers the start, which a control cannot tilt")
        return {
            "pipeline": type(self.pipe).__name__, "scheduler": self.reading.name, "kernel": repr(kernel),
            "prediction": self.reading.prediction, "steps": len(self.levels) - 1, "levels": self.levels,
            "cfg": self.cfg, "prompts": list(self.prompts), "prior_gap": self.prior_gap, "batch": self.batch,
            "latents": list(self.event_shape), "dtype": str(self.pipe.unet.dtype).removeprefix("torch."),
            "device": str(self.pipe.unet.device), "notes": notes,
        }  # fmt: skip

    def initial_law(self, t: float = 0.0) -> Law:
        return Isotropic(self.event_shape, self.reading.prior_std(self.schedule.index(self.noise_level(t))))

    @property
    def default_grid(self) -> TimeGrid:
        return self.reading.grid(self.steps)

    @property
    def default_kernel(self) -> Kernel:
        return self.reading.kernel

    @property
    def default_noise(self) -> PathNoise:
        return PathNoise(0, batch=self.batch)


def check_pipeline(pipe: Any) -> None:
    """Raises BadInput for pipelines that are not Stable Diffusion 1, 2 or XL from text."""
    name = type(pipe).__name__
    check(name in PIPELINES, f"a {name}", f"one of {', '.join(PIPELINES)}")
    config = pipe.unet.config
    check(config.in_channels == config.out_channels == pipe.vae.config.latent_channels,
          f"a UNet from {config.in_channels} to {config.out_channels} channels on a VAE of "
          f"{pipe.vae.config.latent_channels}", "one on the latents alone",
          "Inpainting, depth and upscaling models have other inputs; take their text-to-image base.")  # fmt: skip


def _shapes(pipe: Any, height: int | None, width: int | None) -> tuple[tuple[int, ...], tuple[int, int]]:
    """(latent event shape, pixels): multiples of the VAE's factor, by default those of the UNet."""
    factor, native = pipe.vae_scale_factor, pipe.unet.config.sample_size
    first, second = native if isinstance(native, list | tuple) else (native, native)
    pixels = (height or first * factor, width or second * factor)
    check(all(side % factor == 0 and side > 0 for side in pixels), f"{pixels[0]} x {pixels[1]} pixels",
          f"positive multiples of {factor}")  # fmt: skip
    return (pipe.unet.config.in_channels, pixels[0] // factor, pixels[1] // factor), pixels


def _chosen(pipe: Any, scheduler: Any) -> Any:
    return unclipped_ddim(pipe.scheduler) if scheduler == "ddim" else scheduler or pipe.scheduler
