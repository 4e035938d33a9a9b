"""Problems that start at a point y_0 and are known through v: what then follows from v/temperature alone (derived).

    log C = v(0, y_0)/temperature,    KL(nu* || p_noise) = 0,    the best objective that keeps the start is the best.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

from torch import Tensor

from sdecontrol.controls import Control, StateControl
from sdecontrol.exact.continuum.base import ContinuumExact
from sdecontrol.laws import Dirac


class FromPoint(ContinuumExact):
    """Answers from `log_growth` and its gradient, the start being a point."""

    start: Dirac

    @abstractmethod
    def log_growth(self, t: float, x: Tensor) -> Tensor:
        """v/temperature: (n, d) -> (n,)."""

    @abstractmethod
    def _control(self, t: float, x: Tensor) -> Tensor:
        """u* = amplitude grad v / temperature: (n, d) -> (n, d)."""

    def value(self, t: float, x: Tensor) -> Tensor:
        return self.temperature * self.log_growth(t, x)

    @cached_property
    def control(self) -> Control:
        return StateControl(self._control).of_the_continuum()

    @cached_property
    def log_normalizer(self) -> float:
        return float(self.log_growth(0.0, self.start.mean[None])[0])

    @property
    def kl_initial(self) -> float:
        return 0.0

    @property
    def objective_untilted(self) -> float:
        return self.optimum
