"""How numbers read, the same in the terminal, in markdown and in HTML."""

from __future__ import annotations

import math

from sdecontrol.claims import Row
from sdecontrol.estimate import Estimate

Estimates = dict[str, Estimate]
SIGNS = {"holds": "✓", "violated": "✗", "inconclusive": "?", "not applicable": "–"}


BIASED = "†"
BIASED_MEANS = f"{BIASED} z of what is left of the difference after an allowance for discretisation bias (see the note)"


def allows_for_bias(row: Row) -> bool:
    """Whether z is smaller than the difference in standard errors: part of it was put down to discretisation."""
    return row.z is not None and row.error > 0 and abs(row.z) < (1 - 1e-6) * abs(row.left - row.right) / row.error


def agreement(row: Row) -> str:
    """Digits for a deterministic comparison, z for a stochastic one, marked where bias was allowed for."""
    if row.z is not None:
        return f"z = {row.z:+.2f}" + (f" {BIASED}" if allows_for_bias(row) else "")
    if row.digits is not None:
        return f"{row.digits:.1f} digits"
    return ""


def value(number: float, significant: int = 9) -> str:
    return f"{number:.{significant}g}"


def error(number: float) -> str:
    """A tolerance or standard error, two significant digits; empty when there is none."""
    return "" if number is None or math.isnan(number) or number == 0 else f"± {number:.1e}"


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def estimate(e: Estimate | None) -> str:
    """Value ± standard error, the value to the error's second digit; a dash where there is none."""
    if e is None:
        return "–"
    if not e.stderr or not math.isfinite(e.stderr):
        return f"{e.value:.6g}"
    decimals = max(0, 1 - math.floor(math.log10(e.stderr)))
    return f"{e.value:.{decimals}f} ± {e.stderr:.2g}"


def compact(e: Estimate | None) -> str:
    """Value with its standard error in units of the last digit, 0.899(19) for 0.899 ± 0.019; a dash for none."""
    if e is None:
        return "–"
    if not e.stderr or not math.isfinite(e.stderr) or abs(e.value) < 1e-4:
        return f"{e.value:.3g}"
    decimals = max(0, 1 - math.floor(math.log10(e.stderr)))
    return f"{e.value:.{decimals}f}({round(e.stderr * 10**decimals)})"
