"""Configuration: dataclass schemas filled from YAML and key=value; errors name the key and what was expected."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import itertools
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

T = TypeVar("T")
_MISSING = dataclasses.MISSING


class MaeliftError(Exception):
    """A user's mistake or a state of the world to be told in one line: exit code 2, no traceback."""

    exit_code = 2


class DataError(MaeliftError):
    """Images or labels that are missing or not what they should be."""


class CheckpointError(MaeliftError):
    """Weights or checkpoints that are missing or not what they should be."""


class ConfigError(MaeliftError):
    """A value that a key can't have: names the key, the value, what was expected and, if given, what to do."""

    def __init__(self, key: str, value: object, expected: str, advice: str = "") -> None:
        self.key, self.value, self.expected, self.advice = key, value, expected, advice
        super().__init__(f"{key}={show(value)}: expected {expected}.{f' {advice}' if advice else ''}")


@dataclass(frozen=True)
class KeyHelp:
    """One key of a schema: dotted name, type in words, default (None: must be given) and meaning."""

    key: str
    type: str
    default: str | None
    help: str


def resolve(
    schema: type[T],
    overrides: Sequence[str] | Mapping[str, object] = (),
    file: str | Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> T:
    """Build ``schema`` from its own defaults, ``defaults``, a YAML file and overrides, later ones winning.

    ``overrides`` are "key=value" texts, values as in YAML, or a mapping. Raises ConfigError or MaeliftError.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers = [_plain(defaults or {})]
    if file is not None:
        layers.append(_read_yaml(Path(file)))
    layers.append(_plain(overrides) if isinstance(overrides, Mapping) else _parse_overrides(schema, overrides))
    try:
        merged = OmegaConf.merge(*(OmegaConf.create(layer) for layer in layers))
        content = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        raise MaeliftError(f"configuration: {str(error).splitlines()[0]}") from error
    return cast(T, _build(schema, cast(dict[str, Any], content), "", schema))


def describe(schema: type) -> list[KeyHelp]:
    """Every key of a schema, those of nested dataclasses dotted, in the order of definition."""
    return list(_describe(schema, ""))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists that JSON and YAML can hold."""
    return cast(dict[str, Any], _plain(dataclasses.asdict(config)))


def to_yaml(config: Any) -> str:
    """A configuration as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))


def write_config(config: Any, path: Path) -> None:
    """Write the configuration as YAML, all at once."""
    from .files import atomic_write_text

    atomic_write_text(path, to_yaml(config))


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, as "key: old -> new"."""
    before, after = dict(_flatten(old)), dict(_flatten(new))
    return [
        f"{key}: {show(before.get(key, 'unset'))} -> {show(after.get(key, 'unset'))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _MISSING) != after.get(key, _MISSING)
    ]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was most likely meant, if any is near."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return found[0] if found else None


def show(value: object) -> str:
    """A value as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def type_name(kind: Any) -> str:
    """A type in words: "int | null", "one of random, block, grid"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(show(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if kind is type(None):
        return "null"
    if origin in (tuple, list):
        inner = [type_name(argument) for argument in arguments if argument is not Ellipsis]
        return f"[{inner[0]}, ...]" if origin is list or Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin is dict:
        return "mapping"
    names = {int: "int", float: "float", bool: "true or false", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _parse_overrides(schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf

    kinds = {entry.key: entry.type for entry in describe(schema)}
    result: Any = OmegaConf.create()
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MaeliftError(f"'{text}': expected key=value.")
        if kinds.get(key) == "text":
            OmegaConf.update(result, key, value)
            continue
        try:
            result = OmegaConf.merge(result, OmegaConf.from_dotlist([text]))
        except Exception as error:
            raise MaeliftError(f"{text}: the value can't be read as YAML ({str(error).splitlines()[0]}).") from error
    return cast(dict[str, Any], OmegaConf.to_container(result))


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf

    if not path.is_file():
        raise MaeliftError(f"{path}: no such configuration file.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise MaeliftError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or error}).") from error
    if not isinstance(content, dict):
        raise MaeliftError(f"{path}: expected keys and values, found a {type(content).__name__}.")
    return cast(dict[str, Any], content)


def _build(schema: type, content: Mapping[str, Any], prefix: str, top: type) -> Any:
    kinds = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in content:
        if name not in fields:
            raise _unknown_key(prefix + str(name), top)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in content:
            values[name] = _convert(kinds[name], content[name], prefix + name, top)
        elif field.default is _MISSING and field.default_factory is _MISSING:
            if dataclasses.is_dataclass(kinds[name]):
                values[name] = _build(cast(type, kinds[name]), {}, f"{prefix}{name}.", top)
            else:
                meaning = {entry.key: entry.help for entry in describe(schema)}[name]
                raise MaeliftError(
                    f"{prefix}{name}: needed ({type_name(kinds[name])}: {meaning}). Give {prefix}{name}=..."
                )
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
        if value in arguments and type(value) in {type(argument) for argument in arguments}:
            return value
        close = nearest(str(value), [str(argument) for argument in arguments])
        raise _WrongType(key, value, type_name(kind), f"Did you mean {close}?" if close else "")
    elif origin in (tuple, list) and isinstance(value, list | tuple):
        if origin is list or Ellipsis in arguments:
            return origin(_convert(arguments[0], item, f"{key}[{number}]", top) for number, item in enumerate(value))
        if len(value) == len(arguments):
            pairs = zip(arguments, value, strict=True)
            return tuple(_convert(part, item, f"{key}[{number}]", top) for number, (part, item) in enumerate(pairs))
    elif origin is dict and isinstance(value, Mapping):
        return {str(name): _convert(arguments[1], item, f"{key}.{name}", top) for name, item in value.items()}
    elif kind is Any or kind is object:
        return value
    elif kind is type(None):
        if value is None:
            return None
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise ConfigError(key, value, "a finite number")
    elif kind in (int, bool, str) and type(value) is kind:
        return value
    raise _WrongType(key, value, type_name(kind))


class _WrongType(ConfigError):
    """A value of another type than its key's."""


def _unknown_key(key: str, schema: type) -> MaeliftError:
    known = {entry.key: entry for entry in describe(schema)}
    close = nearest(key, known)
    if close is None:
        return MaeliftError(f"{key}: no such key. Those there are: {', '.join(known)}.")
    entry = known[close]
    default = "must be given" if entry.default is None else f"default {entry.default}"
    return MaeliftError(f"{key}: no such key. Did you mean {close} ({entry.type}; {entry.help}; {default})?")


def _describe(schema: type, prefix: str) -> Iterator[KeyHelp]:
    kinds, texts = typing.get_type_hints(schema), _field_texts(schema)
    for field in dataclasses.fields(schema):
        kind = kinds[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _describe(kind, f"{prefix}{field.name}.")
            continue
        default = field.default
        if field.default_factory is not _MISSING:
            default = field.default_factory()
        shown = None if default is _MISSING else show(default)
        yield KeyHelp(prefix + field.name, type_name(kind), shown, texts.get(field.name, ""))


def _field_texts(schema: type) -> dict[str, str]:
    """The text under each field, of the class and those that it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]).body
        for field, text in itertools.pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    texts[name] = " ".join(words.split())
    return texts


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
