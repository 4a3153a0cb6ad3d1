"""torchvision: exports that plain torchvision loads and trains, without maelift in the process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from maelift.adapters import plain_vit
from maelift.adapters import torchvision as adapter
from maelift.adapters.parity import Level, reference_features
from maelift.adapters.torchvision_detectors import BoxLevels
from maelift.tests.support import (
    ROOT,
    encoder_file,
    framework,
    one_line_error,
    random_encoder,
    run_consumer,
    run_maelift,
    run_page,
)

IN_PLAIN_TORCHVISION = """
import sys
import torch, torchvision

folder, features = sys.argv[1:]
sys.path.insert(0, folder)
from plain_vit import faster_rcnn, load_backbone, mask_rcnn

backbone = load_backbone(folder)
expected = torch.load(features, weights_only=True)
backbone.net.attend_everywhere()
found = backbone.net(expected["images"])[-1].flatten(2).transpose(1, 2)
torch.testing.assert_close(found, expected["tokens"], atol=1e-4, rtol=1e-4)

channels = expected["images"].shape[1]
image = torch.rand(channels, 45, 65)
target = {"boxes": torch.tensor([[5.0, 5, 30, 35]]), "labels": torch.tensor([1])}
few = {"rpn_post_nms_top_n_train": 32, "rpn_post_nms_top_n_test": 32, "box_batch_size_per_image": 32}
for build, kind in ((faster_rcnn, "FasterRCNN"), (mask_rcnn, "MaskRCNN")):
    model = build(load_backbone(folder, out_channels=32), num_classes=3, min_size=32, max_size=48, **few)
    assert type(model) is getattr(torchvision.models.detection, kind)
    masks = {"masks": torch.ones(1, 45, 65, dtype=torch.uint8)} if kind == "MaskRCNN" else {}
    sum(model([image], [{**target, **masks}]).values()).backward()
    assert model.backbone.net.patch_embed["proj"].weight.grad.abs().sum() > 0
    (found,) = model.eval()([image])
    assert found["boxes"].shape[1] == 4
assert not [name for name in sys.modules if name.startswith(("maelift", "timm"))]
"""


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_plain_torchvision_loads_and_trains_the_export(channels: int, tmp_path: Path) -> None:
    encoder = random_encoder("vit_nano", channels=channels)
    done = run_maelift(
        "export", encoder_file(tmp_path / "e.safetensors", encoder), "--to", "torchvision", "out=o", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "certificate passed: 39 tensors" in done.stdout and "from plain_vit import" in done.stdout
    images = torch.randn(2, channels, 40, 24)
    (tokens,) = reference_features(encoder, images, [Level("last", 2)], class_token=False)
    torch.save({"images": images, "tokens": tokens.detach()}, tmp_path / "features.pth")
    run_consumer(
        IN_PLAIN_TORCHVISION, "o", "features.pth", folder=tmp_path, alone=channels == 1, absent=("maelift", "timm")
    )


def test_the_pyramid_is_detectron2s() -> None:
    modeling = framework("detectron2.modeling")
    from detectron2.modeling.backbone.fpn import LastLevelMaxPool

    encoder = random_encoder("vit_nano", image_size=64).with_patch_size(16)
    backbone = adapter.build_backbone(encoder, out_channels=16)
    net = modeling.ViT(
        patch_size=16,
        embed_dim=64,
        depth=3,
        num_heads=4,
        pretrain_img_size=encoder.spec.image_size[0],
        norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=1e-6),
    )
    theirs = modeling.SimpleFeaturePyramid(net, "last_feat", 16, (4.0, 2.0, 1.0, 0.5), LastLevelMaxPool())
    theirs.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, 96, 160)
    for ours, found in zip(backbone(images).values(), theirs(images).values(), strict=True):
        torch.testing.assert_close(ours, found, atol=2e-4, rtol=1e-4)


def test_no_border_is_dropped_whatever_the_size() -> None:
    backbone = adapter.build_backbone(random_encoder("vit_nano"), image_size=(64, 64))
    image = torch.randn(1, 3, 50, 61)
    levels = backbone(image)
    assert [tuple(level.shape[-2:]) for level in levels.values()] == [(56, 64), (28, 32), (14, 16), (7, 8), (4, 4)]
    changed = image.clone()
    changed[..., -1, -1] += 5
    assert (backbone(changed)["0"] - levels["0"]).abs()[..., 49:, 60:].max() > 1e-3
    assert tuple(backbone.net(image)[0].shape[-2:]) == (13, 16)


@pytest.mark.parametrize(
    ("patch", "strides"), [(16, (4, 8, 16, 32)), (14, (7, 14, 28)), (6, (3, 6, 12)), (4, (1, 2, 4, 8))]
)
def test_boxes_are_pooled_from_where_they_are(patch: int, strides: tuple[int, ...]) -> None:
    backbone = adapter.build_backbone(
        random_encoder("vit_nano").with_patch_size(patch), image_size=(patch * 8, patch * 8)
    )
    assert backbone.strides == strides
    height, width = patch * 8, patch * 12
    columns = torch.arange(width).float()
    maps = {
        str(number): columns[::stride].expand(1, 1, -(-height // stride), -1)  # each cell tells where it begins
        for number, stride in enumerate(strides)
    }
    boxes = torch.tensor([[patch * 3.0, patch * 2.0, patch * 7.0, patch * 5.0], [patch * 1.0, 0, patch * 11.0, height]])
    pooled = plain_vit.PyramidRoIAlign(strides, 7)(maps, [boxes], [(height, width)])
    torch.testing.assert_close(pooled[:, 0, 3, 3], boxes[:, [0, 2]].mean(dim=1), atol=0.5, rtol=0)


def test_boxes_go_to_the_levels_of_the_fpn_paper() -> None:
    sides = torch.tensor([20.0, 111, 112, 223, 224, 447, 448, 2000])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert BoxLevels((4, 8, 16, 32))([boxes]).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_sizes_that_do_not_fit_the_window_are_refused(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "e.safetensors", random_encoder("vit_tiny", image_size=64))
    done = run_maelift(
        "export", file, "--to=torchvision", f"out={tmp_path}/o", "image_size=[1000,512]", "window_size=7"
    )
    one_line_error(done, "image_size=[1000,512]: expected multiples of 112", "The nearest are [896,448] and [1008,560]")
    assert [path.name for path in tmp_path.iterdir()] == ["e.safetensors"]


@pytest.mark.slow
def test_larger_encoders_get_windows_that_tile(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "e.safetensors", random_encoder("vit_tiny", image_size=64))
    done = run_maelift("export", file, "--to", "torchvision", f"out={tmp_path}/o")
    assert done.returncode == 0, done.stderr
    settings = json.loads((tmp_path / "o" / "backbone.json").read_text())
    assert settings["backbone"]["window_size"] == 16 and settings["backbone"]["global_blocks"] == [2, 5, 8, 11]
    assert settings["transform"]["min_size"] == 1024
    sizes = json.loads((tmp_path / "o" / "certificate.json").read_text())["sizes"]
    assert [size["window"] for size in sizes] == [0, 0, 0, 16]


@pytest.mark.slow
def test_a_patch_of_fourteen_is_resampled_to_sixteen(tmp_path: Path) -> None:
    file = encoder_file(tmp_path / "e.safetensors", random_encoder("vit_nano", image_size=32).with_patch_size(14))
    done = run_maelift("export", file, "--to", "torchvision", f"out={tmp_path}/o", "patch_size=16")
    assert done.returncode == 0, done.stderr
    kernel = torch.load(tmp_path / "o" / "backbone.pth", weights_only=True)["patch_embed.proj.weight"]
    assert kernel.shape == (64, 3, 16, 16)
    assert run_maelift("certify", tmp_path / "o", file).returncode == 0


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    encoder = random_encoder("vit_nano")
    net = plain_vit.PlainViT(**adapter.vit_settings(encoder, 0))
    state = encoder.state_dict()
    with pytest.raises(ValueError, match=r"unknown \['head\.weight'\]"):
        plain_vit.load_weights(net, {**state, "head.weight": torch.zeros(2, 64)})
    del state["blocks.0.norm1.bias"]
    with pytest.raises(ValueError, match=r"another shape \['blocks\.0\.norm1\.bias'\]"):
        plain_vit.load_weights(net, state)
    with pytest.raises(ValueError, match="no place for a class token"):
        plain_vit.PlainViT(class_token=True, window_size=4)


@pytest.mark.slow
def test_the_page_works(tmp_path: Path) -> None:
    encoder_file(tmp_path / "encoder.safetensors", random_encoder("vit_nano"))
    run_page(ROOT / "docs" / "torchvision.md", tmp_path)


@pytest.mark.parametrize("window", [0, 4])
def test_relative_positions_are_detectron2s(window: int) -> None:
    modeling = framework("detectron2.modeling")
    encoder = random_encoder("vit_tiny", image_size=32)
    backbone = adapter.build_backbone(encoder, image_size=(64, 64), window_size=window, use_rel_pos=True)
    patch, grid = encoder.spec.patch_size, 64 // encoder.spec.patch_size
    theirs = modeling.ViT(
        img_size=64,
        patch_size=patch,
        embed_dim=encoder.spec.embed_dim,
        depth=encoder.spec.depth,
        num_heads=encoder.spec.num_heads,
        pretrain_img_size=encoder.spec.image_size[0],
        norm_layer=lambda dim: torch.nn.LayerNorm(dim, eps=encoder.spec.norm_eps),
        window_size=window,
        window_block_indexes=list(backbone.net.windows),
        use_rel_pos=True,
    ).double()
    ours = backbone.net.double()
    assert bool(window) == bool(ours.windows)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name:
            assert not parameter.any()
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    tables = {name: tuple(value.shape) for name, value in ours.named_parameters() if "rel_pos" in name}
    head_dim = encoder.spec.embed_dim // encoder.spec.num_heads
    assert tables["blocks.11.attn.rel_pos_h"] == (2 * grid - 1, head_dim)
    assert tables["blocks.0.attn.rel_pos_w"] == (2 * (window or grid) - 1, head_dim)
    theirs.load_state_dict(ours.state_dict())
    for size in ((64, 64), (64, 128), (48, 96) if window == 0 else (128, 64)):  # but for the first, no table fits
        images = torch.randn(2, 3, *size, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(ours(images)[0], theirs(images)["last_feat"], atol=1e-10, rtol=1e-10)


def test_relative_positions_begin_without_effect() -> None:
    encoder = random_encoder("vit_nano")
    images = torch.randn(2, 3, 48, 32)
    without, along = (
        adapter.build_backbone(encoder, image_size=(64, 64), window_size=4, use_rel_pos=on).net for on in (False, True)
    )
    torch.testing.assert_close(along(images)[0], without(images)[0])
    along(images)[0].square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for name, parameter in along.named_parameters()), (
        "a table that learns nothing"
    )
    assert not [name for name, _ in without.named_parameters() if "rel_pos" in name]


def test_heads_can_be_slim() -> None:
    backbone = adapter.build_backbone(random_encoder("vit_nano"), image_size=(64, 64), out_channels=16)
    heads = plain_vit.Heads(channels=24, box_convs=1, fc_dim=40, mask_convs=2, anchor_sizes=(4, 8, 16, 32, 48))
    model = plain_vit.mask_rcnn(backbone, 3, heads=heads)
    assert model.roi_heads.box_predictor.cls_score.weight.shape == (3, 40)
    assert model.roi_heads.mask_predictor.conv5_mask.weight.shape == (24, 24, 2, 2)
    assert model.rpn.anchor_generator.sizes == ((4,), (8,), (16,), (32,), (48,))
    usual = plain_vit.faster_rcnn(backbone, 3)
    assert usual.rpn.anchor_generator.sizes == tuple((8.0 * stride,) for stride in (1, 2, 4, 8, 16))
    with pytest.raises(ValueError, match=r"2 anchor sizes for levels of strides \[1, 2, 4, 8, 16\]"):
        plain_vit.faster_rcnn(backbone, 3, heads=plain_vit.Heads(anchor_sizes=(4, 8)))
