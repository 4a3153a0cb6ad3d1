"""Canned results of a suite's runs, written without training: for what plans, starts, stops and repeats runs."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from maelift.benchmarks import local_executor, runner
from maelift.benchmarks.execute import execute as real_execute
from maelift.benchmarks.executor import Executor, ProgressCallback, failure_message
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.results import pack_items
from maelift.benchmarks.runs import RESULT_FILE, Run
from maelift.core.files import atomic_write_text
from maelift.core.progress import ProgressListener, TrainingProgress
from maelift.transfer.model_file import MODEL_FILE
from typing_extensions import Self

if TYPE_CHECKING:
    import pytest

Execute = Callable[[Run, Context, Path], None]


def execute(
    run: Run,
    context: Context,
    store: Path,
    listener: ProgressListener | None = None,
    *,
    seconds: float = 0.0,
    encoder_seconds: float = 0.0,
) -> None:
    """In place of ``maelift.benchmarks.execute.execute``: a result that the run's key determines, after so many seconds."""
    folder = store / run.key
    folder.mkdir(parents=True, exist_ok=True)
    if listener is not None:
        listener(TrainingProgress(step=1, total=2, images_per_second=100.0, loss=1.0))
    time.sleep(encoder_seconds if run.makes_encoder else seconds)
    if run.kind == "train" and run.fold < 0:
        (folder / MODEL_FILE).touch()
    _write(run, store, canned_result(run, context))


def canned_result(run: Run, context: Context) -> dict[str, Any]:
    """What a run of this kind writes; the numbers are drawn."""
    generator = np.random.default_rng(int(run.key, 16))
    seconds, share = 1 + generator.random(), 0.5 + 0.3 * generator.random()
    if run.makes_encoder:
        return {"seconds": seconds, "steps": 10}
    scores = context.config.designs[run.task].scores
    if run.kind == "train":
        share = min(0.2 + 0.15 * math.log2(run.steps) + 0.2 * generator.random(), 1.0)  # some gain by twice the steps
        curve = [{"step": run.steps, f"val/{scores.key}": share, "train/loss": 1 - share}]
        return {"seconds": seconds, "val": share, "best_step": run.steps, "curve": curve}
    items = generator.random(len(context.pools.tasks[run.task].splits.test)) < share
    metrics = dict.fromkeys(scores.labels, float(items.mean()))
    return {"seconds": seconds, "scores": {"metrics": metrics}, "items": pack_items(items.astype(np.float64))}


def train_middle_rate(run: Run, context: Context, store: Path) -> None:
    """Do a run, but for trainings at other rates than the middle one: these end as those that diverge do, and aren't chosen."""
    if run.kind == "train" and not run.variant:
        design = context.config.designs[run.task]
        if not design.short and run.lr != sorted(design.tuning.rates)[(len(design.tuning.rates) - 1) // 2]:
            _write(run, store, {"seconds": 1.0, "val": 0.0, "curve": []})
            return
    real_execute(run, context, store)


def _write(run: Run, store: Path, result: Mapping[str, Any]) -> None:
    folder = store / run.key
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / RESULT_FILE, json.dumps({"run": asdict(run), **result}) + "\n")


def use_canned_workers(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02, encoder_seconds: float = 0.02) -> None:
    """Have the worker processes that are started from now on write canned results, each after so many seconds."""
    monkeypatch.setattr(local_executor, "_start_worker", partial(_start_worker, seconds, encoder_seconds))


def _start_worker(seconds: float, encoder_seconds: float, *facts: Any) -> None:
    """Prepare a worker that doesn't train; it runs in the worker's process."""
    canned = partial(execute, seconds=seconds, encoder_seconds=encoder_seconds)
    local_executor.execute = canned  # type: ignore[attr-defined]
    local_executor._start_worker(*facts)


def use_this_process(monkeypatch: pytest.MonkeyPatch, execute: Execute = execute) -> None:
    """Have suites done by this process, one run after the other, canned or by what is given."""
    monkeypatch.setattr(runner, "_executor", lambda context, store, workers: InThisProcess(context, store, execute))


class InThisProcess(Executor):
    """Does runs one after the other in the process of the suite."""

    def __init__(self, context: Context, store: Path, execute: Execute) -> None:
        self._context, self._store, self._execute, self._waiting = context, store, execute, list[Run]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def running(self) -> list[Run]:
        return self._waiting

    def has_room(self, run: Run, suspects: set[str]) -> bool:
        return not self._waiting

    def start(self, run: Run) -> None:
        self._waiting.append(run)

    def wait(self, on_progress: ProgressCallback) -> list[tuple[Run, str | None]]:
        run = self._waiting.pop()
        try:
            self._execute(run, self._context, self._store)
        except Exception as error:
            return [(run, failure_message(error, run, self._store))]
        return [(run, None)]
