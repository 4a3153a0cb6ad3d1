"""TIFF files of what PIL doesn't read in full: any channels, floats, and the tags of GeoTIFF, OME-TIFF and ImageJ."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import DataError
from ..image_orientation import upright_pixels
from ..pixel_format import LazyImage, Picture, PixelFormat, composited, missing_values, scaled_values
from ..pixel_limit import check_value_count

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

INSTALLED = importlib.util.find_spec("tifffile") is not None
PAGES_SHOWN = 15
LONGEST_NAME = 40
"""Letters of a page's description up to which it is taken for its name."""
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_PLACES = {"YX": None, "YXS": 2, "YXC": 2, "SYX": 0, "CYX": 0}
"""Which of a series' axes are the channels, by what tifffile calls them."""
_DESCRIPTION, _ORIENTATION, _PAGE_NAME, _GDAL_METADATA, _GDAL_NODATA = 270, 274, 285, 42112, 42113
"""Numbers of tags; GDAL's as in its GeoTIFF driver's documentation."""


def exceeds_pil(file: Image.Image, form: PixelFormat) -> bool:
    """Whether PIL would drop channels or bits of this TIFF file."""
    tags = getattr(file, "tag_v2", {})
    samples = tags.get(277, 1)
    bits = tags.get(258, (1,))
    floats_or_signed = set(np.atleast_1d(tags.get(339, (1,))).tolist()) != {1}
    deep = int(np.max(bits)) > 8
    alpha = bool(set(np.atleast_1d(tags.get(338, ())).tolist()) & {1, 2})
    more = samples > 4 or (samples in (2, 4) and tags.get(262) != 5 and (form.keeps(samples) or not alpha))
    pages = form.channels not in (None, 1, 3, samples) or form.bands is not None  # they may be channels
    stated = _GDAL_NODATA in tags or 'role="description"' in str(tags.get(_GDAL_METADATA, ""))
    described = str(tags.get(_DESCRIPTION, ""))
    stated = stated or described.startswith("ImageJ=") or "<OME" in described  # which say what pages are
    several = INSTALLED and deep and getattr(file, "n_frames", 1) > 1  # which may differ in size
    return more or pages or floats_or_signed or stated or several or (deep and samples > 1)


@dataclass(frozen=True)
class TiffTags:
    """What a file's tags say of its values: names of channels, the value of pixels without one, scale and offset a channel."""

    names: tuple[str, ...] = ()
    nodata: float | None = None
    scale: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    @classmethod
    def of(cls, file: TiffFile, channels: int) -> TiffTags:
        """The tags of an open file with so many channels; what can't be understood counts as not stated."""
        page = file.pages[0]
        items = _gdal_items(page.tags.valueof(_GDAL_METADATA))
        names = _gdal_names(items, channels) or _ome_names(file) or _imagej_names(file)
        scale, offset = (_by_channel(items, role, channels, usual) for role, usual in (("scale", 1.0), ("offset", 0.0)))
        scaled = any(value != 1 for value in scale) or any(value != 0 for value in offset)
        return cls(
            names if len(names) == channels else (),
            _number(page.tags.valueof(_GDAL_NODATA)),
            scale if scaled else (),
            offset if scaled else (),
        )

    def unscaled(self, values: Picture, form: PixelFormat) -> NDArray[np.float32]:
        """Stored values (H, W, C) with scale and offset applied; NaN where a pixel has no value."""
        result: NDArray[np.float32] = (values * np.array(self.scale) + np.array(self.offset)).astype(np.float32)
        missing = missing_values(values, (form.nodata, self.nodata))
        if missing is not None:
            result[missing] = np.nan
        return result


def open_tiff(content: bytes, form: PixelFormat) -> LazyImage:
    """Open a TIFF file with tifffile, before its pixels are decoded.

    Its channels are one axis of its first series, or its pages where there are as many as are asked for; of other pages the
    first is taken, which its notes say. Raises DataError without tifffile, for other axes, and as ``scaled_values``.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError("its channels or floats need tifffile (pip install 'maelift[tiff]')") from error

    file = tifffile.TiffFile(io.BytesIO(content))
    check_page_sizes(file)
    series = file.series[0]
    shape, axes, page = series.shape, series.axes, file.pages[0]
    base = {0: 1, 1: 1, 2: 3}.get(int(page.photometric), 0)  # channels of gray, and of colour
    kinds = [int(kind) for kind in getattr(page, "extrasamples", ())]
    orientation = int(page.tags.valueof(_ORIENTATION) or 1)
    first_only = axes not in _PLACES
    if first_only and (len(axes) != 3 or axes[1:] != "YX"):
        raise DataError(
            f"a TIFF with axes {axes} of {'×'.join(map(str, shape))}; expected height, width and channels: save each plane as "
            "a file"
        )
    place = None if first_only else _PLACES[axes]
    if first_only and (form.bands is not None or shape[0] == form.channels):  # channels that were saved as pages
        place, first_only = 0, False
    channels = 1 if place is None else shape[place]
    tags = TiffTags.of(file, channels)
    opacity = next((base + number for number, kind in enumerate(kinds) if base and kind in (1, 2)), None)
    check_value_count(math.prod(shape))
    size = shape[1:] if first_only or place == 0 else shape[:2]
    bits = min(32, 8 * series.dtype.itemsize)
    decoded_notes: list[str] = []

    def load(reduction: int) -> Picture:
        decoded_notes.clear()
        values = _channels_last(_stored(file, first_only=first_only), place)
        if opacity is not None and not form.keeps(values.shape[2]):
            colour, alpha = values[:, :, :base], values[:, :, opacity]
            if values.dtype in (np.uint8, np.uint16):
                premultiplied = kinds[opacity - base] == 1
                values = composited(colour, alpha, form, decoded_notes, premultiplied=premultiplied)
            else:
                decoded_notes.append("transparency: dropped")
                values = colour
        if form.unscale and len(tags.scale) == values.shape[2]:
            return upright_pixels(scaled_values(tags.unscaled(values, form), form), orientation)
        return upright_pixels(scaled_values(values, form, tags.nodata), orientation)

    turned = orientation in (5, 6, 7, 8)
    height, width = (int(side) for side in (size[::-1] if turned else size))
    notes = tuple(_notes(bits, first_only, tags, form))
    return LazyImage((height, width), bits, notes, load, decoded_notes, orientation != 1, tags.names, tags.nodata)


def single_pages(file: TiffFile) -> list[tuple[str, TiffPage]]:
    """The pages of a file and what they are called; without smaller copies (overviews, thumbnails) and masks."""
    pages = [cast("TiffPage", page) for page in file.pages]
    kept = [page for page in pages if not (page.keyframe.is_reduced or page.keyframe.is_mask)]
    return [(_page_name(page) or f"page {number}", page) for number, page in enumerate(kept, 1)]


def check_page_sizes(file: TiffFile) -> None:
    """Raise DataError for a file whose pages have different sizes, as bands of several resolutions do, with each size."""
    if len(file.series) == 1:
        return
    sizes = [(name, f"{page.keyframe.imagewidth}×{page.keyframe.imagelength}") for name, page in single_pages(file)]
    if len({size for _, size in sizes}) > 1:
        listed = ", ".join(f"{name} {size}" for name, size in sizes[:PAGES_SHOWN])
        more = f" and {len(sizes) - PAGES_SHOWN} more" if len(sizes) > PAGES_SHOWN else ""
        raise DataError(
            f"pages of different sizes: {listed}{more}; maelift data stack resample=bilinear makes one image of them"
        )


def _page_name(page: TiffPage) -> str:
    """What a page is called, by its tags of name and description; empty where they hold none, or something else."""
    items = _gdal_items(page.tags.valueof(_GDAL_METADATA))
    named = (*_gdal_names(items, 1), page.tags.valueof(_PAGE_NAME), page.tags.valueof(_DESCRIPTION))
    plain = [name.strip() for name in named if isinstance(name, str) and not set(name) & set("{}<>=")]
    return next((name for name in plain if name and len(name) <= LONGEST_NAME and name.isprintable()), "")


def _stored(file: TiffFile, *, first_only: bool) -> NDArray[Any]:
    """The stored values of an open file's first series, or of its first page."""
    try:
        return np.asarray((file.pages[0] if first_only else file.series[0]).asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        kind = getattr(file.pages[0].compression, "name", "its")
        raise DataError(f"{kind} compression needs imagecodecs (pip install 'maelift[tiff]')") from error


def _channels_last(values: NDArray[Any], place: int | None) -> NDArray[Any]:
    """Values (H, W), (H, W, C) or (C, H, W), by the ``place`` of the channels, as (H, W, C)."""
    if values.ndim == 2:
        return values[:, :, None]
    return np.moveaxis(values, 0, 2) if place == 0 else values


def _notes(bits: int, first_only: bool, tags: TiffTags, form: PixelFormat) -> list[str]:
    notes = ["several pages: the first is taken"] if first_only else []
    notes += [f"{bits} bits"] if bits > 8 else []
    if tags.scale and not form.unscale:
        notes.append("scale and offset in its tags: not applied (unscale=true applies them)")
    return notes


def _gdal_items(text: object) -> list[tuple[Mapping[str, str], str]]:
    """The items of GDAL's metadata, an XML text: their attributes and contents."""
    try:
        root = ElementTree.fromstring(str(text)) if text else None
    except ElementTree.ParseError:
        return []
    return [] if root is None else [(item.attrib, (item.text or "").strip()) for item in root.iter("Item")]


def _gdal_names(items: list[tuple[Mapping[str, str], str]], channels: int) -> tuple[str, ...]:
    """The names of all channels, of which GDAL calls each a description."""
    named = {
        own["sample"]: text for own, text in items if own.get("role") == "description" and own.get("sample") and text
    }
    return tuple(named.get(str(sample), "") for sample in range(channels)) if len(named) == channels else ()


def _by_channel(
    items: list[tuple[Mapping[str, str], str]], role: str, channels: int, usual: float
) -> tuple[float, ...]:
    stated = {own.get("sample"): _number(text) for own, text in items if own.get("role") == role}
    found = [stated.get(str(sample)) for sample in range(channels)]
    return tuple(usual if value is None else value for value in found)


def _ome_names(file: TiffFile) -> tuple[str, ...]:
    """The names of an OME-TIFF's channels."""
    text = file.ome_metadata
    try:
        root = ElementTree.fromstring(text) if text else None
    except ElementTree.ParseError:
        return ()
    if root is None:
        return ()
    pixels = next((element for element in root.iter() if element.tag.endswith("}Pixels")), None)
    channels = [] if pixels is None else [child for child in pixels if child.tag.endswith("}Channel")]
    names = tuple(channel.get("Name", "") for channel in channels)
    return names if all(names) else ()


def _imagej_names(file: TiffFile) -> tuple[str, ...]:
    """The labels of an ImageJ file's slices."""
    labels = (file.imagej_metadata or {}).get("Labels", ())
    return tuple(str(label) for label in labels) if isinstance(labels, (list, tuple)) and all(labels) else ()


def _number(text: object) -> float | None:
    """The number that a text states."""
    try:
        return float(str(text).strip().rstrip("\0")) if text not in (None, "") else None
    except ValueError:
        return None
