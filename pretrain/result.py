"""The result of a pretraining, read from the folder of its run."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.models.contract import PROVENANCE
from ..core.models.stored_contract import ENCODER_FILE, read_stored_contract
from ..core.progress import duration
from ..core.terminal import quoted
from ..core.training.tracker import read_metrics
from .data import Source

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
        loss = (
            "no images were held out"
            if self.held_out_loss is None
            else f"held-out masked loss {self.held_out_loss:.4f} ({self.held_out_images} images, fixed masks, 1 seed)"
        )
        took = "" if self.seconds is None else f" in {duration(self.seconds)}"
        return (
            f"encoder: {self.encoder}\n{self.steps} steps on {self.images} images{took}; {loss}\n"
            f"curves and pictures: {self.encoder.with_name(REPORT_FILE)}\n"
            f"next: maelift transfer classify encoder={quoted(self.encoder)} data=LABELLED_FOLDER out=FOLDER recipe=auto"
        )


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
