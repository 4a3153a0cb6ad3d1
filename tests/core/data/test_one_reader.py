"""Pretraining, transfer and prediction read the same values of a file, those of PIL and tifffile, whatever its kind."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data import image_formats
from maelift.core.data.audit import audit, summary_lines
from maelift.core.data.decode import decode, open_picture, upright_size
from maelift.core.data.image_formats import SUFFIXES, what_reads
from maelift.core.data.images import as_image, opened, stored_pixels
from maelift.core.data.pixel_format import DEEP, PixelFormat, background_colour, picture_of
from maelift.core.data.readers.folder import find_images
from maelift.core.data.segmentation_reader import image_size
from maelift.core.data.transforms import to_array
from maelift.core.errors import ConfigError, DataError
from maelift.core.models.preprocessing import Preprocessing
from maelift.tests.support import deep_png, framework, noise_image
from PIL import Image, ImageOps

PRETRAINING, TRANSFER = PixelFormat(3), PixelFormat(plain=True)
SIZE = (12, 10)
"""Width and height of the images here."""


def noise(shape: tuple[int, ...], dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def both(content: bytes, name: str = "a.png") -> tuple[np.ndarray, np.ndarray]:
    """What pretraining and what transfer makes of a file, (3, H, W)."""
    pretraining = to_array(open_picture(Path(name), content, PRETRAINING).pixels(), 3)
    return pretraining, to_array(decode(Path(name), content), 3)


COLOUR = Image.fromarray(noise((10, 12, 3)))
CLEAR = Image.fromarray(noise((10, 12, 4)))
CMYK = Image.fromarray(noise((10, 12, 4), seed=1), "CMYK")
PALETTE = COLOUR.quantize(16)
MODES = {"1": COLOUR.convert("1"), "L": COLOUR.convert("L"), "LA": CLEAR.convert("LA"), "P": PALETTE, "RGB": COLOUR}
MODES |= {
    "RGBA": CLEAR,
    "CMYK": CMYK,
    "YCbCr": COLOUR.convert("YCbCr"),
    "I;16": Image.fromarray(noise((10, 12), np.uint16)),
}
FORMATS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"),
    "JPEG": ("L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA", "L"),
    "GIF": ("1", "L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
    "DIB": ("L", "RGB"),
    "AVIF": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
    "TGA": ("L", "LA", "P", "RGB", "RGBA"),
    "PCX": ("L", "P", "RGB"),
    "ICO": ("RGBA",),
    "QOI": ("RGB", "RGBA"),
    "SGI": ("L", "RGB"),
    "DDS": ("RGB", "RGBA"),
}


def by_pil(content: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """What PIL shows of a file, (3, H, W): its own conversions, and its own alpha_composite."""
    image: Image.Image = Image.open(io.BytesIO(content))
    image.load()
    if image.mode.startswith("I"):
        gray: np.ndarray = np.asarray(image).astype(np.float64) / 257
        return np.repeat(gray[None], 3, axis=0)
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, (*background, 255)), clear)
    shown: np.ndarray = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.float64)
    return shown


@pytest.mark.parametrize("kind", FORMATS)
def test_every_mode_of_every_format_has_the_values_of_pil_for_every_command(kind: str) -> None:
    for mode in FORMATS[kind]:
        content = saved(MODES[mode], kind)
        pretraining, transfer = both(content, "a.bin")
        assert np.array_equal(pretraining, transfer), mode
        difference = np.abs(transfer.astype(float) - by_pil(content))
        assert difference.max() <= (1 if "A" in mode else 1e-3), mode  # composited: rounded, where PIL's is within 1


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_the_transparent_colour_of_a_png_is_composited(mode: str) -> None:
    image = MODES[mode]
    first = image.getpixel((3, 4))
    content = saved(image, "PNG", transparency=first)
    pretraining, transfer = both(content)
    assert np.array_equal(pretraining, transfer)
    opaque = both(saved(image, "PNG"))[1]
    hidden = np.asarray(image) == np.asarray(first)
    hidden = hidden.all(axis=2) if hidden.ndim == 3 else hidden
    assert (transfer[:, hidden] == 255).all() and np.array_equal(transfer[:, ~hidden], opaque[:, ~hidden])


def test_a_palette_with_an_opacity_a_colour_is_composited() -> None:
    content = saved(PALETTE, "PNG", transparency=bytes(range(0, 256, 16)))
    pretraining, transfer = both(content)
    assert np.array_equal(pretraining, transfer)
    assert np.abs(transfer - by_pil(content)).max() <= 1


def composited(array: np.ndarray, background: float, premultiplied: bool = False) -> np.ndarray:
    """Colour and opacity (H, W, C + 1) from 0 to 255 on a background, in floating point."""
    colour, opacity = array[:, :, :-1].astype(float), array[:, :, -1:] / 255
    return (colour if premultiplied else colour * opacity) + background * (1 - opacity)


@pytest.mark.parametrize("compression", ["lzw", "deflate", "zstd", "lzma", "packbits"])
def test_deep_colour_tiff_is_read_however_it_is_compressed(compression: str) -> None:
    tifffile = framework("tifffile")
    framework("imagecodecs")
    values, file = noise((10, 12, 3), np.uint16), io.BytesIO()
    tifffile.imwrite(file, values, photometric="rgb", compression=compression)
    pretraining, transfer = both(file.getvalue(), "a.tif")
    assert np.array_equal(pretraining, transfer)
    assert np.allclose(pretraining, values.transpose(2, 0, 1) / 257, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("premultiplied", [False, True])
def test_tiff_with_opacity_is_composited(channels: int, dtype: type, premultiplied: bool) -> None:
    array = noise((10, 12, channels + 1), dtype)
    if premultiplied:
        array[:, :, :-1] = (array[:, :, :-1].astype(np.uint64) * array[:, :, -1:] // np.iinfo(dtype).max).astype(dtype)
    file = io.BytesIO()
    framework("tifffile").imwrite(
        file,
        array,
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=["assocalpha" if premultiplied else "unassalpha"],
    )
    pretraining, transfer = both(file.getvalue(), "a.tif")
    assert np.array_equal(pretraining, transfer)
    expected = composited(array / (257 if dtype == np.uint16 else 1), 255, premultiplied).transpose(2, 0, 1)
    limit = 0.01 if dtype == np.uint16 else 1.01  # PIL takes the opacity of 8 bits out, and it is put in again
    assert np.abs(transfer - np.broadcast_to(expected, transfer.shape)).max() <= limit


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_16_bits_keeps_them_and_is_composited(channels: int) -> None:
    array = noise((10, 12, channels), np.uint16)
    array[2:4, :, -1] = 65535 if channels != 3 else array[2:4, :, -1]
    pretraining, transfer = both(deep_png(array))
    assert np.array_equal(pretraining, transfer) and transfer.dtype == np.float32
    expected = array / 257 if channels == 3 else composited(array / 257, 255)
    assert np.allclose(transfer, expected.transpose(2, 0, 1), atol=0.01)
    opaque = np.float32(array[2:4, :, :3] if channels == 3 else array[2:4, :, :-1]) * DEEP
    assert np.array_equal(transfer[:, 2:4], np.broadcast_to(opaque.transpose(2, 0, 1), (3, 2, 12)))  # to the bit


def transparent_png(array: np.ndarray, clear: np.ndarray) -> bytes:
    """A PNG in colour of 16 bits of which one colour is transparent."""
    content = deep_png(array)
    body = b"tRNS" + clear.astype(">u2").tobytes()
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return content[:33] + chunk + content[33:]


def test_the_transparent_colour_of_16_bits_is_compared_with_all_its_bits() -> None:
    array = np.full((4, 4, 3), 1000, np.uint16)
    array[0, 0] = 1001  # the same in 8 bits
    pretraining, transfer = both(transparent_png(array, array[0, 0]))
    assert np.array_equal(pretraining, transfer)
    assert (transfer[:, 0, 0] == 255).all() and np.allclose(transfer[:, 1], 1000 / 257)


@pytest.mark.parametrize("most", [65535, 4095])
def test_ppm_in_colour_of_16_bits_keeps_them(most: int) -> None:
    array = noise((10, 12, 3), np.uint16) % np.uint16(most) if most < 65535 else noise((10, 12, 3), np.uint16)
    content = b"P6\n12 10\n%d\n" % most + array.astype(">u2").tobytes()
    pretraining, transfer = both(content, "a.ppm")
    assert np.array_equal(pretraining, transfer) and transfer.dtype == np.float32
    assert np.allclose(transfer, array.transpose(2, 0, 1) * (255 / most), atol=0.01)
    stored = open_picture(Path("a.ppm"), content, PixelFormat(3, (0, most))).pixels()
    assert np.array_equal(stored, array)
    with pytest.raises(DataError, match=r"a.ppm: cut off"):
        open_picture(Path("a.ppm"), content[:-1])


def test_bits_that_are_not_read_are_noted() -> None:
    heif, file = framework("pillow_heif"), io.BytesIO()
    heif.encode("RGB;16", (16, 16), bytes(16 * 16 * 6), file, quality=90)
    assert "10 bits, of which HEIF is read with 8" in open_picture(Path("a.heic"), file.getvalue()).notes[0]
    for kind in ("JPEG2000", "AVIF"):
        assert open_picture(Path("a.bin"), saved(COLOUR, kind)).notes == ()


@pytest.mark.parametrize(("text", "colour"), [("white", 255), ("black", 0), ("#404040", 64)])
def test_the_background_is_the_one_that_was_asked_for(text: str, colour: int) -> None:
    form = PixelFormat(background=background_colour(text))
    for content in (saved(CLEAR, "PNG"), saved(MODES["LA"], "PNG")):
        picture = open_picture(Path("a.png"), content, form).pixels()
        expected = by_pil(content, (colour,) * 3).transpose(1, 2, 0)
        assert np.abs(picture - expected[:, :, : picture.shape[2]]).max() <= 1
    gray_on_red = open_picture(Path("a.png"), saved(MODES["LA"], "PNG"), PixelFormat(background=(255, 0, 0))).pixels()
    assert np.abs(gray_on_red - by_pil(saved(MODES["LA"], "PNG"), (255, 0, 0)).transpose(1, 2, 0)).max() <= 1
    stored = PixelFormat(3, (0, 4095), background_colour(text))  # 12 bits: white is their highest value
    clear = open_picture(Path("a.png"), deep_png(np.zeros((4, 4, 4), np.uint16)), stored).pixels()
    assert np.allclose(clear, 4095 * colour / 255, atol=0.5)


def test_words_that_are_no_colour_are_refused() -> None:
    for text in ("whit", "#12345", "none", ""):
        with pytest.raises(ConfigError, match="expected a colour such as white, black, gray or '#rrggbb', or drop"):
            background_colour(text)
    assert background_colour("drop") is None


def test_opaque_images_stay_as_they_are_and_nothing_is_said() -> None:
    opaque = Image.merge("RGBA", (*COLOUR.split(), Image.new("L", SIZE, 255)))
    for kind in ("PNG", "TIFF", "WEBP"):
        image = open_picture(Path("a"), saved(opaque, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert np.array_equal(image.pixels(), np.asarray(COLOUR)) and not image.decoded_notes


def test_in_memory_images_are_composited_as_the_encoder_says() -> None:
    black = Preprocessing(("red", "green", "blue"), (0.5,) * 3, (0.5,) * 3, background="black").reading
    expected = composited(np.asarray(CLEAR), 0).transpose(2, 0, 1)
    for image in (CLEAR, np.asarray(CLEAR)):
        assert np.abs(stored_pixels(image, 3, black) - expected).max() <= 1
    old = Preprocessing(("red", "green", "blue"), (0.5,) * 3, (0.5,) * 3).reading  # of a file that doesn't say
    assert np.array_equal(to_array(as_image(CLEAR, old), 3), np.asarray(CLEAR)[:, :, :3].transpose(2, 0, 1))


def test_arrays_in_memory_keep_their_bits() -> None:
    deep = noise((10, 12, 3), np.uint16)
    assert np.allclose(stored_pixels(deep, 3), deep.transpose(2, 0, 1) / 257, atol=1e-4)
    floats = deep.astype(np.float32) / 257
    assert np.array_equal(stored_pixels(floats, 3), floats.transpose(2, 0, 1))
    assert np.array_equal(as_image(floats), as_image(as_image(floats)))  # type: ignore[arg-type]
    for array in (np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4)), np.zeros(4), np.zeros((4, 4), np.int64)):
        with pytest.raises(DataError, match="expected"):
            as_image(array)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_every_orientation_is_upright_in_size_and_pixels(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind.lower()}"
    COLOUR.save(path, kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    image = open_picture(path)
    assert image.size == upright_size(path) == image_size(path) == expected.shape[:2]
    assert image.turned == (orientation != 1)
    assert np.array_equal(image.pixels(), expected) and np.array_equal(picture_of(decode(path)), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_tiff_is_upright_too(orientation: int) -> None:
    array, file = noise((10, 12, 3), np.uint16), io.BytesIO()
    tags = [(274, 3, 1, orientation, True)]
    framework("tifffile").imwrite(file, array, photometric="rgb", extratags=tags)
    image = open_picture(Path("a.tif"), file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = orientation
    high = Image.open(io.BytesIO(saved(Image.fromarray((array >> 8).astype(np.uint8)), "PNG", exif=exif)))
    expected = np.asarray(ImageOps.exif_transpose(high))
    assert image.size == expected.shape[:2]
    assert np.abs(image.pixels() - expected).max() <= 1


def test_photos_of_phones_are_read() -> None:
    photo = noise_image(0, (60, 80))
    plain = saved(photo, "JPEG", quality=90)
    expected = np.asarray(Image.open(io.BytesIO(plain)))
    profile = {"icc_profile": b"\0" * 128}
    motion = plain + b"\0\0\0\x18ftypmp42" + bytes(3000)  # a video behind the image
    for content in (plain, motion, plain + bytes(7), saved(photo, "JPEG", quality=90, **profile)):
        assert np.array_equal(open_picture(Path("a.jpg"), content).pixels(), expected)
    several = saved(photo, "MPO", quality=90, save_all=True, append_images=[noise_image(1, (60, 80))])
    image = open_picture(Path("a.jpg"), several)
    assert np.array_equal(image.pixels(), np.asarray(Image.open(io.BytesIO(several)))) and image.notes == ()
    progressive = saved(photo, "JPEG", quality=90, progressive=True)
    assert np.array_equal(picture_of(decode(Path("a.JPG"), progressive)), Image.open(io.BytesIO(progressive)))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"a.jpg: image file is truncated"):
        open_picture(Path("a.jpg"), plain[:-40]).pixels()


def test_heic_is_read_where_pillow_heif_is_and_else_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    framework("pillow_heif").register_heif_opener()
    content = saved(noise_image(0, (48, 64)).resize((64, 48)), "HEIF", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for name in ("a.heic", "a.HEIC", "a.jpg"):
        assert np.array_equal(open_picture(Path(name), content).pixels(), expected)
    assert {".heic", ".heif", ".hif"} <= SUFFIXES
    monkeypatch.setattr(image_formats, "HEIF_INSTALLED", False)
    with pytest.raises(DataError, match=r"a.heic: .*pip install 'maelift\[heif\]'"):
        open_picture(Path("a.heic"), content)
    monkeypatch.setattr(image_formats, "SUFFIXES", SUFFIXES - {".heic"})
    assert what_reads(".HEIC") == "pip install 'maelift[heif]'"


def test_what_pillow_reads_is_listed_whatever_the_case(tmp_path: Path) -> None:
    kinds = {".jfif": "JPEG", ".JPE": "JPEG", ".jp2": "JPEG2000", ".j2k": "JPEG2000", ".avif": "AVIF", ".ppm": "PPM"}
    kinds |= {".pgm": "PPM", ".pbm": "PPM", ".TGA": "TGA", ".dib": "DIB", ".WebP": "WEBP", ".ico": "ICO", ".qoi": "QOI"}
    for number, (suffix, kind) in enumerate(kinds.items()):
        noise_image(number, (32, 32)).convert("L" if suffix == ".pgm" else "1" if suffix == ".pbm" else "RGB").save(
            tmp_path / f"{number:02}{suffix}", kind
        )
    for name in ("a.pdf", "a.eps", "a.mp4", "a.svg", "a.h5", "a.pcd", "a.txt", "a.json"):
        (tmp_path / name).write_bytes(b"%!PS")
    images = find_images(tmp_path)
    assert len(images) == len(kinds)
    sound, manifest = audit(images)
    assert len(sound) == len(kinds) and not [note for _, note in manifest.unusual if "though named" in note]
    assert not SUFFIXES & {".pdf", ".eps", ".ps", ".wmf", ".h5", ".grib", ".mpg", ".pcd", ".bw", ".fits"}
    assert what_reads(".png") is None and what_reads(".cr3") and what_reads(".exr") and what_reads(".txt") is None


def test_no_other_program_is_started_for_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*words: object, **keys: object) -> None:
        raise AssertionError(f"started {words}")

    monkeypatch.setattr(subprocess, "Popen", started)
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("a.eps", "a.jpg", "a.png"):
        with pytest.raises(DataError, match="PostScript"):
            open_picture(Path(name), page).pixels()
    for content, what in (
        (b"%PDF-1.4", "PDF"),
        (b"PK\x03\x04", "zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypisom" + bytes(90), "a video"),
        (b"\0\0\0\x18ftypheic" + bytes(90), "HEIC"),
    ):
        with pytest.raises(DataError, match=what):
            open_picture(Path("a.png"), content)


def test_images_beyond_the_limit_of_pixels_name_it_and_the_way_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    noise_image(0, (60, 80)).save(path)
    monkeypatch.setenv("MAELIFT_MAX_PIXELS", "4799")
    for read in (open_picture, decode, upright_size):
        with pytest.raises(DataError, match=r"a.png: 80×60 px, more than 4,799 pixels: .* MAELIFT_MAX_PIXELS="):
            read(path)
    monkeypatch.setenv("MAELIFT_MAX_PIXELS", "4800")
    assert open_picture(path).size == (60, 80)
    monkeypatch.setenv("MAELIFT_MAX_PIXELS", "many")
    with pytest.raises(DataError, match="MAELIFT_MAX_PIXELS=many; expected a whole number"):
        open_picture(path)
    monkeypatch.delenv("MAELIFT_MAX_PIXELS")
    assert open_picture(path, b"P5 16320 12240 255\n").size == (
        12_240,
        16_320,
    )  # a phone's 200 megapixels, the header alone


def test_other_channels_are_refused_with_their_number(tmp_path: Path) -> None:
    for channels in (2, 4, 5):
        np.save(tmp_path / f"{channels}.npy", noise((9, 8, channels)))
        with pytest.raises(DataError, match=f"{channels} channels, neither gray"):
            decode(tmp_path / f"{channels}.npy")
    np.save(tmp_path / "3.npy", noise((9, 8, 3), np.uint16))
    assert np.allclose(np.asarray(decode(tmp_path / "3.npy")), noise((9, 8, 3), np.uint16) / 257, atol=1e-4)
    np.save(tmp_path / "f.npy", np.zeros((9, 8), np.float32))
    with pytest.raises(DataError, match="floating-point pixels have no known range; give value_range="):
        decode(tmp_path / "f.npy")
    (tmp_path / "a.npy").write_bytes(saved(COLOUR, "PNG"))  # known by its content, not by its name
    assert np.array_equal(picture_of(decode(tmp_path / "a.npy")), np.asarray(COLOUR))  # type: ignore[arg-type]


def test_transparency_and_flat_colours_are_counted(tmp_path: Path) -> None:
    for number in range(3):
        array = np.zeros((20, 20, 4), np.uint8)
        array[2 + number : 9, 3:11, 3] = 255
        Image.fromarray(array).save(tmp_path / f"shape{number}.png")
    Image.new("RGB", (20, 20), "red").save(tmp_path / "red.png")
    Image.new("RGBA", (20, 20), (255, 255, 255, 9)).save(tmp_path / "white.png")
    noise_image(0).save(tmp_path / "photo.png")
    for form in (PRETRAINING, TRANSFER):
        _, manifest = audit(find_images(tmp_path), form=form)
        assert set(summary_lines(6, manifest.unusual)) == {
            "4 of 6 images are one flat colour without their transparency",
            "4 of 6 images have transparency: composited on white (background=)",
            "2 of 6 images are one flat colour (red.png, for example, 1 of them with transparency: another background may "
            "show what they hold)",
        }
    shape = opened(find_images(tmp_path), 3, TRANSFER)
    assert shape.pixels().max() == 255 and shape.pixels().min() == 0


@pytest.mark.parametrize("shape", [(20, 31), (24, 24, 3), (300, 40), (21, 17, 4), (9, 16, 2)])
@pytest.mark.parametrize("kind", ["uint8", "uint16"])
def test_jpeg_xl_has_the_pixels_that_were_written(tmp_path: Path, shape: tuple[int, ...], kind: str) -> None:
    codecs = framework("imagecodecs")
    array = noise(shape, np.dtype(kind).type)
    content = codecs.jpegxl_encode(array, lossless=True)
    path = tmp_path / "a.jxl"
    path.write_bytes(content)
    whole = array if array.ndim == 3 else array[:, :, None]
    found = open_picture(path, form=PixelFormat(channels=whole.shape[2], value_range=(0, 65535)))
    assert found.size == shape[:2] == upright_size(path) and found.bits == 8 * array.dtype.itemsize
    assert np.array_equal(found.pixels(), whole)
    if whole.shape[2] in (2, 4):
        shown = open_picture(path)
        alpha = whole[:, :, -1:] / np.iinfo(array.dtype).max
        expected = whole[:, :, :-1] / np.iinfo(array.dtype).max * 255 * alpha + 255 * (1 - alpha)
        assert (
            np.abs(shown.pixels().astype(np.float64) - expected).max() <= 1 and "transparency" in shown.decoded_notes[0]
        )
    for broken in (content[: len(content) // 2], content[:13], content[:12] + bytes(40)):
        with pytest.raises(DataError, match=r"a.jxl: a JPEG XL image that"):
            open_picture(Path("a.jxl"), broken).pixels()


def test_jpeg_xl_without_imagecodecs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(
        DataError, match=r"a.jxl: a JPEG XL image, which imagecodecs reads: pip install 'maelift\[tiff\]'"
    ):
        open_picture(Path("a.jxl"), b"\xff\x0a" + bytes(30))
