"""The report of a suite: one self-contained HTML page, Markdown, and a CSV of every run."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path

from markupsafe import Markup
from matplotlib.ticker import LogLocator

from ..core.files import atomic_write_text
from ..core.page import COLOURS, DASHES, MARKERS, MINUS, Table, chart, data_url, plain, render, svg
from ..core.tracking import duration
from .results import Arm, Cell, ConvergenceCheck, SuiteResult
from .stats import (
    POWER,
    SMALLEST_GAIN,
    Difference,
    Verdict,
    crossed_difference,
    holm,
    labels_needed,
    mean_interval,
    paired_difference,
    units_needed,
)

ALPHA = 0.05
"""Chance of any false verdict among a report's comparisons with the baseline, where no arm has an effect."""

FAIRNESS = (
    "Every arm gets the same learning rates to try at every label count, judged on validation images only, "
    "at the steps that its tuning begins with. Then its steps are doubled for as long as that raises its "
    "validation accuracy beyond the noise. In every run validation accuracy is measured equally often, and "
    "the best weights are kept. The test images are read once for each compared run, after everything is "
    "chosen."
)


@dataclass(frozen=True)
class Report:
    """The files of a report, and its verdicts in words, the first of them the answer to the suite's title."""

    html: Path
    markdown: Path
    csv: Path
    verdicts: tuple[str, ...]


def write_report(result: SuiteResult, out: Path) -> Report:
    """Write report.html, report.md and results.csv into ``out``, a folder that is there.

    Equal results give equal bytes. No table depends on timings but that of the section on time.
    """
    verdicts = tuple(_verdicts(result))
    report = Report(out / "report.html", out / "report.md", out / "results.csv", verdicts)
    atomic_write_text(report.csv, _csv(result.cells))
    atomic_write_text(report.markdown, _markdown(result, verdicts))
    atomic_write_text(report.html, _html(result, verdicts))
    return report


def _html(result: SuiteResult, verdicts: Sequence[str]) -> str:
    return render(
        Path(__file__).with_name("report.html.j2"),
        result=result,
        title=_title(result),
        verdicts=verdicts,
        warnings=_warnings(result),
        covers=_what_the_intervals_cover(result),
        tables=_filled(_accuracy_table(result), _difference_table(result), _savings_table(result)),
        charts=_charts(result),
        fairness=FAIRNESS,
        checks=_filled(_tuning_table(result), _convergence_table(result)),
        picture=_reconstructions(result.reconstructions),
        hours=_hours(result),
        spent=duration(result.seconds_total),
    )


def _markdown(result: SuiteResult, verdicts: Sequence[str]) -> str:
    warnings = _warnings(result)
    sections = [
        f"# {plain(_title(result))}",
        _bullets(verdicts),
        _what_the_intervals_cover(result),
        f"**Beware**\n\n{_bullets(warnings)}" if warnings else "",
        _bullets([f"{arm.label}: {arm.note}." for arm in result.arms]),
        "## Results",
        *(
            table.markdown()
            for table in _filled(_accuracy_table(result), _difference_table(result), _savings_table(result))
        ),
        "Charts and pictures are in [report.html](report.html), every run in [results.csv](results.csv).",
        "## Fairness",
        FAIRNESS,
        *(table.markdown() for table in _filled(_tuning_table(result), _convergence_table(result))),
        _bullets([*(f"{name}: {count:,} images" for name, count in result.counts.items()), *result.guards]),
        "## How it was run",
        _bullets([*(f"{name} {version}" for name, version in result.versions.items()), result.machine]),
        f"```yaml\n{result.config_yaml.rstrip()}\n```",
        "## Time",
        _hours(result).markdown(),
        f"All runs together, tuning and checks included: {duration(result.seconds_total)}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _filled(*tables: Table) -> list[Table]:
    """The tables that have rows: a partial result has no trials, checks or pairs yet."""
    return [table for table in tables if table.rows]


def _csv(cells: Sequence[Cell]) -> str:
    scores = ("val_top1", "test_top1", "test_top5", "test_balanced")
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(
        ["arm", "labels", "seed", "learning_rate", "steps", *(f"{score}_percent" for score in scores), "run"]
    )
    for cell in cells:
        shares = (cell.val_accuracy, cell.test_top1, cell.test_top5, cell.test_balanced)
        percents = ["" if math.isnan(share) else f"{100 * share:.4f}" for share in shares]
        writer.writerow([cell.arm, cell.labels, cell.seed, f"{cell.lr:g}", cell.steps, *percents, cell.key])
    return table.getvalue()


def _title(result: SuiteResult) -> str:
    return f"{result.title} (partial result)" if result.missing else result.title


def _verdicts(result: SuiteResult) -> Iterator[str]:
    """One sentence for each arm against the baseline, at each label count."""
    baseline, others = _label(result, result.baseline), _rivals(result)
    if not any(cell.arm == result.baseline for cell in result.cells):
        yield f"Nothing can be said yet: there are no runs of {baseline}, which the others are compared with."
        return
    if not others:
        yield f"Nothing is compared: {baseline} is the only arm."
    p_values = _adjusted(result)
    for labels in result.label_counts:
        for arm in others:
            difference = _difference(result, arm.name, result.baseline, labels)
            if difference is None:
                yield f"At {labels:,} labels, runs are missing to compare {arm.label} with {baseline}."
            else:
                sentence = _sentence(result, arm, labels, difference, p_values[_comparison(arm.name, labels)])
                yield f"At {labels:,} labels, {sentence}{_reservation(result, arm, labels)}"


def _sentence(result: SuiteResult, arm: Arm, labels: int, difference: Difference, p: float) -> str:
    points = f"{_signed(difference.mean)} points of test accuracy compared with {_label(result, result.baseline)}"
    unresolved = f"whether {arm.label} helps is not resolved: {points}"
    images = f"{result.counts['test']:,} test images"
    if difference.units == 1:
        return f"{unresolved} (1 seed, {images}). One seed gives no interval; add more."
    units = _units(result, arm.name, labels, difference)
    if not difference.known:
        return (
            f"{unresolved} ({units}, {images}). Every seed gave the same difference, which says nothing of its spread, "
            "so there is no interval; add more seeds."
        )
    numbers = f"{points} ({_confidence(difference)} interval {_interval(difference)}; {_p(p)}; {units}, {images})"
    verdict = _verdict(difference, p)
    if verdict != "not resolved":
        return f"{arm.label} {verdict}: {numbers}."
    counted = (
        " The interval by itself excludes 0, but several comparisons were made."
        if difference.verdict != verdict
        else ""
    )
    return f"whether {arm.label} helps is not resolved: {numbers}.{counted} {_forecast(difference)}"


def _units(result: SuiteResult, arm: str, labels: int, difference: Difference) -> str:
    """What the differences are over, in words."""
    seeds = len(_by_seed(result, arm, labels).keys() & _by_seed(result, result.baseline, labels).keys())
    return f"{seeds} paired seeds" + (f" on {difference.units} encoders" if difference.units < seeds else "")


def _comparison(arm: str, labels: int) -> str:
    return f"{arm} at {labels}"


def _adjusted(result: SuiteResult) -> dict[str, float]:
    """The p-value of every comparison with the baseline, adjusted for there being several (Holm)."""
    found = {
        _comparison(arm.name, labels): difference.p
        for arm, labels in product(_rivals(result), result.label_counts)
        if (difference := _difference(result, arm.name, result.baseline, labels)) is not None
    }
    return holm(found)


def _verdict(difference: Difference, p: float) -> Verdict:
    """What is said of a difference whose adjusted p-value this is."""
    return difference.verdict if p <= ALPHA else "not resolved"


def _p(p: float) -> str:
    return "adjusted p below 0.001" if p < 0.001 else f"adjusted p = {p:.2g}"


def _reservation(result: SuiteResult, arm: Arm, labels: int) -> str:
    """What takes from a verdict: that one of its two arms could still be trained on."""
    unfinished = [
        _label(result, check.arm)
        for check in result.checks
        if check.labels == labels and check.arm in (arm.name, result.baseline) and not check.converged
    ]
    return f" Not final: more steps still improve {' and '.join(unfinished)}." if unfinished else ""


def _forecast(difference: Difference) -> str:
    needed = units_needed(difference)
    if needed is None:
        return "No realistic number of seeds would resolve so small a difference on these test images."
    more = max(1, needed - difference.units)
    seeds = "1 more seed" if more == 1 else f"{more:,} more seeds"
    return f"About {seeds} would resolve a difference of this size with a chance of {100 * POWER:.0f} %."


def _what_the_intervals_cover(result: SuiteResult) -> str:
    most = max((len(seeds) for seeds in result.seeds.values()), default=0)
    encoders = result.pretraining_seeds
    if encoders < 2:
        luck = "They do not cover the luck of pretraining: each encoder was pretrained once, with 1 seed."
    elif encoders < most:
        luck = (
            f"They also cover the luck of pretraining: {encoders} pretrained encoders an arm are shared by up to {most} "
            "seeds, and count as the independent draws where an arm is pretrained."
        )
    else:
        luck = f"They also cover the luck of pretraining: there are as many encoders as seeds ({encoders})."
    counts = ", ".join(f"{len(seeds)} at {labels:,} labels" for labels, seeds in result.seeds.items())
    items = (
        "and that of the test images, as if they were drawn anew" if all(cell.right for cell in result.cells) else ""
    )
    return (
        f"Intervals are 95 % intervals of the mean over seeds ({counts}), by Student's t on paired "
        "differences. A seed is one draw of the labelled images, one initial head, one order of the images "
        f"and one set of augmentation draws, the same for every arm. The intervals cover that luck {items}. {luck} "
        "Verdicts are corrected for there being several comparisons with the baseline (Holm): where no arm has an effect, "
        f"the chance of any false verdict is at most {100 * ALPHA:.0f} %. The intervals themselves are not corrected."
    ).replace(" .", ".")


def _warnings(result: SuiteResult) -> list[str]:
    warnings = [f"This result is partial. Missing: {'; '.join(result.missing)}."] if result.missing else []
    if result.unspent:
        warnings.append(result.unspent)
    warnings += [f"A run failed, and is not among the results: {failure}" for failure in result.failed]
    warnings += [_still_gaining(result, check) for check in result.checks if not check.converged]
    for labels in result.label_counts:
        trials = {len(tuning.rates) for tuning in result.tunings if tuning.labels == labels}
        if len(trials) > 1:
            warnings.append(f"At {labels:,} labels the arms had different numbers of learning rates to try.")
    for tuning in result.tunings:
        if edge := _edge(tuning.chosen, tuning.rates):
            warnings.append(
                f"{_label(result, tuning.arm)} at {tuning.labels:,} labels did best at the {edge} learning "
                f"rate tried ({tuning.chosen:g}); one beyond it might do better (tuning.rates)."
            )
    return warnings


def _still_gaining(result: SuiteResult, check: ConvergenceCheck) -> str:
    consequence = (
        "As it is the baseline, what the others gain over it is overstated"
        if check.arm == result.baseline
        else "Its result is too low"
    )
    return (
        f"{_label(result, check.arm)} still gains at {check.labels:,} labels: twice the {check.steps:,} "
        f"steps bring {_signed(check.gain)} points of validation accuracy (noise {_percent(check.noise)}). "
        f"{consequence}; raise tuning.max_doublings."
    )


def _edge(chosen: float, rates: Sequence[float]) -> str:
    """Which end of the rates tried the chosen one is, if any."""
    return {min(rates): "lowest", max(rates): "highest"}.get(chosen, "")


def _accuracy_table(result: SuiteResult) -> Table:
    groups = product(result.label_counts, result.arms)
    return Table(
        f"Accuracy in % on the {result.counts['test']:,} test images, mean ± standard deviation over seeds",
        ("arm", "labels", "top-1", "top-5", "balanced", "seeds"),
        tuple(_accuracies(result, arm, labels) for labels, arm in groups),
    )


def _difference_table(result: SuiteResult) -> Table:
    """Every arm against the baseline, then the others against each other."""
    names = [arm.name for arm in _rivals(result)]
    pairs = [*((name, result.baseline) for name in names), *combinations(names, 2)]
    p_values = _adjusted(result)
    return Table(
        f"Paired differences of top-1 accuracy on the {result.counts['test']:,} test images, in points, over "
        "the seeds that both arms have; resolves: the true difference that would be resolved with a chance of "
        f"{100 * POWER:.0f} %; p adjusted for the comparisons with the baseline",
        ("difference", "labels", "mean", "95 % interval", "adjusted p", "resolves", "deviation", "seeds", "verdict"),
        tuple(
            _difference_row(result, first, second, labels, difference, p_values)
            for labels, (first, second) in product(result.label_counts, pairs)
            if (difference := _difference(result, first, second, labels)) is not None
        ),
    )


def _accuracies(result: SuiteResult, arm: Arm, labels: int) -> tuple[str, ...]:
    cells = list(_by_seed(result, arm.name, labels).values())
    if not cells:
        return (arm.label, f"{labels:,}", "missing", "", "", "0")
    scores = (
        [cell.test_top1 for cell in cells],
        [cell.test_top5 for cell in cells],
        [cell.test_balanced for cell in cells],
    )
    return (arm.label, f"{labels:,}", *(_mean_and_sd(values) for values in scores), str(len(cells)))


def _difference_row(
    result: SuiteResult,
    first: str,
    second: str,
    labels: int,
    difference: Difference,
    p_values: Mapping[str, float],
) -> tuple[str, ...]:
    words = {"helps": "higher", "hurts": "lower"}
    primary = second == result.baseline
    p = p_values[_comparison(first, labels)] if primary else difference.p
    verdict = _verdict(difference, p) if primary else words.get(difference.verdict, difference.verdict)
    return (
        f"{_label(result, first)} {MINUS} {_label(result, second)}",
        f"{labels:,}",
        _signed(difference.mean),
        _interval(difference) if difference.known else "none",
        (f"{p:.2g}" if p >= 0.001 else "below 0.001") if primary else "",
        _percent(difference.smallest_resolved) if difference.known else "unknown",
        _percent(difference.sd) if difference.known else "unknown",
        str(difference.units),
        verdict,
    )


def _savings_table(result: SuiteResult) -> Table:
    """How many labels the baseline needs for what each arm reaches."""
    counts = [labels for labels in result.label_counts if _by_seed(result, result.baseline, labels)]
    curve = [_mean_top1(result, result.baseline, labels) for labels in counts]
    rows = []
    for arm in _rivals(result):
        there = [labels for labels in counts if _by_seed(result, arm.name, labels)]
        reached = [_mean_top1(result, arm.name, labels) for labels in there]
        for labels, score, needed in zip(there, reached, labels_needed(counts, reached, curve), strict=True):
            beyond = "more than were tried" if score > max(curve) else "fewer than were tried"
            told = beyond if needed is None else f"{needed:,.0f}"
            rows.append((arm.label, f"{labels:,}", _percent(score), told))
    return Table(
        f"Labels that {_label(result, result.baseline)} needs for the same test accuracy in %, by its means over the seeds; "
        "a line over the logarithm of the labels between those tried",
        ("arm", "labels", "top-1", "labels needed"),
        tuple(rows) if len(counts) > 1 else (),
    )


def _mean_top1(result: SuiteResult, arm: str, labels: int) -> float:
    cells = _by_seed(result, arm, labels).values()
    return sum(cell.test_top1 for cell in cells) / len(cells)


def _tuning_table(result: SuiteResult) -> Table:
    seeds = ", ".join(str(seed) for seed in sorted({tuning.seed for tuning in result.tunings}))
    rows = tuple(
        (
            _label(result, tuning.arm),
            f"{tuning.labels:,}",
            f"{tuning.steps:,}",
            ", ".join(
                f"{rate:g}:\N{NO-BREAK SPACE}{_percent(value)}{' (chosen)' if rate == tuning.chosen else ''}"
                for rate, value in zip(tuning.rates, tuning.val_accuracy, strict=True)
            ),
            str(len(tuning.rates)),
            _edge(tuning.chosen, tuning.rates) or "no",
        )
        for tuning in result.tunings
    )
    return Table(
        f"Learning rates tried, each with its top-1 accuracy in % on the {result.counts['validation']:,} "
        f"validation images, 0.00 where it diverged (seed {seeds}, kept apart from those compared)",
        ("arm", "labels", "steps", "rate: accuracy", "trials", "at the edge"),
        rows,
    )


def _convergence_table(result: SuiteResult) -> Table:
    rows = tuple(
        (
            _label(result, check.arm),
            f"{check.labels:,}",
            f"{check.steps:,}",
            _percent(sum(check.val_accuracy) / len(check.val_accuracy)),
            _percent(sum(check.val_accuracy_doubled) / len(check.val_accuracy_doubled)),
            _signed(check.gain),
            _percent(check.noise),
            str(len(check.seeds)),
            "yes" if check.converged else "no",
        )
        for check in result.checks
    )
    return Table(
        f"What twice the steps bring: top-1 accuracy in % on the {result.counts['validation']:,} validation "
        "images, mean over the check's seeds; gain, and noise (its standard error, at least "
        f"{_percent(SMALLEST_GAIN)}), in points",
        ("arm", "labels", "steps", "accuracy", "at twice the steps", "gain", "noise", "seeds", "enough"),
        rows,
    )


def _hours(result: SuiteResult) -> Table:
    rows = tuple(
        (
            arm.label,
            duration(arm.pretrain_seconds),
            duration(sum(cell.seconds for cell in result.cells if cell.arm == arm.name)),
        )
        for arm in result.arms
    )
    return Table(
        "Computing time on this machine, runs side by side counted each; learning-rate trials and checks "
        "are in the sum below only",
        ("arm", "pretraining", "fine-tuning, all compared runs"),
        rows,
    )


def _charts(result: SuiteResult) -> list[tuple[str, Markup]]:
    """The charts as (caption, inline SVG)."""
    if not result.cells:
        return []
    several = (
        "Top-1 test accuracy over the number of labelled images: mean over the seeds, and its 95 % "
        "interval. Each arm's own intervals are usually wider than that of the paired difference, so that "
        "they may overlap where it is resolved"
    )
    charts = [(several, _by_labels(result))]
    for labels in result.label_counts:
        if any(cell.labels == labels for cell in result.cells):
            what = f"Top-1 validation accuracy while training on {labels:,} labels"
            charts.append((f"{what}: mean and range over the seeds", _curves(result, labels)))
    return charts


def _by_labels(result: SuiteResult) -> Markup:
    figure, axes = chart()
    for number, arm in enumerate(result.arms):
        points = [
            (labels, *mean_interval([cell.test_top1 for cell in cells.values()])[:2])
            for labels in result.label_counts
            if (cells := _by_seed(result, arm.name, labels))
        ]
        if not points:
            continue
        aside = 1.05 ** (number - (len(result.arms) - 1) / 2)
        axes.errorbar(
            [labels * aside for labels, _, _ in points],
            [100 * mean for _, mean, _ in points],
            yerr=[0 if math.isnan(half) else 100 * half for _, _, half in points],
            label=arm.label,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)],
            capsize=4,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(result.label_counts) / 1.6, max(result.label_counts) * 1.6)
    axes.set_xticks(result.label_counts, [f"{labels:,}" for labels in result.label_counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled training images")
    axes.set_ylabel(f"accuracy, % ({result.counts['test']:,} test images)")
    return svg(figure, "labels")


def _curves(result: SuiteResult, labels: int) -> Markup:
    figure, axes = chart()
    for number, arm in enumerate(result.arms):
        readings: dict[int, list[float]] = {}
        for cell in _by_seed(result, arm.name, labels).values():
            for step, accuracy in zip(cell.curve.steps, cell.curve.val_accuracy, strict=True):
                readings.setdefault(step, []).append(100 * accuracy)
        if not readings:
            continue
        steps = sorted(readings)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            steps,
            [sum(readings[step]) / len(readings[step]) for step in steps],
            label=arm.label,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linestyle=DASHES[number % len(DASHES)],
        )
        low, high = ([extreme(readings[step]) for step in steps] for extreme in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("steps of training")
    axes.set_ylabel(f"accuracy, % ({result.counts['validation']:,} validation images)")
    return svg(figure, f"curves{labels}")


def _reconstructions(picture: Path | None) -> str | None:
    if picture is None or not picture.is_file():
        return None
    return data_url(picture.read_bytes(), "png")


def _rivals(result: SuiteResult) -> list[Arm]:
    return [arm for arm in result.arms if arm.name != result.baseline]


def _label(result: SuiteResult, name: str) -> str:
    return next((arm.label for arm in result.arms if arm.name == name), name)


def _by_seed(result: SuiteResult, arm: str, labels: int) -> dict[int, Cell]:
    return {cell.seed: cell for cell in result.cells if cell.arm == arm and cell.labels == labels}


def _difference(result: SuiteResult, arm: str, other: str, labels: int) -> Difference | None:
    """The paired difference of test accuracies over the seeds that both arms have, and over test images where they are known."""
    mine, theirs = _by_seed(result, arm, labels), _by_seed(result, other, labels)
    seeds = sorted(mine.keys() & theirs.keys())
    if not seeds:
        return None
    pairs = [(mine[seed], theirs[seed]) for seed in seeds]
    pretrained = any(found.pretrain_seconds > 0 for found in result.arms if found.name in (arm, other))
    encoders = [cell.encoder for cell, _ in pairs] if pretrained else None
    if not all(cell.right for pair in pairs for cell in pair):
        return paired_difference([one.test_top1 for one, _ in pairs], [two.test_top1 for _, two in pairs], encoders)
    count = result.counts["test"]
    treated, baseline = ([cell.item_scores(count) for cell in cells] for cells in zip(*pairs, strict=True))
    return crossed_difference(treated, baseline, encoders)


def _mean_and_sd(shares: Sequence[float]) -> str:
    mean, _, sd = mean_interval(shares)
    return _percent(mean) if math.isnan(sd) else f"{_percent(mean)} ± {_percent(sd)}"


def _interval(difference: Difference) -> str:
    return f"{_signed(difference.low)} to {_signed(difference.high)}"


def _confidence(difference: Difference) -> str:
    return f"{100 * difference.confidence:g} %"


def _percent(share: float) -> str:
    return "unknown" if math.isnan(share) else f"{100 * share:.2f}"


def _signed(share: float) -> str:
    """A difference in points, with its sign; a small one with as many digits as show that it isn't 0."""
    points = round(100 * share, 10)
    digits = f"{points:+.2f}" if abs(points) >= 0.005 else f"{points:+.1g}"
    return "0.00" if points == 0 else digits.replace("-", MINUS)


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {plain(line)}" for line in lines)
