"""Near-duplicates among images (re-encoded, resized, turned, framed, brighter, cropped), by their thumbnails.

This is the one detector: suites leave out of training what it finds of validation and test, and ``maelift data check`` reports
what it finds between splits or among images to pretrain on. Each image is compared with all others at 16 × 16 pixels, mirrored
and turned too, with and without uniform borders (``uncropped``); or also through windows that leave out up to 15 % of each side.
The few that agree best are fitted to it by moving and stretching, and get their similarity at 32 × 32 pixels: the correlation
of their slopes, everywhere or, for watermarks, without the quarter of the cells that differ most.

Whether a pair is a near-duplicate follows from its similarity, and from how similar the next image is that was really compared
(the ratio test of Lowe, "Distinctive image features from scale-invariant keypoints", 2004): images that are less similar, or in
another set, change nothing. Frames of one fixed camera are about as similar to many others as to one another, and so are no
near-duplicates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .thumbnail_similarity import slope_similarity, smoothed
from .thumbnail_windows import CROPS, FULL, at_resolution, described_windows, fitted, through_window
from .thumbnails import SIDE, Thumbnails, correlations, descriptors, oriented, symmetries

SURE_SIMILARITY = 0.988
"""Every pair is a near-duplicate from this similarity on."""
LEAST_SIMILARITY = 0.94
"""Nothing is one below this similarity."""
RATIO = 0.35
"""In between, a near-duplicate is so much closer (1 - similarity) than the next image."""
LEAST_IN_PARTS = 0.96
"""The same for the similarity without what a watermark may cover."""
RATIO_IN_PARTS = 0.15
RIVAL = 0.85
"""The next image counts as this similar where it is less, as a few images always have a distant next one."""
SAME = 0.5
"""An image that is so much closer to the other one than the pair is (1 - similarity) is another copy of it, no rival."""
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
CHUNK = 256
"""Pairs that are fitted at once."""
MATRIX = 2**23
"""Correlations that are in memory at once."""

KINDS = "re-encoded, resized, mirrored, turned, with borders, brighter or darker, with a watermark"
"""What is searched for besides crops, in words."""

MAX_CROP_PAIRS = 2 * 10**7
"""Pairs of images up to which crops are searched for by default: 2,000 × 10,000 take some minutes on one core."""
MAX_PAIRS = 25 * 10**8
"""Pairs up to which images are compared at all by default, such as 50,000 with one another."""

Progress = Callable[[int, int], object]
Near = Literal["auto", "full", "off"]
"""How thoroughly near-duplicates are searched for: as the number of pairs allows, always with crops, or not at all."""
Depth = Literal["crops", "uncropped", "none"]
"""What is searched for."""


def search_depth(near: Near, pairs: int) -> Depth:
    """What is searched for among so many pairs of images."""
    if near == "off":
        return "none"
    if near == "full" or pairs <= MAX_CROP_PAIRS:
        return "crops"
    return "uncropped" if pairs <= MAX_PAIRS else "none"


def least_depth(depths: Iterable[Depth]) -> Depth:
    """What was searched for in all of several comparisons."""
    found = set(depths)
    return "none" if "none" in found else "uncropped" if "uncropped" in found else "crops"


@dataclass(frozen=True)
class NearDuplicate:
    """Image ``index`` of the one set is a near-duplicate of ``original`` of the other, with this similarity of slopes."""

    index: int
    original: int
    similarity: float


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
    rows = max(1, min(CHUNK, MATRIX // len(others)))
    known = [descriptors(view) for view in theirs.pixels]
    windowed = described_windows(_float(others.pixels), CROPS) if crops else None
    with torch.inference_mode():
        for start in range(0, len(images), rows):
            chunk = np.arange(start, min(start + rows, len(images)))
            parts = list(_uncropped(chunk, mine, known, within=within))
            if windowed is not None:
                parts.append(_cropped(chunk, mine, theirs, windowed, within=within))
            similarities = [(part.index, part.other, *_similarity(mine, theirs, part)) for part in parts]
            index, other, similarity, in_parts = (torch.cat(column) for column in zip(*similarities, strict=True))
            found += _decided(index, other, similarity, in_parts, theirs)
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


def _cropped(chunk: NDArray[np.int64], mine: _Views, theirs: _Views, windowed: Tensor, *, within: bool) -> _Pairs:
    """Each image of the chunk with those that agree best with it where one of the two is seen through a window."""
    images = _float(mine.pixels[0][chunk])
    best = torch.full((len(chunk), windowed.shape[1]), -1.0)
    way = torch.zeros(best.shape, dtype=torch.int16)
    for mirrored in (0, 1):
        own = described_windows(images.flip(-1) if mirrored else images, CROPS)
        for of_image in (1, 0):
            for number in range(1, len(CROPS)):
                agreed = own[number] @ windowed[0].T if of_image else own[0] @ windowed[number].T
                way[agreed > best] = (number * 2 + of_image) * 2 + mirrored
                torch.maximum(best, agreed, out=best)
    if within:
        best[torch.arange(len(chunk)), torch.from_numpy(chunk)] = -1.0
    top = best.topk(min(CROP_CANDIDATES, best.shape[1]), dim=1)
    place, rank = (top.values >= PROMISING_CROP).nonzero().T
    other = top.indices[place, rank]
    taken = way[place, other].long()
    pairs = _Pairs(
        torch.from_numpy(chunk)[place],
        other,
        torch.zeros_like(other),
        taken % 2,
        taken // 2 % 2 == 1,
        CROPS[taken // 4],
    )
    windows, similarity = _fitted_roughly(mine, theirs, pairs)
    pairs = _Pairs(pairs.index, other, pairs.view, pairs.symmetry, pairs.window_of_image, windows)
    agreed = torch.full(top.values.shape, -1.0)
    agreed[place, rank] = similarity
    kept = agreed.topk(min(CANDIDATES, agreed.shape[1]), dim=1).indices
    places = torch.full(agreed.shape, -1)
    places[place, rank] = torch.arange(len(place))
    chosen = places.gather(1, kept).flatten()
    return pairs.at(chosen[chosen >= 0])


def _fitted_roughly(mine: _Views, theirs: _Views, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """The windows (P, 4) of pairs, fitted at few pixels, and the similarity (P) of slopes through them."""
    windows, similarity = [torch.zeros(0, 4)], [torch.zeros(0)]
    for places in torch.split(torch.arange(len(pairs.index)), CHUNK):
        some = pairs.at(places)
        left, right = _placed(some, *_images(mine, theirs, some)[:2])
        window = fitted(left, right, some.window, ROUGH, 4)
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


def _similarity(mine: _Views, theirs: _Views, pairs: _Pairs) -> tuple[Tensor, Tensor]:
    """The similarity (P) of each pair after fitting, and that without what a watermark may cover."""
    found = [torch.zeros(2, 0)]
    for places in torch.split(torch.arange(len(pairs.index)), CHUNK):
        some = pairs.at(places)
        one, other, grain, other_grain = _images(mine, theirs, some)
        coarser = at_resolution(one, grain, other_grain), at_resolution(other, other_grain, grain)
        ways = [(one, other)] if coarser[0] is one and coarser[1] is other else [(one, other), coarser]
        best = torch.zeros(2, len(one))
        for images in ways:
            left, right = _placed(some, *images)
            left = smoothed(
                through_window(left, fitted(left, right, some.window, SIDE, 3))
            )  # smoothed before, it'd be unequally
            best = torch.maximum(best, torch.stack(slope_similarity(left, smoothed(right))))
        found.append(best)
    similarity, in_parts = torch.cat(found, 1)
    return similarity, in_parts


def _decided(
    index: Tensor, other: Tensor, similarity: Tensor, in_parts: Tensor, theirs: _Views
) -> Iterator[NearDuplicate]:
    """Of each image the most similar pair (of P) that is a near-duplicate, in the images' order."""
    hopeful = (similarity >= LEAST_SIMILARITY) | (in_parts >= LEAST_IN_PARTS)
    rows: dict[int, dict[int, tuple[float, float]]] = {}
    for number in torch.isin(index, index[hopeful]).nonzero().flatten().tolist():
        own = rows.setdefault(int(index[number]), {})
        before = own.get(int(other[number]), (0.0, 0.0))
        own[int(other[number])] = max(before[0], float(similarity[number])), max(before[1], float(in_parts[number]))
    best = {image: max(own, key=lambda one: own[one]) for image, own in rows.items()}
    in_part = {image: max(own, key=lambda one: own[one][1]) for image, own in rows.items()}
    same = _among_themselves(
        {(b, c) for found in (best, in_part) for i, b in found.items() for c in rows[i] if c != b}, theirs
    )
    for image in sorted(rows):
        for kind, first, least, ratio in (
            (0, best[image], LEAST_SIMILARITY, RATIO),
            (1, in_part[image], LEAST_IN_PARTS, RATIO_IN_PARTS),
        ):
            score = rows[image][first][kind]
            if score < least:
                continue
            close = 1 - score
            rivals = [
                values[kind]
                for one, values in rows[image].items()
                if one != first and 1 - same[first, one][kind] > max(SAME * close, 1 - SURE_SIMILARITY)
            ]
            sure = kind == 0 and score >= SURE_SIMILARITY
            if sure or close <= ratio * (1 - max([RIVAL, *rivals])):
                yield NearDuplicate(image, first, score)
                break


def _among_themselves(pairs: set[tuple[int, int]], views: _Views) -> dict[tuple[int, int], tuple[float, float]]:
    """The similarities of pairs of images of one set, uncropped."""
    if not pairs:
        return {}
    ordered = sorted(pairs)
    index, other = (torch.tensor(column) for column in zip(*ordered, strict=True))
    full = views.pixels[0]
    symmetry = symmetries(descriptors(full[index.numpy()]), descriptors(full[other.numpy()]))
    found = _similarity(views, views, _Pairs.uncropped(index, other, 0, torch.from_numpy(symmetry)))
    return {pair: (float(one), float(two)) for pair, one, two in zip(ordered, *found, strict=True)}
