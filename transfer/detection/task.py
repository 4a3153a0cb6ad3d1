"""Detection: images with boxes, and masks, from COCO JSON in, a trained detector out (ViTDet, Appendix A.2)."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...adapters.vitdet_sizes import usual_window
from ...core.data.coco_masks import Polygons, draw_mask
from ...core.data.dataset_format import hint
from ...core.data.detection import DetectionImages, Objects
from ...core.data.detection_reader import detection_parts
from ...core.data.labeled_dataset import Splits
from ...core.data.sampling import Sample, Uniforms
from ...core.data.transforms import to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.errors import ConfigError, DataError
from ...core.models.encoder import Encoder
from ...core.models.encoder_file import Provenance
from ...core.training.loader import Batch
from ..metrics import Scores
from ..predictions import Detections
from ..task import Task, TransferConfig
from ..visualize import Picture, draw_detections, side_by_side
from .metrics import Result, coco_influences, coco_results, coco_scores, write_detections
from .model import AT_ONCE, ENCODER_PREFIX, Architecture, Canvas, Detector, Engine, Head, Sizes, blank, resample

logger = logging.getLogger("maelift")

CACHE_BYTES = 2**29
"""Validation images are decoded once and kept when they take up no more than this."""
LEAST_SIDE = 1.0
"""Pixels of width and height that must be left of an object in a training crop."""
PICTURES = 4
"""Pictures of right and of wrong predictions, each."""
PICTURED = 100
"""Images that these are chosen from."""
SURE, OVERLAP = 0.5, 0.5
"""A picture is right when each object is found, and nothing else, with this score and this overlap or more."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig(Sizes, TransferConfig):
    """Fine-tune an encoder to find objects, with boxes and masks, or train the same architecture from nothing."""

    layout: Literal["auto", "coco", "yolo", "voc"] = "auto"
    """how boxes are written: COCO JSON, YOLO's text files or data.yaml, Pascal VOC's XML; auto: as found"""
    engine: Engine = "torchvision"
    """torchvision: Faster and Mask R-CNN, nothing to install; detectron2: those and Cascade R-CNN"""
    head: Literal["auto", "faster", "mask", "cascade"] = "auto"
    """faster: boxes; mask: masks too; cascade: three box heads, masks where the data has them; auto: mask, or faster"""
    window_size: int | None = None
    """patches a side of the attention windows of all but four blocks, 0 for none; null: near 14, none up to 16×16"""
    jitter: tuple[float, float]
    """smallest and largest size of a training image, drawn anew each time, as a multiple of what fits image_size"""
    flip: bool
    """mirror every second training image left to right, at random"""

    def __post_init__(self) -> None:
        TransferConfig.__post_init__(self)
        Sizes.__post_init__(self)
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ConfigError("jitter", list(self.jitter), "two factors with 0 < smallest <= largest")
        if self.engine == "torchvision" and self.head == "cascade":
            raise ConfigError("head", self.head, "faster or mask; torchvision has no cascade. Give engine=detectron2.")

    @classmethod
    def task(cls) -> type[DetectionTask]:
        return DetectionTask

    def architecture(self, encoder: Encoder, has_masks: bool) -> Architecture:
        """What stands on the encoder, for data with or without masks; raises ConfigError for masks that aren't there."""
        if self.head == "mask" and not has_masks:
            raise ConfigError("head", self.head, "faster, since not every object of the data has a segmentation")
        head: Head = "mask" if has_masks else "faster"
        if self.head == "cascade":
            head = "cascade_mask" if has_masks else "cascade"
        elif self.head == "faster":
            head = "faster"
        window = usual_window(encoder.spec.grid) if self.window_size is None else self.window_size
        sizes = {field.name: getattr(self, field.name) for field in fields(Sizes)}
        return Architecture(engine=self.engine, head=head, window_size=window, **sizes)


class DetectionTask(Task[DetectConfig, DetectionImages]):
    """Object detection with any of the detectors, judged by COCO's average precision of boxes, and of masks at the end.

    Crowds are not trained on, as neither library has regions that count for nothing; evaluation ignores them as COCO does.
    """

    name: ClassVar[str] = "detect"
    best_metric: ClassVar[str] = "val/AP"
    draws: ClassVar[int] = 4
    encoder_prefix: ClassVar[str] = ENCODER_PREFIX

    def __init__(self, config: DetectConfig, encoder: Encoder, splits: Splits[DetectionImages], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        self._kept: list[Canvas] | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """What stands on the encoder; raises ConfigError for masks that the training data has not."""
        return self.config.architecture(self.encoder, self.splits.train.has_masks)

    @classmethod
    def read_parts(cls, config: DetectConfig) -> Mapping[str, DetectionImages]:
        try:
            return detection_parts(config.data, config.layout)
        except DataError as error:
            raise DataError(f"{error}{hint(config.data, 'detect')}") from error

    def build_model(self) -> Detector:
        for split in ("train", "val"):
            images = self.splits.named(split)
            if not any((~objects.crowd).any() for objects in images.objects):
                raise DataError(
                    f"data={self.config.data}: none of the {len(images)} {split} images has an object (crowds don't "
                    "count). Annotate some, or give other val, labels or split_seed."
                )
        crowds = sum(int(objects.crowd.sum()) for objects in self.splits.train.objects)
        if crowds and self.ranks.is_main:
            logger.info("transfer detect: %d crowds of the training images are not trained on", crowds)
        return Detector(self.encoder, self.splits.train.classes, self.architecture, drop_path=self.config.drop_path)

    def sample(self, index: int, draws: Uniforms) -> Sample:
        images, spec = self.splits.train, self.encoder.spec
        pixels = to_array(images.images.open(index, self.encoder.preprocessing.reading), spec.channels)
        view = View.drawn(pixels.shape[1:], spec.image_size, self.config.jitter, draws[:3])
        mirrored = bool(self.config.flip and draws[3] < 0.5)
        canvas = blank(spec.image_size, self.encoder.preprocessing, pixels.dtype)
        height, width = view.filled
        canvas[:, :height, :width] = resample(pixels, view.box, view.filled, self.encoder.preprocessing)
        if mirrored:
            canvas[:, :, :width] = canvas[:, :, :width][:, :, ::-1].copy()
        return Sample(canvas, targets(images.objects[index], view, mirrored, masks=self.architecture.masks))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = cast(Mapping[str, Tensor], model(batch.pixels, batch.targets))
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Of boxes only: the masks' figures come at the end, as pasting masks takes long."""
        detector = cast(Detector, model)
        size = len(self.splits.val) * self.encoder.spec.channels * math.prod(self.encoder.spec.image_size)
        if self._kept is None and size <= CACHE_BYTES:
            self._kept = list(self._canvases(detector, self.splits.val))
        results = self._results(detector, self.splits.val, masks=False)
        metrics = coco_scores(
            self.splits.val.ground_truth(), results, class_names(self.splits.val), split="val"
        ).metrics
        return {f"val/{name}": value for name, value in metrics.items() if value is not None}

    def score(self, model: nn.Module, images: DetectionImages, split: str) -> Scores:
        """COCO's figures, of boxes and masks; a training run leaves what was found beside its model, for COCO's tools."""
        detector = cast(Detector, model)
        masks = detector.architecture.masks and images.has_masks
        results = self._results(detector, images, masks=masks)
        if self.config.evaluate is None:  # else the images may be others than those of the run in this folder
            write_detections(Path(self.config.out), split, results, masks=masks)
        return coco_scores(images.ground_truth(), results, class_names(images), split=split, masks=masks)

    def score_items(
        self, model: nn.Module, images: DetectionImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """Items are groups of images: each brings what average precision loses without it (delete-a-group jackknife)."""
        detector = cast(Detector, model)
        masks = detector.architecture.masks and images.has_masks
        results = self._results(detector, images, masks=masks)
        truth, names = images.ground_truth(), class_names(images)
        return coco_scores(truth, results, names, split=split, masks=masks), coco_influences(truth, results)

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        cast(Detector, model).save(path, provenance, self.splits.train.category_ids)

    def pictures(self, model: nn.Module, images: DetectionImages, split: str) -> list[Picture]:
        """Images on which all was found and nothing else, and others, beside what was annotated."""
        detector = cast(Detector, model)
        chosen: dict[bool, list[Picture]] = {True: [], False: []}
        for index in range(min(PICTURED, len(images))):
            image = images.images.open(index, detector.preprocessing.reading)
            (found,) = detector.predict([image])
            truth = annotated(images, index)
            right = agrees(found.above(SURE), truth)
            if len(chosen[right]) < PICTURES:
                drawn = [
                    ("predicted", draw_detections(image, found, least_score=SURE)),
                    ("annotated", draw_detections(image, truth, show_scores=False)),
                ]
                caption = (
                    f"{split}: {images.images.name(index)}: {len(found.above(SURE))} found, {len(truth)} annotated"
                )
                chosen[right].append(Picture.of(side_by_side(drawn), caption, right))
            if all(len(pictures) == PICTURES for pictures in chosen.values()):
                break
        return [*chosen[True], *chosen[False]]

    def _canvases(self, detector: Detector, images: DetectionImages) -> Iterator[Canvas]:
        for index in range(len(images)):
            image = images.images.open(index, detector.preprocessing.reading)
            yield detector.canvas(to_array(image, detector.spec.channels))

    def _results(self, detector: Detector, images: DetectionImages, *, masks: bool) -> list[Result]:
        """What a detector finds on all images, in COCO's results format."""
        results: list[Result] = []
        kept = self._kept if images is self.splits.val else None
        canvases = iter(kept) if kept is not None else self._canvases(detector, images)
        image_ids = iter(images.image_ids)
        while some := list(itertools.islice(canvases, AT_ONCE)):
            with autocast(self.ranks.device, self.config.precision):
                found = detector.detect(some, masks=masks)
            for one in found:
                results += coco_results(one, next(image_ids), images.category_ids)
        return results


def class_names(images: DetectionImages) -> dict[int, str]:
    """The name of each category id."""
    return dict(zip(images.category_ids, images.classes, strict=True))


@dataclass(frozen=True)
class View:
    """The part of an image that a training canvas shows.

    ``box`` (x1, y1, x2, y2) in pixels of the image; ``filled`` (height, width) of the canvas that it fills, from the upper
    left; ``scale`` (along x, along y) of the canvas to the image; ``canvas`` (height, width) in pixels.
    """

    box: tuple[float, float, float, float]
    filled: tuple[int, int]
    scale: tuple[float, float]
    canvas: tuple[int, int]

    @classmethod
    def drawn(
        cls, size: tuple[int, ...], canvas: tuple[int, int], jitter: tuple[float, float], draws: Uniforms
    ) -> View:
        """Large-scale jitter: the image is fitted into the canvas times a random factor, then cropped (Ghiasi et al. 2021).

        ``draws``: three in [0, 1), of the factor, uniform within ``jitter``, and of the crop's place in y and x.
        """
        height, width = size
        factor = min(canvas[0] / height, canvas[1] / width) * (jitter[0] + (jitter[1] - jitter[0]) * draws[0])
        scaled = max(1, round(height * factor)), max(1, round(width * factor))
        filled = min(canvas[0], scaled[0]), min(canvas[1], scaled[1])
        top, left = (
            int((whole - part + 1) * draw) for whole, part, draw in zip(scaled, filled, draws[1:], strict=True)
        )
        scale = scaled[1] / width, scaled[0] / height
        box = (
            left / scale[0],
            top / scale[1],
            min(width, (left + filled[1]) / scale[0]),
            min(height, (top + filled[0]) / scale[1]),
        )
        return cls(box, filled, scale, canvas)


def targets(objects: Objects, view: View, mirrored: bool, *, masks: bool) -> dict[str, NDArray[np.generic]]:
    """What a detector is to find in a view: ``boxes``, ``labels`` and ``masks`` of the canvas, without crowds.

    Boxes are cut to the view, with masks drawn anew around what is seen of the object; those of which no pixel's width is
    left are dropped.
    """
    height, width = view.filled
    scale, origin = np.tile(view.scale, 2), np.tile(view.box[:2], 2)
    boxes = ((objects.boxes - origin) * scale).clip(0, np.tile([width, height], 2))  # (n, 4), float64
    large = (boxes[:, 2:] - boxes[:, :2] >= LEAST_SIDE).all(axis=1)
    kept = np.flatnonzero(large & ~objects.crowd)
    boxes, target = boxes[kept], {}
    if masks:
        seen = np.zeros((len(kept), *view.canvas), dtype=bool)
        for number, index in enumerate(kept):
            seen[number, :height, :width] = seen_mask(objects, int(index), view)
        there = seen.any(axis=(1, 2))
        kept, seen = kept[there], seen[there]
        boxes = np.array([box_around(mask) for mask in seen], dtype=np.float64).reshape(-1, 4)
        if mirrored:
            seen[:, :, :width] = seen[:, :, :width][:, :, ::-1].copy()
        target["masks"] = seen
    if mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return {"boxes": boxes.astype(np.float32), "labels": objects.labels[kept], **target}


def seen_mask(objects: Objects, index: int, view: View) -> NDArray[np.bool_]:
    """The mask of an object within a view, (height, width) of what it fills; outlines are drawn at the view's scale."""
    segmentation = objects.segmentations[index]
    if segmentation is None:
        return np.zeros(view.filled, dtype=bool)
    if isinstance(segmentation, tuple):
        return draw_mask(moved(segmentation, view), view.filled)
    whole = draw_mask(segmentation, objects.size)
    rows, columns = (
        np.minimum(((np.arange(length) + 0.5) / scale + start).astype(np.int64), side - 1)
        for length, scale, start, side in zip(
            view.filled, view.scale[::-1], (view.box[1], view.box[0]), objects.size, strict=True
        )
    )
    seen: NDArray[np.bool_] = whole[np.ix_(rows, columns)]
    return seen


def moved(polygons: Polygons, view: View) -> Polygons:
    """Outlines in the coordinates of a view."""
    return tuple(
        ((polygon.reshape(-1, 2) - np.array(view.box[:2])) * np.array(view.scale)).reshape(-1) for polygon in polygons
    )


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box x1, y1, x2, y2 around a mask (H, W) that isn't empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def annotated(images: DetectionImages, index: int) -> Detections:
    """The annotated objects of an image, crowds left out, as if they had been found for certain."""
    objects = images.objects[index]
    objects = objects.subset(np.flatnonzero(~objects.crowd).tolist())
    return Detections(
        boxes=objects.boxes,
        scores=np.ones(len(objects), dtype=np.float32),
        labels=objects.labels,
        classes=images.classes,
        masks=objects.masks() if images.has_masks else None,
    )


def agrees(found: Detections, truth: Detections) -> bool:
    """Whether each true object is found once, and nothing else: the same class, boxes that overlap by half or more."""
    from scipy.optimize import linear_sum_assignment  # a second to import, for training in vain

    if len(found) != len(truth):
        return False
    if not len(truth):
        return True
    corners = np.maximum(found.boxes[:, None, :2], truth.boxes[None, :, :2])
    opposite = np.minimum(found.boxes[:, None, 2:], truth.boxes[None, :, 2:])
    shared = (opposite - corners).clip(0).prod(axis=2)  # (found, truth)
    areas = [(one.boxes[:, 2:] - one.boxes[:, :2]).prod(axis=1) for one in (found, truth)]
    overlap = shared / (areas[0][:, None] + areas[1][None] - shared)
    same = (overlap >= OVERLAP) & (found.labels[:, None] == truth.labels[None])
    return bool(same[linear_sum_assignment(same, maximize=True)].all())
