"""The certificate: what it passes, and that every way in which frameworks load weights wrongly makes it fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from maelift.adapters import torchvision as adapter
from maelift.adapters.bundle import detector_state
from maelift.adapters.certificate import Certificate
from maelift.adapters.parity import Level, certificate_sizes, measure_parity, reference_features, sample_images
from maelift.adapters.simple_feature_pyramid import SimpleFeaturePyramid
from maelift.adapters.windowed_vit import PlainViT
from maelift.core.errors import CheckpointError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.support import random_encoder
from torch import nn
from torch.nn import functional as F


def certificate_of(
    encoder: Encoder,
    mutate: Callable[[SimpleFeaturePyramid], object],
    window: int = 0,
    sizes: slice = slice(None),
) -> Certificate:
    """The certificate of torchvision's backbone after something was done to it; ``sizes``: which of the usual sizes."""
    side = 4 * max(1, window) * encoder.spec.patch_size
    backbone = adapter.build_backbone(encoder, image_size=(side, side), window_size=window)
    mutate(backbone)
    return measure_parity(
        lambda size: adapter.candidate(backbone, encoder, detector_state(encoder), size),
        certificate_sizes(encoder.spec, window)[sizes],
        framework="torchvision",
        encoder="hash",
        distributions=["torchvision"],
    )


def wrong_eps(backbone: SimpleFeaturePyramid) -> None:
    for module in backbone.net.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def missing_bias(backbone: SimpleFeaturePyramid) -> None:
    nn.init.zeros_(backbone.net.get_parameter("blocks.1.mlp.fc1.bias"))


def transposed_grid(backbone: SimpleFeaturePyramid) -> None:
    net = backbone.net
    rows = net.pos_embed.data[:, net.prefix :].reshape(1, *net.grid, -1).transpose(1, 2).flatten(1, 2)
    net.pos_embed.data = torch.cat([net.pos_embed.data[:, : net.prefix], rows], dim=1)


def red_for_blue(backbone: SimpleFeaturePyramid) -> None:
    for key in ("image_mean", "image_std"):
        backbone.transform_settings[key] = backbone.transform_settings[key][::-1]


def layer_scale(backbone: SimpleFeaturePyramid) -> None:
    """init_values=0.1 of other frameworks: each branch times a tenth."""
    for name, parameter in backbone.net.named_parameters():
        if "attn.proj" in name or "mlp.fc2" in name:
            parameter.data *= 0.1


def class_token_kept(backbone: SimpleFeaturePyramid) -> None:
    net = backbone.net
    net.cls_token = nn.Parameter(torch.full((1, 1, net.embed_dim), 0.02))


def antialiased(backbone: SimpleFeaturePyramid) -> None:
    net = backbone.net

    def positions(grid: tuple[int, int]) -> torch.Tensor:
        plane = net.pos_embed[:, net.prefix :].reshape(1, *net.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(plane, size=grid, mode="bicubic", align_corners=False, antialias=True)
        return resized.flatten(2).transpose(1, 2)

    net.positions = positions  # type: ignore[method-assign]


def not_a_number(backbone: SimpleFeaturePyramid) -> None:
    backbone.net.get_parameter("blocks.0.norm1.weight").data[0] = float("nan")


MUTATIONS: dict[Callable[[SimpleFeaturePyramid], None], str] = {
    wrong_eps: "differs by",
    missing_bias: "blocks.1.mlp.fc1.bias: the framework's model holds other values than the file",
    transposed_grid: "pos_embed: the framework's model holds other values",
    red_for_blue: "the prepared images differ",
    layer_scale: "last map differs by",
    class_token_kept: "cls_token: in the framework's model, but not in the file",
    antialiased: "differs by",
    not_a_number: "differs by nan",
}


@pytest.fixture(scope="module")
def sound() -> Certificate:
    """The certificate of a vit_nano to which nothing was done."""
    return certificate_of(random_encoder("vit_nano"), lambda backbone: None)


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_every_mutation_fails(mutate: Callable[[SimpleFeaturePyramid], None], sound: Certificate) -> None:
    assert sound.passed
    failed = certificate_of(random_encoder("vit_nano"), mutate)
    assert not failed.passed
    assert any(MUTATIONS[mutate] in failure for failure in failed.failures), failed.failures
    assert "FAILED" in failed.text() and not json.loads(failed.to_json())["passed"]
    with pytest.raises(CheckpointError, match="the certificate for torchvision failed: "):
        failed.check()


def test_a_wrong_epsilon_shows_in_float64_alone() -> None:
    failures = certificate_of(random_encoder("vit_nano"), wrong_eps).failures
    assert failures and all("float64" in failure for failure in failures)


@pytest.mark.parametrize(
    ("model", "channels", "image_size", "window"),
    [
        ("vit_nano", 1, 32, 0),
        ("vit_nano", 4, (24, 40), 4),
        ("vit_tiny", 3, 112, 0),
        pytest.param("vit_small", 3, (96, 160), 4, marks=pytest.mark.slow),
        pytest.param("vit_base", 3, 112, 7, marks=pytest.mark.slow),
    ],
)
def test_an_equal_backbone_passes(model: str, channels: int, image_size: int | tuple[int, int], window: int) -> None:
    encoder = random_encoder(model, channels=channels, image_size=image_size)
    ends = slice(None, None, 3) if model == "vit_base" else slice(None)  # as trained, and in windows
    certificate = certificate_of(encoder, lambda backbone: None, window, ends)
    assert certificate.passed, certificate.text()
    assert any(size.image_size[0] != size.image_size[1] for size in certificate.sizes)
    assert {level.block for size in certificate.sizes for level in size.levels} == {encoder.spec.depth - 1}
    assert set(certificate.sizes[0].levels[0].differences) == {"float64", "float32"}
    assert certificate.sizes[-1].window == (window if encoder.spec.depth > 4 else 0)  # else every block is global
    assert certificate.encoder == "hash" and {"maelift", "torch", "torchvision"} <= certificate.versions.keys()
    assert certificate.keys.unused["cls_token"] and not certificate.keys.wrong


def test_sizes_are_the_trained_one_a_smaller_one_and_one_that_is_not_square() -> None:
    for spec in (preset_spec("vit_nano"), preset_spec("vit_base"), preset_spec("vit_huge", image_size=(28, 42))):
        trained, smaller, other = certificate_sizes(spec)
        assert trained == spec.image_size
        assert all(small <= side for small, side in zip(smaller, trained, strict=True)) and smaller != trained
        assert other[0] != other[1]


def test_the_reference_in_windows_equals_a_network_of_windows() -> None:
    encoder = random_encoder("vit_nano")
    settings = {**adapter.vit_settings(encoder, 0), "window_size": 4, "global_blocks": (1, 2)}
    net = PlainViT(**{**settings, "out_indices": (0, 2)})
    net.load_state_dict({name: encoder.state_dict()[name] for name in net.state_dict()})
    images = torch.randn(2, 3, 32, 64)
    levels = [Level("first", 0), Level("last", 2)]
    expected = reference_features(encoder, images, levels, class_token=False, windows={0: 4})
    everywhere = reference_features(encoder, images, levels, class_token=False)
    for ours, theirs, other in zip(expected, net(images), everywhere, strict=True):
        torch.testing.assert_close(theirs.flatten(2).transpose(1, 2), ours, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours, other, atol=1e-3)


def test_pictures_have_structure_and_every_channel_its_own() -> None:
    for picture in sample_images((40, 56), 4):
        assert picture.shape == (40, 56, 4) and picture.dtype == "uint8"
        assert picture.std() > 20 and abs(picture[..., 0].astype(float) - picture[..., 2]).mean() > 10
    assert sample_images((8, 8), 1, (0, 65535))[0].max() > 1000


def test_a_certificate_is_written_whole(sound: Certificate, tmp_path: Path) -> None:
    sound.write(tmp_path)
    content = json.loads((tmp_path / "certificate.json").read_text())
    assert content["passed"] and content["limits"] == {"float64": 1e-10, "float32": 1e-4, "input": 1e-5}
    assert content["keys"]["used"] and len(content["sizes"]) == 3
