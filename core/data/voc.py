"""Pascal VOC's annotations: an XML file per image, with boxes as corners in pixels that count from 1, inclusive.

The corner xmin is the pixel xmin, from 1: COCO's x is xmin - 1, and the width xmax - xmin + 1. Where a corner of a data set
is 0, corners are read as coordinates between pixels instead, x1 = xmin and x2 = xmax. Objects marked as difficult are
ignored by evaluation, as VOC does, and not trained on.
"""

from __future__ import annotations

import math
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from ..errors import DataError
from ..files import read_regular
from .coco_content import MAX_TEXT_BYTES, CocoContent, image_sizes, relative_posix_path
from .file_index import folders_named, list_files
from .folder_names import ANNOTATION_FOLDERS, IMAGE_FOLDERS, SPLIT_NAMES, VOC_FOLDERS, is_image_name, split_of
from .issues import DataIssue

MAX_DEPTH = 100
"""Levels of nested XML elements; an annotation has five."""


@dataclass(frozen=True)
class _Object:
    """An object of an XML file."""

    name: str
    box: tuple[float, float, float, float]
    """xmin, ymin, xmax, ymax as written"""
    difficult: bool
    location: str


@dataclass
class _SplitFiles:
    """The images of a split with their XML files."""

    file: Path
    """the folder of the XML files"""
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    issues: list[DataIssue] = field(default_factory=list)


def read_voc(data: Path) -> dict[str, CocoContent]:
    """The splits of a folder with XML files; categories are the names found, in alphabetical order. Raises DataError."""
    splits = _find_splits(_dataset_root(data))
    objects: dict[str, list[tuple[Path, list[_Object]]]] = {}
    for split, part in splits.items():
        objects[split] = []
        for image, file in part.pairs:
            try:
                objects[split].append((image, _read_objects(file, part.file, part.issues)))
            except DataError as error:
                part.issues.append(DataIssue("broken annotation file", file, "", str(error).removeprefix(f"{file}: ")))
    every = [one for rows in objects.values() for _, found in rows for one in found]
    names = sorted({one.name for one in every})
    from_zero = any(min(one.box[:2]) == 0 for one in every)
    content = {}
    for split, part in splits.items():
        if from_zero:
            what = "a corner at 0, so corners can't be pixels that count from 1"
            part.issues.append(DataIssue("corners from 0", part.file, "", what))
        content[split] = _split_content(split, part, objects[split], names, from_zero)
    return content


def _dataset_root(data: Path) -> Path:
    """The folder with Annotations/: this one, or the only VOC2007, VOC2012 and so on in it."""
    if folders_named(data, ("annotations",)) or not data.is_dir():
        return data
    inside = [path for pattern in VOC_FOLDERS for path in data.glob(pattern)]
    found = sorted(path for path in inside if folders_named(path, ("annotations",)))
    if len(found) > 1:
        listed = " and ".join(str(path.relative_to(data)) for path in found)
        raise DataError(f"data={data}: {listed} are separate data sets. Give one of them as data.")
    return found[0] if found else data


def _find_splits(root: Path) -> dict[str, _SplitFiles]:
    places = [
        (i, j)
        for i in folders_named(root, IMAGE_FOLDERS)
        for j in folders_named(root, ANNOTATION_FOLDERS)
        if _has_xml(j)
    ]
    if places:
        images, files = places[0]
        if lists := image_sets(root, "main"):
            return _pair_listed(images, files, lists)
        by_split = {
            split_of(path.name): path
            for path in folders_named(images, [n for names in SPLIT_NAMES.values() for n in names])
        }
        found = {
            split: (path, files / path.name)
            for split, path in by_split.items()
            if split and _has_xml(files / path.name)
        }
        return {split: _pair_files(*pair) for split, pair in found.items()} or {"train": _pair_files(images, files)}
    splits: dict[str, _SplitFiles] = {}
    for split, names in SPLIT_NAMES.items():
        for own in folders_named(root, names):
            inside = [(i, j) for i in folders_named(own, IMAGE_FOLDERS) for j in folders_named(own, ANNOTATION_FOLDERS)]
            for images, files in [*inside, (own, own)]:
                if _has_xml(files):
                    splits.setdefault(split, _pair_files(images, files))
    if splits:
        return splits
    one = next((path for path in (root, *folders_named(root, IMAGE_FOLDERS)) if _has_xml(path)), None)
    if one is None:
        raise DataError(
            f"data={root}: no XML annotations. Expected Annotations/ and JPEGImages/, or XML files in the folder of the images."
        )
    return {"train": _pair_files(one, one)}


def _has_xml(folder: Path) -> bool:
    return any(name.lower().endswith(".xml") for _, _, names in os.walk(folder) for name in names)


def image_sets(root: Path, task: str) -> dict[str, list[str]]:
    """The image names of each split that ImageSets/ lists for a ``task`` (its folder there, in lower case); empty without lists.

    They are read from train.txt, or else trainval.txt or default.txt, val.txt and test.txt.
    """
    folders = [path for sets in folders_named(root, ("imagesets",)) for path in folders_named(sets, (task,))]
    folder = next(iter(folders), None)
    if folder is None:
        return {}
    lists = {}
    for split, names in SPLIT_NAMES.items():
        extra = ("trainval", "default") if split == "train" else ()
        path = next((folder / f"{name}.txt" for name in (*names, *extra) if (folder / f"{name}.txt").is_file()), None)
        if path is not None:
            text = read_regular(path, MAX_TEXT_BYTES).decode("utf-8-sig", "replace")
            lists[split] = [line.split()[0] for line in text.splitlines() if line.strip()]
    return lists


def _pair_listed(images: Path, files: Path, lists: Mapping[str, list[str]]) -> dict[str, _SplitFiles]:
    there = {Path(name).stem: images / name for name in list_files(images) if is_image_name(name)}
    splits = {}
    for split, names in lists.items():
        part = _SplitFiles(files)
        for name in names:
            stem = Path(name).stem if is_image_name(name) else Path(name).name
            image, file = there.get(stem), files / f"{stem}.xml"
            if image is None:
                part.issues.append(DataIssue("missing file", files, f"{split}.txt", f"no image {stem} in {images}"))
            elif not file.is_file():
                part.issues.append(DataIssue("image without annotation file", image, "", f"no {file}"))
            else:
                part.pairs.append((image, file))
        splits[split] = part
    used = {file for part in splits.values() for _, file in part.pairs}
    left = sum((files / name) not in used for name in list_files(files) if name.lower().endswith(".xml"))
    if left:
        what = f"{left:,} annotation files are of images that no list in ImageSets/Main has"
        next(iter(splits.values())).issues.append(DataIssue("annotations in no image set", files, "", what))
    return {split: part for split, part in splits.items() if part.pairs or split == "train"}


def _pair_files(images: Path, files: Path) -> _SplitFiles:
    """Pair images with XML files of equal names, and other XML files by the file name in them."""
    part = _SplitFiles(files)
    found = {Path(name).with_suffix("").as_posix(): images / name for name in list_files(images) if is_image_name(name)}
    names = {path.name: path for path in found.values()}
    used = set()
    for name in list_files(files):
        if not name.lower().endswith(".xml"):
            continue
        file = files / name
        image = found.get(Path(name).with_suffix("").as_posix()) or names.get(_file_name(file))
        if image is None:
            part.issues.append(
                DataIssue("annotation file without image", file, "", f"no image of this name in {images}")
            )
        elif image in used:
            part.issues.append(
                DataIssue("two annotation files of one image", file, "", f"{image} already has another one")
            )
        else:
            used.add(image)
            part.pairs.append((image, file))
    for image in found.values():
        if image not in used:
            part.issues.append(DataIssue("image without annotation file", image, "", f"no {files / image.stem}.xml"))
    return part


def _file_name(file: Path) -> str:
    """The image's file name in an XML file; empty where it has none."""
    try:
        return (_parse(file).findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    except DataError:
        return ""


def _parse(file: Path) -> ElementTree.Element:
    """The root element of an XML file. Raises DataError, also for a DOCTYPE, whose entities may expand without bound."""
    builder, depth = ElementTree.TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise DataError(f"{file}: more than {MAX_DEPTH} nested elements. Expected Pascal VOC's annotation")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def doctype(*_: object) -> None:
        raise DataError(
            f"{file}: has a DOCTYPE, whose entities may expand without bound. Remove it; VOC's files have none"
        )

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = builder.data, doctype
    try:
        parser.Parse(read_regular(file, MAX_TEXT_BYTES), True)
        root = builder.close()
    except (expat.ExpatError, LookupError, ValueError, AssertionError) as error:
        raise DataError(f"{file}: not valid XML ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: can't be read ({(error.strerror or str(error)).lower()})") from error
    if root.tag != "annotation":
        raise DataError(f"{file}: <{root.tag[:40]}>, not Pascal VOC's <annotation>")
    return root


def _read_objects(file: Path, folder: Path, issues: list[DataIssue]) -> list[_Object]:
    """The objects of an XML file that have a name and a box; the others are added to ``issues``."""
    found = []
    for number, element in enumerate(_parse(file).findall("object"), 1):
        where = f"object {number}"
        name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
        if not name:
            issues.append(DataIssue("broken entry", file, where, "no <name>"))
            continue
        if box is None:
            other = next((tag for tag in ("polygon", "robndbox") if element.find(tag) is not None), "")
            there = f" (but <{other}>, which isn't supported)" if other else ""
            issues.append(
                DataIssue("broken box", file, where, f"no <bndbox>{there}. Expected xmin, ymin, xmax, ymax in pixels")
            )
            continue
        texts = [(box.findtext(tag) or "").strip() for tag in ("xmin", "ymin", "xmax", "ymax")]
        corners = [_coordinate(text) for text in texts]
        if any(map(math.isnan, corners)):
            issues.append(
                DataIssue("broken box", file, where, f"bndbox {' '.join(texts)[:60]}: expected four numbers in pixels")
            )
            continue
        difficult = (element.findtext("difficult") or "").strip() in ("1", "true", "True")
        x1, y1, x2, y2 = corners
        found.append(_Object(name, (x1, y1, x2, y2), difficult, f"{relative_posix_path(file, folder)} {where}"))
    return found


def _coordinate(text: str) -> float:
    """A pixel coordinate; NaN for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if abs(value) < 1e9 else math.nan


def _split_content(
    split: str, part: _SplitFiles, rows: Sequence[tuple[Path, list[_Object]]], names: Sequence[str], from_zero: bool
) -> CocoContent:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    locations: dict[int, str] = {}
    root = Path(os.path.commonpath([image.parent for image, _ in rows])) if rows else part.file
    difficult = 0
    first = 0.0 if from_zero else 1.0
    for number, ((image, objects), size) in enumerate(
        zip(rows, image_sizes([image for image, _ in rows], split), strict=True)
    ):
        if isinstance(size, str):
            part.issues.append(DataIssue("image that can't be opened", image, "", size))
            continue
        height, width = size
        images.append({"id": number, "file_name": relative_posix_path(image, root), "height": height, "width": width})
        for one in objects:
            x1, y1, x2, y2 = one.box
            x1, y1 = x1 - first, y1 - first
            difficult += one.difficult
            row: dict[str, Any] = {"id": len(annotations) + 1, "image_id": number, "iscrowd": int(one.difficult)}
            annotations.append({**row, "category_id": names.index(one.name) + 1, "bbox": [x1, y1, x2 - x1, y2 - y1]})
            locations[len(annotations)] = one.location
    if difficult:
        part.issues.append(
            DataIssue("difficult objects", part.file, "", f"{difficult:,} of {len(annotations):,} are marked so")
        )
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return CocoContent(part.file, root, images, annotations, categories, locations, tuple(part.issues))
