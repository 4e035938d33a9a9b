"""Guidance and fine-tuning of diffusion models as stochastic control, every result a number with an error bar.

    dY = [b(t, Y) + g(t) u(t, Y)] dt + g(t) dB,   Y_0 ~ nu,   t from 0 (noise) to T (data)
    maximise  E r(Y_T) - temperature * KL(Q^{u,nu} || Q),   KL = KL(nu || p_noise) + 1/2 E int |u|^2 dt

`import sdecontrol as sc` gives the names below; nothing heavier than torch and scipy is imported.
"""

from sdecontrol import conditioning, finetune, guidance, laws, problems, steering, value
from sdecontrol.claims import claims, verify, verify_all
from sdecontrol.controls import AffineControl, Control, StateControl, StepControl
from sdecontrol.errors import (
    BadInput,
    InfiniteKL,
    NoClosedForm,
    NotDefined,
    NotFinite,
    NoTilt,
    SDEControlError,
    UnknownName,
    ValueBlowUp,
)
from sdecontrol.estimate import Estimate
from sdecontrol.evaluate import compare, evaluate
from sdecontrol.finetune import fit
from sdecontrol.girsanov import chi_square, effective_sample_size, kl_split, path_kl, renyi, reverse_path_kl
from sdecontrol.kernels import DDIM, Ancestral, EulerMaruyama, ExactTransition, Exponential, SecondOrder
from sdecontrol.kernels_flow import Flow, flow_grid
from sdecontrol.kernels_mixture import ExactPosterior
from sdecontrol.kernels_multistep import Adams
from sdecontrol.laws import ClassPosterior, Dirac, Gaussian, GaussianMixture, Isotropic, Subspace, SubspaceGaussian
from sdecontrol.models import Denoiser, NoisePrediction, PerturbedScore, Score, VPrediction
from sdecontrol.moments import moments
from sdecontrol.noise import Noise, PathNoise
from sdecontrol.novikov import novikov
from sdecontrol.problems import Problem
from sdecontrol.processes import Affine, DiffusionProcess, ReverseProcess
from sdecontrol.rewards import GaussianLabel, Linear, Quadratic, Step
from sdecontrol.schedules import VE, VP, Cosine, SubVP, Tabulated
from sdecontrol.simulate import simulate
from sdecontrol.time import TimeGrid
from sdecontrol.value import feynman_kac, solve_hjb, value_gradient

__version__ = "0.1.0"

__all__ = [
    "Adams",
    "DDIM",
    "VE",
    "VP",
    "Affine",
    "AffineControl",
    "Ancestral",
    "BadInput",
    "ClassPosterior",
    "Control",
    "Cosine",
    "Denoiser",
    "DiffusionProcess",
    "Dirac",
    "Estimate",
    "EulerMaruyama",
    "ExactPosterior",
    "ExactTransition",
    "Exponential",
    "Flow",
    "Gaussian",
    "GaussianLabel",
    "GaussianMixture",
    "InfiniteKL",
    "Isotropic",
    "Linear",
    "NoClosedForm",
    "NoTilt",
    "Noise",
    "NoisePrediction",
    "NotDefined",
    "NotFinite",
    "PathNoise",
    "PerturbedScore",
    "Problem",
    "Quadratic",
    "ReverseProcess",
    "SDEControlError",
    "Score",
    "SecondOrder",
    "StateControl",
    "Step",
    "StepControl",
    "SubVP",
    "Subspace",
    "SubspaceGaussian",
    "Tabulated",
    "TimeGrid",
    "UnknownName",
    "VPrediction",
    "ValueBlowUp",
    "chi_square",
    "claims",
    "compare",
    "conditioning",
    "effective_sample_size",
    "evaluate",
    "feynman_kac",
    "finetune",
    "fit",
    "flow_grid",
    "guidance",
    "kl_split",
    "laws",
    "moments",
    "novikov",
    "path_kl",
    "problems",
    "renyi",
    "reverse_path_kl",
    "simulate",
    "solve_hjb",
    "steering",
    "value",
    "value_gradient",
    "verify",
    "verify_all",
]
