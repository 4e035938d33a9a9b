"""Prompts as what a UNet is conditioned on, by the pipeline's own encoders; SDXL's second encoder included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import check

Inputs = dict[str, Any]  # keyword arguments of the UNet beside sample and timestep


@dataclass(frozen=True)
class Embedding:
    """One row a prompt: hidden (m, tokens, width); for SDXL also pooled (m, width) and time_ids (m, 6)."""

    hidden: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None

    def rows(self, groups: Tensor) -> Embedding:
        return self._each(lambda part: part[groups.to(part.device)])

    def then(self, other: Embedding) -> Embedding:
        rest = iter((other.hidden, other.pooled, other.time_ids))
        return self._each(lambda part: torch.cat([part, next(rest)]))  # type: ignore[list-item]

    def _each(self, f: Callable[[Tensor], Tensor]) -> Embedding:
        if self.pooled is None or self.time_ids is None:
            return Embedding(f(self.hidden))
        return Embedding(f(self.hidden), f(self.pooled), f(self.time_ids))

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """The UNet's keyword arguments, in its precision."""
        parts = self._each(lambda part: part.to(dtype))
        added = None if self.pooled is None else {"text_embeds": parts.pooled, "time_ids": parts.time_ids}
        return {"encoder_hidden_states": parts.hidden, "added_cond_kwargs": added}


@dataclass(frozen=True)
class Conditions:
    """m prompts with one negative prompt for all of them."""

    prompts: tuple[str, ...]
    positive: Embedding
    negative: Embedding

    def only(self, index: int) -> Conditions:
        return Conditions((self.prompts[index],), self.positive.rows(torch.tensor([index])), self.negative)

    def conditional(self, groups: Tensor) -> Embedding:
        return self.positive.rows(groups)

    def unconditional(self, groups: Tensor) -> Embedding:
        return self.negative.rows(torch.zeros_like(groups))


def encode(pipe: Any, prompts: str | Sequence[str], negative: str | None, size: tuple[int, int]) -> Conditions:
    """Raises: BadInput for no prompts, or one that the text encoder would cut."""
    names = (prompts,) if isinstance(prompts, str) else tuple(prompts)
    check(len(names) > 0 and all(isinstance(p, str) for p in names), f"prompts {prompts!r}", "one or more texts")
    for prompt in (*names, negative or ""):
        _check_length(pipe, prompt)
    against = None if negative is None else [negative] * len(names)
    with torch.no_grad():
        positive, free, *pooled = pipe.encode_prompt(
            prompt=list(names), device=pipe.unet.device, num_images_per_prompt=1, do_classifier_free_guidance=True,
            negative_prompt=against,
        )  # fmt: skip
    if not pooled:
        return Conditions(names, Embedding(positive), Embedding(free[:1]))
    ids = _time_ids(pipe, size, positive.dtype).to(positive.device)
    return Conditions(
        names, Embedding(positive, pooled[0], ids.expand(len(names), -1)), Embedding(free[:1], pooled[1][:1], ids)
    )


def _check_length(pipe: Any, prompt: str) -> None:
    for tokenizer in (pipe.tokenizer, getattr(pipe, "tokenizer_2", None)):
        if tokenizer is None:
            continue
        count = len(tokenizer(prompt, truncation=False).input_ids)
        most = tokenizer.model_max_length
        check(count <= most, f"a prompt of {count} tokens, {prompt[:60]!r}...", f"at most {most}",
              "Shorten it: the text encoder would cut off its end in silence.")  # fmt: skip


def _time_ids(pipe: Any, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """SDXL's sizes: (original height and width, crop at 0, target height and width), (1, 6)."""
    width = pipe.text_encoder_2.config.projection_dim
    return pipe._get_add_time_ids(size, (0, 0), size, dtype=dtype, text_encoder_projection_dim=width)
