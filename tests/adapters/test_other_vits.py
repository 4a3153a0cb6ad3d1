"""A sweep over the ViTs of timm, transformers and torchvision: read with their own features, or refused by a reason."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from maelift.core.errors import CheckpointError
from maelift.core.models.encoder_file import EncoderFile, load_encoder, read_encoder
from maelift.core.models.without_values import without_values
from maelift.tests.support import framework
from torch import Tensor, nn

REASONS = re.compile(
    "distillation token|register tokens|rotary positions|norm before the blocks|stem of convolutions|no position embeddings"
    "|qk-norm|norms within attention|gated MLPs|RMSNorm|parallel blocks|relative positions|ResPostBlock|EvaBlockPostNorm"
    "|detection tokens|not a plain ViT|is no plain ViT"
)
"""Why a ViT is refused, each in its own words."""


def shaken(model: Any) -> Any:
    """A model with every parameter random, and inputs of activations large enough for these to differ; in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
            if re.search(r"(fc1|intermediate\.dense|mlp\.0|mlp\.linear_1)\.weight$", name):
                parameter.data *= 3
    return model.eval()


def off(found: EncoderFile, images: Tensor, theirs: Tensor) -> float:
    """The largest difference to a library's tokens, as a share of the largest; before our final norm where theirs has none."""
    with torch.inference_mode():
        features = found.encoder.eval().forward_features(images, layers=[-1])
    ours = features.tokens if found.final_norm else features.layers[0]
    if features.class_token is not None and found.final_norm:
        ours = torch.cat([features.class_token[:, None], ours], 1)
    if not found.final_norm:
        theirs = theirs[:, theirs.shape[1] - ours.shape[1] :]
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def timm_vits() -> list[str]:
    names = timm.list_models(["vit_*", "deit*", "eva*", "beit*", "flexivit*", "samvit*"])
    return [name for name in names if not name.startswith(("vitamin", "vit_5b", "vit_7b"))]


def small(name: str) -> tuple[Any, dict[str, Any]] | None:
    """timm's model of this name with one block, eight channels a head and three patches a side; None where it can't be so."""
    try:
        with without_values():
            whole = timm.create_model(name, num_classes=0, depth=1)
        patch = whole.patch_embed.patch_size[0] if hasattr(whole.patch_embed, "patch_size") else 16
        heads = next(part.num_heads for part in whole.modules() if hasattr(part, "num_heads"))
        arguments: dict[str, Any] = {"depth": 1, "embed_dim": 8 * heads, "img_size": 3 * patch}
        if "_r26_" in name or "_r50_" in name or "resnet" in name or "_r_s" in name:
            arguments["img_size"] = 64
        return shaken(timm.create_model(name, num_classes=0, **arguments)), arguments
    except (TypeError, AttributeError, RuntimeError, AssertionError, StopIteration):
        return None


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[str, str]]]:
    """What became of each of timm's ViTs in its folder, and in a checkpoint of timm's training script."""
    folder, results = tmp_path_factory.mktemp("timm"), {}
    for name in timm_vits():
        if (made := small(name)) is None:
            continue
        model, arguments = made
        timm.models.save_for_hf(model, folder / name, model_args=arguments, safe_serialization=True)
        size = getattr(model.patch_embed, "img_size", None) or (arguments["img_size"],) * 2
        images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2))
        outcome = []
        for path in (folder / name, checkpoint(model, folder / f"{name}.pth", name, arguments)):
            try:
                found = read_encoder(path, log=False)
            except CheckpointError as error:
                assert REASONS.search(str(error)), error
                assert "its tensors are not those of an encoder" not in str(error), error
                outcome.append("refused")
                continue
            with torch.inference_mode():
                difference = off(found, images, model.forward_features(images))
            outcome.append("right" if difference < 2e-5 else f"off by {difference:.1e}")
        results[name] = (outcome[0], outcome[1])
    yield results


def checkpoint(model: nn.Module, path: Path, name: str, arguments: dict[str, Any]) -> Path:
    training = {"epoch": 3, "arch": name, "args": argparse.Namespace(model=name, model_kwargs=arguments, lr=1e-3)}
    torch.save({**training, "state_dict": model.state_dict(), "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.mark.slow
def test_every_plain_vit_of_timm_is_read_right_and_every_other_is_refused_by_a_reason(
    swept: dict[str, tuple[str, str]],
) -> None:
    for way in (0, 1):
        counts = Counter(outcome[way] for outcome in swept.values())
        print(f"\n{len(swept)} ViTs of timm {timm.__version__}: {dict(counts)}")
        wrong = {name: outcome[way] for name, outcome in swept.items() if outcome[way] not in ("right", "refused")}
        assert not wrong
        assert counts["right"] >= 85 and counts["refused"] >= 100, counts
    assert all(first == second for first, second in swept.values())


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_dinov2",
        "deit3_small_patch16_224",
        "deit_tiny_patch16_224",
        "eva_large_patch14_196",
        "vit_base_patch16_gap_224",
        "vit_so400m_patch16_siglip_256",
        "vit_base_patch32_siglip_gap_256",
        "vit_medium_patch16_gap_240",
        "vit_intern300m_patch14_448",
        "flexivit_small",
    ],
)
def test_plain_vits_of_each_kind_are_among_those_that_are_read(swept: dict[str, tuple[str, str]], name: str) -> None:
    if name not in swept:
        pytest.skip(f"timm {timm.__version__} has no {name}")
    assert swept[name] == ("right", "right")


SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
WIDE = {**SHAPE, "intermediate_size": 96}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "ViT": ("ViTModel", WIDE, "right"),
    "ViT of QuickGELU": ("ViTModel", {**WIDE, "hidden_act": "quick_gelu"}, "right"),
    "ViT of ReLU": ("ViTModel", {**WIDE, "hidden_act": "relu"}, "right"),
    "ViT of tanh": ("ViTModel", {**WIDE, "hidden_act": "gelu_new"}, "right"),
    "ViT without biases": ("ViTModel", {**WIDE, "qkv_bias": False}, "right"),
    "ViT, 4x6 patches": ("ViTModel", {**WIDE, "image_size": [32, 48]}, "right"),
    "ViT of Mish": ("ViTModel", {**WIDE, "hidden_act": "mish"}, "hidden_act mish"),
    "ViTMSN": ("ViTMSNModel", WIDE, "right"),
    "IJepa": ("IJepaModel", WIDE, "right"),
    "DINOv2": ("Dinov2Model", SHAPE, "right"),
    "DINOv2 of SwiGLU": ("Dinov2Model", {**SHAPE, "use_swiglu_ffn": True}, "gated MLPs"),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", SHAPE, "register tokens"),
    "DeiT": ("DeiTModel", WIDE, "distillation token"),
    "SigLIP": ("SiglipVisionModel", WIDE, "right"),
    "CLIP": ("CLIPVisionModel", WIDE, "norm before the blocks"),
    "BEiT": ("BeitModel", {**WIDE, "use_absolute_position_embeddings": True}, "right"),
    "BEiT without positions": ("BeitModel", WIDE, "no position embeddings"),
    "BEiT with relative positions": ("BeitModel", {**WIDE, "use_relative_position_bias": True}, "relative positions"),
    "Data2Vec": ("Data2VecVisionModel", {**WIDE, "use_absolute_position_embeddings": True}, "right"),
    "YOLOS": ("YolosModel", {**WIDE, "image_size": [32, 32]}, "detection tokens"),
}


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_transformers_models_are_read_right_or_refused_by_a_reason(tmp_path: Path, name: str) -> None:
    transformers = framework("transformers")
    kind, settings, expected = TRANSFORMERS[name]
    config = getattr(transformers, kind.replace("Model", "Config"))(**settings)
    try:
        model = shaken(getattr(transformers, kind)(config))
    except (KeyError, ValueError, NotImplementedError) as error:
        pytest.skip(f"transformers {transformers.__version__}: {error}")
    model.save_pretrained(tmp_path / "model")
    if expected != "right":
        with pytest.raises(CheckpointError, match=expected):
            load_encoder(tmp_path / "model")
        return
    found = read_encoder(tmp_path / "model", log=False)
    size = settings["image_size"]
    images = torch.randn(1, 3, *(size if isinstance(size, list) else (size, size)))
    with torch.inference_mode():
        theirs = model(images).last_hidden_state
    assert off(found, images, theirs) < 2e-5
    assert found.encoder.spec.num_heads == 4 and found.assumed == ()


def test_torchvision_s_vit_is_read_with_its_features(tmp_path: Path) -> None:
    vision_transformer = framework("torchvision").models.vision_transformer.VisionTransformer
    model = shaken(vision_transformer(32, 8, 2, 3, 192, 384))
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    found = read_encoder(tmp_path / "vit.pth", log=False)
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        tokens = model._process_input(images)
        theirs = model.encoder(torch.cat([model.class_token.expand(1, -1, -1), tokens], dim=1))
    assert off(found, images, theirs) < 2e-5 and found.provenance.method == "torchvision ViT"
