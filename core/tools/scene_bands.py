"""The bands of multispectral fashion scenes, derived from pixels and the order of items, as GeoTIFF tiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ..data.geotiff import write_geotiff

NAMES = ("light", "slope", "depth", "infrared", "thermal")
"""The bands: the scene itself; how steep it is; which item lies above which; another sensor's curve, blurred and with its own
noise; heat, which spreads beyond the items."""
NODATA = 0
"""The stored value of pixels without one; all others are 1 or more."""
STRIPS = 0.25
"""Share of scenes of which a strip was not recorded."""
NOISE = {"light": 0.005, "slope": 0.005, "depth": 0.02, "infrared": 0.04, "thermal": 0.03}
"""Deviation of each band's noise, as a share of its range."""


def bands_of(
    pixels: NDArray[np.uint8], owner: NDArray[np.int64], count: int, bits: int, generator: np.random.Generator
) -> NDArray[np.uint16]:
    """The first ``count`` bands (H, W, count) of a scene (H, W): values 1 to 255 or 65,535, ``NODATA`` where there is none.

    ``owner`` (H, W): the place of each pixel's item, in the order in which they were laid down, or -1.
    """
    light = pixels.astype(np.float64) / 255
    down, right = np.gradient(light)
    picture = Image.fromarray(pixels)
    soft, wide = (
        np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255 for radius in (1, 4)
    )
    items = max(1, int(owner.max()) + 1)
    values = {
        "light": light,
        "slope": np.clip(2 * np.hypot(down, right), 0, 1),
        "depth": (owner + 1) / (items + 1),
        "infrared": np.sqrt(soft),
        "thermal": np.clip(1.5 * wide, 0, 1),
    }
    highest = 2**bits - 1
    found = np.empty((*pixels.shape, count), dtype=np.uint16)
    for number, name in enumerate(NAMES[:count]):
        noisy = values[name] + NOISE[name] * generator.standard_normal(pixels.shape)
        found[:, :, number] = 1 + np.rint(np.clip(noisy, 0, 1) * (highest - 1))
    if generator.random() < STRIPS:
        found[_strip(pixels.shape, generator)] = NODATA
    return found


def _strip(shape: tuple[int, ...], generator: np.random.Generator) -> tuple[slice, ...]:
    """Some rows or columns at one of the four edges."""
    axis, far = int(generator.integers(2)), bool(generator.integers(2))
    width = int(generator.integers(2, shape[axis] // 6 + 1))
    part = slice(shape[axis] - width, None) if far else slice(0, width)
    return (part, slice(None)) if axis == 0 else (slice(None), part)


def write_bands(path: Path, bands: NDArray[np.uint16], bits: int) -> None:
    """Write bands (H, W, C) as a GeoTIFF file with their names and the value of pixels without one."""
    write_geotiff(path, bands if bits == 16 else bands.astype(np.uint8), NAMES[: bands.shape[2]], NODATA)
