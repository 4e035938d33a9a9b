"""Pytest plugin: one line at the end of a session that made `assert_unbiased` calls, with their family-wise rate.

It stands outside the package so that loading it loads nothing else: pytest loads it in every session of an environment
that has sdecontrol. What was declared lies in `sdecontrol.testing.ledger`, read only where a test has imported it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import pytest

Entry = tuple[str, float, float, float]  # name, z, z_critical, false_fail_rate

_FROM_WORKERS = pytest.StashKey[list[Entry]]()
_OUTPUT = "sdecontrol_unbiased"


def entries() -> list[Entry]:
    """The records of this process; none where nothing has imported sdecontrol.testing."""
    ledger: Any = sys.modules.get("sdecontrol.testing.ledger")
    return [] if ledger is None else [(r.name, r.z, r.z_critical, r.false_fail_rate) for r in ledger.RECORDS]


def summary(made: Sequence[Entry]) -> str:
    """Any of these fails by chance at most at the sum of their rates, independent or not."""
    name, z, critical, _ = max(made, key=lambda entry: entry[1] / entry[2])
    rate = min(1.0, math.fsum(entry[3] for entry in made))
    calls = f"{len(made)} assert_unbiased call{'s' if len(made) > 1 else ''}"
    largest = f"largest z {z:.2f} (fails beyond {critical:.2f}) in {name}"
    return f"sdecontrol: {calls}, family-wise false-fail rate <= {rate:.1e}, {largest}"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FROM_WORKERS] = []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist hands its records to the controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_OUTPUT] = entries()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    handed = getattr(node, "workeroutput", {}).get(_OUTPUT, [])
    node.config.stash[_FROM_WORKERS] += [tuple(entry) for entry in handed]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    made = config.stash[_FROM_WORKERS] + entries()
    if made:
        terminalreporter.write_line(summary(made))
