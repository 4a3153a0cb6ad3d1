"""How far long work is: a bar on a terminal, a line now and then elsewhere, with rate and time left."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

logger = logging.getLogger("maelift")

PLAIN_INTERVAL = 15.0
"""Seconds between two lines of progress where no terminal shows a bar."""


@dataclass(frozen=True)
class Progress:
    """Where a run is: ``step`` of ``total`` steps, its rate in images/s, and the training loss."""

    step: int
    total: int
    images_per_second: float
    loss: float


Listener = Callable[[Progress], None]
"""Who wants to hear of progress instead of the terminal."""


def progress_logger(what: str, things: str = "images") -> Callable[[int, int], None]:
    """A listener to (done, total) that says now and then how many things are done, how fast, and the time left."""
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL:
            said = now
            rate = done / (now - began)
            left = duration((total - done) / max(rate, 1e-9))
            logger.info("%s: %d of %d %s, %.0f %s/s, %s left", what, done, total, things, rate, things, left)

    return tell


def duration(seconds: float) -> str:
    """Seconds in words: "45 s", "3 min 20 s", "5 h 02 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Bar:
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
        with suppress(OSError):  # the terminal may be closed, of which SIGHUP tells
            self._progress.update(self._task, completed=step, rate=rate, loss=loss)

    def close(self) -> None:
        with suppress(OSError):
            self._progress.stop()
