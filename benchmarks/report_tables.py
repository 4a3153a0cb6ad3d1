"""The tables of a report: scores, differences, labels saved, published figures, tuning and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

from ..core.progress import duration
from ..core.report.html import MINUS, Table
from .analysis import ALPHA, Comparisons
from .label_savings import labels_needed
from .published import read_published
from .results import Arm, SuiteResult, TaskResult, Trial
from .score_text import interval, percent, signed
from .stats import POWER, Difference, mean_interval


def task_tables(found: Comparisons, part: TaskResult) -> list[Table]:
    """The results of a task."""
    result = found.result
    return with_rows(
        _score_table(result, part),
        *([] if part.short else [_difference_table(found, part), _savings_table(result, part)]),
        _published_table(result, part),
    )


def with_rows(*tables: Table) -> list[Table]:
    """The tables that have rows: a partial result has no trials, checks or pairs yet."""
    return [table for table in tables if table.rows]


def _score_table(result: SuiteResult, part: TaskResult) -> Table:
    groups = product(part.label_counts, result.arms)
    shown = [
        (key, name)
        for key, name in part.scores.labels.items()
        if any(cell.test.get(key) is not None for cell in part.cells)
    ]
    rows = tuple(_scores(part, arm, labels, [key for key, _ in shown]) for labels, arm in groups) if shown else ()
    what = "Accuracy" if part.scores.is_accuracy else "Scores"
    return Table(
        f"{what} in % on the {part.counts['test']:,} test images, mean ± standard deviation over seeds",
        ("arm", "labels", *(name for _, name in shown), "seeds"),
        rows,
    )


def _scores(part: TaskResult, arm: Arm, labels: int, keys: Sequence[str]) -> tuple[str, ...]:
    cells = list(part.by_seed(arm.name, labels).values())
    if not cells:
        return (arm.label, f"{labels:,}", "missing", *[""] * (len(keys) - 1), "0")
    columns = [[value for cell in cells if (value := cell.test.get(key)) is not None] for key in keys]
    return (
        arm.label,
        f"{labels:,}",
        *(_mean_and_sd(values) if values else "none" for values in columns),
        str(len(cells)),
    )


def _difference_table(found: Comparisons, part: TaskResult) -> Table:
    """Every arm against the baseline, then the others against each other."""
    result = found.result
    names = [arm.name for arm in result.arms]
    rows = []
    for labels in part.label_counts:
        reference = result.reference(part, labels)
        others = [name for name in names if name != reference]
        for first, second in [*((name, reference) for name in others), *combinations(others, 2)]:
            difference, p = found.between(part, first, second, labels)
            if difference is not None:
                rows.append(_difference_row(result, first, second, labels, difference, p))
    return Table(
        f"Paired differences of {part.figure} on the {part.counts['test']:,} test images, in points, over "
        "the seeds that both arms have; resolves: the true difference that would be resolved with a chance of "
        f"{100 * POWER:.0f} %; p adjusted for the comparisons with the baseline",
        ("difference", "labels", "mean", "95 % interval", "adjusted p", "resolves", "deviation", "seeds", "verdict"),
        tuple(rows),
    )


def _difference_row(
    result: SuiteResult, first: str, second: str, labels: int, difference: Difference, p: float | None
) -> tuple[str, ...]:
    verdicts = {"helps": "higher", "hurts": "lower"}
    if p is None:
        verdict = verdicts.get(difference.verdict, difference.verdict)
    else:
        verdict = difference.verdict if p <= ALPHA else "not resolved"
    return (
        f"{result.label(first)} {MINUS} {result.label(second)}",
        f"{labels:,}",
        signed(difference.mean),
        interval(difference) if difference.known else "none",
        "" if p is None else f"{p:.2g}" if p >= 0.001 else "below 0.001",
        percent(difference.smallest_resolved) if difference.known else "unknown",
        percent(difference.sd) if difference.known else "unknown",
        str(difference.units),
        verdict,
    )


def _savings_table(result: SuiteResult, part: TaskResult) -> Table:
    """How many labels the baseline needs for what each arm reaches."""
    base = result.reference(part, max(part.label_counts))
    counts = [labels for labels in part.label_counts if part.by_seed(base, labels)]
    curve = [part.mean_score(base, labels) for labels in counts]
    rows = []
    for arm in result.rivals:
        there = [labels for labels in counts if part.by_seed(arm.name, labels)]
        reached = [part.mean_score(arm.name, labels) for labels in there]
        for labels, score, needed in zip(there, reached, labels_needed(counts, reached, curve), strict=True):
            beyond = "more than were tried" if score > max(curve) else "fewer than were tried"
            text = beyond if needed is None else f"{needed:,.0f}"
            rows.append((arm.label, f"{labels:,}", percent(score), text))
    return Table(
        f"Labels that {result.label(base)} needs for the same test {part.figure} in %, by its means over the seeds; "
        "a line over the logarithm of the labels between those tried",
        ("arm", "labels", part.scores.label, "labels needed"),
        tuple(rows) if len(counts) > 1 else (),
    )


def _published_table(result: SuiteResult, part: TaskResult) -> Table:
    """Published figures beside ours, where the suite follows their protocol."""
    protocol = read_published().get(result.published.get(part.name, ""))
    header = ("start", "published", "ours", "seeds", "within noise")
    if protocol is None:
        return Table("", header, ())
    rows = []
    for name, value in protocol["rows"].items():
        cells = [cell for cell in part.cells if cell.arm == name and cell.labels == max(part.label_counts)]
        ours = [100 * part.score(cell) for cell in cells]
        if not ours:
            rows.append((name, f"{value:.1f}", "missing", "0", ""))
            continue
        mean, _, sd = mean_interval(ours)
        bar = 2 * math.hypot(protocol["noise"], 0.05, 0.0 if math.isnan(sd) else sd / math.sqrt(len(ours)))
        within = "yes" if abs(mean - value) <= bar else "no"
        rows.append((name, f"{value:.1f}", f"{mean:.2f}", str(len(ours)), within))
    return Table(
        f"Published {protocol['figure']} in % ({protocol['source']}; its noise over seeds: {protocol['noise']:g}) and ours; "
        "within noise: they differ by no more than two standard errors of both and of rounding",
        header,
        tuple(rows),
    )


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
        f"What was tried, with its mean {part.figure} in % on the {part.counts['validation']:,} validation images (0.00 where it "
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
        f"What more steps bring: {part.figure} in % on the {part.counts['validation']:,} validation images, mean over seeds; "
        "gain, and the most that it is (one-sided 95 %), in points; settled: more steps did no better",
        ("arm", "labels", "steps", _score_word(part), "with more steps", "gain", "at most", "seeds", "settled"),
        rows,
    )


def time_table(found: Comparisons) -> Table:
    """Cost beside gain."""
    result, rows = found.result, []
    for arm in result.arms:
        cells = [cell for part in result.parts for cell in part.cells if cell.arm == arm.name]
        gains = [
            f"{signed(one.difference.mean)} on {one.part.name} at {one.labels:,}"
            for one in found.comparisons
            if one.arm.name == arm.name and one.difference is not None and not one.part.short
        ]
        spent = duration(sum(cell.seconds for cell in cells))
        rows.append((arm.label, duration(arm.pretrain_seconds), spent, "; ".join(gains)))
    return Table(
        "Computing time on this machine, runs side by side counted each; learning-rate trials and checks "
        "are in the sum below only. Gain: points more than the arm that it is compared with on test, mean over the seeds",
        ("arm", "pretraining", "fine-tuning, all compared runs", "gain"),
        tuple(rows),
    )


def _mean_and_sd(shares: Sequence[float]) -> str:
    mean, _, sd = mean_interval(shares)
    return percent(mean) if math.isnan(sd) else f"{percent(mean)} ± {percent(sd)}"
