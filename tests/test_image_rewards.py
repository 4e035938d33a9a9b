"""Rewards on images: against PIL, transformers' own processors and forward passes, and finite differences."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModelWithProjection,
)

import sdecontrol as sc
from sdecontrol.backends.image_rewards import (
    Aesthetic,
    Brightness,
    ClassPosterior,
    DescriptionAlignment,
    JPEGCompressibility,
    JPEGIncompressibility,
    PromptAlignment,
)
from sdecontrol.backends.image_rewards.clip import Preprocessing
from sdecontrol.backends.image_rewards.loading import load_model
from sdecontrol.backends.tiny.components import tokenizer

SIDE = 32
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bold", "digit", "three", "seven", "on", "black", "paper"]


def smooth_images(n: int, height: int = 48, width: int = 40, seed: int = 0) -> Tensor:
    coarse = torch.rand(n, 3, 6, 5, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP model of 32 x 32 images and byte tokens, saved with its processors."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=24)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 514, "max_position_embeddings": 16, "eos_token_id": 513},
        vision_config={**small, "image_size": SIDE, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random BLIP that captions in thirteen words, and a random BERT that embeds them."""
    folder = tmp_path_factory.mktemp("captioner")
    (folder / "words.txt").write_text("\n".join(WORDS))
    words = BertTokenizerFast(str(folder / "words.txt"))
    torch.manual_seed(1)
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    marks = dict(bos_token_id=2, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    config = BlipConfig(
        text_config={**small, **marks, "vocab_size": len(WORDS), "encoder_hidden_size": 32, "initializer_range": 0.6},
        vision_config={**small, "image_size": SIDE, "patch_size": 8, "initializer_range": 0.6}, projection_dim=16,
    )  # fmt: skip
    BlipForConditionalGeneration(config).save_pretrained(folder / "blip")
    images = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    BlipProcessor(images, words).save_pretrained(folder / "blip")
    BertModel(BertConfig(vocab_size=len(WORDS), **small)).save_pretrained(folder / "bert")
    words.save_pretrained(folder / "bert")
    return folder / "blip", folder / "bert"


def slope_agrees(reward: object, images: Tensor, tolerance: float) -> None:
    """Automatic gradient against central differences along random directions, per image."""
    x = images.double().requires_grad_()
    gradient = torch.autograd.grad(reward(x).sum(), x)[0]
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    step = 1e-3
    with torch.no_grad():
        numeric = (reward(x + step * direction) - reward(x - step * direction)) / (2 * step)
    automatic = (gradient * direction).sum((1, 2, 3))
    assert torch.allclose(automatic, numeric, rtol=tolerance, atol=tolerance * float(automatic.abs().max()))


def test_jpeg_sizes_are_those_of_files_on_disk(tmp_path: Path) -> None:
    images = smooth_images(3)
    found = JPEGIncompressibility()(images)
    for i, image in enumerate(images):
        array = np.floor(image.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
        Image.fromarray(array).save(tmp_path / f"{i}.jpg", quality=95)
        assert float(found[i]) == pytest.approx((tmp_path / f"{i}.jpg").stat().st_size / 1000)
    assert torch.equal(JPEGCompressibility()(images), -found)
    noisy = torch.rand(1, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    assert JPEGIncompressibility()(noisy) > 1.5 * found.max()


def test_rewards_judge_each_image_on_its_own(clip: Path, captioner: tuple[Path, Path]) -> None:
    images = smooth_images(5)
    linear = nn.Linear(3 * 48 * 40, 4)
    rewards = [
        JPEGCompressibility(), Brightness(2.0), ClassPosterior(lambda x: linear(x.flatten(1)), 2),
        PromptAlignment(clip, "a three"), DescriptionAlignment(*captioner, "a bold three"),
    ]  # fmt: skip
    order = torch.tensor([3, 0, 4, 1, 2])
    for reward in rewards:
        with torch.no_grad():
            whole = reward(images)
            assert whole.shape == (5,) and len(set(whole.tolist())) > 1
            split = torch.cat([reward(part) for part in images.split(2)])
            assert torch.allclose(split, whole, rtol=1e-5, atol=1e-6)
            assert torch.allclose(reward(images[order]), whole[order], rtol=1e-5, atol=1e-6)


def test_brightness_and_class_posterior_have_the_gradients_of_differences() -> None:
    images = smooth_images(3)
    linear = nn.Linear(3 * 48 * 40, 4).double()
    posterior = ClassPosterior(lambda x: linear(x.flatten(1)), 1)
    slope_agrees(Brightness(3.0), images, 1e-8)
    slope_agrees(posterior, images, 1e-5)
    every = torch.stack([ClassPosterior(posterior.classifier, label)(images.double()).exp() for label in range(4)])
    assert torch.allclose(every.sum(0), torch.ones(3, dtype=torch.float64))


def test_preprocessing_is_the_processors_up_to_rounding_to_bytes(clip: Path) -> None:
    """PIL resizes bytes, the reward resizes floats: they differ by rounding; without antialiasing by tenths."""
    processor = CLIPImageProcessor.from_pretrained(clip)
    images = smooth_images(4, 96, 80)
    ours = Preprocessing.of(processor, SIDE)(images)
    arrays = [Image.fromarray((image.permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)) for image in images]
    theirs = processor(arrays, return_tensors="pt").pixel_values
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 0.03  # 1.5 of 255 levels over the smallest standard deviation
    texture = torch.rand(2, 3, 96, 80, generator=torch.Generator().manual_seed(2))
    plain = nn.functional.interpolate(texture, (38, SIDE), mode="bicubic")[..., 3:35, :]
    kept = Preprocessing.of(processor, SIDE)(texture) * torch.tensor(processor.image_std).reshape(1, 3, 1, 1)
    assert float((kept + torch.tensor(processor.image_mean).reshape(1, 3, 1, 1) - plain).abs().max()) > 0.1


def test_prompt_alignment_is_clips_own_logit(clip: Path) -> None:
    model, words = CLIPModel.from_pretrained(clip).eval(), tokenizer()
    images = smooth_images(4)
    reward = PromptAlignment(clip, "a three")
    pixels = reward.preprocess(images)
    with torch.no_grad():
        logits = model(pixel_values=pixels, **words(["a three"], return_tensors="pt")).logits_per_image[:, 0]
        assert torch.allclose(reward(images), logits / model.logit_scale.exp(), atol=1e-5)
    reward.model.double()
    slope_agrees(reward, 0.1 + 0.8 * images, 1e-4)  # away from the kinks of the range [0, 1]


def test_aesthetic_head_is_a_chain_of_linear_maps(clip: Path, tmp_path: Path) -> None:
    first, second = nn.Linear(24, 6), nn.Linear(6, 1)
    layers = {"layers.0": first, "layers.10": second}
    save_file(
        {f"{name}.{key}": t.detach() for name, layer in layers.items() for key, t in layer.state_dict().items()},
        tmp_path / "head.safetensors",
    )
    reward = Aesthetic(clip, tmp_path / "head.safetensors")
    images = smooth_images(3)
    model = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    with torch.no_grad():
        e = model(pixel_values=reward.preprocess(images)).image_embeds
        e = e / e.norm(dim=1, keepdim=True)
        weight = second.weight @ first.weight
        assert torch.allclose(reward(images), e @ weight[0] + second(first.bias)[0], atol=1e-5)
    reward.model.double()
    slope_agrees(reward, 0.1 + 0.8 * images, 1e-4)


def test_description_alignment_is_the_recall_of_the_prompt(captioner: tuple[Path, Path]) -> None:
    images = smooth_images(3)
    reward = DescriptionAlignment(*captioner, "a bold three")
    encoder = BertModel.from_pretrained(captioner[1]).eval()
    words = BertTokenizerFast.from_pretrained(captioner[1])
    for image, value in zip(images, reward(images)):
        caption = reward.caption(image)
        assert caption
        with torch.no_grad():
            said, wanted = (
                encoder(**words(text, return_tensors="pt")).last_hidden_state[0, 1:-1]
                for text in (caption, "a bold three")
            )
        best = [max(float(torch.cosine_similarity(w, s, dim=0)) for s in said) for w in wanted]
        assert float(value) == pytest.approx(sum(best) / len(best), abs=1e-5)
    same = DescriptionAlignment(*captioner, reward.caption(images[0]))
    assert float(same(images[:1])[0]) == pytest.approx(1.0, abs=1e-5)


def test_bad_input_is_named(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(sc.BadInput, match=r"wanted \(n, 3, height, width\)"):
        Brightness()(torch.zeros(2, 1, 8, 8))
    with pytest.raises(sc.BadInput, match="classifier with 4 classes"):
        ClassPosterior(lambda x: torch.zeros(len(x), 4), 4)(smooth_images(2))
    with pytest.raises(sc.BadInput, match="logits of shape"):
        ClassPosterior(lambda x: torch.zeros(len(x)), 0)(smooth_images(2))
    with pytest.raises(sc.BadInput, match="integer from 1 to 95"):
        JPEGCompressibility(quality=0)
    with pytest.raises(sc.BadInput, match="no folder at"):
        PromptAlignment(tmp_path / "nothing", "a three")
    with pytest.raises(sc.BadInput, match="no CLIPModel can be loaded"):
        load_model(CLIPModel, tmp_path)
    with pytest.raises(sc.BadInput, match="a prompt of"):
        PromptAlignment(clip, "a very long prompt indeed")
    save_file({"layers.0.weight": torch.zeros(1, 7)}, tmp_path / "head.safetensors")
    with pytest.raises(sc.BadInput, match="a chain from 24 numbers to 1"):
        Aesthetic(clip, tmp_path / "head.safetensors")
    torch.save({}, tmp_path / "head.pth")
    with pytest.raises(sc.BadInput, match=r"a \.safetensors file"):
        Aesthetic(clip, tmp_path / "head.pth")


def test_pickled_weights_are_refused(clip: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    model.config.save_pretrained(tmp_path)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    (tmp_path / "pytorch_model.bin").write_bytes(buffer.getvalue())
    with pytest.raises(sc.BadInput, match=r"pickled \(pytorch_model.bin\)"):
        load_model(CLIPModel, tmp_path)
