"""CTRL, Lemma 1: the drift sigma^2 grad log p(y | x_t) samples the conditional law."""

from __future__ import annotations

import numpy as np

from sdecontrol.claims.base import DISCRETE, EXACT, MONTE_CARLO, Case, Claim, rounding
from sdecontrol.claims.conditioning.rows import (
    along,
    chain_rows,
    drift_row,
    finite,
    likelihood_row,
    output_row,
    value_row,
)
from sdecontrol.claims.routes.labels import answers_of, subject_of

CLAIM = Claim(
    "ctrl-lemma-1",
    "The drift sigma^2 grad log p(y|x_t) samples the conditional law p_pre(x|y)",
    "CTRL 2406.12120, Lemma 1, (4); the start tilted too where it is not a point: derived",
    r"""dx_t = [f^{pre} + \sigma^2 \nabla \log p(y | x_t)] dt + \sigma dw_t with
p(y | x_t) = E_{pre}[p(y | x_T) | x_t], from the start tilted by p(y | x_0), ends in x_T \sim p^{pre}(\cdot | y).""",
)


@CLAIM.check(EXACT)
def bayes_rule(case: Case) -> None:
    """Value, drift and output of every label at strength 1 against Bayes' rule."""
    for label in subject_of(case).labels:
        value_row(case, label, 1.0)
        drift_row(case, label, 1.0)
        output_row(case, label, 1.0)


@CLAIM.check(DISCRETE)
def chain_to_the_conditional(case: Case) -> None:
    """Exact chains under the drift from the tilted start, refined, against the conditional mean and variance."""
    subject = subject_of(case)
    label = subject.linear
    answers = answers_of(case, label, 1.0)
    law = along(label.tilt(subject.reference, 1.0)[0], label.w)
    chain_rows(case, label, 1.0, answers.control, answers.initial, law, "conditional chain")


@CLAIM.check(DISCRETE)
def finite_chain(case: Case) -> None:
    """p(x'|x) h(x')/h(x) against P(x' | x, y) from all paths."""
    _, all_paths, log_p = finite(case)
    conditioned = all_paths.chain.conditioned(log_p)
    direct = all_paths.log_tilted(log_p)[0]
    worst = float(np.abs(all_paths.log_p_of(conditioned) - direct).max())
    size = float(np.abs(direct).max())
    case.zero("finite chain: log probability of a path under h-kernels - given y", worst, rounding(size), scale=size)


@CLAIM.check(MONTE_CARLO)
def draws_of_the_output(case: Case) -> None:
    """p(y | x_t) as the mean of p(y | x_T) over draws of x_T given x_t."""
    for label in subject_of(case).labels:
        likelihood_row(case, label, 1.0)
