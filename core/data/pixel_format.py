"""What is made of stored pixel values: channels, range of values and transparency."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ..errors import ConfigError, DataError
from .slices import EVERY_SLICE, Slices

Picture = NDArray[np.generic]
"""Pixels (H, W, C), upright: uint8, or float32 for what has more than 8 bits."""

RGB = tuple[int, int, int]

Bands = tuple[int | str, ...]
"""Channels of a file, by number from 1 or by name."""

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
    size, of gray or colour only where ``channels`` doesn't say another number, as transfer and prediction take them.
    ``bands``: which of the file's channels are taken, in this order, by number from 1 or by name; None: all. ``nodata``: the
    stored value of pixels without one, besides NaN and what a file itself states; images of which a larger share than
    ``max_nodata`` has no value are refused. ``unscale``: apply the scale and offset that a file states. ``window``: (centre,
    width) of the values of more than 8 bits that become 0 to 255, in place of a value range. ``frame``: which frame of a DICOM
    file, from 1. ``slices``: which slices of volumes are images.
    """

    channels: int | None = None
    value_range: tuple[float, float] | None = None
    background: RGB | None = WHITE
    plain: bool = False
    bands: Bands | None = None
    nodata: float | None = None
    max_nodata: float = 1.0
    unscale: bool = False
    window: tuple[float, float] | None = None
    frame: int | None = None
    slices: Slices = EVERY_SLICE

    def keeps(self, stored: int) -> bool:
        """Whether so many stored channels are taken as they are, so that none of them is transparency."""
        return self.bands is not None or self.channels == stored


ANY_FORMAT = PixelFormat()

PLAIN_FORMAT = PixelFormat(plain=True)


@dataclass(frozen=True)
class LazyImage:
    """A picture of which the header is read.

    ``size``: (height, width), upright; ``bits`` of a value: 8, 16, or 32 for floats; ``notes``: what is unusual about the
    file and how it is read all the same; ``decoded_notes``: the same of its pixels, once they are decoded; ``turned``: it is
    stored in another orientation than it is shown in, as EXIF says. ``channel_names``: of all its channels, where the file names
    them; ``nodata``: the stored value of pixels without one, where the file states it. ``scale``: what stored values are
    multiplied by; None: 16 bits by ``DEEP``, others by 1.
    """

    size: tuple[int, int]
    bits: int
    notes: tuple[str, ...]
    decode: Callable[[int], Picture]
    decoded_notes: list[str] = field(default_factory=list)
    turned: bool = False
    channel_names: tuple[str, ...] = ()
    nodata: float | None = None
    scale: float | None = None

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
    """Whether all pixels (H, W, C) of an image are the same; those without a value are as others."""
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


def scaled_values(array: Picture, form: PixelFormat, nodata: float | None = None) -> Picture:
    """Stored values (H, W, C) as a Picture: uint8 as they are, uint16 from 0 to 255, and in a value range all as stored.

    Where a pixel has no value, float32 with NaN there: by the form's value for that, or by the file's own, ``nodata``.
    """
    missing = missing_values(array, (form.nodata, nodata))
    picture = _scaled(array, form)
    if missing is None:
        return picture
    values = picture.astype(np.float32)
    values[missing] = np.nan
    return values


def _scaled(array: Picture, form: PixelFormat) -> Picture:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        white: NDArray[np.uint8] = array.astype(np.uint8) * np.uint8(255)
        return white
    if form.window is not None:
        return windowed(array, form.window)
    if form.value_range is not None:
        return array.astype(np.float32)
    if array.dtype == np.uint16:
        scaled: NDArray[np.float32] = array.astype(np.float32) * DEEP
        return scaled
    kind = "floating-point" if array.dtype.kind == "f" else str(array.dtype)
    raise unknown_range(kind, array)


def windowed(array: Picture, window: tuple[float, float]) -> NDArray[np.float32]:
    """Values as float32 from 0, at half the width below the window's centre, to 255, at half of it above; NaN stays."""
    centre, width = window
    shares = (array.astype(np.float64) - (centre - width / 2)) / width
    result: NDArray[np.float32] = (shares.clip(0, 1) * 255).astype(np.float32)
    return result


def unknown_range(kind: str, values: Picture) -> DataError:
    """The error for values of a kind, in words, that can't be scaled without knowing their range; it states theirs."""
    known = values[np.isfinite(values)]
    ends = f"here {float(known.min()):g} to {float(known.max()):g}; " if known.size else ""
    return DataError(
        f"{kind} pixels have no known range; give value_range=[lowest,highest], or save with 8 or 16 bits ({ends}"
        "window=[centre,width] takes a part)"
    )


def missing_values(array: Picture, stated: Sequence[float | None]) -> NDArray[np.bool_] | None:
    """Which stored values (H, W, C) are none, by the values stated to mean that; None where none is stated.

    A stated value counts as the array's type has it: -3.4e38 in a text is float32's lowest.
    """
    known = [value for value in stated if value is not None and not math.isnan(value)]
    if not known:
        return None
    missing = np.zeros(array.shape, dtype=bool)
    for value in known:
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                missing |= array == array.dtype.type(value)
        elif value == int(value):
            missing |= array == int(value)
    return missing


def check_bands(bands: Bands, key: str = "bands") -> None:
    """Raise ConfigError for a choice of channels that can't be one."""
    if not bands or len(set(bands)) < len(bands) or any(isinstance(band, int) and band < 1 for band in bands):
        raise ConfigError(key, list(bands), "channels by number from 1 or by name, each once")


def chosen_bands(picture: Picture, names: Sequence[str], bands: Bands | None) -> Picture:
    """The channels of a picture (H, W, C) that are asked for, in this order; ``names`` are those of all its channels, if known.

    A picture without names that has as many channels as are asked for by name is taken as it is: it can't say more. Raises
    DataError for a channel that it doesn't have.
    """
    named = bands is not None and all(isinstance(band, str) for band in bands)
    if bands is None or (named and not names and len(bands) == picture.shape[2]):
        return picture
    if named and not names:
        raise DataError(f"{picture.shape[2]} channels without names; expected {', '.join(map(str, bands))}")
    places = [band_place(band, names, picture.shape[2]) for band in bands]
    if places == list(range(picture.shape[2])):
        return picture
    return np.ascontiguousarray(picture[:, :, places])


def band_place(band: int | str, names: Sequence[str], count: int) -> int:
    """The place from 0 of a channel, given by number from 1 or by name, among ``count``; raises DataError where there is none."""
    if isinstance(band, int):
        if not 1 <= band <= count:
            raise DataError(f"no channel {band}: it has {count}, numbered from 1")
        return band - 1
    places = [place for place, name in enumerate(names) if name == band]
    if len(places) == 1:
        return places[0]
    if not names:
        raise DataError(f"no channel {band}: it names none of its {count}; give numbers from 1")
    said = "several channels" if places else "no channel"
    raise DataError(f"{said} {band}: it has {', '.join(names)}")


def check_values(picture: Picture, form: PixelFormat) -> None:
    """Raise DataError for infinite values, those beyond the range that was given, and too many pixels without a value."""
    if picture.dtype.kind != "f":
        return
    lowest, highest = float(picture.min()), float(picture.max())  # no numbers where a pixel has none
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        lowest, highest = _known_ends(picture, form)
    if form.value_range is None:
        return
    low, high = form.value_range
    if lowest < low or highest > high:
        raise DataError(f"values from {lowest:g} to {highest:g}, beyond value_range=[{low:g},{high:g}]")


def _known_ends(picture: Picture, form: PixelFormat) -> tuple[float, float]:
    """The lowest and the highest value of a picture in which some pixels have none; raises DataError for too many of these."""
    if np.isinf(picture).any():
        raise DataError("infinite values; give nodata=VALUE if they stand for none, or save finite ones")
    missing = float(np.isnan(picture).mean())
    if missing == 1:
        raise DataError("no pixel has a value")
    if missing > form.max_nodata:
        raise DataError(f"{100 * missing:.0f} % of its pixels have no value, more than max_nodata={form.max_nodata:g}")
    return float(np.fmin.reduce(picture, axis=None)), float(np.fmax.reduce(picture, axis=None))
