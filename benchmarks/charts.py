"""The charts of a suite's report: inline SVG, each with a description in text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from ..core.report.charts import COLOURS, inline_svg, line_style, name_axes, new_chart
from .results import SuiteResult, TaskResult
from .score_text import at_labels

CLOSEST = 0.09
"""Of the width of a chart: label counts nearer to each other than this are not all named on its axis."""


@dataclass(frozen=True)
class Chart:
    """A chart, its caption, and a description for those who don't see it."""

    caption: str
    drawing: Markup
    words: str


@dataclass(frozen=True)
class DrawnChart:
    """The same before it is HTML: ``name`` is that of the chart within its page."""

    name: str
    caption: str
    figure: Figure
    words: str

    def inline(self) -> Chart:
        """The chart for a page."""
        return Chart(self.caption, inline_svg(self.figure, self.name), self.words)


def score_charts(result: SuiteResult, part: TaskResult) -> list[Chart]:
    """Test scores of every seed over the label counts, or over the suite's axis; none of a short task."""
    return [chart.inline() for chart in draw_scores(result, part)]


def draw_scores(result: SuiteResult, part: TaskResult) -> list[DrawnChart]:
    """The figures of ``score_charts``."""
    if part.short or not part.cells:
        return []
    if result.axis and any(arm.x is not None for arm in result.arms):
        return [_over_axis(result, part, labels) for labels in part.label_counts]
    return [_over_labels(result, part)]


def training_charts(result: SuiteResult, part: TaskResult) -> list[Chart]:
    """Validation scores while training, a chart for each label count with runs; none of cross-validation, which looks once."""
    if part.cross_folds:
        return []
    trained = [labels for labels in part.label_counts if any(cell.labels == labels for cell in part.cells)]
    return [_curves(result, part, labels) for labels in trained]


def _over_labels(result: SuiteResult, part: TaskResult) -> DrawnChart:
    figure, axes = new_chart()
    words = []
    first, last = min(part.label_counts), max(part.label_counts)
    beside = 1.04 if last > first else 1.1
    for number, arm in enumerate(result.arms):
        found = _seeds(part, [(float(labels), arm.name, labels) for labels in part.label_counts])
        if not found:
            continue
        aside = beside ** (number - (len(result.arms) - 1) / 2)
        _dots(axes, [(x * aside, scores) for x, scores in found], number, arm.label)
        words.append(f"{arm.label}: " + ", ".join(f"{_mean(scores):.2f} at {x:,.0f}" for x, scores in found))
    axes.set_xscale("log")
    axes.set_xlim(first / 1.6, last * 1.6)
    named = _spread(part.label_counts)
    axes.set_xticks(part.label_counts, [f"{labels:,}" if labels in named else "" for labels in part.label_counts])
    axes.minorticks_off()
    name_axes(axes, "labelled training images", f"{part.figure}, %")
    within_percent(axes)
    caption = (
        f"{capital(part.figure)} on the {part.counts['test']:,} test images by number of labelled images: a dot is one "
        "seed, the line joins the means"
    )
    return DrawnChart(f"labels-{part.name}", caption, figure, "; ".join(words))


def _over_axis(result: SuiteResult, part: TaskResult, labels: int) -> DrawnChart:
    """The arms along what they differ in, as the paper's Figure 5 has them; those without a place as lines across."""
    figure, axes = new_chart()
    placed = sorted((arm for arm in result.arms if arm.x is not None), key=lambda arm: arm.x or 0.0)
    found = _seeds(part, [(arm.x or 0.0, arm.name, labels) for arm in placed])
    words = [f"{_mean(scores):.2f} at {x:g}" for x, scores in found]
    _dots(axes, found, 0, "mean over the seeds")
    for number, arm in enumerate(arm for arm in result.arms if arm.x is None):
        for _, scores in _seeds(part, [(0.0, arm.name, labels)]):
            axes.axhline(_mean(scores), color=COLOURS[(number + 1) % len(COLOURS)], linestyle="--", label=arm.label)
            words.append(f"{arm.label} {_mean(scores):.2f}")
    name_axes(axes, result.axis or "", f"{part.figure}, %")
    within_percent(axes)
    caption = (
        f"{capital(part.figure)} on the {part.counts['test']:,} test images {at_labels(labels)} over {result.axis}: a dot is "
        "one seed, the line joins the means"
    )
    return DrawnChart(f"axis-{part.name}-{labels}", caption, figure, "; ".join(words))


def _seeds(part: TaskResult, places: Sequence[tuple[float, str, int]]) -> list[tuple[float, list[float]]]:
    """(x, test scores of the seeds in percent) of (x, arm, labels), where there are runs."""
    found = [(x, [100 * part.score(cell) for cell in part.by_seed(arm, labels).values()]) for x, arm, labels in places]
    return [(x, scores) for x, scores in found if scores]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores)


def _dots(axes: Axes, found: Sequence[tuple[float, Sequence[float]]], number: int, label: str) -> None:
    """A line through the means, and every seed as a dot."""
    colour, marker, dashes = line_style(number)
    means = [_mean(scores) for _, scores in found]
    axes.plot([x for x, _ in found], means, color=colour, marker=marker, linestyle=dashes, label=label, markersize=5)
    for x, scores in found:
        axes.plot([x] * len(scores), scores, color=colour, marker="o", markersize=3, linestyle="none", alpha=0.45)


def _spread(counts: Sequence[int]) -> set[int]:
    """The label counts that are named on a logarithmic axis: not one where it would touch the next."""
    width = math.log(max(counts) / min(counts)) or 1.0
    named: list[int] = []
    for labels in sorted(counts):
        if not named or math.log(labels / named[-1]) / width >= CLOSEST:
            named.append(labels)
    return set(named)


def within_percent(axes: Axes) -> None:
    """End the axis of a score at 0 and 100 %, with a little room for markers: axes reach further, scores can't."""
    low, high = axes.get_ylim()
    bottom, top = max(low, 0.0), min(high, 100.0)
    room = 0.03 * (top - bottom)
    axes.set_ylim(max(low, bottom - room), min(high, top + room))


def capital(text: str) -> str:
    """Text that begins with a capital letter."""
    return text if text.startswith("mIoU") else text[:1].upper() + text[1:]


def _curves(result: SuiteResult, part: TaskResult, labels: int) -> Chart:
    figure, axes = new_chart()
    words = []
    for number, arm in enumerate(result.arms):
        curves = [cell.curve for cell in part.by_seed(arm.name, labels).values() if cell.curve.steps]
        colour, marker, dashes = line_style(number)
        for seed, curve in enumerate(curves):  # seeds choose their own steps, so that there is no mean of all
            values = [100 * value for value in curve.val]
            axes.plot(
                curve.steps,
                values,
                color=colour,
                marker=marker,
                markersize=3,
                linestyle=dashes,
                linewidth=1,
                alpha=0.75,
                label=arm.label if seed == 0 else None,
            )
        if curves:
            ends = [100 * _mean([curve.val[place] for curve in curves]) for place in (0, -1)]
            words.append(f"{arm.label} from {ends[0]:.1f} to {ends[1]:.1f} (mean of {len(curves)})")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    name_axes(axes, "steps of training", f"{part.figure}, % ({part.counts['validation']:,} validation images)")
    within_percent(axes)
    caption = f"Validation {part.figure} while training {at_labels(labels)}, a line for each seed"
    return Chart(caption, inline_svg(figure, f"curves-{part.name}-{labels}"), "; ".join(words))
