"""``maelift data check``: everything that is wrong in a data set, before a run fails on it.

Annotations are checked by the readers' own rules (``issues``). Every image is opened once. Images of different splits, or of
a pool to pretrain on (``check_unlabelled``), are compared by their pixels and, to find near-duplicates, by thumbnails.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ..data import unread
from ..data.dataset_format import identify
from ..data.format_evidence import FORMATS, PRETRAIN, ambiguous_format
from ..data.issues import AUTO_FIXES, DataIssue
from ..data.near_duplicate_depth import Depth, least_depth
from ..data.pixel_format import PixelFormat, background_colour
from ..data.reading_keys import ReadingKeys
from ..data.sources import find_source
from ..data.task_data import BUILT_IN_TASKS, AnnotatedTask, AnnotationKeys
from ..dry_run import Plan
from ..errors import ConfigError, DataError
from ..files import atomic_write_bytes, output_folder
from .check_images import (
    IMAGE_RULES,
    CheckedSplit,
    classes_without_examples,
    distinct_splits,
    equal_with_other_labels,
    groups_in_two_splits,
    image_issues,
    scan_splits,
    shared_images,
)
from .check_report import DataCheck, SplitContent, group_by_kind
from .check_unlabelled import POOL_RULES, check_pool, paths_of


@dataclass(frozen=True)
class DataCheckConfig(ReadingKeys):
    """Report everything that is wrong in a data set: annotations, files, images shared by splits; or in images to pretrain on."""

    data: str
    """the data set: class folders, CSV or idx files; COCO JSON with images; images with mask PNGs; any images (pretrain)"""
    task: str = "auto"
    """what the data is for: classify, detect, segment, pretrain or a task of your own; auto: all tasks that it has annotations
    for, pretrain where images are in no class folder"""
    layout: str = "auto"
    """class_folders: every folder is a class (classify); coco, yolo, voc: format of boxes (detect); folders, ade20k,
    cityscapes: layout of images and masks (segment)"""
    multi_label: bool | None = None
    """images have any number of classes each; null: as the data says (classify)"""
    label_column: str | tuple[str, ...] | None = None
    """the CSV's column of labels, or [a,b,c]: columns of 0 and 1, one for each class (classify); null: as the header says"""
    group: str | None = None
    """what must stay in one split, a patient, video or flight: a column of the CSV, a regular expression over the paths, or of
    GeoTIFF files tile:SIZE, squares of the map"""
    ignore: int | tuple[int, ...] | None = None
    """value or values of masks that are ignored; null: 255, unless it is the value of a class"""
    near: Literal["auto", "full", "off"] = "auto"
    """search for near-duplicates; auto: of kinds that take up to about 5 minutes of one core; full: all"""
    out: str | None = None
    """JSON file for all findings; the summary shows the first of each kind"""
    keep: str | None = None
    """text file for the paths of the sound images, each once, a list that data= of pretrain accepts (pretrain)"""
    keep_near: bool = True
    """near-duplicates stay in that list (pretrain)"""
    least_side: int = 16
    """pixels of the shorter side below which an image is tiny (pretrain)"""
    background: str = "white"
    """colour that transparent pixels are composited on: white, black, '#rrggbb', or drop: their stored colour"""

    def __post_init__(self) -> None:
        if self.keep is not None and self.task not in ("auto", "pretrain"):
            raise ConfigError("keep", self.keep, "null, or task=pretrain")
        self.check_reading()
        background_colour(self.background)

    @property
    def annotation_keys(self) -> AnnotationKeys:
        """The keys that say how annotations are read."""
        return AnnotationKeys(self.layout, self.multi_label, self.label_column, self.group, self.ignore, self.slices)


def data_check(config: DataCheckConfig, tasks: Sequence[AnnotatedTask] = BUILT_IN_TASKS) -> DataCheck:
    """Scan a data set and report all its issues; ``DataCheck.error`` is None where it is sound.

    ``tasks`` are those that data may be annotated for. Raises DataError where there is no data set.
    """
    report = Path(config.out) if config.out else None
    if report is not None:
        output_folder(report.parent)
    with unread.collected() as texts:
        names = tasks_of(config, tasks)
        if names == (PRETRAIN,):
            check = _check_unlabelled(config, report)
        else:
            check = _check_annotated(config, [task for name in names for task in tasks if task.name == name], report)
    check = replace(check, unread=tuple(texts))
    if report is not None:
        text = json.dumps(check.to_json(), indent=1, ensure_ascii=False) + "\n"
        text = re.sub(
            "[\ud800-\udc7f\udd00-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text
        )  # no UTF-8 can hold
        atomic_write_bytes(report, text.encode("utf-8", "surrogateescape"))
    return check


def plan(config: DataCheckConfig, tasks: Sequence[AnnotatedTask] = BUILT_IN_TASKS) -> Plan:
    """What ``data_check`` would read."""
    return Plan((("data", config.data), ("as", ", ".join(tasks_of(config, tasks))), ("report", config.out or "none")))


def tasks_of(config: DataCheckConfig, tasks: Sequence[AnnotatedTask] = BUILT_IN_TASKS) -> tuple[str, ...]:
    """The names of the tasks that the data is for: as the keys say, or as found.

    Raises ConfigError for a task that isn't among ``tasks`` and for a layout of another task.
    """
    names = ("auto", *(task.name for task in tasks), PRETRAIN)
    if config.task not in names:
        raise ConfigError("task", config.task, f"one of {', '.join(names)}")
    layouts = {layout: task for task in tasks for layout in task.layouts}
    if config.layout != "auto" and config.layout not in layouts:
        raise ConfigError("layout", config.layout, f"one of {', '.join(('auto', *layouts))}")
    if config.task != "auto":
        of_layout = layouts.get(config.layout)
        if of_layout is not None and of_layout.name != config.task:
            raise ConfigError("layout", config.layout, f"auto with task={config.task}: it is for {of_layout.images}")
        return (config.task,)
    if config.layout != "auto":
        return (layouts[config.layout].name,)
    if recognized := tuple(task.name for task in tasks if task.recognize is not None and task.recognize(config.data)):
        return recognized
    found = identify(config.data)
    for one in found:
        if not one.sure:
            raise ambiguous_format(config.data, one)
    return tuple(dict.fromkeys(one.task for one in found))


def _check_unlabelled(config: DataCheckConfig, report: Path | None) -> DataCheck:
    """Scan images without labels."""
    colour = background_colour(config.background)
    form = config.changed(PixelFormat(background=colour))
    images = find_source(config.data, config.slices)
    pool = check_pool(images, form, least_side=config.least_side, near=config.near, keep_near=config.keep_near)
    facts = pool.facts
    if config.keep is not None:
        file = Path(config.keep)
        output_folder(file.parent)
        atomic_write_bytes(file, os.fsencode("".join(f"{path}\n" for path in paths_of(images, pool.kept))))
        facts = (*facts, ("list", f"{len(pool.kept):,} of {len(images):,} images in {file}"))
    content = SplitContent(PRETRAIN, "all", len(images), None, pool.sizes, ())
    return DataCheck(config.data, (content,), group_by_kind(pool.issues, POOL_RULES), pool.near, report, facts)


def _check_annotated(config: DataCheckConfig, tasks: Sequence[AnnotatedTask], report: Path | None) -> DataCheck:
    """Scan images with annotations for these tasks."""
    issues: list[DataIssue] = []
    splits: list[CheckedSplit] = []
    for task in tasks:
        try:
            found = task.read(config.data, config.annotation_keys)
        except DataError as error:
            if len(tasks) == 1:
                raise
            issues.append(DataIssue("unreadable", Path(config.data), task.name, str(error)))
            continue
        splits += [CheckedSplit(task, split, annotated) for split, annotated in found.items()]
        issues += [issue for annotated in found.values() for issue in annotated.issues]
    colour = background_colour(config.background)
    form = config.changed(PixelFormat(background=colour, plain=True))
    scans = scan_splits(splits, form)
    for part in splits:
        issues += image_issues(part, scans)
        issues += classes_without_examples(part)
    issues += equal_with_other_labels(splits, scans)
    issues += () if config.group is None else groups_in_two_splits(splits, config.group)
    depths: list[Depth] = []
    for names in distinct_splits(splits):
        shared, used = shared_images(names, scans, config.near)
        issues += shared
        depths += used
    rules = {**AUTO_FIXES, **IMAGE_RULES, **{kind: how for task in tasks for kind, how in task.auto_fixes.items()}}
    contents = tuple(part.content(scans) for part in splits)
    return DataCheck(
        config.data, contents, group_by_kind(issues, rules), least_depth(depths), report, _read_as(config.data, tasks)
    )


def _read_as(data: str, tasks: Sequence[AnnotatedTask]) -> tuple[tuple[str, str], ...]:
    """What a data set is read as, for each task, and by which evidence."""
    own = [(task.name, task.recognize(data)) for task in tasks if task.recognize is not None]
    if recognized := tuple((f"read for {name} as", f"{name} ({evidence})") for name, evidence in own if evidence):
        return recognized
    try:
        found = identify(data)
    except DataError:
        return ()
    names = {task.name for task in tasks}
    return tuple(
        (f"read for {one.task} as", f"{FORMATS[one.format].title} ({one.evidence})")
        for one in found
        if one.task in names
    )
