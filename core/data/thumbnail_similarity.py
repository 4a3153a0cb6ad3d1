"""How similar two thumbnails are that lie on each other: by their slopes, everywhere or where they differ least."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .thumbnail_windows import slopes

CELL = 4
"""Pixels a side of the cells in which thumbnails are compared where they may differ in a part."""
CELLS_LEFT_OUT = 16
"""Of 64 cells, those that differ most: what a watermark covers."""
CLIPPED = 5
"""Gray levels from white within which a thumbnail's pixel is taken as clipped."""
LEAST_CLIPPED = 0.02
"""The share of pixels that must be clipped in the other image alone."""
LEAST_LEFT = 0.3
"""The least share of the slopes' energy, in the image that has more of it there, that must be in the cells that are left."""


LEAST_CELLS = 26
"""And in so many cells something must be seen: a single small object may look like many another."""
LEAST_ENERGY = 1.0
"""The mean square slope of a cell, in gray levels a pixel, in which something is seen."""


def smoothed(images: Tensor) -> Tensor:
    """Images (N, 32, 32) without what depends on the resampling filter: a binomial filter of 5 pixels."""
    along = _binomial(images.shape[1])
    return along @ images @ along.T


@cache
def _binomial(side: int) -> Tensor:
    """The matrix (side, side) of the filter along one axis; edges are repeated."""
    weights = torch.zeros(side, side)
    for offset, weight in zip(range(-2, 3), (1, 4, 6, 4, 1), strict=True):
        place = (torch.arange(side) + offset).clamp(0, side - 1)
        weights[torch.arange(side), place] += weight / 16
    return weights


def clipped_alike(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, 32, 32), each without what was clipped to white in the other alone, as by making it brighter.

    Where a larger share of the other is white, so many of the brightest pixels take one level.
    """
    white = [(part >= 255 - CLIPPED).flatten(1).float().mean(1) for part in (images, others)]
    return _clipped(images, *white), _clipped(others, *reversed(white))


def _clipped(images: Tensor, share: Tensor, other: Tensor) -> Tensor:
    some = ((other > share + LEAST_CLIPPED) & (other < 1)).nonzero().flatten()
    if not len(some):
        return images
    levels = images[some].flatten(1)
    rank = ((1 - other[some]) * levels.shape[1]).long().clamp_max(levels.shape[1] - 1)
    limit = levels.sort(dim=1).values.gather(1, rank[:, None])
    return images.index_copy(0, some, torch.minimum(levels, limit).view(-1, *images.shape[1:]))


def slope_similarity(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The correlation (N) of the slopes of smoothed images (N, 32, 32) with those of others; and without the cells that differ
    most, 0 where little is left.

    Slopes say more than levels do: the levels of distinct photographs often agree in their large patches of light and dark.
    """
    energy, other, common = (torch.zeros(len(images), (images.shape[1] // CELL) ** 2) for _ in range(3))
    for mine, theirs in zip(slopes(images), slopes(others), strict=True):
        energy += _cells(mine * mine)
        other += _cells(theirs * theirs)
        common += _cells(mine * theirs)
    full = torch.ones_like(energy)
    left = full
    for _ in range(3):
        contrast = ((common * left).sum(1) / (energy * left).sum(1).clamp_min(1e-3))[:, None]
        differs = contrast**2 * energy + other - 2 * contrast * common
        left = full.scatter(1, differs.topk(CELLS_LEFT_OUT, dim=1).indices, 0.0)
    shares = [(part * left).sum(1) / part.sum(1).clamp_min(1e-3) for part in (energy, other)]
    spread = torch.minimum(*(((part * left) >= LEAST_ENERGY).sum(1) for part in (energy, other)))
    enough = (torch.maximum(*shares) >= LEAST_LEFT) & (spread >= LEAST_CELLS)
    return _correlation(energy, other, common, full), torch.where(
        enough, _correlation(energy, other, common, left), 0.0
    )


def _cells(values: Tensor) -> Tensor:
    return F.avg_pool2d(values[:, None], CELL).flatten(1)


def _correlation(energy: Tensor, other: Tensor, common: Tensor, weight: Tensor) -> Tensor:
    length = ((energy * weight).sum(1) * (other * weight).sum(1)).sqrt()
    return torch.where(length > 1e-2, (common * weight).sum(1) / length.clamp_min(1e-2), 0.0)
