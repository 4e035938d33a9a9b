"""A function on a tensor grid as a spline, continued beyond the box by its second-order Taylor polynomial."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.interpolate import NdBSpline, make_interp_spline
from torch import Tensor

Array = np.ndarray


class Splined:
    """v and grad v on nodes, read anywhere.

    Inside the box: tensor-product splines, quintic or of the degree given, of the node values of v and of each of its
    derivatives: the gradient does not lose an order. Outside, with p the nearest point of the box and e = x - p,

        v(x) = v(p) + grad v(p).e + e'H(p) e/2,      grad v(x) = grad v(p) + H(p) e,

    H the derivative of the splined gradient: the control grows linearly, as it does for quadratic rewards.
    Shapes: axes d arrays (n_l,), value (n_1, ..., n_d), gradient (n_1, ..., n_d, d). Derived.
    """

    def __init__(self, axes: list[Array], value: Tensor, gradient: Tensor, degree: int = 5):
        self.low, self.high = np.array([x[0] for x in axes]), np.array([x[-1] for x in axes])
        coefficients, knots = np.concatenate([value.numpy()[..., None], gradient.numpy()], axis=-1), []
        for axis, x in enumerate(axes):
            spline = make_interp_spline(x, coefficients, k=degree, axis=axis)
            coefficients = np.moveaxis(spline.c, 0, axis)
            knots.append(spline.t)
        self._spline: Any = NdBSpline(tuple(knots), np.ascontiguousarray(coefficients), degree)
        self._dim = len(axes)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(v (n,), grad v (n, d)) at points x (n, d), float64."""
        points = x.detach().to(torch.float64).cpu().numpy()
        inside = np.clip(points, self.low, self.high)
        read = self._spline(inside)
        value, gradient = read[:, 0].copy(), read[:, 1:].copy()
        out = (points != inside).any(axis=1)
        if out.any():
            step = points[out] - inside[out]
            bend = self._bend(inside[out], step)
            value[out] += (gradient[out] * step).sum(1) + (bend * step).sum(1) / 2
            gradient[out] += bend
        return torch.from_numpy(value), torch.from_numpy(gradient)

    def _bend(self, p: Array, step: Array) -> Array:
        """H(p) step, the derivative of the splined gradient along the step: (n, d)."""
        units = np.eye(self._dim, dtype=int)
        return sum(self._spline(p, nu=unit)[:, 1:] * step[:, [axis]] for axis, unit in enumerate(units))
