"""How thoroughly near-duplicates are searched for: as long as it takes a few minutes, unless all is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

Near = Literal["auto", "full", "off"]
"""How thoroughly near-duplicates are searched for: as time allows, always with crops, or not at all."""
Depth = Literal["crops", "uncropped", "none"]
"""What is searched for."""

KINDS = "re-encoded, resized, mirrored, turned, with borders, brighter or darker, with a watermark"
"""What is searched for besides crops, in words."""

AUTO_SECONDS = 450.0
"""How long a search may take by default, by costs on the safe side: 50,000 images and 11,000 others, without crops, take some
5 minutes of one core."""


class Cost(NamedTuple):
    """Seconds of one core for each image, each other image, and each pair; of Fashion-MNIST, where most are alike."""

    image: float
    other: float
    pair: float

    def seconds(self, images: int, others: int) -> float:
        """Of a search."""
        return self.image * images + self.other * others + self.pair * images * others


CROPS_COST = Cost(0.02, 0.0008, 6e-6)
UNCROPPED_COST = Cost(0.006, 0.0001, 2e-7)


def search_depth(near: Near, images: int, others: int) -> Depth:
    """What is searched for where so many images are compared with others."""
    if near == "off":
        return "none"
    if near == "full" or CROPS_COST.seconds(images, others) <= AUTO_SECONDS:
        return "crops"
    return "uncropped" if UNCROPPED_COST.seconds(images, others) <= AUTO_SECONDS else "none"


def least_depth(depths: Iterable[Depth]) -> Depth:
    """What was searched for in all of several comparisons."""
    found = set(depths)
    return "none" if "none" in found else "uncropped" if "uncropped" in found else "crops"
