"""The cache: arrays that took long to compute, in a folder of the user that may be deleted at any time."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .files import atomic_path, check_regular

logger = logging.getLogger("maelift")

Arrays = Mapping[str, NDArray[Any]]

_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F64": np.float64}
_reported: set[str] = set()


def cache_folder() -> Path:
    """$MAELIFT_CACHE, else maelift in $XDG_CACHE_HOME, else ~/.cache/maelift."""
    if own := os.environ.get("MAELIFT_CACHE"):
        return Path(own)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "maelift"


def cache_file(kind: str, *identity: str) -> Path:
    """The file in which arrays of a ``kind`` are cached for this identity."""
    digest = hashlib.sha256("\0".join(identity).encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder() / kind / f"{digest[:40]}.safetensors"


def save(file: Path, arrays: Arrays, about: Mapping[str, str]) -> None:
    """Write arrays of uint8, int32, int64 or float64 as a safetensors file with ``about`` as its metadata.

    A folder that can't be written to is logged once; the cache is only a convenience.
    """
    try:
        from safetensors.numpy import save_file

        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as temporary:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, temporary, dict(about))
    except OSError as error:
        reason = (
            f"{file.parent}: nothing can be cached there for the next start ({(error.strerror or str(error)).lower()})"
        )
        if reason not in _reported:
            _reported.add(reason)
            logger.info("%s; $MAELIFT_CACHE may name another folder", reason)


def load(file: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]] | None:
    """The arrays of a file, mapped into memory, and its metadata; None where it isn't there, or isn't complete."""
    try:
        size = check_regular(file).st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length < size else {}
        about = header.pop("__metadata__")
        arrays: dict[str, NDArray[Any]] = {}
        for name, entry in header.items():
            dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            if end > size or end - begin != dtype.itemsize * math.prod(shape):
                return None
            mapped = np.memmap(file, dtype, "r", begin, shape) if end > begin else np.empty(shape, dtype)
            arrays[name] = np.asarray(mapped)
        return arrays, about
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
