"""The result of a pretraining, read from the folder of its run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import DataError
from ..core.models.contract import PROVENANCE
from ..core.models.stored_contract import ENCODER_FILE, read_stored_contract
from ..core.notebook import Fact, facts_table
from ..core.progress import duration
from ..core.report.charts import curves_figure
from ..core.terminal import quoted
from ..core.training.data_frames import metrics_frame
from ..core.training.run_dir import read_run_config
from ..core.training.tracker import METRICS_FILE, read_metrics
from .curves import curve_charts, loss_unit
from .data import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

logger = logging.getLogger("maelift")

REPORT_FILE = "summary.html"


@dataclass(frozen=True)
class PretrainResult:
    """The result of a pretraining: ``encoder`` is the file; the loss is the mean over the held-out images."""

    encoder: Path
    steps: int
    images: int
    held_out_loss: float | None
    held_out_images: int
    seconds: float | None
    """of training, over all restarts; None if the run was complete already"""

    def summary(self) -> str:
        """The result in a few lines."""
        return (
            f"encoder: {self.encoder}\n{self._training()}; {self._loss()}\n"
            f"curves and pictures: {self.encoder.with_name(REPORT_FILE)}\n"
            f"next: {self._next()}"
        )

    def metrics(self) -> DataFrame:
        """The metrics.jsonl of the run as a pandas.DataFrame: a row a record, by ``step``; see ``metrics_frame``."""
        return metrics_frame(self.encoder.parent)

    def plot(self) -> Figure:
        """The losses over the steps of training, and the probes where there were any, as a matplotlib figure.

        Raises DataError where the run's folder has no metrics any more.
        """
        folder = self.encoder.parent
        if not (folder / METRICS_FILE).is_file():
            raise DataError(
                f"{folder / METRICS_FILE}: no such file. Expected the metrics of the run beside its encoder."
            )
        unit = loss_unit(bool(read_run_config(folder / "config.yaml")["norm_pix_loss"]))
        charts = curve_charts(read_metrics(folder / METRICS_FILE), unit, self.held_out_images)
        shown = [chart for chart in charts if chart.key in ("loss", "probe")]
        if not shown:
            raise DataError(f"{folder / METRICS_FILE}: no loss. Expected the metrics of the run beside its encoder.")
        return curves_figure(shown)

    def _repr_html_(self) -> str:
        facts: list[Fact] = [
            ("encoder", self.encoder),
            ("training", self._training()),
            ("loss", self._loss()),
            ("curves and pictures", self.encoder.with_name(REPORT_FILE)),
            ("next", self._next()),
        ]
        return facts_table("Pretraining", facts)

    def _training(self) -> str:
        took = "" if self.seconds is None else f" in {duration(self.seconds)}"
        return f"{self.steps} steps on {self.images} images{took}"

    def _loss(self) -> str:
        if self.held_out_loss is None:
            return "no images were held out"
        return f"held-out masked loss {self.held_out_loss:.4f} ({self.held_out_images} images, fixed masks, 1 seed)"

    def _next(self) -> str:
        return f"maelift transfer classify encoder={quoted(self.encoder)} data=LABELLED_FOLDER out=FOLDER recipe=auto"


def finished_result(folder: Path, source: Source) -> PretrainResult:
    """``read_result`` of a run that was complete before."""
    logger.info("pretrain: %s exists already: the run is complete", folder / ENCODER_FILE)
    return read_result(folder, source)


def read_result(folder: Path, source: Source, seconds: float | None = None) -> PretrainResult:
    """The result of the complete run in a folder, whose images are ``source``; ``seconds`` of training, if known.

    Raises CheckpointError for an encoder file that was changed or damaged since.
    """
    provenance = read_stored_contract(folder / ENCODER_FILE).value(PROVENANCE, dict[str, Any])
    losses = [record["held_out/loss"] for record in read_metrics(folder / "metrics.jsonl") if "held_out/loss" in record]
    return PretrainResult(
        encoder=folder / ENCODER_FILE,
        steps=provenance["steps"],
        images=len(source.pool),
        held_out_loss=losses[-1] if losses else None,
        held_out_images=len(source.held_out),
        seconds=seconds,
    )
