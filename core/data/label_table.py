"""Tables of labels as spreadsheets, pandas and other tools write them: each image once, with its classes, split and group.

What a table leaves open is said: which columns were taken, which rows were joined, under which names files were found.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import logging
import os
import re
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ..config_keys import nearest
from ..errors import DataError
from ..files import read_regular
from .decode import SUFFIXES, kinds
from .file_index import list_files
from .folder_names import split_of

logger = logging.getLogger("maelift")

TABLE_SUFFIXES = (".csv", ".tsv")
DELIMITERS = ",;\t|"
PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "img_path", "image", "img"),
    *(
        "image_file",
        "image_name",
        "img_name",
        "image_filename",
        "filepaths",
        "images",
        "image_id",
        "img_id",
        "id",
        "name",
    ),
)
"""Names of the column that says which image, in lower case and the order of preference."""
LABEL_COLUMNS = (
    *("label", "labels", "class", "classes", "target", "targets", "category", "categories", "class_name", "classname"),
    *("label_name", "category_name", "class_label", "class_id", "label_id", "category_id", "tag", "tags", "species"),
)
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "dataset", "data set", "phase", "usage")
FLAG_COLUMNS = {"is_valid": "val", "is_val": "val", "is_test": "test"}
"""Columns of true and false that say which images are of a split; the others are of training."""
BOX_COLUMNS = frozenset(
    {"xmin", "ymin", "xmax", "ymax", "x1", "y1", "x2", "y2", "bbox", "x_min", "y_min", "x_max", "y_max"}
)
MASK_COLUMNS = frozenset({"encodedpixels", "rle", "rle_mask", "run_length", "segmentation"})
SEPARATORS = frozenset("|;")
"""What stands between several labels in a cell."""
TRUE, FALSE = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
FIRST_LINES = 20
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks; that of UTF-32 begins with that of UTF-16."""


@dataclass(frozen=True)
class LabeledFile:
    """An image of a table: its path from the table's folder, the lines that name it, its classes, split and group."""

    path: str
    lines: tuple[int, ...]
    labels: tuple[str, ...]
    split: str
    group: str


@dataclass(frozen=True)
class LabelTable:
    """The images of a table, each once; ``several``: they have any number of classes; ``classes``: of a column each, in order."""

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
    """Read a table of labels; raises DataError, with the line, for what has no clear meaning.

    ``multi_label``: whether images have several classes, None: as the table says; ``label_column``: the column of labels, or
    those of 0 and 1 for a class each; ``group``: the column, where there is one of that name, of what images belong to.
    """
    sheet = _sheet(path)
    columns = _columns(sheet, label_column, group)
    cells = [row.cells[columns.labels[0]] for row in sheet.rows] if columns.one_label else []
    lists = any(cells) and all(re.fullmatch(r"\s*\[.*\]\s*", cell, re.DOTALL) for cell in cells if cell)
    several = multi_label is not False and (
        bool(multi_label) or not columns.one_label or lists or any(SEPARATORS & set(cell) for cell in cells)
    )
    if cells and not several and all(re.fullmatch(r"\d+\.0", cell) for cell in cells):
        logger.info("%s: labels such as %s are taken for whole numbers", path, cells[0])
        sheet = _whole_numbers(sheet, columns.labels[0])
    names = _found(path, sheet, columns.path)
    read = []
    for row, name in zip(sheet.rows, names, strict=True):
        labels = _labels(f"{path} line {row.line}", row, columns, several, lists, multi_label)
        split = _split(f"{path} line {row.line}", row, columns)
        own = name if columns.group is None else row.cells[columns.group] or name
        read.append(LabeledFile(name, (row.line,), labels, split, own))
    files = _joined(path, read, several, bool(multi_label))
    _tell_columns(path, sheet, columns, several, files)
    return LabelTable(files, several, () if columns.one_label else columns.labels, columns.group is not None)


# The text: encoding, delimiter, header, rows


@dataclass(frozen=True)
class _Row:
    line: int
    cells: Mapping[str, str]


@dataclass(frozen=True)
class _Sheet:
    """A table's columns, without those that have no name, and its rows that aren't empty."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]


def _text(path: Path) -> str:
    """The text of a table in UTF-8, UTF-16 or UTF-32, else in Windows' code page."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(f"{path}: can't be read ({(error.strerror or str(error)).lower()}).") from error
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
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


def _sheet(path: Path) -> _Sheet:
    text = _text(path)
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
    if not set(lower) & set(PATH_COLUMNS) and len(header) == 2 and _is_image(header[0]):
        logger.warning("%s: no header; the first column is taken for paths, the second for labels", path)
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
                f"{path} line {number}: {len(cells)} cells, but {len(names)} columns. A name with {delimiter!r} in it must "
                "stand in quotes."
            )
        padded = cells + [""] * (len(names) - len(cells))
        rows.append(_Row(number, {name: cell for name, cell in zip(names, padded, strict=False) if name}))
    if not rows:
        raise DataError(f"{path}: no rows. Expected path,label.")
    return _Sheet(path, tuple(name for name in names if name), tuple(rows))


def _delimiter(text: str) -> str:
    """What separates the columns: that by which the header has a column of paths and another, else that makes two."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    headers = {one: [cell.strip().lower() for cell in next(csv.reader([line], delimiter=one))] for one in DELIMITERS}
    for one, cells in headers.items():
        if len(cells) > 1 and set(cells) & set(PATH_COLUMNS):
            return one
    for one, cells in headers.items():
        if len(cells) > 1 and _is_image(cells[0]):
            return one
    return next((one for one, cells in headers.items() if len(cells) > 1), ",")


def _is_image(name: str) -> bool:
    return PurePosixPath(name.replace("\\", "/")).suffix.lower() in SUFFIXES


# The columns


@dataclass(frozen=True)
class _Columns:
    """Which columns say what; ``labels``: one of labels (``one_label``), or those of 0 and 1."""

    path: str
    labels: tuple[str, ...]
    one_label: bool
    split: str | None = None
    flags: tuple[str, ...] = ()
    group: str | None = None
    unused: tuple[str, ...] = ()


def _columns(sheet: _Sheet, label_column: str | Sequence[str] | None, group: str | None) -> _Columns:
    path, names = sheet.path, list(sheet.columns)
    listed = ", ".join(names)
    place = _path_column(sheet)
    own_group = next((name for name in names if group is not None and name.lower() == group.lower()), None)
    others = [name for name in names if name not in (place, own_group)]
    split = _split_column(sheet, others)
    flags = tuple(name for name in others if name in FLAG_COLUMNS and split is None and _is_flag(sheet, name))
    others = [name for name in others if name != split and name not in flags]
    if label_column is not None:
        wanted = [label_column] if isinstance(label_column, str) else list(label_column)
        labels = tuple(_named(path, name, names) for name in wanted)
        one = isinstance(label_column, str)
    else:
        _refuse_objects(path, names)
        able = [name for name in others if name not in PATH_COLUMNS]
        found = _label_column(sheet, able)
        one = found is not None
        labels = (found,) if found is not None else tuple(able)
        if not labels:
            raise DataError(f"{path}: no column 'label' and none that is named as a class (found: {listed}).")
    unused = tuple(name for name in others if name not in labels)
    return _Columns(place, labels, one, split, flags, own_group, unused)


def _named(path: Path, name: str, names: Sequence[str]) -> str:
    """The column of this name, in any case."""
    for column in names:
        if column == name or column.lower() == name.lower():
            return column
    close = nearest(name, names)
    advice = f" Did you mean {close}?" if close else ""
    raise DataError(f"{path}: no column '{name}' (label_column; found: {', '.join(names)}).{advice}")


def _path_column(sheet: _Sheet) -> str:
    """The column of paths: of several that may be it, the first whose files are there."""
    found = [name for name in PATH_COLUMNS if name in sheet.columns]
    if not found:
        raise DataError(f"{sheet.path}: no column 'path' (found: {', '.join(sheet.columns)}).")
    root = sheet.path.parent
    for name in found if len(found) > 1 else []:
        cells = [row.cells[name] for row in sheet.rows[:FIRST_LINES]]
        if all(cell and (root / cell.replace("\\", "/")).is_file() for cell in cells):
            return name
    paths = [name for name in found if all(_is_image(row.cells[name]) for row in sheet.rows[:FIRST_LINES])]
    return paths[0] if paths else found[0]


def _label_column(sheet: _Sheet, others: Sequence[str]) -> str | None:
    """The column of labels; None where there is one of 0 and 1 for each class."""
    found = [name for name in LABEL_COLUMNS if name in others]
    if "label" in found or len(found) == 1:
        return found[0]
    if found:
        named = [name for name in found if not all(row.cells[name].isdecimal() for row in sheet.rows)]
        pairs = {tuple(row.cells[name] for name in found) for row in sheet.rows}
        alike = all(len({pair[place] for pair in pairs}) == len(pairs) for place in range(len(found)))
        if alike and len(named) == 1:
            return named[0]  # the names of the numbers beside them
        raise DataError(
            f"{sheet.path}: the columns {', '.join(found)} may hold labels. label_column={found[0]} takes that one."
        )
    if not others:
        return None
    strange = [name for name in others if not _is_flag(sheet, name)]
    if len(others) == 1 and strange:
        return others[0]
    if strange:
        flags = [name for name in others if name not in strange]
        row = next(row for row in sheet.rows if row.cells[strange[0]].lower() not in TRUE | FALSE)
        either = f", label_column=[{','.join(flags)}] those of 0 and 1" if flags else ""
        raise DataError(
            f"{sheet.path} line {row.line}: {strange[0]} is '{row.cells[strange[0]]}': expected 0 or 1 in a column a class, "
            f"or a column 'label'. label_column={strange[0]} takes that for the labels{either}."
        )
    return None


def _is_flag(sheet: _Sheet, name: str) -> bool:
    return all(row.cells[name].lower() in TRUE | FALSE for row in sheet.rows)


def _split_column(sheet: _Sheet, others: Sequence[str]) -> str | None:
    """The column of splits: ``split``, or one named alike whose values are splits."""
    for name in SPLIT_COLUMNS:
        if name not in others:
            continue
        values = {row.cells[name] for row in sheet.rows if row.cells[name]}
        if name == "split" or (values and all(split_of(value) for value in values)):
            return name
    return None


def _refuse_objects(path: Path, names: Sequence[str]) -> None:
    lower = [name.lower() for name in names]
    boxes = [name for name in names if name.lower() in BOX_COLUMNS]
    masks = [name for name in lower if name in MASK_COLUMNS]
    if len(boxes) >= 4 or "bbox" in lower:
        raise DataError(
            f"{path}: a table of boxes ({', '.join(boxes)}). maelift transfer detect reads boxes as COCO JSON, YOLO or Pascal "
            "VOC; label_column=NAME takes a column for the labels of whole images."
        )
    if masks:
        raise DataError(
            f"{path}: a table of masks ({', '.join(masks)}). maelift transfer segment reads masks as images; "
            "label_column=NAME takes a column for the labels of whole images."
        )


# The rows


def _labels(
    where: str, row: _Row, columns: _Columns, several: bool, lists: bool, multi_label: bool | None
) -> tuple[str, ...]:
    if columns.one_label:
        cell = row.cells[columns.labels[0]]
        labels = _cell_labels(where, cell, lists) if several else (cell,)
        if not (labels and all(labels)) and not (several and not labels):
            raise DataError(f"{where}: a path or a label is missing.")
    else:
        labels = tuple(name for name in columns.labels if _is_one(where, row, name))
        if not several and len(labels) != 1:
            raise DataError(
                f"{where}: {len(labels)} classes are 1, and multi_label=false. Expected one; multi_label=true takes any number."
            )
    for label in labels:
        if any(unicodedata.category(letter) == "Cc" for letter in label):
            raise DataError(f"{where}: the label {label!r} has a line break or another control character in it.")
    return labels


def _whole_numbers(sheet: _Sheet, column: str) -> _Sheet:
    """The table with 1.0 as 1 in a column."""
    rows = (_Row(row.line, {**row.cells, column: row.cells[column].removesuffix(".0")}) for row in sheet.rows)
    return _Sheet(sheet.path, sheet.columns, tuple(rows))


def _cell_labels(where: str, cell: str, lists: bool) -> tuple[str, ...]:
    """The labels of a cell, separated by ``|`` or ``;``, or a list as Python and JSON write it; an empty cell has none."""
    if not cell:
        return ()
    if lists:
        try:
            found = ast.literal_eval(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise DataError(f"{where}: {cell[:60]}: not a list of labels. Expected ['a', 'b'], or a|b.") from error
        return tuple(dict.fromkeys(str(label).strip() for label in found))
    return tuple(dict.fromkeys(label.strip() for label in cell.replace(";", "|").split("|")))


def _is_one(where: str, row: _Row, name: str) -> bool:
    value = row.cells[name].lower()
    if value not in TRUE | FALSE:
        raise DataError(f"{where}: {name} is '{value}': expected 0 or 1 in a column a class, or a column 'label'.")
    return value in TRUE


def _split(where: str, row: _Row, columns: _Columns) -> str:
    """The split of a row; training where none is said."""
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


def _joined(path: Path, read: Sequence[LabeledFile], several: bool, unite: bool) -> tuple[LabeledFile, ...]:
    """Each image once: rows of one file are joined where they say the same, or where ``unite`` unites their labels."""
    rows: dict[object, list[LabeledFile]] = defaultdict(list)
    for row in read:
        rows[_identity(path.parent / row.path)].append(row)
    if len(rows) == len(read):
        return tuple(read)
    files = []
    for same in rows.values():
        first = same[0]
        lines = tuple(line for row in same for line in row.lines)
        where = f"{path} lines {_listed(lines)}: {first.path}"
        for row in same:
            if row.split != first.split:
                raise DataError(
                    f"{path} line {row.lines[0]}: {row.path} is in {first.split} already (line {first.lines[0]}). Expected one "
                    "split for an image."
                )
            if row.group != first.group and first.group != first.path:
                raise DataError(
                    f"{where} is in the groups {first.group} and {row.group}. Expected one group for an image."
                )
        kinds_of = {frozenset(row.labels) for row in same}
        if len(kinds_of) > 1 and not unite:
            shown = " and ".join(dict.fromkeys("|".join(row.labels) or "none" for row in same))
            raise DataError(
                f"{where} has the labels {shown}. Expected one label an image; multi_label=true of maelift transfer "
                "classify and data check takes several."
            )
        labels = tuple(dict.fromkeys(label for row in same for label in row.labels))
        files.append(LabeledFile(first.path, lines, labels if several else first.labels, first.split, first.group))
    what = "their labels are joined" if unite else "rows of one image with equal labels are joined"
    logger.warning("%s: %d rows name %d images; %s", path, len(read), len(files), what)
    return tuple(files)


def _identity(path: Path) -> object:
    """What is the same for all names of a file."""
    status = os.stat(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def _listed(lines: Sequence[int], most: int = 6) -> str:
    shown = [str(line) for line in lines[:most]]
    if len(lines) > most:
        return f"{', '.join(shown)}, …"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]


# The files


@dataclass
class _Tree:
    """The image files below a folder, by their names and by their names without suffix, listed when they are needed."""

    root: Path
    by_name: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for name in list_files(self.root):
            parts = PurePosixPath(name)
            if parts.suffix.lower() in SUFFIXES:
                self.by_name[_plain(parts.name)].append(name)
                self.by_name[_plain(parts.stem)].append(name)

    def find(self, name: str) -> list[str]:
        """The files that a name may mean: with another case, without its suffix, or from another folder."""
        parts = [part for part in re.split(r"[\\/]+", _plain(name)) if part not in ("", ".")]
        if not parts:
            return []
        found = []
        for path in self.by_name.get(parts[-1], ()):
            folders = [_plain(part) for part in path.split("/")[:-1]]
            asked = parts[:-1]
            shared = min(len(folders), len(asked))
            if shared == 0 or folders[-shared:] == asked[-shared:]:
                found.append(path)
        return found


def _plain(name: str) -> str:
    """A name without the differences that systems make: of case, and of how an accent is encoded."""
    return unicodedata.normalize("NFC", name).casefold()


def _found(path: Path, sheet: _Sheet, column: str) -> list[str]:
    """The file of each row, by its path from the table's folder; raises DataError for one that isn't there."""
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
        tree = _Tree(root)
        for line, name in missing:
            found = tree.find(name)
            if (
                len(found) > 1
            ):  # train.csv is of the images in train/ or train_images/, where there are others of these names
                near = [one for one in found if path.stem.lower() in re.split(r"[^a-z0-9]+", one.split("/")[0].lower())]
                found = near if len(near) == 1 else found
            if not found:
                raise DataError(
                    f"{path} line {line}: no such file: {name} ({len(missing)} of {len(known)} aren't there). Paths are relative "
                    "to the CSV."
                )
            if len(found) > 1:
                raise DataError(
                    f"{path} line {line}: {name} may be {found[0]} or {found[1]}. Expected a path from the CSV."
                )
            known[name] = found[0]
        line, name = missing[0]
        logger.warning(
            "%s: %d paths aren't there as written; found by name, %s as %s", path, len(missing), name, known[name]
        )
    files = [known[row.cells[column]] for row in sheet.rows]
    for row, name in zip(sheet.rows, files, strict=True):
        if not _is_image(name):
            raise DataError(f"{path} line {row.line}: {name} is not an image by its name. Expected {kinds()}.")
    return files


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


# What is said


def _tell_columns(path: Path, sheet: _Sheet, columns: _Columns, several: bool, files: Sequence[LabeledFile]) -> None:
    """Say which columns were taken where that isn't plain, and which weren't."""
    taken = []
    if columns.path != "path":
        taken.append(f"{columns.path} for paths")
    if columns.one_label and columns.labels[0] != "label":
        taken.append(f"{columns.labels[0]} for labels")
    if columns.split not in (None, "split"):
        taken.append(f"{columns.split} for splits")
    taken += [f"{name} for the {FLAG_COLUMNS[name]} split" for name in columns.flags]
    unused = f"; not used: {', '.join(columns.unused[:8])}" if columns.unused else ""
    if taken or unused:
        logger.info("%s: columns taken: %s%s", path, ", ".join(taken) or "path, label", unused)
    if not columns.one_label and several:
        exact = all(len(file.labels) == 1 for file in files)
        if len(columns.labels) == 1:
            what = (
                f"one class, which an image has or hasn't; label_column={columns.labels[0]} makes two classes, 0 and 1"
            )
            logger.warning("%s: the column %s of 0 and 1 is %s", path, columns.labels[0], what)
        elif exact:
            logger.info(
                "%s: each image has just one class of several; multi_label=false takes one class an image", path
            )
    if columns.split is not None:
        empty = sum(not row.cells[columns.split] for row in sheet.rows)
        if 0 < empty < len(sheet.rows):
            logger.warning("%s: %d rows without a split are taken for training", path, empty)


def alike(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in case, spaces or the encoding of accents only, together."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found["".join(_plain(name).split())].append(name)
    return [sorted(same) for same in found.values() if len(same) > 1]
