"""Finds boxes and polygons in another convention: shares instead of pixels, corners, centres."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ConventionIssue = Literal[
    "boxes from 0 to 1",
    "boxes below one pixel",
    "boxes of another convention",
    "boxes of another image size",
    "outlines from 0 to 1",
]
Floats = NDArray[np.float64]

MOST = 0.9
"""Share of the boxes that decides for a file."""
SHARE_OF_TEN, SHARE_OF_FEW = 0.1, 0.5
"""Shares of boxes beyond their images from which other conventions are tried: with ten boxes or more, with fewer."""
MIN_FIT = 0.95
"""Share of the boxes that must be on their images in the other convention."""
TOLERANCE = 1.5
"""Pixels by which a box may differ from what it is compared with."""


@dataclass(frozen=True)
class RawBoxes:
    """All boxes of a file as written.

    ``boxes`` (n, 4): the four numbers; ``sizes`` (n, 2): width and height of their images; ``areas`` (n,) as annotated,
    NaN where missing; ``extents`` (n, 4): x1, y1, x2, y2 around their polygons, NaN where there are none.
    """

    boxes: Floats
    sizes: Floats
    areas: Floats
    extents: Floats

    def __len__(self) -> int:
        return len(self.boxes)


def _corners(boxes: Floats) -> Floats:
    return boxes


def _coco(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def _centres(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)


def _swapped(boxes: Floats) -> Floats:
    return _coco(boxes[:, [1, 0, 3, 2]])


OTHER_CONVENTIONS: Mapping[str, tuple[Callable[[Floats], Floats], str]] = {
    "x1,y1,x2,y2": (_corners, "subtract x1 from x2 and y1 from y2"),
    "centre x, centre y, width, height": (_centres, "subtract half of width and height from the centre"),
    "y, x, height, width": (_swapped, "swap them"),
    "y1,x1,y2,x2": (lambda boxes: boxes[:, [1, 0, 3, 2]], "swap them, and subtract x1 from x2 and y1 from y2"),
}
"""Other conventions: their corners x1, y1, x2, y2 from the four numbers, and how to make COCO's of them."""


def convention_issue(raw: RawBoxes) -> tuple[ConventionIssue, str] | None:
    """The kind and text of the issue where a file's boxes seem to be in another convention; None where they don't."""
    if not len(raw):
        return None
    boxes, count = raw.boxes, len(raw)
    large = raw.sizes.max() > 2  # on an image of two pixels a box from 0 to 1 is one
    shares = (np.abs(boxes) <= 1).all(axis=1)
    if large and shares.mean() >= MOST:
        how = "Multiply x and width by the image's width, y and height by its height (YOLO's x, y are of centres)"
        return "boxes from 0 to 1", f"{shares.sum():,} of {count:,} boxes from 0 to 1? Expected pixels. {how}"
    tiny = (boxes[:, 2:] < 1).any(axis=1)
    if large and tiny.mean() >= MOST:
        return "boxes below one pixel", f"{tiny.sum():,} of {count:,} boxes are below one pixel: expected pixels"
    outlined = ~np.isnan(raw.extents[:, 0])
    if large and outlined.any() and (np.abs(raw.extents[outlined]) <= 1).all():
        what = f"the polygons of all {outlined.sum():,} objects that have one are from 0 to 1: expected pixels"
        return "outlines from 0 to 1", f"{what}. Multiply x by the image's width, y by its height"
    return _another_convention(raw) or _another_size(raw)


def _another_convention(raw: RawBoxes) -> tuple[ConventionIssue, str] | None:
    """Whether the boxes fit their images, polygons or areas only in another order."""
    as_coco = _coco(raw.boxes)
    beyond = ~_on_image(as_coco, raw.sizes)
    least = SHARE_OF_TEN if len(raw) >= 10 else SHARE_OF_FEW
    for name, (corners, how) in OTHER_CONVENTIONS.items():
        other = corners(raw.boxes)
        advice = f"COCO's are x, y, width, height: {how}"
        fits = _on_image(other, raw.sizes) & (other[:, 2:] > other[:, :2]).all(axis=1)
        if beyond.mean() >= least and fits.mean() >= MIN_FIT:
            what = (
                f"{beyond.sum():,} of {len(raw):,} boxes reach beyond their images, though as {name} they are on them"
            )
            return "boxes of another convention", f"{name}? {what}. {advice}"
        for thing, agrees in (("polygons", _match_polygons), ("areas", _match_areas)):
            with np.errstate(invalid="ignore"):
                mine, others = agrees(as_coco, raw), agrees(other, raw)
            if len(mine) >= 3 and mine.mean() <= 1 - MOST and others.mean() >= MOST:
                what = f"as {name} {others.sum():,} of {len(others):,} boxes agree with their {thing}"
                return "boxes of another convention", f"{name}? {what}, as COCO's {mine.sum():,}. {advice}"
    return None


def _another_size(raw: RawBoxes) -> tuple[ConventionIssue, str] | None:
    """Whether most boxes are mostly outside their images."""
    as_coco = _coco(raw.boxes)
    limits = np.concatenate([raw.sizes, raw.sizes], axis=1)
    seen = np.clip(as_coco, 0, limits)
    area = (seen[:, 2:] - seen[:, :2]).prod(axis=1)
    mostly_outside = area < 0.5 * raw.boxes[:, 2:].prod(axis=1)
    if len(raw) >= 10 and mostly_outside.mean() > SHARE_OF_FEW:
        what = f"{mostly_outside.sum():,} of {len(raw):,} boxes are mostly outside their images"
        return "boxes of another image size", f"{what}: made for images of another size? Scale boxes with their images"
    return None


def _on_image(corners: Floats, sizes: Floats) -> NDArray[np.bool_]:
    """(n,): whether a box is on its image."""
    inside = (corners[:, :2] >= -TOLERANCE).all(axis=1) & (corners[:, 2:] <= sizes + TOLERANCE).all(axis=1)
    return np.asarray(inside, dtype=bool)


def _match_polygons(corners: Floats, raw: RawBoxes) -> NDArray[np.bool_]:
    """For each object with polygons, whether the box is the one around them."""
    there = ~np.isnan(raw.extents[:, 0])
    sides = (raw.extents[there, 2:] - raw.extents[there, :2]).max(axis=1, keepdims=True)
    near = (np.abs(corners[there] - raw.extents[there]) <= TOLERANCE + 0.02 * sides).all(axis=1)
    return np.asarray(near, dtype=bool)


def _match_areas(corners: Floats, raw: RawBoxes) -> NDArray[np.bool_]:
    """For each object with an area, whether it is that of the box."""
    there = raw.areas > 1
    sides = corners[there, 2:] - corners[there, :2]
    areas = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0)
    return np.asarray(np.abs(areas - raw.areas[there]) <= 0.01 * raw.areas[there], dtype=bool)


OTHER_YOLO_CONVENTIONS: Mapping[str, tuple[Callable[[Floats], Floats], str]] = {
    "x1 y1 x2 y2": (_corners, "the centre is half of the sum of the corners, the width x2 - x1, the height y2 - y1"),
    "x y width height from the upper left corner": (_coco, "add half of width and height to x and y"),
    "y x height width": (lambda boxes: _centres(boxes[:, [1, 0, 3, 2]]), "swap them"),
}


def yolo_convention_issue(raw: RawBoxes) -> tuple[ConventionIssue, str] | None:
    """``convention_issue`` of YOLO's boxes, as shares times the images' sizes: other conventions that fit where centres don't."""
    if not len(raw):
        return None
    beyond = ~_on_image(_centres(raw.boxes), raw.sizes)
    for name, (corners, how) in OTHER_YOLO_CONVENTIONS.items():
        other = corners(raw.boxes)
        fits = _on_image(other, raw.sizes) & (other[:, 2:] > other[:, :2]).all(axis=1)
        if beyond.mean() >= (SHARE_OF_TEN if len(raw) >= 10 else SHARE_OF_FEW) and fits.mean() >= MIN_FIT:
            what = (
                f"{beyond.sum():,} of {len(raw):,} boxes reach beyond their images, though as {name} they are on them"
            )
            return "boxes of another convention", f"{name}? {what}. YOLO's x and y are of the centre: {how}"
    return None
