"""The statements of the papers as checks.

base verification mutants   what a claim, a verdict and a wrong answer are
entropy/                    the statements of Tang 2403.06279, one a file
conditioning/               those of CTRL 2406.12120 on labels of the problem's process
subspace/                   the statements of Guo et al. 2404.14743, one a file
routes/                     second routes: what the library's answers are compared with, sharing no code with them

Importing this package registers the claims in the order of the papers.
"""

from sdecontrol.claims import entropy, conditioning, subspace  # isort: skip  (the order of the papers)
from sdecontrol.claims.base import (
    Case,
    Claim,
    NotApplicable,
    Report,
    Row,
    claims,
    get_claim,
)
from sdecontrol.claims.verification import iterate_all, verify, verify_all

__all__ = [
    "conditioning",
    "entropy",
    "Case",
    "Claim",
    "NotApplicable",
    "Report",
    "Row",
    "claims",
    "get_claim",
    "iterate_all",
    "subspace",
    "verify",
    "verify_all",
]
