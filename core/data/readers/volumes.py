"""The images of files that hold several: slices of NIfTI volumes, frames of DICOM files, empty ones left out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...cache import cache_file, load, save
from ...errors import DataError
from ...files import read_regular
from ...progress import progress_logger
from ..file_index import packed_strings, read_file_stats, unpacked_strings
from ..pixel_format import LazyImage, PixelFormat, is_flat
from ..slices import Slices, file_of, is_dicom_name, is_volume, number_of, slice_name
from ..string_table import StringTable
from ..unread import report
from .dicom import frame_count, open_dicom
from .nifti import filled_slices, open_slice

FORMAT = "1"
CACHED_SECONDS = 2.0
"""Volumes whose slices take so long to look at are remembered."""


def open_part(path: Path, form: PixelFormat) -> LazyImage:
    """A slice of a volume or a frame of a DICOM file by its name, FILE[N]; of a volume with one slice also by the file's.

    Raises DataError for parts that aren't there, and as ``open_slice`` and ``open_dicom``.
    """
    file, number = Path(file_of(str(path))), number_of(str(path))
    if is_volume(file.name):
        return open_slice(file, number, form)
    return open_dicom(read_regular(file), form, number)


def sliced_names(root: Path, names: Sequence[str], slices: Slices) -> StringTable | None:
    """The names of images below ``root`` with slices in the place of their volumes; None where there is no volume.

    Where ``slices`` says so, frames stand in the place of DICOM files of several. A volume that can't be read stays: it is
    named among the broken images. What is left out as empty is reported.
    """
    volumes = [name for name in names if is_volume(name) or (slices.frames and is_dicom_name(name))]
    volumes = [name for name in volumes if number_of(name) is None]
    if not volumes:
        return None
    parts, empty, total = _parts(root, volumes, slices)
    if empty:
        report(f"{root}: {empty:,} of {total:,} slices are left out, as they are empty")
    found = StringTable.of(part for name in names for part in parts.get(name, (name,)))
    if not len(found):
        raise DataError(f"{root}: all {total:,} slices are empty. Expected some that show something.")
    return found


def _parts(root: Path, volumes: Sequence[str], slices: Slices) -> tuple[dict[str, tuple[str, ...]], int, int]:
    """The names of each volume's parts, how many parts are left out, and how many there are; looked at where files changed."""
    cache = cache_file("slices", FORMAT, os.path.realpath(root), repr(slices))
    stats = read_file_stats(str(root / name) for name in volumes)
    before = _cached(cache)
    began = time.monotonic()
    progress = progress_logger("looking for empty slices")
    rows: list[tuple[list[int], int]] = []
    for place, name in enumerate(volumes):
        known = before.get(name)
        same = known is not None and bool((known[0] == stats[place]).all())
        rows.append(known[1] if known is not None and same else _numbers(root / name, slices))
        progress(place + 1, len(volumes))
    if time.monotonic() - began > CACHED_SECONDS:
        numbers = np.array([number for kept, _ in rows for number in kept], dtype=np.int64)
        counts = np.array([(len(kept), total) for kept, total in rows], dtype=np.int64)
        arrays = {"stats": stats, "numbers": numbers, "counts": counts}
        save(cache, {**packed_strings("names", StringTable.of(volumes)), **arrays}, {"kind": "slices"})
    parts = {
        name: tuple(slice_name(name, number) for number in kept) if total else (name,)
        for name, (kept, total) in zip(volumes, rows, strict=True)
    }
    total = sum(count for _, count in rows)
    return parts, total - sum(len(kept) for kept, _ in rows), total


def _cached(file: Path) -> dict[str, tuple[NDArray[np.int64], tuple[list[int], int]]]:
    """What is remembered of volumes: the size and times of each file, its numbers, and how many parts it has."""
    found = load(file)
    if found is None:
        return {}
    try:
        names, arrays = unpacked_strings("names", found[0]), found[0]
        ends = arrays["counts"][:, 0].cumsum()
        numbers = np.split(arrays["numbers"], ends[:-1])
        rows = zip(names, arrays["stats"], numbers, arrays["counts"][:, 1].tolist(), strict=True)
        return {name: (stats, (own.tolist(), int(total))) for name, stats, own, total in rows}
    except (KeyError, ValueError, IndexError):
        return {}  # of another version, or damaged


def _numbers(path: Path, slices: Slices) -> tuple[list[int], int]:
    """The numbers of a file's parts that show something, and how many it has; none of none for a file that is an image itself."""
    if is_volume(path.name):
        try:
            return filled_slices(path, slices)
        except (DataError, OSError):
            return [], 0
    count = frame_count(path)
    if count == 1:
        return [], 0
    chosen = range(1, count + 1, slices.step)
    try:
        content = read_regular(path)
    except OSError:
        return [], 0
    return [number for number in chosen if _is_filled(content, number)], len(chosen)


def _is_filled(content: bytes, number: int) -> bool:
    """Whether a frame shows something; one that can't be decoded counts, so that it is named where it is opened."""
    try:
        return not is_flat(open_dicom(content, PixelFormat(value_range=(-1e15, 1e15)), number).pixels())
    except DataError:
        return True
