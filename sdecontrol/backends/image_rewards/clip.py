"""Rewards from CLIP: alignment with a prompt, and a linear head that rates aesthetics. Both are differentiable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sdecontrol.backends.image_rewards.loading import load_model, load_processor
from sdecontrol.backends.image_rewards.pixels import check_images
from sdecontrol.errors import check


class Preprocessing:
    """What CLIP expects of images in [0, 1]: shortest side resized (bicubic, antialiased), centre cropped, normalised.

    Differentiable. Without antialiasing, as in several published codes, an image of fine texture is off by units.
    """

    def __init__(self, size: int, mean: Any, std: Any):
        self.size = size
        self.mean, self.std = (torch.as_tensor(v, dtype=torch.float32).reshape(1, -1, 1, 1) for v in (mean, std))

    @classmethod
    def of(cls, processor: Any, size: int) -> Preprocessing:
        """With the mean and standard deviation of a stored image processor."""
        return cls(size, processor.image_mean, processor.image_std)

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        height, width = images.shape[-2:]
        scale = self.size / min(height, width)
        resized = (max(self.size, int(height * scale)), max(self.size, int(width * scale)))
        x = functional.interpolate(images, resized, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        top, left = (resized[0] - self.size) // 2, (resized[1] - self.size) // 2
        x = x[..., top : top + self.size, left : left + self.size]
        return (x - self.mean.to(x)) / self.std.to(x)


class PromptAlignment:
    """scale * cosine between CLIP's embeddings of the image and of the prompt.

    source: a folder or hub id of a CLIPModel with its tokenizer and image processor, such as
    openai/clip-vit-large-patch14. scale = 1 is the plain cosine, 100 CLIP's logit.
    Raises: BadInput for a source without these parts, or a prompt that CLIP would cut.
    """

    def __init__(self, source: str | Path, prompt: str, *, scale: float = 1.0, revision: str | None = None):
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        self.model = load_model(CLIPModel, source, revision)
        self.scale = scale
        processor = load_processor(CLIPImageProcessor, source, revision)
        self.preprocess = Preprocessing.of(processor, self.model.config.vision_config.image_size)
        tokenizer = load_processor(AutoTokenizer, source, revision)
        tokens = tokenizer(prompt, return_tensors="pt")
        most = self.model.config.text_config.max_position_embeddings
        check(tokens.input_ids.shape[1] <= most, f"a prompt of {tokens.input_ids.shape[1]} tokens",
              f"at most {most}", "Shorten it.")  # fmt: skip
        with torch.no_grad():
            embedding = self.model.get_text_features(**tokens.to(self.model.device)).pooler_output
        self.text = functional.normalize(embedding.float(), dim=-1)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images).to(self.model.device, self.model.dtype)
        embedding = self.model.get_image_features(pixel_values=pixels).pooler_output
        return self.scale * (functional.normalize(embedding.to(images), dim=-1) @ self.text[0].to(images))


class Aesthetic:
    """The LAION aesthetic predictor: linear layers on the normalised CLIP ViT-L/14 embedding, about 1 to 10.

    clip: folder or hub id of a CLIP model with a projection. head: a safetensors file with the weights of one linear
    layer or of several in a row, named layers.0.weight, layers.0.bias, layers.2.weight ... as the published one is.
    Raises: BadInput for a head that is not a chain from the embedding to one number, or is not safetensors.
    """

    def __init__(self, clip: str | Path, head: str | Path, *, revision: str | None = None):
        from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

        self.model = load_model(CLIPVisionModelWithProjection, clip, revision)
        processor = load_processor(CLIPImageProcessor, clip, revision)
        self.preprocess = Preprocessing.of(processor, self.model.config.image_size)
        self.layers = read_head(head, self.model.config.projection_dim)

    def __call__(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images).to(self.model.device, self.model.dtype)
        x = functional.normalize(self.model(pixel_values=pixels).image_embeds.to(images), dim=-1)
        for weight, bias in self.layers:
            x = functional.linear(x, weight.to(x), bias.to(x))
        return x[:, 0]


def read_head(file: str | Path, width: int) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of each linear layer in the order of its number, from `width` numbers to one."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(file)
    check(path.is_file(), f"no file at {path}", "a safetensors file with the head's layers")
    check(path.suffix == ".safetensors", f"{path.name}", "a .safetensors file",
          "A pickled .pth can run code: convert it where you trust it.")  # fmt: skip
    try:
        tensors = load(path.read_bytes())
    except SafetensorError as error:
        check(False, f"{path}, which is not safetensors ({error})", "the weights of linear layers")
    names = sorted((name.removesuffix(".weight") for name in tensors if name.endswith(".weight")), key=_number)
    layers = [(tensors[f"{name}.weight"], tensors.get(f"{name}.bias", torch.zeros(1))) for name in names]
    widths = [width, *[len(weight) for weight, _ in layers]]
    chained = all(weight.ndim == 2 and weight.shape[1] == before for (weight, _), before in zip(layers, widths))
    check(bool(layers) and chained and widths[-1] == 1, f"layers of shapes {[tuple(w.shape) for w, _ in layers]}",
          f"a chain from {width} numbers to 1", "Take the head that belongs to this CLIP model.")  # fmt: skip
    return layers


def _number(name: str) -> int:
    digits = "".join(c for c in name if c.isdigit())
    return int(digits or 0)
