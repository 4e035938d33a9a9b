"""Tools for tests of your own statements: strategies of problems, assertions with declared error, counter-examples.

    from sdecontrol.testing import check_bound, tilts
    print(check_bound(left, right, problems=tilts(), examples=10_000))     # left(p) <= right(p) for every tilt p

Needs hypothesis, which nothing else in the library does. See docs/testing.md.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401  asked for here, so that the error below comes first
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ModuleNotFoundError(
        "sdecontrol.testing saw no hypothesis; wanted it for its strategies and its shrinking. "
        "Install it with `pip install hypothesis`.",
        name="hypothesis",
    ) from error

from sdecontrol.testing.assertions import Inconclusive, assert_bound, assert_identity, assert_unbiased
from sdecontrol.testing.counterexample import CounterExample, Search, check_bound, check_identity, find_counterexample
from sdecontrol.testing.ledger import Record
from sdecontrol.testing.literals import literal
from sdecontrol.testing.problem_strategies import affine_controls, grids, kernels, problems, schedules, tilts
from sdecontrol.testing.snippet import snippet
from sdecontrol.testing.statements import Bound, Identity, Predicate, Statement
from sdecontrol.testing.strategies import (
    gaussians,
    laws,
    mixtures,
    rewards_admitting_a_tilt,
    spd_matrices,
    subspace_laws,
    temperatures,
    vectors,
)
from sdecontrol.testing.tilts import StaticTilt

__all__ = [
    "Bound",
    "CounterExample",
    "Identity",
    "Inconclusive",
    "Predicate",
    "Record",
    "Search",
    "Statement",
    "StaticTilt",
    "affine_controls",
    "assert_bound",
    "assert_identity",
    "assert_unbiased",
    "check_bound",
    "check_identity",
    "find_counterexample",
    "gaussians",
    "grids",
    "kernels",
    "laws",
    "literal",
    "mixtures",
    "problems",
    "rewards_admitting_a_tilt",
    "schedules",
    "snippet",
    "spd_matrices",
    "subspace_laws",
    "temperatures",
    "tilts",
    "vectors",
]
