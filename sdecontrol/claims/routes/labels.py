"""Labels of a problem's process and their Bayes rule in plain numpy: what the CTRL claims compare the library with.

A claim about conditioning needs a label, so it makes one for the process of the problem at hand (the problem's own
reward plays no part): y = w . x + noise along the widest direction of the data, and for mixtures the component that x
comes from. The library tilts by a matrix; here a label is a scalar measurement: powers of its density are densities
again, expectations are one-dimensional Gaussians, and tilting is Kalman's update.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from scipy.integrate import solve_ivp

from sdecontrol.claims.base import NotApplicable
from sdecontrol.claims.routes.latent import Latent
from sdecontrol.claims.routes.plain import Cloud, GaussianSum
from sdecontrol.claims.routes.posterior import Clean, gaussian
from sdecontrol.claims.routes.quadrature import LOG_2PI, SPACING, Array, log_sum_exp
from sdecontrol.laws import ClassPosterior, Dirac, Subspace
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel, Quadratic

if TYPE_CHECKING:
    from sdecontrol.claims.base import Case
    from sdecontrol.problems.base import Problem

_RTOL = 1e-11  # of the transition of a process that is not a reverse diffusion
AWAY, BLUR = 1.0, 0.7  # of the label: how far from the mean, and its noise, in standard deviations of w . x


@dataclass(frozen=True, eq=False)
class LinearLabel:
    """p(y|x) = N(target; w . z, noise^2) on latent coordinates z, w a unit vector (d,)."""

    subject: Subject
    w: Array
    target: float
    noise: float
    title = "label y = w.x + noise"

    def reward(self, strength: float) -> GaussianLabel:
        """strength log p(y | x) on the whole space, as the library takes it."""
        frame = self.subject.latent.frame
        direction = frame.basis @ self.w
        return GaussianLabel(direction, self.target + float(direction @ frame.offset), self.noise, strength)

    @cached_property
    def other(self) -> LinearLabel:
        """A label on the other side of the mean."""
        centre = self.w @ self.subject.reference.mean
        return replace(self, target=float(centre - 0.6 * (self.target - centre)))

    def log_likelihood(self, z: Array, strength: float) -> Array:
        """strength log p(y | z): (n, d) -> (n,)."""
        return strength * (-(((self.target - z @ self.w) / self.noise) ** 2) / 2 - math.log(self.noise) - LOG_2PI / 2)

    def _blurred(self, strength: float) -> tuple[float, float]:
        """p^strength = e^c N(target; w . z, variance): (variance, c)."""
        variance = self.noise**2 / strength
        return variance, (1 - strength) * (math.log(self.noise) + LOG_2PI / 2) - math.log(strength) / 2

    def log_h(self, t: float, z: Array, strength: float) -> Array:
        """log E[p(y | Y_T)^strength | Y_t = z]: (n, d) -> (n,), by the law of w . Y_T."""
        clean, (variance, constant) = self.subject.clean(t), self._blurred(strength)
        means = clean.means(z) @ self.w
        spread = np.einsum("i,kij,j->k", self.w, clean.covariances, self.w)[:, None] + variance
        log_p = -((self.target - means) ** 2) / (2 * spread) - np.log(spread) / 2 - LOG_2PI / 2
        return constant + log_sum_exp(clean.log_omega(z) + log_p, axis=0)

    @staticmethod
    def telling(log_h: Array) -> int:
        """Which of several states to draw from: where the label is likeliest, so that weights spread little."""
        return int(log_h.argmax())

    def tilt(self, law: GaussianSum, strength: float) -> tuple[GaussianSum, float]:
        """law p^strength, normalised, and log E_law p^strength: Kalman's update of every term."""
        variance, constant = self._blurred(strength)
        clouds = []
        for cloud in law.clouds:
            spread = float(self.w @ cloud.covariance @ self.w) + variance
            gain, miss = cloud.covariance @ self.w / spread, self.target - cloud.means @ self.w
            log_p = cloud.log_weights - miss**2 / (2 * spread) - (math.log(spread) + LOG_2PI) / 2
            moved = cloud.covariance - spread * np.outer(gain, gain)
            clouds.append(Cloud(log_p, cloud.means + miss[:, None] * gain, (moved + moved.T) / 2))
        total = float(log_sum_exp(np.concatenate([c.log_weights for c in clouds])))
        tilted = GaussianSum(tuple(Cloud(c.log_weights - total, c.means, c.covariance) for c in clouds))
        return tilted, total + constant


@dataclass(frozen=True, eq=False)
class Component:
    """p(y|x) = P(component | x) of a mixture, at strength 1."""

    subject: Subject
    index: int
    title = "component of the mixture as label"

    def reward(self, strength: float) -> ClassPosterior:
        law = self.subject.latent.process.data_law  # type: ignore[attr-defined]
        return ClassPosterior(law, self.index, strength)

    @cached_property
    def other(self) -> Component:
        return replace(self, index=(self.index + 1) % len(self.subject.latent.known_data.clouds))

    def log_likelihood(self, z: Array, strength: float) -> Array:
        log_terms = np.hstack([c.log_terms(z) for c in self.subject.latent.known_data.clouds])
        return strength * (log_terms[:, self.index] - log_sum_exp(log_terms, axis=1))

    def log_h(self, t: float, z: Array, strength: float) -> Array:
        """The log responsibility at the level of t."""
        return self.subject.clean(t).log_omega(z)[self.index]

    @staticmethod
    def telling(log_h: Array) -> int:
        """Where the component is about as likely as not."""
        return int(np.abs(log_h + math.log(2)).argmin())

    def tilt(self, law: GaussianSum, strength: float) -> tuple[GaussianSum, float]:
        """`law` the reference output, one cloud a component: the chosen one, and the log of its mass."""
        cloud = law.clouds[self.index]
        total = float(log_sum_exp(cloud.log_weights))
        return GaussianSum((Cloud(cloud.log_weights - total, cloud.means, cloud.covariance),)), total


Label = LinearLabel | Component


@dataclass(frozen=True, eq=False)
class Joint:
    """Two labels that are independent given x, each at its own strength times `strength`."""

    one: LinearLabel
    two: LinearLabel
    strengths: tuple[float, float]
    title = "two labels"

    def reward(self, strength: float) -> Quadratic:
        a, b = (part.reward(strength * g) for part, g in zip((self.one, self.two), self.strengths))
        return Quadratic(a.linear + b.linear, a.curvature + b.curvature, a.constant + b.constant)

    @cached_property
    def other(self) -> Joint:
        return replace(self, two=self.two.other)

    def tilt(self, law: GaussianSum, strength: float) -> tuple[GaussianSum, float]:
        """One label after the other."""
        first, one = self.one.tilt(law, strength * self.strengths[0])
        second, two = self.two.tilt(first, strength * self.strengths[1])
        return second, one + two


class Subject:
    """The labels of one process, with its posterior and output law by the second route."""

    def __init__(self, problem: Problem):
        self.problem, self.latent = problem, Latent(problem)
        self._problems: dict[tuple[Any, float], Problem] = {}
        self._clean: dict[float, Clean] = {}
        self._steps: dict[tuple[float, float], Clean] = {}

    @cached_property
    def linear(self) -> LinearLabel:
        law = self.reference
        data = self.latent.data or law
        vectors = np.linalg.eigh(data.covariance)[1]
        w = vectors[:, -1] * (1.0 if vectors[:, -1].sum() >= 0 else -1.0)
        spread = math.sqrt(float(w @ law.covariance @ w))
        return LinearLabel(self, w, float(w @ law.mean) + AWAY * spread, BLUR * spread)

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        data = self.latent.data
        if data is None or len(data.clouds) == 1:
            return (self.linear,)
        return self.linear, Component(self, 1)

    @cached_property
    def joint(self) -> Joint:
        """A second measurement, of the narrowest direction, of the other side: strengths 1 and 1/2."""
        law = self.reference
        w = np.linalg.eigh(law.covariance)[1][:, 0]
        spread = math.sqrt(float(w @ law.covariance @ w))
        return Joint(self.linear, LinearLabel(self, w, float(w @ law.mean) - AWAY * spread, BLUR * spread), (1.0, 0.5))

    def exact(self, label: Any, strength: float) -> Any:
        """The library's answers to the problem with the reward strength log p(y|x), at temperature 1."""
        return self.problem_of(label, strength).exact

    def problem_of(self, label: Any, strength: float) -> Problem:
        """The process of the problem with that reward instead of its own, made once."""
        key = label, strength
        if key not in self._problems:
            reward, process, name = label.reward(strength), self.problem.process, self.problem.name
            self._problems[key] = type(self.problem)(process, reward, 1.0, name=name)
        return self._problems[key]

    def clean(self, t: float) -> Clean:
        """The law of Y_T given Y_t."""
        if t not in self._clean:
            known = self.latent.data is not None
            self._clean[t] = self.latent.clean(t) if known else self.step(t, self.latent.process.horizon)
        return self._clean[t]

    def marginal(self, t: float) -> GaussianSum:
        """Q_t in latent coordinates, t > 0; also from a point, the start of CTRL."""
        latent, start = self.latent, self.latent.process.initial_law(0.0)
        if isinstance(start, Dirac):
            point = latent.encode(0.0, start.mean[None].numpy())
            return self.step(0.0, t).given(point, np.zeros(1))
        if latent.data is not None:
            return latent.reference(t)
        return self.step(0.0, t).pushed(*latent.gaussian_start, SPACING)

    def moments(self, t: float) -> tuple[Array, Array]:
        """Mean and covariance of Q_t, from t = 0 on."""
        if t > 0:
            law = self.marginal(t)
            return law.mean, law.covariance
        start = self.latent.process.initial_law(0.0)
        return self.latent.moments(0.0, start)

    def step(self, t: float, t_next: float) -> Clean:
        """Y_{t_next} given Y_t."""
        if (t, t_next) not in self._steps:
            self._steps[t, t_next] = self._step(t, t_next)
        return self._steps[t, t_next]

    def _step(self, t: float, t_next: float) -> Clean:
        process, data = self.latent.process, self.latent.data
        if data is None:
            return transition(self.latent, t, t_next)
        assert isinstance(process, ReverseProcess)
        s, s_next = process.noise_level(t), process.noise_level(t_next)
        ratio, q = process.schedule.ratio(s, s_next), process.schedule.transition_variance(s, s_next)
        return Clean.of(data if s_next == 0 else self.latent.noised(data, t_next), ratio, q)

    @cached_property
    def reference(self) -> GaussianSum:
        """p_pre in latent coordinates."""
        return self.marginal(self.latent.process.horizon)

    def points(self, t: float, n: int, rng: np.random.Generator) -> Array:
        """n latent states at time t, one and a half times as far out as the process: (n, d)."""
        if self.latent.data is not None:
            return self.latent.encode(t, self.latent.draw(t, n, rng, widen=1.5))
        law = self.marginal(t)
        return law.mean + 1.5 * (law.draw(n, rng) - law.mean)


_KEPT: WeakKeyDictionary[Any, Subject] = WeakKeyDictionary()


def labels_of(problem: Problem) -> Subject:
    """The labels of the problem's process, kept as long as the problem."""
    if problem not in _KEPT:
        _KEPT[problem] = Subject(problem)
    return _KEPT[problem]


def subject_of(case: Case) -> Subject:
    """The labels of the case's process."""
    return labels_of(case.problem)


def answers_of(case: Case, label: Any, strength: float) -> Any:
    """The library's answers to the label problem, or the wrong ones that stand in their place in `case.answers`."""
    given = getattr(case.answers, "conditional", None)
    return subject_of(case).exact(label, strength) if given is None else given(label, strength)


def transition(latent: Latent, start: float, end: float) -> Clean:
    """Y_end given Y_start of an affine process by its moment equations (scipy): one Gaussian, affine in y."""
    d, sde = latent.dim, latent.sde
    if d > 8:
        raise NotApplicable("the transition of a general affine process is integrated up to eight dimensions")

    def rate(t: float, y: Array) -> Array:
        gain, offset, spread = y[: d * d].reshape(d, d), y[d * d : d * d + d], y[d * d + d :].reshape(d, d)
        a, b = sde.drift(t)
        grown = a @ spread + spread @ a.T + sde.amplitude(t) ** 2 * np.eye(d)
        return np.concatenate([(a @ gain).ravel(), a @ offset + b, grown.ravel()])

    y0 = np.concatenate([np.eye(d).ravel(), np.zeros(d + d * d)])
    y = solve_ivp(rate, (start, end), y0, method="DOP853", rtol=_RTOL, atol=1e-14).y[:, -1]
    spread = y[d * d + d :].reshape(1, d, d)
    return Clean(gaussian(np.zeros(d), np.eye(d)), y[None, d * d : d * d + d], y[: d * d].reshape(1, d, d), spread)


def log_density(law: Any, latent: Latent, z: Array) -> Array:
    """log density of one of the library's laws at the horizon, in latent coordinates: (n, d) -> (n,)."""
    x = latent.lift(latent.process.horizon, z)
    inner, points = (law.latent, law.encode(x)) if isinstance(law, Subspace) else (law, x)
    return inner.log_prob(points).numpy()
