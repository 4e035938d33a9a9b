"""Divergences between path laws from simulated paths, exact for the discrete chain up to the error of the mean.

With L = log dQ^{u,nu}/dQ: KL(Q^{u,nu}||Q) = E_u L = KL(nu||p_noise) + E_u sum dt |u|^2 / 2, chi-square = E_u e^L - 1,
Renyi_a = log E_u e^{(a-1) L} / (a - 1), and exp(-Renyi_2) is the fraction of effective samples when Q^{u,nu} is
reweighted from Q. Source: Girsanov's theorem and Tang 2403.06279, (3.12).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined, check
from sdecontrol.estimate import Estimate
from sdecontrol.laws import Law, kl
from sdecontrol.path import Path


@dataclass(frozen=True)
class KLSplit:
    """KL(Q^{u,nu} || Q) in its two parts: the initial law's and the path's."""

    initial: Estimate
    path: Estimate

    @property
    def total(self) -> Estimate:
        total = self.initial + self.path
        return Estimate(total.value, total.stderr, self.path.n, "initial law + mean energy")


def kl_split(path: Path) -> KLSplit:
    """KL(nu || p_noise), exact where closed, and E_u sum_k dt |u|^2 / 2, the mean energy, with its standard error."""
    return KLSplit(path.initial_kl(), Estimate.mean(path.weights.energy, "mean energy"))


def path_kl(path: Path) -> Estimate:
    """KL(Q^{u,nu} || Q) of the chain that made this path: initial law plus mean energy.

    Exact for the discrete chain; O(dt) to the continuum; standard error from the n paths. Never negative.
    Raises: NotDefined when the start was given as states. Source: Tang 2403.06279, (3.12).
    """
    return kl_split(path).total


def reverse_path_kl(path: Path, control: Any, initial: Law | None = None) -> Estimate:
    """KL(Q || Q^{u,nu}) from paths of the *reference*: KL(p_noise || nu) + E_Q sum_k dt |u|^2 / 2 along them.

    Raises: NotDefined when the path was controlled, did not start at p_noise, or kept only its ends.
    """
    if path.controlled or path.initial_law is not path.reference_initial:
        raise NotDefined("the reverse KL is a mean under the reference; simulate without control and initial law first")
    weights = path.replay_weights(control, initial)
    energy = Estimate.mean(weights.energy, "mean energy under the reference")
    if initial is None:
        return energy
    try:
        return Estimate.exact(kl(path.reference_initial, initial)) + energy
    except NoClosedForm:
        return Estimate.mean(
            weights.energy - weights.log_initial, "mean energy and log density ratio under the reference"
        )


def chi_square(path: Path) -> Estimate:
    """chi^2(Q^{u,nu} || Q) = E_u e^L - 1. Heavy-tailed: the error bar is only as good as the effective sample size."""
    return Estimate.mean(path.log_ratio().exp() - 1, "mean likelihood ratio - 1")


def renyi(path: Path, order: float) -> Estimate:
    """Renyi divergence of the given order (> 0, not 1): log E_u e^{(order - 1) L} / (order - 1)."""
    check(order > 0 and order != 1, f"order {order}", "a positive order other than 1")
    return Estimate.log_mean_exp((order - 1) * path.log_ratio(), "log mean power") * (1 / (order - 1))


def effective_sample_size(log_weights: Tensor) -> float:
    """(sum w)^2 / sum w^2 of one set of weights (n,)."""
    return float(effective(log_weights, 0))


def effective(log_weights: Tensor, dim: int) -> Tensor:
    """(sum w)^2 / sum w^2 along `dim`, in the log domain; other axes hold sets of weights of their own."""
    return (2 * log_weights.logsumexp(dim) - (2 * log_weights).logsumexp(dim)).exp()
