"""Inference on images of any size: at once or in overlapping windows whose logits are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core.errors import ConfigError
from ...core.models.encoder_spec import LARGEST_SIDE

MAX_BATCH_PIXELS, MAX_BATCH = 2**20, 16
"""What goes through the network together, of windows or images of one size; but always one."""

MAX_ASPECT = 4
"""The longer side of an image is not enlarged beyond so many times the shorter one (mmseg's 2048 × 512)."""


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How images of any size are segmented.

    They are resized, in proportion, to a shorter side of ``short_side`` pixels and a longer one of at most four times as
    many (0: left as they are); then go through the network at once (``whole``), or in windows of ``crop`` (height, width)
    that lie ``stride`` apart, whose logits are averaged where they overlap. The logits are resized to the image's own size
    before the class with the highest is taken.
    """

    mode: Literal["whole", "slide"]
    crop: tuple[int, int]
    stride: tuple[int, int]
    short_side: int

    def __post_init__(self) -> None:
        if not all(0 < step <= side for step, side in zip(self.stride, self.crop, strict=True)):
            raise ConfigError(
                "stride", list(self.stride), f"from 1 to the crop's sides {list(self.crop)}, none left out"
            )
        if not 0 <= self.short_side <= LARGEST_SIDE:
            raise ConfigError("short_side", self.short_side, f"a whole number of pixels from 0 to {LARGEST_SIDE}")

    @classmethod
    def usual(cls, image_size: tuple[int, int]) -> Inference:
        """Windows of the training crop that overlap by a third, at the scale of training (mmseg's configs/mae)."""
        stride = (max(1, image_size[0] * 2 // 3), max(1, image_size[1] * 2 // 3))
        return cls(mode="slide", crop=image_size, stride=stride, short_side=min(image_size))

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) in pixels that an image of ``size`` is segmented at."""
        if not self.short_side:
            return size
        scale = min(self.short_side / min(size), MAX_ASPECT * self.short_side / max(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


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
