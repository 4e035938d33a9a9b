"""Probability laws in closed form: sampling, densities, scores, noising, posteriors, tilts and distances."""

from sdecontrol.laws.base import Law, Posterior, SubspacePosterior
from sdecontrol.laws.discrete import DiscreteLaw
from sdecontrol.laws.divergences import TotalVariation, chi2, kl, renyi, tv, w2
from sdecontrol.laws.f_tilts import (
    KL,
    ChiSquare,
    FDivergence,
    ForwardKL,
    GammaDivergence,
    Surrogate,
    f_tilt,
    surrogate,
)
from sdecontrol.laws.gaussian import Gaussian
from sdecontrol.laws.isotropic import Isotropic
from sdecontrol.laws.labels import ClassPosterior
from sdecontrol.laws.mixture import GaussianMixture
from sdecontrol.laws.point import Dirac
from sdecontrol.laws.sphere import NoisySphere, Sphere
from sdecontrol.laws.subspace import NoisySubspace, Subspace, SubspaceGaussian
from sdecontrol.laws.tilted import TiltedLaw

__all__ = [
    "KL",
    "ChiSquare",
    "ClassPosterior",
    "Dirac",
    "DiscreteLaw",
    "FDivergence",
    "ForwardKL",
    "GammaDivergence",
    "Gaussian",
    "GaussianMixture",
    "Isotropic",
    "Law",
    "NoisySphere",
    "NoisySubspace",
    "Posterior",
    "Sphere",
    "Subspace",
    "SubspaceGaussian",
    "SubspacePosterior",
    "Surrogate",
    "TiltedLaw",
    "TotalVariation",
    "chi2",
    "f_tilt",
    "kl",
    "renyi",
    "surrogate",
    "tv",
    "w2",
]
