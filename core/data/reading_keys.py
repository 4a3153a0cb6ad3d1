"""The keys of commands that say how the values of image files are read: channels, range, and pixels without a value."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import ConfigError, DataError
from .images import ImageSet, opened
from .pixel_format import Bands, PixelFormat, check_bands
from .slices import Slices

NAMED_SAMPLE = 8
"""Images of which the first that are sound say whether files name their channels."""


@dataclass(frozen=True, kw_only=True)
class PartKeys:
    """Which frames and slices of files are images, and which window of their values is shown."""

    window: tuple[float, float] | None = None
    """[centre,width] of the values that become 0 to 255, in place of value_range: [40,400] of a CT's Hounsfield units"""
    frame: int | Literal["all"] | None = None
    """frame that is taken of DICOM files of several, from 1; all: each is an image; null: files of several are refused"""
    slice_axis: int | None = None
    """axis that slices of NIfTI volumes are counted along: 0 (left to right), 1 (back to front), 2 (bottom to top); null: that
    of the largest voxel spacing, the last of equal ones"""
    slice_step: int = 1
    """take every so many slices of a volume, or frames with frame=all"""
    slice_content: float = 0.0
    """share of a slice's pixels that must differ from the volume's most frequent value; slices of one value are always left
    out"""

    def check_parts(self, value_range: tuple[float, float] | None = None) -> None:
        """Raise ConfigError for values that can't be meant, also of the ``value_range`` that stands beside them."""
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ConfigError("value_range", list(value_range), "[lowest,highest], the lowest first")
        if self.window is not None and value_range is not None:
            raise ConfigError("window", list(self.window), "null with value_range: a window has its own")
        if self.window is not None and not self.window[1] > 0:
            raise ConfigError("window", list(self.window), "[centre,width], the width above 0")
        if isinstance(self.frame, int) and self.frame < 1:
            raise ConfigError("frame", self.frame, "1 or more, all, or null")
        if self.slice_axis not in (None, 0, 1, 2):
            raise ConfigError("slice_axis", self.slice_axis, "0, 1, 2 or null")
        if self.slice_step < 1:
            raise ConfigError("slice_step", self.slice_step, "1 or more")
        if not 0 <= self.slice_content <= 1:
            raise ConfigError("slice_content", self.slice_content, "a share from 0 to 1")

    @property
    def slices(self) -> Slices:
        """Which slices and frames are images."""
        return Slices(self.slice_axis, self.slice_step, self.slice_content, self.frame == "all")

    def with_parts(self, form: PixelFormat) -> PixelFormat:
        """A form with what these keys say in its place."""
        frame = self.frame if isinstance(self.frame, int) else None if self.frame == "all" else form.frame
        return replace(form, window=self.window or form.window, frame=frame, slices=self.slices)


@dataclass(frozen=True, kw_only=True)
class ReadingKeys(PartKeys):
    """How the values of images are read."""

    channels: int | Bands | None = None
    """how many: 1 (gray), 3 (colour), 5 (bands); or which of the files' and in what order, by number from 1 or by name:
    [4,3,2], [nir,red]; null: those of the files"""
    value_range: tuple[float, float] | None = None
    """lowest and highest stored value of float images or deep ones, [0,4095] of 12 bits; null: integers, scaled to 0 to 255"""
    nodata: float | None = None
    """stored value of pixels without one, besides NaN and what GeoTIFF files state; such pixels don't count in losses"""
    max_nodata: float = 0.9
    """images of which a larger share of pixels has no value are left out"""
    unscale: bool = False
    """apply the scale and offset that GeoTIFF files state; value_range is then that of the results"""

    def check_reading(self) -> None:
        """Raise ConfigError for values that can't be meant."""
        self.check_parts(self.value_range)
        if isinstance(self.channels, tuple):
            check_bands(self.channels, "channels")
        elif self.channels is not None and self.channels < 1:
            raise ConfigError("channels", self.channels, "1 or more, or null")
        if not 0 <= self.max_nodata <= 1:
            raise ConfigError("max_nodata", self.max_nodata, "a share from 0 to 1")
        if self.unscale and self.value_range is None:
            raise ConfigError(
                "unscale", True, "false without value_range=[lowest,highest] of what scale and offset give"
            )

    @property
    def bands(self) -> Bands | None:
        """The channels that are chosen; None for all."""
        return self.channels if isinstance(self.channels, tuple) else None

    @property
    def channel_count(self) -> int | None:
        """How many channels are asked for; None: those of the files."""
        return len(self.channels) if isinstance(self.channels, tuple) else self.channels

    def changed(self, form: PixelFormat) -> PixelFormat:
        """A form with what these keys say in its place."""
        parts = self.with_parts(form)
        return replace(
            parts,
            channels=self.channel_count or form.channels,
            value_range=self.value_range or (None if self.window else form.value_range),
            window=None if self.value_range else parts.window,
            bands=self.bands or (form.bands if self.channels is None else None),
            nodata=form.nodata if self.nodata is None else self.nodata,
            max_nodata=self.max_nodata,
            unscale=self.unscale or form.unscale,
        )


@dataclass(frozen=True)
class StatedValues:
    """What image files state: the ``names`` of the channels that are taken of them, the stored value of pixels without one.

    ``bits``: the most that a value has.
    """

    names: tuple[str, ...] = ()
    nodata: float | None = None
    bits: int = 8

    @classmethod
    def of(cls, images: ImageSet, form: PixelFormat) -> StatedValues:
        """By the first ``NAMED_SAMPLE`` images that can be opened; nothing of what they don't agree on."""
        names, nodata, bits = set(), set(), 8
        for number in range(min(NAMED_SAMPLE, len(images))):
            try:
                found = opened(images, number, form)
            except DataError:
                continue
            bits = max(bits, found.bits)
            names.add(_chosen_names(found.channel_names, form))
            nodata.add(None if found.nodata is None or math.isnan(found.nodata) else found.nodata)
        return cls(names.pop() if len(names) == 1 else (), nodata.pop() if len(nodata) == 1 else None, bits)

    def stated_in(self, form: PixelFormat) -> PixelFormat:
        """The form with channels by name, where files name them, and their value of pixels without one."""
        return replace(form, bands=self.names or form.bands, nodata=self.nodata if form.nodata is None else form.nodata)


def _chosen_names(names: tuple[str, ...], form: PixelFormat) -> tuple[str, ...]:
    if form.bands is None:
        known = form.channels in (None, len(names)) and len(set(names)) == len(names)
        return names if known else ()
    chosen = [band if isinstance(band, str) else names[band - 1] if band <= len(names) else "" for band in form.bands]
    return tuple(chosen) if all(chosen) else ()
