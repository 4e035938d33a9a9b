"""Pipelines from a folder or a hub id: what a folder holds, what is refused and why, and loading without surprises.

Weights come from safetensors only; no pickle, no code from the folder. The network is touched only for a hub id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sdecontrol.backends.schedulers import Reading, read
from sdecontrol.errors import BadInput, SDEControlError, check

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
NEEDED = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
NEEDED_XL = (*NEEDED, "text_encoder_2", "tokenizer_2")
WEIGHED = ("unet", "vae", "text_encoder", "text_encoder_2")
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # looked at by no law and no reward
PICKLED = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Folder:
    """A pipeline's folder, read without loading a weight. `refused` says why it cannot be used, empty where it can."""

    path: Path
    index: dict[str, Any] = field(repr=False)

    @classmethod
    def at(cls, path: Path) -> Folder:
        """Raises: BadInput for a folder that is not a pipeline's."""
        check(path.is_dir(), f"{path}, which is no folder", "the folder of a pipeline")
        file = path / "model_index.json"
        check(file.is_file(), f"a folder {path} without model_index.json", "one saved by pipe.save_pretrained(folder)",
              "A single .safetensors checkpoint is converted by StableDiffusionPipeline.from_single_file.")  # fmt: skip
        try:
            return cls(path, json.loads(file.read_text()))
        except json.JSONDecodeError as error:
            raise BadInput(f"saw {file} that is not JSON ({error}); wanted a pipeline's index.") from error

    @property
    def pipeline(self) -> str:
        return str(self.index.get("_class_name"))

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """(library, class) of each component that the folder names."""
        pairs = {name: tuple(value) for name, value in self.index.items() if isinstance(value, list)}
        return {name: pair for name, pair in pairs.items() if len(pair) == 2 and all(pair)}

    @property
    def needed(self) -> tuple[str, ...]:
        return NEEDED_XL if self.pipeline == PIPELINES[1] else NEEDED

    @cached_property
    def refused(self) -> list[str]:
        return list(self._refusals())

    def _refusals(self) -> Iterator[str]:
        if self.pipeline not in PIPELINES:
            yield f"saw a {self.pipeline}; wanted one of {', '.join(PIPELINES)}."
            return
        for name, (library, _) in self.components.items():
            if library not in ("diffusers", "transformers") and name not in UNUSED:
                yield f"saw {name} from {library!r}; wanted diffusers or transformers: code from a folder is not run."
        for name in self.needed:
            if name not in self.components or not (self.path / name).is_dir():
                yield f"saw no {name} in {self.path}; wanted the folders {', '.join(self.needed)}."
            elif name in WEIGHED:
                yield from self._weights(name)
        yield from self._scheduler_refusals()

    def _weights(self, name: str) -> Iterator[str]:
        folder = self.path / name
        if not (folder / "config.json").is_file():
            yield f"saw no config.json in {folder}; wanted one beside the weights."
        pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
        if not list(folder.glob("*.safetensors")):
            seen = f"pickled weights ({', '.join(pickled)})" if pickled else "no weights"
            yield (
                f"saw {seen} in {folder}; wanted .safetensors. A pickle can run any code: load it elsewhere, and save "
                "it again by pipe.save_pretrained(folder, safe_serialization=True)."
            )

    def _scheduler_refusals(self) -> Iterator[str]:
        try:
            self.reading()
        except (SDEControlError, OSError, json.JSONDecodeError) as error:
            yield str(error)

    def reading(self, eta: float = 1.0) -> Reading:
        """The folder's own scheduler, read. Raises: BadInput where it has no Gaussian step."""
        import diffusers

        name = self.components["scheduler"][1]
        stock = getattr(diffusers, name, None)
        check(stock is not None, f"a scheduler {name}", "one of diffusers")
        config = json.loads((self.path / "scheduler" / "scheduler_config.json").read_text())
        return read(stock.from_config(config), eta)  # type: ignore[union-attr]

    def describe(self) -> dict[str, str]:
        """What the folder holds and what can be done with it, line by line, without loading a weight."""
        lines = {"pipeline": self.pipeline}
        for name, (library, kind) in self.components.items():
            weights = list((self.path / name).glob("*.safetensors"))
            size = f", {sum(file.stat().st_size for file in weights) / 2**20:.4g} MB" if weights else ""
            unused = " (not used)" if name in UNUSED else ""
            lines[name] = f"{library}.{kind}{size}{unused}"
        with suppress(SDEControlError, OSError, KeyError, json.JSONDecodeError):
            reading = self.reading()
            lines["prediction"] = reading.prediction
            lines["kernel"] = f"{reading.kernel!r}, {reading.schedule.size} levels"
        return lines

    def require(self, scheduler_too: bool) -> None:
        """Raises: BadInput with every reason; the scheduler's only where it is the one to be used."""
        own = set(self._scheduler_refusals()) if "scheduler" in self.components else set()
        reasons = [reason for reason in self.refused if scheduler_too or reason not in own]
        if reasons:
            raise BadInput(" ".join(reasons))


def load_pipeline(
    source: str | Path, *, dtype: Any = None, device: Any = None, scheduler: Any = None, revision: str | None = None
) -> Any:
    """A StableDiffusionPipeline or StableDiffusionXLPipeline with frozen weights, from a folder or a hub id.

    source: a folder saved by `save_pretrained`, or "owner/name" on the hub, the only case in which the network is used.
    dtype: torch.float16 or bfloat16 for large models. scheduler: "ddim" or a scheduler in the place of the folder's.
    revision: of a hub id; a commit's 40 digits pin it.
    Raises: BadInput for a folder that is not a pipeline's, missing components, pickled weights, foreign code or a
    scheduler without a Gaussian step; OSError as diffusers raises it.
    """
    import diffusers

    local = Path(source).is_dir()
    check(local or HUB_ID.fullmatch(str(source)) is not None and not Path(source).exists(), f"{str(source)!r}",
          'an existing folder of a pipeline, or a hub id "owner/name"')  # fmt: skip
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": local, "dtype": dtype}
    name = PIPELINES[0]
    if local:
        folder = Folder.at(Path(source))
        folder.require(scheduler_too=scheduler is None)
        name = folder.pipeline
    else:
        options["revision"] = revision
        index = diffusers.DiffusionPipeline.load_config(str(source), revision=revision)
        name = str(index.get("_class_name"))
        check(name in PIPELINES, f"a {name} at {source}", f"one of {', '.join(PIPELINES)}")
    if name == PIPELINES[0]:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    pipe = getattr(diffusers, name).from_pretrained(source, **options)
    pipe = pipe.to(device) if device is not None else pipe
    pipe.set_progress_bar_config(disable=True)
    for part in WEIGHED:
        if getattr(pipe, part, None) is not None:
            getattr(pipe, part).requires_grad_(False)
    if scheduler is not None:
        pipe.scheduler = unclipped_ddim(pipe.scheduler) if scheduler == "ddim" else scheduler
    return pipe


def unclipped_ddim(scheduler: Any) -> Any:
    """A DDIMScheduler with this one's table, spacing and prediction type; from_config alone would clip by default."""
    from diffusers import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)
