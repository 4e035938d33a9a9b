"""Noise schedules, in the noise level s in [0, horizon]: s = 0 is data, s = horizon is noise."""

from sdecontrol.schedules.base import Schedule, VariancePreserving, convert_level
from sdecontrol.schedules.closed import VE, VP, Cosine, SubVP
from sdecontrol.schedules.tabulated import Tabulated

__all__ = ["VE", "VP", "Cosine", "Schedule", "SubVP", "Tabulated", "VariancePreserving", "convert_level"]
