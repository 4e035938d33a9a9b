"""The statements of the papers as checks; importing this package registers them in the order of the papers."""

from sdecontrol.claims.base import (
    Case,
    Claim,
    NotApplicable,
    Report,
    Row,
    claims,
    get_claim,
    iterate_all,
    verify,
    verify_all,
)

__all__ = [
    "Case",
    "Claim",
    "NotApplicable",
    "Report",
    "Row",
    "claims",
    "get_claim",
    "iterate_all",
    "verify",
    "verify_all",
]
