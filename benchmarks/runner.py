"""Running a suite: what is to be done next, by several processes, each finished run kept under its key."""

from __future__ import annotations

import fcntl
import json
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import numpy
import timm
import torch
import torchvision

from .. import __version__
from ..core.config import MaeliftError, to_dict, to_yaml, write_config
from ..core.cost import encoder_flops, training_memory, training_seconds
from ..core.distributed import Interrupted, StopSignals, choose_device
from ..core.encoder import Encoder
from ..core.files import output_folder
from ..core.plan import Plan
from ..core.tracking import Progress, duration
from ..pretrain.stage import PICTURE_FILE
from .arms import Context, Run, execute, read_pools, read_result
from .report import write_report
from .results import Arm, Cell, ConvergenceCheck, Curve, SuiteResult, TuningRecord
from .stats import converged
from .suite import BenchConfig

logger = logging.getLogger("maelift")

Results = Callable[[Run], Mapping[str, Any] | None]


@dataclass(frozen=True)
class BenchResult:
    """Where a suite's report is, and what it says: ``verdicts`` are its sentences, ``result`` its numbers."""

    report: Path
    verdicts: tuple[str, ...]
    result: SuiteResult

    def summary(self) -> str:
        """The verdicts and where the report is."""
        return "\n".join([*self.verdicts, f"report: {self.report}"])


@dataclass
class Comparison:
    """How far an arm is at a label count: what is to be run next, and, once ``cells`` are there, what came of it."""

    arm: str
    labels: int
    missing: list[Run] = field(default_factory=list)
    tuning: TuningRecord | None = None
    check: ConvergenceCheck | None = None
    cells: list[Cell] = field(default_factory=list)


def bench(config: BenchConfig) -> BenchResult:
    """Run a suite, or what of it is not there yet, and write its report.

    Raises MaeliftError for what a user can mend, Interrupted when asked to stop: finished runs are kept, and the same
    command goes on.
    """
    out = output_folder(config.out)
    store = output_folder(out / "runs")
    with _only_one(out):
        logger.info("bench: looking through the images of %s", config.data.path)
        context = Context(config, read_pools(config.data))
        write_config(config, out / "config.yaml")
        known: dict[str, Mapping[str, Any]] = {}

        def results(run: Run) -> Mapping[str, Any] | None:
            if run.key not in known and (found := read_result(run, store)) is not None:
                known[run.key] = found
            return known.get(run.key)

        _run_all(context, store, results)
        result = collect(context, store, results)
        report = write_report(result, out)
        return BenchResult(report.html, report.verdicts, result)


def plan(config: BenchConfig) -> Plan:
    """What ``bench`` would run and roughly cost if no arm needs its steps doubled; writes nothing."""
    pools = read_pools(config.data)
    context = Context(config, pools)
    runs = {run.key: run for run in _foreseen(context)}
    device = choose_device(config.device)
    flops = encoder_flops(config.spec)
    workers = _workers(config)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Encoder(config.spec).parameters())
    largest = max(config.recipe(arm).batch_size for arm in config.arms)
    tokens = (config.spec.num_patches + 1) * config.spec.embed_dim * config.spec.depth
    kinds = {kind: sum(run.kind == kind for run in runs.values()) for kind in ("mae", "supervised", "train", "test")}
    images = sum(run.images * (0.5 if run.kind == "mae" else 1.0) for run in runs.values() if run.kind != "test")
    return Plan(
        lines=(
            (
                "images",
                f"pool {len(pools.pool)}, labelled source {len(pools.source)}, validation {len(pools.val)}, "
                f"test {len(pools.test)}",
            ),
            ("arms", ", ".join(f"{name} ({config.arm(name).start})" for name in config.arms)),
            ("label counts", ", ".join(str(labels) for labels in config.labels)),
            (
                "paired seeds",
                ", ".join(f"{len(config.seeds_at(labels))} at {labels} labels" for labels in config.labels),
            ),
            ("pretraining seeds", str(len(config.pretrain_seeds))),
            ("runs", ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + "; more where steps are doubled"),
            ("at a time", f"{workers} runs of {config.threads} threads on {device}"),
            ("result", str(Path(config.out) / "report.html")),
        ),
        parameters=parameters,
        steps=sum(run.steps for run in runs.values() if run.kind == "train"),
        seconds=training_seconds(flops, images, device) / workers,
        memory_bytes=training_memory(parameters, tokens, largest) * workers,
    )


def compare(context: Context, arm: str, labels: int, results: Results) -> Comparison:
    """How far an arm is at a label count.

    In order: the encoder; a trial of every learning rate; the best rate with the check seeds, also for twice the steps,
    and again for as long as doubling helps; the other seeds; the test split, once a seed.
    """
    config, tuning = context.config, context.config.tuning
    state = Comparison(arm, labels)

    def have(runs: Sequence[Run]) -> bool:
        state.missing.extend(run for run in runs if results(run) is None)
        return all(results(run) is not None for run in runs)

    def accuracies(runs: Sequence[Run]) -> tuple[float, ...]:
        return tuple(float(_there(results(run))["val_accuracy"]) for run in runs)

    encoders = [context.pretraining(arm, seed) for seed in config.pretrain_seeds]
    if not have([run for run in encoders if run is not None]):
        return state
    steps = config.steps(arm, labels)
    trials = [context.training(arm, labels, tuning.seed, steps, rate) for rate in tuning.rates]
    if not have(trials):
        return state
    scores = accuracies(trials)
    best = tuning.rates[scores.index(max(scores))]
    state.tuning = TuningRecord(arm, labels, tuning.rates, scores, best, steps, tuning.seed)
    seeds = config.seeds_at(labels)
    check_seeds = seeds[: tuning.check_seeds]
    for doublings in range(tuning.max_doublings + 1):
        at, doubled = (
            [context.training(arm, labels, seed, factor * steps * 2**doublings, best) for seed in check_seeds]
            for factor in (1, 2)
        )
        if not have([*at, *doubled]):
            return state
        state.check = _check(
            arm, labels, steps * 2**doublings, check_seeds, accuracies(at), accuracies(doubled), context
        )
        if state.check.converged:
            break
    final = [context.training(arm, labels, seed, _there(state.check).steps, best) for seed in seeds]
    if have(final) and have([context.testing(run) for run in final]):
        state.cells = [_cell(run, _there(results(run)), _there(results(context.testing(run)))) for run in final]
    return state


def collect(context: Context, store: Path, results: Results) -> SuiteResult:
    """Put together what the report says from the finished runs."""
    config, pools = context.config, context.pools
    comparisons = [compare(context, arm, labels, results) for arm in config.arms for labels in config.labels]
    encoders = {arm: _encoders(context, arm, results) for arm in config.arms}
    pictures = [store / run.key / PICTURE_FILE for arm in config.arms for run, _ in encoders[arm] if run.kind == "mae"]
    return SuiteResult(
        name=Path(config.suite).stem,
        title=config.title,
        baseline=config.baseline,
        arms=tuple(
            Arm(
                name,
                config.arm(name).label,
                _note(config, name),
                to_dict(config.recipe(name)),
                sum(float(result["seconds"]) for _, result in encoders[name]),
            )
            for name in config.arms
        ),
        label_counts=config.labels,
        seeds={labels: config.seeds_at(labels) for labels in config.labels},
        cells=tuple(cell for state in comparisons for cell in state.cells),
        tunings=tuple(state.tuning for state in comparisons if state.tuning is not None),
        checks=tuple(state.check for state in comparisons if state.check is not None),
        guards=pools.findings,
        counts={
            "pool": len(pools.pool),
            "labelled source": len(pools.source),
            "validation": len(pools.val),
            "test": len(pools.test),
        },
        reconstructions=next((path for path in pictures if path.is_file()), None),
        config_yaml=to_yaml(config),
        versions=_versions(),
        machine=_machine(config),
        seconds_total=_seconds_spent(store),
        pretraining_seeds=len(config.pretrain_seeds),
        missing=tuple(f"{state.arm} at {state.labels} labels" for state in comparisons if not state.cells),
    )


def _check(
    arm: str,
    labels: int,
    steps: int,
    seeds: tuple[int, ...],
    at: tuple[float, ...],
    doubled: tuple[float, ...],
    context: Context,
) -> ConvergenceCheck:
    gain, noise, enough = converged(at, doubled, n_val=len(context.pools.val))
    return ConvergenceCheck(arm, labels, steps, seeds, at, doubled, gain, noise, enough)


def _cell(run: Run, trained: Mapping[str, Any], tested: Mapping[str, Any]) -> Cell:
    judged = [record for record in trained["curve"] if "val/top1" in record]
    losses = [record for record in trained["curve"] if "train/loss" in record]
    scores = tested["scores"]
    return Cell(
        arm=run.arm,
        labels=run.labels,
        seed=run.seed,
        lr=run.lr,
        steps=run.steps,
        val_accuracy=trained["val_accuracy"],
        test_top1=scores["top1"],
        test_top5=scores["top5"],
        test_balanced=scores["balanced"],
        curve=Curve(
            steps=tuple(record["step"] for record in judged),
            val_accuracy=tuple(record["val/top1"] for record in judged),
            loss_steps=tuple(record["step"] for record in losses),
            train_loss=tuple(record["train/loss"] for record in losses),
        ),
        seconds=trained["seconds"],
        key=run.key,
    )


def _encoders(context: Context, arm: str, results: Results) -> list[tuple[Run, Mapping[str, Any]]]:
    runs = [context.pretraining(arm, seed) for seed in context.config.pretrain_seeds]
    return [(run, found) for run in runs if run is not None and (found := results(run)) is not None]


def _there(value: Any) -> Any:
    """A value that an earlier check has shown to be there."""
    if value is None:
        raise RuntimeError("a run is used before it is finished")
    return value


def _foreseen(context: Context) -> Iterator[Run]:
    """Every run of a suite in which no arm's steps are doubled beyond the check."""
    config = context.config
    for arm in config.arms:
        encoders = [context.pretraining(arm, seed) for seed in config.pretrain_seeds]
        yield from (run for run in encoders if run is not None)
        for labels in config.labels:
            steps, rate = config.steps(arm, labels), config.tuning.rates[0]
            yield from (context.training(arm, labels, config.tuning.seed, steps, lr) for lr in config.tuning.rates)
            for number, seed in enumerate(config.seeds_at(labels)):
                run = context.training(arm, labels, seed, steps, rate)
                yield from (run, context.testing(run))
                if number < config.tuning.check_seeds:
                    yield context.training(arm, labels, seed, 2 * steps, rate)


def _note(config: BenchConfig, arm: str) -> str:
    start = config.arm(arm).start
    if start == "scratch":
        return "no pretraining: sees only the labelled examples"
    if start == "mae":
        return "pretrained on the pool without its labels"
    return "pretrained with the pool's labels, which are those of the task itself: an upper bound, not a rival"


def _versions() -> dict[str, str]:
    return {
        "maelift": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
    }


def _machine(config: BenchConfig) -> str:
    device = choose_device(config.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name}), {os.cpu_count()} cores, {config.threads} threads a run"


def _seconds_spent(store: Path) -> float:
    return sum(float(json.loads(path.read_text())["seconds"]) for path in store.glob("*/result.json"))


def _workers(config: BenchConfig) -> int:
    if config.workers is not None:
        return config.workers
    if choose_device(config.device).type == "cuda":
        return 1
    return max(1, (os.cpu_count() or 1) // config.threads)


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back from a process that was killed."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MaeliftError(
                f"out={out}: another maelift bench is at work there. Wait for it, or stop it."
            ) from error
        yield


def _run_all(context: Context, store: Path, results: Results) -> None:
    """Do whatever is missing, the costliest first, until nothing is."""
    config = context.config
    workers = _workers(config)
    spawn = multiprocessing.get_context("spawn")
    messages: Queue[tuple[str, Progress]] = spawn.Queue()
    board = _Board(context, results)
    running: dict[Future[str | None], Run] = {}
    with StopSignals.noted() as signals:
        if not _missing(context, results):
            return
        pool = ProcessPoolExecutor(workers, spawn, _start_worker, (config.threads, messages))
        try:
            waiting = _missing(context, results)
            while waiting or running:
                while waiting and len(running) < workers:
                    run = waiting.pop(0)
                    running[pool.submit(_work, run, config, store)] = run
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                while not messages.empty():
                    board.hear(*messages.get())
                for future in done:
                    run = running.pop(future)
                    problem = future.result()
                    if problem is not None:
                        raise MaeliftError(f"{run.title()}: {problem}")
                    board.finished(run)
                if done:
                    busy = {run.key for run in running.values()}
                    waiting = [run for run in _missing(context, results) if run.key not in busy]
                board.show(list(running.values()))
                if signals.received is not None:
                    raise Interrupted(
                        f"stopped with {board.count} runs finished; they are kept. The same command goes on.",
                        signals.received,
                    )
        except BrokenProcessPool as error:
            raise MaeliftError(
                "a worker process died (killed, or out of memory?). Finished runs are kept; give fewer workers to use less "
                "memory, and the same command goes on."
            ) from error
        finally:
            board.close()
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _missing(context: Context, results: Results) -> list[Run]:
    """What can be run now, pretraining first, then the costliest; each once."""
    config = context.config
    found: dict[str, Run] = {}
    for arm in config.arms:
        for labels in config.labels:
            for run in compare(context, arm, labels, results).missing:
                found.setdefault(run.key, run)
    return sorted(found.values(), key=lambda run: (run.kind not in ("mae", "supervised"), -run.images, run.key))


_messages: Queue[tuple[str, Progress]] | None = None


def _start_worker(threads: int, messages: Queue[tuple[str, Progress]]) -> None:
    """Prepare a worker: its threads, its line to the parent, and its end when the parent is gone."""
    global _messages
    _messages = messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    logging.getLogger("maelift").setLevel(logging.ERROR)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """Wait for the parent's end, then end: a worker of a killed parent must not go on beside the next command's."""
    parent.join()
    os._exit(1)


def _work(run: Run, config: BenchConfig, store: Path) -> str | None:
    """Do a run in a worker; returns what went wrong, in words."""
    last = 0.0

    def tell(progress: Progress) -> None:
        nonlocal last
        if _messages is not None and time.monotonic() - last > 1.0:
            last = time.monotonic()
            _messages.put((run.key, progress))

    try:
        execute(run, config, store, tell)
    except Interrupted:
        return "stopped"
    except (MaeliftError, OSError) as error:
        return str(error)
    return None


class _Board:
    """Shows how far the suite is: on a terminal a bar and the runs at work, elsewhere a line now and then."""

    def __init__(self, context: Context, results: Results) -> None:
        self.context, self.results = context, results
        self.count = 0
        self._heard: dict[str, Progress] = {}
        self._foreseen = {run.key: run for run in _foreseen(context)}
        self._began = self._said = time.monotonic()
        self._images_done = 0.0
        self._live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()

    def hear(self, key: str, progress: Progress) -> None:
        """Take in a worker's message."""
        self._heard[key] = progress

    def finished(self, run: Run) -> None:
        """Count a run that is done."""
        self.count += 1
        self._images_done += run.images
        result = self.results(run) or {}
        accuracy = f", validation accuracy {100 * result['val_accuracy']:.1f} %" if "val_accuracy" in result else ""
        text = f"bench: {run.title()}: done in {duration(float(result.get('seconds', 0)))}{accuracy}"
        if self._live is None:
            logger.info(text)
        else:
            self._live.console.print(text)

    def show(self, running: list[Run]) -> None:
        """Show the runs at work and the time left, if no arm needs its steps doubled."""
        lines = [self._summary(running)]
        for run in running:
            if (progress := self._heard.get(run.key)) is not None:
                lines.append(
                    f"  {run.title()}: step {progress.step}/{progress.total}, loss {progress.loss:.3f}, "
                    f"{progress.images_per_second:.0f} images/s"
                )
        if self._live is not None:
            self._live.update("\n".join(lines))
        elif time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            logger.info("\n".join(lines))

    def close(self) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def _summary(self, running: list[Run]) -> str:
        left = sum(run.images for run in self._foreseen.values() if self.results(run) is None)
        partly = sum(
            progress.step / max(progress.total, 1) * run.images
            for run in running
            if (progress := self._heard.get(run.key)) is not None
        )
        elapsed = time.monotonic() - self._began
        rate = (self._images_done + partly) / max(elapsed, 1e-9)
        ahead = duration(max(left - partly, 0) / rate) if rate > 0 else "unknown time"
        return f"bench: {self.count} runs done in {duration(elapsed)}, about {ahead} left unless steps are doubled"
