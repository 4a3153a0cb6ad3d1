"""How many labelled images, or objects, each class has in each split: the table of a transfer's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.data.labeled_dataset import Splits
from .task import Task

MOST_FREQUENT, RAREST = 20, 5
"""Classes that are shown, where there are more than both together."""


@dataclass(frozen=True)
class LabelCounts:
    """``rows``: of each class its name, the share of the most frequent class that it has in training, and its counts."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, float, tuple[str, ...]], ...]


def label_counts(task: Task[Any, Any], splits: Splits[Any]) -> LabelCounts | None:
    """The counts of the splits of a run, the most frequent class of training first; None without classes."""
    counted = [(name, task.label_counts(images)) for name, images in splits.items()]
    what, *_ = counted[0][1]
    train, classes = counted[0][1][what], splits.train.classes
    if not classes or not max(train, default=0):
        return None
    columns = [(f"{name} {kind}", counts) for name, by_kind in counted for kind, counts in by_kind.items()]
    order = _shown(train)
    left_out = len(classes) - len(order)
    some = (
        f"; the {MOST_FREQUENT} most frequent and the {RAREST} rarest of {len(classes):,} classes" if left_out else ""
    )
    return LabelCounts(
        f"Labels of each class; the bar: {what} to train on{some}",
        ("class", *(name for name, _ in columns)),
        tuple(
            (classes[number], train[number] / max(train), tuple(f"{counts[number]:,}" for _, counts in columns))
            for number in order
        ),
    )


def rarest_class(counts: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str:
    """The class with the fewest labels to train on, in words."""
    what, *_ = counts
    number = min(range(len(classes)), key=lambda place: counts[what][place])
    return f"{classes[number]}, {counts[what][number]:,} {what} to train on"


def _shown(counts: Sequence[int]) -> list[int]:
    """The classes that are shown, the most frequent first."""
    order = sorted(range(len(counts)), key=lambda number: -counts[number])
    return order if len(order) <= MOST_FREQUENT + RAREST else [*order[:MOST_FREQUENT], *order[-RAREST:]]
