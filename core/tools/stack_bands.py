"""``maelift data stack``: bands in files of their own, or of different sizes, into GeoTIFF files of all bands."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..data.decode import open_picture
from ..data.file_index import list_folder
from ..data.geotiff import Georeference, Tag, moved_tags, write_geotiff
from ..data.pixel_format import PixelFormat, missing_values
from ..data.readers.tiff import TIFF_STARTS, TiffTags, single_pages
from ..data.transforms import Interpolation, resized_part
from ..data.unread import report
from ..dry_run import Plan
from ..errors import ConfigError, DataError
from ..files import atomic_path, open_regular, output_folder
from ..progress import progress_logger
from ..terminal import quoted
from ..training.run_dir import check_settings

BAND = r"(?:^|[_.\-/])(B(?:0[1-9]|1[0-2]|8A|[1-9])|VV|VH|HH|HV)(?:[_.\-]\d+m)?$"
"""What the names of Sentinel's and Landsat's files end with, but for the suffix: _B02_10m, _B8A, _SR_B4, _VV."""
INNER_FOLDERS = re.compile(r"(?:^|/)(?:GRANULE|IMG_DATA|R\d+m)(?=/)")
"""Folders of Sentinel-2's products that are the same in all of them."""
STORED = PixelFormat(value_range=(-1e15, 1e15))
SHOWN = 3

Band = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True)
class StackConfig:
    """Put bands that lie in files of their own, or in pages of different sizes, together into GeoTIFF files of all bands."""

    data: str
    """folder of scenes: Sentinel-2's .SAFE, a folder of files such as NAME_B02.tif for each scene, or TIFF files whose pages have
    different sizes"""
    out: str
    """folder for a GeoTIFF file of each scene, or of each tile; the same command goes on with an unfinished one"""
    bands: tuple[str, ...] | None = None
    """names of the bands, in the order that the files are to have; null: those of the first scene. Scenes without one of them are
    left out"""
    pattern: str = BAND
    """regular expression on paths without their suffix; its first group is the name of a band, what it matches is no part of the
    scene's. By default it knows the names of Sentinel and Landsat"""
    resample: Interpolation | None = None
    """how bands of fewer pixels, such as 20 and 60 m beside 10 m, are brought to the size of the largest; null: not at all"""
    size: int | None = None
    """pixels a side of the tiles that a scene is cut into; those at the right and lower edge are smaller; null: it isn't cut"""
    nodata: float | None = None
    """stored value of pixels without one, where files don't state it: 0 in Sentinel-2's; tiles without any value are left out"""

    def __post_init__(self) -> None:
        if self.bands is not None and (not self.bands or len(set(self.bands)) < len(self.bands)):
            raise ConfigError("bands", list(self.bands), "names of bands, each once")
        if self.size is not None and self.size < 2:
            raise ConfigError("size", self.size, "2 or more pixels, or null")
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError("pattern", self.pattern, "a regular expression", f"{error}.") from error
        if groups < 1:
            raise ConfigError("pattern", self.pattern, "a regular expression with a group around the name of the band")


@dataclass(frozen=True)
class StackResult:
    """What was written: how many files of how many scenes, of which bands; ``incomplete`` names scenes that lack a band."""

    folder: Path
    scenes: int
    files: int
    bands: tuple[str, ...]
    incomplete: tuple[str, ...]

    def summary(self) -> str:
        """The result in lines."""
        lines = [f"{self.files:,} files of {self.scenes:,} scenes in {self.folder}, bands {', '.join(self.bands)}"]
        if self.incomplete:
            few = ", ".join(self.incomplete[:SHOWN]) + (" …" if len(self.incomplete) > SHOWN else "")
            lines.append(f"{len(self.incomplete):,} scenes are left out, as they lack a band: {few}")
        lines.append(f"next: maelift data check {quoted(self.folder)} task=pretrain")
        return "\n".join(lines)


@dataclass(frozen=True)
class BandFile:
    """A band of a scene: its ``name``, the file and the number of the page that hold it, and its (height, width)."""

    name: str
    file: Path
    size: tuple[int, int]
    page: int | None = None

    def read(self, nodata: float | None) -> tuple[Band, int, float | None]:
        """Its stored values (H, W), NaN where there is none; the bits of a whole number, 32 of others; the value for none."""
        if self.page is not None:
            return _page_values(self.file, self.page, nodata)
        opened = open_picture(self.file, form=PixelFormat(value_range=STORED.value_range, nodata=nodata))
        values = opened.pixels()
        if values.shape[2] != 1:
            raise DataError(f"{self.file}: {values.shape[2]} channels; expected a file for each band, or other names")
        return values[:, :, 0].astype(np.float32), opened.bits, opened.nodata if nodata is None else nodata


Scene = Mapping[str, BandFile]


def stack_bands(config: StackConfig) -> StackResult:
    """Write the files that are missing in ``config.out``; each is written in full or not at all.

    Raises DataError where no bands are found, and for bands of one scene that differ in size without ``resample``, in
    proportions or in place; MaeliftError where the folder holds files of other settings.
    """
    scenes = find_scenes(config)
    names = config.bands or tuple(sorted(next(iter(scenes.values())), key=_band_order))
    incomplete = tuple(scene for scene, bands in scenes.items() if not set(names) <= bands.keys())
    complete = {
        scene: [bands[name] for name in names] for scene, bands in scenes.items() if scene not in set(incomplete)
    }
    if not complete:
        there = ", ".join(sorted(next(iter(scenes.values())), key=_band_order))
        raise DataError(f"data={config.data}: no scene has all of {', '.join(names)}; the first has {there}.")
    for scene, found in complete.items():
        _check_sizes(scene, found, config.resample)
    out = output_folder(config.out)
    check_settings(out, config, "stacked bands")
    progress, files = progress_logger("stacking bands"), 0
    for number, (scene, found) in enumerate(complete.items(), 1):
        files += _write_scene(out / scene, found, config)
        progress(number, len(complete))
    return StackResult(out, len(complete), files, names, incomplete)


def plan(config: StackConfig) -> Plan:
    """What ``stack_bands`` would write; writes nothing."""
    scenes = find_scenes(config)
    first = next(iter(scenes.values()))
    sizes = ", ".join(f"{band.name} {_size_text(band.size)}" for band in sorted(first.values(), key=_file_order))
    tiles = "a file each" if config.size is None else f"tiles of {config.size} px"
    return Plan((("scenes", f"{len(scenes):,} in {config.data}"), ("of the first", sizes), ("writes", tiles)))


def find_scenes(config: StackConfig) -> dict[str, Scene]:
    """The scenes of a folder by the name that each is to have, and their bands by name; raises DataError where there are none.

    Of a band in several sizes (Sentinel-2 has copies at 20 and 60 m) the largest is taken.
    """
    root, pattern = Path(config.data), re.compile(config.pattern)
    if not root.is_dir():
        raise DataError(f"data={root}: no such folder. Expected one of scenes.")
    scenes: dict[str, dict[str, BandFile]] = defaultdict(dict)
    others = []
    for name in list_folder(root).names:
        path = PurePosixPath(name)
        match = pattern.search(str(path.with_suffix("")))
        if match is None or not match[1]:
            pages = _pages_of(root / name)
            scenes[str(path.with_suffix(""))].update(pages)
            others += [] if pages else [name]
            continue
        bands = scenes[_scene_name(str(path.with_suffix("")), match)]
        found = BandFile(match[1], root / name, open_picture(root / name).size)
        before = bands.setdefault(match[1], found)
        if before is not found and before.size == found.size:
            raise DataError(
                f"{before.file} and {found.file}: two files for band {match[1]} of one scene; expected one."
            )
        bands[match[1]] = max(before, found, key=lambda band: band.size)
    scenes = defaultdict(dict, {scene: bands for scene, bands in scenes.items() if bands})
    if not scenes:
        raise DataError(
            f"data={root}: no file is named as a band ({', '.join(others[:SHOWN])}), and none has pages of different sizes. "
            "Expected names such as SCENE_B02.jp2; pattern='_(red|nir)$' says how bands are named else."
        )
    if others:
        report(f"{root}: {len(others):,} files are no bands and aren't used, such as {others[0]}")
    return dict(scenes)


def _scene_name(stem: str, match: re.Match[str]) -> str:
    """The path that a scene's file is to have: that of its bands without their names, and without folders of no meaning."""
    path = PurePosixPath(INNER_FOLDERS.sub("", stem[: match.start()] + stem[match.end() :]).lstrip("/"))
    parts = list(path.parts)
    if len(parts) > 1 and parts[-1] == parts[-2]:
        parts.pop()
    return "/".join(parts) or "scene"


def _pages_of(path: Path) -> dict[str, BandFile]:
    """The bands of a TIFF file whose pages are bands; empty for other files, those of bands of one size among them."""
    if not _is_tiff(path):
        return {}
    try:
        import tifffile

        with tifffile.TiffFile(path) as file:
            pages = single_pages(file)
            sizes = [(int(page.keyframe.imagelength), int(page.keyframe.imagewidth)) for _, page in pages]
            numbers = [int(page.index) for _, page in pages]
    except Exception:  # not installed, or of a damaged file, of which tifffile raises anything
        return {}
    if len(set(sizes)) < 2:
        return {}
    rows = zip(pages, sizes, numbers, strict=True)
    return {name: BandFile(name, path, size, number) for (name, _), size, number in rows}


def _is_tiff(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(4).startswith(TIFF_STARTS)


def _page_values(path: Path, page: int, nodata: float | None) -> tuple[Band, int, float | None]:
    """As ``BandFile.read``, of a page of a TIFF file."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        stored = np.asarray(file.pages[page].asarray())
        stated = TiffTags.of(file, 1).nodata if nodata is None else nodata
    if stored.ndim != 2:
        raise DataError(f"{path}: page {page + 1} of shape {stored.shape}; expected height and width")
    values = stored.astype(np.float32)
    missing = missing_values(stored, (stated,))
    if missing is not None:
        values[missing] = np.nan
    return values, 8 * stored.dtype.itemsize if stored.dtype.kind in "bui" else 32, stated


def _check_sizes(scene: str, bands: Sequence[BandFile], resample: str | None) -> None:
    """Raise DataError for bands that differ in size while nothing says how they are resampled, or in proportions."""
    sizes = {band.size for band in bands}
    if len(sizes) == 1:
        return
    listed = ", ".join(f"{band.name} {_size_text(band.size)}" for band in bands)
    if resample is None:
        raise DataError(
            f"{scene}: bands of different sizes: {listed}. Give resample=bilinear (or nearest, bicubic), which brings all to the "
            "largest, or bands=[...] of one size."
        )
    height, width = max(sizes)
    if any(abs(height * other[1] - width * other[0]) > max(height, width, *other) for other in sizes):
        raise DataError(f"{scene}: bands of different proportions: {listed}. Expected bands of one area.")


def _write_scene(path: Path, bands: Sequence[BandFile], config: StackConfig) -> int:
    """Write the files of a scene that aren't there yet; how many there are then."""
    size = max(band.size for band in bands)
    tiles = list(_tiles(size, config.size))
    names = [_tile_file(path, row, column, config.size, single=len(tiles) == 1) for row, column, _, _ in tiles]
    if not all(name.exists() for name in names):
        values, nodata = _stacked(bands, size, config)
        for name, (row, column, height, width) in zip(names, tiles, strict=True):
            tile = values[row : row + height, column : column + width]
            if not name.exists() and _has_values(tile, nodata):
                place = _place(max(bands, key=lambda band: band.size), column, row)
                name.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(name) as temporary:
                    write_geotiff(temporary, tile, [band.name for band in bands], nodata, place, compression="zlib")
    return sum(name.exists() for name in names)


def _stacked(
    bands: Sequence[BandFile], size: tuple[int, int], config: StackConfig
) -> tuple[NDArray[np.generic], float | None]:
    """The bands (H, W, C) of one size, uint8, uint16 or float32, and the value of pixels without one; None where all have one."""
    _check_places(bands)
    found = [band.read(config.nodata) for band in bands]
    stated = [nodata for _, _, nodata in found if nodata is not None and not np.isnan(nodata)]
    bits = max(bits if np.fmin.reduce(values, axis=None) >= 0 else 32 for values, bits, _ in found)
    kind: np.dtype[Any] = np.dtype({8: np.uint8, 16: np.uint16}.get(bits, np.float32))
    nodata = stated[0] if stated else None
    result = np.empty((*size, len(bands)), dtype=kind)
    for number, (values, _, _) in enumerate(found):
        plane: NDArray[Any] = values
        if values.shape != size:
            box = (0.0, 0.0, float(values.shape[1]), float(values.shape[0]))
            plane = resized_part(values[:, :, None], box, size, config.resample or "nearest")[:, :, 0]
        if kind.kind == "u":
            plane = _whole_numbers(plane, nodata, np.iinfo(kind).max)
        elif nodata is not None:
            plane = np.where(np.isnan(plane), np.float32(nodata), plane)
        result[:, :, number] = plane
    return result, nodata


def _whole_numbers(plane: Band, nodata: float | None, most: int) -> Band:
    """Whole numbers up to ``most``; what resampling has made equal to the value for none is moved by one."""
    rounded = np.rint(plane).clip(0, most)
    if nodata is None:
        return rounded
    known = np.where(rounded == nodata, rounded + (1 if nodata < most else -1), rounded)
    return np.where(np.isnan(plane), np.float32(nodata), known)


def _check_places(bands: Sequence[BandFile]) -> None:
    """Raise DataError for bands that lie in different places on the map, by more than a pixel."""
    placed = [(band, place) for band in bands if (place := _georeference(band)) is not None]
    for band, place in placed[1:]:
        first, start = placed[0]
        pixel = max(abs(value) for one in (place, start) for value in one.affine[:2])
        ends = [(one.at(0, 0), one.at(own.size[1], own.size[0])) for own, one in ((first, start), (band, place))]
        apart = np.abs(np.array(ends[0]) - np.array(ends[1])).max()
        if place.crs != start.crs or apart > pixel:
            raise DataError(
                f"{first.file} and {band.file}: bands that lie in different places (up to {apart:g} map units apart, "
                f"{start.crs or 'unknown'} and {place.crs or 'unknown'}). Expected bands of one area."
            )


def _georeference(band: BandFile) -> Georeference | None:
    """Where a band lies, where its file is a TIFF that says it."""
    return _on_page(band, Georeference.of)


def _place(band: BandFile, column: int, row: int) -> Sequence[Tag]:
    """The tags that say where a part of a band lies; none where its file doesn't."""
    return _on_page(band, lambda page: moved_tags(page, column, row)) or ()


def _on_page(band: BandFile, look: Callable[[Any], T]) -> T | None:
    """What is seen on a band's page; None where its file is no TIFF."""
    if not _is_tiff(band.file):
        return None
    import tifffile

    with tifffile.TiffFile(band.file) as file:
        return look(file.pages[band.page or 0])


def _tiles(size: tuple[int, int], side: int | None) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of the tiles of an image of ``size`` (height, width)."""
    height, width = size
    step = side or max(size)
    for row in range(0, height, step):
        for column in range(0, width, step):
            yield row, column, min(step, height - row), min(step, width - column)


def _tile_file(path: Path, row: int, column: int, side: int | None, *, single: bool) -> Path:
    if single or side is None:
        return path.with_name(f"{path.name}.tif")
    return path.with_name(f"{path.name}_r{row // side:03d}_c{column // side:03d}.tif")


def _has_values(tile: NDArray[Any], nodata: float | None) -> bool:
    missing = missing_values(tile, (nodata,))
    return not (np.isnan(tile).all() if missing is None else missing.all())


def _band_order(name: str) -> str:
    """Bands in the order of their numbers: B8, B8A, B9, B10."""
    return re.sub(r"\d+", lambda number: number[0].zfill(4), name)


def _file_order(band: BandFile) -> str:
    return _band_order(band.name)


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"
