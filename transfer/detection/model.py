"""Detectors: an encoder under ViTDet's simple feature pyramid, with Faster, Mask or Cascade R-CNN's heads (ViTDet, Sec. 3).

Two engines build and train them, torchvision and detectron2; what goes in and comes out is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from ...adapters import detectron2, torchvision
from ...adapters.detectron2_format import quiet
from ...adapters.simple_feature_pyramid import pyramid_scales
from ...adapters.torchvision_detectors import Heads, faster_rcnn, mask_rcnn, pyramid_levels
from ...adapters.vitdet_sizes import check_window
from ...core.data.images import stored_pixels
from ...core.errors import ConfigError, MaeliftError
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ...core.models.preprocessing import Preprocessing
from ...core.optional_imports import require
from ...core.training.recovery import Diverged
from ..model_file import ModelFile, write_model
from ..predictions import Detections

ENCODER_PREFIX = "model.backbone.net."
"""What the names of the encoder's parameters begin with, in both engines."""
SCALES = (4.0, 2.0, 1.0, 0.5)
"""What the pyramid's levels may multiply the resolution of the patches by (ViTDet, Sec. 3)."""
WIDEST, MOST_REGIONS, MOST_CONVS = 65536, 10**6, 256
"""Channels of a layer, regions of an image and convolutions of a head at most: far beyond what any detector has."""
AT_ONCE = 16
"""Images that go through a detector together when it predicts."""

Engine = Literal["torchvision", "detectron2"]
Head = Literal["faster", "mask", "cascade", "cascade_mask"]
Target = Mapping[str, Tensor]
Pixels = NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the parts on the encoder are. The defaults are ViTDet's (Appendix A.2); small images ask for less."""

    relative_positions: bool = True
    """whether attention learns relative positions, which begin at zero"""
    pyramid_channels: int = 256
    """channels of every level of the pyramid"""
    pyramid_scales: tuple[float, ...] | None = None
    """the levels' resolutions as multiples of the patches', of 4, 2, 1 and 0.5, as far as the patch allows; null: all"""
    head_channels: int = 256
    """channels of the convolutions in the box and mask heads"""
    box_convs: int = 4
    """convolutions in a box head"""
    fc_dim: int = 1024
    """width of the linear layer in a box head"""
    mask_convs: int = 4
    """convolutions in the mask head"""
    anchor_scale: float = 8.0
    """side of the anchors in strides of their level"""
    anchor_sizes: tuple[float, ...] | None = None
    """the same in pixels of image_size, one a level and one for the level above; null: from anchor_scale"""
    proposals: int = 1000
    """regions an image that go on to the box head"""
    region_samples: int = 256
    """anchors an image that the loss of the region proposals is taken on"""
    box_samples: int = 512
    """proposals an image that the loss of the boxes is taken on"""
    score_threshold: float = 0.05
    """smallest score of an object that is told of at all"""
    max_detections: int = 100
    """objects that are found in an image at most"""

    def __post_init__(self) -> None:
        for key in ("pyramid_channels", "head_channels", "fc_dim"):
            if not 1 <= getattr(self, key) <= WIDEST:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {WIDEST}")
        for key in ("proposals", "region_samples", "box_samples", "max_detections"):
            if not 1 <= getattr(self, key) <= MOST_REGIONS:
                raise ConfigError(key, getattr(self, key), f"a whole number of at least 1, at most {MOST_REGIONS}")
        for key in ("box_convs", "mask_convs"):
            if not 0 <= getattr(self, key) <= MOST_CONVS:
                raise ConfigError(key, getattr(self, key), f"a whole number, 0 or more, at most {MOST_CONVS}")
        if not 0 <= self.score_threshold < 1:
            raise ConfigError("score_threshold", self.score_threshold, "a number from 0 to below 1")
        scales = self.pyramid_scales
        if scales is not None and scales not in [SCALES[i:j] for i in range(4) for j in range(i + 1, 5)]:
            raise ConfigError("pyramid_scales", list(scales), f"neighbours of {list(SCALES)}, in this order")
        if self.anchor_scale <= 0:
            raise ConfigError("anchor_scale", self.anchor_scale, "a number above 0")
        if self.anchor_sizes is not None and not (self.anchor_sizes and min(self.anchor_sizes) > 0):
            raise ConfigError("anchor_sizes", list(self.anchor_sizes), "numbers of pixels above 0")

    def scales(self, patch_size: int) -> tuple[float, ...]:
        """The pyramid's scales for patches of this size, finest first; raises ConfigError when none is left."""
        possible = pyramid_scales(patch_size)
        scales = tuple(scale for scale in possible if self.pyramid_scales is None or scale in self.pyramid_scales)
        if not scales:
            raise ConfigError(
                "pyramid_scales",
                list(self.pyramid_scales or ()),
                f"some of {list(possible)}, by which patches of {patch_size} pixels give whole strides",
            )
        return scales

    def anchors(self, strides: Sequence[int]) -> tuple[float, ...]:
        """The side of each level's anchors in pixels, for the levels of these strides; raises ConfigError."""
        if self.anchor_sizes is None:
            return tuple(self.anchor_scale * stride for stride in strides)
        if len(self.anchor_sizes) != len(strides):
            expected = f"{len(strides)} sizes, one a level of the pyramid: their strides are {list(strides)}"
            raise ConfigError("anchor_sizes", list(self.anchor_sizes), expected)
        return self.anchor_sizes


@dataclass(frozen=True, kw_only=True)
class Architecture(Sizes):
    """What stands on the encoder.

    ``head``: faster finds boxes, mask boxes and masks; cascade and cascade_mask do so with three box heads in a row, in
    detectron2 only. ``window_size``: patches a side of the attention windows of all but four blocks, 0 for none.
    """

    engine: Engine = "torchvision"
    head: Head = "mask"
    window_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "torchvision" and self.head.startswith("cascade"):
            raise ConfigError("head", self.head, "faster or mask; torchvision has no cascade. Give engine=detectron2.")

    @property
    def masks(self) -> bool:
        """Whether there is a mask head."""
        return self.head in ("mask", "cascade_mask")


@dataclass(frozen=True)
class _Stored:
    """What a model file says of a detector beside its encoder."""

    architecture: Architecture
    category_ids: tuple[int, ...] = ()


class Detector(nn.Module):
    """An encoder, a pyramid and a detector's heads, for images of the encoder's size, the canvas.

    ``model`` is torchvision's FasterRCNN or MaskRCNN, or detectron2's GeneralizedRCNN, with the parameters' names there.
    Raises ConfigError for an architecture that the encoder's patches and image size don't fit.
    """

    def __init__(
        self, encoder: Encoder, classes: Sequence[str], architecture: Architecture, *, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.spec, self.preprocessing = encoder.spec, encoder.preprocessing
        self.classes, self.architecture = tuple(classes), architecture
        check_window(architecture.window_size, encoder.spec.image_size, encoder.spec.patch_size)
        self.engine = ENGINES[architecture.engine]
        self.model = self.engine.build(encoder, len(self.classes), architecture, drop_path)

    def forward(self, pixels: Tensor, targets: Sequence[Target] | None = None) -> Any:
        """Stored pixel values (B, C, H, W) to losses in training, else to what was found on each.

        ``targets``, one an image: boxes (n, 4) float32, x1, y1, x2, y2 in pixels; labels (n,) int64 from 0; with a mask
        head masks (n, H, W) bool. n may be 0. What is found, the surest first: boxes, scores (n,), labels, and masks
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
        """What is on images that were fitted, in the pixels of the images as they were; without ``masks`` boxes only."""
        device = next(self.parameters()).device
        pixels = torch.from_numpy(np.stack([canvas.pixels for canvas in canvases])).to(device)
        return [self._in_image(found, canvas, masks) for found, canvas in zip(self(pixels), canvases, strict=True)]

    def predict(
        self, images: Iterable[str | Path | Image.Image | Pixels], *, score_threshold: float | None = None
    ) -> list[Detections]:
        """What is on images of any size: paths, PIL images, or arrays (H, W) or (H, W, C) of stored values.

        They are resized to the detector's size in proportion; boxes and masks are in pixels of the image as given.
        ``score_threshold``: the smallest score told of; None: the one that the detector was trained with. Raises
        DataError for an image that can't be read or has other channels.
        """
        was_training = self.training
        self.eval()
        results: list[Detections] = []
        waiting: list[Canvas] = []
        try:
            for image in images:
                waiting.append(self.canvas(stored_pixels(image, self.spec.channels, self.preprocessing.reading)))
                if len(waiting) == AT_ONCE:
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
        kept = ((inside[:, 2:] - inside[:, :2]) > 0).all(dim=1)  # not wholly in the padding
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
    """The detector that a model file holds, set to judge; raises CheckpointError for tensors that don't fit it."""
    head = file.head_as(_Stored)
    file.check_one_each(head.category_ids, "category_ids")
    encoder = Encoder(file.spec, preprocessing=file.preprocessing)
    return file.fill(Detector(encoder, file.classes, head.architecture))


@dataclass(frozen=True, eq=False)
class Canvas:
    """An image fitted into a fixed size, its longer side first, in proportion; the rest, right and below, is the mean.

    ``pixels`` (C, H, W) of stored values; ``size`` (height, width) of the image as it was; ``scale`` (along x, along y):
    what its coordinates are multiplied by.
    """

    pixels: Pixels
    size: tuple[int, int]
    scale: tuple[float, float]

    @classmethod
    def of(cls, image: Pixels, canvas: tuple[int, int], preprocessing: Preprocessing) -> Canvas:
        height, width = image.shape[1:]
        factor = min(canvas[0] / height, canvas[1] / width)
        fitted = (
            min(canvas[0], max(1, round(height * factor))),
            min(canvas[1], max(1, round(width * factor))),
        )
        pixels = blank(canvas, preprocessing, image.dtype)
        pixels[:, : fitted[0], : fitted[1]] = resample(image, (0, 0, width, height), fitted, preprocessing)
        return cls(pixels, (height, width), (fitted[1] / width, fitted[0] / height))


def blank(canvas: tuple[int, int], preprocessing: Preprocessing, dtype: np.dtype[Any]) -> Pixels:
    """An empty canvas (C, H, W): the mean of every channel, which the encoder sees as zero."""
    mean = np.array(preprocessing.pixel_mean)
    values = np.rint(mean) if np.issubdtype(dtype, np.integer) else mean
    pixels: Pixels = np.broadcast_to(values.astype(dtype)[:, None, None], (len(mean), *canvas)).copy()
    return pixels


def resample(
    image: Pixels, box: tuple[float, float, float, float], size: tuple[int, int], preprocessing: Preprocessing
) -> Pixels:
    """The part of an image (C, H, W) within ``box`` (x1, y1, x2, y2, pixels) at another size (height, width)."""
    whole = (0, 0, image.shape[2], image.shape[1])
    if box == whole and size == image.shape[1:]:
        return image
    method = Image.Resampling[preprocessing.interpolation.upper()]
    planes = [
        np.asarray(Image.fromarray(plane).resize((size[1], size[0]), method, box=box))
        for plane in (image if image.dtype == np.uint8 else image.astype(np.float32))
    ]
    return np.stack(planes).astype(image.dtype)


def paste_masks(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Masks (n, M, M) of probabilities over boxes (n, 4) to masks of the image, (n, H, W) bool, where they are at least 0.5.

    Each pixel whose middle is in the box is looked up there, between the cells; torchvision's own pasting rounds boxes to
    whole pixels, which small objects don't bear.
    """
    height, width = size
    masks = np.zeros((len(grids), height, width), dtype=bool)
    for number, (grid, box) in enumerate(zip(grids, boxes.tolist(), strict=True)):
        x1, y1 = (max(0, math.ceil(side - 0.5)) for side in box[:2])  # the first pixel whose middle is inside
        x2, y2 = (min(most, math.floor(side + 0.5)) for side, most in zip(box[2:], (width, height), strict=True))
        if x2 <= x1 or y2 <= y1:
            continue
        across = (torch.arange(x1, x2) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
        down = (torch.arange(y1, y2) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)  # (h, w, 2)
        values = F.grid_sample(grid[None, None], places[None], padding_mode="border", align_corners=False)
        masks[number, y1:y2, x1:x2] = (values[0, 0] >= 0.5).numpy()
    return masks


class DetectorEngine(Protocol):
    """What a library must be able to do: build a detector, and run it on normalised images (B, C, H, W)."""

    mask_shift: float
    """pixels by which the masks that it trains on lie too far to the left and up, and so those that it finds"""

    def build(self, encoder: Encoder, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        """The library's own module, the encoder's weights in it."""
        ...

    def losses(self, model: nn.Module, images: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of a training step by name; their sum is what is minimised."""
        ...

    def detect(self, model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
        """What is on each image: boxes, scores, labels, and masks on a grid over each box."""
        ...


class TorchvisionEngine:
    """torchvision's Faster and Mask R-CNN on maelift's plain backbone, without their own resizing and normalising."""

    mask_shift = 0.5  # it cuts them out by a RoIAlign that is not "aligned", to which a pixel is its upper left corner

    def build(self, encoder: Encoder, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
        backbone = torchvision.build_backbone(
            encoder,
            image_size=encoder.spec.image_size,
            window_size=architecture.window_size,
            out_channels=architecture.pyramid_channels,
            scale_factors=architecture.scales(encoder.spec.patch_size),
            use_rel_pos=architecture.relative_positions,
            drop_path=drop_path,
        )
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


class Detectron2Engine:
    """detectron2's GeneralizedRCNN on its ViT and pyramid, with the heads of its ViTDet configs."""

    mask_shift = 0.0

    def build(self, encoder: Encoder, num_classes: int, architecture: Architecture, drop_path: float) -> nn.Module:
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


ENGINES: Mapping[str, DetectorEngine] = {"torchvision": TorchvisionEngine(), "detectron2": Detectron2Engine()}


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
