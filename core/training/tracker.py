"""What a run shows and keeps of itself: progress with rate and time left, metrics.jsonl, events.jsonl, TensorBoard, W&B."""

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
from ..progress import PLAIN_INTERVAL, Listener, Progress, _Bar, duration
from ..public_names import public_config

logger = logging.getLogger("maelift")

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
REWIND = "rewind"
"""The kind of event that tells of going back to a checkpoint within a run."""
WAIT_WINDOW = 30.0
"""Seconds over which waiting for images is judged the first time; each window is twice as long as the one before, so that a
run of a week warns some fifteen times."""
WAIT_LIMIT = 0.2
"""Share of a window spent waiting for images from which the loader is called the bottleneck."""


@dataclass(frozen=True)
class Event:
    """What happened in a run beside its steps: after ``step`` steps, of a ``kind`` in a word, and told in a ``text``.

    ``images``: the names of those that it happened with, where there are such.
    """

    step: int
    kind: str
    text: str
    images: tuple[str, ...] = ()


class Tracker:
    """Keeps the metrics of a run in ``folder`` and shows its progress; silent on all processes but the main one.

    ``record``, where given, gets every logged record too. With ``loading_advice``, which says what to change when the
    steps wait for images, throughput, waiting and memory are logged beside the training loss and waiting is warned of.
    ``wandb``: the Weights & Biases project that gets the metrics too; raises MaeliftError where it isn't installed.
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
        loading_advice: str | None = None,
        wandb: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self._folder = folder if active else None
        self._title, self._total, self._images_per_step = title, total, images_per_step
        self._first, self._started = 0, time.monotonic()
        self._listener, self._record = listener, record
        self._active = active
        self._said = self._started
        self._bar: _Bar | None = None
        self._board: _Board | None = None
        self._advice = loading_advice
        self._logged = self._judged = _Interval(0)
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

    def go_on_from(self, step: int) -> None:
        """Begin after ``step`` steps, 0 for a new run: forget what was logged later, count rate and time from here."""
        self._restart(step)
        if self._folder is not None:
            _forget_after(self._folder / METRICS_FILE, step)
            _forget_after(self._folder / EVENTS_FILE, step, but_before=REWIND)
        if self._active and self._listener is None and sys.stderr.isatty() and self._bar is None:
            self._bar = _Bar(self._title, self._total, step)

    def rewind_to(self, step: int) -> None:
        """Go on after ``step`` steps within a run: its later metrics are forgotten, its events are not."""
        self._restart(step)
        self._board = None
        if self._folder is not None:
            _forget_after(self._folder / METRICS_FILE, step)

    def _restart(self, step: int) -> None:
        self._first, self._started = step, time.monotonic()
        self._logged, self._judged = _Interval(step), _Interval(step)

    def waited(self, seconds: float) -> None:
        """Note that a step's images were waited for so long."""
        for stretch in (self._logged, self._judged):
            stretch.waited += seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the time of the block out of throughput and of shares of waiting: nothing is trained in it."""
        began = time.monotonic()
        try:
            yield
        finally:
            for stretch in (self._logged, self._judged):
                stretch.aside += time.monotonic() - began

    def event(self, step: int, kind: str, text: str, images: Sequence[str] = ()) -> None:
        """Say and keep, in events.jsonl, what happened after ``step`` steps; ``kind`` is a word, such as "rewind".

        The names of ``images`` are only kept there.
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
        self._watch_loading(step, now)
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
        """Append metrics after ``step`` steps to metrics.jsonl, TensorBoard and W&B; names say split and unit."""
        if self._record is not None:
            self._record.append({"step": step, **metrics})
        if self._folder is None:
            return
        if self._advice is not None and "train/loss" in metrics:
            metrics = {**metrics, **self._machine(step)}
        _append(self._folder / METRICS_FILE, {"step": step, **metrics})
        if self._board is None:
            self._board = _Board(self._folder / "tensorboard", self._first)
        self._board.add(step, metrics)
        if self._wandb is not None:
            self._wandb.log({"step": step, **metrics})

    def _machine(self, step: int) -> dict[str, float]:
        """Throughput and waiting since this was last logged, and the most memory so far."""
        import torch

        stretch, self._logged = self._logged, _Interval(step)
        seconds = stretch.seconds(time.monotonic())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        figures = {
            "images_per_second": (step - stretch.first) * self._images_per_step / seconds,
            "data_wait_share": min(1.0, stretch.waited / seconds),
            "memory/cpu_peak_mib": peak,
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            figures["memory/cuda_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
        return figures

    def _watch_loading(self, step: int, now: float) -> None:
        """At a window's end, warn if too much of it was spent waiting for images."""
        if self._advice is None or (seconds := self._judged.seconds(now)) < self._window:
            return
        share = self._judged.waited / seconds
        self._judged, self._window = _Interval(step), 2 * self._window
        if share > WAIT_LIMIT:
            self.event(
                step,
                "loader",
                f"{100 * min(1.0, share):.0f} % of the last {duration(seconds)} were spent waiting for images. "
                f"{self._advice}",
            )


class _Board:
    """A file of TensorBoard's, in which what was logged from after ``first`` steps on takes the place of what was before.

    Each call writes at once: torch's writer does it in a thread, which dies with a traceback where the disk is full. There the
    training goes on without TensorBoard, and says so.
    """

    def __init__(self, folder: Path, first: int) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._file: Path | None = folder / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)
        self._write([{"file_version": "brain.Event:2"}, {"step": first + (first > 0), "session_log": {"status": 1}}])

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write figures after ``step`` steps."""
        values = [{"tag": name, "simple_value": float(value)} for name, value in metrics.items()]
        self._write([{"step": step, "summary": {"value": [value]}} for value in values])

    def _write(self, events: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        from tensorboard.compat.proto.event_pb2 import Event as BoardEvent
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(BoardEvent(wall_time=time.time(), **event).SerializeToString())
        try:
            append_bytes(self._file, records.getvalue())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._file = None
        reason = (error.strerror or str(error)).lower()
        logger.warning("TensorBoard's files can't be written (%s); going on without them, see %s", reason, METRICS_FILE)


class _Interval:
    """A stretch of a run from after ``first`` steps on: how long it has taken, but for what is aside, and waited."""

    def __init__(self, first: int) -> None:
        self.first, self.began = first, time.monotonic()
        self.waited = self.aside = 0.0

    def seconds(self, now: float) -> float:
        return max(1e-9, now - self.began - self.aside)


def _append(path: Path, record: Mapping[str, object]) -> None:
    """Add a line to a file by a single write, so that it is there whole or, where a kill cut it off, the last."""
    append_bytes(path, (json.dumps(record) + "\n").encode())


def _forget_after(path: Path, step: int, but_before: str | None = None) -> None:
    """Drop what a killed run wrote after the checkpoint that this one goes on from.

    What came before a kept event of the kind ``but_before`` stays: going back doesn't undo what led to it.
    """
    if not path.exists():
        return
    records = _read_lines(path)
    kept = [record["step"] <= step for record in records]
    back = [number for number, record in enumerate(records) if kept[number] and record.get("kind") == but_before]
    first = back[-1] if but_before is not None and back else 0
    stay = [record for number, record in enumerate(records) if kept[number] or number < first]
    atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in stay))


def read_events(path: Path) -> list[Event]:
    """The events of an events.jsonl, in their order; none where there is no such file."""
    if not path.exists():
        return []
    return [Event(**{**record, "images": tuple(record.get("images", ()))}) for record in _read_lines(path)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line that was cut off is left out."""
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


def _wandb_run(project: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """A run of Weights & Biases; a run that goes on in ``folder`` goes on there too."""
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
    run.define_metric("*", step_metric="step")  # W&B's own step never goes back, as a run that was killed does
    return run
