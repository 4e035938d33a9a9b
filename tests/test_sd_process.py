"""Stable Diffusion as one more process: laws and samplers, prompts, batches, LoRA, checkpoints, half precision."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from torch import Tensor

import sdecontrol as sc
from sdecontrol.backends import StableDiffusionProcess
from sdecontrol.backends.network import adapters

PROMPTS = ["a cat", "two dogs", "three owls"]
STEPS = 5


def brightness(images: Tensor) -> Tensor:
    return 40 * images.mean((1, 2, 3))


def make(pipe: Any, prompts: Any = "a cat", **options: Any) -> StableDiffusionProcess:
    return StableDiffusionProcess(pipe, prompts, **({"cfg": 3.0, "steps": STEPS} | options))


def problem_of(process: StableDiffusionProcess, reward: Any = brightness, temperature: float = 1.0) -> sc.Problem:
    return sc.Problem(process, process.on_images(reward), temperature)


LAWS: dict[str, Callable[[sc.Problem], Any]] = {
    "plug-in": sc.guidance.plug_in,
    "dps": lambda p: sc.guidance.dps(p, scale=0.05),
    "classifier": lambda p: sc.guidance.classifier(p, lambda x, s: x.mean((1, 2, 3)), 2.0),
    "cfg": lambda p: sc.guidance.cfg(p, p.process.unconditional, -0.5),
    "of one's own": lambda p: sc.StepControl(lambda step: step.from_mean(0.01 * step.x0_hat)),
    "sum": lambda p: 0.5 * sc.guidance.plug_in(p) + sc.guidance.dps(p, scale=0.05),
}
SAMPLERS: dict[str, Callable[[sc.Problem], Any]] = {
    "fk": lambda p: sc.steering.fk(p, 4),
    "twisted": lambda p: sc.steering.twisted(p, 4),
    "svdd": lambda p: sc.steering.svdd(p, 3),
    "best of": lambda p: sc.steering.best_of(p, 3),
    "rejection": lambda p: sc.steering.rejection(p, bound=45.0, budget=1e12),
}


def test_every_law_is_scored_against_one_optimum(tiny_pipe: Any) -> None:
    problem = problem_of(make(tiny_pipe, PROMPTS))
    table = sc.compare(problem, {name: law(problem) for name, law in LAWS.items()}, n=12, show=False)
    for name, row in table.rows.items():
        assert row.kl.value > 0 and torch.isfinite(torch.tensor(row.gap.value)), name
    assert table.rows["plug-in"].optimum.route.endswith("biased low")


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "rejection"])
def test_samplers_run_and_agree_on_log_z(name: str, tiny_pipe: Any) -> None:
    problem = problem_of(make(tiny_pipe, steps=3))
    scored = sc.evaluate(problem, SAMPLERS[name](problem), n=24)
    plain = sc.evaluate(problem, sc.StepControl(lambda step: torch.zeros_like(step.x)), n=64)
    if scored.log_normalizer is not None:
        assert abs(scored.log_normalizer.z(plain.optimum)) < 4.5
    assert scored.reward.value > plain.reward.value - 4 * plain.reward.stderr


def test_the_control_of_the_first_page_runs_unchanged(tiny_pipe: Any) -> None:
    """README and the guidance page write laws as functions of a step; the same functions run on pictures."""

    def towards_the_reward(step: Any) -> Tensor:
        return step.from_value(step.reward_gradient(reward), temperature=0.7)

    law = sc.Gaussian(mean=[1.0, -0.5], covariance=[[1.0, 0.3], [0.3, 0.5]])
    small = sc.ReverseProcess(sc.VP(), law)
    reward: Any = sc.Linear([1.0, 0.0])
    assert sc.evaluate(sc.Problem(small, reward, 0.7), towards_the_reward, n=200).kl.value > 0
    process = make(tiny_pipe)
    reward = process.on_images(brightness)
    assert sc.evaluate(sc.Problem(process, reward, 0.7), towards_the_reward, n=4).kl.value > 0


PACKAGE = Path(sc.__file__).parent
GENERAL = ["guidance", "steering", "girsanov.py", "evaluate.py", "simulate.py", "step.py", "controls.py", "kernels.py"]


def sources() -> Iterator[Path]:
    for name in GENERAL:
        path = PACKAGE / name
        yield from [path] if path.suffix else path.rglob("*.py")


@pytest.mark.parametrize("path", list(sources()), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_theory_has_no_import_of_and_no_branch_for_pictures(path: Path) -> None:
    """No name of the backend, of its packages, or of what only pictures have, anywhere but in comments and docs."""
    tree = ast.parse(path.read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
    words = ("backend", "diffusers", "transformers", "peft", "unet", "vae", "prompt", "pixel", "pipe")
    assert not [name for name in names for word in words if word in name.lower()]


# --- the conditions of paths ---


def test_image_i_has_prompt_i_mod_m_and_its_own_noise(tiny_pipe: Any) -> None:
    process = make(tiny_pipe, PROMPTS, batch=2)
    path = sc.simulate(process, n=7)
    assert path.group.tolist() == [0, 1, 2, 0, 1, 2, 0]
    for i in (0, 3, 4):
        alone = process.one(i % 3)
        again = sc.simulate(alone, n=1, noise=sc.PathNoise(0, batch=2, first=i))
        assert torch.equal(again.initial[0], path.initial[i])
        torch.testing.assert_close(again.terminal[0], path.terminal[i], rtol=1e-5, atol=1e-5)
    wrong = sc.simulate(process.one(1), n=1, noise=sc.PathNoise(0, batch=2, first=3))
    assert float((wrong.terminal[0] - path.terminal[3]).abs().max()) > 1e-3


def test_the_optimum_is_the_mean_over_prompts(tiny_pipe: Any) -> None:
    """T log Z averaged over prompts, each estimated from its own images; and the gap of the paths to it."""
    process = make(tiny_pipe, PROMPTS)
    problem = problem_of(process, lambda images: 400 * images.mean((1, 2, 3)), temperature=2.0)
    law = sc.guidance.plug_in(problem)
    scored = sc.evaluate(problem, law, n=30)
    path = sc.simulate(process, law, n=30)
    weights = problem.reward(path.terminal).double() / 2.0 - path.log_ratio()
    each = [2.0 * (torch.logsumexp(weights[path.group == g], 0) - torch.tensor(10.0).log()) for g in range(3)]
    assert scored.optimum.value == pytest.approx(float(sum(each)) / 3, rel=1e-9)
    assert scored.gap.value == pytest.approx(float(sum(each)) / 3 - 2.0 * float(weights.mean()), rel=1e-6)
    pooled = 2.0 * float(torch.logsumexp(weights, 0) - torch.tensor(30.0).log())
    assert abs(pooled - scored.optimum.value) > 1e-3  # one Z for all prompts is another number
    with pytest.raises(sc.BadInput, match="at least two paths for each"):
        sc.evaluate(problem, law, n=5)
    with pytest.raises(sc.BadInput, match="3 conditions; wanted one"):
        sc.steering.fk(problem, 4).run(problem, n=4)


# --- batches and memory ---


@pytest.mark.parametrize("name", LAWS)
def test_bits_do_not_depend_on_the_batch(name: str, tiny_pipe: Any) -> None:
    """The same bits for 3 images as for the first 3 of 10, and for images computed by one or two workers."""
    problem = problem_of(make(tiny_pipe, batch=4))
    law = LAWS[name](problem)
    many = sc.simulate(problem.process, law, n=10, workers=1)
    few = sc.simulate(problem.process, law, n=3)
    assert torch.equal(few.terminal, many.terminal[:3])
    assert torch.equal(few.log_ratio(), many.log_ratio()[:3])
    assert torch.equal(sc.simulate(problem.process, law, n=10, workers=2).terminal, many.terminal)


def test_every_call_has_the_same_shape(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What keeps bits apart from n where a network's kernels depend on the shape of a call."""
    process, forward, seen = make(tiny_pipe, batch=4), tiny_pipe.unet.forward, set()

    def watched(rows: Tensor, *args: Any, **options: Any) -> Any:
        seen.add(tuple(rows.shape))
        return forward(rows, *args, **options)

    monkeypatch.setattr(tiny_pipe.unet, "forward", watched)
    for n in (1, 4, 6):
        sc.simulate(process, n=n)
    assert seen == {(8, 4, 8, 8)}  # 4 images, with and without their prompt


def test_rows_do_not_see_each_other(tiny_pipe: Any) -> None:
    process = make(tiny_pipe, batch=4)
    x = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    out, permuted = process.network(x, 0.5), process.network(x[order], 0.5)
    torch.testing.assert_close(permuted, out[order], rtol=1e-5, atol=1e-5)
    smaller = replace(process.network, batch=1)(x, 0.5)
    torch.testing.assert_close(smaller, out, rtol=1e-5, atol=1e-5)


def test_memory_error_says_what_to_lower(tiny_pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = make(tiny_pipe, batch=4)

    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    wanted = r"4 image\(s\).*lower batch.*float16.*checkpoint=True"
    problem = problem_of(process)
    for owner, name in ((torch.autograd, "grad"), (tiny_pipe.unet, "forward")):  # backward, forward
        with monkeypatch.context() as patch, pytest.raises(sc.errors.OutOfMemory, match=wanted):
            patch.setattr(owner, name, full)
            sc.simulate(process, sc.guidance.plug_in(problem), n=4)
    state = process.state(0.5, torch.randn(4, 4, 8, 8), jacobian=True)
    monkeypatch.setattr(torch.autograd, "grad", full)
    with pytest.raises(sc.errors.OutOfMemory, match=wanted):
        state.pullback(torch.ones(4, 4, 8, 8))


# --- dtypes ---


def test_half_precision_network_keeps_float32_log_ratios(tmp_path: Path) -> None:
    """A bfloat16 UNet: states, means and log ratios in float32, E of the energy equal to a recount in float64."""
    pipe = tiny.stable_diffusion(tmp_path)
    exact = problem_of(make(pipe, batch=4))
    reference = sc.simulate(exact.process, sc.guidance.plug_in(exact), n=4)
    pipe.to(torch.bfloat16)
    problem = problem_of(make(pipe, batch=4))
    path = sc.simulate(problem.process, sc.guidance.plug_in(problem), n=4)
    assert path.terminal.dtype == torch.float32 and path.log_ratio().dtype == torch.float64
    assert path.noises is not None
    with torch.no_grad():  # a graph of the backward pass would be another order of roundings in bfloat16
        weights = path.replay_weights(sc.guidance.plug_in(problem))
    torch.testing.assert_close(weights.log_ratio(), path.log_ratio(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(path.weights.energy, reference.weights.energy, rtol=0.1, atol=1e-3)
    assert problem.process.describe()["dtype"] == "bfloat16"


@pytest.mark.parametrize("make_pipe", [tiny.stable_diffusion, tiny.stable_diffusion_xl])
@pytest.mark.filterwarnings("ignore:.upcast_vae. is deprecated:FutureWarning")  # diffusers, of its own call
def test_decoding_leaves_a_float16_pipeline_as_it_was(tmp_path: Path, make_pipe: Callable[[Path], Any]) -> None:
    """Stable Diffusion's VAE decodes in float16, SDXL's in a float32 copy; the stock pipeline decodes afterwards."""
    pipe = make_pipe(tmp_path).to(torch.float16)
    process = make(pipe, batch=2)
    latents = torch.randn(2, *process.event_shape, generator=torch.Generator().manual_seed(0))
    copied = hasattr(pipe, "text_encoder_2")
    with torch.no_grad():
        images = process.decode(latents)
        same = copy.deepcopy(pipe.vae).to(torch.float32 if copied else torch.float16)
        wanted = same.decode((latents / pipe.vae.config.scaling_factor).to(same.dtype)).sample.float() / 2 + 0.5
    torch.testing.assert_close(images, wanted.clamp(0, 1), rtol=0, atol=1e-6 if copied else 1e-3)
    assert pipe.vae.dtype == torch.float16
    assert process.on_images(brightness).gradient(latents).abs().sum() > 0
    stock = pipe("a cat", num_inference_steps=2, guidance_scale=3.0, output_type="pt").images
    assert stock.shape[1:] == images.shape[1:] and bool(torch.isfinite(stock).all())


# --- adapters and gradients ---


@pytest.fixture()
def adapted_pipe(tmp_path: Path) -> Any:
    from peft import LoraConfig

    pipe = tiny.stable_diffusion(tmp_path)
    pipe.unet.requires_grad_(False)
    pipe.unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    return pipe


def test_adapter_off_is_the_reference_and_on_is_not(adapted_pipe: Any, tmp_path: Path) -> None:
    plain = tiny.stable_diffusion(tmp_path / "again")
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    process = make(adapted_pipe)
    assert torch.equal(process.network(x, 0.5), make(plain).network(x, 0.5))
    tuned = process.adapted().network(x, 0.5).detach()
    assert float((tuned - process.network(x, 0.5)).abs().max()) > 1e-3
    direct = adapted_pipe.unet(x, 499, process.network.conditions.conditional(torch.zeros(3, dtype=torch.long)).hidden)
    found = process.with_cfg(1.0).adapted().network(x, 0.5)
    torch.testing.assert_close(found, direct.sample, rtol=1e-5, atol=1e-5)


def fine_tuned_loss(process: StableDiffusionProcess) -> Tensor:
    """E r - KL of the LoRA's control, through the whole chain: the reference and the adapted model in one graph."""
    tuned = process.adapted()

    def control(step: Any) -> Tensor:
        score = tuned.model.score(step.x, step.process.noise_level(step.t), graph=True)[0]
        return step.from_score(score - step.score)

    path = sc.simulate(process, control, n=2, grad=True, dtype=process.pipe.unet.dtype)
    return process.on_images(brightness)(path.terminal).mean() - path.weights.energy.mean()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_through_the_chain_against_finite_differences(adapted_pipe: Any, checkpoint: bool) -> None:
    """Adapters are off in the reference and on in the control of one graph, also when activations are recomputed."""
    adapted_pipe.unet.double(), adapted_pipe.vae.double()
    process = make(adapted_pipe, checkpoint=checkpoint, steps=3, batch=2)
    weights = [w for w in adapted_pipe.unet.parameters() if w.requires_grad]
    before = [layer.training for layer in adapted_pipe.unet.modules()]
    gradients = torch.autograd.grad(fine_tuned_loss(process), weights)
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
    slope = float(sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)))
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=sign * 1e-5)
            ends.append(float(fine_tuned_loss(process)))
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=-sign * 1e-5)
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)
    assert before == [layer.training for layer in adapted_pipe.unet.modules()]


def test_checkpointing_gives_the_same_gradients(adapted_pipe: Any) -> None:
    weights = [w for w in adapted_pipe.unet.parameters() if w.requires_grad]
    plain, again = (
        torch.autograd.grad(fine_tuned_loss(make(adapted_pipe, checkpoint=c, steps=3)), weights) for c in (False, True)
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_adapters_come_back_as_they_were_and_weights_stay_trainable(adapted_pipe: Any) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in adapted_pipe.unet.modules() if isinstance(layer, BaseTunerLayer)]
    trainable = [w.requires_grad for w in adapted_pipe.unet.parameters()]
    for on in (True, False):
        with pytest.raises(ZeroDivisionError), adapters(adapted_pipe.unet, on):
            assert all(layer.disable_adapters is not on for layer in layers)
            raise ZeroDivisionError
        assert not any(layer.disable_adapters for layer in layers)
    assert trainable == [w.requires_grad for w in adapted_pipe.unet.parameters()]


def test_pullback_is_the_jacobian_of_x0_hat(tiny_pipe: Any) -> None:
    """c J against central differences of x0_hat, for each prediction type and with recomputed activations."""
    generator = torch.Generator().manual_seed(2)
    x, c, d = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(3))
    for prediction in ("epsilon", "v_prediction", "sample"):
        process = make(tiny_pipe, scheduler=tiny.ddim(prediction_type=prediction), checkpoint=True, batch=2)
        t = process.reading.time(process.levels[2])
        pulled = process.state(t, x, jacobian=True).pullback(c)
        ends = [process.state(t, x + h * d).x0_hat for h in (1e-2, -1e-2)]
        expected = (c * (ends[0] - ends[1])).sum((1, 2, 3)) / 2e-2
        torch.testing.assert_close((pulled * d).sum((1, 2, 3)), expected, rtol=2e-2, atol=2e-2)


# --- rewards that go wrong ---


def test_a_reward_without_gradient_is_refused_where_one_is_needed(tiny_pipe: Any) -> None:
    process = make(tiny_pipe)
    problem = problem_of(process, lambda images: (images.detach() > 0.5).float().mean((1, 2, 3)))
    with pytest.raises(sc.NotDefined, match="no gradient in the image.*fk, svdd, best_of"):
        sc.evaluate(problem, sc.guidance.plug_in(problem), n=2)
    assert sc.evaluate(problem, sc.steering.fk(problem, 4), n=8).reward.value > 0


def test_nan_reward_names_image_and_step_and_keeps_finished_images(tiny_pipe: Any) -> None:
    process = make(tiny_pipe, batch=2)
    calls = {"n": 0}

    def spoiled(images: Tensor) -> Tensor:
        calls["n"] += 1
        r = brightness(images)
        return torch.where(torch.arange(len(r)) == 1, torch.nan, r) if calls["n"] == 6 else r

    problem = problem_of(process, spoiled)  # one call is the probe's
    with pytest.raises(sc.NotFinite, match="the reward produced .* for path 9 at step 5") as caught:
        sc.evaluate(problem, sc.StepControl(lambda step: torch.zeros_like(step.x)), n=12)
    paths, latents = caught.value.finished
    assert paths.tolist() == list(range(12)) and torch.isfinite(latents).all()

    def late(step: Any) -> Tensor:
        bad = step.k == 3 and float(step.x[0, 0, 0, 0]) == marked
        return torch.full_like(step.x, torch.nan) if bad else torch.zeros_like(step.x)

    path = sc.simulate(process, n=6, workers=1)
    assert path.states is not None
    marked = float(path.states[3, 4, 0, 0, 0])
    with pytest.raises(sc.NotFinite, match="the control produced .* for paths 4, 5 at step 3") as caught:
        sc.simulate(process, late, n=6, workers=1)
    paths, latents = caught.value.finished
    assert paths.tolist() == [0, 1, 2, 3] and torch.equal(latents, path.terminal[:4])


def test_no_log_ratio_without_noise(tiny_pipe: Any) -> None:
    """eta = 0: simulation yes, control and log ratio no."""
    process = make(tiny_pipe, eta=0.0)
    assert torch.isfinite(sc.simulate(process, n=2).terminal).all()
    problem = problem_of(process)
    with pytest.raises(sc.InfiniteKL, match=r"step 0 .*DDIM\(eta=0.0\) has no noise.*Use eta > 0"):
        sc.simulate(process, sc.guidance.plug_in(problem), n=2)
    half = make(tiny_pipe, eta=0.5)
    assert "cannot tilt" in half.describe()["notes"][1]
    assert half.describe()["prior_gap"] == pytest.approx(half.schedule.alpha(half.schedule.level(half.levels[0])))


def test_decoding_is_the_pipelines(tiny_pipe: Any) -> None:
    process = make(tiny_pipe, batch=3)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = process.decode(latents)
    config = tiny_pipe.vae.config
    stock = tiny_pipe.vae.decode(latents / config.scaling_factor, return_dict=False)[0]
    stock = tiny_pipe.image_processor.postprocess(stock.detach(), output_type="pt")
    torch.testing.assert_close(images, stock, rtol=1e-5, atol=1e-5)
    assert torch.equal(process.decode(latents[:3]), images[:3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "one or more texts"),
        ({"prompts": "a very long prompt about a cat"}, r"a prompt of \d+ tokens, 'a very long.*at most 16"),
        ({"negative_prompt": "everything that is ugly"}, "at most 16"),
        ({"cfg": -1.0}, "cfg = -1.0"),
        ({"height": 15}, "multiples of 2"),
        ({"steps": 0}, "steps = 0"),
        ({"eta": 1.5}, "eta = 1.5"),
    ],
)
def test_bad_input_is_said_before_work(options: dict[str, Any], message: str, tiny_pipe: Any) -> None:
    with pytest.raises(sc.BadInput, match=message):
        make(tiny_pipe, **options)
