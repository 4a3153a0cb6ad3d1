"""The forest plot: differences from the reference arm with their intervals, as HTML whose names wrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..core.report.charts import COLOURS, NAME_LENGTH, add_axes, wrapped
from ..core.report.html import MINUS
from ..core.report.notebook_figure import NotebookFigure
from .analysis import Comparison, Comparisons
from .results import AUTO, SuiteResult
from .score_text import interval, listed, place, signed

OUTCOMES = {"helps": "helps", "hurts": "hurts", "not resolved": "may be luck"}
"""Verdicts in words for readers who know no statistics."""

ROOM = 0.06
"""Of the width of the intervals, left free beyond each end."""


@dataclass(frozen=True)
class ForestRow:
    """A difference: ``low``, ``mean`` and ``high`` are places in % of the plot's width, ``colour`` the number of its line colour.

    ``outcome`` is what is said of it; ``solid``: something is said of it by itself.
    """

    name: str
    low: float
    mean: float
    high: float
    colour: int
    numbers: str
    outcome: str
    solid: bool


@dataclass(frozen=True)
class Forest:
    """The plot: ``zero`` and the ``ticks`` (place, text) in % of its width; ``words`` describe it to those who don't see it."""

    caption: str
    words: str
    rows: tuple[ForestRow, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]


def forest_plot(found: Comparisons) -> Forest | None:
    """The differences of all tasks but short ones from their reference, first those that verdicts are of; None without any."""
    result = found.result
    known = [
        (one, one.difference)
        for one in sorted(found.comparisons, key=lambda one: not one.tested)
        if not one.part.short and one.difference is not None and one.difference.known
    ]
    if not known:
        return None
    ends = [100 * end for _, difference in known for end in (difference.low, difference.high, 0.0)]
    room = ROOM * (max(ends) - min(ends))
    left, right = min(ends) - room, max(ends) + room
    references = list(dict.fromkeys(result.label(one.reference) for one, _ in known))

    def across(points: float) -> float:
        return round(100 * (points - left) / (right - left), 3)

    rows = tuple(
        ForestRow(
            name=_name(result, one, len(references) > 1),
            low=across(100 * difference.low),
            mean=across(100 * difference.mean),
            high=across(100 * difference.high),
            colour=result.arms.index(one.arm) % len(COLOURS),
            numbers=f"{signed(difference.mean)} ({interval(difference)})",
            outcome=_outcome(one),
            solid=one.tested,
        )
        for one, difference in known
    )
    ticks = [value for value in MaxNLocator(nbins=5).tick_values(left, right) if left <= value <= right]
    return Forest(
        caption=_caption(result, references, sorted({one.part.figure for one, _ in known})),
        words="; ".join(f"{row.name}: {row.numbers}{f', {row.outcome}' if row.outcome else ''}" for row in rows),
        rows=rows,
        zero=across(0.0),
        ticks=tuple((across(value), f"{value:+g}".replace("-", MINUS) if value else "0") for value in ticks),
    )


def forest_figure(plot: Forest) -> Figure:
    """The plot as a matplotlib figure for notebooks: names left of the intervals, numbers and outcomes right of them."""
    figure = NotebookFigure(figsize=(9, 1.5 + 0.6 * len(plot.rows)), layout="constrained")
    axes, places = add_axes(figure), range(len(plot.rows))
    axes.grid(visible=False)
    axes.axvline(plot.zero, color="black", linewidth=1)
    for number, row in enumerate(plot.rows):
        colour = COLOURS[row.colour]
        axes.plot([row.low, row.high], [number, number], color=colour, linewidth=3 if row.solid else 1.5)
        inside = colour if row.solid else "white"
        axes.plot([row.mean], [number], marker="o", markersize=8, color=colour, markerfacecolor=inside)
    axes.set_xlim(0, 100)
    axes.set_xticks([place for place, _ in plot.ticks], [text for _, text in plot.ticks])
    axes.set_ylim(len(plot.rows) - 0.5, -0.5)
    axes.set_yticks(places, [wrapped(row.name) for row in plot.rows], parse_math=False)
    numbers = axes.secondary_yaxis("right")
    texts = [f"{row.numbers}\n{row.outcome}".rstrip() for row in plot.rows]
    numbers.set_yticks(places, texts, parse_math=False)
    for side in (axes, numbers):
        side.tick_params(axis="y", length=0)
        side.spines[:].set_visible(False)
    axes.spines["bottom"].set_visible(True)
    axes.set_xlabel("← worse    better →")
    figure.suptitle(wrapped(plot.caption, 2 * NAME_LENGTH), fontsize=11).set_parse_math(False)
    return figure


def _outcome(one: Comparison) -> str:
    """What is said of a difference, for readers who know no statistics."""
    if not one.tested:
        return "saw more labels" if one.arm.upper_bound else ""
    return "open: may gain by longer training" if one.within_margin else OUTCOMES[one.verdict]


def _name(result: SuiteResult, one: Comparison, several: bool) -> str:
    """The arm and where it is compared; and with which, where that isn't the same everywhere."""
    against = f" (against {result.label(one.reference)})" if several else ""
    return f"{one.arm.label}, {place(one.part, one.labels)}{against}"


def _caption(result: SuiteResult, references: Sequence[str], figures: Sequence[str]) -> str:
    named = references[0] if len(references) == 1 else ""
    best = f"the best method without pretraining{f' ({named})' if named else ''}"
    what = best if result.baseline == AUTO else listed(references)
    return f"How much better than {what}, in points of {listed(figures, 'or')} on the test images"
