"""NIfTI volumes: slices along an axis of the array in RAS orientation, with the file's scale applied."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ...files import check_regular
from ..pixel_format import LazyImage, Picture, PixelFormat, scaled_values
from ..pixel_limit import check_value_count
from ..slices import Slices, slice_name

NIFTI_HINT = "pip install 'maelift[nifti]'"

MOST_CHANNELS = 32
"""Length up to which a fourth axis is taken for channels; longer ones are times."""

_SAME_SPACING = 0.999
"""Spacings of at least this share of the largest are equal to it: they are float32 in files."""


@dataclass(frozen=True)
class Volume:
    """The values of a NIfTI file as stored, (X, Y, Z, C), and how its first three axes lie in space.

    ``axes``: for each stored axis which one of RAS it is, and 1, or -1 where it runs the other way; ``spacing``: of the voxels
    along each stored axis; ``scale``: slope and offset of the values, as the file states them.
    """

    values: NDArray[Any]
    axes: tuple[tuple[int, int], ...]
    spacing: tuple[float, ...]
    scale: tuple[float, float]

    def axis(self, asked: int | None) -> int:
        """The axis, in RAS, that slices are counted along."""
        if asked is not None:
            return asked
        flat = [axis for (axis, _), length in zip(self.axes, self.values.shape, strict=False) if length == 1]
        if len(flat) == 1:  # a plane
            return flat[0]
        largest = max(self.spacing)
        return max(
            axis for (axis, _), space in zip(self.axes, self.spacing, strict=True) if space >= _SAME_SPACING * largest
        )

    def count(self, axis: int) -> int:
        """How many slices there are along an axis of RAS."""
        return int(self.values.shape[self._stored(axis)])

    @property
    def channels(self) -> int:
        """The length of the fourth axis, 1 without one."""
        return int(self.values.shape[3])

    @property
    def bits(self) -> int:
        """Bits of a value, as of ``LazyImage``; those of scaled ones are floats."""
        return 32 if self.scale != (1.0, 0.0) else min(32, 8 * self.values.dtype.itemsize)

    def plane(self, axis: int, number: int) -> NDArray[Any]:
        """Slice ``number``, from 0, along an axis of RAS, upright: (H, W, C), scaled as the file says.

        Rows run from top to bottom (axis 0 and 1) or from front to back (axis 2), columns from left to right or, of axis 0,
        from back to front.
        """
        stored = self._stored(axis)
        place = number if self.axes[stored][1] > 0 else self.count(axis) - 1 - number
        plane = self.values.take(place, axis=stored) if stored != 2 else self.values[:, :, place]
        rest = [pair for index, pair in enumerate(self.axes) if index != stored]
        plane = plane[:: rest[0][1], :: rest[1][1]]
        if rest[0][0] > rest[1][0]:
            plane = plane.transpose(1, 0, 2)
        upright = np.rot90(plane)
        if self.scale == (1.0, 0.0):
            return np.ascontiguousarray(upright, dtype=upright.dtype.newbyteorder("="))
        return upright.astype(np.float64) * self.scale[0] + self.scale[1]

    def _stored(self, axis: int) -> int:
        return next(index for index, (found, _) in enumerate(self.axes) if found == axis)


def read_volume(path: Path) -> Volume:
    """The volume of a ``.nii`` file, mapped into memory, or of a ``.nii.gz`` file, unpacked; the last two stay at hand.

    Raises DataError without nibabel, for files that aren't NIfTI, and for values or axes that no image can be made of.
    """
    status = check_regular(path)
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=2)
def _read(path: Path, changed: int, size: int) -> Volume:
    try:
        import nibabel
        from nibabel.filebasedimages import ImageFileError
    except ImportError as error:
        raise DataError(f"a NIfTI volume, which nibabel reads: {NIFTI_HINT}") from error
    try:
        image: Any = nibabel.load(path)
        if not isinstance(image, nibabel.Nifti1Pair):
            raise DataError("not a NIfTI file, whatever its name says")
        shape, proxy = tuple(int(side) for side in image.shape), image.dataobj
        if not shape or min(shape) < 1:
            raise DataError(f"a NIfTI file of shape {shape}")
        check_value_count(math.prod(shape))
        axes = nibabel.io_orientation(image.affine)
        spacing = tuple(float(abs(space)) for space in image.header.get_zooms())
        values = _unpacked(np.asanyarray(proxy.get_unscaled()), shape)
        scale = float(proxy.slope), float(proxy.inter)
    except DataError:
        raise
    except ImageFileError as error:
        raise DataError("not a NIfTI file, or a damaged one") from error
    except Exception as error:  # of a damaged file, nibabel, gzip and zlib raise anything
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"a NIfTI file that can't be read: damaged, or cut off ({reason})") from error
    if np.isnan(axes).any() or sorted(axes[:, 0]) != [0, 1, 2]:
        raise DataError("a NIfTI file whose affine gives its axes no direction")
    if not all(math.isfinite(value) for value in (*scale, *spacing)):
        raise DataError("a NIfTI file whose scale or voxel spacing isn't finite")
    pairs = tuple((int(axis), 1 if turn > 0 else -1) for axis, turn in axes)
    return Volume(values, pairs, (*spacing[:3], *(0.0,) * (3 - len(spacing))), scale)


def _unpacked(values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Values as (X, Y, Z, C); those of colour, which are records, get their parts as channels."""
    lengths = [*shape[:3], *[1] * (3 - len(shape)), *[side for side in shape[3:] if side > 1]]
    if len(lengths) > 4:
        raise DataError(f"a NIfTI file of shape {shape}; expected three axes, and channels as a fourth")
    if values.dtype.names:
        if len(lengths) == 4:
            raise DataError(f"colour of shape {shape}; expected three axes")
        parts = [values[name].reshape(lengths, order="F") for name in values.dtype.names]
        return np.stack(parts, axis=3)
    if values.dtype.kind not in "buif":
        raise DataError(f"values of type {values.dtype}; expected integers or floats")
    full = values.reshape(lengths, order="F") if list(shape) != lengths else values
    return full if full.ndim == 4 else full[:, :, :, None]


def open_slice(path: Path, number: int | None, form: PixelFormat) -> LazyImage:
    """Open slice ``number``, from 1, of a NIfTI file, along the form's axis; None: its only slice.

    A fourth axis of up to 32 is the channels, as many as the form has or any where it says no number. Raises DataError for
    other fourth axes, for slices that aren't there, for a volume of several without a number, and as ``scaled_values``.
    """
    volume = read_volume(path)
    axis = volume.axis(form.slices.axis)
    count, channels = volume.count(axis), volume.channels
    if number is None and count > 1:
        raise DataError(f"a volume of {count} slices; name one, {slice_name(path.name, 1)}, or save slices as files")
    place = (number or 1) - 1
    if place >= count:
        raise DataError(f"no slice {number}: it has {count} along axis {axis}")
    if channels > MOST_CHANNELS:
        raise DataError(f"{channels} values along its fourth axis, too many for channels: save each volume as a file")
    if channels > 1 and form.bands is None and form.channels not in (None, channels):
        raise DataError(f"{channels} values along its fourth axis, which are channels; give channels={channels}")
    size = volume.plane(axis, place).shape

    def load(reduction: int) -> Picture:
        values = volume.plane(axis, place)
        if form.window is not None and values.dtype == np.uint8:
            values = values.astype(np.float32)
        return scaled_values(values, form)

    notes = (f"{volume.bits} bits",) if volume.bits > 8 else ()
    return LazyImage((size[0], size[1]), volume.bits, notes, load)


def filled_slices(path: Path, slices: Slices) -> tuple[list[int], int]:
    """The numbers, from 1, of a volume's slices that show something, and how many there are of which these are chosen.

    Left out are those of one value, or without any, and those of which a smaller share of pixels than ``slices.content``
    differs from the volume's most frequent value. Raises DataError as ``read_volume``.
    """
    volume = read_volume(path)
    axis = volume.axis(slices.axis)
    chosen = range(0, volume.count(axis), slices.step)
    background = _background(volume) if slices.content > 0 else None
    kept = []
    for number in chosen:
        plane = volume.plane(axis, number)
        known = plane[~np.isnan(plane)] if plane.dtype.kind == "f" else plane
        if not known.size or known.min() == known.max():
            continue
        if background is None or (known != background).sum() >= slices.content * plane.size:
            kept.append(number + 1)
    return kept, len(chosen)


def _background(volume: Volume) -> float:
    """The most frequent value, of a sample of up to a million."""
    values = volume.values.reshape(-1, order="A")
    sample = np.asarray(values[:: max(1, values.size // 1_000_000)])
    sample = sample[~np.isnan(sample)] if sample.dtype.kind == "f" else sample
    if not sample.size:
        return math.nan
    found, counts = np.unique(sample, return_counts=True)
    value = found[counts.argmax()]
    return float(value) * volume.scale[0] + volume.scale[1] if volume.scale != (1.0, 0.0) else float(value)
