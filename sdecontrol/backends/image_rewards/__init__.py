"""Rewards on images (n, 3, height, width) in [0, 1] -> (n,), larger is better; any function of that signature is one.

`process.on_images(reward)` makes it a reward on latents. Each image is judged on its own: splitting a batch changes
nothing but rounding. Models are loaded from a folder or a hub id that the user names, from safetensors only.
"""

from sdecontrol.backends.image_rewards.clip import Aesthetic, PromptAlignment
from sdecontrol.backends.image_rewards.description import DescriptionAlignment
from sdecontrol.backends.image_rewards.pixels import (
    Brightness,
    ClassPosterior,
    JPEGCompressibility,
    JPEGIncompressibility,
)

__all__ = [
    "Aesthetic",
    "Brightness",
    "ClassPosterior",
    "DescriptionAlignment",
    "JPEGCompressibility",
    "JPEGIncompressibility",
    "PromptAlignment",
]
