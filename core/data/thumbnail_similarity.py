"""How similar two thumbnails are that lie on each other: by their slopes, everywhere or where they differ least."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .thumbnail_windows import slopes

CELL = 4
"""Pixels a side of the cells in which thumbnails are compared where they may differ in a part."""
CELLS_LEFT_OUT = 16
"""Of 64 cells, those that differ most: what a watermark covers."""
CLIPPED = 5
"""Gray levels from white or black within which a thumbnail's pixel is taken as clipped."""
LEAST_CLIPPED = 0.02
"""The share of more clipped pixels than in the other image from which on they count."""
LEAST_LEFT = 0.3
"""The least share of the slopes' energy, in the image that has more of it there, that must be in the cells that are left."""


def smoothed(images: Tensor) -> Tensor:
    """Images (N, 32, 32) without what depends on the resampling filter: a binomial filter of 5 pixels."""
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    padded = F.pad(images[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, line[None, None, :, None]), line[None, None, None, :])[:, 0]


def clipped_alike(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, 32, 32), each without what was clipped in the other alone when it was made brighter, darker or of more contrast.

    Where more of the other is white, the brightest pixels take one level; the same for black.
    """
    return _clipped_as(images, others), _clipped_as(others, images)


def _clipped_as(images: Tensor, others: Tensor) -> Tensor:
    for clipped, sign in ((lambda levels: levels >= 255 - CLIPPED, 1), (lambda levels: levels <= CLIPPED, -1)):
        share, other = (clipped(part).flatten(1).float().mean(1) for part in (images, others))
        some = ((other > share + LEAST_CLIPPED) & (other < 1)).nonzero().flatten()
        if len(some):
            levels = (sign * images[some]).flatten(1)
            rank = ((1 - other[some]) * levels.shape[1]).long().clamp_max(levels.shape[1] - 1)
            limit = levels.sort(dim=1).values.gather(1, rank[:, None])
            images = images.index_copy(0, some, (sign * torch.minimum(levels, limit)).view(-1, *images.shape[1:]))
    return images


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
    enough = torch.maximum(*shares) >= LEAST_LEFT
    return _correlation(energy, other, common, full), torch.where(
        enough, _correlation(energy, other, common, left), 0.0
    )


def _cells(values: Tensor) -> Tensor:
    return F.avg_pool2d(values[:, None], CELL).flatten(1)


def _correlation(energy: Tensor, other: Tensor, common: Tensor, weight: Tensor) -> Tensor:
    length = ((energy * weight).sum(1) * (other * weight).sum(1)).sqrt()
    return torch.where(length > 1e-2, (common * weight).sum(1) / length.clamp_min(1e-2), 0.0)
