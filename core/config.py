"""Configuration: dataclass schemas filled from YAML and key=value; errors name the key and its type."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from .config_keys import MISSING, describe, describe_below, nearest, schema_defaults, type_name, unknown_key
from .errors import ConfigError, MaeliftError, shortened, show
from .overrides import as_written, parse_overrides, typed_values
from .yaml_files import first_line, flatten, merged, plain, read_yaml

T = TypeVar("T")


class MissingKeyError(MaeliftError):
    """A key without a default isn't given; ``key`` is its full name."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def resolve(
    schema: type[T],
    overrides: Sequence[str] | Mapping[str, object] = (),
    file: str | Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> T:
    """Build ``schema`` from its own defaults, ``defaults``, a YAML file and overrides, later ones winning.

    ``overrides`` are "key=value" texts, values as in YAML, or a mapping; ``${other.key}``, ``${oc.env:NAME}``
    stand for other values. Raises ConfigError, or MaeliftError for what concerns no single value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers = [schema_defaults(schema), plain(defaults or {})]
    if file is not None:
        layers.append(cast(dict[str, Any], as_written(schema, *read_yaml(Path(file)))))
    if isinstance(overrides, Mapping):
        layers.append(plain(overrides))
        typed: dict[str, str] = {}
    else:
        layers.append(parse_overrides(schema, overrides))
        typed = typed_values(overrides)
    try:
        content = OmegaConf.to_container(
            OmegaConf.create(functools.reduce(merged, layers)), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise MaeliftError(f"{key}: {first_line(error)}.") from error
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = "values that refer to each other in a circle" if isinstance(error, RecursionError) else str(error)
        raise MaeliftError(f"configuration: can't be put together ({shortened(reason)}).") from error
    try:
        return cast(T, _build(schema, cast(dict[str, Any], content), "", schema))
    except ConfigError as error:
        shown = typed.get(error.key, error.value)
        raise ConfigError(error.key, shown, error.expected, error.advice) from error


def from_plain(kind: Any, value: object, key: str) -> Any:
    """A value of JSON as one of the type ``kind``, as annotations have them, dataclasses among them.

    Raises ConfigError, or MaeliftError for a key that isn't there or is missing; ``key`` is the value's name in them.
    """
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        return _build(kind, value, f"{key}." if key else "", kind)
    return _convert(kind, value, key, object)


def raw_value(key: str, overrides: Sequence[str] | Mapping[str, object], file: Path | None = None) -> object:
    """The value of a top-level key before any schema is known: the last override's, else the file's, else None."""
    given: Mapping[str, object] = overrides if isinstance(overrides, Mapping) else typed_values(overrides)
    if key in given or file is None:
        return given.get(key)
    return read_yaml(Path(file))[0].get(key)


def is_given(key: str, overrides: Sequence[str] | Mapping[str, object], file: Path | None = None) -> bool:
    """Whether a top-level key, or one below it, is in the overrides or the file."""
    given: Mapping[str, object] = overrides if isinstance(overrides, Mapping) else typed_values(overrides)
    names = {*given, *(read_yaml(Path(file))[0] if file is not None else ())}
    return any(str(name).partition(".")[0] == key for name in names)


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, as "key: old -> new"."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"{key}: {show(before.get(key, 'unset'))} -> {show(after.get(key, 'unset'))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, MISSING) != after.get(key, MISSING)
    ]


def _build(schema: type, content: Mapping[str, Any], prefix: str, top: type) -> Any:
    kinds = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in content:
        if name not in fields:
            raise unknown_key(prefix + str(name), top, list(describe_below(schema, prefix, None)))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _convert(kinds[name], content[name], prefix + name, top)
        elif field.default is MISSING and field.default_factory is MISSING:
            if dataclasses.is_dataclass(kinds[name]):
                values[name] = _build(cast(type, kinds[name]), {}, f"{prefix}{name}.", top)
            else:
                meaning = {entry.key: entry.help for entry in describe(schema)}[name]
                said = f"{prefix}{name}: needed ({type_name(kinds[name])}: {meaning}). Give {prefix}{name}=..."
                raise MissingKeyError(prefix + name, said)
    try:
        return schema(**values)
    except ConfigError as error:
        raise ConfigError(prefix + error.key, error.value, error.expected, error.advice) from error


def _convert(kind: Any, value: Any, key: str, top: type) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, Mapping):
            return _build(kind, value, f"{key}.", top)
    elif origin in (Union, types.UnionType):
        for argument in sorted(arguments, key=lambda argument: argument is float):
            try:
                return _convert(argument, value, key, top)
            except _WrongType:
                continue
    elif origin is Literal:
        if isinstance(value, list | Mapping):
            raise _WrongType(key, value, type_name(kind))
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        if isinstance(value, bool) and (word := "on" if value else "off") in arguments:  # YAML takes them for these
            return word
        close = nearest(str(value), [str(argument) for argument in arguments])
        raise _WrongType(key, value, type_name(kind), f"Did you mean {close}?" if close else "")
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        of_one_kind = origin is list or Ellipsis in arguments
        parts = [arguments[0]] * len(value) if of_one_kind else arguments
        if len(value) == len(parts):
            pairs = enumerate(zip(parts, value, strict=True))
            return origin(_convert(part, item, f"{key}[{number}]", top) for number, (part, item) in pairs)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return {str(name): _convert(arguments[1], item, f"{key}.{name}", top) for name, item in value.items()}
    elif kind is Any or kind is object:
        return value
    elif kind is type(None):
        if value is None:
            return None
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) <= sys.float_info.max:
            return float(value)
        raise ConfigError(key, value, "a finite number")
    elif kind in (int, bool, str) and type(value) is kind:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(key, value, "a number of at most 64 bits")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(key, value, "text without null bytes")
        return value
    number_for_text = kind is str and isinstance(value, int | float)
    raise _WrongType(key, value, type_name(kind), "Put it in quotes." if number_for_text else "")


class _WrongType(ConfigError):
    """A value of another type than its key's."""
