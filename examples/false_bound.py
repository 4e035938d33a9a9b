"""Proposition 3.2 without its normaliser, d_TV(p_ft, p_pre) <= sqrt(E_pre[(r/T) e^(r/T)] / 2): false."""

from numpy import exp, sqrt

from sdecontrol.testing import check_bound, tilts


def right(p):
    x = p.reward / p.temperature
    return sqrt(p.reference @ (x * exp(x)) / 2)


print(check_bound(lambda p: p.tv, right, problems=tilts(), examples=10_000))
