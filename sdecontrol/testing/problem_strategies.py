"""Hypothesis strategies of schedules, grids, kernels, controls, whole problems, and tilts on finitely many points.

Each shrinks to the simplest case: schedules to a constant rate, grids to one step, controls to 0, problems to one
dimension. The optimum of a drawn problem exists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from sdecontrol.controls import AffineControl
from sdecontrol.kernels import DDIM, Ancestral, EulerMaruyama, ExactTransition, Exponential, Kernel, SecondOrder
from sdecontrol.laws import Dirac, Law
from sdecontrol.problems.base import Problem
from sdecontrol.processes import ReverseProcess
from sdecontrol.rewards import Reward
from sdecontrol.schedules import VE, VP, Cosine, Schedule, SubVP
from sdecontrol.testing.strategies import gaussians, laws, numbers, rewards, temperatures, vectors, widest
from sdecontrol.testing.tilts import StaticTilt
from sdecontrol.time import TimeGrid


def _linear_rate(kind: Callable[..., Schedule]) -> SearchStrategy[Schedule]:
    return st.builds(
        lambda slowest, growth, horizon: kind(slowest, round(slowest + growth, 3), horizon),
        numbers(0.1, 2.0),
        numbers(0.0, 10.0),
        numbers(0.5, 2.0),
    )


SCHEDULES: dict[type[Schedule], SearchStrategy[Schedule]] = {
    VP: _linear_rate(VP),
    VE: st.builds(
        lambda smallest, ratio, horizon: VE(smallest, round(smallest * ratio, 6), horizon),
        numbers(0.01, 1.0),
        numbers(2.0, 20.0),
        numbers(0.5, 2.0),
    ),
    SubVP: _linear_rate(SubVP),
    Cosine: st.builds(Cosine, numbers(0.005, 0.1), numbers(-12.0, -1.0), numbers(0.5, 2.0)),
}


def schedules(*kinds: type[Schedule]) -> SearchStrategy[Schedule]:
    """Schedules of the given classes (default VP, VE, SubVP, Cosine); shrinks to VP with the rate 1 on [0, 1]."""
    return st.one_of([SCHEDULES[kind] for kind in kinds or SCHEDULES])


def grids(steps: int = 12) -> SearchStrategy[TimeGrid]:
    """Uniform, geometric and log-SNR grids of 1 to `steps` steps; shrinks to one uniform step."""
    counts, smallest = st.integers(1, steps), numbers(0.01, 0.2)
    return st.one_of(
        st.builds(TimeGrid.uniform, counts),
        st.builds(TimeGrid.geometric, counts, smallest),
        st.builds(TimeGrid.log_snr, counts, smallest),
    )


def kernels(affine: bool = False) -> SearchStrategy[Kernel]:
    """Kernels with noise on every step but the last; `affine` adds the exact transition of Gaussian data."""
    fixed = [EulerMaruyama(), Exponential(), Ancestral(), Ancestral("large"), SecondOrder()]
    exact = [ExactTransition()] if affine else []
    return st.one_of(st.sampled_from([*fixed, *exact]), st.builds(DDIM, numbers(0.1, 1.0)))


def affine_controls(dim: int = 1, size: float = 1.0) -> SearchStrategy[AffineControl]:
    """u = B x + b with entries in [-size, size]; shrinks to u = 0."""
    gains = vectors(dim * dim, size).map(lambda b: b.reshape(dim, dim))
    return st.builds(AffineControl, gains, vectors(dim, size))


# ---------------------------------------------------------------------- problems

STARTS: dict[str, Callable[[int], SearchStrategy[str | Law]]] = {
    "standard": lambda dim: st.just("standard"),
    "marginal": lambda dim: st.just("marginal"),
    "gaussian": gaussians,
    "point": lambda dim: vectors(dim).map(Dirac),
}


def widest_output(process: ReverseProcess) -> float:
    """A bound of the variances of p_pre and of the data law, hence of every clean-given-noisy law in between.

    A component N(mu, S) of the data started from N(m, V) gives P + J V J with P = S h / (a^2 S + h) and
    J = a S / (a^2 S + h), both increasing in S (derived).
    """
    a, h = process.schedule.alpha(process.horizon), process.schedule.h(process.horizon)
    variance = widest(process.data_law)
    if process.initial == "marginal":
        return variance
    start = process.initial_law()
    noisy = a * a * variance + h
    spread = 0.0 if isinstance(start, Dirac) else widest(start)
    return max(variance, variance * h / noisy + spread * (a * variance / noisy) ** 2)


@st.composite
def problems(
    draw: DrawFn,
    dims: Sequence[int] = (1, 2, 3, 4),
    schedules: SearchStrategy[Schedule] = schedules(),  # noqa: B008  a strategy is a constant
    laws: Callable[[int], SearchStrategy[Law]] = laws,
    initial: Sequence[str] = ("standard", "marginal"),
    rewards: Callable[[int, float, float], SearchStrategy[Reward]] = rewards,
    temperatures: SearchStrategy[float] = temperatures(),  # noqa: B008
) -> Problem:
    """Fine-tuning problems on reverse diffusions with an exact score, whose tilt exists.

    dims: dimensions to draw from. schedules, temperatures: strategies. laws: dim -> strategy of the data law. initial:
    any of "standard", "marginal", "gaussian", "point". rewards: (dim, largest variance, temperature) -> strategy.
    Shrinks to N(0, 1) on the line under VP with rate 1, a standard start, the reward 0 and temperature 1.
    """
    dim = draw(st.sampled_from(list(dims)))
    law = draw(laws(dim))
    start = draw(STARTS[draw(st.sampled_from(list(initial)))](dim))
    process = ReverseProcess(draw(schedules), law, start)
    temperature = draw(temperatures)
    return Problem(process, draw(rewards(dim, widest_output(process), temperature)), temperature)


def tilts(
    points: int = 6,
    reward: float = 10.0,
    temperatures: SearchStrategy[float] = temperatures(),  # noqa: B008
) -> SearchStrategy[StaticTilt]:
    """Tilts of laws on 2 to `points` points, |reward| up to the given one, weights in ratios up to 100.

    Ten thousand of them take seconds. Shrinks to two points with equal weights, reward 0 and temperature 1.
    """
    atoms = st.lists(st.tuples(numbers(-reward, reward), st.integers(1, 100)), min_size=2, max_size=points)
    return st.builds(_static_tilt, temperatures, atoms)


def _static_tilt(temperature: float, atoms: list[tuple[float, int]]) -> StaticTilt:
    reward, weights = zip(*atoms)
    return StaticTilt(reward, weights, temperature)
