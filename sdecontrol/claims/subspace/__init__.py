"""Guo et al., arXiv 2404.14743: gradient guidance on subspaces. Importing registers the claims in the paper's order."""

from sdecontrol.claims.subspace import (  # isort: skip  (the order is that of the paper)
    label_score,
    membership,
    fixed_point,
    refits,
    mistakes,
)

__all__ = ["fixed_point", "label_score", "membership", "mistakes", "refits"]
