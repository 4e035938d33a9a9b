"""A UNet as a function (x, s) -> prediction: dtype, conditioning, CFG, adapters, memory. One call for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sdecontrol.backends.conditions import Conditions, Embedding
from sdecontrol.errors import OutOfMemory
from sdecontrol.schedules import Tabulated

_ADAPTERS = threading.RLock()  # switching adapters changes the UNet for every thread


@dataclass(frozen=True)
class Network:
    """The prediction of the CFG-combined model, the reference: e_0 + cfg (e_c - e_0), one call where cfg is 0 or 1.

    Every call of the UNet has exactly `batch` images (the last one is padded with copies of its last row), so that the
    bits of an image do not depend on how many there are. first: the number of row 0, whose prompt is first mod m.
    recompute: the call's activations are made again in the backward pass instead of being kept.
    adapted: with LoRA or other adapters on; the reference has them off.
    Mathematics outside the UNet is in x's dtype, whatever the UNet's is.
    """

    unet: Any
    schedule: Tabulated
    conditions: Conditions
    cfg: float
    batch: int
    recompute: bool = False
    adapted: bool = False
    first: int = 0

    def at(self, first: int) -> Network:
        return replace(self, first=first)

    def __call__(self, x: Tensor, s: float) -> Tensor:
        return self.predict(x, torch.full((len(x),), self.schedule.index(s)))

    def predict(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The combined prediction at x (n, C, H, W) and its rows' timesteps (n,), in x's dtype and on its device."""
        groups = (torch.arange(len(x)) + self.first) % len(self.conditions.prompts)
        parts = (part.split(self.batch) for part in (x, timesteps, groups))
        return torch.cat([self._padded(*rows) for rows in zip(*parts, strict=True)])

    def _padded(self, x: Tensor, timesteps: Tensor, groups: Tensor) -> Tensor:
        count, missing = len(x), self.batch - len(x)
        if missing:
            x, timesteps, groups = (filled(part, missing) for part in (x, timesteps, groups))
        differentiated = torch.is_grad_enabled() and (x.requires_grad or self.adapted)
        with torch.set_grad_enabled(differentiated):
            if self.recompute and differentiated:
                return checkpoint(self._call, x, timesteps, groups, use_reentrant=False)[:count]
            return self._call(x, timesteps, groups)[:count]

    def _call(self, x: Tensor, timesteps: Tensor, groups: Tensor) -> Tensor:
        with adapters(self.unet, self.adapted), named_memory(self.batch, x):
            weight = next(self.unet.parameters())  # unet.device and unet.dtype walk through every module
            rows, times = x.to(weight.device), timesteps.to(weight.device)
            return self._combined(rows, times, groups, weight.dtype).to(x.device)

    def _combined(self, x: Tensor, timesteps: Tensor, groups: Tensor, dtype: torch.dtype) -> Tensor:
        if self.cfg in (0.0, 1.0):
            of = self.conditions.conditional if self.cfg == 1.0 else self.conditions.unconditional
            return self._unet(x, timesteps, of(groups), dtype)
        both = self.conditions.unconditional(groups).then(self.conditions.conditional(groups))
        free, conditional = self._unet(torch.cat([x, x]), timesteps.repeat(2), both, dtype).chunk(2)
        return free + self.cfg * (conditional - free)

    def _unet(self, x: Tensor, timesteps: Tensor, condition: Embedding, dtype: torch.dtype) -> Tensor:
        """The UNet's answer in its own precision, on its own device, given back in x's precision."""
        answer: Tensor = self.unet(x.to(dtype), timesteps, **condition.inputs(dtype)).sample
        return answer.to(x.dtype)


def filled(x: Tensor, missing: int) -> Tensor:
    """x (n, ...) with copies of its last row behind: (n + missing, ...)."""
    return torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])


@contextmanager
def named_memory(batch: int, x: Tensor) -> Iterator[None]:
    """Running out of memory, forward or backward, with what to lower."""
    try:
        yield
    except OutOfMemory:
        raise
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"out of memory on {batch} image(s) with latents {tuple(x.shape[1:])}; lower batch, then height and width; "
            "load the pipeline in float16 or bfloat16; checkpoint=True where gradients are taken."
        ) from error


@contextmanager
def adapters(unet: Any, on: bool) -> Iterator[None]:
    """LoRA layers switched for the calls inside, and back as they were before anything runs backward through them."""
    if not getattr(unet, "peft_config", None):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    with _ADAPTERS:
        layers = [layer for layer in unet.modules() if isinstance(layer, BaseTunerLayer)]
        before = [layer._disable_adapters for layer in layers]  # enable_adapters() would also change requires_grad
        try:
            for layer in layers:
                layer._disable_adapters = not on
            yield
        finally:
            for layer, was in zip(layers, before, strict=True):
                layer._disable_adapters = was
