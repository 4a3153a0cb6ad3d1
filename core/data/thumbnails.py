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
_HALF = SIDE // 2
FLAT = 2.0
"""Thumbnails with a standard deviation of fewer gray levels (of 255) show nothing that could be compared."""
BORDER_RANGE = 12.0
"""Gray levels (of 255) that a uniform border may span, such as a letterbox's bars after JPEG."""
LEAST_INNER = 0.1
"""The least share of each side that is inside uniform borders; where less is, the image is taken as it is."""
LEAST_INNER_SIDE = 4
"""And the least pixels."""


class Thumbnail(NamedTuple):
    """A gray thumbnail (32, 32), uint8, and the pixels of the smaller side of the image it was made from, at most 32.

    ``inner``: the same of the part inside uniform borders, such as letterbox bars; None where there are none.
    """

    pixels: NDArray[np.uint8]
    grain: int
    inner: NDArray[np.uint8] | None = None
    inner_grain: int = SIDE


def thumbnail(picture: Picture) -> Thumbnail:
    """The thumbnail of an image (H, W, C); values other than uint8 are stretched from their lowest and highest to 0 to 255."""
    picture = with_means(picture)
    gray = (to_array(picture, 1)[0] if picture.shape[2] in (1, 3) else picture.mean(axis=2)).astype(np.float32)
    small = _shrunk(gray)
    low, high = (0.0, 255.0) if picture.dtype == np.uint8 else (float(small.min()), float(max(small.max(), 1e-6)))
    scale = 255 / max(high - low, 1e-6)

    def levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
        scaled: NDArray[np.uint8] = np.clip((values - low) * scale, 0, 255).astype(np.uint8)
        return scaled

    inside = _inside_borders(gray, BORDER_RANGE / scale)
    if inside is gray:
        return Thumbnail(levels(small), _grain(gray))
    return Thumbnail(levels(small), _grain(gray), levels(_shrunk(inside)), _grain(inside))


def _grain(gray: NDArray[np.float32]) -> int:
    return int(min(*gray.shape, SIDE))


def _shrunk(gray: NDArray[np.float32]) -> NDArray[np.float32]:
    resampling = Image.Resampling.BICUBIC if min(gray.shape) < SIDE else Image.Resampling.BOX
    return np.asarray(Image.fromarray(gray).resize((SIDE, SIDE), resampling), dtype=np.float32)


def _inside_borders(gray: NDArray[np.float32], spread: float) -> NDArray[np.float32]:
    """The part (H, W) inside borders whose values span at most ``spread``; one inside another too. ``gray`` itself without."""
    inside = gray
    while True:
        before = inside.shape
        top, bottom = _border(inside, spread), _border(inside[::-1], spread)
        inside = inside[top : len(inside) - bottom]
        left, right = _border(inside.T, spread), _border(inside.T[::-1], spread)
        inside = inside[:, left : inside.shape[1] - right]
        least = [max(LEAST_INNER_SIDE, LEAST_INNER * full) for full in gray.shape]
        if inside.shape[0] < least[0] or inside.shape[1] < least[1]:
            return gray
        if inside.shape == before:
            return gray if inside.shape == gray.shape else inside


def _border(gray: NDArray[np.float32], spread: float) -> int:
    """How many rows from the top on are one uniform border."""
    if gray.size == 0 or np.ptp(gray[0]) > spread:
        return 0
    span = np.maximum.accumulate(gray.max(axis=1)) - np.minimum.accumulate(gray.min(axis=1))
    return int((span <= spread).sum())


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails (N, 32, 32), uint8, and the grain of each (N), as in ``Thumbnail``.

    ``inner``, ``inner_grain``: the same of the parts inside uniform borders, the full images where they have none; None where
    no image has some.
    """

    pixels: NDArray[np.uint8]
    grain: NDArray[np.uint8]
    inner: NDArray[np.uint8] | None = None
    inner_grain: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def inside_borders(self) -> Thumbnails:
        """The thumbnails of what is inside uniform borders."""
        if self.inner is None or self.inner_grain is None:
            return self
        return Thumbnails(self.inner, self.inner_grain)

    @classmethod
    def of(cls, images: ImageSet, form: PixelFormat = ANY_FORMAT) -> Thumbnails:
        """The thumbnails of a set of images; black for an image that can't be read."""
        black = Thumbnail(np.zeros((SIDE, SIDE), dtype=np.uint8), SIDE)

        def one(number: int) -> Thumbnail:
            try:
                return thumbnail(opened(images, number, form).pixels())
            except DataError:
                return black

        if images.default_workers() == 0:  # they are in memory: threads would only wait for each other
            return cls.stack([one(number) for number in range(len(images))])
        with CancellingThreadPool(max_workers=min(8, os.cpu_count() or 1)) as pool:
            return cls.stack(list(pool.map(one, range(len(images)))))

    @classmethod
    def stack(cls, thumbnails: Sequence[Thumbnail]) -> Thumbnails:
        """Single thumbnails, in their order."""
        full = _stacked([one.pixels for one in thumbnails])
        grain = np.array([one.grain for one in thumbnails], dtype=np.uint8)
        if all(one.inner is None for one in thumbnails):
            return cls(full, grain)
        inner = _stacked([one.pixels if one.inner is None else one.inner for one in thumbnails])
        inner_grain = [one.grain if one.inner is None else one.inner_grain for one in thumbnails]
        return cls(full, grain, inner, np.array(inner_grain, dtype=np.uint8))

    @classmethod
    def concat(cls, parts: Sequence[Thumbnails]) -> Thumbnails:
        """All thumbnails of the parts, one part after the other."""
        full = np.concatenate([part.pixels for part in parts]), np.concatenate([part.grain for part in parts])
        if all(part.inner is None for part in parts):
            return cls(*full)
        insides = [part.inside_borders for part in parts]
        inner = np.concatenate([part.pixels for part in insides]), np.concatenate([part.grain for part in insides])
        return cls(*full, *inner)


def _stacked(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.stack(pixels) if pixels else np.zeros((0, SIDE, SIDE), dtype=np.uint8)


def descriptors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(N, 256): thumbnails (N, 32, 32) at 16 × 16, of mean 0 and length 1, split by how they change when they are mirrored.

    Four parts of 8 × 8: unchanged; changed in sign both left-right and upside down; only left-right; only upside down. The
    sum of the products of two images' parts is their correlation, and with other signs that with one of them mirrored. Flat
    images are all zero, and similar to nothing.
    """
    stack = pixels.reshape(-1, _HALF, 2, _HALF, 2).mean(axis=(2, 4), dtype=np.float32)
    stack = stack - stack.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(stack, axis=(1, 2), keepdims=True)
    stack = np.where(length > FLAT * _HALF, stack / np.maximum(length, 1e-6), 0)
    upper, lower = stack[:, : _HALF // 2], stack[:, : _HALF // 2 - 1 : -1]
    even, odd = _folded(upper + lower), _folded(upper - lower)
    parts = [even[0], odd[1], even[1], odd[0]]
    return np.ascontiguousarray(np.stack(parts, axis=1).reshape(len(stack), _HALF * _HALF), dtype=np.float32)


def _folded(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The part of rows (N, 8, 16) that is unchanged when mirrored, and the one that changes its sign: (N, 8, 8) each."""
    left, right = rows[:, :, : _HALF // 2], rows[:, :, : _HALF // 2 - 1 : -1]
    return (left + right) * np.float32(0.5), (left - right) * np.float32(0.5)


def transposed(described: NDArray[np.float32]) -> NDArray[np.float32]:
    """The descriptors (N, 256) of the images with rows and columns exchanged."""
    parts = described.reshape(-1, 4, _HALF // 2, _HALF // 2).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(parts[:, [0, 1, 3, 2]].reshape(described.shape))


def correlations(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, M): the correlation of described images (N, 256) with others (M, 256), the highest over mirroring and quarter turns."""
    half = _HALF * _HALF // 2
    sign = np.repeat(np.array([1, -1], dtype=np.float32), half // 2)
    best = np.full((len(queries), len(references)), -1, dtype=np.float32)
    for known in (references, transposed(references)):
        for signs in (np.ones_like(sign), sign):
            agreed = np.abs(queries[:, half:] @ (known[:, half:] * signs).T)
            agreed += queries[:, :half] @ (known[:, :half] * signs).T
            np.maximum(best, agreed, out=best)
    return best


def symmetries(queries: NDArray[np.float32], references: NDArray[np.float32]) -> NDArray[np.int64]:
    """(K,): by which of the eight symmetries of ``oriented`` one image of each pair, (K, 256) each, fits the other best."""
    parts = len(queries), 4, queries.shape[1] // 4
    found = []
    for known in (references, transposed(references)):
        agreed = (queries.reshape(parts) * known.reshape(parts)).sum(axis=2)  # (K, 4)
        found += [agreed @ np.array(signs) for signs in ((1, 1, 1, 1), (1, -1, -1, 1), (1, -1, 1, -1), (1, 1, -1, -1))]
    best: NDArray[np.int64] = np.stack(found, axis=1).argmax(axis=1)
    return best


def oriented(pixels: NDArray[np.uint8], symmetry: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images (K, H, H) mirrored left-right (symmetry 1), upside down (2), both (3); then with axes exchanged (4 to 7)."""
    turned: NDArray[np.uint8] = pixels.copy()
    for number in range(1, 8):
        some = symmetry == number
        image = pixels[some][:, :: -1 if number & 2 else 1, :: -1 if number & 1 else 1]
        turned[some] = image.transpose(0, 2, 1) if number & 4 else image
    return turned
