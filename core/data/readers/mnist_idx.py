"""Images of idx files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ...files import MAX_READ_BYTES, open_regular
from ..file_index import read_file_stats
from ..pixel_format import ANY_FORMAT, PixelFormat
from ..string_table import Numbers, StringTable

GZIP_START = b"\x1f\x8b"

IDX_START = b"\x00\x00\x08"
"""An idx file of bytes; the number of its axes follows."""

HARMLESS_BYTES = 64 * 2**20

MOST_PACKED = 200
"""What is unpacked may be so many times as large as its file, unless it is harmless: images are seldom packed to a tenth."""


@dataclass(frozen=True)
class ArrayImages:
    """Images of the idx file ``path``: ``array`` (N, H, W) uint8, of which those at ``indices`` are meant."""

    array: NDArray[np.uint8]
    path: Path
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return f"{self.path.name}[{self.indices[index]}]"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image:
        return Image.fromarray(self.array[self.indices[index]])

    def content(self, index: int) -> None:
        return None

    def subset(self, indices: Numbers) -> ArrayImages:
        return ArrayImages(self.array, self.path, self.indices[np.asarray(indices, dtype=np.int64)])

    def default_workers(self) -> int:
        return 0

    def origin(self) -> str | None:
        return f"idx {self.path.absolute()}"

    def listed(self) -> StringTable:
        return StringTable.of(map(self.name, range(len(self))))

    def file_stats(self, numbers: Numbers) -> NDArray[np.int64]:
        return read_file_stats([os.fspath(self.path)]).repeat(len(numbers), axis=0)


def idx_file(folder: Path, split: str, content: str) -> Path | None:
    """The idx file of a folder with ``split`` ("train", "t10k") and ``content`` ("images", "labels") in its name."""
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and f"{content}" in path.name and "idx" in path.name and path.name.startswith(split)
    ]
    return found[0] if found else None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array of an idx file of bytes, gzipped or not; raises DataError when it isn't one or is cut off.

    Its header is compared with the file before anything is read or unpacked.
    """
    try:
        with open_regular(path) as file:
            size, packed = os.fstat(file.fileno()).st_size, file.read(2) == GZIP_START
            file.seek(0)
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
            head = stream.read(4)
            axes = head[3] if len(head) == 4 and head[:3] == IDX_START else 0
            rest = stream.read(4 * axes)
            if not 1 <= axes <= 4 or len(rest) != 4 * axes:
                raise DataError(f"{path}: not an idx file of bytes. Expected the MNIST format.")
            shape = [int.from_bytes(rest[4 * axis : 4 * axis + 4], "big") for axis in range(axes)]
            promised = math.prod(shape)
            if packed and promised > max(HARMLESS_BYTES, MOST_PACKED * size):
                raise DataError(
                    f"{path}: {size:,} bytes that promise to unpack to {promised:,}: a decompression bomb? "
                    "Unpack it with gunzip if it is to be trusted."
                )
            if promised > MAX_READ_BYTES:
                raise DataError(
                    f"{path}: its header promises {promised:,} bytes, more than the {MAX_READ_BYTES:,} that are read of a file. "
                    "Save it as a .npy array, which is mapped, not read."
                )
            there = size - 4 - 4 * axes
            if not packed and there != promised:
                raise DataError(_cut_off(path, there, promised))
            content = stream.read(promised + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: can't be read ({reason}). Get the file again.") from error
    if len(content) != promised:
        raise DataError(_cut_off(path, len(content), promised))
    return np.frombuffer(content, dtype=np.uint8).reshape(shape if promised else [0] * axes)


def _cut_off(path: Path, there: int, promised: int) -> str:
    return f"{path}: {there} bytes of content where its header promises {promised}. The file is cut off; get it again."


def is_idx_images(path: Path) -> bool:
    """Whether a file is an idx file, by its first bytes."""
    try:
        with open_regular(path) as file:
            head = file.read(3)
            if head[:2] == GZIP_START:
                file.seek(0)
                head = gzip.GzipFile(fileobj=file).read(3)
    except (OSError, EOFError, zlib.error):
        return False
    return head == IDX_START


def idx_images(path: Path) -> ArrayImages:
    """The images of an idx file (N, H, W)."""
    array = read_idx(path)
    if array.ndim != 3 or 0 in array.shape:
        raise DataError(f"{path}: an array of shape {array.shape}. Expected images: (count, height, width).")
    return ArrayImages(array, path, np.arange(len(array)))
