"""Images with masks: the layouts people have, values kept as they are in the file, and what an issue is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.labeled_dataset import draw_labeled
from maelift.core.data.mask_classes import CITYSCAPES
from maelift.core.data.mask_files import read_mask
from maelift.core.data.segmentation import SegmentationImages
from maelift.core.data.segmentation_reader import parse_segmentation, read_segmentation
from maelift.core.errors import ConfigError, DataError
from maelift.tests.support import noise_image
from PIL import Image

SIZE = (10, 14)


def write_mask(path: Path, values: Sequence[int], size: tuple[int, int] = SIZE) -> None:
    """A mask with these values in bands from top to bottom."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.array(values, dtype=np.uint16)[np.arange(size[0]) * len(values) // size[0]]
    array = np.repeat(rows[:, None], size[1], axis=1)
    Image.fromarray(array.astype(np.uint8) if array.max() < 256 else array).save(path)


def write_pairs(images: Path, masks: Path, values: Sequence[Sequence[int]], first: int = 0) -> None:
    images.mkdir(parents=True, exist_ok=True)
    for number, bands in enumerate(values, first):
        noise_image(number, SIZE).save(images / f"straße{number}.jpg")
        write_mask(masks / f"straße{number}.png", bands)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Eight training images of three classes and void, two of val, two of test."""
    data = tmp_path / "data"
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        bands = [(0, 1 + number % 2, 255) for number in range(count)]
        write_pairs(data / "images" / split, data / "masks" / split, bands)
    (data / "classes.txt").write_text("ground\ntree\ncar\n")
    return data


def train(data: Path, **keys: int | Sequence[int] | None) -> SegmentationImages:
    return parse_segmentation(data, **keys)["train"].data  # type: ignore[arg-type]


def test_masks_give_class_numbers_and_255_where_there_is_no_class(folders: Path) -> None:
    splits = read_segmentation(folders)
    assert [len(part) for _, part in splits.items()] == [8, 2, 2]
    assert splits.train.classes == ("ground", "tree", "car")
    assert splits.train.images.name(1) == "straße1.jpg"
    mask = splits.train.mask(1)
    assert mask.shape == SIZE
    assert mask.dtype == np.uint8
    assert np.unique(mask).tolist() == [0, 2, 255]
    assert splits.train.present[1] == (0, 2)
    assert splits.train.ignore_index == 255


def test_every_layout_of_folders_is_read(tmp_path: Path) -> None:
    bands = [(0, 1), (1, 2)] * 3
    write_pairs(tmp_path / "a" / "train" / "images", tmp_path / "a" / "train" / "masks", bands)
    write_pairs(tmp_path / "b" / "images", tmp_path / "b" / "masks", bands)
    write_pairs(tmp_path / "c" / "images" / "training" / "x", tmp_path / "c" / "masks" / "training" / "x", bands)
    for name in "abc":
        splits = read_segmentation(tmp_path / name, val=1, test=2)
        assert [len(part) for _, part in splits.items()] == [3, 1, 2]
        assert splits.train.classes == ("class_0", "class_1", "class_2")


def test_values_of_classes_come_from_txt_or_json_in_its_order(folders: Path) -> None:
    (folders / "classes.txt").write_text("car, 2\n\nground, 0\ntree, 1\nvoid, 255\n")
    assert train(folders).classes == ("car", "ground", "tree", "void")
    assert np.unique(train(folders).mask(0)).tolist() == [1, 2, 3]
    (folders / "classes.txt").unlink()
    (folders / "classes.json").write_text(json.dumps({"tree": 1, "car": 2, "ground": 0}))
    assert train(folders).classes == ("tree", "car", "ground")
    (folders / "classes.json").write_text(json.dumps(["ground", "tree", "car"]))
    assert train(folders).classes == ("ground", "tree", "car")


def test_ignored_values_are_those_that_the_key_names(folders: Path) -> None:
    (folders / "classes.txt").write_text("tree, 1\ncar, 2\n")
    data = train(folders, ignore=(0, 255))
    assert np.unique(data.mask(0)).tolist() == [0, 255]
    with pytest.raises(DataError, match=r"straße0.png: value 0: not in classes.txt, nor ignored"):
        read_segmentation(folders)
    with pytest.raises(DataError, match=r"tree has the value 1, which ignore lists"):
        read_segmentation(folders, ignore=1)
    with pytest.raises(ConfigError, match=r"^ignore="):
        read_segmentation(folders, ignore=-1)


def test_masks_of_0_and_255_need_names(tmp_path: Path) -> None:
    write_pairs(tmp_path / "images", tmp_path / "masks", [(0, 255)] * 4)
    with pytest.raises(DataError, match=r"0, 255.*'background, 0' and 'NAME, 255'"):
        read_segmentation(tmp_path)
    (tmp_path / "classes.txt").write_text("background, 0\nship, 255\n")
    assert np.unique(train(tmp_path).mask(0)).tolist() == [0, 1]


def test_a_palette_gives_its_indices_and_gray_of_few_bits_its_values(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2, 3]] * 4, dtype=np.uint8)
    palette = Image.fromarray(values).convert("P")
    palette.putdata(values.ravel().tolist())
    palette.putpalette([255, 0, 0, 0, 255, 0, 9, 9, 9, 7, 7, 7])
    palette.save(tmp_path / "palette.png", bits=2)
    Image.fromarray(values).save(tmp_path / "gray.png")
    Image.fromarray(values > 1).save(tmp_path / "one.png")
    Image.fromarray(values.astype(np.uint16) * 300).save(tmp_path / "deep.png")
    assert np.array_equal(read_mask(tmp_path / "palette.png"), values)
    assert np.array_equal(read_mask(tmp_path / "gray.png"), values)
    assert np.array_equal(read_mask(tmp_path / "one.png"), values > 1)
    assert np.array_equal(read_mask(tmp_path / "deep.png"), values.astype(int) * 300)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_of_two_and_four_bits_is_not_stretched(tmp_path: Path, bits: int) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = bytes([0b00011011]) if bits == 2 else bytes([0x01, 0x2F])
    expected = [0, 1, 2, 3] if bits == 2 else [0, 1, 2, 15]
    head = struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)
    data = zlib.compress((b"\0" + row) * 2)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    (tmp_path / "mask.png").write_bytes(file)
    assert read_mask(tmp_path / "mask.png").tolist() == [expected] * 2


def test_more_than_255_classes_get_wide_numbers_and_another_void(tmp_path: Path) -> None:
    write_pairs(tmp_path / "images", tmp_path / "masks", [(0, 300, 255), (1, 299, 2)])
    (tmp_path / "classes.txt").write_text("".join(f"thing {value}\n" for value in range(301)))
    data = train(tmp_path, ignore=(1000,))
    assert data.mask(0).dtype == np.int64
    assert np.unique(data.mask(0)).tolist() == [0, 255, 300]
    assert data.ignore_index == 65535


def test_ade20k_ignores_0_and_counts_from_1(tmp_path: Path) -> None:
    for split, count in (("training", 4), ("validation", 2)):
        write_pairs(tmp_path / "images" / split, tmp_path / "annotations" / split, [(0, 1, 150)] * count)
    splits = read_segmentation(tmp_path, layout="ade20k", test=1)
    assert [len(part) for _, part in splits.items()] == [3, 2, 1]
    assert len(splits.train.classes) == 150
    assert np.unique(splits.val.mask(0)).tolist() == [0, 149, 255]
    rows = "".join(f"{value}\t0.1\t9\t9\t1\tthing {value}\n" for value in range(1, 151))
    (tmp_path / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)
    assert read_segmentation(tmp_path, layout="ade20k", test=1).train.classes[149] == "thing 150"
    write_mask(tmp_path / "annotations" / "training" / "straße0.png", (0, 151))
    with pytest.raises(DataError, match=r"annotations/training/straße0.png: value 151: not in ADE20K's classes"):
        read_segmentation(tmp_path, layout="ade20k", test=1)


def test_cityscapes_maps_label_ids_to_the_19_classes_and_takes_train_ids_as_they_are(tmp_path: Path) -> None:
    for kind, bands, expected in (
        ("labelIds", (7, 33, 0, 4), [0, 18, 255]),
        ("labelTrainIds", (0, 18, 255), [0, 18, 255]),
    ):
        data = tmp_path / kind
        for split, count in (("train", 3), ("val", 2), ("test", 1)):
            for number in range(count):
                image = data / "leftImg8bit" / split / "ulm" / f"ulm_{number}_leftImg8bit.png"
                image.parent.mkdir(parents=True, exist_ok=True)
                noise_image(number, SIZE).save(image)
                write_mask(data / "gtFine" / split / "ulm" / f"ulm_{number}_gtFine_{kind}.png", bands)
        splits = read_segmentation(data, layout="cityscapes", test=1)
        assert [len(part) for _, part in splits.items()] == [2, 2, 1], "the official test split has no labels"
        assert splits.test.images.root.name == "train"
        assert splits.train.classes == tuple(CITYSCAPES.values())
        assert np.unique(splits.train.mask(0)).tolist() == expected
    (tmp_path / "labelIds" / "gtFine" / "train" / "ulm" / "ulm_1_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"ulm_1_leftImg8bit.png: no .*ulm_1_gtFine_labelTrainIds.png"):
        read_segmentation(tmp_path / "labelIds", layout="cityscapes", test=1)


def plant(folders: Path, issue: str) -> None:
    images, masks = folders / "images" / "train", folders / "masks" / "train"
    mask = masks / "straße3.png"
    if issue == "image without mask":
        mask.unlink()
    elif issue == "size of mask":
        write_mask(mask, (0, 1), (10, 13))
    elif issue == "unknown label value":
        write_mask(mask, (0, 7, 9))
    elif issue == "two images of one mask":
        noise_image(3, SIZE).save(images / "straße3.png")
    elif issue == "two masks of one image":
        write_mask(masks / "straße3.tif", (0, 1))
    elif issue == "lossy":
        Image.open(mask).save(mask.with_suffix(".jpg"))
        mask.unlink()
    elif issue == "colour":
        noise_image(3, SIZE).save(mask)
    elif issue == "cut off":
        mask.write_bytes(mask.read_bytes()[:60])
    elif issue == "turned":
        exif = Image.Exif()
        exif[0x0112] = 8
        noise_image(3, SIZE).save(images / "straße3.jpg", exif=exif)


ISSUES = [
    ("image without mask", "image without mask", r"images/train/straße3.jpg: no .*masks/train/straße3.png"),
    ("size of mask", "size of mask", r"straße3.png: the mask is 13×10 px, its image 14×10"),
    ("turned", "size of mask", r"straße3.png: the mask is 14×10 px, its image 10×14 \(upright\)"),
    ("unknown label value", "unknown label value", r"straße3.png: values 7, 9: not in classes.txt, nor ignored"),
    ("two images of one mask", "two images of one mask", r"2 images are named straße3"),
    ("two masks of one image", "two masks of one image", r"straße3.png and straße3.tif"),
    ("lossy", "broken mask", r"straße3.jpg: JPEG and WebP change the values"),
    ("colour", "broken mask", r"straße3.png: a mask in colour \(RGB\)"),
    ("cut off", "broken mask", r"straße3.png: "),
]


@pytest.mark.parametrize(("issue", "kind", "text"), ISSUES, ids=[issue for issue, _, _ in ISSUES])
def test_an_issue_is_named_with_its_file_and_refused_in_a_line(folders: Path, issue: str, kind: str, text: str) -> None:
    plant(folders, issue)
    assert {found.kind for found in parse_segmentation(folders)["train"].issues} == {kind}
    with pytest.raises(DataError, match=text) as refused:
        read_segmentation(folders)
    assert "maelift data check" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_mask_without_image_is_left_out_and_told(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_mask(folders / "masks" / "train" / "alone.png", (0, 1))
    assert len(read_segmentation(folders).train) == 8
    assert "1 × mask without image (left out)" in caplog.text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a, 1\nb, 1\n", "a and b both have the value 1"),
        ("a\na\n", "a is listed twice"),
        ("a\n", "Expected at least two"),
        ("a, 70000\nb, 1\n", "70000"),
    ],
)
def test_lists_of_classes_that_make_no_sense_are_refused(folders: Path, text: str, expected: str) -> None:
    (folders / "classes.txt").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_segmentation(folders)


def test_label_text_changes_with_the_mask_and_with_the_names(folders: Path) -> None:
    before = train(folders).label_text(0)
    assert before == train(folders).label_text(2), "the same mask"
    assert before != train(folders).label_text(1)
    write_mask(folders / "masks" / "train" / "straße0.png", (0, 0, 1, 255))
    assert train(folders).label_text(0) != before
    (folders / "classes.txt").write_text("ground\ntree\nbus\n")
    assert train(folders).label_text(2) != before


def test_draws_are_nested_and_even_over_the_classes(folders: Path) -> None:
    data = train(folders)
    two, four = (draw_labeled(data, count, seed=1) for count in (2, 4))
    assert set(two.masks) < set(four.masks)
    assert {label for present in two.present for label in present} == {0, 1, 2}


def test_missing_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    noise_image(0, SIZE).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="no folder masks"):
        read_segmentation(tmp_path)
    with pytest.raises(DataError, match="no folder leftImg8bit/train"):
        read_segmentation(tmp_path, layout="cityscapes")
    with pytest.raises(DataError, match="no folder images/training"):
        read_segmentation(tmp_path, layout="ade20k")
    with pytest.raises(DataError, match="no such folder"):
        read_segmentation(tmp_path / "none")
