"""The format of a folder by its files; an ambiguous one is an error that names the key that decides."""

from __future__ import annotations

import io
import logging
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from maelift.benchmarks.init_suite import InitConfig, init
from maelift.benchmarks.suite import BenchConfig
from maelift.core.data.classification import LabelKeys
from maelift.core.data.classification_reader import read_parts, read_splits
from maelift.core.data.dataset_format import hint, identify
from maelift.core.errors import DataError
from maelift.core.tools.check_data import DataCheckConfig, data_check, tasks_of
from PIL import Image


def picture(seed: int) -> bytes:
    file = io.BytesIO()
    values = np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


PICTURES = [picture(seed) for seed in range(40)]


def tree(root: Path, *folders: str, each: int = 3, suffix: str = ".png") -> Path:
    """Folders with images named 0.png, 1.png, ... no two of them alike."""
    for place, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            content = PICTURES[(place * each + number) % len(PICTURES)]
            (root / folder / f"{number}{suffix}").write_bytes(content if suffix == ".png" else b"")
    return root


CERTAIN = [
    (("cat", "dog"), "class_folders"),
    (("train/cat", "train/dog", "test/cat"), "class_folders"),
    (("Train/cat", "Train/dog", "VALID/cat"), "class_folders"),
    (("0", "1", "2", "10"), "class_folders"),
    (("00000", "00001", "00002"), "class_folders"),
    (("n01440764", "n01443537"), "class_folders"),
    (("bus", "car", "train"), "class_folders"),
    (("animals/cats", "animals/dogs", "plants/roses"), "class_folders"),
    (("Acura RL Sedan 2012", "BMW M3 Coupe 2012"), "class_folders"),
    (("may be", "march hare"), "class_folders"),
    (("junco", "marble", "mayfly", "octopus"), "class_folders"),
    ((".",), "unlabelled"),
    (("images",), "unlabelled"),
    (("train",), "unlabelled"),
    (("train", "test"), "unlabelled"),
    (("images", "masks"), "masks"),
    (("images", "labels"), "masks"),
    (("Images", "annotations"), "masks"),
    (("images/train", "images/val", "masks/train", "masks/val"), "masks"),
    (("train/images", "train/labels", "val/images", "val/labels"), "masks"),
    (("img_dir/train", "ann_dir/train"), "masks"),
    (("leftImg8bit/train/bonn", "gtFine/train/bonn"), "masks"),
    (("JPEGImages", "SegmentationClass"), "masks"),
]


@pytest.mark.parametrize(("folders", "format"), CERTAIN)
def test_formats_that_are_certain(tmp_path: Path, folders: tuple[str, ...], format: str) -> None:
    (found,) = identify(tree(tmp_path, *folders))
    assert (found.format, found.sure) == (format, True), found


UNCERTAIN = [
    ("2021", "2022", "2023"),
    ("2021-03-04", "2021-03-05 Rome"),
    ("20210304", "20210501"),
    ("05.03.2021", "06.03.2021"),
    ("January", "February", "March 2021"),
    ("100APPLE", "101APPLE"),
    ("100_PANA", "101_PANA"),
    ("batch_1", "batch_2"),
    ("part-a", "part-b"),
    ("cam0", "cam1", "cam2"),
    ("camera_left", "camera_right"),
    ("patient001", "patient002"),
    ("fold_0/cat", "fold_0/dog", "fold_1/cat", "fold_1/dog"),
    ("train/2021", "train/2022", "test/2021"),
    ("3f2a9c1b7d10", "a81be2c07f33"),
    tuple(f"{number:02x}" for number in range(160, 180)),
    ("00000", "01000", "02000"),
    ("cat", "dog", "unlabelled"),
    ("cat/train", "cat/test", "dog/train", "dog/test"),
    ("train", "test", "cat", "dog"),
    ("train/cat", "train/dog", "bus", "car"),
    ("only",),
    ("images/cat", "images/dog"),
    ("train", "train_masks"),
    ("art/cat", "art/dog", "photo/cat", "photo/dog"),
    ("amazon/images/cat", "amazon/images/dog", "dslr/images/cat", "dslr/images/dog"),
]


@pytest.mark.parametrize("folders", UNCERTAIN)
def test_folders_that_may_be_something_else_are_asked_about(tmp_path: Path, folders: tuple[str, ...]) -> None:
    (found,) = identify(tree(tmp_path, *folders))
    assert not found.sure and found.advice
    for ask in (lambda: data_check(DataCheckConfig(str(tmp_path))), lambda: read_splits(tmp_path)):
        with pytest.raises(DataError) as error:
            ask()
        assert "\n" not in str(error.value) and "?." not in str(error.value)
        assert found.evidence in str(error.value) and found.advice in str(error.value)
    if "layout=class_folders" in found.advice:  # followed, it works
        classes = {folder.split("/")[0] for folder in folders}
        assert set(read_splits(tmp_path, val=1, test=1, layout="class_folders").train.classes) == classes
    if "task=pretrain" in found.advice:
        assert data_check(DataCheckConfig(str(tmp_path), task="pretrain")).splits[0].images == 3 * len(folders)
    if "Give data=" in found.advice:
        below = found.advice.split("Give data=")[1].split(" if")[0]
        assert read_splits(below, val=1, test=1).train.classes == ("cat", "dog")


def test_the_key_is_kept_in_the_suite(tmp_path: Path) -> None:
    data = tree(tmp_path / "data", "2021", "2022", "2023", each=30)
    with pytest.raises(DataError, match="2021/, 2022/, 2023/ are named after dates: images without labels"):
        init(InitConfig(str(data), out=str(tmp_path / "suite.yaml")))
    made = init(InitConfig(str(data), out=str(tmp_path / "suite.yaml"), layout="class_folders"))
    assert "3 classes" in made.summary()
    suite = BenchConfig.resolve({"suite": str(made.file), "out": "x"})
    assert suite.data.layout == "class_folders"
    pool = tree(tmp_path / "labelled", "cat", "dog", each=30)
    made = init(InitConfig(str(pool), str(data), str(tmp_path / "other.yaml")))  # unlabelled=, as the question says
    assert BenchConfig.resolve({"suite": str(made.file), "out": "x"}).data.unlabelled == str(data)


@pytest.mark.parametrize("other", ["test", "Testing"])
def test_an_unlabelled_test_folder_is_no_class_and_no_split(
    tmp_path: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = tree(tmp_path, "train/cat", "train/dog", other)
    with caplog.at_level(logging.WARNING):
        parts = read_parts(data)
    assert set(parts) == {"train"} and parts["train"].classes == ("cat", "dog") and len(parts["train"]) == 6
    assert f"{other}/ is left out: 3 images without labels: no test split" in caplog.text
    generic = tree(tmp_path / "b", "train/cat", "train/dog", f"{other}/{other}")
    assert set(read_parts(generic)) == {"train"}
    beside = tree(tmp_path / "c", "cat", "dog", other)
    caplog.clear()
    parts = read_parts(beside)
    assert parts["train"].classes == ("cat", "dog") and set(parts) == {"train"}
    assert "neither a class nor a test split" in caplog.text


def test_splits_have_many_names_and_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = tree(tmp_path / "a", "TRAIN/cat", "TRAIN/dog", "dev/cat", "dev/dog", "testing/dog", "extra/cat")
    with caplog.at_level(logging.WARNING):
        assert {split: len(part) for split, part in read_parts(data).items()} == {"train": 6, "val": 6, "test": 3}
    assert "extra/ is left out: 3 images, not named as a split" in caplog.text
    with pytest.raises(DataError, match="dev/ and valid/ are both the val split"):
        read_parts(tree(data, "valid/cat"))
    only = tree(tmp_path / "b", "test/cat", "test/dog")
    assert set(read_parts(only)) == {"test"}
    with pytest.raises(DataError, match="no training images; found only test"):
        read_splits(only)
    beside = read_parts(tree(tmp_path / "c", "cat", "dog", "test/cat", "test/dog"))
    assert Counter(beside["train"].labels) == {0: 3, 1: 3} and len(beside["test"]) == 6


def test_annotations_that_name_their_images(tmp_path: Path) -> None:
    yolo = tree(tmp_path / "yolo", "images/train", "images/val")
    for split in ("train", "val"):
        (yolo / "labels" / split).mkdir(parents=True)
        (yolo / "labels" / split / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.05 0.05\n")
        (yolo / "labels" / split / "1.txt").write_text("")
    beside = tree(tmp_path / "darknet", "train", "test")
    (beside / "train" / "0.txt").write_text("3 0.5 0.5 0.2 0.2 0.1 0.7\n")
    voc = tree(tmp_path / "voc", "JPEGImages")
    (voc / "Annotations").mkdir()
    (voc / "Annotations" / "0.xml").write_text("<annotation><object/></annotation>")
    coco = tree(tmp_path / "coco", "images")
    (coco / "train.json").write_text('{"images": [], "annotations": []}')
    for data, format in ((yolo, "yolo"), (beside, "yolo"), (voc, "voc"), (coco, "coco")):
        assert [(found.format, found.sure) for found in identify(data)] == [(format, True)]
        assert tasks_of(DataCheckConfig(str(data))) == ("detect",)
        with pytest.raises(DataError, match=r"maelift transfer detect reads boxes\. If each folder is a class"):
            read_splits(data)
    notes = tree(tmp_path / "notes", "cat", "dog")
    (notes / "cat" / "0.txt").write_text("a cat on a sofa, seen from above\n")
    assert identify(notes)[0].format == "class_folders"
    assert hint(notes, "detect") == (
        " It looks as if it were for maelift transfer classify: images are in the folders cat/, dog/."
    )
    assert hint(coco, "detect") == ""


def test_tables_and_shards(tmp_path: Path) -> None:
    data = tree(tmp_path / "kaggle", "train", "test")
    (data / "train.csv").write_text("image_id,label\n0,cat\n")
    (data / "sample_submission.csv").write_text("image_id,label\n0,cat\n")
    (found,) = identify(data)
    assert not found.sure and f"give data={data / 'train.csv'}" in found.advice
    (data / "train.csv").write_text("image_id,label\n0,cat\n1,dog\n2,cat\n")  # 0.png is in test/ too
    assert [read_parts(data / "train.csv")["train"].images.name(n) for n in range(3)] == [
        f"train/{n}.png" for n in range(3)
    ]
    both = tree(tmp_path / "both", "train/cat", "train/dog")
    (both / "birds.csv").write_text("class id,filepaths,labels\n")
    assert identify(both)[0].format == "class_folders"  # class folders say it by themselves
    for name, members in (("labelled", ("0.png", "0.cls")), ("bare", ("0.png", "1.png"))):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for member in members:
                archive.addfile(tarfile.TarInfo(member))
    assert identify(tmp_path / "labelled.tar")[0].task == "classify"
    assert identify(tmp_path / "bare.tar")[0].task == "pretrain"


def test_a_cameras_folders_are_found_below_dcim(tmp_path: Path) -> None:
    tree(tmp_path, "DCIM/100APPLE", "DCIM/101APPLE")
    with pytest.raises(
        DataError, match=r"in DCIM/ the folders 100APPLE/, 101APPLE/ are named after a camera's numbering"
    ):
        tasks_of(DataCheckConfig(str(tmp_path)))
    keys = LabelKeys(layout="class_folders")  # as the question says
    assert read_parts(tmp_path / "DCIM", keys)["train"].classes == ("100APPLE", "101APPLE")


def test_an_empty_folder_is_left_to_its_reader(tmp_path: Path) -> None:
    for ask in (lambda: data_check(DataCheckConfig(str(tmp_path))), lambda: read_splits(tmp_path)):
        with pytest.raises(DataError, match="the folder is empty"):
            ask()


def test_masks_beside_their_images_are_asked_about(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(PICTURES[number])
        (tmp_path / f"{number}_mask.png").write_bytes(PICTURES[number])
    with pytest.raises(
        DataError, match="4 of 8 images have the name of another one with an ending, such as 0_mask: masks"
    ):
        data_check(DataCheckConfig(str(tmp_path)))
    assert data_check(DataCheckConfig(str(tmp_path), task="pretrain")).splits[0].images == 8
