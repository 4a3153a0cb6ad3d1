"""What the data tools need to know of a task: how its annotated splits are read, and which issues are tolerated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from .class_lists import has_class_list
from .classification import ClassFolderLayout, LabelKeys
from .classification_reader import read_parts
from .detection_reader import DetectionLayout, parse_detection
from .folder_names import SPLIT_NAMES
from .issues import DataIssue, raise_on_errors
from .labeled_dataset import LabeledDataset
from .segmentation_layouts import MaskLayout
from .segmentation_reader import parse_segmentation
from .slices import EVERY_SLICE, Slices


@dataclass(frozen=True)
class AnnotationKeys:
    """The keys of ``maelift data check`` and ``maelift init`` that say how annotations are read."""

    layout: str = "auto"
    """one of the task's ``layouts``, or auto"""
    multi_label: bool | None = None
    label_column: str | tuple[str, ...] | None = None
    group: str | None = None
    ignore: int | tuple[int, ...] | None = None
    slices: Slices = EVERY_SLICE


@dataclass(frozen=True)
class AnnotatedSplit:
    """A split of annotated images with everything that is wrong in its annotations; ``data`` holds what is sound."""

    data: LabeledDataset
    issues: tuple[DataIssue, ...] = ()
    class_counts: Mapping[int, int] | None = None
    """objects of each class; None: images that show it, by ``data.strata``"""
    objects: int | None = None
    """number of objects, where annotations are of objects"""
    labels: tuple[str, ...] = ()
    """the label of each image in words, where images with equal pixels should have equal ones"""
    source: Path | None = None
    """the file or folder of the annotations"""

    @property
    def counts(self) -> Mapping[int, int]:
        """Objects of each class, or images that show it."""
        if self.class_counts is not None:
            return self.class_counts
        return Counter(label for image in self.data.strata for label in image)


class ReadSplits(Protocol):
    """Reads the splits that ``data`` has; raises DataError where there is nothing to be read."""

    def __call__(self, data: str, keys: AnnotationKeys) -> Mapping[str, AnnotatedSplit]: ...


@dataclass(frozen=True)
class AnnotatedTask:
    """A task as ``maelift data check`` and ``maelift init`` see it.

    A task of your own makes one and names it in its row of ``transfer/tasks.py``; ``task=NAME`` of ``data check`` then reads
    and checks its data. Only ``name``, ``images`` and ``read`` must be given::

        def read_counts(data, keys):
            return {split: AnnotatedSplit(part) for split, part in class_parts(data).items()}

        COUNT = AnnotatedTask("count", "images with a number each", read_counts)
    """

    name: str
    """as in ``maelift transfer NAME``"""
    images: str
    """what its images are, in words: "images with boxes" """
    read: ReadSplits
    layouts: tuple[str, ...] = ()
    """values of ``layout`` that are for this task"""
    unit: Literal["images", "objects"] = "images"
    """what is counted for each class"""
    spatial: bool = False
    """whether annotations are places on the image, so that its orientation matters"""
    auto_fixes: Mapping[str, str] = field(default_factory=dict)
    """kinds of issues of its own with which the data is still sound, with what is done about them"""
    recognize: Callable[[str], str] | None = None
    """evidence in words that data is this task's, "" where it isn't; None: only where ``dataset_format`` finds its format"""
    transfer_keys: Callable[[str, AnnotationKeys], Mapping[str, object]] = lambda data, keys: {}
    """keys of ``maelift transfer NAME`` that read the same annotations, those that differ from their defaults"""

    def labeled_splits(self, data: str, keys: AnnotationKeys) -> dict[str, LabeledDataset]:
        """The splits without their issues; raises DataError for an issue that no rule handles."""
        splits = self.read(data, keys)
        issues = [issue for split in splits.values() for issue in split.issues if issue.kind not in self.auto_fixes]
        raise_on_errors(issues, data)
        return {name: split.data for name, split in splits.items()}


def _in_order(splits: Mapping[str, AnnotatedSplit]) -> dict[str, AnnotatedSplit]:
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}


def _read_classes(data: str, keys: AnnotationKeys) -> dict[str, AnnotatedSplit]:
    layout = _class_folder_layout(keys)
    parts = read_parts(data, LabelKeys(keys.multi_label, layout, keys.label_column, keys.group, keys.slices))
    return _in_order(
        {
            split: AnnotatedSplit(part, labels=tuple(part.label_text(index) for index in range(len(part))))
            for split, part in parts.items()
        }
    )


def _class_folder_layout(keys: AnnotationKeys) -> ClassFolderLayout:
    """How class folders are read: as the keys say, or auto."""
    return "class_folders" if keys.layout == "class_folders" else "auto"


def _classify_keys(data: str, keys: AnnotationKeys) -> dict[str, object]:
    given = {"layout": _class_folder_layout(keys), "label_column": keys.label_column}
    return {key: value for key, value in given.items() if value not in ("auto", None)}


def _read_boxes(data: str, keys: AnnotationKeys) -> dict[str, AnnotatedSplit]:
    splits = {}
    for split, parsed in parse_detection(data, _box_layout(keys)).items():
        images, issues = parsed.data, list(parsed.issues)
        counts = Counter(int(label) for objects in images.objects for label in objects.labels[~objects.crowd])
        if split == "train" and not counts:
            what = f"none of the {len(images):,} training images has an object that could be learned"
            issues.append(DataIssue("no object at all", parsed.file, "annotations", what))
        count = sum(map(len, images.objects))
        splits[split] = AnnotatedSplit(images, tuple(issues), counts, count, source=parsed.file)
    return _in_order(splits)


def _box_layout(keys: AnnotationKeys) -> DetectionLayout:
    """The format of boxes: as the keys say, or auto."""
    layouts: tuple[DetectionLayout, ...] = ("coco", "yolo", "voc")
    return next((layout for layout in layouts if layout == keys.layout), "auto")


def _detect_keys(data: str, keys: AnnotationKeys) -> dict[str, object]:
    layout = _box_layout(keys)
    return {} if layout == "auto" else {"layout": layout}


def _read_masks(data: str, keys: AnnotationKeys) -> dict[str, AnnotatedSplit]:
    splits = {}
    for split, parsed in parse_segmentation(data, _mask_layout(data, keys), keys.ignore).items():
        images = parsed.data
        empty = (
            DataIssue("mask without any class", mask, "", "every pixel is ignored")
            for mask, present in zip(images.masks, images.present, strict=True)
            if not present
        )
        splits[split] = AnnotatedSplit(images, (*parsed.issues, *empty))
    return _in_order(splits)


def _mask_layout(data: str, keys: AnnotationKeys) -> MaskLayout:
    """The layout of images and masks: as the keys say, or as found."""
    layouts: tuple[MaskLayout, ...] = ("folders", "ade20k", "cityscapes")
    for layout in layouts:
        if layout == keys.layout:
            return layout
    if (Path(data) / "leftImg8bit").is_dir():
        return "cityscapes"
    published = (Path(data) / "annotations" / "training").is_dir() and not has_class_list(Path(data))
    return "ade20k" if published else "folders"


def _segment_keys(data: str, keys: AnnotationKeys) -> dict[str, object]:
    layout = _mask_layout(data, keys)
    return {} if layout == "folders" else {"layout": layout}


CLASSIFY = AnnotatedTask(
    "classify",
    "images with a class each",
    _read_classes,
    layouts=("class_folders",),
    transfer_keys=_classify_keys,
)
DETECT = AnnotatedTask(
    "detect",
    "images with boxes",
    _read_boxes,
    layouts=("coco", "yolo", "voc"),
    unit="objects",
    spatial=True,
    transfer_keys=_detect_keys,
)
SEGMENT = AnnotatedTask(
    "segment",
    "images with masks",
    _read_masks,
    layouts=("folders", "ade20k", "cityscapes"),
    spatial=True,
    auto_fixes={"mask without any class": "nothing is learned from it"},
    transfer_keys=_segment_keys,
)
BUILT_IN_TASKS = (CLASSIFY, DETECT, SEGMENT)
"""The tasks whose data core reads itself."""
