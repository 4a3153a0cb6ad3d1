"""Mutated annotations of boxes and masks: never a traceback or a hang, and what is accepted is what other readers read."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.detection import DetectionImages
from maelift.core.data.detection_reader import detection_parts, parse_detection
from maelift.core.data.segmentation_reader import parse_segmentation, segmentation_parts
from maelift.core.errors import MaeliftError
from maelift.core.tools.check_data import DataCheckConfig, data_check
from maelift.core.tools.check_report import DataCheck
from maelift.tests.core.data.test_yolo_and_voc import write_voc, write_yolo, yaml_of
from maelift.tests.support import framework, noise_image
from PIL import Image

SECONDS = 10
HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 0.5, 1.0, -0.0, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400, 2**53, 2**63,
    "", "1", "x", "0.png", "../0.png", "/etc/passwd", "a\nb", "\x1b[31m", "\ud800", "\udc80", "\0", "x" * 5000, "%00",
    [], [[]], {}, [None], [1], [1, 2, 3, 4], [[1, 2, 3, 4, 5, 6]], [[1, 1, 9, 1, 9, 9]], {"size": [20, 30], "counts": "04"},
    {"size": [20, 30], "counts": [600]}, {"counts": []}, {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": [20, 30], "counts": "P" * 300}, [[0.1] * 6], [[-1e9] * 6], [[[[[[1]]]]]],
]  # fmt: skip


def base() -> dict[str, Any]:
    """Six images of 20×30 px, with boxes, polygons, run-lengths and a crowd."""
    images = [{"id": number, "file_name": f"{number}.png", "width": 30, "height": 20} for number in range(6)]
    annotations: list[dict[str, Any]] = []
    for number in range(12):
        x, y, w, h = number, number % 7, 8 + number % 3, 9
        outline: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        if number % 4 == 3:
            mask = np.zeros((20, 30), np.uint8)
            mask[y : y + h, x : x + w] = 1
            ends = np.flatnonzero(np.diff(np.concatenate([[0], mask.ravel("F"), [0]]))).tolist()
            outline = {"size": [20, 30], "counts": np.diff([0, *ends, 600]).tolist()}
        annotations.append(
            {
                "id": number + 1, "image_id": number % 5, "category_id": 1 + number % 2, "bbox": [x, y, w, h],
                "area": w * h, "segmentation": outline, "iscrowd": int(number == 11),
            }
        )  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to everything in a JSON value, but for the value itself."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inside for found in [(*path, key), *places(one, (*path, key))]]


def mutate(content: Any, draw: random.Random) -> Any:
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        found = places(content)
        if not found:
            break
        *above, last = draw.choice(found)
        holder = content
        for key in above:
            holder = holder[key]
        action = draw.choice([0, 1, 2, 2, 2, 3, 3])
        if action == 0:
            del holder[last]
        elif action == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[last]))
        elif action == 2 and type(holder[last]) in (int, float):
            holder[last] *= draw.choice([-1, 0, 0.01, 1.0, 1.0, 1.05, 0.9, 10])
        else:
            holder[last] = copy.deepcopy(draw.choice(HOSTILE))
    return content


def tried(read: Callable[[], object], what: object) -> object | None:
    """What a reader makes of data: its answer, or None where it refuses in a line."""
    begin = time.monotonic()
    try:
        return read()
    except MaeliftError as error:
        assert "\n" not in str(error).replace("\\n", ""), what
        return None
    finally:
        assert time.monotonic() - begin < SECONDS, what


def checked(folder: Path, what: object, **keys: Any) -> DataCheck | None:
    report = folder.parent / "report.json"
    result = tried(lambda: data_check(DataCheckConfig(str(folder), out=str(report), near="off", **keys)), what)
    if not isinstance(result, DataCheck):
        return None
    json.loads(report.read_bytes().decode("utf-8", "surrogateescape"))
    assert result.summary()
    return result


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "data"
    (folder / "images").mkdir(parents=True)
    for number in range(6):
        noise_image(number, (20, 30)).save(folder / "images" / f"{number}.png")
    return folder


def agrees_with_pycocotools(file: Path, data: DetectionImages) -> None:
    """Boxes, cut to their images, classes and masks of every image."""
    with contextlib.redirect_stdout(io.StringIO()):
        known = framework("pycocotools.coco").COCO(str(file))
    assert set(data.image_ids) == set(known.imgs)
    for id, objects in zip(data.image_ids, data.objects, strict=True):
        theirs = known.imgToAnns[id]
        boxes = np.array([one["bbox"] for one in theirs], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        height, width = objects.size
        assert np.allclose(objects.boxes, boxes.clip(0, [width, height, width, height]), atol=1e-3), file
        assert [data.category_ids[label] for label in objects.labels] == [one["category_id"] for one in theirs]
        assert objects.crowd.tolist() == [bool(one.get("iscrowd")) for one in theirs]
        for number, one in enumerate(theirs):
            if "area" in one and one["area"] is not None:
                assert objects.areas[number] == one["area"]
            if objects.segmentations[number] is not None:
                assert np.array_equal(objects.masks()[number], known.annToMask(one).astype(bool))


def test_mutated_coco_json(pictures: Path) -> None:
    file = pictures / "annotations.json"
    accepted = refused = 0
    for seed in range(110):
        content = mutate(base(), random.Random(seed)) if seed else base()
        text = json.dumps(content, ensure_ascii=seed % 2 == 0).encode("utf-8", "surrogatepass")
        if seed % 9 == 8:  # bytes, cut off or changed
            place = random.Random(seed).randrange(len(text))
            text = text[:place] if seed % 2 else text[:place] + b"\xff{" + text[place + 1 :]
        file.write_bytes(text)
        parts = tried(lambda: parse_detection(pictures), seed)
        read = tried(lambda: detection_parts(pictures), seed)
        if seed % 4 == 0:
            checked(pictures, seed, task="detect")
        if parts is None or any(part.issues for part in parts.values()):  # type: ignore[attr-defined]
            refused += read is None
            continue
        assert read is not None
        accepted += 1
        agrees_with_pycocotools(file, parts["train"].data)  # type: ignore[index]
    file.unlink()
    assert accepted > 10 and refused > 20, "both happen, else the mutations prove nothing"


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Bytes with a few changed, left out or cut off."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 3, 10])):
        place = draw.randrange(len(changed))
        action = draw.randrange(3)
        if action == 0:
            changed[place] = draw.randrange(256)
        elif action == 1:
            del changed[place : place + draw.choice([1, 2, 50])]
        else:
            changed[place:place] = draw.choice(
                [b"\0", b"9" * 30, b"<!--", b"&lt;", b"\n", b"-", b"e400", b"\xff\xfe", b"[{"]
            )
        if not changed:
            break
    return bytes(changed)


def mask_bytes(draw: random.Random, number: int) -> tuple[str, bytes]:
    """A mask as one tool or another may write it: its suffix and its bytes."""
    values = np.random.default_rng(number).integers(0, 3, (20, 30)).astype(np.uint8)
    if draw.random() < 0.15:
        values *= draw.choice([85, 100, 127])
    image = Image.fromarray(values)
    file = io.BytesIO()
    mode = draw.choice(["L", "L", "P", "1", "RGB", "RGBA", "LA", "I;16", "I", "F", "CMYK", "npy", "size", "noise"])
    suffix = draw.choice([".png", ".tif", ".bmp", ".gif", ".jpg"]) if mode in ("L", "P", "1", "RGB") else ".png"
    if mode == "npy":
        np.save(file, values.astype(draw.choice(["u1", "i8", ">u2", "f4", "c8", "?", "U3"])))
        return ".npy", file.getvalue()
    if mode == "size":
        image = Image.fromarray(values[:-1])
    elif mode == "noise":
        image = noise_image(number, (20, 30))
    elif mode == "I;16":
        image = Image.fromarray(values.astype(np.uint16) * draw.choice([1, 300]))
    elif mode in ("I", "F", "CMYK"):
        image, suffix = image.convert("RGB").convert("CMYK") if mode == "CMYK" else image.convert(mode), ".tif"
    else:
        image = image.convert("L" if suffix == ".jpg" and mode != "RGB" else mode)
    image.save(file, {".png": "PNG", ".tif": "TIFF", ".bmp": "BMP", ".gif": "GIF", ".jpg": "JPEG"}[suffix])
    content = file.getvalue()
    return suffix, damaged(content, draw) if draw.random() < 0.3 else content


LISTS = [
    None, None, "a\nb\nc\n", "a, 0\nb, 1\nc, 2\n", "a, #000000\nb, #010101\nc, #020202\n", "a\n", "a\na\n", "\0", "a 0 0 0\nb",
    "a, 0\nb, 255\n", "a\nb\nc\nd\ne\n", "a, 99999\nb\n", "0 a\n1 b\n2 c\n",
]  # fmt: skip


def test_mutated_masks(pictures: Path) -> None:
    root = pictures
    accepted = refused = 0
    (root / "masks").mkdir()
    for seed in range(90):
        draw = random.Random(seed)
        for path in (root / "masks").iterdir():
            path.unlink()
        (root / "classes.txt").unlink(missing_ok=True)
        odd = draw.randrange(6) if draw.random() < 0.5 else None  # one of them, or all
        ending = draw.choice(["", "", "", "_mask", "-seg", "_my"])
        for number in range(6):
            one = draw if odd is None or odd == number else random.Random(3)
            suffix, content = mask_bytes(one, number) if odd in (None, number) else (".png", plain(number))
            (root / "masks" / f"{number}{ending}{suffix}").write_bytes(content)
        if (text := draw.choice(LISTS)) is not None:
            (root / "classes.txt").write_text(text)
        parts = tried(lambda: parse_segmentation(root), seed)
        read = tried(lambda: segmentation_parts(root), seed)
        if seed % 6 == 0:
            checked(root, seed, task="segment")
        refused += read is None
        if read is None or any(issue.kind != "masks by another name" for issue in parts["train"].issues):  # type: ignore[index]
            continue
        accepted += 1
        data = read["train"]  # type: ignore[index]
        for index, path in enumerate(data.masks):
            as_pillow_reads(path, data.mask(index), data.values, data.ignore_index)
    assert accepted > 10 and refused > 20, "both happen, else the mutations prove nothing"


def plain(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 3, (20, 30)).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def as_pillow_reads(path: Path, numbers: np.ndarray, values: list[int], void: int) -> None:
    """Compare class numbers with the file's values, read by Pillow or numpy."""
    if path.suffix == ".npy":
        stored = np.load(path)
    else:
        with Image.open(path) as image:
            stored = np.asarray(image).astype(np.int64)
    stored, numbers = stored[..., 0] if stored.ndim == 3 else stored, numbers.astype(np.int64)
    assert np.array_equal(np.array([*values, 255])[np.where(numbers == void, -1, numbers)], stored), path


def test_mutated_yolo_and_voc(tmp_path: Path) -> None:
    yolo, voc = tmp_path / "yolo", tmp_path / "voc"
    write_yolo(yolo, "images/{}.png", "labels/{}.txt")
    yaml_of(yolo)
    write_voc(voc, "JPEGImages/{}.png", "Annotations/{}.xml")
    files = [*sorted((yolo / "labels").iterdir())[:2], yolo / "data.yaml", *sorted((voc / "Annotations").iterdir())[:2]]
    original = {path: path.read_bytes() for path in files}
    refused = 0
    for seed in range(60):
        draw = random.Random(seed)
        path = files[seed % len(files)]
        path.write_bytes(damaged(original[path], draw))
        root = yolo if yolo in path.parents else voc
        refused += tried(lambda root=root: detection_parts(root), seed) is None  # type: ignore[misc]
        if seed % 8 == 0:
            checked(root, seed, task="detect")
        path.write_bytes(original[path])
    assert refused > 10
    assert len(detection_parts(yolo)["train"]) == len(detection_parts(voc)["train"]) == 6
