"""The exact transition of a reverse diffusion whose data law is a mixture of Gaussians: again a mixture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, NotDefined
from sdecontrol.kernels import AffineStep, Kernel, Transition
from sdecontrol.laws import Gaussian, GaussianMixture, Subspace
from sdecontrol.laws.frame import Frame
from sdecontrol.laws.parameters import Coefficients
from sdecontrol.processes import Process, ReverseProcess, State


@dataclass(frozen=True, eq=False)
class MixtureTransition(Transition):
    """x' from x and one vector z of standard normals: `draw` on the law's own coordinates, plain noise across them."""

    calls_model: ClassVar[bool] = False
    gaussian: ClassVar[bool] = False

    draw: Callable[[Tensor, Tensor], Tensor] | None = None
    frame: Frame | None = None
    alphas: tuple[float, float] = (1.0, 1.0)

    @property
    def noiseless(self) -> bool:
        return False

    def mean(self, state: State) -> Tensor:
        """The state itself, which `finish` starts from: the law of the step is a mixture, not mean + std z."""
        return state.x

    def finish(self, process: Process, state: State, mean: Tensor, z: Tensor) -> Tensor:
        x, frame = state.x, self.frame
        assert self.draw is not None
        if frame is None:
            return self.draw(x, z)
        end = frame.decode(self.draw(frame.encode(x, self.alphas[0]), frame.project(z)), self.alphas[1])
        if self.field_scale == 0:
            return end
        across = frame.centre(x, self.alphas[0]) * self.field_scale
        return end + frame.normal(across.add_(z, alpha=self.std))


class ExactPosterior(Kernel):
    """The exact transition law for mixtures of Gaussians, on R^d or on a subspace: no discretisation error.

    X' given X = x is sum_i omega_i(x) N(c_i + A_i x, q S_i' S_i^{-1}), omega the responsibilities of the noised law,
    S_i' = alpha'^2 Sigma_i + h' I, S_i = r^2 S_i' + q I, A_i = r S_i' S_i^{-1} (derived: conditioning of the forward
    chain; one component is ExactTransition). Across a subspace it is N((r h'/h) x, h' q / h).
    One normal a coordinate gives both the component and the point: with u = Phi(z_1) the component is the interval of
    the cumulated omega that u falls in, and the place of u in it, uniform again, is the new Phi(z_1) (derived).
    It calls no model. Its steps are not Gaussian: a control has no meaning on them (NotDefined).
    Raises: NoClosedForm when the score is not exact or the data law no mixture; NotDefined for another process.
    """

    order_weak = 1000  # no error at any order

    def coefficients(self, process: Process, t: float, t_next: float) -> tuple[float, float, float]:
        raise NotDefined("the exact transition of a mixture is no Gaussian step; simulate with it")

    def transition(self, process: Process, t: float, t_next: float) -> MixtureTransition:
        if not isinstance(process, ReverseProcess):
            raise NotDefined(f"{self!r} needs a ReverseProcess; use ExactTransition for an affine diffusion")
        law = process.data_law
        latent = law.latent if isinstance(law, Subspace) else law
        if not isinstance(latent, GaussianMixture):
            better = "ExactTransition" if isinstance(latent, Gaussian) else "SecondOrder or Ancestral"
            raise NoClosedForm(f"{self!r} needs mixture data, saw {law!r}; use {better}")
        schedule, s, s_next = process.schedule, process.noise_level(t), process.noise_level(t_next)
        h, h_next = schedule.h(s), schedule.h(s_next)
        ratio, q = schedule.ratio(s, s_next), schedule.transition_variance(s, s_next)
        alphas = schedule.alpha(s), schedule.alpha(s_next)
        draw = _Conditional(latent, alphas, (h, h_next), ratio, q)
        frame = law.frame if isinstance(law, Subspace) else None
        std = (h_next * q / h) ** 0.5
        return MixtureTransition(t, t_next, ratio * h_next / h, 0.0, std, draw, frame, alphas)

    def affine_step(self, process: Process, t: float, t_next: float) -> AffineStep:
        raise NoClosedForm(f"a step of {self!r} is no matrix; use ExactTransition on Gaussian data")


class _Conditional:
    """(x (n, d), z (n, d)) -> x' (n, d), an exact draw of X' given X = x."""

    def __init__(
        self, law: GaussianMixture, alphas: tuple[float, float], h: tuple[float, float], ratio: float, q: float
    ):
        self.noised = law.noised(alphas[0], h[0])
        self._terms = Coefficients(lambda: self._build(law, alphas, h[1], ratio, q))

    @staticmethod
    def _build(
        law: GaussianMixture, alphas: tuple[float, float], h_next: float, ratio: float, q: float
    ) -> tuple[Tensor, Tensor]:
        """[A_i | R_i] (k, d, 2 d) and c_i (k, d), R_i R_i' the covariance."""
        values = alphas[1] ** 2 * law.spectrum.values + h_next
        kept = values / (ratio**2 * values + q)
        pull = ratio * kept
        root = law.spectrum.matrix((q * kept).sqrt())
        moves = torch.cat([law.spectrum.matrix(pull), root], dim=-1)
        return moves, alphas[1] * law.means - law.spectrum.times(pull, alphas[0] * law.means)

    def __call__(self, x: Tensor, z: Tensor) -> Tensor:
        chosen, first = split(z[:, 0], self.noised.responsibilities(x))
        both = torch.cat([x.mT, first[None], z.mT[1:]])
        moves, offsets = self._terms.like(x)
        out = torch.empty_like(x.mT)
        for i, (move, offset) in enumerate(zip(moves, offsets)):
            rows = (chosen == i).nonzero()[:, 0]
            out[:, rows] = torch.addmm(offset[:, None], move, both[:, rows])
        return out.mT


def split(z: Tensor, masses: Tensor) -> tuple[Tensor, Tensor]:
    """(i, z') of standard normals z (n,): P(i) = masses_i (k, n), and z' is standard normal given i.

    In the precision of z; a float32 z' stays within 5.3 standard deviations.
    """
    edges = masses.cumsum(0)
    u = torch.special.ndtr(z) * edges[-1]
    chosen = (u > edges[:-1]).sum(0)
    place = 1 + (u - edges.gather(0, chosen[None])[0]) / masses.gather(0, chosen[None])[0]
    tail = torch.finfo(z.dtype).eps / 2
    return chosen, torch.special.ndtri(place.clamp(tail, 1 - tail))
