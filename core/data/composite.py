"""Pictures of images of any channels and bits, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ..errors import ConfigError, DataError
from .pixel_format import Bands, Picture, band_place

STRETCH = (2.0, 98.0)
"""Percentiles of the values that are shown as black and white, where values are not those of 8 bits."""
UNKNOWN = 128
"""The gray level of pixels without a value."""
COLOURS = ("red", "green", "blue")
TILES = 4
"""Small gray tiles beside each other."""
TILE_SIDE = 32
"""Pixels of width that a small gray tile has at least."""
GAP = 2
TEXT_HEIGHT = 14

Shown = Bands | Literal["all"] | None
"""Which channels pictures show: see ``PictureKeys``."""


@dataclass(frozen=True, kw_only=True)
class PictureKeys:
    """The key of commands that draw images."""

    shown: Bands | Literal["all"] | None = None
    """channels that pictures show, three as red, green and blue or one as gray, of those that are read, by number from 1 or by
    name; null: those called red, green and blue, else the first three; all: these, and each channel as a small gray tile"""

    def check_shown(self) -> None:
        """Raise ConfigError for a choice that can't be one."""
        if isinstance(self.shown, tuple) and (len(self.shown) not in (1, 3) or len(set(self.shown)) < len(self.shown)):
            raise ConfigError(
                "shown", list(self.shown), "three different channels, or one, by number from 1 or by name"
            )


@dataclass(frozen=True)
class Display:
    """How images are shown: the ``names`` of their channels, none where they aren't known, and the key ``shown``."""

    names: tuple[str, ...] = ()
    shown: Shown = None

    def positions(self, count: int) -> tuple[int, ...]:
        """Which of so many channels are shown, by number from 0: three, or one; raises ConfigError for one that isn't there."""
        names = self.names if len(self.names) == count else ()
        if isinstance(self.shown, tuple):
            try:
                return tuple(band_place(_number_or_name(band, names), names, count) for band in self.shown)
            except DataError as error:
                there = ", ".join(names) or f"1 to {count}"
                raise ConfigError("shown", list(self.shown), f"channels of {there}", f"There is {error}.") from error
        lower = [name.casefold() for name in names]
        if all(colour in lower for colour in COLOURS):
            return tuple(lower.index(colour) for colour in COLOURS)
        return (0, 1, 2) if count >= 3 else (0,)

    def caption(self, count: int) -> str:
        """A sentence on which of so many channels are shown; empty of gray and colour as they are."""
        places = self.positions(count)
        if count in (1, 3) and places == tuple(range(count)) and self.shown != "all":
            return ""
        names = self.names if len(self.names) == count else tuple(f"number {place + 1}" for place in range(count))
        chosen = ", ".join(names[place] for place in places)
        said = f"Of {count} channels these are shown{' as red, green and blue' if len(places) == 3 else ''}: {chosen}."
        return said + (" Each channel is below them in gray." if self.shown == "all" else "")

    def composite(self, picture: Picture) -> NDArray[np.uint8]:
        """The channels of pixels (H, W, C) that are shown, (H, W, 3 or 1); see ``levels``."""
        return levels(picture[:, :, list(self.positions(picture.shape[2]))])

    def image(self, image: Image.Image | Picture) -> Image.Image:
        """An image as ``decode`` gives it, as PIL's "L" or "RGB"."""
        if isinstance(image, Image.Image) and image.mode != "F":
            return image
        found = self.composite(_pixels(image))
        return Image.fromarray(found[:, :, 0] if found.shape[2] == 1 else found)

    def with_tiles(self, drawn: Image.Image, image: Image.Image | Picture) -> Image.Image:
        """A picture that was drawn of an image; where all channels are shown, with a small gray tile of each below it."""
        if self.shown != "all":
            return drawn
        tiles = levels(_pixels(image))
        height, width, count = tiles.shape
        beside = max(1, min(TILES, (drawn.width + GAP) // (TILE_SIDE + GAP)))
        wide = (drawn.width - (beside - 1) * GAP) // beside
        high = max(1, round(height * wide / width))
        rows = -(-count // beside)
        sheet = Image.new("RGB", (drawn.width, drawn.height + GAP + rows * (high + TEXT_HEIGHT + GAP)), "white")
        sheet.paste(drawn, (0, 0))
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
        for place in range(count):
            left = place % beside * (wide + GAP)
            top = drawn.height + GAP + place // beside * (high + TEXT_HEIGHT + GAP)
            tile = Image.fromarray(np.ascontiguousarray(tiles[:, :, place]))
            how = Image.Resampling.NEAREST if wide > width else Image.Resampling.BOX
            sheet.paste(tile.resize((wide, high), how), (left, top))
            draw.text((left, top + high), self._tile_name(place, count, wide), fill="black", font=font)
        return sheet

    def _tile_name(self, place: int, count: int, width: int) -> str:
        """What stands below a tile: the channel's name as far as there is room, or its number from 1."""
        name = self.names[place] if len(self.names) == count else ""
        plain = "".join(letter for letter in name if letter.isascii() and letter.isprintable())
        return plain[: max(1, width // 6)] or str(place + 1)


def _number_or_name(band: int | str, names: tuple[str, ...]) -> int | str:
    """A channel by number where its text is one that names none: a command line's words are texts."""
    return int(band) if isinstance(band, str) and band.isdecimal() and band not in names else band


def levels(picture: Picture, ends: NDArray[np.float64] | None = None) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as gray levels of each channel: uint8 as it is, else stretched between the channel's ``ends`` (C, 2).

    Without ``ends`` by those of the picture itself (``stretch_ends``). Pixels without a value (NaN) are gray.
    """
    if picture.dtype == np.uint8 and ends is None:
        return np.ascontiguousarray(picture)
    values = picture.astype(np.float32)
    low, high = np.moveaxis(stretch_ends(picture) if ends is None else ends, 1, 0)
    flat = high <= low
    scaled = np.where(flat, values, (values - low) * (255 / np.where(flat, 1, high - low)))
    shown = np.where(np.isfinite(values), scaled, UNKNOWN)
    result: NDArray[np.uint8] = shown.clip(0, 255).round().astype(np.uint8)
    return result


def stretch_ends(picture: Picture) -> NDArray[np.float64]:
    """The values (C, 2) of pixels (H, W, C) that are shown as black and as white in each channel: its percentiles ``STRETCH``."""
    ends = np.zeros((picture.shape[2], 2))
    for place in range(picture.shape[2]):
        plane = picture[:, :, place]
        known = plane[np.isfinite(plane)]
        if known.size:
            ends[place] = np.percentile(known.astype(np.float64), STRETCH)
    return ends


def picture_grid(pictures: Sequence[Image.Image], across: int, gap: int = 4) -> Image.Image:
    """Pictures in rows of ``across``, on white, in cells of the size of the largest, with ``gap`` pixels between them."""
    across = min(across, len(pictures))
    width, height = (max(picture.size[side] for picture in pictures) for side in (0, 1))
    down = -(-len(pictures) // across)
    sheet = Image.new("RGB", (across * (width + gap) - gap, down * (height + gap) - gap), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, across)
        sheet.paste(picture, (column * (width + gap), row * (height + gap)))
    return sheet


def with_means(picture: Picture) -> Picture:
    """Pixels (H, W, C) with the mean of the channel where there is no value (NaN); 0 in a channel without any."""
    if picture.dtype.kind != "f" or not (missing := np.isnan(picture)).any():
        return picture
    there = (~missing).sum(axis=(0, 1)).clip(1)
    return np.where(missing, np.nansum(picture, axis=(0, 1)) / there, picture).astype(picture.dtype)


def _pixels(image: Image.Image | Picture) -> Picture:
    """The pixels (H, W, C) of an image."""
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]
