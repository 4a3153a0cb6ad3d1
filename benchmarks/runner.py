"""Running a suite: every missing run by an executor, then the report; its plan and its status."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.dry_run import Plan
from ..core.errors import MaeliftError
from ..core.files import exclusive_lock, output_folder
from ..core.models.backbone_cost import backbone_activations, backbone_parameters
from ..core.models.cost import training_memory
from ..core.models.hub_names import is_moving
from ..core.notebook import Fact, facts_table
from ..core.progress import duration
from ..core.signals import Interrupted, StopSignals, interruptible
from ..core.training.data_frames import table_frame
from ..core.yaml_files import write_config
from ..transfer.model_file import MODEL_FILE
from .aggregate import RunOutcome, collect, device_of
from .answer_cache import AnswerCache, RunningStatus
from .cluster_executors import RayTasks, SlurmJobs
from .data import read_suite_images
from .disk_estimate import bytes_saved, checkpoint_peak
from .estimates import MeasuredCost, RunCosts, RuntimeHistory
from .executor import DIED, NO_ROOM, STALLED, Executor
from .experiment import Context
from .folds import CROSS_FOLDS
from .local_executor import LocalProcesses
from .progress import RunProgress
from .protocol import ArmState, Results, arm_state, iter_cells, predict_runs, read_finished
from .public_data import weights_path
from .results import SuiteResult
from .runs import Run
from .status import Status, status_of
from .suite import BenchConfig
from .suite_file import suite_files
from .task_design import TaskDesign

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

logger = logging.getLogger("maelift")

SCORE_TYPES = {
    **dict.fromkeys(("task", "arm", "run"), "str"),
    **dict.fromkeys(("labels", "seed", "steps"), "int64"),
    "encoder": "Int64",  # missing where the arm has none
}
"""The dtypes of the columns of results.csv that are no scores."""


@dataclass(frozen=True)
class BenchResult:
    """Where a suite's report is, and what it says: ``verdicts`` are its sentences, ``result`` its numbers.

    ``status`` is its status, ``choices``: which arm to use at each place, and how certain that is.
    """

    report: Path
    verdicts: tuple[str, ...]
    result: SuiteResult
    status: Status
    choices: tuple[str, ...] = ()

    @property
    def error(self) -> str | None:
        """The error, where runs failed: the others were done, and the report is partial."""
        failed = self.result.failed
        if not failed:
            return None
        others = f" (and {len(failed) - 1} more, see the report)" if len(failed) > 1 else ""
        return (
            f"{failed[0].rstrip('.')}{others}. Finished runs are saved; the same command tries the failed ones again."
        )

    def summary(self) -> str:
        """The verdicts and where the report is."""
        return "\n".join([*self.verdicts[:1], *self.choices, *self.verdicts[1:], f"report: {self.report}"])

    def scores(self) -> DataFrame:
        """The results.csv of the suite as a pandas.DataFrame: a row a run, its scores in percent, as its columns say."""
        return table_frame(self.report.with_name("results.csv"), SCORE_TYPES)

    def plot(self) -> Figure:
        """The report's forest plot as a matplotlib figure: differences from the reference, in points, with their intervals.

        Without any difference, the test scores of every seed. Raises MaeliftError where there are no scores either.
        """
        from ..core.report.charts import wrapped
        from ..core.report.notebook_figure import on_white
        from .analysis import Comparisons
        from .charts import draw_scores
        from .forest import forest_figure, forest_plot

        forest = forest_plot(Comparisons(self.result))
        if forest is not None:
            return forest_figure(forest)
        for part in self.result.parts:
            for chart in draw_scores(self.result, part):
                return on_white(chart.figure, wrapped(chart.caption))
        raise MaeliftError(f"{self.report}: no scores to draw. Expected finished runs of at least one task.")

    def _repr_html_(self) -> str:
        facts: list[Fact] = [("result", verdict) for verdict in self.verdicts[:1]]
        facts += [("which arm to use", choice) for choice in self.choices]
        facts += [("comparison", verdict) for verdict in self.verdicts[1:]]
        return facts_table(self.result.title, [*facts, ("report", self.report)])


def bench(config: BenchConfig, cache: AnswerCache | None = None) -> BenchResult:
    """Run a suite, or what of it is not there yet, and write its report; a complete answer is saved in ``cache``.

    Raises MaeliftError for what a user can fix, Interrupted when asked to stop: finished runs are saved, and the same
    command goes on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise MaeliftError("a suite is run by processes of its own. Give workers=..., and no torchrun.")
    out = Path(config.out)
    _check_folder(out)
    with interruptible("stopped; finished runs are saved. The same command goes on."), ExitStack() as locks:
        is_suite = (out / "runs").is_dir()
        if is_suite:  # refused before the images are scanned, which may take long
            locks.enter_context(exclusive_lock(out, timeout=0))
        context = read_context(config)
        store = output_folder(out / "runs")
        if not is_suite:
            locks.enter_context(exclusive_lock(out, timeout=0))
        write_config(config, out / "config.yaml")
        results = read_finished(store)
        running = None if cache is None else cache.running_status(out, suite_files(config.suite))
        outcome = run_all(context, store, results, running)
        from .measure_cost import measure_costs  # as the report: a plan measures no model

        result = collect(context, store, results, outcome)
        result = replace(result, costs=measure_costs(context, result, out, device_of(config)))
        from .report import write_report  # plots take a second to load, and a plan has none

        report = write_report(result, out)
        done = BenchResult(report.html, report.verdicts, result, status_of(context, results), report.choices)
        inputs = _input_files(config)
        if cache is not None and inputs is not None and not (result.missing or result.failed or result.unspent):
            cache.save(out, done.summary(), done.status.text(), inputs)
        return done


def _input_files(config: BenchConfig) -> list[Path] | None:
    """The files and folders that a suite reads; None where it reads what may change elsewhere.

    That are files that a list of images names, and weights of the Hugging Face Hub without their commit.
    """
    if any(arm.weights is not None and is_moving(arm.weights) for arm in config.arms.values()):
        return None
    unlabelled = config.data.unlabelled
    pool = (unlabelled,) if isinstance(unlabelled, str) else unlabelled or ()
    given = [config.data.path, *pool, *(task.data for task in config.tasks.values())]
    images = [Path(path) for path in given if path is not None]
    weights = [Path(file) for arm in config.arms.values() if (file := weights_path(arm.weights)) is not None]
    return [*suite_files(config.suite), *images, *weights] if all(path.is_dir() for path in images) else None


def plan(config: BenchConfig) -> Plan:
    """What ``bench`` would run and roughly cost if no arm needs more rates or steps; writes nothing.

    The time follows from finished runs in the folder, and for others from a few steps that are measured here.
    """
    context = read_context(config)
    pools, results = context.pools, read_finished(Path(config.out) / "runs")
    predicted = predict_runs(context, results)
    runs = {key: run for key, run in predicted.items() if results(run) is None}
    device = device_of(config)
    workers = concurrent_runs(config)
    history = RuntimeHistory.of(predicted.values(), results, RunCosts(context).of)
    measured = MeasuredCost(context, device)
    shapes = [config.spec_of(arm, task) for task in config.designs for arm in config.arms]
    parameters = max(map(backbone_parameters, shapes))
    saved, checkpoints = bytes_saved(context, runs.values()), checkpoint_peak(context, runs.values(), workers)
    ordered = sorted(runs.values(), key=lambda run: (not run.makes_encoder, run.kind == "test", run.fold < 0))
    kinds = Counter("cross-validation" if run.fold >= 0 else run.kind for run in ordered)
    seconds = sum(
        measured.seconds(run) if (known := history.known_seconds(run)) is None else known for run in runs.values()
    )
    there = f"; {len(predicted) - len(runs)} are there already" if len(runs) < len(predicted) else ""
    cells = sum(len(config.designs[task].seeds_at(labels)) for task, _, labels in iter_cells(config))
    counts = f"{', '.join(f'{count} {kind}' for kind, count in kinds.items())}"
    return Plan(
        lines=(
            ("pool", f"{len(pools.pool):,} images to pretrain on"),
            ("arms", ", ".join(f"{name} ({arm.start})" for name, arm in config.arms.items())),
            *((name, _planned(design, pools.tasks[name].counts)) for name, design in config.designs.items()),
            ("cells", f"{cells:,} compared: arms × label counts × seeds"),
            ("pretraining seeds", str(len(config.pretrain_seeds))),
            ("runs", f"{counts or 'none'}; more where rates or steps are extended{there}"),
            (
                "disk",
                f"{saved / 2**30:.2f} GiB for these runs, and {checkpoints / 2**30:.2f} GiB of checkpoints while they run",
            ),
            ("at a time", f"{workers} runs of {config.threads} threads on {device}, executor {config.executor}"),
            ("result", str(Path(config.out) / "report.html")),
        ),
        parameters=parameters,
        steps=sum(run.steps for run in runs.values() if run.kind == "train"),
        seconds=seconds / workers,
        memory_bytes=_memory(config) * workers,
    )


def _memory(config: BenchConfig) -> int:
    """Rough bytes of the largest training; of an arm that takes no steps, those of its encoder alone."""
    found = [0]
    for task in config.designs:
        for arm in config.arms_on(task):
            spec, batch = config.spec_of(arm, task), config.recipe(task, arm).batch_size
            trained = 0 if config.arm_kind(arm).variants else batch
            found.append(training_memory(backbone_parameters(spec), backbone_activations(spec), trained))
    return max(found)


def _planned(design: TaskDesign, counts: Mapping[str, int]) -> str:
    """A task as a line of the plan."""
    images = ", ".join(f"{use} {count:,}" for use, count in counts.items())
    seeds = ", ".join(f"{len(design.seeds_at(labels))} paired seeds at {labels:,} labels" for labels in design.labels)
    by = "by each seed" if design.tuning.per_seed else f"by {design.tuning.draws} seeds"
    by += f", in {CROSS_FOLDS}-fold cross-validation of a seed's labels" if design.cross else ""
    tuned = "not tuned (short)" if design.short else f"{len(design.tuning.rates)} rates tried {by}, then more steps"
    return f"{images}; {seeds}; {tuned}"


def status(config: BenchConfig) -> Status:
    """The status of a suite in ``config.out``; writes nothing, and works while the suite runs."""
    return status_of(read_context(config), read_finished(Path(config.out) / "runs"))


def read_context(config: BenchConfig) -> Context:
    """The suite with its images, checked against each other."""
    logger.info("bench: scanning the images of %s", config.data.path or config.data.unlabelled)
    for key in config.tuning.unused:
        logger.warning("bench: tuning.%s has no effect any more: every compared seed tries rates and steps itself", key)
    context = Context.of(config, read_suite_images(config))
    context.check()
    return context


def concurrent_runs(config: BenchConfig) -> int:
    if config.workers is not None:
        return config.workers
    if config.executor != "local":
        return 8
    if device_of(config).type == "cuda":
        return 1
    return max(1, (os.cpu_count() or 1) // config.threads)


def _check_folder(out: Path) -> None:
    """Raise MaeliftError, before any work, where ``out`` could not be written or holds something else."""
    nearest_there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest_there.is_dir() or not os.access(nearest_there, os.W_OK | os.X_OK):
        output_folder(out)  # says what is wrong
    if (out / "config.yaml").exists() and not (out / "runs").exists():
        raise MaeliftError(f"out={out}: has other files than a suite's runs. Choose another folder.")


def run_all(context: Context, store: Path, results: Results, running_status: RunningStatus | None = None) -> RunOutcome:
    """Do all missing runs, the costliest first, until none is missing or the budget is spent.

    A run that fails doesn't stop the others. Where a worker process dies, the runs in progress are done again one by one, so
    that the one that kills it is identified. ``running_status``: where the status is saved while they run.
    """
    outcome = RunOutcome()
    costs = RunCosts(context)
    waiting = _missing(context, store, results, outcome, costs)
    if not waiting:
        logger.info("bench: every run is there already")
        return outcome
    workers = concurrent_runs(context.config)
    suspects: set[str] = set()
    with (
        StopSignals.caught() as signals,
        RunProgress(context, results, workers, costs, running_status) as progress,
        ExitStack() as stack,
    ):
        with signals.at_once():  # processes take a while to start
            executor = stack.enter_context(_executor(context, store, workers))
        while waiting or executor.running:
            while (
                waiting and progress.spent() < context.config.budget.seconds and executor.has_room(waiting[0], suspects)
            ):
                executor.start(waiting.pop(0))
            if not executor.running:
                outcome.unspent = _unspent(context.config, progress.spent(), len(waiting))
                logger.warning("bench: %s", outcome.unspent)
                break
            finished = executor.wait(progress.update)
            for run, problem in finished:
                if problem is None:
                    progress.finished(run)
                elif problem.startswith((DIED, STALLED)) and signals.received is None and run.key not in suspects:
                    suspects.add(run.key)
                    logger.warning("bench: %s: its process or another ended; it is done again alone", run.title())
                elif problem.startswith(NO_ROOM):
                    raise MaeliftError(f"{problem} The same command goes on.")
                elif signals.received is None:
                    outcome.failed[run.key] = (run, problem)
                    logger.warning("bench: %s: failed: %s", run.title(), problem)
            if signals.received is not None:
                raise _interrupted(progress.count, signals.received)
            if finished:
                busy = {run.key for run in executor.running}
                waiting = [run for run in _missing(context, store, results, outcome, costs) if run.key not in busy]
            progress.show(executor.running)
    return outcome


def _executor(context: Context, store: Path, workers: int) -> Executor:
    """What the suite's configuration asks for."""
    kinds: dict[str, type[LocalProcesses] | type[SlurmJobs] | type[RayTasks]] = {
        "local": LocalProcesses,
        "slurm": SlurmJobs,
        "ray": RayTasks,
    }
    return kinds[context.config.executor](context, store, workers)


def _remove_losing_models(states: Sequence[ArmState], store: Path) -> None:
    """Remove the models of trainings that were tried and not chosen, by no arm: a suite has hundreds."""
    losing = {run.key for state in states for run in state.losing}
    for state in states:
        losing -= {run.key for run in state.requested} - {run.key for run in state.losing}
    for key in losing:
        (store / key / MODEL_FILE).unlink(missing_ok=True)


def _unspent(config: BenchConfig, spent: float, left: int) -> str:
    """The message that the budget ends the suite."""
    budget = config.budget
    limits = [f"budget.hours={budget.hours:g}"] if budget.hours is not None else []
    limits += [f"budget.money={budget.money:g}"] if budget.money is not None else []
    runs = "1 run was" if left == 1 else f"{left:,} runs were"
    return (
        f"The budget is spent ({' and '.join(limits)}; {duration(spent)} of computing): {runs} not begun, and those that follow "
        "from them. Raise it and give the same command to go on."
    )


def _interrupted(count: int, number: int) -> Interrupted:
    return Interrupted(f"stopped with {count} runs finished; they are saved. The same command goes on.", number)


def _missing(context: Context, store: Path, results: Results, outcome: RunOutcome, costs: RunCosts) -> list[Run]:
    """What can be run now, pretraining first, then the costliest; each once, but for what failed."""
    found: dict[str, Run] = {}
    states = [arm_state(context, *place, results, outcome.failed) for place in iter_cells(context.config)]
    _remove_losing_models(states, store)
    for state in states:
        for run in state.missing:
            if run.key not in outcome.failed:
                found.setdefault(run.key, run)
    return sorted(found.values(), key=lambda run: (not run.makes_encoder, -costs.of(run), run.key))
