"""What a run shows and keeps of itself: progress with rate and time left, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .files import atomic_write_text

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


class Tracker:
    """Keeps the metrics of a run in ``folder`` and shows its progress; silent on all processes but the main one.

    ``record``, where given, gets every logged record too.
    """

    def __init__(
        self,
        folder: Path | None,
        title: str,
        *,
        total: int,
        images_per_step: int,
        active: bool = True,
        listener: Listener | None = None,
        record: list[dict[str, float]] | None = None,
    ) -> None:
        self._folder = folder if active else None
        self._title, self._total, self._images_per_step = title, total, images_per_step
        self._first, self._started = 0, time.monotonic()
        self._listener, self._record = listener, record
        self._active = active
        self._said = self._started
        self._bar: _Bar | None = None
        self._board: Any = None

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def go_on_from(self, step: int) -> None:
        """Begin after ``step`` steps, 0 for a new run: forget what was logged later, count rate and time from here."""
        self._first, self._started = step, time.monotonic()
        if self._folder is not None:
            self._forget_after(step)
        if self._active and self._listener is None and sys.stderr.isatty():
            self._bar = _Bar(self._title, self._total, step)

    def progress(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done."""
        if not self._active:
            return
        now = time.monotonic()
        rate = (step - self._first) * self._images_per_step / max(now - self._started, 1e-9)
        if self._listener is not None:
            self._listener(Progress(step, self._total, rate, loss))
        elif self._bar is not None:
            self._bar.show(step, rate, loss)
        elif now - self._said >= PLAIN_INTERVAL or step == self._total:
            self._said = now
            left = (self._total - step) * self._images_per_step / max(rate, 1e-9)
            logger.info(
                "%s: step %d/%d, loss %.4f, %.0f images/s, %s left",
                self._title,
                step,
                self._total,
                loss,
                rate,
                duration(left),
            )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append metrics after ``step`` steps to metrics.jsonl and TensorBoard; names say split and unit."""
        if self._record is not None:
            self._record.append({"step": step, **metrics})
        if self._folder is None:
            return
        with (self._folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._first)
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def _forget_after(self, step: int) -> None:
        """Drop what a killed run logged after the checkpoint that this one goes on from."""
        path = (self._folder or Path()) / "metrics.jsonl"
        if path.exists():
            kept = [record for record in read_metrics(path) if record["step"] <= step]
            atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def counting(what: str) -> Callable[[int, int], None]:
    """A listener to (done, total) that says now and then how many images are done, how fast, and the time left."""
    began = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= PLAIN_INTERVAL:
            said = now
            rate = done / (now - began)
            left = duration((total - done) / max(rate, 1e-9))
            logger.info("%s: %d of %d images, %.0f images/s, %s left", what, done, total, rate, left)

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
        self._progress.update(self._task, completed=step, rate=rate, loss=loss)

    def close(self) -> None:
        self._progress.stop()
