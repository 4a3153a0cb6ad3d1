"""Which images are nearly the same: saved anew, resized, or mirrored, by the correlation of thumbnails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..progress import progress_logger
from .decode import Picture
from .images import to_array

Thumbnail = NDArray[np.float32]

THUMBNAIL = 16
"""Side of the thumbnails that are compared, in pixels."""

LEAST_ALIKE, SURELY_ALIKE = 0.98, 0.998
"""Between these lies the likeness from which on two images are near-duplicates, where ``near`` is left to the data.

Thumbnails of different fashion scenes correlate by at most 0.93, of a scene and its copy (JPEG of quality 25, or half the
size) by 0.997 or more; tiles of photographs by at most 0.91. But the centred items of Fashion-MNIST, all of one make, reach
0.996, while the items that its test images share with its training images lie above 0.998.
"""

CLOSENESS = 0.05
"""A near-duplicate is so much closer to its double (1 - correlation) than images usually are to the one most like them."""

FLAT = 2.0
"""Thumbnails with a standard deviation of fewer gray levels (of 255) show nothing that could be compared."""


@dataclass(frozen=True)
class Match:
    """Two images, the most alike that were found for the second, and the correlation of their thumbnails."""

    one: str
    other: str
    likeness: float
    between_splits: bool


def thumbnail(picture: Picture, value_range: tuple[float, float] = (0.0, 255.0)) -> Thumbnail:
    """A picture (H, W, C) with values in ``value_range`` in gray from 0 to 255: (16, 16)."""
    low, high = value_range
    gray = to_array(picture, 1)[0] if picture.shape[2] in (1, 3) else picture.mean(axis=2, dtype=np.float32)
    small = Image.fromarray(gray).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    stretched: Thumbnail = (np.asarray(small, dtype=np.float32) - np.float32(low)) * np.float32(255 / (high - low))
    return stretched


def descriptors(thumbnails: Sequence[Thumbnail] | Thumbnail) -> NDArray[np.float32]:
    """(N, 256): thumbnails, a list or (N, 16, 16), of mean 0 and length 1, split in what mirroring keeps and what it turns round.

    The product of two images' first halves plus that of the second is their correlation; minus it, the correlation with the
    mirrored one. Flat images are all zero, and like nothing.
    """
    side = THUMBNAIL
    stack = np.stack(list(thumbnails)) if len(thumbnails) else np.zeros((0, side, side), np.float32)
    stack = stack - stack.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(stack, axis=(1, 2), keepdims=True)
    stack = np.where(length > FLAT * side, stack / np.maximum(length, 1e-6), 0)
    left, right = stack[:, :, : side // 2], stack[:, :, : side // 2 - 1 : -1]
    halves = np.concatenate([left + right, left - right], axis=2).transpose(0, 2, 1) / np.sqrt(2)
    return np.ascontiguousarray(halves.reshape(len(stack), side * side), dtype=np.float32)


def correlations(ones: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, M): how well described images (N, 256) agree with others (M, 256), or mirrored, whichever is more."""
    half = THUMBNAIL * THUMBNAIL // 2
    agreed: NDArray[np.float32] = ones[:, :half] @ others[:, :half].T + np.abs(ones[:, half:] @ others[:, half:].T)
    return agreed


def best_matches(
    names: Mapping[str, Sequence[str]], described: Mapping[str, NDArray[np.float32]], *, within: str | None
) -> Iterator[Match]:
    """For each image of a split the one most like it in each split before it.

    Of the split ``within``, where one is named, also the one most like it among those before it.
    """
    order = list(names)
    pairs = [(earlier, later) for place, later in enumerate(order) for earlier in order[:place]]
    if within in order:
        pairs.append((within, within))
    tell, done, total = progress_logger("comparing"), 0, sum(len(names[later]) for _, later in pairs)
    for earlier, later in pairs:
        count = len(described[earlier])
        rows = max(1, 2**24 // max(count, 1))
        for start in range(0, len(names[later]) if count else 0, rows):
            chunk = described[later][start : start + rows]
            others = described[earlier] if earlier != later else described[earlier][: start + len(chunk)]
            likeness = correlations(chunk, others)
            if earlier == later:
                likeness[np.arange(len(others)) >= start + np.arange(len(chunk))[:, None]] = -1
            best = likeness.argmax(axis=1)
            for number, match in enumerate(best):
                one, other = names[earlier][int(match)], names[later][start + number]
                if one != other:
                    yield Match(one, other, float(likeness[number, match]), earlier != later)
            done += len(chunk)
            tell(done, total)


def threshold(likenesses: Sequence[float]) -> float:
    """The likeness of near-duplicates in a set whose images are so like the most similar one of another split."""
    usual = 1 - float(np.median(likenesses)) if likenesses else 1.0
    return float(np.clip(1 - CLOSENESS * usual, LEAST_ALIKE, SURELY_ALIKE))
