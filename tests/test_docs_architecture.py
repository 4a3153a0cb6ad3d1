"""docs/architecture.md names files and what is in them: both are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from maelift.tests.support import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMES_OF_FILES = re.findall(
    r"\b((?:core|pretrain|transfer|adapters|benchmarks|tests)/[a-z0-9_/]+\.py|commands\.py)\b", PAGE
)


def names(path: Path) -> set[str]:
    """What a module defines at its top, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_files_that_it_names_are_there() -> None:
    assert len(NAMES_OF_FILES) > 50 and not {name for name in NAMES_OF_FILES if not (ROOT / name).is_file()}


def test_what_its_pictures_name_is_in_the_files() -> None:
    named = set(re.findall(r'([a-z0-9_/]+\.py): ([A-Za-z_.]+)(?=[",])', PAGE))
    assert len(named) > 10 and not {(file, name) for file, name in named if name not in names(ROOT / file)}


def test_names_in_its_text_are_in_the_files_that_it_names() -> None:
    words = set(re.findall(r"`([A-Z][A-Za-z]+|[A-Z_]{5,}|[a-z]+_[a-z_]+)`", PAGE)) - {"max_rejected"}
    assert len(words) > 20 and not words - set().union(*(names(ROOT / name) for name in NAMES_OF_FILES))
