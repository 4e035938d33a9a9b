"""The folded stepper makes the same chain as one model call a step, and knows when it may not fold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sdecontrol as sc
from sdecontrol.kernels import HeunTransition, Transition
from sdecontrol.simulate import prepare
from sdecontrol.stepper import FoldedStepper, ModelStepper, stepper_of

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
KERNELS = [
    sc.EulerMaruyama(),
    sc.Exponential(),
    sc.Ancestral(),
    sc.Ancestral("large"),
    sc.DDIM(0.5),
    sc.DDIM(0.0),
    sc.SecondOrder(),
    sc.ExactTransition(),
]
PROCESSES = {
    "vp": sc.ReverseProcess(sc.VP(), LAW),
    "ve": sc.ReverseProcess(sc.VE(), LAW),
    "imperfect": sc.ReverseProcess(sc.VP(), sc.PerturbedScore(LAW, scale=0.9, bias=0.2)),
    "diagonal": sc.ReverseProcess(sc.VP(), sc.Gaussian([3.0, 1.0], [0.2, 2.0])),
}


def both(process: sc.ReverseProcess, kernel: Any, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    grid = sc.TimeGrid.log_snr(40, s_min=1e-3).resolve(process)
    transitions = prepare(process, kernel, grid)
    return grid, ModelStepper(process, transitions, None), stepper_of(process, transitions, None, dtype)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
@pytest.mark.parametrize("name", PROCESSES)
def test_folded_chain_is_the_same_chain(name, kernel):
    process = PROCESSES[name]
    grid, plain, folded = both(process, kernel, torch.float64)
    assert isinstance(folded, FoldedStepper)
    rng = np.random.default_rng(1)
    x = y = torch.tensor(rng.normal(size=(50, 2))) * 3
    for k in range(len(grid.times) - 1):
        xi = torch.tensor(rng.normal(size=(50, 2)))
        (x, _), (y, w) = plain.advance(k, x, xi), folded.advance(k, y, xi)
        assert w is None
        assert torch.allclose(folded.position(k + 1, y), x, rtol=1e-11, atol=1e-10)


def test_folding_in_float32_keeps_the_digits_of_the_drift():
    """Ten thousand steps near the identity: the folded chain stays within float32 rounding of the float64 chain."""
    process = PROCESSES["vp"]
    transitions = prepare(process, sc.EulerMaruyama(), sc.TimeGrid.uniform(10_000).resolve(process))
    steps = [t.affine(process) for t in transitions]
    exact, rounded = FoldedStepper(steps, torch.float64), FoldedStepper(steps, torch.float32)
    y = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    z = y.float()
    for k in range(len(steps)):
        xi = torch.zeros_like(y)
        (y, _), (z, _) = exact.advance(k, y, xi), rounded.advance(k, z, xi.float())
    ends = exact.position(len(steps), y), rounded.position(len(steps), z).double()
    assert torch.allclose(*ends, rtol=1e-5, atol=1e-5)


class Halved(Transition):
    """A user's step with another mean and no word about its matrices."""

    def mean(self, state: Any) -> torch.Tensor:
        return super().mean(state) / 2


class HalvedKernel(sc.EulerMaruyama):
    def transition(self, process: Any, t: float, t_next: float) -> Transition:
        return Halved(t, t_next, *self.coefficients(process, t, t_next))


def test_a_step_without_matrices_is_never_folded_nor_given_moments():
    process = PROCESSES["vp"]
    _, _, stepper = both(process, HalvedKernel(), torch.float64)
    assert isinstance(stepper, ModelStepper)
    with pytest.raises(sc.NoClosedForm, match="Halved does not give its step as matrices"):
        sc.moments(process, HalvedKernel(), sc.TimeGrid.uniform(4))


def test_a_subclass_of_a_two_call_step_is_not_folded_by_its_parent():
    class Louder(HeunTransition):
        def finish(self, process: Any, state: Any, mean: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
            return super().finish(process, state, mean, 2 * z)

    with pytest.raises(sc.NoClosedForm):
        Louder(0.0, 0.1, 1.0, 0.1, 0.3, 0.1).affine(PROCESSES["vp"])


def test_controls_gradients_networks_and_large_events_are_not_folded():
    process = PROCESSES["vp"]
    transitions = prepare(process, sc.Ancestral(), sc.TimeGrid.log_snr(5, s_min=1e-2).resolve(process))
    assert isinstance(
        stepper_of(process, transitions, sc.AffineControl(torch.zeros(2, 2)), torch.float64), ModelStepper
    )
    wide = sc.ReverseProcess(sc.VP(), sc.Gaussian(torch.zeros(40), torch.ones(40)))
    assert isinstance(stepper_of(wide, transitions, None, torch.float64), ModelStepper)
    mixture = sc.GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 1.0], [1.0, 1.0]])
    curved = sc.ReverseProcess(sc.VP(), mixture)
    assert isinstance(stepper_of(curved, transitions, None, torch.float64), ModelStepper)
    start = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    end = sc.simulate(process, initial=start, n=3, grad=True, grid=sc.TimeGrid.log_snr(5, s_min=1e-2)).terminal
    assert torch.autograd.grad(end.sum(), start)[0].abs().min() > 0


def test_states_and_ends_are_the_same_bits_with_and_without_the_record():
    process, observed = PROCESSES["vp"], []
    options = {"n": 70, "grid": sc.TimeGrid.log_snr(20, s_min=1e-3), "noise": sc.Noise(5)}
    kept = sc.simulate(process, **options)
    ends = sc.simulate(process, keep="ends", **options)
    sc.simulate(process, keep="ends", observe=lambda k, t, x: observed.append(x.clone()) or x[:, 0], **options)
    assert torch.equal(kept.terminal, ends.terminal) and torch.equal(kept.states[-1], ends.terminal)
    assert torch.equal(torch.stack(observed), kept.states)
