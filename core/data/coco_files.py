"""The files of a COCO data set: which JSON holds which split, and where the images are that it lists."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ..errors import DataError
from ..files import read_regular
from .coco_content import CocoImage, IssueCollector
from .folder_names import SPLIT_NAMES


def find_annotations(data: Path) -> dict[str, Path]:
    """The COCO JSON of each split; a single one is the training split. Raises DataError when there is none."""
    if data.is_file() and data.suffix.lower() == ".json":
        return {"train": data}
    if not data.is_dir():
        raise DataError(f"data={data}: {'expected a folder or a COCO JSON' if data.exists() else 'no such folder'}.")
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in (data, data / "annotations"):
        for path in _json_files(folder):
            split = _split_of_json(path.stem)
            if split is not None:
                found[split].append(path)
    for split, names in SPLIT_NAMES.items():
        for name in names:
            inside = _json_files(data / name)
            if len(inside) == 1 and not found[split]:
                found[split] = inside
    for split, paths in found.items():
        if len(paths) > 1:
            listed = " and ".join(str(path.relative_to(data)) for path in paths)
            raise DataError(f"data={data}: {listed} are both {split}. Expected one JSON for each split.")
    named = {split: paths[0] for split, paths in found.items() if paths}
    if named:
        return named
    single = _json_files(data) or _json_files(data / "annotations")
    if len(single) == 1:
        return {"train": single[0]}
    there = f"{len(single)} JSON files, none of them named after a split" if single else "no COCO JSON"
    raise DataError(
        f"data={data}: {there}. Expected train.json (and val.json, test.json), annotations/instances_train2017.json, "
        "train/_annotations.coco.json, or a single JSON, with the images in its folder or under images/; or YOLO's data.yaml, or "
        "images/ and labels/; or Pascal VOC's Annotations/ and JPEGImages/."
    )


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.glob("*.json")) if path.is_file() and not path.name.startswith(".")]


def _split_of_json(stem: str) -> str | None:
    """The split in a JSON's name: "train", "instances_val2017"."""
    match = re.fullmatch(r"(?:instances_)?([a-z]+)_?(?:\d{4})?", stem.lower())
    if match is None:
        return None
    return next((split for split, names in SPLIT_NAMES.items() if match[1] in names), None)


def load_coco_json(path: Path) -> dict[str, list[Any]]:
    """The lists of COCO JSON; raises DataError for a file that isn't COCO JSON."""
    try:
        text = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or '').lower()}).") from error
    if text[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: compressed by gzip. Expected JSON: unpack it first (gunzip).")
    try:
        content = json.loads(text)  # UTF-8, with or without a byte order mark, or UTF-16
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}). Export it again.") from error
    except (ValueError, RecursionError) as error:  # other encodings, nesting too deep, numbers of 5,000 digits
        raise DataError(f"{path}: not valid JSON in UTF-8 ({error}). Export it again.") from error
    if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
        raise DataError(
            f"{path}: COCO's results format (objects with scores). Expected images, annotations, categories."
        )
    if not isinstance(content, dict):
        raise DataError(f"{path}: a {type(content).__name__}, not COCO JSON. Expected images, annotations, categories.")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = "no" if key not in content else "not a list:"
            raise DataError(f"{path}: {found} '{key}'. Expected COCO JSON: images, annotations and categories.")
    if not content["images"]:
        raise DataError(f"{path}: the list of images is empty.")
    if not content["categories"]:
        raise DataError(f"{path}: the list of categories is empty.")
    return content


def locate_images(
    path: Path, data: Path, images: Mapping[int, CocoImage], issues: IssueCollector
) -> tuple[Path, dict[int, str]]:
    """The folder in which most image files are found, and the paths below it of the images found, by id.

    A file that isn't where ``file_name`` says is found by its name alone where that is unambiguous, and reported: other
    tools write paths of the machine they ran on, percent-encoded spaces, or other capitals.
    """
    stem = path.stem.removeprefix("instances_")
    base = data if data.is_dir() else data.parent
    candidates = [
        base / "images" / stem,
        base / stem,
        base / stem / "images",
        path.parent / "images",
        path.parent,
        base / "images",
        base,
    ]
    split = _split_of_json(path.stem)
    for name in SPLIT_NAMES.get(split or "", ()):
        candidates += [base / "images" / name, base / name]
    names = [image.name for image in images.values()]
    sample = names[:: max(1, len(names) // 200)]

    def found_in(folder: Path) -> tuple[int, int]:
        """How many names of the sample are files in a folder, and how many by their last part in any case."""
        exact = sum(os.path.isfile(folder / name) for name in sample)
        if exact == len(sample):
            return exact, 0
        there = {name.lower() for name in _listdir_or_empty(folder)}
        return exact, sum(_basename(unquote(name)).lower() in there for name in sample)

    root = max(candidates, key=found_in)
    paths = {image.id: image.name for image in images.values() if os.path.isfile(root / image.name)}
    if len(paths) == len(images):
        return root, paths
    used = set(paths.values())
    occurrences = Counter(_basename(unquote(name)).lower() for name in names)
    there: dict[str, list[str]] = defaultdict(list)
    for name in _listdir_or_empty(root):
        there[name.lower()].append(name)
    for image in images.values():
        if image.id in paths:
            continue
        last = _basename(unquote(image.name))
        others = [unquote(image.name), last]
        if occurrences[last.lower()] > 1:
            others = others[:1]
        elif len(there[last.lower()]) == 1:
            others += there[last.lower()]
        place = next((name for name in others if os.path.isfile(root / name)), None)
        if place is None:
            issues.add("missing file", f"image {image.id}", f"no such file: {root / image.name}")
        elif place in used:
            issues.add("duplicate image file", f"image {image.id}", f"{image.name} is {place}, another image's file")
        else:
            issues.add("file by another name", f"image {image.id}", f"{image.name} is {place} in {root}")
            paths[image.id] = place
            used.add(place)
    return root, paths


def _listdir_or_empty(folder: Path) -> list[str]:
    """The names in a folder; empty where it can't be listed."""
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []


def _basename(name: str) -> str:
    """The file name without folders, in a path or a URL."""
    return name.rpartition("/")[2].partition("?")[0] or name
