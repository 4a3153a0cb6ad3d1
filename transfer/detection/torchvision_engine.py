"""Detectors by torchvision: Faster and Mask R-CNN on any backbone, a plain ViT with a simple feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from ...adapters import torchvision
from ...adapters.torchvision_detectors import Heads, faster_rcnn, mask_rcnn, pyramid_levels
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.models.timm_backbone import TimmBackbone
from .architecture import Architecture
from .engine import Target
from .timm_pyramid import timm_pyramid


class TorchvisionEngine:
    """torchvision's Faster and Mask R-CNN on maelift's plain backbone, without their own resizing and normalising."""

    mask_shift = 0.5  # it cuts them out by a RoIAlign that is not "aligned", to which a pixel is its upper left corner

    def build(self, encoder: Backbone, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        backbone = self.backbone(encoder, architecture, drop_path)
        heads = Heads(
            channels=architecture.head_channels,
            box_convs=architecture.box_convs,
            fc_dim=architecture.fc_dim,
            mask_convs=architecture.mask_convs,
            anchor_sizes=architecture.anchors(pyramid_levels(backbone)),
        )
        make = mask_rcnn if architecture.masks else faster_rcnn
        detector = make(
            backbone,
            num_classes + 1,  # with the background
            heads=heads,
            rpn_pre_nms_top_n_train=2 * architecture.proposals,
            rpn_pre_nms_top_n_test=architecture.proposals,
            rpn_post_nms_top_n_train=architecture.proposals,
            rpn_post_nms_top_n_test=architecture.proposals,
            rpn_batch_size_per_image=architecture.region_samples,
            box_batch_size_per_image=architecture.box_samples,
            box_score_thresh=architecture.score_threshold,
            box_detections_per_img=architecture.max_detections,
        )
        for part in (detector.rpn, detector.roi_heads):
            part.box_coder = PreciseBoxCoder(part.box_coder.weights)
        return cast(nn.Module, detector)

    def backbone(self, encoder: Backbone, architecture: Architecture, drop_path: float) -> Any:
        """The pyramid of maps under the detector."""
        if isinstance(encoder, TimmBackbone):
            return timm_pyramid(encoder, architecture, drop_path)
        encoder = cast(Encoder, encoder)
        return torchvision.build_backbone(
            encoder,
            image_size=encoder.spec.image_size,
            window_size=architecture.window_size,
            out_channels=architecture.pyramid_channels,
            scale_factors=architecture.scales(encoder.spec.patch_size),
            use_rel_pos=architecture.relative_positions,
            drop_path=drop_path,
        )

    def losses(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        full = [{**target, "labels": target["labels"] + 1} for target in targets]  # 0 is the background there
        return self._run(model, images, full)[1]

    def detect(self, model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
        found = self._run(model, images, None)[0]
        for one in found:
            one["labels"] = one["labels"] - 1
            if "masks" in one:
                one["masks"] = one["masks"][:, 0]
        return found

    def _run(
        self, model: nn.Module, images: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """``FasterRCNN.forward`` without its transform: the images are resized and normalised already."""
        from torchvision.models.detection.image_list import ImageList

        detector = cast(Any, model)
        size = (images.shape[-2], images.shape[-1])
        features = {name: level.float() for name, level in detector.backbone(images).items()}  # anchors take their type
        proposals, region_losses = detector.rpn(ImageList(images, [size] * len(images)), features, targets)
        found, box_losses = detector.roi_heads(features, proposals, [size] * len(images), targets)
        return found, {**region_losses, **box_losses}


class PreciseBoxCoder(BoxCoder):  # type: ignore[misc]
    """torchvision's, which would give boxes the type of what was predicted: bfloat16 has steps of 4 pixels at 1024."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        return cast(Tensor, super().decode_single(rel_codes.float(), boxes.float()))
