"""Charts as inline SVG: text in the page's font, its colours, and a legend in HTML that wraps."""

from __future__ import annotations

import io
import math
import re
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:  # imported where charts are drawn: every training imports this file, and few draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

COLOURS = ("#0072b2", "#d55e00", "#6b7280", "#00845f", "#b5578a", "#9a6b00")
"""Line colours on a light page, distinguishable by the colour-blind too (after Okabe and Ito)."""

COLOURS_ON_DARK = ("#4aa8e0", "#f0883e", "#a3acb5", "#2fc497", "#dd9bc0", "#e0b040")

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
MAX_LINES = 6
"""Maximum number of curves in one chart."""
MAX_MARKED_POINTS = 40
"""Number of points up to which each is marked on its curve."""
WIDTH = 4.8
"""Of a chart, in inches of 72 units: on a phone a unit is about a pixel, so that text of 10 units can be read."""
NAME_LENGTH, NAME_LINES = 44, 3
"""Characters in a line of an axis' name, and its most lines."""

SHAPES = {
    "o": "M10.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "s": "M11 3h6v6h-6z",
    "^": "M14 2l4 7.5h-8z",
    "D": "M14 1.8l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    "v": "M14 10l4 -7.5h-8z",
    "P": "M12.7 2h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
}
"""Paths of ``MARKERS`` in the middle of a legend's sample, 28 by 12 units."""
SAMPLE_DASHES = {"-": "none", "--": "6 3", "-.": "7 2 2 2", ":": "2 2"}

STEPS = "steps of training"

Line = tuple[str, list[tuple[float, float]]]
"""A curve: its name, and the (step, value) of its points."""


@dataclass(frozen=True)
class CurveChart:
    """Curves that belong in one chart.

    ``key`` names the chart within its page; ``caption`` says what is shown, ``label`` what the values are and their unit,
    ``below`` the same of the horizontal axis; ``words`` describe curves that aren't over the steps of training; ``ends`` are
    those of the vertical axis, None: by the values.
    """

    key: str
    caption: str
    label: str
    lines: tuple[Line, ...]
    logarithmic: bool = False
    below: str = STEPS
    words: str = ""
    ends: tuple[float, float] | None = None

    def inline(self) -> tuple[str, str, Markup]:
        """The caption, the curves in words, and the chart as inline SVG."""
        drawn = draw_curves(
            self.lines, self.label, self.key, logarithmic=self.logarithmic, below=self.below, ends=self.ends
        )
        return self.caption, self.words or describe_curves(self.lines), drawn


def new_chart(height: float = 3.2) -> tuple[Figure, Axes]:
    """An empty chart without a background, for ``inline_svg``; ``height`` in inches, the width is ``WIDTH``."""
    from .notebook_figure import NotebookFigure

    figure = NotebookFigure(figsize=(WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure, add_axes(figure)


def add_axes(figure: FigureBase) -> Axes:
    """The axes of a chart in a figure, or in a part of one."""
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return axes


def line_style(number: int) -> tuple[str, str, str]:
    """Colour, marker and dashes of the line with this number: different for the first dozen, in black and white too."""
    marker = MARKERS[(number + number // len(MARKERS)) % len(MARKERS)]
    return COLOURS[number % len(COLOURS)], marker, DASHES[number % len(DASHES)]


def name_axes(axes: Axes, below: str, above: str) -> None:
    """Name the axes, ``below`` the horizontal one, and ``above`` the chart the vertical one: both may be long, and wrap."""
    axes.set_xlabel(wrapped(below)).set_parse_math(False)
    axes.set_title(wrapped(above), loc="left", fontsize=10).set_parse_math(False)


def wrapped(text: str, length: int = NAME_LENGTH, lines: int = NAME_LINES) -> str:
    """Text in lines of at most so many characters, of which wide ones (Chinese, say) count twice."""
    wide = any(unicodedata.east_asian_width(sign) in "WF" for sign in text)
    return textwrap.fill(text, length // 2 if wide else length, max_lines=lines, placeholder="…")


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as inline SVG below its legend: deterministic bytes, ids prefixed with ``name``, the colours of the page."""
    import matplotlib

    buffer = io.StringIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's own fonts show the text
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    drawing = re.sub(r"#000000|#b0b0b0", "currentColor", drawing)
    for number, colour in enumerate(COLOURS):
        drawing = drawing.replace(colour, f"var(--line{number})")
    drawing = re.sub(r'\bfont: (?:[\w-]+ )*?([\d.]+px) [^;"]*', r"font-size: \1", drawing)
    drawing = re.sub(r"<text(?=[ >])", '<text fill="currentColor"', drawing)
    return _legend(figure) + Markup(drawing)


def _legend(figure: Figure) -> Markup:
    """The legend as a list: a sample of each line and its name, which wraps in any font."""
    entries = [entry for axes in figure.axes for entry in zip(*axes.get_legend_handles_labels(), strict=True)]
    if not entries:
        return Markup("")
    items = [Markup("<li>{}{}</li>").format(_sample(handle), label) for handle, label in entries]
    return Markup('<ul class="legend">{}</ul>\n').format(Markup("").join(items))


def _sample(handle: Any) -> Markup:
    """A sample of a line with its marker."""
    line = handle if hasattr(handle, "get_marker") else handle[0]  # bars with errors are a container of lines
    colour = line.get_color()
    stroke = f"var(--line{COLOURS.index(colour)})" if colour in COLOURS else "currentColor"
    dash, shape = SAMPLE_DASHES.get(str(line.get_linestyle())), SHAPES.get(str(line.get_marker()))
    parts = (
        [] if dash is None else [f'<path d="M0 6h28" stroke="{stroke}" stroke-width="2" stroke-dasharray="{dash}"/>']
    )
    parts += [] if shape is None else [f'<path d="{shape}" fill="{stroke}"/>']
    return Markup('<svg class="sample" viewBox="0 0 28 12" aria-hidden="true">{}</svg>').format(Markup("".join(parts)))


def points(records: Iterable[Mapping[str, float]], name: str, factor: float = 1.0) -> list[tuple[float, float]]:
    """The (step, ``factor`` times value) of a metric in the records of a metrics.jsonl, without values that aren't finite."""
    found = [(record["step"], record[name]) for record in records if name in record and "step" in record]
    return [(step, factor * value) for step, value in found if value is not None and math.isfinite(value)]


def describe_curves(lines: Sequence[Line]) -> str:
    """The first and last point of each curve in words, for screen readers."""
    return "; ".join(
        f"{name} from {points[0][1]:.4g} at step {points[0][0]:,.0f} to {points[-1][1]:.4g} at step {points[-1][0]:,.0f}"
        for name, points in lines
    )


def draw_curves(
    lines: Sequence[Line],
    label: str,
    name: str,
    *,
    logarithmic: bool = False,
    below: str = STEPS,
    ends: tuple[float, float] | None = None,
) -> Markup:
    """Curves as inline SVG with ids by ``name``; ``label`` says what the values are and their unit, ``below`` over what."""
    figure, axes = new_chart()
    _plot_curves(axes, lines, label, logarithmic, below, ends)
    return inline_svg(figure, name)


def curves_figure(charts: Sequence[CurveChart]) -> Figure:
    """Charts of curves below each other as a figure for notebooks, on white and with legends."""
    from .notebook_figure import NotebookFigure, add_legend

    figure = NotebookFigure(figsize=(1.4 * WIDTH, 3.8 * len(charts)), layout="constrained")
    for part, chart in zip(figure.subfigures(len(charts), 1, squeeze=False).flat, charts, strict=True):
        _plot_curves(add_axes(part), chart.lines, chart.label, chart.logarithmic, chart.below, chart.ends)
        part.suptitle(wrapped(chart.caption, 2 * NAME_LENGTH), fontsize=10).set_parse_math(False)
        add_legend(part)
    return figure


def _plot_curves(
    axes: Axes,
    lines: Sequence[Line],
    label: str,
    logarithmic: bool,
    below: str,
    ends: tuple[float, float] | None,
) -> None:
    for number, (metric, found) in enumerate(lines):
        colour, marker, dashes = line_style(number)
        axes.plot(
            [step for step, _ in found],
            [value for _, value in found],
            label=metric,
            color=colour,
            linestyle=dashes,
            marker=marker if len(found) <= MAX_MARKED_POINTS else None,
            markersize=4,
        )
    if logarithmic:
        axes.set_yscale("log")
    if ends is not None:
        axes.set_ylim(*ends)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    name_axes(axes, below, label)
