"""DICOM files: gray values as modality values or scaled by their stored bits, colour, palettes, and single frames."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError
from ..pixel_format import LazyImage, Picture, PixelFormat, missing_values, scaled_values, unknown_range
from ..pixel_limit import check_value_count

if TYPE_CHECKING:
    from pydicom import Dataset

DICOM_HINT = "pip install 'maelift[dicom]'"

_GRAY = ("MONOCHROME1", "MONOCHROME2")


def is_dicom(content: bytes) -> bool:
    """Whether a file begins as DICOM files do: a preamble of any 128 bytes, then DICM."""
    return content[128:132] == b"DICM"


def frame_count(path: Path) -> int:
    """How many frames a DICOM file says that it has; 1 where it can't be read: whoever opens it says why."""
    try:
        from pydicom import dcmread

        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["NumberOfFrames"])
        return max(1, int(header.get("NumberOfFrames") or 1))
    except Exception:  # of a damaged file, pydicom raises anything
        return 1


@dataclass(frozen=True)
class _Header:
    """What a file says of its pixels. ``rescale``: slope and intercept of the modality's values; None where there are none."""

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    allocated: int
    stored: int
    signed: bool
    floats: bool
    rescale: tuple[float, float] | None
    padding: tuple[float, float] | None

    @classmethod
    def of(cls, dataset: Dataset, frame: int) -> _Header:
        """The header of a dataset, for its frame number ``frame``, from 1; raises DataError for what is missing."""
        floats = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        allocated = _whole(dataset, "BitsAllocated")
        samples = _whole(dataset, "SamplesPerPixel", 1)
        signed = bool(_whole(dataset, "PixelRepresentation", 0))
        stored = allocated if floats else _whole(dataset, "BitsStored", allocated)
        if not 1 <= stored <= allocated <= 64:
            raise DataError(f"{stored} bits stored of {allocated} allocated; expected from 1 to those allocated")
        return cls(
            _side(dataset, "Rows"),
            _side(dataset, "Columns"),
            samples,
            max(1, _whole(dataset, "NumberOfFrames", 1)),
            _printable(dataset.get("PhotometricInterpretation") or ("MONOCHROME2" if samples == 1 else "RGB")).strip(),
            allocated,
            stored,
            signed,
            floats,
            _rescale(dataset, frame),
            _padding(dataset, allocated, signed=signed),
        )

    @property
    def bits(self) -> int:
        """As of ``LazyImage``: floats are what rescaling gives, and what has gaps."""
        if self.floats or self.stored > 16 or self.rescale is not None or self.padding is not None or self.signed:
            return 32
        return 8 if self.stored <= 8 else 16


def open_dicom(content: bytes, form: PixelFormat, frame: int | None = None) -> LazyImage:
    """Open a DICOM file, before its pixels are decoded; ``frame``, from 1, stands before the form's.

    Gray: rescale slope and intercept are applied, MONOCHROME1 is inverted within its stored bits, so that high is bright, and
    padding is no value. Without them, without a window and a value range, values of unsigned integers are scaled by their
    stored bits to 0 to 255. Colour has 8 bits, YBR and palettes as RGB. Raises DataError for a file without pixels or of
    several frames of which none is chosen, for compressions that nothing installed decodes, and as ``scaled_values``.
    """
    dataset = _dataset(content)
    asked = frame or form.frame
    head = _Header.of(dataset, asked or 1)
    if asked is None and head.frames > 1:
        raise DataError(
            f"{head.frames} frames; give frame=N for one of them, from 1, or frame=all for an image of each"
        )
    number = asked or 1
    if number > head.frames:
        raise DataError(f"no frame {number}: it has {head.frames}")
    check_value_count(math.prod((head.rows, head.columns, head.samples)))
    if head.photometric not in _GRAY and (head.samples, head.photometric == "PALETTE COLOR") not in (
        (3, False),
        (1, True),
    ):
        raise DataError(
            f"pixels of {head.photometric} with {head.samples} samples; expected gray, RGB, YBR or a palette"
        )

    def load(reduction: int) -> Picture:
        values = _decoded(dataset, number)
        if head.photometric == "PALETTE COLOR":
            return scaled_values(_mapped(values, dataset), form)
        if head.samples == 3:
            return _colour(values, head, form)
        return _gray(values, head, form)

    scale = None if _as_stored(head, form) or head.stored <= 8 else 255 / (2**head.stored - 1)
    return LazyImage((head.rows, head.columns), head.bits, tuple(_notes(head, number, form)), load, scale=scale)


def _dataset(content: bytes) -> Dataset:
    """The parsed file; raises DataError without pydicom, and for a file without pixels."""
    try:
        import pydicom
        from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    except ImportError as error:
        raise DataError(f"a DICOM file, which pydicom reads: {DICOM_HINT}") from error
    try:
        dataset = pydicom.dcmread(io.BytesIO(content), force=True)
        pixels = any(key in dataset for key in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    except Exception as error:  # of a damaged file, pydicom raises anything
        raise DataError(f"a DICOM file that can't be read: damaged, or cut off ({_first_line(error)})") from error
    if not pixels:
        if not is_dicom(content) and "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise DataError("not a DICOM file, whatever its name says")
        raise DataError(f"a DICOM file without pixels ({_kind(dataset)})")
    if not dataset.file_meta.get("TransferSyntaxUID"):  # of files without a header
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _kind(dataset: Dataset) -> str:
    """What a file is, in words: the class that it states, such as "CT Image Storage"."""
    name = getattr(dataset.get("SOPClassUID"), "name", "") or dataset.get("Modality") or ""
    return _printable(name) or "of no class"


def _printable(text: object) -> str:
    """A text of a file, which may hold anything, for a line of a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))[:60]


def _whole(dataset: Dataset, key: str, usual: int | None = None) -> int:
    """The whole number that a file states for a keyword."""
    try:
        value = dataset.get(key)
        if value is None or value == "":
            if usual is None:
                raise DataError(f"a DICOM file that states no {key}")
            return usual
        return int(value)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(f"a DICOM file with a {key} that is no number") from error


def _side(dataset: Dataset, key: str) -> int:
    side = _whole(dataset, key)
    if side < 1:
        raise DataError(f"a DICOM file with {key} {side}")
    return side


def _rescale(dataset: Dataset, frame: int) -> tuple[float, float] | None:
    """Slope and intercept, of the file or of its frame; None for those that change nothing."""
    for source in (*_functional_groups(dataset, frame), dataset):
        if source.get("RescaleSlope") is None and source.get("RescaleIntercept") is None:
            continue
        try:
            slope = float(1 if source.get("RescaleSlope") in (None, "") else source.RescaleSlope)
            intercept = float(0 if source.get("RescaleIntercept") in (None, "") else source.RescaleIntercept)
        except (TypeError, ValueError) as error:
            raise DataError("a DICOM file with a rescale slope or intercept that is no number") from error
        if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
            raise DataError(f"a DICOM file with rescale slope {slope:g} and intercept {intercept:g}")
        return None if (slope, intercept) == (1.0, 0.0) else (slope, intercept)
    return None


def _functional_groups(dataset: Dataset, frame: int) -> list[Dataset]:
    """What an enhanced multi-frame file says of the values of one frame, then of all."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    groups = [own[frame - 1]] if own and frame <= len(own) else []
    groups += [shared[0]] if shared else []
    found = [group.get("PixelValueTransformationSequence") for group in groups]
    return [sequence[0] for sequence in found if sequence]


def _padding(dataset: Dataset, allocated: int, *, signed: bool) -> tuple[float, float] | None:
    """The lowest and highest stored value of pixels without one; None where the file states none."""
    floats = dataset.get("FloatPixelPaddingValue", dataset.get("DoubleFloatPixelPaddingValue"))
    first = dataset.get("PixelPaddingValue", floats)
    if first is None or first == "":
        return None
    last = dataset.get("PixelPaddingRangeLimit", first)
    try:
        ends = [float(first if value is None else value) for value in (first, last)]
    except (TypeError, ValueError):
        return None
    if floats is None:  # their type may be taken for the other one: SS or US
        full, half = 2**allocated, 2 ** (allocated - 1)
        ends = [(end - full if end >= half else end) if signed else (end + full if end < 0 else end) for end in ends]
    return min(ends), max(ends)


def _decoded(dataset: Dataset, number: int) -> NDArray[Any]:
    """The stored values of a frame, (H, W) or (H, W, 3), YBR as RGB."""
    from pydicom.pixels import get_decoder, pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise DataError(
            f"its compression ({_printable(syntax.name)}) is one that isn't read; convert it to another"
        ) from error
    if not decoder.is_available:
        raise DataError(f"its compression ({_printable(syntax.name)}) needs pylibjpeg: {DICOM_HINT}")
    try:
        values = np.asarray(pixel_array(dataset, index=number - 1))
    except Exception as error:  # of damaged pixels, decoders raise anything
        raise DataError(f"its pixels can't be decoded ({_first_line(error)})") from error
    expected = (_whole(dataset, "Rows"), _whole(dataset, "Columns"))
    if values.shape[:2] != expected:
        raise DataError(f"pixels of shape {values.shape}, but it states {expected[1]}×{expected[0]} px")
    return values


def _first_line(error: Exception) -> str:
    """The reason in one line; of an error that lists what each decoder says, the first of these."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0]


def _mapped(values: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    """The colours (H, W, 3) of a palette's numbers; those of 16 bits as 8, which is what palettes are made of."""
    from pydicom.pixels import apply_color_lut

    try:
        colours: NDArray[Any] = np.asarray(apply_color_lut(values, dataset))[:, :, :3]
    except Exception as error:
        raise DataError(f"its palette can't be read ({_first_line(error)})") from error
    return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours.astype(np.uint8)


def _colour(values: NDArray[Any], head: _Header, form: PixelFormat) -> Picture:
    """Colour (H, W, 3): of 8 bits as it is; of more scaled by its stored bits, or as stored in a value range."""
    if values.ndim != 3 or values.shape[2] != 3:
        raise DataError(f"colour of shape {values.shape}; expected height, width and 3 channels")
    if head.stored <= 8 and values.dtype == np.uint8:
        return scaled_values(_full_range(values, head.stored), form)
    if form.value_range is not None:
        return values.astype(np.float32)
    if head.signed or head.floats or head.stored > 16:
        raise unknown_range(str(values.dtype), values)
    scaled: Picture = values.astype(np.float32) * np.float32(255 / (2**head.stored - 1))
    return scaled


def _gray(values: NDArray[Any], head: _Header, form: PixelFormat) -> Picture:
    """Gray (H, W, 1) of stored values (H, W); NaN where a pixel has none."""
    if values.ndim != 2:
        raise DataError(f"gray pixels of shape {values.shape}; expected height and width")
    missing = missing_values(values, (form.nodata,))
    if head.padding is not None:
        padded = (values >= head.padding[0]) & (values <= head.padding[1])
        missing = padded if missing is None else missing | padded
    if head.photometric == "MONOCHROME1" and not head.floats:
        values = (-1 if head.signed else 2**head.stored - 1) - values.astype(np.int64)
    picture = _in_range(values, missing, head, form)[:, :, None]
    if missing is None or not missing.any():
        return picture
    gaps = picture.astype(np.float32)
    gaps[missing] = np.nan
    return gaps


def _in_range(
    values: NDArray[Any], missing: NDArray[np.bool_] | None, head: _Header, form: PixelFormat
) -> NDArray[Any]:
    """Values in the range that the form or the stored bits say: uint8 of up to 8 bits, else float32."""
    if head.rescale is not None:
        slope, intercept = head.rescale
        values = (values.astype(np.float64) * slope + intercept).astype(np.float32)
    if form.window is not None or form.value_range is not None:
        known = values.astype(np.float32)
        if missing is not None and form.window is None:
            known[missing] = np.nan
        return scaled_values(known, PixelFormat(window=form.window, value_range=form.value_range))
    if _as_stored(head, form):
        known = values if missing is None else values[~missing]
        what = (
            "rescaled" if head.rescale is not None else "floating-point" if head.floats else f"signed {head.stored}-bit"
        )
        raise unknown_range(what, known)
    if head.stored <= 8:
        return _full_range(np.clip(values, 0, 2**head.stored - 1).astype(np.uint8), head.stored)
    most = 2**head.stored - 1
    scaled: NDArray[np.float32] = values.clip(0, most).astype(np.float32) * np.float32(255 / most)
    return scaled


def _as_stored(head: _Header, form: PixelFormat) -> bool:
    """Whether values are not scaled by the bits that they are stored with."""
    unknown = head.floats or head.signed or head.stored > 16 or head.rescale is not None
    return unknown or form.window is not None or form.value_range is not None


def _full_range(values: NDArray[np.uint8], stored: int) -> NDArray[np.uint8]:
    """Values of up to 8 bits as 8 bits, the highest as 255."""
    if stored == 8:
        return values
    most = 2**stored - 1
    return np.asarray((values.astype(np.uint16) * 255 + most // 2) // most, dtype=np.uint8)


def _notes(head: _Header, number: int, form: PixelFormat) -> list[str]:
    notes = [f"frame {number} of {head.frames}"] if head.frames > 1 else []
    if head.stored > 8:
        of = f" of {head.allocated}" if head.stored < head.allocated else ""
        gray = head.photometric != "PALETTE COLOR"
        scaled = ": scaled to 0 to 255" if gray and not _as_stored(head, form) else ""
        notes.append(f"{head.stored} bits{of}{scaled}")
    if head.photometric == "MONOCHROME1":
        notes.append("MONOCHROME1: inverted, so that high is bright")
    return notes
