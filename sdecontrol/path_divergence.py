"""KL, Renyi and chi-square divergences, and the ESS of path weights, between two controlled affine chains: exact."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import InfiniteKL, check
from sdecontrol.exact.gaussian_ratio import GaussianRatio, initial_kl
from sdecontrol.exact.quadratic import LogQuadratic, NotPositive
from sdecontrol.laws import Law
from sdecontrol.moments import AffineChain, ChainStep
from sdecontrol.rewards import Quadratic

Controlled = tuple[Any | None, Law | None]
Feedback = tuple[Tensor, Tensor]


class PathDivergence:
    """Divergences between the laws P_1, P_2 of (x_0, z_1, ..., z_K) of one chain under two affine controls.

    With delta = u_1 - u_2 the log ratio is a quadratic along the path, and for every order a (derived: each step is
    a Gaussian integral that shifts the noise by a sqrt(dt) delta)

        E_2 (dP_1/dP_2)^a = E_2[(dnu_1/dnu_2)^a E exp(a(a-1)/2 sum dt |delta|^2)],  under (1-a) u_2 + a u_1,

    a backward recursion of quadratics, +inf where it loses positivity. `first` and `second` are (control, initial
    law); None stands for the reference's. Initial laws are Gaussian (NoClosedForm otherwise).
    """

    def __init__(self, process: Any, kernel: Any, grid: Any, first: Controlled, second: Controlled):
        self.chain = AffineChain.of(process, kernel, grid)
        self._feedback = [self.chain.feedback(control) for control, _ in (first, second)]
        self._initial = [self.chain.initial if law is None else law for _, law in (first, second)]

    @cached_property
    def _delta(self) -> list[Feedback]:
        return [(b1 - b2, c1 - c2) for (b1, c1), (b2, c2) in zip(*self._feedback)]

    def log_moment(self, order: float, reward: Quadratic | None = None, temperature: float = 1.0) -> float:
        """log E_2 (e^{r(x_K)/temperature} dP_1/dP_2)^order, +inf where it does not exist; r = 0 unless given."""
        ratio = GaussianRatio.of(*self._initial)
        if ratio is None:
            raise InfiniteKL("the two initial laws live on different subspaces, so their path laws are singular")
        d = self.chain.dim
        f = LogQuadratic.zero(d) if reward is None else LogQuadratic.of(reward, order / temperature)
        try:
            for step, delta, (b1, c1), (b2, c2) in self._backward():
                mixed = step.closed_loop((1 - order) * b2 + order * b1, (1 - order) * c2 + order * c1)
                f = f.expected(f.noise_law(step.noise)).compose(mixed.matrix, mixed.offset)
                f = f + LogQuadratic.square(*delta, order * (order - 1) * step.dt / 2)
            start = f.compose(ratio.root, ratio.origin) + ratio.log_ratio * order
            law = start.noise_law(torch.eye(len(ratio.mean), dtype=torch.float64))
        except NotPositive:
            return math.inf
        return start.expected(law).constant

    def _backward(self) -> Iterable[tuple[ChainStep, Feedback, Feedback, Feedback]]:
        return reversed(list(zip(self.chain.steps, self._delta, *self._feedback)))

    def _kl(self, direction: int) -> float:
        start = self._initial[direction]
        steps = [step.closed_loop(*ub) for step, ub in zip(self.chain.steps, self._feedback[direction])]
        means, covariances = self.chain.propagate(start.mean, start.covariance, steps)
        costs = [LogQuadratic.square(*delta, step.dt / 2) for step, delta in zip(steps, self._delta)]
        energy = sum(cost.mean(m, c) for cost, m, c in zip(costs, means, covariances))
        return initial_kl(start, self._initial[1 - direction]) + energy

    @cached_property
    def kl(self) -> float:
        """KL(P_1 || P_2)."""
        return self._kl(0)

    @cached_property
    def reverse_kl(self) -> float:
        """KL(P_2 || P_1)."""
        return self._kl(1)

    def renyi(self, order: float) -> float:
        """R_order(P_1 || P_2) = log E_2 (dP_1/dP_2)^order / (order - 1); order 1 is the KL."""
        check(order > 0, f"order = {order}", "a positive order")
        return self.kl if order == 1 else self.log_moment(order) / (order - 1)

    @property
    def chi2(self) -> float:
        """E_2 (dP_1/dP_2 - 1)^2."""
        log = self.log_moment(2.0)
        return math.inf if log > 700 else math.expm1(log)

    def ess_fraction(self, reward: Quadratic | None = None, temperature: float = 1.0) -> float:
        """(E_2 w)^2 / E_2 w^2 of the weights w = e^{r/temperature} dP_1/dP_2 on paths of P_2; exp(-R_2) without reward.

        It is the limit of ESS / n; 0 where the weights have no second moment.
        """
        mean = self.log_moment(1.0, reward, temperature)
        check(math.isfinite(mean), "weights of infinite mean", "a reward with a finite normaliser")
        return math.exp(2 * mean - self.log_moment(2.0, reward, temperature))
