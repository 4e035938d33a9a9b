"""The value function beyond closed forms: Feynman-Kac by Monte Carlo and gradients by four rules.

`feynman_kac` takes a method: Plain, Antithetic, QuasiMonteCarlo, ControlVariates, ImportanceSampling(control), Adapted,
Laplace, Multilevel, or Portfolio, which chooses by a pilot and is the default. `value_gradient` takes Pathwise, Bismut,
LikelihoodRatio or Swap. Tempered sequential Monte Carlo is left out on purpose: with the usual Markov moves it was
wrong by per cents where weights collapse (the 100-dimensional log-quadratic problem), under a tiny stated error.

`solve_hjb` solves the HJB equation on a grid in one to three dimensions, by Smoothing, FiniteDifference or Monotone;
`axes_for` chooses the box.
"""

from sdecontrol.value.estimate import UnreliableWeights, ValueEstimate
from sdecontrol.value.feynman_kac import feynman_kac
from sdecontrol.value.gradient import value_gradient
from sdecontrol.value.gradient_rules import Bismut, LikelihoodRatio, Pathwise, Swap
from sdecontrol.value.hjb import HJBSolution, axes_for, solve_hjb
from sdecontrol.value.hjb_differences import FiniteDifference
from sdecontrol.value.hjb_monotone import Monotone
from sdecontrol.value.hjb_smoothing import Smoothing
from sdecontrol.value.importance import Adapted, ImportanceSampling, Laplace
from sdecontrol.value.methods import Antithetic, ControlVariates, Plain, QuasiMonteCarlo
from sdecontrol.value.multilevel import Multilevel
from sdecontrol.value.portfolio import Portfolio

__all__ = [
    "Adapted",
    "Antithetic",
    "Bismut",
    "ControlVariates",
    "FiniteDifference",
    "HJBSolution",
    "ImportanceSampling",
    "Laplace",
    "LikelihoodRatio",
    "Monotone",
    "Multilevel",
    "Pathwise",
    "Plain",
    "Portfolio",
    "QuasiMonteCarlo",
    "Smoothing",
    "Swap",
    "UnreliableWeights",
    "ValueEstimate",
    "axes_for",
    "feynman_kac",
    "solve_hjb",
    "value_gradient",
]
