"""COCO JSON: the layouts people have, what an issue is called, and masks as pycocotools draws them."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.detection import DetectionImages
from maelift.core.data.detection_reader import parse_detection, read_detection
from maelift.core.data.labeled_dataset import draw_labeled
from maelift.core.data.missing_splits import audit_splits
from maelift.core.errors import DataError
from maelift.tests.support import framework, noise_image
from PIL import Image

SIZES = [(20, 24), (30, 16), (24, 24), (18, 40), (20, 20), (22, 22)]


def content() -> dict[str, Any]:
    """Six images, (height, width) in SIZES; the last has no objects. Ids have gaps, a name is not ASCII."""
    images = [
        {"id": 10 * number + 3, "file_name": f"bild-{number}-ü.png", "height": height, "width": width}
        for number, (height, width) in enumerate(SIZES)
    ]
    square = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]
    annotations: list[dict[str, Any]] = [
        {
            "id": 100 + number,
            "image_id": 10 * number + 3,
            "category_id": (5, 90)[number % 2],
            "bbox": [2, 3, 10, 10],
            "area": 100.0,
            "segmentation": [square],
            "iscrowd": 0,
        }
        for number in range(5)
    ]
    crowd = {"size": list(SIZES[0]), "counts": [20, 40, 420]}
    annotations.append(
        {
            "id": 7,
            "image_id": 3,
            "category_id": 90,
            "bbox": [1, 0, 2, 20],
            "area": 40,
            "segmentation": crowd,
            "iscrowd": 1,
        }
    )
    categories = [{"id": 90, "name": "Käse"}, {"id": 5, "name": "bread"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_set(data: Path, json_path: str, images: str, described: dict[str, Any] | None = None) -> Path:
    described = content() if described is None else described
    (data / json_path).parent.mkdir(parents=True, exist_ok=True)
    (data / json_path).write_text(json.dumps(described, ensure_ascii=False), encoding="utf-8")
    (data / images).mkdir(parents=True, exist_ok=True)
    for number, size in enumerate(SIZES):
        noise_image(number, size).save(data / images / f"bild-{number}-ü.png")
    return data


@pytest.fixture
def single(tmp_path: Path) -> Path:
    return write_set(tmp_path / "data", "annotations.json", "images")


def changed(single: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    described = json.loads((single / "annotations.json").read_text())
    change(described)
    (single / "annotations.json").write_text(json.dumps(described))
    return single


def resegmented(single: Path, number: int, segmentation: object) -> Path:
    """The data set with another segmentation of one annotation."""
    return changed(single, lambda described: described["annotations"][number].update(segmentation=segmentation))


def all_of(data: Path) -> DetectionImages:
    return parse_detection(data)["train"].data


def test_boxes_labels_crowds_and_images_without_objects_are_read(single: Path) -> None:
    data = all_of(single)
    assert data.classes == ("bread", "Käse")
    assert data.category_ids == (5, 90)
    assert data.image_ids == (3, 13, 23, 33, 43, 53)
    assert [len(objects) for objects in data.objects] == [2, 1, 1, 1, 1, 0]
    first = data.objects[0]
    assert first.boxes.tolist() == [[2, 3, 12, 13], [1, 0, 3, 20]]
    assert first.boxes.dtype == np.float32
    assert first.labels.tolist() == [0, 1]
    assert first.crowd.tolist() == [False, True]
    assert first.size == (20, 24)
    assert first.areas.tolist() == [100, 40]
    assert data.has_masks
    masks = first.masks()
    assert masks.shape == (2, 20, 24)
    assert masks[0, 3:13, 2:12].all()
    assert masks[0].sum() == 100
    assert masks[1].sum() == 40
    assert data.objects[5].boxes.shape == (0, 4)
    assert data.objects[5].masks().shape == (0, 22, 22)


@pytest.mark.parametrize(
    ("json_path", "images"),
    [
        ("train.json", "images/train"),
        ("train.json", "train"),
        ("train.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("train/_annotations.coco.json", "train"),
        ("annotations.json", "images"),
        ("result.json", "."),
        ("annotations/instances_default.json", "images"),
    ],
)
def test_every_layout_finds_its_images(tmp_path: Path, json_path: str, images: str) -> None:
    data = write_set(tmp_path, json_path, images)
    assert all_of(data).images.open(2).size == (24, 24)


def test_a_json_of_its_own_is_a_data_set(single: Path) -> None:
    assert len(all_of(single / "annotations.json")) == 6


def test_cocos_own_layout_has_train_and_val_and_test_is_drawn(tmp_path: Path) -> None:
    data = write_set(tmp_path, "annotations/instances_train2017.json", "train2017")
    write_set(tmp_path, "annotations/instances_val2017.json", "val2017")
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    splits = read_detection(data, test=2)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (4, 6, 2)
    assert splits.val.images.root.name == "val2017"
    assert not set(splits.train.image_ids) & set(splits.test.image_ids)


def test_drawn_splits_leave_every_class_to_train_and_follow_the_seed(single: Path) -> None:
    drawn = set()
    for seed in range(8):
        splits = read_detection(single, val=2, test=2, seed=seed)
        seen = {int(label) for objects in splits.train.objects for label in objects.labels}
        assert seen == {0, 1}
        drawn.add(splits.test.image_ids)
        assert read_detection(single, val=2, test=2, seed=seed).test.image_ids == splits.test.image_ids
    assert len(drawn) > 2


def test_few_label_draws_are_nested(single: Path) -> None:
    train = all_of(single)
    two, four = (draw_labeled(train, count, seed=3) for count in (2, 4))
    assert set(two.image_ids) < set(four.image_ids)
    objects = [int(label) for objects in four.objects for label in objects.labels]
    assert {0, 1} <= set(objects)


def test_ground_truth_is_coco_json_that_reads_back_as_the_same(tmp_path: Path, single: Path) -> None:
    before = all_of(single).subset([4, 0, 5])
    truth = before.ground_truth()
    assert [image["id"] for image in truth["images"]] == [43, 3, 53]
    assert min(annotation["id"] for annotation in truth["annotations"]) == 1
    again = tmp_path / "again"
    shutil.copytree(single / "images", again / "images")
    (again / "annotations.json").write_text(json.dumps(truth))
    after = all_of(again)
    assert [after.label_text(index) for index in range(3)] == [before.label_text(index) for index in range(3)]


@pytest.mark.parametrize("key", ["bbox", "category_id", "iscrowd", "segmentation", "area"])
def test_label_text_changes_with_all_that_the_target_depends_on(single: Path, key: str) -> None:
    before = all_of(single).label_text(0)
    other = {"bbox": [2, 3, 10, 9], "category_id": 90, "iscrowd": 1, "segmentation": [[1, 1, 9, 1, 9, 9]], "area": 7}
    changed(single, lambda described: described["annotations"][0].update({key: other[key]}))
    assert all_of(single).label_text(0) != before
    assert all_of(single).label_text(1) == all_of(single).label_text(1)


def test_masks_are_those_of_pycocotools(single: Path) -> None:
    coco_mask = framework("pycocotools.mask")
    generator = np.random.default_rng(0)
    polygons = [generator.uniform(-4, 28, 2 * int(count)).round(2).tolist() for count in generator.integers(3, 9, 40)]
    for parts in (polygons[:1], polygons[1:3], polygons[3:9]):
        resegmented(single, 0, parts)
        expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 20, 24)))
        assert np.array_equal(all_of(single).objects[0].masks()[0], expected.astype(bool))
    for share in (0.02, 0.5, 1.0, 0.0):
        mask = generator.random((20, 24)) < share
        runs = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        resegmented(single, 0, {"size": [20, 24], "counts": runs["counts"].decode()})
        assert np.array_equal(all_of(single).objects[0].masks()[0], mask)


def resegment(described: dict[str, Any], counts: object) -> None:
    described["annotations"][1]["segmentation"] = {"size": [30, 16], "counts": counts}


ISSUES: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    (
        "duplicate image id",
        lambda d: d["images"][1].update(id=3),
        r"image 3: both bild-0-ü.png and bild-1-ü.png",
    ),
    (
        "duplicate image file",
        lambda d: d["images"][1].update(file_name="bild-0-ü.png"),
        r"image 13: .*is already image 3",
    ),
    ("duplicate annotation id", lambda d: d["annotations"][1].update(id=100), r"annotation 100"),
    ("duplicate category id", lambda d: d["categories"][1].update(id=90), r"id 90 is already 'Käse'"),
    ("missing file", lambda d: d["images"][1].update(file_name="none.png"), r"no such file: .*none.png"),
    ("unknown image id", lambda d: d["annotations"][1].update(image_id=99), r"annotation 101: image_id 99"),
    ("unknown category id", lambda d: d["annotations"][1].update(category_id=1), r"annotation 101: category_id 1 "),
    ("broken box", lambda d: d["annotations"][1].update(bbox=[1, 2, 3]), r"annotation 101 .*\[1, 2, 3\]"),
    ("broken box", lambda d: d["annotations"][1].update(bbox=[1, 2, float("nan"), 3]), r"NaN"),
    ("broken box", lambda d: d["annotations"][1].pop("bbox"), r"annotation 101 .*bbox null"),
    ("broken entry", lambda d: d["annotations"][1].pop("id"), r"annotations\[1\]: expected an int 'id'"),
    ("broken entry", lambda d: d["images"][1].pop("width"), r"image 13: expected 'width' and 'height'"),
    ("broken entry", lambda d: d["images"][1].update(file_name=7), r"image 13: expected a text 'file_name'"),
    ("broken entry", lambda d: d["categories"][1].pop("name"), r"categories\[1\]"),
    ("broken entry", lambda d: d["annotations"][1].update(area="big"), r"area \"big\""),
    ("broken entry", lambda d: d["annotations"][1].update(iscrowd=2), r"iscrowd 2"),
    ("broken segmentation", lambda d: d["annotations"][1].update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), r"polygon"),
    ("broken segmentation", lambda d: d["annotations"][1].update(segmentation="mask.png"), r"mask.png"),
    (
        "broken segmentation",
        lambda d: d["annotations"][1].update(segmentation=[[1, 1, 1e9, 1, 1, 1e9]]),
        r"1e\+09|1000000000",
    ),
    (
        "broken entry",
        lambda d: d["images"][1].update(width=10**9),
        r"image 13: expected 'width' and 'height' in pixels",
    ),
    (
        "broken segmentation",
        lambda d: d["annotations"][1].update(segmentation={"size": [9, 9], "counts": [40, 41]}),
        r"size \[9, 9\]: expected .*\[30, 16\]",
    ),
    (
        "broken segmentation",
        lambda d: d["annotations"][1].update(segmentation={"size": [30, 16], "counts": [400, 400]}),
        r"expected counts whose sum is 480 pixels",
    ),
    *(
        (
            "broken segmentation",
            lambda d, counts=counts: resegment(d, counts),
            r"expected counts whose sum is 480 pixels",
        )
        for counts in ("04", "PPPPP", "é", "\x00", [480.0], [-1, 481], ["480"], [])
    ),
]


@pytest.mark.parametrize(
    ("kind", "change", "text"), ISSUES, ids=[f"{kind}{n}" for n, (kind, _, _) in enumerate(ISSUES)]
)
def test_an_issue_without_a_clear_meaning_is_refused_in_a_line(
    single: Path, kind: str, change: Callable[[dict[str, Any]], object], text: str
) -> None:
    changed(single, change)
    assert {issue.kind for issue in parse_detection(single)["train"].issues} >= {kind}
    with pytest.raises(DataError, match=text) as refused:
        read_detection(single)
    assert "annotations.json" in str(refused.value)
    assert "maelift data check" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_annotations_of_a_faulty_image_are_no_further_issues(single: Path) -> None:
    changed(single, lambda described: described["images"][0].pop("width"))
    assert [issue.kind for issue in parse_detection(single)["train"].issues] == ["broken entry"]


def test_boxes_are_cut_and_objects_without_area_left_out_by_rule_and_counted(
    single: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def change(described: dict[str, Any]) -> None:
        first, second, third, fourth, fifth, _ = described["annotations"]
        first["bbox"] = [-4, -2, 50, 10]
        second["bbox"] = [2, 3, 0, 10]
        third["bbox"] = [40, 40, 5, 5]
        fourth["segmentation"] = [[1, 1, 5, 5]]
        fifth["bbox"] = [2, 3, 18.4, 10]  # 0.4 px too far is how tools round: clipped, but not reported

    changed(single, change)
    with caplog.at_level(logging.WARNING, logger="maelift"):
        splits = read_detection(single, val=1, test=1)
    issues = [issue.kind for issue in parse_detection(single)["train"].issues]
    assert issues.count("box beyond its image") == 2
    assert issues.count("box without area") == 2
    assert issues.count("segmentation without area") == 1
    assert "2 × box without area (left out)" in caplog.text
    data = all_of(single)
    assert data.objects[0].boxes[0].tolist() == [0, 0, 24, 8]
    assert [len(objects) for objects in data.objects] == [2, 0, 0, 0, 1, 0]
    assert data.objects[4].boxes[0].tolist() == [2, 3, 20, 13]
    assert len(splits.train) == 4


def test_masks_are_used_only_where_all_objects_have_one(single: Path) -> None:
    changed(single, lambda described: described["annotations"][1].pop("segmentation"))
    parsed = parse_detection(single)["train"]
    assert [issue.kind for issue in parsed.issues] == ["object without segmentation"]
    assert not parsed.data.has_masks
    for number in range(6):
        resegmented(single, number, None)
    parsed = parse_detection(single)["train"]
    assert not parsed.issues
    assert not parsed.data.has_masks


def test_an_area_that_is_missing_is_that_of_the_segmentation_or_the_box(single: Path) -> None:
    def change(described: dict[str, Any]) -> None:
        for annotation in described["annotations"]:
            del annotation["area"]
        described["annotations"][0]["segmentation"] = [[2, 3, 12, 3, 12, 8, 2, 8]]
        described["annotations"][1].pop("segmentation")

    data = all_of(changed(single, change))
    assert data.objects[0].areas[0] == 50
    assert data.objects[1].areas[0] == 100


def test_equal_category_names_are_told_apart(single: Path) -> None:
    data = all_of(changed(single, lambda described: described["categories"][0].update(name="bread")))
    assert data.classes == ("bread (5)", "bread (90)")


def test_categories_of_the_splits_must_agree(tmp_path: Path) -> None:
    data = write_set(tmp_path, "train.json", "images/train")
    other = content()
    other["categories"][1]["name"] = "toast"
    write_set(tmp_path, "val.json", "images/val", other)
    with pytest.raises(DataError, match=r"val.json: category 5: 'toast' here, 'bread' in train.json"):
        read_detection(data)


def test_a_split_with_fewer_categories_gets_the_training_numbers(tmp_path: Path) -> None:
    data = write_set(tmp_path, "train.json", "images/train")
    other = content()
    other["categories"] = other["categories"][:1]
    other["annotations"] = [one for one in other["annotations"] if one["category_id"] == 90]
    write_set(tmp_path, "val.json", "images/val", other)
    val = read_detection(data, test=1).val
    assert val.classes == ("bread", "Käse")
    assert {int(label) for objects in val.objects for label in objects.labels} == {1}


def test_an_image_of_another_size_than_told_is_refused_when_opened_and_skipped_by_the_audit(single: Path) -> None:
    turned = Image.open(single / "images" / "bild-3-ü.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(single / "images" / "bild-3-ü.png", exif=exif)
    data = all_of(single)
    with pytest.raises(DataError, match=r"18×40 px \(upright\), but its annotations are for 40×18"):
        data.images.open(3)
    splits, manifest = audit_splits(read_detection(single, val=1, test=1, seed=1), max_rejected=1.0)
    assert [name for name, _ in manifest.rejected] == ["bild-3-ü.png"]
    assert sum(len(part) for _, part in splits.items()) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", r"annotations.json line 1: not valid JSON"),
        ("[]", r"a list, not COCO JSON"),
        ('{"images": [], "annotations": []}', r"no 'categories'"),
        ('{"images": [], "annotations": [], "categories": []}', r"list of images is empty"),
        ('{"images": {}, "annotations": [], "categories": []}', r"not a list: 'images'"),
    ],
)
def test_what_is_no_coco_json_is_refused(single: Path, text: str, expected: str) -> None:
    (single / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=expected):
        read_detection(single)


def test_two_files_for_one_split_and_no_json_are_refused(tmp_path: Path, single: Path) -> None:
    write_set(tmp_path / "two", "train.json", "images")
    shutil.copy(tmp_path / "two" / "train.json", tmp_path / "two" / "training.json")
    with pytest.raises(DataError, match=r"train.json and training.json are both train"):
        read_detection(tmp_path / "two")
    (single / "annotations.json").unlink()
    with pytest.raises(DataError, match=r"no COCO JSON"):
        read_detection(single)
    with pytest.raises(DataError, match=r"no such folder"):
        read_detection(tmp_path / "none")


def test_a_data_set_without_changes_has_no_issues(single: Path) -> None:
    assert parse_detection(single)["train"].issues == ()
