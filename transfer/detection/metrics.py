"""COCO's evaluation of boxes and masks, by faster-coco-eval: average precision, overall, by size and by class."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.data.coco_masks import encode_mask
from ...core.files import atomic_write_text
from ..metrics import MEAN, RECALLS, Scores
from ..predictions import Detections

logger = logging.getLogger("maelift")

AREAS = ("", "_small", "_medium", "_large")
"""What the areas of COCO are called: all, below 32×32 pixels, to 96×96, above."""
MOST = 2
"""The last of COCO's three limits of objects an image: 100."""

DRAWN_CLASSES = 10
"""Classes that have curves of precision over recall of their own: those with the most objects."""
THRESHOLDS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Which of COCO's ten thresholds of overlap a measure is the mean over."""

GROUPS = 20
"""Groups of images that are left out in turn, to measure how much a score depends on the choice of test images."""

Result = dict[str, Any]
"""An object that was found, in COCO's results format."""


def coco_results(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[Result]:
    """What was found on an image in COCO's results format: boxes x, y, width, height; masks as compressed RLE.

    ``category_ids``: the JSON's number of each class.
    """
    corners = found.boxes.astype(np.float64)
    results: list[Result] = [
        {
            "image_id": int(image_id),
            "category_id": int(category_ids[label]),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in zip(
            corners.tolist(), found.labels.tolist(), found.scores.astype(np.float64).tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for result, mask in zip(results, found.masks, strict=True):
            result["segmentation"] = encode_mask(mask)
    return results


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write results as a COCO results file, which every COCO tool reads."""
    atomic_write_text(path, json.dumps(list(results)) + "\n")


def write_detections(folder: Path, split: str, results: Sequence[Result], *, masks: bool) -> None:
    """Write a split's results: detections_SPLIT.json, or of a model with masks these alone there, and boxes in boxes_SPLIT.json.

    One file can't have both: COCO's tools take the size of an object from its box where there is one, so that masks by size
    (mask_AP_small) would not be ours, nor what other libraries report.
    """
    of_masks, of_boxes = (_without(results, key) for key in ("bbox", "segmentation"))
    write_results(folder / f"detections_{split}.json", of_masks if masks else of_boxes)
    if masks:
        write_results(folder / f"boxes_{split}.json", of_boxes)


def _without(results: Iterable[Result], left_out: str) -> list[Result]:
    return [{key: value for key, value in item.items() if key != left_out} for item in results]


def coco_scores(
    truth: Mapping[str, Any],
    results: Sequence[Result],
    classes: Mapping[int, str],
    *,
    split: str,
    masks: bool = False,
) -> Scores:
    """Evaluate results by COCO's rules; the names of the scores of masks have the prefix "mask_".

    ``truth`` is a COCO JSON of all images that were evaluated; ``classes``: the name of each category id. AP is the mean
    over thresholds of overlap from 0.5 to 0.95; by size it takes the areas that ``truth`` states. AR100 is the mean recall
    of at most 100 objects an image. A figure is None where ``truth`` has nothing to measure it on.
    """
    metrics: dict[str, float | None] = {}
    per_class: dict[str, dict[str, float | None]] = {name: {} for name in classes.values()}
    curves: dict[str, Mapping[str, tuple[float, ...]]] = {}
    objects = Counter(int(one["category_id"]) for one in truth["annotations"] if not one.get("iscrowd", 0))
    drawn = {category for category, _ in objects.most_common(DRAWN_CLASSES)}
    for kind, prefix in (("bbox", ""), ("segm", "mask_"))[: 2 if masks else 1]:
        precision, recall, categories = _evaluate(truth, results, kind)
        metrics[f"{prefix}AP"] = _mean(precision[..., 0, MOST])
        metrics[f"{prefix}AP50"] = _mean(precision[0, ..., 0, MOST])
        metrics[f"{prefix}AP75"] = _mean(precision[5, ..., 0, MOST])
        for area, name in enumerate(AREAS[1:], start=1):
            metrics[f"{prefix}AP{name}"] = _mean(precision[..., area, MOST])
        metrics[f"{prefix}AR100"] = _mean(recall[..., 0, MOST])
        for number, category in enumerate(categories):
            own = precision[:, :, number, 0, MOST]
            per_class[classes[category]] |= {f"{prefix}AP": _mean(own), f"{prefix}AP50": _mean(own[0])}
        names = {place: classes[category] for place, category in enumerate(categories) if category in drawn}
        curves |= {f"{prefix}{name}": found for name, found in _curves(precision[..., 0, MOST], names).items() if found}
    return Scores(split, len(truth["images"]), metrics, per_class, precision_recall=curves)


def _curves(precision: NDArray[np.float64], names: Mapping[int, str]) -> dict[str, dict[str, tuple[float, ...]]]:
    """Precision at ``RECALLS`` by measure, of all classes and of some, from COCO's (thresholds, recalls, classes).

    ``names`` of the latter by their places. Classes without objects have no precision; without any, there is no curve.
    """
    measured = [place for place in range(precision.shape[2]) if (precision[:, :, place] > -1).any()]
    if not measured:
        return {}
    assert precision.shape[1] == len(RECALLS)
    return {
        measure: {
            MEAN: _values(precision[which][..., measured].mean(axis=(0, 2))),
            **{
                name: _values(precision[which, :, place].mean(axis=0))
                for place, name in names.items()
                if place in measured
            },
        }
        for measure, which in THRESHOLDS.items()
    }


def _values(curve: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in curve)


def coco_influences(
    truth: Mapping[str, Any], results: Sequence[Result], belongs: Sequence[str] | None = None
) -> NDArray[np.float64] | None:
    """The contribution of each of ``GROUPS`` groups of images to AP (groups,); their mean is AP. None without a figure.

    Average precision is no mean over images; what is known of its spread over draws of images is what leaving out each group
    changes (Shao & Tu, "The Jackknife and Bootstrap", 1995, ch. 2). An image's group goes by its place in ``truth``; those of one
    patient, video or flight, as ``belongs`` says of each, are in one group.
    """
    images = [int(image["id"]) for image in truth["images"]]
    places = {name: place for place, name in enumerate(dict.fromkeys(images if belongs is None else belongs))}
    group_of = [places[name] for name in (images if belongs is None else belongs)]
    count = min(GROUPS, len(places))
    evaluation = _evaluation(truth, results, "bbox")
    full = _average_precision(evaluation, images)
    if full is None or count < 2:
        return None
    without = []
    for group in range(count):
        value = _average_precision(
            evaluation, [image for image, place in zip(images, group_of, strict=True) if place % count != group]
        )
        without.append(full if value is None else value)
    left = np.array(without)
    return np.asarray(full + (count - 1) * (left.mean() - left), dtype=np.float64)


def _average_precision(evaluation: Any, images: Sequence[int]) -> float | None:
    """AP of boxes on some of the images."""
    evaluation.params.imgIds = list(images)
    evaluation.evaluate()
    evaluation.accumulate()
    return _mean(np.asarray(evaluation.eval["precision"])[..., 0, MOST])


def _evaluate(
    truth: Mapping[str, Any], results: Sequence[Result], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Precision (thresholds, recalls, classes, areas, limits), recall (…) without the second, and the category ids."""
    evaluation = _evaluation(truth, results, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return (
        np.asarray(evaluation.eval["precision"]),
        np.asarray(evaluation.eval["recall"]),
        [int(category) for category in evaluation.params.catIds],
    )


def _evaluation(truth: Mapping[str, Any], results: Sequence[Result], kind: str) -> Any:
    """COCO's evaluation, not begun."""
    from faster_coco_eval import COCO, COCOeval_faster

    # Renumbered: an annotation with the id 0 counts as not found, in pycocotools as well.
    annotations = [{**item, "id": number} for number, item in enumerate(truth["annotations"], start=1)]
    own = {"info": {}, **truth, "annotations": annotations}
    left_out = {"segm": "bbox", "bbox": "segmentation"}[kind]  # with a box, a mask's size would be the box's
    known = COCO(own)
    found = known.loadRes(_without(results, left_out))
    return COCOeval_faster(known, found, kind, print_function=logger.debug)


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of what could be measured; COCO marks the rest with -1."""
    measured = values[values > -1]
    return float(measured.mean()) if measured.size else None
