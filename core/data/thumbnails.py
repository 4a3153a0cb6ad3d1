"""Gray thumbnails of images, by which near-duplicates are found, and their descriptors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..threads import CancellingThreadPool
from .composite import with_means
from .images import ImageSet, opened
from .pixel_format import ANY_FORMAT, Picture, PixelFormat
from .transforms import to_array

SIDE = 32
"""Pixels a side of a thumbnail."""
FLAT = 2.0
"""Thumbnails with a standard deviation of fewer gray levels (of 255) show nothing that could be compared."""
_HALF = SIDE // 2


class Thumbnail(NamedTuple):
    """A gray thumbnail (32, 32), uint8, and the pixels of the smaller side of the image it was made from, at most 32."""

    pixels: NDArray[np.uint8]
    grain: int


def thumbnail(picture: Picture) -> Thumbnail:
    """The thumbnail of an image (H, W, C); values other than uint8 are stretched from their lowest and highest to 0 to 255."""
    picture = with_means(picture)
    gray = to_array(picture, 1)[0] if picture.shape[2] in (1, 3) else picture.mean(axis=2)
    least = min(gray.shape)
    resampling = Image.Resampling.BICUBIC if least < SIDE else Image.Resampling.BOX
    small = np.asarray(Image.fromarray(gray.astype(np.float32)).resize((SIDE, SIDE), resampling), dtype=np.float32)
    low, high = (0.0, 255.0) if picture.dtype == np.uint8 else (float(small.min()), float(max(small.max(), 1e-6)))
    pixels = np.clip((small - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    return Thumbnail(pixels, min(least, SIDE))


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails (N, 32, 32), uint8, and the grain of each (N), as in ``Thumbnail``."""

    pixels: NDArray[np.uint8]
    grain: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def of(cls, images: ImageSet, form: PixelFormat = ANY_FORMAT) -> Thumbnails:
        """The thumbnails of a set of images; black for an image that can't be read."""
        found = cls(np.zeros((len(images), SIDE, SIDE), dtype=np.uint8), np.full(len(images), SIDE, dtype=np.uint8))

        def put(number: int) -> None:
            try:
                found.pixels[number], found.grain[number] = thumbnail(opened(images, number, form).pixels())
            except DataError:
                return

        if images.default_workers() == 0:  # they are in memory: threads would only wait for each other
            for number in range(len(images)):
                put(number)
            return found
        with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(put, range(len(images))):
                pass
        return found

    @classmethod
    def stack(cls, thumbnails: Sequence[Thumbnail]) -> Thumbnails:
        """Single thumbnails, in their order."""
        pixels = np.zeros((len(thumbnails), SIDE, SIDE), dtype=np.uint8)
        for number, one in enumerate(thumbnails):
            pixels[number] = one.pixels
        return cls(pixels, np.array([one.grain for one in thumbnails], dtype=np.uint8))

    @classmethod
    def concat(cls, parts: Sequence[Thumbnails]) -> Thumbnails:
        """All thumbnails of the parts, one part after the other."""
        return cls(np.concatenate([part.pixels for part in parts]), np.concatenate([part.grain for part in parts]))


def descriptors(thumbnails: Thumbnails) -> NDArray[np.float32]:
    """(N, 256): thumbnails at 16 × 16, of mean 0 and length 1, split into a part that is symmetric under mirroring and one that
    changes its sign.

    The product of two images' first halves plus that of the second is their correlation; minus it, the correlation with the
    mirrored one. Flat images are all zero, and similar to nothing.
    """
    stack = thumbnails.pixels.reshape(-1, _HALF, 2, _HALF, 2).mean(axis=(2, 4), dtype=np.float32)
    stack = stack - stack.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(stack, axis=(1, 2), keepdims=True)
    stack = np.where(length > FLAT * _HALF, stack / np.maximum(length, 1e-6), 0)
    left, right = stack[:, :, : _HALF // 2], stack[:, :, : _HALF // 2 - 1 : -1]
    halves = np.concatenate([left + right, left - right], axis=2).transpose(0, 2, 1) / np.sqrt(2)
    return np.ascontiguousarray(halves.reshape(len(stack), _HALF * _HALF), dtype=np.float32)


def correlations(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, M): the correlation of described images (N, 256) with others (M, 256), or with them mirrored, whichever is higher."""
    half = _HALF * _HALF // 2
    agreed: NDArray[np.float32] = queries[:, :half] @ references[:, :half].T + np.abs(
        queries[:, half:] @ references[:, half:].T
    )
    return agreed


def mirrored_pairs(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,): of which pairs of described images, (K, 256) each, one correlates better with the other mirrored."""
    half = _HALF * _HALF // 2
    mirrored: NDArray[np.bool_] = (queries[:, half:] * references[:, half:]).sum(axis=1) < 0
    return mirrored
