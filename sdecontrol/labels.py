"""The label of a Gaussian mixture: which component a point comes from, as a reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws import GaussianMixture, Law, Subspace
from sdecontrol.laws.frame import Frame
from sdecontrol.laws.parameters import apply
from sdecontrol.rewards import Reward, _number


class ComponentLabel(Reward):
    """r(x) = strength log P(I in components | X = x), X ~ law a Gaussian mixture and I its component.

    On a Subspace of a mixture the label is read from the latent coordinates of x. At strength/temperature = 1 the tilt
    of the mixture keeps the chosen components: the exact label posterior.
    Shapes: components an index or a sequence of indices, x (n, d) -> (n,). Source: CTRL 2406.12120, (2), with the label
    "drawn from these components"; its closed form is derived.
    Raises: BadInput for a law that is not a mixture, and for indices that are empty, repeated, out of range, or all.
    """

    def __init__(self, law: Law, components: int | Sequence[int], strength: float = 1.0):
        self.frame: Frame | None = law.frame if isinstance(law, Subspace) else None
        mixture = law.latent if isinstance(law, Subspace) else law
        if not isinstance(mixture, GaussianMixture):
            check(False, f"a {type(mixture).__name__}", "a GaussianMixture, or a Subspace of one")
        assert isinstance(mixture, GaussianMixture)
        self.mixture, self.dim = mixture, law.dim
        self.strength = _number("strength", strength)
        self.components = _indices(components, len(mixture.log_weights))
        kept = list(self.components)
        self.subset = GaussianMixture.from_spectrum(
            mixture.log_weights[kept].log_softmax(0), mixture.means[kept], mixture.spectrum[kept], False
        )

    def latent(self, x: Tensor) -> Tensor:
        """The coordinates that the label is read from: (n, D) -> (n, d)."""
        return x if self.frame is None else self.frame.encode(x)

    def __call__(self, x: Tensor) -> Tensor:
        log_p = self.mixture.log_responsibilities(self.latent(x))[:, list(self.components)].logsumexp(1)
        return (self.strength * log_p).to(x.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """strength (score of the chosen components - score of the mixture)."""
        u = self.latent(x)
        slope = self.strength * (self.subset.score(u) - self.mixture.score(u))
        return slope if self.frame is None else apply(self.frame.basis.to(slope), slope)

    def restrict(self, basis: Tensor, offset: Tensor) -> ComponentLabel:
        """Closed on the mixture's own subspace only; NoClosedForm elsewhere."""
        own = self.frame is not None and torch.equal(self.frame.basis, basis) and torch.equal(self.frame.offset, offset)
        if not own:
            raise NoClosedForm("the component label on another subspace than its mixture's is not a component label")
        return ComponentLabel(self.mixture, self.components, self.strength)

    def log_expectation(self, mean: Tensor, covariance: Tensor, temperature: float) -> Tensor:
        raise NoClosedForm("E p(c|X)^(strength/temperature) of one Gaussian is not closed for a component label")


def _indices(components: int | Sequence[int], count: int) -> tuple[int, ...]:
    chosen = (components,) if isinstance(components, int) else tuple(int(i) for i in components)
    valid = bool(chosen) and len(set(chosen)) == len(chosen) < count and all(0 <= i < count for i in chosen)
    check(valid, f"components {components!r}", f"different indices in 0 .. {count - 1}, at least one and not all")
    return chosen
