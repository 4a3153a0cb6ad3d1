"""Runs by SLURM jobs or Ray tasks: processes that share only the suite's folder with the runner."""

from __future__ import annotations

import json
import logging
import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from typing_extensions import Self

from ..core.config import resolve
from ..core.files import atomic_write_text
from ..core.optional_imports import require
from ..core.progress import TrainingProgress
from ..core.signals import Interrupted
from ..core.slurm import slurm_executor
from ..core.yaml_files import to_dict
from .data import read_suite_images
from .execute import execute
from .executor import DIED, FEWER, NO_MEMORY, STALLED, Executor, ProgressCallback, at_intervals, failure_message
from .experiment import Context
from .runs import Run
from .suite import BenchConfig

Handle = TypeVar("Handle")
"""What a cluster's framework knows a submitted run by."""

PROGRESS_FILE, WRITE_INTERVAL = "progress.json", 5.0
"""In the folder of a run: its progress; seconds between two writes of it."""


class ClusterExecutor(Executor, Generic[Handle]):
    """Runs by processes that share only the suite's folder with this one.

    They write their progress there; a run whose progress file no longer changes hangs, and is ended.
    """

    def __init__(self, context: Context, store: Path, workers: int) -> None:
        self._context, self._workers = context, workers
        self._home, self._store = os.getcwd(), store.resolve()
        self._handles: dict[str, tuple[Handle, Run]] = {}
        self._progress: dict[str, tuple[TrainingProgress, float]] = {}
        self._stalled: set[str] = set()

    def __exit__(self, *error: object) -> None:
        """Stop the runs in progress; they save only their checkpoints."""
        for handle, _ in self._handles.values():
            self._stop(handle)

    @property
    def running(self) -> list[Run]:
        return [run for _, run in self._handles.values()]

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        return len(self._handles) < self._workers  # each is a process of its own: none is mistaken for another

    def start(self, run: Run) -> None:
        self._progress.pop(run.key, None)
        self._stalled.discard(run.key)
        with suppress(OSError):
            self._progress_file(run).unlink(missing_ok=True)  # of one that was killed
        self._handles[run.key] = (self._submit(run), run)

    def wait(self, on_progress: ProgressCallback) -> list[tuple[Run, str | None]]:
        time.sleep(0.5)
        self._read_all(on_progress)
        ended = [(handle, run) for handle, run in self._handles.values() if self._is_done(handle)]
        for _, run in ended:
            del self._handles[run.key]
        return [(run, STALLED if run.key in self._stalled else self._outcome(handle)) for handle, run in ended]

    def _read_all(self, on_progress: ProgressCallback) -> None:
        """Pass on the progress of the runs, and end those without any for too long; a run that hasn't begun may wait."""
        now = time.monotonic()
        for handle, run in self._handles.values():
            if (progress := _read_progress(self._progress_file(run))) is not None:
                on_progress(run.key, progress)
                if run.key not in self._progress or self._progress[run.key][0] != progress:
                    self._progress[run.key] = progress, now
            late = now - 60 * self._context.config.stall_minutes
            if run.key in self._progress and self._progress[run.key][1] < late and run.key not in self._stalled:
                self._stalled.add(run.key)
                self._stop(handle)

    def _progress_file(self, run: Run) -> Path:
        return self._store / run.key / PROGRESS_FILE

    @abstractmethod
    def _submit(self, run: Run) -> Handle:
        """Submit a run; returns a handle to it."""

    @abstractmethod
    def _is_done(self, handle: Handle) -> bool: ...

    @abstractmethod
    def _outcome(self, handle: Handle) -> str | None:
        """What went wrong with a run that has ended."""

    @abstractmethod
    def _stop(self, handle: Handle) -> None: ...


class SlurmJobs(ClusterExecutor[Any]):
    """A job of SLURM for each run, on storage that all machines share."""

    def __enter__(self) -> Self:
        config = self._context.config
        out, name = self._store.parent, "maelift-bench"
        self._executor = slurm_executor(config.slurm, out, name, "executor=slurm", "executor=local")
        return self

    def _submit(self, run: Run) -> Any:
        return self._executor.submit(_run_alone, to_dict(self._context.config), run, self._store, self._home)

    def _is_done(self, handle: Any) -> bool:
        return bool(handle.done())

    def _outcome(self, handle: Any) -> str | None:
        try:
            outcome: str | None = handle.result()
        except Exception as error:  # submitit's own, or whatever ended the job
            return f"{DIED}. Give more slurm.memory_gb or slurm.minutes (job {handle.job_id}: {_end_of(error)})"
        return outcome

    def _stop(self, handle: Any) -> None:
        handle.cancel(check=False)


class RayTasks(ClusterExecutor[Any]):
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
        self._task = self._ray.remote(**resources)(_run_alone)
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the tasks that are left, and a Ray that was begun here."""
        super().__exit__(*error)
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
            return f"{DIED}. {FEWER} ({type(error).__name__}: {_end_of(error)})"
        return outcome

    def _stop(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)


def _end_of(error: Exception) -> str:
    """The end of what a framework says of a lost run, which is where it says it, in one line."""
    return " ".join(str(error).split())[-200:]


def _read_progress(file: Path) -> TrainingProgress | None:
    """The progress that a run wrote; None where it hasn't yet."""
    try:
        return TrainingProgress(**json.loads(file.read_text()))
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
    ):  # not there yet; storage that is shared may show half of it
        return None


def _write_progress(file: Path, progress: TrainingProgress) -> None:
    with suppress(OSError):  # the run matters more
        atomic_write_text(file, json.dumps(asdict(progress)) + "\n")


def _run_alone(keys: Mapping[str, Any], run: Run, store: Path, home: str) -> str | None:
    """Do a run in a process that hasn't read the suite yet; returns the error, None where all went well."""
    os.chdir(home)
    file = store / run.key / PROGRESS_FILE
    try:
        config = resolve(BenchConfig, keys)
        torch.set_num_threads(config.threads)
        listener = at_intervals(WRITE_INTERVAL, partial(_write_progress, file))
        execute(run, Context.of(config, read_suite_images(config)), store, listener)
        file.unlink(missing_ok=True)
    except Interrupted:
        return "stopped"
    except torch.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:
        return failure_message(error, run, store)
    return None
