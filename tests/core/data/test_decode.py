"""Every kind of pixels that people have gives its values, and every broken file its reason."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.audit import audit, common_channels
from maelift.core.data.channel_statistics import channel_statistics
from maelift.core.data.decode import open_picture
from maelift.core.data.pixel_format import Picture, PixelFormat
from maelift.core.data.readers.folder import find_images
from maelift.core.data.transforms import crop_box, fit_and_crop, random_crops, random_resized_crop, to_array
from maelift.core.errors import DataError
from maelift.tests.support import deep_png, framework, noise_image
from numpy.typing import NDArray
from PIL import Image, ImageOps


def values(shape: tuple[int, ...], dtype: type = np.uint16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpegs_give_the_pixels_that_pil_gives(mode: str, options: dict[str, object]) -> None:
    content = saved(noise_image(1, (61, 83), mode), "JPEG", quality=85, **options)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    picture = open_picture(Path("a.jpg"), content).pixels()
    assert np.array_equal(picture if mode == "RGB" else picture[:, :, 0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_exif_orientation_is_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(noise_image(2, (20, 32)), kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    opened = open_picture(Path("a.png"), content)
    assert opened.size == expected.shape[:2]
    assert np.array_equal(opened.pixels(), expected)


@pytest.mark.parametrize("channels", [3, 4])
def test_png_in_colour_keeps_its_sixteen_bits(channels: int) -> None:
    array = values((5, 7, channels))
    opened = open_picture(Path("a.png"), deep_png(array), PixelFormat(background=None))
    assert opened.bits == 16 and opened.size == (5, 7)
    assert np.allclose(opened.pixels(), array[:, :, :3] / 257, atol=1e-4)
    whole = open_picture(Path("a.png"), deep_png(array), PixelFormat(channels, (0, 65535))).pixels()
    assert np.array_equal(whole, array)


def test_transparency_is_a_channel_where_four_are_asked_for() -> None:
    array = values((5, 7, 4), np.uint8)
    content = saved(Image.fromarray(array), "PNG")
    dropped = open_picture(Path("a.png"), content, PixelFormat(background=None))
    assert np.array_equal(dropped.pixels(), array[:, :, :3])
    assert dropped.decoded_notes == ["transparency: dropped"]
    assert np.array_equal(open_picture(Path("a.png"), content, PixelFormat(4)).pixels(), array)


BANDS = {"photometric": "minisblack"}


@pytest.mark.parametrize(
    ("array", "options", "form", "expected"),
    [
        (values((5, 7)), {}, PixelFormat(), lambda a: a[:, :, None] / 257),
        (values((5, 7, 3)), {"photometric": "rgb"}, PixelFormat(), lambda a: a / 257),
        (values((5, 7, 4), np.uint8), {"photometric": "rgb"}, PixelFormat(background=None), lambda a: a[:, :, :3]),
        (values((5, 7, 4), np.uint8), {"photometric": "rgb"}, PixelFormat(4), lambda a: a),
        (values((5, 7, 4), np.uint8), {**BANDS, "planarconfig": "contig"}, PixelFormat(), lambda a: a),
        (values((6, 20, 30)), {**BANDS, "planarconfig": "separate"}, PixelFormat(), lambda a: a.transpose(1, 2, 0) / 257),
        (values((6, 20, 30), np.uint8), {"photometric": "minisblack"}, PixelFormat(6), lambda a: a.transpose(1, 2, 0)),
        (values((6, 20, 30), np.uint8), {"photometric": "minisblack"}, PixelFormat(1), lambda a: a[0][:, :, None]),
        (values((5, 7)).astype(np.float32), {}, PixelFormat(None, (0, 65535)), lambda a: a[:, :, None]),
        (values((5, 7)).astype(np.int32) - 9, {}, PixelFormat(None, (-9, 65535)), lambda a: a[:, :, None]),
        (values((5, 7, 5)), {**BANDS, "planarconfig": "contig", "bigtiff": True}, PixelFormat(), lambda a: a / 257),
    ],
)  # fmt: skip
def test_tiff_of_any_channels_and_bits_gives_its_values(
    tmp_path: Path,
    array: np.ndarray,
    options: dict[str, object],
    form: PixelFormat,
    expected: Callable[[np.ndarray], np.ndarray],
) -> None:
    framework("tifffile").imwrite(tmp_path / "a.tif", array, **options)
    opened = open_picture(tmp_path / "a.tif", None, form)
    picture = opened.pixels()
    assert opened.size == picture.shape[:2]
    assert np.allclose(picture, expected(array), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float16, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_read_as_stored(tmp_path: Path, dtype: type, order: str) -> None:
    array = np.asarray(values((5, 7, 6), np.uint8), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    picture = open_picture(tmp_path / "a.npy", None, PixelFormat(6, (0, 255))).pixels()
    assert picture.shape == (5, 7, 6) and picture.dtype in (np.uint8, np.float32)
    assert np.array_equal(picture, array)


def truncated_array(path: Path) -> None:
    np.save(path, np.zeros((5, 7)))
    path.write_bytes(path.read_bytes()[:-8])


BROKEN_ARRAYS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: np.save(path, np.full((4, 4), np.nan)), "no pixel has a value"),
    (lambda path: np.save(path, np.full((4, 4), 7.0)), r"values from 7 to 7, beyond value_range=\[0,1\]"),
    (lambda path: np.save(path, np.array([[{}]], dtype=object), allow_pickle=True), "type object"),
    (lambda path: np.save(path, np.zeros(9)), r"shape \(9,\)"),
    (lambda path: np.save(path, np.zeros((3, 8, 8))), "channels last"),
    (lambda path: path.write_bytes(b""), "an empty file"),
    (lambda path: path.write_bytes(b"\x93NUMPY\x01\x00"), "not an array"),
    (truncated_array, "cut off"),
]


@pytest.mark.parametrize(("write", "reason"), BROKEN_ARRAYS)
def test_arrays_that_are_no_images_are_told_in_words(
    tmp_path: Path, write: Callable[[Path], object], reason: str
) -> None:
    write(tmp_path / "a.npy")
    with pytest.raises(DataError, match=f"a.npy: .*{reason}"):
        open_picture(tmp_path / "a.npy", None, PixelFormat(3, (0, 1))).pixels()


def test_values_without_a_known_range_ask_for_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"give value_range=\[lowest,highest\]"):
        open_picture(tmp_path / "a.npy").pixels()


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG of some bytes that says it is of billions of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", "an empty file"),
        ("a.jpg", b"<!DOCTYPE html><p>404", "HTML"),
        ("a.png", b"no image", "not an image"),
        ("a.png", bytes(5000), "zeros"),
        ("a.png", bomb(), "decompression bomb"),
        ("a.jpg", saved(noise_image(1, (64, 64)), "JPEG")[:-300], "truncated"),
        ("a.png", saved(noise_image(1, (64, 64)), "PNG")[:-300], "truncated|broken"),
        ("a.gif", saved(noise_image(1, (64, 64)), "GIF")[:-900], "truncated|broken|unrecognized"),
        ("a.webp", saved(noise_image(1, (64, 64)), "WEBP")[:-30], ""),
        ("a.tif", saved(noise_image(1, (64, 64)), "TIFF")[:-300], ""),
        ("a.png", deep_png(values((64, 64, 3)))[:-300], ""),
    ],
)
def test_broken_files_are_told_in_words(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=f"{name}: .*({reason})"):
        open_picture(Path(name), content).pixels()


def animation(kind: str) -> bytes:
    frames = [noise_image(number, (16, 16)) for number in range(3)]
    return saved(frames[0], kind, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.gif", animation("GIF"), "several frames"),
        ("a.png", animation("PNG"), "several frames"),
        ("a.webp", animation("WEBP"), "several frames"),
        ("a.jpg", saved(noise_image(0), "PNG"), "PNG, though named .jpg"),
        ("a.jpg", saved(noise_image(0).convert("CMYK"), "JPEG"), "CMYK"),
        ("a.png", deep_png(values((16, 16, 3))), "16 bits"),
        ("a.png", saved(Image.fromarray(values((16, 16))), "PNG"), "16 bits"),
    ],
)
def test_what_is_unusual_is_read_and_told(name: str, content: bytes, note: str) -> None:
    opened = open_picture(Path(name), content)
    assert len(opened.notes) == 1 and note in opened.notes[0]
    assert opened.pixels().shape[:2] == opened.size


def test_a_folder_of_other_channels_is_looked_through(tmp_path: Path) -> None:
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", values((9, 8, 5), np.uint8, number))
    np.save(tmp_path / "other.npy", values((9, 8, 2), np.uint8))
    np.save(tmp_path / "thin.npy", values((9, 1, 5), np.uint8))
    images = find_images(tmp_path)
    sound, manifest = audit(images, 0.5, form=PixelFormat(5))
    assert len(sound) == 4 and manifest.channels == (5, 5, 5, 5)
    assert dict(manifest.rejected) == {
        "other.npy": "2 channels, not 5 (channels=5)",
        "thin.npy": "1×9 px, too small to show anything",
    }
    mean, std = channel_statistics(sound, 5, form=PixelFormat(5))
    stack = np.stack([values((9, 8, 5), np.uint8, number) for number in range(4)]) / 255
    assert np.allclose(mean, stack.mean(axis=(0, 1, 2))) and np.allclose(std, stack.std(axis=(0, 1, 2)))
    _, mixed = audit(images.subset([0, 4]), form=PixelFormat())
    with pytest.raises(DataError, match="1 with 5, 1 with 2"):
        common_channels(mixed.channels)


def test_channels_and_floats_are_cropped_band_by_band() -> None:
    picture = values((40, 30, 5), np.uint8)
    draws = np.array([0.3, 0.7, 0.2, 0.6, 0.1])
    for image in (picture, picture.astype(np.float32)):
        crop = random_resized_crop(image, (16, 24), draws)
        bands = [random_resized_crop(np.ascontiguousarray(image[:, :, [band]]), (16, 24), draws) for band in range(5)]
        assert np.allclose(crop.astype(float), np.concatenate(bands, axis=2), atol=1)
        fitted = fit_and_crop(image, (16, 24))
        bands = [fit_and_crop(np.ascontiguousarray(image[:, :, [band]]), (16, 24)) for band in range(5)]
        assert np.allclose(fitted, np.concatenate(bands, axis=2), atol=1)
        assert to_array(fitted, 5).shape == (5, 16, 24)


def test_crops_are_those_of_torchvision_and_pil() -> None:
    image = noise_image(3, (90, 120))
    generator = np.random.default_rng(0)
    for _ in range(20):
        draws = np.append(generator.random(4), 0.9)
        crop = random_resized_crop(image, (32, 32), draws)
        picture = np.asarray(image)
        top, left, height, width = crop_box(picture.shape[:2], draws, (0.2, 1.0))
        expected = image.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BICUBIC)
        difference = np.abs(crop.astype(int) - np.asarray(expected).astype(int))
        assert difference.max() <= 2 and difference.mean() < 0.05


@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpegs_are_decoded_smaller_with_nearly_the_same_crops(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(noise_image(4, (800, 1100)), "JPEG", quality=92, exif=exif)
    decoded: list[int] = []
    opened = open_picture(Path("a.jpg"), content)

    def watched(reduction: int) -> Picture:
        decoded.append(reduction)
        return opened.decode(reduction)

    draws = np.random.default_rng(1).random((3, 5))
    crops = random_crops(replace(opened, decode=watched), (32, 32), draws)
    whole = random_crops(open_picture(Path("a.jpg"), content), (32, 32), draws, reduced=False)
    assert decoded == [8]
    for crop, expected in zip(crops, whole, strict=True):
        difference = np.abs(crop.astype(int) - expected.astype(int))
        assert 0 < difference.max() <= 16 and difference.mean() < 1.5
    again = random_crops(open_picture(Path("a.jpg"), content), (32, 32), draws)
    assert all(np.array_equal(one, other) for one, other in zip(crops, again, strict=True))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 6)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_one_array_is_read_as_the_array(
    tmp_path: Path, shape: tuple[int, ...], dtype: type, save: Callable[..., None]
) -> None:
    array: NDArray[Any] = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    save(tmp_path / "a.npz", array)
    form = PixelFormat(value_range=(0, 200))
    one, other = (open_picture(tmp_path / name, None, form) for name in ("a.npy", "a.npz"))
    assert np.array_equal(one.pixels(), other.pixels()) and one.pixels().dtype == other.pixels().dtype
    assert (one.size, one.bits) == (other.size, other.bits)
    (tmp_path / "a.npy").unlink()
    assert [find_images(tmp_path).name(0)] == ["a.npz"]


def test_an_archive_of_several_arrays_names_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", image=np.zeros((4, 4)), mask=np.zeros((4, 4)))
    with pytest.raises(DataError, match=r"a.npz: 2 arrays \(image, mask\); expected one: save each image as a file"):
        open_picture(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"b.npz: an array of shape \(1,\) and type object"):
        open_picture(tmp_path / "b.npz")


def test_damaged_archives_raise_nothing_but_data_errors(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", np.arange(60, dtype=np.uint8).reshape(6, 10))
    content, draws = (tmp_path / "a.npz").read_bytes(), np.random.default_rng(0)
    for turn in range(200):
        broken = np.frombuffer(content, np.uint8).copy()
        broken[draws.integers(0, len(broken), 3)] = draws.integers(0, 256, 3)
        end = draws.integers(len(content)) if turn % 4 == 0 else None
        try:
            open_picture(Path("a.npz"), broken.tobytes()[:end]).pixels()
        except DataError as error:
            assert "\n" not in str(error)
