"""Runs by worker processes of this machine, which are started again where one of them dies or hangs."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, cast

import torch
from typing_extensions import Self

from ..core.errors import MaeliftError
from ..core.progress import TrainingProgress
from ..core.signals import STOP_SIGNALS, Interrupted, StopRequested, ignore_stop_signals, stop_signals_blocked
from .execute import execute
from .executor import DIED, FEWER, NO_MEMORY, STALLED, Executor, ProgressCallback, at_intervals, failure_message
from .experiment import Context
from .runs import Run

PRELOADED = [__name__, "torch._dynamo", "tensorboard.compat.proto.event_pb2", "torchmetrics.functional"]
"""What workers import."""


class LocalProcesses(Executor):
    """Worker processes, started again where one of them died.

    On Linux they are forks of a process that has imported what they need, and done nothing else: each starts at once.
    """

    def __init__(self, context: Context, store: Path, workers: int) -> None:
        self._context, self._store, self._workers = context, store, workers
        self._start = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._start.set_forkserver_preload(PRELOADED)
        self._other_children = set(multiprocessing.active_children())
        self._futures: dict[Future[str | None], Run] = {}
        self._reported_at: dict[str, float] = {}
        self._stalled: set[str] = set()

    def __enter__(self) -> Self:
        try:
            self._messages: Queue[tuple[str, TrainingProgress]] = self._start.Queue()
            self._end, self._line = self._start.Pipe(duplex=False)  # closed, it makes every worker stop
            facts = (self._context, self._store, self._messages, self._end, dict(os.environ))
            self._pool = ProcessPoolExecutor(self._workers, self._start, _start_worker, facts)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOSYS, errno.EACCES, errno.EROFS):
                raise
            raise MaeliftError(
                f"locks between processes can't be made in /dev/shm ({(error.strerror or str(error)).lower()}). Free some room "
                "there, or give it more (Docker: --shm-size=1g); finished runs are saved."
            ) from error
        self._wait_for_imports()
        return self

    def _wait_for_imports(self) -> None:
        """Wait until what workers are forked from has its imports done; a stop signal may be raised here meanwhile."""

        def start() -> None:
            with _clean_start():
                first.start()
            first.join()

        first = cast(Any, self._start).Process(target=_nothing)
        starting = threading.Thread(target=start, daemon=True)
        starting.start()
        while starting.is_alive():
            starting.join(0.1)

    def __exit__(self, *error: object) -> None:
        """Have every worker stop and end."""
        self._line.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._end.close()

    @property
    def running(self) -> list[Run]:
        """The runs in progress."""
        return list(self._futures.values())

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        """Whether a run may start: suspects run alone."""
        alone = run.key in suspects or any(other.key in suspects for other in self.running)
        return len(self._futures) < (1 if alone else self._workers)

    def start(self, run: Run) -> None:
        """Start a run on a worker."""
        future: Future[str | None]
        try:
            with _clean_start():
                future = self._pool.submit(_work, run)
        except BrokenProcessPool as error:  # a worker died just now: the run is among those that are lost
            future = Future()
            future.set_exception(error)
        self._futures[future] = run
        self._reported_at[run.key] = time.monotonic()

    def wait(self, on_progress: ProgressCallback) -> list[tuple[Run, str | None]]:
        """The runs that ended within half a second, and what went wrong; ``on_progress`` gets the progress of the others."""
        done, _ = wait(self._futures, timeout=0.5, return_when=FIRST_COMPLETED)
        while not self._messages.empty():
            key, progress = self._messages.get()
            self._reported_at[key] = time.monotonic()
            on_progress(key, progress)
        self._end_stalled()
        try:
            return [(self._futures[future], future.result()) for future in done]
        except BrokenProcessPool:
            lost = [(run, self._lost_outcome(future)) for future, run in self._futures.items()]
            done = set(self._futures)
            self._kill()  # they may wait forever for a lock of the dead one
            self.__exit__()
            self.__enter__()
            return lost
        finally:
            for future in done:
                del self._futures[future]

    def _lost_outcome(self, future: Future[str | None]) -> str | None:
        """The outcome of a run of a broken pool: its own if it had ended, else why it was lost."""
        if future.done() and future.exception() is None:
            return future.result()
        return STALLED if self._futures[future].key in self._stalled else f"{DIED}. {FEWER}"

    def _end_stalled(self) -> None:
        """End all workers where a run hasn't reported progress for too long; which worker does which run isn't known."""
        late = time.monotonic() - 60 * self._context.config.stall_minutes
        self._stalled = {run.key for run in self.running if self._reported_at[run.key] < late}
        if self._stalled:
            self._kill()

    def _kill(self) -> None:
        for process in set(multiprocessing.active_children()) - self._other_children:
            process.kill()


@contextmanager
def _clean_start() -> Iterator[None]:
    """Processes that are started within don't import the caller's script, and get no signal until they are prepared.

    So a script may call ``bench`` without ``if __name__ == "__main__":``, and Ctrl-C while workers start is not answered
    by their tracebacks.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with stop_signals_blocked():
            yield
    finally:
        sys.modules["__main__"] = main


@dataclass
class _Worker:
    """A worker process: ``busy`` with a run, ``leaving`` once the parent has asked it to stop."""

    context: Context
    store: Path
    messages: Queue[tuple[str, TrainingProgress]]
    busy: bool = False
    leaving: bool = False

    def stop(self, number: int, frame: FrameType | None) -> None:
        """On SIGTERM, end the run or, when it isn't the parent who asks, the process.

        Within training it is the loop that takes the signal, and saves.
        """
        if self.busy:
            raise StopRequested(number)
        if not self.leaving:
            os._exit(1)

    def watch(self, end: Connection, parent: BaseProcess) -> None:
        """End the run when the line to the parent is closed, and the process when the parent is gone.

        A worker of a killed parent must not go on beside those of the next command.
        """
        end.poll(None)
        self.leaving = True
        os.kill(os.getpid(), signal.SIGTERM)
        parent.join()
        os._exit(1)

    def _report(self, key: str, progress: TrainingProgress) -> None:
        self.messages.put((key, progress))

    def work(self, run: Run) -> str | None:
        """Do a run; returns the error, None where all went well."""
        try:
            self.busy = True
            if self.leaving:
                return "stopped"
            execute(run, self.context, self.store, at_intervals(1.0, partial(self._report, run.key)))
        except (Interrupted, StopRequested):
            if not self.leaving:
                os._exit(1)
            return "stopped"
        except torch.OutOfMemoryError:
            return NO_MEMORY
        except Exception as error:  # a run that crashes must not take the others with it
            return failure_message(error, run, self.store)
        finally:
            self.busy = False
        return None


def _nothing() -> None:
    """The work of a process that is started to find out when the next one can be."""


_worker: _Worker | None = None


def _start_worker(
    context: Context,
    store: Path,
    messages: Queue[tuple[str, TrainingProgress]],
    end: Connection,
    environment: Mapping[str, str],
) -> None:
    """Prepare a worker: its environment and threads, and its lines to the parent.

    It leaves the parent's process group: a Ctrl-C at the terminal is for the parent, which passes it on once.
    """
    global _worker
    os.environ.clear()  # what it was forked from may have begun under another
    os.environ.update(environment)
    _worker = _Worker(context, store, messages)
    messages.cancel_join_thread()  # a worker that ends waits for nobody to read on
    os.setpgrp()
    ignore_stop_signals()
    signal.signal(signal.SIGTERM, _worker.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    torch.set_num_threads(context.config.threads)
    logging.getLogger("maelift").setLevel(logging.ERROR)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_worker.watch, args=(end, parent), daemon=True).start()


def _work(run: Run) -> str | None:
    """Do a run in a worker; returns the error, None where all went well."""
    if _worker is None:
        raise RuntimeError("a worker is used before it is prepared")
    return _worker.work(run)
