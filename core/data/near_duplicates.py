"""Near-duplicates among images (re-encoded, resized, turned, framed, brighter, cropped), by their thumbnails.

This is the one detector: suites leave out of training what it finds of validation and test, and ``maelift data check`` reports
what it finds between splits or among images to pretrain on. Each image is compared with all others at 16 × 16 pixels, mirrored
and turned too, with and without uniform borders (``uncropped``); or also through windows that leave out up to 15 % of each side.
The few that agree best are fitted to it by moving and stretching, and get their similarity at 32 × 32 pixels: the correlation
of their slopes, everywhere or, for watermarks, without the quarter of the cells that differ most.

Whether a pair is a near-duplicate follows from its similarity and those of the next images (``near_duplicate_rules``): images
that are less similar, or in another set, change nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .near_duplicate_rules import NearDuplicate, Scores, hopeful, near_duplicates
from .thumbnail_similarity import clipped_alike, slope_similarity, smoothed
from .thumbnail_windows import CROPS, FULL, at_resolution, at_scale, described_windows, fitted, through_window
from .thumbnails import SIDE, Thumbnails, correlations, descriptors, oriented, symmetries

PROMISING = 0.4
"""Correlation at 16 × 16 pixels from which pairs are compared more closely; a watermark may cost as much."""
PROMISING_CROP = 0.7
"""The same through windows."""
CANDIDATES = 5
"""Images that each is compared with more closely."""
CROP_CANDIDATES = 16
"""Of those that agree best through windows, so many are fitted roughly, and ``CANDIDATES`` then finely."""
ROUGH = 16
"""Pixels a side at which windows are fitted roughly."""
ROUGH_STEPS, FINE_STEPS = 4, 2
"""Steps by which windows are fitted there; and again, before one step at full size."""
LEADING = 2
"""Pairs of each image that are fitted first; the others where one of these may be a near-duplicate."""
CHUNK = 256
"""Pairs that are fitted at once."""
MATRIX = 2**24
"""Correlations that are in memory at once."""
BLOCK = 11_000
"""Images that are in memory at once through all windows, 68 kB each."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Similarities:
    """What was found of ``count`` images: the near-duplicates, at most one an image, in the images' order."""

    count: int
    found: tuple[NearDuplicate, ...]

    def near_duplicates(self) -> list[NearDuplicate]:
        """Of each image the most similar pair, where it is a near-duplicate."""
        return list(self.found)

    def pairs_within(self) -> list[NearDuplicate]:
        """The near-duplicates within one set, each pair once: the later image as a near-duplicate of the earlier one."""
        found = {
            (max(pair.index, pair.original), min(pair.index, pair.original)): pair.similarity for pair in self.found
        }
        return [NearDuplicate(*numbers, similarity) for numbers, similarity in sorted(found.items())]


@dataclass(frozen=True)
class _Views:
    """Thumbnails as tensors: the full images and what is inside uniform borders, (N, 32, 32), uint8, with their grains (N)."""

    pixels: tuple[NDArray[np.uint8], ...]
    grain: tuple[Tensor, ...]

    @classmethod
    def of(cls, images: Thumbnails, others: Thumbnails) -> _Views:
        """One view where neither set has an image with borders."""
        views = [images]
        if images.inner is not None or others.inner is not None:
            views.append(images.inside_borders)
        grains = tuple(torch.tensor(view.grain, dtype=torch.long) for view in views)
        return cls(tuple(view.pixels for view in views), grains)


@dataclass(frozen=True)
class _Pairs:
    """Pairs (P) to be fitted: numbers in both sets, which view, by which symmetry, whose window is taken, and which (P, 4)."""

    index: Tensor
    other: Tensor
    view: Tensor
    symmetry: Tensor
    window_of_image: Tensor
    window: Tensor

    def at(self, places: Tensor) -> _Pairs:
        """The pairs at these places."""
        parts = (self.index, self.other, self.view, self.symmetry, self.window_of_image, self.window)
        return _Pairs(*(part[places] for part in parts))

    @classmethod
    def concat(cls, several: Sequence[_Pairs]) -> _Pairs:
        """All pairs of several."""
        columns = (
            (some.index, some.other, some.view, some.symmetry, some.window_of_image, some.window) for some in several
        )
        return cls(*(torch.cat(column) for column in zip(*columns, strict=True)))

    @classmethod
    def uncropped(cls, index: Tensor, other: Tensor, view: int, symmetry: Tensor) -> _Pairs:
        """Pairs of full images of one view."""
        ones = torch.ones(len(index), dtype=torch.bool)
        return cls(index, other, torch.full_like(index, view), symmetry, ones, FULL.expand(len(index), 4))


def compare(images: Thumbnails, others: Thumbnails, progress: Progress | None = None) -> Similarities:
    """The near-duplicates of ``others`` (M) among images (N), also where one is a crop of the other.

    Time grows with N times M, by 216 correlations of 144 pixels for each pair; and with N, by some 10 ms each (one core) where
    they resemble others. ``progress`` is called with (images done, images).
    """
    return _compared(images, others, progress, crops=True, within=False)


def compare_uncropped(images: Thumbnails, others: Thumbnails, progress: Progress | None = None) -> Similarities:
    """The same where none is a crop, for very many images: 8 products of 128 numbers for each pair."""
    return _compared(images, others, progress, crops=False, within=False)


def compare_within(images: Thumbnails, progress: Progress | None = None, *, crops: bool = False) -> Similarities:
    """The near-duplicates within one set: each image is compared with all others of it."""
    return _compared(images, images, progress, crops=crops, within=True)


def _compared(
    images: Thumbnails, others: Thumbnails, progress: Progress | None, *, crops: bool, within: bool
) -> Similarities:
    if not len(images) or not len(others):
        return Similarities(len(images), ())
    found: list[NearDuplicate] = []
    mine, theirs = _Views.of(images, others), _Views.of(others, images)
    count = max(1, min(CHUNK, MATRIX // len(others)))
    known = [descriptors(view) for view in theirs.pixels]
    windowed = _Windowed(others.pixels) if crops else None
    with torch.inference_mode():
        for start in range(0, len(images), count):
            chunk = np.arange(start, min(start + count, len(images)))
            parts = list(_uncropped(chunk, mine, known, within=within))
            if windowed is not None:
                parts.append(_cropped(chunk, mine, theirs, windowed, within=within))
            rows = _rows(mine, theirs, _Pairs.concat(parts))
            found += near_duplicates(rows, partial(_among_themselves, theirs), crops=crops)
            if progress is not None:
                progress(int(chunk[-1]) + 1, len(images))
    return Similarities(len(images), tuple(found))


def _float(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32))


def _uncropped(
    chunk: NDArray[np.int64], mine: _Views, known: Sequence[NDArray[np.float32]], *, within: bool
) -> Iterator[_Pairs]:
    """Each image of the chunk with those that its descriptor agrees best with, by view; ``within`` one set not with itself."""
    for view, described in enumerate(known):
        own = descriptors(mine.pixels[view][chunk])
        agreed = torch.from_numpy(correlations(own, described))
        if within:
            agreed[torch.arange(len(chunk)), torch.from_numpy(chunk)] = -1.0
        best = agreed.topk(min(CANDIDATES, len(described)), dim=1)
        place, rank = (best.values >= PROMISING).nonzero().T
        other = best.indices[place, rank]
        symmetry = torch.from_numpy(symmetries(own[place.numpy()], described[other.numpy()]))
        yield _Pairs.uncropped(torch.from_numpy(chunk)[place], other, view, symmetry)


def _cropped(chunk: NDArray[np.int64], mine: _Views, theirs: _Views, windowed: _Windowed, *, within: bool) -> _Pairs:
    """Each image of the chunk with those that agree best with it where one of the two is seen through a window."""
    images = _float(mine.pixels[0][chunk])
    own = [described_windows(side, CROPS) for side in (images, images.flip(-1))]
    found = [_promising(chunk, own, start, known, within=within) for start, known in windowed.blocks()]
    values, indices, ways = (torch.cat(column, -1) for column in zip(*found, strict=True))
    top = values.topk(min(CROP_CANDIDATES, values.shape[1]), dim=1)
    place, rank = (top.values >= PROMISING_CROP).nonzero().T
    column = top.indices[place, rank]
    other, way, count = indices[place, column], ways[:, place, column].flatten(), len(place)
    place, rank, other = place.repeat(2), rank.repeat(2), other.repeat(2)
    mirrors = torch.arange(2).repeat_interleave(count)  # many an object is nearly its own mirror image
    index = torch.from_numpy(chunk)[place]
    pairs = _Pairs(index, other, torch.zeros_like(other), mirrors, way % 2 == 1, CROPS[way // 2])
    windows, similarity = _fitted_roughly(mine, theirs, pairs)
    pairs = replace(pairs, window=windows)
    better = torch.arange(count) + count * (similarity[count:] > similarity[:count])
    agreed = torch.full(top.values.shape, -1.0)
    agreed[place[better], rank[better]] = similarity[better]
    kept = agreed.topk(min(CANDIDATES, agreed.shape[1]), dim=1).indices
    places = torch.full(agreed.shape, -1)
    places[place[better], rank[better]] = better
    chosen = places.gather(1, kept).flatten()
    return pairs.at(chosen[chosen >= 0])


class _Windowed:
    """Images (M) described through windows; in blocks, and only where there is one block it stays in memory."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self._only = described_windows(_float(pixels), CROPS) if len(pixels) <= BLOCK else None

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The number of the first image of each block, and its descriptors (V, block, 144)."""
        if self._only is not None:
            yield 0, self._only
            return
        for start in range(0, len(self._pixels), BLOCK):
            yield start, described_windows(_float(self._pixels[start : start + BLOCK]), CROPS)


def _promising(
    chunk: NDArray[np.int64], own: Sequence[Tensor], start: int, known: Tensor, *, within: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a block of others those that agree best with each image: (n, k) correlations, numbers, and ways (2, n, k).

    ``own``: the images described through windows, as they are and mirrored, (V, n, 144) each. A way is twice the number of
    the window, and one more if it is the image's.
    """
    best = torch.full((2, len(chunk), known.shape[1]), -1.0)
    way = torch.zeros(best.shape, dtype=torch.uint8)
    for mirrored in (0, 1):
        for of_image in (1, 0):
            for number in range(1, len(CROPS)):
                agreed = own[mirrored][number] @ known[0].T if of_image else own[mirrored][0] @ known[number].T
                way[mirrored].masked_fill_(agreed > best[mirrored], number * 2 + of_image)
                torch.maximum(best[mirrored], agreed, out=best[mirrored])
    highest = best.amax(0)
    if within:
        itself = torch.from_numpy(chunk) - start
        there = ((itself >= 0) & (itself < known.shape[1])).nonzero().flatten()
        highest[there, itself[there]] = -1.0
    top = highest.topk(min(CROP_CANDIDATES, highest.shape[1]), dim=1)
    return top.values, top.indices + start, way.gather(2, top.indices.expand(2, -1, -1)).long()


def _fitted_roughly(mine: _Views, theirs: _Views, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """The windows (P, 4) of pairs, fitted at few pixels, and the similarity (P) of slopes through them."""
    windows, similarity = [torch.zeros(0, 4)], [torch.zeros(0)]
    for places in torch.split(torch.arange(len(pairs.index)), CHUNK):
        some = pairs.at(places)
        left, right = _placed(some, *_images(mine, theirs, some)[:2])
        window = fitted(left, right, some.window, ROUGH, ROUGH_STEPS)
        windows.append(window)
        similarity.append(slope_similarity(smoothed(through_window(left, window)), smoothed(right))[0])
    return torch.cat(windows), torch.cat(similarity)


def _images(mine: _Views, theirs: _Views, pairs: _Pairs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The images of pairs, (P, 32, 32) each, the first ones turned as the second; and the grains (P) of both."""
    one, other = (np.empty((len(pairs.index), *mine.pixels[0].shape[1:]), dtype=np.uint8) for _ in range(2))
    grain, other_grain = torch.empty_like(pairs.index), torch.empty_like(pairs.index)
    for view in range(len(mine.pixels)):
        some = pairs.view == view
        one[some.numpy()] = mine.pixels[view][pairs.index[some].numpy()]
        other[some.numpy()] = theirs.pixels[view][pairs.other[some].numpy()]
        grain[some], other_grain[some] = mine.grain[view][pairs.index[some]], theirs.grain[view][pairs.other[some]]
    return _float(oriented(one, pairs.symmetry.numpy())), _float(other), grain, other_grain


def _placed(pairs: _Pairs, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """The images whose window is taken, and those that they are fitted to."""
    own = pairs.window_of_image[:, None, None]
    return torch.where(own, one, other), torch.where(own, other, one)


def _similarity(mine: _Views, theirs: _Views, pairs: _Pairs, steps: int = FINE_STEPS) -> tuple[Tensor, Tensor]:
    """The similarity (P) of each pair after fitting by some steps, and that without what a watermark may cover."""
    found = [torch.zeros(2, 0)]
    for places in torch.split(torch.arange(len(pairs.index)), CHUNK):
        some = pairs.at(places)
        one, other, grain, other_grain = _images(mine, theirs, some)
        coarser = at_resolution(one, grain, other_grain), at_resolution(other, other_grain, grain)
        ways = [(one, other)] if coarser[0] is one and coarser[1] is other else [(one, other), coarser]
        best = torch.zeros(2, len(one))
        for images in ways:
            left, right = _placed(some, *images)
            window = some.window
            if steps:
                window = fitted(left, right, fitted(left, right, window, ROUGH, steps), SIDE, 1)
            seen = left if torch.equal(window, FULL.expand_as(window)) else through_window(left, window)
            left, right = clipped_alike(seen, at_scale(right, window))
            scores = slope_similarity(smoothed(left), smoothed(right))  # smoothed before, they'd be unequally
            best = torch.maximum(best, torch.stack(scores))
        found.append(best)
    similarity, in_parts = torch.cat(found, 1)
    return similarity, in_parts


def _rows(mine: _Views, theirs: _Views, pairs: _Pairs) -> dict[int, dict[int, Scores]]:
    """The similarities of pairs by image, then by the image that it was compared with; of several of two images the highest.

    First those are fitted that seem most similar; the others only of images of which one of them may be a near-duplicate.
    """
    first = _leading(pairs.index, *_similarity(mine, theirs, pairs, steps=0))
    rows: dict[int, dict[int, Scores]] = {}

    def fit(some: _Pairs) -> None:
        scores = _similarity(mine, theirs, some)
        for image, one, *both in zip(*(part.tolist() for part in (some.index, some.other, *scores)), strict=True):
            row, found = rows.setdefault(image, {}), Scores(*both)
            row[one] = found.best(row[one]) if one in row else found

    fit(pairs.at(first.nonzero().flatten()))
    likely = [image for image, row in rows.items() if any(hopeful(scores) for scores in row.values())]
    fit(pairs.at((~first & torch.isin(pairs.index, torch.tensor(likely, dtype=torch.long))).nonzero().flatten()))
    return {image: rows[image] for image in likely}


def _leading(index: Tensor, similarity: Tensor, in_parts: Tensor) -> Tensor:
    """Which pairs (P) of each image are the ``LEADING`` most similar ones, or the one without what a watermark may cover."""
    first = torch.zeros(len(index), dtype=torch.bool)
    for scores, count in ((similarity, LEADING), (in_parts, 1)):
        taken: Counter[int] = Counter()
        for place in scores.argsort(descending=True).tolist():
            image = int(index[place])
            first[place] |= taken[image] < count
            taken[image] += 1
    return first


def _among_themselves(views: _Views, pairs: set[tuple[int, int]]) -> dict[tuple[int, int], Scores]:
    """The similarities of pairs of images of one set, as they are: most copies of one image are no crops of each other."""
    if not pairs:
        return {}
    ordered = sorted({(min(pair), max(pair)) for pair in pairs})
    index, other = (torch.tensor(column) for column in zip(*ordered, strict=True))
    full = views.pixels[0]
    symmetry = symmetries(descriptors(full[index.numpy()]), descriptors(full[other.numpy()]))
    found = _similarity(views, views, _Pairs.uncropped(index, other, 0, torch.from_numpy(symmetry)), steps=0)
    scores = {pair: Scores(*both) for pair, *both in zip(ordered, *(part.tolist() for part in found), strict=True)}
    return {pair: scores[min(pair), max(pair)] for pair in pairs}
