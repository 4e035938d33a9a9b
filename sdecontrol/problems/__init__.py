"""What is optimised: `Problem`, the named problems, and problems from arrays and files."""

from sdecontrol.problems.base import Problem
from sdecontrol.problems.digits import digits

__all__ = ["Problem", "digits"]
