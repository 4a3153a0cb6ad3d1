"""The sentences of a report: verdicts, warnings, and what the intervals cover."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..core.data.labeled_dataset import LARGEST_DRAW
from ..transfer.tasks import CLASSIFY
from .analysis import ALPHA, Comparison, Comparisons
from .resampling import LEAST_UNITS, sign_flip_p
from .results import AUTO, ConvergenceCheck, SuiteResult, TaskResult
from .score_text import confidence, interval, listed, percent, place, plan_sentence, signed
from .stats import POWER, Difference

UNBALANCED = 1.5
"""Test images of the most frequent class, as a multiple of the rarest, from which accuracy by class is a figure of its own."""

FEW_LABELS = 100
"""Labelled images below which a choice by cross-validation is uncertain: of 100 a share is known within 5 points or so."""


def verdict_sentences(found: Comparisons) -> Iterator[str]:
    """One sentence for each planned comparison, on each task at each label count; short tasks show their scores."""
    result = found.result
    for part in result.parts:
        if part.short:
            yield from _short_lines(result, part)
            continue
        for one in found.of(part):
            if not one.tested:
                continue
            if one.difference is None:
                missing = "an arm without pretraining" if result.baseline == AUTO else result.label(result.baseline)
                against = result.label(one.reference) if one.reference else missing
                yield f"{_where(part, one.labels)}, runs are missing to compare {one.arm.label} with {against}."
            else:
                yield f"{_where(part, one.labels)}, {_sentence(found, one, one.difference)}"


def _where(part: TaskResult, labels: int) -> str:
    """The place of a comparison, at the beginning of a sentence."""
    counted = f"{labels:,} label{'' if labels == 1 else 's'}"
    return f"At {counted}" if part.name == CLASSIFY else f"On {part.name} at {counted}"


def _short_lines(result: SuiteResult, part: TaskResult) -> Iterator[str]:
    """What a short task shows, of which nothing is concluded."""
    for labels in part.label_counts:
        shown = [
            f"{arm.label} {percent(part.mean_score(arm.name, labels))} %"
            for arm in result.arms
            if part.by_seed(arm.name, labels)
        ]
        if shown:
            seeds = len(part.seeds[labels])
            yield (
                f"{_where(part, labels)}, a short run for demonstration only, nothing tuned and nothing concluded: test "
                f"{part.figure} {', '.join(shown)} ({seeds} seed{'' if seeds == 1 else 's'} each, "
                f"{part.counts['test']:,} test images)."
            )


def _sentence(found: Comparisons, one: Comparison, difference: Difference) -> str:
    result, part = found.result, one.part
    what = "accuracy" if part.scores.is_accuracy else part.figure
    points = f"{signed(difference.mean)} points of test {what} compared with {result.label(one.reference)}"
    unresolved = f"whether {one.subject} helps is not resolved: {points}"
    images = f"{part.counts['test']:,} test images"
    if difference.units == 1:
        return f"{unresolved} (1 {difference.unit}, {images}). One {difference.unit} gives no interval; add more."
    units = _units(one, difference)
    if not difference.known:
        return (
            f"{unresolved} ({units}, {images}). Every {difference.unit} gave the same difference, which says nothing of its "
            f"spread, so there is no interval; add more {difference.unit}s."
        )
    numbers = (
        f"{points} ({confidence(difference)} interval {interval(difference)}; {_p(one.p or 0.0)}; {units}, {images})"
    )
    if one.verdict != "not resolved":
        return f"{one.subject} {one.verdict}: {numbers}."
    return (
        f"whether {one.subject} helps is not resolved: {numbers}. {' '.join(_why_unresolved(found, one, difference))}"
    )


def _why_unresolved(found: Comparisons, one: Comparison, difference: Difference) -> Iterator[str]:
    """What stands against a verdict, what is known all the same, and what this design would have resolved."""
    if one.within_margin:
        behind = found.result.label(one.reference) if difference.mean > 0 else one.arm.label
        by = "by how much isn't known" if math.isinf(one.margin) else f"by up to {percent(one.margin)} points"
        yield f"The difference is no luck, but longer training may still improve {behind}, {by}."
    elif difference.verdict != "not resolved":
        yield "The interval by itself excludes 0, but several comparisons were made."
    yield f"Any true difference is at most {percent(difference.equivalence_limit(ALPHA))} points, either way."
    yield (
        f"One of {percent(difference.resolvable(found.planned))} points would have been resolved with a chance of "
        f"{100 * POWER:.0f} %."
    )
    plan = found.plan(one)
    if plan is not None:
        yield plan_sentence(plan, difference)


def _units(one: Comparison, difference: Difference) -> str:
    """What the differences are over."""
    planned = len(one.part.seeds.get(one.labels, ()))
    seeds = planned - len(one.missing)
    of = f"{seeds} of {planned} planned" if one.missing else f"{seeds} paired"
    return f"{of} seeds" + (f" on {difference.units} encoders" if difference.unit == "encoder" else "")


def _p(p: float) -> str:
    return "adjusted p below 0.001" if p < 0.001 else f"adjusted p = {p:.2g}"


def coverage_note(found: Comparisons, part: TaskResult) -> str:
    """How the intervals and verdicts of a task are made."""
    if part.short:
        return "One rate, few steps, and no check whether more steps would help: this shows that it runs, and no more."
    counts = listed([f"{len(seeds)} at {labels:,} labels" for labels, seeds in part.seeds.items()])
    looks = found.result.looks
    read = (
        f" Results may be read at {listed([str(look) for look in looks])} units, as was planned before."
        if looks
        else ""
    )
    return (
        f"Intervals are 95 % intervals of the mean over the units drawn independently: seeds ({counts}), or pretrained encoders "
        "where there are several. They go by Student's t on paired differences and hold for luck that is roughly normal; sign "
        "flips, which don't take it for normal, stand beside them. Verdicts are corrected for all comparisons that were planned "
        f"({found.planned}), finished or not (Holm): where no arm has an effect, the chance of any false verdict is at most "
        f"{100 * ALPHA:.0f} %. The intervals themselves are not corrected.{read}"
    )


def warnings_of(found: Comparisons) -> list[str]:
    """What a reader must know of a result first: missing and failed runs, arms that may still gain, weak figures."""
    result = found.result
    warnings = [f"This result is partial. Missing: {'; '.join(result.missing)}."] if result.missing else []
    if result.unspent:
        warnings.append(result.unspent)
    warnings += [f"A run failed, and is not among the results: {failure}" for failure in result.failed]
    warnings += result.seen
    tested = [one for one in found.comparisons if one.tested]
    finished = [one for one in tested if one.difference is not None]
    if len(finished) < len(tested):
        warnings.append(
            f"{len(finished)} of {len(tested)} planned comparisons have runs; the correction counts all {len(tested)}."
        )
    for one in finished:
        if one.missing:
            planned = len(one.part.seeds.get(one.labels, ()))
            warnings.append(
                f"{one.arm.label}, {place(one.part, one.labels)}: {planned - len(one.missing)} of {planned} planned seeds have "
                f"both runs, and are compared; not seed {listed([str(seed) for seed in one.missing])}."
            )
    for part in result.parts:
        warnings += _warnings_of(found, part)
    return warnings


def _warnings_of(found: Comparisons, part: TaskResult) -> Iterator[str]:
    """What is unequal, unfinished or weak about a task."""
    result = found.result
    task = "" if part.name == CLASSIFY else f" on {part.name}"
    for check in part.checks:
        if not check.settled:
            yield _still_gaining(found, part, check, task)
    for tuning in part.tunings:
        if tuning.edge:
            yield (
                f"{result.label(tuning.arm)}{task} at {tuning.labels:,} labels did best at the {tuning.edge} learning rate "
                "tried, in the mean over seeds; one beyond it might do better (tuning.max_extensions)."
            )
    source = part.counts.get("labelled source", 0)
    for labels in part.label_counts:
        if not part.short and source and labels > LARGEST_DRAW * source:
            yield _large_draw(labels, source, task)
    if is_unbalanced(part):
        most, least = max(part.class_counts), min(part.class_counts)
        yield (
            f"Classes{task} are unequal: {most:,} test images of the most frequent, {least:,} of the rarest. Accuracy goes by "
            "the frequent ones; the mean over classes stands beside it in the tables. Labelled images are drawn evenly over the "
            "classes, as far as there are enough."
        )
    if part.tunings and not part.short and not all(tuning.per_seed for tuning in part.tunings):
        yield f"Learning rates and steps{task} were chosen once for all seeds: the intervals don't cover the luck of that choice."
    few = [labels for labels in part.label_counts if labels < FEW_LABELS]
    if part.cross_folds and few:
        yield (
            f"Settings{task} were chosen by {part.cross_folds}-fold cross-validation of the labelled images alone: of as few as "
            f"{min(few):,} the choice is partly luck, in every arm."
        )
    yield from _skewed(found, part)


def is_unbalanced(part: TaskResult) -> bool:
    """Whether the classes of the test images are so unequal that accuracy and its mean over classes differ."""
    return bool(part.class_counts) and max(part.class_counts) > UNBALANCED * min(part.class_counts)


def _large_draw(labels: int, source: int, task: str) -> str:
    """What follows from label counts near the number of images that they are drawn from."""
    if labels >= source:
        return (
            f"At {labels:,} labels{task} every seed has all the labelled images there are: nothing is known of other labelled "
            "images, and the intervals hold for these."
        )
    return (
        f"At {labels:,} labels{task} each seed draws {100 * labels / source:.0f} % of the {source:,} labelled images there are, "
        "so that seeds share many. The intervals are wider for it; fewer labels, or more labelled images, would say more."
    )


def _skewed(found: Comparisons, part: TaskResult) -> Iterator[str]:
    """Verdicts by Student's t that sign flips of the units don't agree with, where there are enough units for them to."""
    for one in found.of(part):
        if one.verdict == "not resolved" or one.difference is None or one.difference.units < LEAST_UNITS:
            continue
        if (p := sign_flip_p(one.difference)) > ALPHA:
            yield (
                f"{one.arm.label}, {place(part, one.labels)}: {one.verdict} by Student's t, which takes luck for normal; by sign "
                f"flips of its {one.difference.units} {one.difference.unit}s, which don't, p is {p:.2g}. See the single seeds."
            )


def _still_gaining(found: Comparisons, part: TaskResult, check: ConvergenceCheck, task: str) -> str:
    """What an arm may still gain by more steps, and what follows."""
    result = found.result
    consequence = (
        "As the others are compared with it, what they gain over it may be overstated"
        if check.arm == found.result.reference(part, check.labels)
        else "Its result may be too low"
    )
    where = "in cross-validation" if part.cross_folds else "on validation"
    limit = "how much at most isn't known" if math.isinf(check.limit) else f"at most {signed(check.limit)}"
    return (
        f"{result.label(check.arm)} may still gain{task} at {check.labels:,} labels: {check.longest:,} steps in place of "
        f"{check.steps:,} bring {signed(check.gain)} points {where}, {limit}. {consequence}; raise tuning.max_doublings."
    )
