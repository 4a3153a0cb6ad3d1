"""Progress of long work: a bar on a terminal, a log line now and then elsewhere, with rate and time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

logger = logging.getLogger("maelift")

LOG_INTERVAL = 15.0
"""Seconds between two log lines where no terminal shows a bar."""


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a training: ``step`` of ``total`` steps, its rate in images/s, and the training loss."""

    step: int
    total: int
    images_per_second: float
    loss: float


ProgressListener = Callable[[TrainingProgress], None]
"""Called with the progress of a training, which the terminal then doesn't show."""


def progress_logger(what: str, unit: str = "images") -> Callable[[int, int], None]:
    """A function of (done, total) that logs now and then how many things are done, how fast, and the time left."""
    began = logged_at = time.monotonic()

    def log(done: int, total: int) -> None:
        nonlocal logged_at
        now = time.monotonic()
        if now - logged_at >= LOG_INTERVAL:
            logged_at = now
            rate = done / (now - began)
            left = duration((total - done) / max(rate, 1e-9))
            logger.info("%s: %d of %d %s, %.0f %s/s, %s left", what, done, total, unit, rate, unit, left)

    return log


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "3 min 20 s", "5 h 02 min"."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


class ProgressBar:
    """A rich progress bar on the terminal."""

    def __init__(self, title: str, total: int, first: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(title, total=total, completed=first, loss=float("nan"), rate=0.0)
        self._progress.start()

    def show(self, step: int, rate: float, loss: float) -> None:
        with suppress(OSError):  # the terminal may be closed, which SIGHUP reports
            self._progress.update(self._task, completed=step, rate=rate, loss=loss)

    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()
