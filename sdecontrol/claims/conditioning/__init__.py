"""Zhao et al. (CTRL), arXiv 2406.12120: conditioning as control. Importing registers the claims in the paper's order.

Each claim makes its own labels for the process of the problem at hand (`claims.routes.labels`); the problem's reward
plays no part, and its initial law is tilted as the label asks.
"""

from sdecontrol.claims.conditioning import (  # isort: skip  (the order is that of the paper)
    classifier_drift,
    power_drift,
    objective,
    soft_value,
    target,
    mutants,
)

__all__ = ["classifier_drift", "mutants", "objective", "power_drift", "soft_value", "target"]
