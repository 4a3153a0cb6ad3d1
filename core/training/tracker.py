"""Tracking of a run: progress, metrics.jsonl, events.jsonl, TensorBoard and Weights & Biases."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..files import append_bytes, atomic_write_text
from ..optional_imports import require
from ..progress import LOG_INTERVAL, ProgressBar, ProgressListener, TrainingProgress, duration
from ..public_names import public_config

logger = logging.getLogger("maelift")

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
REWIND = "rewind"
"""The kind of event of going back to a checkpoint within a run."""
WAIT_WINDOW = 30.0
"""Seconds of the first window over which the time spent waiting for images is measured; each window is twice as long as the
one before, so that a run of a week warns some fifteen times."""
WAIT_LIMIT = 0.2
"""Share of a window spent waiting for images above which the loader is reported as the bottleneck."""


@dataclass(frozen=True)
class Event:
    """An event of a run after ``step`` steps: its ``kind`` in a word, a ``text``, and the names of the ``images`` involved."""

    step: int
    kind: str
    text: str
    images: tuple[str, ...] = ()


class Tracker:
    """Saves the metrics of a run in ``folder`` and shows its progress; silent on all processes but the main one.

    ``record``, where given, gets every logged record too. With ``loading_advice``, advice for when the steps wait for
    images, throughput, waiting and memory are logged beside the training loss, and long waiting is warned
    of. ``wandb``: the Weights & Biases project that gets the metrics too; raises MaeliftError where it isn't installed.
    """

    def __init__(
        self,
        folder: Path | None,
        title: str,
        *,
        total: int,
        images_per_step: int,
        active: bool = True,
        listener: ProgressListener | None = None,
        record: list[dict[str, float]] | None = None,
        loading_advice: str | None = None,
        wandb: str | None = None,
        config: Mapping[str, object] | None = None,
    ) -> None:
        self._folder = folder if active else None
        self._title, self._total, self._images_per_step = title, total, images_per_step
        self._first, self._started = 0, time.monotonic()
        self._listener, self._record = listener, record
        self._active = active
        self._shown_at = self._started
        self._bar: ProgressBar | None = None
        self._tensorboard: _TensorBoardFile | None = None
        self._advice = loading_advice
        self._log_interval = self._wait_interval = _Interval(0)
        self._window = WAIT_WINDOW
        self._wandb = None if wandb is None or self._folder is None else _wandb_run(wandb, self._folder, config or {})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=int(error is not None))

    def resume_from(self, step: int) -> None:
        """Begin after ``step`` steps, 0 for a new run: remove what was logged later, measure rate and time from here."""
        self._restart(step)
        if self._folder is not None:
            _truncate_after(self._folder / METRICS_FILE, step)
            _truncate_after(self._folder / EVENTS_FILE, step, unless_before=REWIND)
        if self._active and self._listener is None and sys.stderr.isatty() and self._bar is None:
            self._bar = ProgressBar(self._title, self._total, step)

    def rewind_to(self, step: int) -> None:
        """Continue after ``step`` steps within a run: its later metrics are removed, its events are not."""
        self._restart(step)
        self._tensorboard = None
        if self._folder is not None:
            _truncate_after(self._folder / METRICS_FILE, step)

    def _restart(self, step: int) -> None:
        self._first, self._started = step, time.monotonic()
        self._log_interval, self._wait_interval = _Interval(step), _Interval(step)

    def add_data_wait(self, seconds: float) -> None:
        """Add the time that a step waited for its images."""
        for interval in (self._log_interval, self._wait_interval):
            interval.data_wait += seconds

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of the block, which doesn't train, out of throughput and shares of waiting."""
        began = time.monotonic()
        try:
            yield
        finally:
            for interval in (self._log_interval, self._wait_interval):
                interval.paused += time.monotonic() - began

    def event(self, step: int, kind: str, text: str, images: Sequence[str] = ()) -> None:
        """Log an event after ``step`` steps and save it in events.jsonl; ``kind`` is a word, such as "rewind".

        The names of ``images`` are only saved there.
        """
        if not self._active:
            return
        logger.warning("%s: step %d: %s", self._title, step, text)
        if self._folder is not None:
            _append(self._folder / EVENTS_FILE, asdict(Event(step, kind, text, tuple(images))))

    def progress(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done."""
        if not self._active:
            return
        now = time.monotonic()
        self._warn_of_slow_loading(step, now)
        rate = (step - self._first) * self._images_per_step / max(now - self._started, 1e-9)
        if self._listener is not None:
            self._listener(TrainingProgress(step, self._total, rate, loss))
        elif self._bar is not None:
            self._bar.show(step, rate, loss)
        elif now - self._shown_at >= LOG_INTERVAL or step == self._total:
            self._shown_at = now
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
        """Append metrics after ``step`` steps to metrics.jsonl, TensorBoard and W&B, by names such as "val/top1"."""
        if self._record is not None:
            self._record.append({"step": step, **metrics})
        if self._folder is None:
            return
        if self._advice is not None and "train/loss" in metrics:
            metrics = {**metrics, **self._performance(step)}
        _append(self._folder / METRICS_FILE, {"step": step, **metrics})
        if self._tensorboard is None:
            self._tensorboard = _TensorBoardFile(self._folder / "tensorboard", self._first)
        self._tensorboard.add(step, metrics)
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def _performance(self, step: int) -> dict[str, float]:
        """Throughput and waiting since they were last logged, and the peak memory so far."""
        import torch

        interval, self._log_interval = self._log_interval, _Interval(step)
        seconds = interval.seconds(time.monotonic())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        figures = {
            "images_per_second": (step - interval.first_step) * self._images_per_step / seconds,
            "data_wait_share": min(1.0, interval.data_wait / seconds),
            "memory/cpu_peak_mib": peak,
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            figures["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return figures

    def _warn_of_slow_loading(self, step: int, now: float) -> None:
        """At the end of a window, warn if too much of it was spent waiting for images."""
        if self._advice is None or (seconds := self._wait_interval.seconds(now)) < self._window:
            return
        share = self._wait_interval.data_wait / seconds
        self._wait_interval, self._window = _Interval(step), 2 * self._window
        if share > WAIT_LIMIT:
            self.event(
                step,
                "loader",
                f"{100 * min(1.0, share):.0f} % of the last {duration(seconds)} were spent waiting for images. "
                f"{self._advice}",
            )


class _TensorBoardFile:
    """A TensorBoard event file, whose records after ``first_step`` steps replace those of earlier files.

    Each call writes at once: torch's writer does it in a thread, which dies with a traceback where the disk is full. Here the
    training continues without TensorBoard then, with a warning.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file: Path | None = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)
        self._write(
            [{"file_version": "brain.Event:2"}, {"step": first_step + (first_step > 0), "session_log": {"status": 1}}]
        )

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics after ``step`` steps."""
        values = [{"tag": name, "simple_value": float(value)} for name, value in metrics.items()]
        self._write([{"step": step, "summary": {"value": [value]}} for value in values])

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event as TensorBoardEvent
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(TensorBoardEvent(wall_time=time.time(), **event).SerializeToString())
        try:
            append_bytes(self._file, records.getvalue())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._file = None
        reason = (error.strerror or str(error)).lower()
        logger.warning(
            "TensorBoard's files can't be written (%s); continuing without them, see %s", reason, METRICS_FILE
        )


class _Interval:
    """The time since ``first_step`` steps were done, without pauses, and the part of it spent waiting for images."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.began = first_step, time.monotonic()
        self.data_wait = self.paused = 0.0

    def seconds(self, now: float) -> float:
        return max(1e-9, now - self.began - self.paused)


def _append(path: Path, record: Mapping[str, object]) -> None:
    """Append a line to a file by a single write, so that only the last line may be incomplete, after a kill."""
    append_bytes(path, (json.dumps(record) + "\n").encode())


def _truncate_after(path: Path, step: int, unless_before: str | None = None) -> None:
    """Remove the records that a killed run wrote after the checkpoint that this one continues from.

    Those before a remaining event of the kind ``unless_before`` stay: a rewind doesn't undo what led to it.
    """
    if not path.exists():
        return
    records = _read_lines(path)
    kept = [record["step"] <= step for record in records]
    rewinds = [number for number, record in enumerate(records) if kept[number] and record.get("kind") == unless_before]
    last_rewind = rewinds[-1] if unless_before is not None and rewinds else 0
    remaining = [record for number, record in enumerate(records) if kept[number] or number < last_rewind]
    atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in remaining))


def read_events(path: Path) -> list[Event]:
    """The events of an events.jsonl, in order; none where there is no such file."""
    if not path.exists():
        return []
    return [Event(**{**record, "images": tuple(record.get("images", ()))}) for record in _read_lines(path)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; an incomplete last line is left out."""
    return _read_lines(path)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(record, dict) or type(record.get("step")) not in (int, float):
            break
        records.append(record)
    return records


def _wandb_run(project: str, folder: Path, config: Mapping[str, object]) -> Any:
    """A run of Weights & Biases; a run that is resumed in ``folder`` is resumed there too."""
    file = folder / "wandb_id.txt"
    if not file.exists():
        atomic_write_text(file, uuid.uuid4().hex + "\n")
    run = require("wandb").init(
        project=project,
        id=file.read_text().strip(),
        resume="allow",
        dir=str(folder),
        name=folder.name,
        config=public_config(config),
    )
    run.define_metric("*", step_metric="step")  # W&B's own step never decreases, as that of a resumed run does
    return run
