"""Reading images with boxes: from COCO JSON, YOLO's text files or Pascal VOC's XML."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import DataError
from .coco import ParsedDetection, parse_coco_content, parse_coco_json
from .coco_files import find_annotations
from .dataset_format import identify
from .detection import DetectionImages, Objects
from .issues import DataIssue, raise_on_errors
from .labeled_dataset import Splits
from .missing_splits import draw_missing_splits
from .readers.folder import report_unused
from .segmentation_layouts import find_mask_folders
from .voc import read_voc
from .yolo import read_yolo

DetectionLayout = Literal["auto", "coco", "yolo", "voc"]
"""The layout of annotations; auto: as ``dataset_format`` finds."""


def read_detection(
    data: str | Path,
    val: float | int = 0.1,
    test: float | int = 0.1,
    seed: int = 0,
    layout: DetectionLayout = "auto",
) -> Splits[DetectionImages]:
    """Images with boxes in three splits: those of ``detection_parts``, and drawn ones (``draw_missing_splits``)."""
    return draw_missing_splits(detection_parts(data, layout), data, val, test, seed)


def detection_parts(data: str | Path, layout: DetectionLayout = "auto") -> dict[str, DetectionImages]:
    """The splits of images with boxes that a data set has.

    ``data`` is a folder in one of these layouts, or a single JSON with its images in the same folder:

    - ``{train,val,test}.json``, images under ``images/SPLIT``, ``SPLIT`` or ``images``;
    - ``annotations/instances_{train2017,val2017}.json``, images under ``train2017`` and ``val2017`` (COCO's own);
    - ``{train,valid,test}/_annotations.coco.json`` or another single JSON in each folder, images in the same folder;
    - a single JSON in the folder or in ``annotations``, images in its folder or under ``images``;
    - YOLO's, by a data.yaml or by folders (``yolo``), or Pascal VOC's (``voc``).

    Raises DataError for data in another layout and for invalid annotations. Boxes are cut to their
    image and annotations without area left out; a warning says how many.
    """
    parsed = parse_detection(data, layout)
    for part in parsed.values():
        raise_on_errors(part.issues, data)
    return {split: part.data for split, part in parsed.items()}


def parse_detection(data: str | Path, layout: DetectionLayout = "auto") -> dict[str, ParsedDetection]:
    """The annotations of each split that a data set has, with all their issues; see ``detection_parts``.

    Raises DataError where there are no annotations.
    """
    path = Path(data)
    layout, *others = _layouts_of(path) if layout == "auto" else [layout]
    if layout == "yolo" or layout == "voc":
        contents = read_yolo(path) if layout == "yolo" else read_voc(path)
        parsed = {split: parse_coco_content(content) for split, content in contents.items()}
    else:
        parsed = {split: parse_coco_json(file, path) for split, file in find_annotations(path).items()}
    if others:
        first = next(iter(parsed))
        more = [DataIssue("another kind of annotations", path, "", f"layout={other} reads these") for other in others]
        parsed[first] = replace(parsed[first], issues=(*parsed[first].issues, *more))
    masks = [folder for _, folder in find_mask_folders(path).values()] if path.is_dir() else []
    report_unused(path, [part.data.images for part in parsed.values()], "annotation", masks)
    train = parsed.get("train")
    if train is None:
        return parsed
    return {split: part if split == "train" else _with_classes_of(train, part) for split, part in parsed.items()}


def _layouts_of(data: Path) -> list[DetectionLayout]:
    """The layouts of annotations that a data set has, of which the first is read; coco where there is none."""
    if data.is_file():
        return ["yolo" if data.suffix.lower() in (".yaml", ".yml") else "coco"]
    try:
        found = [one.format for one in identify(data)]
    except DataError:
        found = []
    names: tuple[Literal["coco", "yolo", "voc"], ...] = ("coco", "yolo", "voc")
    return [name for name in names if name in found] or ["coco"]


def _with_classes_of(train: ParsedDetection, part: ParsedDetection) -> ParsedDetection:
    """A split with the classes of the training split; categories that differ are reported."""
    expected = dict(zip(train.data.category_ids, train.data.classes, strict=True))
    issues = list(part.issues)
    for id, name in zip(part.data.category_ids, part.data.classes, strict=True):
        if expected.get(id) != name:
            there = f"'{expected[id]}'" if id in expected else "no category"
            what = f"'{name}' here, {there} in {train.file.name}"
            issues.append(DataIssue("other categories than train", part.file, f"category {id}", what))
    if len(issues) > len(part.issues) or part.data.category_ids == train.data.category_ids:
        return ParsedDetection(part.file, part.data, tuple(issues))
    numbers = np.array([train.data.category_ids.index(id) for id in part.data.category_ids], dtype=np.int64)
    objects = tuple(
        Objects(old.boxes, numbers[old.labels], old.crowd, old.areas, old.segmentations, old.size)
        for old in part.data.objects
    )
    data = DetectionImages(
        part.data.images,
        objects,
        train.data.classes,
        train.data.category_ids,
        part.data.image_ids,
        part.data.has_masks,
    )
    return ParsedDetection(part.file, data, tuple(issues))
