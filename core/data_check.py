"""``maelift data check``: everything that is wrong in a data set, before a run stumbles over it.

Annotations are judged by the readers' own rules (``faults``); every image is opened once; images of different splits are
compared by their pixels and, to find pictures that were saved anew, resized or mirrored, by thumbnails.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .coco import parse_detection
from .config import ConfigError, DataError
from .faults import MENDING, Fault
from .files import atomic_write_text, output_folder
from .images import FolderImages, ImageSet
from .labels import SPLIT_NAMES, LabeledImages, read_parts
from .mask_images import Layout, SegmentationImages, parse_segmentation
from .plan import Plan
from .tracking import counting

T = TypeVar("T")
TaskName = Literal["classify", "detect", "segment"]

RULES: Mapping[str, str] = {
    **MENDING,
    "class without examples": "it counts in no average of that split",
    "mask without any class": "nothing is learned from it",
    "duplicate images in train": "splits that are drawn from train may share them",
    "near-duplicates in train": "splits that are drawn from train may share them",
    "turned by EXIF": "shown upright; its annotations must be of the upright image",
}
"""Findings with which a data set is still sound, by kind, and what is done about them."""

THUMBNAIL = 16
"""Side of the thumbnails that are compared, in pixels."""

LEAST_ALIKE, SURELY_ALIKE = 0.98, 0.998
"""Between these lies the likeness from which on two images are near-duplicates, where ``near`` is left to the data.

Thumbnails of different fashion scenes correlate by at most 0.93, of a scene and its copy (JPEG of quality 25, or half the
size) by 0.997 or more; tiles of photographs by at most 0.91. But the centred items of Fashion-MNIST, all of one make, reach
0.996, while the items that its test images share with its training images lie above 0.998.
"""

CLOSENESS = 0.05
"""A near-duplicate is so much closer to its double (1 - correlation) than images usually are to the one most like them."""

FLAT = 2.0
"""Thumbnails with a standard deviation of fewer gray levels (of 255) show nothing that could be compared."""

EXAMPLES = 5
"""Findings of one kind that the summary spells out."""

EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class DataCheckConfig:
    """Name everything that is wrong in a labelled data set: annotations, files, and images that two splits share."""

    data: str
    """the data set: class folders, CSV or idx files; COCO JSON with images; images with mask PNGs"""
    task: Literal["auto", "classify", "detect", "segment"] = "auto"
    """what the data is for; auto: all that is found in it"""
    layout: Literal["auto", "folders", "ade20k", "cityscapes"] = "auto"
    """how images and masks lie in their folders (segment)"""
    ignore: int | tuple[int, ...] | None = None
    """value or values of masks that mean nothing; null: 255, unless it is the value of a class"""
    near: float | None = None
    """least likeness of near-duplicates (correlation of thumbnails, mirrored ones too), up to 1 (none); null: from the data"""
    out: str | None = None
    """JSON file for all findings; the summary spells out the first of each kind"""

    def __post_init__(self) -> None:
        if self.near is not None and not 0.5 <= self.near <= 1:
            raise ConfigError("near", self.near, "a correlation from 0.5 to 1, or null")
        if self.layout not in ("auto", "folders") and self.task not in ("auto", "segment"):
            raise ConfigError("layout", self.layout, f"auto with task={self.task}: it is for images with masks")


@dataclass(frozen=True)
class SplitContent:
    """What a split holds for a task: ``classes`` are (name, count) of objects (detect) or of images that show it."""

    task: TaskName
    split: str
    images: int
    objects: int | None
    sizes: tuple[tuple[int, int], tuple[int, int]] | None
    """the smallest and the largest (height, width) by area"""
    classes: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Finding:
    """All faults of one kind, each in a line; ``rule`` says what is done about them, None for those that must be mended."""

    kind: str
    rule: str | None
    texts: tuple[str, ...]


@dataclass(frozen=True)
class DataCheck:
    """What a data set holds and what is wrong in it. ``near``: the likeness that was taken for a near-duplicate."""

    data: str
    splits: tuple[SplitContent, ...]
    findings: tuple[Finding, ...]
    near: float | None
    report: Path | None

    @property
    def error(self) -> str | None:
        """What makes the data set unsound, in a line; None where it is sound."""
        serious = [finding for finding in self.findings if finding.rule is None]
        if not serious:
            return None
        count = sum(len(finding.texts) for finding in serious)
        listed = ", ".join(f"{len(finding.texts):,} × {finding.kind}" for finding in serious)
        where = f"All stand in {self.report}." if self.report else "out=FILE.json writes down all."
        return f"data={self.data}: {count:,} fault{'s' if count > 1 else ''} ({listed}). {where}"

    def summary(self) -> str:
        """What is there, and what was found, in lines."""
        lines = [line for task in dict.fromkeys(split.task for split in self.splits) for line in self._task_lines(task)]
        for finding in self.findings:
            what = f"by rule: {finding.rule}" if finding.rule else "to be mended"
            lines += ["", f"{finding.kind}: {len(finding.texts):,} ({what})"]
            lines += [f"  {text}" for text in finding.texts[:EXAMPLES]]
            if len(finding.texts) > EXAMPLES:
                lines.append(f"  ... and {len(finding.texts) - EXAMPLES:,} more")
        lines.append("")
        if self.near is not None:
            lines.append(
                f"compared: images by their thumbnails (near-duplicates from a likeness of {self.near:.4f} on)"
            )
        lines.append("nothing is wrong" if not self.findings else "sound" if self.error is None else "not sound")
        return "\n".join(lines)

    def _task_lines(self, task: TaskName) -> Iterator[str]:
        """A task's splits, and a table of its classes."""
        splits = [split for split in self.splits if split.task == task]
        yield f"{task}:"
        for split in splits:
            objects = "" if split.objects is None else f", {split.objects:,} objects"
            yield f"  {split.split:<5}  {split.images:,} images{_sizes_text(split.sizes)}{objects}"
        counts = [dict(split.classes) for split in splits]
        names = list(dict.fromkeys(name for found in counts for name in found))
        width = max((len(name) for name in names), default=0)
        unit = "objects" if task == "detect" else "images"
        yield f"  {unit + ' of':<{width}}  " + "  ".join(f"{split.split:>7}" for split in splits)
        for name in names[:20]:
            yield f"  {name:<{width}}  " + "  ".join(f"{found.get(name, 0):>7,}" for found in counts)
        if len(names) > 20:
            yield f"  ... and {len(names) - 20} more classes"


@dataclass(frozen=True)
class _Part:
    """A split of a task, with the faults of its annotations."""

    content: SplitContent
    images: ImageSet
    sizes: tuple[tuple[int, int], ...] | None = None
    """(height, width) that the annotations are for"""
    file: Path | None = None


@dataclass(frozen=True)
class _Look:
    """An opened image: its upright size, a hash of its pixels, its thumbnail (16, 16); or the reason why it can't be opened."""

    size: tuple[int, int] = (0, 0)
    content: str = ""
    thumbnail: NDArray[np.float32] | None = None
    turned: bool = False
    reason: str = ""


@dataclass(frozen=True)
class _Match:
    """Two images, the most alike that were found for the second, and the correlation of their thumbnails."""

    one: str
    other: str
    likeness: float
    between_splits: bool


def data_check(config: DataCheckConfig) -> DataCheck:
    """Look through a data set and name all that is wrong; ``DataCheck.error`` says whether it is sound.

    Raises DataError where no data set is found at all.
    """
    report = Path(config.out) if config.out else None
    if report is not None:
        output_folder(report.parent)
    faults: list[Fault] = []
    parts: list[_Part] = []
    tasks = _tasks(config)
    for task in tasks:
        try:
            parts += _read(task, config, faults)
        except DataError as error:
            if len(tasks) == 1:
                raise
            faults.append(Fault("unreadable", Path(config.data), task, str(error)))
    looks = _look_through(parts)
    for part in parts:
        faults += _faults_of_images(part, looks)
        faults += _classes_without_examples(part)
    near = None
    for images in _distinct_splits(parts):
        shared, used = _shared(images, looks, config.near)
        faults += shared
        near = used if near is None or used is None else min(near, used)
    findings = _findings(faults)
    splits = tuple(_with_sizes(part, looks) for part in parts)
    check = DataCheck(config.data, splits, findings, near, report)
    if report is not None:
        atomic_write_text(report, json.dumps(_to_json(check), indent=1, ensure_ascii=False) + "\n")
    return check


def plan(config: DataCheckConfig) -> Plan:
    """What ``data_check`` would look at."""
    return Plan((("data", config.data), ("as", ", ".join(_tasks(config))), ("report", config.out or "none")))


def _tasks(config: DataCheckConfig) -> tuple[TaskName, ...]:
    """The tasks that the data is for, by what lies in it."""
    if config.task != "auto":
        return (config.task,)
    data = Path(config.data)
    if not data.exists() and "{" not in config.data:
        raise DataError(f"data={data}: no such folder or file.")
    found: list[TaskName] = []
    if _has_coco(data):
        found.append("detect")
    if config.layout != "auto" or _layout(data) != "folders" or any((data / name).is_dir() for name in _MASK_FOLDERS):
        found.append("segment")
    return tuple(found) or ("classify",)


_MASK_FOLDERS = ("masks", "train/masks", "training/masks")


def _layout(data: Path) -> Layout:
    if (data / "leftImg8bit").is_dir():
        return "cityscapes"
    return "ade20k" if (data / "annotations" / "training").is_dir() else "folders"


def _has_coco(data: Path) -> bool:
    """Whether a JSON that may be COCO's is where the reader looks for it."""
    files = [data] if data.suffix.lower() == ".json" else [*data.glob("*.json"), *data.glob("annotations/*.json")]
    for names in SPLIT_NAMES.values():
        files += [path for name in names for path in data.glob(f"{name}/*.json")]
    return any(b'"annotations"' in path.read_bytes() for path in files if path.is_file())


def _read(task: TaskName, config: DataCheckConfig, faults: list[Fault]) -> list[_Part]:
    if task == "detect":
        return _read_detection(config, faults)
    if task == "segment":
        return _read_segmentation(config, faults)
    parts = []
    for split, part in _in_order(read_parts(config.data)):
        labels = [(label,) for label in part.labels] if isinstance(part, LabeledImages) else part.labels
        counts = Counter(label for image in labels for label in image)
        content = _content("classify", split, len(part), None, part.classes, counts)
        parts.append(_Part(content, part.images))
    return parts


def _in_order(splits: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(split, splits[split]) for split in SPLIT_NAMES if split in splits]


def _read_detection(config: DataCheckConfig, faults: list[Fault]) -> list[_Part]:
    parts = []
    for split, parsed in _in_order(parse_detection(config.data)):
        faults += parsed.faults
        data = parsed.data
        counts = Counter(int(label) for objects in data.objects for label in objects.labels[~objects.crowd])
        content = _content("detect", split, len(data), sum(map(len, data.objects)), data.classes, counts)
        images = FolderImages(data.images.root, data.images.paths)
        parts.append(_Part(content, images, data.images.sizes, parsed.file))
    return parts


def _read_segmentation(config: DataCheckConfig, faults: list[Fault]) -> list[_Part]:
    layout = _layout(Path(config.data)) if config.layout == "auto" else config.layout
    parts = []
    for split, parsed in _in_order(parse_segmentation(config.data, layout, config.ignore)):
        faults += parsed.faults
        data: SegmentationImages = parsed.data
        faults += (
            Fault("mask without any class", mask, "", "every pixel is ignored")
            for mask, present in zip(data.masks, data.present, strict=True)
            if not present
        )
        counts = Counter(label for present in data.present for label in present)
        parts.append(_Part(_content("segment", split, len(data), None, data.classes, counts), data.images))
    return parts


def _content(
    task: TaskName, split: str, images: int, objects: int | None, classes: Sequence[str], counts: Mapping[int, int]
) -> SplitContent:
    listed = tuple((name, counts.get(number, 0)) for number, name in enumerate(classes))
    return SplitContent(task, split, images, objects, None, listed)


def _name(images: ImageSet, index: int) -> str:
    """The image's path, or what else names it."""
    name = images.name(index)
    return str(images.root / name) if isinstance(images, FolderImages) else name


def _look_through(parts: Sequence[_Part]) -> dict[str, _Look]:
    """Every image once, though two tasks may share it."""
    images = {_name(part.images, index): (part.images, index) for part in parts for index in range(len(part.images))}
    looks: dict[str, _Look] = {}
    tell = counting("looking through the images")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for name, look in zip(images, pool.map(lambda place: _look(*place), images.values()), strict=True):
            looks[name] = look
            tell(len(looks), len(images))
    return looks


def _look(images: ImageSet, index: int) -> _Look:
    try:
        image = images.open(index)
    except DataError as error:
        return _Look(reason=str(error).removeprefix(f"{_name(images, index)}: "))
    digest = hashlib.blake2b(f"{image.mode}:{image.size};".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(np.asarray(image)).data)
    gray = image if image.mode in ("L", "F") else image.convert("L")
    thumbnail = np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.float32)
    turned = isinstance(images, FolderImages) and _turned(images.root / images.paths[index])
    return _Look((image.height, image.width), digest.hexdigest(), thumbnail, turned)


def _turned(path: Path) -> bool:
    with Image.open(path) as file:
        return file.getexif().get(EXIF_ORIENTATION, 1) in range(2, 9)


def _faults_of_images(part: _Part, looks: Mapping[str, _Look]) -> Iterator[Fault]:
    for index in range(len(part.images)):
        name = _name(part.images, index)
        look = looks[name]
        if look.reason:
            yield Fault("broken image", Path(name), "", look.reason)
        elif part.sizes is not None and look.size != part.sizes[index]:
            there, said = (f"{width}×{height} px" for height, width in (look.size, part.sizes[index]))
            told = part.file.name if part.file else "the annotations"
            yield Fault("size of image", Path(name), "", f"the image is {there} (upright), but {told} says {said}")
        elif look.turned and part.content.task != "classify":
            yield Fault(
                "turned by EXIF", Path(name), "", "its pixels are stored in another orientation than it is shown in"
            )


def _classes_without_examples(part: _Part) -> Iterator[Fault]:
    content = part.content
    unit = "objects" if content.task == "detect" else "images"
    for name, count in content.classes:
        if not count:
            yield Fault("class without examples", Path(content.split), "", f"no {unit} of {name} ({content.task})")


def _distinct_splits(parts: Sequence[_Part]) -> list[dict[str, ImageSet]]:
    """The images of each split by task; tasks with the same images count once."""
    by_task: dict[str, dict[str, ImageSet]] = defaultdict(dict)
    for part in parts:
        by_task[part.content.task][part.content.split] = part.images
    distinct: dict[frozenset[tuple[str, str]], dict[str, ImageSet]] = {}
    for images in by_task.values():
        names = {(split, _name(part, index)) for split, part in images.items() for index in range(len(part))}
        distinct[frozenset(names)] = images
    return list(distinct.values())


def _shared(
    splits: Mapping[str, ImageSet], looks: Mapping[str, _Look], near: float | None
) -> tuple[list[Fault], float | None]:
    """Images that two splits share, equal or nearly; and the likeness that was taken for near, if it was looked for."""
    names = {
        split: [name for name in (_name(images, index) for index in range(len(images))) if not looks[name].reason]
        for split, images in splits.items()
    }
    faults = list(_equal_images(names, looks))
    if near == 1:
        return faults, None
    descriptors = {split: _descriptors([looks[name] for name in found]) for split, found in names.items()}
    matches = list(_best_matches(names, descriptors))
    threshold = _threshold([match.likeness for match in matches]) if near is None else near
    for match in matches:
        if match.likeness >= threshold and looks[match.one].content != looks[match.other].content:
            kind = "near-duplicate in two splits" if match.between_splits else "near-duplicates in train"
            what = f"nearly {match.other} (likeness {match.likeness:.4f})"
            faults.append(Fault(kind, Path(match.one), "", what))
    return faults, threshold if matches else None


def _equal_images(names: Mapping[str, Sequence[str]], looks: Mapping[str, _Look]) -> Iterator[Fault]:
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, found in names.items():
        for name in found:
            places[looks[name].content].append((split, name))
    for copies in places.values():
        first_split, first = copies[0]
        for split, name in copies[1:]:
            if split != first_split:
                yield Fault(
                    "same image in two splits", Path(first), "", f"the pixels of {name} ({first_split}, {split})"
                )
            elif split == "train":
                yield Fault("duplicate images in train", Path(first), "", f"the pixels of {name}")


def _descriptors(looks: Sequence[_Look]) -> NDArray[np.float32]:
    """(N, 256): thumbnails of mean 0 and length 1, split in what mirroring keeps and what it turns round.

    The product of two images' first halves plus that of the second is their correlation; minus it, the correlation with the
    mirrored one. Flat images are all zero, and like nothing.
    """
    side = THUMBNAIL
    stack = [look.thumbnail for look in looks if look.thumbnail is not None]
    thumbnails = np.stack(stack) if stack else np.zeros((0, side, side), np.float32)
    thumbnails = thumbnails - thumbnails.mean(axis=(1, 2), keepdims=True)
    length = np.linalg.norm(thumbnails, axis=(1, 2), keepdims=True)
    thumbnails = np.where(length > FLAT * side, thumbnails / np.maximum(length, 1e-6), 0)
    left, right = thumbnails[:, :, : side // 2], thumbnails[:, :, : side // 2 - 1 : -1]
    halves = np.concatenate([left + right, left - right], axis=2).transpose(0, 2, 1) / np.sqrt(2)
    return np.ascontiguousarray(halves.reshape(len(thumbnails), side * side), dtype=np.float32)


def _best_matches(
    names: Mapping[str, Sequence[str]], descriptors: Mapping[str, NDArray[np.float32]]
) -> Iterator[_Match]:
    """For each image of a split the one most like it in each split before it.

    Where a split is missing, so that it will be drawn from train, also the one most like it among those before it in train.
    """
    order = list(names)
    pairs = [(earlier, later) for place, later in enumerate(order) for earlier in order[:place]]
    if "train" in order and len(order) < len(SPLIT_NAMES):
        pairs.append(("train", "train"))
    half = THUMBNAIL * THUMBNAIL // 2
    tell, done, total = counting("comparing"), 0, sum(len(names[later]) for _, later in pairs)
    for earlier, later in pairs:
        count = len(descriptors[earlier])
        rows = max(1, 2**24 // max(count, 1))
        for start in range(0, len(names[later]) if count else 0, rows):
            chunk = descriptors[later][start : start + rows]
            others = descriptors[earlier] if earlier != later else descriptors[earlier][: start + len(chunk)]
            likeness = chunk[:, :half] @ others[:, :half].T + np.abs(chunk[:, half:] @ others[:, half:].T)
            if earlier == later:
                likeness[np.arange(len(others)) >= start + np.arange(len(chunk))[:, None]] = -1
            best = likeness.argmax(axis=1)
            for number, match in enumerate(best):
                one, other = names[earlier][int(match)], names[later][start + number]
                if one != other:
                    yield _Match(one, other, float(likeness[number, match]), earlier != later)
            done += len(chunk)
            tell(done, total)


def _threshold(likenesses: Sequence[float]) -> float:
    """The likeness of near-duplicates in a set whose images are so like the most similar one of another split."""
    usual = 1 - float(np.median(likenesses)) if likenesses else 1.0
    return float(np.clip(1 - CLOSENESS * usual, LEAST_ALIKE, SURELY_ALIKE))


def _findings(faults: Sequence[Fault]) -> tuple[Finding, ...]:
    """The faults by kind, those that must be mended first."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for fault in faults:
        texts[fault.kind][fault.text()] = None
    kinds = sorted(texts, key=lambda kind: kind in RULES)
    return tuple(Finding(kind, RULES.get(kind), tuple(texts[kind])) for kind in kinds)


def _with_sizes(part: _Part, looks: Mapping[str, _Look]) -> SplitContent:
    sizes = {looks[_name(part.images, index)].size for index in range(len(part.images))} - {(0, 0)}
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    content = part.content
    ends = (ordered[0], ordered[-1]) if ordered else None
    return SplitContent(content.task, content.split, content.images, content.objects, ends, content.classes)


def _sizes_text(sizes: tuple[tuple[int, int], tuple[int, int]] | None) -> str:
    if sizes is None:
        return ""
    small, large = (f"{width}×{height}" for height, width in sizes)
    return f" of {small} px" if small == large else f" from {small} to {large} px"


def _to_json(check: DataCheck) -> dict[str, Any]:
    return {
        "data": check.data,
        "sound": check.error is None,
        "near": check.near,
        "splits": [
            {
                "task": split.task,
                "split": split.split,
                "images": split.images,
                "objects": split.objects,
                "classes": dict(split.classes),
            }
            for split in check.splits
        ],
        "findings": [
            {"kind": finding.kind, "rule": finding.rule, "count": len(finding.texts), "found": list(finding.texts)}
            for finding in check.findings
        ],
    }
