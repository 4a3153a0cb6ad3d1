"""Detectors of both engines: what goes in, what comes out, and that the two agree on what a box and a mask is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_file import Provenance
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.seeding import seeded_rng
from maelift.tests.support import framework, noise_image, random_encoder
from maelift.transfer.detection.architecture import Architecture
from maelift.transfer.detection.canvas import Canvas, paste_masks
from maelift.transfer.detection.model import ENCODER_PREFIX, Detector, load
from maelift.transfer.model_file import read_model
from maelift.transfer.trained_model import load_model
from PIL import Image
from torch import Tensor

SLIM: dict[str, Any] = {
    "pyramid_channels": 16,
    "head_channels": 16,
    "fc_dim": 32,
    "box_convs": 1,
    "mask_convs": 1,
    "proposals": 40,
    "box_samples": 16,
    "region_samples": 16,
    "score_threshold": 0.0,
}
CLASSES = ("square", "disc")
KINDS = [
    ("torchvision", "faster"),
    ("torchvision", "mask"),
    ("detectron2", "mask"),
    ("detectron2", "cascade"),
    ("detectron2", "cascade_mask"),
]


def detector(engine: str, head: str, *, patch: int = 8, size: tuple[int, int] = (32, 48), **changes: Any) -> Detector:
    if engine == "detectron2":
        framework("detectron2")
    encoder = random_encoder("vit_nano").with_patch_size(patch).resized(size)
    with seeded_rng(0, "head"):
        return Detector(encoder, CLASSES, Architecture(engine=engine, head=head, **{**SLIM, **changes}))  # type: ignore[arg-type]


def target(boxes: list[list[float]], size: tuple[int, int], *, masks: bool) -> Mapping[str, Tensor]:
    found = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.arange(len(boxes)) % 2}
    if masks:
        found["masks"] = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(found["masks"], boxes, strict=True):
            mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    return found


@pytest.mark.parametrize(("engine", "head"), KINDS)
def test_every_parameter_learns_from_images_with_and_without_objects(engine: str, head: str) -> None:
    model = detector(engine, head).train()
    pixels = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    masks = model.architecture.masks
    some, none = target([[4, 4, 20, 24], [22, 2, 44, 30]], (32, 48), masks=masks), target([], (32, 48), masks=masks)
    for targets in ([some, none], [none, none]):
        model.zero_grad(set_to_none=True)
        losses = model(pixels, targets)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(torch.isfinite(loss) for loss in losses.values())
        missing = [
            name for name, gradient in gradients.items() if gradient is None or not torch.isfinite(gradient).all()
        ]
        assert not missing  # DistributedDataParallel waits for each of them
    assert any(name.startswith(f"{ENCODER_PREFIX}blocks.2.") for name in gradients)
    with pytest.raises(MaeliftError, match="2 training images with 1 targets"):
        model(pixels, [some])


@pytest.mark.parametrize(("engine", "head"), KINDS)
def test_images_of_any_size_are_predicted_in_their_own_pixels_and_a_file_brings_the_model_back(
    engine: str, head: str, tmp_path: Path
) -> None:
    model = detector(engine, head).train()
    path = tmp_path / "wide.png"
    noise_image(0, (20, 90)).save(path)
    images: list[Any] = [
        path,
        noise_image(1, (301, 41)),
        np.asarray(noise_image(2, (7, 9))),
        Image.new("L", (30, 20), 128),
    ]
    found = model.predict(images)
    assert model.training
    for one, (height, width) in zip(found, [(20, 90), (301, 41), (7, 9), (20, 30)], strict=True):
        assert 0 < len(one) <= 100 and one.classes == CLASSES and set(one.labels) <= {0, 1}
        assert one.boxes.dtype == np.float32 and (one.boxes >= 0).all()
        assert (one.boxes[:, 2:] <= [width, height]).all() and (one.boxes[:, 2:] > one.boxes[:, :2]).all()
        assert one.boxes[:, 2].max() > width / 2 and one.boxes[:, 3].max() > height / 2  # not those of the canvas
        assert (np.diff(one.scores) <= 0).all()
        shape = None if one.masks is None else one.masks.shape
        assert shape == ((len(one), height, width) if model.architecture.masks else None)
    sure = model.predict(images, score_threshold=float(found[0].scores[2]))
    assert len(sure[0]) >= 3 and min(sure[0].scores) == found[0].scores[2]

    model.save(tmp_path / "model.safetensors", Provenance("test"))
    again = load_model(tmp_path / "model.safetensors")
    assert isinstance(again, Detector) and not again.training and again.architecture == model.architecture
    for one, other in zip(found, again.predict(images), strict=True):
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert load(read_model(tmp_path / "model.safetensors")).classes == CLASSES


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_arrays_of_any_channels_are_taken(engine: str, channels: int) -> None:
    if engine == "detectron2":
        framework("detectron2")
    encoder = random_encoder("vit_nano", channels=channels)
    model = Detector(encoder, CLASSES, Architecture(engine=engine, head="mask", **SLIM))  # type: ignore[arg-type]
    image = np.random.default_rng(0).integers(0, 256, (20, 33, channels), dtype=np.uint8)
    (found,), (scaled,) = model.predict([image]), model.predict([image.astype(np.float32)])
    assert found.masks is not None and found.masks.shape[1:] == (20, 33)
    assert scaled.boxes.max() > 20 and len(scaled) == pytest.approx(len(found), abs=5)  # resized to whole values or not
    with pytest.raises(MaeliftError, match=r"an array of shape \(20, 33, 2\)"):
        model.predict([np.zeros((20, 33, 2), np.uint8)])


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_boxes_are_exact_in_half_precision(engine: str) -> None:
    model = detector(engine, "mask", size=(32, 640)).eval()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = model.predict([noise_image(0, (32, 640))])
    left = torch.from_numpy(found.boxes[:, 0])
    left = left[left > 256]  # where bfloat16 has steps of 2 pixels
    assert len(left) > 5 and (left - left.bfloat16().float()).abs().max() > 0.25
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(torch.zeros(1, 3, 32, 640).byte(), [target([[4, 4, 20, 24]], (32, 640), masks=True)])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("patch", [14, 7, 6])
def test_patches_that_are_no_power_of_two(patch: int) -> None:
    model = detector("torchvision", "mask", patch=patch, size=(4 * patch, 6 * patch)).train()
    pixels = torch.randint(0, 256, (1, 3, 4 * patch, 6 * patch), dtype=torch.uint8)
    size = (4 * patch, 6 * patch)
    losses = model(pixels, [target([[4, 4, 20, 20]], size, masks=True)])
    assert all(torch.isfinite(loss) for loss in losses.values())
    (found,) = model.predict([noise_image(0, (50, 30))])
    assert len(found) and found.boxes[:, 3].max() <= 50
    fewer = detector("torchvision", "mask", patch=patch, size=size, pyramid_scales=(2.0, 1.0, 0.5))  # as recipes say
    assert list(fewer.model.get_submodule("backbone").strides) == [patch // 2, patch, 2 * patch][patch % 2 :]  # type: ignore[arg-type]
    framework("detectron2")
    with pytest.raises(ConfigError, match="a power of two, as detectron2's pyramid needs"):
        detector("detectron2", "mask", patch=patch, size=size)


def test_the_engines_hold_the_same_encoder() -> None:
    ours = detector("torchvision", "faster", window_size=2, size=(32, 32))
    theirs = detector("detectron2", "faster", window_size=2, size=(32, 32))
    net, other = (model.get_submodule(ENCODER_PREFIX.rstrip(".")) for model in (ours, theirs))
    assert set(net.state_dict()) == set(other.state_dict())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in net.named_parameters():
        if "rel_pos" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    other.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(net(images)[0], other(images)["last_feat"], atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_a_mask_comes_back_where_it_was(engine: str, factor: float) -> None:
    """What the engine cuts out to train on, taken as found, is the mask that went in: no engine shifts it."""
    rows, columns = np.mgrid[:64, :64] + 0.5
    disc = (rows - 30) ** 2 + (columns - 36) ** 2 < 15**2
    box = torch.tensor([[21.0, 15.0, 51.0, 45.0]])
    if engine == "torchvision":
        from torchvision.models.detection.roi_heads import project_masks_on_boxes

        grid = project_masks_on_boxes(torch.from_numpy(disc)[None].float(), box, torch.zeros(1, dtype=torch.int64), 28)
    else:
        structures = framework("detectron2.structures")
        grid = structures.BitMasks(torch.from_numpy(disc)[None]).crop_and_resize(box, 28).float()
    model = detector(engine, "mask", size=(64, 64))
    side = round(64 / factor)
    canvas = Canvas(np.zeros((3, 64, 64), np.uint8), (side, side), (64 / side, 64 / side))
    found = model._in_image(
        {"boxes": box, "scores": torch.ones(1), "labels": torch.zeros(1).long(), "masks": grid}, canvas, True
    )
    rows, columns = (np.mgrid[:side, :side] + 0.5) * 64 / side
    expected = (rows - 30) ** 2 + (columns - 36) ** 2 < 15**2
    assert found.masks is not None
    overlap = (found.masks[0] & expected).sum() / (found.masks[0] | expected).sum()
    assert overlap > (0.95 if factor < 2 else 0.93)
    middle, due = (np.argwhere(mask).mean(axis=0) for mask in (found.masks[0], expected))
    np.testing.assert_allclose(middle, due, atol=0.12 * max(1, 1 / factor))


def test_masks_are_pasted_to_fractions_of_a_pixel_and_cut_at_the_border() -> None:
    whole = torch.ones(3, 28, 28)
    boxes = torch.tensor([[2.0, 3.0, 7.0, 5.0], [-4.0, -4.0, 3.4, 2.6], [8.4, 4.4, 30.0, 30.0]])
    first, second, third = paste_masks(whole, boxes, (8, 12))
    assert first[3:5, 2:7].all() and first.sum() == 10
    assert second[:3, :3].all() and second.sum() == 9
    assert third[4:, 8:].all() and third.sum() == 16
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (8, 12)).shape == (0, 8, 12)


def test_a_canvas_keeps_proportions_and_is_filled_up_with_the_mean() -> None:
    preprocessing = Preprocessing.default(3)
    image = np.full((3, 10, 40), 200, np.uint8)
    canvas = Canvas.of(image, (32, 32), preprocessing)
    assert canvas.size == (10, 40) and canvas.scale == (0.8, 0.8)
    assert (canvas.pixels[:, :8] == 200).all() and canvas.pixels.shape == (3, 32, 32)
    normed = preprocessing.normalize(torch.from_numpy(canvas.pixels)[None])
    assert normed[:, :, 8:].abs().max() < 0.01
    same = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    np.testing.assert_array_equal(Canvas.of(same, (32, 32), preprocessing).pixels, same)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "cascade"}, "torchvision has no cascade. Give engine=detectron2."),
        ({"pyramid_scales": (4.0, 3.0)}, r"pyramid_scales=\[4,3\]: expected neighbours of \[4.0, 2.0, 1.0, 0.5\]"),
        ({"pyramid_scales": (4.0, 1.0)}, "neighbours"),
        ({"pyramid_scales": ()}, "neighbours"),
        ({"patch": 7, "size": (28, 28), "pyramid_scales": (4.0, 2.0)}, r"some of \[1.0, 0.5\], by which patches of 7"),
        ({"anchor_scale": 0.0}, "above 0"),
        ({"anchor_sizes": (8.0, 16.0)}, "5 sizes, one a level"),
        ({"anchor_sizes": (0.0,)}, "pixels above 0"),
        ({"window_size": 3}, "multiples of 24, a window of 3 patches"),
        ({"fc_dim": 0}, "at least 1"),
        ({"mask_convs": -1}, "0 or more"),
        ({"score_threshold": 1.0}, "below 1"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        detector(**{"engine": "torchvision", "head": "mask", **changes})


def test_the_levels_can_be_chosen() -> None:
    for engine in ("torchvision", "detectron2"):
        model: Any = detector(engine, "faster", pyramid_scales=(2.0, 1.0), anchor_sizes=(6.0, 12.0, 24.0)).model
        copy.deepcopy(model)  # a moving average of weights needs one
        sizes = (
            [float(size) for (size,) in model.rpn.anchor_generator.sizes]
            if engine == "torchvision"
            else [float(cells[0, 2] - cells[0, 0]) for cells in model.proposal_generator.anchor_generator.cell_anchors]
        )
        assert sizes == pytest.approx(
            [6, 12, 24] if engine == "torchvision" else [6 * 2**0.5, 12 * 2**0.5, 24 * 2**0.5]
        )
