"""Scores of a trained model on a split, in one form for every task: for files, reports and people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.files import TableWriter, atomic_write_text, safe_cell

NOT_SHARES = ("nll",)
"""Metrics that are not shares: a log loss, in nats."""

RECALLS = tuple(number / 100 for number in range(101))
"""The recalls at which COCO's evaluation gives the precision."""
MEAN = "mean over classes"
NOTHING_THERE, MISSED = "nothing there", "missed"
"""The last row and the last column of a confusion matrix of objects."""


def figure(metric: str, value: float) -> str:
    """A metric's value as people read it: shares in percent."""
    return f"{value:.3f}" if metric in NOT_SHARES else f"{100 * value:.2f} %"


@dataclass(frozen=True)
class Scores:
    """Scores of a model on ``count`` images of ``split``, all but ``NOT_SHARES`` shares from 0 to 1.

    ``metrics`` in the order in which people read them, the first the most important; None: there was nothing to measure it
    on. ``per_class`` holds the scores of each class. ``confusion[i][j]`` counts images of class i taken for class j; of
    objects one row more, of what was found where there is nothing, and one column more, of those that were missed.
    ``precision_recall``: by measure ("AP50"), then by class or ``MEAN``, the precision at each of ``RECALLS``; its mean is
    that measure.
    """

    split: str
    count: int
    metrics: Mapping[str, float | None]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None
    confusion_of: Literal["images", "objects"] = "images"
    precision_recall: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict, compare=False)

    @property
    def confusion_names(self) -> tuple[list[str], list[str]]:
        """The names of the confusion matrix's rows and of its columns."""
        count = len(self.confusion or ()) - (self.confusion_of == "objects")
        names = list(self.per_class)
        names = names if len(names) == count else [f"class {number}" for number in range(count)]
        return ([*names, NOTHING_THERE], [*names, MISSED]) if self.confusion_of == "objects" else (names, names)

    def line(self) -> str:
        """The scores in a line, shares in percent, with the split, the count and the seeds."""
        shown = [f"{name} {figure(name, value)}" for name, value in self.metrics.items() if value is not None]
        return f"{self.split}: {', '.join(shown)} ({self.count} images, 1 seed)"

    def write(self, path: Path, **more: object) -> None:
        """Write the scores as JSON, with the keys ``more`` added; curves have a file of their own."""
        content = {key: value for key, value in asdict(self).items() if key != "precision_recall"}
        atomic_write_text(path, json.dumps({**content, **more}, indent=1, ensure_ascii=False) + "\n")

    def write_confusion(self, path: Path) -> None:
        """Write the confusion matrix as CSV, the true class of each row first."""
        table = io.StringIO()
        writer = TableWriter(table)
        rows, columns = ([safe_cell(name) for name in names] for names in self.confusion_names)
        writer.writerow(["true class (rows), predicted (columns), counts", *columns])
        writer.writerows([name, *row] for name, row in zip(rows, self.confusion or (), strict=True))
        atomic_write_text(path, table.getvalue())

    def write_precision_recall(self, path: Path) -> None:
        """Write the curves of precision over recall as CSV, a point a line, shares from 0 to 1."""
        table = io.StringIO()
        writer = TableWriter(table)
        writer.writerow(["measure", "class", "recall", "precision"])
        for measure, curves in self.precision_recall.items():
            for name, values in curves.items():
                points = zip(RECALLS, values, strict=True)
                writer.writerows([measure, safe_cell(name), f"{recall:g}", f"{value:.6g}"] for recall, value in points)
        atomic_write_text(path, table.getvalue())

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scores:
        """What ``write`` wrote."""
        confusion = content.get("confusion")
        return cls(
            content["split"],
            content["count"],
            content["metrics"],
            content["per_class"],
            None if confusion is None else tuple(tuple(row) for row in confusion),
            content.get("confusion_of", "images"),
        )
