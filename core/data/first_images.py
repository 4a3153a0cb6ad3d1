"""What the first images of a set are like: channels, size, range of values; to choose a model and its keys by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ..errors import DataError
from .audit import common_channels
from .images import ImageSet, opened
from .pixel_format import PixelFormat
from .reading_keys import PartKeys

ANY_RANGE = (-1e15, 1e15)
"""Of values as they are in the files."""
LOW_BITS = 12
"""Images of 16 bits that use so few are given the range of these, as they would be nearly black in all 16."""
SIZED_IMAGES = 50
"""Images that are opened."""


@dataclass(frozen=True)
class FirstImages:
    """What the first images are like: channels and their names, the shorter ``side`` that is usual, in pixels, and the range of
    stored values where it must be given; None where it is that of 8 or 16 bits."""

    channels: int
    side: int
    names: tuple[str, ...] = ()
    value_range: tuple[float, float] | None = None

    @property
    def kind(self) -> str:
        """The images in words."""
        known = {1: "gray", 3: "colour"}
        kind = known.get(self.channels, f"{self.channels} channels")
        kind += f" ({', '.join(self.names)})" if self.names else ""
        return (
            kind if self.value_range is None else f"{kind}, values {self.value_range[0]:g} to {self.value_range[1]:g}"
        )


def first_images(images: ImageSet, keys: PartKeys) -> FirstImages:
    """Open the first images, with a window where there is one; those of gray and of colour together count as colour.

    Raises DataError where none of them can be read.
    """
    form = keys.with_parts(PixelFormat(value_range=None if keys.window else ANY_RANGE))
    found, names, ends = [], set(), []
    for number in range(min(SIZED_IMAGES, len(images))):
        try:
            picture = opened(images, number, form)
            pixels = picture.pixels()
        except DataError:
            continue
        found.append((pixels.shape[2], min(picture.size)))
        names.add(picture.channel_names)
        if pixels.dtype != np.uint8:
            ends.append((float(np.nanmin(pixels)), float(np.nanmax(pixels))))
    if not found:
        raise DataError(f"none of the first {SIZED_IMAGES} images can be read. See maelift data check.")
    channels = common_channels(channels for channels, _ in found)
    stated = names.pop() if len(names) == 1 else ()
    named = stated if channels not in (1, 3) and len(stated) == channels else ()
    value_range = None if keys.window is not None else _value_range(images, ends)
    return FirstImages(channels, int(median(side for _, side in found)), named, value_range)


def _value_range(images: ImageSet, ends: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The range that must be given for values from ``ends``: of floats, signed integers, and of 16 bits that use a sixteenth."""
    if not ends:
        return None
    low, high = math.floor(min(low for low, _ in ends)), math.ceil(max(high for _, high in ends))
    try:
        opened(images, 0).pixels()
    except DataError:
        return float(low), float(max(high, low + 1))
    bits = max(1, high).bit_length()
    return (0.0, float(2**bits - 1)) if low >= 0 and bits <= LOW_BITS else None
