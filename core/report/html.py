"""Reports as one self-contained HTML file: templates, and tables as HTML, LaTeX and Markdown."""

from __future__ import annotations

import base64
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import show
from .charts import COLOURS, COLOURS_ON_DARK

MINUS = "\N{MINUS SIGN}"


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
