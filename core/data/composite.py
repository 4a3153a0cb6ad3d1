"""Pictures of images of any channels and bits, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .pixel_format import Picture

STRETCH = (2.0, 98.0)
"""Percentiles of the values that are shown as black and white, where values are not those of 8 bits."""
UNKNOWN = 128
"""The gray level of pixels without a value."""
COLOURS = ("red", "green", "blue")


def composite(picture: Picture, names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Three channels of pixels (H, W, C) as (H, W, 3), or one as (H, W, 1); values of more than 8 bits are stretched by channel.

    Shown are the channels called red, green and blue, else the first three, of two the first. Pixels without a value (NaN) are
    gray.
    """
    places = list(shown_channels(picture.shape[2], names))
    chosen = picture[:, :, places]
    if chosen.dtype == np.uint8:
        return np.ascontiguousarray(chosen)
    planes = [_stretched(chosen[:, :, place].astype(np.float32)) for place in range(len(places))]
    return np.stack(planes, axis=2)


def with_means(picture: Picture) -> Picture:
    """Pixels (H, W, C) with the mean of the channel where there is no value (NaN); 0 in a channel without any."""
    if picture.dtype.kind != "f" or not (missing := np.isnan(picture)).any():
        return picture
    there = (~missing).sum(axis=(0, 1)).clip(1)
    return np.where(missing, np.nansum(picture, axis=(0, 1)) / there, picture).astype(picture.dtype)


def shown_channels(count: int, names: Sequence[str] = ()) -> tuple[int, ...]:
    """Which of so many channels are shown in a composite, by number from 0."""
    lower = [name.casefold() for name in names]
    if len(lower) == count and all(colour in lower for colour in COLOURS):
        return tuple(lower.index(colour) for colour in COLOURS)
    return (0, 1, 2) if count >= 3 else (0,)


def displayed(image: Image.Image | Picture, names: Sequence[str] = ()) -> Image.Image:
    """An image as ``decode`` gives it, as PIL's "L" or "RGB"; ``names`` are those of its channels."""
    if isinstance(image, Image.Image) and image.mode != "F":
        return image
    values = np.asarray(image)
    found = composite(values if values.ndim == 3 else values[:, :, None], names)
    return Image.fromarray(found[:, :, 0] if found.shape[2] == 1 else found)


def _stretched(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """A channel (H, W) from its lowest to its highest values but for the outermost ``STRETCH`` leaves out, as 0 to 255."""
    known = np.isfinite(plane)
    if not known.any():
        return np.full(plane.shape, UNKNOWN, dtype=np.uint8)
    low, high = np.percentile(plane[known], STRETCH)
    there = np.where(known, plane, low)
    scaled = (there - low) * (255 / (high - low)) if high > low else there
    levels: NDArray[np.uint8] = scaled.clip(0, 255).round().astype(np.uint8)
    levels[~known] = UNKNOWN
    return levels
