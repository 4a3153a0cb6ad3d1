"""Segmentors of our own modules: the plain ViT, or a model of timm, under a head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ...adapters.windowed_vit import PlainViT, load_weights
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.models.timm_backbone import TimmBackbone
from .architecture import Architecture
from .backbone_settings import plain_settings
from .heads import AUXILIARY_WEIGHT, UPerNet, build_head
from .logits import cross_entropy, resize_logits
from .timm_maps import timm_maps


class Network(nn.Module):
    """A backbone and a head, on images whose sides the patches or strides divide."""

    def __init__(self, encoder: Backbone, classes: Sequence[str], architecture: Architecture, drop_path: float) -> None:
        super().__init__()
        self.backbone: nn.Module
        if isinstance(encoder, TimmBackbone):
            self.backbone = timm_maps(encoder, architecture.head, drop_path)
        else:
            encoder = cast(Encoder, encoder)
            vit = PlainViT(**plain_settings(encoder, architecture, drop_path))
            load_weights(vit, encoder.state_dict())
            self.backbone = vit
        self.head = build_head(encoder, len(classes), architecture)

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        return resize_logits(self.head(images, self.backbone(images)), images.shape[-2:])

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy, the mean over the pixels that count; 0 where none does."""
        maps = self.backbone(images)
        loss = cross_entropy(self.head(images, maps), masks)
        if isinstance(self.head, UPerNet):
            loss = loss + AUXILIARY_WEIGHT * cross_entropy(self.head.auxiliary_logits(maps), masks)
        return loss
