"""Probability laws with closed forms: sampling, densities, scores, noising, posteriors, tilts and distances."""

from sdecontrol.laws.base import Law, Posterior, SubspacePosterior
from sdecontrol.laws.gaussian import Gaussian, Isotropic
from sdecontrol.laws.mixture import GaussianMixture
from sdecontrol.laws.point import Dirac
from sdecontrol.laws.subspace import NoisySubspace, Subspace, SubspaceGaussian

__all__ = [
    "Dirac",
    "Gaussian",
    "GaussianMixture",
    "Isotropic",
    "Law",
    "NoisySubspace",
    "Posterior",
    "Subspace",
    "SubspaceGaussian",
    "SubspacePosterior",
]
