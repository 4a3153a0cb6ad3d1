"""Boxes that can hardly be meant, objects that are there twice, and the JSON of other tools."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.coco import ParsedDetection
from maelift.core.data.detection_reader import parse_detection, read_detection
from maelift.core.errors import DataError
from maelift.tests.support import framework, noise_image

WIDTH, HEIGHT = 60, 40
Box = tuple[float, float, float, float]


def truth(seed: int, count: int) -> list[Box]:
    """Boxes x, y, width, height anywhere on an image."""
    generator = np.random.default_rng(seed)
    sides = generator.uniform(3, (WIDTH / 2, HEIGHT / 2), (count, 2))
    corners = generator.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return [tuple(row) for row in np.concatenate([corners, sides], axis=1).round(1).tolist()]


def described(boxes: list[Box], change: Callable[[Box], dict[str, Any]], images: int = 6) -> dict[str, Any]:
    annotations = [
        {"id": number + 1, "image_id": number % images, "category_id": 1, **change(box)}
        for number, box in enumerate(boxes)
    ]
    listed = [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in range(images)]
    return {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "apple"}]}


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(6):
        noise_image(number, (HEIGHT, WIDTH)).save(folder / "images" / f"{number}.png")
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def train(folder: Path) -> ParsedDetection:
    return parse_detection(folder)["train"]


def kinds(folder: Path) -> list[str]:
    return [issue.kind for issue in train(folder).issues]


def polygon(box: Box) -> list[list[float]]:
    x, y, w, h = box
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


CONVENTIONS: dict[str, tuple[Callable[[Box], Box], str, str]] = {
    "shares": (
        lambda b: (b[0] / WIDTH, b[1] / HEIGHT, b[2] / WIDTH, b[3] / HEIGHT),
        "boxes from 0 to 1",
        r"boxes from 0 to 1\? Expected pixels\. Multiply x and width",
    ),
    "corners": (
        lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]),
        "boxes of another convention",
        r"x1,y1,x2,y2\? .* COCO's are x, y, width, height: subtract x1 from x2",
    ),
    "centres": (
        lambda b: (b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]),
        "boxes of another convention",
        r"centre x, centre y, width, height\? .*subtract half",
    ),
    "swapped corners": (
        lambda b: (b[1], b[0], b[1] + b[3], b[0] + b[2]),
        "boxes of another convention",
        r"y1,x1,y2,x2\? .*swap them, and subtract",
    ),
    "swapped": (lambda b: (b[1], b[0], b[3], b[2]), "boxes of another convention", r"y, x, height, width\? .*swap"),
}


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("count", [8, 90])
def test_boxes_in_another_convention_are_refused_and_the_advice_makes_them_right(
    tmp_path: Path, name: str, count: int
) -> None:
    change, kind, text = CONVENTIONS[name]
    boxes = truth(count, count)
    if count == 8:  # few boxes must show it plainly
        boxes = [(30 + i, 15 + i, 22, 16) for i in range(8)]
    folder = write(tmp_path / name, described(boxes, lambda box: {"bbox": change(box)}))
    assert kind in kinds(folder)
    with pytest.raises(DataError, match=text) as refused:
        read_detection(folder)
    assert "\n" not in str(refused.value)
    write(folder, described(boxes, lambda box: {"bbox": box}))  # what the advice gives
    assert not kinds(folder)


@pytest.mark.parametrize("name", ["corners", "centres", "swapped"])
def test_outlines_and_areas_tell_what_boxes_in_the_upper_left_are(tmp_path: Path, name: str) -> None:
    change, kind, text = CONVENTIONS[name]
    boxes: list[Box] = [(2 + i % 3, 3 + i % 5, 8 + i % 4, 5) for i in range(20)]
    folder = write(tmp_path, described(boxes, lambda box: {"bbox": change(box), "segmentation": polygon(box)}))
    assert kind in kinds(folder)
    with pytest.raises(DataError, match=text.partition(r"\?")[0]):
        read_detection(folder)
    if name == "corners":
        write(tmp_path, described(boxes, lambda box: {"bbox": change(box), "area": box[2] * box[3]}))
        assert kind in kinds(folder)


def test_boxes_that_are_meant_so_raise_no_alarm(tmp_path: Path) -> None:
    full: list[Box] = [(max(0, i), max(0, min(1, i)), WIDTH - 4, HEIGHT - 3) for i in range(-4, 6)]
    corner: list[Box] = [(WIDTH - 9 + i, HEIGHT - 5, 12, 8) for i in range(3)]
    sets: list[list[Box]] = [
        truth(1, 200),
        [*full, (55, 20, 3, 2)],
        truth(2, 40) + corner,
        [(0, 0, 1, 1), (5, 5, 9, 9)],
    ]
    for boxes in sets:
        for more in (lambda box: {}, lambda box: {"segmentation": polygon(box), "area": box[2] * box[3]}):
            content = described(boxes, lambda box, more=more: {"bbox": box, **more(box)})  # type: ignore[misc]
            found = set(kinds(write(tmp_path, content)))
            assert found <= {"box beyond its image", "object twice"}, found


def test_outlines_from_0_to_1_and_boxes_beside_their_images_are_refused(tmp_path: Path) -> None:
    shares = [[0.1, 0.1, 0.5, 0.1, 0.5, 0.6]]
    write(tmp_path, described(truth(3, 12), lambda box: {"bbox": box, "segmentation": shares}))
    with pytest.raises(DataError, match="polygons of all 12 objects that have one are from 0 to 1"):
        read_detection(tmp_path)
    write(tmp_path, described([(x * 3, y * 3, w, h) for x, y, w, h in truth(4, 40)], lambda box: {"bbox": box}))
    with pytest.raises(DataError, match="images of another size"):
        read_detection(tmp_path)


@pytest.mark.parametrize("nothing", [[], [[]], [[], []], {}, None])
def test_an_empty_outline_is_none_and_the_box_counts_as_in_pycocotools(tmp_path: Path, nothing: object) -> None:
    write(
        tmp_path, described(truth(5, 12), lambda box: {"bbox": box, "segmentation": nothing, "area": 9, "iscrowd": 0})
    )
    assert not kinds(tmp_path)
    data = train(tmp_path).data
    known = framework("pycocotools.coco").COCO(str(tmp_path / "annotations.json"))
    for image, objects in zip(data.image_ids, data.objects, strict=True):
        expected = np.array([one["bbox"] for one in known.imgToAnns[image]])
        assert np.allclose(objects.boxes, np.concatenate([expected[:, :2], expected[:, :2] + expected[:, 2:]], axis=1))
    assert not data.has_masks


def test_boxes_count_where_no_outline_has_an_area(tmp_path: Path) -> None:
    write(tmp_path, described(truth(6, 12), lambda box: {"bbox": box, "segmentation": [[1, 2, 3, 4]]}))
    assert kinds(tmp_path) == ["segmentations without area only"]
    assert sum(map(len, train(tmp_path).data.objects)) == 12


def test_an_object_that_is_there_twice_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = described(truth(7, 12), lambda box: {"bbox": box, "segmentation": polygon(box)})
    again = [{**one, "id": 100 + one["id"]} for one in content["annotations"][:4]]
    again[0] = {**again[0], "segmentation": []}
    again[1] = {**again[1], "segmentation": [[1, 1, 9, 1, 9, 9]]}  # another object of the same box
    again[2] = {**again[2], "category_id": 2}
    content["annotations"] += again
    content["categories"].append({"id": 2, "name": "pear"})
    write(tmp_path, content)
    assert sorted(kinds(tmp_path)) == ["object twice"] * 2 + ["one box of two categories"]
    assert sum(map(len, train(tmp_path).data.objects)) == 14
    assert train(tmp_path).data.has_masks, "of two, the one with an outline stays"
    read_detection(tmp_path, val=1, test=1)
    assert "2 × object twice (left out)" in caplog.text
    assert "annotation 101 (0.png): the same object as annotation 1" in train(tmp_path).issues[0].text()


@pytest.mark.parametrize("area", [0, WIDTH * HEIGHT * 9, 1e308])
def test_an_area_that_cant_be_is_named_and_the_advice_makes_it_right(tmp_path: Path, area: float) -> None:
    boxes: list[Box] = [(5, 6, 10, 8)] * 2
    content = described(boxes, lambda box: {"bbox": box, "area": 80})
    content["annotations"][1]["area"] = area
    write(tmp_path, content)
    if area < 1e15:
        assert kinds(tmp_path) == ["area that can't be"]
        assert [objects.areas.tolist() for objects in train(tmp_path).data.objects[:2]] == [[80], [area]]
    else:
        with pytest.raises(DataError, match="area 1e"):
            read_detection(tmp_path)
    del content["annotations"][1]["area"]
    assert [objects.areas.tolist() for objects in train(write(tmp_path, content)).data.objects[:2]] == [[80], [80]]


NUMBERS: list[Any] = [-1e308, 1e308, float("inf"), float("nan"), 10**400, "3", None, True, [3], {}]


@pytest.mark.parametrize("value", NUMBERS, ids=[str(value)[:9] for value in NUMBERS])
@pytest.mark.parametrize("key", ["bbox", "segmentation", "id", "image_id", "category_id", "width"])
def test_numbers_that_are_none_are_refused_in_a_line(tmp_path: Path, value: Any, key: str) -> None:
    content = described([(5, 6, 10, 8)], lambda box: {"bbox": list(box), "segmentation": polygon(box)})
    one, image = content["annotations"][0], content["images"][0]
    if key == "bbox":
        one["bbox"][2] = value
    elif key == "segmentation":
        one["segmentation"][0][2] = value
    elif key == "width":
        image["width"] = value
    else:
        one[key] = value
    with pytest.raises(DataError) as refused:
        read_detection(write(tmp_path, content))
    assert "\n" not in str(refused.value)


def test_whole_numbers_may_be_written_as_floats_as_pycocotools_takes_them(tmp_path: Path) -> None:
    content = described(truth(8, 6), lambda box: {"bbox": box})
    expected = train(write(tmp_path, content)).data
    for one in content["annotations"]:
        one.update(id=float(one["id"]), image_id=float(one["image_id"]), category_id=1.0, iscrowd=None)
    for image in content["images"]:
        image.update(id=float(image["id"]), width=float(WIDTH), height=float(HEIGHT))
    assert [one.boxes.tolist() for one in train(write(tmp_path, content)).data.objects] == [
        one.boxes.tolist() for one in expected.objects
    ]


@pytest.mark.parametrize(
    ("write_name", "reported"),
    [
        (lambda i: f"C:\\photos\\{i}.png", True),
        (lambda i: f"/home/someone/photos/{i}.png", True),
        (lambda i: f"images/{i}.png", False),
        (lambda i: f"images\\{i}.png", False),
        (lambda i: f"https://example.org/a/{i}.png?x=1", True),
        (lambda i: f"%3{i}.png", True),
        (lambda i: f"{i}.PNG", True),
    ],
)
def test_files_are_found_by_their_names_where_paths_are_of_another_machine(
    tmp_path: Path, write_name: Callable[[int], str], reported: bool
) -> None:
    content = described(truth(9, 6), lambda box: {"bbox": box})
    for number, image in enumerate(content["images"]):
        image["file_name"] = write_name(number)
    parsed = train(write(tmp_path, content))
    assert {issue.kind for issue in parsed.issues} == ({"file by another name"} if reported else set())
    for number in range(6):
        assert np.array_equal(
            np.asarray(parsed.data.images.open(number)), np.asarray(noise_image(number, (HEIGHT, WIDTH)))
        )


def test_a_name_in_two_folders_is_not_guessed(tmp_path: Path) -> None:
    content = described(truth(9, 6), lambda box: {"bbox": box})
    content["images"][1]["file_name"], content["images"][2]["file_name"] = "a/1.png", "b/1.png"
    assert kinds(write(tmp_path, content)) == ["missing file"] * 2
    content["images"][1]["file_name"], content["images"][2]["file_name"] = "x" * 5000, "\ud800\0.png"
    assert kinds(write(tmp_path, content)) == ["missing file"] * 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_in_unicode_of_any_kind_is_read(tmp_path: Path, encoding: str) -> None:
    content = described(truth(10, 6), lambda box: {"bbox": box})
    content["categories"][0]["name"] = "Käse"
    write(tmp_path, content)
    (tmp_path / "annotations.json").write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert train(tmp_path).data.classes == ("Käse",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (gzip.compress(b"{}", mtime=0), "compressed by gzip.*unpack it first"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not valid JSON"),
        ('{"images": "é"}'.encode("latin-1"), "not valid JSON in UTF-8"),
        (b"", "line 1: not valid JSON"),
        (b"null", "a NoneType, not COCO JSON"),
        (b'[{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "COCO's results format"),
    ],
)
def test_a_file_that_is_no_json_says_what_it_is(tmp_path: Path, text: bytes, expected: str) -> None:
    (tmp_path / "annotations.json").write_bytes(text)
    with pytest.raises(DataError, match=expected):
        parse_detection(tmp_path)


def test_the_advice_for_gzip_works(tmp_path: Path) -> None:
    write(tmp_path, described(truth(11, 6), lambda box: {"bbox": box}))
    file = tmp_path / "annotations.json"
    plain = file.read_bytes()
    file.write_bytes(gzip.compress(plain))
    with pytest.raises(DataError, match="gunzip"):
        parse_detection(tmp_path)
    file.write_bytes(gzip.decompress(file.read_bytes()))
    assert not kinds(tmp_path)


def test_compressed_run_lengths_without_end_are_refused_at_once(tmp_path: Path) -> None:
    endless = {"size": [HEIGHT, WIDTH], "counts": "o" * 1_000_000}
    write(tmp_path, described([(5, 6, 10, 8)], lambda box: {"bbox": box, "segmentation": endless}))
    assert kinds(tmp_path) == ["broken segmentation"]
