"""From the bytes of an image file to its pixels: every format that people have, and a reason in words for a broken file."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import DataError, MaeliftError
from .files import open_regular, read_regular

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
"""Names of image files."""
ARRAY_SUFFIXES = frozenset({".npy"})
"""Names of files with an array (H, W) or (H, W, C); many lie beside images and are none, so they count as images where no file
of ``SUFFIXES`` is."""

Picture = NDArray[np.generic]
"""Pixels (H, W, C), upright: uint8, or float32 for what has more than 8 bits."""

DEEP = np.float32(255 / 65535)
"""16 bits are brought to the scale of 8."""
EXIF_ORIENTATION = 0x0112
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class PixelFormat:
    """What a run makes of the values in image files.

    ``channels``: how many it takes; None: what the file has, without transparency. ``value_range``: lowest and highest
    value, as stored in the files; None: integers of 8 bits, and of 16 bits brought to their range, 0 to 255.
    """

    channels: int | None = None
    value_range: tuple[float, float] | None = None


ANY_FORMAT = PixelFormat()


@dataclass(frozen=True)
class Opened:
    """A picture of which the header is read.

    ``size``: (height, width), upright; ``bits`` of a value: 8, 16, or 32 for floats; ``notes``: what is unusual about the
    file and how it is read all the same.
    """

    size: tuple[int, int]
    bits: int
    notes: tuple[str, ...]
    decode: Callable[[int], Picture]

    def pixels(self, reduction: int = 1) -> Picture:
        """Decode it; a JPEG in colour or gray at 1/``reduction`` (1, 2, 4 or 8) of its size. Raises DataError."""
        return self.decode(reduction)


def kinds() -> str:
    """The kinds of image files that are read, in words."""
    return ", ".join(sorted(suffix.removeprefix(".") for suffix in SUFFIXES))


def decode(path: Path, content: bytes | None = None) -> Image.Image:
    """Open an image file: upright by EXIF, mode "L", "RGB", or "F" from 0 to 255 for 16-bit gray.

    ``content`` are its bytes where it isn't a file of its own, but lies in an archive; ``path`` then names it in errors.

    Palettes are mapped to their colours, transparency is dropped, CMYK is converted, of several frames the first is
    taken. Raises DataError with the reason for a file that can't be decoded.
    """
    with (
        _reasons(path, content),
        open_regular(path) if content is None else io.BytesIO(content) as stream,
        Image.open(stream) as file,
    ):
        file.load()
        return plain_mode(ImageOps.exif_transpose(file))


def open_picture(path: Path, content: bytes | None = None, form: PixelFormat = ANY_FORMAT) -> Opened:
    """Open an image file or a ``.npy`` array of any number of channels and bits, before it is decoded.

    ``content`` as for ``decode``; so are palettes, CMYK and frames. Transparency is dropped unless four channels are asked
    for. TIFF files of other channels than PIL knows, or of floats, need tifffile. Raises DataError with the reason for a
    file that can't be read, or not as ``form`` asks.
    """
    with _reasons(path, content):
        data = read_regular(path) if content is None else content
        opened = _open_array(data, form) if path.suffix.lower() in ARRAY_SUFFIXES else _open_image(path, data, form)

    def decode_named(reduction: int) -> Picture:
        with _reasons(path, data):
            picture = opened.decode(reduction)
            _check_values(picture, form)
            return picture

    return Opened(opened.size, opened.bits, opened.notes, decode_named)


def open_values(values: Image.Image | Picture, form: PixelFormat = ANY_FORMAT) -> Opened:
    """The same of an image or an array (H, W, C) that is decoded already."""
    array = picture_of(values) if isinstance(values, Image.Image) else values

    def load(reduction: int) -> Picture:
        picture = _values(array, form)
        _check_values(picture, form)
        return picture

    return Opened((array.shape[0], array.shape[1]), min(32, 8 * array.dtype.itemsize), (), load)


def picture_of(image: Image.Image) -> Picture:
    """The pixels (H, W, C) of an image as ``decode`` gives it."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def plain_mode(image: Image.Image) -> Image.Image:
    """An image of any mode as ``decode`` gives it; raises DataError for pixels whose range isn't known."""
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("32-bit pixels have no known range; save it with 8 or 16 bits")
        return Image.fromarray(values * DEEP)
    if image.mode == "F":
        raise DataError("floating-point pixels have no known range; save it with 8 or 16 bits")
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


@contextmanager
def _reasons(path: Path, content: bytes | None) -> Iterator[None]:
    """Turn whatever a decoder stumbles over into a DataError with the file's name and the reason; silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {_what_it_is(path, content)}") from error
    except DataError as error:
        reason = str(error)
        raise DataError(reason if reason.startswith(f"{path}: ") else f"{path}: {reason}") from error
    except MaeliftError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
    except Exception as error:  # of a broken file, decoders raise anything: struct.error, KeyError, zlib.error, ...
        raise DataError(f"{path}: {error or type(error).__name__}") from error


def _what_it_is(path: Path, content: bytes | None) -> str:
    """What a file is that no decoder knows."""
    if content is None:
        with open_regular(path) as file:
            content = file.read(512)
    if not content:
        return "an empty file"
    head = content[:512].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "text such as a web page (HTML), not an image, whatever its name says"
    if not any(content[:512]):
        return "zeros, not an image"
    return "not an image, whatever its name says"


def _open_image(path: Path, content: bytes, form: PixelFormat) -> Opened:
    try:
        file = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content.startswith(TIFF_STARTS):
            return _open_tiff(content, form)
        raise
    notes = tuple(_notes(file, path, form))
    if file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB"):
        return _open_jpeg(content, file, notes)
    if file.format == "PNG" and content[24] == 16 and content[25] in (2, 4, 6):  # IHDR: bit depth, colour type
        return _open_deep_png(content, file, form, notes)
    if file.format == "TIFF" and _beyond_pil(file, form):
        return _open_tiff(content, form)
    deep = file.mode.startswith("I") or file.mode == "F"

    def load(reduction: int) -> Picture:
        file.load()
        image = ImageOps.exif_transpose(file)
        if form.channels == 4 and image.mode in ("RGBA", "CMYK"):
            return np.asarray(image)
        if deep and form.value_range is not None:
            return _values(np.asarray(image)[:, :, None], form)
        return picture_of(plain_mode(image))

    return Opened(_upright(file), 16 if deep else 8, (*notes, *(("16 bits",) if deep else ())), load)


def _notes(file: Image.Image, path: Path, form: PixelFormat) -> Iterator[str]:
    """What is unusual about an image that is read all the same."""
    named = Image.registered_extensions().get(path.suffix.lower())
    kind = "JPEG" if file.format == "MPO" else file.format
    if named is not None and named != kind:
        yield f"{kind}, though named {path.suffix}"
    if file.format != "MPO" and getattr(file, "is_animated", False):
        yield "several frames: the first is taken"
    if file.mode == "CMYK" and form.channels != 4:
        yield "CMYK: converted to colour"
    if file.mode in ("RGBA", "LA", "PA") and form.channels != 4:
        yield "transparency: dropped"


def _upright(file: Image.Image) -> tuple[int, int]:
    turned = _orientation(file) in (5, 6, 7, 8)
    return file.size if turned else (file.height, file.width)


def _orientation(file: Image.Image) -> int:
    if "exif" not in file.info and "Raw profile type exif" not in file.info and file.format in ("JPEG", "MPO"):
        return 1  # most JPEGs have none, and getexif would look for it elsewhere too
    value = file.getexif().get(EXIF_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _turned(array: Picture, orientation: int) -> Picture:
    """Pixels (H, W, C) made upright by EXIF's rule."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _open_jpeg(content: bytes, file: Image.Image, notes: tuple[str, ...]) -> Opened:
    """A JPEG in gray or colour: torchvision decodes it to the same pixels as PIL, in an array without another copy."""
    orientation = _orientation(file)

    def load(reduction: int) -> Picture:
        if reduction > 1:
            file.draft(None, (-(-file.width // reduction), -(-file.height // reduction)))
            return _turned(picture_of(file), orientation)
        import torch
        from torchvision.io import decode_jpeg

        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        except RuntimeError:  # PIL puts up with more, such as a missing end marker; its verdict is the one that holds
            return _turned(picture_of(file), orientation)
        return _turned(pixels.permute(1, 2, 0).numpy(), orientation)

    return Opened(_upright(file), 8, notes, load)


def _open_deep_png(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> Opened:
    """A PNG in colour, or with transparency, of 16 bits, of which PIL would keep 8."""
    orientation = _orientation(file)

    def load(reduction: int) -> Picture:
        import torch
        from torchvision.io import decode_png

        values = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
        alpha = values.shape[2] in (2, 4) and form.channels != values.shape[2]
        return _turned(_values(values[:, :, :-1] if alpha else values, form), orientation)

    return Opened(_upright(file), 16, (*notes, "16 bits"), load)


def _beyond_pil(file: Image.Image, form: PixelFormat) -> bool:
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


def _open_tiff(content: bytes, form: PixelFormat) -> Opened:
    try:
        import tifffile
    except ImportError as error:
        raise DataError("its channels or floats need tifffile (pip install 'maelift[tiff]')") from error

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = file.series[0]
        shape, axes, page = series.shape, series.axes, file.pages[0]
        alpha = bool(set(getattr(page, "extrasamples", ())) & {1, 2}) and page.photometric == 2
    _check_size(math.prod(shape))
    places = {"YX": None, "YXS": 2, "YXC": 2, "SYX": 0, "CYX": 0}
    first_only = axes not in places
    if first_only and (len(axes) != 3 or axes[1:] != "YX"):
        raise DataError(f"a TIFF with axes {axes}; expected height, width and channels")
    if first_only and shape[0] == form.channels:  # channels that were saved as pages
        places[axes], first_only = 0, False
    size = shape[1:] if first_only or places[axes] == 0 else shape[:2]
    bits = min(32, 8 * series.dtype.itemsize)

    def load(reduction: int) -> Picture:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            values = np.asarray(file.series[0].asarray() if not first_only else file.pages[0].asarray())
        if values.ndim == 2:
            values = values[:, :, None]
        elif places[axes] == 0:
            values = np.moveaxis(values, 0, 2)
        return _values(values[:, :, :3] if alpha and form.channels != 4 else values, form)

    notes = (*(("several pages: the first is taken",) if first_only else ()), *((f"{bits} bits",) if bits > 8 else ()))
    return Opened((int(size[0]), int(size[1])), bits, notes, load)


def _open_array(content: bytes, form: PixelFormat) -> Opened:
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
    _check_size(math.prod(shape))
    begin = file.tell()
    if len(content) - begin != dtype.itemsize * math.prod(shape):
        raise DataError(f"cut off: {len(content) - begin} bytes of {dtype.itemsize * math.prod(shape)}")
    if form.channels not in (None, shape[-1]) and len(shape) == 3 and shape[0] == form.channels:
        raise DataError(f"an array of shape {shape}; expected (height, width, channels), the channels last")

    def load(reduction: int) -> Picture:
        flat = np.frombuffer(content, dtype=dtype, offset=begin)
        values = flat.reshape(shape, order="F" if fortran_order else "C")
        return _values(values if values.ndim == 3 else values[:, :, None], form)

    return Opened((shape[0], shape[1]), min(32, 8 * dtype.itemsize), (), load)


def _values(array: Picture, form: PixelFormat) -> Picture:
    """Stored values (H, W, C) as a Picture: uint8 as they are, uint16 from 0 to 255, and in a value range all as stored."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        white: NDArray[np.uint8] = array.astype(np.uint8) * np.uint8(255)
        return white
    if form.value_range is not None:
        return array.astype(np.float32)
    if array.dtype == np.uint16:
        scaled: NDArray[np.float32] = array.astype(np.float32) * DEEP
        return scaled
    kind = "floating-point" if array.dtype.kind == "f" else str(array.dtype)
    raise DataError(f"{kind} pixels have no known range; give value_range=[lowest,highest]")


def _check_values(picture: Picture, form: PixelFormat) -> None:
    """Raise DataError for values that are no numbers, or beyond the range that was given."""
    if form.value_range is None:
        return
    lowest, highest = float(picture.min()), float(picture.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise DataError("pixels that are no numbers (NaN or infinite)")
    low, high = form.value_range
    if lowest < low or highest > high:
        raise DataError(f"values from {lowest:g} to {highest:g}, beyond value_range=[{low:g},{high:g}]")


def _check_size(values: int) -> None:
    """Raise DataError for what PIL would refuse as a decompression bomb, in files that PIL doesn't read."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
    if values > limit:
        raise DataError(f"{values:,} values, more than {limit:,}: a decompression bomb?")
