"""Which problems are verified, said in words: names, files and data from which any process builds the same subjects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from sdecontrol.data import read
from sdecontrol.errors import BadInput
from sdecontrol.noise import Noise
from sdecontrol.problems.base import Problem
from sdecontrol.problems.builtin import BUILTIN, resolve
from sdecontrol.problems.digits import COMPONENTS
from sdecontrol.problems.fitted import Subject, subjects

SECOND_REWARDS = ("digits-gaussian-symmetry", "digits-mixture-symmetry")  # left out of a quick run of everything
PROBES, PROBE_TIMES = 16, (0.0, 0.5, 0.9)  # points (2 of image size), and times in units of the horizon
LARGE = 4096


@dataclass(frozen=True)
class Selection:
    """Built-in names and Python files, and data with what to fit to it; every built-in problem when nothing is named
    (when quick, the digits with one reward only).

    Picklable, which problems are not: their rewards and drifts may be any functions. plugins: modules to import first.
    Raises, in `subjects`: BadInput or UnknownName as `resolve`, `read` and `fit` do; BadInput for names given twice.
    """

    names: tuple[str, ...] = ()
    data: str | None = None
    components: int | None = None
    rank: int | None = None
    quick: bool = False
    plugins: tuple[str, ...] = ()

    def load_plugins(self) -> None:
        """Import the modules that make problems and claims known; also in every process that builds them again."""
        for module in self.plugins:
            import_module(module)

    def subjects(self) -> list[Subject]:
        """What is selected, built anew: that of each name, then the fitted ones."""
        self.load_plugins()
        if self.data is None and (self.components is not None or self.rank is not None):
            raise BadInput("saw --components or --rank without --data; wanted the data that they speak of.")
        found = [resolve(name) for name in self.named] + self.fitted()
        names = [subject.problem.name for subject in found]
        if len(set(names)) < len(names):
            raise BadInput(
                f"saw the problems {', '.join(names)}; wanted different names. Name them, or give each once."
            )
        return found

    def fitted(self) -> list[Subject]:
        """Both rewards on the fitted law; the digits, unless told, as one Gaussian and as ten."""
        if self.data is None:
            return []
        data = read(self.data)
        families = [self.components] if self.components else [1, COMPONENTS] if self.data == "digits" else [1]
        return [subject for k in families for subject in subjects(data, k, self.rank)]

    @property
    def named(self) -> tuple[str, ...]:
        """Built-in names and files."""
        if self.names or self.data:
            return self.names
        return tuple(name for name in BUILTIN if not (self.quick and name in SECOND_REWARDS))

    @property
    def files(self) -> dict[str, str]:
        """A hash of each Python file that is named."""
        paths = [Path(name) for name in self.names if name.endswith(".py")]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def fingerprint(problem: Problem) -> str:
    """A hash of what the problem answers at a few points: temperature, rewards, drift, amplitude, start.

    Two builds of one problem agree; another fit, other data or another network almost surely differ.
    """
    digest = hashlib.sha256()
    for part in _answers(problem):
        digest.update(str(tuple(part.shape)).encode() + part.detach().double().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _answers(problem: Problem) -> Iterator[torch.Tensor]:
    process = problem.process
    probes = PROBES if process.dim < LARGE else 2
    x = process.initial_law(0.0).sample(probes, Noise(0)).to(process.dtype)
    yield torch.tensor([problem.temperature, process.horizon], dtype=torch.float64)
    yield x
    with torch.no_grad():
        yield problem.reward(x)
        for t in (share * process.horizon for share in PROBE_TIMES):
            yield process.state(t, x).drift
            yield torch.tensor(float(process.amplitude(t)))
            if problem.running_reward is not None:
                yield problem.running_rate(t, x)
