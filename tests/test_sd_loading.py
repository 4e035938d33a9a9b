"""Folders of pipelines: saved and loaded again, offline, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
from typer.testing import CliRunner

import sdecontrol as sc
from sdecontrol.backends import StableDiffusionProcess, load_pipeline
from sdecontrol.cli import app


@pytest.fixture(scope="module")
def saved(tiny_pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture()
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture()
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
def test_round_trip_is_exact_and_offline(saved: Path, tiny_pipe: Any) -> None:
    """Latents, images and log ratios of a pipeline that was saved and loaded have the same bits."""
    runs = []
    for process in (
        StableDiffusionProcess(tiny_pipe, "a cat", cfg=2.0, steps=4),
        StableDiffusionProcess.from_pretrained(saved, "a cat", cfg=2.0, steps=4),
    ):
        problem = sc.Problem(process, process.on_images(lambda images: images.mean((1, 2, 3))), temperature=0.1)
        path = sc.simulate(process, sc.guidance.plug_in(problem), n=3)
        runs.append((path.terminal, process.decode(path.terminal).detach(), path.log_ratio()))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not any(w.requires_grad for w in process.pipe.unet.parameters())


def test_a_lora_is_saved_and_loaded_again(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = tiny.stable_diffusion(tmp_path)
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_k", "to_q"], init_lora_weights=False))
    weights = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(tmp_path / "lora", unet_lora_layers=weights)
    again = tiny.stable_diffusion(tmp_path)
    again.load_lora_weights(tmp_path / "lora")
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (StableDiffusionProcess(p, "a cat", steps=4).adapted().network(x, 0.5) for p in (pipe, again))
    assert torch.equal(a, b)


def test_another_scheduler_in_the_place_of_the_folders(copied: Path) -> None:
    from diffusers import PNDMScheduler

    PNDMScheduler(**tiny.STABLE_DIFFUSION, steps_offset=1).save_pretrained(copied / "scheduler")
    index = json.loads((copied / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "PNDMScheduler"]
    (copied / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(sc.BadInput, match='PNDMScheduler, whose step has no Gaussian noise.*scheduler="ddim"'):
        load_pipeline(copied)
    pipe = load_pipeline(copied, scheduler="ddim")
    assert type(pipe.scheduler).__name__ == "DDIMScheduler" and not pipe.scheduler.config.clip_sample
    assert StableDiffusionProcess(pipe, "a cat", steps=10).levels == [901 - 100 * k for k in range(10)] + [0]


def spoil_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def spoil_scheduler(folder: Path, **changes: Any) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pickle_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"\x80\x04N.")


SPOILED = {
    r"without model_index.json.*save_pretrained": lambda f: (f / "model_index.json").unlink(),
    r"not JSON": lambda f: (f / "model_index.json").write_text("{"),
    r"a FluxPipeline; wanted one of StableDiffusionPipeline": lambda f: spoil_index(f, _class_name="FluxPipeline"),
    r"saw no vae in": lambda f: shutil.rmtree(f / "vae"),
    r"saw no unet in": lambda f: spoil_index(f, unet=[None, None]),
    r"no config.json in .*text_encoder": lambda f: (f / "text_encoder" / "config.json").unlink(),
    r"pickled weights \(diffusion_pytorch_model.bin\).*wanted .safetensors": pickle_weights,
    r"no weights in .*vae": lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
    r"unet from 'my_code'; wanted diffusers": lambda f: spoil_index(f, unet=["my_code", "Net"]),
    r"prediction_type='flow'; wanted one of epsilon": lambda f: spoil_scheduler(f, prediction_type="flow"),
    r"clip_sample=True": lambda f: spoil_scheduler(f, clip_sample=True),
}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("message", SPOILED)
def test_what_is_wrong_with_a_folder_is_said_before_loading(message: str, copied: Path) -> None:
    SPOILED[message](copied)
    with pytest.raises(sc.BadInput, match=message):
        load_pipeline(copied)
    result = CliRunner().invoke(app, ["doctor", str(copied)])
    assert result.exit_code in (1, 2)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("source", ["/nowhere/at/all", "nowhere", "no where/at all"])
def test_a_folder_that_is_not_there(source: str) -> None:
    with pytest.raises(sc.BadInput, match="an existing folder of a pipeline, or a hub id"):
        load_pipeline(source)


def test_other_pipelines_are_refused(tiny_pipe: Any) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline.from_pipe(tiny_pipe)
    with pytest.raises(sc.BadInput, match="a StableDiffusionImg2ImgPipeline; wanted one of"):
        StableDiffusionProcess(other, "a cat")


def test_an_inpainting_unet_is_refused(tmp_path: Path) -> None:
    pipe = tiny.stable_diffusion(tmp_path, in_channels=9)
    with pytest.raises(sc.BadInput, match="a UNet from 9 to 4 channels.*Inpainting"):
        StableDiffusionProcess(pipe, "a cat")


def test_doctor(saved: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(saved)])
    assert result.exit_code == 0, result.output
    for wanted in ("diffusers      0.", "extra sd       ready", "StableDiffusionPipeline", "prediction         epsilon",
                   "kernel             DDIM(eta=1.0), 1000 levels", "every law, sampler"):  # fmt: skip
        assert wanted in result.output, result.output
    assert "unet               diffusers.UNet2DConditionModel, " in result.output


def test_python_blocks_of_the_page_run(saved: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "stable_diffusion.md").read_text()
    namespace: dict[str, Any] = {"folder": saved}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "stable_diffusion.md", "exec"), namespace)
    assert namespace["scheduler"].energy.shape == (2,) and float(namespace["scheduler"].energy.min()) > 0
