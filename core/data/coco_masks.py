"""Segmentations of COCO's objects: polygons and compressed run lengths, checked, drawn and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .coco_content import short_text

MAX_OVERHANG_SIDES = 10
"""Sides of its image by which a polygon may reach beyond it, as drawing visits every pixel of the outline."""

MAX_COUNT_DIGITS = 13
"""Characters of a count in compressed run-lengths: 5 bits each, of the 64 that pycocotools reads."""


class RunLengths(TypedDict):
    """A mask as COCO's compressed run-lengths, column by column: ``size`` is [height, width]."""

    size: list[int]
    counts: str


Polygons = tuple[NDArray[np.float64], ...]
"""The outlines of an object's parts: each (2k,), x and y alternating, in pixels."""

Segmentation = Polygons | RunLengths


def draw_mask(segmentation: Segmentation, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask (H, W) of polygons or run-lengths, as pycocotools draws it."""
    from faster_coco_eval.core import mask as coco_mask

    return np.asarray(coco_mask.decode(run_lengths(segmentation, size)), dtype=bool)


def encode_mask(mask: NDArray[np.bool_]) -> RunLengths:
    """A mask (H, W) as COCO's compressed run lengths, which JSON can hold."""
    from faster_coco_eval.core import mask as coco_mask

    counts = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return {"size": [int(side) for side in mask.shape], "counts": counts.decode()}


def run_lengths(segmentation: Segmentation, size: tuple[int, int]) -> RunLengths:
    """A segmentation as compressed run-lengths; several polygons make one."""
    from faster_coco_eval.core import mask as coco_mask

    if not isinstance(segmentation, tuple):
        return segmentation
    runs = coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in segmentation], *size))
    return {"size": list(size), "counts": runs["counts"].decode()}


def same_segmentation(one: Segmentation, other: Segmentation) -> bool:
    """Whether two segmentations are equal as written."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(np.array_equal, one, other))
    return one == other if isinstance(one, dict) and isinstance(other, dict) else False


def polygon_extent(segmentation: Segmentation | None) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around polygons; NaN where there are none."""
    if not segmentation or not isinstance(segmentation, tuple):
        return (np.nan,) * 4
    points = segmentation[0] if len(segmentation) == 1 else np.concatenate(segmentation)
    x, y = points[::2], points[1::2]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def checked_segmentation(value: object, size: tuple[int, int]) -> Segmentation | None:
    """Polygons (those of three points or more that overlap the image) or run-lengths; raises DataError for anything else."""
    if not value and (value is None or isinstance(value, list | dict)):
        return None
    if isinstance(value, dict):
        return _checked_run_lengths(value, size)
    if not isinstance(value, list):
        raise DataError(f"segmentation {short_text(value)}: expected a list of polygons, or run-lengths")
    polygons = value if isinstance(value[0], list) else [value]
    if not any(polygons):
        return None  # [[]] is empty as [] is
    outlines = [_polygon(polygon, size) for polygon in polygons]
    return tuple(outline for outline in outlines if len(outline) >= 6 and _touches_image(outline, size))


def _polygon(polygon: object, size: tuple[int, int]) -> NDArray[np.float64]:
    """(2k,): x and y alternating; raises DataError for anything but a polygon."""
    expected = "expected finite numbers, x and y alternating"
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise DataError(f"polygon {short_text(polygon)}: {expected}")
    try:
        numbers = np.array(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        numbers = np.full(1, np.nan)
    if polygon and (set(map(type, polygon)) - {int, float} or numbers.ndim != 1 or not np.isfinite(numbers).all()):
        raise DataError(f"polygon {short_text(polygon)}: {expected}")
    if polygon and np.abs(numbers).max() > MAX_OVERHANG_SIDES * max(size):
        raise DataError(f"polygon {short_text(polygon)}: expected pixels of an image of {size[1]}×{size[0]} px")
    return numbers.astype(np.float64)


def _touches_image(outline: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """Whether the extent of a polygon overlaps the image."""
    height, width = size
    x, y = outline[::2], outline[1::2]
    return bool(x.max() > 0 and y.max() > 0 and x.min() < width and y.min() < height)


def _checked_run_lengths(value: Mapping[str, Any], size: tuple[int, int]) -> RunLengths:
    from faster_coco_eval.core import mask as coco_mask

    height, width = size
    counts = value.get("counts")
    if value.get("size") != [height, width]:
        raise DataError(
            f"run-lengths of size {short_text(value.get('size'))}: expected [height, width] = {[height, width]}"
        )
    if not isinstance(counts, list | str):
        raise DataError(f"run-lengths {short_text(counts)}: expected a list of counts, or COCO's compressed text")
    runs = counts if isinstance(counts, list) else _decompress(counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise DataError(f"run-lengths {short_text(counts)}: expected counts whose sum is {height * width} pixels")
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"].decode()
    return {"size": [height, width], "counts": counts}


def _decompress(text: str) -> list[int]:
    """The counts of compressed run-lengths (pycocotools, maskApi.c: rleFrString).

    A count has digits of 5 bits, the lowest first, in characters from "0" on; a sixth bit says that more follow. From the
    fourth on it is the difference to the count two before it. Text that is cut off gives a negative count.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - ord("0")
        if not 0 <= digit < 64:
            return [-1]
        value |= (digit & 31) << shift
        shift += 5
        if shift > 5 * MAX_COUNT_DIGITS:
            return [-1]
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts if shift == 0 else [-1]
