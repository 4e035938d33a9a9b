"""What the two stages of training minimise, each a function of an addressed minibatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel

from sdecontrol.noise import Noise

KL_WEIGHT = 1e-6
DROPPED = 0.1  # share of prompts replaced by the empty one, for classifier-free guidance
AVERAGE = 0.995


@dataclass(frozen=True)
class Minibatch:
    """n images drawn at random, addressed by `noise`."""

    n: int
    noise: Noise

    def normal(self, stream: str, event_shape: tuple[int, ...]) -> Tensor:
        """(n, *event) standard normals, float32."""
        blocks = self.noise.blocks(stream, self.n, event_shape)
        return torch.cat([block.normal(event_shape, torch.float32)[: block.count] for block in blocks])

    def uniform(self, stream: str) -> Tensor:
        """(n,) uniforms between 0 and 1."""
        return torch.cat([block.uniform()[: block.count] for block in self.noise.blocks(stream, self.n, (1,))])

    def integers(self, stream: str, below: int) -> Tensor:
        """(n,) integers from 0 to below - 1."""
        return (self.uniform(stream) * below).long()


class AutoencoderObjective(nn.Module):
    """E |x - decode(z)|^2 / pixels + 1e-6 KL(q(z|x) || N(0, I)) / pixels, z ~ q(.|x)."""

    images: Tensor

    def __init__(self, images: Tensor):
        super().__init__()
        self.register_buffer("images", images, persistent=False)

    def forward(self, model: AutoencoderKL, batch: Minibatch) -> Tensor:
        x = self.images[batch.integers("image", len(self.images))]
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * batch.normal("latent", tuple(posterior.mean.shape[1:]))
        return functional.mse_loss(model.decode(z).sample, x) + KL_WEIGHT * posterior.kl().sum() / x.numel()


class Conditional(nn.Module):
    """The prompts' encoder and the U-Net, trained together: row i of the noisy latents has prompt `which[i]`.

    Each prompt is encoded once, however many rows have it.
    """

    def __init__(self, text: CLIPTextModel, unet: UNet2DConditionModel):
        super().__init__()
        self.text, self.unet = text, unet

    def forward(self, x: Tensor, timesteps: Tensor, prompts: Tensor, which: Tensor) -> Tensor:
        return self.unet(x, timesteps, self.text(prompts).last_hidden_state[which]).sample


class Trained(nn.Module):
    """Weights in training and their running average, which is what is kept."""

    def __init__(self, live: Conditional):
        super().__init__()
        self.live = live
        self.average = AveragedModel(live, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE)).requires_grad_(False)


class DenoisingObjective(nn.Module):
    """E |v - v_theta(x, t, prompt)|^2, the prompt empty in a tenth of cases.

    x = sqrt(abar_t) z + sqrt(1 - abar_t) eps and v = sqrt(abar_t) eps - sqrt(1 - abar_t) z, with latents z drawn from
    the autoencoder's posterior N(mean, std^2), already scaled. Source: Salimans and Ho 2202.00512, v-prediction.
    prompts: (1 + classes, LENGTH) tokens, the empty prompt first; image i has prompt 1 + labels[i].
    """

    mean: Tensor
    std: Tensor
    labels: Tensor
    prompts: Tensor
    abar: Tensor

    def __init__(self, mean: Tensor, std: Tensor, labels: Tensor, prompts: Tensor, scheduler: DDIMScheduler):
        super().__init__()
        held = {"mean": mean, "std": std, "labels": labels, "prompts": prompts, "abar": scheduler.alphas_cumprod}
        for name, tensor in held.items():
            self.register_buffer(name, tensor, persistent=False)

    def forward(self, model: Trained, batch: Minibatch) -> Tensor:
        model.average.update_parameters(model.live)
        event = tuple(self.mean.shape[1:])
        i, t = batch.integers("image", len(self.mean)), batch.integers("timestep", len(self.abar))
        z = self.mean[i] + self.std[i] * batch.normal("latent", event)
        eps, abar = batch.normal("noise", event), self.abar[t].reshape(-1, 1, 1, 1)
        which = torch.where(batch.uniform("prompt") < DROPPED, 0, 1 + self.labels[i])
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        velocity = model.live(alpha * z + sigma * eps, t, self.prompts, which)
        return functional.mse_loss(velocity, alpha * eps - sigma * z)


def latents_of(model: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and standard deviation of q(z|x) for every image, and 1 / std of all latents, by which both are scaled."""
    with torch.no_grad():
        posterior = model.encode(images).latent_dist
    variance = posterior.mean.double().var().item() + posterior.var.double().mean().item()
    scale = float(np.round(1 / np.sqrt(variance), 6))
    return posterior.mean * scale, posterior.std * scale, scale
