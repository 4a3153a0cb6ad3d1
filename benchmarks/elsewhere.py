"""Runs by jobs of SLURM or by a Ray cluster: processes that share nothing with the runner but the folder of the suite."""

from __future__ import annotations

import json
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from ..core.config import resolve, to_dict
from ..core.distributed import Interrupted
from ..core.files import atomic_write_text
from ..core.frameworks import require
from ..core.launching import slurm_executor
from ..core.tracking import Listener, Progress
from .arms import Context, Run, execute
from .executors import DIED, NO_MEMORY, Executor, Hear, told
from .pools import read_pools
from .suite import BenchConfig

PROGRESS_FILE, NOTED_EVERY = "progress.json", 5.0
"""In the folder of a run that is done elsewhere: how far it is; seconds after which it is noted anew."""


class _Elsewhere(Executor):
    """Runs that are done by processes which share nothing with this one but the folder of the suite.

    There they note how far they are.
    """

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
        for run in self.running:
            if (progress := _noted(self._store / run.key / PROGRESS_FILE)) is not None:
                hear(run.key, progress)
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


def _noted(file: Path) -> Progress | None:
    """How far a run has noted that it is; None where it hasn't yet."""
    try:
        return Progress(**json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):  # not there yet; storage that is shared may show half of it
        return None


def _noting(file: Path) -> Listener:
    """Notes how far a run is, now and then."""
    last = -NOTED_EVERY

    def note(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last < NOTED_EVERY:
            return
        last = time.monotonic()
        with suppress(OSError):  # the run matters more
            atomic_write_text(file, json.dumps(asdict(progress)) + "\n")

    return note


def _run_anew(keys: Mapping[str, Any], run: Run, store: Path, home: str) -> str | None:
    """Do a run in a process that knows nothing of the suite yet; returns what went wrong, in words."""
    os.chdir(home)
    note = store / run.key / PROGRESS_FILE
    try:
        note.unlink(missing_ok=True)  # of one that was killed
        config = resolve(BenchConfig, keys)
        torch.set_num_threads(config.threads)
        execute(run, Context.of(config, read_pools(config)), store, _noting(note))
        note.unlink(missing_ok=True)
    except Interrupted:
        return "stopped"
    except torch.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:
        return told(error, run, store)
    return None
