"""The keys of a configuration: names, types in words, defaults and meanings, read from a dataclass schema."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, cast

from .errors import MaeliftError, show
from .yaml_files import plain

MISSING = dataclasses.MISSING


@dataclass(frozen=True)
class KeyHelp:
    """One key of a schema: dotted name, type in words, default (None: must be given) and meaning.

    ``origin`` says where its value comes from, if neither from the user nor from the schema alone: "default 0.1, with
    init=scratch 0.3". ``example`` is a value to give, as text; "" where none is known.
    """

    key: str
    type: str
    default: str | None
    help: str
    origin: str = ""
    example: str = ""

    def lines(self) -> list[str]:
        """The key for people: its name, type and default, and its meaning below."""
        default = self.origin or ("needed" if self.default is None else f"default {self.default}")
        meaning = textwrap.wrap(self.help, 100, initial_indent="      ", subsequent_indent="      ")
        return [f"  {self.key}  ({self.type}; {default})", *meaning]


@dataclass(frozen=True)
class KeySection:
    """Keys of a command that belong together; ``title`` is "" for those of the command as a whole."""

    title: str
    keys: tuple[KeyHelp, ...]

    def text(self) -> str:
        """The keys for people; nested ones in groups, after an empty line."""
        lines, group = [self.title] if self.title else [], ""
        for entry in self.keys:
            above, _, _ = entry.key.rpartition(".")
            if above != group:
                group = above
                lines += [""] if lines else []
            lines += entry.lines()
        return "\n".join(lines)


def key_sections(schema: Any, origins: Mapping[str, str] | None = None) -> list[KeySection]:
    """The keys of a schema; ``origins`` says of keys where their values come from, for schemas without ``key_sections``."""
    if hasattr(schema, "key_sections"):
        return cast("list[KeySection]", schema.key_sections())
    return [section(schema, origins or {})]


def section(schema: type, origins: Mapping[str, str], title: str = "", skip: type | None = None) -> KeySection:
    """The keys of a schema as one section, without those of ``skip``, a schema that this one extends."""
    inherited = {entry.key for entry in describe(skip)} if skip else set()
    entries = [entry for entry in describe(schema) if entry.key not in inherited]
    return KeySection(title, tuple(dataclasses.replace(one, origin=origins.get(one.key, "")) for one in entries))


def describe(schema: type) -> list[KeyHelp]:
    """Every key of a schema, those of nested dataclasses dotted, in the order of definition."""
    return list(describe_below(schema, "", None))


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The word that was most likely meant, if any is near."""
    found = nearest_names(word, words, 1)
    return found[0] if found else None


def nearest_names(word: str, words: Iterable[str], count: int = 3) -> list[str]:
    """The words, ``count`` at most, that were most likely meant."""
    return difflib.get_close_matches(word, list(words), n=count)


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


def unknown_key(key: str, schema: type, near: Sequence[KeyHelp] = ()) -> MaeliftError:
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


def describe_below(schema: type, prefix: str, instance: object) -> Iterator[KeyHelp]:
    """The keys of a schema; ``instance``, if given, holds their defaults."""
    kinds, texts = typing.get_type_hints(schema), _field_texts(schema)
    for field in dataclasses.fields(schema):
        kind = kinds[field.name]
        default = _default(field) if instance is None else getattr(instance, field.name)
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            yield from describe_below(kind, f"{prefix}{field.name}.", None if default is MISSING else default)
            continue
        shown = None if default is MISSING else show(plain(default))
        yield KeyHelp(prefix + field.name, type_name(kind), shown, texts.get(field.name, ""))


def schema_defaults(schema: type) -> dict[str, Any]:
    """The schema's own defaults, of the keys that have one."""
    kinds, result = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(schema):
        kind, default = kinds[field.name], _default(field)
        if default is not MISSING:
            result[field.name] = plain(default)
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            result[field.name] = schema_defaults(kind)
    return result


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


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
