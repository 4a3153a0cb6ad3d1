"""Pictures of predictions: in the right place and colour, large enough to see, with names of every kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from maelift.transfer.predictions import Classification, Detections, Segmentation
from maelift.transfer.visualize import (
    LONGEST,
    SHORTEST,
    ExampleImage,
    class_colours,
    draw_classification,
    draw_detections,
    draw_segmentation,
    enlarged,
    percent,
    readable,
    side_by_side,
)
from PIL import Image

CLASSES = ("background", "shirt", "bag")
LONG = "a name that goes on and on, much longer than any picture is wide, and then some more of it " * 3


def black(height: int = 32, width: int = 48) -> Image.Image:
    return Image.new("L", (width, height))


def objects(boxes: list[list[float]], scores: list[float], masks: np.ndarray | None = None) -> Detections:
    labels = np.arange(1, len(boxes) + 1)
    return Detections(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), labels, CLASSES, masks)


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    found: np.ndarray = (np.asarray(image) == colour).all(axis=2)
    return found


def test_colours_are_stable_distinct_and_gray_for_the_background() -> None:
    names = [f"class {number}" for number in range(60)]
    colours = class_colours(names)
    assert len(set(colours)) == 60 and colours == class_colours(names)
    assert class_colours(names[:10]) == colours[:10]
    red, green, blue = class_colours(["Background"])[0]
    assert max(red, green, blue) - min(red, green, blue) < 20


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (64, 100), (400, 500), (3000, 1000), (1, 5000)])
def test_pictures_are_neither_tiny_nor_huge(size: tuple[int, int]) -> None:
    picture, scale = enlarged(black(*size))
    assert 0.75 * SHORTEST <= max(picture.size) <= LONGEST
    assert picture.width == pytest.approx(size[1] * scale, abs=1)


def test_boxes_are_drawn_where_they_are_and_low_scores_are_not() -> None:
    image = draw_detections(black(), objects([[10, 8, 30, 24], [0, 0, 5, 5]], [0.9, 0.3]))
    shirt, bag = class_colours(CLASSES)[1:]
    scale = image.width / 48
    edge = has_colour(image, shirt)
    rows, columns = np.flatnonzero(edge.any(axis=1)), np.flatnonzero(edge.any(axis=0))
    assert columns[0] == pytest.approx(10 * scale, abs=3) and rows[-1] == pytest.approx(24 * scale, abs=3)
    assert not has_colour(image, bag).any()
    assert has_colour(draw_detections(black(), objects([[0, 0, 5, 5]] * 2, [0.3, 0.3]), min_score=0.2), bag).any()


def test_masks_tint_their_pixels_and_no_others() -> None:
    masks = np.zeros((1, 32, 48), bool)
    masks[0, 10:20, 10:30] = True
    image = np.asarray(draw_detections(black(), objects([[10, 10, 30, 20]], [0.9], masks)))
    scale = image.shape[1] // 48
    assert image[15 * scale, 20 * scale].max() > 60 and image[29 * scale, 45 * scale].max() == 0


def test_boxes_beyond_the_image_and_no_boxes_at_all() -> None:
    draw_detections(black(), objects([[-50, -9, 900, 70], [47, 31, 60, 40]], [1.0, 1.0]))
    nothing = draw_detections(black(), objects([], []))
    assert np.asarray(nothing).max() == 0


def test_a_segmentation_has_a_legend_of_what_is_there() -> None:
    mask = np.zeros((32, 48), np.uint8)
    mask[:, 24:] = 2
    mask[:2] = 255
    image = draw_segmentation(black(), Segmentation(mask, CLASSES), ignored=255)
    height = 32 * image.width // 48
    gray, shirt, bag = class_colours(CLASSES)
    legend = image.crop((0, height, image.width, image.height))
    assert has_colour(legend, bag).any() and has_colour(legend, gray).any() and not has_colour(legend, shirt).any()
    pixels = np.asarray(image)
    assert pixels[0, 0].max() == 0  # ignored: as it was
    assert pixels[height // 2, image.width * 3 // 4].max() > pixels[height // 2, image.width // 4].max() > 0
    with pytest.raises(ValueError, match="a mask of"):
        draw_segmentation(black(8, 8), Segmentation(mask, CLASSES))


def test_long_hostile_and_foreign_names_fit() -> None:
    names = [LONG, "日本語のクラス", "مرحبا", "two\nlines\t\x00", "", "<script>"]
    shares = {name: 1 / len(names) for name in names}
    for size in (8, 28, 300):
        picture = draw_classification(black(size, size), Classification(LONG, shares), truth="日本語のクラス", most=6)
        assert picture.width <= max(LONGEST, 160) and picture.height > enlarged(black(size, size))[0].height
    found = Detections(np.array([[0, 0, 9, 9]] * 6, np.float32), np.ones(6, np.float32), np.arange(6), tuple(names))
    assert draw_detections(black(), found).size == enlarged(black())[0].size
    legend = draw_segmentation(black(4, 6), Segmentation(np.arange(24).reshape(4, 6) % 6, tuple(names)))
    assert legend.width <= 400


def test_names_are_put_on_one_line_and_told_by_number_where_no_font_has_them() -> None:
    assert readable("two\nlines\t\x00 x") == "two lines x"
    assert readable("größer Сумка") == "größer Сумка"
    assert readable("\U0001f980\ue000", 7) == "class 7"
    assert readable("", 3) == "class 3"
    assert percent(0.004) == "<1 %" and percent(0) == "0 %" and percent(0.934) == "93 %"


def test_arrays_of_any_channels_and_16_bit_gray() -> None:
    for array in (np.zeros((9, 9)), np.zeros((9, 9, 1), np.uint16), np.zeros((9, 9, 2)), np.zeros((9, 9, 5), np.uint8)):
        assert enlarged(array)[0].mode == "RGB"
    sixteen = Image.fromarray(np.full((9, 9), 200.0, np.float32))
    assert np.asarray(enlarged(sixteen)[0]).mean() == 200


def test_side_by_side_and_encoding() -> None:
    row = side_by_side([("predicted", black(40, 40)), (LONG, black(60, 40))])
    assert row.width >= 80 and row.height > 60
    for image, kind in ((black(), "png"), (black(1200, 1200), "jpeg")):
        picture = ExampleImage.of(image, "a caption", right=False)
        assert picture.kind == kind and Image.open(io.BytesIO(picture.data)).size == image.size
