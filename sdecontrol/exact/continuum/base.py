"""Exact answers about the continuous problem: what `problem.exact` returns.

    maximise E r(Y_T) - temperature KL(Q^{u,nu} || Q)  over u, nu:    value v, control u*, the path law Q*.

Everything is in generation time t (0 = noise, horizon = data) and float64. Each attribute is a closed form or
a quadrature with its error stated, and raises NoClosedForm with the reason where there is none.
"""

from __future__ import annotations

from torch import Tensor

from sdecontrol.controls import Control
from sdecontrol.errors import NoClosedForm, NoTilt, ValueBlowUp, check
from sdecontrol.laws import Law


class BlowUp(ValueBlowUp, NoTilt):
    """The value is infinite up to `time`; a fortiori the tilt does not exist."""

    def __init__(self, time: float, tilt: NoTilt | None = None):
        super().__init__(
            f"the value is infinite for every generation time t <= {time:.6g}: there the reward curves "
            "upwards faster than the law of what is ahead decays. Lower the positive curvature of the reward "
            "or raise the temperature.",
            time,
        )
        if tilt is not None:
            self.eigenvalue, self.largest_curvature = tilt.eigenvalue, tilt.largest_curvature


class ContinuumExact:
    """The optimum of one problem: the tilt dQ*/dQ = e^{r(Y_T)/temperature} / C of the reference path law Q.

    This base knows nothing: every attribute raises NoClosedForm with `reason`. A subclass overrides what it
    knows.
    Source: Tang 2403.06279, Lemma 3.1, Props. 3.4-3.6.
    """

    def __init__(self, horizon: float, temperature: float, reason: str):
        self.horizon, self.temperature, self.reason = horizon, temperature, reason

    def _no(self, what: str) -> NoClosedForm:
        return NoClosedForm(f"{what} has no closed form here: {self.reason}")

    def check_existence(self) -> None:
        """Raise ValueBlowUp or NoTilt where the optimum is known not to exist, at little cost."""

    def value(self, t: float, x: Tensor) -> Tensor:
        """v(t, x) = temperature log E_Q[e^{r(Y_T)/temperature} | Y_t = x]: (n, d) -> (n,)."""
        raise self._no("the value")

    @property
    def control(self) -> Control:
        """u* = amplitude(t) grad v(t, x) / temperature, a Control; also control(t, x): (n, d) -> (n, d)."""
        raise self._no("the optimal control")

    @property
    def log_normalizer(self) -> float:
        """log C = log E_{p_pre} e^{r/temperature} (with a running reward: of the whole path)."""
        raise self._no("log C")

    @property
    def log_normalizer_error(self) -> float:
        """Difference of the last two quadrature rules for log C; 0 where it is closed."""
        return 0.0 * self.log_normalizer

    @property
    def optimum(self) -> float:
        """The best objective over controls and initial laws: temperature log C."""
        return self.temperature * self.log_normalizer

    @property
    def path_kl(self) -> float:
        """KL(Q* || Q) = KL(p_ft || p_pre) = kl_initial + energy."""
        raise self._no("KL(Q* || Q)")

    @property
    def kl_initial(self) -> float:
        """KL(nu* || p_noise)."""
        raise self._no("KL(nu* || p_noise)")

    @property
    def energy(self) -> float:
        """E_{Q*} int |u*|^2 dt / 2."""
        return self.path_kl - self.kl_initial

    def marginal(self, t: float) -> Law:
        """Q*_t, the law of Y_t under the optimum."""
        raise self._no("the law of Y_t under the optimum")

    @property
    def initial(self) -> Law:
        """nu* = e^{v(0, .)/temperature} p_noise / C."""
        return self.marginal(0.0)

    @property
    def terminal(self) -> Law:
        """p_ft, the law of Y_T under the optimum; without a running reward e^{r/temperature} p_pre / C."""
        return self.marginal(self.horizon)

    @property
    def reference(self) -> Law:
        """p_pre, the law of Y_T without control: the actual output, not the data law."""
        raise self._no("the output law p_pre")

    @property
    def untilted_terminal(self) -> Law:
        """The law of Y_T under u* when the initial law p_noise is kept: in general not p_ft."""
        raise self._no("the law of Y_T under u* from p_noise")

    @property
    def objective_untilted(self) -> float:
        """The best objective when the initial law p_noise is kept: E_{p_noise} v(0, .) <= optimum."""
        raise self._no("E v(0, .) under p_noise")

    def _check_time(self, t: float) -> float:
        check(0 <= t <= self.horizon, f"t = {t}", f"a generation time in [0, {self.horizon:g}], 0 = noise")
        return float(t)
