"""`sdecontrol sample` on a random pipeline: images, tables, rewards by name, and what is refused before any work."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from typer.testing import CliRunner

import sdecontrol as sc
from sdecontrol.backends import StableDiffusionProcess
from sdecontrol.backends.image_rewards import Brightness, ClassPosterior
from sdecontrol.backends.noisy_classifier import NoisyClassifier
from sdecontrol.backends.reward_names import REWARDS, named
from sdecontrol.backends.sampling import question
from sdecontrol.backends.tiny.images import split
from sdecontrol.backends.tiny.quality import Reader
from sdecontrol.backends.tiny.rewards import digit_posterior
from sdecontrol.cli import app
from sdecontrol.report.memory import peak_memory
from tests.tiny_pipelines import stable_diffusion

FAST = ["--n", "4", "--steps", "3", "--cfg", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    stable_diffusion(made / "words").save_pretrained(made / "pipeline", safe_serialization=True)
    return made / "pipeline"


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["sample", "--model", str(folder), "--prompt", "a cat", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def test_every_law_from_one_command(folder: Path, tmp_path: Path) -> None:
    laws = "none,plug-in,dps:0.1,cfg,fk:2,twisted:2,svdd:2,best-of-n:2,exact-variance,gloss,classifier"
    code, out, err = run(folder, *FAST, "--reward", "brightness:5", "--control", laws, "--out", str(tmp_path))
    assert code == 0 and "rror" not in err
    found = json.loads((tmp_path / "comparison.json").read_text())["problems"]["a-cat"]
    assert set(found["laws"]) | set(found["not defined"]) == set(laws.split(","))
    assert "classifier" in found["not defined"]
    none = found["laws"]["none"]
    assert none["score"]["kl"]["value"] == 0 and none["peak"] > 2**20 and none["seconds"] > 0
    assert all(found["laws"][law]["score"]["kl"]["value"] > 0 for law in ("plug-in", "gloss"))
    for law in found["laws"]:
        pictures = sorted((tmp_path / "images" / "a-cat" / law.replace(":", "-")).glob("*.png"))
        assert len(pictures) >= 2 and pixels(pictures[0]).shape == (16, 16, 3)
    means = [pixels(file).mean() / 255 for file in (tmp_path / "images" / "a-cat" / "none").glob("*.png")]
    assert 5 * np.mean(means) == pytest.approx(none["score"]["reward"]["value"], abs=5 * 0.004)
    page = (tmp_path / "comparison.md").read_text()
    assert "log Z" in page and "ESS" in page and (tmp_path / "a-cat-samples.png").stat().st_size > 1000


def test_one_trial_a_prompt_and_temperature(folder: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        folder, *FAST, "--prompt", "a dog", "--reward", "jpeg-compressibility", "--control", "none,plug-in",
        "--temperature", "0.5", "--temperature", "2", "--out", str(tmp_path), "--json",
    )  # fmt: skip
    found = json.loads(out)["problems"]
    assert code == 0 and set(found) == {f"a-{pet}-{t}" for pet in ("cat", "dog") for t in ("0.5", "2")}
    for trial in found.values():
        assert "no gradient in the image" in trial["not defined"]["plug-in"]
    cat, dog = (found[f"a-{pet}-2"]["laws"]["none"]["score"]["reward"]["value"] for pet in ("cat", "dog"))
    assert cat != dog and cat < 0


def test_own_reward_and_law_from_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "reward = lambda images: images[:, 0].mean((1, 2))\n"
        "controls = {'twice': lambda p: (lambda step: 2 * step.from_value(step.reward_gradient(p.reward), 1))}"
    )
    asked = ["--reward", str(file), "--control", "none,twice", "--out", str(tmp_path), "--json"]
    code, out, _ = run(folder, *FAST, *asked)
    laws = json.loads(out)["problems"]["a-cat"]["laws"]
    assert code == 0 and laws["twice"]["score"]["kl"]["value"] > 0 and 0 < laws["none"]["score"]["reward"]["value"] < 1


def test_cfg_as_a_control_is_the_pipeline_at_the_other_scale(folder: Path) -> None:
    """From a reference at 2 the control of name cfg ends where a process at 7.5 ends, for the same noise."""
    from sdecontrol.backends.loading import load_pipeline

    pipe = load_pipeline(folder)
    process = StableDiffusionProcess(pipe, "a cat", cfg=2.0, steps=4)
    problem = question(process, named("brightness", "a cat"), 1.0, "q").problem
    control = question(process, named("brightness", "a cat"), 1.0, "q").own["cfg"](problem)
    moved = sc.simulate(process, control, n=3).terminal
    stock = sc.simulate(StableDiffusionProcess(pipe, "a cat", cfg=7.5, steps=4), n=3).terminal
    free = sc.simulate(process, n=3).terminal
    assert float((moved - stock).abs().max()) < 1e-4 < 0.05 < float((free - stock).abs().max())


def test_reward_names_make_rewards_and_refuse_arguments() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(named("brightness:3", "").reward(images), Brightness(3.0)(images))
    for text, said in {
        "brightness:big": "brightness\\[:SCALE\\]", "digit:": "digit:LABEL", "digit:12": "one from 0 to 9",
        "clip": "clip:SOURCE", "aesthetic:one": "aesthetic:CLIP,HEAD", "nothing.py": "no file at",
    }.items():  # fmt: skip
        with pytest.raises(sc.BadInput, match=said):
            named(text, "a cat")
    with pytest.raises(sc.UnknownName, match="brightness"):
        named("brightnes", "a cat")
    assert len(REWARDS) == 7


def test_digit_posterior_reads_held_out_digits() -> None:
    """A law of total probability, and agreement with a support vector machine that shares no code or data with it."""
    train, held_out = split()
    images = (held_out.images[:200] + 1) / 2
    every = torch.stack([digit_posterior(label)(images) for label in range(10)])
    assert torch.allclose(every.exp().sum(0), torch.ones(200), atol=1e-5)
    assert float((every.argmax(0) == held_out.labels[:200]).double().mean()) > 0.93
    machine = Reader(train).machine.predict(_rows(held_out.images[:200]))
    assert float((every.argmax(0).numpy() == machine).mean()) > 0.93


def _rows(images: torch.Tensor) -> np.ndarray:
    from sdecontrol.backends.tiny.images import ink

    return ink(images).flatten(1).numpy()


def test_peak_memory_sees_what_is_held() -> None:
    with peak_memory() as small:
        before = small()
    with peak_memory() as large:
        held = torch.ones(40 * 2**20)
        held.add_(1.0)
        del held
        assert large() - before > 100 * 2**20


REFUSED = {
    "reward unknown": (["--reward", "beauty"], "unknown reward"),
    "law unknown": (["--reward", "brightness", "--control", "magic"], "unknown law"),
    "temperature zero": (["--reward", "brightness", "--temperature", "0"], "wanted a positive number"),
    "backend unknown": (["--reward", "brightness", "--backend", "flux"], "unknown backend"),
    "prompt too long": (["--reward", "brightness", "--prompt", "a very long prompt of many words"], "a prompt of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_ends_with_code_two(folder: Path, tmp_path: Path, case: str) -> None:
    arguments, said = REFUSED[case]
    code, _, err = run(folder, *FAST, *arguments, "--out", str(tmp_path))
    assert code == 2 and said in err and not list(tmp_path.iterdir())


def test_a_folder_that_is_no_pipeline(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, *FAST, "--reward", "brightness", "--out", str(tmp_path / "out"))
    assert code == 2 and "model_index.json" in err


class Latents(sc.ReverseProcess):
    """Two Gaussians in four dimensions in the place of a pipeline's unconditional latents; decoding changes nothing."""

    pipe, batch, default_noise = object(), 64, sc.Noise(0)

    def with_cfg(self, cfg: float) -> Latents:
        return self

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def test_classifier_of_noisy_latents_is_the_posterior_of_the_clean_label() -> None:
    """Learned from the chain's own draws, labelled where they are clean, it is the mixture's p(y | x_s), in KL."""
    mean = torch.tensor([1.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    law = sc.GaussianMixture([0.7, 0.3], torch.stack([mean, -mean]), 0.25 * torch.eye(4).expand(2, 4, 4))
    process = Latents(sc.VP(), law)
    reward = ClassPosterior(lambda x: torch.stack([x[:, 0], -x[:, 0]], 1) * 12, 1)  # the clean label, by Bayes
    learned = NoisyClassifier(reward).learned(process)
    for level in (0.1, 0.4):
        alpha, h = process.schedule.alpha(level), process.schedule.h(level)
        noised = law.noised(alpha, h)
        x = noised.sample(2000, sc.Noise(3))
        odds = 2 * alpha * 1.5 * x[:, 0] / (alpha**2 * 0.25 + h) + math.log(0.7 / 0.3)
        truth = torch.stack([odds, torch.zeros_like(odds)], 1).log_softmax(1)
        gap = (truth.exp() * (truth - learned.log_prob(x, level).detach())).sum(1).mean()
        assert 0 <= float(gap) < 0.03, (level, float(gap))
    assert NoisyClassifier(reward).learned(process) is not learned


@pytest.mark.parametrize("law", ["none", "plug-in"])
def test_no_images_are_drawn_for_the_front_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, law: str
) -> None:
    """Without the row `none` there is no exact front; with it, its images are the front's.

    The UNet sees the law's run, 3 steps of one batch with CFG, and twice the probes that tell one problem from another.
    """
    seen, forward = [], UNet2DConditionModel.forward
    monkeypatch.setattr(
        UNet2DConditionModel, "forward", lambda self, x, *a, **k: (seen.append(len(x)), forward(self, x, *a, **k))[1]
    )
    code, _, _ = run(folder, *FAST, "--reward", "brightness", "--control", law, "--out", str(tmp_path))
    assert code == 0 and sum(seen) <= 3 * (3 * 2 * 16)


@pytest.mark.parametrize(("law", "runs", "paths"), [("dps", 9, 4), ("gloss", 1, 64)])
def test_pilot_runs_draw_the_paths_they_need_and_no_more(folder: Path, law: str, runs: int, paths: int) -> None:
    """Rows that the UNet sees: runs x steps x paths, filled up to a batch of 16, twice for CFG."""
    from sdecontrol.backends.loading import load_pipeline
    from sdecontrol.methods import choose

    pipe, seen = load_pipeline(folder), []
    process = StableDiffusionProcess(pipe, "a cat", cfg=2.0, steps=3)
    problem = question(process, named("brightness", "a cat"), 1.0, "q").problem
    handle = pipe.unet.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    choose([law])[0].entry(problem, grid=process.default_grid, kernel=process.default_kernel, pilot=4)
    handle.remove()
    assert sum(seen) == runs * 3 * 2 * max(paths, process.batch)
