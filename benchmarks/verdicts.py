"""The sentences of a report: verdicts, warnings, and what the intervals cover."""

from __future__ import annotations

from collections.abc import Iterator

from .analysis import ALPHA, Comparison, Comparisons
from .results import AUTO, ConvergenceCheck, SuiteResult, TaskResult
from .score_text import confidence, interval, percent, plan_sentence, signed
from .stats import POWER, Difference
from .task_design import CLASSIFY


def verdict_sentences(found: Comparisons) -> Iterator[str]:
    """One sentence for each arm against the baseline, on each task at each label count."""
    result = found.result
    if not any(
        part.by_seed(result.reference(part, labels), labels) for part in result.parts for labels in part.label_counts
    ):
        yield "Nothing can be said yet: there are no runs of an arm that the others are compared with."
        return
    if not result.rivals:
        yield (
            "Nothing is compared: no arm is pretrained."
            if result.baseline == AUTO
            else "Nothing is compared: there is one arm."
        )
    for part in result.parts:
        if part.short:
            yield from _short_lines(result, part)
            continue
        for one in found.tested(part):
            if one.difference is None or one.p is None:
                other = result.label(result.reference(part, one.labels))
                yield f"{_where(part, one.labels)}, runs are missing to compare {one.arm.label} with {other}."
            else:
                sentence = _sentence(found, one, one.difference, one.p)
                yield f"{_where(part, one.labels)}, {sentence}{_reservation(result, one)}"


def _where(part: TaskResult, labels: int) -> str:
    """The place of a comparison, at the beginning of a sentence."""
    return f"At {labels:,} labels" if part.name == CLASSIFY else f"On {part.name} at {labels:,} labels"


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


def _sentence(found: Comparisons, one: Comparison, difference: Difference, p: float) -> str:
    result, part, arm = found.result, one.part, one.arm
    what = "accuracy" if part.scores.is_accuracy else part.figure
    points = f"{signed(difference.mean)} points of test {what} compared with {result.label(result.reference(part, one.labels))}"
    unresolved = f"whether {arm.label} helps is not resolved: {points}"
    images = f"{part.counts['test']:,} test images"
    if difference.units == 1:
        return f"{unresolved} (1 seed, {images}). One seed gives no interval; add more."
    units = _units(result, one, difference)
    if not difference.known:
        return (
            f"{unresolved} ({units}, {images}). Every seed gave the same difference, which says nothing of its spread, "
            "so there is no interval; add more seeds."
        )
    numbers = f"{points} ({confidence(difference)} interval {interval(difference)}; {_p(p)}; {units}, {images})"
    if one.verdict != "not resolved":
        return f"{arm.label} {one.verdict}: {numbers}."
    counted = ""
    if one.within_margin:
        counted = f" Longer training could make up for it (at most {percent(one.margin)} points)."
    elif difference.verdict != one.verdict:
        counted = " The interval by itself excludes 0, but several comparisons were made."
    plan = found.plan(one)
    planned = "" if plan is None else f" {plan_sentence(plan, difference)}"
    return (
        f"whether {arm.label} helps is not resolved: {numbers}.{counted} {_outlook(difference, found.planned)}{planned}"
    )


def _units(result: SuiteResult, one: Comparison, difference: Difference) -> str:
    """What the differences are over."""
    part, labels = one.part, one.labels
    seeds = len(part.by_seed(one.arm.name, labels).keys() & part.by_seed(result.reference(part, labels), labels).keys())
    return f"{seeds} paired seeds" + (f" on {difference.units} encoders" if difference.units < seeds else "")


def _p(p: float) -> str:
    return "adjusted p below 0.001" if p < 0.001 else f"adjusted p = {p:.2g}"


def _reservation(result: SuiteResult, one: Comparison) -> str:
    """The reservation of a verdict: one of its two arms could still be trained longer."""
    unfinished = [
        result.label(check.arm)
        for check in one.part.checks
        if check.labels == one.labels
        and check.arm in (one.arm.name, result.reference(one.part, one.labels))
        and not check.settled
    ]
    return f" Not final: more steps still improve {' and '.join(unfinished)}." if unfinished else ""


def _outlook(difference: Difference, comparisons: int) -> str:
    """What an open comparison excludes, and what its design would have found; nothing is forecast from the difference itself."""
    return (
        f"The true difference is no larger than {percent(difference.equivalence_limit())} points either way (two one-sided tests "
        f"at 5 %); one of {percent(difference.resolvable(comparisons))} points would be resolved with a chance of "
        f"{100 * POWER:.0f} %."
    )


def interval_coverage(result: SuiteResult, part: TaskResult) -> str:
    """What a task's intervals and verdicts cover, and what they don't."""
    if part.short:
        return "One rate, few steps, and no check whether more steps would help: this shows that it runs, and no more."
    most = max((len(seeds) for seeds in part.seeds.values()), default=0)
    encoders = result.pretraining_seeds
    if encoders < 2:
        pretraining = "They do not cover the variation of pretraining: each encoder was pretrained once, with 1 seed."
    elif encoders < most:
        pretraining = (
            f"They also cover the variation of pretraining: {encoders} pretrained encoders an arm are shared by up to {most} "
            "seeds, and count as the independent draws where an arm is pretrained."
        )
    else:
        pretraining = f"They also cover the variation of pretraining: there are as many encoders as seeds ({encoders})."
    counts = ", ".join(f"{len(seeds)} at {labels:,} labels" for labels, seeds in part.seeds.items())
    drawn = "test images, as if they were drawn again"
    if part.scores.interval_note:
        drawn += f" ({part.scores.interval_note})"
    items = f" and that of the {drawn}" if all(cell.items for cell in part.cells) else ""
    return (
        f"Intervals are 95 % intervals of the mean over seeds ({counts}), by Student's t on paired "
        "differences. A seed is one draw of the labelled images, one initial head, one order of the images "
        f"and one set of augmentation draws, the same for every arm. The intervals cover that variation{items}. {pretraining} "
        "Verdicts are corrected for there being several comparisons with the baseline, those of all tasks (Holm): where no arm "
        f"has an effect, the chance of any false verdict is at most {100 * ALPHA:.0f} %. The intervals themselves are not "
        "corrected."
    )


def warnings_of(result: SuiteResult) -> list[str]:
    """What a reader must know of a result first: missing and failed runs, arms that still gain."""
    warnings = [f"This result is partial. Missing: {'; '.join(result.missing)}."] if result.missing else []
    if result.unspent:
        warnings.append(result.unspent)
    warnings += [f"A run failed, and is not among the results: {failure}" for failure in result.failed]
    for part in result.parts:
        warnings += _warnings_of(result, part)
    return warnings


def _warnings_of(result: SuiteResult, part: TaskResult) -> Iterator[str]:
    """What is unequal or unfinished about the arms of a task."""
    task = "" if part.name == CLASSIFY else f" on {part.name}"
    for check in part.checks:
        if not check.settled:
            yield _still_gaining(result, part, check, task)
    for tuning in part.tunings:
        if tuning.edge:
            yield (
                f"{result.label(tuning.arm)}{task} at {tuning.labels:,} labels did best at the {tuning.edge} learning rate "
                "tried, in the mean over seeds; one beyond it might do better (tuning.max_extensions)."
            )


def _still_gaining(result: SuiteResult, part: TaskResult, check: ConvergenceCheck, task: str) -> str:
    consequence = (
        "As it is the baseline, what the others gain over it is overstated"
        if check.arm == result.reference(part, check.labels)
        else "Its result is too low"
    )
    return (
        f"{result.label(check.arm)} may still gain{task} at {check.labels:,} labels: {check.longest:,} steps in place of "
        f"{check.steps:,} bring {signed(check.gain)} points on validation, at most {signed(check.limit)}. "
        f"{consequence}; raise tuning.max_doublings."
    )
