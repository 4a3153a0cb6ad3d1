"""ViTDet's simple feature pyramid: the last map of a plain ViT at several strides (ViTDet, Sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .windowed_vit import PlainViT, pad


class SimpleFeaturePyramid(nn.Module):
    """The last map of a plain ViT at several strides: ``{"0": (B, C, H/4, W/4), …}`` for patch 16 (ViTDet, Sec. 3).

    ``scale_factors`` (4, 2, 1, 0.5) multiply the map's resolution; "pool" halves the coarsest once more, for the region
    proposals. Images are padded at the right and bottom to ``size_divisibility``; nothing is cut off. Parameters bear the
    names of detectron2's module of this name, the backbone's under ``net``.
    """

    def __init__(
        self,
        net: PlainViT,
        out_channels: int = 256,
        scale_factors: Sequence[float] | None = None,
        top_pool: bool = True,
    ) -> None:
        super().__init__()
        factors = tuple(pyramid_scales(net.patch_size) if scale_factors is None else scale_factors)
        strides = [net.patch_size / factor for factor in factors]
        if any(stride != int(stride) for stride in strides):
            raise ValueError(
                f"patches of {net.patch_size} pixels at scales {factors} give strides of {strides} pixels: expected whole "
                f"numbers; take scale_factors={pyramid_scales(net.patch_size)}"
            )
        self.net, self.out_channels, self.top_pool = net, out_channels, top_pool
        self.transform_settings: dict[str, Any] = {}  # how torchvision's detectors resize and normalise images for it
        self.strides = tuple(int(stride) for stride in strides)
        self.stages = [f"simfp_{stride_name(stride)}" for stride in self.strides]
        for name, factor in zip(self.stages, factors, strict=True):
            self.add_module(name, pyramid_stage(net.embed_dim, out_channels, factor))

    @property
    def size_divisibility(self) -> int:
        """Pixels that both sides of an image are padded to multiples of."""
        return math.lcm(self.net.size_divisibility, *self.strides)

    @property
    def level_names(self) -> list[str]:
        """The names of the levels that boxes are pooled from."""
        return [str(number) for number in range(len(self.strides))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.net(pad(images, self.size_divisibility))[-1]
        levels = {
            name: self.get_submodule(stage)(features) for name, stage in zip(self.level_names, self.stages, strict=True)
        }
        if self.top_pool:
            levels["pool"] = F.max_pool2d(levels[self.level_names[-1]], kernel_size=1, stride=2)
        return levels


def pyramid_scales(patch_size: int) -> tuple[float, ...]:
    """ViTDet's four scales; without the finest where the patch has no whole quarter or half."""
    return tuple(factor for factor in (4.0, 2.0, 1.0, 0.5) if patch_size % factor == 0)


def stride_name(stride: int) -> str:
    """The exponent of a stride that is a power of two, as detectron2 numbers its levels; else the stride in pixels."""
    return str(int(math.log2(stride))) if stride & (stride - 1) == 0 else f"stride{stride}"


def pyramid_stage(dim: int, out_channels: int, factor: float) -> nn.Sequential:
    """Resample a map (B, dim, h, w) by ``factor``, then a 1×1 and a 3×3 convolution, each with a norm."""
    layers: list[nn.Module]
    if factor == 4.0:
        layers = [
            nn.ConvTranspose2d(dim, dim // 2, 2, 2),
            ChannelNorm(dim // 2),
            nn.GELU(),
            nn.ConvTranspose2d(dim // 2, dim // 4, 2, 2),
        ]
        dim = dim // 4
    elif factor == 2.0:
        layers = [nn.ConvTranspose2d(dim, dim // 2, 2, 2)]
        dim = dim // 2
    elif factor == 1.0:
        layers = []
    elif factor == 0.5:
        layers = [nn.MaxPool2d(2, 2)]
    else:
        raise ValueError(f"scale factor {factor}: expected 4, 2, 1 or 0.5")
    return nn.Sequential(
        *layers, NormedConv(dim, out_channels, 1), NormedConv(out_channels, out_channels, 3, padding=1)
    )


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        moved = features.movedim(1, -1)
        return F.layer_norm(moved, self.weight.shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class NormedConv(nn.Conv2d):
    """A convolution without bias, and a norm over its channels."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, padding: int = 0) -> None:
        super().__init__(channels, out_channels, kernel_size, padding=padding, bias=False)
        self.norm = ChannelNorm(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(super().forward(features))  # type: ignore[no-any-return]
