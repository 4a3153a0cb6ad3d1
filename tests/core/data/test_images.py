"""Pixels out of real files: every format that people have, and every way in which files are broken."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.audit import audit, write_rejected
from maelift.core.data.channel_statistics import channel_statistics
from maelift.core.data.decode import decode
from maelift.core.data.readers.folder import find_images
from maelift.core.data.readers.mnist_idx import read_idx
from maelift.core.data.transforms import fit_and_crop, random_resized_crop, to_array
from maelift.core.errors import DataError
from maelift.tests.support import noise_image, write_images
from PIL import Image


def idx_bytes(array: np.ndarray) -> bytes:
    head = b"\x00\x00\x08" + bytes([array.ndim]) + b"".join(struct.pack(">I", side) for side in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_a_folder_is_read_nested_sorted_and_without_hidden_files(tmp_path: Path) -> None:
    write_images(tmp_path / "b" / "deep", 2)
    write_images(tmp_path / "a", 1, suffix=".JPG")
    write_images(tmp_path / ".cache", 1)
    (tmp_path / "notes.txt").write_text("not an image")
    images = find_images(tmp_path)
    names = [images.name(number) for number in range(len(images))]
    assert names == ["a/image000.JPG", "b/deep/image000.png", "b/deep/image001.png"]


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".bmp", ".jpg"])
def test_every_format_gives_the_pixels_back(tmp_path: Path, suffix: str) -> None:
    image = noise_image(0)
    options = {"lossless": True} if suffix == ".webp" else {"quality": 95} if suffix == ".jpg" else {}
    image.save(tmp_path / f"image{suffix}", **options)
    difference = np.abs(np.asarray(decode(tmp_path / f"image{suffix}")).astype(int) - np.asarray(image).astype(int))
    assert difference.max() <= (25 if suffix == ".jpg" else 0)


def test_exif_orientation_turns_the_image_upright(tmp_path: Path) -> None:
    image = noise_image(1, (10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(decode(tmp_path / "turned.png")), np.rot90(np.asarray(image), -1))


def test_palettes_are_mapped_to_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.save(tmp_path / "palette.png", transparency=0)
    opened = decode(tmp_path / "palette.png")
    assert isinstance(opened, Image.Image) and opened.mode == "RGB"
    assert opened.getpixel((2, 2)) == (200, 100, 50)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_keep_their_scale_and_precision(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 255, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep{suffix}")
    pixels = to_array(decode(tmp_path / f"deep{suffix}"), 1)[0]
    assert pixels.dtype == np.float32
    assert np.allclose(pixels, values / 257, atol=1e-4)
    assert to_array(decode(tmp_path / f"deep{suffix}"), 3).shape == (3, 1, 4)


def test_cmyk_becomes_the_colour_it_prints(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=95)
    red, green, blue = np.asarray(decode(tmp_path / "red.jpg"))[4, 4]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize(("mode", "expected"), [("1", "L"), ("LA", "L"), ("RGBA", "RGB"), ("L", "L")])
def test_other_modes_become_gray_or_colour(tmp_path: Path, mode: str, expected: str) -> None:
    noise_image(2).convert(mode).save(tmp_path / "image.png")
    opened = decode(tmp_path / "image.png")
    assert isinstance(opened, Image.Image) and opened.mode == expected


def test_gray_and_colour_are_made_of_each_other() -> None:
    colour, gray = noise_image(3), noise_image(3, mode="L")
    assert np.array_equal(to_array(colour, 1)[0], np.asarray(gray))
    assert np.array_equal(to_array(gray, 3), np.repeat(np.asarray(gray)[None], 3, axis=0))
    with pytest.raises(DataError, match="not 4"):
        to_array(colour, 4)


def test_broken_files_are_left_out_named_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 20)
    whole = (tmp_path / "image000.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("I am no image")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    noise_image(1).save(tmp_path / "png-called.jpg", format="PNG")
    sound, manifest = audit(find_images(tmp_path), max_rejected=0.5)
    assert len(sound) == 21
    assert [name for name, _ in manifest.rejected] == ["empty.jpg", "float.tif", "text.jpg", "truncated.png"]
    assert "empty file" in dict(manifest.rejected)["empty.jpg"]
    write_rejected(tmp_path / "rejected.csv", manifest.rejected)
    lines = (tmp_path / "rejected.csv").read_text().splitlines()
    assert lines[0] == "path,reason" and len(lines) == 5
    with pytest.raises(DataError, match=r"4 of 25 images are broken, more than max_rejected=0.1"):
        audit(find_images(tmp_path), max_rejected=0.1)


def test_one_picture_in_two_formats_has_one_hash(tmp_path: Path) -> None:
    noise_image(5).save(tmp_path / "a.png")
    noise_image(5).save(tmp_path / "b.bmp")
    noise_image(6).save(tmp_path / "c.png")
    _, manifest = audit(find_images(tmp_path))
    assert manifest.hashes[0] == manifest.hashes[1] != manifest.hashes[2]


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    before = audit(find_images(tmp_path))[1].digest
    noise_image(9).save(tmp_path / "image001.png")
    assert audit(find_images(tmp_path))[1].digest != before


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_files_are_read(tmp_path: Path, zipped: bool) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 6, 7))
    content = idx_bytes(array)
    path = tmp_path / ("train-images-idx3-ubyte" + (".gz" if zipped else ""))
    path.write_bytes(gzip.compress(content) if zipped else content)
    for data in (path, tmp_path):
        images = find_images(data)
        assert len(images) == 5
        assert np.array_equal(np.asarray(images.subset([3]).open(0)), array[3])


def test_an_idx_header_is_compared_with_the_file_before_anything_is_unpacked(tmp_path: Path) -> None:
    def idx(*shape: int, content: bytes = b"") -> bytes:
        return bytes([0, 0, 8, len(shape)]) + b"".join(side.to_bytes(4, "big") for side in shape) + content

    bomb = gzip.compress(idx(100_000, 1000, 1) + bytes(10**8))
    cases = {
        "promise.gz": (gzip.compress(idx(2**31, 2**10, 2**10)), "a decompression bomb"),
        "bomb.gz": (bomb, "a decompression bomb"),
        "longer.gz": (gzip.compress(idx(2, 2, 2) + bytes(10**7)), "9 bytes of content where its header promises 8"),
        "promise": (idx(2**31, 2**10, 2**10), "more than the 4,294,967,296"),
        "axes": (idx(*[0] * 200), "not an idx file"),
        "short.gz": (gzip.compress(idx(2, 2, 2))[:-12], "can't be read"),
        "broken.gz": (gzip.compress(b"12345" * 9)[:10] + b"\xff" * 20, "can't be read"),
    }
    for name, (content, reason) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=reason):
            read_idx(tmp_path / name)
    (tmp_path / "blank.gz").write_bytes(gzip.compress(idx(100, 100, 100) + bytes(10**6)))
    assert read_idx(tmp_path / "blank.gz").shape == (100, 100, 100)  # white space is no bomb


def test_a_cut_off_idx_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(idx_bytes(np.zeros((5, 6, 7)))[:-3])
    with pytest.raises(DataError, match="cut off"):
        find_images(path)


def test_folders_without_images_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="empty"):
        find_images(tmp_path)
    (tmp_path / "table.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"no images among its 1 files \(1 \.csv\)"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="not an idx file"):
        find_images(tmp_path / "table.csv")


def test_a_full_crop_is_the_whole_image_and_the_last_draw_mirrors_it() -> None:
    image = noise_image(7, (24, 24))
    square = 0.5  # the middle of the aspect ratios: 1
    kept = random_resized_crop(image, (24, 24), np.array([1.0, square, 0, 0, 0.9]), (0.5, 1.0))
    mirrored = random_resized_crop(image, (24, 24), np.array([1.0, square, 0, 0, 0.1]), (0.5, 1.0))
    assert np.array_equal(kept, np.asarray(image))
    assert np.array_equal(mirrored, np.asarray(image)[:, ::-1])


def test_crops_have_the_size_asked_for_and_stay_inside() -> None:
    image = Image.new("RGB", (50, 30), "white")
    for draws in np.random.default_rng(0).random((200, 5)):
        crop = random_resized_crop(image, (16, 24), draws, (0.05, 1.0))
        assert crop.shape == (16, 24, 3)
        assert crop.min() == 255


def test_fitting_keeps_the_centre_and_the_shape() -> None:
    pixels = np.zeros((20, 60), np.uint8)
    pixels[:, 20:40] = 255
    fitted = fit_and_crop(Image.fromarray(pixels), (10, 10))
    assert fitted.shape == (10, 10, 1) and fitted.min() > 230  # the filter reaches a little beyond the box


def test_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    for number, level in enumerate((0, 255)):
        Image.new("L", (8, 8), level).save(tmp_path / f"{number}.png")
    mean, std = channel_statistics(find_images(tmp_path), 1)
    assert mean == pytest.approx((0.5,)) and std == pytest.approx((0.5,))
