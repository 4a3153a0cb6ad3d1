"""Signals that request a stop: recorded while a run trains, raised elsewhere, left to the parent by its workers."""

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
"""Sent by Ctrl-C; by ``timeout``, systemd and schedulers; by a closed terminal; by schedulers before the time limit."""
SAME_REQUEST_SECONDS = 2.0
"""A signal repeated within this time is the same request: ``timeout`` sends it to a process and to its group."""
SHUTDOWN_SECONDS = 8.0
"""How long a process may take to end after a stop that saves nothing; then it is terminated."""


class Interrupted(MaeliftError):
    """A run that was stopped by a signal, after saving its state; ``exit_code`` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequested(KeyboardInterrupt):
    """A signal has requested a stop of this process; not an Exception, as libraries catch those."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Handler of the stop signals: records the first, and raises StopRequested where that is wanted.

    The signal repeated at once is the same request. A later Ctrl-C ends the process without saving; later signals of other
    kinds are ignored, as launchers forward what all processes have got already.
    """

    _innermost: StopSignals | None = None

    def __init__(self, title: str = "maelift", raising: bool = False) -> None:
        self.received: int | None = None
        self._title = title
        self._raise_now = self._raising = raising
        self._received_at = 0.0
        self._outer: StopSignals | None = None
        self._timer: threading.Timer | None = None

    @classmethod
    @contextmanager
    def caught(cls, title: str | None = None, raising: bool = False) -> Iterator[StopSignals]:
        """Handle the signals within the block (outside the main thread nothing is changed).

        With ``raising``, StopRequested is raised wherever the signal arrives: for work that saves nothing on a stop.
        ``title``: the command, for the message of a process that ends at once. SIGHUP that is ignored, as by nohup, stays so.
        """
        outer = StopSignals._innermost
        signals = cls(title or (outer._title if outer is not None else "maelift"), raising)
        if threading.current_thread() is not threading.main_thread():
            yield signals
            return
        handled = [number for number in STOP_SIGNALS if not raising or number != signal.SIGUSR2]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            handled.remove(signal.SIGHUP)
        signals._outer, StopSignals._innermost = outer, signals
        before = {number: signal.signal(number, signals._handle) for number in handled}
        try:
            yield signals
        finally:
            signals._raise_now = signals._raising = False
            for number, handler in before.items():
                signal.signal(number, handler)
            StopSignals._innermost = outer
            if signals._timer is not None:
                signals._timer.cancel()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise StopRequested within the block when a signal arrives, or has before: for work that may be abandoned."""
        self._raise_now = True
        try:
            if self.received is not None:
                raise StopRequested(self.received)
            yield
        finally:
            self._raise_now = self._raising

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            by_hand = number == signal.SIGINT and "WORLD_SIZE" not in os.environ
            if by_hand and time.monotonic() - self._received_at > SAME_REQUEST_SECONDS:
                self._end(number)
            return
        handler: StopSignals | None = self
        while handler is not None:  # a repeated signal may arrive after this block has ended
            handler.received, handler._received_at = number, time.monotonic()
            handler = handler._outer
        if self._raising:
            self._timer = threading.Timer(SHUTDOWN_SECONDS, self._end, (number,))
            self._timer.daemon = True
            with suppress(RuntimeError):  # no thread can be started
                self._timer.start()
        if self._raise_now:
            raise StopRequested(number)

    def _end(self, number: int) -> None:
        """End the process with one line, whatever it is doing."""
        if os.environ.get("RANK", "0") == "0":
            with suppress(OSError):
                os.write(2, f"{self._title}: ended at once. {RESUME_HINT}\n".encode())
        os._exit(128 + number)


RESUME_HINT = "Finished work is saved; run the same command again to continue."


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Within the block a stop signal raises Interrupted with this message, wherever it arrives."""
    with StopSignals.caught(raising=True):
        try:
            yield
        except StopRequested as stop:
            raise Interrupted(message, stop.number) from None


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals within the block; a process started there inherits that until it unblocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """Ignore the stop signals from now on: another process handles them, or there is nothing left to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def leave_stop_signals_to_parent() -> None:
    """In a worker process: ignore the stop signals, which the parent gets too, and end when the parent does."""
    ignore_stop_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    if sys.platform == "linux":
        import ctypes

        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
