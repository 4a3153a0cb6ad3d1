"""Mean and standard deviation of images' channels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..seeding import stream
from .images import ImageSet, opened
from .pixel_format import PixelFormat
from .transforms import to_array


def statistics_sample(count: int, limit: int = 2000, seed: int = 0) -> NDArray[np.int64]:
    """The numbers of the images, of ``count``, that statistics are taken of."""
    return stream(seed, "statistics").permutation(count)[:limit]


def channel_statistics(
    images: ImageSet, channels: int, *, limit: int = 2000, seed: int = 0, form: PixelFormat | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel, on the scale [0, 1], over at most ``limit`` images drawn by ``seed``.

    With ``form`` of all channels and bits, where 0 and 1 are the ends of its value range, and without the broken images. Pixels
    without a value (NaN) don't count.
    """
    numbers = statistics_sample(len(images), limit, seed)
    low, high = (0.0, 255.0) if form is None or form.value_range is None else form.value_range
    count, total, squares = (np.zeros(channels) for _ in range(3))
    for number in numbers:
        if form is None:
            stored = to_array(images.open(int(number)), channels)
        else:
            try:
                stored = to_array(opened(images, int(number), form).pixels(), channels)
            except DataError:
                continue  # it will be found, named and counted when it is trained on
        pixels = (stored.reshape(channels, -1).astype(np.float64) - low) / (high - low)
        count += np.isfinite(pixels).sum(axis=1)
        total += np.nansum(pixels, axis=1)
        squares += np.nansum(np.square(pixels), axis=1)
    if not count.all():
        raise DataError(f"none of {len(numbers)} images has values in every channel, for their mean and deviation.")
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return tuple(float(value) for value in mean), tuple(max(float(value), 1e-3) for value in std)
