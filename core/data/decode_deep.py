"""Decoding of what PIL doesn't read in full: 16-bit colour, TIFF of any channels, and NumPy arrays."""

from __future__ import annotations

import io
import math
from typing import Any, cast

import numpy as np
from PIL import Image

from ..errors import DataError
from .image_orientation import exif_orientation, upright_pixels, upright_shape
from .pixel_format import LazyImage, Picture, PixelFormat, composited, scaled_values
from .pixel_limit import check_value_count

ARRAY_START = b"\x93NUMPY"

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
        if values.shape[2] in (2, 4) and form.channels != values.shape[2]:
            values = composited(values[:, :, :-1], values[:, :, -1], form, decoded_notes)
        elif isinstance(clear, tuple):  # the one colour that is transparent
            alpha = np.where((values == np.array(clear, dtype=values.dtype)).all(axis=2), 0, 65535)
            values = composited(values, alpha.astype(np.uint16), form, decoded_notes)
        return upright_pixels(scaled_values(values, form), orientation)

    return LazyImage(upright_shape(file), 16, (*notes, "16 bits"), load, decoded_notes, orientation != 1)


def exceeds_pil(file: Image.Image, form: PixelFormat) -> bool:
    """Whether PIL would drop channels or bits of this TIFF file."""
    tags = getattr(file, "tag_v2", {})
    samples = tags.get(277, 1)
    bits = tags.get(258, (1,))
    floats_or_signed = set(np.atleast_1d(tags.get(339, (1,))).tolist()) != {1}
    deep = int(np.max(bits)) > 8
    alpha = bool(set(np.atleast_1d(tags.get(338, ())).tolist()) & {1, 2})
    more = samples > 4 or (samples == 4 and tags.get(262) != 5 and (form.channels == 4 or not alpha))
    pages = form.channels not in (None, 1, 3, samples)  # they may be channels
    return more or pages or floats_or_signed or (deep and samples > 1)


def open_tiff(content: bytes, form: PixelFormat) -> LazyImage:
    try:
        import tifffile
    except ImportError as error:
        raise DataError("its channels or floats need tifffile (pip install 'maelift[tiff]')") from error

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        shape, axes, page = series.shape, series.axes, file.pages[0]
        base = {0: 1, 1: 1, 2: 3}.get(int(page.photometric), 0)  # channels of gray, and of colour
        kinds = [int(kind) for kind in getattr(page, "extrasamples", ())]
        orientation = int(page.tags.valueof(274) or 1)
    opacity = next((base + place for place, kind in enumerate(kinds) if base and kind in (1, 2)), None)
    check_value_count(math.prod(shape))
    places = {"YX": None, "YXS": 2, "YXC": 2, "SYX": 0, "CYX": 0}
    first_only = axes not in places
    if first_only and (len(axes) != 3 or axes[1:] != "YX"):
        raise DataError(f"a TIFF with axes {axes}; expected height, width and channels")
    if first_only and shape[0] == form.channels:  # channels that were saved as pages
        places[axes], first_only = 0, False
    size = shape[1:] if first_only or places[axes] == 0 else shape[:2]
    bits = min(32, 8 * series.dtype.itemsize)
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        decoded_notes.clear()
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            values = np.asarray(file.series[0].asarray() if not first_only else file.pages[0].asarray())
        if values.ndim == 2:
            values = values[:, :, None]
        elif places[axes] == 0:
            values = np.moveaxis(values, 0, 2)
        if opacity is not None and form.channels != values.shape[2]:
            colour, alpha = values[:, :, :base], values[:, :, opacity]
            if values.dtype in (np.uint8, np.uint16):
                premultiplied = kinds[opacity - base] == 1
                values = composited(colour, alpha, form, decoded_notes, premultiplied=premultiplied)
            else:
                decoded_notes.append("transparency: dropped")
                values = colour
        return upright_pixels(scaled_values(values, form), orientation)

    turned = orientation in (5, 6, 7, 8)
    notes = (*(("several pages: the first is taken",) if first_only else ()), *((f"{bits} bits",) if bits > 8 else ()))
    height, width = (int(side) for side in (size[::-1] if turned else size))
    return LazyImage((height, width), bits, notes, load, decoded_notes, orientation != 1)


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
