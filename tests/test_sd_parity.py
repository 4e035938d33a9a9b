"""Stable Diffusion against stock pipelines: latents, (mean, std) of a step, controls in a scheduler, refusals."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

import sdecontrol as sc
from sdecontrol.backends import StableDiffusionProcess, read
from sdecontrol.backends.stock import controlled

PROMPTS = ["a cat", "two dogs"]
N = 4


def stock(name: str, **options: Any) -> Any:
    import diffusers

    return getattr(diffusers, name)(**(tiny.STABLE_DIFFUSION | options))


ddpm = partial(stock, "DDPMScheduler", clip_sample=False)
euler = partial(stock, "EulerAncestralDiscreteScheduler")
solver = partial(stock, "DPMSolverMultistepScheduler", solver_order=1)
sde = partial(solver, algorithm_type="sde-dpmsolver++")

SCHEDULERS: dict[str, tuple[Callable[[], Any], float, int]] = {  # name -> (scheduler, eta, steps)
    "ddim as shipped": (tiny.ddim, 1.0, 10),
    "ddim leading, to one, eta 0.5": (partial(tiny.ddim, steps_offset=0, set_alpha_to_one=True), 0.5, 10),
    "ddim offset 0, v": (partial(tiny.ddim, steps_offset=0, prediction_type="v_prediction"), 1.0, 10),
    "ddim trailing, v": (partial(tiny.ddim, timestep_spacing="trailing", prediction_type="v_prediction"), 1.0, 8),
    "ddim trailing, to one, sample, eta 0.3": (
        partial(tiny.ddim, timestep_spacing="trailing", set_alpha_to_one=True, prediction_type="sample"), 0.3, 10),
    "ddim eta 0, steps that do not divide": (tiny.ddim, 0.0, 7),
    "ddim linear betas": (partial(tiny.ddim, beta_schedule="linear", beta_start=1e-4, beta_end=0.02), 1.0, 5),
    "ddpm small": (partial(ddpm, steps_offset=1), 1.0, 10),
    "ddpm large, v": (partial(ddpm, variance_type="fixed_large", prediction_type="v_prediction"), 1.0, 10),
    "ddpm linspace": (partial(ddpm, timestep_spacing="linspace"), 1.0, 9),
    "euler ancestral leading": (partial(euler, timestep_spacing="leading", steps_offset=1), 1.0, 10),
    "euler ancestral trailing, v": (
        partial(euler, timestep_spacing="trailing", prediction_type="v_prediction"), 1.0, 10),
    "sde-dpmsolver++ linspace": (sde, 1.0, 10),
    "sde-dpmsolver++ leading, sigma_min": (
        partial(sde, timestep_spacing="leading", final_sigmas_type="sigma_min"), 1.0, 10),
    "sde-dpmsolver": (partial(solver, algorithm_type="sde-dpmsolver", final_sigmas_type="sigma_min"), 1.0, 10),
}  # fmt: skip
NAMES = list(SCHEDULERS)
pytestmark = pytest.mark.filterwarnings("ignore:.algorithm_types dpmsolver:FutureWarning")


def made(name: str) -> tuple[Any, float, int]:
    make, eta, steps = SCHEDULERS[name]
    return make(), eta, steps


def the_same_noise(monkeypatch: pytest.MonkeyPatch, scheduler: Any, process: Any, noise: sc.Noise) -> None:
    """Make the scheduler draw the library's normals: those of its steps, one after another."""
    event, times = process.event_shape, process.default_grid.resolve(process).times
    blocks = [noise.steps(i, event, times) for i in range(-(-N // noise.block_size(event)))]
    normals = (torch.cat(parts)[:N] for parts in zip(*blocks, strict=True))
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(normals))


def stock_latents(pipe: Any, process: Any, path: sc.path.Path, eta: float) -> Tensor:
    start = path.initial / process.reading.prior_std(process.levels[0])
    prompts = [PROMPTS[i % 2] for i in range(N)]
    out = pipe(prompts, num_inference_steps=process.steps, guidance_scale=process.cfg, eta=eta, latents=start,
               output_type="latent")  # fmt: skip
    return out.images


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NAMES)
def test_control_off_gives_the_stock_pipelines_latents(
    name: str, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, eta, steps = made(name)
    monkeypatch.setattr(tiny_pipe, "scheduler", scheduler)
    # Rounding inside a network that predicts the sample is amplified from step to step: at cfg 3 the stock pipeline and
    # this chain are both 1.7e-6 from the same chain in float64, at cfg 2 both 1.0e-6.
    cfg = 2.0 if "sample" in name else 3.0
    process = StableDiffusionProcess(tiny_pipe, PROMPTS, cfg=cfg, steps=steps, eta=eta, batch=N)
    path = sc.simulate(process, n=N)
    the_same_noise(monkeypatch, scheduler, process, process.default_noise)
    assert relative(path.terminal, stock_latents(tiny_pipe, process, path, eta)) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_std_are_those_of_the_scheduler(name: str, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise 0 and noise 1 through the scheduler's own step; mean and std of the kernel, to rounding."""
    scheduler, eta, steps = made(name)
    process = StableDiffusionProcess(tiny_pipe, PROMPTS[:1], cfg=1.0, steps=steps, eta=eta, scheduler=scheduler)
    module = importlib.import_module(type(scheduler).__module__)
    grid, x = process.default_grid.resolve(process), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    transitions = sc.simulate.__globals__["prepare"](process, process.default_kernel, grid)
    found = {}
    for value in (0.0, 1.0):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, value=value, **_: torch.full(tuple(shape), value))
        stock = process.reading.stepping(steps)
        for k, (level, transition) in enumerate(zip(process.levels, transitions, strict=False)):
            prediction = process.network.predict(x, torch.full((2,), level))
            scale = 1 / process.schedule.alpha(process.schedule.level(level)) if "euler" in name else 1.0
            options = {"eta": eta} if "ddim" in name else {}
            stock.scale_model_input(x * scale, stock.timesteps[k])
            found[k, value] = stock.step(prediction, stock.timesteps[k], x * scale, **options).prev_sample
            reached = process.levels[k + 1]
            if "euler" in name and reached >= 0:
                found[k, value] = found[k, value] * process.schedule.alpha(process.schedule.level(reached))
            state = process.state_from(transition.t, x, prediction)
            if value == 0.0:
                assert float((transition.mean(state) - found[k, 0.0]).abs().max()) < 3e-6 * float(x.abs().max())
            else:
                std = float((found[k, 1.0] - found[k, 0.0]).mean())
                assert std == pytest.approx(transition.std, rel=2e-5, abs=1e-6), f"step {k}"


def test_steps_of_mixed_timesteps_are_those_of_the_chain(tiny_pipe: Any) -> None:
    process = StableDiffusionProcess(tiny_pipe, PROMPTS, cfg=3.0, steps=10, eta=0.7)
    path = sc.simulate(process, n=4)
    assert path.states is not None and path.noises is not None
    at = torch.tensor([0, 3, 8, 9])
    x = torch.stack([path.states[k, i] for i, k in enumerate(at)])
    levels = torch.tensor(process.levels)
    mean, std = process.step_between(x, levels[at], levels[at + 1])
    for i, k in enumerate(at.tolist()):
        expected = mean[i] + std[i].float() * path.noises[k, i]
        size = float(path.states[k + 1, i].abs().max())
        torch.testing.assert_close(expected, path.states[k + 1, i], rtol=0, atol=5e-7 * size)
    with pytest.raises(sc.BadInput, match="timestep > reached"):
        process.step_between(x, levels[at], levels[at])


@pytest.mark.parametrize("name", ["ddim as shipped", "ddim leading, to one, eta 0.5", "sde-dpmsolver++ linspace"])
def test_a_control_in_an_unmodified_scheduler(name: str, tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents, martingale and energy of the stock pipeline under variance_noise are those of simulate."""
    scheduler, eta, steps = made(name)
    monkeypatch.setattr(tiny_pipe, "scheduler", scheduler)
    process = StableDiffusionProcess(tiny_pipe, PROMPTS, cfg=3.0, steps=steps, eta=eta, batch=N)
    problem = sc.Problem(process, process.on_images(lambda images: 40 * images.mean((1, 2, 3))))
    law = sc.guidance.plug_in(problem)
    path = sc.simulate(process, law, n=N)
    import diffusers.utils.torch_utils as torch_utils

    normals = process.default_noise.steps(0, process.event_shape, process.default_grid.resolve(process).times)
    monkeypatch.setattr(torch_utils, "randn_tensor", lambda shape, **_: next(normals))
    with controlled(process, law) as (pipe, inside):
        latents = stock_latents(pipe, process, path, eta)
    assert tiny_pipe.scheduler is scheduler
    assert relative(latents, path.terminal) < 5e-5
    torch.testing.assert_close(inside.energy, path.weights.energy, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(inside.martingale, path.weights.martingale, rtol=1e-3, atol=1e-5)
    free = sc.simulate(process, n=N).terminal
    assert relative(free, path.terminal) > 1e-3  # the control does something


def test_a_scheduler_without_variance_noise_takes_no_control(tiny_pipe: Any) -> None:
    scheduler, eta, steps = made("ddpm small")
    process = StableDiffusionProcess(tiny_pipe, PROMPTS, scheduler=scheduler, steps=steps)
    with pytest.raises(sc.NotDefined, match='DDPMScheduler.step takes no variance_noise.*scheduler="ddim"'), \
            controlled(process, None):  # fmt: skip
        pass
    process = StableDiffusionProcess(tiny_pipe, PROMPTS, steps=10, eta=1.0)
    with controlled(process, None) as (pipe, _):
        with pytest.raises(sc.BadInput, match="num_inference_steps=process.steps"):
            pipe(PROMPTS, num_inference_steps=5, output_type="latent", eta=1.0)
        with pytest.raises(sc.BadInput, match="eta = 0.0; wanted eta = 1.0"):
            pipe(PROMPTS, num_inference_steps=10, output_type="latent")


REFUSED: dict[str, Callable[[], Any]] = {  # what the error says -> the scheduler
    "PNDMScheduler, whose step has no Gaussian noise .* DDIMScheduler": partial(stock, "PNDMScheduler"),
    "LMSDiscreteScheduler": partial(stock, "LMSDiscreteScheduler"),
    "EulerDiscreteScheduler": partial(stock, "EulerDiscreteScheduler"),
    "UniPCMultistepScheduler": partial(stock, "UniPCMultistepScheduler"),
    "solver_order=2": partial(stock, "DPMSolverMultistepScheduler"),
    r"algorithm_type='dpmsolver\+\+', a step without": solver,
    "clip_sample=True.*not affine": partial(tiny.ddim, clip_sample=True),
    "thresholding=True": partial(tiny.ddim, thresholding=True),
    "'linspace' and 12 steps: from timestep .* its step to": partial(tiny.ddim, timestep_spacing="linspace"),
    "rescale_betas_zero_snr=True: .* ends at 0": partial(tiny.ddim, rescale_betas_zero_snr=True),
    "variance_type='learned'": partial(ddpm, variance_type="learned"),
    "last timestep of 1": partial(ddpm, variance_type="fixed_large", steps_offset=1),
    "between those of the table": partial(euler, timestep_spacing="linspace"),
    "use_karras_sigmas=True": partial(sde, use_karras_sigmas=True),
    "prediction_type='flow'; wanted one of epsilon, v_prediction, sample": partial(tiny.ddim, prediction_type="flow"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_has_no_gaussian_step_is_refused_by_name(message: str) -> None:
    with pytest.raises(sc.BadInput, match=message):
        read(REFUSED[message]()).grid(12)


def test_trailing_needs_steps_that_divide_the_table() -> None:
    reading = read(tiny.ddim(timestep_spacing="trailing"))
    assert reading.levels(40)[0] == 999
    with pytest.raises(sc.BadInput, match="'trailing' and 30 steps.*divides 1000"):
        reading.levels(30)
    for steps in (0, 1001, 2.5):
        with pytest.raises(sc.BadInput, match="an integer from 1 to 1000"):
            reading.levels(steps)  # type: ignore[arg-type]


def test_sdxl_through_the_same_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny.stable_diffusion_xl(tmp_path)
    process = StableDiffusionProcess(pipe, PROMPTS, cfg=3.0, steps=6, batch=N)
    path = sc.simulate(process, n=N)
    the_same_noise(monkeypatch, pipe.scheduler, process, process.default_noise)
    assert relative(path.terminal, stock_latents(pipe, process, path, 1.0)) < 2e-6
    alone = sc.simulate(process.one(1), n=1, noise=sc.PathNoise(0, batch=N, first=1))
    assert relative(alone.terminal[0], path.terminal[1]) < 2e-6
