"""Detection as a task: augmentation, loss, validation and scores (ViTDet, Appendix A.2)."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from ...core.data.dataset_format import hint
from ...core.data.detection import DetectionImages
from ...core.data.detection_reader import detection_parts
from ...core.data.groups import groups_of
from ...core.data.labeled_dataset import Splits
from ...core.data.sampling import Sample, Uniforms
from ...core.data.transforms import quarter_turns, to_array
from ...core.device import autocast
from ...core.distributed import Ranks
from ...core.errors import DataError
from ...core.models.backbone import Backbone
from ...core.models.encoder_file import Provenance
from ...core.models.timm_backbone import TimmBackbone, freeze_batch_norms
from ...core.training.loader import Batch
from ..metrics import Scores
from ..predictions import Detections
from ..task import Task
from ..visualize import ExampleImage, draw_detections, side_by_side
from .architecture import Architecture
from .augmentation import JitteredCrop, crop_targets
from .canvas import Canvas, crop_and_resize, empty_canvas
from .config import DetectConfig
from .confusion import MIN_IOU, MIN_SCORE, object_confusion
from .metrics import Result, coco_influences, coco_results, coco_scores, write_detections
from .model import ENCODER_PREFIX, MAX_BATCH, Detector

logger = logging.getLogger("maelift")

CACHE_BYTES = 2**29
"""Validation images are decoded once and cached up to this size in bytes."""
EXAMPLES = 4
"""Images of right and of wrong predictions, each, in the summary."""
MAX_EXAMPLE_CANDIDATES = 100
"""Images that these are chosen from."""


class DetectionTask(Task[DetectConfig, DetectionImages]):
    """Object detection with any of the detectors, evaluated by COCO's average precision of boxes, and of masks at the end.

    Crowds are not trained on, as neither library has regions that count for nothing; evaluation ignores them as COCO does.
    """

    name: ClassVar[str] = "detect"
    best_metric: ClassVar[str] = "val/AP"
    draws: ClassVar[int] = 4
    encoder_prefix: ClassVar[str] = ENCODER_PREFIX

    def __init__(self, config: DetectConfig, encoder: Backbone, splits: Splits[DetectionImages], ranks: Ranks) -> None:
        super().__init__(config, encoder, splits, ranks)
        self._cached: list[Canvas] | None = None

    @cached_property
    def architecture(self) -> Architecture:
        """The architecture for the training data; raises ConfigError for a mask head without masks to train on."""
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
        return self.new_detector()

    def new_detector(self) -> Detector:
        """The encoder under new heads; pretrained batch norms are frozen, as in torchvision's detectors."""
        detector = Detector(self.encoder, self.splits.train.classes, self.architecture, drop_path=self.config.drop_path)
        if self.config.init != "scratch" and isinstance(self.encoder, TimmBackbone):
            freeze_batch_norms(detector.model)
        return detector

    def sample(self, index: int, draws: Uniforms) -> Sample:
        images, spec = self.splits.train, self.encoder.spec
        pixels = to_array(images.images.open(index, self.encoder.preprocessing.reading), spec.channels)
        crop = JitteredCrop.sample(pixels.shape[1:], spec.image_size, self.config.jitter, draws[:3])
        mirrored = bool(self.config.flip and draws[3] < 0.5)
        square = spec.image_size[0] == spec.image_size[1]
        turns = quarter_turns(draws[3]) if self.config.turn and square else 0
        part = crop_and_resize(pixels, crop.box, crop.filled, self.encoder.preprocessing)
        part = np.rot90(part[:, :, ::-1] if mirrored else part, turns, (1, 2))
        canvas = empty_canvas(spec.image_size, self.encoder.preprocessing, pixels.dtype)
        canvas[:, : part.shape[1], : part.shape[2]] = part
        targets = crop_targets(images.objects[index], crop, mirrored, turns, masks=self.architecture.masks)
        return Sample(canvas, targets)

    def draw_sample(self, batch: Batch, place: int) -> Image.Image | None:
        target = {name: tensor.cpu().numpy() for name, tensor in batch.targets[place].items()}
        scores = np.ones(len(target["labels"]), dtype=np.float32)
        objects = Detections(target["boxes"], scores, target["labels"], self.splits.train.classes, target.get("masks"))
        return self.sample_picture(batch, place, lambda image: draw_detections(image, objects, show_scores=False))

    def label_counts(self, images: DetectionImages) -> Mapping[str, Sequence[int]]:
        """Objects, without crowds, and images that have some."""
        labels = [objects.labels[~objects.crowd] for objects in images.objects]
        counts = np.bincount(np.concatenate([np.empty(0, dtype=np.int64), *labels]), minlength=len(images.classes))
        shown = np.bincount(
            np.concatenate([np.empty(0, dtype=np.int64), *map(np.unique, labels)]), minlength=len(images.classes)
        )
        return {"objects": counts.tolist(), "images": shown.tolist()}

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        losses = cast(Mapping[str, Tensor], model(batch.pixels, batch.targets))
        return torch.stack([loss.float() for loss in losses.values()]).sum()

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Scores of boxes only; those of masks come at the end, as pasting masks takes long."""
        detector = cast(Detector, model)
        size = len(self.splits.val) * self.encoder.spec.channels * math.prod(self.encoder.spec.image_size)
        if self._cached is None and size <= CACHE_BYTES:
            self._cached = list(self._canvases(detector, self.splits.val))
        results = self._results(detector, self.splits.val, masks=False)
        metrics = coco_scores(
            self.splits.val.ground_truth(), results, class_names(self.splits.val), split="val"
        ).metrics
        return {f"val/{name}": value for name, value in metrics.items() if value is not None}

    def score(self, model: nn.Module, images: DetectionImages, split: str) -> Scores:
        """COCO's scores of boxes and masks; a training run also writes its detections next to the model, for COCO's tools."""
        detector = cast(Detector, model)
        masks = detector.architecture.masks and images.has_masks
        results = self._results(detector, images, masks=masks)
        if self.config.evaluate is None:  # else the images may be others than those of the run in this folder
            write_detections(Path(self.config.out), split, results, masks=masks)
        truth = images.ground_truth()
        scores = coco_scores(truth, results, class_names(images), split=split, masks=masks)
        confusion = object_confusion(truth, results, images.category_ids)
        return replace(scores, confusion=confusion, confusion_of="objects")

    def score_items(
        self, model: nn.Module, images: DetectionImages, split: str
    ) -> tuple[Scores, NDArray[np.float64] | None]:
        """Items are groups of images: the value of each is what AP loses without it (delete-a-group jackknife)."""
        detector = cast(Detector, model)
        masks = detector.architecture.masks and images.has_masks
        results = self._results(detector, images, masks=masks)
        truth, names = images.ground_truth(), class_names(images)
        return coco_scores(truth, results, names, split=split, masks=masks), coco_influences(
            truth, results, None if self.config.group is None else groups_of(images, self.config.group)
        )

    def save(self, model: nn.Module, path: Path, provenance: Provenance) -> None:
        cast(Detector, model).save(path, provenance, self.splits.train.category_ids)

    def examples(self, model: nn.Module, images: DetectionImages, split: str) -> list[ExampleImage]:
        """Images on which exactly the annotated objects were found, and others, next to the annotations."""
        detector = cast(Detector, model)
        chosen: dict[bool, list[ExampleImage]] = {True: [], False: []}
        for index in range(min(MAX_EXAMPLE_CANDIDATES, len(images))):
            opened = images.images.open(index, detector.preprocessing.reading)
            (found,) = detector.predict([opened])
            image = self.display.image(opened)
            truth = annotated_objects(images, index)
            right = matches_annotations(found.above(MIN_SCORE), truth)
            if len(chosen[right]) < EXAMPLES:
                drawn = [
                    ("predicted", draw_detections(image, found, min_score=MIN_SCORE)),
                    ("annotated", draw_detections(image, truth, show_scores=False)),
                ]
                caption = (
                    f"{split}: {images.images.name(index)}: {len(found.above(MIN_SCORE))} found, {len(truth)} annotated"
                )
                picture = self.display.with_tiles(side_by_side(drawn), opened)
                chosen[right].append(ExampleImage.of(picture, caption, right))
            if all(len(pictures) == EXAMPLES for pictures in chosen.values()):
                break
        return [*chosen[True], *chosen[False]]

    def _canvases(self, detector: Detector, images: DetectionImages) -> Iterator[Canvas]:
        for index in range(len(images)):
            image = images.images.open(index, detector.preprocessing.reading)
            yield detector.canvas(to_array(image, detector.spec.channels))

    def _results(self, detector: Detector, images: DetectionImages, *, masks: bool) -> list[Result]:
        """What a detector finds on all images, in COCO's results format."""
        results: list[Result] = []
        cached = self._cached if images is self.splits.val else None
        canvases = iter(cached) if cached is not None else self._canvases(detector, images)
        image_ids = iter(images.image_ids)
        while some := list(itertools.islice(canvases, MAX_BATCH)):
            with autocast(self.ranks.device, self.config.precision):
                found = detector.detect(some, masks=masks)
            for one in found:
                results += coco_results(one, next(image_ids), images.category_ids)
        return results


def class_names(images: DetectionImages) -> dict[int, str]:
    """The name of each category id."""
    return dict(zip(images.category_ids, images.classes, strict=True))


def annotated_objects(images: DetectionImages, index: int) -> Detections:
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


def matches_annotations(found: Detections, truth: Detections) -> bool:
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
    same = (overlap >= MIN_IOU) & (found.labels[:, None] == truth.labels[None])
    return bool(same[linear_sum_assignment(same, maximize=True)].all())
