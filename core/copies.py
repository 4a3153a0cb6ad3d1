"""Which images of one set are copies of images of another: saved anew, resized, mirrored or cropped a little.

Thumbnails are laid over one another: an image against the other's whole and against parts of it that leave out up to a tenth
of each side, and the other way round, mirrored too. The most promising pairs are then shifted and scaled until they agree best.
A pair is a copy when it agrees far better than images of these sets usually do, or than the image does with any other (the
ratio test of Lowe, "Distinctive image features from scale-invariant keypoints", 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .config import DataError
from .images import ImageSet, opened, to_array
from .likeness import FLAT

SIDE = 32
"""Pixels a side of the thumbnails that are kept of an image."""
COMPARED = 16
"""Pixels a side at which they are compared."""
CANDIDATES = 8
"""Images that each is laid over for a closer look."""
PROMISING = 0.9
"""Correlation from which a closer look is taken; a tenth cropped away leaves more than 0.92 (fashion scenes, Fashion-MNIST)."""
CLOSENESS = 0.15
"""A copy is so much closer (1 - correlation) than images of the two sets usually are to the one most like them."""
RATIO = 0.35
"""Or so much closer than the image is to any other."""
LEAST = 0.97
"""Nothing is a copy below this correlation."""
CHUNK = 512

Views = tuple[tuple[float, float, float], ...]

VIEWS: Views = (
    (1.0, 0.0, 0.0),
    *((side, x, y) for side in (0.95, 0.9) for y in (-1.0, 0.0, 1.0) for x in (-1.0, 0.0, 1.0)),
)
"""Parts of an image: the share of each side, and the place from -1 (left, top) to 1."""

Tell = Callable[[int, int], object]


@dataclass(frozen=True)
class Copy:
    """Image ``number`` of the one set is a copy of ``original`` of the other; ``likeness``: their correlation, laid over."""

    number: int
    original: int
    likeness: float


@dataclass(frozen=True)
class _Laid:
    """Pairs to be laid over one another: numbers in both sets, whether mirrored, whose part is compared, which view."""

    one: Tensor
    other: Tensor
    mirrored: Tensor
    part_of_one: Tensor
    view: Tensor
    score: Tensor


def thumbnails(images: ImageSet) -> NDArray[np.uint8]:
    """A gray thumbnail of each image (N, 32, 32); black for one that can't be read."""
    stack = np.zeros((len(images), SIDE, SIDE), dtype=np.uint8)
    for number in range(len(images)):
        try:
            picture = opened(images, number).pixels()
        except DataError:
            continue
        gray = to_array(picture, 1)[0] if picture.shape[2] in (1, 3) else picture.mean(axis=2)
        how = Image.Resampling.BICUBIC if min(gray.shape) < SIDE else Image.Resampling.BOX
        small = np.asarray(Image.fromarray(gray.astype(np.float32)).resize((SIDE, SIDE), how), dtype=np.float32)
        low, high = (0.0, 255.0) if picture.dtype == np.uint8 else (float(small.min()), float(max(small.max(), 1e-6)))
        stack[number] = np.clip((small - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    return stack


def find_copies(ones: NDArray[np.uint8], others: NDArray[np.uint8], tell: Tell | None = None) -> list[Copy]:
    """Which of the thumbnails ``ones`` (N, 32, 32) are copies of any of ``others`` (M, 32, 32), each with the best of them.

    Time grows with N times M: 74 correlations of 256 pixels for each pair.
    """
    if not len(ones) or not len(others):
        return []
    mine, theirs = (torch.tensor(stack, dtype=torch.float32) for stack in (ones, others))
    with torch.inference_mode():
        laid = _candidates(mine, theirs, tell)
        likeness = _laid_over(mine, theirs, laid)
    return list(_copies(laid, likeness, len(mine)))


def _copies(laid: _Laid, likeness: Tensor, count: int) -> Iterator[Copy]:
    """The pairs that agree far better than is usual, or than the image's other pairs."""
    best = torch.zeros(count)
    best.scatter_reduce_(0, laid.one, likeness, "amax", include_self=True)
    usual = 1 - float(best.median())
    sure = max(LEAST, 1 - CLOSENESS * usual)
    for number in sorted(set(laid.one.tolist())):
        own = (laid.one == number).nonzero().flatten()
        ranked = own[likeness[own].argsort(descending=True)]
        first = float(likeness[ranked[0]])
        second = float(likeness[ranked[1]]) if len(ranked) > 1 else 0.0
        if first >= LEAST and (first >= sure or 1 - first < RATIO * (1 - second)):
            yield Copy(number, int(laid.other[ranked[0]]), first)


def _candidates(mine: Tensor, theirs: Tensor, tell: Tell | None) -> _Laid:
    """For each of mine the others that its views, or theirs, agree best with, as far as they are promising."""
    scores, numbers, kinds = [], [], []
    rounds = [(view, mirrored, own) for view in range(len(VIEWS)) for mirrored in (0, 1) for own in (0, 1)]
    rounds = [entry for entry in rounds if entry[0] or entry[2]]  # the whole against the whole, once
    for place, (view, mirrored, own) in enumerate(rounds):
        turned = mine.flip(-1) if mirrored else mine
        part, whole = (turned, theirs) if own else (theirs, turned)
        parts, wholes = _views(part, view), _views(whole, 0)
        left, right = (parts, wholes) if own else (wholes, parts)
        best = [(left[start : start + CHUNK] @ right.T).max(dim=1) for start in range(0, len(left), CHUNK)]
        scores.append(torch.cat([found.values for found in best]))
        numbers.append(torch.cat([found.indices for found in best]))
        kinds.append(torch.tensor([mirrored, own, view]))
        if tell is not None:
            tell(len(mine) * (place + 1) // len(rounds), len(mine))
    score, number, kind = torch.stack(scores, 1), torch.stack(numbers, 1), torch.stack(kinds)
    ranked = score.argsort(dim=1, descending=True)
    score, number = score.gather(1, ranked), number.gather(1, ranked)
    rows, columns = (_first_of_each(number) & (score >= PROMISING)).nonzero(as_tuple=True)
    nth = torch.zeros(len(rows), dtype=torch.long)  # the how-manieth candidate of its image
    if len(rows):
        begins = torch.cat([torch.ones(1, dtype=torch.bool), rows[1:] != rows[:-1]])
        starts = torch.where(begins, torch.arange(len(rows)), 0).cummax(0).values
        nth = torch.arange(len(rows)) - starts
    rows, columns = rows[nth < CANDIDATES], columns[nth < CANDIDATES]
    chosen = kind[ranked[rows, columns]]
    return _Laid(rows, number[rows, columns], chosen[:, 0] == 1, chosen[:, 1] == 1, chosen[:, 2], score[rows, columns])


def _first_of_each(numbers: Tensor) -> Tensor:
    """Where in its row a number comes for the first time."""
    ordered = numbers.sort(dim=1, stable=True)
    again = torch.zeros_like(numbers, dtype=torch.bool)
    again[:, 1:] = ordered.values[:, 1:] == ordered.values[:, :-1]
    return ~torch.zeros_like(again).scatter(1, ordered.indices, again)


def _views(images: Tensor, view: int) -> Tensor:
    """One view of all images (N, 256), of mean 0 and length 1."""
    place = torch.tensor(VIEWS[view])
    chunks = [images[start : start + 8 * CHUNK] for start in range(0, len(images), 8 * CHUNK)]
    return torch.cat([_part(chunk, place.expand(len(chunk), 3)) for chunk in chunks])


def _part(images: Tensor, places: Tensor) -> Tensor:
    """A part of each image (N, 256), of mean 0 and length 1; zero where it is flat. ``places`` (N, 3) as ``VIEWS`` has them."""
    side, x, y = places.T
    moves = torch.zeros(len(images), 2, 3)
    moves[:, 0, 0], moves[:, 1, 1] = side, side
    moves[:, 0, 2], moves[:, 1, 2] = (1 - side) * x, (1 - side) * y
    grid = F.affine_grid(moves, [len(images), 1, 2 * COMPARED, 2 * COMPARED], align_corners=False)
    seen = F.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)
    flat = F.avg_pool2d(seen, 2).flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    length = flat.norm(dim=1, keepdim=True)
    return torch.where(length > FLAT * COMPARED, flat / length.clamp_min(1e-6), 0)


def _laid_over(mine: Tensor, theirs: Tensor, laid: _Laid) -> Tensor:
    """The correlation of each pair, shifted and scaled until it is the best nearby."""
    found = []
    for start in range(0, len(laid.one), CHUNK):
        some = slice(start, start + CHUNK)
        one, other = mine[laid.one[some]], theirs[laid.other[some]]
        one = torch.where(laid.mirrored[some, None, None], one.flip(-1), one)
        own = laid.part_of_one[some, None, None]
        part, whole = torch.where(own, one, other), torch.where(own, other, one)
        found.append(_best_nearby(part, whole, torch.tensor(VIEWS)[laid.view[some]]))
    return torch.cat(found) if found else torch.zeros(0)


def _best_nearby(images: Tensor, wholes: Tensor, places: Tensor) -> Tensor:
    """The best correlation of a part of each image with the whole of its partner, beginning at ``places``."""
    target = _part(wholes, torch.tensor(VIEWS[0]).expand(len(wholes), 3))
    best = (_part(images, places) * target).sum(dim=1)
    for step in (0.03, 0.015, 0.0075):
        for axis in (0, 1, 2, 0, 1, 2):
            for sign in (-1, 1):
                moved = places.clone()
                if axis == 0:
                    moved[:, 0] = (moved[:, 0] + sign * step).clamp(0.84, 1.0)
                else:  # by a share of the image, whatever is left of it
                    room = (1.001 - moved[:, 0]).clamp_min(0.02)
                    moved[:, axis] = (moved[:, axis] + sign * step / room).clamp(-1, 1)
                score = (_part(images, moved) * target).sum(dim=1)
                better = score > best
                places = torch.where(better[:, None], moved, places)
                best = torch.maximum(best, score)
    return best
