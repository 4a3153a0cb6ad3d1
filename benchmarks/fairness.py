"""What differs between the arms of a result, found by comparing their resolved settings, and the effort of tuning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import show
from ..core.progress import duration
from ..core.report.html import Table
from ..core.yaml_files import flatten
from .results import Arm, SuiteResult, TaskResult, Trial, TuningRecord
from .score_text import listed, percent, pretraining_time, signed, validated_on

ABSENT = "none"
"""The value of a setting that an arm doesn't have."""


LIKE_FOR_ALL = (
    "Every arm gets the same learning rates to try at every label count, and more beyond an end that does best."
)
LONGER = "Then it is trained for two and four times the steps, and for more as long as that helps."
TESTED_LAST = "The test images are read once for each compared run, after everything is chosen."
OWN_ARCHITECTURES = (
    "Arms of other architectures get the same labelled images in the same order with the same draws of augmentation, at their "
    "own image size, and with the mean and deviation of their weights; heads of equal width begin alike, and heads of different "
    "widths are drawn by themselves."
)
BY_VALIDATION = (
    "Settings are evaluated on validation images only; in every run the validation score is measured equally often, and the best "
    "weights are used."
)
BY_CROSS_VALIDATION = (
    "Settings are evaluated by cross-validation within the labelled images of each seed, each training once, at its last step; "
    "what is chosen is trained on all of these images for as many steps, and its last weights are used."
)


def fairness_note(result: SuiteResult) -> str:
    """How all arms are tuned alike, in a few sentences."""
    cross, other = (
        [part.name for part in result.parts if bool(part.cross_folds) == wanted] for wanted in (True, False)
    )
    chosen = [BY_VALIDATION] if other else []
    if cross:
        where = f"Of {listed(cross)}: " if other else ""
        chosen.append(where + BY_CROSS_VALIDATION)
    own = [OWN_ARCHITECTURES] if any(arm.network for arm in result.arms) else []
    return " ".join([LIKE_FOR_ALL, LONGER, *chosen, TESTED_LAST, *own])


def settings_table(result: SuiteResult, part: TaskResult) -> Table:
    """The settings of fine-tuning that differ between the arms of a task; learning rates and steps are in the table of trials."""
    arms = [arm for arm in result.arms if arm.name in part.recipes]
    return Table(
        "Settings of fine-tuning that differ between the arms; all others are the same, but for what tuning chooses",
        ("setting", *(arm.label for arm in arms)),
        _differing({arm.name: part.recipes[arm.name] for arm in arms}),
    )


def pretraining_table(result: SuiteResult) -> Table:
    """The settings of pretraining: those that differ where several arms are pretrained, of one arm all."""
    arms = [arm for arm in result.arms if arm.pretraining]
    settings = {arm.name: arm.pretraining for arm in arms}
    (one, several) = ("Settings of pretraining", "Settings of pretraining that differ between the arms")
    return Table(
        several if len(arms) > 1 else one,
        ("setting", *(arm.label for arm in arms)),
        _differing(settings) if len(arms) > 1 else _rows(settings, _keys(settings)),
    )


def effort_table(result: SuiteResult) -> Table:
    """How many settings each arm tried, on each task at each label count."""
    rows = []
    for part in result.parts:
        for tuning in part.tunings:
            arm = next((arm for arm in result.arms if arm.name == tuning.arm), None)
            if arm is not None:
                rows.append((arm.label, part.name, f"{tuning.labels:,}", *_tried(tuning), _pretrainings(arm)))
    return Table(
        "Effort of tuning: settings tried by each compared seed, and trainings that took. Pretraining has one set of settings, "
        "those of the suite; what was tried to find these isn't known here",
        ("arm", "task", "labels", "settings a seed", "trainings", "rates", "steps", "settings of pretraining"),
        tuple(rows),
    )


def effort_seconds_table(result: SuiteResult) -> Table:
    """The computing time of each arm's pretraining, trials, and compared trainings."""
    rows = []
    for arm in result.arms:
        cells = [cell for part in result.parts for cell in part.cells if cell.arm == arm.name]
        tuning = sum(part.tuning_seconds.get(arm.name, 0.0) for part in result.parts)
        rows.append(
            (
                arm.label,
                pretraining_time(arm),
                duration(tuning),
                duration(sum(cell.seconds for cell in cells)),
            )
        )
    return Table(
        "Computing time on this machine, all seeds and tasks together, runs side by side counted each",
        ("arm", "pretraining", "trainings to tune", "trainings compared"),
        tuple(rows),
    )


def _tried(tuning: TuningRecord) -> tuple[str, str, str, str]:
    """Settings a seed, trainings, rates and steps of what was tried."""
    found = tuning.trials
    by_seed: dict[int, set[tuple[float, int, str]]] = {}
    for trial in found:
        by_seed.setdefault(trial.seed, set()).add((trial.rate, trial.steps, trial.variant))
    counts = [len(settings) for settings in by_seed.values()]
    trained = [trial for trial in found if not trial.variant]
    rates, steps = {trial.rate for trial in trained}, {trial.steps for trial in trained}
    return (
        _span(counts, "{:,}"),
        f"{tuning.runs or len(found):,}",
        _span(rates, "{:g}") if rates else ABSENT,
        _span(steps, "{:,}") if steps else ABSENT,
    )


def _span(values: Iterable[float], form: str) -> str:
    ordered = sorted(values)
    if not ordered:
        return ABSENT
    ends = (form.format(ordered[0]), form.format(ordered[-1]))
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _pretrainings(arm: Arm) -> str:
    return "1" if arm.pretraining else ABSENT


def _keys(settings: Mapping[str, Mapping[str, object]]) -> list[str]:
    """The keys of all arms, each once, in their order."""
    return list(dict.fromkeys(key for own in settings.values() for key, _ in flatten(own)))


def _differing(settings: Mapping[str, Mapping[str, object]]) -> tuple[tuple[str, ...], ...]:
    """Rows of the settings that two arms have different values of."""
    return tuple(row for row in _rows(settings, _keys(settings)) if len(set(row[1:])) > 1)


def _rows(settings: Mapping[str, Mapping[str, object]], keys: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    flat: list[dict[str, Any]] = [dict(flatten(own)) for own in settings.values()]
    return tuple((key, *(show(own[key]) if key in own else ABSENT for own in flat)) for key in keys)


def tuning_table(result: SuiteResult, part: TaskResult) -> Table:
    """What each arm tried at each label count: how often the seeds chose it, and its mean validation score."""
    rows = []
    for tuning in part.tunings:
        tried: dict[tuple[int, float, str], list[Trial]] = {}
        for trial in tuning.trials:
            tried.setdefault((trial.steps, trial.rate, trial.variant), []).append(trial)
        for (steps, rate, variant), trials in sorted(tried.items()):
            rows.append(
                (
                    result.label(tuning.arm),
                    f"{tuning.labels:,}",
                    f"{steps:,}" if steps else "none",
                    variant or f"{rate:g}",
                    percent(sum(trial.val for trial in trials) / len(trials)),
                    str(len(trials)),
                    str(sum(trial.chosen for trial in trials)),
                )
            )
    return Table(
        f"What was tried, with its mean {part.figure} in % {validated_on(part)} (0.00 where it "
        "diverged), the seeds that tried it, and those that chose it",
        ("arm", "labels", "steps", "rate", _score_word(part), "seeds", "chose it"),
        tuple(rows),
    )


def _score_word(part: TaskResult) -> str:
    return "accuracy" if part.scores.is_accuracy else "score"


def convergence_table(result: SuiteResult, part: TaskResult) -> Table:
    """What more steps bring each arm on validation, and what they bring at most."""
    rows = tuple(
        (
            result.label(check.arm),
            f"{check.labels:,}",
            f"{check.steps:,} to {check.longest:,}",
            percent(sum(check.val) / len(check.val)),
            percent(sum(check.val_longer) / len(check.val_longer)),
            signed(check.gain),
            "unknown" if math.isinf(check.limit) else signed(check.limit),
            str(len(check.seeds)),
            "yes" if check.settled else "no",
        )
        for check in part.checks
    )
    return Table(
        f"What more steps bring: {part.figure} in % {validated_on(part)}, mean over seeds; "
        "gain, and the most that it is (one-sided 95 %), in points; settled: more steps did no better",
        ("arm", "labels", "steps", _score_word(part), "with more steps", "gain", "at most", "seeds", "settled"),
        rows,
    )
