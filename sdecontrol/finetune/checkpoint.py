"""Checkpoints of a fit: tensors as safetensors, the record as JSON, each whole or absent; never pickle.

`state.safetensors` alone decides where a resumed run goes on: parameters, the optimiser's tensors, the number of
iterations done. `record.json` is written before it, so it holds at least as many iterations, and is cut when loaded.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sdecontrol.errors import BadInput, check
from sdecontrol.report.atomic import writable_folder, write

Module = TypeVar("Module", bound=nn.Module)
STATE, RECORD = "state.safetensors", "record.json"


@dataclass
class FitRecord:
    """What a fit did: one entry an iteration, and the settings that decide its bits.

    seconds: since the start, interruptions left out. interrupted: stopped from the keyboard before `steps` iterations.
    """

    settings: dict[str, Any]
    loss: list[float] = field(default_factory=list)
    gradient_norm: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    interrupted: bool = False

    @property
    def iterations(self) -> int:
        return len(self.loss)

    def add(self, loss: float, gradient_norm: float, seconds: float) -> None:
        self.loss.append(loss)
        self.gradient_norm.append(gradient_norm)
        self.seconds.append(seconds)

    def cut(self, iterations: int) -> None:
        """Forget what lies after the given number of iterations."""
        for series in (self.loss, self.gradient_norm, self.seconds):
            del series[iterations:]

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.settings, "iterations": self.iterations, "interrupted": self.interrupted,
            "loss": self.loss, "gradient_norm": self.gradient_norm, "seconds": self.seconds,
        }  # fmt: skip

    def save(self, file: Path) -> None:
        """Strict JSON, whole or absent."""
        write(file, json.dumps(self.to_dict(), allow_nan=False) + "\n")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds one fit: its modules by name and its optimiser."""

    folder: Path
    modules: dict[str, nn.Module]
    optimiser: torch.optim.Optimizer

    def prepare(self) -> None:
        """Raise BadInput now if the folder cannot be written to, or the optimiser's state is not tensors."""
        writable_folder(self.folder)
        _optimiser_tensors(self.optimiser)

    @property
    def exists(self) -> bool:
        return (self.folder / STATE).exists() and (self.folder / RECORD).exists()

    def save(self, record: FitRecord) -> None:
        tensors = {
            f"{name}.{key}": t for name, module in self.modules.items() for key, t in module.state_dict().items()
        }
        tensors |= _optimiser_tensors(self.optimiser)
        tensors["iterations"] = torch.tensor(record.iterations)
        record.save(self.folder / RECORD)
        write(self.folder / STATE, save({name: t.detach().contiguous().clone() for name, t in tensors.items()}))

    def restore(self, record: FitRecord) -> None:
        """Put the stored state into the modules, the optimiser and `record`.

        Raises: BadInput when the folder holds a fit with other settings; the setting is named.
        """
        stored = json.loads((self.folder / RECORD).read_text())
        for key, wanted in record.settings.items():
            seen = stored["settings"].get(key)
            check(seen == wanted, f"a checkpoint in {self.folder} with {key} = {seen!r}", f"{key} = {wanted!r}",
                  "Pass resume=False to start again, or another folder.")  # fmt: skip
        tensors = load((self.folder / STATE).read_bytes())
        for name, module in self.modules.items():
            module.load_state_dict(_below(name, tensors))
        _restore_optimiser(self.optimiser, _below("optimiser", tensors))
        record.loss, record.gradient_norm, record.seconds = (
            stored[name] for name in ("loss", "gradient_norm", "seconds")
        )
        record.cut(int(tensors["iterations"]))


def restored(module: Module, folder: str | Path) -> Module:
    """The module with the weights that a fit left in `folder`, ready to be evaluated; the module is returned.

    The checkpoint holds weights and no architecture: pass a module made as it was for the fit.
    Raises: BadInput for a folder without a checkpoint, or weights of another module.
    """
    file = Path(folder) / STATE
    check(file.is_file(), f"no {STATE} in {folder}", "the folder that was given to fit as checkpoint")
    try:
        module.load_state_dict(_below("learned", load(file.read_bytes())))
    except RuntimeError as error:
        raise BadInput(
            f"saw weights in {folder} that are not those of this {type(module).__name__} ({error}); wanted the module "
            "as it was made for the fit."
        ) from error
    return module.requires_grad_(False)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(f"{prefix}."): t for key, t in tensors.items() if key.startswith(f"{prefix}.")}


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "optimiser.INDEX.NAME"; what is None is left out."""
    found = {}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            check(value is None or isinstance(value, Tensor), f"an optimiser that keeps {name} = {value!r}",
                  "an optimiser whose state is tensors", "Use Adam, AdamW or SGD.")  # fmt: skip
            if value is not None:
                found[f"optimiser.{index}.{name}"] = value
    return found


def _restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
