"""Preprocessing of images for an encoder: channels, value range, mean and deviation, interpolation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..data.pixel_format import DEEP, DROPPED, Bands, PixelFormat, background_colour, check_bands
from ..data.slices import Slices
from ..errors import ConfigError, MaeliftError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
EIGHT_BITS = (0.0, 255.0)
"""The usual range of values: that of 8 bits, to which 16 bits are brought too."""
INTERPOLATIONS = ("bicubic", "bilinear", "nearest")
"""Interpolations for resizing images, by the names of Pillow and torch."""
SMALLEST_STD, LARGEST_STD = 1e-6, 1e3
"""Deviations, on the scale where stored values run from 0 to 1: a sixteenth of a step of 16 bits and up."""
LARGEST_VALUE = 1e15
"""Largest stored value, and largest mean on the scale from 0 to 1."""


@dataclass(frozen=True)
class Preprocessing:
    """The input of an encoder: stored values are scaled from ``value_range`` to [0, 1], then normalised.

    ``mean`` and ``std`` are per channel, on the [0, 1] scale, in the order of ``channel_names``. ``background``: the colour
    that transparent pixels are composited on (``background_colour``); None in older files: transparency was dropped. ``bands``:
    which channels of files these are, by number from 1 or by name; None: all. ``nodata``: the stored value of pixels without
    one, besides NaN and what files state; ``unscale``: the scale and offset that files state are applied.
    ``window``, ``frame``, ``slice_axis``, ``slice_step`` and ``slice_content`` are the keys of that name.
    """

    channel_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    value_range: tuple[float, float] = EIGHT_BITS
    bit_depth: int = 8
    interpolation: str = "bicubic"
    background: str | None = None
    bands: Bands | None = None
    nodata: float | None = None
    unscale: bool = False
    window: tuple[float, float] | None = None
    frame: int | Literal["all"] | None = None
    slice_axis: int | None = None
    slice_step: int = 1
    slice_content: float = 0.0

    def __post_init__(self) -> None:
        if not len(self.channel_names) == len(self.mean) == len(self.std) > 0:
            raise MaeliftError(
                f"preprocessing names {len(self.channel_names)} channels, but has {len(self.mean)} means and "
                f"{len(self.std)} standard deviations: expected one of each a channel."
            )
        if not all(SMALLEST_STD <= std <= LARGEST_STD for std in self.std):
            raise ConfigError("std", list(self.std), f"numbers from {SMALLEST_STD:g} to {LARGEST_STD:g}")
        if not all(abs(mean) <= LARGEST_VALUE for mean in self.mean):
            raise ConfigError("mean", list(self.mean), "finite numbers, on the scale from 0 to 1 of the stored values")
        low, high = self.value_range
        if not -LARGEST_VALUE <= low < high <= LARGEST_VALUE:
            raise ConfigError("value_range", list(self.value_range), "[lowest,highest], the lowest first")
        if not 1 <= self.bit_depth <= 64:
            raise ConfigError("bit_depth", self.bit_depth, "a whole number from 1 to 64")
        if self.interpolation not in INTERPOLATIONS:
            raise ConfigError("interpolation", self.interpolation, f"one of {', '.join(INTERPOLATIONS)}")
        if self.background is not None:
            background_colour(self.background)
        if self.bands is not None:
            check_bands(self.bands)
            if len(self.bands) != len(self.mean):
                raise ConfigError("bands", list(self.bands), f"one for each of {len(self.mean)} channels")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON has them; those that say how files are read only where they are in use."""
        content = asdict(self)
        unused = reading_fields(PixelFormat())
        return {key: value for key, value in content.items() if key not in unused or value != unused[key]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing from the JSON of its ``dataclasses.asdict``; raises TypeError for other content."""
        fields: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in content.items()}
        return cls(**fields)

    @classmethod
    def default(cls, channels: int) -> Preprocessing:
        """ImageNet's statistics for three channels (the paper's); mean and deviation of 0.5 for any other count."""
        if channels == 3:
            return cls(("red", "green", "blue"), IMAGENET_MEAN, IMAGENET_STD, background="white")
        return cls(channel_names(channels), (0.5,) * channels, (0.5,) * channels, background="white")

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """The mean of each channel in stored values, those of ``value_range``."""
        low, high = self.value_range
        return tuple(low + (high - low) * mean for mean in self.mean)

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """The standard deviation of each channel in stored values."""
        low, high = self.value_range
        return tuple((high - low) * std for std in self.std)

    @property
    def reading(self) -> PixelFormat:
        """How image files are read for this encoder: gray or colour or its own channels, its range of values and background."""
        channels = None if len(self.mean) in (1, 3) else len(self.mean)
        value_range = None if self.value_range == EIGHT_BITS else self.value_range
        return PixelFormat(
            channels,
            value_range,
            background_colour(self.background or DROPPED),
            plain=True,
            bands=self.bands,
            nodata=self.nodata,
            unscale=self.unscale,
            window=self.window,
            frame=self.frame if isinstance(self.frame, int) else None,
            slices=Slices(self.slice_axis, self.slice_step, self.slice_content, self.frame == "all"),
        )

    @property
    def may_have_gaps(self) -> bool:
        """Whether there may be pixels without a value: of floats, of values as stored, or of files that mark them."""
        return self.nodata is not None or self.bit_depth > 16 or self.value_range != EIGHT_BITS

    @property
    def file_scale(self) -> float:
        """How many steps of an image file make one of ``value_range``: 257 where 16 bits are brought to 0 to 255, else 1."""
        deep = self.bit_depth == 16 and self.value_range == EIGHT_BITS and self.window is None
        return 1 / float(DEEP) if deep else 1.0

    @property
    def nodata_as_read(self) -> float | None:
        """The value on the scale of ``value_range`` of pixels without one; None where there is none, as after a window."""
        if self.nodata is None or self.window is not None or self.unscale:
            return None
        return self.nodata / self.file_scale

    def normalize(self, pixels: Tensor) -> Tensor:
        """Stored pixel values (B, C, H, W), any dtype, in ``value_range``, to the encoder's float32 input.

        NaN, a pixel without a value, becomes 0: the mean of its channel.
        """
        import torch  # here, so that commands which only read how images are prepared don't wait for it

        low, high = self.value_range
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        scaled = pixels.to(torch.float32, copy=True)  # changed in place: large batches are bound by memory
        normalised = scaled.sub_(low + (high - low) * mean).div_((high - low) * std)
        return (
            normalised.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
            if pixels.is_floating_point()
            else normalised
        )

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of ``normalize``: float32 (B, C, H, W) in ``value_range``, not clipped."""
        import torch

        low, high = self.value_range
        mean = torch.tensor(self.mean, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(-1, 1, 1)
        return images.float() * ((high - low) * std) + (low + (high - low) * mean)


def reading_fields(form: PixelFormat) -> dict[str, Any]:
    """The fields of a preprocessing that say how files are read, by a form; besides value range and background."""
    return {
        "bands": form.bands,
        "nodata": form.nodata,
        "unscale": form.unscale,
        "window": form.window,
        "frame": "all" if form.slices.frames else form.frame,
        "slice_axis": form.slices.axis,
        "slice_step": form.slices.step,
        "slice_content": form.slices.content,
    }


def known_pixels(pixels: Tensor) -> Tensor | None:
    """Which stored values (B, C, H, W) are there, bool of the same shape; None where all are."""
    if not pixels.is_floating_point():
        return None
    known = ~pixels.isnan()
    return None if bool(known.all()) else known


def band_names(bands: Bands | None) -> tuple[str, ...]:
    """The names of channels that were chosen by name or number; none where all were taken."""
    return tuple(band if isinstance(band, str) else f"band{band}" for band in bands or ())


def channel_names(channels: int) -> tuple[str, ...]:
    """The names of the channels of grayscale, colour and other images."""
    known = {1: ("gray",), 3: ("red", "green", "blue")}
    return known.get(channels, tuple(f"channel{index}" for index in range(channels)))
