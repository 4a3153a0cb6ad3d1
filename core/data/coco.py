"""Detection data: images with boxes, and masks where they have them, from COCO JSON (https://cocodataset.org/#format-data).

What is wrong in a JSON is collected as ``DataIssue``s: reading refuses it at the first that leaves the meaning of an
annotation open, and mends the others by rule (``faults.MENDING``); ``maelift data check`` lists them all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import DataError
from ..files import read_regular
from .box_conventions import ConventionFault, RawBoxes, convention_fault
from .classification import Splits, draw_missing_splits, rarest_first_order
from .coco_content import CocoContent
from .dataset_format import SPLIT_NAMES, identify
from .decode import ANY_FORMAT, Picture, PixelFormat
from .images import FolderImages, tell_unused
from .issues import DataIssue, raise_on_errors
from .segmentation import find_mask_folders
from .splits import Strata
from .string_table import Numbers
from .voc import read_voc
from .yolo import read_yolo

DetectionLayout = Literal["auto", "coco", "yolo", "voc"]
"""How images and boxes lie in a folder; auto: as ``dataset_format`` finds."""

FaultKind = Literal[
    ConventionFault,
    "broken entry",
    "duplicate image id",
    "duplicate image file",
    "duplicate annotation id",
    "duplicate category id",
    "missing file",
    "unknown image id",
    "unknown category id",
    "broken box",
    "broken segmentation",
    "other categories than train",
    "box beyond its image",
    "box without area",
    "segmentation without area",
    "segmentations without area only",
    "equal category names",
    "object without segmentation",
    "object twice",
    "one box of two categories",
    "area that can't be",
    "file by another name",
]
LARGEST_SIDE = 100_000
"""Pixels of a side of an image beyond which its entry must be a mistake."""

FAR = 10
"""Sides of its image by which a polygon may reach beyond it: drawing walks along all of its outline."""

MOST_DIGITS = 13
"""Characters of a count in compressed run-lengths: 5 bits each, of the 64 that pycocotools reads."""

SLACK = 1.0
"""Pixels by which a box may reach beyond its image before it is worth telling: annotation tools round so."""


class RunLengths(TypedDict):
    """A mask as COCO's compressed run-lengths, column by column: ``size`` is [height, width]."""

    size: list[int]
    counts: str


Polygons = tuple[NDArray[np.float64], ...]
"""The outlines of an object's parts: each (2k,), x and y by turns, in pixels."""

Segmentation = Polygons | RunLengths


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one image.

    ``boxes`` (n, 4) float32: x1, y1, x2, y2 in pixels of the image, cut to it; ``labels`` (n,) int64 into the classes;
    ``crowd`` (n,) bool: regions of many objects, which evaluation ignores; ``areas`` (n,) float64: as annotated, in
    square pixels (COCO sorts small, medium and large by it); ``size`` is (height, width) of the image.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float64]
    segmentations: tuple[Segmentation | None, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Sequence[int]) -> Objects:
        """The objects with these numbers, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        segmentations = tuple(self.segmentations[index] for index in chosen)
        return Objects(
            self.boxes[chosen],
            self.labels[chosen],
            self.crowd[chosen],
            self.areas[chosen],
            segmentations,
            self.size,
        )

    def masks(self) -> NDArray[np.bool_]:
        """(n, H, W); an object without a segmentation has an empty mask."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for number, segmentation in enumerate(self.segmentations):
            if segmentation is not None:
                masks[number] = draw_mask(segmentation, self.size)
        return masks


@dataclass(frozen=True)
class SizedImages(FolderImages):
    """Image files whose sizes, (height, width) each, have been told: one that has another can't be opened."""

    sizes: tuple[tuple[int, int], ...]

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        image = super().open(index, form)
        self.check_size(index, image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2])
        return image

    def check_size(self, index: int, size: tuple[int, ...]) -> None:
        """Raise DataError for an image of another (height, width) than its annotations are for."""
        if size != self.sizes[index]:
            found, told = (f"{width}×{height}" for height, width in (size, self.sizes[index]))
            raise DataError(
                f"{self.root / self.paths[index]}: the image is {found} px (upright), but its "
                f"annotations are for {told}. Annotate the upright image, or correct its width and height"
            )

    def origin(self) -> str | None:
        told = hashlib.sha256(repr(self.sizes).encode()).hexdigest()  # what is found depends on the sizes
        return f"folder {self.root.absolute()}, sizes {told}"

    def subset(self, indices: Numbers) -> SizedImages:
        chosen = super().subset(indices)
        return SizedImages(chosen.root, chosen.paths, tuple(self.sizes[index] for index in indices))


@dataclass(frozen=True)
class DetectionImages:
    """Images with the objects on them (see ``labels.Annotated``); some may have none.

    ``category_ids`` are the JSON's ids of the ``classes``, ``image_ids`` of the images. ``has_masks``: every object of
    the JSON but crowds has a segmentation.
    """

    images: SizedImages
    objects: tuple[Objects, ...]
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_ids: tuple[int, ...]
    has_masks: bool

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def least_train(self) -> int:
        """One: an image may show all classes, or none."""
        return 1

    def subset(self, indices: Sequence[int]) -> DetectionImages:
        """The images with these numbers, in this order."""
        return DetectionImages(
            self.images.subset(indices),
            tuple(self.objects[index] for index in indices),
            self.classes,
            self.category_ids,
            tuple(self.image_ids[index] for index in indices),
            self.has_masks,
        )

    def label_text(self, index: int) -> str:
        """A hash of all objects of an image, with the names of their classes."""
        objects = self.objects[index]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((objects.size, [self.classes[label] for label in objects.labels])).encode())
        for array in (objects.boxes, objects.crowd, objects.areas):
            digest.update(array.tobytes())
        for segmentation in objects.segmentations:
            digest.update(b"|")
            if isinstance(segmentation, tuple):
                for polygon in segmentation:
                    digest.update(polygon.tobytes())
            elif segmentation is not None:
                digest.update(segmentation["counts"].encode())
        return digest.hexdigest()

    def draw_order(self, seed: int) -> list[int]:
        """An order in which every beginning has all classes about as often, as far as the images allow."""
        return rarest_first_order(self.present, seed, "labels")

    @property
    def strata(self) -> Strata:
        """The classes on each image."""
        return self.present

    def ground_truth(self) -> dict[str, Any]:
        """The COCO JSON of these images, after the rules: image and category ids as in the file, annotations from 1."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, (image_id, objects) in enumerate(zip(self.image_ids, self.objects, strict=True)):
            height, width = objects.size
            images.append({"id": image_id, "file_name": self.images.paths[index], "height": height, "width": width})
            for number in range(len(objects)):
                x1, y1, x2, y2 = (float(value) for value in objects.boxes[number])
                annotation: dict[str, Any] = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": self.category_ids[objects.labels[number]],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(objects.areas[number]),
                    "iscrowd": int(objects.crowd[number]),
                }
                segmentation = objects.segmentations[number]
                if isinstance(segmentation, tuple):
                    annotation["segmentation"] = [polygon.tolist() for polygon in segmentation]
                elif segmentation is not None:
                    annotation["segmentation"] = dict(segmentation)
                annotations.append(annotation)
        categories = [{"id": id, "name": name} for id, name in zip(self.category_ids, self.classes, strict=True)]
        return {"info": {}, "images": images, "annotations": annotations, "categories": categories}

    @cached_property
    def present(self) -> list[tuple[int, ...]]:
        """The classes on each image."""
        return [tuple(int(label) for label in np.unique(objects.labels)) for objects in self.objects]


@dataclass(frozen=True)
class Parsed:
    """A JSON as it was understood, and what is wrong in it; ``data`` holds what has a clear meaning."""

    file: Path
    data: DetectionImages
    faults: tuple[DataIssue, ...]


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

    ``data`` is a folder in one of these layouts, or a single JSON with its images beside it:

    - ``{train,val,test}.json``, images under ``images/SPLIT``, ``SPLIT`` or ``images``;
    - ``annotations/instances_{train2017,val2017}.json``, images under ``train2017`` and ``val2017`` (COCO's own);
    - ``{train,valid,test}/_annotations.coco.json`` or another single JSON in each folder, images beside it;
    - a single JSON in the folder or in ``annotations``, images beside it or under ``images``;
    - YOLO's, by a data.yaml or by folders (``yolo``), or Pascal VOC's (``voc``).

    Raises DataError for data that is none of these and for JSON that has no clear meaning. Boxes are cut to their
    image and annotations without area left out; a warning says how many.
    """
    parsed = parse_detection(data, layout)
    for part in parsed.values():
        raise_on_errors(part.faults, data)
    return {split: part.data for split, part in parsed.items()}


def parse_detection(data: str | Path, layout: DetectionLayout = "auto") -> dict[str, Parsed]:
    """The annotations of each split that a data set has, with all that is wrong in them; see ``detection_parts``.

    Raises DataError where there is nothing to be parsed.
    """
    path = Path(data)
    layout, *others = _layouts_of(path) if layout == "auto" else [layout]
    if layout == "yolo" or layout == "voc":
        contents = read_yolo(path) if layout == "yolo" else read_voc(path)
        parsed = {split: _parse_content(content) for split, content in contents.items()}
    else:
        parsed = {split: _parse(file, path) for split, file in find_annotations(path).items()}
    if others:
        first = next(iter(parsed))
        more = [DataIssue("another kind of annotations", path, "", f"layout={other} reads these") for other in others]
        parsed[first] = replace(parsed[first], faults=(*parsed[first].faults, *more))
    masks = [folder for _, folder in find_mask_folders(path).values()] if path.is_dir() else []
    tell_unused(path, [part.data.images for part in parsed.values()], "annotation", masks)
    train = parsed.get("train")
    if train is None:
        return parsed
    return {split: part if split == "train" else _with_classes_of(train, part) for split, part in parsed.items()}


def _layouts_of(data: Path) -> list[DetectionLayout]:
    """The layouts of boxes that a data set has, the first of which is read; COCO's where there is none, whose reader says so."""
    if data.is_file():
        return ["yolo" if data.suffix.lower() in (".yaml", ".yml") else "coco"]
    try:
        found = [one.format for one in identify(data)]
    except DataError:
        found = []
    names: tuple[Literal["coco", "yolo", "voc"], ...] = ("coco", "yolo", "voc")
    return [name for name in names if name in found] or ["coco"]


def find_annotations(data: Path) -> dict[str, Path]:
    """The COCO JSON of each split; a single one is the training split. Raises DataError when there is none."""
    if data.is_file() and data.suffix.lower() == ".json":
        return {"train": data}
    if not data.is_dir():
        raise DataError(f"data={data}: {'expected a folder or a COCO JSON' if data.exists() else 'no such folder'}.")
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in (data, data / "annotations"):
        for path in _json_files(folder):
            split = _split_of(path.stem)
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
            raise DataError(f"data={data}: {listed} are both {split}. Expected one JSON a split.")
    named = {split: paths[0] for split, paths in found.items() if paths}
    if named:
        return named
    single = _json_files(data) or _json_files(data / "annotations")
    if len(single) == 1:
        return {"train": single[0]}
    there = f"{len(single)} JSON files of which none is named after a split" if single else "no COCO JSON"
    raise DataError(
        f"data={data}: {there}. Expected train.json (and val.json, test.json), annotations/instances_train2017.json, "
        "train/_annotations.coco.json, or a single JSON, with the images beside it or under images/; or YOLO's data.yaml, or "
        "images/ and labels/; or Pascal VOC's Annotations/ and JPEGImages/."
    )


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.glob("*.json")) if path.is_file() and not path.name.startswith(".")]


def _split_of(stem: str) -> str | None:
    """The split that a JSON's name tells of: "train", "instances_val2017"."""
    match = re.fullmatch(r"(?:instances_)?([a-z]+)_?(?:\d{4})?", stem.lower())
    if match is None:
        return None
    return next((split for split, names in SPLIT_NAMES.items() if match[1] in names), None)


def _parse(path: Path, data: Path) -> Parsed:
    content = _load(path)
    faults = _Faults(path)
    category_ids, classes = _categories(content["categories"], faults)
    images, unclear = _images(content["images"], faults)
    root, paths = _find_files(path, data, images, faults)
    numbers = {category: number for number, category in enumerate(category_ids)}
    rows = _annotations(content["annotations"], images, unclear, numbers, faults)
    there = [image for image in images.values() if image.id in paths]
    data_set = DetectionImages(
        images=SizedImages(root, tuple(paths[image.id] for image in there), tuple(image.size for image in there)),
        objects=tuple(_objects(rows.get(image.id, ()), image.size) for image in there),
        classes=classes,
        category_ids=category_ids,
        image_ids=tuple(image.id for image in there),
        has_masks=_has_masks(rows, faults),
    )
    return Parsed(path, data_set, tuple(faults.found))


def _parse_content(content: CocoContent) -> Parsed:
    """Annotations of another layout, by the same rules."""
    faults = _Faults(content.file, content.places)
    faults.found += content.faults
    category_ids, classes = _categories(content.categories, faults)
    images, unclear = _images(content.images, faults)
    numbers = {category: number for number, category in enumerate(category_ids)}
    rows = _annotations(content.annotations, images, unclear, numbers, faults)
    data_set = DetectionImages(
        images=SizedImages(
            content.root,
            tuple(image.name for image in images.values()),
            tuple(image.size for image in images.values()),
        ),
        objects=tuple(_objects(rows.get(image.id, ()), image.size) for image in images.values()),
        classes=classes,
        category_ids=category_ids,
        image_ids=tuple(images),
        has_masks=_has_masks(rows, faults),
    )
    return Parsed(content.file, data_set, tuple(faults.found))


@dataclass
class _Faults:
    file: Path
    places: Mapping[int, str] = field(default_factory=dict)
    """where annotations stand, by their ids, if that isn't JSON"""

    def __post_init__(self) -> None:
        self.found: list[DataIssue] = []

    def place(self, id: int) -> str:
        """Where an annotation stands."""
        return self.places.get(id, f"annotation {id}")

    def add(self, kind: FaultKind, where: str, what: str) -> None:
        self.found.append(DataIssue(kind, self.file, where, what))


@dataclass(frozen=True)
class _Entry:
    """An image of the JSON."""

    id: int
    name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class _Row:
    """An annotation of the JSON; the box is x1, y1, x2, y2, cut to the image."""

    id: int
    name: str
    label: int
    box: tuple[float, float, float, float]
    area: float | None
    crowd: bool
    segmentation: Segmentation | None


def _load(path: Path) -> dict[str, list[Any]]:
    """The JSON's lists; raises DataError when it is not COCO JSON as a whole."""
    try:
        text = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or '').lower()}).") from error
    if text[:2] == b"\x1f\x8b":
        raise DataError(f"{path}: compressed by gzip. Expected JSON: unpack it first (gunzip).")
    try:
        content = json.loads(text)  # UTF-8, with or without a mark, or UTF-16
    except json.JSONDecodeError as error:
        raise DataError(f"{path} line {error.lineno}: not valid JSON ({error.msg}). Export it again.") from error
    except (ValueError, RecursionError) as error:  # other encodings, nesting without end, numbers of 5,000 digits
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


def _categories(entries: Sequence[Any], faults: _Faults) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Ids and names, by id; equal names are told apart by their ids."""
    names: dict[int, str] = {}
    for place, entry in enumerate(entries):
        where = f"categories[{place}]"
        id = _whole(entry.get("id")) if isinstance(entry, dict) else None
        if id is None or not _is_text(entry.get("name")):
            faults.add("broken entry", where, f"expected an int 'id' and a text 'name', found {_short(entry)}")
        elif id in names:
            faults.add("duplicate category id", where, f"id {id} is '{names[id]}' already. Give each its own id")
        else:
            names[id] = entry["name"]
    ids = tuple(sorted(names))
    counts = Counter(names.values())
    for name, count in counts.items():
        if count > 1:
            same = ", ".join(str(id) for id in ids if names[id] == name)
            faults.add("equal category names", f"categories {same}", f"all are called '{name}'")
    return ids, tuple(names[id] if counts[names[id]] == 1 else f"{names[id]} ({id})" for id in ids)


def _images(entries: Sequence[Any], faults: _Faults) -> tuple[dict[int, _Entry], frozenset[int]]:
    """The sound images by id, and the ids of the others, whose annotations are no faults of their own."""
    images: dict[int, _Entry] = {}
    ids: set[int] = set()
    files: dict[str, int] = {}
    for place, entry in enumerate(entries):
        id = _whole(entry.get("id")) if isinstance(entry, dict) else None
        if id is None:
            found = f", found {_short(entry.get('id'))}" if isinstance(entry, dict) else ""
            faults.add("broken entry", f"images[{place}]", f"expected an int 'id'{found}")
            continue
        ids.add(id)
        where = f"image {id}"
        name = entry.get("file_name")
        if not isinstance(name, str) or not name:
            faults.add("broken entry", where, f"expected a text 'file_name', found {_short(name)}")
            continue
        height, width = _whole(entry.get("height")), _whole(entry.get("width"))
        if height is None or width is None or not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
            found = f"found {_short(entry.get('width'))} and {_short(entry.get('height'))}"
            faults.add("broken entry", where, f"expected 'width' and 'height' in pixels, {found}")
            continue
        name = name.replace("\\", "/")
        if id in images:
            faults.add("duplicate image id", where, f"both {images[id].name} and {name} have this id")
        elif name in files:
            faults.add("duplicate image file", where, f"{name} is image {files[name]} already")
        else:
            images[id] = _Entry(id, name, (height, width))
            files[name] = id
    return images, frozenset(ids - images.keys())


def _find_files(path: Path, data: Path, images: Mapping[int, _Entry], faults: _Faults) -> tuple[Path, dict[int, str]]:
    """The folder in which most image files are found, and the paths below it of the images that are there, by id.

    A file that isn't where ``file_name`` says may be known by its name alone: other tools write paths of the machine that
    they ran on, percent signs for blanks, or other capitals. That is done where it is unmistakable, and reported.
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
    split = _split_of(path.stem)
    for name in SPLIT_NAMES.get(split or "", ()):
        candidates += [base / "images" / name, base / name]
    names = [image.name for image in images.values()]
    sample = names[:: max(1, len(names) // 200)]

    def found_in(folder: Path) -> tuple[int, int]:
        """Names of the sample whose files are in a folder, and last parts of names, capitals or not."""
        whole = sum(os.path.isfile(folder / name) for name in sample)
        if whole == len(sample):
            return whole, 0
        there = {name.lower() for name in _listed(folder)}
        return whole, sum(_last(unquote(name)).lower() in there for name in sample)

    root = max(candidates, key=found_in)
    paths = {image.id: image.name for image in images.values() if os.path.isfile(root / image.name)}
    if len(paths) == len(images):
        return root, paths
    used = set(paths.values())
    alone = Counter(_last(unquote(name)).lower() for name in names)
    there: dict[str, list[str]] = defaultdict(list)
    for name in _listed(root):
        there[name.lower()].append(name)
    for image in images.values():
        if image.id in paths:
            continue
        last = _last(unquote(image.name))
        others = [unquote(image.name), last]
        if alone[last.lower()] > 1:
            others = others[:1]
        elif len(there[last.lower()]) == 1:
            others += there[last.lower()]
        place = next((name for name in others if os.path.isfile(root / name)), None)
        if place is None:
            faults.add("missing file", f"image {image.id}", f"no such file: {root / image.name}")
        elif place in used:
            faults.add("duplicate image file", f"image {image.id}", f"{image.name} is {place}, another image's file")
        else:
            faults.add("file by another name", f"image {image.id}", f"{image.name} is {place} in {root}")
            paths[image.id] = place
            used.add(place)
    return root, paths


def _listed(folder: Path) -> list[str]:
    """The names in a folder; none where there is no such folder."""
    try:
        return os.listdir(folder)
    except (OSError, ValueError):
        return []


def _last(name: str) -> str:
    """The file's name without its folders, as Unix, Windows and URLs write them."""
    return name.rpartition("/")[2].partition("?")[0] or name


def _annotations(
    entries: Sequence[Any],
    images: Mapping[int, _Entry],
    unclear: frozenset[int],
    numbers: Mapping[int, int],
    faults: _Faults,
) -> dict[int, list[_Row]]:
    """The annotations of each image that have a clear meaning and an area, each object once."""
    rows: dict[int, list[_Row]] = defaultdict(list)
    seen: set[int] = set()
    raw: list[tuple[float, ...]] = []
    for place, entry in enumerate(entries):
        id = _whole(entry.get("id")) if isinstance(entry, dict) else None
        if id is None:
            found = f", found {_short(entry.get('id'))}" if isinstance(entry, dict) else ""
            faults.add("broken entry", f"annotations[{place}]", f"expected an int 'id'{found}")
            continue
        where = faults.place(id)
        if id in seen:
            what = f"annotations[{place}] has the id of one before it. Give each its own id"
            faults.add("duplicate annotation id", where, what)
            continue
        seen.add(id)
        image, category = _whole(entry.get("image_id")), _whole(entry.get("category_id"))
        if image is not None and image in unclear:
            continue
        if image is None or image not in images:
            faults.add("unknown image id", where, f"image_id {_short(entry.get('image_id'))} is not among the images")
            continue
        if category is None or category not in numbers:
            what = f"category_id {_short(entry.get('category_id'))} is not among the categories"
            faults.add("unknown category id", where, what)
            continue
        row = _row(id, entry, numbers[category], images[image], where, faults, raw)
        if row is not None:
            rows[image].append(row)
    table = np.array(raw, dtype=np.float64).reshape(-1, 11)
    strange = convention_fault(RawBoxes(table[:, :4], table[:, 4:6], table[:, 6], table[:, 7:]))
    if strange is not None:
        faults.add(strange[0], "annotations", strange[1])
    rows = _with_outlines(rows, faults)
    return {image: _each_once(found, faults) for image, found in rows.items()}


def _row(
    id: int,
    entry: Mapping[str, Any],
    label: int,
    image: _Entry,
    where: str,
    faults: _Faults,
    raw: list[tuple[float, ...]],
) -> _Row | None:
    """An annotation that has a clear meaning; its numbers as they are written are added to ``raw``, a ``RawBoxes`` row each."""
    height, width = image.size
    box, area, crowd = entry.get("bbox"), entry.get("area"), entry.get("iscrowd") or 0
    where = f"{where} ({image.name})"
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        faults.add("broken box", where, f"bbox {_short(box)}: expected four numbers, x, y, width, height in pixels")
        return None
    if area is not None and not (_is_number(area) and area >= 0):
        faults.add("broken entry", where, f"area {_short(area)}: expected a number of square pixels")
        return None
    if crowd not in (0, 1):
        faults.add("broken entry", where, f"iscrowd {_short(crowd)}: expected 0 or 1")
        return None
    x, y, w, h = (float(value) for value in box)
    try:
        segmentation = _segmentation(entry.get("segmentation"), image.size)
    except DataError as error:
        faults.add("broken segmentation", where, str(error))
        return None
    extent = _extent(segmentation)
    raw.append((x, y, w, h, width, height, np.nan if area is None else float(area), *extent))
    if not (w > 0 and h > 0):
        faults.add("box without area", where, f"bbox {_short(box)}: width and height must be above 0")
        return None
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        inside = x2 > x1 and y2 > y1
        how = "reaches beyond" if inside else "lies outside"
        faults.add("box beyond its image", where, f"bbox {_short(box)} {how} the image of {width}×{height} px")
    if not (np.float32(x2) > np.float32(x1) and np.float32(y2) > np.float32(y1)):
        faults.add("box without area", where, f"bbox {_short(box)}: nothing of it is on the image")
        return None
    if area is not None and not 0 < area <= (w + 2) * (h + 2):
        faults.add("area that can't be", where, f"area {_short(area)} of an object in a box of {w:g}×{h:g} px")
    return _Row(
        id, image.name, label, (x1, y1, x2, y2), None if area is None else float(area), bool(crowd), segmentation
    )


def _with_outlines(rows: Mapping[int, list[_Row]], faults: _Faults) -> dict[int, list[_Row]]:
    """The objects without those whose outline has no area; where there are no other outlines, all with their boxes alone."""
    empty = [row for found in rows.values() for row in found if row.segmentation == ()]
    if not empty:
        return dict(rows)
    if not any(row.segmentation for found in rows.values() for row in found if not row.crowd):
        what = f"none of the {len(empty):,} objects with outlines has one of three points or more on its image"
        faults.add("segmentations without area only", "annotations", what)
        return {
            image: [replace(row, segmentation=row.segmentation or None) for row in found]
            for image, found in rows.items()
        }
    for row in empty:
        faults.add(
            "segmentation without area",
            f"{faults.place(row.id)} ({row.name})",
            "no outline of three points or more lies on the image",
        )
    return {image: [row for row in found if row.segmentation != ()] for image, found in rows.items()}


def _each_once(rows: Sequence[_Row], faults: _Faults) -> list[_Row]:
    """The objects of an image without those that are there already: the same class, box and outline."""
    kept: dict[tuple[object, ...], list[_Row]] = {}
    classes: dict[tuple[object, ...], _Row] = {}
    for row in rows:
        place = (*(round(side, 2) for side in row.box), row.crowd)
        same = kept.setdefault((row.label, *place), [])
        for number, other in enumerate(same):
            if row.segmentation is None or other.segmentation is None or _equal(row.segmentation, other.segmentation):
                where, what = (
                    f"{faults.place(row.id)} ({row.name})",
                    f"the object of {faults.place(other.id)} once more",
                )
                faults.add("object twice", where, what)
                if other.segmentation is None and row.segmentation is not None:
                    same[number] = row
                break
        else:
            same.append(row)
        first = classes.setdefault(place, row)
        if first.label != row.label:
            what = f"the box of {faults.place(first.id)}, which is of another category"
            faults.add("one box of two categories", f"{faults.place(row.id)} ({row.name})", what)
    left = {id(row) for same in kept.values() for row in same}
    return [row for row in rows if id(row) in left]


def _equal(one: Segmentation, other: Segmentation) -> bool:
    """Whether two segmentations are written alike."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(np.array_equal, one, other))
    return one == other if isinstance(one, dict) and isinstance(other, dict) else False


def _extent(segmentation: Segmentation | None) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 around polygons; NaN where there are none."""
    if not segmentation or not isinstance(segmentation, tuple):
        return (np.nan,) * 4
    points = segmentation[0] if len(segmentation) == 1 else np.concatenate(segmentation)
    x, y = points[::2], points[1::2]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def _segmentation(value: object, size: tuple[int, int]) -> Segmentation | None:
    """Polygons (those of three points or more that lie on the image) or run-lengths; raises DataError for anything else."""
    if not value and (value is None or isinstance(value, list | dict)):
        return None
    if isinstance(value, dict):
        return _run_lengths(value, size)
    if not isinstance(value, list):
        raise DataError(f"segmentation {_short(value)}: expected a list of polygons, or run-lengths")
    polygons = value if isinstance(value[0], list) else [value]
    if not any(polygons):
        return None  # [[]] says as little as []
    outlines = [_outline(polygon, size) for polygon in polygons]
    return tuple(outline for outline in outlines if len(outline) >= 6 and _may_be_seen(outline, size))


def _outline(polygon: object, size: tuple[int, int]) -> NDArray[np.float64]:
    """(2k,): x and y by turns; raises DataError for what is no polygon."""
    expected = "expected finite numbers, x and y by turns"
    if not isinstance(polygon, list) or len(polygon) % 2:
        raise DataError(f"polygon {_short(polygon)}: {expected}")
    try:
        numbers = np.array(polygon, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        numbers = np.full(1, np.nan)
    if polygon and (set(map(type, polygon)) - {int, float} or numbers.ndim != 1 or not np.isfinite(numbers).all()):
        raise DataError(f"polygon {_short(polygon)}: {expected}")
    if polygon and np.abs(numbers).max() > FAR * max(size):
        raise DataError(f"polygon {_short(polygon)}: expected pixels of an image of {size[1]}×{size[0]} px")
    return numbers.astype(np.float64)


def _may_be_seen(outline: NDArray[np.float64], size: tuple[int, int]) -> bool:
    """Whether the extent of a polygon lies on the image."""
    height, width = size
    x, y = outline[::2], outline[1::2]
    return bool(x.max() > 0 and y.max() > 0 and x.min() < width and y.min() < height)


def _run_lengths(value: Mapping[str, Any], size: tuple[int, int]) -> RunLengths:
    from faster_coco_eval.core import mask as coco_mask

    height, width = size
    counts = value.get("counts")
    if value.get("size") != [height, width]:
        raise DataError(
            f"run-lengths of size {_short(value.get('size'))}: expected [height, width] = {[height, width]}"
        )
    if not isinstance(counts, list | str):
        raise DataError(f"run-lengths {_short(counts)}: expected a list of counts, or COCO's compressed text")
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    if not all(type(run) is int and run >= 0 for run in runs) or sum(runs) != height * width:
        raise DataError(f"run-lengths {_short(counts)}: expected counts of {height * width} pixels together")
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"].decode()
    return {"size": [height, width], "counts": counts}


def _decompressed(text: str) -> list[int]:
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
        if shift > 5 * MOST_DIGITS:
            return [-1]
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    return counts if shift == 0 else [-1]


def _objects(rows: Sequence[_Row], size: tuple[int, int]) -> Objects:
    return Objects(
        boxes=np.array([row.box for row in rows], dtype=np.float32).reshape(-1, 4),
        labels=np.array([row.label for row in rows], dtype=np.int64),
        crowd=np.array([row.crowd for row in rows], dtype=bool),
        areas=np.array([_area(row, size) for row in rows], dtype=np.float64),
        segmentations=tuple(row.segmentation for row in rows),
        size=size,
    )


def _area(row: _Row, size: tuple[int, int]) -> float:
    """As annotated; else that of the segmentation, or of the box."""
    if row.area is not None:
        return row.area
    if row.segmentation is not None:
        from faster_coco_eval.core import mask as coco_mask

        return float(coco_mask.area(run_lengths(row.segmentation, size)))
    x1, y1, x2, y2 = row.box
    return (x2 - x1) * (y2 - y1)


def _has_masks(rows: Mapping[int, Iterable[_Row]], faults: _Faults) -> bool:
    """Whether every object but crowds has a segmentation; where only some have, those without are faults."""
    single = [row for found in rows.values() for row in found if not row.crowd]
    without = [row for row in single if row.segmentation is None]
    if len(without) < len(single):
        for row in without:
            faults.add("object without segmentation", f"{faults.place(row.id)} ({row.name})", "other objects have one")
    return bool(single) and not without


def _with_classes_of(train: Parsed, part: Parsed) -> Parsed:
    """A split with the classes of the training split; categories that differ are a fault."""
    expected = dict(zip(train.data.category_ids, train.data.classes, strict=True))
    faults = list(part.faults)
    for id, name in zip(part.data.category_ids, part.data.classes, strict=True):
        if expected.get(id) != name:
            there = f"'{expected[id]}'" if id in expected else "no category"
            what = f"'{name}' here, {there} in {train.file.name}"
            faults.append(DataIssue("other categories than train", part.file, f"category {id}", what))
    if len(faults) > len(part.faults) or part.data.category_ids == train.data.category_ids:
        return Parsed(part.file, part.data, tuple(faults))
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
    return Parsed(part.file, data, tuple(faults))


def _whole(value: object) -> int | None:
    """A whole number that other tools can hold too, 3 or 3.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**53:
        return None
    return int(value) if value == int(value) else None


def _is_text(value: object) -> bool:
    """Whether a value is a text that can be written to a file: "\\ud800" can't."""
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: object) -> bool:
    """Whether a value is a number of a size that pixels can have; NaN and infinity aren't."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _short(value: object) -> str:
    try:
        text = json.dumps(value, default=str, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of 5,000 digits, lists in lists without end
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."
