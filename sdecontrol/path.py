"""The record of a simulation: made by `simulate`, read by everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdecontrol.controls import as_control
from sdecontrol.errors import InfiniteKL, NoClosedForm, NotDefined
from sdecontrol.estimate import Estimate
from sdecontrol.laws import Dirac, Law, kl
from sdecontrol.step import StepView
from sdecontrol.time import ResolvedGrid

if TYPE_CHECKING:
    from sdecontrol.kernels import Transition
    from sdecontrol.processes import Process


@dataclass(frozen=True)
class PathWeights:
    """Log ratio of a path law to the reference, in its parts, each (n,) and float64.

    log dQ^{u,nu}/dQ = log_initial + martingale + energy with martingale = sum_k w_k . xi_k, energy = sum_k |w_k|^2 / 2,
    w_k = sqrt(dt_k) u_k the shift of the noise and xi_k the noise drawn under Q^{u,nu}. Exact for the discrete chain.
    """

    log_initial: Tensor
    martingale: Tensor
    energy: Tensor

    def log_ratio(self) -> Tensor:
        return self.log_initial + self.martingale + self.energy


@dataclass(frozen=True)
class Path:
    """n paths of a (controlled) chain.

    initial, terminal: (n, *event). states: (K + 1, n, *event) and noises z_k = xi_k + sqrt(dt) u_k: (K, n, *event)
    when kept, else None. observed: (K + 1, n, ...) when an observer was given. weights: see `PathWeights`.
    """

    process: Process
    grid: ResolvedGrid
    transitions: list[Transition]
    controlled: bool
    initial_law: Law | None
    reference_initial: Law
    initial: Tensor
    terminal: Tensor
    weights: PathWeights
    states: Tensor | None = None
    noises: Tensor | None = None
    observed: Tensor | None = None

    @property
    def n(self) -> int:
        return len(self.terminal)

    @property
    def group(self) -> Tensor:
        """The condition of each path, (n,): zeros where the process has one."""
        return self.process.group(torch.arange(self.n))

    @property
    def times(self) -> Any:
        return self.grid.times

    def log_ratio(self) -> Tensor:
        """log dQ^{u,nu}/dQ of each path, initial law included: (n,), float64.

        Source: Girsanov's theorem for the chain (Tang 2403.06279, (3.12) is its mean); exact for every Gaussian kernel.
        Raises: NotDefined when the start was given as states, which have no law.
        """
        if self.initial_law is None:
            raise NotDefined(
                "the paths started from given states, not from a law; pass initial=<law> to have a log ratio"
            )
        return self.weights.log_ratio()

    def replay(self, control: Any, initial: Law | None = None) -> Tensor:
        """log dQ^{v,mu}/dQ of another control v (and initial law mu) along these same states: (n,), float64.

        The noise of step k under v is z_k - sqrt(dt) v_k, with z_k the normal that the reference chain would have
        needed to make this path. Raises: NotDefined unless the path was kept (keep="all").
        """
        return self.replay_weights(control, initial).log_ratio()

    def replay_weights(self, control: Any, initial: Law | None = None) -> PathWeights:
        """The parts of `replay`; `energy` is along these states, so its mean is taken under this path's own law."""
        if self.states is None or self.noises is None:
            raise self._kept_ends_only()
        control = as_control(control)
        log_initial = _log_initial(initial, self.reference_initial, self.initial)
        martingale, energy = torch.zeros_like(log_initial), torch.zeros_like(log_initial)
        for k, step in self.views(control.requires_jacobian) if control is not None else ():
            w = control(step) * step.dt**0.5
            energy += half_square(w)
            martingale += inner(w, self.noises[k] - w)
        return PathWeights(log_initial, martingale, energy)

    def views(self, jacobian: bool = False) -> Iterator[tuple[int, StepView]]:
        """(k, step k as a control saw it) along these states, for the steps that a control acts on.

        Raises: NotDefined unless the path was kept (keep="all").
        """
        if self.states is None:
            raise self._kept_ends_only()
        for k, transition in enumerate(self.transitions):
            if not transition.noiseless:
                state = self.process.state(transition.t, self.states[k], jacobian=jacobian)
                yield k, StepView(self.process, transition, k, state)

    def _kept_ends_only(self) -> NotDefined:
        return NotDefined('the path kept only its ends; simulate with keep="all" to replay another control on it')

    def initial_kl(self) -> Estimate:
        """KL(nu || p_noise): closed where both laws allow it, else the mean of the log density ratio."""
        if self.initial_law is None:
            raise NotDefined("the paths started from given states, not from a law; pass initial=<law> to have a KL")
        if self.initial_law is self.reference_initial:
            return Estimate.exact(0.0, "same initial law")
        try:
            return Estimate.exact(kl(self.initial_law, self.reference_initial))
        except NoClosedForm:
            return Estimate.mean(self.weights.log_initial, "mean log density ratio")


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the event of a b, in float64: (n, *event) -> (n,)."""
    return (a * b).flatten(1).sum(1).double()


def half_square(w: Tensor) -> Tensor:
    """|w|^2 / 2 summed over the event, in float64."""
    return (w * w).flatten(1).sum(1).double().mul_(0.5) if not w.requires_grad else inner(w, w) / 2


def _same_point(law: Law, reference: Law) -> bool:
    return isinstance(law, Dirac) and isinstance(reference, Dirac) and torch.equal(law.mean, reference.mean)


def _log_initial(law: Law | None, reference: Law, x: Tensor) -> Tensor:
    """log d nu / d p_noise at the starts, zero when they are the same law."""
    if law is None or law is reference or _same_point(law, reference):
        return torch.zeros(len(x), dtype=torch.float64)
    try:
        ratio = law.log_prob(x) - reference.log_prob(x)
    except NotDefined as error:
        raise InfiniteKL(f"the initial law {law!r} has no density relative to {reference!r}: {error}") from error
    return ratio.double()
