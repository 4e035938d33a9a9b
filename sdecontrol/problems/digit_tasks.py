"""What one may ask of the handwritten digits: a class, more ink, both, or a given amount of ink.

The law is a mixture with one Gaussian a digit on the principal subspace, fitted to two thirds of the images. A support
vector machine trained on the other third reads what comes out; it has never seen what the law was made of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdecontrol import data
from sdecontrol.data.arrays import scikit_learn
from sdecontrol.errors import NoClosedForm, UnknownName
from sdecontrol.estimate import Estimate
from sdecontrol.laws import ClassPosterior, Subspace
from sdecontrol.problems.base import Problem
from sdecontrol.problems.fitted import total
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import GaussianLabel, Quadratic, Reward
from sdecontrol.schedules import VP

READ = 1 / 3  # share of the images on which the reader is trained, and the law is not
BOLD = 2.0  # log weight for each standard deviation of ink
TARGET, NOISE = 2.0, 0.5  # of the label, in standard deviations of ink
Expect = Callable[[Callable[[Tensor], Tensor]], Estimate]


@dataclass(frozen=True)
class Digits:
    """The fitted law, its fit, and the images that it was not fitted to."""

    law: Subspace
    fit: data.FitSummary
    fitted: data.DataSet
    held_out: data.DataSet

    @cached_property
    def reader(self) -> Any:
        """A support vector machine trained on the held-out images: (n, 64) -> labels."""
        machine = scikit_learn("sklearn.svm").SVC(gamma=0.256)  # 0.001 for ink from 0 to 16
        return machine.fit(self.held_out.values, self.held_out.labels)

    def read(self, x: Tensor) -> Tensor:
        """The digit that each image is read as: (n, 64) -> (n,)."""
        return torch.as_tensor(self.reader.predict(x.double().numpy()))

    @cached_property
    def ink(self) -> Quadratic:
        """The sum of the pixels, centred, in standard deviations over the images."""
        return total(self.fitted)


def labelled_digits(rank: int | None = None) -> Digits:
    """One Gaussian a digit on `rank` principal directions (None: 95 % of the variance). Needs scikit-learn."""
    return _labelled(rank)


@lru_cache(maxsize=2)
def _labelled(rank: int | None) -> Digits:
    whole = data.digits()
    assert whole.labels is not None
    order = np.random.default_rng(1).permutation(len(whole.values))
    parts = np.split(order, [int(READ * len(order))])
    held_out, fitted = (replace(whole, values=whole.values[rows], labels=whole.labels[rows]) for rows in parts)
    law, summary = data.fit_labelled(fitted, rank)
    assert isinstance(law, Subspace)
    return Digits(law, summary, fitted, held_out)


@dataclass(frozen=True)
class Task:
    """A problem on the digits, the digit that is wanted (None: any), and what its samples are measured by."""

    name: str
    title: str
    problem: Problem
    wanted: int | None
    digits: Digits

    def measures(self, expect: Expect) -> dict[str, Estimate]:
        """From f -> E f(X) to numbers about the law of X, beside the reward.

        read: share that the reader takes for the wanted digit. ink: in standard deviations. spread: E |X - E X|^2 over
        that of the exact tilt. off subspace: E |normal part of X|^2 / E |X - offset|^2, the share of the energy that no
        digit has.
        """
        frame, digits = self.digits.law.frame, self.digits
        mean = torch.as_tensor(expect(lambda x: x).value)
        energy = float(expect(lambda x: frame.centre(x.double()).square().sum(1)).value)
        found = {}
        if self.wanted is not None:
            found[f"read as {self.wanted}"] = expect(lambda x: digits.read(x).eq(self.wanted or 0).double())
        found["ink"] = expect(lambda x: digits.ink(x.double()))
        spread = expect(lambda x: (x.double() - mean).square().sum(1))
        try:
            found["spread"] = spread * (1 / float(self.problem.exact.terminal.covariance.diagonal().sum()))
        except NoClosedForm:
            found["spread"] = spread
        off = expect(lambda x: frame.normal(frame.centre(x.double())).square().sum(1))
        found["off subspace"] = off * (1 / energy)
        return found


TITLES = {"ink": "make it bolder", "label": "this much ink"}


def task(name: str = "3", temperature: float | None = None, rank: int | None = None) -> Task:
    """`3`: a three, r = log p(3 | x). `ink`: bolder, r = ink. `bold-3`: r = log p(3 | x) + 2 ink. `label`: r the log
    likelihood of a noisy reading of the ink at two standard deviations. So for every digit.

    Temperature 1 (ink: 0.5) unless told; the tilt of `3` and `bold-3` is closed at 1. Start: the noised law.
    Raises: UnknownName.
    """
    digits = labelled_digits(rank)
    process = ReverseProcess(VP(), digits.law, initial="marginal")
    known = [*TITLES, *(f"{prefix}{digit}" for prefix in ("", "bold-") for digit in range(10))]
    if name not in known:
        raise UnknownName("task on the digits", name, known)
    wanted = None if name in TITLES else int(name[-1])

    def make(reward: Reward, own: float) -> Problem:
        return Problem(process, reward, own if temperature is None else temperature, name=f"digits-{name}")

    if name == "ink":
        problem = make(digits.ink, 0.5)
    elif name == "label":
        problem = make(GaussianLabel(digits.ink.linear, TARGET - digits.ink.constant, NOISE), 1.0)
    else:
        extra = Quadratic(BOLD * digits.ink.linear, constant=BOLD * digits.ink.constant) if "bold" in name else None
        problem = make(ClassPosterior(digits.law, int(name[-1]), 1.0, extra), 1.0)
    title = TITLES.get(name) or f"{'a bold' if 'bold' in name else 'make a'} {wanted}"
    return Task(name, title, problem, wanted, digits)


TASKS = ("3", "ink", "bold-3", "label")  # what `digits` stands for
