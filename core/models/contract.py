"""The contract in our files' metadata: JSON checked field by field, and hashes that tie it to the tensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..config import from_plain
from ..errors import CheckpointError, ConfigError, MaeliftError, show

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

CONTENT_HASH = "content_hash"
"""sha256 over the tensors and the metadata on how they are used; identifies a file's content."""
CHECKSUM = "checksum"
"""sha256 over the metadata, provenance and ``content_hash`` with them."""
PROVENANCE = "provenance"
DEEPEST = 64
"""Largest nesting depth of metadata; ours have five levels."""
SHOWN = 120
"""Longest wrong value that an error shows, in characters."""


def content_hash(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names, dtypes, shapes and bytes of tensors, in the order of their names."""
    import torch  # here, as the hash can be had of a file's bytes too: ``stored_contract``

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sealed_hash(content: Mapping[str, object], state: Mapping[str, Tensor]) -> str:
    """sha256 over tensors and metadata; provenance, whose hours differ between equal runs, is left out."""
    return _sealed_hash(content, content_hash(state))


def _sealed_hash(content: Mapping[str, object], tensors: str) -> str:
    """The same by the hash of the tensors."""
    stated = {key: value for key, value in content.items() if key not in (CONTENT_HASH, CHECKSUM, PROVENANCE)}
    return hashlib.sha256(f"{_canonical(stated)}\n{tensors}".encode()).hexdigest()


def checksum(content: Mapping[str, object]) -> str:
    """sha256 over everything in metadata but the checksum itself."""
    stated = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.sha256(_canonical(stated).encode()).hexdigest()


def sealed(content: Mapping[str, object], digest: str) -> str:
    """Metadata as JSON, with its content hash ``digest`` and its checksum."""
    stated = {**content, CONTENT_HASH: digest}
    return json.dumps({**stated, CHECKSUM: checksum(stated)})


class Metadata:
    """Metadata of a file, read under ``key``: each value is checked for its type and range where it is taken.

    Everything raises CheckpointError in one line, which names the file, the field and what was expected.
    """

    def __init__(self, path: str | Path, key: str, content: Mapping[str, object]) -> None:
        self.path, self.key, self.content = path, key, content

    @classmethod
    def parse(cls, path: str | Path, key: str, text: str) -> Metadata:
        """The metadata in JSON."""
        empty = cls(path, key, {})
        try:
            content = parse_json(text)
        except ValueError as error:
            raise empty.error(str(error)) from error
        if not isinstance(content, dict):
            raise empty.error(f"a {type(content).__name__}, where a mapping was expected")
        return cls(path, key, content)

    def error(self, reason: str) -> CheckpointError:
        """The error for invalid metadata."""
        text = " ".join(reason.split()).rstrip(".")
        return CheckpointError(
            f"{self.path}: its '{self.key}' metadata can't be read ({text}). Get the file again, or write it again with "
            "maelift."
        )

    def version(self, newest: int) -> int:
        """The version of the metadata, from 1 to ``newest``."""
        found = self.content.get("version")
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise self.error(f"version={shown(found)}: expected a whole number of at least 1")
        if found > newest:
            raise CheckpointError(
                f"{self.path}: version {shown(found)} of '{self.key}', and this maelift reads versions 1 to {newest}. "
                "Update maelift."
            )
        return found

    def check_keys(self, needed: Iterable[str], possible: Collection[str] = ()) -> None:
        """Raise CheckpointError for a missing or an unknown key."""
        self._check_names(self.content, needed, possible, "")

    def value(self, name: str, kind: type[T]) -> T:
        """The value of a key, converted to the type ``kind`` of an annotation."""
        return self._checked("", lambda: cast(T, from_plain(kind, self.content[name], name)))

    def dataclass(self, schema: type[T], name: str, needed: Iterable[str] = ()) -> T:
        """The dataclass whose ``dataclasses.asdict`` is the mapping under ``name``.

        ``needed``: the fields that every file has; others that are missing get their defaults.
        """
        stated = self.content[name]
        if not isinstance(stated, Mapping):
            raise self.error(f"{name}={shown(stated)}: expected a mapping")
        known = [field.name for field in dataclasses.fields(cast(Any, schema))]
        self._check_names(stated, needed, known, f"{name}.")
        return self._checked(name, lambda: cast(T, from_plain(schema, stated, name)))

    def check_tensors(self, state: Mapping[str, Tensor], *, tensors_only: bool) -> str:
        """Check the content hash against tensors and, unless ``tensors_only``, metadata; returns it."""
        return self.check_hash(content_hash(state), tensors_only=tensors_only)

    def check_hash(self, tensors: str, *, tensors_only: bool) -> str:
        """``check_tensors`` by the ``content_hash`` of the tensors."""
        stated = self.hash_under(CONTENT_HASH)
        found = tensors if tensors_only else _sealed_hash(self.content, tensors)
        if found != stated:
            parts = "tensors" if tensors_only else "tensors or metadata"
            raise self.changed(f"{parts} (content hash {found[:12]}, expected {stated[:12]})")
        if not tensors_only:
            self.check_checksum()
        return found

    @property
    def intact(self) -> bool:
        """Whether the metadata are as they were written, by their checksum."""
        return self.content.get(CHECKSUM) == checksum(self.content)

    def check_checksum(self) -> None:
        """Raise CheckpointError for metadata that were changed after writing."""
        if not self.intact:
            raise self.changed("metadata (checksum)")

    def changed(self, what: str) -> CheckpointError:
        """The error for content that was changed after writing."""
        return CheckpointError(
            f"{self.path}: the {what} are not those that the file was written with. The file was changed or damaged; get it "
            "again."
        )

    def hash_under(self, name: str) -> str:
        """The sha256 under a key."""
        found = self.content.get(name)
        if not isinstance(found, str) or not re.fullmatch(r"[0-9a-f]{64}", found):
            raise self.error(f"{name}={shown(found)}: expected a sha256 in hexadecimal")
        return found

    def _check_names(
        self, content: Mapping[str, object], needed: Iterable[str], possible: Collection[str], prefix: str
    ) -> None:
        names = list(needed)
        for name in names:
            if name not in content:
                raise self.error(f"{prefix}{name} is missing")
        for name in content:
            if name not in names and name not in possible:
                raise self.error(f"{prefix}{shown(name)} is no key of it; it may be of a newer maelift")

    def _checked(self, name: str, build: Callable[[], T]) -> T:
        try:
            return build()
        except ConfigError as error:
            raise self.error(f"{error.key}={shown(error.value)}: expected {error.expected}") from error
        except (MaeliftError, ValueError, TypeError, ArithmeticError) as error:  # of a dataclass's own checks
            raise self.error(f"{name}: {shown(str(error))}") from error


def parse_json(text: str | bytes) -> object:
    """The content of JSON; raises ValueError, in one line, for other text, a key given twice, and nesting without end."""
    try:
        content = json.loads(text, object_pairs_hook=_once_each)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    level, depth = [content], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST} levels")
        level = [inner for outer in level for inner in _inside(outer)]
        depth += 1
    return content


def _inside(value: object) -> Collection[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _once_each(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {shown(twice)} is given twice")
    return content


def _canonical(content: object) -> str:
    """JSON that is equal for equal content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def shown(value: object) -> str:
    """A value as a user would type it, on one short line of printable characters."""
    try:
        text = show(value)
    except (RecursionError, ValueError):  # numbers of too many digits
        text = f"a {type(value).__name__}"
    text = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text[: SHOWN + 1])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
