"""Reports as one self-contained HTML file: templates, tables (HTML, LaTeX, Markdown), charts as inline SVG."""

from __future__ import annotations

import base64
import io
import math
import os
import platform
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..errors import show

if TYPE_CHECKING:  # imported where charts are drawn: every training imports this file, and few draw
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#6b7280", "#00845f", "#b5578a", "#9a6b00")
"""Line colours on a light page, distinguishable by the colour-blind too (after Okabe and Ito)."""

COLOURS_ON_DARK = ("#4aa8e0", "#f0883e", "#a3acb5", "#2fc497", "#dd9bc0", "#e0b040")

MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", ":")
MINUS = "\N{MINUS SIGN}"
MAX_LINES = 6
"""Maximum number of curves in one chart."""
MAX_MARKED_POINTS = 40
"""Number of points up to which each is marked on its curve."""

Line = tuple[str, list[tuple[float, float]]]
"""A curve: its name, and the (step, value) of its points."""


@dataclass(frozen=True)
class Table:
    """A table: ``caption`` says unit, split and seeds; the first column names the row."""

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether it contains numbers (with ± and intervals too), which are aligned right."""
        number = rf"[+{MINUS}]?[\d.,e{MINUS}]+"
        cell = re.compile(rf"{number}(( ± | to ){number})?|missing|none|unknown|")
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        return tuple(all(cell.fullmatch(text) for text in column) for column in columns)

    def latex(self) -> str:
        """The table as LaTeX, for booktabs."""
        columns = "".join("r" if number else "l" for number in self.numeric)
        lines = [" & ".join(map(_in_latex, cells)) + r" \\" for cells in (self.header, *self.rows)]
        body = "\n".join([r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule"])
        return (
            f"\\begin{{table}}\n\\caption{{{_in_latex(self.caption)}}}\n\\begin{{tabular}}{{{columns}}}\n{body}\n"
            "\\end{tabular}\n\\end{table}\n"
        )

    def markdown(self) -> str:
        """The table as Markdown."""
        rule = tuple("---:" if number else "---" for number in self.numeric)
        lines = [_in_markdown(self.header), rule, *map(_in_markdown, self.rows)]
        return f"{self.caption}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def render(template: Path, **values: object) -> str:
    """The HTML of a template, which extends ``page.html.j2`` of this folder; values are escaped, none may be missing."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = list(zip(COLOURS, COLOURS_ON_DARK, strict=True))
    return environment.get_template(template.name).render(colours=colours, **values)


def new_chart(height: float = 3.9) -> tuple[Figure, Axes]:
    """An empty chart without a background, for ``inline_svg``; ``height`` in inches, the width is 5.2."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def inline_svg(figure: Figure, name: str) -> Markup:
    """A figure as inline SVG: deterministic bytes, ids prefixed with ``name``, colours that follow the page's."""
    import matplotlib

    if any(axes.get_legend_handles_labels()[1] for axes in figure.axes):
        legend = figure.legend(loc="outside upper left", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
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
    drawing = re.sub(r"<text(?=[ >])", '<text fill="currentColor"', drawing)
    return Markup(drawing)


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


def draw_curves(lines: Sequence[Line], label: str, name: str, *, logarithmic: bool = False) -> Markup:
    """Curves over the training steps as inline SVG with ids by ``name``; ``label`` says what the values are and their unit."""
    figure, axes = new_chart()
    for number, (metric, found) in enumerate(lines):
        axes.plot(
            [step for step, _ in found],
            [value for _, value in found],
            label=metric,
            color=COLOURS[number % len(COLOURS)],
            linestyle=DASHES[number % len(DASHES)],
            marker=MARKERS[number % len(MARKERS)] if len(found) <= MAX_MARKED_POINTS else None,
            markersize=4,
        )
    if logarithmic:
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("steps of training")
    axes.set_ylabel(label)
    return inline_svg(figure, name)


def keys_table(config: Mapping[str, object]) -> Table:
    """The table of a run's keys and values."""
    return Table("The keys of this run", ("key", "value"), tuple((key, show(value)) for key, value in config.items()))


def describe_machine() -> str:
    """This machine in a few words: GPU, architecture, number of cores."""
    name = f"{platform.machine()}, {os.cpu_count()} cores"
    return f"{torch.cuda.get_device_name()}, {name}" if torch.cuda.is_available() else name


def data_url(picture: bytes, kind: str) -> str:
    """A picture of a kind ("png", "jpeg") as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def escape_markdown(text: str) -> str:
    """Text on one line, with tags escaped for Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


_LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    MINUS: r"$-$",
    "×": r"$\times$",
    "\N{NO-BREAK SPACE}": "~",
}


def _in_latex(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split(" ")))


def _in_markdown(cells: Sequence[str]) -> tuple[str, ...]:
    return tuple(escape_markdown(cell).replace("|", "\\|") for cell in cells)
