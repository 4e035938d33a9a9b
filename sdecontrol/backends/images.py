"""From latents to images and back to rewards: a chunk of images at a time, forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdecontrol.backends.network import filled, named_memory
from sdecontrol.errors import NotDefined, check


def decoder(pipe: Any) -> Any:
    """The VAE that decodes as the pipeline does: its own, or a float32 copy of SDXL's, which overflows in float16."""
    vae = pipe.vae
    overflows = hasattr(pipe, "text_encoder_2") and vae.dtype == torch.float16 and vae.config.force_upcast
    return copy.deepcopy(vae).float() if overflows else vae


def decode(vae: Any, latents: Tensor, batch: int) -> Tensor:
    """Images (n, 3, height, width) in [0, 1], as the pipelines make them."""
    return torch.cat([_decode(vae, part, batch) for part in latents.split(batch)])


def _decode(vae: Any, latents: Tensor, batch: int) -> Tensor:
    """One call of the VAE, padded to `batch` images so that an image has the same bits whatever n is."""
    count = len(latents)
    whole = filled(latents, batch - count)
    with named_memory(batch, whole):
        images = vae.decode(_unscaled(vae, whole).to(vae.device, vae.dtype)).sample[:count]
    return (images.to(latents) / 2 + 0.5).clamp(0, 1)


def _unscaled(vae: Any, latents: Tensor) -> Tensor:
    """z = mean + std latents / scaling_factor, where the VAE's configuration has a mean and a standard deviation."""
    config = vae.config
    scaled = latents / config.scaling_factor
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return scaled
    mean, std = (torch.tensor(v).to(latents).reshape(1, -1, 1, 1) for v in (config.latents_mean, config.latents_std))
    return scaled * std + mean


class OnImages:
    """latents (n, C, H, W) -> reward(images) (n,), `batch` images at a time; a gradient needs memory for one chunk."""

    def __init__(self, vae: Any, reward: Callable[[Tensor], Tensor], batch: int):
        check(callable(reward), f"a reward of type {type(reward).__name__}", "a function of images (n, 3, H, W)")
        self.vae, self.reward, self.batch = vae, reward, batch

    def __call__(self, latents: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            return torch.cat([self._of(part) for part in latents.split(self.batch)])

    def _of(self, latents: Tensor) -> Tensor:
        values = self.reward(decode(self.vae, latents, self.batch))
        check(isinstance(values, Tensor) and values.shape == (len(latents),),
              f"{tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__} from the reward on "
              f"{len(latents)} images", f"a tensor of shape ({len(latents)},)")  # fmt: skip
        return values.to(latents.device)

    def gradient(self, latents: Tensor) -> Tensor:
        """d reward / d latents, (n, C, H, W). Raises: NotDefined for a reward without a gradient."""
        return torch.cat([self._gradient(part) for part in latents.split(self.batch)])

    def _gradient(self, latents: Tensor) -> Tensor:
        with torch.enable_grad():
            x = latents.detach().requires_grad_()
            values = self._of(x)
            if not values.requires_grad:
                raise NotDefined(
                    "this reward has no gradient in the image (JPEG size, say, or one under no_grad); use a sampler "
                    "that needs none: sc.steering.fk, svdd, best_of, or a control without reward_gradient"
                )
            with named_memory(self.batch, x):
                return torch.autograd.grad(values.sum(), x)[0].detach()
