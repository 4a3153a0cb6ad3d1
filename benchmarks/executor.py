"""Where a suite's runs are done: what its runner asks of that, be it processes of this machine or jobs elsewhere."""

from __future__ import annotations

import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from typing_extensions import Self

from ..core.errors import MaeliftError
from ..core.files import atomic_write_text
from ..core.progress import TrainingProgress
from ..core.system_errors import ROOM, advice_for
from .runs import Run

Hear = Callable[[str, TrainingProgress], None]
"""Who is told how far a run is, by its key."""

DIED = "its process died (killed, or out of memory?)"
"""What is said first of a run whose process is gone."""

FEWER = "Give fewer workers to use less memory"
"""What to do about it on one machine."""

NO_ROOM = "the disk takes no more"
"""What is said first of a run that can't write: no other could either."""

STALLED = "it gave no sign of life for stall_minutes, and was ended"
"""What is said of a run that hung."""


class Executor(ABC):
    """Does runs, some at a time; a context, within which it is ready."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *error: object) -> None:
        """Stop what is still at work."""

    @property
    @abstractmethod
    def running(self) -> list[Run]:
        """The runs at work."""

    @abstractmethod
    def has_room(self, run: Run, suspects: set[str]) -> bool:
        """Whether a run may begin: suspects are alone at work where others could be mistaken for them."""

    @abstractmethod
    def begin(self, run: Run) -> None:
        """Have a run done."""

    @abstractmethod
    def wait(self, hear: Hear) -> list[tuple[Run, str | None]]:
        """The runs that ended within about half a second, and what went wrong with them."""


NO_MEMORY = "the GPU's memory is too small. Give fewer workers, or a smaller batch_size; finished runs are kept."


def told(error: Exception, run: Run, store: Path) -> str:
    """What went wrong with a run, in words; where it is no mistake of the user's, its traceback lies beside it."""
    if isinstance(error, OSError) and error.errno in ROOM:
        return f"{NO_ROOM}: {advice_for(error)}"
    if isinstance(error, MaeliftError):
        return str(error)
    if (advice := advice_for(error)) is not None or isinstance(error, OSError):
        return advice or str(error)
    file = store / run.key / "error.txt"
    atomic_write_text(file, traceback.format_exc())
    return f"{type(error).__name__}: {error} ({file})"
