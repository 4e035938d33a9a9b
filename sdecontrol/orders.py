"""The order of a deterministic error sequence, by extrapolation: no sampling noise, no fitted line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sdecontrol.errors import check


class Order(NamedTuple):
    """limit: the extrapolated slope; uncertainty: how much the last extrapolation moved it; slopes: the local ones."""

    limit: float
    uncertainty: float
    slopes: tuple[float, ...]


def observed_order(errors: Sequence[float], steps: Sequence[int]) -> Order:
    """The p of |error| = C n^-p (1 + c_1/n + c_2/n^2 + ...) as n -> infinity.

    Local slopes p_i = log(e_i / e_{i+1}) / log(n_{i+1} / n_i) are, for a constant ratio of refinement, a power
    series in 1/n_i with constant term p; Neville's scheme evaluates their interpolating polynomial at 1/n = 0
    (derived). `errors` (m,) of one quantity, `steps` (m,) increasing by a constant ratio, m >= 3. Errors near the
    rounding of the quantity spoil it: stop the refinement before. Raises BadInput for zeros, sign changes and
    ratios that differ.
    """
    e, n = np.asarray(errors, dtype=np.float64), np.asarray(steps, dtype=np.float64)
    check(e.ndim == 1 and e.shape == n.shape and len(e) >= 3, f"{e.shape} errors, {n.shape} steps", "m >= 3 of each")
    check(bool((np.sign(e) == np.sign(e[0])).all() and e[0] != 0), f"errors {e.tolist()}", "one sign and no zero",
          "Start the refinement from a finer grid.")  # fmt: skip
    ratios = n[1:] / n[:-1]
    check(bool(ratios[0] > 1 and np.allclose(ratios, ratios[0])), f"ratios {ratios.tolist()}", "one ratio above 1")
    slopes = np.log(e[:-1] / e[1:]) / np.log(ratios)
    column, previous = slopes, slopes[-1]
    for power in range(1, len(slopes)):
        previous = column[-1]
        factor = ratios[0] ** power
        column = (factor * column[1:] - column[:-1]) / (factor - 1)
    return Order(float(column[-1]), float(abs(column[-1] - previous)), tuple(slopes.tolist()))
