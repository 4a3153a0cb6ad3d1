"""What a library must offer to build, train and run detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from ...core.models.backbone import Backbone
from .architecture import Architecture

Target = Mapping[str, Tensor]


class DetectorEngine(Protocol):
    """What a library must be able to do: build a detector, and run it on normalised images (B, C, H, W)."""

    mask_shift: float
    """pixels by which the masks that it trains on lie too far to the left and up, and so those that it finds"""

    def build(self, encoder: Backbone, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        """The library's own module, the encoder's weights in it."""
        ...

    def losses(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of a training step by name; their sum is what is minimised."""
        ...

    def detect(self, model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
        """What is on each image: boxes, scores, labels, and masks on a grid over each box."""
        ...
