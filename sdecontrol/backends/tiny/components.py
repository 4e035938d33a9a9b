"""The parts of a small text-to-image pipeline, untrained: the classes of Stable Diffusion, a thousandth of its size.

Images are 32 x 32, latents 4 x 8 x 8. Every part is made from a seed, so that two runs start from the same weights.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

IMAGE, LATENT, CHANNELS = 32, 8, 4
LENGTH = 16  # tokens of a prompt, both ends included
WIDTH = 64  # of the text embedding
_START, _END = "<|startoftext|>", "<|endoftext|>"


def tokenizer() -> CLIPTokenizer:
    """Byte-level CLIP tokenizer without merges: 256 bytes, 256 bytes that end a word, two marks."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *[f"{letter}</w>" for letter in letters], _START, _END]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: index for index, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=LENGTH, local_files_only=True)


def text_encoder(words: int, seed: int) -> CLIPTextModel:
    """Two layers of width 64; the last two words are the marks of start and end."""
    torch.manual_seed(seed)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=words - 2, eos_token_id=words - 1,
            pad_token_id=words - 1,
        )
    )  # fmt: skip


def autoencoder(seed: int) -> AutoencoderKL:
    """32 x 32 x 3 to 4 x 8 x 8 and back, a quarter of a million parameters."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        sample_size=IMAGE, latent_channels=CHANNELS, block_out_channels=(16, 32, 32), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8,
    )  # fmt: skip


def denoiser(seed: int) -> UNet2DConditionModel:
    """The conditional U-Net on the latents, attention to the prompt at 4 x 4; 2.2 million parameters."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=LATENT, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1,
        block_out_channels=(48, 96), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=WIDTH, attention_head_dim=8,
        norm_num_groups=16,
    )  # fmt: skip


def scheduler() -> DDIMScheduler:
    """Stable Diffusion's own noise schedule; nothing is clipped, and the last step keeps some noise.

    The network predicts the velocity, as Stable Diffusion 2's does: at equal training its deterministic samples were
    read as prompted more often than those of a network that predicts the noise (docs/tiny_pipeline.md).
    """
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction", timestep_spacing="leading",
    )  # fmt: skip
