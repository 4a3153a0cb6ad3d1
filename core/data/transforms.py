"""Crops, resizing and conversion of decoded images to arrays of the channels asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import ConfigError, DataError
from .pixel_format import LazyImage, Picture, picture_of

ASPECT_RATIOS = (3 / 4, 4 / 3)

REDUCTIONS = (8, 4, 2)
"""Factors by which libjpeg decodes at a smaller size."""

Interpolation = Literal["bicubic", "bilinear", "nearest"]

Pixels = NDArray[np.generic]


def to_array(image: Image.Image | Picture, channels: int) -> Pixels:
    """Pixels (C, H, W), uint8, or float32 for more than 8 bits; gray from colour by ITU-R 601, colour of three equal grays.

    Raises DataError for other channels than were asked for.
    """
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    there = picture.shape[2]
    if there == channels:
        return np.ascontiguousarray(picture.transpose(2, 0, 1))
    if there == 1 and channels == 3:
        return np.repeat(picture.transpose(2, 0, 1), 3, axis=0)
    if there == 3 and channels == 1:
        return _gray(picture)[None]
    raise DataError(_other_channels(there, channels))


def check_channels(there: int, channels: int | None) -> None:
    """Raise DataError unless ``to_array`` can make ``channels`` of so many; None: unless these are gray or colour."""
    if channels is None and there not in (1, 3):
        raise DataError(f"{there} channels, neither gray (1) nor colour (3). Give channels={there} to use them")
    if channels is not None and there != channels and {there, channels} != {1, 3}:
        raise DataError(_other_channels(there, channels))


def _other_channels(there: int, channels: int) -> str:
    return f"{there} channel{'s' if there > 1 else ''}, not {channels} (channels={channels})"


def _gray(picture: Picture) -> Pixels:
    if picture.dtype == np.uint8:
        return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).convert("L"))
    return (picture @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).astype(np.float32)


def random_resized_crop(
    image: Image.Image | Picture,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.2, 1.0),
    interpolation: Interpolation = "bicubic",
    turn: bool = False,
) -> Picture:
    """A random part of an image resized to ``size`` (height, width), mirrored when the last draw is below 0.5: (H, W, C).

    ``draws`` are five numbers in [0, 1): area (uniform within ``scale``), aspect ratio (log-uniform from 3/4 to 4/3),
    place in y and x, mirroring. A crop that would reach beyond the image is cut to it. It is cropped, then resized, as in
    torchvision: with antialiasing, uint8 within 1 (seldom 2) of what PIL gives. ``turn``: it is also turned by quarters
    (``quarter_turns``).
    """
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    box = crop_box((picture.shape[0], picture.shape[1]), draws, scale)
    return _cropped(picture, box, size, draws[4], interpolation, turn)


def check_turn(turn: bool, flip: bool) -> None:
    """Raise ConfigError for turning without mirroring, as one draw says both."""
    if turn and not flip:
        raise ConfigError("turn", True, "false with flip=false")


def quarter_turns(draw: float) -> int:
    """How many quarters, 0 to 3, by what a draw in [0, 1) says beyond whether it is below 0.5."""
    return int(4 * (2 * draw % 1))


def _cropped(
    picture: Picture,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    draw: float,
    interpolation: Interpolation = "bicubic",
    turn: bool = False,
) -> Picture:
    """The part of a picture in ``box`` at ``size``, mirrored below a draw of 0.5 and, with ``turn``, turned by it."""
    turns = quarter_turns(draw) if turn else 0
    upright = size if turns % 2 == 0 else (size[1], size[0])
    part = _resized(picture, box, upright, mirrored=bool(draw < 0.5), interpolation=interpolation)
    return np.rot90(part, turns) if turns else part


def random_crops(
    image: LazyImage,
    size: tuple[int, int],
    draws: NDArray[np.float64],
    scale: tuple[float, float] = (0.2, 1.0),
    *,
    reduced: bool = True,
    turn: bool = False,
) -> list[Picture]:
    """A ``random_resized_crop`` for each row of ``draws`` (K, 5), of an image that is decoded once.

    ``reduced``: a JPEG is decoded at 1/2, 1/4 or 1/8 where each crop still has at least twice the pixels of ``size`` a
    side; crops then lie at whole pixels of the smaller image, and values differ from those of the full one, by 1 of 255 in the
    mean and up to 50 at edges and grain (photographs of 1600 to 4000 pixels). Which factor it is depends on nothing else.
    """
    boxes = [crop_box(image.size, row, scale) for row in draws]
    room = min(min(box[2] / size[0], box[3] / size[1]) for box in boxes)
    reduction = next((factor for factor in REDUCTIONS if room >= 2 * factor), 1) if reduced else 1
    picture = image.pixels(reduction)
    there = (picture.shape[0], picture.shape[1])
    if there != image.size:
        boxes = [_scaled_box(box, image.size, there) for box in boxes]
    return [_cropped(picture, box, size, row[4], turn=turn) for box, row in zip(boxes, draws, strict=True)]


def crop_box(
    size: tuple[int, int], draws: NDArray[np.float64], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of the ``random_resized_crop`` of an image of ``size`` (height, width), in pixels."""
    height, width = size
    area = width * height * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    ratio = math.exp(low + (high - low) * draws[1])
    crop_width = min(width, max(1, round(math.sqrt(area * ratio))))
    crop_height = min(height, max(1, round(math.sqrt(area / ratio))))
    return (
        int((height - crop_height + 1) * draws[2]),
        int((width - crop_width + 1) * draws[3]),
        crop_height,
        crop_width,
    )


def _scaled_box(
    box: tuple[int, int, int, int], size: tuple[int, int], there: tuple[int, int]
) -> tuple[int, int, int, int]:
    """A box in an image of ``size`` as one of whole pixels in its copy of the size that is there."""
    top, height = _scaled_span(box[0], box[2], size[0], there[0])
    left, width = _scaled_span(box[1], box[3], size[1], there[1])
    return top, left, height, width


def _scaled_span(start: int, length: int, side: int, there: int) -> tuple[int, int]:
    """Start and length, within ``there`` pixels and of at least one, of a part of ``side`` pixels that are scaled to them."""
    first = min(there - 1, round(start * there / side))
    return first, max(1, round((start + length) * there / side) - first)


def _resized(
    picture: Picture,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    mirrored: bool,
    interpolation: Interpolation = "bicubic",
) -> Picture:
    """The part of a picture in ``box`` (top, left, height, width), resized to ``size``: PyTorch's kernels for whole bytes take a
    fifth of PIL's time."""
    import torch
    from torch.nn.functional import interpolate

    def resize(values: Picture) -> Picture:
        values = values if values.flags.writeable and min(values.strides) > 0 else values.copy()
        tensor = torch.from_numpy(values).permute(2, 0, 1)[None]
        if interpolation == "nearest":
            tensor = interpolate(tensor, size=size, mode="nearest-exact")
        else:
            tensor = interpolate(tensor, size=size, mode=interpolation, antialias=True)
        return tensor[0].permute(1, 2, 0).numpy()

    top, left, height, width = box
    part = picture[top : top + height, left : left + width]
    if (height, width) != size:
        part = resized_around_gaps(part, resize)
    return part[:, ::-1] if mirrored else part


def resized_around_gaps(values: Picture, resize: Callable[[Picture], Picture], channels: int = 2) -> Picture:
    """What a linear ``resize`` makes of values (float32 with NaN where there is none), as a mean over those that are there.

    Where the filter's weight is mostly on missing values, the result is NaN too. ``channels``: the axis of the channels.
    """
    if values.dtype.kind != "f" or not math.isnan(float(values.sum(dtype=np.float32))):
        return resize(values)
    missing = np.isnan(values)
    first = missing.take([0], channels)
    one_for_all = first if bool((missing == first).all()) else missing
    weight: NDArray[np.float32] = resize((~one_for_all).astype(np.float32)).astype(np.float32)
    there: NDArray[np.float32] = resize(np.where(missing, np.float32(0), values)).astype(np.float32)
    weight[weight < 0.5] = np.nan
    return there / weight


def fitted_box(there: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right and bottom, in pixels, of the largest centred part of an image of ``there`` with the shape of ``size``.

    Sizes are (height, width). The box lies within the image, whatever rounding does: PIL refuses one that doesn't.
    """
    height, width = there
    scale = min(width / size[1], height / size[0])
    crop_width, crop_height = scale * size[1], scale * size[0]
    left, top = max(0.0, (width - crop_width) / 2), max(0.0, (height - crop_height) / 2)
    return left, top, min(width, left + crop_width), min(height, top + crop_height)


def fit_and_crop(
    image: Image.Image | Picture, size: tuple[int, int], interpolation: Interpolation = "bicubic"
) -> Picture:
    """The largest centred part of an image with the shape of ``size`` (height, width), resized to it: (H, W, C)."""
    picture = picture_of(image) if isinstance(image, Image.Image) else image
    height, width = picture.shape[:2]
    if (height, width) == size:
        return picture
    box = fitted_box((height, width), size)
    return resized_part(image, box, size, interpolation)


def resized_part(
    image: Image.Image | Picture,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    interpolation: str = "bicubic",
) -> Picture:
    """The part of an image in ``box`` (left, top, right, bottom) resized to ``size`` (height, width) by PIL: (H, W, C)."""
    where, how = (size[1], size[0]), _resampling(interpolation)
    if isinstance(image, Image.Image):
        if image.mode != "F":
            return picture_of(image.resize(where, how, box=box))
        image = picture_of(image)
    elif image.dtype == np.uint8 and image.shape[2] in (1, 3):
        return picture_of(_image(image).resize(where, how, box=box))

    def resize(values: Picture) -> Picture:
        planes = [Image.fromarray(np.ascontiguousarray(values[:, :, band])) for band in range(values.shape[2])]
        return np.stack([np.asarray(plane.resize(where, how, box=box)) for plane in planes], axis=2)

    return resized_around_gaps(image, resize)


def _image(picture: Picture) -> Image.Image:
    """The PIL image of a picture of 1 or 3 channels of 8 bits, or 1 of floats."""
    return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))


def _resampling(interpolation: str) -> Image.Resampling:
    return Image.Resampling[interpolation.upper()]
