"""The densities of k Gaussian components at n points at once, by matrix products on (k d, n) or (k, n)
arrays.

A form knows log(w_i p_i(x)) up to a term common to the components, s = sum_i omega_i s_i with the
responsibilities omega and the component scores s_i, and the Hessian product H c = sum_i omega_i (H_i c + s_i
(s_i . c)) - s (s . c). Three forms: any covariances, diagonal ones, and one covariance shared by all, where
everything happens on (k, n) arrays.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sdecontrol.laws.parameters import Coefficients
from sdecontrol.laws.spectrum import Spectrum

_WIDE = 48


class Form(ABC):
    @abstractmethod
    def log_joint(self, x: Tensor) -> Tensor:
        """log w_i + log p_i(x) up to a term common to the components: (n, d) -> (k, n).

        The forms with separate covariances leave out -d/2 log(2 pi) only.
        """

    @abstractmethod
    def score(self, x: Tensor) -> Tensor:
        """(n, d) -> (n, d)."""

    @abstractmethod
    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        """(n, d), (n, d) -> (n, d)."""


class Separate(Form):
    """Components with covariances of their own: z_i = W_i (x - mean_i), s_i = -W_i' z_i, H_i = -W_i' W_i."""

    def __init__(self, log_weights: Tensor, means: Tensor, spectrum: Spectrum):
        self.count, self.dim = means.shape
        self._means, self._spectrum = means, spectrum
        self._quadratic = Coefficients(
            lambda: ((log_weights - spectrum.log_det() / 2)[:, None], self._half_sums())
        )
        self._terms = Coefficients(self._build)

    def _build(self) -> tuple[Tensor, Tensor]:
        whitening = self._spectrum.whitening()
        shift = (whitening @ self._means[:, :, None]).reshape(-1, 1)
        return whitening.reshape(-1, self.dim), -shift

    def _whiten(self, x: Tensor) -> Tensor:
        whitening, shift = self._terms.like(x)
        return torch.addmm(shift, whitening, x.mT).view(self.count, self.dim, -1)

    def _scale(self, c: Tensor) -> Tensor:
        """W_i c: (n, d) -> (k, d, n)."""
        return torch.mm(self._terms.like(c)[0], c.mT).view(self.count, self.dim, -1)

    def _pull(self, u: Tensor) -> Tensor:
        """sum_i W_i' u_i: (k, d, n) -> (n, d)."""
        return torch.mm(self._terms.like(u)[0].mT, u.view(self.count * self.dim, -1)).mT

    def _half_sums(self) -> Tensor:
        """(k, k d): -1/2 where a row of (k d, n) belongs to the component; a product is faster than sums in strides."""
        return torch.eye(self.count, dtype=torch.float64).repeat_interleave(self.dim, 1) / -2

    def _log_joint(self, z: Tensor) -> Tensor:
        constants, half_sums = self._quadratic.like(z)
        return torch.addmm(constants, half_sums, z.square().reshape(self.count * self.dim, -1))

    def log_joint(self, x: Tensor) -> Tensor:
        return self._log_joint(self._whiten(x))

    def score(self, x: Tensor) -> Tensor:
        z = self._whiten(x)
        logits = self._log_joint(z)
        mass = (logits - logits.amax(0)).exp()
        return self._pull(z * mass[:, None]) / -mass.sum(0)[:, None]

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        z, scaled = self._whiten(x), self._scale(c)
        omega = self._log_joint(z).softmax(0)[:, None]
        along = (z * scaled).sum(1, keepdim=True)  # -s_i . c
        score_along = (omega * along).sum(0)  # -s . c, (1, n)
        return self._pull(omega * (z * (along - score_along) - scaled))


class SeparateDiagonal(Separate):
    """Diagonal covariances: the whitening is a product coordinate by coordinate."""

    def _build(self) -> tuple[Tensor, Tensor]:
        scale = self._spectrum.values.rsqrt()
        return scale[:, :, None], -(scale * self._means)[:, :, None]

    def _whiten(self, x: Tensor) -> Tensor:
        scale, shift = self._terms.like(x)
        return torch.addcmul(shift, scale, x.mT)

    def _scale(self, c: Tensor) -> Tensor:
        return self._terms.like(c)[0] * c.mT

    def _pull(self, u: Tensor) -> Tensor:
        return (self._terms.like(u)[0] * u).sum(0).mT


class Shared(Form):
    """One covariance for all: about the centre m of the means, with b_i = Sigma^{-1} (mean_i - m),

    log(w_i p_i) = log w_i + b_i . (x - m - (mean_i - m) / 2) + common, s = sum_i omega_i b_i - Sigma^{-1} (x
    - m), H c = -Sigma^{-1} c + sum_i omega_i b_i (b_i . c) - (sum_i omega_i b_i)(sum_i omega_i b_i . c).
    """

    def __init__(self, log_weights: Tensor, means: Tensor, spectrum: Spectrum):
        self._log_weights, self._means, self._spectrum = log_weights, means, spectrum
        self._terms = Coefficients(self._build)

    def _build(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = self._spectrum[0]
        centre = self._means.mean(0)
        gaps = self._means - centre
        inverse = one.values.reciprocal()
        slopes = one.times(inverse, gaps)
        constants = self._log_weights - (slopes * gaps).sum(1) / 2 - slopes @ centre
        precision = inverse if one.diagonal else one.matrix(inverse)
        return slopes, constants[:, None], precision, one.times(inverse, centre)

    def log_joint(self, x: Tensor) -> Tensor:
        slopes, constants, _, _ = self._terms.like(x)
        return torch.addmm(constants, slopes, x.mT)

    def score(self, x: Tensor) -> Tensor:
        slopes, _, precision, shift = self._terms.like(x)
        pull = torch.addmm(shift[:, None], slopes.mT, self.log_joint(x).softmax(0))
        return self._minus_precision(pull.mT, precision, x)

    def score_jvp(self, x: Tensor, c: Tensor) -> Tensor:
        slopes, _, precision, _ = self._terms.like(x)
        omega = self.log_joint(x).softmax(0)
        along = omega * torch.mm(slopes, c.mT)
        pull = torch.mm(slopes.mT, along - omega * along.sum(0)).mT
        return self._minus_precision(pull, precision, c)

    @staticmethod
    def _minus_precision(y: Tensor, precision: Tensor, x: Tensor) -> Tensor:
        if precision.ndim == 1:
            return torch.addcmul(y, x, precision, value=-1)
        return torch.addmm(y.mT, precision, x.mT, alpha=-1).mT


def form_of(log_weights: Tensor, means: Tensor, spectrum: Spectrum, shared: bool) -> Form:
    """The cheapest form; `shared` says that the k covariances are one and the same."""
    if shared:
        return Shared(log_weights, means, spectrum)
    wide = (
        spectrum.diagonal and means.shape[1] >= _WIDE
    )  # in fewer dimensions the matrix product is the faster
    return (SeparateDiagonal if wide else Separate)(log_weights, means, spectrum)
