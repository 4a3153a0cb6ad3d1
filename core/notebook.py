"""What notebooks show of a result: its facts as a small HTML table, without scripts, every text escaped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup, escape

Fact = tuple[str, "str | Path"]
"""A row: what it is, and its value; a path becomes a link."""

ROW = Markup(
    '<tr><th scope="row" style="text-align: left; vertical-align: top">{}</th>'
    '<td style="text-align: left; white-space: pre-wrap">{}</td></tr>'
)


def facts_table(title: str, facts: Iterable[Fact]) -> str:
    """The facts of a result as an HTML table under its title."""
    rows = Markup("\n").join(ROW.format(name, _cell(value)) for name, value in facts)
    caption = '<caption style="text-align: left; font-weight: bold">{}</caption>'
    return str(Markup(f"<table>\n{caption}\n<tbody>\n{{}}\n</tbody>\n</table>").format(title, rows))


def _cell(value: str | Path) -> Markup:
    if isinstance(value, Path):
        return Markup('<a href="{}">{}</a>').format(_address(value), value)
    return escape(value)


def _address(path: Path) -> str:
    """The address of a file: relative within the working folder, which a notebook's server shows, else a file's URI."""
    full, here = Path(os.path.abspath(path)), Path.cwd()
    if full.is_relative_to(here):
        return quote(os.fsencode(full.relative_to(here)))
    return full.as_uri()
