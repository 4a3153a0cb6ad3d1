"""The words key=value of a command, typed as the schema has it: text stays as it was typed."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union, cast

from .config_keys import KeyHelp, describe, unknown_key
from .errors import ConfigError, MaeliftError, shortened
from .yaml_files import JOINED_PAIR, first_line, joined_pairs, merged, plain, yaml_values


def parse_overrides(schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    """The nested values of words "key=value"; raises ConfigError for a value, MaeliftError for a word or an unknown key."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {entry.key: entry for entry in describe(schema)}
    result: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MaeliftError(f"'{shortened(text)}': expected key=value.")
        if not _may_be_given(key, known.values()):
            raise unknown_key(key, schema)
        kind = known[key].type if key in known else "a value"
        if not value.strip():
            has_default = key in known and known[key].default is not None
            raise ConfigError(key, "", kind, "Leave the key out to get its default." if has_default else "")
        try:
            word = OmegaConf.create()
            OmegaConf.update(word, key, _typed(_kind_of(schema, key), value))
            result = merged(result, cast(dict[str, Any], plain(OmegaConf.to_container(word))))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(key, value, kind, f"It isn't YAML: {first_line(error)}.") from error
        except (ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
            raise ConfigError(key, value, kind, f"It can't be read: {shortened(first_line(error))}.") from error
        except RecursionError as error:
            raise ConfigError(key, value, kind, "It is nested too deeply.") from error
    return result


def _typed(kind: Any, value: str) -> Any:
    """What a word on the command line stands for: where ``kind`` is text, exactly what was typed; else what YAML makes of it.

    A list of texts is [A,B], its items as they were typed.
    """
    options = _options(kind)
    if value == "null" and type(None) in options:
        return None
    listed = value.strip()
    if any(_is_texts(option) for option in options) and listed.startswith("[") and listed.endswith("]"):
        return _texts(listed[1:-1])
    if str in options:
        return value
    content, written = yaml_values(value)
    if joined_pairs(written):  # {30:40} is a single word in YAML, or a time of 30 minutes
        content, written = yaml_values(JOINED_PAIR.sub(r"\1: ", value))
    if isinstance(written, str) and _SEXAGESIMAL.fullmatch(written):
        return written
    return as_written(kind, content, written)


_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")
"""Numbers to the base of 60 in YAML 1.1, which nobody means."""


def _texts(listed: str) -> list[str]:
    """The texts of a list, without its brackets: separated by commas, but for those within quotes or braces."""
    import yaml

    items, item, quote, depth = [], "", "", 0
    for letter in [*listed, ","]:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not item.strip():
            quote = letter
        elif letter in "{}":
            depth += 1 if letter == "{" else -1
        elif letter == "," and depth <= 0:
            items.append(item.strip())
            item = ""
            continue
        item += letter
    if item.strip(" ,"):
        raise ValueError("a quote or a brace isn't closed")
    if items and not items[-1]:
        items.pop()
    return [str(yaml.load(item, yaml.BaseLoader)) if item[:1] in ("'", '"') else item for item in items]


def _options(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have."""
    return typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)


def _is_texts(kind: Any) -> bool:
    return typing.get_origin(kind) in (tuple, list) and set(typing.get_args(kind)) <= {str, Ellipsis}


def _kind_of(schema: Any, key: str) -> Any:
    """The type of the value at a dotted key, ``object`` where none is known."""
    kind = schema
    for part in key.split("."):
        for option in _options(kind):
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                kind = typing.get_type_hints(option).get(part, object)
                break
            if typing.get_origin(option) is dict:
                kind = typing.get_args(option)[1]
                break
        else:
            return object
    return kind


def as_written(kind: Any, value: Any, written: Any) -> Any:
    """A value out of YAML, with what is text in ``kind`` as it was ``written``: 007, 2024-11-29, 1e5 and yes may be names."""
    options = _options(kind)
    if value is None or isinstance(value, str):
        return value
    for option in options:
        origin, arguments = typing.get_origin(option), typing.get_args(option)
        if isinstance(value, Mapping) and isinstance(written, Mapping):
            if dataclasses.is_dataclass(option) and isinstance(option, type):
                kinds = typing.get_type_hints(option)
                return {
                    name: as_written(kinds.get(name, object), item, written.get(name)) for name, item in value.items()
                }
            if origin is dict:
                return {name: as_written(arguments[1], item, written.get(name)) for name, item in value.items()}
        listed = isinstance(value, list) and isinstance(written, list) and len(value) == len(written)
        if listed and (origin is list or (origin is tuple and Ellipsis in arguments)):
            return [as_written(arguments[0], *pair) for pair in zip(value, written, strict=True)]
    scalar = isinstance(written, str) and not isinstance(value, list | Mapping)
    return written if scalar and str in options else value


def _may_be_given(key: str, entries: Iterable[KeyHelp]) -> bool:
    """Whether a dotted key is in the schema, a group of its keys, or below one whose value has keys."""
    return any(
        entry.key == key
        or entry.key.startswith(f"{key}.")
        or (key.startswith(f"{entry.key}.") and ("mapping" in entry.type or "{" in entry.type))
        for entry in entries
    )


def typed_values(overrides: Sequence[str]) -> dict[str, str]:
    """The values of a dotlist as they were typed, by key; the last one of a key wins."""
    return {key: value for key, _, value in (text.partition("=") for text in overrides)}
