"""YOLO's annotations: a text file per image, a line "class x y width height" per object (Ultralytics, darknet).

x and y are the box's centre; all four are shares of the image's width and height. Lines of seven numbers or more are
polygons, "class x1 y1 x2 y2 ...". An image without a file, or with an empty one, has no objects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .box_conventions import RawBoxes, yolo_convention_issue
from .coco_content import CocoContent, image_sizes, read_text, relative_posix_path
from .file_index import folders_named, list_files
from .folder_names import ANNOTATION_FOLDERS, IMAGE_FOLDERS, SPLIT_NAMES, YOLO_FILES, is_image_name
from .issues import AUTO_FIXES, DataIssue

BOX_NUMBERS = 5
"""Numbers of a line with a box; a polygon has the class and three points or more."""
SHARE_TOLERANCE = 0.01
"""How far a share may be below 0 or above 1 by rounding."""
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "obj_train_data/classes.txt", "_darknet.labels")
"""Lists of classes, one per line, read where no data.yaml names them."""
OTHER_TEXT_FILES = frozenset(
    {"classes", "train", "val", "valid", "test", "readme", "readme.dataset", "readme.roboflow", "notes"}
)
"""Names of text files that are no labels, without suffix."""


@dataclass(frozen=True)
class _SplitImages:
    """The images of a split, each with the candidates for its label file, most likely first."""

    paths: tuple[Path, ...]
    labels: tuple[tuple[Path, ...], ...]
    folders: tuple[Path, ...]
    """folders of label files"""


def read_yolo(data: Path) -> dict[str, CocoContent]:
    """The splits of a folder or of a data.yaml; ids of categories are YOLO's class numbers. Raises DataError."""
    file = data if data.is_file() else _yaml_in(data)
    keys = _read_data_yaml(file) if file is not None else {}
    splits = _splits_of_yaml(file, keys) if file is not None and "train" in keys else _splits_of_folder(data)
    if not splits:
        raise DataError(
            f"data={data}: no images with YOLO labels. Expected data.yaml, or images/ and labels/ (or splits of them)."
        )
    names = _names(file, keys, data if data.is_dir() else data.parent)
    content = {
        split: _split_content(split, images, _shared_with_train(split, splits), names)
        for split, images in splits.items()
    }
    others = {issue.kind for part in content.values() for issue in part.issues} - set(AUTO_FIXES)
    if not others and not any(part.annotations for part in content.values()):
        count = sum(len(part.images) for part in content.values())
        raise DataError(
            f"data={data}: none of {count:,} images has a label file with a box. Expected labels/NAME.txt for images/NAME.jpg, "
            "or NAME.txt in the same folder, with a line 'class x y width height' for each object."
        )
    numbers = {row["category_id"] for part in content.values() for row in part.annotations}
    categories = [{"id": number, "name": name} for number, name in enumerate(names or _numbered_names(numbers))]
    return {
        split: CocoContent(part.file, part.root, part.images, part.annotations, categories, part.locations, part.issues)
        for split, part in content.items()
    }


def _yaml_in(folder: Path) -> Path | None:
    """The data.yaml of a folder, or its only YAML file with names."""
    named = [folder / name for name in YOLO_FILES if (folder / name).is_file()]
    if named:
        return named[0]
    found = []
    for path in sorted(entry for suffix in ("*.yaml", "*.yml") for entry in folder.glob(suffix) if entry.is_file()):
        try:
            if "names" in _read_data_yaml(path):
                found.append(path)
        except DataError:
            continue
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise DataError(f"data={folder}: {listed} both name classes. Give one of them as data.")
    return found[0] if found else None


def _read_data_yaml(path: Path) -> dict[str, Any]:
    """The keys of a data.yaml, read safely; ``download`` is ignored. Raises DataError."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where is not None else ""
        raise DataError(f"{path}{line}: not valid YAML. Expected path, train, val and names.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: not a data.yaml. Expected path, train, val and names.")
    if "kpt_shape" in content:
        raise DataError(
            f"{path}: kpt_shape: labels with keypoints, which aren't supported. Expected boxes or polygons."
        )
    return {str(key): value for key, value in content.items()}


def _names(file: Path | None, keys: Mapping[str, Any], folder: Path) -> list[str]:
    """The names of the classes, in order of their numbers; empty where no file lists them. Raises DataError for invalid lists."""
    listed = keys.get("names")
    if listed is None:
        for name in NAME_FILES:
            if (folder / name).is_file():
                lines = [line.strip() for line in read_text(folder / name).splitlines()]
                return _check_distinct([line for line in lines if line], folder / name)
        return _numbered_names(range(keys["nc"])) if isinstance(keys.get("nc"), int) and 0 < keys["nc"] < 10_000 else []
    if isinstance(listed, dict):
        numbers = [
            int(key) if isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) else -1 for key in listed
        ]
        if sorted(numbers) != list(range(len(numbers))):
            raise DataError(f"{file}: names: expected the numbers 0 to {len(numbers) - 1}, each once.")
        listed = [name for _, name in sorted(zip(numbers, listed.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{file}: names: expected a list of names, or names by number.")
    for number, name in enumerate(listed):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"{file}: names: class {number} is not text in YAML. Quote it: 'yes'.")
    if isinstance(keys.get("nc"), int) and keys["nc"] != len(listed):
        raise DataError(f"{file}: nc is {keys['nc']}, but {len(listed)} names are listed. Correct one of them.")
    return _check_distinct([str(name) for name in listed], file)


def _check_distinct(names: list[str], file: Path | None) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{file}: '{twice}' is listed twice. Expected different names.")
    return names


def _numbered_names(numbers: Iterator[int] | Sequence[int] | set[int] | range) -> list[str]:
    return [f"class_{number}" for number in range(max(numbers, default=-1) + 1)]


def _splits_of_yaml(file: Path, keys: Mapping[str, Any]) -> dict[str, _SplitImages]:
    root = file.parent
    if isinstance(keys.get("path"), str):
        given = root / keys["path"]
        root = given if given.is_dir() else root  # often the path on the machine where the file was written
    splits = {}
    for split, names in SPLIT_NAMES.items():
        value = next((keys[name] for name in names if keys.get(name)), None)
        entries = [value] if isinstance(value, str) else value
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{file}: {split}: expected a folder of images, a list of them, or a .txt file of paths.")
        paths = [path for entry in entries for path in _images_of(file, root, split, entry)]
        found = [_label_candidates(path) for path in paths]
        folders = dict.fromkeys(place.parent for places in found for place in places[:1])
        splits[split] = _SplitImages(tuple(paths), tuple(found), tuple(folders))
    return splits


def _images_of(file: Path, root: Path, split: str, entry: str) -> list[Path]:
    """The images that an entry of a data.yaml refers to."""
    entry = entry.replace("\\", "/")
    tried = [root / entry, file.parent / entry]
    if entry.startswith("../"):
        tried.append(file.parent / entry[3:])  # Roboflow writes this for folders beside the file
    place = next((path for path in tried if path.exists()), None)
    if place is None:
        if split == "test":
            return []
        raise DataError(f"{file}: {split}: no {tried[0]}. Correct path or {split}, or give the folder as data.")
    if place.is_dir():
        return [place / name for name in list_files(place) if is_image_name(name)]
    if place.suffix.lower() != ".txt":
        raise DataError(f"{file}: {split}: {place} is neither a folder nor a .txt file of paths.")
    lines = [line.strip().replace("\\", "/") for line in read_text(place).splitlines() if line.strip()]
    return [place.parent / line for line in lines]


def _label_candidates(image: Path) -> tuple[Path, ...]:
    """Candidates for an image's label file: under labels/ where it is under images/, or in the same folder."""
    parts = image.parent.parts
    last = next((i for i in range(len(parts) - 1, -1, -1) if parts[i].lower() == "images"), None)
    beside = image.with_suffix(".txt")
    if last is None:
        return (beside,)
    labels = "labels" if parts[last] == "images" else parts[last].replace("mage", "abel").replace("MAGE", "ABEL")
    return Path(*parts[:last], labels, *parts[last + 1 :], beside.name), beside


def _splits_of_folder(data: Path) -> dict[str, _SplitImages]:
    """Splits by folders: images/SPLIT and labels/SPLIT, SPLIT/images and SPLIT/labels, SPLIT, or none of these."""
    splits = {}
    for split, names in SPLIT_NAMES.items():
        places = []
        for images in folders_named(data, IMAGE_FOLDERS):
            for labels in folders_named(data, ANNOTATION_FOLDERS):
                places += [(own, labels / own.name) for own in folders_named(images, names)]
        for own in folders_named(data, names):
            inside = [(i, j) for i in folders_named(own, IMAGE_FOLDERS) for j in folders_named(own, ANNOTATION_FOLDERS)]
            places += inside or [(own, own)]
        if found := next((pair for pair in places if _has_texts(pair[1])), None):
            splits[split] = _pair_by_name(*found)
        elif split != "train" and places and "train" in splits:
            splits[split] = _pair_by_name(*places[0])
    if splits:
        return splits
    pairs = [(i, j) for i in folders_named(data, IMAGE_FOLDERS) for j in folders_named(data, ANNOTATION_FOLDERS)]
    pairs += [
        (own, own) for own in (*folders_named(data, ("obj_train_data",)), *folders_named(data, IMAGE_FOLDERS), data)
    ]
    one = next((pair for pair in pairs if _has_texts(pair[1])), None)
    return {} if one is None else {"train": _pair_by_name(*one)}


def _has_texts(folder: Path) -> bool:
    for _, _, names in os.walk(folder):
        if any(
            name.lower().endswith(".txt") and os.path.splitext(name)[0].lower() not in OTHER_TEXT_FILES
            for name in names
        ):
            return True
    return False


def _pair_by_name(images: Path, labels: Path) -> _SplitImages:
    names = [name for name in list_files(images) if is_image_name(name)]
    texts = tuple(((labels / name).with_suffix(".txt"),) for name in names)
    return _SplitImages(tuple(images / name for name in names), texts, (labels,))


def _shared_with_train(split: str, splits: Mapping[str, _SplitImages]) -> list[DataIssue]:
    """The issue of a split that has images of the training split."""
    shared = set(splits[split].paths) & set(splits["train"].paths) if split != "train" and "train" in splits else set()
    if not shared:
        return []
    what = f"{len(shared):,} of its images are in the training split too. Without {split}, one is drawn from train"
    return [DataIssue("same image in two splits", min(shared), split, what)]


def _split_content(split: str, images: _SplitImages, issues: list[DataIssue], names: Sequence[str]) -> CocoContent:
    """The images and annotations of a split; ``issues`` are those known so far."""
    listed: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    locations: dict[int, str] = {}
    raw: list[tuple[float, ...]] = []
    root = Path(os.path.commonpath([path.parent for path in images.paths])) if images.paths else Path()
    folder = images.folders[0] if images.folders else root
    sizes = image_sizes(images.paths, split)
    used: set[Path] = set()
    stems: dict[Path, Path] = {}
    for number, (path, size, labels) in enumerate(zip(images.paths, sizes, images.labels, strict=True)):
        text = next((place for place in labels if place.is_file()), None)
        if text is not None:
            used.add(text)
        if isinstance(size, str):
            issues.append(DataIssue("image that can't be opened", path, "", size))
            continue
        if text is not None and stems.setdefault(text, path) != path:
            issues.append(DataIssue("two images of one label file", path, "", f"{text} is also that of {stems[text]}"))
            continue
        height, width = size
        listed.append({"id": number, "file_name": relative_posix_path(path, root), "height": height, "width": width})
        if text is None:
            continue
        try:
            lines = read_text(text).splitlines()
        except DataError as error:
            issues.append(DataIssue("broken label line", text, "", str(error).removeprefix(f"{text}: ")))
            continue
        for line, words in enumerate(lines, 1):
            if not words.strip():
                continue
            try:
                category, numbers = _parse_line(words)
            except DataError as error:
                issues.append(DataIssue("broken label line", text, f"line {line}", str(error)))
                continue
            if names and category >= len(names):
                what = f"class {category}, but {len(names)} are named, 0 to {len(names) - 1}"
                issues.append(DataIssue("unknown category id", text, f"line {line}", what))
                continue
            row = _coco_annotation(len(rows) + 1, number, category, numbers, width, height)
            if len(numbers) == BOX_NUMBERS - 1:
                raw.append((*numbers, width, height))
            locations[row["id"]] = f"{relative_posix_path(text, folder)} line {line}"
            rows.append(row)
    if (convention := _convention(raw)) is not None:
        issues.append(DataIssue(convention[0], folder, "", convention[1]))
    without = len(images.paths) - len(used)
    if without > len(images.paths) / 2:
        what = f"{without:,} of {len(images.paths):,} images of {split} have no label file"
        issues.append(DataIssue("images without label files", folder, "", what))
    issues += _unused_label_files(images, used)
    return CocoContent(folder, root, listed, rows, (), locations, tuple(issues))


def _parse_line(line: str) -> tuple[int, list[float]]:
    """The class and the shares of a line; raises DataError where it is invalid."""
    words = line.split()
    if len(words) == 1 and ("," in line or ";" in line):
        raise DataError(f"'{line[:40]}': expected numbers separated by spaces")
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"'{line[:40]}': expected numbers, 'class x y width height'") from error
    if not all(map(math.isfinite, numbers)) or numbers[0] != int(numbers[0]) or not 0 <= numbers[0] < 2**31:
        raise DataError(f"'{line[:40]}': expected the class as an integer from 0, and finite numbers")
    if len(numbers) == BOX_NUMBERS + 1:
        raise DataError(
            f"six numbers: a prediction with its confidence? Expected {BOX_NUMBERS}, 'class x y width height'"
        )
    if len(numbers) < BOX_NUMBERS or (len(numbers) > BOX_NUMBERS and len(numbers) % 2 == 0):
        raise DataError(
            f"{len(numbers)} numbers: expected {BOX_NUMBERS}, 'class x y width height', or a class and the points of a polygon"
        )
    if min(numbers[1:]) < -SHARE_TOLERANCE or max(numbers[1:]) > 1 + SHARE_TOLERANCE:
        raise DataError(
            f"'{line[:40]}': expected shares from 0 to 1. Pixels? Divide x and width by the image's width, y and height by "
            "its height"
        )
    return int(numbers[0]), numbers[1:]


def _coco_annotation(
    id: int, image: int, category: int, numbers: Sequence[float], width: int, height: int
) -> dict[str, Any]:
    """The annotation as an entry of COCO JSON."""
    row: dict[str, Any] = {"id": id, "image_id": image, "category_id": category}
    if len(numbers) == BOX_NUMBERS - 1:
        x, y, w, h = numbers[0] * width, numbers[1] * height, numbers[2] * width, numbers[3] * height
        return {**row, "bbox": [x - w / 2, y - h / 2, w, h]}
    xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
    polygon = [side for point in zip(xs, ys, strict=True) for side in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**row, "bbox": box, "segmentation": [polygon]}


def _convention(raw: Sequence[tuple[float, ...]]) -> tuple[str, str] | None:
    """The issue of boxes in another convention than YOLO's; ``raw``: four shares of each box and its image's size."""
    table = np.array(raw, dtype=np.float64).reshape(-1, 6)
    sizes = table[:, 4:]
    nothing = np.full((len(table), 4), np.nan)
    return yolo_convention_issue(RawBoxes(table[:, :4] * np.tile(sizes, 2), sizes, nothing[:, 0], nothing))


def _unused_label_files(images: _SplitImages, used: set[Path]) -> list[DataIssue]:
    """Label files that belong to no image."""
    issues = []
    for folder in images.folders:
        for name in list_files(folder) if folder.is_dir() else []:
            path = folder / name
            stem, suffix = os.path.splitext(path.name.lower())
            if suffix == ".txt" and path not in used and stem not in OTHER_TEXT_FILES:
                issues.append(DataIssue("label file without image", path, "", "no image of this name"))
    return issues
