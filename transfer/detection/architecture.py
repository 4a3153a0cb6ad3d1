"""The architecture of a detector: its heads, pyramid and their sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConfigError

SCALES = (4.0, 2.0, 1.0, 0.5)
"""What the pyramid's levels may multiply the resolution of the patches by (ViTDet, Sec. 3)."""

MAX_CHANNELS, MAX_REGIONS, MAX_CONVS = 65536, 10**6, 256
"""Channels of a layer, regions of an image and convolutions of a head at most: far beyond what any detector has."""

Engine = Literal["torchvision", "detectron2"]

Head = Literal["faster", "mask", "cascade", "cascade_mask"]


@dataclass(frozen=True, kw_only=True)
class DetectorSizes:
    """How large the parts on the encoder are. The defaults are ViTDet's (Appendix A.2); small images ask for less."""

    relative_positions: bool = True
    """whether attention learns relative positions, which begin at zero; timm's models have none but their own"""
    pyramid_channels: int = 256
    """channels of every level of the pyramid"""
    pyramid_scales: tuple[float, ...] | None = None
    """the levels' resolutions as multiples of the patches', of 4, 2, 1 and 0.5, as far as the patch allows; null: all"""
    head_channels: int = 256
    """channels of the convolutions in the box and mask heads"""
    box_convs: int = 4
    """convolutions in a box head"""
    fc_dim: int = 1024
    """width of the linear layer in a box head"""
    mask_convs: int = 4
    """convolutions in the mask head"""
    anchor_scale: float = 8.0
    """side of the anchors in strides of their level"""
    anchor_sizes: tuple[float, ...] | None = None
    """the same in pixels of image_size, one a level and one for the level above; null: from anchor_scale"""
    proposals: int = 1000
    """regions an image that go on to the box head"""
    region_samples: int = 256
    """anchors an image that the loss of the region proposals is taken on"""
    box_samples: int = 512
    """proposals an image that the loss of the boxes is taken on"""
    score_threshold: float = 0.05
    """smallest score of an object that is reported"""
    max_detections: int = 100
    """objects that are reported for an image at most"""

    def __post_init__(self) -> None:
        for key in ("pyramid_channels", "head_channels", "fc_dim"):
            if not 1 <= getattr(self, key) <= MAX_CHANNELS:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {MAX_CHANNELS}")
        for key in ("proposals", "region_samples", "box_samples", "max_detections"):
            if not 1 <= getattr(self, key) <= MAX_REGIONS:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {MAX_REGIONS}")
        for key in ("box_convs", "mask_convs"):
            if not 0 <= getattr(self, key) <= MAX_CONVS:
                raise ConfigError(key, getattr(self, key), f"a whole number, 0 or more, at most {MAX_CONVS}")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError("score_threshold", self.score_threshold, "a number from 0 to below 1")
        scales = self.pyramid_scales
        if scales is not None and scales not in [SCALES[i:j] for i in range(4) for j in range(i + 1, 5)]:
            raise ConfigError("pyramid_scales", list(scales), f"neighbours of {list(SCALES)}, in this order")
        if self.anchor_scale <= 0:
            raise ConfigError("anchor_scale", self.anchor_scale, "a number above 0")
        if self.anchor_sizes is not None and not (self.anchor_sizes and min(self.anchor_sizes) > 0):
            raise ConfigError("anchor_sizes", list(self.anchor_sizes), "numbers of pixels above 0")

    def scales(self, patch_size: int) -> tuple[float, ...]:
        """The pyramid's scales for patches of this size, finest first; raises ConfigError when none is left."""
        from ...adapters.simple_feature_pyramid import pyramid_scales

        possible = pyramid_scales(patch_size)
        scales = tuple(scale for scale in possible if self.pyramid_scales is None or scale in self.pyramid_scales)
        if not scales:
            raise ConfigError(
                "pyramid_scales",
                list(self.pyramid_scales or ()),
                f"some of {list(possible)}, by which patches of {patch_size} pixels give whole strides",
            )
        return scales

    def anchors(self, strides: Sequence[int]) -> tuple[float, ...]:
        """The side of each level's anchors in pixels, for the levels of these strides; raises ConfigError."""
        if self.anchor_sizes is None:
            return tuple(self.anchor_scale * stride for stride in strides)
        if len(self.anchor_sizes) != len(strides):
            expected = f"{len(strides)} sizes, one a level of the pyramid: their strides are {list(strides)}"
            raise ConfigError("anchor_sizes", list(self.anchor_sizes), expected)
        return self.anchor_sizes


@dataclass(frozen=True, kw_only=True)
class Architecture(DetectorSizes):
    """The heads of a detector, the library that builds them, and their sizes.

    ``head``: faster finds boxes, mask boxes and masks; cascade and cascade_mask do so with three box heads in a row, in
    detectron2 only. ``window_size``: patches a side of the attention windows of all but four blocks, 0 for none.
    """

    engine: Engine = "torchvision"
    head: Head = "mask"
    window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "torchvision" and self.head.startswith("cascade"):
            raise ConfigError("head", self.head, "faster or mask; torchvision has no cascade. Give engine=detectron2.")

    @property
    def masks(self) -> bool:
        """Whether there is a mask head."""
        return self.head in ("mask", "cascade_mask")
