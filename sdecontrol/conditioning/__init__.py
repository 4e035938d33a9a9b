"""Conditioning as control: label likelihoods learned from offline pairs, and the target p(y|x)^strength p_pre(x).

A classifier (or a regression) is fitted to pairs (x, y) by maximum likelihood and calibrated on held-out pairs; its
log likelihood times the strength is a reward at temperature 1, so every control of the library applies to it. The
rivals are here too: guidance by a classifier of noised points, its scaled drift, and the CFG loss.
"""

from sdecontrol.conditioning.classifier import Classifier, fit_classifier
from sdecontrol.conditioning.free import ConditionalNoise, fit_conditional
from sdecontrol.conditioning.networks import LevelNetwork, mlp
from sdecontrol.conditioning.noised import NoisedClassifier, exact_classifier, fit_noised, scaled_drift
from sdecontrol.conditioning.pairs import Pairs, TargetPairs
from sdecontrol.conditioning.regression import Regression, fit_regression
from sdecontrol.conditioning.rewards import LabelReward, SumReward
from sdecontrol.exact.combined_scores import combined_gaussian
from sdecontrol.exact.finite_chain import FiniteChain, label_weight

__all__ = [
    "Classifier",
    "ConditionalNoise",
    "FiniteChain",
    "LabelReward",
    "LevelNetwork",
    "NoisedClassifier",
    "Pairs",
    "Regression",
    "SumReward",
    "TargetPairs",
    "combined_gaussian",
    "exact_classifier",
    "fit_classifier",
    "fit_conditional",
    "fit_noised",
    "fit_regression",
    "label_weight",
    "mlp",
    "scaled_drift",
]
