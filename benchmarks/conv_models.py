"""A detector and a segmentor on a small ResNet in place of the ViT: what an encoder must beat on dense tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import timm
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from ..adapters.simple_feature_pyramid import ChannelNorm
from ..adapters.windowed_vit import pad
from ..core.data.segmentation import ignore_index
from ..core.models.backbone import Backbone
from ..core.models.encoder import Encoder
from ..core.models.encoder_file import Provenance
from ..core.models.encoder_spec import EncoderSpec
from ..core.models.without_values import without_values
from ..transfer.detection import model as detection
from ..transfer.detection.architecture import Architecture as DetectorArchitecture
from ..transfer.detection.torchvision_engine import TorchvisionEngine
from ..transfer.model_file import TrainedModel, read_model, write_model
from ..transfer.segmentation import model as segmentation
from ..transfer.segmentation.architecture import Architecture as SegmentorArchitecture
from ..transfer.segmentation.inference import Inference
from ..transfer.segmentation.logits import cross_entropy, resize_logits
from .baseline_model import CONVNET, widths

STRIDES = (4, 8, 16, 32)
"""Strides of the ResNet's stages, in pixels."""
PYRAMID_CHANNELS = 64
"""Channels of the pyramid under a segmentor."""
DETECT, SEGMENT = "detect_cnn", "segment_cnn"
"""What model files of these are called: no ``maelift`` command builds them."""


class ConvPyramid(nn.Module):
    """A ResNet of timm and torchvision's feature pyramid (Lin et al. 2017): ``levels`` maps from the ``finest`` stride on.

    It has what torchvision's detectors ask of maelift's pyramids: strides, names and channels of its levels.
    """

    def __init__(
        self, spec: EncoderSpec, finest: int, levels: int, out_channels: int, *, top_pool: bool = True
    ) -> None:
        super().__init__()
        first = STRIDES.index(finest)
        self.strides, self.out_channels, self.top_pool = STRIDES[first : first + levels], out_channels, top_pool
        self.transform_settings: dict[str, Any] = {}
        shape = {"in_chans": spec.channels, **widths(spec)}
        self.body = timm.create_model(CONVNET, features_only=True, out_indices=range(first + 1, 5), **shape)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels)
        self.fpn.layer_blocks[levels:].requires_grad_(False)  # coarser maps are only added to those that are used

    size_divisibility = STRIDES[-1]

    @property
    def level_names(self) -> list[str]:
        """The names of the levels that boxes are pooled from."""
        return [str(number) for number in range(len(self.strides))]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, H, W) to maps (B, out_channels, H / stride, W / stride) by level."""
        maps = self.body(pad(images, self.size_divisibility))
        found = self.fpn({str(number): level for number, level in enumerate(maps)})
        levels = {name: found[name] for name in self.level_names}
        if self.top_pool:
            levels["pool"] = F.max_pool2d(levels[self.level_names[-1]], kernel_size=1, stride=2)
        return levels


class _Engine(TorchvisionEngine):
    """torchvision's detectors on the ResNet, with as many levels as the ViT's pyramid has."""

    def backbone(self, encoder: Backbone, architecture: DetectorArchitecture, drop_path: float) -> nn.Module:
        spec = cast(EncoderSpec, encoder.spec)
        scales = architecture.scales(spec.patch_size)
        finest = 2 ** round(math.log2(spec.patch_size / scales[0]))
        finest = min(max(finest, STRIDES[0]), STRIDES[len(STRIDES) - len(scales)])
        return ConvPyramid(spec, finest, len(scales), architecture.pyramid_channels)


class ConvDetector(detection.Detector):
    """Faster or Mask R-CNN on the ResNet, with the heads of the ViT's detector."""

    def __init__(self, encoder: Encoder, classes: Sequence[str], architecture: DetectorArchitecture) -> None:
        TrainedModel.__init__(self, encoder, classes)
        self.architecture = replace(architecture, engine="torchvision", head="mask" if architecture.masks else "faster")
        self.engine = _Engine()
        self.model = self.engine.build(encoder, len(self.classes), self.architecture, 0.0)

    def save(self, path: Path, provenance: Provenance, category_ids: Sequence[int] = ()) -> None:
        """Write the model file."""
        head = {"architecture": asdict(self.architecture), "category_ids": list(category_ids)}
        write_model(path, self, task=DETECT, head=head, provenance=provenance)


class _SegmentorNetwork(nn.Module):
    """The pyramid's levels brought to the finest and added, and two convolutions (Kirillov et al. 2019, Sec. 3.1, in small)."""

    def __init__(self, spec: EncoderSpec, num_classes: int) -> None:
        super().__init__()
        self.backbone = ConvPyramid(spec, STRIDES[0], len(STRIDES), PYRAMID_CHANNELS, top_pool=False)
        mixing = nn.Conv2d(PYRAMID_CHANNELS, PYRAMID_CHANNELS, 3, padding=1)
        self.head = nn.Sequential(
            mixing, ChannelNorm(PYRAMID_CHANNELS), nn.ReLU(), nn.Conv2d(PYRAMID_CHANNELS, num_classes, 1)
        )

    def logits(self, images: Tensor) -> Tensor:
        """Logits (B, K, H, W)."""
        return resize_logits(self._maps(images), images.shape[-2:])

    def loss(self, images: Tensor, masks: Tensor) -> Tensor:
        """Cross-entropy, the mean over the pixels that count."""
        return cross_entropy(self._maps(images), masks)

    def _maps(self, images: Tensor) -> Tensor:
        finest, *others = self.backbone(images).values()
        size = finest.shape[-2:]
        added = finest + sum(F.interpolate(level, size=size, mode="bilinear") for level in others)
        return cast(Tensor, self.head(added))


class ConvSegmentor(segmentation.Segmentor):
    """A segmentor of the ResNet with a feature pyramid."""

    def __init__(
        self, encoder: Encoder, classes: Sequence[str], architecture: SegmentorArchitecture, inference: Inference
    ) -> None:
        TrainedModel.__init__(self, encoder, classes)
        self.architecture, self.inference = replace(architecture, engine="torch"), inference
        self.ignore_index = ignore_index(len(self.classes))
        self.network = _SegmentorNetwork(encoder.spec, len(self.classes))
        self.divisor, self.min_side = ConvPyramid.size_divisibility, ConvPyramid.size_divisibility

    def save(self, path: Path, provenance: Provenance, values: Sequence[int] = ()) -> None:
        """Write the model file."""
        head = {"architecture": asdict(self.architecture), "inference": asdict(self.inference), "values": list(values)}
        write_model(path, self, task=SEGMENT, head=head, provenance=provenance)


def load_conv_model(path: Path) -> ConvDetector | ConvSegmentor:
    """The model of a file that one of these wrote, in eval mode."""
    file = read_model(path)
    with without_values():
        spec = file.plain_spec("the small ResNet of a suite")
        encoder = Encoder(spec, preprocessing=file.preprocessing)  # its shape alone is of use
    if file.task == DETECT:
        architecture = file.head_as(detection.StoredHead).architecture
        return file.load_into(ConvDetector(encoder, file.classes, architecture))
    head = file.head_as(segmentation.StoredHead)
    return file.load_into(ConvSegmentor(encoder, file.classes, head.architecture, head.inference))
