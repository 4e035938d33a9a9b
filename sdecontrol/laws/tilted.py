"""Laws given by a base law and a weight: p(x) = base(x) w(x) / E_base w."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, NotDefined
from sdecontrol.laws.base import Law, check_temperature
from sdecontrol.laws.line import Line
from sdecontrol.laws.spectrum import check_dense
from sdecontrol.noise import Block, Noise
from sdecontrol.rewards import Step

OVERSAMPLING = 32  # proposals a path when sampling-importance-resampling
_ROUNDS = 20_000  # proposals a path before rejection gives up


class TiltedLaw(Law):
    """base(x) exp(log_weight(x)) / E_base exp(log_weight).

    log_weight maps points (n, *event) to (n,); log_normalizer is log E_base exp(log_weight) where it is
    known; log_bound is a number that log_weight never exceeds. On the line everything comes from quadrature
    (1e-11 relative): normaliser, moments and samples (by inversion). In more dimensions log_prob and
    log_normalizer raise NotDefined unless the normaliser is given, mean and covariance raise NoClosedForm,
    and samples are drawn
    - by rejection where log_bound is given: exact, exp(log_bound) / E_base w proposals a draw on average;
    - else by sampling-importance-resampling, 32 proposals a path within a block: draws are dependent within a
      block and biased by O(1 / ess). `ess(n, noise)` says how many of n proposals count; distrust the samples
      when it is small.
    Raises: NoTilt when E_base w is infinite; BadInput when a weight exceeds its bound or rejection hardly
    accepts.
    """

    def __init__(
        self,
        base: Law,
        log_weight: Callable[[Tensor], Tensor],
        log_normalizer: float | None = None,
        log_bound: float | None = None,
    ):
        self.base, self.log_weight, self.log_bound = base, log_weight, log_bound
        self.event_shape, self.dtype = base.event_shape, base.dtype
        self._given_normalizer = log_normalizer

    @cached_property
    def line(self) -> Line:
        """The quadrature of a tilted law on the line; NoClosedForm in more dimensions."""
        return Line(self._log_unnormalized, *self.base.landmarks())

    def _log_unnormalized(self, x: Tensor) -> Tensor:
        points = x[:, None]
        return self.base.log_prob(points) + self.log_weight(points).to(torch.float64)

    @property
    def on_line(self) -> bool:
        return self.event_shape == (1,)

    @property
    def log_normalizer(self) -> float:
        """log E_base exp(log_weight)."""
        if self._given_normalizer is not None:
            return self._given_normalizer
        if not self.on_line:
            raise NotDefined(
                "the normaliser of this tilted law is not known (no closed form, dimension above 1); "
                "estimate "
                "it as the mean of exp(log_weight) over samples of the base law and pass log_normalizer"
            )
        return self.line.log_normalizer

    def landmarks(self) -> tuple[Tensor, Tensor]:
        return self.base.landmarks()

    @property
    def mean(self) -> Tensor:
        return torch.tensor([self.line.expect(lambda x: x)], dtype=torch.float64)

    @property
    def covariance(self) -> Tensor:
        check_dense(self.dim)
        centre = float(self.mean)
        return torch.tensor([[self.line.expect(lambda x: (x - centre).square())]], dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        self._check_points(x)
        x = x.to(torch.float64)
        return self.base.log_prob(x) + self.log_weight(x).to(torch.float64) - self.log_normalizer

    def score(self, x: Tensor) -> Tensor:
        """base score + grad log_weight, the latter by automatic differentiation."""
        self._check_points(x)
        differentiable = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            y = x if x.requires_grad else x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_weight(y).sum(), y, create_graph=differentiable)
        return self.base.score(x) + slope

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        self._check_points(x)
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.log_weight(y).sum(), y, create_graph=True)
            bend = torch.zeros_like(x)
            if slope.requires_grad:  # a linear weight has no second derivative
                (bend,) = torch.autograd.grad((slope * c).sum(), y)
        return self.base.score_jvp(x, c) + bend

    def tilt(self, reward: Any, temperature: float) -> Law:
        """Weights multiply."""
        log_normalizer: float | None
        try:
            log_normalizer = self.log_normalizer + self.log_expectation(reward, temperature)
        except (NoClosedForm, NotDefined):
            log_normalizer = None
        return TiltedLaw(self.base, lambda x: self.log_weight(x) + reward(x) / temperature, log_normalizer)

    def draw(self, block: Block) -> Tensor:
        if self.log_bound is not None:
            return self._accepted(block, self.log_bound)
        if self.on_line:
            return self.line.draw(block.uniform())[:, None].to(self.dtype)
        return self._resampled(block)

    def _accepted(self, block: Block, log_bound: float) -> Tensor:
        """Accepted proposals in the order they come, until the block is full."""
        kept: list[Tensor] = []
        missing = block.size
        for _ in range(_ROUNDS):
            x = self.base.draw(block)
            log_ratio = self.log_weight(x).to(torch.float64) - log_bound
            over = float(log_ratio.max())
            if over > 1e-9:
                raise BadInput(
                    f"saw a log weight {over:.3g} above log_bound = {log_bound:.6g}; wanted a bound. Pass "
                    f"a larger one."
                )
            kept.append(x[block.uniform().log() < log_ratio][:missing])
            missing -= len(kept[-1])
            if missing == 0:
                return torch.cat(kept)
        raise BadInput(
            f"saw {block.size - missing} proposals accepted of {_ROUNDS * block.size}; wanted a weight "
            f"that is not so far "
            "below its bound. Leave log_bound out to resample by importance, or tilt by less."
        )

    def _resampled(self, block: Block) -> Tensor:
        """Systematic resampling of the block's proposals, in random order."""
        x = torch.cat([self.base.draw(block) for _ in range(OVERSAMPLING)])
        edges = self.log_weight(x).to(torch.float64).softmax(0).cumsum(0)
        order = block.uniform().argsort()
        comb = (torch.arange(block.size, dtype=torch.float64) + block.uniform()[0]) / block.size * edges[-1]
        return x[torch.searchsorted(edges[:-1].contiguous(), comb, right=True)][order]

    def ess(self, n: int, noise: Noise) -> float:
        """Effective number (sum w)^2 / sum w^2 of n proposals of the base law."""
        log_w = self.log_weight(self.base.sample(n, noise, "ess")).to(torch.float64)
        return float((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp())


def tilted_by(law: Law, reward: Any, temperature: float) -> TiltedLaw:
    """The tilt of any law by any reward, its normaliser known where `law.log_expectation` is."""
    check_temperature(temperature)
    log_normalizer: float | None
    try:
        log_normalizer = law.log_expectation(reward, temperature)
    except NoClosedForm:
        log_normalizer = None
    bound = max(reward.height, 0.0) / temperature if isinstance(reward, Step) else None
    return TiltedLaw(law, lambda x: reward(x) / temperature, log_normalizer, bound)


def log_expectation_on_line(law: Law, reward: Any, temperature: float) -> float:
    """log E exp(reward / temperature) by quadrature for laws on the line."""
    check_temperature(temperature)
    if law.event_shape != (1,):
        raise NoClosedForm(
            f"log E exp(reward/temperature) of {type(reward).__name__} has no closed form under "
            f"{type(law).__name__} on "
            f"events {law.event_shape}; it has one for Gaussians and mixtures with Quadratic or Step "
            f"rewards, and a "
            "quadrature on the line. Estimate it from samples."
        )
    return TiltedLaw(law, lambda x: reward(x) / temperature).line.log_normalizer
