"""YOLO's boxes: a text file an image with a line "class x y width height" an object, as Ultralytics and darknet read it.

x and y are of the box's centre; all four are shares of the image's width and height. Lines of seven numbers or more are
outlines, "class x1 y1 x2 y2 ...". An image without a file, or with an empty one, shows nothing.
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
from .decode import SUFFIXES
from .file_index import folders_named, list_files
from .folder_names import ANNOTATION_FOLDERS, IMAGE_FOLDERS, SPLIT_NAMES, YOLO_FILES
from .issues import AUTO_FIXES, DataIssue

BOX = 5
"""Numbers of a line with a box; an outline has three points or more behind the class."""
SLACK = 0.01
"""By how much a share may be below 0 or above 1, as rounding makes it."""
NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "obj_train_data/classes.txt", "_darknet.labels")
"""Lists of classes, a line each, where no data.yaml names them."""
NO_LABELS = frozenset(
    {"classes", "train", "val", "valid", "test", "readme", "readme.dataset", "readme.roboflow", "notes"}
)
"""Text files among labels that belong to no image."""


@dataclass(frozen=True)
class _Images:
    """The images of a split, each with the places where its label file may be, the likeliest first."""

    paths: tuple[Path, ...]
    labels: tuple[tuple[Path, ...], ...]
    folders: tuple[Path, ...]
    """of label files"""


def read_yolo(data: Path) -> dict[str, CocoContent]:
    """The splits of a folder or of a data.yaml; ids of categories are YOLO's class numbers. Raises DataError."""
    file = data if data.is_file() else _yaml_in(data)
    told = _from_yaml(file) if file is not None else {}
    splits = _splits_of_yaml(file, told) if file is not None and "train" in told else _splits_of_folder(data)
    if not splits:
        raise DataError(
            f"data={data}: no images with YOLO labels. Expected data.yaml, or images/ and labels/ (or splits of them)."
        )
    names = _names(file, told, data if data.is_dir() else data.parent)
    content = {split: _content(split, images, _shared(split, splits), names) for split, images in splits.items()}
    others = {issue.kind for part in content.values() for issue in part.issues} - set(AUTO_FIXES)
    if not others and not any(part.annotations for part in content.values()):
        count = sum(len(part.images) for part in content.values())
        raise DataError(
            f"data={data}: none of {count:,} images has a label file with a box. Expected labels/NAME.txt for images/NAME.jpg, "
            "or NAME.txt beside it, with a line 'class x y width height' an object."
        )
    numbers = {row["category_id"] for part in content.values() for row in part.annotations}
    categories = [{"id": number, "name": name} for number, name in enumerate(names or _numbered(numbers))]
    return {
        split: CocoContent(part.file, part.root, part.images, part.annotations, categories, part.places, part.issues)
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
            if "names" in _from_yaml(path):
                found.append(path)
        except DataError:
            continue
    if len(found) > 1:
        listed = " and ".join(path.name for path in found)
        raise DataError(f"data={folder}: {listed} both name classes. Give one of them as data.")
    return found[0] if found else None


def _from_yaml(path: Path) -> dict[str, Any]:
    """The keys of a data.yaml; nothing in it is run, and ``download`` is not followed. Raises DataError."""
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
        raise DataError(f"{path}: kpt_shape: labels with keypoints, which aren't read. Expected boxes or outlines.")
    return {str(key): value for key, value in content.items()}


def _names(file: Path | None, told: Mapping[str, Any], folder: Path) -> list[str]:
    """The classes' names by their numbers; none where nothing names them. Raises DataError for lists that make no sense."""
    listed = told.get("names")
    if listed is None:
        for name in NAME_FILES:
            if (folder / name).is_file():
                lines = [line.strip() for line in read_text(folder / name).splitlines()]
                return _distinct([line for line in lines if line], folder / name)
        return _numbered(range(told["nc"])) if isinstance(told.get("nc"), int) and 0 < told["nc"] < 10_000 else []
    if isinstance(listed, dict):
        keys = [
            int(key) if isinstance(key, int) or (isinstance(key, str) and key.isdecimal()) else -1 for key in listed
        ]
        if sorted(keys) != list(range(len(keys))):
            raise DataError(f"{file}: names: expected the numbers 0 to {len(keys) - 1}, each once.")
        listed = [name for _, name in sorted(zip(keys, listed.values(), strict=True), key=lambda pair: pair[0])]
    if not isinstance(listed, list) or not listed:
        raise DataError(f"{file}: names: expected a list of names, or names by number.")
    for number, name in enumerate(listed):
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"{file}: names: class {number} is no text to YAML. Write it in quotes: 'yes'.")
    if isinstance(told.get("nc"), int) and told["nc"] != len(listed):
        raise DataError(f"{file}: nc is {told['nc']}, but {len(listed)} names are listed. Correct one of them.")
    return _distinct([str(name) for name in listed], file)


def _distinct(names: list[str], file: Path | None) -> list[str]:
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise DataError(f"{file}: '{twice}' is listed twice. Expected different names.")
    return names


def _numbered(numbers: Iterator[int] | Sequence[int] | set[int] | range) -> list[str]:
    return [f"class_{number}" for number in range(max(numbers, default=-1) + 1)]


def _splits_of_yaml(file: Path, told: Mapping[str, Any]) -> dict[str, _Images]:
    root = file.parent
    if isinstance(told.get("path"), str):
        given = root / told["path"]
        root = given if given.is_dir() else root  # it is often that of the machine where the file was written
    splits = {}
    for split, names in SPLIT_NAMES.items():
        value = next((told[name] for name in names if told.get(name)), None)
        entries = [value] if isinstance(value, str) else value
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
            raise DataError(f"{file}: {split}: expected a folder of images, a list of them, or a .txt file of paths.")
        paths = [path for entry in entries for path in _images_of(file, root, split, entry)]
        found = [_label_places(path) for path in paths]
        folders = dict.fromkeys(place.parent for places in found for place in places[:1])
        splits[split] = _Images(tuple(paths), tuple(found), tuple(folders))
    return splits


def _images_of(file: Path, root: Path, split: str, entry: str) -> list[Path]:
    """The images that an entry of a data.yaml stands for."""
    entry = entry.replace("\\", "/")
    tried = [root / entry, file.parent / entry]
    if entry.startswith("../"):
        tried.append(file.parent / entry[3:])  # Roboflow's files say so, of folders beside them
    place = next((path for path in tried if path.exists()), None)
    if place is None:
        if split == "test":
            return []
        raise DataError(f"{file}: {split}: no {tried[0]}. Correct path or {split}, or give the folder as data.")
    if place.is_dir():
        return [place / name for name in list_files(place) if _is_image(name)]
    if place.suffix.lower() != ".txt":
        raise DataError(f"{file}: {split}: {place} is neither a folder nor a .txt file of paths.")
    lines = [line.strip().replace("\\", "/") for line in read_text(place).splitlines() if line.strip()]
    return [place.parent / line for line in lines]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _label_places(image: Path) -> tuple[Path, ...]:
    """Where an image's labels may be: under labels/ where it is under images/, or beside it."""
    parts = image.parent.parts
    last = next((i for i in range(len(parts) - 1, -1, -1) if parts[i].lower() == "images"), None)
    beside = image.with_suffix(".txt")
    if last is None:
        return (beside,)
    labels = "labels" if parts[last] == "images" else parts[last].replace("mage", "abel").replace("MAGE", "ABEL")
    return Path(*parts[:last], labels, *parts[last + 1 :], beside.name), beside


def _splits_of_folder(data: Path) -> dict[str, _Images]:
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
            splits[split] = _mirrored(*found)
        elif split != "train" and places and "train" in splits:
            splits[split] = _mirrored(*places[0])
    if splits:
        return splits
    pairs = [(i, j) for i in folders_named(data, IMAGE_FOLDERS) for j in folders_named(data, ANNOTATION_FOLDERS)]
    pairs += [
        (own, own) for own in (*folders_named(data, ("obj_train_data",)), *folders_named(data, IMAGE_FOLDERS), data)
    ]
    one = next((pair for pair in pairs if _has_texts(pair[1])), None)
    return {} if one is None else {"train": _mirrored(*one)}


def _has_texts(folder: Path) -> bool:
    for _, _, names in os.walk(folder):
        if any(name.lower().endswith(".txt") and os.path.splitext(name)[0].lower() not in NO_LABELS for name in names):
            return True
    return False


def _mirrored(images: Path, labels: Path) -> _Images:
    names = [name for name in list_files(images) if _is_image(name)]
    texts = tuple(((labels / name).with_suffix(".txt"),) for name in names)
    return _Images(tuple(images / name for name in names), texts, (labels,))


def _shared(split: str, splits: Mapping[str, _Images]) -> list[DataIssue]:
    """An issue for a split that has images of the training split."""
    shared = set(splits[split].paths) & set(splits["train"].paths) if split != "train" and "train" in splits else set()
    if not shared:
        return []
    what = f"{len(shared):,} of its images are the training split's too. Leave {split} out, and it is drawn from train"
    return [DataIssue("same image in two splits", min(shared), split, what)]


def _content(split: str, images: _Images, issues: list[DataIssue], names: Sequence[str]) -> CocoContent:
    """The images of a split and what their label files say; ``issues`` that are known."""
    listed: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    places: dict[int, str] = {}
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
            issues.append(DataIssue("two images of one label file", path, "", f"{text} is that of {stems[text]} too"))
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
                category, numbers = _numbers(words)
            except DataError as error:
                issues.append(DataIssue("broken label line", text, f"line {line}", str(error)))
                continue
            if names and category >= len(names):
                what = f"class {category}, but {len(names)} are named, 0 to {len(names) - 1}"
                issues.append(DataIssue("unknown category id", text, f"line {line}", what))
                continue
            row = _row(len(rows) + 1, number, category, numbers, width, height)
            if len(numbers) == BOX - 1:
                raw.append((*numbers, width, height))
            places[row["id"]] = f"{relative_posix_path(text, folder)} line {line}"
            rows.append(row)
    if (strange := _convention(raw)) is not None:
        issues.append(DataIssue(strange[0], folder, "", strange[1]))
    without = len(images.paths) - len(used)
    if without > len(images.paths) / 2:
        what = f"{without:,} of {len(images.paths):,} images of {split} have no label file"
        issues.append(DataIssue("images without label files", folder, "", what))
    issues += _unused(images, used)
    return CocoContent(folder, root, listed, rows, (), places, tuple(issues))


def _numbers(line: str) -> tuple[int, list[float]]:
    """The class and the shares of a line; raises DataError with what is wrong with it."""
    words = line.split()
    if len(words) == 1 and ("," in line or ";" in line):
        raise DataError(f"'{line[:40]}': expected numbers with blanks between them")
    try:
        numbers = [float(word) for word in words]
    except ValueError as error:
        raise DataError(f"'{line[:40]}': expected numbers, 'class x y width height'") from error
    if not all(map(math.isfinite, numbers)) or numbers[0] != int(numbers[0]) or not 0 <= numbers[0] < 2**31:
        raise DataError(f"'{line[:40]}': expected the class as a whole number from 0, and finite numbers")
    if len(numbers) == BOX + 1:
        raise DataError(f"six numbers: a prediction with its confidence? Expected {BOX}, 'class x y width height'")
    if len(numbers) < BOX or (len(numbers) > BOX and len(numbers) % 2 == 0):
        raise DataError(
            f"{len(numbers)} numbers: expected {BOX}, 'class x y width height', or a class and the points of an outline"
        )
    if min(numbers[1:]) < -SLACK or max(numbers[1:]) > 1 + SLACK:
        raise DataError(
            f"'{line[:40]}': expected shares from 0 to 1. Pixels? Divide x and width by the image's width, y and height by "
            "its height"
        )
    return int(numbers[0]), numbers[1:]


def _row(id: int, image: int, category: int, numbers: Sequence[float], width: int, height: int) -> dict[str, Any]:
    """An annotation as COCO has it."""
    row: dict[str, Any] = {"id": id, "image_id": image, "category_id": category}
    if len(numbers) == BOX - 1:
        x, y, w, h = numbers[0] * width, numbers[1] * height, numbers[2] * width, numbers[3] * height
        return {**row, "bbox": [x - w / 2, y - h / 2, w, h]}
    xs, ys = [x * width for x in numbers[::2]], [y * height for y in numbers[1::2]]
    outline = [side for point in zip(xs, ys, strict=True) for side in point]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {**row, "bbox": box, "segmentation": [outline]}


def _convention(raw: Sequence[tuple[float, ...]]) -> tuple[str, str] | None:
    """What all boxes have in common that can hardly be meant; ``raw``: their four shares and their images' sizes."""
    table = np.array(raw, dtype=np.float64).reshape(-1, 6)
    sizes = table[:, 4:]
    nothing = np.full((len(table), 4), np.nan)
    return yolo_convention_issue(RawBoxes(table[:, :4] * np.tile(sizes, 2), sizes, nothing[:, 0], nothing))


def _unused(images: _Images, used: set[Path]) -> list[DataIssue]:
    """Label files that belong to no image."""
    issues = []
    for folder in images.folders:
        for name in list_files(folder) if folder.is_dir() else []:
            path = folder / name
            stem, suffix = os.path.splitext(path.name.lower())
            if suffix == ".txt" and path not in used and stem not in NO_LABELS:
                issues.append(DataIssue("label file without image", path, "", "no image has its name"))
    return issues
