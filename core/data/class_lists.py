"""Class lists of masks: names with values or colours, in the formats of common annotation tools."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..files import read_regular

NUM_MASK_VALUES = 2**16
"""Values that a mask of 16 bits can have."""
UNKNOWN_COLOUR = NUM_MASK_VALUES - 1
"""The value of a pixel whose colour isn't listed."""
MAX_BYTES = 2**22
"""Largest file of a class list, in bytes."""

COLOUR_FILES = (
    "colors.csv",
    "colours.csv",
    "class_dict.csv",
    "class_dict_seg.csv",
    "labelmap.txt",
    "label_colors.txt",
)
"""Files of names with colours: users' own, CamVid's on Kaggle, CVAT's, CamVid's."""

HEX = re.compile(r"^(?P<name>.*?)[\s,;:=]+#(?P<hex>[0-9a-fA-F]{6})$")
RGB_LAST = re.compile(
    r"^(?=.*[^\d\s,;:=])(?P<name>.*?\S)[\s,;:=]+(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})$"
)
RGB_FIRST = re.compile(r"^(?P<r>\d{1,3})[\s,;]+(?P<g>\d{1,3})[\s,;]+(?P<b>\d{1,3})[\s,;]+(?P<name>\D.*)$")
VALUE_LAST = re.compile(r"^(?P<name>.*?)\s*[,;:=\t]\s*(?P<value>\d+)$")
VALUE_FIRST = re.compile(r"^(?P<value>\d+)\s*[\s,;:=]\s*(?P<name>[^\d\s,;:=].*)$")


@dataclass(frozen=True)
class ColourTable:
    """The value of each listed colour: ``pairs`` of (red · 65536 + green · 256 + blue, value)."""

    pairs: tuple[tuple[int, int], ...]

    @cached_property
    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        table = np.array(sorted(self.pairs), dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    @property
    def all_gray(self) -> bool:
        """Whether a gray mask can have all of the colours."""
        return all(colour % 0x010101 == 0 for colour, _ in self.pairs)

    def values(self, packed: NDArray[np.int64]) -> NDArray[np.uint16]:
        """The values of packed colours, ``UNKNOWN_COLOUR`` for those that aren't listed."""
        colours, values = self._sorted
        places = np.searchsorted(colours, packed).clip(max=len(colours) - 1)
        return np.where(colours[places] == packed, values[places], UNKNOWN_COLOUR).astype(np.uint16)


@dataclass(frozen=True)
class ClassList:
    """The classes of a file: names by value, in the file's order, and their colours, if any."""

    path: Path
    names: dict[int, str]
    colours: ColourTable | None = None


def read_class_list(root: Path) -> ClassList | None:
    """The classes that classes.txt, classes.json or one of ``COLOUR_FILES`` lists; None without such a file.

    Where classes.txt has no colours, those of a file with the same names are used. Raises DataError.
    """
    text, structured = root / "classes.txt", root / "classes.json"
    listed = _from_text(text) if text.is_file() else _from_json(structured) if structured.is_file() else None
    if listed is not None and listed.colours is not None:
        return listed
    for name in COLOUR_FILES:
        path = root / name
        if path.is_file():
            colours = _from_csv(path) if path.suffix == ".csv" else _from_text(path)
            if listed is None:
                return colours
            if colours.colours is not None and set(colours.names.values()) == set(listed.names.values()):
                values = {name: value for value, name in listed.names.items()}
                pairs = tuple((colour, values[colours.names[value]]) for colour, value in colours.colours.pairs)
                return ClassList(listed.path, listed.names, ColourTable(pairs))
    return listed


def has_class_list(root: Path) -> bool:
    """Whether a folder has a class list."""
    return any((root / name).is_file() for name in ("classes.txt", "classes.json", *COLOUR_FILES))


def _text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        content = read_regular(path, MAX_BYTES)
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not text in UTF-8 (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error.strerror or error}).") from error


def _from_text(path: Path) -> ClassList:
    lines = [line.strip() for line in _text(path).splitlines()]
    lines = [line for line in lines if line and not re.match(r"#\s", line)]
    if path.name == "labelmap.txt":  # CVAT's name:r,g,b:parts:actions
        lines = [":".join(line.split(":")[:2]) for line in lines]
    for pattern in (HEX, RGB_LAST, RGB_FIRST):
        matches = [match for line in lines if (match := pattern.match(line))]
        if not matches:
            continue
        if len(matches) < len(lines):
            bare = next(line for line in lines if not pattern.match(line))
            raise DataError(
                f"{path}: '{bare}' has no colour, but other lines have. Expected 'NAME, #rrggbb' for each class."
            )
        return _colour_list([_parse_colour_line(match, number) for number, match in enumerate(matches)], path)
    first = [match for line in lines if (match := VALUE_FIRST.match(line))]
    if len(first) == len(lines) == len({match["value"] for match in first}):
        return ClassList(path, _check_names([(_value(match), match["name"].strip()) for match in first], path))
    return ClassList(path, _check_names([_parse_line(line, number) for number, line in enumerate(lines)], path))


def _parse_line(line: str, number: int) -> tuple[int, str]:
    """The value and name of a class: "NAME, VALUE", or the line's number without a value."""
    match = VALUE_LAST.match(line)
    return (_value(match), match["name"].strip()) if match else (number, line)


def _value(match: re.Match[str]) -> int:
    return int(match["value"][:9])  # more digits are out of range anyway


def _parse_colour_line(match: re.Match[str], number: int) -> tuple[int, str, int]:
    """Value, name and packed colour of a line; a value may be between name and colour."""
    groups = match.groupdict()
    rgb = [int(groups["hex"][i : i + 2], 16) for i in (0, 2, 4)] if "hex" in groups else [int(groups[c]) for c in "rgb"]
    named = VALUE_LAST.match(groups["name"].strip(" \t,;:="))
    value, name = (_value(named), named["name"]) if named else (number, groups["name"])
    return value, name.strip(" \t,;:="), _pack_rgb(rgb)


def _pack_rgb(rgb: Sequence[int]) -> int:
    """A colour as one integer; -1 if a value is above 255."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2] if max(rgb) < 256 else -1


def _colour_list(rows: Sequence[tuple[int, str, int]], path: Path) -> ClassList:
    names = _check_names([(value, name) for value, name, _ in rows], path)
    seen: dict[int, str] = {}
    for _, name, colour in rows:
        if colour < 0:
            raise DataError(f"{path}: {name} has a colour of values above 255. Expected #rrggbb, or red, green, blue.")
        if colour in seen:
            raise DataError(f"{path}: {seen[colour]} and {name} both have the colour #{colour:06x}.")
        seen[colour] = name
    return ClassList(path, names, ColourTable(tuple((colour, value) for value, _, colour in rows)))


def _from_csv(path: Path) -> ClassList:
    """Classes from rows of name and red, green, blue or #rrggbb; a first row without numbers is the header."""
    text = _text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file ({error}).") from error
    rows = [row for row in rows if any(row)]
    columns = {"name": 0, "r": 1, "g": 2, "b": 3}
    if rows and not any(cell.isdecimal() or cell.startswith("#") for cell in rows[0]):
        columns = _columns(rows.pop(0))
    missing = [] if "hex" in columns else [name for name in ("r", "g", "b") if name not in columns]
    if "name" not in columns or missing:
        raise DataError(f"{path}: expected the columns name, r, g, b, or name, color (#rrggbb).")
    found = []
    for number, row in enumerate(rows):
        cells = {name: row[place] if place < len(row) else "" for name, place in columns.items()}
        parts = re.fullmatch(r"#?([0-9a-fA-F]{6})", cells.get("hex", ""))
        rgb = [cells.get(name, "") for name in "rgb"]
        if parts:
            colour = int(parts[1], 16)
        elif all(cell.isdecimal() and len(cell) <= 3 for cell in rgb):
            colour = _pack_rgb([int(cell) for cell in rgb])
        else:
            raise DataError(f"{path}: row {number + 1} ({', '.join(row)[:60]}) has no colour. Expected name, r, g, b.")
        value = cells.get("value", "")
        found.append((int(value[:9]) if value.isdecimal() else number, cells["name"], colour))
    return _colour_list(found, path)


def _columns(header: Sequence[str]) -> dict[str, int]:
    known: dict[str, Callable[[str], bool]] = {
        "name": lambda cell: cell in ("name", "class", "label", "class_name", "category"),
        "r": lambda cell: cell in ("r", "red"),
        "g": lambda cell: cell in ("g", "green"),
        "b": lambda cell: cell in ("b", "blue"),
        "hex": lambda cell: cell in ("color", "colour", "hex", "rgb"),
        "value": lambda cell: cell in ("value", "id", "index", "class_id", "pixel"),
    }
    cells = [cell.lower() for cell in header]
    return {
        name: next(i for i, cell in enumerate(cells) if is_it(cell))
        for name, is_it in known.items()
        if any(map(is_it, cells))
    }


def _from_json(path: Path) -> ClassList:
    try:
        content: Any = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from error
    entries = list(enumerate(content)) if isinstance(content, list) else []
    if isinstance(content, dict):
        entries = [(value, name) for name, value in content.items()]
    for value, name in entries:
        if not isinstance(value, int) or isinstance(value, bool) or not isinstance(name, str):
            entries = []
            break
    if not entries:
        raise DataError(f"{path}: expected a list of class names, or an object of NAME: VALUE.")
    return ClassList(path, _check_names(entries, path))


def _check_names(pairs: Iterable[tuple[int, str]], path: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for value, name in pairs:
        if not 0 <= value < NUM_MASK_VALUES:
            raise DataError(f"{path}: {name} has the value {value}. Expected 0 to {NUM_MASK_VALUES - 1}.")
        if value in names:
            raise DataError(f"{path}: {names[value]} and {name} both have the value {value}.")
        if name in names.values() or not name:
            raise DataError(f"{path}: {f'{name} is listed twice' if name else f'the class {value} has no name'}.")
        names[value] = name
    if len(names) < 2:
        raise DataError(f"{path}: {len(names)} classes. Expected at least two, background included.")
    return names
