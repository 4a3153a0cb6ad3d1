"""Correlation of thumbnails through windows, as if one image were a crop of the other."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .thumbnails import FLAT, SIDE

COARSE = 12
"""Pixels a side at which many pairs are compared."""
FINE = 16
"""Pixels a side at which windows are moved."""
SMALLEST = 0.85
"""The least share of a side that a window has; a tenth may be cropped away, and some is lost in rounding."""
LOWER_RESOLUTION = 0.8
"""An image with less than this share of the other's pixels a side was scaled down; a crop has more."""
STEPS = (0.024, 0.012, 0.006)
"""By which windows are moved and stretched, as shares of a side."""


def _windows(*grids: tuple[float, int]) -> Tensor:
    """Windows of an image (V, 4): the share of its width and height, and the place of the upper left corner, from 0 to 1.

    The first is the full image; then, for each share of a side, as many places along each side.
    """
    rows = [(1.0, 1.0, 0.0, 0.0)]
    for share, places in grids:
        at = [(1 - share) * place / (places - 1) for place in range(places)]
        rows += [(share, share, left, top) for top in at for left in at]
    return torch.tensor(rows)


FULL = _windows()
FEW = _windows((0.95, 3), (0.9, 3))
MANY = _windows((0.95, 3), (0.9, 5))


def described_windows(images: Tensor, windows: Tensor) -> Tensor:
    """Images (N, 32, 32) through each of the windows (V, 4) at ``COARSE`` pixels a side, described: (V, N, 144)."""
    width, height, left, top = windows.T
    rows = torch.einsum("vij,njk->vnik", _resampling(top, height, COARSE), images)
    return _described(torch.einsum("vnik,vlk->vnil", rows, _resampling(left, width, COARSE)))


def window_correlation(images: Tensor, windows: Tensor, references: Tensor) -> Tensor:
    """The correlation (N) of each image (N, 32, 32) through its window (N, 4) with its full reference (N, 32, 32), smoothed."""
    through = _described(_smooth(_through_window(images, windows, SIDE)))
    return (through * _described(_smooth(references))).sum(dim=1)


def best_nearby(images: Tensor, references: Tensor, windows: Tensor) -> Tensor:
    """The windows (N, 4) of images that agree best with their full references, found from ``windows`` by small changes."""
    target = _described(_through_window(references, FULL.expand(len(references), 4), FINE))
    best = (_described(_through_window(images, windows, FINE)) * target).sum(dim=1)
    stretched = [torch.tensor(by) for by in ((1.0, 1.0, -0.5, -0.5), (1.0, 0.0, -0.5, 0.0), (0.0, 1.0, 0.0, -0.5))]
    moved = [torch.tensor(by) for by in ((0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))]
    for step in STEPS:
        for change in (stretched[0], *moved, *stretched[1:], *moved):
            for sign in (-1, 1):
                size, corner = (windows + sign * step * change).chunk(2, dim=1)
                size = size.clamp(SMALLEST, 1.0)
                tried = torch.cat([size, torch.minimum(corner.clamp_min(0.0), 1 - size)], 1)
                agreed = (_described(_through_window(images, tried, FINE)) * target).sum(dim=1)
                better = agreed > best
                windows = torch.where(better[:, None], tried, windows)
                best = torch.maximum(best, agreed)
    return windows


def at_resolution(images: Tensor, grain: Tensor, other: Tensor) -> Tensor:
    """Images (N, 32, 32) of ``grain`` (N) as if made from as few pixels a side as ``other`` (N), where these are fewer.

    Returns ``images`` itself where no image changes.
    """
    coarse = (other < LOWER_RESOLUTION * grain).nonzero().flatten()
    if not len(coarse):
        return images
    through = torch.stack([_reduction(int(few)) for few in other[coarse]])
    return images.index_copy(0, coarse, through @ images[coarse] @ through.transpose(1, 2))


def _through_window(images: Tensor, windows: Tensor, count: int) -> Tensor:
    """Each image (N, 32, 32) through its own window (N, 4), at ``count`` pixels a side."""
    width, height, left, top = windows.T
    return _resampling(top, height, count) @ images @ _resampling(left, width, count).transpose(1, 2)


def _resampling(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Weights (N, count, 32) that resample windows of a row of 32 pixels: cubic convolution, wider where it scales down."""
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
    """Images (N, 32, 32) without what depends on the resampling filter: a binomial filter of 3 pixels."""
    line = torch.tensor([0.25, 0.5, 0.25])
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")
    return F.conv2d(padded, (line[:, None] * line)[None, None])[:, 0]


@cache
def _reduction(few: int) -> Tensor:
    """The matrix (32, 32) that averages 32 pixels to fewer and enlarges them again."""
    ends, places = torch.arange(few + 1) * (SIDE / few), torch.arange(SIDE)
    down = (torch.minimum(ends[1:, None], places + 1.0) - torch.maximum(ends[:-1, None], places * 1.0)).clamp_min(0)
    up = _cubic(torch.arange(few) - ((places[:, None] + 0.5) * few / SIDE - 0.5))
    return (up / up.sum(dim=1, keepdim=True)) @ (down * few / SIDE)
