"""One-step Gaussian kernels whose mean is several model calls: the probability flow by Runge-Kutta, then fresh noise.

With y = x / alpha and tau = h / alpha^2 every (alpha, h) is the same problem: noising is y + sqrt(tau) z, and the
probability flow is dy/dtau = -(alpha / 2) score. An explicit Runge-Kutta step of it is a table of float64 numbers,

    x_i = C_i0 x + sum_{j < i} C_ij score_j,      mean = C_0 x + sum_j C_j score_j,

which is what a `FlowTransition` holds; the same table on matrices gives the exact moments of an affine chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdecontrol.errors import check
from sdecontrol.kernels import DDIM, AffineStep, Kernel, Transition
from sdecontrol.processes import Process, ReverseProcess, State
from sdecontrol.time import TimeGrid

# order -> (nodes, stage weights, final weights): Euler, Ralston's second order, the 3/8 rule of Kutta
TABLEAUS: dict[int, tuple[list[float], list[list[float]], list[float]]] = {
    1: ([0.0], [[]], [1.0]),
    2: ([0.0, 2 / 3], [[], [2 / 3]], [1 / 4, 3 / 4]),
    4: (
        [0.0, 1 / 3, 2 / 3, 1.0],
        [[], [1 / 3], [-1 / 3, 1.0], [1.0, -1.0, 1.0]],
        [1 / 8, 3 / 8, 3 / 8, 1 / 8],
    ),
}


@dataclass(frozen=True)
class FlowTransition(Transition):
    """mean = the last row of `table` applied to (x, score_1, ..., score_m); row i gives the state of call i + 1."""

    stage_times: tuple[float, ...] = ()
    table: tuple[tuple[float, ...], ...] = ()

    def mean(self, state: State) -> Tensor:
        return self._run(state.x, state.field, lambda t, x: state.process.state(t, x).field)

    def affine(self, process: Process) -> AffineStep:
        """The rows on matrices [M | m], one column an input."""
        d = process.dim
        eye = torch.eye(d, d + 1, dtype=torch.float64)

        def score(t: float, x: Tensor) -> Tensor:
            matrix, offset = process.affine_field(t)
            image = matrix @ x
            image[:, -1] += offset
            return image

        end = self._run(eye, score(self.t, eye), score)
        return AffineStep(end[:, :d], end[:, d], self.std * torch.eye(d, dtype=torch.float64))

    def _run(self, x: Tensor, first: Tensor, score: Callable[[float, Tensor], Tensor]) -> Tensor:
        scores = [first]
        for t, row in zip(self.stage_times, self.table[:-1], strict=True):
            scores.append(score(t, _combine(row, x, scores)))
        return _combine(self.table[-1], x, scores)


def _combine(row: tuple[float, ...], x: Tensor, scores: list[Tensor]) -> Tensor:
    """row_0 x + sum_j row_j score_j."""
    out = x * row[0]
    for weight, score in zip(row[1:], scores, strict=True):
        out.add_(score, alpha=weight)
    return out


class Flow(Kernel):
    """The probability flow to a level below the target by a Runge-Kutta step, then the noise that leads back up to it.

    With tau' = h'/alpha'^2 the flow ends at tau_d = tau' - eta^2 tau' (tau - tau') / tau and the noise has variance
    alpha'^2 (tau' - tau_d) = eta^2 h' q / h, that of DDIM(eta). Noising is exact for every law, so the chain keeps
    the marginals of the process to the flow's own order (1, 2 or 4, with 1, 2 or 4 model calls a step) for every
    eta. eta = 0 is the flow itself; eta = 1 converges to the reverse SDE, as a path law with weak order 1.
    The flow is integrated in z = y / sqrt(width^2 + tau), u = log(width^2 + tau), smooth down to tau = 0 and constant
    on centred Gaussian data of standard deviation `width` (derived). A step to s = 0 is Tweedie's x0_hat, one call.
    The density of a step is Gaussian, so controls and log ratios are exact.
    Raises: BadInput for an order without a tableau, eta outside [0, 1], a width that is not positive; NotDefined for
    a process that is not a ReverseProcess.
    Source: derived; eta = 1 at order 1 is the ancestral sampler.
    """

    def __init__(self, order: int = 4, eta: float = 0.0, width: float = 1.0):
        check(order in TABLEAUS, f"order = {order!r}", f"one of {sorted(TABLEAUS)}")
        check(math.isfinite(width) and width > 0, f"width = {width}", "a positive standard deviation of the data")
        self.order, self.eta, self.width = order, DDIM(eta).eta, float(width)

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        """Those of DDIM(eta): the first-order step with the same noise."""
        return DDIM(self.eta).coefficients(process, t, t_next)

    def transition(self, process: Process, t: float, t_next: float) -> Transition:
        c_x, c_f, std = self.coefficients(process, t, t_next)
        assert isinstance(process, ReverseProcess)  # DDIM has refused any other
        schedule, s, s_next = process.schedule, process.noise_level(t), process.noise_level(t_next)
        if schedule.h(s_next) == 0:
            return Transition(t, t_next, c_x, c_f, std)
        tau, tau_next = (math.exp(-schedule.log_snr(level)) for level in (s, s_next))
        tau_end = tau_next * (1 - self.eta**2 * (1 - tau_next / tau))
        nodes, _, _ = TABLEAUS[self.order]
        square = self.width**2
        taus = [(square + tau) * ((square + tau_end) / (square + tau)) ** c - square for c in nodes]
        levels = [s, *(schedule.noise_level_at(-math.log(value)) for value in taus[1:])]
        alphas = [schedule.alpha(level) for level in levels]
        table = self._table(alphas, taus, tau_end, schedule.alpha(s_next))
        times = tuple(process.horizon - level for level in levels[1:])
        return FlowTransition(t, t_next, c_x, c_f, std, times, table)

    def _table(
        self, alphas: list[float], taus: list[float], tau_end: float, alpha_next: float
    ) -> tuple[tuple[float, ...], ...]:
        """Rows over (x, score_1, ...): dz/du = -(alpha sqrt(width^2 + tau) score + z) / 2 stage by stage."""
        _, stages, final = TABLEAUS[self.order]
        scales = [alpha * math.sqrt(self.width**2 + tau) for alpha, tau in zip(alphas, taus)]  # x = scale z
        du = math.log((self.width**2 + tau_end) / (self.width**2 + taus[0]))
        axes = np.eye(1 + len(final))
        start = axes[0] / scales[0]
        slopes: list[np.ndarray] = []
        rows = []
        for i, (scale, weights) in enumerate(zip(scales, stages)):
            z = start + du * sum((w * k for w, k in zip(weights, slopes)), np.zeros(len(axes)))
            rows.append(tuple((scale * z)[: 1 + i].tolist()))
            slopes.append(-(scale * axes[1 + i] + z) / 2)
        end = start + du * sum((w * k for w, k in zip(final, slopes)), np.zeros(len(axes)))
        reached = alpha_next * math.sqrt(self.width**2 + tau_end)
        return (*rows[1:], tuple((reached * end).tolist()))

    def consistent_with(self, process: Process) -> bool:
        return self.eta == 1.0


class Switch(Kernel):
    """`first` where a step leaves a level s > level * horizon, `then` below: a stochastic start for a flow, say.

    The order is the smaller of the two. Raises: BadInput for a level outside (0, 1).
    """

    def __init__(self, first: Kernel, then: Kernel, level: float):
        check(0 < level < 1, f"level = {level}", "a fraction of the horizon in (0, 1)")
        self.first, self.then, self.level = first, then, float(level)
        self.order_weak = min(first.order_weak, then.order_weak)

    def _chosen(self, process: Process, t: float) -> Kernel:
        return self.first if process.noise_level(t) > self.level * process.horizon else self.then

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        return self._chosen(process, t).coefficients(process, t, t_next)

    def transition(self, process: Process, t: float, t_next: float) -> Transition:
        return self._chosen(process, t).transition(process, t, t_next)

    def transitions(self, process: Process, times: Sequence[float]) -> list[Transition]:
        """Those of either kernel on its own part of the grid: `then` looks back on nothing of `first`."""
        switch = sum(self._chosen(process, t) is self.first for t in times[:-1])
        return [
            *self.first.transitions(process, times[: switch + 1]),
            *self.then.transitions(process, times[switch:]),
        ]

    def consistent_with(self, process: Process) -> bool:
        return self.first.consistent_with(process) and self.then.consistent_with(process)


def flow_grid(
    process: ReverseProcess, steps: int, narrow: float, wide: float, s_min: float = 1e-3, first: float | None = None
) -> TimeGrid:
    """Steps uniform in log((tau + narrow^2) / (tau + wide^2)), tau = h / alpha^2 from s = horizon to s_min horizon.

    Between the standard deviations `narrow` and `wide` the steps are even in log tau, and they are long outside,
    where the score of data with such widths is nearly linear. The last of the `steps` goes from s_min to 0; with
    s_min = 0 all of them are even, down to the data. With `first` the first step goes to tau = first^2, for a kernel
    that makes it with noise, and the others are even from there.
    Raises: BadInput unless 0 < narrow < wide, steps >= 2 (3 with `first`), 0 <= s_min < 1 and first is in between.
    """
    check(0 < narrow < wide, f"narrow = {narrow}, wide = {wide}", "0 < narrow < wide")
    check(steps >= (2 if first is None else 3) and 0 <= s_min < 1, f"steps = {steps}, s_min = {s_min}",
          "steps >= 2 (3 with `first`) and s_min in [0, 1)")  # fmt: skip
    schedule, horizon = process.schedule, process.horizon
    n2, w2 = narrow**2, wide**2
    tau_of = lambda s: math.exp(-schedule.log_snr(s)) if s > 0 else 0.0  # noqa: E731
    start, end = tau_of(horizon), tau_of(s_min * horizon)
    check(first is None or end < first**2 < start, f"first = {first}", f"in ({end**0.5:.3g}, {start**0.5:.3g})")
    even = steps - (s_min > 0) - (first is not None)
    high, low = (math.log((tau + n2) / (tau + w2)) for tau in (start if first is None else first**2, end))
    ratios = [math.exp(high + (low - high) * k / even) for k in range(1, even)]
    taus = [*([] if first is None else [first**2]), *((ratio * w2 - n2) / (1 - ratio) for ratio in ratios)]
    levels = [schedule.noise_level_at(-math.log(tau)) for tau in taus] + [s_min * horizon] * (s_min > 0)
    return TimeGrid.explicit([0.0, *(horizon - s for s in levels), horizon])
