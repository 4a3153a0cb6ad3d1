"""Signals that ask a process to stop: noted while it trains, raised elsewhere, left to the parent in its workers."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from .errors import MaeliftError

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)
"""Ctrl-C; ``timeout``, systemd and schedulers; a closed terminal; schedulers some time before the limit."""
REPEATED_SECONDS = 2.0
"""A signal that comes again within this time is the same request: ``timeout`` sends it to a process and to its group."""
UNWINDING_SECONDS = 8.0
"""How long a process may take to end after a stop that saves nothing; then it is ended."""


class Interrupted(MaeliftError):
    """A run was asked to stop and has saved where it was; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequested(KeyboardInterrupt):
    """A signal has asked this process to stop; no Exception, which libraries catch."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Takes the signals that ask for a stop: notes the first, and raises StopRequested where that is wanted.

    The signal repeated at once is the same request. A later Ctrl-C ends the process without saving; later signals of other
    kinds change nothing, as launchers pass on what all have got already.
    """

    _innermost: StopSignals | None = None

    def __init__(self, title: str = "maelift", raising: bool = False) -> None:
        self.received: int | None = None
        self._title = title
        self._at_once = self._raising = raising
        self._came = 0.0
        self._outer: StopSignals | None = None
        self._timer: threading.Timer | None = None

    @classmethod
    @contextmanager
    def noted(cls, title: str | None = None, raising: bool = False) -> Iterator[StopSignals]:
        """Take the signals within the block (nothing is changed outside the main thread).

        With ``raising``, StopRequested is raised wherever the signal comes: for what saves nothing on a stop. ``title``:
        the command,
        for what is said when the process is ended at once. SIGHUP that is ignored, as with nohup, stays ignored.
        """
        outer = StopSignals._innermost
        signals = cls(title or (outer._title if outer is not None else "maelift"), raising)
        if threading.current_thread() is not threading.main_thread():
            yield signals
            return
        taken = [number for number in STOP_SIGNALS if not raising or number != signal.SIGUSR2]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            taken.remove(signal.SIGHUP)
        signals._outer, StopSignals._innermost = outer, signals
        before = {number: signal.signal(number, signals._note) for number in taken}
        try:
            yield signals
        finally:
            signals._at_once = signals._raising = False
            for number, handler in before.items():
                signal.signal(number, handler)
            StopSignals._innermost = outer
            if signals._timer is not None:
                signals._timer.cancel()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StopRequested in the midst of the block when a signal comes, or has come: for what may be given up half-done."""
        self._at_once = True
        try:
            if self.received is not None:
                raise StopRequested(self.received)
            yield
        finally:
            self._at_once = self._raising

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            by_hand = number == signal.SIGINT and "WORLD_SIZE" not in os.environ
            if by_hand and time.monotonic() - self._came > REPEATED_SECONDS:
                self._end(number)
            return
        taking: StopSignals | None = self
        while taking is not None:  # a repeated signal may come when this block has ended
            taking.received, taking._came = number, time.monotonic()
            taking = taking._outer
        if self._raising:
            self._timer = threading.Timer(UNWINDING_SECONDS, self._end, (number,))
            self._timer.daemon = True
            with suppress(RuntimeError):  # no thread can be started
                self._timer.start()
        if self._at_once:
            raise StopRequested(number)

    def _end(self, number: int) -> None:
        """End the process in one line, whatever it is at."""
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                os.write(2, f"{self._title}: ended at once. {RESUME_HINT}\n".encode())
        os._exit(128 + number)


RESUME_HINT = "Finished work is saved; give the same command again to go on."


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Within the block a signal that asks for a stop raises Interrupted with this message, wherever it comes."""
    with StopSignals.noted(raising=True):
        try:
            yield
        except StopRequested as asked:
            raise Interrupted(message, asked.number) from None


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Hold back the signals within the block; a process that is started there hears of none until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Hear no more of signals that ask for a stop: another process does, or there is nothing left to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_stop_signals_to_parent() -> None:
    """In a worker process: ignore signals that ask for a stop, which go to the whole group, and end when the parent does."""
    ignore_stop_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
