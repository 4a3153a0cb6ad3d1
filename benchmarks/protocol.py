"""The protocol of a suite: what each arm runs next on a task, given what is finished, and its results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import MaeliftError
from .experiment import Context
from .results import Cell, ConvergenceCheck, Curve, TuningRecord
from .runs import Run, read_result
from .stats import converged
from .suite import BenchConfig
from .task_design import TaskDesign

logger = logging.getLogger("maelift")

T = TypeVar("T")

Results = Callable[[Run], Mapping[str, Any] | None]
"""From a run to what it wrote; None when it isn't finished."""


@dataclass
class ArmState:
    """The state of an arm on a task at a label count: the ``missing`` runs, and, once all are done, ``cells``.

    ``requested`` are all runs that it needed up to here.
    """

    task: str
    arm: str
    labels: int
    requested: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    tuning: TuningRecord | None = None
    check: ConvergenceCheck | None = None
    cells: list[Cell] = field(default_factory=list)


def iter_cells(config: BenchConfig) -> Iterator[tuple[str, str, int]]:
    """Every task, arm and label count."""
    for task, design in config.designs.items():
        for arm in config.arms:
            for labels in design.labels:
                yield task, arm, labels


def read_finished(store: Path) -> Results:
    """Reads the finished runs in a folder, each once; a damaged result is reported and counts as none."""
    known: dict[str, Mapping[str, Any]] = {}
    damaged: set[str] = set()

    def results(run: Run) -> Mapping[str, Any] | None:
        if run.key in known:
            return known[run.key]
        try:
            found = read_result(run, store)
        except MaeliftError as error:
            if run.key not in damaged:
                logger.warning("bench: %s, so that run is repeated (%s)", error, run.title())
            damaged.add(run.key)
            return None
        if found is not None:
            known[run.key] = found
        return found

    return results


def arm_state(context: Context, task: str, arm: str, labels: int, results: Results) -> ArmState:
    """The state of an arm on a task at a label count.

    In order: the encoder; a trial of every learning rate; the best rate with the check seeds, also for twice the steps,
    and again for as long as doubling helps; the other seeds; the test split, once a seed. Of a short task, the encoder and
    the seeds at the recipe's rate.
    """
    design = context.config.designs[task]
    tuning = design.tuning
    state = ArmState(task, arm, labels)

    def have(runs: Sequence[Run]) -> bool:
        state.requested.extend(runs)
        state.missing.extend(run for run in runs if results(run) is None)
        return all(results(run) is not None for run in runs)

    def scores(runs: Sequence[Run]) -> tuple[float, ...]:
        return tuple(float(_required(results(run))["val"]) for run in runs)

    if not have(encoder_runs(context, arm)):
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


def _is_checked(context: Context, design: TaskDesign, arm: str) -> bool:
    """Whether twice the steps are tried: not of short tasks, nor where another's compute sets the steps."""
    return not design.short and context.config.arms[arm].compute_of is None


def _check(
    context: Context, state: ArmState, steps: int, at: tuple[float, ...], doubled: tuple[float, ...]
) -> ConvergenceCheck:
    design = context.config.designs[state.task]
    images = len(context.pools.tasks[state.task].splits.val) if design.scores.is_accuracy else None
    gain, noise, enough = converged(at, doubled, n_val=images)
    seeds = design.seeds_at(state.labels)[: design.tuning.check_seeds]
    return ConvergenceCheck(state.arm, state.labels, steps, seeds, at, doubled, gain, noise, enough)


def _cell(run: Run, context: Context, results: Results) -> Cell:
    trained, tested = _required(results(run)), _required(results(context.testing(run)))
    scores = context.config.designs[run.task].scores
    figure = scores.key
    evaluated = [record for record in trained["curve"] if f"val/{figure}" in record]
    losses = [record for record in trained["curve"] if "train/loss" in record]
    metrics = tested["scores"]["metrics"]
    test = {key: metrics[key] for key in scores.labels if key in metrics}
    test |= {key: value for key, value in scores.defaults.items() if key in test and test[key] is None}
    return Cell(
        arm=run.arm,
        labels=run.labels,
        seed=run.seed,
        lr=run.lr,
        steps=run.steps,
        val=trained["val"],
        test=test,
        curve=Curve(
            steps=tuple(record["step"] for record in evaluated),
            val=tuple(record[f"val/{figure}"] for record in evaluated),
            loss_steps=tuple(record["step"] for record in losses),
            train_loss=tuple(record["train/loss"] for record in losses),
        ),
        seconds=trained["seconds"],
        key=run.key,
        encoder=context.pretrain_seed(run.arm, run.seed, run.task) if run.parents else -1,
        items=tested["items"],
    )


def encoder_runs(context: Context, arm: str) -> list[Run]:
    """The runs that make an arm's encoders; none for scratch, one where its weights are taken as they are."""
    runs = [context.pretraining(arm, seed) for seed in context.config.pretrain_seeds]
    return list({run.key: run for run in runs if run is not None}.values())


def _required(value: T | None) -> T:
    """A value that an earlier check has shown not to be None."""
    if value is None:
        raise RuntimeError("a run is used before it is finished")
    return value


def predict_runs(context: Context, results: Results) -> dict[str, Run]:
    """Every run of a suite, by key, as far as is known: learning rates and steps that are not chosen yet are guessed."""
    config = context.config
    runs: dict[str, Run] = {}
    for task, arm, labels in iter_cells(config):
        design = config.designs[task]
        tuning, seeds = design.tuning, design.seeds_at(labels)
        state = arm_state(context, task, arm, labels, results)
        steps = context.steps(task, arm, labels)
        rate, trials = config.recipe(task, arm).peak_lr, list[Run]()
        if not design.short:
            rate = tuning.rates[0] if state.tuning is None else state.tuning.chosen
            trials = [context.training(task, arm, labels, tuning.seed, steps, lr) for lr in tuning.rates]
        checked = seeds[: tuning.check_seeds] if _is_checked(context, design, arm) else ()
        if state.check is not None:
            is_final = state.check.converged or state.check.steps >= steps << tuning.max_doublings
            steps, checked = (state.check.steps, ()) if is_final else (2 * state.check.steps, checked)
        at = [context.training(task, arm, labels, seed, steps, rate) for seed in seeds]
        doubled = [context.training(task, arm, labels, seed, 2 * steps, rate) for seed in checked]
        tests = [context.testing(run) for run in at]
        runs.update((run.key, run) for run in [*state.requested, *trials, *at, *doubled, *tests])
    return runs


def seconds_spent(runs: Iterable[Run], results: Results) -> float:
    """Compute of these runs, each counted once; what other suites left in the folder is not among them."""
    found = {run.key: results(run) for run in runs}
    return sum(float(result["seconds"]) for result in found.values() if result is not None)
