"""Writes api_keys.py: the keys of the functions of api.py as types. Run it after a key has changed."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Union

from maelift.api import _schemas

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


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parent.parent / "api_keys.py").write_text(source())
