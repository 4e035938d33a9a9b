"""The handwritten digits of scikit-learn, 8 x 8 pixels, on their principal subspace."""

from __future__ import annotations

from functools import lru_cache

from sdecontrol import data
from sdecontrol.problems.base import Problem
from sdecontrol.problems.fitted import Subject, subjects

COMPONENTS = 10


@lru_cache(maxsize=4)
def digit_subjects(rank: int | None = None, components: int = COMPONENTS) -> dict[str, Subject]:
    """The subjects of both rewards: `total` (ink, linear) and `regular` (left-right symmetry, quadratic)."""
    names = ("total", "regular")
    return dict(zip(names, subjects(data.digits(), components, rank, names)))


def digits(rank: int | None = None, components: int = COMPONENTS) -> Problem:
    """More ink on the digits: 1 797 images, pixel mean as offset, a Gaussian mixture on `rank` principal directions.

    rank None keeps 95 % of the variance (29 directions); components = 1 is a single Gaussian. Temperature 0.5, the
    reward being the ink in standard deviations. Needs scikit-learn. Raises: BadInput as `sdecontrol.data.fit`.
    """
    return digit_subjects(rank, components)["total"].problem
