"""Large pretrained models as processes: the only modules that import diffusers, transformers and peft.

diffusers     StableDiffusionProcess: a pipeline as a reverse diffusion
schedulers    a stock scheduler as schedule, kernel and timesteps; what is refused
conditions    prompts; network: the UNet's calls; images: decoding and rewards on images
image_rewards/ rewards on images, by name in reward_names; sampling: questions about a pipeline
tiny/         a small pipeline trained on the digits

Nothing in the library imports this package but the commands, when a folder of a pipeline is named.
"""

from sdecontrol.backends.diffusers import StableDiffusionProcess
from sdecontrol.backends.loading import Folder, load_pipeline
from sdecontrol.backends.schedulers import FrozenNoise, Reading, read

__all__ = ["Folder", "FrozenNoise", "Reading", "StableDiffusionProcess", "load_pipeline", "read"]
