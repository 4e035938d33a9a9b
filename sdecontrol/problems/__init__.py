"""What is optimised: `Problem`, the named problems, and problems from arrays and files."""

from sdecontrol.problems.base import Problem
from sdecontrol.problems.benchmarks import (
    double_well,
    gaussian_mixture,
    linear_ou,
    log_quadratic_hjb,
    many_well,
    quadratic_ou,
    step_reward,
)
from sdecontrol.problems.digits import digits

__all__ = [
    "Problem",
    "digits",
    "double_well",
    "gaussian_mixture",
    "linear_ou",
    "log_quadratic_hjb",
    "many_well",
    "quadratic_ou",
    "step_reward",
]
