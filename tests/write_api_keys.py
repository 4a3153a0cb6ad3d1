"""Writes api_keys.py, the keys as types, and key_table.json, the keys for the help. Run it after a key has changed."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from maelift.api import _schemas
from maelift.commands import COMMANDS
from maelift.core.config_keys import KeyHelp
from maelift.key_table import sections_of_schema

HEADER = '''"""The keys of the functions in api.py as types, for type checkers and editors; written by tests/write_api_keys.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal, TypedDict

Text = str | PathLike[str]
"""A text, or a path."""
'''
GROUPS = {
    "PretrainKeys": ("pretrain", "pretrain"),
    "ReconstructKeys": ("reconstruct", "reconstruct"),
    "ClassifyKeys": ("transfer", "transfer classify"),
    "DetectKeys": ("transfer", "transfer detect"),
    "SegmentKeys": ("transfer", "transfer segment"),
    "EmbedKeys": ("embed", "embed"),
    "BenchKeys": ("bench", "bench"),
    "ExportKeys": ("export", None),
}
"""The types by their names: whose function's keys they are, and of which command (None: of all)."""
GIVEN = {"BenchKeys": {"suite"}, "ExportKeys": {"encoder", "to", "out"}}
"""Keys that are parameters of the functions themselves."""


SHARED = {"TransferKeys": ("ClassifyKeys", "DetectKeys", "SegmentKeys")}
"""Types of the keys that several have alike."""


def source() -> str:
    """The text of api_keys.py."""
    types_: dict[str, str] = {}
    keys = {name: _keys(name, types_) for name in GROUPS}
    for name, parts in SHARED.items():
        common = {
            key: text for key, text in keys[parts[0]].items() if all(keys[part].get(key) == text for part in parts)
        }
        types_[name] = _typed_dict(name, "TypedDict", "Keys of every ``maelift transfer``.", common)
    for name, own in keys.items():
        above = next((shared for shared, parts in SHARED.items() if name in parts), "TypedDict")
        inherited = keys[name].keys() & _names(types_.get(above, ""))
        words = GROUPS[name][1] or GROUPS[name][0]
        fields = {key: text for key, text in own.items() if key not in inherited}
        types_[name] = _typed_dict(name, above, f"Keys of ``maelift {words}``.", fields)
    return HEADER + "\n\n" + "\n\n".join(types_.values())


def _keys(name: str, types_: dict[str, str]) -> dict[str, str]:
    """The types of a command's keys, as text; of several schemas' each that one of them has."""
    function, command = GROUPS[name]
    fields: dict[str, list[str]] = {}
    for words, schema in _schemas(function).items():
        if command in (None, words):
            for key, kind in _fields(schema):
                if key not in GIVEN.get(name, set()):
                    fields.setdefault(key, []).append(_text(kind, types_))
    return {key: " | ".join(dict.fromkeys(" | ".join(texts).split(" | "))) for key, texts in fields.items()}


def _names(text: str) -> set[str]:
    """The fields of a class in the text of it."""
    return set(re.findall(r"^    (\w+):", text, re.MULTILINE))


def _fields(schema: type) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(schema)
    return ((field.name, hints[field.name]) for field in dataclasses.fields(schema))


def _typed_dict(name: str, above: str, doc: str, fields: Mapping[str, str]) -> str:
    lines = "".join(f"    {key}: {text}\n" for key, text in fields.items())
    return f'class {name}({above}, total=False):\n    """{doc}"""\n\n{lines}'


def _text(kind: Any, types_: dict[str, str]) -> str:
    """A type as it may be given: a sequence for a tuple, a mapping of its keys for a schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_text(argument, types_) for argument in arguments))
    if origin is Literal:
        return f"Literal[{', '.join(map(_quoted, arguments))}]"
    if origin in (tuple, list):
        inner = dict.fromkeys(_text(argument, types_) for argument in arguments if argument is not Ellipsis)
        return f"Sequence[{' | '.join(inner)}]"
    if origin in (dict, Mapping):
        key, value = (_text(argument, types_) for argument in arguments)
        return f"Mapping[{key.replace('Text', 'str')}, {value}]"
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        name = f"{kind.__name__.removesuffix('Config')}Keys"
        if name not in types_:
            types_[name] = ""
            fields = {key: _text(inner, types_) for key, inner in _fields(kind)}
            del types_[name]
            types_[name] = _typed_dict(name, "TypedDict", f"Keys of {kind.__name__}.", fields)
        return name
    names = {int: "int", float: "float", bool: "bool", str: "Text", type(None): "None", object: "object", Any: "object"}
    return names[kind]


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


ROOT = Path(__file__).parent.parent


def key_table() -> str:
    """The text of key_table.json: a line a key."""
    commands = []
    for name in COMMANDS:
        given = _values_in_docs(name)
        parts = []
        for one in sections_of_schema(name):
            keys = [dataclasses.replace(key, example=given.get(key.key) or _usual_value(key)) for key in one.keys]
            lines = ",\n".join(json.dumps(dataclasses.asdict(key), ensure_ascii=False) for key in keys)
            parts.append(f'{{"title": {json.dumps(one.title)}, "keys": [\n{lines}\n]}}')
        commands.append(f'"{name}": [{", ".join(parts)}]')
    return "{" + ",\n".join(commands) + "}\n"


def _values_in_docs(name: str) -> dict[str, str]:
    """The first value of each key in the documentation's calls of a command."""
    values: dict[str, str] = {}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for call in re.findall(rf"^(?:\S*=\S* )?maelift {re.escape(name)} (?![a-z]+ )(.*)$", text, re.MULTILINE):
            for key, value in re.findall(r"(?:^| )([\w.]+)=(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", call):
                values.setdefault(key, value)
    return {key: value for key, value in values.items() if "..." not in value}


def _usual_value(key: KeyHelp) -> str:
    """The default as an example, or the first of some words; "" where there is none to show."""
    if by_recipe := re.match(r"default (\[.*?\]|[^,]+)", key.origin):
        return by_recipe[1] if by_recipe[1] != "null" else ""
    if key.default not in (None, "null", "{}", "[]", "any"):
        return str(key.default)
    words = re.match(r"one of ([^,|]+)", key.type)
    return words[1].strip() if words else ""


def write(folder: Path) -> None:
    """Write both files into a folder."""
    (folder / "api_keys.py").write_text(source(), encoding="utf-8")
    (folder / "key_table.json").write_text(key_table(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else ROOT)
