"""Images that a list of paths names: a text file with a path a line, or a CSV."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from ...cache import cache_file, load, save
from ...errors import DataError
from ...files import read_regular
from ..file_index import CACHED_FROM, FORMAT, file_stamp, is_racy, packed_strings, unpacked_strings
from ..slices import file_of
from ..string_table import StringTable
from ..unread import report
from .folder import FolderImages

LISTS = (".txt", ".csv")

PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
"""Columns of a CSV list that hold the images' paths, the first that is there; else its first column."""

LARGEST_LIST = 2**30
"""Bytes up to which a list of paths is read."""


def read_path_list(path: Path) -> FolderImages:
    """The images that a list names, a path a line or in a column; relative ones from the list's folder."""
    file, stamp = path_list_cache(path), file_stamp(path)
    before = load(file)
    if before is not None and before[1].get("stamp") == stamp:
        return FolderImages(path.parent, unpacked_strings("names", before[0]))
    paths = _read_list(path)
    # one that is there and no file is named where it is opened, as in a folder
    missing = [number for number, name in enumerate(paths) if not os.path.lexists(path.parent / file_of(name))]
    if missing:
        raise DataError(
            f"data={path}: {paths[missing[0]]} isn't there ({len(missing)} of {len(paths)} aren't). Expected paths from "
            f"{path.parent}, or absolute ones."
        )
    names = StringTable.of(paths)
    if len(names) >= CACHED_FROM and not is_racy(path):
        save(file, packed_strings("names", names), {"stamp": stamp})
    return FolderImages(path.parent, names)


def path_list_cache(path: Path) -> Path:
    """Where the list is cached once its files were found to exist."""
    return cache_file("lists", FORMAT, os.path.realpath(path))


def _read_list(path: Path) -> list[str]:
    """The paths in a list; rows of a table that name none are counted and said."""
    text = _list_text(path)
    if path.suffix.lower() == ".csv":
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise DataError(f"data={path}: not a CSV ({error}).") from error
        header = [cell.strip().lower() for cell in rows[0]] if rows else []
        named = [name for name in PATH_COLUMNS if name in header]
        column = header.index(named[0]) if named else 0
        rows = rows[1:] if named else rows
        lines = [row[column].strip() if len(row) > column else "" for row in rows]
    else:
        lines = [_line_path(path.parent, line) for line in text.split("\n") if line.strip()]
    paths = [line for line in lines if line]
    if not paths:
        raise DataError(f"data={path}: an empty list. Expected a path a line, or a column named path.")
    if len(paths) < len(lines):
        report(f"{path}: {len(paths):,} images; {len(lines) - len(paths):,} other rows name none")
    return paths


def _line_path(folder: Path, line: str) -> str:
    """The path in a line: without the space around it, unless a file's name has it."""
    bare = line.strip()
    return line if line != bare and os.path.lexists(folder / line) else bare


def _list_text(path: Path) -> str:
    """A list's text, with names that aren't UTF-8 as the system has them."""
    try:
        content = read_regular(path, LARGEST_LIST)
    except OSError as error:
        raise DataError(f"data={path}: can't be read ({error.strerror or error}).") from error
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding, "strict" if encoding == "utf-16" else "surrogateescape")
    except UnicodeDecodeError as error:
        raise DataError(f"data={path}: not a list in UTF-16, as its first bytes say ({error.reason}).") from error
    if "\0" in text:
        raise DataError(f"data={path}: not a list of paths: it has null bytes. Expected text, a path a line.")
    return text.replace("\r\n", "\n")
