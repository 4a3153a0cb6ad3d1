"""Reads yacs configs as plain data with their ``_BASE_`` chain: no YAML tag runs, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import MaeliftError
from ..core.files import NotRegularError, read_regular_text

BASE = "_BASE_"
LARGEST_FILE = 2**20
"""Bytes of a config; those of detectron2's zoo have a few thousand."""
LARGEST_CONFIG = 100_000
"""Values of a config with its aliases written out; detectron2's defaults have some 400."""
LONGEST_CHAIN = 20
PLAIN = "tag:yaml.org,2002:"


def read_yacs(path: Path, _chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a yacs config over those of its bases, as fvcore merges them.

    Raises MaeliftError, naming file and line, for tags that would run code, and for bases that are no files.
    """
    if path.resolve() in _chain or len(_chain) >= LONGEST_CHAIN:
        raise MaeliftError(f"{_chain[0]}: its {BASE} files lead back to themselves, or are over {LONGEST_CHAIN}.")
    content = read_plain_yaml(path)
    bases = content.pop(BASE, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        merge(read_yacs(base_file(path, base), (*_chain, path.resolve())), merged, path)
    merge(content, merged, path)
    return merged


def base_file(path: Path, base: object) -> Path:
    """The file that a config names under ``_BASE_``, relative to its own folder."""
    if not isinstance(base, str) or "://" in base:
        raise MaeliftError(
            f"{path}: {BASE}: {base}: not a file on this disk, and certify downloads nothing. Put it beside the config."
        )
    return path.parent / Path(base).expanduser()


def merge(values: Mapping[str, Any], into: dict[str, Any], path: Path) -> None:
    """Merge ``values`` into ``into``, key by key."""
    for key, value in values.items():
        found = into.get(key)
        if isinstance(value, dict) and key in into:
            if not isinstance(found, dict):
                raise MaeliftError(f"{path}: {key} has keys of its own, but its {BASE} has the value {found!r} there.")
            merge(value, found, path)
        else:
            into[key] = value


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file without tags; raises MaeliftError for other content, and for files over the limits."""
    try:
        text = read_regular_text(path, limit=LARGEST_FILE)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        check_plain(path, root)
        content = yaml.safe_load(text)
    except NotRegularError as error:
        raise MaeliftError(f"{path}: {error.strerror}. Expected a yacs config.") from error
    except OSError as error:
        raise MaeliftError(f"{path}: {(error.strerror or str(error)).lower()}. Expected a yacs config.") from error
    except UnicodeDecodeError as error:
        raise MaeliftError(f"{path}: not text in UTF-8. Expected a yacs config.") from error
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MaeliftError(f"{path}: not YAML ({reason or type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise MaeliftError(f"{path}: holds a {type(content).__name__}. Expected keys and values of a yacs config.")
    return {str(key): value for key, value in content.items()}


def check_plain(path: Path, root: yaml.Node | None) -> None:
    """Raise MaeliftError for a node with a tag that isn't YAML's own, and for aliases that make very many of few."""
    sizes: dict[int, int] = {}

    def size(node: yaml.Node, above: tuple[int, ...]) -> int:
        if id(node) in above:
            raise MaeliftError(f"{path}: line {node.start_mark.line + 1}: an alias of what it stands in.")
        if id(node) in sizes:
            return sizes[id(node)]
        kind = str(node.tag).removeprefix(PLAIN)
        if not str(node.tag).startswith(PLAIN) or kind.startswith("python/"):
            raise MaeliftError(
                f"{path}: line {node.start_mark.line + 1}: the tag !!{kind}, which could run code when read; nothing was "
                "run. Write plain values: numbers, strings, [lists] and {mappings}."
            )
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            parts = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        sizes[id(node)] = total = 1 + sum(size(part, (*above, id(node))) for part in parts)
        if total > LARGEST_CONFIG:
            raise MaeliftError(f"{path}: over {LARGEST_CONFIG:,} values, with its aliases written out.")
        return total

    if root is not None:
        size(root, ())
