"""Text files from jinja2 templates: values are not escaped, unless by a filter, and none may be missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


def text_template(file: Path, **filters: Callable[[object], str]) -> Template:
    """The template in a file, which may use ``filters`` by their names."""
    environment = Environment(
        loader=FileSystemLoader(file.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(filters)
    return environment.get_template(file.name)
