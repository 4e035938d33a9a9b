"""Rewards on images by name, as the command line writes them: NAME, NAME:ARGUMENT, or a Python file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdecontrol.backends.image_rewards import ClassPosterior
from sdecontrol.backends.noisy_classifier import NoisyClassifier
from sdecontrol.errors import BadInput, UnknownName, check
from sdecontrol.problems.builtin import read_names

Reward = Callable[[Any], Any]


@dataclass(frozen=True)
class Named:
    """A reward on images by its text, and laws of its own or the user's, name -> function of the problem."""

    text: str
    reward: Reward
    controls: Mapping[str, Any] = field(default_factory=dict)


def _brightness(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import Brightness

    return Brightness(_number("brightness", argument or "1"))


def _compressibility(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import JPEGCompressibility

    return JPEGCompressibility(int(_number("jpeg-compressibility", argument or "95")))


def _incompressibility(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import JPEGIncompressibility

    return JPEGIncompressibility(int(_number("jpeg-incompressibility", argument or "95")))


def _digit(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.tiny.rewards import digit_posterior

    return digit_posterior(int(_number("digit", argument)))


def _clip(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import PromptAlignment

    (source,) = _sources("clip", argument, 1)
    return PromptAlignment(source, prompt)


def _aesthetic(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import Aesthetic

    clip, head = _sources("aesthetic", argument, 2)
    return Aesthetic(clip, head)


def _description(argument: str, prompt: str) -> Reward:
    from sdecontrol.backends.image_rewards import DescriptionAlignment

    captioner, encoder = _sources("description", argument, 2)
    return DescriptionAlignment(captioner, encoder, prompt)


REWARDS: dict[str, tuple[Callable[[str, str], Reward], str]] = {
    "brightness": (_brightness, "brightness[:SCALE], the mean of all pixels"),
    "jpeg-compressibility": (_compressibility, "jpeg-compressibility[:QUALITY], minus the size in kB"),
    "jpeg-incompressibility": (_incompressibility, "jpeg-incompressibility[:QUALITY], the size in kB"),
    "digit": (_digit, "digit:LABEL, log posterior of a digit (for the pipeline of train-tiny)"),
    "clip": (_clip, "clip:SOURCE, cosine with the prompt by a CLIP model"),
    "aesthetic": (_aesthetic, "aesthetic:CLIP,HEAD, the LAION predictor with its head in safetensors"),
    "description": (_description, "description:CAPTIONER,ENCODER, recall of the prompt in a caption"),
}


def named(text: str, prompt: str) -> Named:
    """The reward of a text. A Python file defines `reward`, a function of images, and may define `controls`.

    Raises: UnknownName; BadInput for a missing or wrong argument, or a file without `reward`.
    """
    if text.endswith(".py"):
        names = read_names(Path(text))
        reward, controls = names.get("reward"), names.get("controls", {})
        check(callable(reward), f"{text} without a function `reward`", "one of images (n, 3, height, width) -> (n,)")
        check(isinstance(controls, Mapping), f"`controls` of type {type(controls).__name__} in {text}",
              "a dictionary name -> law")  # fmt: skip
        return Named(text, reward, controls)  # type: ignore[arg-type]
    name, _, argument = text.partition(":")
    if name not in REWARDS:
        raise UnknownName("reward", name, REWARDS)
    reward = REWARDS[name][0](argument, prompt)
    return Named(text, reward, {"classifier": NoisyClassifier(reward)} if isinstance(reward, ClassPosterior) else {})


def _number(name: str, argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise BadInput(f"saw {name}:{argument}; wanted {REWARDS[name][1]}.") from None


def _sources(name: str, argument: str, count: int) -> list[str]:
    parts = [part.strip() for part in argument.split(",") if part.strip()]
    check(len(parts) == count, f"{name}:{argument}", REWARDS[name][1])
    return parts
