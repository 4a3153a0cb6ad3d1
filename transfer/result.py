"""The result of a transfer: the model file, its scores, its curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DataError
from ..core.notebook import Fact, facts_table
from ..core.report.charts import curves_figure
from ..core.terminal import quoted
from ..core.training.data_frames import metrics_frame
from ..core.training.tracker import METRICS_FILE, read_metrics
from .metrics import Scores
from .report import SUMMARY_FILE, curve_charts

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class TransferResult:
    """What a transfer ends with: the model file, its test scores, and its best validation score (a share)."""

    task: str
    model: Path
    test: Scores
    metric: str
    val: float
    val_count: int
    seed: int

    def summary(self) -> str:
        """The result in a few lines."""
        return (
            f"model: {self.model}\n{self.test.line()}\n"
            f"val: {self._validation()}\n"
            f"pictures and curves: {self.model.with_name(SUMMARY_FILE)}\n"
            f"next: {self._next()}"
        )

    def metrics(self) -> DataFrame:
        """The metrics.jsonl of the run as a pandas.DataFrame: a row a record, by ``step``; see ``metrics_frame``."""
        return metrics_frame(self.model.parent)

    def plot(self) -> Figure:
        """Loss and validation figures over the steps of training, as a matplotlib figure.

        Raises DataError for a run without such, as a probe on features, which is fitted at once.
        """
        file = self.model.with_name(METRICS_FILE)
        charts = curve_charts(read_metrics(file)) if file.is_file() else []
        shown = [chart for chart in charts if chart.key in ("loss", "validation")]
        if not shown:
            raise DataError(f"{file}: no loss and no validation figures. Expected those of a training in steps.")
        return curves_figure(shown)

    def _repr_html_(self) -> str:
        facts: list[Fact] = [
            ("model", self.model),
            ("test", self.test.line()),
            ("validation", self._validation()),
            ("pictures and curves", self.model.with_name(SUMMARY_FILE)),
            ("next", self._next()),
        ]
        return facts_table(f"Transfer: {self.task}", facts)

    def _validation(self) -> str:
        metric = self.metric.removeprefix("val/")
        return f"best {metric} {100 * self.val:.2f} % ({self.val_count} images, 1 seed)"

    def _next(self) -> str:
        return f"maelift predict model={quoted(self.model)} images=FOLDER"
