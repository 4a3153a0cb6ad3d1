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

from ..core.config import resolve
from ..core.files import atomic_write_text
from ..core.optional_imports import require
from ..core.progress import ProgressListener, TrainingProgress
from ..core.signals import Interrupted
from ..core.slurm import slurm_executor
from ..core.yaml_files import to_dict
from .data import read_suite_images
from .execute import execute
from .executor import DIED, FEWER, NO_MEMORY, STALLED, Executor, Hear, told
from .experiment import Context
from .runs import Run
from .suite import BenchConfig

PROGRESS_FILE, NOTED_EVERY = "progress.json", 5.0
"""In the folder of a run that is done elsewhere: how far it is; seconds after which it is noted anew."""


class _ClusterExecutor(Executor):
    """Runs that are done by processes which share nothing with this one but the folder of the suite.

    There they note how far they are; one whose note no longer changes hangs, and is ended.
    """

    def __init__(self, context: Context, store: Path, workers: int) -> None:
        self._context, self._workers = context, workers
        self._home, self._store = os.getcwd(), store.resolve()
        self._at_work: dict[str, tuple[Any, Run]] = {}
        self._heard: dict[str, tuple[TrainingProgress, float]] = {}
        self._stalled: set[str] = set()

    def __exit__(self, *error: object) -> None:
        """Stop what is left; it saves nothing but its checkpoints."""
        for handle, _ in self._at_work.values():
            self._stop(handle)

    @property
    def running(self) -> list[Run]:
        return [run for _, run in self._at_work.values()]

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        return len(self._at_work) < self._workers  # each is a process of its own: none is mistaken for another

    def begin(self, run: Run) -> None:
        self._heard.pop(run.key, None)
        self._stalled.discard(run.key)
        with suppress(OSError):
            self._note(run).unlink(missing_ok=True)  # of one that was killed
        self._at_work[run.key] = (self._submit(run), run)

    def wait(self, hear: Hear) -> list[tuple[Run, str | None]]:
        time.sleep(0.5)
        self._listen(hear)
        ended = [(handle, run) for handle, run in self._at_work.values() if self._is_done(handle)]
        for _, run in ended:
            del self._at_work[run.key]
        return [(run, STALLED if run.key in self._stalled else self._outcome(handle)) for handle, run in ended]

    def _listen(self, hear: Hear) -> None:
        """Pass on how far the runs are, and end those that weren't heard of for too long; until a run begins, it may wait."""
        now = time.monotonic()
        for handle, run in self._at_work.values():
            if (progress := _noted(self._note(run))) is not None:
                hear(run.key, progress)
                if run.key not in self._heard or self._heard[run.key][0] != progress:
                    self._heard[run.key] = progress, now
            late = now - 60 * self._context.config.stall_minutes
            if run.key in self._heard and self._heard[run.key][1] < late and run.key not in self._stalled:
                self._stalled.add(run.key)
                self._stop(handle)

    def _note(self, run: Run) -> Path:
        return self._store / run.key / PROGRESS_FILE

    @abstractmethod
    def _submit(self, run: Run) -> Any:
        """Hand a run over; a handle to it."""

    @abstractmethod
    def _is_done(self, handle: Any) -> bool: ...

    @abstractmethod
    def _outcome(self, handle: Any) -> str | None:
        """What went wrong with a run that has ended."""

    @abstractmethod
    def _stop(self, handle: Any) -> None: ...


class SlurmJobs(_ClusterExecutor):
    """A job of SLURM for each run, on storage that all machines share."""

    def __enter__(self) -> Self:
        config = self._context.config
        out, name = self._store.parent, "maelift-bench"
        self._executor = slurm_executor(config.slurm, out, name, "executor=slurm", "executor=local")
        return self

    def _submit(self, run: Run) -> Any:
        return self._executor.submit(_run_anew, to_dict(self._context.config), run, self._store, self._home)

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


class RayTasks(_ClusterExecutor):
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


def _noted(file: Path) -> TrainingProgress | None:
    """How far a run has noted that it is; None where it hasn't yet."""
    try:
        return TrainingProgress(**json.loads(file.read_text()))
    except (
        OSError,
        ValueError,
        TypeError,
        RecursionError,
    ):  # not there yet; storage that is shared may show half of it
        return None


def _noting(file: Path) -> ProgressListener:
    """Notes how far a run is, now and then."""
    last = -NOTED_EVERY

    def note(progress: TrainingProgress) -> None:
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
        config = resolve(BenchConfig, keys)
        torch.set_num_threads(config.threads)
        execute(run, Context.of(config, read_suite_images(config)), store, _noting(note))
        note.unlink(missing_ok=True)
    except Interrupted:
        return "stopped"
    except torch.OutOfMemoryError:
        return NO_MEMORY
    except Exception as error:
        return told(error, run, store)
    return None
