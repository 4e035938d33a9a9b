"""What the sampling assertions of a session declared and saw, one record each.

This module needs the standard library only; the pytest plugin reads it where it has been imported by somebody else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One `assert_unbiased`: what it saw, and what it had declared.

    z: the largest |value - truth| / stderr of its entries; it fails beyond z_critical, which happens to a true
    statement with probability false_fail_rate. A gap of `detectable_gap` is seen with probability 1 - false_pass_rate.
    n: samples behind the estimate; needed: those that would see the gap that was asked for.
    """

    name: str
    verdict: str
    z: float
    z_critical: float
    n: int
    needed: float
    stderr: float
    detectable_gap: float
    false_fail_rate: float
    false_pass_rate: float

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.verdict}, z = {self.z:.2f} (fails beyond {self.z_critical:.2f}, false-fail rate "
            f"{self.false_fail_rate:.1e}), n = {self.n}, sees a gap of {self.detectable_gap:.3g}"
        )


RECORDS: list[Record] = []  # of this process, in the order of the calls


def current_test(default: str) -> str:
    """The id of the running pytest item, else the default."""
    return os.environ.get("PYTEST_CURRENT_TEST", default).rpartition(" (")[0] or default


def record(entry: Record) -> Record:
    """Keep the entry for the session's summary."""
    RECORDS.append(entry)
    return entry
