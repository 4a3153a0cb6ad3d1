"""YOLO's and Pascal VOC's boxes: the same objects as COCO's of the same pictures, in every layout; and what is refused."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from maelift.core.data.detection import DetectionImages
from maelift.core.data.detection_reader import parse_detection, read_detection
from maelift.core.errors import ConfigError, DataError
from maelift.core.tools.check_data import DataCheckConfig, data_check, tasks_of
from maelift.tests.support import noise_image

WIDTH, HEIGHT, COUNT = 50, 40, 6
NAMES = ["apple", "pear", "plum"]
Box = tuple[float, float, float, float]


def truth(number: int) -> list[tuple[int, Box]]:
    """The class and x, y, width, height in whole pixels of an image's objects; the last image has none."""
    generator = np.random.default_rng(number)
    found: list[tuple[int, Box]] = []
    for _ in range(0 if number == COUNT - 1 else 3):
        w, h = (int(side) for side in generator.integers(4, 20, 2))
        x, y = int(generator.integers(0, WIDTH - w + 1)), int(generator.integers(0, HEIGHT - h + 1))
        found.append((int(generator.integers(0, 3)), (x, y, w, h)))
    return found


def image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise_image(number, (HEIGHT, WIDTH)).save(path)


def yolo_lines(number: int) -> str:
    return "".join(
        f"{label} {(x + w / 2) / WIDTH:.7f} {(y + h / 2) / HEIGHT:.7f} {w / WIDTH:.7f} {h / HEIGHT:.7f}\n"
        for label, (x, y, w, h) in truth(number)
    )


def write_yolo(root: Path, images: str, labels: str) -> Path:
    for number in range(COUNT):
        image(root / images.format(number), number)
        text = root / labels.format(number)
        text.parent.mkdir(parents=True, exist_ok=True)
        if truth(number):
            text.write_text(yolo_lines(number))
    return root


def voc_xml(number: int, difficult: int = 0, first: int = 1) -> str:
    objects = "".join(
        f"<object><name>{NAMES[label]}</name><truncated>1</truncated><difficult>{difficult}</difficult><bndbox>"
        f"<xmin>{x + first}</xmin><ymin>{y + first}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox>"
        "<part><name>stalk</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for label, (x, y, w, h) in truth(number)
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{number}.png</filename>{size}{objects}</annotation>"


def write_voc(root: Path, images: str, files: str, first: int = 1) -> Path:
    for number in range(COUNT):
        image(root / images.format(number), number)
        file = root / files.format(number)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(voc_xml(number, first=first))
    return root


def is_the_truth(data: DetectionImages) -> None:
    """Compare with the objects as they were drawn."""
    assert data.classes == tuple(NAMES)
    for path, objects in zip(data.images.paths, data.objects, strict=True):
        number = int(Path(path).stem[-1])
        expected = [(label, (x, y, x + w, y + h)) for label, (x, y, w, h) in truth(number)]
        assert objects.labels.tolist() == [label for label, _ in expected], path
        if expected:
            np.testing.assert_allclose(objects.boxes, [box for _, box in expected], atol=1e-4)


def yaml_of(root: Path, text: str = "path: .\ntrain: images\n", names: object = NAMES) -> None:
    (root / "data.yaml").write_text(f"{text}names: {json.dumps(names)}\n")


YOLO = [
    ("images/{}.png", "labels/{}.txt"),
    ("images/train/{}.png", "labels/train/{}.txt"),
    ("train/images/{}.png", "train/labels/{}.txt"),
    ("train/{}.png", "train/{}.txt"),
    ("{}.png", "{}.txt"),
    ("Images/{}.png", "Labels/{}.txt"),
    ("images/a/{}.png", "labels/a/{}.txt"),
    ("obj_train_data/{}.png", "obj_train_data/{}.txt"),
]


@pytest.mark.parametrize(("images", "labels"), YOLO)
def test_yolos_folders_are_read(tmp_path: Path, images: str, labels: str) -> None:
    write_yolo(tmp_path, images, labels)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    (part,) = parse_detection(tmp_path).values()
    assert not part.issues
    assert len(part.data) == COUNT
    is_the_truth(part.data)
    assert tasks_of(DataCheckConfig(str(tmp_path))) == ("detect",)
    result = data_check(DataCheckConfig(str(tmp_path)))
    assert result.error is None and "read for detect as" in result.summary() and "YOLO" in result.summary()


@pytest.mark.parametrize(
    "text",
    [
        "path: .\ntrain: images\n",
        "path: /somewhere/else\ntrain: images\n",
        "train: ../images\n",
        "train: [images]\nnc: 3\n",
        "path: .\ntrain: list.txt\ndownload: |\n  import os; os.remove('data.yaml')\n",
    ],
)
@pytest.mark.parametrize("names", [NAMES, dict(enumerate(NAMES))])
def test_data_yaml_says_where_images_are_and_what_classes_are_called(tmp_path: Path, text: str, names: object) -> None:
    root = write_yolo(tmp_path / "data", "images/{}.png", "labels/{}.txt")
    (root / "list.txt").write_text("".join(f"./images/{number}.png\n" for number in range(COUNT)))
    lines = [f"{text}names:"]
    lines += (
        [f"  {key}: {name}" for key, name in names.items()] if isinstance(names, dict) else [f"  - {n}" for n in NAMES]
    )
    (root / "data.yaml").write_text("\n".join(lines))
    for data in (root, root / "data.yaml"):
        is_the_truth(read_detection(data, val=1, test=1).train)
        assert tasks_of(DataCheckConfig(str(data))) == ("detect",)
    assert (root / "data.yaml").exists()


def test_splits_of_yolo_are_those_of_its_folders(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write_yolo(tmp_path, f"{split}/images/{split}{{}}.png", f"{split}/labels/{split}{{}}.txt")
    yaml_of(tmp_path, "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n")
    splits = read_detection(tmp_path)
    for _, part in splits.items():
        assert len(part) == COUNT
        is_the_truth(part)
    (tmp_path / "data.yaml").unlink()
    assert [len(part) for _, part in read_detection(tmp_path).items()] == [COUNT] * 3


def test_a_split_that_is_the_training_split_is_refused(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    yaml_of(tmp_path, "path: .\ntrain: images\nval: images\n")
    with pytest.raises(DataError, match=r"6 of its images are in the training split too. Without val, one is drawn"):
        read_detection(tmp_path)
    yaml_of(tmp_path, "path: .\ntrain: images\n")
    assert len(read_detection(tmp_path, val=1, test=1).train) == 4


def test_outlines_of_yolo_are_masks(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    yaml_of(tmp_path)
    for number in range(COUNT - 1):
        lines = []
        for label, (x, y, w, h) in truth(number):
            points = [(x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y + h / 2)]
            lines.append(" ".join([str(label), *(f"{a / WIDTH:.7f} {b / HEIGHT:.7f}" for a, b in points)]))
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join(lines))
    data = parse_detection(tmp_path)["train"].data
    assert data.has_masks
    is_the_truth(data)
    for objects in data.objects:
        for mask, (x1, y1, x2, y2) in zip(objects.masks(), objects.boxes.round().astype(int), strict=True):
            expected = np.zeros((HEIGHT, WIDTH), bool)
            expected[y1:y2, x1:x2] = True
            assert np.array_equal(mask, expected)
    with (tmp_path / "labels" / "0.txt").open("a") as file:
        file.write("\n0 0.5 0.5 0.25 0.25\n")
    assert "object without segmentation" in {issue.kind for issue in parse_detection(tmp_path)["train"].issues}


def shifted(change: Callable[[float, float, float, float], tuple[float, ...]]) -> str:
    rows = [(0.3 + 0.02 * i, 0.4 + 0.02 * i, 0.4, 0.3) for i in range(6)]
    return "".join(" ".join(["0", *(f"{value:.4f}" for value in change(*row))]) + "\n" for row in rows)


BROKEN = {
    "0 0.5 0.5 0.2\n": r"labels/0.txt: line 1: 4 numbers: expected 5, 'class x y width height'",
    "\n0 0.5 0.5 0.2 0.2 0.9\n": r"line 2: six numbers: a prediction with its confidence\?",
    "0 0.1 0.1 0.2 0.2 0.3 0.3 0.4\n": r"line 1: 8 numbers: expected",
    "0,0.5,0.5,0.2,0.2\n": r"expected numbers separated by spaces",
    "apple 0.5 0.5 0.2 0.2\n": r"'apple 0.5 0.5 0.2 0.2': expected numbers",
    "0.5 0.5 0.5 0.2 0.2\n": r"expected the class as an integer",
    "-1 0.5 0.5 0.2 0.2\n": r"expected the class as an integer",
    "0 nan 0.5 0.2 0.2\n": r"finite numbers",
    "0 25 20 10 8\n": r"expected shares from 0 to 1. Pixels\? Divide x and width by the image's width",
    "0 -0.5 0.5 0.2 0.2\n": r"expected shares from 0 to 1",
    "7 0.5 0.5 0.2 0.2\n": r"class 7, but 3 are named, 0 to 2",
    shifted(
        lambda x, y, w, h: (x, y, x + w, y + h)
    ): r"x1 y1 x2 y2\? .*YOLO's x and y are of the centre: the centre is half",
}


@pytest.mark.parametrize("text", BROKEN)
def test_lines_that_yolo_doesnt_have_are_refused_with_their_place(tmp_path: Path, text: str) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    yaml_of(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.write_text(text if path.stem == "0" or len(text) > 60 else "0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=BROKEN[text]) as refused:
        read_detection(tmp_path)
    assert "\n" not in str(refused.value)
    assert data_check(DataCheckConfig(str(tmp_path))).error is not None
    for path in (tmp_path / "labels").iterdir():
        path.write_text("0 0.5 0.5 0.2 0.2\n")  # as it was expected
    assert len(read_detection(tmp_path, val=1, test=1).train) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("names: [a, b]\nnc: 3\ntrain: images\n", "nc is 3, but 2 names"),
        ("names: [yes, b, c]\ntrain: images\n", "class 0 is not text in YAML. Quote it"),
        ("names: {1: a, 2: b}\ntrain: images\n", "expected the numbers 0 to 1"),
        ("names: [a, a, b]\ntrain: images\n", "'a' is listed twice"),
        ("names: [a, b, c]\ntrain: nowhere\n", r"train: no .*nowhere. Correct path or train"),
        ("names: [a, b, c]\ntrain: 7\n", "train: expected a folder of images"),
        ("names: [a, b, c]\nkpt_shape: [17, 3]\ntrain: images\n", "keypoints, which aren't supported"),
        ("names: [a, b\ntrain: images\n", r"data.yaml line \d+: not valid YAML"),
        ("names: !!python/object/apply:os.system ['touch hacked']\n", "not valid YAML"),
        ("- a\n", "not a data.yaml"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_data_yaml_that_makes_no_sense_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=expected) as refused:
        read_detection(tmp_path)
    assert "\n" not in str(refused.value)


def test_what_yolo_leaves_out_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    yaml_of(tmp_path, "train: images\n")
    (tmp_path / "labels" / "alone.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "images" / "0.png").write_bytes(b"broken")
    with caplog.at_level(logging.WARNING, logger="maelift"):
        splits = read_detection(tmp_path, val=1, test=1)
    assert len(splits.train) == COUNT - 3
    assert "1 × label file without image (left out)" in caplog.text
    assert "1 × image that can't be opened (left out)" in caplog.text
    for path in (tmp_path / "labels").iterdir():
        if path.stem in "1234" and path.stem != "1":
            path.unlink()
    assert "4 of 6 images of train have no label file" in parse_detection(tmp_path)["train"].issues[1].text()
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="none of 5 images has a label file with a box"):
        read_detection(tmp_path)


VOC = [
    ("JPEGImages/{}.png", "Annotations/{}.xml"),
    ("VOCdevkit/VOC2012/JPEGImages/{}.png", "VOCdevkit/VOC2012/Annotations/{}.xml"),
    ("images/{}.png", "annotations/{}.xml"),
    ("train/{}.png", "train/{}.xml"),
    ("train/images/{}.png", "train/annotations/{}.xml"),
    ("{}.png", "{}.xml"),
    ("images/{}.png", "annotations/x{}.xml"),
]


@pytest.mark.parametrize(("images", "files"), VOC)
def test_vocs_folders_are_read_and_corners_count_from_1(tmp_path: Path, images: str, files: str) -> None:
    write_voc(tmp_path, images, files)
    (part,) = parse_detection(tmp_path, layout="voc").values()
    assert not part.issues and len(part.data) == COUNT
    is_the_truth(part.data)
    if "x{}" not in files:
        assert tasks_of(DataCheckConfig(str(tmp_path))) == ("detect",)
        is_the_truth(read_detection(tmp_path, val=1, test=1).train)


def test_corners_from_0_are_lines_between_pixels_and_reported(tmp_path: Path) -> None:
    write_voc(tmp_path, "JPEGImages/{}.png", "Annotations/{}.xml", first=0)
    (tmp_path / "Annotations" / "0.xml").write_text(voc_xml(0, first=0).replace("<xmin>", "<xmin>0</xmin><xmin>", 1))
    part = parse_detection(tmp_path)["train"]
    assert [issue.kind for issue in part.issues] == ["corners from 0"]
    boxes = part.data.objects[1].boxes
    np.testing.assert_allclose(boxes, [(x, y, x + w, y + h) for _, (x, y, w, h) in truth(1)])


def test_image_sets_are_the_splits_and_what_they_leave_out_is_named(tmp_path: Path) -> None:
    write_voc(tmp_path, "JPEGImages/{}.png", "Annotations/{}.xml")
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("0\n1  1\n2 -1\n")
    (sets / "val.txt").write_text("3\n4.png\n")
    (sets / "apple_train.txt").write_text("5 1\n")
    parsed = parse_detection(tmp_path)
    assert {split: len(part.data) for split, part in parsed.items()} == {"train": 3, "val": 2}
    assert [issue.text().partition("Annotations: ")[2] for issue in parsed["train"].issues] == [
        "1 annotation files are of images that no list in ImageSets/Main has"
    ]
    for part in parsed.values():
        is_the_truth(part.data)


def test_difficult_objects_are_ignored_as_crowds_are(tmp_path: Path) -> None:
    write_voc(tmp_path, "JPEGImages/{}.png", "Annotations/{}.xml")
    (tmp_path / "Annotations" / "0.xml").write_text(voc_xml(0, difficult=1))
    part = parse_detection(tmp_path)["train"]
    assert [objects.crowd.tolist() for objects in part.data.objects[:2]] == [[True] * 3, [False] * 3]
    assert "3 of 15 are marked so" in part.issues[0].text()


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9))
    + "]><annotation><object><name>&j;</name></object></annotation>"
)
HOSTILE = {
    "a bomb": (BOMB, "has a DOCTYPE"),
    "a file of the machine": (
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "DOCTYPE",
    ),
    "deep": ("<annotation>" + "<a>" * 200_000, "more than 100 nested elements"),
    "cut off": (voc_xml(0)[:-30], "not valid XML"),
    "no XML": ("{}", "not valid XML"),
    "another XML": ("<svg></svg>", "<svg>, not Pascal VOC's <annotation>"),
    "no box": (
        "<annotation><object><name>a</name><polygon/></object></annotation>",
        "object 1: no <bndbox> .but <polygon>",
    ),
    "text": (voc_xml(0).replace("<xmin>", "<xmin>x", 1), "object 1: bndbox x"),
    "NaN": (voc_xml(0).replace("<xmax>", "<xmax>nan</xmax><xmax>", 1), "expected four numbers"),
    "no name": (voc_xml(0).replace("<name>", "<nome>", 1).replace("</name>", "</nome>", 1), "object 1: no <name>"),
    "an encoding": ('<?xml version="1.0" encoding="none"?><annotation/>', "not valid XML"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_xml_is_refused_at_once(tmp_path: Path, name: str) -> None:
    text, expected = HOSTILE[name]
    write_voc(tmp_path, "JPEGImages/{}.png", "Annotations/{}.xml")
    (tmp_path / "Annotations" / "2.xml").write_text(text)
    begin = time.monotonic()
    with pytest.raises(DataError, match=rf"Annotations/2.xml: .*{expected}") as refused:
        read_detection(tmp_path)
    assert "\n" not in str(refused.value)
    assert time.monotonic() - begin < 10
    assert data_check(DataCheckConfig(str(tmp_path), task="detect")).error is not None


def test_two_kinds_of_annotations_are_named_and_the_key_decides(tmp_path: Path) -> None:
    write_yolo(tmp_path, "images/{}.png", "labels/{}.txt")
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    images = [{"id": n, "file_name": f"{n}.png", "width": WIDTH, "height": HEIGHT} for n in range(COUNT)]
    annotation = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 9, 9]}
    (tmp_path / "train.json").write_text(
        json.dumps({"images": images, "annotations": [annotation], "categories": [{"id": 1, "name": "nut"}]})
    )
    part = parse_detection(tmp_path)["train"]
    assert part.data.classes == ("nut",)
    assert "layout=yolo reads these" in part.issues[0].text()
    is_the_truth(parse_detection(tmp_path, layout="yolo")["train"].data)
    assert data_check(DataCheckConfig(str(tmp_path), layout="yolo")).splits[0].objects == 15
    with pytest.raises(ConfigError, match="layout="):
        tasks_of(DataCheckConfig(str(tmp_path), layout="yolo", task="segment"))
