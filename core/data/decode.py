"""Decoding of image files of any format to upright pixels, with the reason for a file that can't be decoded."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, cast

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, MaeliftError
from ..files import open_regular, read_regular
from .decode_deep import (
    ARCHIVE_START,
    ARRAY_START,
    is_deep_ppm,
    open_array,
    open_array_archive,
    open_deep_png,
    open_deep_ppm,
)
from .image_formats import FORMATS, HEAD, describe_unknown, heif_formats
from .image_orientation import exif_orientation, upright_pixels, upright_shape
from .pixel_format import (
    ANY_FORMAT,
    PLAIN_FORMAT,
    LazyImage,
    Picture,
    PixelFormat,
    check_values,
    chosen_bands,
    composited,
    image_of,
    picture_of,
    scaled_values,
)
from .pixel_limit import TOO_MANY_PIXELS, max_pixels
from .readers.dicom import is_dicom, open_dicom
from .readers.jxl import is_jxl, open_jxl
from .readers.tiff import TIFF_STARTS, exceeds_pil, open_tiff
from .readers.volumes import open_part
from .slices import is_dicom_name, is_part, is_volume, number_of
from .transforms import check_channels


@contextmanager
def image_file(source: Path | bytes) -> Iterator[Image.Image]:
    """An image file of a format that is read, by its content and not decoded yet; what stands for ``Image.open``.

    Raises UnidentifiedImageError for other files, DataError for HEIF without pillow-heif and for too many pixels, and as
    ``open_regular``.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file, _opened(file) as image:
        yield image


def _opened(file: IO[bytes]) -> Image.Image:
    """Pillow's image of an open file."""
    limit, head = max_pixels(), file.read(HEAD)
    file.seek(0)
    try:
        image = Image.open(file, formats=[*FORMATS, *heif_formats(head)])
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{error.args[0].partition('(')[2].partition(' ')[0]} pixels{TOO_MANY_PIXELS.format(limit)}"
        ) from error
    if image.width * image.height > limit:
        raise DataError(f"{image.width}×{image.height} px{TOO_MANY_PIXELS.format(limit)}")
    return image


def decode(path: Path, content: bytes | None = None, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
    """The image of a file: upright by EXIF, mode "L", "RGB", or "F" from 0 to 255 for 16-bit gray; of 16-bit colour the pixels
    (H, W, 3), float32 from 0 to 255.

    ``content`` are its bytes where it isn't a file of its own, but lies in an archive; ``path`` then names it in errors. It
    gives the values that ``open_picture`` gives. Raises DataError with the reason for a file that can't be decoded, and for
    other channels than the form's; than 1 and 3 where it has none.
    """
    return image_of(open_picture(path, content, replace(form, plain=True)).pixels())


def open_picture(path: Path, content: bytes | None = None, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """Open an image file or a ``.npy`` array of any number of channels and bits, before it is decoded.

    ``content`` as for ``decode``. Palettes are mapped to their colours, CMYK is converted, of several frames the first is
    taken. Transparent pixels are composited on the form's background, unless four channels are asked for. TIFF files of other
    channels than PIL knows, or of floats, need tifffile. Raises DataError with the reason for a file that can't be read, or
    not as ``form`` asks.
    """
    data = content or b""
    with _reasons(path, content):
        if content is None and is_part(str(path)):
            opened = open_part(path, form)
        else:
            data = read_regular(path) if content is None else content
            opened = _open_content(path, data, form)

    def decode_named(reduction: int) -> Picture:
        with _reasons(path, data):
            picture = chosen_bands(opened.decode(reduction), opened.channel_names, form.bands)
            check_values(picture, form)
            if form.plain:
                check_channels(picture.shape[2], form.channels)
            return picture

    return replace(opened, decode=decode_named)


def _open_content(path: Path, content: bytes, form: PixelFormat) -> LazyImage:
    """Open a file by what it begins with; DICOM files without a preamble, and archives of arrays, by their names too."""
    if content.startswith(ARRAY_START):
        return open_array(content, form)
    if content.startswith(ARCHIVE_START) and path.suffix.lower() == ".npz":
        return open_array_archive(content, form)
    if is_dicom(content):
        return open_dicom(content, form, number_of(str(path)))
    if is_jxl(content):
        return open_jxl(content, form)
    try:
        return _open_image(path, content, form)
    except UnidentifiedImageError:
        if content and is_dicom_name(str(path)):
            return open_dicom(content, form, number_of(str(path)))
        raise


def open_values(values: Image.Image | Picture, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """The same of an image or an array (H, W, C) that is decoded already."""
    array = picture_of(values) if isinstance(values, Image.Image) else values

    def load(reduction: int) -> Picture:
        picture = chosen_bands(scaled_values(array, form), (), form.bands)
        check_values(picture, form)
        return picture

    return LazyImage((array.shape[0], array.shape[1]), min(32, 8 * array.dtype.itemsize), (), load)


def plain_mode(image: Image.Image, form: PixelFormat = PLAIN_FORMAT) -> Image.Image | Picture:
    """An image of any mode as ``decode`` gives it; raises DataError for pixels whose range isn't known."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data and form.nodata is None and form.bands is None:
        return image.copy()
    return image_of(
        open_values(image, form).pixels() if form.keeps(len(image.getbands())) else _picture_of_mode(image, form, [])
    )


def _picture_of_mode(image: Image.Image, form: PixelFormat, notes: list[str]) -> Picture:
    """The pixels (H, W, C) of an image of any mode, transparent ones composited, of which ``notes`` are taken."""
    if image.mode.startswith("I"):
        return _deep_gray(image, form, notes)
    if image.mode == "F":
        return scaled_values(np.asarray(image)[:, :, None], form)
    if image.has_transparency_data:
        straight = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        array = np.asarray(straight)
        return scaled_values(composited(array[:, :, :-1], array[:, :, -1], form, notes), form)
    if image.mode in ("L", "RGB"):
        return scaled_values(picture_of(image), form)
    return scaled_values(picture_of(image.convert("L" if image.mode == "1" else "RGB")), form)


def _deep_gray(image: Image.Image, form: PixelFormat, notes: list[str]) -> Picture:
    """Gray of more than 8 bits, (H, W, 1)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("32-bit pixels have no known range; save it with 8 or 16 bits")
    array: Picture = values.astype(np.uint16)[:, :, None]
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a PNG's
        alpha = np.where(array[:, :, 0] == clear, 0, 65535).astype(np.uint16)
        array = composited(array, alpha, form, notes)
    return scaled_values(array, form)


@contextmanager
def _reasons(path: Path, content: bytes | None) -> Iterator[None]:
    """Turn whatever a decoder stumbles over into a DataError with the file's name and the reason; silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {describe_unknown(path, content)}") from error
    except DataError as error:
        reason = str(error)
        raise DataError(reason if reason.startswith(f"{path}: ") else f"{path}: {reason}") from error
    except MaeliftError:
        raise
    except OSError as error:
        raise DataError(f"{path}: {error.strerror.lower() if error.strerror else error}") from error
    except Exception as error:  # of a broken file, decoders raise anything: struct.error, KeyError, zlib.error, ...
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{path}: {reason}") from error


def _open_image(path: Path, content: bytes, form: PixelFormat) -> LazyImage:
    if form.channels not in (None, 1, 3, 4) and content.startswith(TIFF_STARTS):  # PIL would only look at it
        return open_tiff(content, form)
    try:
        file = _opened(io.BytesIO(content))
    except UnidentifiedImageError:
        if content.startswith(TIFF_STARTS):
            return open_tiff(content, form)
        raise
    notes = tuple(_notes(file, path, form))
    if file.format == "PPM" and file.mode == "RGB" and is_deep_ppm(file):
        return open_deep_ppm(content, file, form, notes)
    if file.mode in ("RGB", "RGBA", "L", "LA") and (bits := _stored_bits(file, content)) > 8:
        notes = (*notes, f"{bits} bits, of which {file.format} is read with 8: save it as PNG or TIFF to keep them")
    if file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB"):
        return _open_jpeg(content, file, form, notes)
    if file.format == "PNG" and content[24] == 16 and content[25] in (2, 4, 6):  # IHDR: bit depth, colour type
        return open_deep_png(content, file, form, notes)
    if file.format == "TIFF" and exceeds_pil(file, form):
        return open_tiff(content, form)
    deep = file.mode.startswith("I") or file.mode == "F"
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        decoded_notes.clear()
        file.load()
        image = ImageOps.exif_transpose(file)
        if form.keeps(len(image.getbands())) and image.mode in ("LA", "RGBA", "CMYK"):
            return scaled_values(np.asarray(image), form)
        if deep and form.value_range is not None and "transparency" not in image.info:
            return scaled_values(np.asarray(image)[:, :, None], form)
        return _picture_of_mode(image, form, decoded_notes)

    all_notes = (*notes, *(("16 bits",) if deep else ()))
    return LazyImage(
        upright_shape(file), 16 if deep else 8, all_notes, load, decoded_notes, exif_orientation(file) != 1
    )


def _stored_bits(file: Image.Image, content: bytes) -> int:
    """Bits of a value in formats that PIL reads with 8 in colour; 8 where they aren't known."""
    if file.format == "JPEG2000" and (begin := content.find(b"\xff\x4f\xff\x51")) >= 0:
        return (content[begin + 42] & 0x7F) + 1  # Ssiz of the first component
    if file.format == "AVIF" and (begin := content.find(b"av1C")) >= 0:
        high, twelve = content[begin + 6] & 0x40, content[begin + 6] & 0x20
        return 12 if high and twelve else 10 if high else 8
    return int(file.info.get("bit_depth", 8)) if file.format == "HEIF" else 8


def _notes(file: Image.Image, path: Path, form: PixelFormat) -> Iterator[str]:
    """What is unusual about an image that is read all the same."""
    named = Image.registered_extensions().get(path.suffix.lower())
    kind = "JPEG" if file.format == "MPO" else file.format
    if named is not None and named != kind:
        yield f"{kind}, though named {path.suffix}"
    if file.format != "MPO" and getattr(file, "is_animated", False):
        yield "several frames: the first is taken"
    if file.mode == "CMYK" and not form.keeps(4):
        yield "CMYK: converted to colour"


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file once it is upright, from its header; raises DataError."""
    with _reasons(path, None):
        if is_volume(path.name):
            raise DataError("a volume, of which boxes and masks can't be read; save its slices as files")
        try:
            with image_file(path) as file:
                return upright_shape(file)
        except UnidentifiedImageError:
            return _open_content(path, read_regular(path), ANY_FORMAT).size


def _open_jpeg(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> LazyImage:
    """A JPEG in gray or colour: torchvision decodes it to the same pixels as PIL, in an array without another copy."""
    orientation = exif_orientation(file)

    def decoded(reduction: int) -> Picture:
        if reduction > 1:
            file.draft(None, (-(-file.width // reduction), -(-file.height // reduction)))
            return picture_of(file)
        import torch
        from torchvision.io import decode_jpeg

        try:
            pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        except RuntimeError:  # PIL tolerates more, such as a missing end marker; its verdict is the one that holds
            return picture_of(file)
        return cast(Picture, pixels.permute(1, 2, 0).numpy())

    def load(reduction: int) -> Picture:
        return upright_pixels(scaled_values(decoded(reduction), form), orientation)

    return LazyImage(upright_shape(file), 8, notes, load, turned=orientation != 1)
