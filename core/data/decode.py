"""From the bytes of an image file to its pixels: every format that people have, and a reason in words for a broken file."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ..errors import ConfigError, DataError, MaeliftError
from ..files import open_regular, read_regular

Image.init()  # all of Pillow's formats, not the usual five alone

NOT_PICTURES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"})
"""Formats of Pillow that are never opened: it decodes no pixels of theirs, or starts another program (EPS: Ghostscript)."""
FORMATS = tuple(name for name in Image.OPEN if name not in NOT_PICTURES)
"""Pillow's formats that are read; HEIF comes in with pillow-heif once a file asks for it."""
AMBIGUOUS = frozenset({".bw", ".gbr", ".icb", ".im", ".msp", ".pcd", ".vda", ".vst"})
"""Names that files of other programs have more often than images do: bigWig, Gerber, point clouds, ..."""
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
"""What the type of a HEIF file is called in its first bytes; AVIF, which Pillow reads, is mif1 seldom."""
HEIF_INSTALLED = importlib.util.find_spec("pillow_heif") is not None
SUFFIXES = frozenset(
    {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")} - AMBIGUOUS
    | (HEIF_SUFFIXES if HEIF_INSTALLED else set())
)
"""Names of image files, in lower case: those of what Pillow reads."""
ARRAY_SUFFIXES = frozenset({".npy"})
"""Names of files with an array (H, W) or (H, W, C); many lie beside images and are none, so they count as images where no file
of ``SUFFIXES`` is."""

HEIF_HINT = "pip install 'maelift[heif]'"
_READERS = (
    (".heic .heif .hif .heics .heifs", HEIF_HINT),
    (".avif .avifs", "pip install 'pillow>=11.3'"),
    (".jxl .hdr .exr .jxr .wdp .bpg .ktx .psb", "convert to PNG or TIFF"),
    (".dng .cr2 .cr3 .nef .nrw .arw .orf .rw2 .raf .pef .srw .3fr .iiq", "raw photos: develop to JPEG or TIFF"),
    (".svg .svgz .eps .ps .ai .pdf .wmf .emf .djvu", "drawings and documents: render to PNG"),
    (".mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .wmv", "videos: extract frames, with ffmpeg for example"),
    (".dcm .dicom .nii .nrrd .mha .mhd .svs .ndpi .czi .lif .fits .fit", "convert to PNG, TIFF or .npy"),
    (".npz .mat .h5 .hdf .hdf5 .pkl .pt .zarr", "save each image as PNG, TIFF or .npy"),
    (".npy", "arrays are read where no image file lies beside them"),
    (".zip .7z .rar .gz .tgz .bz2 .xz", "unpack it"),
    (" ".join(sorted(AMBIGUOUS)), "if these are images, convert to PNG"),
)


def what_reads(suffix: str) -> str | None:
    """For the suffix (".heic") of files that aren't read as images: what would read them, in words; None for what is no image."""
    lower = suffix.lower()
    if lower in SUFFIXES:
        return None
    return next((hint for suffixes, hint in _READERS if lower in suffixes.split()), None)


Picture = NDArray[np.generic]
"""Pixels (H, W, C), upright: uint8, or float32 for what has more than 8 bits."""

RGB = tuple[int, int, int]
WHITE: RGB = (255, 255, 255)
DROPPED = "drop"
"""The word for no background: transparent pixels show the colour that is stored under them."""
MAX_PIXELS_VARIABLE = "MAELIFT_MAX_PIXELS"
"""Environment variable: most pixels of an image; one with more is taken for a decompression bomb."""
MAX_PIXELS = 2**28
"""Its default: photos of 200 megapixels are read."""
_TOO_MANY = (
    ", more than {:,} pixels: a decompression bomb? Save it smaller, or allow it: " + MAX_PIXELS_VARIABLE + "=..."
)
HEAD = 512
"""Bytes by which a file is known that isn't read."""

DEEP = np.float32(255 / 65535)
"""16 bits are brought to the scale of 8."""
FLAT_UNDERNEATH = "transparency: one flat colour without it"
"""A note on an image whose shapes are in its transparency alone."""
EXIF_ORIENTATION = 0x0112
ARRAY_START = b"\x93NUMPY"
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


@dataclass(frozen=True)
class PixelFormat:
    """What a run makes of the values in image files.

    ``channels``: how many it takes; None: what the file has, without transparency. ``value_range``: lowest and highest
    value, as stored in the files; None: integers of 8 bits, and of 16 bits brought to their range, 0 to 255. ``background``:
    the colour (0 to 255) that transparent pixels are composited on; None: transparency is dropped. ``plain``: images of any
    size, but of 1 or 3 channels only, as transfer and prediction take them.
    """

    channels: int | None = None
    value_range: tuple[float, float] | None = None
    background: RGB | None = WHITE
    plain: bool = False


ANY_FORMAT = PixelFormat()
PLAIN_FORMAT = PixelFormat(plain=True)


@dataclass(frozen=True)
class LazyImage:
    """A picture of which the header is read.

    ``size``: (height, width), upright; ``bits`` of a value: 8, 16, or 32 for floats; ``notes``: what is unusual about the
    file and how it is read all the same; ``decoded_notes``: the same of its pixels, once they are decoded; ``turned``: it is
    stored in another orientation than it is shown in, as EXIF says.
    """

    size: tuple[int, int]
    bits: int
    notes: tuple[str, ...]
    decode: Callable[[int], Picture]
    decoded_notes: list[str] = field(default_factory=list)
    turned: bool = False

    def pixels(self, reduction: int = 1) -> Picture:
        """Decode it; a JPEG in colour or gray at 1/``reduction`` (1, 2, 4 or 8) of its size. Raises DataError."""
        return self.decode(reduction)


def kinds() -> str:
    """The kinds of image files that are read, in words."""
    return "jpg, png, webp, tif, bmp, gif, jp2, avif" + (", heic" if HEIF_INSTALLED else "") + " and others of Pillow's"


def background_colour(text: str) -> RGB | None:
    """The colour of a ``background`` key: a name, "#rrggbb", or "drop" (None). Raises ConfigError for other words."""
    if text == DROPPED:
        return None
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        expected = f"a colour such as white, black, gray or '#rrggbb', or {DROPPED}"
        raise ConfigError("background", text, expected) from error
    return red, green, blue


def colour_name(colour: RGB) -> str:
    """A colour in words, or as #rrggbb."""
    known = {WHITE: "white", (0, 0, 0): "black"}
    return known.get(colour, "#" + bytes(colour).hex())


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
        image = Image.open(file, formats=[*FORMATS, *_heif(head)])
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{error.args[0].partition('(')[2].partition(' ')[0]} pixels{_TOO_MANY.format(limit)}"
        ) from error
    if image.width * image.height > limit:
        raise DataError(f"{image.width}×{image.height} px{_TOO_MANY.format(limit)}")
    return image


def max_pixels() -> int:
    """The most pixels that an image may have; raises DataError for another word in the environment."""
    text = os.environ.get(MAX_PIXELS_VARIABLE, str(MAX_PIXELS))
    if not text.isascii() or not text.isdigit() or not int(text):
        raise DataError(f"the environment says {MAX_PIXELS_VARIABLE}={text}; expected a whole number of pixels")
    return int(text)


def _raise_limit() -> None:
    """Have Pillow, which warns of images beyond its limit and refuses those of twice as many, open what ``max_pixels`` allows."""
    try:
        least = max_pixels()
    except DataError:  # it will be raised where an image is opened
        return
    if Image.MAX_IMAGE_PIXELS is not None and least > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = least


_raise_limit()


def _heif(head: bytes) -> list[str]:
    """Pillow's name of HEIF, registered, for a file that begins like one."""
    if head[4:8] != b"ftyp" or head[8:12] not in HEIF_BRANDS:
        return []
    if not HEIF_INSTALLED:
        raise DataError(f"a HEIC photo, which pillow-heif reads: {HEIF_HINT}")
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return ["HEIF"]


def decode(path: Path, content: bytes | None = None, form: PixelFormat = ANY_FORMAT) -> Image.Image | Picture:
    """The image of a file: upright by EXIF, mode "L", "RGB", or "F" from 0 to 255 for 16-bit gray; of 16-bit colour the pixels
    (H, W, 3), float32 from 0 to 255.

    ``content`` are its bytes where it isn't a file of its own, but lies in an archive; ``path`` then names it in errors. It
    gives the values that ``open_picture`` gives. Raises DataError with the reason for a file that can't be decoded, and for
    other channels than 1 and 3.
    """
    return image_of(open_picture(path, content, replace(form, plain=True)).pixels())


def image_of(picture: Picture) -> Image.Image | Picture:
    """The PIL image of pixels (H, W, C) where PIL has a mode for them, "L", "RGB" or "F"; else the pixels."""
    if picture.dtype == np.uint8 and picture.shape[2] in (1, 3):
        return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    if picture.dtype == np.float32 and picture.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(picture[:, :, 0]))
    return picture


def open_picture(path: Path, content: bytes | None = None, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """Open an image file or a ``.npy`` array of any number of channels and bits, before it is decoded.

    ``content`` as for ``decode``. Palettes are mapped to their colours, CMYK is converted, of several frames the first is
    taken. Transparent pixels are composited on the form's background, unless four channels are asked for. TIFF files of other
    channels than PIL knows, or of floats, need tifffile. Raises DataError with the reason for a file that can't be read, or
    not as ``form`` asks.
    """
    with _reasons(path, content):
        data = read_regular(path) if content is None else content
        opened = _open_array(data, form) if data.startswith(ARRAY_START) else _open_image(path, data, form)

    def decode_named(reduction: int) -> Picture:
        with _reasons(path, data):
            picture = opened.decode(reduction)
            _check_values(picture, form)
            if form.plain and picture.shape[2] not in (1, 3):
                raise DataError(f"{picture.shape[2]} channels; transfer and prediction take 1 (gray) or 3 (colour)")
            return picture

    return replace(opened, decode=decode_named)


def open_values(values: Image.Image | Picture, form: PixelFormat = ANY_FORMAT) -> LazyImage:
    """The same of an image or an array (H, W, C) that is decoded already."""
    array = picture_of(values) if isinstance(values, Image.Image) else values

    def load(reduction: int) -> Picture:
        picture = _values(array, form)
        _check_values(picture, form)
        return picture

    return LazyImage((array.shape[0], array.shape[1]), min(32, 8 * array.dtype.itemsize), (), load)


def picture_of(image: Image.Image) -> Picture:
    """The pixels (H, W, C) of an image as ``decode`` gives it."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def plain_mode(image: Image.Image, form: PixelFormat = PLAIN_FORMAT) -> Image.Image:
    """An image of any mode as ``decode`` gives it; raises DataError for pixels whose range isn't known."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image.copy()
    found = image_of(_picture_of_mode(image, form, []))
    assert isinstance(found, Image.Image)  # PIL has no mode for colour of 16 bits
    return found


def _picture_of_mode(image: Image.Image, form: PixelFormat, notes: list[str]) -> Picture:
    """The pixels (H, W, C) of an image of any mode, transparent ones composited, of which ``notes`` are taken."""
    if image.mode.startswith("I"):
        return _deep_gray(image, form, notes)
    if image.mode == "F":
        return _values(np.asarray(image)[:, :, None], form)
    if image.has_transparency_data:
        straight = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        array = np.asarray(straight)
        return _on_background(array[:, :, :-1], array[:, :, -1], form, notes)
    if image.mode in ("L", "RGB"):
        return picture_of(image)
    return picture_of(image.convert("L" if image.mode == "1" else "RGB"))


def _deep_gray(image: Image.Image, form: PixelFormat, notes: list[str]) -> Picture:
    """Gray of more than 8 bits, (H, W, 1)."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise DataError("32-bit pixels have no known range; save it with 8 or 16 bits")
    array: Picture = values.astype(np.uint16)[:, :, None]
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # a PNG's
        alpha = np.where(array[:, :, 0] == clear, 0, 65535).astype(np.uint16)
        array = _on_background(array, alpha, form, notes)
    return _values(array, form)


def is_flat(picture: Picture) -> bool:
    """Whether all pixels (H, W, C) of an image are the same."""
    first = picture[:1, :1]
    return not (picture[::32, ::32] != first).any() and not (picture != first).any()


def _on_background(
    colour: Picture, alpha: Picture, form: PixelFormat, notes: list[str], *, premultiplied: bool = False
) -> Picture:
    """Stored colour (H, W, 1 or 3) with its opacity (H, W), whole numbers of one type, composited on the form's background.

    ``premultiplied``: the colour is multiplied by its opacity already. Opaque pixels stay as they are, to the bit.
    """
    full = 255 if alpha.dtype == np.uint8 else 65535
    if int(alpha.min()) == full:
        return colour
    if form.background is None:
        notes.append("transparency: dropped")
        return colour
    notes.append(f"transparency: composited on {colour_name(form.background)}")
    if is_flat(colour):
        notes.append(FLAT_UNDERNEATH)
    low, high = form.value_range or (0.0, float(full))
    behind = [min(max(round(low + (high - low) * value / 255), 0), full) for value in form.background]
    if len(set(behind)) == 1:
        behind = behind[: colour.shape[2]]
    wide = np.uint16 if full == 255 else np.uint32  # 255² + 127 and 65535² + 32767 just fit
    opacity = alpha[:, :, None].astype(wide)
    shown = np.array(behind, dtype=wide) * (full - opacity)
    if premultiplied:
        mixed = np.minimum(colour.astype(wide) + (shown + wide(full // 2)) // wide(full), full)
    else:
        mixed = (colour.astype(wide) * opacity + shown + wide(full // 2)) // wide(full)  # rounded to the nearest
    return np.ascontiguousarray(mixed.astype(colour.dtype))


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


_KNOWN_STARTS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "HDF5"),
    (b"SIMPLE  =", "FITS"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"version https://git-lfs", "a pointer of Git LFS (git lfs pull fetches the file)"),
)


def _what_it_is(path: Path, content: bytes | None) -> str:
    """What a file is that no decoder knows."""
    if content is None:
        with open_regular(path) as file:
            content = file.read(HEAD)
    if not content:
        return "an empty file"
    for start, what in _KNOWN_STARTS:
        if content.startswith(start):
            return f"{what}, not an image"
    if path.suffix.lower() in ARRAY_SUFFIXES:
        return "not an array of numpy, whatever its name says"
    if content[4:8] == b"ftyp" and content[8:12] in HEIF_BRANDS:
        return "a HEIC image that can't be decoded: damaged, or cut off"
    if content[4:8] == b"ftyp":
        return f"a video, or an image of a kind that isn't read ({content[8:12].decode('latin-1')}), whatever its name says"
    head = content[:HEAD].lstrip().lower()
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<svg")):
        return "text such as a web page (HTML), not an image, whatever its name says"
    if not any(content[:HEAD]):
        return "zeros, not an image"
    return "not an image, whatever its name says"


def _open_image(path: Path, content: bytes, form: PixelFormat) -> LazyImage:
    try:
        file = _opened(io.BytesIO(content))
    except UnidentifiedImageError:
        if content.startswith(TIFF_STARTS):
            return _open_tiff(content, form)
        raise
    notes = tuple(_notes(file, path, form))
    if file.format == "PPM" and file.mode == "RGB" and _deep_ppm(file):
        return _open_deep_ppm(content, file, form, notes)
    if file.mode in ("RGB", "RGBA", "L", "LA") and (bits := _stored_bits(file, content)) > 8:
        notes = (*notes, f"{bits} bits, of which {file.format} is read with 8: save it as PNG or TIFF to keep them")
    if file.format in ("JPEG", "MPO") and file.mode in ("L", "RGB"):
        return _open_jpeg(content, file, notes)
    if file.format == "PNG" and content[24] == 16 and content[25] in (2, 4, 6):  # IHDR: bit depth, colour type
        return _open_deep_png(content, file, form, notes)
    if file.format == "TIFF" and _beyond_pil(file, form):
        return _open_tiff(content, form)
    deep = file.mode.startswith("I") or file.mode == "F"
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        decoded_notes.clear()
        file.load()
        image = ImageOps.exif_transpose(file)
        if form.channels == 4 and image.mode in ("RGBA", "CMYK"):
            return np.asarray(image)
        if deep and form.value_range is not None and "transparency" not in image.info:
            return _values(np.asarray(image)[:, :, None], form)
        return _picture_of_mode(image, form, decoded_notes)

    all_notes = (*notes, *(("16 bits",) if deep else ()))
    return LazyImage(_upright(file), 16 if deep else 8, all_notes, load, decoded_notes, _orientation(file) != 1)


def _deep_ppm(file: Image.Image) -> bool:
    """Whether a PPM in colour has 16 bits a value, binary, of which PIL keeps 8."""
    codec, _, _, arguments = cast(Any, file).tile[0]
    return bool(codec == "ppm" and arguments[0] == "RGB" and arguments[-1] > 255)


def _open_deep_ppm(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> LazyImage:
    """A PPM in colour of 16 bits; its greatest value, which its header states, becomes that of 16 bits."""
    _, _, begin, arguments = cast(Any, file).tile[0]
    shape, most = (file.height, file.width, 3), int(arguments[-1])
    if len(content) < begin + 2 * math.prod(shape):
        raise DataError(f"cut off: {len(content) - begin} bytes of {2 * math.prod(shape)}")

    def load(reduction: int) -> Picture:
        values = np.frombuffer(content, dtype=">u2", count=math.prod(shape), offset=begin).reshape(shape)
        if form.value_range is None and most != 65535:
            values = np.rint(values.astype(np.float64) * (65535 / most)).clip(0, 65535)
        return _values(values.astype(np.uint16), form)

    return LazyImage((file.height, file.width), 16, (*notes, "16 bits"), load)


def _stored_bits(file: Image.Image, content: bytes) -> int:
    """Bits of a value in formats that PIL reads with 8 in colour; 8 where they aren't told."""
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
    if file.mode == "CMYK" and form.channels != 4:
        yield "CMYK: converted to colour"


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file once it is upright, from its header; raises DataError."""
    with _reasons(path, None), image_file(path) as file:
        return _upright(file)


def _upright(file: Image.Image) -> tuple[int, int]:
    width, height = _stored_size(file)
    return (width, height) if _orientation(file) in (5, 6, 7, 8) else (height, width)


def _stored_size(file: Image.Image) -> tuple[int, int]:
    """(width, height) as stored: of a TIFF, Pillow's ``size`` is that of the upright image, from version 11.1 on."""
    tags = getattr(file, "tag_v2", {}) if file.format == "TIFF" else {}
    return int(tags.get(256, file.width)), int(tags.get(257, file.height))


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


def _open_jpeg(content: bytes, file: Image.Image, notes: tuple[str, ...]) -> LazyImage:
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

    return LazyImage(_upright(file), 8, notes, load, turned=orientation != 1)


def _open_deep_png(content: bytes, file: Image.Image, form: PixelFormat, notes: tuple[str, ...]) -> LazyImage:
    """A PNG in colour, or with transparency, of 16 bits, of which PIL would keep 8."""
    orientation, clear = _orientation(file), file.info.get("transparency")
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        import torch
        from torchvision.io import decode_png

        decoded_notes.clear()
        values = decode_png(torch.frombuffer(bytearray(content), dtype=torch.uint8)).permute(1, 2, 0).numpy()
        if values.shape[2] in (2, 4) and form.channels != values.shape[2]:
            values = _on_background(values[:, :, :-1], values[:, :, -1], form, decoded_notes)
        elif isinstance(clear, tuple):  # the one colour that is transparent
            alpha = np.where((values == np.array(clear, dtype=values.dtype)).all(axis=2), 0, 65535)
            values = _on_background(values, alpha.astype(np.uint16), form, decoded_notes)
        return _turned(_values(values, form), orientation)

    return LazyImage(_upright(file), 16, (*notes, "16 bits"), load, decoded_notes, orientation != 1)


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


def _open_tiff(content: bytes, form: PixelFormat) -> LazyImage:
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
    _check_size(math.prod(shape))
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
                values = _on_background(colour, alpha, form, decoded_notes, premultiplied=premultiplied)
            else:
                decoded_notes.append("transparency: dropped")
                values = colour
        return _turned(_values(values, form), orientation)

    turned = orientation in (5, 6, 7, 8)
    notes = (*(("several pages: the first is taken",) if first_only else ()), *((f"{bits} bits",) if bits > 8 else ()))
    height, width = (int(side) for side in (size[::-1] if turned else size))
    return LazyImage((height, width), bits, notes, load, decoded_notes, orientation != 1)


def _open_array(content: bytes, form: PixelFormat) -> LazyImage:
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

    return LazyImage((shape[0], shape[1]), min(32, 8 * dtype.itemsize), (), load)


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
    advice = "save it with 8 or 16 bits" if form.plain else "give value_range=[lowest,highest]"
    raise DataError(f"{kind} pixels have no known range; {advice}")


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
    limit = max_pixels()
    if values > 4 * limit:
        raise DataError(f"{values:,} values{_TOO_MANY.format(limit)}")
