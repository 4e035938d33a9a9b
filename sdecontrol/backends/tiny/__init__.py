"""A small Stable Diffusion pipeline trained on the digits, for checks that a real latent model must pass."""

from sdecontrol.backends.tiny.images import PROMPTS, ink, split
from sdecontrol.backends.tiny.train import Outcome, Plan, train

__all__ = ["PROMPTS", "Outcome", "Plan", "ink", "split", "train"]
