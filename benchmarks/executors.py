"""Where a suite's runs are done: by processes of this machine, by jobs of SLURM, or by a Ray cluster."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import torch
from typing_extensions import Self

from ..core.config import MaeliftError, resolve, to_dict
from ..core.distributed import Interrupted
from ..core.files import atomic_write_text
from ..core.frameworks import require
from ..core.launching import slurm_executor
from ..core.tracking import Progress
from .arms import Context, Run, execute
from .pools import read_pools
from .suite import BenchConfig

Hear = Callable[[str, Progress], None]
"""Who is told how far a run is, by its key."""

DIED = "its process died (killed, or out of memory?). Give fewer workers to use less memory"
"""What is said of a run whose worker process is gone."""

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


def executor_of(context: Context, store: Path, workers: int) -> Executor:
    """What the suite's configuration asks for; raises MaeliftError where it isn't to be had."""
    kinds: dict[str, type[LocalProcesses] | type[SlurmJobs] | type[RayTasks]] = {
        "local": LocalProcesses,
        "slurm": SlurmJobs,
        "ray": RayTasks,
    }
    return kinds[context.config.executor](context, store, workers)


PRELOADED = [__name__, "torch._dynamo", "torch.utils.tensorboard", "torchmetrics.functional"]
"""What workers need."""


class LocalProcesses(Executor):
    """Worker processes, made anew where one of them died.

    On Linux they are forks of a process that has imported what they need, and done nothing else: each is at work at once.
    """

    def __init__(self, context: Context, store: Path, workers: int) -> None:
        self._context, self._store, self._workers = context, store, workers
        self._start = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
        self._start.set_forkserver_preload(PRELOADED)
        self._strangers = set(multiprocessing.active_children())
        self._at_work: dict[Future[str | None], Run] = {}
        self._heard: dict[str, float] = {}
        self._stalled: set[str] = set()

    def __enter__(self) -> Self:
        self._messages: Queue[tuple[str, Progress]] = self._start.Queue()
        self._end, self._line = self._start.Pipe(duplex=False)  # closed, it tells every worker to stop
        facts = (self._context, self._store, self._messages, self._end, dict(os.environ))
        self._pool = ProcessPoolExecutor(self._workers, self._start, _start_worker, facts)
        return self

    def __exit__(self, *error: object) -> None:
        """Have every worker stop and end."""
        self._line.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._end.close()

    @property
    def running(self) -> list[Run]:
        """The runs at work."""
        return list(self._at_work.values())

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        """Whether a run may begin: suspects are alone at work."""
        alone = run.key in suspects or any(other.key in suspects for other in self.running)
        return len(self._at_work) < (1 if alone else self._workers)

    def begin(self, run: Run) -> None:
        """Have a worker do a run."""
        future: Future[str | None]
        try:
            with _fit_for_workers():
                future = self._pool.submit(_work, run)
        except BrokenProcessPool as error:  # a worker died just now: the run is among those that are lost
            future = Future()
            future.set_exception(error)
        self._at_work[future] = run
        self._heard[run.key] = time.monotonic()

    def wait(self, hear: Hear) -> list[tuple[Run, str | None]]:
        """The runs that ended within half a second, and what went wrong; ``hear`` is told how far the others are."""
        done, _ = wait(self._at_work, timeout=0.5, return_when=FIRST_COMPLETED)
        while not self._messages.empty():
            key, progress = self._messages.get()
            self._heard[key] = time.monotonic()
            hear(key, progress)
        self._end_stalled()
        try:
            return [(self._at_work[future], future.result()) for future in done]
        except BrokenProcessPool:
            lost = [(run, self._ended_well(future)) for future, run in self._at_work.items()]
            done = set(self._at_work)
            self._kill()  # they may wait for ever for a lock that the dead one held
            self.__exit__()
            self.__enter__()
            return lost
        finally:
            for future in done:
                del self._at_work[future]

    def _ended_well(self, future: Future[str | None]) -> str | None:
        """What a run of a broken pool ended with, if it did."""
        if future.done() and future.exception() is None:
            return future.result()
        return STALLED if self._at_work[future].key in self._stalled else DIED

    def _end_stalled(self) -> None:
        """End the workers where one hasn't been heard of for too long; which of them does what isn't known."""
        late = time.monotonic() - 60 * self._context.config.stall_minutes
        self._stalled = {run.key for run in self.running if self._heard[run.key] < late}
        if self._stalled:
            self._kill()

    def _kill(self) -> None:
        for process in set(multiprocessing.active_children()) - self._strangers:
            process.kill()


@contextmanager
def _fit_for_workers() -> Iterator[None]:
    """Processes that are started within don't import the caller's script, and hear of no signal until they are prepared.

    So a script may call ``bench`` without ``if __name__ == "__main__":``, and Ctrl-C while workers start is not answered
    by their tracebacks.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        sys.modules["__main__"] = main


_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Worker:
    """What a worker process has at hand; ``busy`` with a run, ``leaving`` once the parent wants no more of it."""

    context: Context
    store: Path
    messages: Queue[tuple[str, Progress]]
    busy: bool = False
    leaving: bool = False
    told: float = 0.0

    def stop(self, number: int, frame: FrameType | None) -> None:
        """On SIGTERM, end the run or, when it isn't the parent who asks, the process.

        Within training it is the loop that takes the signal, and saves.
        """
        if self.busy:
            raise Interrupted("stopped", number)
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

    def tell(self, run: Run, progress: Progress) -> None:
        """Let the parent know how far a run is, once a second."""
        if time.monotonic() - self.told > 1.0:
            self.told = time.monotonic()
            self.messages.put((run.key, progress))

    def work(self, run: Run) -> str | None:
        """Do a run; returns what went wrong, in words."""
        try:
            self.busy = True
            if self.leaving:
                return "stopped"
            execute(run, self.context, self.store, lambda progress: self.tell(run, progress))
        except Interrupted:
            if not self.leaving:
                os._exit(1)
            return "stopped"
        except torch.OutOfMemoryError:
            return NO_MEMORY
        except Exception as error:  # a run that crashes must not take the others with it
            return _told(error, run, self.store)
        finally:
            self.busy = False
        return None


_worker: _Worker | None = None


def _start_worker(
    context: Context,
    store: Path,
    messages: Queue[tuple[str, Progress]],
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _worker.stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    torch.set_num_threads(context.config.threads)
    logging.getLogger("maelift").setLevel(logging.ERROR)
    parent = multiprocessing.parent_process()
    threading.Thread(target=_worker.watch, args=(end, parent), daemon=True).start()


def _work(run: Run) -> str | None:
    """Do a run in a worker; returns what went wrong, in words."""
    if _worker is None:
        raise RuntimeError("a worker is used before it is prepared")
    return _worker.work(run)


NO_MEMORY = "the GPU's memory is too small. Give fewer workers, or a smaller batch_size; finished runs are kept."


def _told(error: Exception, run: Run, store: Path) -> str:
    """What went wrong with a run, in words; where it is no mistake of the user's, its traceback lies beside it."""
    if isinstance(error, (MaeliftError, OSError)):
        return str(error)
    file = store / run.key / "error.txt"
    atomic_write_text(file, traceback.format_exc())
    return f"{type(error).__name__}: {error} ({file})"


class _Elsewhere(Executor):
    """Runs that are done by processes which share nothing with this one but the folder of the suite."""

    def __init__(self, context: Context, store: Path, workers: int) -> None:
        self._context, self._workers = context, workers
        self._home, self._store = os.getcwd(), store.resolve()
        self._at_work: dict[str, tuple[Any, Run]] = {}

    @property
    def running(self) -> list[Run]:
        return [run for _, run in self._at_work.values()]

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        return len(self._at_work) < self._workers  # each is a process of its own: none is mistaken for another

    def begin(self, run: Run) -> None:
        self._at_work[run.key] = (self._submit(run), run)

    def wait(self, hear: Hear) -> list[tuple[Run, str | None]]:
        time.sleep(0.5)
        ended = [(handle, run) for handle, run in self._at_work.values() if self._is_done(handle)]
        for _, run in ended:
            del self._at_work[run.key]
        return [(run, self._outcome(handle)) for handle, run in ended]

    @abstractmethod
    def _submit(self, run: Run) -> Any:
        """Hand a run over; a handle to it."""

    @abstractmethod
    def _is_done(self, handle: Any) -> bool: ...

    @abstractmethod
    def _outcome(self, handle: Any) -> str | None:
        """What went wrong with a run that has ended."""


class SlurmJobs(_Elsewhere):
    """A job of SLURM for each run, on storage that all machines share."""

    def __enter__(self) -> Self:
        config = self._context.config
        out, name = self._store.parent, "maelift-bench"
        self._executor = slurm_executor(config.slurm, out, name, "executor=slurm", "executor=local")
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel the jobs that are left; each saves nothing but its checkpoints."""
        for handle, _ in self._at_work.values():
            handle.cancel(check=False)

    def _submit(self, run: Run) -> Any:
        return self._executor.submit(_run_anew, to_dict(self._context.config), run, self._store, self._home)

    def _is_done(self, handle: Any) -> bool:
        return bool(handle.done())

    def _outcome(self, handle: Any) -> str | None:
        try:
            outcome: str | None = handle.result()
        except Exception as error:  # submitit's own, or whatever ended the job
            return f"{DIED} (job {handle.job_id}: {' '.join(str(error).split())[-200:]})"
        return outcome


class RayTasks(_Elsewhere):
    """A task of Ray for each run: on this machine, or on the cluster that RAY_ADDRESS names."""

    def __enter__(self) -> Self:
        self._ray = require("ray")
        self._began = not self._ray.is_initialized()
        if self._began:
            os.environ.setdefault("RAY_worker_niceness", "0")  # else what else this machine does goes before the runs
            self._ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
        config = self._context.config
        resources = {"num_cpus": config.threads, "max_retries": 0}
        if config.device == "cuda" or (config.device == "auto" and self._ray.cluster_resources().get("GPU")):
            resources["num_gpus"] = 1
        self._task = self._ray.remote(**resources)(_run_anew)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the tasks that are left."""
        for handle, _ in self._at_work.values():
            self._ray.cancel(handle, force=True)
        if self._began:
            self._ray.shutdown()

    def _submit(self, run: Run) -> Any:
        return self._task.remote(to_dict(self._context.config), run, self._store, self._home)

    def _is_done(self, handle: Any) -> bool:
        return bool(self._ray.wait([handle], timeout=0)[0])

    def _outcome(self, handle: Any) -> str | None:
        try:
            outcome: str | None = self._ray.get(handle)
        except Exception as error:  # Ray's own, or whatever ended the task
            return f"{DIED} ({type(error).__name__}: {' '.join(str(error).split())[-200:]})"
        return outcome


def _run_anew(keys: Mapping[str, Any], run: Run, store: Path, home: str) -> str | None:
    """Do a run in a process that knows nothing of the suite yet; returns what went wrong, in words."""
    os.chdir(home)
    try:
        config = resolve(BenchConfig, keys)
        torch.set_num_threads(config.threads)
        execute(run, Context.of(config, read_pools(config)), store)
    except Interrupted:
        return "stopped"
    except torch.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:
        return _told(error, run, store)
    return None
