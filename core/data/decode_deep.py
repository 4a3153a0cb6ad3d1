"""Decoding of what PIL doesn't read in full: colour of 16 bits, and NumPy arrays."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from typing import Any, cast

import numpy as np
from PIL import Image

from ..errors import DataError
from .image_orientation import exif_orientation, upright_pixels, upright_shape
from .pixel_format import LazyImage, Picture, PixelFormat, composited, scaled_values
from .pixel_limit import check_value_count

ARRAY_START = b"\x93NUMPY"

ARCHIVE_START = b"PK\x03\x04"


def is_deep_ppm(file: Image.Image) -> bool:
    """Whether a PPM in colour has 16 bits a value, binary, of which PIL keeps 8."""
    codec, _, _, arguments = cast(Any, file).tile[0]
    return bool(codec == "ppm" and arguments[0] == "RGB" and arguments[-1] > 255)


def open_deep_ppm(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> LazyImage:
    """A PPM in colour of 16 bits; its greatest value, which its header states, becomes that of 16 bits."""
    _, _, begin, arguments = cast(Any, file).tile[0]
    shape, most = (file.height, file.width, 3), int(arguments[-1])
    if len(content) < begin + 2 * math.prod(shape):
        raise DataError(f"cut off: {len(content) - begin} bytes of {2 * math.prod(shape)}")

    def load(reduction: int) -> Picture:
        values = np.frombuffer(content, dtype=">u2", count=math.prod(shape), offset=begin).reshape(shape)
        if form.value_range is None and most != 65535:
            values = np.rint(values.astype(np.float64) * (65535 / most)).clip(0, 65535)
        return scaled_values(values.astype(np.uint16), form)

    return LazyImage((file.height, file.width), 16, (*notes, "16 bits"), load)


def open_deep_png(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> LazyImage:
    """A PNG in colour, or with transparency, of 16 bits, of which PIL would keep 8."""
    orientation, clear = exif_orientation(file), file.info.get("transparency")
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        import torch
        from torchvision.io import decode_png

        decoded_notes.clear()
        values = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
        if values.shape[2] in (2, 4) and not form.keeps(values.shape[2]):
            values = composited(values[:, :, :-1], values[:, :, -1], form, decoded_notes)
        elif isinstance(clear, tuple):  # the one colour that is transparent
            alpha = np.where((values == np.array(clear, dtype=values.dtype)).all(axis=2), 0, 65535)
            values = composited(values, alpha.astype(np.uint16), form, decoded_notes)
        return upright_pixels(scaled_values(values, form), orientation)

    return LazyImage(upright_shape(file), 16, (*notes, "16 bits"), load, decoded_notes, orientation != 1)


def open_array(content: bytes, form: PixelFormat) -> LazyImage:
    """A ``.npy`` file with an array (H, W) or (H, W, C)."""
    if not content:
        raise DataError("an empty file")
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, fortran_order, dtype = read_header(file)
    except (ValueError, KeyError) as error:
        raise DataError("not an array of numpy, whatever its name says") from error
    if len(shape) not in (2, 3) or dtype.kind not in "buif" or 0 in shape:
        raise DataError(f"an array of shape {shape} and type {dtype}; expected numbers, (height, width[, channels])")
    check_value_count(math.prod(shape))
    begin = file.tell()
    if len(content) - begin != dtype.itemsize * math.prod(shape):
        raise DataError(f"cut off: {len(content) - begin} bytes of {dtype.itemsize * math.prod(shape)}")
    if form.channels not in (None, shape[-1]) and len(shape) == 3 and shape[0] == form.channels:
        raise DataError(f"an array of shape {shape}; expected (height, width, channels), the channels last")

    def load(reduction: int) -> Picture:
        flat = np.frombuffer(content, dtype=dtype, offset=begin)
        values = flat.reshape(shape, order="F" if fortran_order else "C")
        return scaled_values(values if values.ndim == 3 else values[:, :, None], form)

    return LazyImage((shape[0], shape[1]), min(32, 8 * dtype.itemsize), (), load)


def open_array_archive(content: bytes, form: PixelFormat) -> LazyImage:
    """A ``.npz`` file with one array (H, W) or (H, W, C); raises DataError for several, which it names."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                named = ", ".join(member.filename.removesuffix(".npy") for member in members[:5]) or "none"
                more = f" and {len(members) - 5} more" if len(members) > 5 else ""
                raise DataError(f"{len(members)} arrays ({named}{more}); expected one: save each image as a file")
            check_value_count(members[0].file_size)
            with archive.open(members[0]) as file:
                array = file.read(members[0].file_size + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise DataError(f"an archive of arrays that can't be read: damaged, or cut off ({error})") from error
    return open_array(array, form)
