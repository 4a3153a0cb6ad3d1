"""Segmentors of our own modules: the plain ViT under a head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...adapters.windowed_vit import PlainViT, load_weights
from ...core.models.encoder import Encoder
from .architecture import Architecture, plain_settings
from .heads import AUXILIARY_WEIGHT, UPerNet, build_head
from .logits import cross_entropy, resize_logits


class Network(nn.Module):
    """The plain ViT and a head, on images whose sides the patches divide."""

    def __init__(self, encoder: Encoder, classes: Sequence[str], architecture: Architecture, drop_path: float) -> None:
        super().__init__()
        self.backbone = PlainViT(**plain_settings(encoder, architecture, drop_path))
        load_weights(self.backbone, encoder.state_dict())
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
