"""The image files that a table of labels lists, found by their paths or by their names alone."""

from __future__ import annotations

import logging
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..errors import DataError
from .file_index import list_files
from .folder_names import is_image_name
from .image_formats import SUFFIXES, kinds
from .table_sheet import Sheet

logger = logging.getLogger("maelift")


def file_identity(path: Path) -> object:
    """A value that is equal for all paths of the same file."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


@dataclass
class _ImageTree:
    """The image files below a folder, by their names and by their names without suffix."""

    root: Path
    by_name: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for name in list_files(self.root):
            parts = PurePosixPath(name)
            if parts.suffix.lower() in SUFFIXES:
                self.by_name[_normalized_name(parts.name)].append(name)
                self.by_name[_normalized_name(parts.stem)].append(name)

    def find(self, name: str) -> list[str]:
        """The files that a name may refer to: in another case, without suffix, or relative to another folder."""
        parts = [part for part in re.split(r"[\\/]+", _normalized_name(name)) if part not in ("", ".")]
        if not parts:
            return []
        found = []
        for path in self.by_name.get(parts[-1], ()):
            folders = [_normalized_name(part) for part in path.split("/")[:-1]]
            given = parts[:-1]
            shared = min(len(folders), len(given))
            if shared == 0 or folders[-shared:] == given[-shared:]:
                found.append(path)
        return found


def _normalized_name(name: str) -> str:
    """A name in one case and one Unicode normal form, as file systems differ in both."""
    return unicodedata.normalize("NFC", name).casefold()


def resolve_paths(path: Path, sheet: Sheet, column: str) -> list[str]:
    """The image file of each row, as a path from the table's folder; raises DataError for a missing or ambiguous one."""
    root = path.parent
    known: dict[str, str] = {}
    missing: list[tuple[int, str]] = []
    for row in sheet.rows:
        name = row.cells[column]
        if not name:
            raise DataError(f"{path} line {row.line}: a path or a label is missing.")
        if name in known:
            continue
        there = next((one for one in dict.fromkeys((name, name.replace("\\", "/"))) if _is_file(root / one)), None)
        known[name] = there or ""
        if there is None:
            missing.append((row.line, name))
    if missing:
        tree = _ImageTree(root)
        for line, name in missing:
            found = tree.find(name)
            if len(found) > 1:  # train.csv lists the images in train/ or train_images/, if others have their names
                near = [one for one in found if path.stem.lower() in re.split(r"[^a-z0-9]+", one.split("/")[0].lower())]
                found = near if len(near) == 1 else found
            if not found:
                raise DataError(
                    f"{path} line {line}: no such file: {name} ({len(missing)} of {len(known)} are missing). Paths are relative "
                    "to the CSV."
                )
            if len(found) > 1:
                raise DataError(
                    f"{path} line {line}: {name} may be {found[0]} or {found[1]}. Expected a path relative to the CSV."
                )
            known[name] = found[0]
        line, name = missing[0]
        logger.warning(
            "%s: %d paths don't exist as written; found by name, %s as %s", path, len(missing), name, known[name]
        )
    files = [known[row.cells[column]] for row in sheet.rows]
    for row, name in zip(sheet.rows, files, strict=True):
        if not is_image_name(name):
            raise DataError(f"{path} line {row.line}: {name} is not an image by its name. Expected {kinds()}.")
    return files


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def names_differing_in_case_only(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces or the encoding of accents."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found["".join(_normalized_name(name).split())].append(name)
    return [sorted(same) for same in found.values() if len(same) > 1]
