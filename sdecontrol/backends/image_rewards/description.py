"""Alignment by description: a vision-language model says what it sees, and the text is compared with the prompt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from sdecontrol.backends.image_rewards.loading import load_model, load_processor
from sdecontrol.backends.image_rewards.pixels import check_images
from sdecontrol.errors import check


class DescriptionAlignment:
    """Recall of the prompt in a caption of the image: mean over prompt tokens of the best cosine with a caption token.

    captioner: folder or hub id of an image-to-text model and its processor (LLaVA, BLIP ...). encoder: of a text
    encoder and its tokenizer, whose last hidden states are the tokens' embeddings. Captions are decoded greedily, one
    image at a time. It has no gradient. Source: DDPO (2305.13301) rewards prompt alignment by LLaVA and the recall of
    BERTScore; start and end marks are left out here.
    """

    def __init__(
        self, captioner: str | Path, encoder: str | Path, prompt: str, *, question: str | None = None,
        length: int = 32, revision: str | None = None,
    ):  # fmt: skip
        from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

        check(isinstance(length, int) and length >= 1, f"length = {length!r}", "a positive number of tokens")
        self.captioner = load_model(AutoModelForImageTextToText, captioner, revision)
        self.processor = load_processor(AutoProcessor, captioner, revision)
        self.encoder = load_model(AutoModel, encoder)
        self.tokenizer = load_processor(AutoTokenizer, encoder)
        self.question, self.length = question, length
        self.wanted = self._tokens(prompt)
        check(len(self.wanted) > 0, f"a prompt without words, {prompt!r}", "what the image should show")

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images)
        return torch.stack([self._recall(self.caption(image)) for image in images.detach()]).to(images)

    def caption(self, image: Tensor) -> str:
        """What the model says of one image (3, height, width) in [0, 1]."""
        from PIL import Image

        pixels = (image * 255 + 0.5).clamp(0, 255).to("cpu", torch.uint8).permute(1, 2, 0).numpy()
        inputs = self.processor(images=Image.fromarray(pixels), text=self.question, return_tensors="pt")
        inputs = inputs.to(self.captioner.device)
        with torch.no_grad():
            answer = self.captioner.generate(**inputs, max_new_tokens=self.length, do_sample=False)
        text: str = self.processor.decode(answer[0], skip_special_tokens=True)
        return text.removeprefix(self.question or "").strip()

    def _recall(self, caption: str) -> Tensor:
        said = self._tokens(caption)
        if len(said) == 0:
            return torch.tensor(0.0)
        return (self.wanted @ said.mT).amax(dim=1).mean()

    def _tokens(self, text: str) -> Tensor:
        """Unit vectors of the text's tokens, marks left out: (tokens, width)."""
        inputs = self.tokenizer(text, return_tensors="pt", truncation=True, return_special_tokens_mask=True)
        words = inputs.pop("special_tokens_mask")[0] == 0
        with torch.no_grad():
            hidden = self.encoder(**inputs.to(self.encoder.device)).last_hidden_state[0].float().cpu()
        return functional.normalize(hidden[words], dim=-1)
