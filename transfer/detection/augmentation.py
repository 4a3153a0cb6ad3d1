"""Large-scale jitter of training images for detection, and of their boxes and masks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.data.coco_masks import Polygons, draw_mask
from ...core.data.detection import Objects
from ...core.data.sampling import Uniforms

MIN_BOX_SIDE = 1.0
"""Pixels of width and height that must be left of an object in a training crop."""


@dataclass(frozen=True)
class JitteredCrop:
    """The part of an image that a training canvas shows.

    ``box`` (x1, y1, x2, y2) in pixels of the image; ``filled`` (height, width) of the canvas that it fills, from the upper
    left; ``scale`` (along x, along y) of the canvas to the image; ``canvas`` (height, width) in pixels.
    """

    box: tuple[float, float, float, float]
    filled: tuple[int, int]
    scale: tuple[float, float]
    canvas: tuple[int, int]

    @classmethod
    def sample(
        cls, size: tuple[int, ...], canvas: tuple[int, int], jitter: tuple[float, float], draws: Uniforms
    ) -> JitteredCrop:
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


def crop_targets(
    objects: Objects, crop: JitteredCrop, mirrored: bool, turns: int = 0, *, masks: bool
) -> dict[str, NDArray[np.generic]]:
    """The targets of a detector in a crop: ``boxes``, ``labels`` and ``masks`` of the canvas, without crowds.

    ``turns``: quarters that a square canvas is turned by after mirroring, counterclockwise; what it shows stays upper left.
    Boxes are clipped to the crop, with masks recomputed around the visible part of the object; those of which no pixel's width is
    left are dropped.
    """
    height, width = crop.filled
    scale, origin = np.tile(crop.scale, 2), np.tile(crop.box[:2], 2)
    boxes = ((objects.boxes - origin) * scale).clip(0, np.tile([width, height], 2))  # (n, 4), float64
    large = (boxes[:, 2:] - boxes[:, :2] >= MIN_BOX_SIDE).all(axis=1)
    kept = np.flatnonzero(large & ~objects.crowd)
    boxes, target = boxes[kept], {}
    if masks:
        seen = np.zeros((len(kept), *crop.canvas), dtype=bool)
        for number, index in enumerate(kept):
            seen[number, :height, :width] = crop_mask(objects, int(index), crop)
        there = seen.any(axis=(1, 2))
        kept, seen = kept[there], seen[there]
        boxes = np.array([mask_box(mask) for mask in seen], dtype=np.float64).reshape(-1, 4)
        part = seen[:, :height, :width]
        part = np.rot90(part[:, :, ::-1] if mirrored else part, turns, (1, 2)).copy()
        seen[:] = False
        seen[:, : part.shape[1], : part.shape[2]] = part
        target["masks"] = seen
    if mirrored:
        boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    for _ in range(turns):
        boxes = np.stack([boxes[:, 1], width - boxes[:, 2], boxes[:, 3], width - boxes[:, 0]], axis=1)
        height, width = width, height
    return {"boxes": boxes.astype(np.float32), "labels": objects.labels[kept], **target}


def crop_mask(objects: Objects, index: int, crop: JitteredCrop) -> NDArray[np.bool_]:
    """The mask of an object within a crop, (height, width) of what it fills; outlines are drawn at the view's scale."""
    segmentation = objects.segmentations[index]
    if segmentation is None:
        return np.zeros(crop.filled, dtype=bool)
    if isinstance(segmentation, tuple):
        return draw_mask(to_crop(segmentation, crop), crop.filled)
    full = draw_mask(segmentation, objects.size)
    rows, columns = (
        np.minimum(((np.arange(length) + 0.5) / scale + start).astype(np.int64), side - 1)
        for length, scale, start, side in zip(
            crop.filled, crop.scale[::-1], (crop.box[1], crop.box[0]), objects.size, strict=True
        )
    )
    seen: NDArray[np.bool_] = full[np.ix_(rows, columns)]
    return seen


def to_crop(polygons: Polygons, crop: JitteredCrop) -> Polygons:
    """Outlines in the coordinates of a crop."""
    return tuple(
        ((polygon.reshape(-1, 2) - np.array(crop.box[:2])) * np.array(crop.scale)).reshape(-1) for polygon in polygons
    )


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The smallest box x1, y1, x2, y2 around a mask (H, W) that isn't empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
