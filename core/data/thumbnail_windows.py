"""Thumbnails through windows, as if one image were a crop of the other, and the window that fits another image best."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .thumbnails import FLAT, SIDE

COARSE = 12
"""Pixels a side at which all pairs are compared."""
SMALLEST = 0.66
"""The least share of a side that a window has: 15 % of each side may be cropped away, and some is lost in rounding."""
LARGEST = 1.04
"""The largest: what is inside a border may have kept some of it. A window may reach over the edge by half of the excess."""
LOWER_RESOLUTION = 0.8
"""An image with less than this share of the other's pixels a side was scaled down; a crop has more."""
SAME_SCALE = 0.8
"""A window of at least this share of the sides is nearly as sharp as a full thumbnail."""
LARGEST_STEP = 0.06
"""By how much, as a share of a side, a window is moved or stretched at once."""


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
CROPS = _windows((0.93, 3), (0.9, 3), (0.86, 5), (0.79, 5), (0.72, 7))
"""What of an image a crop of it may show: the nearest of these is at most 3 % of a side away."""


def described_windows(images: Tensor, windows: Tensor) -> Tensor:
    """Images (N, 32, 32) through each of the windows (V, 4) at ``COARSE`` pixels a side, described: (V, N, 144)."""
    width, height, left, top = windows.T
    rows = torch.einsum("vij,njk->vnik", _resampling(top, height, COARSE), images)
    return described(torch.einsum("vnik,vlk->vnil", rows, _resampling(left, width, COARSE)))


def described(images: Tensor) -> Tensor:
    """Images (..., H, W) as (..., H W), of mean 0 and length 1; zero where they are flat."""
    flat = images.flatten(-2)
    flat = flat - flat.mean(dim=-1, keepdim=True)
    length = flat.norm(dim=-1, keepdim=True)
    return torch.where(length > FLAT * flat.shape[-1] ** 0.5, flat / length.clamp_min(1e-6), 0.0)


def through_window(images: Tensor, windows: Tensor, count: int = SIDE) -> Tensor:
    """Each image (N, 32, 32) through its own window (N, 4), at ``count`` pixels a side."""
    width, height, left, top = windows.T
    return _resampling(top, height, count) @ images @ _resampling(left, width, count).transpose(1, 2)


def fitted(images: Tensor, references: Tensor, windows: Tensor, count: int, steps: int) -> Tensor:
    """The windows (N, 4) through which images (N, 32, 32) fit their full references best, from ``windows`` on in some steps.

    Maximizes the correlation at ``count`` pixels a side by damped Gauss-Newton steps (Evangelidis and Psarakis, "Parametric
    image alignment using enhanced correlation coefficient maximization", 2008) over place and size along both sides.
    """
    target = described(through_window(references, FULL.expand(len(references), 4), count))[:, :, None]
    line = (torch.arange(count) + 0.5) / count - 0.5
    best = tried = windows
    agreed, damping = torch.full((len(images),), -2.0), torch.full((len(images),), 0.01)
    normal, push = torch.zeros(len(images), 4, 4), torch.zeros(len(images), 4, 1)
    for step in range(steps + 1):
        through = through_window(images, tried, count)
        flat = described(through)[:, :, None]  # (N, count², 1)
        found = (flat * target).sum(dim=(1, 2))
        better = found > agreed
        best = torch.where(better[:, None], tried, best)
        agreed = torch.maximum(agreed, found)
        damping = torch.where(better, damping / 3, damping * 8)
        if step == steps:
            break
        right, down = (
            slope * count / side[:, None, None] for slope, side in zip(slopes(through), tried.T, strict=False)
        )
        by = torch.stack([right, down, right * line, down * line[:, None]], 1).flatten(2)  # (N, 4, count²)
        by = by - by.mean(dim=2, keepdim=True)
        by = by - (by @ flat) @ flat.transpose(1, 2)
        length = (through - through.mean(dim=(1, 2), keepdim=True)).norm(dim=(1, 2))
        normal = torch.where(better[:, None, None], by @ by.transpose(1, 2), normal)
        push = torch.where(better[:, None, None], by @ (target - flat) * length[:, None, None], push)
        scale = normal.diagonal(dim1=1, dim2=2)
        ridge = scale * damping[:, None] + 1e-4 * scale.mean(dim=1, keepdim=True) + 1e-3
        change = torch.linalg.solve(normal + torch.diag_embed(ridge), push)[:, :, 0]
        tried = _moved(best, change.clamp(-LARGEST_STEP, LARGEST_STEP))
    return best


def _moved(windows: Tensor, change: Tensor) -> Tensor:
    """Windows (N, 4) with their centres moved by ``change[:, :2]`` and their sides stretched by ``change[:, 2:]``."""
    size = (windows[:, :2] + change[:, 2:]).clamp(SMALLEST, LARGEST)
    centre = windows[:, 2:] + windows[:, :2] / 2 + change[:, :2]
    corner = centre - size / 2
    over = (LARGEST - 1) / 2
    return torch.cat([size, torch.minimum(corner.clamp_min(-over), 1 + over - size)], 1)


def slopes(images: Tensor) -> tuple[Tensor, Tensor]:
    """The slopes (N, H, W) of images to the right and down, by central differences in levels a pixel."""
    padded = F.pad(images[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    return (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]) / 2, (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]) / 2


def at_resolution(images: Tensor, grain: Tensor, other: Tensor) -> Tensor:
    """Images (N, 32, 32) of ``grain`` (N) as if made from as few pixels a side as ``other`` (N), where these are fewer.

    Returns ``images`` itself where no image changes.
    """
    coarse = (other < LOWER_RESOLUTION * grain).nonzero().flatten()
    return _reduced(images, coarse, other[coarse])


def at_scale(images: Tensor, windows: Tensor) -> Tensor:
    """Images (N, 32, 32) as if made from as few pixels a side as are inside windows (N, 4) of other thumbnails."""
    count = (SIDE * windows[:, :2].amin(1)).round().long()
    coarse = (count < SAME_SCALE * SIDE).nonzero().flatten()
    return _reduced(images, coarse, count[coarse])


def _reduced(images: Tensor, some: Tensor, count: Tensor) -> Tensor:
    if not len(some):
        return images
    through = torch.stack([_reduction(int(few)) for few in count])
    return images.index_copy(0, some, through @ images[some] @ through.transpose(1, 2))


def _resampling(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Weights (N, count, 32) that resample windows of a row of 32 pixels: cubic convolution, wider where it scales down."""
    scale = length[:, None, None] * (SIDE / count)
    centre = start[:, None, None] * SIDE + (torch.arange(count)[:, None] + 0.5) * scale - 0.5
    weights = _cubic((torch.arange(SIDE) - centre) / scale.clamp_min(1.0))
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """The kernel of cubic convolution with a = -0.5 (Keys 1981)."""
    far = distance.abs().clamp_max(2.0)
    near = far.clamp_max(1.0)
    return ((2.5 - 0.5 * far) * far - 4) * far + 2 + (near - 1).square() * (2 * near - 1)


@cache
def _reduction(few: int) -> Tensor:
    """The matrix (32, 32) that averages 32 pixels to fewer and enlarges them again."""
    ends, places = torch.arange(few + 1) * (SIDE / few), torch.arange(SIDE)
    down = (torch.minimum(ends[1:, None], places + 1.0) - torch.maximum(ends[:-1, None], places * 1.0)).clamp_min(0)
    up = _cubic(torch.arange(few) - ((places[:, None] + 0.5) * few / SIDE - 0.5))
    return (up / up.sum(dim=1, keepdim=True)) @ (down * few / SIDE)
