"""``maelift data check``: every issue that is planted is named, and a sound data set raises no alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.classification_reader import class_parts
from maelift.core.data.issues import DataIssue
from maelift.core.data.readers.mnist_idx import read_idx
from maelift.core.data.task_data import BUILT_IN_TASKS, AnnotatedSplit, AnnotatedTask, AnnotationKeys
from maelift.core.errors import ConfigError, DataError
from maelift.core.tools.check_data import DataCheckConfig, data_check, plan, tasks_of
from maelift.core.tools.check_report import DataCheck
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.support import FASHION_MNIST, framework, noise_image, one_line_error, run_maelift, write_images
from PIL import Image


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("check") / "fs"
    config = FashionScenesConfig(out=str(out), source=str(FASHION_MNIST), train=60, val=30, test=30, pool=0)
    return fashion_scenes(config).folder


@pytest.fixture
def scenes(tmp_path: Path, pristine: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "fs")
    return tmp_path / "fs"


def check(data: Path, **keys: Any) -> DataCheck:
    return data_check(DataCheckConfig(str(data), **keys))


def found(result: DataCheck) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.texts for finding in result.findings}


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_sound_set_raises_no_alarm_and_says_what_is_there(scenes: Path) -> None:
    result = check(scenes)
    assert result.error is None
    assert result.findings == ()
    text = result.summary()
    assert "train  60 images of 64×64 px, " in text
    assert "nothing is wrong" in text
    assert {(split.task, split.split, split.images) for split in result.splits} == {
        (task, split, count)
        for task in ("detect", "segment")
        for split, count in (("train", 60), ("val", 30), ("test", 30))
    }
    objects = sum(split.objects or 0 for split in result.splits)
    assert objects == sum(count for split in result.splits if split.task == "detect" for _, count in split.classes)
    assert "detect, segment" in plan(DataCheckConfig(str(scenes))).text()


PLANTED: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("box beyond its image", lambda d: d["annotations"][4].update(bbox=[50, 50, 30, 30]), "annotation 5"),
    ("box without area", lambda d: d["annotations"][4].update(bbox=[5, 5, 0, 3]), "annotation 5"),
    ("segmentation without area", lambda d: d["annotations"][4].update(segmentation=[[1, 1, 2, 2]]), "annotation 5"),
    ("duplicate annotation id", lambda d: d["annotations"][4].update(id=1), "annotation 1"),
    ("duplicate image id", lambda d: d["images"][4].update(id=1), "image 1"),
    ("duplicate category id", lambda d: d["categories"].append({"id": 1, "name": "hat"}), "id 1"),
    ("missing file", lambda d: d["images"][4].update(file_name="train/none.png"), "train/none.png"),
    ("unknown image id", lambda d: d["annotations"][4].update(image_id=999), "999"),
    ("unknown category id", lambda d: d["annotations"][4].update(category_id=99), "99"),
    ("broken box", lambda d: d["annotations"][4].update(bbox=[1, 2, 3]), "annotation 5"),
    (
        "broken segmentation",
        lambda d: d["annotations"][4]["segmentation"].update(counts="04"),
        "annotation 5 (train/0000",
    ),
    ("size of image", lambda d: d["images"][4].update(height=65), "train/00004.png"),
    ("class without examples", lambda d: d["categories"].append({"id": 11, "name": "hat"}), "no objects of hat"),
    ("equal category names", lambda d: d["categories"].append({"id": 11, "name": "Bag"}), "9, 11"),
]
BY_RULE = {
    "box beyond its image",
    "box without area",
    "segmentation without area",
    "class without examples",
    "equal category names",
}


@pytest.mark.parametrize(("kind", "change", "text"), PLANTED, ids=[kind for kind, _, _ in PLANTED])
def test_an_issue_planted_in_the_json_is_named(
    scenes: Path, kind: str, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    change_json(scenes / "train.json", change)
    if kind == "size of image":
        change_json(scenes / "train.json", lambda d: [one.pop("segmentation") for one in d["annotations"]])
    result = check(scenes, task="detect")
    assert kind in found(result)
    assert any(text in line for line in found(result)[kind]), found(result)[kind]
    assert kind in result.summary()
    if kind in BY_RULE:
        assert all(finding.rule for finding in result.findings if finding.kind == kind)
    else:
        assert result.error is not None
        assert kind in result.error


def test_faults_of_masks_are_named(scenes: Path) -> None:
    masks = scenes / "masks" / "train"
    (masks / "00001.png").unlink()
    Image.new("L", (63, 64)).save(masks / "00002.png")
    Image.new("L", (64, 64), 77).save(masks / "00003.png")
    Image.new("L", (64, 64), 255).save(masks / "00004.png")
    (masks / "00005.png").write_bytes(b"no image")
    Image.new("L", (64, 64)).save(masks / "alone.png")
    result = check(scenes)
    kinds = found(result)
    for kind, name in {
        "image without mask": "images/train/00001.png",
        "size of mask": "masks/train/00002.png",
        "unknown label value": "masks/train/00003.png: value 77",
        "mask without any class": "masks/train/00004.png",
        "broken mask": "masks/train/00005.png",
        "mask without image": "masks/train/alone.png",
    }.items():
        assert len(kinds[kind]) == 1
        assert name in kinds[kind][0]
    assert result.error is not None
    assert "4 issues" in result.error


def test_broken_and_turned_images_are_named(scenes: Path) -> None:
    image = scenes / "images" / "val" / "00003.png"
    image.write_bytes(image.read_bytes()[:-300])
    exif = Image.Exif()
    exif[0x0112] = 3
    other = scenes / "images" / "val" / "00004.png"
    Image.open(other).save(other, exif=exif)
    kinds = found(check(scenes))
    assert "val/00003.png" in kinds["broken image"][0]
    assert "val/00004.png" in kinds["turned by EXIF"][0]


def reencoded(image: Image.Image) -> dict[str, Image.Image]:
    return {
        "half": image.resize((32, 32), Image.Resampling.BICUBIC).resize((64, 64), Image.Resampling.BICUBIC),
        "mirrored": image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).point(lambda value: value + value // 20),
        "brighter": image.point(lambda value: min(255, value * 6 // 5)),
        "larger": image.resize((96, 96), Image.Resampling.BICUBIC),
    }


def test_images_that_splits_share_are_found_equal_or_nearly(scenes: Path) -> None:
    train = [scenes / "images" / "train" / f"{number:05d}.png" for number in range(8)]
    test = [scenes / "images" / "test" / f"{number:05d}.png" for number in range(8)]
    shutil.copy(train[0], test[0])
    copies = [copy for original in train[1:3] for copy in reencoded(Image.open(original)).values()]
    for place, copy in enumerate(copies):
        copy.save(scenes / "images" / "test" / f"{20 + place:05d}.png")
    Image.open(train[3]).convert("RGB").save(scenes / "images" / "test" / "x.jpg", quality=50)
    Image.open(scenes / "images" / "test" / "x.jpg").convert("L").save(test[1])
    (scenes / "images" / "test" / "x.jpg").unlink()
    kinds = found(check(scenes))
    assert [text.count("00000.png") for text in kinds["same image in two splits"]] == [2]
    near = kinds["near-duplicate in two splits"]
    assert len(near) == 9, near
    assert sum("train/00003.png: nearly" in text and "test/00001.png" in text for text in near) == 1
    for number in (1, 2):
        assert sum(f"train/0000{number}.png: nearly" in text for text in near) == 4
    assert "near-duplicate in two splits" not in found(check(scenes, near="off"))


@pytest.mark.slow
def test_images_of_one_make_are_not_taken_for_duplicates_but_copies_among_them_are(tmp_path: Path) -> None:
    train = read_idx(FASHION_MNIST / "train-images-idx3-ubyte.gz")[:1000]
    test = read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")[:200].copy()
    test[7] = np.asarray(Image.fromarray(train[11]).point(lambda value: max(0, value - 3)))
    for split, images in (("train", train), ("test", test)):
        for number, pixels in enumerate(images):
            path = tmp_path / split / "ab"[number % 2] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    result = check(tmp_path)
    assert [split.task for split in result.splits] == ["classify", "classify"]
    assert set(found(result)) == {"near-duplicate in two splits", "near-duplicates in train"}
    assert sum("00011.png: nearly" in text for text in found(result)["near-duplicate in two splits"]) == 1
    assert (
        len(found(result)["near-duplicate in two splits"]) <= 1 + 10
    )  # 1 % of the thousand; by eye, as alike as the next
    assert len(found(result)["near-duplicates in train"]) <= 10  # by eye, the same item in another shade, for example


def test_copies_in_train_are_told_where_a_split_will_be_drawn_from_it(scenes: Path) -> None:
    copy = scenes / "images" / "train" / "00030.png"
    Image.open(scenes / "images" / "train" / "00007.png").point(lambda value: value * 9 // 10).save(copy)
    assert "near-duplicates in train" not in found(check(scenes)), "all splits are there"
    (scenes / "test.json").unlink()
    result = check(scenes, task="detect")
    assert len(found(result)["near-duplicates in train"]) == 1
    assert "00007.png: nearly" in found(result)["near-duplicates in train"][0]
    assert result.error is None


def test_flat_images_are_like_nothing_and_equal_ones_in_train_are_told(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            for number in range(3):
                Image.new("L", (32, 32), 10 * number + 100 * (split == "test") + 50 * (label == "b")).save(
                    tmp_path / split / label / f"{number}.png"
                )
    shutil.copy(tmp_path / "train" / "a" / "0.png", tmp_path / "train" / "b" / "9.png")
    result = check(tmp_path)
    kinds = {"duplicate images in train", "equal pictures with different labels", "image of one colour"}
    assert set(found(result)) == kinds
    assert result.error is None
    assert result.summary().endswith("\nsound")


def test_the_report_has_everything_and_the_summary_the_first_of_each_kind(tmp_path: Path, scenes: Path) -> None:
    for number in range(9):
        (scenes / "masks" / "train" / f"{number:05d}.png").unlink()
    report = tmp_path / "reports" / "check.json"
    result = check(scenes, out=str(report))
    assert "... and 4 more" in result.summary()
    content = json.loads(report.read_text())
    assert content["sound"] is False
    assert [(finding["kind"], finding["count"]) for finding in content["findings"]] == [("image without mask", 9)]
    assert len(content["findings"][0]["found"]) == 9
    assert result.error is not None
    assert str(report) in result.error


def test_one_unreadable_task_does_not_hide_the_other(scenes: Path) -> None:
    (scenes / "val.json").write_text('{"annotations": [')
    result = check(scenes)
    assert "val.json line 1: not valid JSON" in found(result)["unreadable"][0]
    assert {split.task for split in result.splits} == {"segment"}
    with pytest.raises(DataError, match=r"val.json line 1: not valid JSON"):
        check(scenes, task="detect")


@pytest.mark.slow
def test_the_command_prints_what_it_found_and_ends_with_2_only_for_unsound_data(tmp_path: Path, scenes: Path) -> None:
    sound = run_maelift("data", "check", scenes)
    assert (sound.returncode, sound.stderr) == (0, "")
    assert "nothing is wrong" in sound.stdout
    shutil.copy(scenes / "images" / "train" / "00000.png", scenes / "images" / "test" / "00000.png")
    unsound = run_maelift("data", "check", scenes, f"out={tmp_path / 'report.json'}")
    assert "same image in two splits: 1 (must be fixed)" in unsound.stdout
    one_line_error(unsound, "1 issue", "same image in two splits", "report.json")


def test_layouts_are_recognised(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        for number in range(3):
            image = tmp_path / "images" / split / f"{number}.jpg"
            mask = tmp_path / "annotations" / split / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            mask.parent.mkdir(parents=True, exist_ok=True)
            noise_image(number + 10 * (split == "training"), (20, 20)).save(image)
            Image.new("L", (20, 20), number).save(mask)
    result = check(tmp_path)
    assert [split.task for split in result.splits] == ["segment", "segment"]
    assert len(result.splits[0].classes) == 150
    assert result.error is None


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder or file"):
        check(tmp_path / "none")
    with pytest.raises(DataError, match="folder is empty"):
        check(tmp_path)
    with pytest.raises(ConfigError, match=r"^layout="):
        tasks_of(DataCheckConfig("x", task="detect", layout="ade20k"))


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Images without labels, some of which had better be left out."""
    folder = write_images(tmp_path / "pool", 24)
    noise_image(3).save(folder / "copy.bmp")
    noise_image(4, (40, 48)).save(folder / "resized.png")
    noise_image(5).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "mirrored.png")
    noise_image(40, (6, 30)).save(folder / "tiny.png")
    noise_image(41).convert("CMYK").save(folder / "print.jpg")
    np.save(folder / "array.npy", np.zeros((9, 9, 5), np.uint8))
    (folder / "page.jpg").write_text("<html>")
    bands = np.random.default_rng(0).integers(0, 256, (20, 24, 5), dtype=np.uint8)
    framework("tifffile").imwrite(folder / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    return folder


def test_a_pool_to_pretrain_on_is_told_by_kind_and_what_is_like_what(pool: Path) -> None:
    result = check(pool)
    names = {kind: [Path(text.split(": ")[0]).name for text in texts] for kind, texts in found(result).items()}
    assert names == {
        "broken image": ["page.jpg"],
        "other channels": ["bands.tif"],
        "tiny image": ["tiny.png"],
        "duplicate image": ["image003.png"],  # copy.bmp comes before it
        "near-duplicate image": ["mirrored.png", "resized.png"],
        "unusual image": ["print.jpg"],
    }
    assert result.error is None
    text = result.summary()
    assert "31 images from 24×20 to 48×40 px" in text
    facts = dict(result.facts)
    assert facts["channels"] == "28 × 3" and facts["mean"].count(",") == 2


def test_the_list_of_a_pool_is_what_pretraining_takes(pool: Path, tmp_path: Path) -> None:
    file, report = tmp_path / "lists" / "sound.txt", tmp_path / "report.json"
    done = run_maelift("data", "check", pool, f"keep={file}", "keep_near=false", f"out={report}")
    assert done.returncode == 0, done.stderr
    assert "25 of 31 images" in done.stdout
    paths = [Path(line) for line in file.read_text().splitlines()]
    assert all(path.is_absolute() and path.is_file() for path in paths)
    left_out = {path.name for path in pool.iterdir()} - {path.name for path in paths}
    broken = {"page.jpg", "bands.tif", "tiny.png"}
    assert left_out == {*broken, "image003.png", "mirrored.png", "resized.png", "array.npy"}
    assert json.loads(report.read_text())["facts"]["channels"] == "28 × 3"
    check(pool, keep=str(file), near="off")
    names = {Path(line).name for line in file.read_text().splitlines()}
    assert {path.name for path in pool.iterdir()} - names == {*broken, "image003.png", "array.npy"}


def test_a_pool_of_other_channels_or_floats_is_judged_as_it_is_meant(tmp_path: Path) -> None:
    for number in range(4):
        values = np.random.default_rng(number).random((20, 20, 4), dtype=np.float32)
        np.save(tmp_path / f"{number}.npy", values * (3 if number == 3 else 1))
    result = check(tmp_path, channels=4, value_range=(0.0, 1.0))
    assert list(found(result)) == ["broken image"] and "beyond value_range=[0,1]" in found(result)["broken image"][0]
    mean = [float(value) for value in dict(result.facts)["mean"].split(" (")[0].split(", ")]
    assert mean == pytest.approx([0.5] * 4, abs=0.05)
    with pytest.raises(DataError, match=r"none of 4 images is sound .*give value_range"):
        check(tmp_path)
    with pytest.raises(ConfigError, match="keep"):
        DataCheckConfig("d", task="detect", keep="list.txt")


def test_a_task_of_ones_own_is_checked_by_its_name_and_by_what_it_recognizes(tmp_path: Path) -> None:
    for number, name in enumerate(("3/a.png", "3/b.png", "5/c.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        noise_image(number).save(path)

    def read_counts(data: str, keys: AnnotationKeys) -> dict[str, AnnotatedSplit]:
        issue = DataIssue("odd count", Path(data) / "5", "", "5 is odd")
        return {split: AnnotatedSplit(part, (issue,)) for split, part in class_parts(data).items()}

    count = AnnotatedTask("count", "images with a number each", read_counts, layouts=("numbers",))
    tasks = (*BUILT_IN_TASKS, count)
    check = data_check(DataCheckConfig(str(tmp_path), task="count"), tasks)
    assert [(split.task, split.split, dict(split.classes)) for split in check.splits] == [
        ("count", "train", {"3": 2, "5": 1})
    ]
    assert check.error is not None and "1 × odd count" in check.error
    assert data_check(DataCheckConfig(str(tmp_path), layout="numbers"), tasks) == check
    known = replace(count, recognize=lambda data: "folders are numbers", auto_fixes={"odd count": "rounded"})
    found = data_check(DataCheckConfig(str(tmp_path)), (*BUILT_IN_TASKS, known))
    assert found.error is None and ("read for count as", "count (folders are numbers)") in found.facts
    with pytest.raises(ConfigError, match="one of auto, classify, detect, segment, count, pretrain"):
        data_check(DataCheckConfig(str(tmp_path), task="conut"), tasks)
    with pytest.raises(ConfigError, match="images with a number each"):
        data_check(DataCheckConfig(str(tmp_path), task="detect", layout="numbers"), tasks)
