"""Files of features, a row an image: Parquet, NumPy's .npz or CSV, written at once and read back."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import DataError
from ..core.files import TableWriter, atomic_path, read_regular, safe_cell
from ..core.optional_imports import require
from .neighbours import Neighbours

METADATA_KEY = "maelift.features"
"""The key of the metadata in Parquet files, whose value is JSON; in .npz files the array ``metadata``, of one text."""
ROWS = 2**14
"""Rows of a group in Parquet files."""
FEATURE = "feature_"
"""What the names of a CSV's columns of features begin with; a number from 0 follows."""


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features of images: ``names`` (N), ``features`` (N, D) float32; ``labels`` and ``splits`` (N) where they are known.

    ``neighbours``: of all rows, by row number. ``metadata``: what the features were computed by.
    """

    names: Sequence[str]
    features: NDArray[np.float32]
    labels: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    neighbours: Neighbours | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> dict[str, Sequence[str]]:
        """The columns of texts by their names in files."""
        columns = {"name": self.names, "label": self.labels, "split": self.splits}
        return {name: column for name, column in columns.items() if column is not None}

    def neighbour_names(self, row: int) -> list[str]:
        """The names of a row's neighbours, nearest first."""
        return [] if self.neighbours is None else [self.names[number] for number in self.neighbours.numbers[row]]


def check_format(path: Path, names: Sequence[str]) -> None:
    """Raise MaeliftError where a file of this suffix can't be written: without pyarrow, or for names that it can't hold."""
    if path.suffix.lower() == ".parquet":
        require("pyarrow")
        odd = next((name for name in names if not _is_utf8(name)), None)
        if odd is not None:
            raise DataError(f"{odd}: a name that isn't UTF-8, which Parquet can't hold. Give out=NAME.npz or NAME.csv.")


def write_features(table: FeatureTable, path: Path) -> None:
    """Write a file of features in the format of its suffix, completely or not at all."""
    with atomic_path(path) as temporary:
        _WRITERS[path.suffix.lower()](table, temporary)


def read_features(path: str | Path) -> FeatureTable:
    """The content of a file of features, of any of the formats; raises DataError for another file."""
    file = Path(path)
    try:
        reader = _READERS[file.suffix.lower()]
    except KeyError:
        raise DataError(f"{path}: expected a file of features, {', '.join(_READERS)}.") from None
    try:
        return reader(file)
    except (OSError, ValueError, KeyError, IndexError, EOFError) as error:
        raise DataError(
            f"{path}: no file of features that can be read ({error}). Expected one of maelift embed."
        ) from error


def _write_parquet(table: FeatureTable, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dim = table.features.shape[1]
    fields = [pa.field(name, pa.string()) for name in table.texts]
    fields.insert(1, pa.field("features", pa.list_(pa.float32(), dim)))
    if table.neighbours is not None:
        fields += [
            pa.field("neighbour_names", pa.list_(pa.string())),
            pa.field("neighbour_cosines", pa.list_(pa.float32())),
        ]
    schema = pa.schema(fields, {METADATA_KEY: json.dumps(table.metadata)})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(table.names), ROWS):
            rows = range(start, min(start + ROWS, len(table.names)))
            vectors = np.ascontiguousarray(table.features[start : rows.stop], dtype=np.float32).reshape(-1)
            columns: dict[str, Any] = {
                "features": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dim),
                **{name: list(column[start : rows.stop]) for name, column in table.texts.items()},
            }
            if table.neighbours is not None:
                columns["neighbour_names"] = [table.neighbour_names(row) for row in rows]
                columns["neighbour_cosines"] = list(table.neighbours.cosines[start : rows.stop])
            writer.write_table(pa.table(columns, schema=schema))


def _read_parquet(path: Path) -> FeatureTable:
    require("pyarrow")
    import pyarrow.parquet as pq

    read = pq.read_table(path)
    stored = (read.schema.metadata or {}).get(METADATA_KEY.encode())
    dim = read.schema.field("features").type.list_size
    columns = {name: read.column(name).to_pylist() for name in read.column_names if name != "features"}
    vectors = read.column("features").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return _table(columns, vectors.reshape(-1, dim), {} if stored is None else json.loads(stored))


def _write_npz(table: FeatureTable, path: Path) -> None:
    arrays: dict[str, Any] = {
        "features": np.asarray(table.features, dtype=np.float32),
        "metadata": np.array(json.dumps(table.metadata)),
        **{f"{name}s": np.array(column, dtype=np.str_) for name, column in table.texts.items()},
    }
    if table.neighbours is not None:
        arrays["neighbour_names"] = np.array(table.names, dtype=np.str_)[table.neighbours.numbers]
        arrays["neighbour_cosines"] = table.neighbours.cosines
    with path.open("wb") as file:  # savez would add .npz to the temporary name
        np.savez(file, **arrays)


def _read_npz(path: Path) -> FeatureTable:
    with np.load(path, allow_pickle=False) as stored:
        columns = {name: stored[f"{name}s"].tolist() for name in ("name", "label", "split") if f"{name}s" in stored}
        columns |= {name: stored[name] for name in ("neighbour_names", "neighbour_cosines") if name in stored}
        return _table(columns, stored["features"], json.loads(str(stored["metadata"])))


def _write_csv(table: FeatureTable, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = TableWriter(file)
        k = 0 if table.neighbours is None else table.neighbours.numbers.shape[1]
        near = [f"neighbour_{what}_{place}" for place in range(1, k + 1) for what in ("name", "cosine")]
        writer.writerow([*table.texts, *near, *(f"{FEATURE}{number}" for number in range(table.features.shape[1]))])
        for row, vector in enumerate(table.features):
            texts = [cell[row] if name == "name" else safe_cell(cell[row]) for name, cell in table.texts.items()]
            writer.writerow([*texts, *_near_cells(table, row), *map(str, vector)])


def _near_cells(table: FeatureTable, row: int) -> Iterator[str]:
    """The names of a row's neighbours, each followed by its cosine."""
    if table.neighbours is not None:
        for name, cosine in zip(table.neighbour_names(row), table.neighbours.cosines[row], strict=True):
            yield from (name, str(cosine))


def _read_csv(path: Path) -> FeatureTable:
    text = read_regular(path).decode("utf-8", "surrogateescape")
    header, *content = csv.reader(io.StringIO(text, newline=""))
    first = header.index(f"{FEATURE}0")
    columns: dict[str, Any] = {
        name: [row[place] for row in content]
        for place, name in enumerate(header[:first])
        if not name.startswith("neighbour_")
    }
    near = [place for place, name in enumerate(header[:first]) if name.startswith("neighbour_")]
    if near:
        columns["neighbour_names"] = [[row[place] for place in near[::2]] for row in content]
        columns["neighbour_cosines"] = [[float(row[place]) for place in near[1::2]] for row in content]
    vectors = np.array([row[first:] for row in content], dtype=np.float32)
    return _table(columns, vectors, {})


def _table(columns: Mapping[str, Any], vectors: NDArray[np.float32], metadata: Mapping[str, Any]) -> FeatureTable:
    names = columns["name"]
    neighbours = None
    if "neighbour_names" in columns:
        number = {name: row for row, name in enumerate(names)}
        numbers = [[number[str(name)] for name in row] for row in columns["neighbour_names"]]
        cosines = np.asarray(columns["neighbour_cosines"], dtype=np.float32)
        neighbours = Neighbours(np.array(numbers, dtype=np.int64), cosines)
    labels, splits = columns.get("label"), columns.get("split")
    return FeatureTable(names, vectors.astype(np.float32, copy=False), labels, splits, neighbours, metadata)


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)


_WRITERS: Mapping[str, Callable[[FeatureTable, Path], None]] = {
    ".parquet": _write_parquet,
    ".npz": _write_npz,
    ".csv": _write_csv,
}
_READERS: Mapping[str, Callable[[Path], FeatureTable]] = {
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".csv": _read_csv,
}
