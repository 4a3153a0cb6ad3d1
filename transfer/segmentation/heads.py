"""The heads: linear, convolutional and UPerNet, from the encoder's maps to logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch.fx
from torch import Tensor, nn

from ...adapters.mmseg_config import upernet_scales
from ...adapters.simple_feature_pyramid import ChannelNorm
from ...core.errors import MaeliftError
from ...core.models.backbone import Backbone, Level
from ...core.models.timm_backbone import TimmBackbone
from .architecture import Architecture
from .logits import resize_logits
from .timm_maps import STAGES, map_indices

AUXILIARY_WEIGHT = 0.4
"""Weight of the auxiliary head's loss, added to UPerNet's (BEiT's and mmseg's configs, which MAE's Appendix A.4 follows)."""

torch.fx.wrap("resize_logits")  # the ONNX export traces the heads with torch.fx, and takes this as one step


def build_head(encoder: Backbone, num_classes: int, architecture: Architecture) -> nn.Module:
    """A head of our own: called with the images (B, C, H, W) and the encoder's maps, it gives logits (B, K, h, w)."""
    levels = _levels(encoder, architecture)
    last, spec = levels[-1], encoder.spec
    channels = architecture.head_channels or last.channels
    if architecture.head == "linear":
        return LinearHead(last.channels, num_classes)
    if architecture.head == "conv":
        return ConvHead(last.channels, channels, num_classes, last.reduction, spec.channels)
    scales = upernet_scales(last.reduction, spec.image_size) if encoder.plain else (1.0,) * len(levels)
    return UPerNet([level.channels for level in levels], channels, num_classes, scales)


def _levels(encoder: Backbone, architecture: Architecture) -> list[Level]:
    """The maps that a head reads; UPerNet's are four, of an encoder of fewer blocks the last one four times."""
    if isinstance(encoder, TimmBackbone):
        found = [encoder.levels[index] for index in map_indices(encoder, architecture.head)]
    else:
        found = [encoder.levels[-1]]
    return found * STAGES if architecture.head == "upernet" and len(found) == 1 else found


class LinearHead(nn.Module):
    """A class for each patch from its normed token, by a linear layer."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(dim, num_classes, 1)
        nn.init.trunc_normal_(self.classify.weight, std=0.01)
        nn.init.zeros_(cast(Tensor, self.classify.bias))

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        return cast(Tensor, self.classify(maps[-1]))


class ConvHead(nn.Module):
    """3×3 convolutions from the last map up to the image's own resolution, with skips from the image (as UNETR has them).

    Light, and exact at the borders of things that are a few patches large. Any patch size: each step goes up to the next
    power of two of pixels below it.
    """

    def __init__(self, dim: int, channels: int, num_classes: int, patch_size: int, image_channels: int) -> None:
        super().__init__()
        steps = max(1, math.ceil(math.log2(patch_size)))
        widths = [max(16, channels >> (step + 1)) for step in range(steps)]  # from coarse to fine
        self.enter = nn.Sequential(
            ChannelNorm(dim),
            nn.Conv2d(dim, channels, 1),
            *conv_block(channels, channels),
            *conv_block(channels, channels),
        )
        self.up = nn.ModuleList(
            nn.Sequential(*conv_block(before, width))
            for before, width in zip([channels, *widths[:-1]], widths, strict=True)
        )
        self.merge = nn.ModuleList(nn.Sequential(*conv_block(width, width)) for width in widths)
        fine_first = widths[::-1]
        self.stem = nn.ModuleList(
            nn.Sequential(*conv_block(before, width, stride=1 if number == 0 else 2))
            for number, (before, width) in enumerate(zip([image_channels, *fine_first[:-1]], fine_first, strict=True))
        )
        self.classify = nn.Conv2d(widths[-1], num_classes, 1)

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        skips: list[Tensor] = []
        skip = images
        for stage in self.stem:
            skip = stage(skip)
            skips.append(skip)
        features = self.enter(maps[-1])
        for up, merge, skip in zip(self.up, self.merge, reversed(skips), strict=True):
            features = merge(up(resize_logits(features, skip.shape[-2:])) + skip)
        return cast(Tensor, self.classify(features))


class UPerNet(nn.Module):
    """UPerNet on the maps of four blocks or stages, and an auxiliary head on the third (MAE, Appendix A.4; decoder of smp).

    The maps of a plain ViT are resampled to four strides first, as BEiT does it. Group norm replaces the decoder's batch norm,
    so that small batches will do.
    """

    def __init__(self, dims: Sequence[int], channels: int, num_classes: int, scales: Sequence[float]) -> None:
        super().__init__()
        decoder = upernet_decoder()
        self.pyramid = nn.ModuleList(resampling_layer(dim, scale) for dim, scale in zip(dims, scales, strict=True))
        self.decoder = with_group_norm(decoder([0, 0, *dims], encoder_depth=5, decoder_channels=channels))
        self.classify = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
        auxiliary = min(256, channels)
        self.auxiliary = nn.Sequential(
            ChannelNorm(dims[2]),
            *conv_block(dims[2], auxiliary),
            nn.Dropout2d(0.1),
            nn.Conv2d(auxiliary, num_classes, 1),
        )

    def forward(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        levels = [resampled(plane) for resampled, plane in zip(self.pyramid, self._four(maps), strict=True)]
        return cast(Tensor, self.classify(self.decoder([images, images, *levels])))

    def auxiliary_logits(self, maps: list[Tensor]) -> Tensor:
        """Logits (B, K, h, w) of the auxiliary head, which is there to be trained only."""
        return cast(Tensor, self.auxiliary(self._four(maps)[2]))

    @staticmethod
    def _four(maps: list[Tensor]) -> list[Tensor]:
        return maps if len(maps) == STAGES else [maps[-1]] * STAGES  # encoders of less than four blocks


def upernet_decoder() -> Any:
    """smp's decoder class; raises MaeliftError where the library is missing."""
    try:
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
    except ModuleNotFoundError as error:
        raise MaeliftError(
            "segmentation_models_pytorch is not installed here, and head=upernet needs it. Install it: "
            "pip install segmentation-models-pytorch; or take head=conv."
        ) from error
    return UPerNetDecoder


def resampling_layer(dim: int, scale: float) -> nn.Module:
    """Enlarge or shrink a map (B, dim, h, w), no side below 1."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(dim, dim, 2, 2), ChannelNorm(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)
        )
    if scale == 2:
        return nn.ConvTranspose2d(dim, dim, 2, 2)
    if scale == 1:
        return nn.Identity()
    step = round(1 / scale)
    return nn.MaxPool2d(step, step, ceil_mode=True)


def conv_block(channels: int, out_channels: int, *, stride: int = 1) -> tuple[nn.Module, ...]:
    """A 3×3 convolution, group norm and GELU."""
    convolution = nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return convolution, group_norm(out_channels), nn.GELU()


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm of at least 8 channels a group, so that a map of one pixel is not normed away."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 8))), channels)


def with_group_norm(module: nn.Module) -> nn.Module:
    """The module with group norm in place of every batch norm, which learns nothing from batches of one."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            with_group_norm(child)
    return module
