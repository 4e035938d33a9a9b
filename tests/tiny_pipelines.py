"""Random pipelines of a few thousand weights, made offline: Stable Diffusion 1 or 2, and XL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

STABLE_DIFFUSION = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def ddim(**options: Any) -> Any:
    from diffusers import DDIMScheduler

    as_shipped = dict(clip_sample=False, steps_offset=1, set_alpha_to_one=False)
    return DDIMScheduler(**(STABLE_DIFFUSION | as_shipped | options))


def tokenizer(folder: Path, length: int = 16) -> Any:
    """Bytes as tokens, no merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length)


def text_config(**options: Any) -> Any:
    from transformers import CLIPTextConfig

    return CLIPTextConfig(**(dict(
        vocab_size=514, hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=512, eos_token_id=513, pad_token_id=513, projection_dim=32,
    ) | options))  # fmt: skip


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16), in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16,
    ).eval()  # fmt: skip


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    made = UNet2DConditionModel(**(dict(
        block_out_channels=(16, 32), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=4, norm_num_groups=4,
    ) | options)).eval()  # fmt: skip
    with torch.no_grad():
        made.conv_out.weight.mul_(5.0)  # predictions of unit size, like those of a trained network
    return made


def stable_diffusion(folder: Path, scheduler: Any = None, seed: int = 0, **unet_options: Any) -> Any:
    """A StableDiffusionPipeline on latents (4, 8, 8) and images of 16 pixels."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    pipe = StableDiffusionPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config()).eval(), tokenizer=tokenizer(folder),
        unet=unet(**unet_options), scheduler=scheduler or ddim(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion_xl(folder: Path, scheduler: Any = None, seed: int = 0) -> Any:
    """A StableDiffusionXLPipeline of the same size: two text encoders, pooled text and sizes added."""
    from diffusers import StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    words = tokenizer(folder)
    pipe = StableDiffusionXLPipeline(
        vae=vae(), text_encoder=CLIPTextModel(text_config()).eval(), tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config()).eval(), tokenizer_2=words,
        unet=unet(cross_attention_dim=64, addition_embed_type="text_time", addition_time_embed_dim=8,
                  projection_class_embeddings_input_dim=32 + 6 * 8),
        scheduler=scheduler or ddim(), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe
