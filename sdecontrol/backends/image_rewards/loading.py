"""Pretrained parts from a folder or a hub id: safetensors only, no code from the folder, no network for a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sdecontrol.backends.installed import require
from sdecontrol.errors import BadInput, check


def load_model(cls: Any, source: str | Path, revision: str | None = None) -> Any:
    """`cls.from_pretrained` for evaluation: weights from safetensors, parameters frozen.

    source: a folder, or a hub id "owner/name", for which alone the network is used; `revision` pins its commit.
    Raises: BadInput for a folder without the weights, pickled weights, or an id that cannot be fetched.
    """
    model, report = _load(cls, source, revision, use_safetensors=True, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    check(not missing, f"{source} without {len(missing)} weights of a {cls.__name__}, such as {missing[:1]}",
          "all of them", "They would be random numbers: take a folder of this kind of model.")  # fmt: skip
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


def load_processor(cls: Any, source: str | Path, revision: str | None = None) -> Any:
    """A tokenizer or a processor of images, from the same kind of source."""
    return _load(cls, source, revision)


def _load(cls: Any, source: str | Path, revision: str | None, **options: Any) -> Any:
    require("rewards of pretrained models", "transformers")
    folder = Path(source)
    local = folder.exists()
    parts = str(source).split("/")
    check(local or (len(parts) == 2 and all(parts) and not folder.is_absolute()), f"no folder at {source}",
          "an existing folder, or a hub id owner/name")  # fmt: skip
    check(not local or folder.is_dir(), f"{source}, a file", "the folder that holds the model")
    try:
        return cls.from_pretrained(
            str(source), local_files_only=local, trust_remote_code=False, revision=revision or "main", **options
        )
    except (OSError, ValueError) as error:
        pickled = sorted(path.name for path in folder.glob("*.bin")) if local else []
        advice = f" Its weights are pickled ({', '.join(pickled)}): convert them to safetensors." if pickled else ""
        raise BadInput(f"saw {source}, from which no {cls.__name__} can be loaded ({error}).{advice}") from error
