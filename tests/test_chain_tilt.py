"""The law of x_K by the optimal kernels is the chain's tilt; by mean shifts alone it misses by the square of the step.

Both laws are propagated step by step; the tilt of the reference output is completed here by dense inverses.
"""

from __future__ import annotations

import numpy as np
import pytest

import sdecontrol as sc
from sdecontrol.claims.routes.output import latent_data
from sdecontrol.claims.routes.posterior import exponent, gaussian_kl
from sdecontrol.orders import observed_order
from sdecontrol.problems.builtin import resolve

# the limit of K^2 KL(best mean shift || tilt) on log SNR grids of K ancestral steps, s_min = 1e-3
CONSTANTS = {
    "gaussian-1d-vp": 0.412,
    "gaussian-4d-vp": 0.776,
    "gaussian-4d-ve": 0.481,
    "subspace-16-in-64-vp": 0.4795,
}
STEPS = (20, 40, 80, 160)


def chain(name: str, steps: int):
    problem = resolve(name).problem
    return problem, problem.discretise(sc.Ancestral(), sc.TimeGrid.log_snr(steps, s_min=1e-3)).exact


def divergences(name: str, steps: int) -> tuple[float, float]:
    """KL of both laws of x_K from the tilt of the chain's reference output, in latent coordinates."""
    problem, exact = chain(name, steps)
    frame = latent_data(problem.process.data_law)[1]
    rho = frame.restrict(exponent(problem.reward, problem.temperature))
    mean, covariance = frame.moments(exact.reference)
    precision = np.linalg.inv(covariance)
    tilted = np.linalg.inv(precision + rho.curvature)
    tilt = tilted @ (precision @ mean + rho.linear), (tilted + tilted.T) / 2
    return tuple(gaussian_kl(frame.moments(law), tilt) for law in (exact.terminal, exact.control_terminal))


@pytest.mark.parametrize("name", CONSTANTS)
def test_optimal_kernels_end_in_the_tilt_and_mean_shifts_miss_it_by_the_square_of_the_step(name):
    found = [divergences(name, steps) for steps in STEPS]
    assert max(abs(kernels) for kernels, _ in found) < 1e-12
    shifts = [shift for _, shift in found]
    order = observed_order(shifts, [k // STEPS[0] for k in STEPS])
    assert order.limit == pytest.approx(2, abs=0.02)
    scaled = [steps**2 * shift for steps, shift in zip(STEPS, shifts)]
    constant = 2 * scaled[-1] - scaled[-2]  # errors of K^2 KL fall as 1/K
    assert constant == pytest.approx(CONSTANTS[name], rel=0.01)


def test_a_linear_reward_leaves_nothing_to_the_variance():
    assert max(abs(kl) for kl in divergences("subspace-16-in-64-ve", 40)) < 1e-12
