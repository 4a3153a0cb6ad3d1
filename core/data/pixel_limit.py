"""The most pixels that an image may have, against decompression bombs."""

from __future__ import annotations

import os

from PIL import Image

from ..errors import DataError

MAX_PIXELS_VARIABLE = "MAELIFT_MAX_PIXELS"
"""Environment variable: most pixels of an image; one with more is taken for a decompression bomb."""

MAX_PIXELS = 2**28
"""Its default: photos of 200 megapixels are read."""

TOO_MANY_PIXELS = (
    ", more than {:,} pixels: a decompression bomb? Save it smaller, or allow it: " + MAX_PIXELS_VARIABLE + "=..."
)


def max_pixels() -> int:
    """The most pixels that an image may have; raises DataError for another word in the environment."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, str(MAX_PIXELS))
    if not text.isascii() or not text.isdigit() or not int(text):
        raise DataError(f"the environment says {MAX_PIXELS_VARIABLE}={text}; expected a whole number of pixels")
    return int(text)


def _raise_limit() -> None:
    """Have Pillow, which warns of images beyond its limit and refuses those of twice as many, open what ``max_pixels`` allows."""
    try:
        least = max_pixels()
    except DataError:  # it will be raised where an image is opened
        return
    if Image.MAX_IMAGE_PIXELS is not None and least > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = least


_raise_limit()


def check_value_count(values: int) -> None:
    """Raise DataError for what PIL would refuse as a decompression bomb, in files that PIL doesn't read."""
    limit = max_pixels()
    if values > 4 * limit:
        raise DataError(f"{values:,} values{TOO_MANY_PIXELS.format(limit)}")
