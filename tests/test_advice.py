"""What messages advise exists: the commands, keys and extras that they name. That following it works is tested beside each."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from importlib.metadata import metadata

from maelift.adapters.export import ADAPTERS, config_class
from maelift.commands import COMMANDS
from maelift.core.config_keys import describe
from maelift.tests.support import ROOT

FOLDERS = ("core", "pretrain", "adapters", "transfer", "benchmarks")
SPEAKING = re.compile(r"(Error|Fault|warning|info|tell)$")
"""The names of what is raised, reported or said."""
OF_OTHERS = {
    "a Python function's": {"class_position", "class_token", "layers", "out_indices", "scale_factors", "use_rel_pos"},
    "mmseg's": {
        "crop_size",
        "img_size",
        "mode",
        "pretrained",
        "model.neck",
        "model.test_cfg",
        "model.backbone.out_indices",
    },
    "detectron2's": {"model.backbone.square_pad", "train_json", "val_json"},
    "of a suite's arms, tasks and files": {"start", "classes", "version"},
    "a pattern": {"key"},
}
"""Names before an equals sign that are no keys of commands."""


def messages() -> Iterator[tuple[str, str]]:
    """(file:line, text) of every text that is raised, reported or said; {} stands for what is filled in."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if "perf" not in path.parts]
    for path in [*files, ROOT / "cli.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Raise) or SPEAKING.search(name):
                for text in _texts(node):
                    yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", text


def _texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.JoinedStr):
            yield "".join(str(value.value) if isinstance(value, ast.Constant) else "{}" for value in part.values)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def known_keys() -> set[str]:
    """The keys of all commands, with and without what stands before their dots."""
    schemas = [command.config_type() for command in COMMANDS.values()]
    schemas += [config_class(name) for name in ADAPTERS]
    keys = [
        entry.key
        for schema in schemas
        if isinstance(schema, type) and dataclasses.is_dataclass(schema)
        for entry in describe(schema)
    ]
    parts = [key.split(".") for key in keys]
    return {".".join(part[first:last]) for part in parts for first in range(len(part)) for last in range(first + 1, 99)}


def test_messages_name_commands_that_there_are() -> None:
    known = {*COMMANDS, *(name.split()[0] for name in COMMANDS)}
    quoted = re.compile(r"(?:'|: |run |with |by |see |^)maelift ([a-z]+(?: [a-z][a-z-]+)?)(?=[' ,.{])")
    found = [(place, said) for place, text in messages() for said in quoted.findall(text)]
    assert len(found) > 30
    assert not [pair for pair in found if pair[1] not in known and pair[1].split()[0] not in known]


def test_messages_name_keys_that_there_are() -> None:
    known = known_keys() | {name for names in OF_OTHERS.values() for name in names}
    given = re.compile(r"(?<![\w.\-\[/<{])([a-z_][a-z_0-9]*(?:\.[a-z_0-9]+)*)=(?!=)")
    found = [(place, key) for place, text in messages() for key in given.findall(text)]
    assert len(found) > 200
    assert not [pair for pair in found if pair[1] not in known and pair[1].rpartition(".")[2] not in known]


def test_messages_name_extras_that_there_are() -> None:
    known = {name.lower() for name in metadata("maelift").get_all("Provides-Extra") or ()}
    pages = [
        (str(path.relative_to(ROOT)), path.read_text()) for path in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md")
    ]
    asked = re.compile(r"maelift\[([a-z,]+)\]")
    found = [
        (place, name)
        for place, text in [*messages(), *pages]
        for names in asked.findall(text)
        for name in names.split(",")
    ]
    assert found and not [pair for pair in found if pair[1] not in known]
