"""The runner of a suite against a bare process pool that does the same runs.

    python benchmarks/perf/runner.py [data=data/fashion-mnist] [seeds=10] [steps=250] [cells=1000] [repeats=3]

A suite of two arms, one of them pretrained for an epoch of 2,000 images; which goes first takes turns. Both times count from the
first run's beginning to the last one's end. Then the status of a store of ``cells`` compared cells, whose files are copies of
a few, against reading the same files and nothing else.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.execute import execute
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.local_executor import PRELOADED
from maelift.benchmarks.protocol import Results, predict_runs, read_finished
from maelift.benchmarks.runner import run_all
from maelift.benchmarks.runs import RESULT_FILE, Run
from maelift.benchmarks.status import status_of
from maelift.benchmarks.suite import BenchConfig
from maelift.core.config import resolve
from maelift.core.errors import MaeliftError

SUITE = """
title: What does the runner cost?
data: {pool: 2000, val: 1000, near: off}
labels: [25]
model: vit_nano
image_size: 28
patch_size: 7
channels: 1
evaluations: 4
tuning: {rates: [5e-4, 1e-3, 2e-3, 4e-3], max_doublings: 0}
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain: {epochs: 1, batch_size: 64, lr: 1e-3, decoder: {embed_dim: 64, depth: 1, num_heads: 4}}
    recipe: &small {batch_size: 16, mixup: 0.0, cutmix: 0.0, ema_decay: null}
  scratch: {start: scratch, label: from scratch, recipe: *small}
"""


@dataclass(frozen=True)
class Benchmark:
    """What is measured."""

    data: str = "data/fashion-mnist"
    """labelled images, as maelift bench takes them"""
    seeds: int = 10
    """paired seeds of each arm"""
    steps: int = 250
    """of each training"""
    cells: int = 1000
    """compared cells of the store whose status is told"""
    workers: int = 2
    """runs at a time"""
    repeats: int = 3
    """of the suite, and of the status"""


def main() -> None:
    """Measure, and print."""
    settings = resolve(Benchmark, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        context = suite_of(settings, seeds=settings.seeds, out=folder)
        times: dict[str, list[float]] = {"runner": [], "pool": []}
        for turn in range(settings.repeats):
            for which in sorted(times, reverse=turn % 2 == 0):
                store = folder / f"{which}{turn}"
                store.mkdir()
                began = time.monotonic()
                if which == "runner":
                    run_all(context, store, read_finished(store))
                else:
                    in_a_pool(runs_of(context, read_finished(folder / "runner0")), context, store, settings.workers)
                times[which].append(time.monotonic() - began)
        ratios = [ours / theirs for ours, theirs in zip(*times.values(), strict=True)]
        print(f"{len(list((folder / 'pool0').iterdir()))} runs, {settings.workers} at a time")
        print(f"  by the runner, median                {statistics.median(times['runner']):7.1f} s")
        print(f"  to the same by a bare pool, median   {statistics.median(ratios):7.3f} ({spread(ratios)})")
        tell_status(settings, folder, folder / "runner0")


def suite_of(settings: Benchmark, seeds: int, out: Path) -> Context:
    """The suite, with its images."""
    file = out / "suite.yaml"
    file.write_text(SUITE)
    keys = {"data": {"path": settings.data}, "seeds": list(range(seeds)), "workers": settings.workers}
    arms = {name: {"steps": {25: settings.steps}} for name in ("mae", "scratch")}
    config = BenchConfig.resolve({"suite": str(file), "out": str(out), "arms": arms, **keys})
    return Context.of(config, read_suite_images(config))


def runs_of(context: Context, results: Results) -> list[Run]:
    """All runs, each after those that it needs."""
    runs = predict_runs(context, results).values()
    return sorted(runs, key=lambda run: (not run.makes_encoder, run.kind == "test"))


def in_a_pool(runs: Sequence[Run], context: Context, store: Path, workers: int) -> None:
    """Do runs by a pool of processes, kind by kind."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(workers, start, prepare, (context, store)) as pool:
        groups = (
            [run for run in runs if run.makes_encoder],
            *([run for run in runs if run.kind == kind] for kind in ("train", "test")),
        )
        for group in groups:
            list(pool.map(do, group))


_at_hand: list[Any] = []


def prepare(context: Context, store: Path) -> None:
    """Prepare a process of the pool."""
    torch.set_num_threads(context.config.threads)
    _at_hand[:] = [context, store]


def do(run: Run) -> None:
    """Do a run in a process of the pool."""
    execute(run, *_at_hand)


def tell_status(settings: Benchmark, folder: Path, known: Path) -> None:
    """The status of a store of many cells."""
    results: dict[str, dict[str, Any]] = {}
    for file in known.glob(f"*/{RESULT_FILE}"):
        content = json.loads(file.read_text())
        results.setdefault(content["run"]["kind"], content)
    context = suite_of(settings, seeds=-(-settings.cells // 2), out=folder)
    store = folder / "many"
    runs = runs_of(context, lambda run: None)
    for run in runs:
        (store / run.key).mkdir(parents=True)
        (store / run.key / RESULT_FILE).write_text(json.dumps({**results[run.kind], "run": asdict(run)}, indent=1))
    ours, theirs = [], []
    for _ in range(settings.repeats):
        began = time.monotonic()
        table = status_of(context, read_finished(store))
        ours.append(time.monotonic() - began)
        began = time.monotonic()
        for run in runs:
            json.loads((store / run.key / RESULT_FILE).read_bytes())
        theirs.append(time.monotonic() - began)
    ratio = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    print(f"status of {len(runs):,} runs ({table.done:,} done), 2 arms × {settings.cells // 2:,} seeds")
    print(f"  median                               {statistics.median(ours):7.2f} s ({spread(ours)})")
    print(f"  to reading the same files            {ratio:7.2f}")


def spread(values: Iterable[float]) -> str:
    """From the least to the most."""
    found = list(values)
    return f"{min(found):.3f} to {max(found):.3f}"


if __name__ == "__main__":
    try:
        main()
    except MaeliftError as error:
        sys.exit(f"runner.py: {error}")
