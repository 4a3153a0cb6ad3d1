"""Images of a NumPy array in a .npy file."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...files import check_regular
from ..file_index import read_file_stats
from ..pixel_format import ANY_FORMAT, Picture, PixelFormat
from ..string_table import Numbers, StringTable


@dataclass(frozen=True, eq=False)
class NumpyImages:
    """Images of a .npy file (N, H, W, C), which is mapped into memory; those at ``indices`` are meant."""

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

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        return np.repeat(read_file_stats([str(self.path)]), len(numbers), axis=0)


@functools.lru_cache(maxsize=16)
def _mapped(path: Path) -> NDArray[np.generic]:
    array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_npy(path: Path) -> NumpyImages:
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
