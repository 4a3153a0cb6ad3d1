"""Running a suite: what is to be done next, by several processes, each finished run kept under its key."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from .. import __version__
from ..core.config import MaeliftError, to_dict, to_yaml, write_config
from ..core.cost import encoder_flops, training_memory, training_seconds
from ..core.distributed import Interrupted, StopSignals, choose_device
from ..core.encoder import Encoder
from ..core.files import exclusive, output_folder
from ..core.plan import Plan
from ..core.tracking import PLAIN_INTERVAL, Progress, duration
from ..pretrain.monitor import PICTURE_FILE
from .arms import PRETRAINING, Context, Run, libraries, read_result
from .executors import DIED, STALLED, executor_of
from .pools import Pools, read_pools
from .results import METRICS, Arm, Cell, ConvergenceCheck, Curve, Example, NearPair, Part, SuiteResult, TuningRecord
from .suite import CLASSIFY, ArmConfig, BenchConfig, Design

logger = logging.getLogger("maelift")

Results = Callable[[Run], Mapping[str, Any] | None]
"""From a run to what it wrote; None when it isn't finished."""


@dataclass(frozen=True)
class BenchResult:
    """Where a suite's report is, and what it says: ``verdicts`` are its sentences, ``result`` its numbers."""

    report: Path
    verdicts: tuple[str, ...]
    result: SuiteResult

    @property
    def error(self) -> str | None:
        """What went wrong, where runs failed: the others were done, and the report is partial."""
        failed = self.result.failed
        if not failed:
            return None
        others = f" (and {len(failed) - 1} more, see the report)" if len(failed) > 1 else ""
        return f"{failed[0].rstrip('.')}{others}. Finished runs are kept; the same command tries the failed ones again."

    def summary(self) -> str:
        """The verdicts and where the report is."""
        return "\n".join([*self.verdicts, f"report: {self.report}"])


@dataclass
class Comparison:
    """How far an arm is on a task at a label count: what is to be run next, and, once ``cells`` are there, what came of it.

    ``asked`` are all runs that were looked for on the way.
    """

    task: str
    arm: str
    labels: int
    asked: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    tuning: TuningRecord | None = None
    check: ConvergenceCheck | None = None
    cells: list[Cell] = field(default_factory=list)


def bench(config: BenchConfig) -> BenchResult:
    """Run a suite, or what of it is not there yet, and write its report.

    Raises MaeliftError for what a user can mend, Interrupted when asked to stop: finished runs are kept, and the same
    command goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MaeliftError("a suite is run by processes of its own. Give workers=..., and no torchrun.")
    out = Path(config.out)
    _check_place(out)
    with _stoppable(), ExitStack() as held:
        known_place = (out / "runs").is_dir()
        if known_place:  # refused before the look through the images, which may take long
            held.enter_context(exclusive(out, waits=0))
        context = _look_through(config)
        store = output_folder(out / "runs")
        if not known_place:
            held.enter_context(exclusive(out, waits=0))
        write_config(config, out / "config.yaml")
        results = _finished(store)
        ended = _run_all(context, store, results)
        result = collect(context, store, results, ended)
        from .report import write_report  # not by the workers, which import this file too: plots take a second to load

        report = write_report(result, out)
        return BenchResult(report.html, report.verdicts, result)


def plan(config: BenchConfig) -> Plan:
    """What ``bench`` would run and roughly cost if no arm needs its steps doubled; writes nothing."""
    context = _look_through(config)
    pools, results = context.pools, _finished(Path(config.out) / "runs")
    foreseen = _foreseen(context, results)
    runs = {key: run for key, run in foreseen.items() if results(run) is None}
    device = _device(config)
    flops = encoder_flops(config.spec)
    workers = _workers(config)
    shapes = [config.spec_of(arm, task) for task in config.designs for arm in config.arms]
    with torch.device("meta"):
        parameters = max(sum(parameter.numel() for parameter in Encoder(spec).parameters()) for spec in set(shapes))
    largest = max(config.recipe(task, arm).batch_size for task in config.designs for arm in config.arms)
    tokens = max((spec.num_patches + 1) * spec.embed_dim * spec.depth for spec in shapes)
    kinds = {kind: sum(run.kind == kind for run in runs.values()) for kind in (*PRETRAINING, "train", "test")}
    images = sum(run.images for run in runs.values() if run.kind != "test")
    there = f"; {len(foreseen) - len(runs)} are there already" if len(runs) < len(foreseen) else ""
    counts = f"{', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}"
    return Plan(
        lines=(
            ("pool", f"{len(pools.pool):,} images to pretrain on"),
            ("arms", ", ".join(f"{name} ({config.arm(name).start})" for name in config.arms)),
            *((name, _planned(design, pools.tasks[name].counts)) for name, design in config.designs.items()),
            ("pretraining seeds", str(len(config.pretrain_seeds))),
            ("runs", f"{counts or 'none'}; more where steps are doubled{there}"),
            ("at a time", f"{workers} runs of {config.threads} threads on {device}, executor {config.executor}"),
            ("result", str(Path(config.out) / "report.html")),
        ),
        parameters=parameters,
        steps=sum(run.steps for run in runs.values() if run.kind == "train"),
        seconds=training_seconds(flops, images, device) / workers,
        memory_bytes=training_memory(parameters, tokens, largest) * workers,
    )


def _planned(design: Design, counts: Mapping[str, int]) -> str:
    """A task in words."""
    images = ", ".join(f"{use} {count:,}" for use, count in counts.items())
    seeds = ", ".join(f"{len(design.seeds_at(labels))} paired seeds at {labels:,} labels" for labels in design.labels)
    tuned = "not tuned (short)" if design.short else f"{len(design.tuning.rates)} rates tried"
    return f"{images}; {seeds}; {tuned}"


@dataclass(frozen=True)
class Status:
    """How far a suite is: a row a task, arm and label count, under ``COLUMNS``; runs done and foreseen; seconds of computing."""

    rows: tuple[tuple[str, ...], ...]
    done: int
    runs: int
    seconds: float

    COLUMNS = ("task", "arm", "labels", "encoder", "rate", "steps", "compared seeds")

    def text(self) -> str:
        """The table, and a line on all of it."""
        table = [self.COLUMNS, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.COLUMNS))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
        ]
        more = "; more where steps are doubled" if self.done < self.runs else ""
        return "\n".join([*lines, f"{self.done} of {self.runs} runs done, {duration(self.seconds)} of computing{more}"])


def status(config: BenchConfig) -> Status:
    """How far a suite is in ``config.out``; writes nothing, and may be asked while it runs."""
    context = _look_through(config)
    results = _finished(Path(config.out) / "runs")
    runs = _foreseen(context, results)
    return Status(
        tuple(_standing(context, *place, results) for place in _places(config)),
        sum(results(run) is not None for run in runs.values()),
        len(runs),
        _seconds_spent(runs.values(), results),
    )


def _places(config: BenchConfig) -> Iterator[tuple[str, str, int]]:
    """Every task, arm and label count."""
    for task, design in config.designs.items():
        for arm in config.arms:
            for labels in design.labels:
                yield task, arm, labels


def _standing(context: Context, task: str, arm: str, labels: int, results: Results) -> tuple[str, ...]:
    """A row of the status."""
    state, design = compare(context, task, arm, labels, results), context.config.designs[task]
    encoders = _encoder_runs(context, arm)
    made = sum(results(run) is not None for run in encoders)
    seeds = len(design.seeds_at(labels))
    if design.short:
        return (
            *(task, arm, f"{labels:,}", f"{made} of {len(encoders)}" if encoders else "none needed"),
            *("as given", f"{context.steps(task, arm, labels):,}", f"{len(state.cells)} of {seeds}"),
        )
    return (
        task,
        arm,
        f"{labels:,}",
        f"{made} of {len(encoders)}" if encoders else "none needed",
        "open" if state.tuning is None else f"{state.tuning.chosen:g}",
        "open" if state.check is None else f"{state.check.steps:,}{'' if state.check.converged else ' or more'}",
        f"{len(state.cells)} of {seeds}",
    )


def _look_through(config: BenchConfig) -> Context:
    """The suite with its images, checked against each other."""
    logger.info("bench: looking through the images of %s", config.data.path or config.data.unlabelled)
    context = Context.of(config, read_pools(config))
    context.check()
    return context


def _finished(store: Path) -> Results:
    """Reads the finished runs in a folder, each once; a damaged result is told of and counts as none."""
    known: dict[str, Mapping[str, Any]] = {}
    damaged: set[str] = set()

    def results(run: Run) -> Mapping[str, Any] | None:
        if run.key in known:
            return known[run.key]
        try:
            found = read_result(run, store)
        except MaeliftError as error:
            if run.key not in damaged:
                logger.warning("bench: %s, so that run is made again (%s)", error, run.title())
            damaged.add(run.key)
            return None
        if found is not None:
            known[run.key] = found
        return found

    return results


def compare(context: Context, task: str, arm: str, labels: int, results: Results) -> Comparison:
    """How far an arm is on a task at a label count.

    In order: the encoder; a trial of every learning rate; the best rate with the check seeds, also for twice the steps,
    and again for as long as doubling helps; the other seeds; the test split, once a seed. Of a short task, the encoder and
    the seeds at the recipe's rate.
    """
    design = context.config.designs[task]
    tuning = design.tuning
    state = Comparison(task, arm, labels)

    def have(runs: Sequence[Run]) -> bool:
        state.asked.extend(runs)
        state.missing.extend(run for run in runs if results(run) is None)
        return all(results(run) is not None for run in runs)

    def scores(runs: Sequence[Run]) -> tuple[float, ...]:
        return tuple(float(_there(results(run))["val"]) for run in runs)

    if not have(_encoder_runs(context, arm)):
        return state
    steps, best = context.steps(task, arm, labels), context.config.recipe(task, arm).peak_lr
    seeds = design.seeds_at(labels)
    if not design.short:
        trials = [context.training(task, arm, labels, tuning.seed, steps, rate) for rate in tuning.rates]
        if not have(trials):
            return state
        found = scores(trials)
        best = tuning.rates[found.index(max(found))]
        state.tuning = TuningRecord(arm, labels, tuning.rates, found, best, steps, tuning.seed)
    doublings = tuning.max_doublings if _is_checked(context, design, arm) else -1
    for doubling in range(doublings + 1):
        at, doubled = (
            [
                context.training(task, arm, labels, seed, factor * steps * 2**doubling, best)
                for seed in seeds[: tuning.check_seeds]
            ]
            for factor in (1, 2)
        )
        if not have([*at, *doubled]):
            return state
        state.check = _check(context, state, steps * 2**doubling, scores(at), scores(doubled))
        if state.check.converged:
            break
    steps = steps if state.check is None else state.check.steps
    final = [context.training(task, arm, labels, seed, steps, best) for seed in seeds]
    if have(final) and have([context.testing(run) for run in final]):
        state.cells = [_cell(run, context, results) for run in final]
    return state


def _is_checked(context: Context, design: Design, arm: str) -> bool:
    """Whether it is looked at what twice the steps bring: not of short tasks, nor where another's compute sets the steps."""
    return not design.short and context.config.arm(arm).compute_of is None


def collect(context: Context, store: Path, results: Results, ended: Ended | None = None) -> SuiteResult:
    """Put together what the report says from the finished runs, and how the suite ``ended``."""
    ended = Ended() if ended is None else ended
    config, pools = context.config, context.pools
    comparisons = [compare(context, *place, results) for place in _places(config)]
    encoders = {arm: _encoders(context, arm, results) for arm in config.arms}
    pictures = [store / run.key / PICTURE_FILE for arm in config.arms for run, _ in encoders[arm] if run.kind == "mae"]
    parts = tuple(
        _part(context, task, [state for state in comparisons if state.task == task]) for task in config.designs
    )
    arms = tuple(
        Arm(
            name,
            config.arm(name).label,
            _note(config, name),
            sum(float(result["seconds"]) for run, result in encoders[name] if run.kind != "weights"),
            config.arm(name).x,
        )
        for name in config.arms
    )
    return SuiteResult(
        name=Path(config.suite).stem,
        title=config.title,
        baseline=config.baseline,
        arms=arms,
        parts=parts,
        pool=len(pools.pool),
        guards=pools.findings,
        reconstructions=next((path for path in pictures if path.is_file()), None),
        config_yaml=to_yaml(config),
        versions=_versions(),
        machine=_machine(config),
        seconds_total=_seconds_spent((run for state in comparisons for run in state.asked), results),
        pretraining_seeds=len(config.pretrain_seeds),
        missing=tuple(
            f"{state.arm}{'' if state.task == CLASSIFY else f', {state.task},'} at {state.labels} labels"
            for state in comparisons
            if not state.cells
        ),
        failed=tuple(f"{run.title()}: {problem}" for run, problem in ended.failed.values()),
        unspent=ended.unspent,
        axis=config.axis,
        published=config.published,
        examples=tuple(_examples(context, parts, arms)),
        near=tuple(_near(pools)),
    )


def _examples(context: Context, parts: Sequence[Part], arms: tuple[Arm, ...]) -> Iterator[Example]:
    """Test images of the suite's own classification that arms win and lose."""
    from .examples import won_and_lost  # not by the workers: pages take a second to load

    for part in parts:
        if part.name == CLASSIFY and part.cells:
            yield from won_and_lost(part, context.pools.classify.test, arms, context.config.baseline)


def _near(pools: Pools) -> Iterator[NearPair]:
    """What the guard left out as nearly the same, with pictures."""
    from .examples import address

    for pair in pools.pairs:
        first, second = (address(picture) for picture in pair.pictures)
        yield NearPair(pair.part, pair.name, pair.other, pair.likeness, (first, second))


def _part(context: Context, task: str, comparisons: Sequence[Comparison]) -> Part:
    """A task with what came of it."""
    design = context.config.designs[task]
    return Part(
        name=task,
        kind=design.kind,
        label_counts=design.labels,
        seeds={labels: design.seeds_at(labels) for labels in design.labels},
        cells=tuple(cell for state in comparisons for cell in state.cells),
        tunings=tuple(state.tuning for state in comparisons if state.tuning is not None),
        checks=tuple(state.check for state in comparisons if state.check is not None),
        counts=context.pools.tasks[task].counts,
        recipes={arm: to_dict(context.config.recipe(task, arm)) for arm in context.config.arms},
        short=design.short,
    )


def _check(
    context: Context, state: Comparison, steps: int, at: tuple[float, ...], doubled: tuple[float, ...]
) -> ConvergenceCheck:
    from .stats import converged  # not by the workers: scipy takes a second to load

    design = context.config.designs[state.task]
    images = len(context.pools.tasks[state.task].splits.val) if design.kind == "classify" else None
    gain, noise, enough = converged(at, doubled, n_val=images)
    seeds = design.seeds_at(state.labels)[: design.tuning.check_seeds]
    return ConvergenceCheck(state.arm, state.labels, steps, seeds, at, doubled, gain, noise, enough)


def _cell(run: Run, context: Context, results: Results) -> Cell:
    trained, tested = _there(results(run)), _there(results(context.testing(run)))
    kind = context.config.designs[run.task].kind
    figure = METRICS[kind][0][0]
    judged = [record for record in trained["curve"] if f"val/{figure}" in record]
    losses = [record for record in trained["curve"] if "train/loss" in record]
    metrics = tested["scores"]["metrics"]
    test = {name: metrics[name] for name, _ in METRICS[kind] if name in metrics}
    if kind == "classify" and test["top5"] is None:
        test["top5"] = 1.0  # five classes or fewer
    return Cell(
        arm=run.arm,
        labels=run.labels,
        seed=run.seed,
        lr=run.lr,
        steps=run.steps,
        val=trained["val"],
        test=test,
        curve=Curve(
            steps=tuple(record["step"] for record in judged),
            val=tuple(record[f"val/{figure}"] for record in judged),
            loss_steps=tuple(record["step"] for record in losses),
            train_loss=tuple(record["train/loss"] for record in losses),
        ),
        seconds=trained["seconds"],
        key=run.key,
        encoder=context.pretrain_seed(run.arm, run.seed, run.task) if run.parents else -1,
        items=tested["items"],
    )


def _encoder_runs(context: Context, arm: str) -> list[Run]:
    """The runs that make an arm's encoders; none for scratch, one where its weights are taken as they are."""
    runs = [context.pretraining(arm, seed) for seed in context.config.pretrain_seeds]
    return list({run.key: run for run in runs if run is not None}.values())


def _encoders(context: Context, arm: str, results: Results) -> list[tuple[Run, Mapping[str, Any]]]:
    return [(run, found) for run in _encoder_runs(context, arm) if (found := results(run)) is not None]


def _there(value: Any) -> Any:
    """A value that an earlier check has shown to be there."""
    if value is None:
        raise RuntimeError("a run is used before it is finished")
    return value


def _foreseen(context: Context, results: Results) -> dict[str, Run]:
    """Every run of a suite, by key, as far as can be told: learning rates and steps that are not chosen yet are guessed."""
    config = context.config
    runs: dict[str, Run] = {}
    for task, arm, labels in _places(config):
        design = config.designs[task]
        tuning, seeds = design.tuning, design.seeds_at(labels)
        state = compare(context, task, arm, labels, results)
        steps = context.steps(task, arm, labels)
        rate, trials = config.recipe(task, arm).peak_lr, list[Run]()
        if not design.short:
            rate = tuning.rates[0] if state.tuning is None else state.tuning.chosen
            trials = [context.training(task, arm, labels, tuning.seed, steps, lr) for lr in tuning.rates]
        checked = seeds[: tuning.check_seeds] if _is_checked(context, design, arm) else ()
        if state.check is not None:
            settled = state.check.converged or state.check.steps >= steps << tuning.max_doublings
            steps, checked = (state.check.steps, ()) if settled else (2 * state.check.steps, checked)
        at = [context.training(task, arm, labels, seed, steps, rate) for seed in seeds]
        doubled = [context.training(task, arm, labels, seed, 2 * steps, rate) for seed in checked]
        tests = [context.testing(run) for run in at]
        runs.update((run.key, run) for run in [*state.asked, *trials, *at, *doubled, *tests])
    return runs


def _note(config: BenchConfig, name: str) -> str:
    arm = config.arm(name)
    shape = "" if arm.model is None else f"{arm.model}: "
    return shape + _way(config, arm)


def _way(config: BenchConfig, arm: ArmConfig) -> str:
    """How an arm comes by its encoder, in words."""
    pool = "the pool"
    if arm.pool is not None:
        pool = f"{arm.pool:,} images of the pool" if isinstance(arm.pool, int) else f"{100 * arm.pool:g} % of the pool"
    if arm.start == "scratch":
        longer = (
            "" if arm.compute_of is None else f", trained longer by the compute that pretraining {arm.compute_of} took"
        )
        return f"no pretraining: sees only the labelled examples{longer}"
    if arm.start == "mae":
        begun = "" if arm.weights is None else f", begun with {arm.weights}"
        return f"pretrained on {pool} without {'its' if arm.pool is None else 'their'} labels{begun}"
    if not arm.trains_encoder:
        how = "with labels" if arm.start == "supervised" else "without labels"
        return f"begins with {arm.weights}, pretrained elsewhere {how}"
    return f"pretrained with the labels of {pool}, which are those of the task itself: an upper bound, not a rival"


def _versions() -> dict[str, str]:
    return {"maelift": __version__, "python": platform.python_version(), **libraries()}


def _machine(config: BenchConfig) -> str:
    device = _device(config)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({name}), {os.cpu_count()} cores, {config.threads} threads a run"


def _device(config: BenchConfig) -> torch.device:
    """What runs are done on; where they are done elsewhere, what this machine has."""
    return choose_device(config.device if config.executor == "local" else "auto")


def _seconds_spent(runs: Iterable[Run], results: Results) -> float:
    """Compute of these runs, each counted once; what other suites left in the folder is not among them."""
    found = {run.key: results(run) for run in runs}
    return sum(float(result["seconds"]) for result in found.values() if result is not None)


def _workers(config: BenchConfig) -> int:
    if config.workers is not None:
        return config.workers
    if config.executor != "local":
        return 8
    if _device(config).type == "cuda":
        return 1
    return max(1, (os.cpu_count() or 1) // config.threads)


def _check_place(out: Path) -> None:
    """Raise MaeliftError, before any work, where ``out`` could not be written or holds something else."""
    nearest_there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest_there.is_dir() or not os.access(nearest_there, os.W_OK | os.X_OK):
        output_folder(out)  # says what is wrong
    if (out / "config.yaml").exists() and not (out / "runs").exists():
        raise MaeliftError(f"out={out}: holds something else than a suite's runs. Choose another folder.")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Before and after the runs: end at once on SIGINT or SIGTERM, and say how to go on."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("stopped; finished runs are kept. The same command goes on.", number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Ended:
    """How a suite ended: runs that ``failed``, by key, with what went wrong; and why others were not begun."""

    failed: dict[str, tuple[Run, str]] = field(default_factory=dict)
    unspent: str = ""


def _run_all(context: Context, store: Path, results: Results) -> Ended:
    """Do whatever is missing, the costliest first, until nothing is, or the budget is spent.

    A run that fails doesn't keep the others from being done. Where a worker process dies, those that were at work are
    done again one by one, so that the one that kills it is told from the others.
    """
    ended = Ended()
    waiting = _missing(context, results, ended)
    if not waiting:
        logger.info("bench: every run is there already")
        return ended
    workers = _workers(context.config)
    suspects: set[str] = set()
    with (
        StopSignals.noted() as signals,
        _Board(context, results, workers) as board,
        executor_of(context, store, workers) as pool,
    ):
        while waiting or pool.running:
            while waiting and board.spent() < context.config.budget.seconds and pool.has_room(waiting[0], suspects):
                pool.begin(waiting.pop(0))
            if not pool.running:
                ended.unspent = _unspent(context.config, board.spent(), len(waiting))
                logger.warning("bench: %s", ended.unspent)
                break
            finished = pool.wait(board.hear)
            for run, problem in finished:
                if problem is None:
                    board.finished(run)
                elif problem.startswith((DIED, STALLED)) and signals.received is None and run.key not in suspects:
                    suspects.add(run.key)
                    logger.warning("bench: %s: its process or another ended; it is done again by itself", run.title())
                elif signals.received is None:
                    ended.failed[run.key] = (run, problem)
                    logger.warning("bench: %s: failed: %s", run.title(), problem)
            if signals.received is not None:
                raise _interrupted(board.count, signals.received)
            if finished:
                busy = {run.key for run in pool.running}
                waiting = [run for run in _missing(context, results, ended) if run.key not in busy]
            board.show(pool.running)
    return ended


def _unspent(config: BenchConfig, spent: float, left: int) -> str:
    """That the budget ends the suite, in words."""
    budget = config.budget
    limits = [f"budget.hours={budget.hours:g}"] if budget.hours is not None else []
    limits += [f"budget.money={budget.money:g}"] if budget.money is not None else []
    runs = "1 run was" if left == 1 else f"{left:,} runs were"
    return (
        f"The budget is spent ({' and '.join(limits)}; {duration(spent)} of computing): {runs} not begun, and those that follow "
        "from them. Raise it and give the same command to go on."
    )


def _interrupted(count: int, number: int) -> Interrupted:
    return Interrupted(f"stopped with {count} runs finished; they are kept. The same command goes on.", number)


def _missing(context: Context, results: Results, ended: Ended) -> list[Run]:
    """What can be run now, pretraining first, then the costliest; each once, but for what failed."""
    found: dict[str, Run] = {}
    for place in _places(context.config):
        for run in compare(context, *place, results).missing:
            if run.key not in ended.failed:
                found.setdefault(run.key, run)
    return sorted(found.values(), key=lambda run: (run.kind not in PRETRAINING, -run.images, run.key))


class _Board:
    """Shows how far the suite is: on a terminal the runs at work, elsewhere a line now and then."""

    def __init__(self, context: Context, results: Results, workers: int) -> None:
        self.context, self.results, self.workers = context, results, workers
        self.count = 0
        self._heard: dict[str, Progress] = {}
        self._began = self._said = time.monotonic()
        self._images_done = 0.0
        self._images_left, self._runs_left = 0, 0
        self._spent = 0.0
        self._live: Any = None

    def __enter__(self) -> _Board:
        self._look_ahead()
        self._spent = _seconds_spent(_foreseen(self.context, self.results).values(), self.results)
        logger.info("bench: %d runs to do, %d at a time; more where steps are doubled", self._runs_left, self.workers)
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def spent(self) -> float:
        """Seconds of computing of the finished runs, those of earlier commands too."""
        return self._spent

    def hear(self, key: str, progress: Progress) -> None:
        """Take in a worker's message."""
        self._heard[key] = progress

    def finished(self, run: Run) -> None:
        """Count a run that is done."""
        self.count += 1
        self._images_done += run.images
        result = self.results(run) or {}
        self._spent += float(result.get("seconds", 0))
        self._look_ahead()
        score = f", {100 * result['val']:.1f} % on validation" if "val" in result else ""
        text = f"bench: {run.title()}: done in {duration(float(result.get('seconds', 0)))}{score}"
        if self._live is None:
            logger.info(text)
        else:
            self._live.console.print(text, markup=False, highlight=False)

    def show(self, running: list[Run]) -> None:
        """Show the runs at work and the time left, if no arm needs its steps doubled."""
        if self._live is None and time.monotonic() - self._said < PLAIN_INTERVAL:
            return
        self._said = time.monotonic()
        if self._live is not None:
            self._live.update(self._table(running))
            return
        lines = [self._summary(running)]
        for run, progress in self._under_way(running):
            lines.append(
                f"  {run.title()}: step {progress.step}/{progress.total}, loss {progress.loss:.3f}, "
                f"{progress.images_per_second:.0f} images/s"
            )
        logger.info("\n".join(lines))

    def _under_way(self, running: list[Run]) -> list[tuple[Run, Progress]]:
        """The runs at work that have told how far they are."""
        return [(run, self._heard[run.key]) for run in running if run.key in self._heard]

    def _table(self, running: list[Run]) -> Any:
        """What a terminal shows: how far the suite is, and a row for each run at work."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("run", box=None, pad_edge=False)
        for column in ("step", "loss", "images/s"):
            table.add_column(column, justify="right")
        known = dict(self._under_way(running))
        for run in running:
            far = ("", "", "")
            if (progress := known.get(run)) is not None:
                far = (f"{progress.step}/{progress.total}", f"{progress.loss:.3f}", f"{progress.images_per_second:.0f}")
            table.add_row(Text(run.title()), *far)
        return Group(Text(self._summary(running)), table)

    def _look_ahead(self) -> None:
        left = [run for run in _foreseen(self.context, self.results).values() if self.results(run) is None]
        self._images_left, self._runs_left = sum(run.images for run in left), len(left)

    def _summary(self, running: list[Run]) -> str:
        partly = sum(progress.step / max(progress.total, 1) * run.images for run, progress in self._under_way(running))
        elapsed = time.monotonic() - self._began
        rate = (self._images_done + partly) / max(elapsed, 1e-9)
        ahead = duration(max(self._images_left - partly, 0) / rate) if rate > 0 else "unknown time"
        return (
            f"bench: {self.count} runs done in {duration(elapsed)}, {self._runs_left} to do, about {ahead} left "
            "unless steps are doubled"
        )
