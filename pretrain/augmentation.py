"""Random resized crops and flips, the only augmentation that MAE needs (paper Table 1e)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..core.data.pixel_format import LazyImage, Picture
from ..core.data.sampling import Uniforms
from ..core.data.transforms import check_turn, random_crops
from ..core.errors import ConfigError

CROP_DRAWS = 5


@dataclass(frozen=True)
class Crop:
    """The only augmentation that MAE needs: a random resized crop and a flip (paper Table 1e)."""

    scale: tuple[float, float] = (0.2, 1.0)
    """smallest and largest area of a crop, as shares of the image"""
    flip: bool = True
    """mirror every second image left to right, at random"""
    turn: bool = False
    """with flip, also turn images by quarters at random: for those that have no up, such as taken from above"""
    reduced_decoding: bool = True
    """decode JPEGs at 1/2, 1/4 or 1/8 where their crops still have twice the pixels a side: faster, values differ by 1 of 255"""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError("scale", list(self.scale), "two shares with 0 < smallest <= largest <= 1")
        check_turn(self.turn, self.flip)

    def words(self, size: tuple[int, int]) -> str:
        """What becomes of an image, in a sentence."""
        low, high = (f"{100 * share:g} %" for share in self.scale)
        area = f"of {low} to {high} of the area" if low != high else f"of {low} of the area"
        flip = ", half of them mirrored, at random" if self.flip else ""
        turn = ", turned by quarters" if self.turn else ""
        return f"random crops {area}, resized to {size[0]}×{size[1]} pixels{flip}{turn}."

    def crops(self, image: LazyImage, size: tuple[int, int], draws: Uniforms) -> list[Picture]:
        """Random crops (H, W, C) of an image, one a row of ``draws`` (K, 5)."""
        flips = draws if self.flip else np.column_stack([draws[:, :4], np.ones(len(draws))])
        return random_crops(image, size, flips, self.scale, reduced=self.reduced_decoding, turn=self.turn)
