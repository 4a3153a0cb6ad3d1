"""The table of tasks: a row each, read by commands, API, model files, prediction, suites and data check.

A task is one folder (its configuration, ``Task``, model and recipes) and one row here. Rows of other packages are added by
``register``, or by an entry point of the group ``maelift.tasks`` whose value names a ``TaskEntry``: with it the task is known in
every process, on the command line and in suites too (docs/new_task.md).

A row holds words and references to code, "module:name"; a module name with a leading dot is relative to ``maelift.transfer``.
A module is imported when it is first used, so that ``maelift --help`` imports none.

How other parts read it:

- ``tasks.names()``: every task; ``tasks.entry("detect")``: its row, ConfigError for an unknown one.
- ``entry.config_type()``: its ``TransferConfig``; ``tasks.task_type(config)``: the ``Task`` that a configuration trains with.
- ``entry.build_model(file)``: the model of a model file (``trained_model.load_model`` calls it).
- ``entry.writer_type()``: what writes predictions; ``tasks.annotated_tasks()``: what data check reads of each task.
- ``entry.title``: the heading in reports; ``entry.scores``: the scores that suites report, and the one verdicts go by.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from ..core.errors import ConfigError, MaeliftError

if TYPE_CHECKING:
    from ..core.data.task_data import AnnotatedTask
    from .config import TransferConfig
    from .model_file import ModelFile, TrainedModel
    from .prediction_writers import PredictionWriter
    from .task import Task

CLASSIFY = "classify"
"""The task of a suite's own labelled images."""

ENTRY_POINTS = "maelift.tasks"
"""The group of entry points by which packages add tasks of their own."""


@dataclass(frozen=True, kw_only=True)
class ReportedScores:
    """The scores of a task that suites report, all shares from 0 to 1, higher is better."""

    labels: Mapping[str, str]
    """what each score is called in tables, by its key in ``Scores.metrics``; the first is the one that verdicts go by"""
    figure: str
    """the first in words, in a sentence: "AP of boxes" """
    is_accuracy: bool = False
    """the first is an accuracy: the share of the test images that are right, and the value of an image is 1 or 0"""
    defaults: Mapping[str, float] = field(default_factory=dict)
    """values of scores that a data set is too small to measure, by key"""
    interval_note: str = ""
    """how an interval covers the choice of test images where they aren't drawn singly: "by leaving out groups of them" """

    @property
    def key(self) -> str:
        """The key of the score that verdicts go by."""
        return next(iter(self.labels))

    @property
    def label(self) -> str:
        """What the score that verdicts go by is called in tables."""
        return self.labels[self.key]


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A row of the table."""

    name: str
    """the word after ``maelift transfer``, in model files and in suites"""
    title: str
    """the heading in reports"""
    summary: str
    """a line for ``maelift --help``"""
    config: str
    """reference to the task's ``TransferConfig``"""
    task: str
    """reference to the ``Task``, or to a function that gives it for a configuration"""
    load: str
    """reference to the function that builds the model of a ``ModelFile``"""
    writer: str
    """reference to the ``PredictionWriter`` of ``maelift predict``"""
    out: str
    """where ``maelift predict`` writes without ``out=``: a file or a folder"""
    annotations: str
    """reference to the ``AnnotatedTask`` by which ``maelift data check`` reads and checks the task's data"""
    scores: ReportedScores

    def config_type(self) -> type[TransferConfig]:
        """The task's configuration."""
        return cast("type[TransferConfig]", _resolve(self.config))

    def task_type(self, config: TransferConfig) -> type[Task[Any, Any]]:
        """The ``Task`` that trains as ``config`` says."""
        found = _resolve(self.task)
        return cast("type[Task[Any, Any]]", found if isinstance(found, type) else found(config))

    def build_model(self, file: ModelFile) -> TrainedModel:
        """The model that a file of this task describes, its tensors in it; raises CheckpointError where they don't fit."""
        return cast("TrainedModel", _resolve(self.load)(file))

    def annotated_task(self) -> AnnotatedTask:
        """How data check and init read the task's data."""
        return cast("AnnotatedTask", _resolve(self.annotations))

    def writer_type(self) -> type[PredictionWriter]:
        """What writes predictions of the task."""
        return cast("type[PredictionWriter]", _resolve(self.writer))


_ENTRIES: dict[str, TaskEntry] = {}


def task_type(config: TransferConfig) -> type[Task[Any, Any]]:
    """The ``Task`` that trains as ``config`` says."""
    return entry(config.task_name).task_type(config)


def annotated_tasks() -> tuple[AnnotatedTask, ...]:
    """How the data of each task is read and checked, for data check and init."""
    return tuple(entry(name).annotated_task() for name in names())


def register(entry: TaskEntry) -> None:
    """Add a task of another package, in this process; raises ValueError for a name that another task has."""
    if _ENTRIES.setdefault(entry.name, entry) != entry:
        raise ValueError(f"task {entry.name!r} is registered already, with another row")


def entry(name: str) -> TaskEntry:
    """The row of a task; raises ConfigError for a name that no task has."""
    if name not in _ENTRIES:
        _register_entry_points()
    if name not in _ENTRIES:
        raise ConfigError("task", name, " or ".join(_ENTRIES))
    return _ENTRIES[name]


def names() -> tuple[str, ...]:
    """The tasks that there are: maelift's own, then those of other packages."""
    _register_entry_points()
    return tuple(_ENTRIES)


@cache
def _register_entry_points() -> None:
    from importlib.metadata import entry_points  # 70 ms, which commands on maelift's own tasks don't spend

    for point in entry_points(group=ENTRY_POINTS):
        try:
            register(cast(TaskEntry, point.load()))
        except (ImportError, AttributeError, ValueError) as error:
            raise MaeliftError(
                f"the entry point {point.name} = {point.value} of {ENTRY_POINTS} can't be used ({error}). Repair that package, "
                "or uninstall it."
            ) from error


def _resolve(reference: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module, __package__), name)


register(
    TaskEntry(
        name="classify",
        title="Classification",
        summary="labelled images and an encoder in, classifier out",
        config=".classification.config:ClassifyConfig",
        task=".classification.methods:task_type",
        load=".classification.model:load",
        writer=".prediction_writers:ClassificationWriter",
        out="predictions.csv",
        annotations="..core.data.task_data:CLASSIFY",
        scores=ReportedScores(
            labels={"top1": "top-1", "top5": "top-5", "balanced": "balanced"},
            figure="top-1 accuracy",
            is_accuracy=True,
            defaults={"top5": 1.0},  # five classes or fewer
        ),
    )
)
register(
    TaskEntry(
        name="detect",
        title="Detection",
        summary="boxes or masks (COCO JSON) and an encoder in, detector out",
        config=".detection.config:DetectConfig",
        task=".detection.task:DetectionTask",
        load=".detection.model:load",
        writer=".prediction_writers:DetectionWriter",
        out="predictions.json",
        annotations="..core.data.task_data:DETECT",
        scores=ReportedScores(
            labels={"AP": "AP", "AP50": "AP50", "mask_AP": "AP of masks"},
            figure="AP of boxes",
            interval_note="by leaving out groups of them",
        ),
    )
)
register(
    TaskEntry(
        name="segment",
        title="Segmentation",
        summary="masks and an encoder in, segmentor out",
        config=".segmentation.config:SegmentConfig",
        task=".segmentation.task:SegmentationTask",
        load=".segmentation.model:load",
        writer=".prediction_writers:SegmentationWriter",
        out="masks",
        annotations="..core.data.task_data:SEGMENT",
        scores=ReportedScores(
            labels={"mIoU": "mIoU", "aAcc": "pixel accuracy", "mAcc": "mean class accuracy"},
            figure="mIoU",
        ),
    )
)

BUILT_IN = tuple(_ENTRIES)
"""maelift's own tasks: those that need no look for other packages."""
