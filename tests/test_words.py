"""Names and words are the field's: what a reader would have to look up, or take for something else, stands nowhere."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from maelift.tests.support import ROOT
from maelift.tests.test_layout import MODULES, tracked

OLD_FILES = frozenset(
    [
        "names",
        "listing",
        "copies",
        "likeness",
        "faults",
        "decoding",
        "batches",
        "foreign",
        "randomness",
        "frameworks",
        "launching",
        "plan",
        "page",
        "tracking",
        "standing",
        "elsewhere",
        "local",
        "executors",
        "pace",
        "disk",
        "board",
        "unchanged",
        "compared",
        "comparing",
        "collecting",
        "stages",
        "pools",
        "arms_runs",
        "starting",
        "stage",
        "planning",
        "monitor",
        "fitting",
        "probing",
        "parents",
        "vitdet",
        "adaptation",
        "starts",
        "models",
        "drawing",
        "scores",
        "importing",
        "exporting",
        "certifying",
        "summary",
        "datasets",
        "scenes",
        "packing",
        "pool_check",
        "data_check",
        "run_folder",
        "weights",
        "optim",
        "training",
    ]
)
"""Names of files that say less than their successors'. ``models`` and ``training`` are folders of core, no files."""

OLD_NAMES = frozenset(
    [
        "Names",
        "Fault",
        "MENDING",
        "Look",
        "Looks",
        "look_through",
        "Lasting",
        "Opened",
        "Order",
        "MixedOrder",
        "Annotated",
        "draw_order",
        "least_train",
        "settle",
        "Facts",
        "Upkeep",
        "Health",
        "LossScale",
        "Stretch",
        "Beginning",
        "Companion",
        "take_over",
        "cut_patches",
        "repatched",
        "Pace",
        "Measured",
        "Compared",
        "Ended",
        "places",
        "foresee",
        "Guard",
        "Nameless",
        "Design",
        "SeveralImages",
        "Elsewhere",
        "gradients_stay_here",
        "contact_required",
        "isolated",
        "counting",
        "Monitor",
        "unchanged",
        "again",
        "asking",
        "hear",
    ]
)
"""Names of classes and functions, with or without an underscore before, whose field has a name of its own for the thing."""

WORDS = {
    r"\banew\b": "again, or re-",
    r"\bput(s|ting)? up with\b": "tolerated",
    r"\b(told|tells?)\b": "reported, shown, says",
    r"\bgo(es)? over\b": "is exported",
    r"\bway back\b": "import",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bfaults?\b": "issue",
    r"\bjudge[sd]?\b": "evaluate",
    r"\bupkeep\b": "callbacks",
    r"\blook(s|ed|ing)? through\b": "scan",
    r"\bcom(e|es|ing) by\b": "get",
    r"\bwhole (tensor|file|folder|model|page|config|encoder|checkpoint|suite)s?\b": "full, complete",
    r"\b(is|are|was|were|be) (kept|held) (in|on|by|under)\b": "saved, stored",
}
"""Words that are no terms of the field, and what is said instead."""


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The comments and string literals of a Python file with their lines; every line of another file."""
    if path.suffix != ".py":
        yield from enumerate(path.read_text().splitlines(), 1)
        return
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type in (tokenize.COMMENT, tokenize.STRING):
                for offset, line in enumerate(token.string.splitlines()):
                    yield token.start[0] + offset, line


@cache
def all_texts() -> list[tuple[str, int, str]]:
    """The comments, strings and pages of the project: file, line's number, and line. Read once for all words."""
    files = [f"{module}.py" for module in MODULES] + tracked("*.md", "*.j2", "*.yaml")
    return [(name, number, line) for name in sorted(files) for number, line in texts(ROOT / name)]


@pytest.mark.parametrize("pattern", WORDS)
def test_words_are_those_of_the_field(pattern: str) -> None:
    word = re.compile(pattern, re.IGNORECASE)
    found = [f"{name}:{number}: {line.strip()[:120]}" for name, number, line in all_texts() if word.search(line)]
    assert not found, f"say {WORDS[pattern]}:\n" + "\n".join(found)


def test_files_have_the_names_of_the_field() -> None:
    assert not {module for module in MODULES if module.rpartition("/")[2] in OLD_FILES}


def test_classes_and_functions_have_the_names_of_the_field() -> None:
    found = [
        f"{module}: {node.name}"
        for module in sorted(MODULES)
        for node in ast.walk(ast.parse((ROOT / f"{module}.py").read_text()))
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.lstrip("_") in OLD_NAMES
    ]
    assert not found
