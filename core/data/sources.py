"""Where images to pretrain on come from: folders, lists, tar shards, Parquet, idx and NumPy arrays, one or several."""

from __future__ import annotations

import csv
import functools
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..cache import cache_file, load, save
from ..errors import DataError
from ..files import LARGEST_READ, NotRegularError, check_regular, read_regular
from ..optional_imports import require
from .audit import FileBacked
from .decode import ANY_FORMAT, SUFFIXES, Picture, PixelFormat, decode
from .file_index import FORMAT, KEPT_FROM, file_stamp, file_stamps, is_racy, packed, tree_file, unpacked
from .images import FolderImages, ImageSet, find_images, is_idx_images
from .readers.tar_shards import find_shards, index_shards, tables_file
from .string_table import Numbers, StringTable
from .unread import in_brackets, kind_of, tell, tell_beside

LISTS = (".txt", ".csv")
PATH_COLUMNS = ("path", "file", "file_name", "filename", "image")
"""Columns of a CSV list that hold the images' paths, the first that is there; else its first column."""
LARGEST_LIST = 2**30
"""Bytes up to which a list of paths is read."""
SMALLEST_IMAGE = 16
"""Bytes that an image takes at least: Parquet files of more rows than that leaves room for are refused."""
GROUPS_KEPT = 4
"""Row groups of Parquet files that each process keeps in memory."""


def find_sources(data: str | Sequence[str], reindex: bool = False) -> ImageSet:
    """The images of one source, or of several one after the other.

    A source is a folder of images, or of tar shards, or of Parquet files; a list of paths (.txt, .csv); a tar shard or
    several (shards/{000..009}.tar); a Parquet file; an idx file; or a NumPy array (N, H, W) or (N, H, W, C) in a .npy
    file. ``reindex``: what is known of them from before doesn't count. Raises DataError for one that isn't there or holds
    no images.
    """
    if reindex:
        for part in [data] if isinstance(data, str) else data:
            forget_source(part)
    if isinstance(data, str):
        return find_source(data)
    parts = tuple(find_source(part) for part in data)
    if not parts:
        raise DataError("data=[]: no source. Expected at least one.")
    return parts[0] if len(parts) == 1 else ConcatImages.of(parts)


def find_source(data: str) -> ImageSet:
    """The images of one source; see ``find_sources``."""
    path = Path(data)
    suffix = path.suffix.lower()
    is_file = _is_file(path)
    if suffix in LISTS and is_file:
        return _listed(path)
    if suffix == ".npy" and is_file:
        return _array(path)
    if suffix == ".parquet" and is_file:
        return read_parquet([path])
    if path.is_dir() and (files := sorted(file for file in path.glob("*.parquet") if file.is_file())):
        tell_beside(path, files, "Parquet files")
        return read_parquet(files)
    if shards := find_shards(data):
        return index_shards(shards)
    if is_file and not is_idx_images(path):
        kind = kind_of(path.name)
        why = "a single image" if kind in SUFFIXES else f"no source of images{in_brackets(kind)}"
        raise DataError(
            f"data={path}: {why}. Expected a folder, a list of paths (.txt, .csv), a .tar, .parquet, .npy or idx file."
        )
    return find_images(path)


def _is_file(path: Path) -> bool:
    """Whether a path is a file; raises DataError for a named pipe, a device, or what can't be reached."""
    try:
        check_regular(path)
    except NotRegularError as error:
        if path.is_dir():
            return False
        raise DataError(f"data={path}: {error.strerror}. Expected images: a folder, list, shards or array.") from error
    except OSError:
        return False  # it may be a pattern of shards
    return True


def forget_source(data: str) -> None:
    """Have a source listed from the start the next time."""
    path = Path(data)
    if path.is_dir():
        tree_file(path).unlink(missing_ok=True)
    if path.suffix.lower() in LISTS:
        _list_file(path).unlink(missing_ok=True)
    if shards := find_shards(data):
        tables_file(shards).unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class ConcatImages:
    """Images of several sets: ``places`` (N, 2) int64, the number of the set and the image's number in it."""

    parts: tuple[ImageSet, ...]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, parts: tuple[ImageSet, ...]) -> ConcatImages:
        """All images of the sets, one set after the other."""
        places = [
            np.stack([np.full(len(part), number), np.arange(len(part))], axis=1) for number, part in enumerate(parts)
        ]
        return cls(parts, np.concatenate(places).astype(np.int64))

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        part, number = (int(value) for value in self.places[index])
        return f"{part}:{self.parts[part].name(number)}"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        part, number = (int(value) for value in self.places[index])
        return self.parts[part].open(number, form)

    def content(self, index: int) -> bytes | None:
        part, number = (int(value) for value in self.places[index])
        return self.parts[part].content(number)

    def subset(self, indices: Numbers) -> ConcatImages:
        return ConcatImages(self.parts, self.places[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return max(part.default_workers() for part in self.parts)

    def origin(self) -> str | None:
        origins = [part.origin() if isinstance(part, FileBacked) else None for part in self.parts]
        return None if None in origins else "\0".join(str(origin) for origin in origins)

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        places = self.places[np.asarray(numbers, dtype=np.int64)]
        stamps = np.full((len(places), 3), -1, dtype=np.int64)
        for number, part in enumerate(self.parts):
            here = places[:, 0] == number
            if isinstance(part, FileBacked):
                stamps[here] = part.stamps(places[here, 1])
        return stamps

    def groups(self) -> list[NDArray[np.int64]]:
        """The numbers of each set's images."""
        return [np.flatnonzero(self.places[:, 0] == part) for part in range(len(self.parts))]


@dataclass(frozen=True, eq=False)
class NumpyImages:
    """Images of a .npy file (N, H, W, C), which is read where it is looked at; those at ``indices`` are meant."""

    path: Path
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"{self.path.name}[{self.indices[index]}]"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Picture:
        image = np.array(_mapped(self.path)[self.indices[index]])
        return image if image.ndim == 3 else image[:, :, None]

    def content(self, index: int) -> None:
        return None

    def subset(self, indices: Numbers) -> NumpyImages:
        return NumpyImages(self.path, self.indices[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return min(4, os.cpu_count() or 1)

    def origin(self) -> str | None:
        return f"array {self.path.absolute()}"

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        return np.repeat(file_stamps([str(self.path)]), len(numbers), axis=0)


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Image files in a column of bytes of Parquet files, or in Hugging Face's column of {bytes, path}.

    ``places`` (N, 3) int64: the number of the file, of the row group in it, and of the row in that.
    """

    files: tuple[Path, ...]
    column: str
    places: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        file, group, row = self.places[index]
        return f"{self.files[file].name}[{group}:{row}]"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
        return decode(Path(self.name(index)), self.content(index), form)

    def content(self, index: int) -> bytes:
        from pyarrow import ArrowException

        file, group, row = (int(value) for value in self.places[index])
        try:
            value = _row_group(self.files[file], group, self.column)[row].as_py()
        except (OSError, IndexError, ArrowException) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"{self.name(index)}: can't be read ({reason})") from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise DataError(f"{self.name(index)}: no bytes in {self.column}")
        return bytes(content)

    def subset(self, indices: Numbers) -> ParquetImages:
        return ParquetImages(self.files, self.column, self.places[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return min(16, os.cpu_count() or 1)

    def origin(self) -> str | None:
        return "\0".join(["parquet", self.column, *(str(file.absolute()) for file in self.files)])

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def stamps(self, numbers: Numbers) -> NDArray[np.int64]:
        files = self.places[np.asarray(numbers, dtype=np.int64), 0]
        stamps: NDArray[np.int64] = file_stamps(map(str, self.files))[files]
        return stamps


def read_parquet(files: Sequence[Path]) -> ParquetImages:
    """The images of Parquet files with one column of them; raises DataError for others."""
    require("pyarrow")
    import pyarrow.parquet as parquet
    from pyarrow import ArrowException

    places, columns = [], set()
    for number, path in enumerate(files):
        try:
            size = check_regular(path).st_size
            file = parquet.ParquetFile(path)
        except (OSError, ArrowException) as error:
            raise DataError(f"{path}: can't be read as Parquet ({str(error).splitlines()[0]}).") from error
        if file.metadata.num_rows > size // SMALLEST_IMAGE:
            raise DataError(
                f"{path}: {file.metadata.num_rows:,} rows in {size:,} bytes, which leaves no room for images. Expected a row an "
                "image, with its bytes."
            )
        columns.add(_image_column(path, file.schema_arrow))
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            places.append(np.stack([np.full(rows, number), np.full(rows, group), np.arange(rows)], axis=1))
    if len(columns) > 1:
        raise DataError(
            f"{files[0].parent}: the files' images are in different columns ({', '.join(sorted(columns))})."
        )
    if not sum(len(part) for part in places):
        raise DataError(f"{files[0]}: no rows. Expected a row an image.")
    return ParquetImages(tuple(files), columns.pop(), np.concatenate(places).astype(np.int64))


def _image_column(path: Path, schema: Any) -> str:
    """The column of images: bytes, or a struct with a field ``bytes``."""
    import pyarrow as pa

    def holds_images(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds_images(field.type) for field in kind)
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_images(field.type)]
    if len(found) == 1:
        return str(found[0])
    preferred = [name for name in found if name in ("image", "img", "jpg", "png", "bytes")]
    if len(preferred) == 1:
        return str(preferred[0])
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)[:300]
    raise DataError(
        f"{path}: {'several columns' if found else 'no column'} of bytes ({listed}). Expected one with image files, or "
        "Hugging Face's {bytes, path}."
    )


@functools.lru_cache(maxsize=GROUPS_KEPT)
def _row_group(file: Path, group: int, column: str) -> Any:
    """The column of a row group."""
    import pyarrow.parquet as parquet

    source = parquet.ParquetFile(file)
    if (size := source.metadata.row_group(group).total_byte_size) > LARGEST_READ:
        raise DataError(
            f"{file}: row group {group} of {size:,} bytes, more than the {LARGEST_READ:,} that are read at once. Write the file "
            "with smaller row groups"
        )
    return source.read_row_group(group, columns=[column]).column(0)


@functools.lru_cache(maxsize=16)
def _mapped(path: Path) -> NDArray[np.generic]:
    array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def _array(path: Path) -> NumpyImages:
    try:
        check_regular(path)
        array = _mapped(path)
    except (
        Exception
    ) as error:  # of a hostile header, numpy raises anything: SyntaxError, TokenError, OverflowError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"data={path}: can't be read as a NumPy array ({reason}).") from error
    shape = array.shape
    if len(shape) not in (3, 4) or 0 in shape or array.dtype.kind not in "buif":
        raise DataError(
            f"data={path}: an array of shape {shape} and type {array.dtype}. Expected numbers, (count, height, width) or "
            "(…, channels)."
        )
    return NumpyImages(path, np.arange(shape[0]))


def _listed(path: Path) -> FolderImages:
    """The images that a list names, a path a line or in a column; relative ones from the list's folder."""
    file, stamp = _list_file(path), file_stamp(path)
    before = load(file)
    if before is not None and before[1].get("stamp") == stamp:
        return FolderImages(path.parent, unpacked("names", before[0]))
    paths = _read_list(path)
    # one that is there and no file is named where it is opened, as in a folder
    missing = [number for number, name in enumerate(paths) if not os.path.lexists(path.parent / name)]
    if missing:
        raise DataError(
            f"data={path}: {paths[missing[0]]} isn't there ({len(missing)} of {len(paths)} aren't). Expected paths from "
            f"{path.parent}, or absolute ones."
        )
    names = StringTable.of(paths)
    if len(names) >= KEPT_FROM and not is_racy(path):
        save(file, packed("names", names), {"stamp": stamp})
    return FolderImages(path.parent, names)


def _list_file(path: Path) -> Path:
    """Where the list is kept once its files have been seen to be there."""
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
        tell(f"{path}: {len(paths):,} images; {len(lines) - len(paths):,} other rows name none")
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
