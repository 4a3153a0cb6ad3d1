"""Images in a column of bytes of Parquet files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...files import MAX_READ_BYTES, check_regular
from ...optional_imports import require
from ..decode import decode
from ..file_index import read_file_stats
from ..pixel_format import ANY_FORMAT, Picture, PixelFormat
from ..string_table import Numbers, StringTable

SMALLEST_IMAGE = 16
"""Bytes that an image takes at least: Parquet files of more rows than that leaves room for are refused."""

GROUPS_KEPT = 4
"""Row groups of Parquet files that each process caches in memory."""


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

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        files = self.places[np.asarray(numbers, dtype=np.int64), 0]
        stamps: NDArray[np.int64] = read_file_stats(map(str, self.files))[files]
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
    if (size := source.metadata.row_group(group).total_byte_size) > MAX_READ_BYTES:
        raise DataError(
            f"{file}: row group {group} of {size:,} bytes, more than the {MAX_READ_BYTES:,} that are read at once. Write the "
            "file with smaller row groups"
        )
    return source.read_row_group(group, columns=[column]).column(0)
