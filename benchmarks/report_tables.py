"""The result tables of a report: scores, differences, plans, labels saved, published figures, what intervals cover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

from ..core.report.html import MINUS, Table
from .across_tasks import Aggregate
from .analysis import ALPHA, Comparison, Comparisons, LabelSaving
from .power import UnitPlan, plan_units
from .published import read_published
from .resampling import sign_flip_p
from .results import AUTO, Arm, SuiteResult, TaskResult
from .score_text import interval, percent, signed
from .stats import POWER, Difference, mean_interval, paired_difference
from .verdicts import is_unbalanced

CLASS_MEAN = "balanced"
"""The key of the accuracy that is a mean over classes."""
DIFFERENCE_COLUMNS = (
    *("difference", "labels", "mean", "95 % interval", "p", "sign flips", "at most", "resolves", "deviation", "units"),
    "verdict",
)
EFFECTS = (0.01, 0.02, 0.05)
"""True differences that a plan is made for, shares."""


def task_tables(found: Comparisons, part: TaskResult) -> list[Table]:
    """The results of a task."""
    result = found.result
    compared = [
        _difference_table(found, part),
        _class_mean_table(found, part),
        _plan_table(found, part),
        _savings_table(found, part),
    ]
    return with_rows(_score_table(result, part), *([] if part.short else compared), _published_table(result, part))


def with_rows(*tables: Table) -> list[Table]:
    """The tables that have rows: a partial result has no trials, checks or pairs yet."""
    return [table for table in tables if table.rows]


def _score_table(result: SuiteResult, part: TaskResult) -> Table:
    groups = product(part.label_counts, result.arms)
    redundant = (CLASS_MEAN,) if part.class_counts and not is_unbalanced(part) else ()
    shown = [
        (key, name)
        for key, name in part.scores.labels.items()
        if key not in redundant and any(cell.test.get(key) is not None for cell in part.cells)
    ]
    rows = tuple(_scores(part, arm, labels, [key for key, _ in shown]) for labels, arm in groups) if shown else ()
    what = "Accuracy" if part.scores.is_accuracy else "Scores"
    return Table(
        f"{what} in % on the {part.counts['test']:,} test images, mean ± standard deviation over seeds",
        ("arm", "labels", *(name for _, name in shown), "seeds"),
        rows,
    )


def _scores(part: TaskResult, arm: Arm, labels: int, keys: Sequence[str]) -> tuple[str, ...]:
    cells = part.cells_of(arm.name, labels)
    if not cells:
        return (arm.label, f"{labels:,}", "missing", *[""] * (len(keys) - 1), "0")
    columns = [[value for cell in cells if (value := cell.test.get(key)) is not None] for key in keys]
    return (
        arm.label,
        f"{labels:,}",
        *(_mean_and_sd(values) if values else "none" for values in columns),
        str(len({cell.seed for cell in cells})),
    )


def _difference_table(found: Comparisons, part: TaskResult) -> Table:
    """Every arm against the reference, then the pretrained arms against each other, of which no verdict was planned."""
    rows = []
    for labels in part.label_counts:
        here = [one for one in found.of(part) if one.labels == labels]
        rows += [_compared_row(found, one, one.difference) for one in here if one.difference is not None]
        names = [one.arm.name for one in here if one.arm.pretrained]
        for first, second in combinations(names, 2):
            difference, _ = found.between(part, first, second, labels)
            if difference is not None:
                rows.append(_difference_row(found, first, second, labels, difference, "", ""))
    return Table(
        f"Paired differences of {part.figure} on the {part.counts['test']:,} test images, in points, over the seeds that both "
        f"arms have. p is adjusted for {found.planned} planned comparisons; sign flips: p that doesn't take luck for normal; at "
        "most: no true difference is larger (95 %); resolves: one that would be resolved with a chance of "
        f"{100 * POWER:.0f} %. Rows without a verdict were not planned as comparisons",
        DIFFERENCE_COLUMNS,
        tuple(rows),
    )


def _compared_row(found: Comparisons, one: Comparison, difference: Difference) -> tuple[str, ...]:
    p = "" if one.p is None else f"{one.p:.2g}" if one.p >= 0.001 else "below 0.001"
    verdict = one.verdict if one.tested else "upper bound" if one.arm.upper_bound else ""
    return _difference_row(found, one.arm.name, one.reference, one.labels, difference, p, verdict)


def _difference_row(
    found: Comparisons, first: str, second: str, labels: int, difference: Difference, p: str, verdict: str
) -> tuple[str, ...]:
    result, known = found.result, difference.known
    flips = sign_flip_p(difference)
    return (
        f"{result.label(first)} {MINUS} {result.label(second)}",
        f"{labels:,}",
        signed(difference.mean),
        interval(difference) if known else "none",
        p,
        f"{flips:.2g}" if flips >= 0.001 else "below 0.001",
        percent(difference.equivalence_limit(ALPHA)) if known else "unknown",
        percent(difference.resolvable(max(1, found.planned))) if known else "unknown",
        percent(difference.sd) if known else "unknown",
        f"{difference.units} {difference.unit}{'' if difference.units == 1 else 's'}",
        verdict,
    )


def _class_mean_table(found: Comparisons, part: TaskResult) -> Table:
    """The differences of accuracy as a mean over classes, where these are unequal; over the seeds alone."""
    rows = []
    for one in found.of(part) if is_unbalanced(part) else ():
        cells = [part.by_seed(name, one.labels) for name in (one.arm.name, one.reference)]
        seeds = sorted(cells[0].keys() & cells[1].keys())
        values = [[cells[side][seed].test.get(CLASS_MEAN) for seed in seeds] for side in (0, 1)]
        ours, theirs = ([value for value in side if value is not None] for side in values)
        if not ours or len(ours) != len(theirs):
            continue
        difference = paired_difference(ours, theirs, [cells[0][seed].encoder for seed in seeds])
        name = f"{one.arm.label} {MINUS} {found.result.label(one.reference)}"
        ends = interval(difference) if difference.known else "none"
        rows.append((name, f"{one.labels:,}", signed(difference.mean), ends, str(len(seeds))))
    return Table(
        "Paired differences of the accuracy as a mean over classes, in points: every class counts alike, the rarest too. The "
        "intervals are over seeds and encoders, for these test images; no verdict goes by them",
        ("difference", "labels", "mean", "95 % interval", "seeds"),
        tuple(rows),
    )


def _plan_table(found: Comparisons, part: TaskResult) -> Table:
    """How many units resolve true differences of some sizes."""
    rows, given = [], found.result.effect
    effects = sorted({*EFFECTS, *(() if given is None else (given / 100,))})
    for one in found.tested(part):
        difference = one.difference
        if difference is None or not difference.known:
            continue
        now = f"{difference.units} {difference.unit}s"
        plans = [_plan_text(plan_units(difference, effect, found.planned)) for effect in effects]
        rows.append((one.arm.label, f"{one.labels:,}", now, *plans))
    return Table(
        "How many encoders or seeds it takes to resolve a true difference, with a chance of "
        f"{100 * POWER:.0f} % at the level adjusted for {found.planned} comparisons: as estimated, and the range by what is "
        "known of the spread. Choose the difference that matters to you, not the one that was measured",
        ("arm", "labels", "now", *(f"{100 * effect:g} point{'' if effect == 0.01 else 's'}" for effect in effects)),
        tuple(rows),
    )


def _plan_text(plan: UnitPlan | None) -> str:
    if plan is None:
        return "unknown"
    if plan.likely is None:
        return f"none: too few {' and '.join(plan.obstacles)}" if plan.obstacles else "none up to 1,000"
    ends = [f"{count:,}" if count is not None else "over 1,000" for count in (plan.fewest, plan.most)]
    return f"{plan.likely:,} {plan.unit}s ({ends[0]} to {ends[1]})"


def _savings_table(found: Comparisons, part: TaskResult) -> Table:
    """How many labels the reference needs for what each arm reaches."""
    rows = tuple(
        (one.arm.label, f"{one.labels:,}", percent(one.score), *_savings_text(one)) for one in found.label_savings(part)
    )
    best = (
        "the best arm without pretraining"
        if found.result.baseline == AUTO
        else found.result.label(found.result.baseline)
    )
    return Table(
        f"Labels that {best} needs for the same test {part.figure} in %, by its means over the seeds; a line over the logarithm "
        "of the labels between those tried. Interval: the numbers of labels that agree with the seeds (95 %)",
        ("arm", "labels", part.scores.label, "labels needed", "interval"),
        rows,
    )


def _savings_text(one: LabelSaving) -> tuple[str, str]:
    needed = one.beyond if one.needed is None else f"{one.needed:,.0f}"
    if one.interval is None:
        return needed, "unknown"
    low, high = one.interval.low, one.interval.high
    ends = (
        "fewer than were tried" if low is None else f"{low:,.0f}",
        "more than were tried" if high is None else f"{high:,.0f}",
    )
    return needed, f"{ends[0]} to {ends[1]}"


def across_tasks_table(found: Comparisons) -> Table:
    """All tasks at once, where there are enough of them."""
    across, result = found.across_tasks(), found.result
    rows = []
    if across is not None:
        for arm in result.arms:
            if arm.name in across.interquartile_means:
                better = across.improvements.get(arm.name)
                rows.append(
                    (
                        arm.label,
                        _aggregate(across.interquartile_means[arm.name]),
                        "" if better is None else _aggregate(better),
                        f"{across.ranks.average[arm.name]:.2f}",
                    )
                )
    difference = (
        ""
        if across is None
        else f"; ranks differ where they are {across.ranks.critical_difference:.2f} apart (Nemenyi)"
    )
    return Table(
        "All tasks at once: interquartile mean of the test scores in %, the chance in % that a run does better than one of the "
        "arm that it is compared with (both with 95 % intervals by the stratified bootstrap, rliable), and the average rank over "
        f"tasks, 1 being the best{difference}",
        ("arm", "interquartile mean", "chance of improvement", "average rank"),
        tuple(rows),
    )


def _aggregate(value: Aggregate) -> str:
    return f"{percent(value.value)} ({percent(value.low)} to {percent(value.high)})"


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


def coverage_table(result: SuiteResult, part: TaskResult) -> Table:
    """What varies at random from one repetition of the comparison to the next, and whether the intervals of a task cover it."""
    seeds = min((len(part.by_seed(arm.name, labels)) for labels in part.label_counts for arm in result.arms), default=0)
    encoders = {cell.encoder for cell in part.cells if cell.encoder >= 0}
    per_seed = bool(part.tunings) and all(tuning.per_seed for tuning in part.tunings)
    items = bool(part.cells) and all(cell.items for cell in part.cells)
    cross = bool(part.cross_folds)
    by = "by cross-validation of its labelled images" if cross else "on validation"
    rows = [
        ("which images are labelled", seeds > 1, "each seed draws its own; all arms get the same draw"),
        ("the first weights of the new head", seeds > 1, "drawn by each seed"),
        ("order and augmentation of the images", seeds > 1, "drawn by each seed"),
        (
            "the choice of learning rate and steps",
            per_seed and seeds > 1,
            f"each seed chooses for itself, {by}" if per_seed else "chosen once for all seeds",
        ),
        ("pretraining of the encoder", len(encoders) > 1, _encoders_text(len(encoders))),
        ("which images are tested with", items, _items_text(part, items)),
        *(
            [("which images validate", seeds > 1, "each seed's own labelled images, in folds of its own")]
            if cross
            else []
        ),
        (f"{'' if cross else 'which images validate, and '}the split", False, "one split for all seeds"),
        ("other images, models and recipes", False, "nothing is said of them"),
    ]
    return Table(
        "What is random, and whether the intervals cover it",
        ("what varies", "covered", "how"),
        tuple((what, "yes" if covered else "no", how) for what, covered, how in rows) if not part.short else (),
    )


def _encoders_text(count: int) -> str:
    if count == 0:
        return "no encoder of these was pretrained"
    return "each arm's encoder was pretrained once" if count == 1 else f"{count} encoders an arm"


def _items_text(part: TaskResult, known: bool) -> str:
    if not known:
        return "scores of single images aren't known: the intervals hold for these images"
    if part.clusters:
        return "as if other patients, videos or flights were drawn: the groups of the images"
    note = part.scores.interval_note
    return "as if others like them were drawn" + (f" ({note})" if note else "")


def _mean_and_sd(shares: Sequence[float]) -> str:
    mean, _, sd = mean_interval(shares)
    return percent(mean) if math.isnan(sd) else f"{percent(mean)} ± {percent(sd)}"
