"""Images of any channels and bits: TIFF as tifffile writes it, GDAL's and OME's tags, bands, and pixels without a value."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from maelift.core.data.channel_statistics import channel_statistics
from maelift.core.data.composite import UNKNOWN, Display, PictureKeys, levels, stretch_ends
from maelift.core.data.decode import open_picture, upright_size
from maelift.core.data.detection_reader import detection_parts
from maelift.core.data.images import as_image
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.readers.folder import FolderImages
from maelift.core.data.reading_keys import StatedValues
from maelift.core.data.transforms import random_resized_crop, resized_part
from maelift.core.errors import ConfigError, DataError
from maelift.core.models.preprocessing import Preprocessing, known_pixels
from maelift.transfer.detection.canvas import crop_and_resize
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

PREPARED = Preprocessing(("a", "b", "c"), (0.5,) * 3, (0.2,) * 3, value_range=(-2.0, 3.0))
NAMES = ("B02", "B03", "B04", "B08", "B11")
RANGES: dict[str, tuple[float, float]] = {
    "uint8": (0, 255),
    "uint12": (0, 4095),
    "uint16": (0, 65535),
    "float32": (-2.0, 3.0),
    "int16": (-1024, 3071),
}


def values(kind: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Random values that fill the range of a kind."""
    generator, (low, high) = np.random.default_rng(seed), RANGES[kind]
    if kind == "float32":
        found: NDArray[Any] = generator.uniform(low, high, shape).astype(np.float32)
    else:
        found = generator.integers(int(low), int(high) + 1, shape).astype("uint16" if kind == "uint12" else kind)
    return found


def gdal_tags(names: tuple[str, ...] = NAMES, nodata: str | None = "0", scale: float | None = None) -> list[Any]:
    """GDAL's tags as its GeoTIFF driver writes them."""
    items = [f'<Item name="DESCRIPTION" sample="{n}" role="description">{name}</Item>' for n, name in enumerate(names)]
    if scale is not None:
        items += [f'<Item name="SCALE" sample="{n}" role="scale">{scale}</Item>' for n in range(len(names))]
        items += [f'<Item name="OFFSET" sample="{n}" role="offset">-0.1</Item>' for n in range(len(names))]
    tags: list[Any] = [(42112, 2, 0, f"<GDALMetadata>\n  {''.join(items)}\n</GDALMetadata>", True)]
    return tags if nodata is None else [*tags, (42113, 2, 0, nodata, True)]


def write(path: Path, array: NDArray[Any], **keys: Any) -> Path:
    """A TIFF file of an array (H, W, C)."""
    planar = keys.pop("planarconfig", "contig")
    stored = array if planar == "contig" else array.transpose(2, 0, 1)
    many = {} if array.shape[2] == 1 else {"planarconfig": planar}
    tifffile.imwrite(path, array[..., 0] if array.shape[2] == 1 else stored, photometric="minisblack", **many, **keys)
    return path


LAYOUTS: list[dict[str, Any]] = [
    {"planarconfig": "contig"},
    {"planarconfig": "separate"},
    {"planarconfig": "contig", "compression": "deflate", "predictor": True},
    {"planarconfig": "separate", "compression": "lzw"},
    {"planarconfig": "contig", "tile": (16, 16), "compression": "zstd"},
    {"planarconfig": "contig", "bigtiff": True},
    {"planarconfig": "contig", "byteorder": ">"},
]


@pytest.mark.parametrize(("kind", "channels"), itertools.product(RANGES, (1, 2, 4, 5, 13)))
def test_a_tiff_has_the_values_that_tifffile_reads(tmp_path: Path, kind: str, channels: int) -> None:
    given_range = None if kind in ("uint8", "uint16") else RANGES[kind]
    form = PixelFormat(channels, given_range)
    for number, layout in enumerate(LAYOUTS):
        predictor = {"predictor": 3 if kind == "float32" else 2} if layout.get("predictor") else {}
        path = write(tmp_path / f"{number}.tif", values(kind, (21, 35, channels), number), **{**layout, **predictor})
        found = open_picture(path, form=form)
        stored = tifffile.imread(path)
        stored = stored[..., None] if channels == 1 else stored
        stored = stored.transpose(1, 2, 0) if stored.shape[0] == channels and channels > 1 else stored
        expected = stored / 257 if kind == "uint16" else stored
        assert found.size == (21, 35) and found.pixels().shape == (21, 35, channels)
        assert np.allclose(found.pixels(), expected, atol=1e-4), layout
        if kind == "uint8":
            assert found.pixels().dtype == np.uint8


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_tags_of_gdal_name_channels_and_mark_what_has_no_value(tmp_path: Path, planar: str) -> None:
    array = values("uint12", (20, 30, 5)) + 1
    array[:4, :, 2] = 0
    path = write(tmp_path / "a.tif", array, planarconfig=planar, metadata=None, extratags=gdal_tags(scale=1e-4))
    found = open_picture(path, form=PixelFormat(value_range=(0, 4096)))
    assert found.channel_names == NAMES and found.nodata == 0 and any("unscale" in note for note in found.notes)
    pixels = found.pixels()
    assert np.isnan(pixels).sum() == 4 * 30 and np.array_equal(np.isnan(pixels), array == 0)
    assert np.array_equal(pixels[array > 0], array[array > 0])
    scaled = open_picture(path, form=PixelFormat(value_range=(-1, 1), unscale=True)).pixels()
    assert np.allclose(scaled[array > 0], array[array > 0] * 1e-4 - 0.1) and np.isnan(scaled[array == 0]).all()
    with pytest.raises(DataError, match=r"a.tif: 4 % of its pixels have no value, more than max_nodata=0.03"):
        open_picture(path, form=PixelFormat(max_nodata=0.03)).pixels()


@given(st.lists(st.sampled_from([1, 2, 3, 4, 5, *NAMES]), min_size=1, max_size=5, unique_by=lambda band: str(band)))
def test_channels_are_chosen_by_number_or_name_in_the_order_given(
    tmp_path_factory: pytest.TempPathFactory, bands: list[int | str]
) -> None:
    path = tmp_path_factory.mktemp("bands") / "a.tif"
    array = values("uint8", (9, 8, 5))
    write(path, array, metadata=None, extratags=gdal_tags(nodata=None))
    places = [band - 1 if isinstance(band, int) else NAMES.index(band) for band in bands]
    assert np.array_equal(open_picture(path, form=PixelFormat(bands=tuple(bands))).pixels(), array[:, :, places])


def test_channels_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    named = write(tmp_path / "a.tif", values("uint8", (9, 8, 5)), metadata=None, extratags=gdal_tags())
    plain = write(tmp_path / "b.tif", values("uint8", (9, 8, 5)))
    for path, bands, expected in (
        (named, ("B09",), "no channel B09: it has B02, B03, B04, B08, B11"),
        (named, (6,), "no channel 6: it has 5, numbered from 1"),
        (plain, ("B02", 3), "no channel B02: it names none of its 5"),
        (plain, ("B02", "B03"), "5 channels without names; expected B02, B03"),
    ):
        with pytest.raises(DataError, match=expected):
            open_picture(path, form=PixelFormat(bands=bands)).pixels()
    assert open_picture(plain, form=PixelFormat(bands=NAMES)).pixels().shape == (9, 8, 5)  # it can't say more
    transparent = tmp_path / "c.png"
    colour = values("uint8", (9, 8, 4))
    Image.fromarray(colour).save(transparent)
    assert np.array_equal(open_picture(transparent, form=PixelFormat(bands=(4, 1))).pixels(), colour[:, :, [3, 0]])


def test_sizes_of_files_that_pil_does_not_read_are_known_to_boxes_and_masks(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    write(tmp_path / "images" / "a.tif", values("uint16", (20, 30, 5)))
    write(tmp_path / "images" / "b.tif", values("uint8", (21, 31, 13)), planarconfig="separate")
    np.save(tmp_path / "c.npy", values("float32", (22, 32, 2)))
    for name, size in (("images/a.tif", (20, 30)), ("images/b.tif", (21, 31)), ("c.npy", (22, 32))):
        assert upright_size(tmp_path / name) == size
    for name in "ab":
        (tmp_path / "labels" / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [field]\n")
    parts = detection_parts(str(tmp_path), "yolo")
    assert [tuple(objects.boxes[0]) for objects in parts["train"].objects] == [
        pytest.approx((9, 5, 21, 15)),
        pytest.approx((9.3, 5.25, 21.7, 15.75)),
    ]


def test_an_ome_tiff_and_an_imagej_stack_name_their_channels(tmp_path: Path) -> None:
    array = values("uint16", (3, 12, 15))
    tifffile.imwrite(
        tmp_path / "a.ome.tif",
        array,
        photometric="minisblack",
        metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "GFP", "Cy5"]}},
    )
    found = open_picture(tmp_path / "a.ome.tif", form=PixelFormat(3))
    assert found.channel_names == ("DAPI", "GFP", "Cy5")
    assert np.allclose(found.pixels(), array.transpose(1, 2, 0) / 257, atol=1e-4)
    tifffile.imwrite(tmp_path / "b.tif", array, imagej=True, metadata={"axes": "CYX", "Labels": ["a", "b", "c"]})
    chosen = open_picture(tmp_path / "b.tif", form=PixelFormat(bands=("c", "a")))
    assert np.allclose(chosen.pixels(), array[[2, 0]].transpose(1, 2, 0) / 257, atol=1e-4)


def test_pages_are_channels_only_where_they_are_asked_for(tmp_path: Path) -> None:
    array = values("uint8", (4, 12, 15))
    tifffile.imwrite(tmp_path / "pages.tif", array, photometric="minisblack")
    first = open_picture(tmp_path / "pages.tif")
    assert any("several" in note and "first is taken" in note for note in first.notes)
    assert np.array_equal(first.pixels()[:, :, 0], array[0])
    assert np.array_equal(open_picture(tmp_path / "pages.tif", form=PixelFormat(4)).pixels(), array.transpose(1, 2, 0))
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((2, 3, 12, 15), np.uint8), photometric="minisblack", ome=True)
    with pytest.raises(DataError, match="save each plane as a file"):
        open_picture(tmp_path / "z.tif", form=PixelFormat(4)).pixels()


def test_nan_and_the_value_for_no_data_have_no_value_and_infinity_is_refused(tmp_path: Path) -> None:
    array = values("float32", (10, 12, 2))
    array[2, 3], array[5, 6, 0] = np.nan, -9999
    np.save(tmp_path / "a.npy", array)
    pixels = open_picture(tmp_path / "a.npy", form=PixelFormat(value_range=(-2, 3), nodata=-9999)).pixels()
    assert np.array_equal(np.isnan(pixels), np.isnan(array) | (array == -9999))
    with pytest.raises(DataError, match=r"-9999 to .* beyond value_range"):
        open_picture(tmp_path / "a.npy", form=PixelFormat(value_range=(-2, 3))).pixels()
    array[0, 0] = np.inf
    np.save(tmp_path / "b.npy", array)
    with pytest.raises(DataError, match="infinite values"):
        open_picture(tmp_path / "b.npy", form=PixelFormat(value_range=(-2, 3), nodata=-9999)).pixels()
    np.save(tmp_path / "c.npy", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(DataError, match="no pixel has a value"):
        open_picture(tmp_path / "c.npy", form=PixelFormat(value_range=(0, 1))).pixels()
    lowest = np.full((6, 6), np.finfo(np.float32).min, np.float32)
    lowest[0] = 0.5
    np.save(tmp_path / "d.npy", lowest)  # as many tools mark it, and write it with few digits
    marked = open_picture(tmp_path / "d.npy", form=PixelFormat(value_range=(0, 1), nodata=-3.4028234663852886e38))
    assert np.isnan(marked.pixels()).sum() == 30
    byte = values("uint8", (8, 8, 3)) | 1
    byte[:2] = 0
    Image.fromarray(byte).save(tmp_path / "e.png")
    assert np.isnan(open_picture(tmp_path / "e.png", form=PixelFormat(nodata=0)).pixels()[:2]).all()


@given(st.integers(0, 10**6), st.integers(8, 40), st.integers(8, 40), st.sampled_from(["bilinear", "bicubic"]))
def test_values_beside_gaps_are_means_of_values_alone(seed: int, height: int, width: int, how: Any) -> None:
    generator = np.random.default_rng(seed)
    constant = np.full((height, width, 2), 7.0, np.float32)
    constant[generator.random((height, width, 2)) < 0.3] = np.nan
    size = (max(1, height // 2), max(1, width // 2))
    for found in (
        resized_part(constant, (0, 0, width, height), size, how),
        random_resized_crop(constant, size, np.array([0.9, 0.5, 0.1, 0.2, 0.9]), interpolation=how),
    ):
        assert np.allclose(found[~np.isnan(found)], 7.0, atol=1e-3)  # no gap mixes in


@pytest.mark.parametrize("alike", [True, False])
def test_gaps_of_channels_first_are_those_of_channels_last(alike: bool) -> None:
    array = values("float32", (12, 20, 3))
    array[3:7, 2:9, : 3 if alike else 1] = np.nan
    array[:, 15:] = np.nan
    box, size = (0, 0, 20, 12), (6, 10)
    last = resized_part(array, box, size, "bilinear")
    first = crop_and_resize(array.transpose(2, 0, 1), box, size, replace(PREPARED, interpolation="bilinear"))
    assert np.isnan(last).any() and np.allclose(first.transpose(1, 2, 0), last, equal_nan=True, atol=1e-6)


def test_halving_an_image_with_gaps_is_the_mean_of_the_known_pixels() -> None:
    array = values("float32", (16, 24, 1))
    array[3:9, 5:12] = np.nan
    known = ~np.isnan(array[:, :, 0])
    boxed = np.asarray(Image.fromarray(known.astype(np.float32)).resize((12, 8), Image.Resampling.BILINEAR))
    found = resized_part(array, (0, 0, 24, 16), (8, 12), "bilinear")[:, :, 0]
    assert np.array_equal(np.isnan(found), boxed < 0.5)
    far = uniform_filter(known.astype(float), 7)[::2, ::2] > 0.999  # where no gap is near
    plain = np.asarray(Image.fromarray(np.nan_to_num(array[:, :, 0])).resize((12, 8), Image.Resampling.BILINEAR))
    assert far.any() and np.allclose(found[far], plain[far], atol=1e-5)


def test_statistics_are_those_of_pixels_with_a_value(tmp_path: Path) -> None:
    arrays = []
    for number in range(4):
        array = values("uint12", (11, 13, 5), number) + 1
        array[: number + 1] = 0
        write(tmp_path / f"{number}.tif", array, metadata=None, extratags=gdal_tags())
        arrays.append(array.reshape(-1, 5).astype(np.float64))
    images = FolderImages(tmp_path, tuple(f"{number}.tif" for number in range(4)))
    stated = StatedValues.of(images, PixelFormat(value_range=(0, 4096)))
    assert stated == StatedValues(NAMES, 0.0, 16)
    mean, std = channel_statistics(images, 5, form=stated.stated_in(PixelFormat(value_range=(0, 4096))))
    rows = np.concatenate(arrays)
    there = np.where(rows == 0, np.nan, rows) / 4096
    assert np.allclose(mean, np.nanmean(there, axis=0)) and np.allclose(std, np.nanstd(there, axis=0))


def test_a_pixel_without_a_value_becomes_the_mean_of_its_channel() -> None:
    import torch

    preprocessing = Preprocessing(("a", "b"), (0.25, 0.5), (0.1, 0.2), value_range=(0.0, 1000.0))
    pixels = torch.full((1, 2, 3, 3), 600.0)
    pixels[0, 0, 1, 1] = torch.nan
    found = preprocessing.normalize(pixels)
    assert found[0, 0, 1, 1] == 0 and torch.allclose(found[0, 1], torch.full((3, 3), 0.5))
    known = known_pixels(pixels)
    assert known is not None and not known[0, 0, 1, 1] and int(known.sum()) == 17
    assert known_pixels(torch.zeros(1, 1, 2, 2)) is None and known_pixels(torch.zeros(1, 1, 2, 2).byte()) is None


def test_a_composite_shows_red_green_blue_by_name_and_is_never_black() -> None:
    array = values("uint12", (30, 40, 5)).astype(np.float32) / 65535 * 255  # a dark part of 16 bits
    names = ("blue", "green", "red", "nir", "swir")
    shown = Display(names).composite(array)
    assert shown.dtype == np.uint8 and shown.shape == (30, 40, 3) and (np.ptp(shown, axis=(0, 1)) == 255).all()
    order = [np.corrcoef(shown[:, :, n].ravel(), array[:, :, place].ravel())[0, 1] for n, place in enumerate((2, 1, 0))]
    assert min(order) > 0.98
    assert Display().composite(array[:, :, :2]).shape == (30, 40, 1) and Display().image(array).mode == "RGB"
    array[:5] = np.nan
    assert (Display().composite(array)[:5] == 128).all()
    colour = values("uint8", (9, 9, 3))
    assert np.array_equal(np.asarray(Display().image(colour)), colour)


def test_channels_are_shown_as_they_are_chosen_by_number_or_name(tmp_path: Path) -> None:
    array = values("uint8", (30, 40, 5))
    for shown, places in (
        (None, [0, 1, 2]),
        ("all", [0, 1, 2]),
        ((5, 1, 3), [4, 0, 2]),
        (("B11", "B08", 2), [4, 3, 1]),
        ((4,), [3]),
    ):
        assert np.array_equal(Display(NAMES, shown).composite(array), array[:, :, places]), shown  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"shown=\[B11,B12,1\]: expected channels of B02, .*There is no channel B12"):
        Display(NAMES, ("B11", "B12", 1)).positions(5)
    with pytest.raises(ConfigError, match=r"shown=\[6\]: expected channels of 1 to 5"):
        Display((), (6,)).positions(5)
    for wrong in ((1, 2), (1, 1, 2), (1, 2, 3, 4)):
        with pytest.raises(ConfigError, match="three different channels, or one"):
            PictureKeys(shown=wrong).check_shown()
    assert Display(NAMES, (5, 1, 3)).caption(5).endswith("shown as red, green and blue: B11, B02, B04.")
    assert Display().caption(3) == "" and Display().caption(1) == "" and "number 1" in Display().caption(2)


def test_where_all_channels_are_shown_each_is_a_gray_tile_below() -> None:
    array = np.zeros((20, 40, 5), np.float32)
    for place in range(5):
        array[:, place * 8 : place * 8 + 8, place] = 1  # in each channel another eighth is bright
    drawn = Display(NAMES).image(array).resize((320, 160))
    assert Display(NAMES).with_tiles(drawn, array) is drawn
    sheet = np.asarray(Display(NAMES, "all").with_tiles(drawn, array).convert("L"))
    assert sheet.shape[1] == 320 and np.array_equal(sheet[:160], np.asarray(drawn.convert("L")))
    wide, high = (320 - 3 * 2) // 4, round((320 - 3 * 2) // 4 / 2)
    for place in range(5):
        left, top = place % 4 * (wide + 2), 160 + 2 + place // 4 * (high + 16)
        tile = sheet[top : top + high, left : left + wide]
        columns = tile.mean(axis=0)
        assert np.flatnonzero(columns > 127).mean() // (wide / 5) == place and columns.max() == 255 > columns.min() == 0
        assert (sheet[top + high : top + high + 14, left : left + wide] < 128).any()  # its name


@given(st.integers(0, 10**6), st.sampled_from(["uint12", "float32", "int16"]))
def test_values_are_stretched_from_the_2nd_to_the_98th_percentile_of_each_channel(seed: int, kind: str) -> None:
    array = values(kind, (12, 17, 3), seed).astype(np.float32)
    array[np.random.default_rng(seed).random(array.shape) < 0.2] = np.nan
    ends = stretch_ends(array)
    assert np.allclose(ends, np.nanpercentile(array, (2, 98), axis=(0, 1)).T)
    expected = np.clip((array - ends[:, 0]) / (ends[:, 1] - ends[:, 0]), 0, 1) * 255
    found = levels(array)
    assert (found[np.isnan(array)] == UNKNOWN).all()
    assert np.abs(found[~np.isnan(array)] - expected[~np.isnan(array)]).max() <= 0.51
    assert np.array_equal(levels(array, ends), found)


def test_arrays_are_read_as_files_are(tmp_path: Path) -> None:
    array = values("uint12", (10, 12, 5))
    np.save(tmp_path / "a.npy", array)
    form = PixelFormat(5, (0, 4095), plain=True)
    assert np.array_equal(np.asarray(as_image(array, form)), np.asarray(as_image(tmp_path / "a.npy", form)))
    assert np.array_equal(np.asarray(as_image(array.astype(np.float64), form)), array)
    for wrong in (array[:, :, :4], array[:, :, :2], np.zeros((0, 3, 5), np.uint16)):
        with pytest.raises(DataError, match=r"expected \(height, width, 5\) of values from 0 to 4095"):
            as_image(wrong, form)
    with pytest.raises(DataError, match="beyond value_range"):
        as_image(array + np.uint16(60_000), form)


def test_turned_crops_are_the_eight_symmetries_of_an_image_equally_often() -> None:
    array = values("uint12", (12, 12, 5)).astype(np.float32)
    symmetries = [np.rot90(side, turns) for side in (array, array[:, ::-1]) for turns in range(4)]
    seen = np.zeros(8, dtype=int)
    for draw in (np.arange(64) + 0.5) / 64:
        crop = random_resized_crop(array, (12, 12), np.array([0.0, 0.5, 0, 0, draw]), (1.0, 1.0), turn=True)
        equal = [np.array_equal(crop, one) for one in symmetries]
        seen[equal.index(True)] += 1
    assert (seen == 8).all()
    wide = values("uint8", (30, 40, 3))
    for draw in (0.1, 0.2, 0.3, 0.4, 0.6, 0.9):
        draws = np.array([0.3, 0.2, 0.5, 0.5, draw])
        assert random_resized_crop(wide, (8, 12), draws, turn=True).shape == (8, 12, 3)


@given(st.integers(0, 10**6), st.sampled_from([2, 5, 13]), st.sampled_from(["uint8", "uint12", "float32"]))
def test_distorted_channels_stay_in_their_range_and_keep_what_they_show(seed: int, channels: int, kind: str) -> None:
    from maelift.transfer.segmentation.augmentation import distorted

    pixels = np.ascontiguousarray(values(kind, (9, 11, channels), seed).transpose(2, 0, 1))
    draws = np.random.default_rng(seed).random(9)
    low, high = RANGES[kind]
    found = distorted(pixels, draws, (float(low), float(high)))
    again = distorted(pixels, draws, (float(low), float(high)))
    assert found.shape == pixels.shape and np.array_equal(found, again, equal_nan=True)
    assert np.nanmin(found) >= low and np.nanmax(found) <= high
    missing = [number for number in range(channels) if np.isnan(found[number].astype(float)).all()]
    assert len(missing) == int(draws[5] < 0.1)
    for number in set(range(channels)) - set(missing):
        assert np.corrcoef(found[number].ravel(), pixels[number].ravel())[0, 1] > 0.5
    if draws[0] >= 0.5 and draws[2] >= 0.5 and not missing:
        assert np.array_equal(found, pixels)
