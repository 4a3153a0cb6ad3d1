"""The segmentor: an encoder under a linear, convolutional or UPerNet head, or mmseg's; and its model file."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...adapters.windowed_vit import PlainViT, pad
from ...core.data.images import stored_pixels
from ...core.data.segmentation import ignore_index
from ...core.errors import ConfigError, DataError
from ...core.models.backbone import Backbone
from ...core.models.build_backbone import build_backbone
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ...core.models.timm_backbone import TimmBackbone
from ..model_file import ModelFile, TrainedModel, write_model
from ..predictions import Segmentation
from .architecture import Architecture
from .backbone_settings import min_patches
from .inference import Inference
from .logits import resized_argmax
from .mmseg_engine import mmseg_logits, mmseg_loss, mmseg_network
from .sliding_window import batch_size_for, sliding_window_logits
from .torch_engine import Network

ENCODER_PREFIX = "network.backbone."
"""Prefix of the encoder's parameters in a segmentor of either engine, before timm's names."""


@dataclass(frozen=True, kw_only=True)
class StoredHead:
    """A segmentor without its encoder, as a model file describes it."""

    architecture: Architecture
    inference: Inference
    values: tuple[int, ...] = ()


class Segmentor(TrainedModel):
    """An encoder with a head that gives every pixel a class; normalised images (B, C, H, W) to logits (B, K, H, W).

    Images of sizes that the patches do not divide are padded with zeros at the right and bottom, and the logits cut back.
    ``encoder`` is copied. Raises ConfigError for settings that it doesn't fit.
    """

    fixed_size: tuple[int, int] | None = None
    """what smaller images are padded to, where only one size goes through the encoder"""

    def __init__(
        self,
        encoder: Backbone,
        classes: Sequence[str],
        architecture: Architecture,
        inference: Inference | None = None,
        *,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__(encoder, classes)
        self.architecture = architecture
        self.ignore_index = ignore_index(len(self.classes))
        self.inference = inference or Inference.usual(encoder.spec.image_size)
        self.network: Any
        if isinstance(encoder, Encoder):
            build = mmseg_network if architecture.engine == "mmseg" else Network
            self.network = build(encoder, self.classes, architecture, drop_path)
            self.divisor = cast(PlainViT, self.network.backbone).size_divisibility
            self.min_side = encoder.spec.patch_size * min_patches(encoder.spec, architecture)
        else:
            self._build_on_timm(cast(TimmBackbone, encoder), drop_path)

    def _build_on_timm(self, encoder: TimmBackbone, drop_path: float) -> None:
        if self.architecture.engine == "mmseg":
            raise ConfigError("engine", "mmseg", "torch, which takes any architecture; mmseg's is a plain ViT")
        self.network = Network(encoder, self.classes, self.architecture, drop_path)
        self.fixed_size = encoder.spec.image_size if encoder.fixed_size else None
        if self.fixed_size is not None and self.inference.mode == "whole":
            height, width = self.fixed_size
            expected = f"slide: timm's {encoder.spec.architecture} takes images of {height}×{width} pixels only"
            raise ConfigError("inference", "whole", expected)
        self.divisor = 1 if self.fixed_size else self.network.backbone.size_divisibility
        self.min_side = self.divisor

    def forward(self, images: Tensor, masks: Tensor | None = None) -> Tensor:
        """Logits (B, K, H, W); with ``masks`` (B, H, W) int64, the loss on them, ``ignore_index`` left out."""
        height, width = images.shape[-2:]
        rows, columns = self.fixed_size or (self.min_side, self.min_side)
        enough = F.pad(images, (0, max(0, columns - width), 0, max(0, rows - height)))
        padded = pad(enough, self.divisor)
        of_mmseg = self.architecture.engine == "mmseg"
        if masks is None:
            logits = mmseg_logits(self.network, padded) if of_mmseg else self.network.logits(padded)
            return cast(Tensor, logits[:, :, :height, :width])
        bottom, right = padded.shape[-2] - height, padded.shape[-1] - width
        due = F.pad(masks, (0, right, 0, bottom), value=self.ignore_index)
        return mmseg_loss(self.network, padded, due) if of_mmseg else cast(Tensor, self.network.loss(padded, due))

    def infer(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W) of normalised images of any size, at once or in windows as ``inference`` says."""
        if self.inference.mode == "whole":
            return cast(Tensor, self(images))
        return sliding_window_logits(self, images, self.inference.crop, self.inference.stride)

    @torch.inference_mode()
    def segment(self, images: Sequence[NDArray[np.generic]]) -> list[NDArray[np.integer[Any]]]:
        """The most probable class of every pixel, (H, W) each, of images (C, H, W) of stored values and any sizes.

        uint8 for up to 256 classes, else int64. The module should be in eval mode.
        """
        alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            alike[self._checked_shape(image)].append(number)
        device = next(self.parameters()).device
        found: dict[int, NDArray[np.integer[Any]]] = {}
        for (_, height, width), numbers in alike.items():
            size = self.inference.working_size((height, width))
            together = batch_size_for(max(height * width, math.prod(size)))
            for start in range(0, len(numbers), together):
                chosen = numbers[start : start + together]
                pixels = torch.from_numpy(np.stack([images[number] for number in chosen])).to(device)
                logits = self.infer(self._resized(self.preprocessing.normalize(pixels), size)).float()
                for number, one in zip(chosen, logits, strict=True):
                    found[number] = resized_argmax(one, (height, width)).cpu().numpy()
        return [found[number] for number in range(len(images))]

    def predict(self, images: Sequence[str | Path | Image.Image | NDArray[np.generic]]) -> list[Segmentation]:
        """A class for every pixel of each image, at the image's own size.

        ``images`` are paths, PIL images, or arrays (H, W) or (H, W, C) of stored values. Raises DataError for one that
        can't be read, and for arrays of other channels than an encoder of neither 1 nor 3 takes.
        """
        was_training = self.training
        self.eval()
        try:
            form = self.preprocessing.reading
            return [
                Segmentation(self.segment([stored_pixels(image, self.spec.channels, form)])[0], self.classes)
                for image in images
            ]
        finally:
            self.train(was_training)

    def save(self, path: Path, provenance: Provenance, values: Sequence[int] = ()) -> None:
        """Write the model file; ``values`` are what stands for the classes in the masks that it was trained on."""
        write_model(
            path,
            self,
            task="segment",
            head={
                "architecture": asdict(self.architecture),
                "inference": asdict(self.inference),
                "values": list(values),
            },
            provenance=provenance,
        )

    def _checked_shape(self, image: NDArray[np.generic]) -> tuple[int, int, int]:
        if image.ndim != 3 or image.shape[0] != self.spec.channels or 0 in image.shape:
            raise DataError(f"an image of shape {image.shape}: expected ({self.spec.channels}, height, width).")
        return image.shape[0], image.shape[1], image.shape[2]

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.shape[-2:] == size:
            return images
        mode = {"bilinear": "bilinear", "nearest": "nearest-exact"}.get(self.preprocessing.interpolation, "bicubic")
        return F.interpolate(images, size=size, mode=mode, antialias=mode != "nearest-exact")


def load(file: ModelFile) -> Segmentor:
    """The segmentor that a model file holds, in eval mode; raises CheckpointError for tensors that don't fit it."""
    head = file.head_as(StoredHead)
    file.check_one_each(head.values, "values")
    encoder = build_backbone(file.spec, preprocessing=file.preprocessing)
    return file.load_into(Segmentor(encoder, file.classes, head.architecture, head.inference))
