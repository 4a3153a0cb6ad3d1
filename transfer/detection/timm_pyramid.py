"""Pyramids on models of timm: a simple one on the last map of a plain ViT, torchvision's on the stages of others."""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ...adapters.simple_feature_pyramid import SimpleFeaturePyramid
from ...core.errors import ConfigError
from ...core.models.timm_backbone import TimmBackbone, TimmMaps
from .architecture import Architecture

REFERENCE_STRIDE = 16
"""The scales 4, 2, 1 and 0.5 of an architecture stand for strides of 4, 8, 16 and 32 pixels where there is no patch."""


def timm_pyramid(backbone: TimmBackbone, architecture: Architecture, drop_path: float) -> nn.Module:
    """The pyramid for a detector on a model of timm, for images of the backbone's size.

    Raises ConfigError for scales that the model doesn't have, and for a size that its strides don't divide.
    """
    pyramid: Any
    if backbone.plain:
        maps = TimmMaps(backbone, [len(backbone.levels) - 1], drop_path=drop_path)
        scales = architecture.scales(maps.patch_size)
        pyramid = SimpleFeaturePyramid(cast(Any, maps), architecture.pyramid_channels, scales)
    else:
        pyramid = StagePyramid(backbone, architecture, drop_path)
    size, multiple = backbone.spec.image_size, pyramid.size_divisibility
    if any(side % multiple for side in size):
        fitting = [max(1, round(side / multiple)) * multiple for side in size]
        advice = f"The nearest is image_size=[{fitting[0]},{fitting[1]}]."
        raise ConfigError("image_size", list(size), f"multiples of {multiple}, the coarsest stride", advice)
    return cast(nn.Module, pyramid)


class StagePyramid(nn.Module):
    """The stages of a hierarchical model and torchvision's feature pyramid on them (Lin et al. 2017).

    It has what torchvision's detectors ask of maelift's pyramids: strides, names and channels of its levels. "pool" halves the
    coarsest once more, for the region proposals.
    """

    def __init__(self, backbone: TimmBackbone, architecture: Architecture, drop_path: float) -> None:
        super().__init__()
        indices = stage_indices(backbone, architecture)
        self.net = TimmMaps(backbone, indices, drop_path=drop_path)
        self.strides, self.out_channels, self.top_pool = self.net.reductions, architecture.pyramid_channels, True
        self.transform_settings: dict[str, Any] = {}
        self.fpn = FeaturePyramidNetwork(list(self.net.channels), architecture.pyramid_channels)

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of an image must be multiples of."""
        return math.lcm(*self.strides)

    @property
    def level_names(self) -> list[str]:
        """The names of the levels that boxes are pooled from."""
        return [str(number) for number in range(len(self.strides))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to maps (B, out_channels, H / stride, W / stride) by level."""
        levels = cast(dict[str, Tensor], self.fpn(dict(zip(self.level_names, self.net(images), strict=True))))
        return {**levels, "pool": F.max_pool2d(levels[self.level_names[-1]], kernel_size=1, stride=2)}


def stage_indices(backbone: TimmBackbone, architecture: Architecture) -> list[int]:
    """The last stage of each stride that the architecture's scales ask for, finest first; raises ConfigError for none."""
    last = {level.reduction: index for index, level in enumerate(backbone.levels)}
    wanted = [int(REFERENCE_STRIDE / scale) for scale in architecture.scales(REFERENCE_STRIDE)]
    found = [stride for stride in wanted if stride in last]
    if not found or (architecture.pyramid_scales is not None and found != wanted):
        given = list(architecture.pyramid_scales or ())
        scales = [REFERENCE_STRIDE / stride for stride in sorted(last)]
        raise ConfigError("pyramid_scales", given, f"some of {scales}: the strides of this model are {sorted(last)}")
    return [last[stride] for stride in found]
