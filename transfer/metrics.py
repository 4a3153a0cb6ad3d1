"""Scores of a trained model on a split, in one form for every task: for files, reports and people."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..core.files import TableWriter, atomic_write_text, safe_cell

NOT_SHARES = ("nll",)
"""Metrics that are not shares: a log loss, in nats."""


def figure(metric: str, value: float) -> str:
    """A metric's value as people read it: shares in percent."""
    return f"{value:.3f}" if metric in NOT_SHARES else f"{100 * value:.2f} %"


@dataclass(frozen=True)
class Scores:
    """Scores of a model on ``count`` images of ``split``, all but ``NOT_SHARES`` shares from 0 to 1.

    ``metrics`` in the order in which people read them, the first the most important; None: there was nothing to measure it
    on. ``per_class`` holds the scores of each class. ``confusion[i][j]`` counts images of class i taken for class j.
    """

    split: str
    count: int
    metrics: Mapping[str, float | None]
    per_class: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] | None = None

    def line(self) -> str:
        """The scores in a line, shares in percent, with the split, the count and the seeds."""
        shown = [f"{name} {figure(name, value)}" for name, value in self.metrics.items() if value is not None]
        return f"{self.split}: {', '.join(shown)} ({self.count} images, 1 seed)"

    def write(self, path: Path, **more: object) -> None:
        """Write the scores as JSON, with the keys ``more`` added."""
        atomic_write_text(path, json.dumps({**asdict(self), **more}, indent=1, ensure_ascii=False) + "\n")

    def write_confusion(self, path: Path) -> None:
        """Write the confusion matrix as CSV, the true class of each row first."""
        table = io.StringIO()
        writer, names = TableWriter(table), [safe_cell(name) for name in self.per_class]
        writer.writerow(["true class (rows), predicted (columns), counts", *names])
        writer.writerows([name, *row] for name, row in zip(names, self.confusion or (), strict=True))
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
        )
