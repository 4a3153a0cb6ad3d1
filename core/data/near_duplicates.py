"""Which images of one set are copies of images of another: saved anew, resized, mirrored or cropped a little.

Thumbnails are laid over one another: an image against the other's whole and against windows of it that leave out up to a tenth
of each side, and the other way round, mirrored too. It is done three times, for ever fewer pairs and ever more closely: with few
windows for all pairs, with many for an image's likeliest, and with windows moved and stretched until they agree best for the few
that are left. A pair is a copy when it agrees far better than images of these sets usually do, or than the image does with any
other (the ratio test of Lowe, "Distinctive image features from scale-invariant keypoints", 2004).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import DataError
from ..threads import Threads
from .images import ImageSet, opened, to_array
from .thumbnails import FLAT, correlations, descriptors

SIDE = 32
"""Pixels a side of the thumbnails that are kept of an image."""
COARSE = 12
"""Pixels a side at which many pairs are compared."""
FINE = 16
"""Pixels a side at which windows are moved."""
CANDIDATES = 48
"""Images that each is compared with more closely, those it agrees best with in passing."""
LOOKED_AT = 5
"""Of these, how many are laid over it exactly, each in the best two ways."""
PROMISING, VERY_PROMISING = 0.85, 0.94
"""Correlations from which a closer look is taken: with few windows, with many. Copies have more than 0.91, 0.95."""
CLOSENESS = 0.08
"""A copy is so much closer (1 - correlation) than images of the two sets usually are to the one most like them."""
RATIO = 0.33
"""Or so much closer than the image is to any other."""
LEAST = 0.97
"""Nothing is a copy below this correlation."""
SMALLEST = 0.85
"""The least share of a side that a window has; a tenth may be cropped away, and some is lost in rounding."""
COARSER = 0.8
"""An image with less than this share of the other's pixels a side was made smaller; a crop has more."""
STEPS = (0.024, 0.012, 0.006)
"""By which windows are moved and stretched, as shares of a side."""
CHUNK = 256
BLOCK = 8192
MATRIX = 2**24
"""Correlations that are held at once."""
AT_ONCE = 16
"""Images whose candidates are compared at once: 16 of them take some 80 MB."""

Tell = Callable[[int, int], object]


def _windows(*grids: tuple[float, int]) -> Tensor:
    """Windows of an image (V, 4): the share of its width and height, and the place of the left upper corner, from 0 to 1.

    The first is the whole; then, for each share of a side, as many places along each side.
    """
    rows = [(1.0, 1.0, 0.0, 0.0)]
    for share, places in grids:
        at = [(1 - share) * place / (places - 1) for place in range(places)]
        rows += [(share, share, left, top) for top in at for left in at]
    return torch.tensor(rows)


FEW = _windows((0.95, 3), (0.9, 3))
MANY = _windows((0.95, 3), (0.9, 5))


@dataclass(frozen=True)
class Copy:
    """Image ``number`` of the one set is a copy of ``original`` of the other; ``likeness``: their correlation, laid over."""

    number: int
    original: int
    likeness: float


@dataclass(frozen=True)
class Thumbnails:
    """A gray thumbnail of each image (N, 32, 32), uint8, and the pixels of the smaller side it was made from (N), at most 32."""

    pixels: NDArray[np.uint8]
    grain: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.pixels)

    @classmethod
    def of(cls, images: ImageSet) -> Thumbnails:
        """Black for an image that can't be read."""
        found = cls(np.zeros((len(images), SIDE, SIDE), dtype=np.uint8), np.full(len(images), SIDE, dtype=np.uint8))

        def put(number: int) -> None:
            try:
                picture = opened(images, number).pixels()
            except DataError:
                return
            gray = to_array(picture, 1)[0] if picture.shape[2] in (1, 3) else picture.mean(axis=2)
            least = min(gray.shape)
            how = Image.Resampling.BICUBIC if least < SIDE else Image.Resampling.BOX
            small = np.asarray(Image.fromarray(gray.astype(np.float32)).resize((SIDE, SIDE), how), dtype=np.float32)
            low, high = (
                (0.0, 255.0) if picture.dtype == np.uint8 else (float(small.min()), float(max(small.max(), 1e-6)))
            )
            found.pixels[number] = np.clip((small - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
            found.grain[number] = min(least, SIDE)

        if images.default_workers() == 0:  # they lie in memory: threads would only wait for each other
            for number in range(len(images)):
                put(number)
            return found
        with Threads(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(put, range(len(images))):
                pass
        return found

    @classmethod
    def row(cls, several: Sequence[Thumbnails]) -> Thumbnails:
        """All of them, in a row."""
        return cls(np.concatenate([one.pixels for one in several]), np.concatenate([one.grain for one in several]))


@dataclass(frozen=True)
class _Pairs:
    """Pairs to be laid over one another exactly: numbers in both sets, mirrored or not, whose window is taken, and which."""

    one: Tensor
    other: Tensor
    mirrored: Tensor
    window_of_one: Tensor
    window: Tensor


def find_copies(ones: Thumbnails, others: Thumbnails, tell: Tell | None = None) -> list[Copy]:
    """Which of the thumbnails ``ones`` (N) are copies of any of ``others`` (M), each with the best of them.

    Time grows with N times M, by 76 correlations of 144 pixels for each pair; and with the number of ones that are nearly like
    several others, by 3 to 16 ms each (two cores). ``tell`` is called with (ones done, ones).
    """
    return _found(ones, others, _search_windows, tell)


def find_whole_copies(ones: Thumbnails, others: Thumbnails, tell: Tell | None = None) -> list[Copy]:
    """The same of copies that aren't cropped, among very many images: a product of 256 numbers for each pair."""
    return _found(ones, others, _search_wholes, tell)


@dataclass(frozen=True)
class _Laid:
    """Pairs that were laid over one another: numbers in both sets, and the correlation; ``done`` ones were searched for."""

    done: int
    one: Tensor
    other: Tensor
    likeness: Tensor


def _found(
    ones: Thumbnails,
    others: Thumbnails,
    search: Callable[[Thumbnails, Thumbnails], Iterator[_Laid]],
    tell: Tell | None,
) -> list[Copy]:
    """The copies among the pairs that a search lays over one another."""
    if not len(ones) or not len(others):
        return []
    parts = []
    with torch.inference_mode():
        for part in search(ones, others):
            parts.append(part)
            if tell is not None:
                tell(part.done, len(ones))
    columns = [(part.one, part.other, part.likeness) for part in parts]
    one, other, likeness = (torch.cat(column) for column in zip(*columns, strict=True))
    return list(_copies(one, other, likeness, len(ones)))


def _search_windows(ones: Thumbnails, others: Thumbnails) -> Iterator[_Laid]:
    """Three looks: ever fewer pairs, through ever more windows."""
    mine, theirs, grains = _as_tensors(ones, others)
    for start in range(0, len(mine), CHUNK):
        chunk = mine[start : start + CHUNK]
        score, number = _candidates(chunk, theirs)
        for first in range(0, len(chunk), AT_ONCE):
            few = slice(first, first + AT_ONCE)
            pairs = _likeliest(chunk[few], theirs, score[few], number[few])
            one = pairs.one + start + first
            likeness = _laid_over(mine, theirs, replace(pairs, one=one), grains)
            yield _Laid(min(start + first + AT_ONCE, len(mine)), one, pairs.other, likeness)


def _search_wholes(ones: Thumbnails, others: Thumbnails) -> Iterator[_Laid]:
    """Of each image those that its descriptor agrees best with."""
    own, known = (descriptors(_halved(stack.pixels)) for stack in (ones, others))
    half = own.shape[1] // 2
    mine, theirs, grains = _as_tensors(ones, others)
    for start in range(0, len(own), rows := max(1, MATRIX // len(known))):
        agreed = torch.from_numpy(correlations(own[start : start + rows], known))
        likely = agreed.topk(min(LOOKED_AT, len(known)), dim=1)
        one, place = (likely.values >= PROMISING).nonzero().T
        other, one = likely.indices[one, place], one + start
        turned = (own[one.numpy(), half:] * known[other.numpy(), half:]).sum(axis=1) < 0
        whole = FEW[:1].expand(len(one), 4)
        pairs = _Pairs(one, other, torch.from_numpy(turned), torch.ones(len(one), dtype=torch.bool), whole)
        likeness = _laid_over(mine, theirs, pairs, grains, moved=False)
        yield _Laid(min(start + rows, len(mine)), one, other, likeness)


def _as_tensors(ones: Thumbnails, others: Thumbnails) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """The pixels of both, and the grains."""
    mine, theirs = (torch.tensor(stack.pixels, dtype=torch.float32) for stack in (ones, others))
    return mine, theirs, (torch.tensor(ones.grain, dtype=torch.long), torch.tensor(others.grain, dtype=torch.long))


def _halved(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Thumbnails (N, 32, 32) as (N, 16, 16), by the mean of four pixels each."""
    half = SIDE // 2
    means: NDArray[np.float32] = pixels.reshape(-1, half, 2, half, 2).mean(axis=(2, 4), dtype=np.float32)
    return means


def _copies(one: Tensor, other: Tensor, likeness: Tensor, count: int) -> Iterator[Copy]:
    """The pairs that agree far better than is usual, or than the image's other pairs."""
    best = torch.zeros(count).scatter_reduce_(0, one, likeness, "amax", include_self=True)
    usual = 1 - float(best.median())
    sure = max(LEAST, 1 - CLOSENESS * usual)
    hopeful = best[one] >= LEAST
    one, other, likeness = one[hopeful], other[hopeful], likeness[hopeful]
    order = likeness.argsort(descending=True, stable=True)
    order = order[one[order].argsort(stable=True)]
    _, counts = torch.unique_consecutive(one[order], return_counts=True)
    for rows in torch.split(order, counts.tolist()) if len(order) else ():
        first, number = float(likeness[rows[0]]), int(one[rows[0]])
        rivals = likeness[rows][other[rows] != other[rows[0]]]
        second = float(rivals[0]) if len(rivals) else VERY_PROMISING  # those below it weren't looked at
        if first >= sure or 1 - first < RATIO * (1 - second):
            yield Copy(number, int(other[rows[0]]), first)


def _candidates(mine: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """For each of mine (N) the others that few windows of the one, or the other, agree best with: scores, numbers (N, K)."""
    own = [_seen_through(images, FEW, COARSE) for images in (mine, mine.flip(-1))]
    score, number = torch.zeros(len(mine), 0), torch.zeros(len(mine), 0, dtype=torch.long)
    for start in range(0, len(theirs), BLOCK):
        block = _seen_through(theirs[start : start + BLOCK], FEW, COARSE)
        best = torch.full((len(mine), block.shape[1]), -1.0)
        for windows in own:
            for window in windows:
                torch.maximum(best, window @ block[0].T, out=best)
            for window in block[1:]:
                torch.maximum(best, windows[0] @ window.T, out=best)
        found = best.topk(min(CANDIDATES, best.shape[1]), dim=1)
        score, number = torch.cat([score, found.values], 1), torch.cat([number, found.indices + start], 1)
        kept = score.topk(min(CANDIDATES, score.shape[1]), dim=1)
        score, number = kept.values, number.gather(1, kept.indices)
    return score, number


def _likeliest(mine: Tensor, theirs: Tensor, score: Tensor, number: Tensor) -> _Pairs:
    """Of the candidates (N, K) those that agree best through many windows, each in the two ways that it agrees best in."""
    hopeful = (score[:, 0] >= PROMISING).nonzero().flatten()
    mine, score, number = mine[hopeful], score[hopeful], number[hopeful]
    count, candidates = number.shape
    seen = _seen_through(theirs[number.flatten()], MANY, COARSE)
    block = seen.reshape(len(MANY), count, candidates, COARSE**2)
    ways = []
    for images in (mine, mine.flip(-1)):
        windows = _seen_through(images, MANY, COARSE)  # (V, N, D)
        ways += [torch.einsum("vnd,nkd->nkv", windows, block[0]), torch.einsum("nd,vnkd->nkv", windows[0], block)]
    agreed = torch.stack([way.max(dim=2).values for way in ways], 2)  # (N, K, 4)
    window = torch.stack([way.max(dim=2).indices for way in ways], 2)
    looked_at = torch.where(score >= PROMISING, agreed.amax(2), -1.0).topk(min(LOOKED_AT, candidates), dim=1)
    one = torch.arange(count)[:, None, None].expand(-1, looked_at.indices.shape[1], 2)
    place = looked_at.indices[:, :, None].expand_as(one)
    way = agreed[one[..., 0], place[..., 0]].topk(2, dim=2).indices
    valid = (looked_at.values >= VERY_PROMISING)[:, :, None].expand_as(one)
    one, place, way = one[valid], place[valid], way[valid]
    return _Pairs(hopeful[one], number[one, place], way >= 2, way % 2 == 0, MANY[window[one, place, way]])


def _laid_over(
    mine: Tensor, theirs: Tensor, pairs: _Pairs, grains: tuple[Tensor, Tensor], moved: bool = True
) -> Tensor:
    """The correlation of each pair; where windows may be ``moved``, they are, and stretched, to the best nearby."""
    found = [torch.zeros(0)]
    for start in range(0, len(pairs.one), CHUNK):
        some = slice(start, start + CHUNK)
        one, other = mine[pairs.one[some]], theirs[pairs.other[some]]
        grain, other_grain = grains[0][pairs.one[some]], grains[1][pairs.other[some]]
        one = torch.where(pairs.mirrored[some, None, None], one.flip(-1), one)
        own = pairs.window_of_one[some, None, None]
        window, agreed = pairs.window[some], torch.full((len(one),), -1.0)
        coarser = _as_coarse(one, grain, other_grain), _as_coarse(other, other_grain, grain)
        ways = [(one, other)] if coarser[0] is one and coarser[1] is other else [(one, other), coarser]
        for left, right in ways:
            images, wholes = torch.where(own, left, right), torch.where(own, right, left)
            window = _best_nearby(images, wholes, window) if moved else window
            likeness = _described(_smooth(_seen(images, window, SIDE))) * _described(_smooth(wholes))
            agreed = torch.maximum(agreed, likeness.sum(dim=1))
        found.append(agreed)
    return torch.cat(found)


def _best_nearby(images: Tensor, wholes: Tensor, window: Tensor) -> Tensor:
    """The window of each image that agrees best with the whole of its partner, beginning with ``window`` (N, 4)."""
    target = _described(_seen(wholes, FEW[:1].expand(len(wholes), 4), FINE))
    best = (_described(_seen(images, window, FINE)) * target).sum(dim=1)
    stretched = [torch.tensor(by) for by in ((1.0, 1.0, -0.5, -0.5), (1.0, 0.0, -0.5, 0.0), (0.0, 1.0, 0.0, -0.5))]
    moved = [torch.tensor(by) for by in ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))]
    for step in STEPS:
        for change in (stretched[0], *moved, *stretched[1:], *moved):
            for sign in (-1, 1):
                size, corner = (window + sign * step * change).chunk(2, dim=1)
                size = size.clamp(SMALLEST, 1.0)
                tried = torch.cat([size, torch.minimum(corner.clamp_min(0.0), 1 - size)], 1)
                agreed = (_described(_seen(images, tried, FINE)) * target).sum(dim=1)
                better = agreed > best
                window = torch.where(better[:, None], tried, window)
                best = torch.maximum(best, agreed)
    return window


def _seen_through(images: Tensor, windows: Tensor, count: int) -> Tensor:
    """Images (N, 32, 32) through each of the windows (V, 4), described: (V, N, count²)."""
    width, height, left, top = windows.T
    rows = torch.einsum("vij,njk->vnik", _weights(top, height, count), images)
    return _described(torch.einsum("vnik,vlk->vnil", rows, _weights(left, width, count)))


def _seen(images: Tensor, windows: Tensor, count: int) -> Tensor:
    """Each image (N, 32, 32) through its own window (N, 4), at ``count`` pixels a side."""
    width, height, left, top = windows.T
    return _weights(top, height, count) @ images @ _weights(left, width, count).transpose(1, 2)


def _weights(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Of 32 pixels in a row those of ``count`` in a window of it (N, count, 32): cubic convolution, wider where it shrinks."""
    scale = length[:, None, None] * (SIDE / count)
    centre = start[:, None, None] * SIDE + (torch.arange(count)[:, None] + 0.5) * scale - 0.5
    weights = _cubic((torch.arange(SIDE) - centre) / scale.clamp_min(1.0))
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """The kernel of cubic convolution with a = -0.5 (Keys 1981)."""
    far = distance.abs()
    near = (1.5 * far - 2.5) * far * far + 1
    return torch.where(far < 1, near, torch.where(far < 2, ((2.5 - 0.5 * far) * far - 4) * far + 2, 0.0))


def _described(images: Tensor) -> Tensor:
    """Images (..., H, W) as (..., H W), of mean 0 and length 1; zero where they are flat."""
    flat = images.flatten(-2)
    flat = flat - flat.mean(dim=-1, keepdim=True)
    length = flat.norm(dim=-1, keepdim=True)
    return torch.where(length > FLAT * flat.shape[-1] ** 0.5, flat / length.clamp_min(1e-6), 0.0)


def _smooth(images: Tensor) -> Tensor:
    """Images (N, 32, 32) without what the way of resampling decides: a binomial filter of 3 pixels."""
    line = torch.tensor([0.25, 0.5, 0.25])
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (line[:, None] * line)[None, None])[:, 0]


def _as_coarse(images: Tensor, grain: Tensor, other: Tensor) -> Tensor:
    """Images (N, 32, 32) as they would be had they been made from as few pixels as ``other``, where these are fewer."""
    coarse = (other < COARSER * grain).nonzero().flatten()
    if not len(coarse):
        return images
    through = torch.stack([_through(int(few)) for few in other[coarse]])
    return images.index_copy(0, coarse, through @ images[coarse] @ through.transpose(1, 2))


@cache
def _through(few: int) -> Tensor:
    """What becomes of 32 pixels that are averaged to fewer, and enlarged again (32, 32)."""
    ends, places = torch.arange(few + 1) * (SIDE / few), torch.arange(SIDE)
    down = (torch.minimum(ends[1:, None], places + 1.0) - torch.maximum(ends[:-1, None], places * 1.0)).clamp_min(0)
    up = _cubic(torch.arange(few) - ((places[:, None] + 0.5) * few / SIDE - 0.5))
    return (up / up.sum(dim=1, keepdim=True)) @ (down * few / SIDE)
