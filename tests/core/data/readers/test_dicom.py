"""DICOM files are read as pydicom and numpy read them, whatever their bits, signs, colours and compressions."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maelift.cli import main
from maelift.core.data.decode import decode, open_picture, upright_size
from maelift.core.data.image_formats import SUFFIXES
from maelift.core.data.images import as_image, opened
from maelift.core.data.pixel_format import ANY_FORMAT, PixelFormat
from maelift.core.data.readers import dicom as dicom_reader
from maelift.core.data.readers.dicom import open_dicom
from maelift.core.data.readers.folder import find_images
from maelift.core.data.slices import Slices
from maelift.core.errors import ConfigError, DataError
from maelift.pretrain.config import PretrainConfig
from maelift.tests.support import TINY, framework
from numpy.typing import NDArray

pydicom = framework("pydicom")
from pydicom.data import get_testdata_file  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    RLELossless,
    generate_uid,
)

ANY = PixelFormat(value_range=(-1e9, 1e9))
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
BUNDLED_GRAY = (
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "MR_small_padded.dcm",
    "J2K_pixelrep_mismatch.dcm",
    "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm",
    "JPGExtended.dcm",
    "examples_overlay.dcm",
    "rtdose_1frame.dcm",
)
BUNDLED_COLOUR = (
    "ExplVR_BigEnd.dcm",
    "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm",
    "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm",
    "SC_rgb_rle.dcm",
    "SC_rgb_small_odd.dcm",
    "SC_rgb_small_odd_big_endian.dcm",
    "SC_rgb_small_odd_jpeg.dcm",
    "SC_ybr_full_422_uncompressed.dcm",
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def dataset(values: NDArray[Any], syntax: Any = ExplicitVRLittleEndian, **attributes: object) -> Dataset:
    """A dataset of values (H, W), (H, W, 3), or frames of these with NumberOfFrames given."""
    found = Dataset()
    found.file_meta = FileMetaDataset()
    found.file_meta.TransferSyntaxUID = syntax
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, generate_uid()
    colour = values.ndim - ("NumberOfFrames" in attributes) == 3
    bits = 8 * values.dtype.itemsize
    found.Rows, found.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    found.SamplesPerPixel = 3 if colour else 1
    found.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        found.PlanarConfiguration = 0
    found.BitsAllocated = found.BitsStored = bits
    found.PixelRepresentation = int(values.dtype.kind == "i")
    for key, value in attributes.items():
        setattr(found, key, value)
    found.HighBit = found.BitsStored - 1
    stored = values.astype(values.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<"))
    data = stored.tobytes()
    found.PixelData = data + b"\0" * (len(data) % 2)
    found["PixelData"].VR = "OW" if bits > 8 else "OB"
    return found


def written(found: Dataset, **options: Any) -> bytes:
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, **({"enforce_file_format": True} | options))
    return file.getvalue()


def dicom(values: NDArray[Any], syntax: Any = ExplicitVRLittleEndian, **attributes: object) -> bytes:
    return written(dataset(values, syntax, **attributes))


def read(content: bytes, form: PixelFormat = ANY_FORMAT, name: str = "a.dcm") -> NDArray[Any]:
    return open_picture(Path(name), content, form).pixels()


def noise(
    shape: tuple[int, ...], dtype: Any = np.uint16, low: int = 0, high: int = 4096, seed: int = 0
) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def by_pydicom(content: bytes) -> NDArray[Any]:
    """What pydicom makes of a gray file: its modality values, (H, W, 1) float32."""
    found = pydicom.dcmread(io.BytesIO(content), force=True)
    values: NDArray[Any] = pydicom.pixels.apply_modality_lut(found.pixel_array, found).astype(np.float32)
    return values[:, :, None]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.sampled_from([8, 16, 32]),
    st.integers(1, 32),
    st.booleans(),
    st.sampled_from(NATIVE),
    st.sampled_from([(1.0, 0.0), (1.0, -1024.0), (0.5, 3.0), (-2.0, 7.25)]),
    st.integers(0, 2**16),
)
def test_gray_of_any_bits_is_what_pydicom_reads(
    shape: tuple[int, int],
    allocated: int,
    stored: int,
    signed: bool,
    syntax: Any,
    rescale: tuple[float, float],
    seed: int,
) -> None:
    stored = min(stored, allocated, 24)  # float32 has 24 bits of them
    low, high = (-(2 ** (stored - 1)), 2 ** (stored - 1)) if signed else (0, 2**stored)
    values = noise(shape, np.dtype(f"{'i' if signed else 'u'}{allocated // 8}"), low, high, seed)
    content = dicom(values, syntax, BitsStored=stored, RescaleSlope=rescale[0], RescaleIntercept=rescale[1])
    assert np.array_equal(read(content, ANY), by_pydicom(content))
    if signed or rescale != (1.0, 0.0) or stored > 16:
        with pytest.raises(DataError, match=r"no known range.*value_range=.*here .* to "):
            read(content)
        return
    picture = read(content)
    scaled = values.astype(np.float64)[:, :, None] * (255 / (2**stored - 1))
    assert picture.dtype == (np.uint8 if stored <= 8 else np.float32)
    assert np.abs(picture - scaled).max() <= (0.5 if stored < 8 else 1e-4)


@pytest.mark.parametrize("name", BUNDLED_GRAY)
def test_pydicom_s_own_files_of_gray_are_read_as_it_reads_them(name: str) -> None:
    content = Path(get_testdata_file(name)).read_bytes()
    assert np.array_equal(np.nan_to_num(read(content, ANY), nan=-2000), by_pydicom(content))


@pytest.mark.parametrize("name", BUNDLED_COLOUR)
def test_pydicom_s_own_files_of_colour_are_read_as_it_reads_them(name: str) -> None:
    content = Path(get_testdata_file(name)).read_bytes()
    picture = read(content)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, pydicom.pixels.pixel_array(io.BytesIO(content)))


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 36), np.uint8),
        ((40, 36), np.uint16),
        ((40, 36), np.int16),
        ((40, 36, 3), np.uint8),
        ((40, 36, 3), np.uint16),
    ],
)
def test_lossless_compressions_give_the_values_that_were_compressed(
    syntax: Any, shape: tuple[int, ...], dtype: Any
) -> None:
    low, high = (-500, 500) if dtype == np.int16 else (0, 256 if dtype == np.uint8 else 65536)
    values = noise(shape, dtype, low, high)
    found = dataset(values)
    found.compress(syntax, encoding_plugin="pydicom" if syntax == RLELossless else "pylibjpeg")
    picture = read(written(found), ANY)
    assert np.array_equal(picture, values if values.ndim == 3 else values[:, :, None])


def test_planes_of_colour_are_put_together() -> None:
    values = noise((5, 6, 3), np.uint8, 0, 256)
    found = dataset(values, PlanarConfiguration=1)
    found.PixelData = values.transpose(2, 0, 1).tobytes()
    assert np.array_equal(read(written(found)), values)


def test_ybr_is_converted_to_rgb() -> None:
    from PIL import Image

    values = noise((6, 6, 3), np.uint8, 0, 256)
    content = dicom(values, PhotometricInterpretation="YBR_FULL")
    expected = np.asarray(Image.fromarray(values, "YCbCr").convert("RGB")).astype(int)
    assert np.abs(read(content).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("stored", [8, 16])
def test_a_palette_is_mapped_to_its_colours(stored: int) -> None:
    values = noise((5, 6), np.uint8, 0, 4)
    colours = noise((4, 3), np.uint16, 0, 256)
    tables: dict[str, Any] = {}
    for place, colour in enumerate(("Red", "Green", "Blue")):
        own = colours[:, place] if stored == 8 else colours[:, place] * 257
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [4, 0, stored]
        tables[f"{colour}PaletteColorLookupTableData"] = own.astype(np.uint8 if stored == 8 else "<u2").tobytes()
    content = dicom(values, PhotometricInterpretation="PALETTE COLOR", **tables)
    assert np.array_equal(read(content), colours[values].astype(np.uint8))


def test_a_palette_that_is_missing_is_said() -> None:
    with pytest.raises(DataError, match="its palette can't be read"):
        read(dicom(noise((5, 6), np.uint8, 0, 4), PhotometricInterpretation="PALETTE COLOR"))


@pytest.mark.parametrize("signed", [False, True])
def test_monochrome1_is_inverted_within_the_stored_bits(signed: bool) -> None:
    low, high = (-2048, 2048) if signed else (0, 4096)
    values = noise((5, 6), np.int16 if signed else np.uint16, low, high)
    content = dicom(values, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(content, ANY)[:, :, 0], (low + high - 1) - values.astype(int))


def test_twelve_bits_are_scaled_to_255_and_it_is_noted() -> None:
    values = np.array([[0, 4095], [2047, 1]], np.uint16)
    found = open_picture(Path("a.dcm"), dicom(values, BitsStored=12))
    assert np.allclose(found.pixels()[:, :, 0], values * (255 / 4095))
    assert found.bits == 16 and found.notes == ("12 bits of 16: scaled to 0 to 255",)
    assert open_picture(Path("a.dcm"), dicom(values, BitsStored=12), ANY).notes == ("12 bits of 16",)


@pytest.mark.parametrize("limit", [None, -2010])
def test_padding_has_no_value(limit: int | None) -> None:
    values = noise((5, 6), np.int16, 0, 500)
    values[0], values[1] = -2000, -2010
    attributes = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    content = dicom(values, PixelPaddingValue=-2000, RescaleIntercept=-1024, RescaleSlope=1, **attributes)
    picture = read(content, ANY)[:, :, 0]
    assert np.isnan(picture[0]).all() and np.isnan(picture[1]).all() == (limit is not None)
    assert np.array_equal(picture[2:], values[2:] - 1024.0)
    assert np.isnan(read(content, PixelFormat(window=(40, 400)))[0]).all()
    with pytest.raises(DataError, match="here -" if limit is None else "here -1024|here -10"):
        read(content)


def test_padding_of_unsigned_values_stays_out_of_the_scaled_ones() -> None:
    values = noise((5, 6), np.uint8, 1, 256)
    values[0] = 0
    picture = read(dicom(values, PixelPaddingValue=0))[:, :, 0]
    assert np.isnan(picture[0]).all() and np.array_equal(picture[1:], values[1:])
    assert open_picture(Path("a.dcm"), dicom(values, PixelPaddingValue=0)).bits == 32


def test_a_stored_value_of_the_user_s_has_no_value_either() -> None:
    values = np.array([[1, 2], [3, 4]], np.uint16)
    picture = read(dicom(values, RescaleIntercept=-10, RescaleSlope=1), PixelFormat(value_range=(-20, 20), nodata=3))
    assert np.array_equal(picture[:, :, 0], np.array([[-9, -8], [np.nan, -6]]), equal_nan=True)


def test_a_window_maps_its_values_to_255() -> None:
    values = np.array([[-1000, -160, 40], [240, 239, 3000]], np.int16)
    picture = read(dicom(values), PixelFormat(window=(40, 400)))[:, :, 0]
    assert picture.dtype == np.float32
    assert np.allclose(picture, [[0, 0, 127.5], [255, 254.3625, 255]])


def test_a_frame_s_own_rescaling_comes_first() -> None:
    values = noise((2, 4, 5), np.uint16)
    found = dataset(values, NumberOfFrames=2)
    groups = []
    for slope in (2, 3):
        transformation, group = Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, -5
        group.PixelValueTransformationSequence = [transformation]
        groups.append(group)
    found.PerFrameFunctionalGroupsSequence = groups
    content = written(found)
    for frame, slope in ((1, 2), (2, 3)):
        picture = read(content, PixelFormat(value_range=(-1e9, 1e9), frame=frame))
        assert np.array_equal(picture[:, :, 0], values[frame - 1] * float(slope) - 5)


def test_of_several_frames_one_is_chosen_or_each_is_an_image(tmp_path: Path) -> None:
    values = noise((4, 5, 6), np.uint8, 0, 256)
    values[2] = 7  # empty
    (tmp_path / "cine.dcm").write_bytes(dicom(values, NumberOfFrames=4))
    (tmp_path / "one.dcm").write_bytes(dicom(values[0]))
    with pytest.raises(DataError, match="4 frames; give frame=N for one of them, from 1, or frame=all"):
        decode(tmp_path / "cine.dcm")
    with pytest.raises(DataError, match="no frame 5: it has 4"):
        decode(tmp_path / "cine.dcm", None, PixelFormat(frame=5))
    assert np.array_equal(np.asarray(decode(tmp_path / "cine.dcm", None, PixelFormat(frame=2))), values[1])
    images = find_images(tmp_path, slices=Slices(frames=True))
    assert [images.name(n) for n in range(len(images))] == ["cine.dcm[1]", "cine.dcm[2]", "cine.dcm[4]", "one.dcm"]
    for number, frame in enumerate((0, 1, 3, 0)):
        assert np.array_equal(opened(images, number).pixels()[:, :, 0], values[frame])
        assert np.array_equal(np.asarray(images.open(number)), values[frame])
    assert len(find_images(tmp_path / "cine.dcm", slices=Slices(frames=True, step=3))) == 2


def test_files_without_preamble_are_known_by_their_name_and_others_by_their_content(tmp_path: Path) -> None:
    values = noise((5, 6), np.uint8, 0, 256)
    bare = written(dataset(values, ImplicitVRLittleEndian), enforce_file_format=False)
    found = dataset(values)
    del found.file_meta
    file = io.BytesIO()
    pydicom.dcmwrite(file, found, implicit_vr=True, little_endian=True)
    for content in (bare, file.getvalue()):
        assert np.array_equal(read(content, name="a.DCM")[:, :, 0], values)
    with pytest.raises(DataError, match="not an image"):
        read(file.getvalue(), name="a.png")
    assert np.array_equal(read(dicom(values), name="IM0001")[:, :, 0], values)
    (tmp_path / "a.dicom").write_bytes(dicom(values))
    assert np.array_equal(np.asarray(as_image(tmp_path / "a.dicom")), values)
    assert upright_size(tmp_path / "a.dicom") == (5, 6)
    assert {".dcm", ".dicom"} <= SUFFIXES


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("reportsi.dcm", r"a DICOM file without pixels \(Basic Text SR Storage\)"),
        ("MR_truncated.dcm", "its pixels can't be decoded .*less than expected"),
        ("JPEG-lossy.dcm", "its pixels can't be decoded .*pylibjpeg"),
        ("meta_missing_tsyntax.dcm", "states no BitsAllocated"),
    ],
)
def test_files_without_an_image_say_why_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as raised:
        read(Path(get_testdata_file(name)).read_bytes(), ANY)
    assert "\n" not in str(raised.value)


def test_a_compression_that_nothing_decodes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = dataset(noise((5, 6), np.uint8, 0, 256))
    found.compress(RLELossless, encoding_plugin="pydicom")
    found.file_meta.TransferSyntaxUID = pydicom.uid.MPEG4HP41
    with pytest.raises(DataError, match=r"its compression .MPEG-4.* is one that isn't read"):
        read(written(found))
    decoder = pydicom.pixels.get_decoder(RLELossless)
    monkeypatch.setattr(type(decoder), "is_available", False)
    found.file_meta.TransferSyntaxUID = RLELossless
    with pytest.raises(DataError, match=r"RLE Lossless\) needs pylibjpeg: pip install 'maelift\[dicom\]'"):
        read(written(found))


def test_without_pydicom_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'maelift\[dicom\]'"):
        open_dicom(b"\0" * 128 + b"DICM", PixelFormat())
    assert dicom_reader.is_dicom(b"\0" * 128 + b"DICM")


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"window": (40.0, 0.0)}, "window"),
        ({"window": (40.0, 400.0), "value_range": (0.0, 1.0)}, "window"),
        ({"frame": 0}, "frame"),
        ({"slice_axis": 3}, "slice_axis"),
        ({"slice_step": 0}, "slice_step"),
        ({"slice_content": 1.5}, "slice_content"),
    ],
)
def test_keys_that_can_t_be_meant_are_refused(keys: dict[str, Any], name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}="):
        PretrainConfig(data="a", out="b", **keys)


def hostile(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """A file cut off, and with bytes that changed."""
    draws = np.random.default_rng(seed)
    for _ in range(count):
        yield content[: draws.integers(len(content))]
        array = np.frombuffer(content, np.uint8).copy()
        places = draws.integers(0, len(array), draws.integers(1, 6))
        array[places] = draws.integers(0, 256, len(places))
        yield array.tobytes()
        head = np.frombuffer(content, np.uint8).copy()  # where the keys are
        head[draws.integers(128, min(len(head), 900), 3)] = draws.integers(0, 256, 3)
        yield head.tobytes()


@pytest.mark.parametrize("kind", ["native", "rle", "j2k", "colour", "jpeg"])
def test_damaged_files_raise_nothing_but_data_errors(kind: str) -> None:
    found = dataset(noise((40, 36, 3) if kind == "colour" else (40, 36), np.uint8, 0, 256))
    if kind in ("rle", "j2k"):
        syntax = RLELossless if kind == "rle" else JPEG2000Lossless
        found.compress(syntax, encoding_plugin="pydicom" if kind == "rle" else "pylibjpeg")
    content = written(found) if kind != "jpeg" else Path(get_testdata_file("SC_rgb_small_odd_jpeg.dcm")).read_bytes()
    for broken in hostile(content, 1, 40):
        for form in (ANY, PixelFormat()):
            try:
                read(broken, form)
            except DataError as error:
                assert "\n" not in str(error)


@pytest.mark.slow
def test_from_pretraining_to_predictions_on_ct(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(20):
        values = noise((20, 24), np.uint16, 900, 1100, number)
        values[:, :10] += 400 * (number % 2)
        file = tmp_path / "ct" / ("left" if number % 2 else "right") / f"{number:02d}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(dicom(values, BitsStored=12, RescaleIntercept=-1024, RescaleSlope=1))
    data, run = f"data={tmp_path / 'ct'}", tmp_path / "mae"
    assert main(["pretrain", data, f"out={tmp_path / 'no'}", *TINY, "epochs=1"]) == 2
    refused = capsys.readouterr().err.strip().splitlines()[-1]
    assert "value_range=[lowest,highest]" in refused
    assert main(["pretrain", data, f"out={run}", "window=[40,800]", *TINY, "epochs=1", "evaluations=1"]) == 0
    keys = [
        f"encoder={run / 'encoder.safetensors'}",
        data,
        "steps=2",
        "evaluations=1",
        "workers=0",
        "val=4",
        "test=4",
    ]
    assert main(["transfer", "classify", *keys, f"out={tmp_path / 'classes'}", "recipe=small"]) == 0
    model, found = tmp_path / "classes" / "model.safetensors", tmp_path / "found.csv"
    assert main(["predict", f"model={model}", f"images={tmp_path / 'ct'}", f"out={found}"]) == 0
    assert len(found.read_text().splitlines()) == 21
