"""GeoTIFF: where an image lies on the map, by its tags, and files of named bands written with such tags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

if TYPE_CHECKING:
    from tifffile import TiffPage

_SCALE, _TIEPOINT, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_TAGS = {_SCALE: 12, _TIEPOINT: 12, _MATRIX: 12, _KEYS: 3, 34736: 12, 34737: 2}
"""Numbers of GeoTIFF's tags, with the type that TIFF stores each in (OGC GeoTIFF 1.1, Annex B)."""
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
"""Numbers of geo keys; a raster type of 2: coordinates are those of pixels' centres."""


@dataclass(frozen=True)
class Georeference:
    """``crs``: such as "EPSG:32632", "" where the file doesn't state it.

    ``affine``: (a, b, c, d, e, f) of x = a column + b row + c and y = d column + e row + f, in map units, of the upper left
    corner of a pixel.
    """

    crs: str
    affine: tuple[float, float, float, float, float, float]

    @classmethod
    def of(cls, page: TiffPage) -> Georeference | None:
        """That of a page of a TIFF file, by its model's scale and tie point, or its matrix; None where it has none."""
        keys = _geo_keys(page.tags.valueof(_KEYS))
        code = keys.get(_PROJECTED) or keys.get(_GEOGRAPHIC)
        crs = "" if code in (None, 32767) else f"EPSG:{code}"  # 32767: defined by the user
        matrix, scale, tie = (_numbers(page.tags.valueof(tag)) for tag in (_MATRIX, _SCALE, _TIEPOINT))
        if len(matrix) == 16:
            a, b, c, d, e, f = (matrix[place] for place in (0, 1, 3, 4, 5, 7))
        elif len(scale) >= 2 and len(tie) >= 6:
            a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
            c, f = tie[3] - a * tie[0], tie[4] - e * tie[1]
        else:
            return None
        if keys.get(_RASTER_TYPE) == 2:
            c, f = c - (a + b) / 2, f - (d + e) / 2
        return cls(crs, (a, b, c, d, e, f))

    def at(self, column: float, row: float) -> tuple[float, float]:
        """The map coordinates (x, y) of a place in the image, in pixels from its upper left corner."""
        a, b, c, d, e, f = self.affine
        return a * column + b * row + c, d * column + e * row + f


def georeference(source: Any) -> tuple[Georeference, tuple[int, int]] | None:
    """Where the image of a TIFF file lies, a path or its bytes in memory, and its (height, width); None for what is no GeoTIFF.

    Raises DataError without tifffile.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError("the georeference of images needs tifffile (pip install 'maelift[tiff]').") from error
    try:
        with tifffile.TiffFile(source) as file:
            page = file.pages[0]
            found = Georeference.of(page)
            return None if found is None else (found, (int(page.imagelength), int(page.imagewidth)))
    except Exception:  # of a damaged file, tifffile raises anything
        return None


def moved_tags(page: TiffPage, column: int, row: int) -> list[Tag]:
    """The GeoTIFF tags of a page for a part of it that begins at a column and row, as tifffile writes them."""
    place = Georeference.of(page)
    if place is None:
        return []
    values = {tag: page.tags.valueof(tag) for tag in _TAGS}
    x, y = place.at(column, row)
    start = place.at(0, 0)
    if len(_numbers(values[_MATRIX])) == 16:
        matrix = list(_numbers(values[_MATRIX]))
        matrix[3], matrix[7] = matrix[3] + x - start[0], matrix[7] + y - start[1]
        values[_MATRIX] = tuple(matrix)
    else:
        tie = _numbers(values[_TIEPOINT])
        values[_TIEPOINT] = (*tie[:3], tie[3] + x - start[0], tie[4] + y - start[1], *tie[5:6])
    return [
        (tag, kind, 0 if kind == 2 else len(values[tag]), values[tag], True)
        for tag, kind in _TAGS.items()
        if values[tag] is not None
    ]


Tag = tuple[int, int, int, Any, bool]
"""A tag as tifffile writes it: number, type, count, value, once."""


def write_geotiff(
    path: Path,
    bands: NDArray[np.generic],
    names: Sequence[str],
    nodata: float | None = None,
    place: Sequence[Tag] = (),
    *,
    compression: str | None = None,
) -> None:
    """Write bands (H, W, C) as a TIFF file with GDAL's tags for their names and for pixels without a value.

    ``place``: the tags of ``moved_tags``. Raises DataError without tifffile.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DataError("files of several bands need tifffile (pip install 'maelift[tiff]').") from error
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{number}" role="description">{escape(name)}</Item>'
        for number, name in enumerate(names)
    )
    tags: list[Tag] = [(42112, 2, 0, f"<GDALMetadata>{items}</GDALMetadata>", True)]
    tags += [] if nodata is None else [(42113, 2, 0, f"{nodata:.17g}", True)]
    layout: dict[str, Any] = {"photometric": "minisblack", "metadata": None, "software": False}
    many = {"planarconfig": "contig"} if bands.shape[2] > 1 else {}
    values = bands if bands.shape[2] > 1 else bands[:, :, 0]
    tifffile.imwrite(path, values, extratags=[*tags, *place], compression=compression, **many, **layout)


def _geo_keys(directory: object) -> dict[int, int]:
    """The geo keys whose values stand in the directory itself."""
    numbers = [int(value) for value in directory] if isinstance(directory, (tuple, list)) else []
    rows = [numbers[place : place + 4] for place in range(4, len(numbers) - 3, 4)]
    return {key: value for key, location, _, value in rows if location == 0}


def _numbers(value: object) -> tuple[float, ...]:
    if not isinstance(value, (tuple, list)):
        return ()
    return tuple(float(number) for number in value)
