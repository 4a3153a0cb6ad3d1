"""The charts of a suite's report: inline SVG, each with a description in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from ..core.report.charts import COLOURS, DASHES, MARKERS, inline_svg, new_chart
from .analysis import Comparison, Comparisons
from .results import Arm, SuiteResult, TaskResult
from .stats import mean_interval


@dataclass(frozen=True)
class Chart:
    """A chart, its caption, and a description for those who don't see it."""

    caption: str
    drawing: Markup
    words: str


def charts(compared: Comparisons, part: TaskResult) -> list[Chart]:
    """The charts of a task, as far as there are runs."""
    result = compared.result
    if not part.cells:
        return []
    found = []
    if not part.short:
        found += _forest(compared, part)
        if result.axis and any(arm.x is not None for arm in result.arms):
            found += [_over_axis(result, part, labels) for labels in part.label_counts]
        else:
            found.append(_over_labels(result, part))
    trained = [labels for labels in part.label_counts if any(cell.labels == labels for cell in part.cells)]
    return [*found, *(_curves(result, part, labels) for labels in trained)]


def _forest(compared: Comparisons, part: TaskResult) -> list[Chart]:
    """The differences from the baseline with their intervals, a row each."""
    result = compared.result
    shown = [one for one in compared.of(part) if one.difference is not None and one.difference.known]
    if not shown:
        return []
    figure, axes = new_chart(height=1.3 + 0.42 * len(shown))
    for row, one in enumerate(shown):
        number = result.arms.index(one.arm)
        mean, low, high = _points(one)
        axes.errorbar(
            [mean],
            [-row],
            xerr=[[mean - low], [high - mean]],
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=4,
        )
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.set_yticks([-row for row in range(len(shown))], [_row_name(one, part) for one in shown])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.set_ylim(-len(shown) + 0.4, 0.6)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", alpha=0.25)
    # The arms' names leave little width below the axis itself.
    axes.set_xlabel(f"points of {part.figure} more than the baseline", loc="right")
    caption = (
        f"Differences from the arm without pretraining that validates best: mean and 95 % interval over the seeds and "
        f"{part.counts['test']:,} test images, in points of {part.figure}"
    )
    words = "; ".join("{}: {:+.2f} ({:+.2f} to {:+.2f})".format(_row_name(one, part), *_points(one)) for one in shown)
    return [Chart(caption, inline_svg(figure, f"forest-{part.name}"), words)]


def _points(one: Comparison) -> tuple[float, float, float]:
    difference = one.difference
    if difference is None:
        raise ValueError("a comparison without a difference")
    return 100 * difference.mean, 100 * difference.low, 100 * difference.high


def _row_name(one: Comparison, part: TaskResult) -> str:
    name = _short(one.arm.label)
    return f"{name}, {one.labels:,} labels" if len(part.label_counts) > 1 else name


def _short(label: str, most: int = 34) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _over_labels(result: SuiteResult, part: TaskResult) -> Chart:
    figure, axes = new_chart()
    words = []
    for number, arm in enumerate(result.arms):
        found = _means(part, [(labels, arm.name, labels) for labels in part.label_counts])
        if not found:
            continue
        aside = 1.05 ** (number - (len(result.arms) - 1) / 2)
        _bars(axes, [(labels * aside, mean, half) for labels, mean, half in found], arm, number)
        words.append(f"{arm.label}: " + ", ".join(f"{mean:.2f} at {labels:,.0f}" for labels, mean, _ in found))
    axes.set_xscale("log")
    axes.set_xlim(min(part.label_counts) / 1.6, max(part.label_counts) * 1.6)
    axes.set_xticks(part.label_counts, [f"{labels:,}" for labels in part.label_counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled training images")
    axes.set_ylabel(f"{part.figure}, % ({part.counts['test']:,} test images)")
    _within_percent(axes)
    caption = (
        f"Test {part.figure} over the number of labelled images: mean over the seeds, and its 95 % interval. Each arm's own "
        "intervals are usually wider than that of the paired difference, so that they may overlap where it is resolved"
    )
    return Chart(caption, inline_svg(figure, f"labels-{part.name}"), "; ".join(words))


def _over_axis(result: SuiteResult, part: TaskResult, labels: int) -> Chart:
    """The arms along what they differ in, as the paper's Figure 5 has them; those without a place as lines across."""
    figure, axes = new_chart()
    placed = sorted((arm for arm in result.arms if arm.x is not None), key=lambda arm: arm.x or 0.0)
    found = _means(part, [(arm.x or 0.0, arm.name, labels) for arm in placed])
    words = [f"{mean:.2f} at {x:g}" for x, mean, _ in found]
    axes.errorbar(
        [x for x, _, _ in found],
        [mean for _, mean, _ in found],
        yerr=[half for _, _, half in found],
        color=COLOURS[0],
        marker=MARKERS[0],
        capsize=4,
        label="mean over the seeds",
    )
    for number, arm in enumerate(arm for arm in result.arms if arm.x is None):
        for _, mean, _ in _means(part, [(0.0, arm.name, labels)]):
            axes.axhline(mean, color=COLOURS[(number + 1) % len(COLOURS)], linestyle="--", label=arm.label)
            words.append(f"{arm.label} {mean:.2f}")
    axes.set_xlabel(result.axis or "")
    axes.xaxis.label.set_parse_math(False)
    axes.set_ylabel(f"{part.figure}, % ({part.counts['test']:,} test images)")
    _within_percent(axes)
    caption = (
        f"Test {part.figure} with {labels:,} labels over {result.axis}: mean over the seeds, and its 95 % interval"
    )
    return Chart(caption, inline_svg(figure, f"axis-{part.name}-{labels}"), "; ".join(words))


def _means(part: TaskResult, places: Sequence[tuple[float, str, int]]) -> list[tuple[float, float, float]]:
    """(x, mean, half of its interval or 0) in percent, of (x, arm, labels) where there are runs."""
    found = []
    for x, arm, labels in places:
        if cells := part.by_seed(arm, labels):
            mean, half, _ = mean_interval([part.score(cell) for cell in cells.values()])
            found.append((x, 100 * mean, 0.0 if math.isnan(half) else 100 * half))
    return found


def _within_percent(axes: Axes) -> None:
    """End the axis of a score at 0 and 100 %, with a little room for markers: intervals reach further, scores can't."""
    low, high = axes.get_ylim()
    bottom, top = max(low, 0.0), min(high, 100.0)
    room = 0.03 * (top - bottom)
    axes.set_ylim(max(low, bottom - room), min(high, top + room))


def _bars(axes: Axes, found: Sequence[tuple[float, float, float]], arm: Arm, number: int) -> None:
    axes.errorbar(
        [x for x, _, _ in found],
        [mean for _, mean, _ in found],
        yerr=[half for _, _, half in found],
        label=arm.label,
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        linestyle=DASHES[number % len(DASHES)],
        capsize=4,
    )


def _curves(result: SuiteResult, part: TaskResult, labels: int) -> Chart:
    figure, axes = new_chart()
    words = []
    for number, arm in enumerate(result.arms):
        readings: dict[int, list[float]] = {}
        for cell in part.by_seed(arm.name, labels).values():
            for step, value in zip(cell.curve.steps, cell.curve.val, strict=True):
                readings.setdefault(step, []).append(100 * value)
        if not readings:
            continue
        steps = sorted(readings)
        means = [sum(readings[step]) / len(readings[step]) for step in steps]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(
            steps,
            means,
            label=arm.label,
            color=colour,
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linestyle=DASHES[number % len(DASHES)],
        )
        low, high = ([extreme(readings[step]) for step in steps] for extreme in (min, max))
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
        words.append(f"{arm.label} from {means[0]:.1f} at step {steps[0]:,} to {means[-1]:.1f} at step {steps[-1]:,}")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.set_xlabel("steps of training")
    axes.set_ylabel(f"{part.figure}, % ({part.counts['validation']:,} validation images)")
    _within_percent(axes)
    caption = f"Validation {part.figure} while training on {labels:,} labels: mean and range over the seeds"
    return Chart(caption, inline_svg(figure, f"curves-{part.name}-{labels}"), "; ".join(words))
