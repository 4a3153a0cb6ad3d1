"""Logits of images of any size from overlapping windows, which are averaged where they overlap."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

MAX_BATCH_PIXELS, MAX_BATCH = 2**20, 16
"""What goes through the network together, of windows or images of one size; but always one."""


def sliding_window_logits(
    logits_of: Callable[[Tensor], Tensor], images: Tensor, crop: tuple[int, int], stride: tuple[int, int]
) -> Tensor:
    """Logits (B, K, H, W) of images of any size from windows of ``crop`` that lie ``stride`` apart (height, width).

    The last window of a row or column is moved back to end with the image; where windows overlap, their logits are
    averaged. An image smaller than the crop is one smaller window. The same as mmseg's slide_inference.
    """
    batch, _, height, width = images.shape
    window = min(crop[0], height), min(crop[1], width)
    corners = [
        (top, left)
        for top in _window_starts(height, window[0], stride[0])
        for left in _window_starts(width, window[1], stride[1])
    ]
    together = max(1, batch_size_for(math.prod(window)) // batch)
    total: Tensor | None = None
    count = images.new_zeros((1, 1, height, width))
    for start in range(0, len(corners), together):
        some = corners[start : start + together]
        cut = torch.cat([images[:, :, top : top + window[0], left : left + window[1]] for top, left in some])
        for (top, left), logits in zip(some, torch.split(logits_of(cut), batch), strict=True):
            if total is None:
                total = logits.new_zeros((batch, logits.shape[1], height, width), dtype=torch.float32)
            total[:, :, top : top + window[0], left : left + window[1]] += logits
            count[:, :, top : top + window[0], left : left + window[1]] += 1
    assert total is not None  # there is at least one window
    return total / count


def _window_starts(side: int, window: int, stride: int) -> list[int]:
    number = max(side - window + stride - 1, 0) // stride + 1
    return [min(index * stride, side - window) for index in range(number)]


def batch_size_for(pixels: int) -> int:
    """Images of so many pixels that go through the network together."""
    return max(1, min(MAX_BATCH, MAX_BATCH_PIXELS // pixels))
