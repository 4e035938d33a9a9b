"""Learning controls and initial laws: `fit`, its losses, families and scores."""

from sdecontrol.finetune.batch import Batch, Loss
from sdecontrol.finetune.checkpoint import FitRecord, restored
from sdecontrol.finetune.denoising import DenoiserNetwork, ScoreMatching, fit_score
from sdecontrol.finetune.divergence import CrossEntropy, LogVariance, TrajectoryBalance
from sdecontrol.finetune.families import (
    Added,
    DenoiserFamily,
    DiagonalFamily,
    Family,
    Frozen,
    MLPFamily,
    PulledFamily,
)
from sdecontrol.finetune.features import Cosines, Decays, GridTimes, Polynomials, TimeFeatures
from sdecontrol.finetune.fit import adam, constant, cosine, fit
from sdecontrol.finetune.initial_law import AffineStart, InitialEntropy, fit_initial
from sdecontrol.finetune.linear import AffineFamily, CoordinateFamily, LinearFamily
from sdecontrol.finetune.matching import AdjointMatching
from sdecontrol.finetune.natural import NaturalGradient
from sdecontrol.finetune.pathwise import RelativeEntropy, TorchsdeAdjoint
from sdecontrol.finetune.regression import ValueRegression
from sdecontrol.finetune.ridges import LearnedGuidance, RidgeValue
from sdecontrol.finetune.score import control_error
from sdecontrol.finetune.soc_matching import Reparametrisation, SOCMatching
from sdecontrol.finetune.values import NetworkValue, QuadraticValue, ValueFamily

__all__ = [
    "Added",
    "AdjointMatching",
    "AffineFamily",
    "AffineStart",
    "Batch",
    "CoordinateFamily",
    "Cosines",
    "CrossEntropy",
    "Decays",
    "DenoiserNetwork",
    "DenoiserFamily",
    "DiagonalFamily",
    "Family",
    "FitRecord",
    "Frozen",
    "GridTimes",
    "InitialEntropy",
    "LearnedGuidance",
    "LinearFamily",
    "LogVariance",
    "Loss",
    "MLPFamily",
    "NaturalGradient",
    "NetworkValue",
    "Polynomials",
    "PulledFamily",
    "QuadraticValue",
    "RelativeEntropy",
    "Reparametrisation",
    "RidgeValue",
    "SOCMatching",
    "ScoreMatching",
    "TimeFeatures",
    "TorchsdeAdjoint",
    "TrajectoryBalance",
    "ValueFamily",
    "ValueRegression",
    "adam",
    "constant",
    "control_error",
    "cosine",
    "fit",
    "fit_initial",
    "fit_score",
    "restored",
]
