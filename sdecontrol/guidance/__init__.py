"""Guidance as controls: each law is a shift of the noise, so that its distance from the exact tilt is a number.

`doob` is the optimum; the others replace E[e^{r(X_0)/temperature} | x] by something cheaper. All add and scale.
"""

from sdecontrol.guidance import ascent
from sdecontrol.guidance.ascent import optimise
from sdecontrol.guidance.classifier import classifier
from sdecontrol.guidance.doob import doob
from sdecontrol.guidance.free import cfg
from sdecontrol.guidance.gradient import g_loss, naive, surrogate_loss
from sdecontrol.guidance.reconstruction import dps, exact_variance, pigdm, plug_in

__all__ = [
    "ascent",
    "cfg",
    "classifier",
    "doob",
    "dps",
    "exact_variance",
    "g_loss",
    "naive",
    "optimise",
    "pigdm",
    "plug_in",
    "surrogate_loss",
]
