"""Slices of NIfTI volumes are what nibabel and numpy make of them, however the array lies in space."""

from __future__ import annotations

import gzip
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.init_suite import InitConfig, init
from maelift.benchmarks.suite import BenchConfig
from maelift.cli import main
from maelift.core.data import unread
from maelift.core.data.classification import LabelKeys
from maelift.core.data.classification_reader import read_parts, read_splits
from maelift.core.data.decode import decode, open_picture, upright_size
from maelift.core.data.image_formats import SUFFIXES
from maelift.core.data.images import opened
from maelift.core.data.pixel_format import PixelFormat
from maelift.core.data.readers import nifti, volumes
from maelift.core.data.readers.folder import find_images
from maelift.core.data.readers.nifti import read_volume
from maelift.core.data.segmentation_reader import parse_segmentation
from maelift.core.data.slices import Slices, file_of, number_of
from maelift.core.data.sources import find_source, find_sources
from maelift.core.errors import DataError
from maelift.core.models.preprocessing import Preprocessing, reading_fields
from maelift.core.tools.check_data import DataCheckConfig, data_check
from maelift.core.tools.pack_shards import PackConfig, pack
from maelift.tests.core.data.readers.test_dicom import dicom
from maelift.tests.support import TINY, framework, noise_image
from numpy.typing import NDArray

nibabel = framework("nibabel")

WIDE = PixelFormat(value_range=(-1e9, 1e9))
TURNS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in ((1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, 1))
]


def noise(
    shape: tuple[int, ...], dtype: Any = np.int16, low: int = -500, high: int = 500, seed: int = 0
) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


def affine(
    spacing: tuple[float, ...] = (1, 1, 1), order: tuple[int, ...] = (0, 1, 2), signs: tuple[int, ...] = (1, 1, 1)
) -> NDArray[np.float64]:
    """The affine of an array whose axis number i is axis order[i] of RAS, in the direction of signs[i]."""
    found = np.diag([0.0, 0, 0, 1])
    for stored, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        found[axis, stored] = sign * spacing[stored]
    return found


def save(path: Path, values: NDArray[Any], where: NDArray[np.float64] | None = None, **header: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine() if where is None else where)
    if header:
        image.header.set_slope_inter(header["slope"], header["inter"])
    nibabel.save(image, path)
    return path


def by_nibabel(path: Path, axis: int, number: int) -> NDArray[np.float32]:
    """Slice ``number``, from 1, of the canonical array, its first axis upwards and its second to the right."""
    canonical = nibabel.as_closest_canonical(nibabel.load(path)).get_fdata()
    found: NDArray[np.float32] = np.rot90(canonical.take(number - 1, axis)).astype(np.float32)
    return found


def read(path: Path, number: int, form: PixelFormat = WIDE) -> NDArray[Any]:
    return open_picture(path.with_name(f"{path.name}[{number}]"), None, form).pixels()


@pytest.mark.parametrize(("order", "signs"), TURNS)
def test_slices_are_those_of_the_canonical_array(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    path = save(tmp_path / "a.nii", noise((4, 5, 6)), affine((1, 2, 3), order, signs))
    assert read_volume(path).axis(None) == order[2]  # the stored axis of the largest spacing
    for axis in range(3):
        for number in (1, read_volume(path).count(axis)):
            form = PixelFormat(value_range=(-1e9, 1e9), slices=Slices(axis))
            assert np.array_equal(read(path, number, form)[:, :, 0], by_nibabel(path, axis, number))


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 1), 2), ((1, 3, 1), 1), ((2, 1, 2), 2), ((4, 1, 2), 0), ((1, 1.00001, 1), 2)]
)
def test_slices_are_counted_along_the_largest_spacing_or_the_last_axis(
    tmp_path: Path, spacing: tuple[float, ...], axis: int
) -> None:
    assert read_volume(save(tmp_path / "a.nii.gz", noise((4, 5, 6)), affine(spacing))).axis(None) == axis


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.float32, np.float64]),
    st.sampled_from([(None, None), (0.5, 10.0), (2.0, -3.0)]),
    st.sampled_from(TURNS),
    st.sampled_from(["a.nii", "a.nii.gz"]),
    st.integers(0, 2**16),
)
def test_values_are_scaled_as_the_file_says(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int, int],
    dtype: Any,
    scale: tuple[float | None, float | None],
    turn: Any,
    name: str,
    seed: int,
) -> None:
    low = 0 if np.dtype(dtype).kind == "u" else -100
    path = tmp_path_factory.mktemp("volume") / name
    header = {} if scale[0] is None else {"slope": scale[0], "inter": scale[1]}
    values = noise(shape, dtype, low, 100, seed)
    image = nibabel.Nifti1Image(values, affine((1, 2, 3), *turn))
    image.header.set_data_dtype(dtype)
    if header:
        image.header.set_slope_inter(*scale)
    nibabel.save(image, path)
    axis, number = seed % 3, 1
    form = PixelFormat(value_range=(-1e9, 1e9), slices=Slices(axis))
    assert np.allclose(read(path, number, form)[:, :, 0], by_nibabel(path, axis, number), rtol=1e-6)


def test_bytes_stay_bytes_and_16_bits_are_scaled(tmp_path: Path) -> None:
    small, deep = noise((4, 5, 6), np.uint8, 0, 256), noise((4, 5, 6), np.uint16, 0, 65536)
    picture = read(save(tmp_path / "a.nii", small), 2, PixelFormat())
    assert picture.dtype == np.uint8 and np.array_equal(picture[:, :, 0], np.rot90(small[:, :, 1]))
    picture = read(save(tmp_path / "b.nii", deep), 2, PixelFormat())
    assert np.allclose(picture[:, :, 0], np.rot90(deep[:, :, 1]) * (255 / 65535))
    with pytest.raises(DataError, match=r"int16 pixels have no known range.*value_range=.*here -\d+ to \d+"):
        read(save(tmp_path / "c.nii", noise((4, 5, 6))), 1, PixelFormat())


def test_big_endian_and_nan(tmp_path: Path) -> None:
    values = noise((4, 5, 6)).astype(np.float32)
    values[0, 0] = np.nan
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(values, affine(), header), path)
    assert np.array_equal(read(path, 1), np.rot90(values[:, :, 0])[:, :, None], equal_nan=True)
    path = save(tmp_path / "b.nii", noise((4, 5, 6), np.uint16, 0, 900).astype(">u2"))
    assert np.array_equal(read(path, 3)[:, :, 0], by_nibabel(path, 2, 3))
    assert read(path, 3, PixelFormat()).max() < 4  # 16 bits to 255


def test_a_window_of_hounsfield_units(tmp_path: Path) -> None:
    values = noise((4, 5, 6), np.int16, -1000, 1000)
    picture = read(save(tmp_path / "a.nii", values), 1, PixelFormat(window=(40, 400)))
    expected = ((np.rot90(values[:, :, 0]) + 160.0) / 400).clip(0, 1) * 255
    assert np.allclose(picture[:, :, 0], expected, atol=1e-4)


def test_a_fourth_axis_is_the_channels(tmp_path: Path) -> None:
    values = noise((4, 5, 6, 4), np.uint8, 0, 256)
    path = save(tmp_path / "a.nii", values)
    assert np.array_equal(read(path, 2, PixelFormat()), np.rot90(values[:, :, 1]))
    assert np.array_equal(read(path, 2, PixelFormat(4)), np.rot90(values[:, :, 1]))
    assert np.array_equal(read(path, 2, PixelFormat(2, bands=(3, 1))), np.rot90(values[:, :, 1])[:, :, [2, 0]])
    with pytest.raises(DataError, match="4 values along its fourth axis, which are channels; give channels=4"):
        read(path, 2, PixelFormat(3))
    with pytest.raises(DataError, match="33 values along its fourth axis, too many for channels"):
        read(save(tmp_path / "b.nii", noise((2, 2, 2, 33), np.uint8, 0, 256)), 1, PixelFormat())
    path = save(tmp_path / "c.nii", values[:, :, :, None])  # of vectors
    assert np.array_equal(read(path, 2, PixelFormat()), np.rot90(values[:, :, 1]))
    with pytest.raises(DataError, match="expected three axes, and channels as a fourth"):
        read(save(tmp_path / "d.nii", noise((2, 2, 2, 2, 2), np.uint8, 0, 256)), 1)


def test_colour_is_read_as_three_channels(tmp_path: Path) -> None:
    values = noise((4, 5, 6, 3), np.uint8, 0, 256)
    records = values.view(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))[:, :, :, 0]
    path = save(tmp_path / "a.nii.gz", np.ascontiguousarray(records))
    assert np.array_equal(read(path, 6, PixelFormat()), np.rot90(values[:, :, 5]))


def test_empty_slices_are_left_out_and_named_from_1(tmp_path: Path) -> None:
    unread.forget()
    values = noise((8, 8, 10), np.int16, 100, 500)
    values[:, :, [0, 9]] = 0
    values[:, :, 4] = 17
    values[1:, :, 6] = 0  # an eighth differs from the most frequent value
    save(tmp_path / "sub" / "a.nii.gz", values)
    save(tmp_path / "b.nii", np.where(np.arange(3) == 1, values[:, :, 1:4], np.nan).astype(np.float32))
    noise_image(0).save(tmp_path / "c.png")

    def names(**keys: Any) -> list[str]:
        images = find_images(tmp_path, slices=Slices(**keys))
        return [images.name(number) for number in range(len(images))]

    kept = [2, 3, 4, 6, 7, 8, 9]
    assert names(axis=2) == ["b.nii[2]", "c.png", *(f"sub/a.nii.gz[{number}]" for number in kept)]
    assert any("5 of 13 slices are left out, as they are empty" in text for text in unread.reported())
    assert names(axis=2, step=3) == ["c.png", "sub/a.nii.gz[4]", "sub/a.nii.gz[7]"]
    values[1:, :, [0, 4, 9]] = 0
    save(tmp_path / "sub" / "a.nii.gz", values)
    assert "sub/a.nii.gz[7]" not in names(axis=2, content=0.2)
    images = find_images(tmp_path, slices=Slices(axis=2))
    assert np.array_equal(opened(images.subset([0]), 0, WIDE).pixels()[:, :, 0], by_nibabel(tmp_path / "b.nii", 2, 2))


def test_what_is_empty_is_looked_for_again_only_in_changed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "CACHED_SECONDS", -1.0)
    folder = tmp_path / "volumes"
    for name in ("a.nii", "b.nii"):
        save(folder / name, noise((4, 5, 6)))
    first = find_images(folder)
    looked: list[str] = []
    honest = nifti.filled_slices

    def look(path: Path, slices: Slices) -> tuple[list[int], int]:
        looked.append(path.name)
        return honest(path, slices)

    monkeypatch.setattr(volumes, "filled_slices", look)
    again = find_images(folder)
    assert not looked and list(map(again.name, range(len(again)))) == list(map(first.name, range(len(first))))
    values = noise((4, 5, 6))
    values[:, :, 0] = 3
    save(folder / "b.nii", values)
    assert len(find_images(folder)) == len(first) - 1 and looked == ["b.nii"]
    assert len(find_images(folder, slices=Slices(step=2))) == 6 - 1


def test_a_volume_is_a_source_by_itself_and_beside_others(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", noise((4, 5, 6)))
    (tmp_path / "list.txt").write_text("a.nii.gz\n")
    (tmp_path / "slices.txt").write_text("a.nii.gz[2]\na.nii.gz[5]\n")
    assert len(find_source(str(path))) == len(find_source(str(tmp_path / "list.txt"))) == 6
    both = find_sources([str(path), str(tmp_path / "slices.txt")], slices=Slices(axis=0))
    assert [both.name(number) for number in (0, 4, 5)] == ["0:a.nii.gz[1]", "1:a.nii.gz[2]", "1:a.nii.gz[5]"]
    assert np.array_equal(opened(both, 4, WIDE).pixels()[:, :, 0], by_nibabel(path, 0, 2))
    assert (file_of("a/b.nii.gz[12]"), number_of("a/b.nii.gz[12]")) == ("a/b.nii.gz", 12)
    assert (file_of("a[1].png"), number_of("a.png[1]"), number_of("a.nii[0]")) == ("a[1].png", None, None)


def test_one_that_can_t_be_read_is_named_where_it_is_opened(tmp_path: Path) -> None:
    save(tmp_path / "good.nii", noise((4, 5, 6)))
    (tmp_path / "broken.nii").write_bytes((tmp_path / "good.nii").read_bytes()[:-50])
    (tmp_path / "other.nii.gz").write_bytes(gzip.compress(b"no volume" * 100))
    images = find_images(tmp_path)
    assert [images.name(number) for number in (0, 7)] == ["broken.nii", "other.nii.gz"]
    for number, reason in ((0, "damaged, or cut off"), (7, "not a NIfTI file, or a damaged one")):
        with pytest.raises(DataError, match=reason) as raised:
            opened(images, number)
        assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=r"a volume of 6 slices; name one, good.nii\[1\], or save slices as files"):
        decode(tmp_path / "good.nii")
    with pytest.raises(DataError, match="no slice 7: it has 6 along axis 2"):
        read(tmp_path / "good.nii", 7)
    flat = save(tmp_path / "empty" / "flat.nii", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="all 3 slices are empty"):
        find_images(flat.parent)


def test_a_plane_is_an_image(tmp_path: Path) -> None:
    values = noise((4, 5), np.uint8, 0, 256)
    path = save(tmp_path / "a.nii", values)
    assert np.array_equal(np.asarray(decode(path)), np.rot90(values))
    assert len(find_images(tmp_path)) == 1


def test_without_nibabel_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", noise((4, 5, 6)))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DataError, match=r"pip install 'maelift\[nifti\]'"):
        read(path, 1)
    assert {".nii", ".nii.gz"} <= SUFFIXES


def test_slices_have_the_class_of_their_file_and_stay_in_one_split(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "ab"[number % 2] / f"{number}.nii.gz", noise((4, 5, 6), seed=number))
    (part,) = read_parts(tmp_path, LabelKeys(slices=Slices(axis=1, step=2))).values()
    assert len(part) == 8 * 3 and set(part.classes) == {"a", "b"}
    assert all(part.images.name(index)[0] == part.label_text(index) for index in range(len(part)))
    splits = read_splits(tmp_path, 0.3, 0.3)
    files = [{file_of(part.images.name(index)) for index in range(len(part))} for _, part in splits.items()]
    assert sum(map(len, files)) == len(set.union(*files)) == 8


def test_rows_of_a_table_may_name_volumes(tmp_path: Path) -> None:
    rows = ["path,label"]
    for number in range(4):
        save(tmp_path / "all" / f"{number}.nii.gz", noise((4, 5, 6), seed=number))
        rows.append(f"all/{number}.nii.gz,{'ab'[number % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    (part,) = read_parts(tmp_path).values()
    assert len(part) == 24
    assert part.images.name(7) == "all/1.nii.gz[2]" and part.label_text(7) == "b"


def test_boxes_and_masks_of_volumes_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "images" / "a.nii", noise((4, 5, 6)))
    (tmp_path / "masks").mkdir()
    noise_image(0).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a.nii is a volume. Save slices and their masks as files"):
        parse_segmentation(str(tmp_path), "folders")
    with pytest.raises(DataError, match="a volume, of which boxes and masks can't be read; save its slices as files"):
        upright_size(path)


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_suite_on_boxes_or_masks_of_volumes_is_refused_in_a_line(tmp_path: Path, task: str) -> None:
    for number in range(3):
        save(tmp_path / "images" / f"{number}.nii", noise((20, 24, 3)))
    if task == "segment":
        (tmp_path / "masks").mkdir()
        noise_image(0).save(tmp_path / "masks" / "0.png")
    else:
        box = {"category_id": 1, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}
        content = {
            "images": [{"id": n, "file_name": f"{n}.nii", "height": 20, "width": 24} for n in range(3)],
            "annotations": [{"id": n, "image_id": n, **box} for n in range(3)],
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / "annotations.json").write_text(json.dumps(content))
    tasks = {task: {"task": task, "data": str(tmp_path), "labels": [1], "seeds": [0, 1]}}
    arms = {name: {"start": "scratch", "label": name} for name in ("a", "b")}
    (tmp_path / "suite.yaml").write_text(
        json.dumps({"title": "volumes", "data": {"unlabelled": str(tmp_path / "images")}, "tasks": tasks, "arms": arms})
    )
    config = BenchConfig.resolve([f"suite={tmp_path / 'suite.yaml'}", "out=x", "channels=1", "value_range=[0,900]"])
    with pytest.raises(DataError, match=r"volume.*[Ss]ave.* slices") as raised:
        read_suite_images(config)
    assert "\n" not in str(raised.value)


def test_data_check_says_what_the_values_are(tmp_path: Path) -> None:
    values = noise((20, 18, 20), np.int16, -300, 900)
    save(tmp_path / "a.nii", values)
    check = data_check(DataCheckConfig(str(tmp_path), task="pretrain", value_range=(-1000, 1000)))
    facts = dict(check.facts)
    assert facts["values"] == f"{values.min()} to {values.max()}, as stored"
    assert facts["bits"] == "20 × 16" and facts["channels"] == "20 × 1"
    check = data_check(DataCheckConfig(str(tmp_path), task="pretrain", window=(300, 1200), slice_axis=0))
    assert dict(check.facts)["values"] == "0 to 254.788, in the window"
    assert dict(check.facts)["shorter side"].startswith("18 px")


def test_the_keys_are_in_the_encoder_file_s_preprocessing() -> None:
    form = PixelFormat(window=(40, 400), frame=2, slices=Slices(1, 3, 0.25))
    whole = Preprocessing(("gray",), (0.5,), (0.5,), **reading_fields(form))
    assert "window" not in Preprocessing.default(1).to_json()
    same = Preprocessing.from_json(json.loads(json.dumps(whole.to_json())))
    assert same == whole
    assert (same.reading.window, same.reading.frame, same.reading.slices) == ((40, 400), 2, Slices(1, 3, 0.25))
    every = Preprocessing(("gray",), (0.5,), (0.5,), frame="all").reading
    assert every.frame is None and every.slices == Slices(frames=True)


def test_shards_get_slices_as_pngs_of_16_bits_and_other_files_as_they_are(tmp_path: Path) -> None:
    path = save(tmp_path / "data" / "a.nii.gz", noise((8, 9, 4), np.int16, -200, 900))
    content = dicom(noise((8, 9), np.uint16, 0, 4096), BitsStored=12)
    (tmp_path / "data" / "b.dcm").write_bytes(content)
    done = pack(PackConfig(str(tmp_path / "data"), str(tmp_path / "shards"), window=(400, 1200), slice_step=2))
    assert (done.images, done.reencoded, done.rejected) == (3, 2, 0)
    images = find_source(str(tmp_path / "shards"))
    form = PixelFormat(window=(400, 1200))
    for number, place in ((0, 1), (1, 3)):
        assert np.abs(opened(images, number).pixels() - read(path, place, form)).max() < 255 / 65535
    assert images.content(2) == content and images.name(2).endswith(".dcm")


def test_a_suite_reads_slices_by_its_window(tmp_path: Path) -> None:
    for number in range(12):
        save(tmp_path / "data" / "ab"[number % 2] / f"{number}.nii", noise((20, 21, 6), np.int16, 0, 900, number))
    keys: dict[str, Any] = {"window": (400, 600), "slice_step": 3}
    suite = init(InitConfig(str(tmp_path / "data"), out=str(tmp_path / "suite.yaml"), **keys))
    config = BenchConfig.resolve([f"suite={suite.file}", "out=x", "data.val=0.25", "data.test=0.25"])
    assert (config.window, config.slice_step, config.channels) == ((400, 600), 3, 1)
    images = read_suite_images(config)
    parts = [images.pool, *(part.images for _, part in images.classify.items())]
    names = [part.name(index) for part in parts for index in range(len(part))]
    assert len(names) == len(set(names)) == 24
    index = 0
    file = tmp_path / "data" / file_of(names[0])
    expected = read(file, number_of(names[0]) or 0, PixelFormat(window=(400, 600)))
    assert np.array_equal(opened(parts[0], index, config.form).pixels(), expected)
    assert np.array_equal(np.asarray(parts[0].open(index, config.form)), expected[:, :, 0])
    evaluated = {file_of(name) for part in parts[2:] for name in map(part.name, range(len(part)))}
    assert not evaluated & {file_of(name) for part in parts[:2] for name in map(part.name, range(len(part)))}


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damaged_volumes_raise_nothing_but_data_errors(tmp_path: Path, name: str) -> None:
    content = save(tmp_path / name, noise((4, 5, 6))).read_bytes()
    draws = np.random.default_rng(3)
    for turn in range(60):
        array = np.frombuffer(gzip.decompress(content) if name.endswith("gz") else content, np.uint8).copy()
        places = draws.integers(0, 352 if turn % 2 else len(array), 3)
        array[places] = draws.integers(0, 256, 3)
        broken = array.tobytes()[: draws.integers(len(array)) if turn % 3 == 0 else None]
        broken = gzip.compress(broken, 1) if name.endswith("gz") else broken
        path = tmp_path / f"{turn}-{name}"
        path.write_bytes(broken[: draws.integers(len(broken))] if turn % 5 == 0 else broken)
        for number in (1, 3):
            try:
                read(path, number)
            except DataError as error:
                assert "\n" not in str(error)


@pytest.mark.slow
def test_from_pretraining_to_predictions_on_volumes(tmp_path: Path) -> None:
    for number in range(10):
        values = noise((20, 24, 5), np.int16, 0, 200, number)
        values[:, :10] += 600 * (number % 2)
        values[:, :, 0] = 0
        save(tmp_path / "mr" / ("left" if number % 2 else "right") / f"{number}.nii.gz", values, affine((1, 1, 3)))
    data, run = f"data={tmp_path / 'mr'}", tmp_path / "mae"
    keys = ["value_range=[0,800]", "slice_step=2"]
    assert main(["pretrain", data, f"out={run}", *keys, *TINY, "epochs=1", "evaluations=1"]) == 0
    keys = [f"encoder={run / 'encoder.safetensors'}", "slice_step=2", "steps=2", "evaluations=1", "workers=0"]
    keys += ["val=0.2", "test=0.2", "recipe=small", f"out={tmp_path / 'classes'}"]
    assert main(["transfer", "classify", data, *keys]) == 0
    model, found = tmp_path / "classes" / "model.safetensors", tmp_path / "found.csv"
    assert main(["predict", f"model={model}", f"images={tmp_path / 'mr'}", f"out={found}"]) == 0
    assert len(found.read_text().splitlines()) == 1 + 10 * 2  # slices 3 and 5 of each
