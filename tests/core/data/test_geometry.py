"""Boxes, crops and fitted sizes of images of any size and shape: never empty or outside; image, boxes and masks aligned."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from maelift.core.data.detection import Objects
from maelift.core.data.transforms import (
    REDUCTIONS,
    _scaled_box,
    crop_box,
    fit_and_crop,
    fitted_box,
    random_resized_crop,
)
from maelift.core.models.preprocessing import Preprocessing
from maelift.transfer.detection.augmentation import JitteredCrop, crop_targets
from maelift.transfer.detection.canvas import Canvas, crop_and_resize
from maelift.transfer.predictions import Detections, Segmentation
from maelift.transfer.segmentation.augmentation import random_crop
from maelift.transfer.segmentation.inference import Inference
from maelift.transfer.segmentation.sliding_window import sliding_window_logits
from maelift.transfer.visualize import draw_detections, draw_segmentation
from PIL import Image

ENCODERS = [(96, 96), (112, 112), (192, 256), (224, 224), (240, 240), (336, 336), (448, 448), (512, 256), (518, 518)]
LAST = float(np.nextafter(1, 0))
"""The largest number that can be drawn from [0, 1)."""
DRAWS = st.one_of(st.sampled_from([0.0, LAST]), st.floats(0, 1, exclude_max=True, allow_nan=False))
SIDES = st.integers(1, 10_000)
bounded = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def inside(box: tuple[float, float, float, float], height: int, width: int) -> bool:
    """What PIL asks of a box (left, top, right, bottom), which it holds in single precision."""
    left, top, right, bottom = np.asarray(box, dtype=np.float32)
    return bool(0 <= left < right <= width and 0 <= top < bottom <= height)


def shapes(count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Sizes (height, width) from 1 to 10,000, as many small as large ones; those of extreme shape among them."""
    sides = np.exp(np.random.default_rng(seed).uniform(0, np.log(10_001), (count, 2))).astype(int)
    return [*((int(height), int(width)) for height, width in sides), (1, 10_000), (10_000, 1), (10_000, 3), (1, 1)]


def test_the_centre_of_every_size_fits_every_encoder() -> None:
    for (height, width), size in itertools.product(shapes(2000), ENCODERS):
        left, top, right, bottom = box = fitted_box((height, width), size)
        assert inside(box, height, width), (height, width, size, box)
        assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)
        assert (right - left) / (bottom - top) == pytest.approx(size[1] / size[0])
        assert left == pytest.approx(width - right, abs=1e-6) and top == pytest.approx(height - bottom, abs=1e-6)


def test_sizes_that_could_be_cropped_before_give_the_same_bits() -> None:
    for (height, width), size in itertools.product(shapes(2000, seed=1), ENCODERS):
        scale = min(width / size[1], height / size[0])
        crop_width, crop_height = scale * size[1], scale * size[0]
        left, top = (width - crop_width) / 2, (height - crop_height) / 2
        if left >= 0 and top >= 0:
            unclamped = (left, top, min(width, left + crop_width), min(height, top + crop_height))
            assert fitted_box((height, width), size) == unclamped


@pytest.mark.parametrize("size", [(900, 1600), (900, 1200), (450, 600), (1, 3000), (3000, 3), (1, 1), (224, 224)])
def test_pil_takes_the_boxes(size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").resize((size[1], size[0]))
    for encoder in ENCODERS:
        fitted = fit_and_crop(image, encoder)
        floats = fit_and_crop(np.asarray(image)[:, :, None].astype(np.float32), encoder)
        assert fitted.shape == floats.shape == (*encoder, 1)
        assert np.abs(fitted.astype(float) - floats.astype(float)).max() <= 1  # bytes are rounded between the two axes


@bounded
@given(SIDES, SIDES, st.sampled_from(ENCODERS), st.lists(DRAWS, min_size=5, max_size=5))
def test_random_crops_lie_within_the_image_and_its_reduced_decoding(
    height: int, width: int, size: tuple[int, int], draws: list[float]
) -> None:
    box = top, left, tall, wide = crop_box((height, width), np.array(draws), (0.08, 1.0))
    assert 0 <= top < top + tall <= height and 0 <= left < left + wide <= width
    for reduction in REDUCTIONS:
        there = -(-height // reduction), -(-width // reduction)  # as libjpeg rounds
        top, left, tall, wide = _scaled_box(box, (height, width), there)
        assert 0 <= top < top + tall <= there[0] and 0 <= left < left + wide <= there[1]


@pytest.mark.parametrize("size", [(1, 5000), (5000, 3), (2, 2)])
def test_random_crops_of_extreme_shapes_are_resized(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for image in (picture, picture.astype(np.float32)):
        crop = random_resized_crop(image, (96, 112), np.array([0.9, 0.5, LAST, LAST, 0.3]))
        assert crop.shape == (96, 112, 3) and np.isfinite(crop).all()


@bounded
@given(
    SIDES, SIDES, st.sampled_from(ENCODERS), st.lists(DRAWS, min_size=3, max_size=3), st.sampled_from([0.1, 1.0, 2.0])
)
def test_the_view_of_a_detector_lies_within_image_and_canvas(
    height: int, width: int, canvas: tuple[int, int], draws: list[float], jitter: float
) -> None:
    view = JitteredCrop.sample((height, width), canvas, (jitter, jitter), np.array(draws))
    assert inside(view.box, height, width)
    assert all(1 <= part <= side for part, side in zip(view.filled, canvas, strict=True))
    x1, y1, x2, y2 = view.box
    assert (x2 - x1) * view.scale[0] == pytest.approx(view.filled[1]) or x2 == width
    assert (y2 - y1) * view.scale[1] == pytest.approx(view.filled[0]) or y2 == height


@settings(bounded, max_examples=40)
@given(
    st.integers(1, 80),
    st.integers(1, 80),
    st.lists(DRAWS, min_size=3, max_size=3),
    st.booleans(),
    st.integers(0, 3),
    st.data(),
)
def test_image_box_and_mask_of_an_object_stay_aligned(
    height: int, width: int, draws: list[float], mirrored: bool, turns: int, data: st.DataObject
) -> None:
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    picture = np.zeros((1, height, width), np.uint8)
    picture[:, y1:y2, x1:x2] = 255
    outline = np.array([x1, y1, x2, y1, x2, y2, x1, y2], dtype=np.float64)
    whole = Objects(
        np.array([[x1, y1, x2, y2]], np.float64), np.zeros(1, np.int64), np.zeros(1, bool),
        np.array([(x2 - x1) * (y2 - y1)], np.float64), ((outline,),), (height, width),
    )  # fmt: skip
    view = JitteredCrop.sample((height, width), (64, 64 if turns else 48), (0.5, 2.0), np.array(draws))
    boxes = crop_targets(whole, view, mirrored, turns, masks=False)["boxes"]
    seen = crop_targets(whole, view, mirrored, turns, masks=True)
    tall, wide = view.filled if turns % 2 == 0 else view.filled[::-1]
    shown = crop_and_resize(
        picture, view.box, view.filled, Preprocessing(("gray",), (0.5,), (0.5,), interpolation="nearest")
    )
    if mirrored:
        shown = shown[:, :, ::-1]
    shown = np.rot90(shown, turns, (1, 2))
    for box in boxes:
        assert 0 <= box[0] < box[2] <= wide and 0 <= box[1] < box[3] <= tall
        rows, columns = np.nonzero(shown[0] > 127)
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert np.abs(found - box).max() <= 1
    for mask, box in zip(seen.get("masks", []), seen["boxes"], strict=True):
        assert box[0] < box[2] <= wide and box[1] < box[3] <= tall
        assert not mask[tall:].any() and not mask[:, wide:].any()
        assert np.abs(box - boxes[0]).max() <= 1.5


@bounded
@given(SIDES, SIDES, st.sampled_from(ENCODERS))
def test_a_detector_fits_every_image_into_its_canvas(height: int, width: int, canvas: tuple[int, int]) -> None:
    if height * width > 200_000:
        height, width = min(height, 400), min(width, 400)
    fitted = Canvas.of(np.zeros((1, height, width), np.uint8), canvas, Preprocessing(("gray",), (0.5,), (0.5,)))
    assert fitted.pixels.shape == (1, *canvas) and min(fitted.scale) > 0
    assert fitted.scale[0] * width < canvas[1] + 1e-6 and fitted.scale[1] * height < canvas[0] + 1e-6


@bounded
@given(
    SIDES, SIDES, st.sampled_from(ENCODERS), st.sampled_from([0, 1]), st.lists(DRAWS, min_size=3, max_size=3),
    st.sampled_from([0.1, 0.5, 1.0, 2.0]),
)  # fmt: skip
def test_crops_of_an_image_and_its_mask_show_the_same_part(
    height: int, width: int, size: tuple[int, int], resized: int, draws: list[float], factor: float
) -> None:
    inference = Inference(mode="slide", crop=size, stride=size, short_side=resized * min(size))
    base = inference.working_size((height, width))
    scaled = max(1, round(base[0] * factor)), max(1, round(base[1] * factor))
    mask = np.broadcast_to(np.uint8(0), (height, width))  # of any size, in a byte
    box, part = random_crop(mask, scaled, size, np.array(draws[:2]), 1.0, 255)
    assert inside(box, height, width)
    assert part.shape == (min(size[0], scaled[0]), min(size[1], scaled[1]))
    left, top, right, bottom = box
    assert (right - left) * scaled[1] / width == pytest.approx(part.shape[1], abs=1e-3)
    assert (bottom - top) * scaled[0] / height == pytest.approx(part.shape[0], abs=1e-3)


@settings(bounded, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 60), st.lists(DRAWS, min_size=3, max_size=3))
def test_the_pixels_of_a_crop_are_those_of_its_mask(height: int, width: int, draws: list[float]) -> None:
    scaled = max(1, round(height * (0.5 + draws[2]))), max(1, round(width * (0.5 + draws[2])))
    for mask in np.indices((height, width)).astype(np.uint8):  # each pixel's row, then its column
        box, part = random_crop(mask, scaled, (24, 32), np.array(draws[:2]), 1.0, 255)
        crop = Image.fromarray(mask).resize((part.shape[1], part.shape[0]), Image.Resampling.NEAREST, box=box)
        assert np.abs(np.asarray(crop).astype(int) - part).max() <= 1  # a middle on a boundary may fall to either side


@pytest.mark.parametrize("size", [(1, 1000), (700, 3), (1, 1), (5, 2000)])
def test_windows_cover_images_of_any_shape(size: tuple[int, int]) -> None:
    inference = Inference.usual((64, 48))
    working = inference.working_size(size)
    assert min(working) >= 1 and max(working) <= 4 * inference.short_side
    images = torch.arange(float(np.prod(working))).reshape(1, 1, *working)
    assert torch.equal(sliding_window_logits(lambda window: window, images, inference.crop, inference.stride), images)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 3), (1, 1), (4, 6000)])
def test_predictions_on_extreme_shapes_are_drawn(size: tuple[int, int]) -> None:
    height, width = size
    image = Image.new("RGB", (width, height), "red")
    masks = np.ones((1, height, width), dtype=bool)
    found = Detections(
        np.array([[0, 0, width, height]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), ("thing",), masks
    )
    for drawn in (
        draw_detections(image, found),
        draw_segmentation(image, Segmentation(masks[0].astype(np.uint8), ("a", "b"))),
    ):
        assert max(drawn.size) <= 1600 and min(drawn.size) >= 1
