"""Mixtures whose components are classes: the log probability of a class as a reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from sdecontrol.errors import BadInput, NoClosedForm, check
from sdecontrol.laws.base import Law
from sdecontrol.laws.frame import Frame
from sdecontrol.laws.mixture import GaussianMixture
from sdecontrol.laws.subspace import Subspace
from sdecontrol.rewards import Quadratic, Reward

_UNIT = 1e-12  # how far strength / temperature may be from 1


class ClassPosterior(Reward):
    """r(x) = strength log p(class | x) + extra(x), p(class | x) = sum_{i in class} w_i p_i(x) / sum_i w_i p_i(x).

    At strength = temperature the tilt of the mixture keeps the components of the class, e^{r/T} p = sum_{i in class}
    w_i p_i e^{extra/T}, and E[e^{r/T} | a X + sqrt(h) Z = y] = sum_{i in class} omega_i(y) E_i(y) with the
    responsibilities omega_i and E_i = E_i[e^{extra/T} | y]: closed at every noise level (derived). Other strengths give
    p(class | x)^{strength/T} p, whose normaliser is not closed.
    law: a GaussianMixture, or a Subspace of one, on which x counts by its coordinates B'(x - offset) alone. label: a
    component, counted from 0, or several that are one class. extra: a Quadratic, for "this class, and more of that".
    Raises: BadInput for a law without components, a label that is none of them, or a strength that is not finite.
    Source: the label of CTRL (2406.12120), r = strength log p(y | x); the closed forms are derived.
    """

    def __init__(
        self, law: Law, label: int | Sequence[int], strength: float = 1.0, extra: Quadratic | None = None
    ):  # fmt: skip
        mixture = law.latent if isinstance(law, Subspace) else law
        if not isinstance(mixture, GaussianMixture):
            raise BadInput(
                f"saw a {type(mixture).__name__}; wanted a GaussianMixture, or a Subspace of one, whose components are "
                "the classes. Fit one with sdecontrol.data.fit_labelled."
            )
        self.mixture, self.dim = mixture, law.dim
        self.members = _members(label, len(mixture.log_weights))
        check(math.isfinite(strength), f"strength = {strength}", "a finite number")
        check(extra is None or (isinstance(extra, Quadratic) and extra.dim == law.dim), f"extra = {extra!r}",
              f"None or a Quadratic on vectors of dimension {law.dim}")  # fmt: skip
        self.strength, self.extra = float(strength), extra
        self._law, self._frame = law, law.frame if isinstance(law, Subspace) else None

    @cached_property
    def kept(self) -> GaussianMixture:
        """sum_{i in class} w_i p_i / p(class), on the mixture's own coordinates."""
        m, rows = self.mixture, list(self.members)
        return GaussianMixture.from_spectrum(
            m.log_weights[rows].log_softmax(0), m.means[rows], m.spectrum[rows], len(rows) == 1, m.dtype
        )

    @cached_property
    def log_mass(self) -> float:
        """log p(class), the weight of the class in the mixture."""
        return float(self.mixture.log_weights[list(self.members)].logsumexp(0))

    def log_probability(self, x: Tensor) -> Tensor:
        """log p(class | x): (n, d) -> (n,), float64."""
        z = x if self._frame is None else self._frame.encode(x)
        return self.log_mass + self.kept.log_prob(z) - self.mixture.log_prob(z)

    def __call__(self, x: Tensor) -> Tensor:
        value = self.strength * self.log_probability(x).to(x)
        return value if self.extra is None else value + self.extra(x)

    def gradient(self, x: Tensor) -> Tensor:
        """strength (score of the class - score of the mixture) + grad extra."""
        z = x if self._frame is None else self._frame.encode(x)
        slope = self.strength * (self.kept.score(z) - self.mixture.score(z))
        slope = slope if self._frame is None else slope @ self._frame.basis.to(slope).mT
        return slope if self.extra is None else slope + self.extra.gradient(x)

    def restrict(self, basis: Tensor, offset: Tensor) -> ClassPosterior:
        """The reward on the latent coordinates of its own subspace. Raises NoClosedForm on another one."""
        if self._frame is None or not _same_frame(self._frame, basis, offset):
            raise NoClosedForm("log p(class | x) is a reward of latent coordinates on the subspace of its mixture only")
        extra = None if self.extra is None else self.extra.restrict(basis, offset)
        return ClassPosterior(self.mixture, self.members, self.strength, extra)

    def log_expectation(self, mean: Tensor, covariance: Tensor, temperature: float) -> Tensor:
        """Raises NoClosedForm: a power of p(class | X) has no closed mean under a Gaussian."""
        raise NoClosedForm("E p(class | X)^(strength/temperature) has no closed form under a Gaussian; use plug_in")

    def is_bayes(self, law: Law, temperature: float) -> bool:
        """Whether e^{r/temperature} is the posterior of the class under `law` itself, at the first power."""
        return same_law(law, self._law) and abs(self.strength / temperature - 1) <= _UNIT

    def closed_tilt(self, law: Law, temperature: float) -> tuple[Law, float] | None:
        if self._frame is not None or not self.is_bayes(law, temperature):
            return None
        if self.extra is None:
            return self.kept, self.log_mass
        return self.kept.tilt(self.extra, temperature), self.log_mass + self.kept.log_expectation(
            self.extra, temperature
        )


def _members(label: int | Sequence[int], count: int) -> tuple[int, ...]:
    """The components of a class. Raises BadInput."""
    members = (label,) if isinstance(label, int) else tuple(label)
    known = all(isinstance(i, int) and 0 <= i < count for i in members)
    check(known and 0 < len(set(members)) == len(members), f"label = {label!r}",
          f"a class from 0 to {count - 1}, the components of the mixture, or several different ones")  # fmt: skip
    return members


def same_law(law: Law, other: Law) -> bool:
    """Whether two laws are one object, or mixtures (or Subspaces of them) with the same parameters bit for bit."""
    if law is other:
        return True
    if isinstance(law, Subspace) and isinstance(other, Subspace):
        return _same_frame(law.frame, other.basis, other.offset) and same_law(law.latent, other.latent)
    if not isinstance(law, GaussianMixture) or not isinstance(other, GaussianMixture):
        return False
    pairs = ((m.log_weights, m.means, m.covariances) for m in (law, other))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(*pairs))


def _same_frame(frame: Frame, basis: Tensor, offset: Tensor) -> bool:
    return frame.basis.shape == basis.shape and torch.equal(frame.basis, basis) and torch.equal(frame.offset, offset)
