"""Slices of volumes and frames of DICOM files as images: which are taken, and how they are named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VOLUME_SUFFIXES = frozenset({".nii", ".nii.gz"})
"""Names of NIfTI files, in lower case."""

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})
"""Names of DICOM files, in lower case; those that begin as DICOM files do are known by that too."""

_PART = re.compile(r"(.*\.(?:nii|nii\.gz|dcm|dicom))\[([1-9][0-9]{0,8})\]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Slices:
    """Which slices of volumes are images.

    ``axis``: the axis that they are counted along, of the array in RAS orientation: 0 (left to right), 1 (back to front) or 2
    (bottom to top); None: that of the largest voxel spacing, the last of equal ones. ``step``: every so many slices one is
    taken, from the first on. ``content``: share of pixels that must differ from the volume's most frequent value; slices of one
    value are left out whatever it is. ``frames``: each frame of a DICOM file is an image.
    """

    axis: int | None = None
    step: int = 1
    content: float = 0.0
    frames: bool = False


EVERY_SLICE = Slices()
"""Every slice that isn't empty, along the axis of the largest voxel spacing."""


def slice_name(file: str, number: int) -> str:
    """The name of a slice or frame of a file, by its number from 1: ``brain.nii.gz[12]``."""
    return f"{file}[{number}]"


def file_of(name: str) -> str:
    """The path of the file that an image lies in: its name without the number of a slice or frame."""
    found = _PART.fullmatch(name) if name.endswith("]") else None
    return name if found is None else found[1]


def number_of(name: str) -> int | None:
    """The number, from 1, of the slice or frame that a name means; None for a file."""
    found = _PART.fullmatch(name) if name.endswith("]") else None
    return None if found is None else int(found[2])


def is_volume(name: str) -> bool:
    """Whether a file is called as volumes are."""
    return name.lower().endswith(tuple(VOLUME_SUFFIXES))


def is_dicom_name(name: str) -> bool:
    """Whether a file is called as DICOM files are."""
    return Path(file_of(name)).suffix.lower() in DICOM_SUFFIXES


def is_part(name: str) -> bool:
    """Whether an image is a slice, a frame, or a volume, and can't be read from its file's bytes alone."""
    return number_of(name) is not None or is_volume(name)


def files_of_slices(names: Sequence[str]) -> list[str] | None:
    """The file that each image lies in; None where no image is a slice: nothing then lies in a file with others."""
    if not any(number_of(name) is not None for name in names):
        return None
    return [file_of(name) for name in names]
