"""Cost beside score in a report: the table of what each arm's model costs to use, and the chart of score over cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from ..core.report.charts import inline_svg, line_style, name_axes, new_chart
from ..core.report.html import Table
from .charts import Chart, capital, within_percent
from .model_cost import CLEARLY, ModelCost, cost_of, millions, milliseconds
from .results import Arm, SuiteResult, TaskResult
from .score_text import listed

NAMED_FRONTS = 2
"""Label counts that a chart shows, the fewest and the most: more would hide one another."""


def use_table(result: SuiteResult) -> Table:
    """What the trained model of each arm costs to use."""
    several = len({cost.task for cost in result.costs}) > 1
    memory = any(cost.memory is not None for cost in result.costs)
    rows = [_use_row(result, arm, cost, several, memory) for arm in result.arms for cost in _costs(result, arm)]
    columns = ("parameters, M", "operations, M", "ms", "images/s")
    devices = listed(list(dict.fromkeys(cost.device for cost in result.costs))) if result.costs else ""
    reasons = [f"{result.label(cost.arm)}: {cost.reason}" for cost in result.costs if cost.reason]
    unknown = f". Not measured: {'; '.join(reasons)}" if reasons else ""
    of_memory = "; peak memory of a batch" if memory else "; memory is measured on GPUs only"
    return Table(
        f"Cost of use on {devices}: parameters and floating-point operations of an image, in millions; the median time of single "
        f"images, and images a second in batches of {max((cost.batch for cost in result.costs), default=0)}, from pixels in "
        f"memory to logits, boxes or maps{of_memory}{unknown}",
        ("arm", *(("task",) if several else ()), *columns, *(("memory, MiB",) if memory else ())),
        tuple(rows),
    )


def _costs(result: SuiteResult, arm: Arm) -> list[ModelCost]:
    return [cost for cost in result.costs if cost.arm == arm.name]


def _use_row(result: SuiteResult, arm: Arm, cost: ModelCost, several: bool, memory: bool) -> tuple[str, ...]:
    def shown(value: float | None, form: str) -> str:
        return "unknown" if value is None else form.format(value)

    return (
        arm.label,
        *((cost.task,) if several else ()),
        millions(cost.parameters),
        millions(cost.flops),
        "unknown" if cost.latency is None else milliseconds(cost.latency),
        shown(cost.throughput, "{:,.0f}"),
        *((shown(None if cost.memory is None else cost.memory / 2**20, "{:,.0f}"),) if memory else ()),
    )


@dataclass(frozen=True)
class Point:
    """An arm in the chart: its cost in the chart's unit, and its mean score in percent."""

    arm: str
    cost: float
    score: float


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats in score at a cost that isn't clearly higher, the cheapest first.

    Costs within a tenth of each other are taken for equal: a measured time is no more certain.
    """
    front = [
        point
        for point in points
        if not any(other.score > point.score and CLEARLY * other.cost <= point.cost for other in points)
    ]
    return sorted(front, key=lambda point: (point.cost, point.score))


def cost_charts(result: SuiteResult) -> list[Chart]:
    """Test score over the cost of use, a chart for each task where at least two arms have both."""
    found = (_cost_chart(result, part) for part in result.parts if not part.short)
    return [chart for chart in found if chart is not None]


def _cost_chart(result: SuiteResult, part: TaskResult) -> Chart | None:
    costs, unit, device = _axis(result, part)
    arms = [arm for arm in result.arms if not arm.upper_bound and arm.name in costs]
    counts = sorted({min(part.label_counts), max(part.label_counts)})[:NAMED_FRONTS]
    places = {labels: _points(part, arms, costs, labels) for labels in counts}
    places = {labels: points for labels, points in places.items() if len(points) > 1}
    if not places:
        return None
    figure, axes = new_chart(height=3.6)
    words, fronts = list[str](), dict[int, list[Point]]()
    for number, (labels, points) in enumerate(places.items()):
        front = fronts[labels] = pareto_front(points)
        _draw_points(axes, result, part, points, {point.arm for point in front}, labels, named=number == 0)
        words += _words(result, points, front, labels, unit)
    for number, (labels, front) in enumerate(fronts.items()):  # last in the legend
        _draw_front(axes, front, number, f"front with {labels:,} labels")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.12)
    name_axes(axes, f"{unit} ({device})" if device else unit, f"{part.figure}, %")
    within_percent(axes)
    return Chart(_caption(part, list(places)), inline_svg(figure, f"cost-{part.name}"), "; ".join(words))


def _axis(result: SuiteResult, part: TaskResult) -> tuple[Mapping[str, float], str, str]:
    """The cost of each arm, its unit and the device: latency where all models that run on one have it, else operations."""
    found = [cost for arm in result.arms if (cost := cost_of(result.costs, part.name, arm.name)) is not None]
    devices = {cost.device for cost in found}
    if len(devices) == 1 and all(cost.latency is not None for cost in found):
        latencies = {cost.arm: 1e3 * cost.latency for cost in found if cost.latency is not None}
        return latencies, "milliseconds for one image", devices.pop()
    operations = {cost.arm: cost.flops / 1e6 for cost in found if cost.flops is not None}
    return operations, "million floating-point operations for one image", ""


def _points(part: TaskResult, arms: Sequence[Arm], costs: Mapping[str, float], labels: int) -> list[Point]:
    return [
        Point(arm.name, costs[arm.name], 100 * part.mean_score(arm.name, labels))
        for arm in arms
        if part.by_seed(arm.name, labels)
    ]


def _draw_front(axes: Axes, front: Sequence[Point], number: int, label: str) -> None:
    """The front as steps: from each of its arms to the right, as far as the next."""
    dashes = ("-", "--")[number]
    axes.plot(
        [point.cost for point in front],
        [point.score for point in front],
        color="#000000",
        linestyle=dashes,
        linewidth=1,
        drawstyle="steps-post",
        label=label,
        zorder=1,
    )


def _draw_points(
    axes: Axes,
    result: SuiteResult,
    part: TaskResult,
    points: Sequence[Point],
    on_front: set[str],
    labels: int,
    *,
    named: bool,
) -> None:
    """The arms: filled and large on the front, hollow behind it; each seed a small dot."""
    for number, arm in enumerate(result.arms):
        for point in (one for one in points if one.arm == arm.name):
            colour, marker, _ = line_style(number)
            seeds = [100 * part.score(cell) for cell in part.by_seed(arm.name, labels).values()]
            axes.plot(
                [point.cost] * len(seeds), seeds, color=colour, marker="o", markersize=2, linestyle="none", alpha=0.4
            )
            axes.plot(
                [point.cost],
                [point.score],
                color=colour,
                marker=marker,
                markersize=9 if arm.name in on_front else 7,
                markerfacecolor=colour if arm.name in on_front else "none",
                markeredgewidth=1.5,
                linestyle="none",
                label=arm.label if named else None,
                zorder=2,
            )


def _words(result: SuiteResult, points: Sequence[Point], front: Sequence[Point], labels: int, unit: str) -> list[str]:
    shown = [f"{result.label(point.arm)} {point.score:.2f} at {point.cost:.3g}" for point in points]
    return [
        f"with {labels:,} labels (score in % at {unit}): {', '.join(shown)}; on the front: "
        f"{listed([result.label(point.arm) for point in front])}"
    ]


def _caption(part: TaskResult, counts: Sequence[int]) -> str:
    at = listed([f"{labels:,}" for labels in counts])
    return (
        f"{capital(part.figure)} on the {part.counts['test']:,} test images with {at} labels over the cost of use: large "
        "filled markers are on the front, where none is both cheaper and better in the mean; hollow ones are behind it; a dot is "
        "one seed"
    )
