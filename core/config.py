"""Configuration: dataclass schemas filled from YAML and key=value; errors name the key and its type."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from .errors import ConfigError, MaeliftError, _shortened, show

T = TypeVar("T")
LARGEST_CONFIG = 16 * 2**20
"""Bytes up to which a configuration file is read."""
MOST_VALUES = 1_000_000
"""Values that a YAML text may stand for; a few lines of anchors and aliases can stand for billions."""
_MISSING = dataclasses.MISSING


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

    ``overrides`` are "key=value" texts, values as in YAML, or a mapping; ``${other.key}``, ``${oc.env:NAME}``
    stand for other values. Raises ConfigError, or MaeliftError for what concerns no single value.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    layers = [_schema_defaults(schema), _plain(defaults or {})]
    if file is not None:
        layers.append(cast(dict[str, Any], _as_written(schema, *_read_yaml(Path(file)))))
    if isinstance(overrides, Mapping):
        layers.append(_plain(overrides))
        typed: dict[str, str] = {}
    else:
        layers.append(_parse_overrides(schema, overrides))
        typed = _typed_values(overrides)
    try:
        content = OmegaConf.to_container(
            OmegaConf.create(functools.reduce(merged, layers)), resolve=True, throw_on_missing=True
        )
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "configuration"
        raise MaeliftError(f"{key}: {_first_line(error)}.") from error
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        reason = "values that refer to each other in a circle" if isinstance(error, RecursionError) else str(error)
        raise MaeliftError(f"configuration: can't be put together ({_shortened(reason)}).") from error
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
    given: Mapping[str, object] = overrides if isinstance(overrides, Mapping) else _typed_values(overrides)
    if key in given or file is None:
        return given.get(key)
    return _read_yaml(Path(file))[0].get(key)


def describe(schema: type) -> list[KeyHelp]:
    """Every key of a schema, those of nested dataclasses dotted, in the order of definition."""
    return list(_describe(schema, "", None))


def format_help(schema: type, origin: Mapping[str, str] | None = None, *, skip: type | None = None) -> str:
    """Every key of a schema with its type, default and meaning, for people; nested ones in groups.

    ``origin`` says of keys where their values come from, if neither from the user nor from the schema. The keys of ``skip``, a
    schema that this one extends, are left out.
    """
    lines, group = [], ""
    inherited = {entry.key for entry in describe(skip)} if skip else set()
    for entry in describe(schema):
        if entry.key in inherited:
            continue
        above, _, _ = entry.key.rpartition(".")
        if above != group:
            group = above
            lines.append("")
        default = "needed" if entry.default is None else f"default {entry.default}"
        default = (origin or {}).get(entry.key, default)
        lines.append(f"  {entry.key}  ({entry.type}; {default})")
        lines.extend(textwrap.wrap(entry.help, 100, initial_indent="      ", subsequent_indent="      "))
    return "\n".join(lines)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists that JSON and YAML can hold."""
    return cast(dict[str, Any], _plain(config))


def to_yaml(config: Any) -> str:
    """A configuration, or a mapping of its kind, as YAML."""
    import yaml
    from omegaconf import OmegaConf

    try:
        return OmegaConf.to_yaml(OmegaConf.create(to_dict(config)))
    except UnicodeEncodeError:  # a path that isn't UTF-8, which only Python's own emitter escapes
        return yaml.dump(to_dict(config), Dumper=yaml.SafeDumper, sort_keys=False)


def write_config(config: Any, path: Path) -> None:
    """Write the configuration as YAML, all at once."""
    from .files import atomic_write_text

    atomic_write_text(path, to_yaml(config))


def config_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two configurations, as "key: old -> new"."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"{key}: {show(before.get(key, 'unset'))} -> {show(after.get(key, 'unset'))}"
        for key in dict.fromkeys([*before, *after])
        if before.get(key, _MISSING) != after.get(key, _MISSING)
    ]


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was most likely meant, if any is near."""
    found = difflib.get_close_matches(word, list(words), n=1)
    return found[0] if found else None


def type_name(kind: Any) -> str:
    """A type in words: "int | null", "one of random, block, grid"."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return "one of " + ", ".join(show(argument) for argument in arguments)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(argument) for argument in arguments)
    if kind is type(None):
        return "null"
    if dataclasses.is_dataclass(kind):
        return "{" + ", ".join(field.name for field in dataclasses.fields(kind)) + "}"
    if origin in (tuple, list):
        inner = [type_name(argument) for argument in arguments if argument is not Ellipsis]
        return f"[{inner[0]}, ...]" if origin is list or Ellipsis in arguments else f"[{', '.join(inner)}]"
    if origin in (dict, Mapping):
        return "mapping"
    names = {int: "int", float: "float", bool: "true or false", str: "text"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _parse_overrides(schema: type, overrides: Sequence[str]) -> dict[str, Any]:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {entry.key: entry for entry in describe(schema)}
    result: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise MaeliftError(f"'{_shortened(text)}': expected key=value.")
        if not _may_be_given(key, known.values()):
            raise _unknown_key(key, schema)
        kind = known[key].type if key in known else "a value"
        if not value.strip():
            has_default = key in known and known[key].default is not None
            raise ConfigError(key, "", kind, "Leave the key out to get its default." if has_default else "")
        try:
            word = OmegaConf.create()
            OmegaConf.update(word, key, _typed(_kind_of(schema, key), value))
            result = merged(result, cast(dict[str, Any], _plain(OmegaConf.to_container(word))))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            raise ConfigError(key, value, kind, f"It isn't YAML: {_first_line(error)}.") from error
        except (ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
            raise ConfigError(key, value, kind, f"It can't be read: {_shortened(_first_line(error))}.") from error
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
    if _joined_pairs(written):  # {30:40} is a single word in YAML, or a time of 30 minutes
        content, written = yaml_values(_JOINED_PAIR.sub(r"\1: ", value))
    if isinstance(written, str) and _SEXAGESIMAL.fullmatch(written):
        return written
    return _as_written(kind, content, written)


_JOINED_PAIR = re.compile(r"""([{,]\s*[^\s:,{}\[\]"']+):(?=[^\s:,}\]])""")
_SEXAGESIMAL = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.\d*)?")
"""Numbers to the base of 60 in YAML 1.1, which nobody means."""


def _joined_pairs(written: Any) -> list[str]:
    """The keys of mappings, at any depth, that are a key and a value without a space between."""
    if isinstance(written, Mapping):
        own = [str(key) for key, value in written.items() if re.fullmatch(r"[^\s:]+:[^\s:]+", str(key)) and value == ""]
        return own + [key for value in written.values() for key in _joined_pairs(value)]
    return [key for item in written for key in _joined_pairs(item)] if isinstance(written, list) else []


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


def _as_written(kind: Any, value: Any, written: Any) -> Any:
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
                    name: _as_written(kinds.get(name, object), item, written.get(name)) for name, item in value.items()
                }
            if origin is dict:
                return {name: _as_written(arguments[1], item, written.get(name)) for name, item in value.items()}
        listed = isinstance(value, list) and isinstance(written, list) and len(value) == len(written)
        if listed and (origin is list or (origin is tuple and Ellipsis in arguments)):
            return [_as_written(arguments[0], *pair) for pair in zip(value, written, strict=True)]
    scalar = isinstance(written, str) and not isinstance(value, list | Mapping)
    return written if scalar and str in options else value


def yaml_values(text: str) -> tuple[Any, Any]:
    """What a YAML text holds: as OmegaConf reads it, and with all scalars as they are written.

    Raises what YAML and OmegaConf raise, RecursionError, and ValueError for one that would not end.
    """
    import yaml
    from omegaconf import DictConfig, ListConfig, OmegaConf

    node = yaml.compose(text, yaml.BaseLoader)
    if node is not None and _expanded(node, {}) > MOST_VALUES:
        raise ValueError(f"it stands for more than {MOST_VALUES:,} values")
    written = yaml.load(text, yaml.BaseLoader)
    if not isinstance(written, dict | list):
        content = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))
        return cast(dict[str, Any], content)["value"], written
    content = OmegaConf.create(text)
    assert isinstance(content, DictConfig | ListConfig)
    return _plain(OmegaConf.to_container(content)), written


def _expanded(node: Any, known: dict[int, int]) -> int:
    """How many values a node of YAML stands for, with aliases in their places; RecursionError for one within itself."""
    import yaml

    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # met again before it is known: within itself
        children: list[Any] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_expanded(child, known) for child in children)
    return known[id(node)]


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings key by key, else the upper value; OmegaConf's merge refuses a list over a mapping."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merged(result[key], value) if both else value
    return result


def _may_be_given(key: str, entries: Iterable[KeyHelp]) -> bool:
    """Whether a dotted key is in the schema, a group of its keys, or below one whose value has keys."""
    return any(
        entry.key == key
        or entry.key.startswith(f"{key}.")
        or (key.startswith(f"{entry.key}.") and ("mapping" in entry.type or "{" in entry.type))
        for entry in entries
    )


def _typed_values(overrides: Sequence[str]) -> dict[str, str]:
    """The values of a dotlist as they were typed, by key; the last one of a key wins."""
    return {key: value for key, _, value in (text.partition("=") for text in overrides)}


def _first_line(error: Exception) -> str:
    """What an error of YAML or OmegaConf says, without the position that follows."""
    problem = getattr(error, "problem", None) or (str(error).splitlines() or ["unreadable"])[0]
    return str(problem).rstrip(".")


def _read_yaml(path: Path) -> tuple[dict[str, Any], Any]:
    """The keys and values of a YAML file; and again with all scalars as they are written."""
    import yaml
    from omegaconf.errors import OmegaConfBaseException

    from .files import read_regular_text

    try:
        text = read_regular_text(path, encoding="utf-8-sig", limit=LARGEST_CONFIG)
        content, written = yaml_values(text)
    except FileNotFoundError as error:
        raise MaeliftError(f"{path}: no such configuration file.") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MaeliftError(f"{path}: the configuration file can't be read ({reason}).") from error
    except RecursionError as error:
        raise MaeliftError(f"{path}: nested too deeply. Expected keys and values.") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        last = len(path.read_bytes().splitlines())  # at the end of a file, the mark is past it
        where = f" line {min(mark.line + 1, last)}" if mark else ""
        raise MaeliftError(f"{path}{where}: not YAML ({_first_line(error)}).") from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        found = "a single value" if not isinstance(content, list) else "a list"
        raise MaeliftError(f"{path}: expected keys and values, found {found}.")
    check_pairs(path, written)
    return content, written


def check_pairs(path: Path, written: Any) -> None:
    """Raise MaeliftError for a mapping such as {30:40} in what a YAML file holds, of which YAML makes a single word."""
    if joined := _joined_pairs(written):
        spaced = joined[0].replace(":", ": ", 1)
        raise MaeliftError(
            f"{path}: {{{joined[0]}}}: a single word in YAML. Put a space after the colon: {{{spaced}}}."
        )


def _build(schema: type, content: Mapping[str, Any], prefix: str, top: type) -> Any:
    kinds = typing.get_type_hints(schema)
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in content:
        if name not in fields:
            raise _unknown_key(prefix + str(name), top, list(_describe(schema, prefix, None)))
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


def _unknown_key(key: str, schema: type, near: Sequence[KeyHelp] = ()) -> MaeliftError:
    """The error for a key that isn't there; ``near`` are the keys where it was looked up."""
    known = {entry.key: entry for entry in [*near, *describe(schema)]}
    if key in known:
        above, _, last = key.rpartition(".")
        return MaeliftError(f"{key}: here, nested keys are mappings. Write {above}: {{{last}: ...}}.")
    last_words = {name.rpartition(".")[2]: name for name in reversed(known)}
    close = nearest(key, known) or last_words.get(nearest(key.rpartition(".")[2], last_words) or "")
    if close is None:
        return MaeliftError(f"{key}: no such key. Those there are: {', '.join(known)}.")
    entry = known[close]
    facts = [entry.type, entry.help, "needed" if entry.default is None else f"default {entry.default}"]
    return MaeliftError(f"{key}: no such key. Did you mean {close} ({', '.join(filter(None, facts))})?")


def _describe(schema: type, prefix: str, instance: object) -> Iterator[KeyHelp]:
    """The keys of a schema; ``instance``, if given, holds their defaults."""
    kinds, texts = typing.get_type_hints(schema), _field_texts(schema)
    for field in dataclasses.fields(schema):
        kind = kinds[field.name]
        default = _default(field) if instance is None else getattr(instance, field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from _describe(kind, f"{prefix}{field.name}.", None if default is _MISSING else default)
            continue
        shown = None if default is _MISSING else show(_plain(default))
        yield KeyHelp(prefix + field.name, type_name(kind), shown, texts.get(field.name, ""))


def _schema_defaults(schema: type) -> dict[str, Any]:
    """The schema's own defaults, of the keys that have one."""
    kinds, result = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        kind, default = kinds[field.name], _default(field)
        if default is not _MISSING:
            result[field.name] = _plain(default)
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            result[field.name] = _schema_defaults(kind)
    return result


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is _MISSING else field.default_factory()


@functools.cache
def _field_texts(schema: type) -> Mapping[str, str]:
    """The text under each field, of the class and those that it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # a class typed in at a prompt: nothing to read
            continue
        body = cast(ast.ClassDef, ast.parse(textwrap.dedent(source)).body[0]).body
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


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their keys, a dot between."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
