"""The protocol of a suite: what each arm runs next on a task, given what is finished, and its results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import MaeliftError
from ..transfer.model_file import MODEL_FILE
from .experiment import Context
from .results import Cell, ConvergenceCheck, Curve, TuningRecord
from .runs import Run, read_result
from .suite import BenchConfig
from .tuning import Search, SearchSpace, Setting, guessed_settings, search

logger = logging.getLogger("maelift")

T = TypeVar("T")

Results = Callable[[Run], Mapping[str, Any] | None]
"""From a run to what it wrote; None when it isn't finished."""


@dataclass
class ArmState:
    """The state of an arm on a task at a label count: the ``missing`` runs, and, once all are done, ``cells``.

    ``requested`` are all runs that it needed up to here. ``losing``: trainings that were not chosen, once that is known.
    """

    task: str
    arm: str
    labels: int
    requested: list[Run] = field(default_factory=list)
    missing: list[Run] = field(default_factory=list)
    losing: list[Run] = field(default_factory=list)
    tuning: TuningRecord | None = None
    check: ConvergenceCheck | None = None
    cells: list[Cell] = field(default_factory=list)


def iter_cells(config: BenchConfig) -> Iterator[tuple[str, str, int]]:
    """Every task, arm that is compared on it, and label count."""
    for task, design in config.designs.items():
        for arm in config.arms_on(task):
            for labels in design.labels:
                yield task, arm, labels


MODEL_SAVED = "model saved"
"""Whether a training's model is there, in what ``read_finished`` gives of it: those that aren't chosen are removed."""


def read_finished(store: Path) -> Results:
    """Reads the finished runs in a folder, each once; a damaged result is reported and counts as none."""
    known: dict[str, Mapping[str, Any]] = {}
    damaged: set[str] = set()

    def saved(run: Run) -> bool:
        return (store / run.key / MODEL_FILE).is_file()

    def results(run: Run) -> Mapping[str, Any] | None:
        if run.key in known:
            content = known[run.key]
            if content.get(MODEL_SAVED) is False and saved(run):  # it was trained again
                content = known[run.key] = {**content, MODEL_SAVED: True}
            return content
        try:
            found = read_result(run, store)
        except MaeliftError as error:
            if run.key not in damaged:
                logger.warning("bench: %s, so that run is repeated (%s)", error, run.title())
            damaged.add(run.key)
            return None
        if found is not None:
            if run.kind == "train" and run.fold < 0:
                found = {**found, MODEL_SAVED: saved(run)}
            known[run.key] = found
        return found

    return results


def arm_state(
    context: Context, task: str, arm: str, labels: int, results: Results, failed: Container[str] = ()
) -> ArmState:
    """The state of an arm on a task at a label count.

    In order: the encoders; the search for each seed's rate and steps (``tuning.search``), or of a short task each seed at the
    recipe's rate; with cross-validation a training of what was chosen on all labelled images; the test split, once a seed.
    Seeds that need a run in ``failed`` (keys) are left out: the others go on without them.
    """
    state = ArmState(task, arm, labels)

    def have(runs: Sequence[Run]) -> bool:
        state.requested.extend(runs)
        state.missing.extend(run for run in runs if results(run) is None)
        return all(results(run) is not None or run.key in failed for run in runs)

    def training(seed: int, setting: Setting) -> Run:
        return context.training(task, arm, labels, seed, setting)

    def trials(seed: int, setting: Setting) -> list[Run]:
        return context.trials(task, arm, labels, seed, setting)

    def score(seed: int, setting: Setting) -> float | None:
        return _mean_score(context, trials(seed, setting), results)

    if not have(encoder_runs(context, arm)):
        return state
    design = context.config.designs[task]
    space = search_space(context, task, arm, labels)
    seeds = [seed for seed in design.seeds_at(labels) if not _is_among(failed, context.encoder_of(arm, seed))]
    if design.short and not space.variants:
        setting = Setting(context.config.recipe(task, arm).peak_lr, space.steps)
        chosen = [training(seed, setting) for seed in seeds]
    else:
        images = context.scored_images(task, labels, seeds) if design.scores.is_accuracy else None
        found = Search()
        while seeds:
            found = search(space, seeds, score, images)
            have([run for one in found.asked for run in trials(*one)])
            lost = {one[0] for one in found.missing if any(_is_among(failed, run) for run in trials(*one))}
            if not lost:
                break
            seeds = [seed for seed in seeds if seed not in lost]
        if not found.chosen:  # whatever has ended since the search asked
            return state
        chosen = [training(seed, found.chosen[seed]) for seed in seeds]
        keys = {run.key for run in chosen}
        state.losing = [run for run in state.requested if not run.makes_encoder and run.key not in keys]
        trained = keys | {run.key for one in found.asked for run in trials(*one)}
        state.tuning = TuningRecord(arm, labels, found.trials, space.per_seed, found.edge, len(trained))
        state.check = None if found.check is None else replace(found.check, arm=arm, labels=labels)
    gone = [run for run in chosen if results(context.testing(run)) is None and _has_lost_model(run, results)]
    state.missing.extend(gone)
    if not have(chosen) or gone:
        return state
    finished = [run for run in chosen if results(run) is not None]
    if have([context.testing(run) for run in finished]):
        tested = [run for run in finished if results(context.testing(run)) is not None]
        chosen_trials = () if state.tuning is None else state.tuning.chosen
        scores = {trial.seed: trial.val for trial in chosen_trials}
        state.cells = [_cell(run, context, results, scores.get(run.seed)) for run in tested]
    return state


def _mean_score(context: Context, runs: Sequence[Run], results: Results) -> float | None:
    """The mean score of the trainings of a setting, each fold's by its images; None while one isn't finished."""
    scores = [float(found["val"]) for run in runs if (found := results(run)) is not None]
    if len(scores) < len(runs):
        return None
    folds = context.folds(runs[0].task, runs[0].labels, runs[0].seed)
    return scores[0] if folds is None or runs[0].fold < 0 else folds.mean(scores)


def _is_among(keys: Container[str], run: Run | None) -> bool:
    return run is not None and run.key in keys


def search_space(context: Context, task: str, arm: str, labels: int) -> SearchSpace:
    """What an arm tries on a task at a label count; no more steps where another's compute sets them."""
    config = context.config
    design, variants = config.designs[task], config.arm_kind(arm).variants
    space = design.space(0 if variants else context.steps(task, arm, labels), variants)
    return space if config.arms[arm].compute_of is None else replace(space, max_doublings=0)


def _has_lost_model(run: Run, results: Results) -> bool:
    """Whether a finished training's model was removed, as it wasn't chosen then; one that diverged never had one."""
    found = results(run)
    return found is not None and bool(found["curve"]) and not found[MODEL_SAVED]


def _cell(run: Run, context: Context, results: Results, score: float | None) -> Cell:
    """A compared training with its test scores; ``score``: by which its setting was chosen, None where it wasn't."""
    trained, tested = _required(results(run)), _required(results(context.testing(run)))
    scores = context.config.designs[run.task].scores
    figure = scores.key
    curve = [] if context.is_refit(run) else trained["curve"]  # else of the images that it was trained on
    evaluated = [record for record in curve if f"val/{figure}" in record]
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
        val=trained["val"] if score is None else score,
        test=test,
        curve=Curve(
            steps=tuple(record["step"] for record in evaluated),
            val=tuple(record[f"val/{figure}"] for record in evaluated),
            loss_steps=tuple(record["step"] for record in losses),
            train_loss=tuple(record["train/loss"] for record in losses),
        ),
        seconds=trained["seconds"],
        key=run.key,
        encoder=context.pretrain_seed(run.arm, run.seed) if run.parents else -1,
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
    """Every run of a suite, by key, as far as is known: rates and steps that are not chosen yet are guessed."""
    config = context.config
    runs: dict[str, Run] = {}
    for task, arm, labels in iter_cells(config):
        design, state = config.designs[task], arm_state(context, task, arm, labels, results)
        needed = [*state.requested]
        if not state.cells and state.tuning is None:
            space, seeds = search_space(context, task, arm, labels), design.seeds_at(labels)
            guessed = guessed_settings(space, config.recipe(task, arm).peak_lr, short=design.short)
            chosen = [context.training(task, arm, labels, seed, guessed[0]) for seed in seeds]
            for seed in seeds if not design.short or space.variants else ():
                for one in guessed:
                    needed += context.trials(task, arm, labels, seed, one)
            needed += [*chosen, *map(context.testing, chosen)]
        runs.update((run.key, run) for run in needed)
    return runs


def seconds_spent(runs: Iterable[Run], results: Results) -> float:
    """Compute of these runs, each counted once; what other suites left in the folder is not among them."""
    found = {run.key: results(run) for run in runs}
    return sum(float(result["seconds"]) for result in found.values() if result is not None)
