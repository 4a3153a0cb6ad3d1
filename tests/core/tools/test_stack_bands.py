"""Bands in files of their own become one image: in order, of one size, where they were on the map, and refused if they can't."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from maelift.core.data.decode import open_picture
from maelift.core.data.geotiff import georeference
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.errors import ConfigError, DataError, MaeliftError
from maelift.core.tools.stack_bands import StackConfig, find_scenes, plan, stack_bands
from maelift.tests.core.data.test_geotiff import geo_tags
from maelift.tests.support import run_maelift
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import zoom

SIDES = {"B02": 24, "B04": 24, "B05": 12, "B01": 4, "B8A": 12}
"""Pixels a side of bands of 10, 20 and 60 m."""
TILE, TIME = "T32TQM_20220101T101031", "20220101"


def band(name: str, seed: int = 0, dtype: str = "uint16") -> NDArray[Any]:
    side = SIDES[name]
    return np.random.default_rng([seed, side, int(name[1], 16)]).integers(1, 10_000, (side, side)).astype(dtype)


def save_product(root: Path, name: str = "S2A_MSIL2A.SAFE", seed: int = 0) -> Path:
    """A product of Sentinel-2, level 2A, as it is laid out: JPEG 2000 files, finer bands again at each coarser size."""
    granule = root / name / "GRANULE" / "L2A_T32TQM" / "IMG_DATA"
    for metres, side in ((10, 24), (20, 12), (60, 4)):
        folder = granule / f"R{metres}m"
        folder.mkdir(parents=True)
        for one, own in SIDES.items():
            if own >= side:
                values = band(one, seed)[:: own // side, :: own // side]
                Image.fromarray(values).save(folder / f"{TILE}_{one}_{metres}m.jp2", irreversible=False)
        Image.new("RGB", (side, side)).save(folder / f"{TILE}_TCI_{metres}m.jp2")
    return granule


def geotiff_scene(folder: Path, x: float = 500_000, *, shifted: float = 0, crs: int = 32632, nodata: str = "0") -> None:
    """A patch as BigEarthNet has it: a folder with a GeoTIFF file for each band."""
    folder.mkdir(parents=True)
    for name, side in SIDES.items():
        values = band(name)
        values[: side // 4] = 0
        here = x + (shifted if name == "B05" else 0)
        tags = [*geo_tags(here, 4_000_240, 240 / side, crs), (42113, 2, 0, nodata, True)]
        tifffile.imwrite(folder / f"{folder.name}_{name}.tif", values, metadata=None, extratags=tags)


def stored(path: Path) -> NDArray[np.float32]:
    return np.asarray(tifffile.imread(path)).astype(np.float32)


def test_a_product_of_sentinel_2_becomes_tiles_of_all_bands(tmp_path: Path) -> None:
    save_product(tmp_path / "in")
    save_product(tmp_path / "in", "S2B_MSIL2A.SAFE", seed=1)
    done = stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), resample="nearest", size=16))
    assert done.bands == ("B01", "B02", "B04", "B05", "B8A") and (done.scenes, done.files) == (2, 8)
    folder = tmp_path / "out" / "S2A_MSIL2A.SAFE" / "L2A_T32TQM"
    parts = [[stored(folder / f"{TILE}_r{row:03d}_c{column:03d}.tif") for column in (0, 1)] for row in (0, 1)]
    full = np.concatenate([np.concatenate(row, axis=1) for row in parts])
    assert parts[1][1].shape == (8, 8, 5)
    for place, name in enumerate(done.bands):
        factor = 24 // SIDES[name]
        assert np.array_equal(full[:, :, place], band(name).repeat(factor, 0).repeat(factor, 1)), name
    found = open_picture(
        folder / f"{TILE}_r000_c000.tif", form=PixelFormat(bands=("B8A", "B02"), value_range=(0, 10_000))
    )
    assert found.channel_names == done.bands and np.array_equal(found.pixels()[:, :, 1], band("B02")[:16, :16])


def test_resampled_bands_are_what_scipy_makes_of_them(tmp_path: Path) -> None:
    smooth = zoom(np.random.default_rng(0).random((5, 5)) * 5000 + 100, 12 / 5, order=3, mode="nearest")
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a_B02.tif", np.zeros((24, 24), np.float32))
    tifffile.imwrite(tmp_path / "in" / "a_B05.tif", smooth.astype(np.float32))
    stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), resample="bilinear"))
    found = stored(tmp_path / "out" / "a.tif")[:, :, 1]
    expected = zoom(smooth, 2, order=1, mode="nearest", grid_mode=True)
    assert found.shape == (24, 24) and np.abs(found - expected).max() < 1


def test_places_on_the_map_and_pixels_without_a_value_are_kept(tmp_path: Path) -> None:
    geotiff_scene(tmp_path / "in" / "field" / "patch")
    done = stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), resample="bilinear", size=12))
    assert done.files == 4
    place = georeference(tmp_path / "out" / "field" / "patch_r001_c001.tif")
    assert place is not None and place[0].crs == "EPSG:32632"
    assert place[0].at(0, 0) == pytest.approx((500_120, 4_000_120)) and place[0].affine[0] == 10
    found = open_picture(tmp_path / "out" / "field" / "patch_r000_c000.tif", form=PixelFormat(value_range=(0, 10_000)))
    pixels = found.pixels()
    assert found.nodata == 0 and np.isnan(pixels[:6]).all() and not np.isnan(pixels[7:]).any()
    assert np.array_equal(pixels[6:, :, 1], band("B02")[6:12, :12])
    again = stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), resample="bilinear", size=12))
    assert again.files == 4
    with pytest.raises(MaeliftError, match=r"holds stacked bands with other settings \(size: 12 -> 8\)"):
        stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), resample="bilinear", size=8))


def test_tiles_without_a_value_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("B02", "B04"):
        values = band(name)
        values[:12] = 0
        Image.fromarray(values).save(tmp_path / "in" / f"a_{name}.png")
    keys: dict[str, Any] = {"size": 12, "nodata": 0}
    assert stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), **keys)).files == 2
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tif")) == ["a_r001_c000.tif", "a_r001_c001.tif"]


def test_pages_of_different_sizes_are_refused_by_name_and_size_and_stacked(tmp_path: Path) -> None:
    path = tmp_path / "in" / "scene.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as file:
        for name in ("B02", "B05", "B01"):
            file.write(band(name), photometric="minisblack", description=name, metadata=None)
    expected = (
        "different sizes: B02 24×24, B05 12×12, B01 4×4; maelift data stack resample=bilinear makes one image of them"
    )
    for form in (PixelFormat(), PixelFormat(3), PixelFormat(5), PixelFormat(bands=("B02",))):
        with pytest.raises(DataError, match=expected):
            open_picture(path, form=form).pixels()
    done = stack_bands(StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), ("B05", "B02"), resample="nearest"))
    assert done.bands == ("B05", "B02")
    assert np.array_equal(stored(tmp_path / "out" / "scene.tif")[:, :, 0], band("B05").repeat(2, 0).repeat(2, 1))


def test_smaller_copies_and_masks_of_a_page_are_no_pages_of_another_size(tmp_path: Path) -> None:
    path = tmp_path / "overviews.tif"
    values = np.random.default_rng(0).integers(0, 65535, (32, 32, 5)).astype(np.uint16)
    with tifffile.TiffWriter(path) as file:
        keys: dict[str, Any] = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
        file.write(values, **keys)
        file.write(values[::2, ::2], subfiletype=1, **keys)
    assert np.allclose(open_picture(path).pixels(), values / 257, atol=1e-3)


def test_what_can_not_be_put_together_is_refused(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    save_product(tmp_path / "safe")
    with pytest.raises(DataError, match=r"bands of different sizes: B01 4×4, B02 24×24, .*Give resample=bilinear"):
        stack_bands(StackConfig(str(tmp_path / "safe"), out))
    with pytest.raises(DataError, match=r"no scene has all of B02, B12; the first has B01, B02, B04, B05, B8A"):
        stack_bands(StackConfig(str(tmp_path / "safe"), out, ("B02", "B12")))
    geotiff_scene(tmp_path / "shifted" / "a", shifted=500)
    with pytest.raises(DataError, match=r"bands that lie in different places \(up to 500 map units apart"):
        stack_bands(StackConfig(str(tmp_path / "shifted"), out, resample="nearest"))
    (tmp_path / "wide").mkdir()
    for name, size in (("B02", (24, 24)), ("B05", (12, 18))):
        Image.fromarray(np.ones(size, np.uint16)).save(tmp_path / "wide" / f"a_{name}.png")
    with pytest.raises(DataError, match="a: bands of different proportions: B02 24×24, B05 18×12"):
        stack_bands(StackConfig(str(tmp_path / "wide"), str(tmp_path / "other"), resample="nearest"))
    (tmp_path / "twice" / "x").mkdir(parents=True)
    for name in ("a_B02.png", "a_B02.tif"):
        Image.fromarray(np.ones((8, 8), np.uint16)).save(tmp_path / "twice" / name)
    with pytest.raises(DataError, match="two files for band B02 of one scene"):
        find_scenes(StackConfig(str(tmp_path / "twice"), out))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "holiday.png")
    with pytest.raises(DataError, match=r"no file is named as a band \(holiday.png\)"):
        find_scenes(StackConfig(str(tmp_path / "photos"), out))
    for keys, expected in (
        ({"pattern": "("}, "a regular expression"),
        ({"pattern": "B02"}, "with a group around the name of the band"),
        ({"size": 1}, "2 or more"),
        ({"bands": ("a", "a")}, "each once"),
    ):
        with pytest.raises(ConfigError, match=expected):
            StackConfig("in", "out", **keys)
    assert not (tmp_path / "out" / "config.yaml").exists() or not list((tmp_path / "out").rglob("*.tif"))


def test_scenes_that_lack_a_band_are_left_out_by_name_and_the_rest_is_pretrained_on(tmp_path: Path) -> None:
    for number in range(10):
        folder = tmp_path / "in" / f"s{number}"
        folder.mkdir(parents=True)
        for name in ("red", "nir") if number else ("red",):
            values = np.random.default_rng(number).integers(0, 255, (16, 16)).astype(np.uint8)
            Image.fromarray(values).save(folder / f"{name}.png")
    config = StackConfig(str(tmp_path / "in"), str(tmp_path / "out"), ("nir", "red"), pattern="(?:^|/)(red|nir)$")
    assert dict(plan(config).lines)["scenes"].startswith("10 in ")
    done = stack_bands(config)
    assert (
        done.incomplete == ("s0",)
        and done.scenes == 9
        and "1 scenes are left out, as they lack a band: s0" in done.summary()
    )
    words = ["data", "stack", f"data={tmp_path / 'in'}", f"out={tmp_path / 'again'}", "bands=[nir,red]"]
    printed = run_maelift(*words, "pattern=(?:^|/)(red|nir)$")
    assert printed.returncode == 0 and "9 files of 9 scenes" in printed.stdout
    assert sorted(p.name for p in (tmp_path / "again").glob("*.tif")) == [f"s{number}.tif" for number in range(1, 10)]
    checked = run_maelift("data", "check", tmp_path / "again", "task=pretrain")
    assert "9 × 2" in checked.stdout and "9 × nir, red" in checked.stdout and "9 × 8" in checked.stdout
