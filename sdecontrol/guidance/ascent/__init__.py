"""Gradient-guided optimisation: an objective is climbed by a diffusion model that is only told gradients.

targets   how far ahead of the model the label of a round is put: Increment, Regularised, Rescaled
rounds    `optimise`: Algorithm 1, and Algorithm 2 where the score is refitted to what was generated
refits    the weighted score refit: moment matching in closed form, or a network
limits    rounds of infinite size (`mean_field`), where they end (`regularised_maximum`) and how fast
"""

from sdecontrol.guidance.ascent.limits import MeanField, largest_curvature, mean_field, regularised_maximum
from sdecontrol.guidance.ascent.refits import MomentMatching, NetworkRefit, Refit, anchored, last, uniform
from sdecontrol.guidance.ascent.rounds import Round, Trajectory, optimise
from sdecontrol.guidance.ascent.targets import Increment, Regularised, Rescaled, Target

__all__ = [
    "Increment",
    "MeanField",
    "MomentMatching",
    "NetworkRefit",
    "Refit",
    "Regularised",
    "Rescaled",
    "Round",
    "Target",
    "Trajectory",
    "anchored",
    "largest_curvature",
    "last",
    "mean_field",
    "optimise",
    "regularised_maximum",
    "uniform",
]
