"""Near-duplicates among images (re-encoded, resized, mirrored, slightly cropped), by similarity of thumbnails.

This is the one detector: suites leave out of training what it finds of validation and test, and ``maelift data check`` reports
what it finds between splits or among images to pretrain on. Images are compared at 16 × 16 pixels with all others, or mirrored
(``compare_uncropped``); or through windows that leave out up to a tenth of each side (``compare``), in three stages: few windows
for all pairs, many for each image's best, and windows moved and stretched to the best fit for the few that are left. The pairs
that remain get their similarity at 32 × 32 pixels. A pair is a near-duplicate when it is far more similar than images of these
sets usually are, or than the image is to any other (the ratio test of Lowe, "Distinctive image features from scale-invariant
keypoints", 2004).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from .thumbnail_windows import FEW, FULL, MANY, at_resolution, best_nearby, described_windows, window_correlation
from .thumbnails import Thumbnails, correlations, descriptors, mirrored_pairs

LEAST_SIMILARITY = 0.97
"""Nothing is a near-duplicate below this correlation."""
SURE_SIMILARITY = 0.9985
"""Everything is from this correlation on: where most images have copies, what is usual says nothing. Distinct images of a fixed
camera, whose background is the same, reach 0.998."""
CLOSENESS = 0.08
"""A near-duplicate is so much closer (1 - correlation) than images of these sets usually are to the one most similar to them."""
RATIO = 0.33
"""Or so much closer than the image is to any other."""
PROMISING, VERY_PROMISING = 0.85, 0.94
"""Correlations from which pairs are compared more closely: after few windows, after many. Copies have more than 0.91, 0.95."""
CANDIDATES = 48
"""Images that each is compared with through many windows."""
ALIGNED = 5
"""Of these, how many are compared through the best window, each in the best two ways."""
CHUNK = 256
BLOCK = 8192
MATRIX = 2**24
"""Correlations that are in memory at once."""
AT_ONCE = 16
"""Images whose candidates are compared at once: 16 of them take some 80 MB."""

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class NearDuplicate:
    """Image ``index`` of the one set is a near-duplicate of ``original`` of the other; ``similarity``: their correlation."""

    index: int
    original: int
    similarity: float


@dataclass(frozen=True)
class Similarities:
    """The most similar pairs of ``count`` images with others: numbers in both sets (P,), and the correlation (P,).

    ``least``: the similarity of near-duplicates, where it was given.
    """

    count: int
    index: Tensor
    other: Tensor
    similarity: Tensor
    least: float | None = None

    @cached_property
    def threshold(self) -> float:
        """The similarity from which on a pair is a near-duplicate, however similar other pairs are."""
        if self.least is not None:
            return self.least
        usual = float(self._best.median()) if self.count else 0.0
        return min(SURE_SIMILARITY, max(LEAST_SIMILARITY, 1 - CLOSENESS * (1 - usual)))

    @cached_property
    def _best(self) -> Tensor:
        """Each image's best similarity (count,), 0 where it was compared with none."""
        return torch.zeros(self.count).scatter_reduce_(0, self.index, self.similarity, "amax", include_self=True)

    def near_duplicates(self) -> list[NearDuplicate]:
        """Of each image the best pair, where it is far more similar than is usual, or than the image's other pairs."""
        hopeful = self._best[self.index] >= min(LEAST_SIMILARITY, self.threshold)
        index, other, similarity = self.index[hopeful], self.other[hopeful], self.similarity[hopeful]
        order = similarity.argsort(descending=True, stable=True)
        order = order[index[order].argsort(stable=True)]
        _, counts = torch.unique_consecutive(index[order], return_counts=True)
        found = []
        for rows in torch.split(order, counts.tolist()) if len(order) else ():
            first = float(similarity[rows[0]])
            rivals = similarity[rows][other[rows] != other[rows[0]]]
            second = float(rivals[0]) if len(rivals) else VERY_PROMISING  # those below it weren't compared
            distinct = self.least is None and 1 - first < RATIO * (1 - second)
            if first >= self.threshold or distinct:
                found.append(NearDuplicate(int(index[rows[0]]), int(other[rows[0]]), first))
        return found

    def pairs_within(self) -> list[NearDuplicate]:
        """The near-duplicates within one set, each pair once: the later image as a near-duplicate of the earlier one."""
        found = {
            (max(pair.index, pair.original), min(pair.index, pair.original)): pair.similarity
            for pair in self.near_duplicates()
        }
        return [NearDuplicate(*numbers, similarity) for numbers, similarity in sorted(found.items())]


@dataclass(frozen=True)
class _ComparedPairs:
    """Pairs that were compared: numbers in both sets, and the correlation; ``done`` images were compared with all others."""

    done: int
    index: Tensor
    other: Tensor
    similarity: Tensor


@dataclass(frozen=True)
class _Pairs:
    """Pairs to be compared: numbers in both sets, mirrored or not, whose window is taken, and which."""

    index: Tensor
    other: Tensor
    mirrored: Tensor
    window_of_image: Tensor
    window: Tensor


def compare(images: Thumbnails, others: Thumbnails, progress: Progress | None = None) -> Similarities:
    """The similarity of images (N) to those of ``others`` (M) most like them, also where one is a crop of the other.

    Time grows with N times M, by 76 correlations of 144 pixels for each pair; and with the number of images that are similar to
    several others, by 3 to 16 ms each (two cores). ``progress`` is called with (images done, images).
    """
    compared = _through_windows(images, others) if len(images) and len(others) else ()
    return _collected(compared, len(images), progress)


def compare_uncropped(
    images: Thumbnails, others: Thumbnails, progress: Progress | None = None, least: float | None = None
) -> Similarities:
    """The same where none is a crop, for very many images: a product of 256 numbers for each pair.

    ``least``: the similarity from which on pairs are near-duplicates, in place of the rule.
    """
    compared = _uncropped(images, others, _floor(least), within=False) if len(images) and len(others) else ()
    return replace(_collected(compared, len(images), progress), least=least)


def compare_within(images: Thumbnails, progress: Progress | None = None, least: float | None = None) -> Similarities:
    """As ``compare_uncropped`` for one set: each image with all others of it."""
    compared = _uncropped(images, images, _floor(least), within=True) if len(images) else ()
    return replace(_collected(compared, len(images), progress), least=least)


def _floor(least: float | None) -> float:
    """The correlation at 16 × 16 pixels from which on pairs are compared, so that none of this similarity is missed."""
    return PROMISING if least is None else min(PROMISING, least - 0.05)


def _collected(compared: Iterable[_ComparedPairs], count: int, progress: Progress | None) -> Similarities:
    parts = []
    with torch.inference_mode():
        for part in compared:
            parts.append(part)
            if progress is not None:
                progress(part.done, count)
    index = torch.cat([torch.zeros(0, dtype=torch.long), *(part.index for part in parts)])
    other = torch.cat([torch.zeros(0, dtype=torch.long), *(part.other for part in parts)])
    similarity = torch.cat([torch.zeros(0), *(part.similarity for part in parts)])
    return Similarities(count, index, other, similarity)


def _through_windows(images: Thumbnails, others: Thumbnails) -> Iterator[_ComparedPairs]:
    """Three stages: ever fewer pairs, through ever more windows."""
    mine, theirs, grains = _as_tensors(images, others)
    for start in range(0, len(mine), CHUNK):
        chunk = mine[start : start + CHUNK]
        score, number = _candidates(chunk, theirs)
        for first in range(0, len(chunk), AT_ONCE):
            few = slice(first, first + AT_ONCE)
            pairs = _best_ways(chunk[few], theirs, score[few], number[few])
            index = pairs.index + start + first
            similarity = _similarity(mine, theirs, replace(pairs, index=index), grains, move_windows=True)
            yield _ComparedPairs(min(start + first + AT_ONCE, len(mine)), index, pairs.other, similarity)


def _uncropped(images: Thumbnails, others: Thumbnails, floor: float, *, within: bool) -> Iterator[_ComparedPairs]:
    """Each image with those that its descriptor agrees best with; ``within`` one set, with others than itself."""
    own = descriptors(images)
    known = own if within else descriptors(others)
    mine, theirs, grains = _as_tensors(images, others)
    for start in range(0, len(own), rows := max(1, MATRIX // len(known))):
        chunk = own[start : start + rows]
        agreed = torch.from_numpy(correlations(chunk, known))
        if within:
            agreed[torch.arange(len(chunk)), start + torch.arange(len(chunk))] = -1.0
        best = agreed.topk(min(ALIGNED, len(known)), dim=1)
        index, place = (best.values >= floor).nonzero().T
        other, index = best.indices[index, place], index + start
        mirrored = torch.from_numpy(mirrored_pairs(own[index.numpy()], known[other.numpy()]))
        pairs = _Pairs(index, other, mirrored, torch.ones(len(index), dtype=torch.bool), FULL.expand(len(index), 4))
        similarity = _similarity(mine, theirs, pairs, grains, move_windows=False)
        yield _ComparedPairs(min(start + rows, len(mine)), index, other, similarity)


def _as_tensors(images: Thumbnails, others: Thumbnails) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The pixels of both, and the grains."""
    mine, theirs = (torch.tensor(stack.pixels, dtype=torch.float32) for stack in (images, others))
    return mine, theirs, (torch.tensor(images.grain, dtype=torch.long), torch.tensor(others.grain, dtype=torch.long))


def _candidates(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """For each of mine (N) the others that few windows of the one, or the other, agree best with: scores, numbers (N, K)."""
    own = [described_windows(images, FEW) for images in (mine, mine.flip(-1))]
    score, number = torch.zeros(len(mine), 0), torch.zeros(len(mine), 0, dtype=torch.long)
    for start in range(0, len(theirs), BLOCK):
        block = described_windows(theirs[start : start + BLOCK], FEW)
        best = torch.full((len(mine), block.shape[1]), -1.0)
        for windows in own:
            for window in windows:
                torch.maximum(best, window @ block[0].T, out=best)
            for window in block[1:]:
                torch.maximum(best, windows[0] @ window.T, out=best)
        found = best.topk(min(CANDIDATES, best.shape[1]), dim=1)
        score, number = torch.cat([score, found.values], 1), torch.cat([number, found.indices + start], 1)
        top = score.topk(min(CANDIDATES, score.shape[1]), dim=1)
        score, number = top.values, number.gather(1, top.indices)
    return score, number


def _best_ways(mine: Tensor, theirs: Tensor, score: Tensor, number: Tensor) -> _Pairs:
    """Of the candidates (N, K) those that agree best through many windows, each in the two ways that it agrees best in."""
    hopeful = (score[:, 0] >= PROMISING).nonzero().flatten()
    mine, score, number = mine[hopeful], score[hopeful], number[hopeful]
    count, candidates = number.shape
    described = described_windows(theirs[number.flatten()], MANY)
    block = described.reshape(len(MANY), count, candidates, described.shape[-1])
    ways = []
    for images in (mine, mine.flip(-1)):
        windows = described_windows(images, MANY)  # (V, N, D)
        ways += [torch.einsum("vnd,nkd->nkv", windows, block[0]), torch.einsum("nd,vnkd->nkv", windows[0], block)]
    agreed = torch.stack([way.max(dim=2).values for way in ways], 2)  # (N, K, 4)
    window = torch.stack([way.max(dim=2).indices for way in ways], 2)
    top = torch.where(score >= PROMISING, agreed.amax(2), -1.0).topk(min(ALIGNED, candidates), dim=1)
    index = torch.arange(count)[:, None, None].expand(-1, top.indices.shape[1], 2)
    place = top.indices[:, :, None].expand_as(index)
    way = agreed[index[..., 0], place[..., 0]].topk(2, dim=2).indices
    valid = (top.values >= VERY_PROMISING)[:, :, None].expand_as(index)
    index, place, way = index[valid], place[valid], way[valid]
    return _Pairs(hopeful[index], number[index, place], way >= 2, way % 2 == 0, MANY[window[index, place, way]])


def _similarity(
    mine: Tensor, theirs: Tensor, pairs: _Pairs, grains: tuple[Tensor, Tensor], *, move_windows: bool
) -> Tensor:
    """The correlation of each pair; where ``move_windows``, they are moved and stretched to the best fit first."""
    found = [torch.zeros(0)]
    for start in range(0, len(pairs.index), CHUNK):
        some = slice(start, start + CHUNK)
        one, other = mine[pairs.index[some]], theirs[pairs.other[some]]
        grain, other_grain = grains[0][pairs.index[some]], grains[1][pairs.other[some]]
        one = torch.where(pairs.mirrored[some, None, None], one.flip(-1), one)
        own = pairs.window_of_image[some, None, None]
        window, agreed = pairs.window[some], torch.full((len(one),), -1.0)
        coarser = at_resolution(one, grain, other_grain), at_resolution(other, other_grain, grain)
        ways = [(one, other)] if coarser[0] is one and coarser[1] is other else [(one, other), coarser]
        for left, right in ways:
            windowed, full = torch.where(own, left, right), torch.where(own, right, left)
            window = best_nearby(windowed, full, window) if move_windows else window
            agreed = torch.maximum(agreed, window_correlation(windowed, window, full))
        found.append(agreed)
    return torch.cat(found)
