"""Reading a mask file: the class value of each pixel from a gray, palette or colour image, or from an array."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import DataError
from ..files import NotRegularError, open_regular
from .class_lists import NUM_MASK_VALUES, UNKNOWN_COLOUR, ColourTable
from .decode import image_file

MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".npy"})

LOSSY_SUFFIXES = frozenset({".jpg", ".jpeg", ".webp"})

DEFAULT_IGNORED = (255,)
"""Values that are ignored unless classes.txt or the ``ignore`` key says otherwise."""

MAX_SHOWN_COLOURS = 6
"""Colours of a mask that a message lists."""


def read_mask(path: Path, colours: ColourTable | None = None) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values (H, W) of a mask as in the file: palette indices or gray values, upright by EXIF.

    Colours are mapped by the table, if given (``UNKNOWN_COLOUR`` for others), and are read as gray where red, green and blue
    are equal. Raises DataError for other colours, for floating point and for files that can't be decoded.
    """
    if path.suffix.lower() == ".npy":
        return _read_array(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with image_file(path) as file:
                frames = getattr(file, "n_frames", 1)
                bits = _gray_bits(path) if file.format == "PNG" else 8
                file.load()
                image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: {'an empty file' if path.stat().st_size == 0 else 'not an image'}") from error
    except NotRegularError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, DataError) as error:
        raise DataError(f"{path}: {error}") from error
    if frames > 1:
        raise DataError(f"{path}: {frames} images in one file. Expected one mask. Save each as a PNG")
    return _mask_values(path, image, bits, colours)


def _mask_values(
    path: Path, image: Image.Image, bits: int, colours: ColourTable | None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values of an opened mask; ``bits`` per gray pixel in the file."""
    mode = image.mode
    if mode in ("RGBA", "LA", "PA"):
        opacity = np.asarray(image.getchannel("A"))
        if opacity.min() < 255:
            raise DataError(
                f"{path}: a mask with transparent pixels ({mode}). Expected one value per pixel: a gray or palette PNG, or "
                "colours without transparency"
            )
        image = image.convert("RGB") if mode != "LA" else image.getchannel("L")
        mode = image.mode
    if mode == "RGB":
        return _colour_values(path, np.asarray(image), colours)
    if mode == "P" and colours is not None:
        wide = colours.values(_pack_rgb(np.asarray(image.convert("RGB"))))
        if not (wide == UNKNOWN_COLOUR).all():  # otherwise the palette is only for display
            border = (wide == UNKNOWN_COLOUR) & (np.asarray(image) == DEFAULT_IGNORED[0])
            return np.where(border, np.uint16(DEFAULT_IGNORED[0]), wide)
    values = np.asarray(image)
    if colours is not None and colours.all_gray and mode in ("1", "L"):
        return colours.values(np.asarray(image.convert("L")).astype(np.int64) * 0x010101)
    if mode == "1":
        return values.astype(np.uint8)
    if mode in ("L", "P"):
        return values // np.uint8(255 // (2**bits - 1)) if mode == "L" and bits in (2, 4) else values
    if mode.startswith("I") and values.min() >= 0 and values.max() < NUM_MASK_VALUES:
        return values.astype(np.uint16)
    if mode.startswith("I"):
        raise DataError(f"{path}: values from {values.min()} to {values.max()}. Expected integers from 0 to 65535")
    if mode == "F":
        raise DataError(f"{path}: a mask of floating point numbers. Expected integers of 8 or 16 bits")
    raise DataError(f"{path}: a mask in colour ({mode}). Expected one value per pixel: a gray or palette PNG")


def _pack_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(H, W) from (H, W, 3): red · 65536 + green · 256 + blue."""
    wide = rgb.astype(np.int64)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], dtype=np.int64)


def _colour_values(
    path: Path, rgb: NDArray[np.uint8], colours: ColourTable | None
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """The values of a mask (H, W, 3): by the table, or the gray where all channels are equal."""
    if colours is not None:
        return colours.values(_pack_rgb(rgb))
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 1], rgb[..., 2]):
        gray: NDArray[np.uint8] = rgb[..., 0].copy()
        return gray
    most_frequent, listed, _ = _frequent_colours(_pack_rgb(rgb))
    raise DataError(
        f"{path}: a mask in colour (RGB): {listed}. Expected one value per pixel, a gray or palette PNG, or "
        f"the colour of each class in classes.txt, a line 'NAME, {most_frequent}'"
    )


def _read_array(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """A mask (H, W) or (H, W, 1) of integers in a .npy file."""
    try:
        with open_regular(path):  # never waits for a named pipe
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TypeError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: not a readable array ({str(error).partition(chr(10))[0]})") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: several arrays. Expected one, (height, width) of integers")
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim != 2 or array.dtype.kind not in "iub" or 0 in array.shape:
        raise DataError(
            f"{path}: an array of shape {array.shape} and type {array.dtype}. Expected (height, width) of integers"
        )
    if array.min() < 0 or array.max() >= NUM_MASK_VALUES:
        raise DataError(f"{path}: values from {array.min()} to {array.max()}. Expected integers from 0 to 65535")
    return np.array(array, dtype=np.uint8 if array.max() < 256 else np.uint16)


def _gray_bits(path: Path) -> int:
    """Bits per pixel of a PNG, from its header: Pillow scales gray of 2 and 4 bits to 0..255."""
    with path.open("rb") as file:
        return file.read(25)[24]


def unlisted_colours_text(mask: Path, colours: ColourTable, share: str) -> str:
    """The colours of a mask that the table doesn't list, most frequent first; ``share`` of its pixels have them."""
    try:
        with warnings.catch_warnings(), Image.open(mask) as image:
            warnings.simplefilter("ignore")
            packed = _pack_rgb(np.asarray(image.convert("RGB")))
    except (OSError, ValueError):  # 16 bits, whose highest value is that of unlisted colours
        return f"value {UNKNOWN_COLOUR}: not in the list of classes"
    most_frequent, listed, count = _frequent_colours(packed[colours.values(packed) == UNKNOWN_COLOUR])
    names = f"colour{'s' if count > 1 else ''} {listed}"
    return f"{names}, {share} of its pixels: not in the list of classes. Add 'NAME, {most_frequent}' if that is one"


def _frequent_colours(packed: NDArray[np.int64]) -> tuple[str, str, int]:
    """The most frequent of packed colours, a list of several in words, and the number of different ones."""
    found, counts = np.unique(packed, return_counts=True)
    shown = [f"#{found[index]:06x}" for index in np.argsort(-counts)[:MAX_SHOWN_COLOURS]]
    more = f" and {len(found) - len(shown):,} more" if len(found) > len(shown) else ""
    return shown[0], f"{', '.join(shown)}{more}", len(found)
