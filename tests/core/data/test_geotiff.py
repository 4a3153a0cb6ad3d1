"""Images that lie in one square of the map stay in one split; where they lie is what GeoTIFF's tags say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from maelift.core.data.classification_reader import single_label_parts
from maelift.core.data.geotiff import Georeference, georeference, moved_tags
from maelift.core.data.groups import groups_of, possible_groups
from maelift.core.data.missing_splits import draw_missing_splits
from maelift.core.data.readers.folder import FolderImages
from maelift.core.errors import DataError

UTM_32N = 32632


def geo_tags(x: float, y: float, pixel: float = 10.0, crs: int = UTM_32N, *, centres: bool = False) -> list[Any]:
    """GeoTIFF's tags of an image whose upper left corner lies at (x, y), as rasterio and GDAL write them."""
    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 2 if centres else 1, 3072, 0, 1, crs)
    half = pixel / 2 if centres else 0
    return [
        (33550, 12, 3, (pixel, pixel, 0.0), True),
        (33922, 12, 6, (0.0, 0.0, 0.0, x + half, y - half, 0.0), True),
        (34735, 3, len(keys), keys, True),
    ]


def write(path: Path, tags: list[Any], size: tuple[int, int] = (8, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(len(str(path))).integers(0, 4000, (*size, 5)).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", planarconfig="contig", metadata=None, extratags=tags)
    return path


def test_tags_say_where_an_image_lies(tmp_path: Path) -> None:
    for centres in (False, True):
        path = write(tmp_path / f"{centres}.tif", geo_tags(300_000, 4_900_020, centres=centres))
        found = georeference(path)
        assert found == (Georeference("EPSG:32632", (10.0, 0.0, 300_000.0, 0.0, -10.0, 4_900_020.0)), (8, 12))
        assert found[0].at(12, 8) == (300_120, 4_899_940)
        assert str(tifffile.TiffFile(path).geotiff_metadata["ProjectedCSTypeGeoKey"]).endswith("32632")
    turned = math.radians(30)
    cos, sin = 10 * math.cos(turned), 10 * math.sin(turned)
    matrix = (cos, sin, 0, 5000.0, sin, -cos, 0, 7000.0, 0, 0, 0, 0, 0, 0, 0, 1)
    rotated = georeference(write(tmp_path / "turned.tif", [(34264, 12, 16, matrix, True)]))
    assert rotated is not None and rotated[0].crs == "" and rotated[0].at(0, 0) == (5000, 7000)
    assert rotated[0].at(1, 0) == pytest.approx((5000 + cos, 7000 + sin))
    assert georeference(write(tmp_path / "plain.tif", [])) is None
    (tmp_path / "text.tif").write_text("no image")
    assert georeference(tmp_path / "text.tif") is None


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.integers(0, 500), st.integers(0, 500), st.booleans())
def test_a_part_of_an_image_lies_where_its_pixels_lay(
    tmp_path_factory: pytest.TempPathFactory, x: float, y: float, column: int, row: int, centres: bool
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    full = write(folder / "full.tif", geo_tags(x, y, 20, centres=centres))
    with tifffile.TiffFile(full) as file:
        part = write(folder / "part.tif", moved_tags(file.pages[0], column, row))
    before, after = georeference(full), georeference(part)
    assert before is not None and after is not None and after[0].crs == "EPSG:32632"
    assert after[0].at(0, 0) == pytest.approx(before[0].at(column, row), abs=1e-6)
    assert after[0].at(3, 5) == pytest.approx(before[0].at(column + 3, row + 5), abs=1e-6)


def test_images_in_one_square_of_the_map_stay_in_one_split(tmp_path: Path) -> None:
    squares: dict[str, str] = {}
    generator = np.random.default_rng(0)
    for number in range(60):
        column, row = int(generator.integers(4)), int(generator.integers(5))
        x, y = 600_000 + 1000 * column + generator.uniform(0, 880), 5_000_000 + 1000 * row + generator.uniform(81, 1000)
        name = f"{'ab'[number % 2]}/{number}.tif"
        write(tmp_path / name, geo_tags(x, y))
        squares[name] = f"EPSG:32632 {600 + column} {5000 + row}"
    write(tmp_path / "a" / "60.tif", geo_tags(600_100, 5_000_500, crs=32633))  # the same numbers in another zone
    squares["a/60.tif"] = "EPSG:32633 600 5000"
    parts = single_label_parts(str(tmp_path))
    train = parts["train"]
    found = dict(zip((train.images.name(n) for n in range(len(train))), groups_of(train, "tile:1000"), strict=True))
    assert found == squares
    splits = draw_missing_splits(parts, tmp_path, 0.2, 0.2, 0, group="tile:1000")
    places = [{squares[part.images.name(n)] for n in range(len(part))} for _, part in splits.items()]
    assert all(places) and sum(map(len, places)) == len(set(squares.values())) == len(set.union(*places))


def test_images_without_a_georeference_are_refused_for_squares(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "ab"[number % 2] / f"{number}.tif", geo_tags(0, 0) if number else [])
    train = single_label_parts(str(tmp_path))["train"]
    with pytest.raises(DataError, match=r"group=tile:100: 1 of 4 images have no georeference, such as a/0.tif"):
        groups_of(train, "tile:100")
    for wrong in ("tile:", "tile:0", "tile:-3", "tile:nan", "tile:5km"):
        with pytest.raises(DataError, match=rf"group={wrong}: no size above 0"):
            groups_of(train, wrong)
    images = FolderImages(tmp_path, ("a/0.tif", "b/1.tif", "b/missing.tif"))
    assert possible_groups(images, range(3), "tile:100") == [None, "EPSG:32632 0 -1", None]
    assert possible_groups(images, [1, 0], r"([ab])/\d") == ["b", "a"]
    assert possible_groups(images, [0], "patient (id") == [None]
