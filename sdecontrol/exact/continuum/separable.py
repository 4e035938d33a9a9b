"""Independent coordinates dY_i = -V_i'(Y_i) dt + g dB_i from a point, and a reward that is a sum over coordinates:

    v(t, x) = temperature sum_i log E[e^{r_i(Y_i)/temperature} | Y_i(t) = x_i],   each factor by `LineSpectrum`.

Source: derived (independence and (3.24) of Tang 2403.06279, coordinate by coordinate).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.exact.continuum.from_point import FromPoint
from sdecontrol.exact.line_spectrum import LineSpectrum
from sdecontrol.laws import Dirac, Law


class SeparableExact(FromPoint):
    """Value, control, log C and path KL of independent coordinates that start at a point.

    factors: (columns, line) pairs that together hold every coordinate once; line.log_f is r_i/temperature.
    """

    def __init__(
        self, factors: Sequence[tuple[slice, LineSpectrum]], start: Dirac, amplitude: float, horizon: float,
        temperature: float,
    ):  # fmt: skip
        super().__init__(horizon, temperature, "only values at points are products of one-dimensional answers")
        self.factors, self.start, self.amplitude = factors, start, amplitude

    def log_growth(self, t: float, x: Tensor) -> Tensor:
        """v/temperature: (n, d) -> (n,)."""
        tau, x = self.horizon - self._check_time(t), x.to(torch.float64)
        total = torch.zeros(len(x), dtype=torch.float64)
        for columns, line in self.factors:
            part = x[:, columns]
            total = total + line.log_h(tau, part.flatten()).reshape(part.shape).sum(1)
        return total

    def _control(self, t: float, x: Tensor) -> Tensor:
        tau, y, u = self.horizon - self._check_time(t), x.to(torch.float64), torch.empty_like(x)
        for columns, line in self.factors:
            part = y[:, columns]
            slope = line.slope_of_log_h(tau, part.flatten()).reshape(part.shape)
            u[:, columns] = (self.amplitude * slope).to(x.dtype)
        return u

    @cached_property
    def path_kl(self) -> float:
        """E_{p_ft} r/temperature - log C."""
        x = self.start.mean
        means = [line.tilted_mean(self.horizon, x[columns]).sum() for columns, line in self.factors]
        return float(torch.stack(means).sum()) - self.log_normalizer

    @property
    def initial(self) -> Law:
        return self.start
