"""``maelift data check``: everything that is wrong in a data set, before a run stumbles over it.

Annotations are judged by the readers' own rules (``faults``); every image is opened once; images of different splits, or of
a pool to pretrain on (``pool_check``), are compared by their pixels and, to find pictures that were saved anew, resized or
mirrored, by thumbnails (``likeness``).
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from ..data import unread
from ..data.audit import FLAT_IMAGE, TRANSPARENCY, TRANSPARENT, flat_text, pixel_hash
from ..data.class_lists import has_class_list
from ..data.classification import ClassFolderLayout, LabeledImages, LabelKeys
from ..data.classification_reader import read_parts
from ..data.dataset_format import SPLIT_NAMES, FormatTask, identify, question
from ..data.decode import PixelFormat, background_colour, is_flat
from ..data.detection_reader import DetectionLayout, parse_detection
from ..data.groups import groups_by_path
from ..data.images import FolderImages, ImageSet, opened
from ..data.issues import AUTO_FIXES, DataIssue
from ..data.segmentation import SegmentationImages
from ..data.segmentation_layouts import MaskLayout
from ..data.segmentation_reader import parse_segmentation
from ..data.sources import find_source
from ..data.thumbnails import Thumbnail, best_matches, descriptors, threshold, thumbnail
from ..dry_run import Plan
from ..errors import ConfigError, DataError
from ..files import atomic_write_bytes, output_folder
from ..progress import progress_logger
from ..terminal import printable
from ..threads import Threads
from .check_unlabelled import POOL_RULES, check_pool, fact_lines, paths_of

T = TypeVar("T")
TaskName = FormatTask

RULES: Mapping[str, str] = {
    **AUTO_FIXES,
    "class without examples": "it counts in no average of that split",
    "mask without any class": "nothing is learned from it",
    "duplicate images in train": "splits that are drawn keep them together",
    "near-duplicates in train": "splits that are drawn from train may share them",
    "equal pictures with different labels": "trained on with both; splits that are drawn keep them together",
    TRANSPARENT: "its pixels are composited on background=, the same in every command",
    FLAT_IMAGE: "nothing can be told from it",
    "turned by EXIF": "shown upright; its annotations must be of the upright image",
}
"""Findings with which a data set is still sound, by kind, and what is done about them."""

DETECTION_LAYOUTS: tuple[DetectionLayout, ...] = ("coco", "yolo", "voc")
EXAMPLES = 5
"""Findings of one kind that the summary spells out."""


@dataclass(frozen=True)
class DataCheckConfig:
    """Name everything that is wrong in a data set: annotations, files, images that splits share; or in images to pretrain on."""

    data: str
    """the data set: class folders, CSV or idx files; COCO JSON with images; images with mask PNGs; any images (pretrain)"""
    task: Literal["auto", "classify", "detect", "segment", "pretrain"] = "auto"
    """what the data is for; auto: all that is found in it, pretrain where images lie in no folder of a class"""
    layout: Literal["auto", "class_folders", "folders", "ade20k", "cityscapes", "coco", "yolo", "voc"] = "auto"
    """class_folders: every folder is a class (classify); coco, yolo, voc: how boxes are written (detect); folders, ade20k,
    cityscapes: how images and masks lie in their folders (segment)"""
    multi_label: bool | None = None
    """images have any number of classes each; null: as the data says (classify)"""
    label_column: str | tuple[str, ...] | None = None
    """the CSV's column of labels, or [a,b,c]: its columns of 0 and 1, a class each (classify); null: as the header says"""
    group: str | None = None
    """what is to stay in one split, a patient, video or flight: a column of the CSV, or a regular expression over the paths"""
    ignore: int | tuple[int, ...] | None = None
    """value or values of masks that mean nothing; null: 255, unless it is the value of a class"""
    near: float | None = None
    """least likeness of near-duplicates (correlation of thumbnails, mirrored ones too), up to 1 (none); null: from the data"""
    out: str | None = None
    """JSON file for all findings; the summary spells out the first of each kind"""
    keep: str | None = None
    """text file for the paths of the sound images, each once, a list that data= of pretrain accepts (pretrain)"""
    keep_near: bool = True
    """near-duplicates stay in that list (pretrain)"""
    least_side: int = 16
    """pixels of the shorter side below which an image is tiny (pretrain)"""
    channels: int | None = None
    """channels that images are to have; null: what most have (pretrain)"""
    value_range: tuple[float, float] | None = None
    """lowest and highest value of float arrays or deep images as stored; null: integers (pretrain)"""
    background: str = "white"
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop: what is stored under them"""

    def __post_init__(self) -> None:
        if self.near is not None and not 0.5 <= self.near <= 1:
            raise ConfigError("near", self.near, "a correlation from 0.5 to 1, or null")
        if self.layout in ("ade20k", "cityscapes") and self.task not in ("auto", "segment"):
            raise ConfigError("layout", self.layout, f"auto with task={self.task}: it is for images with masks")
        if self.layout in DETECTION_LAYOUTS and self.task not in ("auto", "detect"):
            raise ConfigError("layout", self.layout, f"auto with task={self.task}: it is for images with boxes")
        if self.layout == "class_folders" and self.task not in ("auto", "classify"):
            raise ConfigError("layout", self.layout, f"auto with task={self.task}: it is for images with a class each")
        if self.keep is not None and self.task not in ("auto", "pretrain"):
            raise ConfigError("keep", self.keep, "null, or task=pretrain")
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise ConfigError("value_range", list(self.value_range), "[lowest,highest], the lowest first")
        background_colour(self.background)


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
    facts: tuple[tuple[str, str], ...] = ()
    """what the images to pretrain on are like, in lines of (what, value)"""
    unread: tuple[str, ...] = ()
    """what lies there that isn't read"""

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
        lines += fact_lines(self.facts) if self.facts else ()
        lines += (f"  {printable(text)}" for text in self.unread)
        for finding in self.findings:
            what = f"by rule: {finding.rule}" if finding.rule else "to be mended"
            lines += ["", f"{finding.kind}: {len(finding.texts):,} ({what})"]
            lines += [f"  {printable(text)}" for text in finding.texts[:EXAMPLES]]
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
        if not any(counts):
            return
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
    labels: tuple[str, ...] = ()
    """the classes of each image in words (classify)"""
    groups: tuple[str, ...] = ()
    """what each image belongs to, where a column says it"""


@dataclass(frozen=True)
class _Look:
    """An opened image: its upright size, a hash of its pixels, its thumbnail (16, 16); or the reason why it can't be opened."""

    size: tuple[int, int] = (0, 0)
    content: str = ""
    thumbnail: Thumbnail | None = None
    turned: bool = False
    clear: tuple[str, ...] = ()
    """what was made of its transparent pixels"""
    flat: bool = False
    reason: str = ""


def data_check(config: DataCheckConfig) -> DataCheck:
    """Look through a data set and name all that is wrong; ``DataCheck.error`` says whether it is sound.

    Raises DataError where no data set is found at all.
    """
    report = Path(config.out) if config.out else None
    if report is not None:
        output_folder(report.parent)
    with unread.gathered() as texts:
        tasks = tasks_of(config)
        check = _check_pool(config, report) if tasks == ("pretrain",) else _check_annotated(config, tasks, report)
    check = replace(check, unread=tuple(texts))
    if report is not None:
        text = json.dumps(_to_json(check), indent=1, ensure_ascii=False) + "\n"
        text = re.sub(
            "[\ud800-\udc7f\udd00-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text
        )  # no UTF-8 can hold
        atomic_write_bytes(report, text.encode("utf-8", "surrogateescape"))
    return check


def _check_pool(config: DataCheckConfig, report: Path | None) -> DataCheck:
    """Look through images without labels."""
    form = PixelFormat(config.channels, config.value_range, background_colour(config.background))
    images = find_source(config.data)
    pool = check_pool(images, form, least_side=config.least_side, near=config.near, keep_near=config.keep_near)
    facts = pool.facts
    if config.keep is not None:
        file = Path(config.keep)
        output_folder(file.parent)
        atomic_write_bytes(file, os.fsencode("".join(f"{path}\n" for path in paths_of(images, pool.kept))))
        facts = (*facts, ("list", f"{len(pool.kept):,} of {len(images):,} images in {file}"))
    content = SplitContent("pretrain", "all", len(images), None, pool.sizes, ())
    return DataCheck(config.data, (content,), _findings(pool.faults, POOL_RULES), pool.near, report, facts)


def _check_annotated(config: DataCheckConfig, tasks: Sequence[TaskName], report: Path | None) -> DataCheck:
    """Look through images with labels, boxes or masks."""
    faults: list[DataIssue] = []
    parts: list[_Part] = []
    for task in tasks:
        try:
            parts += _read(task, config, faults)
        except DataError as error:
            if len(tasks) == 1:
                raise
            faults.append(DataIssue("unreadable", Path(config.data), task, str(error)))
    looks = _look_through(parts, PixelFormat(background=background_colour(config.background), plain=True))
    for part in parts:
        faults += _faults_of_images(part, looks)
        faults += _classes_without_examples(part)
    faults += _equal_with_other_labels(parts, looks)
    faults += () if config.group is None else _groups_in_two_splits(parts, config.group)
    near = None
    for images in _distinct_splits(parts):
        shared, used = _shared(images, looks, config.near)
        faults += shared
        near = used if near is None or used is None else min(near, used)
    findings = _findings(faults)
    splits = tuple(_with_sizes(part, looks) for part in parts)
    return DataCheck(config.data, splits, findings, near, report, _read_as(config.data, tasks))


def _read_as(data: str, tasks: Sequence[TaskName]) -> tuple[tuple[str, str], ...]:
    """What a data set is taken for, for each task, and by what."""
    try:
        found = identify(data)
    except DataError:
        return ()
    names = {"class_folders": "class folders", "coco": "COCO", "yolo": "YOLO", "voc": "Pascal VOC"}
    return tuple(
        (f"read for {one.task} as", f"{names.get(one.format, one.format)} ({one.evidence})")
        for one in found
        if one.task in tasks
    )


def plan(config: DataCheckConfig) -> Plan:
    """What ``data_check`` would look at."""
    return Plan((("data", config.data), ("as", ", ".join(tasks_of(config))), ("report", config.out or "none")))


def tasks_of(config: DataCheckConfig) -> tuple[TaskName, ...]:
    """The tasks that the data is for, by what lies in it."""
    if config.task != "auto":
        return (config.task,)
    if config.layout != "auto":
        return ("classify",) if config.layout == "class_folders" else (_task_of_layout(config.layout),)
    found = identify(config.data)
    for one in found:
        if not one.sure:
            raise question(config.data, one)
    return tuple(dict.fromkeys(one.task for one in found))


def _task_of_layout(layout: str) -> TaskName:
    return "detect" if layout in DETECTION_LAYOUTS else "segment"


def detection_layout(layout: str) -> DetectionLayout:
    """How boxes are written, of any layout that a command was given."""
    return next((one for one in DETECTION_LAYOUTS if one == layout), "auto")


def mask_layout(data: Path, layout: str) -> MaskLayout:
    """How masks are laid out, of any layout that a command was given, or as found."""
    names: tuple[MaskLayout, ...] = ("folders", "ade20k", "cityscapes")
    return next((one for one in names if one == layout), layout_of(data))


def layout_of(data: Path) -> MaskLayout:
    """How masks are laid out in a folder."""
    if (data / "leftImg8bit").is_dir():
        return "cityscapes"
    published = (data / "annotations" / "training").is_dir() and not has_class_list(data)
    return "ade20k" if published else "folders"


def _read(task: TaskName, config: DataCheckConfig, faults: list[DataIssue]) -> list[_Part]:
    if task == "detect":
        return _read_detection(config, faults)
    if task == "segment":
        return _read_segmentation(config, faults)
    parts = []
    layout: ClassFolderLayout = "class_folders" if config.layout == "class_folders" else "auto"
    for split, part in _in_order(
        read_parts(config.data, LabelKeys(config.multi_label, layout, config.label_column, config.group))
    ):
        labels = [(label,) for label in part.labels] if isinstance(part, LabeledImages) else part.labels
        counts = Counter(label for image in labels for label in image)
        content = _content("classify", split, len(part), None, part.classes, counts)
        texts = tuple(part.label_text(index) for index in range(len(part)))
        parts.append(_Part(content, part.images, labels=texts, groups=part.groups))
    return parts


def _in_order(splits: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(split, splits[split]) for split in SPLIT_NAMES if split in splits]


def _read_detection(config: DataCheckConfig, faults: list[DataIssue]) -> list[_Part]:
    parts = []
    for split, parsed in _in_order(parse_detection(config.data, detection_layout(config.layout))):
        faults += parsed.faults
        data = parsed.data
        counts = Counter(int(label) for objects in data.objects for label in objects.labels[~objects.crowd])
        if split == "train" and not counts:
            what = f"none of the {len(data):,} training images has an object that could be learned"
            faults.append(DataIssue("no object at all", parsed.file, "annotations", what))
        content = _content("detect", split, len(data), sum(map(len, data.objects)), data.classes, counts)
        images = FolderImages(data.images.root, data.images.paths)
        parts.append(_Part(content, images, data.images.sizes, parsed.file))
    return parts


def _read_segmentation(config: DataCheckConfig, faults: list[DataIssue]) -> list[_Part]:
    layout = mask_layout(Path(config.data), config.layout)
    parts = []
    for split, parsed in _in_order(parse_segmentation(config.data, layout, config.ignore)):
        faults += parsed.faults
        data: SegmentationImages = parsed.data
        faults += (
            DataIssue("mask without any class", mask, "", "every pixel is ignored")
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


def _look_through(parts: Sequence[_Part], form: PixelFormat) -> dict[str, _Look]:
    """Every image once, though two tasks may share it."""
    images = {_name(part.images, index): (part.images, index) for part in parts for index in range(len(part.images))}
    looks: dict[str, _Look] = {}
    tell = progress_logger("looking through the images")
    with Threads(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for name, look in zip(
            images, pool.map(lambda place: _look(place[0], place[1], form), images.values()), strict=True
        ):
            looks[name] = look
            tell(len(looks), len(images))
    return looks


def _look(images: ImageSet, index: int, form: PixelFormat) -> _Look:
    try:
        found = opened(images, index, form)
        picture = found.pixels()
    except DataError as error:
        name = images.name(index)
        return _Look(reason=str(error).removeprefix(f"{_name(images, index)}: ").removeprefix(f"{name}: "))
    clear = tuple(note for note in found.decoded_notes if note.startswith(TRANSPARENCY))
    size = picture.shape[0], picture.shape[1]
    return _Look(size, pixel_hash(picture), thumbnail(picture), found.turned, clear, is_flat(picture))


def _faults_of_images(part: _Part, looks: Mapping[str, _Look]) -> Iterator[DataIssue]:
    for index in range(len(part.images)):
        name = _name(part.images, index)
        look = looks[name]
        if look.reason:
            yield DataIssue("broken image", Path(name), "", look.reason)
            continue
        if look.clear:
            yield DataIssue(TRANSPARENT, Path(name), "", "; ".join(look.clear))
        if look.flat:
            yield DataIssue(FLAT_IMAGE, Path(name), "", flat_text(look.clear))
        if part.sizes is not None and look.size != part.sizes[index]:
            there, said = (f"{width}×{height} px" for height, width in (look.size, part.sizes[index]))
            told = part.file.name if part.file else "the annotations"
            what = f"the image is {there} (upright), but {told} says {said}"
            if look.turned and look.size == part.sizes[index][::-1]:
                what += (
                    ". Annotated as it is stored, before EXIF turns it? Annotate it upright, or save it without EXIF"
                )
            yield DataIssue("size of image", Path(name), "", what)
        elif look.turned and part.content.task != "classify":
            yield DataIssue(
                "turned by EXIF", Path(name), "", "its pixels are stored in another orientation than it is shown in"
            )


def _classes_without_examples(part: _Part) -> Iterator[DataIssue]:
    content = part.content
    unit = "objects" if content.task == "detect" else "images"
    for name, count in content.classes:
        if not count:
            yield DataIssue("class without examples", Path(content.split), "", f"no {unit} of {name} ({content.task})")


def _equal_with_other_labels(parts: Sequence[_Part], looks: Mapping[str, _Look]) -> Iterator[DataIssue]:
    """Equal pictures with different classes."""
    first: dict[str, tuple[str, str]] = {}
    for part in parts:
        for index, label in enumerate(part.labels):
            name = _name(part.images, index)
            if looks[name].reason:
                continue
            other, other_label = first.setdefault(looks[name].content, (name, label))
            if other_label != label:
                what = f"the pixels of {other}, which has the label '{other_label}', not '{label}'"
                yield DataIssue("equal pictures with different labels", Path(name), "", what)


def _groups_in_two_splits(parts: Sequence[_Part], group: str) -> Iterator[DataIssue]:
    """Groups with images in several splits of a task."""
    places: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for part in parts:
        names = [part.images.name(index) for index in range(len(part.images))]
        for name, own in zip(names, part.groups or groups_by_path(names, group), strict=True):
            places[part.content.task, own].setdefault(part.content.split, name)
    for (_, own), splits in places.items():
        if len(splits) > 1:
            where = ", ".join(f"{split} ({name})" for split, name in splits.items())
            yield DataIssue("group in two splits", Path(own), "", f"images of it are in {where}")


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
) -> tuple[list[DataIssue], float | None]:
    """Images that two splits share, equal or nearly; and the likeness that was taken for near, if it was looked for."""
    names = {
        split: [name for name in (_name(images, index) for index in range(len(images))) if not looks[name].reason]
        for split, images in splits.items()
    }
    faults = list(_equal_images(names, looks))
    if near == 1:
        return faults, None
    thumbnails = {split: [looks[name].thumbnail for name in found] for split, found in names.items()}
    described = {
        split: descriptors([image for image in some if image is not None]) for split, some in thumbnails.items()
    }
    # Where a split is missing, it will be drawn from train.
    drawn_from = "train" if len(names) < len(SPLIT_NAMES) else None
    matches = list(best_matches(names, described, within=drawn_from))
    least = threshold([match.likeness for match in matches]) if near is None else near
    for match in matches:
        if match.likeness >= least and looks[match.one].content != looks[match.other].content:
            kind = "near-duplicate in two splits" if match.between_splits else "near-duplicates in train"
            what = f"nearly {match.other} (likeness {match.likeness:.4f})"
            faults.append(DataIssue(kind, Path(match.one), "", what))
    return faults, least if matches else None


def _equal_images(names: Mapping[str, Sequence[str]], looks: Mapping[str, _Look]) -> Iterator[DataIssue]:
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, found in names.items():
        for name in found:
            places[looks[name].content].append((split, name))
    for copies in places.values():
        first_split, first = copies[0]
        for split, name in copies[1:]:
            if split != first_split:
                yield DataIssue(
                    "same image in two splits", Path(first), "", f"the pixels of {name} ({first_split}, {split})"
                )
            elif split == "train":
                yield DataIssue("duplicate images in train", Path(first), "", f"the pixels of {name}")


def _findings(faults: Sequence[DataIssue], rules: Mapping[str, str] = RULES) -> tuple[Finding, ...]:
    """The faults by kind, those that must be mended first."""
    texts: dict[str, dict[str, None]] = defaultdict(dict)
    for fault in faults:
        texts[fault.kind][fault.text()] = None
    kinds = sorted(texts, key=lambda kind: kind in rules)
    return tuple(Finding(kind, rules.get(kind), tuple(texts[kind])) for kind in kinds)


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
        "facts": dict(check.facts),
        "unread": list(check.unread),
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
