"""Which columns of a table hold the path, the labels, the split and the group of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config_keys import nearest
from ..errors import DataError
from .column_names import FLAG_COLUMNS, LABEL_COLUMNS, PATH_COLUMNS, SPLIT_COLUMNS
from .folder_names import is_image_name, split_of
from .table_sheet import Sheet

BOX_COLUMNS = frozenset(
    {"xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "bbox", "x_min", "y_min", "x_max", "y_max"}
)
"""Names of columns of boxes, in lower case."""

MASK_COLUMNS = frozenset({"encodedpixels", "rle", "rle_mask", "run_length", "segmentation"})
"""Names of columns of masks, in lower case."""

TRUE, FALSE = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
"""Cells of boolean columns, in lower case."""

CHECKED_ROWS = 20
"""First rows that are checked to see whether a column holds paths."""


@dataclass(frozen=True)
class Columns:
    """The roles of columns; ``labels``: one column of labels (``one_label``), or a column of 0 and 1 for each class."""

    path: str
    labels: tuple[str, ...]
    one_label: bool
    split: str | None = None
    flags: tuple[str, ...] = ()
    group: str | None = None
    unused: tuple[str, ...] = ()


def find_columns(sheet: Sheet, label_column: str | Sequence[str] | None, group: str | None) -> Columns:
    """The roles of a table's columns; raises DataError where they are ambiguous. For the keys see ``read_label_table``."""
    path, names = sheet.path, list(sheet.columns)
    listed = ", ".join(names)
    path_column = _path_column(sheet)
    own_group = next((name for name in names if group is not None and name.lower() == group.lower()), None)
    others = [name for name in names if name not in (path_column, own_group)]
    split = _split_column(sheet, others)
    flags = tuple(name for name in others if name in FLAG_COLUMNS and split is None and _is_boolean_column(sheet, name))
    others = [name for name in others if name != split and name not in flags]
    if label_column is not None:
        wanted = [label_column] if isinstance(label_column, str) else list(label_column)
        labels = tuple(_column_named(path, name, names) for name in wanted)
        one = isinstance(label_column, str)
    else:
        _refuse_boxes_and_masks(path, names)
        able = [name for name in others if name not in PATH_COLUMNS]
        found = _label_column(sheet, able)
        one = found is not None
        labels = (found,) if found is not None else tuple(able)
        if not labels:
            raise DataError(f"{path}: no column 'label' and no column of a class (found: {listed}).")
    unused = tuple(name for name in others if name not in labels)
    return Columns(path_column, labels, one, split, flags, own_group, unused)


def _column_named(path: Path, name: str, names: Sequence[str]) -> str:
    """The column of this name, in any case."""
    for column in names:
        if column == name or column.lower() == name.lower():
            return column
    close = nearest(name, names)
    advice = f" Did you mean {close}?" if close else ""
    raise DataError(f"{path}: no column '{name}' (label_column; found: {', '.join(names)}).{advice}")


def _path_column(sheet: Sheet) -> str:
    """The column of paths; of several candidates the first whose files exist."""
    found = [name for name in PATH_COLUMNS if name in sheet.columns]
    if not found:
        raise DataError(f"{sheet.path}: no column 'path' (found: {', '.join(sheet.columns)}).")
    root = sheet.path.parent
    for name in found if len(found) > 1 else []:
        cells = [row.cells[name] for row in sheet.rows[:CHECKED_ROWS]]
        if all(cell and (root / cell.replace("\\", "/")).is_file() for cell in cells):
            return name
    paths = [name for name in found if all(is_image_name(row.cells[name]) for row in sheet.rows[:CHECKED_ROWS])]
    return paths[0] if paths else found[0]


def _label_column(sheet: Sheet, others: Sequence[str]) -> str | None:
    """The column of labels; None where each class has a column of 0 and 1."""
    found = [name for name in LABEL_COLUMNS if name in others]
    if "label" in found or len(found) == 1:
        return found[0]
    if found:
        named = [name for name in found if not all(row.cells[name].isdecimal() for row in sheet.rows)]
        pairs = {tuple(row.cells[name] for name in found) for row in sheet.rows}
        one_to_one = all(len({pair[place] for pair in pairs}) == len(pairs) for place in range(len(found)))
        if one_to_one and len(named) == 1:
            return named[0]  # names of the class numbers in the other columns
        raise DataError(
            f"{sheet.path}: the columns {', '.join(found)} may hold labels. Choose one: label_column={found[0]}."
        )
    if not others:
        return None
    others_than_boolean = [name for name in others if not _is_boolean_column(sheet, name)]
    if len(others) == 1 and others_than_boolean:
        return others[0]
    if others_than_boolean:
        name = others_than_boolean[0]
        flags = [other for other in others if other not in others_than_boolean]
        row = next(row for row in sheet.rows if row.cells[name].lower() not in TRUE | FALSE)
        either = f", label_column=[{','.join(flags)}] the columns of 0 and 1" if flags else ""
        raise DataError(
            f"{sheet.path} line {row.line}: {name} is '{row.cells[name]}': expected 0 or 1 in a column for each class, or "
            f"a column 'label'. label_column={name} reads that column as labels{either}."
        )
    return None


def _is_boolean_column(sheet: Sheet, name: str) -> bool:
    return all(row.cells[name].lower() in TRUE | FALSE for row in sheet.rows)


def _split_column(sheet: Sheet, others: Sequence[str]) -> str | None:
    """The column of splits: ``split``, or one of ``SPLIT_COLUMNS`` whose values are splits."""
    for name in SPLIT_COLUMNS:
        if name not in others:
            continue
        values = {row.cells[name] for row in sheet.rows if row.cells[name]}
        if name == "split" or (values and all(split_of(value) for value in values)):
            return name
    return None


def _refuse_boxes_and_masks(path: Path, names: Sequence[str]) -> None:
    """Raise DataError for a table of boxes or masks."""
    lower = [name.lower() for name in names]
    boxes = [name for name in names if name.lower() in BOX_COLUMNS]
    masks = [name for name in lower if name in MASK_COLUMNS]
    if len(boxes) >= 4 or "bbox" in lower:
        raise DataError(
            f"{path}: a table of boxes ({', '.join(boxes)}). maelift transfer detect reads boxes as COCO JSON, YOLO or Pascal "
            "VOC; label_column=NAME reads a column as labels of images."
        )
    if masks:
        raise DataError(
            f"{path}: a table of masks ({', '.join(masks)}). maelift transfer segment reads masks as images; "
            "label_column=NAME reads a column as labels of images."
        )
