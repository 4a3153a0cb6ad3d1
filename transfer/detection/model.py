"""The detector: an encoder, a simple feature pyramid (ViTDet, Sec. 3) and R-CNN heads; and its model file.

Two engines build and train them, torchvision and detectron2; what goes in and comes out is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...adapters.vitdet_sizes import check_window
from ...core.data.images import stored_pixels
from ...core.errors import MaeliftError
from ...core.models.backbone import Backbone
from ...core.models.build_backbone import build_backbone
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ..model_file import ModelFile, TrainedModel, write_model
from ..predictions import Detections
from .architecture import Architecture
from .canvas import Canvas, Pixels, paste_masks
from .detectron2_engine import Detectron2Engine
from .engine import DetectorEngine, Target
from .torchvision_engine import TorchvisionEngine

ENCODER_PREFIX = "model.backbone.net."
"""Prefix of the encoder's parameters, in both engines."""
MAX_BATCH = 16
"""Images that go through a detector together when it predicts."""


@dataclass(frozen=True)
class StoredHead:
    """A detector without its encoder, as a model file describes it."""

    architecture: Architecture
    category_ids: tuple[int, ...] = ()


class Detector(TrainedModel):
    """An encoder, a pyramid and a detector's heads, for images of the encoder's size, the canvas.

    ``model`` is torchvision's FasterRCNN or MaskRCNN, or detectron2's GeneralizedRCNN, with the parameters' names there.
    Raises ConfigError for an architecture that the encoder's patches and image size don't fit.
    """

    def __init__(
        self, encoder: Backbone, classes: Sequence[str], architecture: Architecture, *, drop_path: float = 0.0
    ) -> None:
        super().__init__(encoder, classes)
        self.architecture = architecture
        if isinstance(encoder, Encoder):
            check_window(architecture.window_size, encoder.spec.image_size, encoder.spec.patch_size)
        self.engine = ENGINES[architecture.engine]
        self.model = self.engine.build(encoder, len(self.classes), architecture, drop_path)

    def forward(self, pixels: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Stored pixel values (B, C, H, W) to losses in training, else to what was found on each.

        ``targets``, one an image: boxes (n, 4) float32, x1, y1, x2, y2 in pixels; labels (n,) int64 from 0; with a mask
        head masks (n, H, W) bool. n may be 0. Predictions, by descending score: boxes, scores (n,), labels, and masks
        (n, 28, 28), the probability on a grid over each box.
        """
        images = self.preprocessing.normalize(pixels)
        if not self.training:
            return self.engine.detect(self.model, images)
        if targets is None or len(targets) != len(images):
            raise MaeliftError(
                f"{len(images)} training images with {len(targets or ())} targets: expected one an image."
            )
        return self.engine.losses(self.model, images, targets)

    def canvas(self, image: Pixels) -> Canvas:
        """An image (C, H, W) fitted into this detector's."""
        return Canvas.of(image, self.spec.image_size, self.preprocessing)

    @torch.no_grad()
    def detect(self, canvases: Sequence[Canvas], *, masks: bool = True) -> list[Detections]:
        """The objects on fitted images, in pixels of the original images; without ``masks`` boxes only."""
        device = next(self.parameters()).device
        pixels = torch.from_numpy(np.stack([canvas.pixels for canvas in canvases])).to(device)
        return [self._in_image(found, canvas, masks) for found, canvas in zip(self(pixels), canvases, strict=True)]

    def predict(
        self, images: Iterable[str | Path | Image.Image | Pixels], *, score_threshold: float | None = None
    ) -> list[Detections]:
        """The objects on images of any size: paths, PIL images, or arrays (H, W) or (H, W, C) of stored values.

        They are resized to the detector's size in proportion; boxes and masks are in pixels of the image as given.
        ``score_threshold``: the smallest score reported; None: the one that the detector was trained with. Raises
        DataError for an image that can't be read or has other channels.
        """
        was_training = self.training
        self.eval()
        results: list[Detections] = []
        waiting: list[Canvas] = []
        try:
            for image in images:
                waiting.append(self.canvas(stored_pixels(image, self.spec.channels, self.preprocessing.reading)))
                if len(waiting) == MAX_BATCH:
                    results += self.detect(waiting)
                    waiting = []
            if waiting:
                results += self.detect(waiting)
        finally:
            self.train(was_training)
        return results if score_threshold is None else [found.above(score_threshold) for found in results]

    def _in_image(self, found: Target, canvas: Canvas, with_masks: bool) -> Detections:
        height, width = canvas.size
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = (found["boxes"].float().cpu() / torch.tensor(canvas.scale).repeat(2)).clamp(min=0)
        inside = torch.minimum(boxes, limit)
        kept = ((inside[:, 2:] - inside[:, :2]) > 0).all(dim=1)  # not entirely in the padding
        masks = None
        if with_masks and "masks" in found:
            shift = self.engine.mask_shift / torch.tensor(canvas.scale).repeat(2)
            masks = paste_masks(found["masks"].float().cpu()[kept], boxes[kept] + shift, canvas.size)
        return Detections(
            boxes=inside[kept].numpy(),
            scores=found["scores"].float().cpu()[kept].numpy(),
            labels=found["labels"].cpu()[kept].numpy(),
            classes=self.classes,
            masks=masks,
        )

    def save(self, path: Path, provenance: Provenance, category_ids: Sequence[int] = ()) -> None:
        """Write the model file; ``category_ids`` are the classes' ids in the COCO JSON that it was trained on."""
        write_model(
            path,
            self,
            task="detect",
            head={"architecture": asdict(self.architecture), "category_ids": list(category_ids)},
            provenance=provenance,
        )


def load(file: ModelFile) -> Detector:
    """The detector that a model file holds, in eval mode; raises CheckpointError for tensors that don't fit it."""
    head = file.head_as(StoredHead)
    file.check_one_each(head.category_ids, "category_ids")
    encoder = build_backbone(file.spec, preprocessing=file.preprocessing)
    return file.load_into(Detector(encoder, file.classes, head.architecture))


ENGINES: Mapping[str, DetectorEngine] = {"torchvision": TorchvisionEngine(), "detectron2": Detectron2Engine()}
