"""The confusion matrix of objects: found as which class, missed, or found where there is nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MIN_SCORE, MIN_IOU = 0.5, 0.5
"""An object is found by a box of this score and this overlap or more."""


def object_confusion(
    truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], category_ids: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Counts of objects (classes + 1, classes + 1) by boxes: true class in the row, predicted class in the column.

    The last row has boxes that no object was left for, the last column objects that no box was left for. ``truth`` is a COCO
    JSON, ``results`` are in COCO's results format, ``category_ids`` in the order of the classes. In the order of their scores
    boxes take the object of their class that they overlap most; those that are left take objects of other classes so. As in
    COCO's evaluation, boxes in a crowd of their class, and crowds, count for nothing.
    """
    places = {category: place for place, category in enumerate(category_ids)}
    counts = np.zeros((len(places) + 1, len(places) + 1), dtype=np.int64)
    objects, boxes = _by_image(truth["annotations"]), _by_image(one for one in results if one["score"] >= MIN_SCORE)
    for image in truth["images"]:
        _count(counts, objects[image["id"]], boxes[image["id"]], places)
    return tuple(tuple(int(count) for count in row) for row in counts)


def _by_image(items: Any) -> Mapping[int, list[Mapping[str, Any]]]:
    found: defaultdict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for item in items:
        found[item["image_id"]].append(item)
    return found


def _count(
    counts: NDArray[np.int64],
    annotations: Sequence[Mapping[str, Any]],
    found: Sequence[Mapping[str, Any]],
    places: Mapping[int, int],
) -> None:
    """Add the objects and boxes of an image to the counts."""
    found = sorted(found, key=lambda one: -one["score"])
    objects = [one for one in annotations if not one.get("iscrowd", 0)]
    crowds = [one for one in annotations if one.get("iscrowd", 0)]
    overlap = _overlap(found, objects, crowd=False)
    true = np.array([places[one["category_id"]] for one in objects], dtype=np.int64)
    predicted = np.array([places[one["category_id"]] for one in found], dtype=np.int64)
    same = predicted[:, None] == true[None]
    taken_by = np.full(len(objects), -1)
    for allowed in (same, ~same):
        _match(np.where(allowed, overlap, 0.0), taken_by)
    for object_number, box in enumerate(taken_by):
        counts[true[object_number], predicted[box] if box >= 0 else -1] += 1
    crowded = _overlap(found, crowds, crowd=True) >= MIN_IOU
    crowded &= predicted[:, None] == np.array([places[one["category_id"]] for one in crowds], dtype=np.int64)[None]
    for box in set(range(len(found))) - {int(box) for box in taken_by}:
        if not crowded[box].any():
            counts[-1, predicted[box]] += 1


def _match(overlap: NDArray[np.float64], taken_by: NDArray[np.int64]) -> None:
    """Let boxes that have no object yet take one each, in their order: ``taken_by`` (objects,) gets the boxes' numbers."""
    for box in range(len(overlap)):
        free = np.where(taken_by < 0, overlap[box], 0.0)
        if box not in taken_by and free.size and free.max() >= MIN_IOU:
            taken_by[int(free.argmax())] = box


def _overlap(
    found: Sequence[Mapping[str, Any]], objects: Sequence[Mapping[str, Any]], *, crowd: bool
) -> NDArray[np.float64]:
    """Intersection over union of boxes (found, objects); with crowds over the found box, as COCO has it."""
    from faster_coco_eval.core import mask

    if not found or not objects:
        return np.zeros((len(found), len(objects)))
    sides = [np.array([one["bbox"] for one in items], dtype=np.float64) for items in (found, objects)]
    return np.asarray(mask.iou(*sides, [int(crowd)] * len(objects)), dtype=np.float64)
