"""JPEG XL files, gray or colour of 8 to 32 bits, decoded by imagecodecs; their size stands in the first bytes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import DataError
from ..pixel_format import LazyImage, Picture, PixelFormat, composited, scaled_values
from ..pixel_limit import check_value_count

_CODESTREAM = b"\xff\x0a"
_CONTAINER = b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a"
JXL_HINT = "pip install 'maelift[tiff]'"
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by the header's number from 1."""


def is_jxl(content: bytes) -> bool:
    """Whether a file begins as JPEG XL does, bare or in a container (ISO/IEC 18181-2)."""
    return content.startswith((_CODESTREAM, _CONTAINER))


def open_jxl(content: bytes, form: PixelFormat) -> LazyImage:
    """Open a JPEG XL file; upright, as its decoder turns it, and of several frames the first.

    Transparent pixels are composited on the form's background unless four channels are asked for. Raises DataError without
    imagecodecs, for what it can't decode, and as ``scaled_values``.
    """
    try:
        from imagecodecs import jpegxl_decode
    except ImportError as error:
        raise DataError(f"a JPEG XL image, which imagecodecs reads: {JXL_HINT}") from error
    height, width = _stored_size(content)
    check_value_count(3 * height * width)
    try:
        values = np.asarray(jpegxl_decode(content))
    except Exception as error:  # its own kinds of errors
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"a JPEG XL image that can't be decoded: damaged, or cut off ({reason})") from error
    notes = []
    if values.shape[:2] not in ((height, width), (width, height)) and values.ndim > 2:
        values = values[0]
        notes.append("several frames: the first is taken")
    values = values[:, :, None] if values.ndim == 2 else values
    bits = min(32, 8 * values.dtype.itemsize)
    notes += [f"{bits} bits"] if bits > 8 else []
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        decoded_notes.clear()
        if values.shape[2] in (2, 4) and not form.keeps(values.shape[2]) and values.dtype.kind == "u":
            colour, alpha = values[:, :, :-1], values[:, :, -1]
            return scaled_values(composited(colour, alpha, form, decoded_notes), form)
        return scaled_values(values, form)

    return LazyImage((values.shape[0], values.shape[1]), bits, tuple(notes), load, decoded_notes)


def _stored_size(content: bytes) -> tuple[int, int]:
    """(height, width) as the codestream's header has it (ISO/IEC 18181-1, SizeHeader); raises DataError without one."""
    begin = 0 if content.startswith(_CODESTREAM) else content.find(_CODESTREAM, len(_CONTAINER))
    bits = _bits(content[begin + 2 : begin + 16])
    try:
        small = _number(bits, 1)
        height = 8 * (1 + _number(bits, 5)) if small else _side(bits)
        ratio = _number(bits, 3)
        if ratio:
            across, down = _RATIOS[ratio - 1]
            return height, height * across // down
        return height, 8 * (1 + _number(bits, 5)) if small else _side(bits)
    except StopIteration as error:
        raise DataError("a JPEG XL image that is cut off") from error


def _side(bits: Iterator[int]) -> int:
    return 1 + _number(bits, (9, 13, 18, 30)[_number(bits, 2)])


def _bits(content: bytes) -> Iterator[int]:
    """The bits of bytes, the lowest of each first."""
    return (byte >> place & 1 for byte in content for place in range(8))


def _number(bits: Iterator[int], count: int) -> int:
    """The number in the next bits, the lowest first; raises StopIteration where there are too few."""
    found = 0
    for place in range(count):
        found |= next(bits) << place
    return found
