"""d_TV(p_ft, p_pre) <= sqrt(D) / 2 with D = KL(p_ft || p_pre) + KL(p_pre || p_ft) = (E_ft r - E_pre r) / T: true."""

from numpy import sqrt

from sdecontrol.testing import check_bound, tilts

print(check_bound(lambda p: p.tv, lambda p: sqrt(p.jeffreys) / 2, problems=tilts(), examples=10_000))
