"""What is made of stored pixel values: channels, range of values and transparency."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ..errors import ConfigError, DataError

Picture = NDArray[np.generic]
"""Pixels (H, W, C), upright: uint8, or float32 for what has more than 8 bits."""

RGB = tuple[int, int, int]

WHITE: RGB = (255, 255, 255)

DROPPED = "drop"
"""The word for no background: transparent pixels show the colour that is stored under them."""

DEEP = np.float32(255 / 65535)
"""16 bits are brought to the scale of 8."""

FLAT_UNDERNEATH = "transparency: one flat colour without it"
"""A note on an image whose shapes are in its transparency alone."""


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


def image_of(picture: Picture) -> Image.Image | Picture:
    """The PIL image of pixels (H, W, C) where PIL has a mode for them, "L", "RGB" or "F"; else the pixels."""
    if picture.dtype == np.uint8 and picture.shape[2] in (1, 3):
        return Image.fromarray(np.ascontiguousarray(picture[:, :, 0] if picture.shape[2] == 1 else picture))
    if picture.dtype == np.float32 and picture.shape[2] == 1:
        return Image.fromarray(np.ascontiguousarray(picture[:, :, 0]))
    return picture


def picture_of(image: Image.Image) -> Picture:
    """The pixels (H, W, C) of an image as ``decode`` gives it."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def is_flat(picture: Picture) -> bool:
    """Whether all pixels (H, W, C) of an image are the same."""
    first = picture[:1, :1]
    return not (picture[::32, ::32] != first).any() and not (picture != first).any()


def composited(
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


def scaled_values(array: Picture, form: PixelFormat) -> Picture:
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


def check_values(picture: Picture, form: PixelFormat) -> None:
    """Raise DataError for values that are no numbers, or beyond the range that was given."""
    if form.value_range is None:
        return
    lowest, highest = float(picture.min()), float(picture.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        raise DataError("pixels that are no numbers (NaN or infinite)")
    low, high = form.value_range
    if lowest < low or highest > high:
        raise DataError(f"values from {lowest:g} to {highest:g}, beyond value_range=[{low:g},{high:g}]")
