"""torchsde as an independent route for paths and for the path KL, driven by the same Brownian increments."""

import numpy as np
import pytest
import torch
import torchsde

import sdecontrol as sc

LAW = sc.Gaussian([1.0, -0.5], [[1.0, 0.3], [0.3, 0.5]])
CONTROL = sc.AffineControl([[-0.4, 0.1], [0.0, -0.2]], [0.5, -0.3])


class Increments:
    """A Brownian motion that hands torchsde the increments sqrt(dt) xi_k of a path made by this library."""

    def __init__(self, times: np.ndarray, normals: torch.Tensor):
        steps = torch.cumsum(normals * torch.tensor(np.diff(times)).sqrt()[:, None, None], 0)
        self.sums = torch.cat([torch.zeros_like(steps[:1]), steps])
        self.times, self.shape = times, steps.shape[1:]
        self.dtype, self.device = steps.dtype, steps.device
        self.levy_area_approximation = "none"

    def __call__(self, ta, tb=None, return_U=False, return_A=False):
        a, b = (int(np.abs(self.times - float(t)).argmin()) for t in (ta, tb))
        return self.sums[b] - self.sums[a]


@pytest.mark.parametrize("schedule", [sc.VP(), sc.VE(sigma_max=5.0)], ids=["VP", "VE"])
def test_paths_agree_with_torchsde_step_by_step(schedule):
    process, grid = sc.ReverseProcess(schedule, LAW), sc.TimeGrid.uniform(64)
    path = sc.simulate(process, grid=grid, kernel=sc.EulerMaruyama(), n=20, noise=sc.Noise(1, torch.float64))
    states = torchsde.sdeint(
        process.to_torchsde(),
        path.initial,
        torch.tensor(path.times),
        bm=Increments(path.times, path.noises),
        method="euler",
        dt=1 / 64,
    )
    assert torch.allclose(states, path.states, rtol=1e-9, atol=1e-9)


def test_controlled_paths_and_path_kl_agree_with_torchsde():
    """torchsde's logqp is the energy of each path, 1/2 sum dt |u|^2 at its own Euler states."""
    process, grid = sc.ReverseProcess(sc.VP(), LAW), sc.TimeGrid.uniform(64)
    path = sc.simulate(process, CONTROL, grid=grid, kernel=sc.EulerMaruyama(), n=20, noise=sc.Noise(1, torch.float64))
    # give torchsde the noise drawn under the control: xi = z - sqrt(dt) u
    dt = torch.tensor(path.grid.dt)
    shifts = (
        torch.stack([CONTROL(float(t), x) for t, x in zip(path.times, path.states)])[:-1] * dt.sqrt()[:, None, None]
    )
    xi = torch.cat([path.noises - shifts, torch.zeros(64, 20, 1)], 2)  # a third coordinate carries the log ratio
    driven = Increments(path.times, xi)
    states, log_ratio = torchsde.sdeint(
        process.to_torchsde(CONTROL),
        path.initial,
        torch.tensor(path.times),
        bm=driven,
        method="euler",
        dt=1 / 64,
        logqp=True,
    )
    assert torch.allclose(states, path.states, rtol=1e-8, atol=1e-8)
    assert torch.allclose(log_ratio.sum(0), path.weights.energy, rtol=1e-6)


class OrnsteinUhlenbeck(torch.nn.Module):
    sde_type = "ito"

    def __init__(self, noise_type="diagonal", state_dependent=False):
        super().__init__()
        self.noise_type, self.state_dependent = noise_type, state_dependent

    def f(self, t, y):
        return -2.0 * y + t

    def g(self, t, y):
        diagonal = (1 + t) * torch.ones_like(y) * (1 + y**2 if self.state_dependent else 1)
        return torch.diag_embed(diagonal) if self.noise_type == "additive" else diagonal


@pytest.mark.parametrize("noise_type", ["diagonal", "additive"])
def test_a_torchsde_object_as_a_process(noise_type):
    start = sc.Gaussian([0.5, 1.0], [[1.0, 0.0], [0.0, 0.5]])
    process = sc.DiffusionProcess.from_torchsde(OrnsteinUhlenbeck(noise_type), start, horizon=1.5)
    known = sc.DiffusionProcess(sc.Affine(-2.0 * np.eye(2), lambda t: [t, t]), lambda t: 1 + t, start, horizon=1.5)
    grid = sc.TimeGrid.uniform(30)
    ours, wanted = (sc.simulate(p, grid=grid, n=50).terminal for p in (process, known))
    assert torch.allclose(ours, wanted, rtol=1e-9, atol=1e-9)


def test_state_dependent_noise_is_refused():
    start = sc.Gaussian([0.0], [[1.0]])
    with pytest.raises(sc.BadInput, match="depends on the state"):
        sc.DiffusionProcess.from_torchsde(OrnsteinUhlenbeck(state_dependent=True), start)
    general = OrnsteinUhlenbeck("general")
    with pytest.raises(sc.BadInput, match="noise_type"):
        sc.DiffusionProcess.from_torchsde(general, start)
