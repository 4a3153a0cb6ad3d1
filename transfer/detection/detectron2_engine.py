"""Detectors by detectron2: Faster, Mask and Cascade R-CNN as its ViTDet configs set them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from ...adapters import detectron2
from ...adapters.detectron2_format import quiet
from ...core.errors import ConfigError
from ...core.models.backbone import Backbone
from ...core.models.encoder import Encoder
from ...core.optional_imports import require
from ...core.training.recovery import Diverged
from .architecture import Architecture
from .engine import Target


class Detectron2Engine:
    """detectron2's GeneralizedRCNN on its ViT and pyramid, with the heads of its ViTDet configs."""

    mask_shift = 0.0

    def build(self, encoder: Backbone, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        if not isinstance(encoder, Encoder):
            raise ConfigError(
                "engine", "detectron2", "torchvision, which takes any architecture; detectron2's is a plain ViT"
            )
        with quiet():
            require("detectron2")
            return self._build(encoder, num_classes, architecture, drop_path)

    @staticmethod
    def _build(encoder: Encoder, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        from detectron2.modeling.meta_arch import GeneralizedRCNN

        backbone = detectron2.build_backbone(
            encoder,
            image_size=max(encoder.spec.image_size),
            window_size=architecture.window_size,
            out_channels=architecture.pyramid_channels,
            drop_path=drop_path,
            use_rel_pos=architecture.relative_positions,
            scales=architecture.scales(encoder.spec.patch_size),
        )
        strides = {name: shape.stride for name, shape in backbone.output_shape().items()}
        channels = encoder.spec.channels
        return cast(
            nn.Module,
            GeneralizedRCNN(
                backbone=backbone,
                proposal_generator=_region_proposals(strides, architecture),
                roi_heads=_roi_heads(strides, num_classes, architecture),
                pixel_mean=[0.0] * channels,  # images come normalised
                pixel_std=[1.0] * channels,
            ),
        )

    def losses(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        from detectron2.structures import BitMasks, Boxes, Instances
        from detectron2.utils.events import EventStorage

        inputs = []
        for image, target in zip(images, targets, strict=True):
            instances = Instances(tuple(image.shape[-2:]))
            instances.gt_boxes = Boxes(target["boxes"])
            instances.gt_classes = target["labels"]
            if "masks" in target:
                instances.gt_masks = BitMasks(target["masks"])
            inputs.append({"image": image, "instances": instances})
        try:
            with EventStorage(), quiet():  # its heads count into a storage
                return cast(dict[str, Tensor], model(inputs))
        except FloatingPointError as error:
            raise Diverged(
                "proposals that are not finite; the weights were left as they were. Lower the learning rate, or set clip_grad."
            ) from error

    def detect(self, model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
        with quiet():
            results = cast(Any, model).inference([{"image": image} for image in images], do_postprocess=False)
        found = []
        for result in results:
            one = {"boxes": result.pred_boxes.tensor, "scores": result.scores, "labels": result.pred_classes}
            if result.has("pred_masks"):
                one["masks"] = result.pred_masks[:, 0]
            found.append(one)
        return found


def _region_proposals(strides: Mapping[str, int], architecture: Architecture) -> nn.Module:
    """detectron2's RPN as ViTDet sets it: two convolutions, three shapes of anchors a level."""
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.proposal_generator import RPN, StandardRPNHead

    sizes = architecture.anchors(list(strides.values()))
    many = architecture.proposals
    return cast(
        nn.Module,
        RPN(
            in_features=list(strides),
            head=StandardRPNHead(in_channels=architecture.pyramid_channels, num_anchors=3, conv_dims=[-1, -1]),
            anchor_generator=DefaultAnchorGenerator(
                sizes=[[size] for size in sizes],
                aspect_ratios=[0.5, 1.0, 2.0],
                strides=list(strides.values()),
                offset=0.0,
            ),
            anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
            box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
            batch_size_per_image=architecture.region_samples,
            positive_fraction=0.5,
            pre_nms_topk=(2 * many, many),
            post_nms_topk=(many, many),
            nms_thresh=0.7,
        ),
    )


def _roi_heads(strides: Mapping[str, int], num_classes: int, architecture: Architecture) -> nn.Module:
    """detectron2's box and mask heads as ViTDet sets them, one box head or three in cascade."""
    from detectron2.layers import ShapeSpec
    from detectron2.modeling.box_regression import Box2BoxTransform
    from detectron2.modeling.matcher import Matcher
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.modeling.roi_heads import (
        CascadeROIHeads,
        FastRCNNConvFCHead,
        FastRCNNOutputLayers,
        MaskRCNNConvUpsampleHead,
        StandardROIHeads,
    )

    levels = list(strides)[:-1]
    width, channels = architecture.pyramid_channels, architecture.head_channels

    def pooler(size: int) -> Any:
        return ROIPooler(size, [1 / strides[level] for level in levels], sampling_ratio=0, pooler_type="ROIAlignV2")

    def box_head() -> Any:
        shape = ShapeSpec(channels=width, height=7, width=7)
        convolutions = [channels] * architecture.box_convs
        return FastRCNNConvFCHead(shape, conv_dims=convolutions, fc_dims=[architecture.fc_dim], conv_norm="LN")

    def box_predictor(weights: tuple[int, ...], *, for_all_classes: bool) -> Any:
        predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=architecture.fc_dim),
            box2box_transform=Box2BoxTransform(weights=weights),
            num_classes=num_classes,
            cls_agnostic_bbox_reg=for_all_classes,
            test_score_thresh=architecture.score_threshold,
            test_topk_per_image=architecture.max_detections,
        )
        # As the other engine's: detectron2's own begin at deviations of 0.01 and 0.001, and short runs end 2 AP50 lower.
        predictor.cls_score.reset_parameters()
        predictor.bbox_pred.reset_parameters()
        return predictor

    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "batch_size_per_image": architecture.box_samples,
        "positive_fraction": 0.25,
        "box_in_features": levels,
        "box_pooler": pooler(7),
    }
    if architecture.masks:
        settings |= {
            "mask_in_features": levels,
            "mask_pooler": pooler(14),
            "mask_head": MaskRCNNConvUpsampleHead(
                ShapeSpec(channels=width, width=14, height=14),
                num_classes=num_classes,
                conv_dims=[channels] * (architecture.mask_convs + 1),  # the last is the transposed convolution's
                conv_norm="LN",
            ),
        }
    if not architecture.head.startswith("cascade"):
        return cast(
            nn.Module,
            StandardROIHeads(
                proposal_matcher=Matcher([0.5], [0, 1], allow_low_quality_matches=False),
                box_head=box_head(),
                box_predictor=box_predictor((10, 10, 5, 5), for_all_classes=False),
                **settings,
            ),
        )
    return cast(
        nn.Module,
        CascadeROIHeads(
            proposal_matchers=[Matcher([least], [0, 1], allow_low_quality_matches=False) for least in (0.5, 0.6, 0.7)],
            box_heads=[box_head() for _ in range(3)],
            box_predictors=[
                box_predictor((place, place, side, side), for_all_classes=True)
                for place, side in ((10, 5), (20, 10), (30, 15))
            ],
            **settings,
        ),
    )
