"""The small pipeline: what its training minimises, that it resumes with the same bits, what stock diffusers draws."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

import sdecontrol as sc
from sdecontrol.backends.tiny import PROMPTS, Plan, components, ink, split, train
from sdecontrol.backends.tiny.images import Digits, enlarge
from sdecontrol.backends.tiny.objectives import (
    AutoencoderObjective,
    Conditional,
    DenoisingObjective,
    Minibatch,
    Trained,
    latents_of,
)
from sdecontrol.backends.tiny.quality import Reader, draw, nearest, quality
from sdecontrol.backends.tiny.train import tokenize
from sdecontrol.cli import app
from sdecontrol.finetune.checkpoint import Checkpoint, FitRecord

ROOT = Path(__file__).parents[1]
SHORT = Plan(autoencoder_steps=5, denoiser_steps=6, batch=8)
SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from sdecontrol.backends.tiny import Plan, train
train(sys.argv[1], Plan(autoencoder_steps=5, denoiser_steps=6, batch=8), save_every=0.0, progress=False)
"""


def trained_in_a_process(folder: Path, kill_after: int | None) -> bool:
    """Run the short plan in a process; kill it when `kill_after` checkpoints were seen. True when it finished."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder)], env=environment, stderr=subprocess.DEVNULL)
    seen, last = 0, ""
    while process.poll() is None:
        states = [folder / ".training" / stage / "state.safetensors" for stage in ("autoencoder", "denoiser")]
        now = str([state.stat().st_mtime_ns for state in states if state.exists()])
        seen, last = seen + (now != last and now != "[]"), now
        if kill_after is not None and seen >= kill_after:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return False
        time.sleep(0.005)
    assert process.returncode == 0
    return True


def weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.rglob("*.safetensors"))
    assert len(files) == 3
    return {f"{file.parent.name}.{name}": t for file in files for name, t in load_file(file).items()}


def finished(folder: Path, kills: tuple[int, ...]) -> dict[str, Tensor]:
    for after in kills:
        trained_in_a_process(folder, after)
    assert trained_in_a_process(folder, None)
    return weights(folder)


class Crash(Exception):
    pass


def trained_with_crashes(folder: Path, crashes: list[int], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Train in this process, thrown out right after the given numbers of checkpoints, then to the end."""
    save = Checkpoint.save
    for allowed in crashes:
        count = iter(range(allowed, -1, -1))

        def crashing(self: Checkpoint, record: FitRecord, count: Iterator[int] = count) -> None:
            save(self, record)
            if next(count) == 1:
                raise Crash

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(Checkpoint, "save", crashing)
            train(folder, SHORT, save_every=0.0, progress=False)
    train(folder, SHORT, save_every=0.0, progress=False)
    return weights(folder)


def test_training_resumes_with_the_same_bits_and_stock_diffusers_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in either stage; the finished folder is a pipeline that diffusers loads, and is not written over."""
    whole = trained_with_crashes(tmp_path / "whole", [], monkeypatch)
    broken = trained_with_crashes(tmp_path / "broken", [3, 4], monkeypatch)
    assert whole.keys() == broken.keys() and all(torch.equal(whole[name], broken[name]) for name in whole)
    assert not (tmp_path / "broken" / ".training").exists() and (tmp_path / "broken" / "README.md").exists()
    with pytest.raises(sc.BadInput, match="holds a pipeline already"):
        train(tmp_path / "broken", SHORT, progress=False)
    pipeline = StableDiffusionPipeline.from_pretrained(
        tmp_path / "broken", safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a three", num_inference_steps=2, guidance_scale=2.0, height=32, width=32, output_type="np").images
    assert image.shape == (1, 32, 32, 3) and np.isfinite(image).all() and image.std() > 0


@pytest.mark.slow
def test_training_resumes_after_kills_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at moments of its own choosing, in a process of its own."""
    whole = finished(tmp_path / "whole", ())
    killed = finished(tmp_path / "killed", (1, 2, 4))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[name], killed[name]) for name in whole)


def test_checkpoints_of_another_plan_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"

    def crashing(*arguments: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(import_module("sdecontrol.backends.tiny.train"), "latents_of", crashing)
        train(folder, SHORT, save_every=0.0, progress=False)
    with pytest.raises(sc.BadInput, match=r"a checkpoint in .* with seed = 0"):
        train(folder, Plan(1, autoencoder_steps=5, denoiser_steps=6, batch=8), progress=False)


def test_digits_are_enlarged_and_read_back() -> None:
    train_set, held_out = split()
    assert len(train_set) + len(held_out) == 1797 and abs(len(held_out) - 359.4) < 1
    pixels = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float((ink(enlarge(torch.ones(1, 8, 8))) - 1).abs().max()) < 1e-6
    assert float(torch.corrcoef(torch.stack([ink(enlarge(pixels)).flatten(), pixels.flatten()]))[0, 1]) > 0.8
    assert torch.allclose(ink(enlarge(pixels)).mean(), pixels.mean(), atol=0.02)


def test_tokens_are_those_of_the_pipeline(tmp_path: Path) -> None:
    """Round trip through the saved tokenizer; different prompts differ; bytes beyond ASCII survive."""
    words = components.tokenizer()
    words.save_pretrained(tmp_path)
    again = type(words).from_pretrained(tmp_path)
    tokens = tokenize(words, ["", *PROMPTS])
    assert torch.equal(tokens, tokenize(again, ["", *PROMPTS])) and len({tuple(row.tolist()) for row in tokens}) == 11
    assert tokens.shape == (11, components.LENGTH) and int(tokens[0, 1]) == words.eos_token_id
    assert words.decode(words("é").input_ids, skip_special_tokens=True).strip() == "é"


def test_autoencoder_objective_is_its_formula() -> None:
    """E |x - decode(mean + std z)|^2 + 1e-6 KL, the KL of Gaussians by torch.distributions."""
    model, images = components.autoencoder(0), split()[0].images[:6]
    batch, objective = Minibatch(16, sc.Noise(3)), AutoencoderObjective(images)
    with torch.no_grad():
        x = images[batch.integers("image", 6)]
        posterior = model.encode(x).latent_dist
        z = posterior.mean + posterior.std * batch.normal("latent", tuple(posterior.mean.shape[1:]))
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(posterior.mean, posterior.std), normal(0.0, 1.0)).sum()
        wanted = ((model.decode(z).sample - x) ** 2).sum() + 1e-6 * kl
        assert float(objective(model, batch)) == pytest.approx(float(wanted) / x.numel(), rel=1e-4)


def test_denoising_objective_noises_as_the_scheduler_does() -> None:
    """A model told the answer by the scheduler's add_noise and get_velocity has no loss; the drop rate is a tenth."""
    scheduler, event = components.scheduler(), (4, 8, 8)
    mean, std = torch.randn(3, *event), torch.rand(3, *event)
    labels, prompts = torch.tensor([2, 0, 1]), torch.arange(4 * 16).reshape(4, 16)
    objective = DenoisingObjective(mean, std, labels, prompts, scheduler)
    batch, seen = Minibatch(4000, sc.Noise(1)), []

    class Oracle(torch.nn.Module):
        def forward(self, x: Tensor, timesteps: Tensor, tokens: Tensor, which: Tensor) -> Tensor:
            i, eps = batch.integers("image", 3), batch.normal("noise", event)
            z = mean[i] + std[i] * batch.normal("latent", event)
            assert torch.allclose(x, scheduler.add_noise(z, eps, timesteps), atol=1e-5)
            assert torch.equal(tokens, prompts) and bool(((which == 0) | (which == labels[i] + 1)).all())
            seen.append((timesteps, which))
            return scheduler.get_velocity(z, eps, timesteps) + 0.5

    model = Trained.__new__(Trained)
    torch.nn.Module.__init__(model)
    model.live, model.average = Oracle(), type("Still", (), {"update_parameters": lambda self, live: None})()
    assert float(objective(model, batch)) == pytest.approx(0.25, rel=1e-5)
    timesteps, drawn = seen[0]
    assert abs(float((drawn == 0).double().mean()) - 0.1) < 4.5 * (0.09 / 4000) ** 0.5
    assert abs(float(timesteps.double().mean()) - 499.5) < 4.5 * 288.7 / 4000**0.5


def test_prompts_encoded_once_condition_their_own_rows() -> None:
    """Rows that share prompts get what each gets alone, from the U-Net on its own prompt's encoding."""
    tokens = tokenize(components.tokenizer(), ["", *PROMPTS])
    model = Conditional(components.text_encoder(514, 0), components.denoiser(1)).eval()
    generator = torch.Generator().manual_seed(0)
    x, timesteps = torch.randn(5, 4, 8, 8, generator=generator), torch.tensor([1, 400, 999, 20, 600])
    which = torch.tensor([0, 7, 7, 10, 1])
    with torch.no_grad():
        together = model(x, timesteps, tokens, which)
        for i, k in enumerate(which.tolist()):
            encoding = model.text(tokens[k : k + 1]).last_hidden_state
            alone = model.unet(x[i : i + 1], timesteps[i : i + 1], encoding).sample
            assert torch.allclose(together[i], alone[0], atol=1e-5)
        other = model(x, timesteps, tokens, which.roll(1))
    assert float((other - together).abs().amax((1, 2, 3))[[0, 1, 3, 4]].min()) > 1e-3


def test_average_forgets_at_its_rate() -> None:
    """Five updates of an average of 0 towards weights that are all 1 leave it at 1 - 0.995^5."""
    model = Trained(Conditional(components.text_encoder(514, 0), components.denoiser(0)))
    with torch.no_grad():
        model.average.update_parameters(model.live)  # the first update copies
        for p in model.average.module.parameters():
            p.zero_()
        for p in model.live.parameters():
            p.fill_(1.0)
        for _ in range(5):
            model.average.update_parameters(model.live)
    for p in model.average.module.parameters():
        assert torch.allclose(p, torch.full_like(p, 1 - 0.995**5), atol=1e-6)


def test_latents_are_scaled_to_unit_variance() -> None:
    mean, std, scale = latents_of(components.autoencoder(0).eval(), split()[0].images[:200])
    total = float(mean.double().var() + std.double().square().mean())
    assert total == pytest.approx(1.0, abs=1e-4) and scale > 0


class Replayed:
    """A pipeline that returns given images, whatever it is asked."""

    def __init__(self, images: Tensor):
        self.images, self.at = images, 0

    def set_progress_bar_config(self, disable: bool) -> None:
        pass

    def __call__(self, prompts: list[str], **options: object) -> object:
        part = self.images[self.at : self.at + len(prompts)]
        self.at += len(prompts)
        return type("Output", (), {"images": (part + 1) / 2})()


def test_quality_of_real_digits_is_that_of_real_digits() -> None:
    """Fresh real digits: read, as varied and as far from the training images as real ones; copies are found out."""
    train_set, held_out = split()
    order = torch.argsort(held_out.labels, stable=True)
    fresh = Digits(held_out.images[order], held_out.labels[order])
    found = quality(fresh)
    assert abs(float(found.variance.value) - 1) < 5 * float(found.variance.stderr)
    assert found.nearest == pytest.approx(1.0) and float(found.copies.value) <= 0.012
    assert float(Reader(held_out).accuracy(train_set).value) > 0.9
    copied = quality(Digits(train_set.images[:300], train_set.labels[:300]))
    assert float(copied.copies.value) == 1.0 and copied.nearest == 0.0
    means = torch.stack([train_set.images[train_set.labels == label].mean(0) for label in range(10)])
    typical = quality(Digits(means.repeat(5, 1, 1, 1), torch.arange(50) % 10))
    assert float(typical.variance.value) < 1e-6 and float(typical.accuracy.value) > 0.9


def test_within_class_variance_and_distances_against_numpy() -> None:
    _, held_out = split()
    pixels, labels = ink(held_out.images).flatten(1).double().numpy(), held_out.labels.numpy()
    classes = [pixels[labels == label] for label in range(10)]
    pooled = sum(len(x) * np.trace(np.cov(x.T)) for x in classes) / len(pixels)
    train_set, _ = split()
    real, real_labels = ink(train_set.images).flatten(1).double().numpy(), train_set.labels.numpy()
    of_class = [real[real_labels == label] for label in range(10)]
    reference = sum(len(x) * np.trace(np.cov(x.T)) for x in of_class) / len(real)
    assert float(quality(held_out).variance.value) == pytest.approx(pooled / reference, rel=1e-6)
    shortest = np.sqrt(((pixels[:7, None] - real[None]) ** 2).sum(-1)).min(1)
    found = nearest(Digits(held_out.images[:7], held_out.labels[:7]), train_set)
    assert np.allclose(found.numpy(), shortest, atol=1e-4)


def test_drawn_images_have_their_prompts_and_range() -> None:
    images = split()[0].images[:25]
    drawn = draw(Replayed(images), 25, batch=10, progress=False)
    assert torch.allclose(drawn.images, images, atol=1e-6) and drawn.labels.tolist() == [i % 10 for i in range(25)]


def test_command_refuses_before_work(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train-tiny", "--out", str(tmp_path), "--data", "faces"])
    assert result.exit_code == 2 and "wanted digits" in result.stderr
    (tmp_path / "model_index.json").write_text(json.dumps({}))
    result = CliRunner().invoke(app, ["train-tiny", "--out", str(tmp_path)])
    assert result.exit_code == 2 and "holds a pipeline already" in result.stderr
    with pytest.raises(sc.BadInput, match="denoiser_steps = 0"):
        Plan(denoiser_steps=0)


def test_schedule_is_stable_diffusions() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler: DDIMScheduler = components.scheduler()
    assert torch.allclose(scheduler.alphas_cumprod.double(), torch.cumprod(1 - betas, 0), rtol=1e-5)
    assert float(scheduler.final_alpha_cumprod) == pytest.approx(float(scheduler.alphas_cumprod[0]))
