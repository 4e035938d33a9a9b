"""The model card that goes with the small pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from sdecontrol.backends.tiny.train import Plan

CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: mit
---
# Digits in latent space

A `StableDiffusionPipeline` of {parameters} million parameters that draws handwritten digits. Made by
`sdecontrol train-tiny` to run controls, samplers and checks on a real latent pipeline within seconds.

```python
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained("THIS FOLDER", safety_checker=None)
pipe("a three", num_inference_steps=50, guidance_scale=2.0, height=32, width=32).images[0]
```

| | |
|---|---|
| prompts | "a zero", "a one", ... "a nine"; the empty prompt is the unconditional model |
| data | {images} of the 1 797 digits of scikit-learn (UCI, 8 x 8 pixels), enlarged to 32 x 32; a fifth is held out |
| parts | CLIP text encoder of two layers, AutoencoderKL to 4 x 8 x 8, UNet2DConditionModel, DDIMScheduler |
| training | {autoencoder_steps} and {denoiser_steps} steps of {batch}, seed {seed}; {seconds}; {threads} threads |
| autoencoder | root mean square error {error:.3f} on held-out images that span [-1, 1] |

It knows ten words and nothing else. It is an instrument for numerical checks, not a model of handwriting.
"""


def model_card(plan: Plan, seconds: dict[str, float], images: int, error: float) -> str:
    """The card in Markdown, with what the training took on this machine."""
    took = ", ".join(f"{stage} {spent:.0f} s" for stage, spent in seconds.items())
    return CARD.format(
        parameters="2.6", images=f"{images:,}".replace(",", " "), autoencoder_steps=plan.autoencoder_steps,
        denoiser_steps=plan.denoiser_steps, batch=plan.batch, seed=plan.seed, seconds=took,
        threads=torch.get_num_threads(), error=error,
    )  # fmt: skip
