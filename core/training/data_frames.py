"""The figures that a run has written, as pandas data frames."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..optional_imports import require
from .tracker import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from pandas import DataFrame


def metrics_frame(folder: Path) -> DataFrame:
    """The metrics.jsonl of a run: a row a record, ``step`` int64, all others float64, NaN where a record hasn't them.

    Raises MaeliftError where pandas isn't installed, DataError where the file isn't there.
    """
    pandas = require("pandas")
    file = folder / METRICS_FILE
    if not file.is_file():
        raise DataError(f"{file}: no such file. Expected the metrics of a run, beside its result.")
    records = read_metrics(file)
    names = list(dict.fromkeys(name for record in records for name in record)) or ["step"]
    frame = pandas.DataFrame.from_records(records, columns=names)
    types = {name: "int64" if name == "step" else "float64" for name in names}
    return frame.astype(types)


def table_frame(file: Path, types: Mapping[str, str]) -> DataFrame:
    """A CSV with a header; ``types`` are the dtypes of its columns by name, and those of all others are float64.

    Text stays as it is, "NA" too; an empty number is missing. Raises MaeliftError where pandas isn't installed, DataError
    where the file isn't there.
    """
    pandas = require("pandas")
    if not file.is_file():
        raise DataError(f"{file}: no such file. Expected the table of the result.")
    frame = pandas.read_csv(file, dtype="str", keep_default_na=False)
    return frame.apply(lambda column: _typed(pandas, column, types.get(str(column.name), "float64")))


def _typed(pandas: Any, column: Any, dtype: str) -> Any:
    return column if dtype == "str" else pandas.to_numeric(column.replace("", None)).astype(dtype)
