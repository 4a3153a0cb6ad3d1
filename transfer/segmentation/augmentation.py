"""Random crops and colour distortion of training images for segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...core.data.sampling import Uniforms


def random_crop(
    mask: Mask,
    scaled: tuple[int, int],
    size: tuple[int, int],
    draws: Uniforms,
    cat_max_ratio: float,
    ignore_index: int,
) -> tuple[tuple[float, float, float, float], Mask]:
    """A part of at most ``size`` of an image that is resized to ``scaled``, all (height, width): where it is, and its mask.

    The place is a box (left, top, right, bottom) in pixels of the image as stored, to be resized in one go with the crop;
    the mask's pixels are the nearest. ``draws`` are two a try: while one class takes ``cat_max_ratio`` or more of what
    counts, the next place is tried, the last one taken as it is (mmseg's RandomCrop).
    """
    height, width = min(size[0], scaled[0]), min(size[1], scaled[1])
    down, across = mask.shape[0] / scaled[0], mask.shape[1] / scaled[1]
    for top_draw, left_draw in draws.reshape(-1, 2):
        top = int((scaled[0] - height + 1) * top_draw)
        left = int((scaled[1] - width + 1) * left_draw)
        rows = _nearest_indices(top, height, scaled[0], mask.shape[0])
        part = mask[np.ix_(rows, _nearest_indices(left, width, scaled[1], mask.shape[1]))]
        if cat_max_ratio >= 1:
            break
        counts = np.unique(part[part != ignore_index], return_counts=True)[1]
        if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
    right, bottom = min(mask.shape[1], (left + width) * across), min(mask.shape[0], (top + height) * down)
    return (left * across, top * down, right, bottom), part


def _nearest_indices(start: int, length: int, scaled: int, side: int) -> NDArray[np.int64]:
    """The stored rows (or columns) nearest to ``length`` rows from ``start`` of an axis that is resized to ``scaled``."""
    centres = (np.arange(start, start + length) + 0.5) * side / scaled
    return np.minimum(centres.astype(np.int64), side - 1)


def pad_to(pixels: NDArray[np.generic], size: tuple[int, int], values: Sequence[float]) -> NDArray[np.generic]:
    """Pixels (C, h, w) with a value a channel at the right and bottom, up to ``size``; rounded for whole numbers."""
    if pixels.shape[1:] == size:
        return np.ascontiguousarray(pixels)
    result = np.empty((len(pixels), *size), dtype=pixels.dtype)
    fill = np.asarray(values, dtype=np.float64)[:, None, None]
    result[:] = np.rint(fill) if np.issubdtype(pixels.dtype, np.integer) else fill
    result[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    return result


def distorted(pixels: NDArray[np.generic], draws: Uniforms, value_range: tuple[float, float]) -> NDArray[np.generic]:
    """Pixels (C, H, W) with other colours, or of what isn't colour of 8 bits other values; gray of 8 bits stays as it is."""
    if pixels.dtype == np.uint8 and len(pixels) in (1, 3):
        return distort_colors(pixels, draws) if len(pixels) == 3 else pixels
    return distort_channels(pixels, draws, value_range)


def distort_channels(
    pixels: NDArray[np.generic], draws: Uniforms, value_range: tuple[float, float]
) -> NDArray[np.generic]:
    """Channels (C, H, W) of values in a range, the brightness and contrast of each changed, in half of all cases; and of several
    channels one without values (NaN) in a tenth.

    The ranges are those of colours: an eighth of ``value_range`` up and down, 0.5 to 1.5 around the channel's mean. ``draws`` are
    nine; each channel's own follows from these by steps of the golden ratio.
    """
    low, high = value_range
    values, count = pixels.astype(np.float32), len(pixels)
    own = (np.arange(count) * 0.6180339887498949)[:, None, None]
    if draws[0] < 0.5:
        values = values + (high - low) / 8 * (2 * ((draws[1] + own) % 1) - 1).astype(np.float32)
    if draws[2] < 0.5:
        there = np.isfinite(values).sum(axis=(1, 2), keepdims=True).clip(1)
        mean = np.nansum(values, axis=(1, 2), keepdims=True) / there
        values = mean + (values - mean) * (0.5 + (draws[3] + own) % 1).astype(np.float32)
    values = np.clip(values, low, high)
    if count > 1 and draws[5] < 0.1:
        values[int(draws[6] * count)] = np.nan
    if pixels.dtype == np.uint8 and np.isfinite(values).all():
        return np.rint(values).astype(np.uint8)
    return values.astype(np.float32)


def distort_colors(pixels: NDArray[np.generic], draws: Uniforms) -> NDArray[np.generic]:
    """Colour pixels (3, H, W) uint8, their brightness, contrast, saturation and hue changed, each in half of all cases.

    ``draws`` are nine: for each of the four whether, and how much; and whether contrast comes before the colours or after.
    The ranges are those of mmseg's PhotoMetricDistortion: ±32, 0.5 to 1.5, 0.5 to 1.5, ±36 degrees.
    """
    values = pixels.astype(np.float32)
    if draws[0] < 0.5:
        values = np.clip(values + (64 * draws[1] - 32), 0, 255)
    contrast = 0.5 + draws[3] if draws[2] < 0.5 else 1.0
    if draws[4] < 0.5:
        values = np.clip(values * contrast, 0, 255)
    if draws[5] < 0.5 or draws[7] < 0.5:
        picture = Image.fromarray(values.astype(np.uint8).transpose(1, 2, 0)).convert("HSV")
        colours = np.asarray(picture).astype(np.float32)
        if draws[5] < 0.5:
            colours[..., 1] = np.clip(colours[..., 1] * (0.5 + draws[6]), 0, 255)
        if draws[7] < 0.5:
            colours[..., 0] = (colours[..., 0] + round(51.2 * draws[8] - 25.6)) % 256  # 256 steps are 360 degrees
        back = Image.fromarray(colours.astype(np.uint8), mode="HSV").convert("RGB")
        values = np.asarray(back).transpose(2, 0, 1).astype(np.float32)
    if draws[4] >= 0.5:
        values = np.clip(values * contrast, 0, 255)
    return values.astype(np.uint8)


Mask = NDArray[np.integer[Any]]
