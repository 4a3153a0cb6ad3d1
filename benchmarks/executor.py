"""What every executor of a suite's runs can do, and the messages of runs that failed."""

from __future__ import annotations

import math
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from typing_extensions import Self

from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.progress import ProgressListener, TrainingProgress
from ..core.system_errors import DISK_ADVICE, advice_for
from .runs import Run

ProgressCallback = Callable[[str, TrainingProgress], None]
"""Called with the key of a run and its progress."""

DIED = "its process died (killed, or out of memory?)"
"""The beginning of the message of a run whose process is gone."""

FEWER = "Give fewer workers to use less memory"
"""What to do about it on one machine."""

NO_ROOM = "the disk takes no more"
"""The beginning of the message of a run that can't write: no other could either."""

STALLED = "it reported no progress for stall_minutes, and was ended"
"""The message of a run that hung."""


def at_intervals(seconds: float, report: ProgressListener) -> ProgressListener:
    """A listener that passes progress on to ``report``, but not more often than every ``seconds``."""
    last = -math.inf

    def listen(progress: TrainingProgress) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            report(progress)

    return listen


class Executor(ABC):
    """Does runs, some at a time; a context manager, within which it is ready."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Stop the runs in progress."""

    @property
    @abstractmethod
    def running(self) -> list[Run]:
        """The runs in progress."""

    @abstractmethod
    def has_room(self, run: Run, suspects: set[str]) -> bool:
        """Whether a run may start: suspects run alone where others could be mistaken for them."""

    @abstractmethod
    def start(self, run: Run) -> None:
        """Start a run."""

    @abstractmethod
    def wait(self, on_progress: ProgressCallback) -> list[tuple[Run, str | None]]:
        """The runs that ended within about half a second, and what went wrong with them."""


NO_MEMORY = "the GPU's memory is too small. Give fewer workers, or a smaller batch_size; finished runs are saved."


def failure_message(error: Exception, run: Run, store: Path) -> str:
    """The error of a run as one line; the traceback of what is no user's mistake is saved in the run's folder."""
    if isinstance(error, OSError) and error.errno in DISK_ADVICE:
        return f"{NO_ROOM}: {advice_for(error)}"
    if isinstance(error, MaeliftError):
        return str(error)
    if (advice := advice_for(error)) is not None or isinstance(error, OSError):
        return advice or str(error)
    file = store / run.key / "error.txt"
    atomic_write_text(file, traceback.format_exc())
    return f"{type(error).__name__}: {error} ({file})"
