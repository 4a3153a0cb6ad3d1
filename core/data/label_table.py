"""Tables of labels (CSV, TSV): each image once, with its classes, split and group.

What a table leaves open is logged: which columns were used, which rows were merged, under which names files were found.
"""

from __future__ import annotations

import ast
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .column_names import FLAG_COLUMNS
from .folder_names import split_of
from .table_columns import FALSE, TRUE, Columns, find_columns
from .table_paths import file_identity, resolve_paths
from .table_sheet import Sheet, SheetRow, read_sheet

logger = logging.getLogger("maelift")

TABLE_SUFFIXES = (".csv", ".tsv")
SEPARATORS = frozenset("|;")
"""Characters that separate several labels in a cell."""


@dataclass(frozen=True)
class LabeledFile:
    """An image of a table: its path from the table's folder, its lines, classes, split and group."""

    path: str
    lines: tuple[int, ...]
    labels: tuple[str, ...]
    split: str
    group: str


@dataclass(frozen=True)
class LabelTable:
    """The images of a table, each once.

    ``several``: they have any number of classes; ``classes``: those that have a column each, in order.
    """

    files: tuple[LabeledFile, ...]
    several: bool
    classes: tuple[str, ...] = ()
    grouped: bool = False


def read_label_table(
    path: Path,
    multi_label: bool | None = None,
    label_column: str | Sequence[str] | None = None,
    group: str | None = None,
) -> LabelTable:
    """Read a table of labels; raises DataError, with the line, for ambiguous rows.

    ``multi_label``: whether images have several classes, None: as the table says; ``label_column``: the column of labels, or
    the columns of 0 and 1, one for each class; ``group``: name of the column of groups, if the table has it.
    """
    sheet = read_sheet(path)
    columns = find_columns(sheet, label_column, group)
    cells = [row.cells[columns.labels[0]] for row in sheet.rows] if columns.one_label else []
    lists = any(cells) and all(re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL) for cell in cells if cell)
    several = multi_label is not False and (
        bool(multi_label) or not columns.one_label or lists or any(SEPARATORS & set(cell) for cell in cells)
    )
    if cells and not several and all(re.fullmatch(r"\d+\.0", cell) for cell in cells):
        logger.info("%s: labels such as %s are read as integers", path, cells[0])
        sheet = _without_decimals(sheet, columns.labels[0])
    names = resolve_paths(path, sheet, columns.path)
    read = []
    for row, name in zip(sheet.rows, names, strict=True):
        labels = _row_labels(f"{path} line {row.line}", row, columns, several, lists, multi_label)
        split = _row_split(f"{path} line {row.line}", row, columns)
        own = name if columns.group is None else row.cells[columns.group] or name
        read.append(LabeledFile(name, (row.line,), labels, split, own))
    files = _join_rows(path, read, several, bool(multi_label))
    _log_columns(path, sheet, columns, several, files)
    return LabelTable(files, several, () if columns.one_label else columns.labels, columns.group is not None)


def _row_labels(
    where: str, row: SheetRow, columns: Columns, several: bool, lists: bool, multi_label: bool | None
) -> tuple[str, ...]:
    if columns.one_label:
        cell = row.cells[columns.labels[0]]
        labels = _cell_labels(where, cell, lists) if several else (cell,)
        if not (labels and all(labels)) and not (several and not labels):
            raise DataError(f"{where}: a path or a label is missing.")
    else:
        labels = tuple(name for name in columns.labels if _is_true(where, row, name))
        if not several and len(labels) != 1:
            raise DataError(
                f"{where}: {len(labels)} classes are 1, and multi_label=false. Expected one; multi_label=true allows any number."
            )
    for label in labels:
        if any(unicodedata.category(letter) == "Cc" for letter in label):
            raise DataError(f"{where}: the label {label!r} has a line break or another control character in it.")
    return labels


def _without_decimals(sheet: Sheet, column: str) -> Sheet:
    """The table with 1 for 1.0 in a column."""
    rows = (SheetRow(row.line, {**row.cells, column: row.cells[column].removesuffix(".0")}) for row in sheet.rows)
    return Sheet(sheet.path, sheet.columns, tuple(rows))


def _cell_labels(where: str, cell: str, lists: bool) -> tuple[str, ...]:
    """The labels of a cell, separated by ``|`` or ``;``, or a list as in Python and JSON; none for an empty cell."""
    if not cell:
        return ()
    if lists:
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where}: {cell[:60]}: not a list of labels. Expected ['a', 'b'], or a|b.") from error
        return tuple(dict.fromkeys(str(label).strip() for label in found))
    return tuple(dict.fromkeys(label.strip() for label in cell.replace(";", "|").split("|")))


def _is_true(where: str, row: SheetRow, name: str) -> bool:
    value = row.cells[name].lower()
    if value not in TRUE | FALSE:
        raise DataError(
            f"{where}: {name} is '{value}': expected 0 or 1 in a column for each class, or a column 'label'."
        )
    return value in TRUE


def _row_split(where: str, row: SheetRow, columns: Columns) -> str:
    """The split of a row; training where the table has none."""
    for name in columns.flags:
        if row.cells[name].lower() in TRUE:
            return FLAG_COLUMNS[name]
    text = row.cells[columns.split] if columns.split is not None else ""
    if not text:
        return "train"
    split = split_of(text)
    if split is None:
        raise DataError(f"{where}: split '{text}': expected train, val or test.")
    return split


def _join_rows(path: Path, read: Sequence[LabeledFile], several: bool, unite: bool) -> tuple[LabeledFile, ...]:
    """Each image once: rows of one file are merged where they are equal, or where ``unite`` allows to merge their labels."""
    rows: dict[object, list[LabeledFile]] = defaultdict(list)
    for row in read:
        rows[file_identity(path.parent / row.path)].append(row)
    if len(rows) == len(read):
        return tuple(read)
    files = []
    for same in rows.values():
        first = same[0]
        lines = tuple(line for row in same for line in row.lines)
        where = f"{path} lines {_list_lines(lines)}: {first.path}"
        for row in same:
            if row.split != first.split:
                raise DataError(
                    f"{path} line {row.lines[0]}: {row.path} is already in {first.split} (line {first.lines[0]}). Expected one "
                    "split for each image."
                )
            if row.group != first.group and first.group != first.path:
                raise DataError(
                    f"{where} is in the groups {first.group} and {row.group}. Expected one group for each image."
                )
        label_sets = {frozenset(row.labels) for row in same}
        if len(label_sets) > 1 and not unite:
            shown = " and ".join(dict.fromkeys("|".join(row.labels) or "none" for row in same))
            raise DataError(
                f"{where} has the labels {shown}. Expected one label for each image; multi_label=true of maelift "
                "transfer classify and data check allows several."
            )
        labels = tuple(dict.fromkeys(label for row in same for label in row.labels))
        files.append(LabeledFile(first.path, lines, labels if several else first.labels, first.split, first.group))
    what = "their labels are merged" if unite else "rows of one image with equal labels are merged"
    logger.warning("%s: %d rows are of %d images; %s", path, len(read), len(files), what)
    return tuple(files)


def _list_lines(lines: Sequence[int], most: int = 6) -> str:
    shown = [str(line) for line in lines[:most]]
    if len(lines) > most:
        return f"{', '.join(shown)}, …"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


def _log_columns(path: Path, sheet: Sheet, columns: Columns, several: bool, files: Sequence[LabeledFile]) -> None:
    """Log which columns were used where that isn't obvious, and which weren't."""
    used = []
    if columns.path != "path":
        used.append(f"{columns.path} for paths")
    if columns.one_label and columns.labels[0] != "label":
        used.append(f"{columns.labels[0]} for labels")
    if columns.split not in (None, "split"):
        used.append(f"{columns.split} for splits")
    used += [f"{name} for the {FLAG_COLUMNS[name]} split" for name in columns.flags]
    unused = f"; not used: {', '.join(columns.unused[:8])}" if columns.unused else ""
    if used or unused:
        logger.info("%s: columns used: %s%s", path, ", ".join(used) or "path, label", unused)
    if not columns.one_label and several:
        exact = all(len(file.labels) == 1 for file in files)
        if len(columns.labels) == 1:
            what = f"one class, which an image has or not; label_column={columns.labels[0]} makes two classes, 0 and 1"
            logger.warning("%s: the column %s of 0 and 1 is %s", path, columns.labels[0], what)
        elif exact:
            logger.info("%s: each image has exactly one class; multi_label=false reads one class for each image", path)
    if columns.split is not None:
        empty = sum(not row.cells[columns.split] for row in sheet.rows)
        if 0 < empty < len(sheet.rows):
            logger.warning("%s: %d rows without a split are used for training", path, empty)
