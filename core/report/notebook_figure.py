"""A matplotlib figure that a notebook shows as a picture, without pyplot, with the legend it needs there."""

from __future__ import annotations

import io
import warnings

from matplotlib.figure import Figure, SubFigure

PIXELS_PER_INCH = 144


class NotebookFigure(Figure):
    """A figure that IPython shows as PNG: a plain one is shown only where pyplot has been imported before."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # boxes are drawn for them
            self.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, bbox_inches="tight")
        return buffer.getvalue()


def add_legend(figure: Figure | SubFigure) -> None:
    """Add the legend of all labelled lines below a figure or a part of one, as reports have it in HTML."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        legend = figure.legend(loc="outside lower left", fontsize=8, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)


def on_white(figure: Figure, caption: str) -> Figure:
    """A chart of a report for a notebook: with a caption, in lines that fit, a legend, and a background of its own."""
    figure.patch.set_alpha(1)
    figure.suptitle(caption, fontsize=10).set_parse_math(False)
    add_legend(figure)
    return figure
