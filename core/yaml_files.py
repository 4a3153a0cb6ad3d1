"""YAML read and written: one safe reader of bounded size, and plain values that YAML and JSON can hold."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from .errors import MaeliftError

LARGEST_CONFIG = 16 * 2**20
"""Bytes up to which a configuration file is read."""

MOST_VALUES = 1_000_000
"""Values that a YAML text may stand for; a few lines of anchors and aliases can stand for billions."""


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts and lists that JSON and YAML can hold."""
    return cast(dict[str, Any], plain(config))


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


JOINED_PAIR = re.compile(r"""([{,]\s*[^\s:,{}\[\]"']+):(?=[^\s:,}\]])""")


def joined_pairs(written: Any) -> list[str]:
    """The keys of mappings, at any depth, that are a key and a value without a space between."""
    if isinstance(written, Mapping):
        own = [str(key) for key, value in written.items() if re.fullmatch(r"[^\s:]+:[^\s:]+", str(key)) and value == ""]
        return own + [key for value in written.values() for key in joined_pairs(value)]
    return [key for item in written for key in joined_pairs(item)] if isinstance(written, list) else []


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
    return plain(OmegaConf.to_container(content)), written


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


def first_line(error: Exception) -> str:
    """What an error of YAML or OmegaConf says, without the position that follows."""
    problem = getattr(error, "problem", None) or (str(error).splitlines() or ["unreadable"])[0]
    return str(problem).rstrip(".")


def read_yaml(path: Path) -> tuple[dict[str, Any], Any]:
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
        raise MaeliftError(f"{path}{where}: not YAML ({first_line(error)}).") from error
    if content is None:
        return {}, {}
    if not isinstance(content, dict):
        found = "a single value" if not isinstance(content, list) else "a list"
        raise MaeliftError(f"{path}: expected keys and values, found {found}.")
    check_pairs(path, written)
    return content, written


def check_pairs(path: Path, written: Any) -> None:
    """Raise MaeliftError for a mapping such as {30:40} in what a YAML file holds, of which YAML makes a single word."""
    if joined := joined_pairs(written):
        spaced = joined[0].replace(":", ": ", 1)
        raise MaeliftError(
            f"{path}: {{{joined[0]}}}: a single word in YAML. Put a space after the colon: {{{spaced}}}."
        )


def plain(value: Any) -> Any:
    """Dataclasses, tuples and paths as dicts, lists and texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their keys, a dot between."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
