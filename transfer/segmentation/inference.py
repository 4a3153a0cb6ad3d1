"""How images of any size are segmented: at once or in overlapping windows, and at which scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConfigError
from ...core.models.encoder_spec import LARGEST_SIDE

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

    mode: Literal["slide", "whole"]
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
