"""Reading a table of labels as text: encoding, delimiter, header and rows."""

from __future__ import annotations

import codecs
import csv
import io
import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from ..files import read_regular
from .column_names import FLAG_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, SPLIT_COLUMNS
from .folder_names import is_image_name

logger = logging.getLogger("maelift")

DELIMITERS = ",;\t|"
"""Candidates for what separates columns, most likely first."""


BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""


@dataclass(frozen=True)
class SheetRow:
    """A row: its line in the file and its cells by column."""

    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Sheet:
    """A table's columns, without those that have no name, and its rows that aren't empty."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[SheetRow, ...]


def _read_table_text(path: Path) -> str:
    """The text of a table in UTF-8, UTF-16 or UTF-32, else in Windows' code page."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or str(error)).lower()}).") from error
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if content.startswith(mark)), "utf-8")
    head = content[:400]
    if encoding == "utf-8" and len(head) >= 4 and b"\0" in head:
        encoding = "utf-16-le" if head[1::2].count(0) > head[::2].count(0) else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise DataError(
                f"{path}: can't be read as {encoding} ({error.reason}). Save it as CSV in UTF-8."
            ) from error
        text = content.decode("cp1252", "replace")
        logger.warning("%s: not UTF-8; read as Windows-1252. Save it in UTF-8 if names look wrong", path)
    if "\0" in text:
        raise DataError(f"{path}: not a table in text (it has zero bytes). Save it as CSV in UTF-8.")
    return text


def read_sheet(path: Path) -> Sheet:
    """Read the rows of a CSV or TSV file; raises DataError, with the line, for one that can't be parsed."""
    text = _read_table_text(path)
    first = re.match(r"sep=(.)\r?\n?", text)
    if first is not None:  # Excel's own line
        text = text[first.end() :]
    skipped = 0 if first is None else 1
    try:
        delimiter = first[1] if first is not None else _delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        lines = [(reader.line_num + skipped, [cell.strip() for cell in cells]) for cells in reader]
    except csv.Error as error:
        raise DataError(f"{path}: can't be read as CSV ({error}).") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]  # blank rows
    if not lines:
        raise DataError(f"{path}: no rows. Expected path,label.")
    header = lines[0][1]
    lower = [name.lower() for name in header]
    if not set(lower) & set(PATH_COLUMNS) and len(header) == 2 and is_image_name(header[0]):
        logger.warning("%s: no header; the first column is read as paths, the second as labels", path)
        header, lower = ["path", "label"], ["path", "label"]
    else:
        lines = lines[1:]
    known = {*PATH_COLUMNS, *LABEL_COLUMNS, *SPLIT_COLUMNS, *FLAG_COLUMNS}
    names = [one if one in known else name for one, name in zip(lower, header, strict=True)]
    names = ["" if name.startswith("Unnamed: ") else name for name in names]  # the index of a pandas table
    twice = [name for name, count in Counter(names).items() if count > 1 and name]
    if twice:
        raise DataError(f"{path}: two columns '{twice[0]}' (found: {', '.join(names)}).")
    rows = []
    for number, cells in lines:
        if len(cells) > len(names) and any(cells[len(names) :]):
            raise DataError(
                f"{path} line {number}: {len(cells)} cells, but {len(names)} columns. Quote a name that "
                f"contains {delimiter!r}."
            )
        padded = cells + [""] * (len(names) - len(cells))
        rows.append(SheetRow(number, {name: cell for name, cell in zip(names, padded, strict=False) if name}))
    if not rows:
        raise DataError(f"{path}: no rows. Expected path,label.")
    return Sheet(path, tuple(name for name in names if name), tuple(rows))


def _delimiter(text: str) -> str:
    """The delimiter: the one that gives the header a path column among others, else one that gives two columns."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    headers = {one: [cell.strip().lower() for cell in next(csv.reader([line], delimiter=one))] for one in DELIMITERS}
    for one, cells in headers.items():
        if len(cells) > 1 and set(cells) & set(PATH_COLUMNS):
            return one
    for one, cells in headers.items():
        if len(cells) > 1 and is_image_name(cells[0]):
            return one
    return next((one for one, cells in headers.items() if len(cells) > 1), ",")
