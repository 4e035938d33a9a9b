"""Samplers of the tilt from the reference chain: particles, candidates, best of n, rejection.

Where guidance changes the drift, these draw several paths and choose among them; a control may propose.
"""

from sdecontrol.steering.base import Particles, Sampler
from sdecontrol.steering.exact import exact_draws
from sdecontrol.steering.fk import FeynmanKac, fk
from sdecontrol.steering.potentials import Difference, Maximum, Potential, Sum
from sdecontrol.steering.scores import SamplerEvaluation
from sdecontrol.steering.selection import Accepted, best_of, rejection
from sdecontrol.steering.svdd import svdd
from sdecontrol.steering.twisted import twisted

__all__ = [
    "Accepted",
    "Difference",
    "FeynmanKac",
    "Maximum",
    "Particles",
    "Potential",
    "Sampler",
    "SamplerEvaluation",
    "Sum",
    "best_of",
    "exact_draws",
    "fk",
    "rejection",
    "svdd",
    "twisted",
]
