"""Training the small pipeline: an autoencoder, then prompt encoder and U-Net on its latents, then the standard folder.

Each stage is a `Training`: addressed minibatches, checkpoints, and the same bits after any interruption.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdecontrol.backends.tiny import components
from sdecontrol.backends.tiny.card import model_card
from sdecontrol.backends.tiny.images import PROMPTS, Digits, split
from sdecontrol.backends.tiny.objectives import (
    AutoencoderObjective,
    Conditional,
    DenoisingObjective,
    Minibatch,
    Trained,
    latents_of,
)
from sdecontrol.errors import check
from sdecontrol.finetune.checkpoint import FitRecord
from sdecontrol.finetune.fit import SAVE_EVERY, Training, cosine
from sdecontrol.noise import Noise
from sdecontrol.report.atomic import writable_folder

STATE = ".training"  # the folder of checkpoints, gone when the pipeline is whole


@dataclass(frozen=True)
class Plan:
    """How long and how fast each stage learns. The defaults take under eight minutes on two cores."""

    seed: int = 0
    autoencoder_steps: int = 400
    denoiser_steps: int = 2200
    batch: int = 64
    autoencoder_rate: float = 3e-3
    denoiser_rate: float = 1.5e-3
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            allowed = value >= (name != "seed") if isinstance(value, int) else value >= 0
            check(allowed, f"{name} = {value!r}", "a positive number of steps or images, and rates of at least 0")


@dataclass(frozen=True)
class Outcome:
    """The finished pipeline, or None after an interruption; the seconds of each stage."""

    pipeline: StableDiffusionPipeline | None
    seconds: dict[str, float]


def train(
    out: str | Path,
    plan: Plan | None = None,
    *,
    resume: bool = True,
    save_every: float = SAVE_EVERY,
    progress: bool = True,
) -> Outcome:
    """A StableDiffusionPipeline for the digits of scikit-learn, saved in `out` in the standard layout.

    Checkpoints go to `out`/.training every `save_every` seconds and on Ctrl-C; the same call goes on from there and
    ends with the same weights, bit for bit (same machine, threads and versions). Needs scikit-learn.
    Raises, before work: BadInput for a folder that cannot be written to, that holds a pipeline already, or that holds
    checkpoints of another plan.
    """
    plan, folder = plan or Plan(), writable_folder(Path(out))
    check(not (folder / "model_index.json").exists(), f"{folder}, which holds a pipeline already", "an empty folder",
          "Choose another --out, or remove it.")  # fmt: skip
    digits, held_out = split()
    if not resume:
        shutil.rmtree(folder / STATE, ignore_errors=True)
    seconds: dict[str, float] = {}

    autoencoder = components.autoencoder(plan.seed)
    first = AutoencoderObjective(digits.images)
    record = _carry_out("autoencoder", autoencoder, first, plan, folder, save_every, progress)
    seconds["autoencoder"] = record.seconds[-1]
    if record.interrupted:
        return Outcome(None, seconds)

    tokenizer, scheduler = components.tokenizer(), components.scheduler()
    prompts = tokenize(tokenizer, ["", *PROMPTS])
    mean, std, scale = latents_of(autoencoder.eval(), digits.images)
    second = DenoisingObjective(mean, std, digits.labels, prompts, scheduler)
    trained = Trained(
        Conditional(components.text_encoder(len(tokenizer), plan.seed + 1), components.denoiser(plan.seed + 2))
    )
    record = _carry_out("denoiser", trained, second, plan, folder, save_every, progress)
    seconds["denoiser"] = record.seconds[-1]
    if record.interrupted:
        return Outcome(None, seconds)

    autoencoder.register_to_config(scaling_factor=scale)
    kept: Conditional = trained.average.module  # type: ignore[assignment]
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=kept.text.eval(), tokenizer=tokenizer, unet=kept.unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    publish(pipeline, folder, model_card(plan, seconds, len(digits), _error(autoencoder, held_out)))
    shutil.rmtree(folder / STATE)
    return Outcome(pipeline, seconds)


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """(prompts, LENGTH) token numbers, padded as the pipeline pads them."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def publish(pipeline: StableDiffusionPipeline, folder: Path, card: str) -> None:
    """The pipeline's parts in `folder`, model_index.json last: what has it is whole."""
    staged = folder / STATE / "pipeline"
    shutil.rmtree(staged, ignore_errors=True)
    pipeline.save_pretrained(staged, safe_serialization=True)
    (staged / "README.md").write_text(card)
    for part in sorted(staged.iterdir(), key=lambda path: path.name == "model_index.json"):
        target = folder / part.name
        if target.is_dir():
            shutil.rmtree(target)
        part.replace(target)


def _carry_out(
    stage: str, learned: nn.Module, objective: nn.Module, plan: Plan, folder: Path, save_every: float, progress: bool
) -> FitRecord:
    steps, rate = getattr(plan, f"{stage}_steps"), getattr(plan, f"{stage}_rate")
    settings = {"stage": stage, **asdict(plan), "threads": torch.get_num_threads(), "torch": torch.__version__}
    parameters = [p for p in learned.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=plan.weight_decay, fused=True)
    batch = Minibatch(plan.batch, Noise(plan.seed))
    run = Training(
        learned, objective, lambda drawn: objective(learned, drawn), batch, steps, optimiser, cosine,
        FitRecord(settings), clip=1.0,
    )  # fmt: skip
    return run.carry_out(folder / STATE / stage, True, save_every, progress)


def _error(autoencoder: AutoencoderKL, digits: Digits) -> float:
    """Root mean square error of a held-out image, encoded to the mean latent and decoded; images span [-1, 1]."""
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(digits.images).latent_dist.mean).sample
    return float((decoded - digits.images).square().mean().sqrt())
