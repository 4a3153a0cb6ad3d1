"""torchvision's Faster and Mask R-CNN on a simple feature pyramid, with ViTDet's heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from .simple_feature_pyramid import ChannelNorm, SimpleFeaturePyramid


class PyramidRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """RoIAlign with the true strides: torchvision's rounds them to powers of two, and pools patches of 14 wrongly."""

    def __init__(self, strides: Sequence[int], output_size: int, sampling_ratio: int = 2) -> None:
        super().__init__([str(number) for number in range(len(strides))], output_size, sampling_ratio)
        self.scales: list[float] = [1 / stride for stride in strides]
        self.map_levels: BoxLevels = BoxLevels(strides)


class BoxLevels:
    """The pyramid level for each box: 224 pixels a side go to stride 16, by powers of two (FPN, Eq. 1)."""

    def __init__(self, strides: Sequence[int]) -> None:
        self.finest, self.count = strides[0], len(strides)

    def __call__(self, boxlists: list[Tensor]) -> Tensor:
        boxes = torch.cat(boxlists)
        side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
        level = torch.floor(torch.log2(side * 16 / 224 / self.finest) + 1e-6)
        return level.clamp(0, self.count - 1).to(torch.int64)


@dataclass(frozen=True)
class Heads:
    """The widths of a detector's heads; the defaults are ViTDet's (Appendix A.2), smaller ones suit small images.

    ``channels``: of every convolution of the box and mask heads; ``box_convs``, ``mask_convs``, ``rpn_convs``: how many;
    ``fc_dim``: the box head's linear layer. ``anchor_sizes``: the side of each level's anchors in pixels, finest first;
    None: eight strides.
    """

    channels: int = 256
    box_convs: int = 4
    fc_dim: int = 1024
    mask_convs: int = 4
    rpn_convs: int = 2
    anchor_sizes: tuple[float, ...] | None = None


def faster_rcnn(
    backbone: SimpleFeaturePyramid, num_classes: int, *, heads: Heads = Heads(), **settings: Any
) -> FasterRCNN:
    """torchvision's Faster R-CNN on the pyramid, with ViTDet's heads; ``num_classes`` counts the background, as there.

    ``settings`` are those of ``torchvision.models.detection.FasterRCNN`` and win over ours. Images are (C, H, W) in 0..1;
    they are resized and normalised as ``backbone.transform_settings`` says, which comes from the encoder's contract.
    """
    return FasterRCNN(backbone, **{**detector_settings(backbone, num_classes, heads), **settings})


def mask_rcnn(backbone: SimpleFeaturePyramid, num_classes: int, *, heads: Heads = Heads(), **settings: Any) -> MaskRCNN:
    """torchvision's Mask R-CNN on the pyramid; as ``faster_rcnn``."""
    defaults = detector_settings(backbone, num_classes, heads) | {
        "mask_roi_pool": PyramidRoIAlign(backbone.strides, 14),
        "mask_head": MaskRCNNHeads(
            backbone.out_channels, [heads.channels] * heads.mask_convs, 1, norm_layer=ChannelNorm
        ),
        "mask_predictor": MaskRCNNPredictor(
            heads.channels if heads.mask_convs else backbone.out_channels, heads.channels, num_classes
        ),
    }
    return MaskRCNN(backbone, **{**defaults, **settings})


def detector_settings(backbone: SimpleFeaturePyramid, num_classes: int, heads: Heads) -> dict[str, Any]:
    """What torchvision's detectors need to fit the pyramid: anchors, heads, true strides, sizes; raises ValueError."""
    levels = pyramid_levels(backbone)
    sizes = tuple(8.0 * stride for stride in levels) if heads.anchor_sizes is None else heads.anchor_sizes
    if len(sizes) != len(levels):
        raise ValueError(f"{len(sizes)} anchor sizes for levels of strides {levels}: expected one a level")
    anchors = AnchorGenerator(tuple((size,) for size in sizes), ((0.5, 1.0, 2.0),) * len(levels))
    channels = backbone.out_channels
    box_head = FastRCNNConvFCHead(
        (channels, 7, 7), [heads.channels] * heads.box_convs, [heads.fc_dim], norm_layer=ChannelNorm
    )
    return {
        "rpn_anchor_generator": anchors,
        "rpn_head": RPNHead(channels, anchors.num_anchors_per_location()[0], conv_depth=heads.rpn_convs),
        "box_roi_pool": PyramidRoIAlign(backbone.strides, 7),
        "box_head": box_head,
        "box_predictor": FastRCNNPredictor(heads.fc_dim, num_classes),
        "size_divisible": backbone.size_divisibility,
        **backbone.transform_settings,
    }


def pyramid_levels(backbone: SimpleFeaturePyramid) -> list[int]:
    """The strides in pixels of all levels that regions are proposed on, the extra one included."""
    return [*backbone.strides, *([2 * backbone.strides[-1]] if backbone.top_pool else [])]
