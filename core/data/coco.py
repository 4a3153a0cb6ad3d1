"""COCO's annotations checked and turned into detection data (https://cocodataset.org/#format-data).

Problems are collected as ``DataIssue``s. Reading raises at the first one that leaves the meaning of an annotation open and
fixes the others by rule (``issues.AUTO_FIXES``); ``maelift data check`` lists them all.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .box_conventions import RawBoxes, convention_issue
from .coco_content import CocoContent, CocoImage, IssueCollector, as_integer, is_pixel_number, is_text, short_text
from .coco_files import load_coco_json, locate_images
from .coco_masks import Segmentation, checked_segmentation, polygon_extent, run_lengths, same_segmentation
from .detection import DetectionImages, Objects, SizedImages
from .issues import DataIssue

MAX_SIDE = 100_000
"""Largest plausible side of an image, in pixels."""
OVERHANG_TOLERANCE = 1.0
"""Pixels by which a box may reach beyond its image without being reported, as annotation tools round."""


@dataclass(frozen=True)
class ParsedDetection:
    """A split's annotations and what is wrong in them; ``data`` holds the valid ones."""

    file: Path
    data: DetectionImages
    issues: tuple[DataIssue, ...]


def parse_coco_json(path: Path, data: Path) -> ParsedDetection:
    """The objects of a COCO JSON, its image files found below ``data``; raises DataError for a file that isn't COCO JSON."""
    content = load_coco_json(path)
    issues = IssueCollector(path)
    categories = _parse_categories(content["categories"], issues)
    images, broken = _parse_images(content["images"], issues)
    root, paths = locate_images(path, data, images, issues)
    rows = _parse_annotations(content["annotations"], images, broken, categories, issues)
    return _parsed(categories, [images[id] for id in images if id in paths], root, paths, rows, issues)


def parse_coco_content(content: CocoContent) -> ParsedDetection:
    """The objects of another layout's annotations, by the same rules."""
    issues = IssueCollector(content.file, content.locations)
    issues.found += content.issues
    categories = _parse_categories(content.categories, issues)
    images, broken = _parse_images(content.images, issues)
    rows = _parse_annotations(content.annotations, images, broken, categories, issues)
    paths = {image.id: image.name for image in images.values()}
    return _parsed(categories, list(images.values()), content.root, paths, rows, issues)


def _parsed(
    categories: Mapping[int, str],
    images: Sequence[CocoImage],
    root: Path,
    paths: Mapping[int, str],
    rows: Mapping[int, Sequence[_Annotation]],
    issues: IssueCollector,
) -> ParsedDetection:
    """The data set of images whose files are known; ``rows`` are the annotations by image."""
    data_set = DetectionImages(
        images=SizedImages(root, tuple(paths[image.id] for image in images), tuple(image.size for image in images)),
        objects=tuple(_objects(rows.get(image.id, ()), image.size) for image in images),
        classes=tuple(categories.values()),
        category_ids=tuple(categories),
        image_ids=tuple(image.id for image in images),
        has_masks=_has_masks(rows, issues),
    )
    return ParsedDetection(issues.file, data_set, tuple(issues.found))


@dataclass(frozen=True)
class _Annotation:
    """An annotation of the JSON; the box is x1, y1, x2, y2, cut to the image."""

    id: int
    name: str
    label: int
    box: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    segmentation: Segmentation | None


def _parse_categories(entries: Sequence[Any], issues: IssueCollector) -> dict[int, str]:
    """Class names by category id, in order of ids; the id is added to equal names."""
    names: dict[int, str] = {}
    for place, entry in enumerate(entries):
        where = f"categories[{place}]"
        id = as_integer(entry.get("id")) if isinstance(entry, dict) else None
        if id is None or not is_text(entry.get("name")):
            issues.add("broken entry", where, f"expected an int 'id' and a text 'name', found {short_text(entry)}")
        elif id in names:
            issues.add("duplicate category id", where, f"id {id} is already '{names[id]}'. Give each its own id")
        else:
            names[id] = entry["name"]
    ids = tuple(sorted(names))
    counts = Counter(names.values())
    for name, count in counts.items():
        if count > 1:
            same = ", ".join(str(id) for id in ids if names[id] == name)
            issues.add("equal category names", f"categories {same}", f"all are named '{name}'")
    return {id: names[id] if counts[names[id]] == 1 else f"{names[id]} ({id})" for id in ids}


def _parse_images(entries: Sequence[Any], issues: IssueCollector) -> tuple[dict[int, CocoImage], frozenset[int]]:
    """The valid images by id, and the ids of the others, whose annotations are skipped without issues of their own."""
    images: dict[int, CocoImage] = {}
    ids: set[int] = set()
    files: dict[str, int] = {}
    for place, entry in enumerate(entries):
        id = as_integer(entry.get("id")) if isinstance(entry, dict) else None
        if id is None:
            found = f", found {short_text(entry.get('id'))}" if isinstance(entry, dict) else ""
            issues.add("broken entry", f"images[{place}]", f"expected an int 'id'{found}")
            continue
        ids.add(id)
        where = f"image {id}"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            issues.add("broken entry", where, f"expected a text 'file_name', found {short_text(name)}")
            continue
        height, width = as_integer(entry.get("height")), as_integer(entry.get("width"))
        if height is None or width is None or not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            found = f"found {short_text(entry.get('width'))} and {short_text(entry.get('height'))}"
            issues.add("broken entry", where, f"expected 'width' and 'height' in pixels, {found}")
            continue
        name = name.replace("\\", "/")
        if id in images:
            issues.add("duplicate image id", where, f"both {images[id].name} and {name} have this id")
        elif name in files:
            issues.add("duplicate image file", where, f"{name} is already image {files[name]}")
        else:
            images[id] = CocoImage(id, name, (height, width))
            files[name] = id
    return images, frozenset(ids - images.keys())


def _parse_annotations(
    entries: Sequence[Any],
    images: Mapping[int, CocoImage],
    broken: frozenset[int],
    categories: Mapping[int, str],
    issues: IssueCollector,
) -> dict[int, list[_Annotation]]:
    """The valid annotations of each image that have an area, each object once."""
    numbers = {category: number for number, category in enumerate(categories)}
    rows: dict[int, list[_Annotation]] = defaultdict(list)
    seen: set[int] = set()
    raw: list[tuple[float, ...]] = []
    for place, entry in enumerate(entries):
        id = as_integer(entry.get("id")) if isinstance(entry, dict) else None
        if id is None:
            found = f", found {short_text(entry.get('id'))}" if isinstance(entry, dict) else ""
            issues.add("broken entry", f"annotations[{place}]", f"expected an int 'id'{found}")
            continue
        where = issues.location(id)
        if id in seen:
            what = f"annotations[{place}] has the id of an earlier one. Give each its own id"
            issues.add("duplicate annotation id", where, what)
            continue
        seen.add(id)
        image, category = as_integer(entry.get("image_id")), as_integer(entry.get("category_id"))
        if image is not None and image in broken:
            continue
        if image is None or image not in images:
            issues.add(
                "unknown image id", where, f"image_id {short_text(entry.get('image_id'))} is not among the images"
            )
            continue
        if category is None or category not in numbers:
            what = f"category_id {short_text(entry.get('category_id'))} is not among the categories"
            issues.add("unknown category id", where, what)
            continue
        row = _parse_annotation(id, entry, numbers[category], images[image], where, issues, raw)
        if row is not None:
            rows[image].append(row)
    table = np.array(raw, dtype=np.float64).reshape(-1, 11)
    convention = convention_issue(RawBoxes(table[:, :4], table[:, 4:6], table[:, 6], table[:, 7:]))
    if convention is not None:
        issues.add(convention[0], "annotations", convention[1])
    rows = _without_empty_outlines(rows, issues)
    return {image: _without_duplicates(found, issues) for image, found in rows.items()}


def _parse_annotation(
    id: int,
    entry: Mapping[str, Any],
    label: int,
    image: CocoImage,
    where: str,
    issues: IssueCollector,
    raw: list[tuple[float, ...]],
) -> _Annotation | None:
    """A valid annotation, None for an invalid one; its numbers as written are appended to ``raw``, a row of ``RawBoxes``."""
    height, width = image.size
    box, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd") or 0
    where = f"{where} ({image.name})"
    if not isinstance(box, list) or len(box) != 4 or not all(is_pixel_number(value) for value in box):
        issues.add("broken box", where, f"bbox {short_text(box)}: expected four numbers, x, y, width, height in pixels")
        return None
    if area is not None and not (is_pixel_number(area) and area >= 0):
        issues.add("broken entry", where, f"area {short_text(area)}: expected a number of square pixels")
        return None
    if crowd not in (0, 1):
        issues.add("broken entry", where, f"iscrowd {short_text(crowd)}: expected 0 or 1")
        return None
    x, y, w, h = (float(value) for value in box)
    try:
        segmentation = checked_segmentation(entry.get("segmentation"), image.size)
    except DataError as error:
        issues.add("broken segmentation", where, str(error))
        return None
    extent = polygon_extent(segmentation)
    raw.append((x, y, w, h, width, height, np.nan if area is None else float(area), *extent))
    if not (w > 0 and h > 0):
        issues.add("box without area", where, f"bbox {short_text(box)}: width and height must be above 0")
        return None
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if min(x, y) < -OVERHANG_TOLERANCE or x + w > width + OVERHANG_TOLERANCE or y + h > height + OVERHANG_TOLERANCE:
        inside = x2 > x1 and y2 > y1
        how = "reaches beyond" if inside else "is outside"
        issues.add("box beyond its image", where, f"bbox {short_text(box)} {how} the image of {width}×{height} px")
    if not (np.float32(x2) > np.float32(x1) and np.float32(y2) > np.float32(y1)):
        issues.add("box without area", where, f"bbox {short_text(box)}: nothing of it is on the image")
        return None
    if area is not None and not 0 < area <= (w + 2) * (h + 2):
        issues.add("area that can't be", where, f"area {short_text(area)} of an object in a box of {w:g}×{h:g} px")
    return _Annotation(
        id, image.name, label, (x1, y1, x2, y2), None if area is None else float(area), bool(crowd), segmentation
    )


def _without_empty_outlines(
    rows: Mapping[int, list[_Annotation]], issues: IssueCollector
) -> dict[int, list[_Annotation]]:
    """The objects whose segmentation has an area; where none has, all objects, with their boxes only."""
    empty = [row for found in rows.values() for row in found if row.segmentation == ()]
    if not empty:
        return dict(rows)
    if not any(row.segmentation for found in rows.values() for row in found if not row.crowd):
        what = f"none of the {len(empty):,} objects with polygons has one of three points or more on its image"
        issues.add("segmentations without area only", "annotations", what)
        return {
            image: [replace(row, segmentation=row.segmentation or None) for row in found]
            for image, found in rows.items()
        }
    for row in empty:
        issues.add(
            "segmentation without area",
            f"{issues.location(row.id)} ({row.name})",
            "no polygon of three points or more is on the image",
        )
    return {image: [row for row in found if row.segmentation != ()] for image, found in rows.items()}


def _without_duplicates(rows: Sequence[_Annotation], issues: IssueCollector) -> list[_Annotation]:
    """The objects of an image without repetitions of the same class, box and segmentation."""
    distinct: dict[tuple[object, ...], list[_Annotation]] = {}
    classes: dict[tuple[object, ...], _Annotation] = {}
    for row in rows:
        place = (*(round(side, 2) for side in row.box), row.crowd)
        same = distinct.setdefault((row.label, *place), [])
        for number, other in enumerate(same):
            if (
                row.segmentation is None
                or other.segmentation is None
                or same_segmentation(row.segmentation, other.segmentation)
            ):
                where, what = (
                    f"{issues.location(row.id)} ({row.name})",
                    f"the same object as {issues.location(other.id)}",
                )
                issues.add("object twice", where, what)
                if other.segmentation is None and row.segmentation is not None:
                    same[number] = row
                break
        else:
            same.append(row)
        first = classes.setdefault(place, row)
        if first.label != row.label:
            what = f"the box of {issues.location(first.id)}, which is of another category"
            issues.add("one box of two categories", f"{issues.location(row.id)} ({row.name})", what)
    remaining = {id(row) for same in distinct.values() for row in same}
    return [row for row in rows if id(row) in remaining]


def _objects(rows: Sequence[_Annotation], size: tuple[int, int]) -> Objects:
    return Objects(
        boxes=np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowd=np.array([row.crowd for row in rows], dtype=bool),
        areas=np.array([_area(row, size) for row in rows], dtype=np.float64),
        segmentations=tuple(row.segmentation for row in rows),
        size=size,
    )


def _area(row: _Annotation, size: tuple[int, int]) -> float:
    """The area as annotated; else that of the segmentation, or of the box."""
    if row.area is not None:
        return row.area
    if row.segmentation is not None:
        from faster_coco_eval.core import mask as coco_mask

        return float(coco_mask.area(run_lengths(row.segmentation, size)))
    x1, y1, x2, y2 = row.box
    return (x2 - x1) * (y2 - y1)


def _has_masks(rows: Mapping[int, Sequence[_Annotation]], issues: IssueCollector) -> bool:
    """Whether every object except crowds has a segmentation; where only some have, the others are reported."""
    single = [row for found in rows.values() for row in found if not row.crowd]
    without = [row for row in single if row.segmentation is None]
    if len(without) < len(single):
        for row in without:
            issues.add(
                "object without segmentation", f"{issues.location(row.id)} ({row.name})", "other objects have one"
            )
    return bool(single) and not without
