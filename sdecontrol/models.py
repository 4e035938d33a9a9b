"""Score models: what drives a reverse diffusion. One boundary where networks of any convention become a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdecontrol.errors import NoClosedForm, check
from sdecontrol.laws import Law
from sdecontrol.schedules import Schedule

Network = Callable[[Tensor, float], Tensor]
_CACHED_ELEMENTS = 2**24  # float64 entries of noised laws kept for reuse by the blocks of paths


class ScoreModel(ABC):
    """score(x, s) = gradient of the log density (exact or approximate) of the noised law at level s."""

    event_shape: tuple[int, ...] | None
    dtype: torch.dtype = torch.float32
    elementwise = False
    schedule: Schedule

    @abstractmethod
    def score(self, x: Tensor, s: float, graph: bool = False) -> tuple[Tensor, Tensor]:
        """(score, x): scores (n, *event) and the states they were computed at; with `graph` x carries a gradient."""

    @abstractmethod
    def score_vjp(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        """c times the Jacobian of the score, (n, *event), using the call that gave `score`."""

    def pullback(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        """c times the Jacobian of x0_hat = (x + h score) / alpha, (n, *event), using the call that gave `score`."""
        return (c + self.schedule.h(s) * self.score_vjp(x, s, score, c)) / self.schedule.alpha(s)

    def affine(self, s: float) -> tuple[Tensor, Tensor]:
        """(F, b) with score = F x + b in float64. Raises NoClosedForm when the score is not affine."""
        raise NoClosedForm("the score is not affine in x")

    def bind(self, schedule: Schedule) -> ScoreModel:
        """This model on a schedule; itself where it knows its own."""
        check(self.schedule == schedule, f"a score model on {self.schedule!r}", f"one on {schedule!r}")
        return self


class ExactScore(ScoreModel):
    """The exact score of the noised law of `law`: gradient of log of the law of alpha X + sqrt(h) Z."""

    elementwise = True

    def __init__(self, law: Law, schedule: Schedule):
        self.law, self.schedule, self.event_shape, self.dtype = law, schedule, law.event_shape, law.dtype
        size = int(torch.Size(law.event_shape).numel())
        self._keep = max(4, _CACHED_ELEMENTS // min(size**2, size * 64))
        self._levels: OrderedDict[float, Law] = OrderedDict()

    def noised(self, s: float) -> Law:
        """The noised law at level s; kept, since every block of paths asks for the same levels."""
        law = self._levels.get(s)
        if law is None:
            law = self._levels[s] = self.law.noised(self.schedule.alpha(s), self.schedule.h(s))
            while len(self._levels) > self._keep:
                self._levels.popitem(last=False)
        return law

    def score(self, x: Tensor, s: float, graph: bool = False) -> tuple[Tensor, Tensor]:
        return self.noised(s).score(x), x

    def score_vjp(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        return self.noised(s).score_jvp(x, c)  # the Hessian is symmetric

    def pullback(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        return self.noised(s).denoised_jvp(x, self.schedule.alpha(s), self.schedule.h(s), c)

    def affine(self, s: float) -> tuple[Tensor, Tensor]:
        law = self.noised(s)
        if not law.affine_score:
            raise NoClosedForm(f"the score of a noised {type(self.law).__name__} is not affine in x")
        zero = torch.zeros(1, law.event_shape[0], dtype=torch.float64)
        eye = torch.eye(law.event_shape[0], dtype=torch.float64)
        return law.score_jvp(zero.expand_as(eye), eye), law.score(zero)[0]


class PerturbedScore(ScoreModel):
    """An imperfect score with a known error: scale * (exact score of law) + bias."""

    elementwise = True

    def __init__(self, law: Law, scale: float = 1.0, bias: Any = 0.0):
        check(isinstance(law, Law), f"a {type(law).__name__}", "a law whose exact score is perturbed")
        self.law, self.scale, self.event_shape, self.dtype = law, float(scale), law.event_shape, law.dtype
        self.bias = torch.as_tensor(bias, dtype=torch.float64) * torch.ones(law.event_shape, dtype=torch.float64)
        check(
            bool(torch.isfinite(self.bias).all()) and abs(self.scale) < float("inf"),
            "a scale or bias that is not finite",
            "finite numbers",
        )

    def bind(self, schedule: Schedule) -> PerturbedScore:
        bound = PerturbedScore(self.law, self.scale, self.bias)
        bound.schedule, bound.exact = schedule, ExactScore(self.law, schedule)
        return bound

    exact: ExactScore

    def score(self, x: Tensor, s: float, graph: bool = False) -> tuple[Tensor, Tensor]:
        return self.scale * self.exact.score(x, s)[0] + self.bias.to(x), x

    def score_vjp(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        return self.scale * self.exact.score_vjp(x, s, score, c)

    def affine(self, s: float) -> tuple[Tensor, Tensor]:
        matrix, offset = self.exact.affine(s)
        return self.scale * matrix, self.scale * offset + self.bias


class NetworkModel(ScoreModel):
    """A network f(x (n, *event), s float) -> (n, *event) in one of three conventions."""

    def __init__(self, f: Network, event_shape: Any = None):
        check(callable(f), f"a {type(f).__name__}", "a network or function f(x, s)")
        self.f, self.event_shape = f, tuple(event_shape) if event_shape is not None else None

    def bind(self, schedule: Schedule) -> NetworkModel:
        bound = type(self)(self.f, self.event_shape)
        bound.schedule = schedule
        return bound

    @abstractmethod
    def to_score(self, output: Tensor, x: Tensor, s: Any) -> Tensor:
        """The network's output as a score; s a number, or a float64 tensor that broadcasts with x."""

    def score(self, x: Tensor, s: float, graph: bool = False) -> tuple[Tensor, Tensor]:
        if not graph:
            return self._checked(x, s), x
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return self._checked(x, s), x

    def _checked(self, x: Tensor, s: float) -> Tensor:
        output = self.f(x, s)
        check(
            output.shape == x.shape, f"a network output of shape {tuple(output.shape)}", f"{tuple(x.shape)}, that of x"
        )
        return self.to_score(output, x, s)

    def score_vjp(self, x: Tensor, s: float, score: Tensor, c: Tensor) -> Tensor:
        if not score.requires_grad:
            score, x = self.score(x, s, graph=True)
        return torch.autograd.grad(score, x, c, retain_graph=True, create_graph=torch.is_grad_enabled())[0]


class Score(NetworkModel):
    """A network that predicts the score."""

    def to_score(self, output: Tensor, x: Tensor, s: Any) -> Tensor:
        return output


class NoisePrediction(NetworkModel):
    """A network that predicts the noise eps in x_s = alpha x_0 + sqrt(h) eps: score = -eps / sqrt(h)."""

    def to_score(self, output: Tensor, x: Tensor, s: Any) -> Tensor:
        return -output / self.schedule.sigma(s)


class Denoiser(NetworkModel):
    """A network that predicts the clean x_0: score = (alpha x0_hat - x) / h."""

    def to_score(self, output: Tensor, x: Tensor, s: Any) -> Tensor:
        return (self.schedule.alpha(s) * output - x) / self.schedule.h(s)


class VPrediction(NetworkModel):
    """A network that predicts v = alpha eps - sqrt(h) x_0, h = 1 - alpha^2: score = -x - (alpha / sqrt(h)) v.

    Source: 2202.00512, its v-parametrisation; eps = alpha v + sqrt(h) x for a variance-preserving schedule (derived).
    """

    def to_score(self, output: Tensor, x: Tensor, s: Any) -> Tensor:
        return -x - output * (self.schedule.alpha(s) / self.schedule.sigma(s))


def as_score_model(model: Any, schedule: Schedule) -> ScoreModel:
    """A law, a score model or a wrapped network, bound to a schedule; never guessed."""
    if isinstance(model, Law):
        return ExactScore(model, schedule)
    check(
        isinstance(model, ScoreModel),
        f"a model of type {type(model).__name__}",
        "a law, sc.PerturbedScore(law), sc.Score(f), sc.NoisePrediction(f), sc.VPrediction(f) or sc.Denoiser(f)",
        "A bare network's convention is not guessed: wrap it.",
    )
    return model.bind(schedule)
