"""Prediction: images of every kind in, a CSV of probabilities out that agrees with the test; broken images are named."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
from maelift.core.config import resolve
from maelift.core.errors import DataError, MaeliftError
from maelift.core.models.encoder_file import Provenance
from maelift.tests.support import framework, noise_image, one_line_error, random_encoder, run_maelift, write_images
from maelift.transfer.detection.architecture import Architecture as DetectorArchitecture
from maelift.transfer.detection.model import Detector
from maelift.transfer.predict import PredictResult, predict
from maelift.transfer.predict_config import PredictConfig
from maelift.transfer.result import TransferResult
from maelift.transfer.segmentation.architecture import Architecture
from maelift.transfer.segmentation.model import Segmentor
from maelift.transfer.visualize import class_colours
from PIL import Image

CLASSES = ["dark", "light", "middle"]


@pytest.fixture(scope="module")
def split_folders(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classes in train, val and test folders; a third of the dark test images lie among the light ones."""
    root = tmp_path_factory.mktemp("splits")
    for path in class_folders.rglob("*.png"):
        number, label = int(path.stem), path.parent.name
        split = "test" if number < 6 else "val" if number < 9 else "train"
        target = root / split / ("light" if split == "test" and label == "dark" and number < 2 else label)
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target / f"{label}{path.name}")
    return root


@pytest.fixture(scope="module")
def classifier(split_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> TransferResult:
    """A classifier of brightness, with its test scores."""
    result: TransferResult = maelift.transfer(
        "classify",
        data=split_folders,
        out=tmp_path_factory.mktemp("classifier") / "run",
        init="scratch",
        model="vit_nano",
        image_size=16,
        batch_size=16,
        steps=30,
        lr=2e-3,
        mixup=0,
        cutmix=0,
        evaluations=3,
        workers=0,
    )
    return result


def run(classifier: TransferResult, images: Path, out: Path, batch_size: int = 64) -> PredictResult:
    return predict(PredictConfig(str(classifier.model), str(images), str(out), batch_size=batch_size))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_agree_with_the_test(classifier: TransferResult, split_folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "predictions.csv"
    result = run(classifier, split_folders / "test", out, batch_size=5)
    rows = rows_of(out)
    assert result.count == len(rows) == 18 and result.rejected == 0 and str(out) in result.summary()
    assert list(rows[0]) == ["path", "predicted", *(f"probability_{name}" for name in CLASSES)]
    for row in rows:
        probabilities = {name: float(row[f"probability_{name}"]) for name in CLASSES}
        assert sum(probabilities.values()) == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == max(probabilities, key=probabilities.__getitem__)
    right = sum(row["predicted"] == row["path"].split("/")[0] for row in rows)
    top1 = classifier.test.metrics["top1"]
    assert top1 is not None and right / 18 == pytest.approx(top1) and 0.5 < top1 < 1
    again = run(classifier, split_folders / "test", tmp_path / "again.csv", batch_size=64)
    assert [row["predicted"] for row in rows_of(again.out)] == [row["predicted"] for row in rows]


def test_images_of_every_kind_and_name(classifier: TransferResult, tmp_path: Path) -> None:
    images = tmp_path / "images"
    (images / "größer, 日本").mkdir(parents=True)
    names = []
    for name, size, mode, level in (
        ("LIGHT.PNG", (40, 16), "RGB", 215),
        ("größer, 日本/light gray.png", (16, 16), "L", 215),
        ("dark.bmp", (9, 31), "L", 40),
        ("middle.TIFF", (16, 50), "RGB", 128),
        ("light16.png", (16, 16), "I;16", 215 * 257),
    ):
        names.append(name)
        if mode == "I;16":
            Image.fromarray(np.full(size, level, dtype=np.uint16)).save(images / name)
        else:
            Image.new(mode, (size[1], size[0]), (level,) * 3 if mode == "RGB" else level).save(images / name)
    (images / "notes.txt").write_text("no image")
    rows = rows_of(run(classifier, images, tmp_path / "out.csv").out)
    assert {row["path"] for row in rows} == set(names)
    for row in rows:
        assert row["predicted"] == Path(row["path"]).name.lower().removesuffix(".png")[: len(row["predicted"])]


@pytest.mark.parametrize("compressed", [False, True])
def test_an_idx_file(classifier: TransferResult, tmp_path: Path, compressed: bool) -> None:
    levels = (40, 128, 215)
    pixels = b"".join(bytes([level]) * 28 * 28 for level in levels)
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 28, 28) + pixels
    path = tmp_path / "some-images"
    path.write_bytes(gzip.compress(content) if compressed else content)
    rows = rows_of(run(classifier, path, tmp_path / "out.csv").out)
    assert [row["predicted"] for row in rows] == ["dark", "middle", "light"]
    assert [row["path"] for row in rows] == [f"some-images[{number}]" for number in range(3)]


def test_a_single_image_and_arrays_are_predicted_as_the_folder_of_them(
    classifier: TransferResult, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images", 6)
    expected = [row["predicted"] for row in rows_of(run(classifier, images, tmp_path / "folder.csv").out)]
    files = sorted(images.iterdir())
    one = rows_of(run(classifier, files[3], tmp_path / "one.csv").out)
    assert [(row["path"], row["predicted"]) for row in one] == [(files[3].name, expected[3])]
    np.save(tmp_path / "array.npy", np.stack([np.asarray(Image.open(file)) for file in files]))
    rows = rows_of(run(classifier, tmp_path / "array.npy", tmp_path / "array.csv").out)
    assert [row["predicted"] for row in rows] == expected and rows[5]["path"] == "array.npy[5]"
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    parquet.write_table(pytest.importorskip("pyarrow").table(table), tmp_path / "table.parquet")
    rows = rows_of(run(classifier, tmp_path / "table.parquet", tmp_path / "table.csv").out)
    assert [row["predicted"] for row in rows] == expected
    np.save(tmp_path / "flat.npy", np.zeros(5))
    with pytest.raises(DataError, match=r"^images=.*flat\.npy: an array of shape"):
        run(classifier, tmp_path / "flat.npy", tmp_path / "flat.csv")


def test_broken_images_are_named_and_counted(classifier: TransferResult, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 5)
    (images / "image002.png").write_bytes(b"broken")
    (images / "image003.png").write_bytes(b"")
    result = run(classifier, images, tmp_path / "out.csv", batch_size=1)
    rejected = tmp_path / "out.rejected.csv"
    assert (result.count, result.rejected) == (3, 2) and f"2 broken images are named in {rejected}" in result.summary()
    assert [row["path"] for row in rows_of(result.out)] == ["image000.png", "image001.png", "image004.png"]
    assert [row["path"] for row in rows_of(rejected)] == ["image002.png", "image003.png"]
    for number in (2, 3):
        noise_image(number).save(images / f"image{number:03d}.png")
    assert run(classifier, images, tmp_path / "out.csv").count == 5 and not rejected.exists()


def test_nothing_but_broken_images_leaves_no_file(classifier: TransferResult, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(b"broken")
    out = tmp_path / "results" / "out.csv"
    done = run_maelift("predict", f"model={classifier.model}", f"images={images}", f"out={out}")
    one_line_error(done, "none of 3 can be read", "0.png")
    assert list(out.parent.iterdir()) == []


def test_a_name_that_is_not_utf_8_keeps_its_bytes(classifier: TransferResult, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    odd = os.fsencode(images) + b"/caf\xe9.png"
    os.rename(images / "image000.png", odd)
    result = run(classifier, images, tmp_path / "out.csv")
    assert b"caf\xe9.png," in result.out.read_bytes()


def test_what_is_no_classifier_is_refused(classifier: TransferResult, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights at all")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(classifier.model.read_bytes()[:2000])
    for model, expected in (
        (classifier.model.with_name("encoder.safetensors"), "an encoder file"),
        (tmp_path / "text.safetensors", "not a weights file"),
        (damaged, "damaged"),
        (tmp_path / "nowhere.safetensors", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(MaeliftError, match=expected) as caught:
            predict(PredictConfig(str(model), str(image_folder), str(tmp_path / "out.csv")))
        assert "\n" not in str(caught.value) and str(model) in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_places_that_do_not_fit_are_refused(classifier: TransferResult, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MaeliftError, match=r"a folder. Expected the name of a CSV file"):
        run(classifier, image_folder, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        run(classifier, tmp_path / "empty", tmp_path / "out.csv")
    with pytest.raises(MaeliftError, match="batch_size=0: expected 1 or more"):
        run(classifier, image_folder, tmp_path / "out.csv", batch_size=0)
    assert not (tmp_path / "out.csv").exists()


def test_images_that_are_not_there_are_told_by_their_key(classifier: TransferResult, tmp_path: Path) -> None:
    config = PredictConfig(str(classifier.model), str(tmp_path / "nowhere"), str(tmp_path / "out.csv"))
    with pytest.raises(DataError, match=r"images=.*nowhere: no such folder"):
        predict(config)
    assert not (tmp_path / "out.csv").exists()


ODD = ("größer", "b")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained detector.safetensors and segmentor.safetensors, whose classes have odd mask values."""
    folder = tmp_path_factory.mktemp("untrained")
    encoder = random_encoder(image_size=32)
    slim: dict[str, Any] = {"pyramid_channels": 16, "head_channels": 16, "fc_dim": 32, "proposals": 40}
    Detector(encoder, ODD, DetectorArchitecture(score_threshold=0.0, **slim)).save(
        folder / "detector.safetensors", Provenance(method="test"), category_ids=(8, 2)
    )
    segmentor = Segmentor(encoder, ODD, Architecture(head="conv"))
    segmentor.save(folder / "segmentor.safetensors", Provenance(method="test"), values=(7, 200))
    return folder


def some_images(folder: Path) -> Path:
    """Three images of different sizes, two of one name but for the suffix, and a broken one."""
    write_images(folder / "deep", 1)
    Image.new("L", (40, 30), 99).save(folder / "same.png")
    Image.new("RGB", (33, 57), (9, 200, 40)).save(folder / "same.jpg")
    (folder / "broken.png").write_bytes(b"broken")
    return folder


def test_objects_are_coco_json_that_pycocotools_reads(untrained: Path, tmp_path: Path) -> None:
    coco = framework("pycocotools.coco")
    out = tmp_path / "found.json"
    images = some_images(tmp_path / "images")
    model = str(untrained / "detector.safetensors")
    result = predict(PredictConfig(model, str(images), str(out), draw=True, batch_size=2))
    assert (result.count, result.rejected) == (3, 1) and "found.rejected.csv" in result.summary()
    content = json.loads(out.read_text())
    assert {image["file_name"] for image in content["images"]} == {"deep/image000.png", "same.jpg", "same.png"}
    assert content["categories"] == [{"id": 8, "name": ODD[0]}, {"id": 2, "name": ODD[1]}]  # those of the training data
    assert {found["category_id"] for found in content["annotations"]} == {2, 8}
    read = coco.COCO(str(out))
    results = read.loadRes(str(tmp_path / "found.results.json"))
    of_masks = read.loadRes(str(tmp_path / "found.results_masks.json"))
    assert all(one["area"] == read.annToMask(one).sum() for one in of_masks.loadAnns(of_masks.getAnnIds()))
    found = maelift.load_model(model).predict([images / "same.jpg"])[0]
    (image,) = (image for image in content["images"] if image["file_name"] == "same.jpg")
    assert (image["width"], image["height"]) == (33, 57)
    annotations = results.loadAnns(results.getAnnIds(imgIds=[image["id"]]))
    assert len(annotations) == len(found) > 0
    for number, annotation in enumerate(annotations):
        x1, y1, x2, y2 = found.boxes[number]
        assert annotation["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        assert annotation["score"] == pytest.approx(found.scores[number], abs=1e-4)
        assert np.array_equal(read.annToMask(annotation).astype(bool), found.masks[number])
    drawn = {
        str(path.relative_to(tmp_path / "found.pictures")) for path in (tmp_path / "found.pictures").rglob("*.png")
    }
    assert drawn == {"deep/image000.png", "same.jpg.png", "same.png.png"}


def test_ids_are_taken_from_a_json_of_ones_own(untrained: Path, tmp_path: Path) -> None:
    images = some_images(tmp_path / "images")
    names = {"image000.png": 70, "same.png": 5, "x/same.jpg": 9, "broken.png": 1}
    own = {
        "images": [{"id": id, "file_name": name} for name, id in names.items()],
        "categories": [{"id": 44, "name": "b"}, {"id": 3, "name": "größer"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(own))

    def run_with(**changes: object) -> PredictResult:
        keys: dict[str, Any] = {
            "model": untrained / "detector.safetensors",
            "images": images,
            "out": tmp_path / "o.json",
        }
        return predict(resolve(PredictConfig, {**keys, "coco": tmp_path / "own.json", **changes}))

    run_with(score_threshold=0.0)
    content = json.loads((tmp_path / "o.json").read_text())
    assert {image["file_name"]: image["id"] for image in content["images"]} == {
        "deep/image000.png": 70,
        "same.png": 5,
        "same.jpg": 9,
    }
    assert content["categories"] == [{"id": 3, "name": "größer"}, {"id": 44, "name": "b"}]
    everything = len(content["annotations"])
    least = sorted(found["score"] for found in content["annotations"])[everything // 2]
    run_with(score_threshold=least)
    kept = json.loads((tmp_path / "o.json").read_text())["annotations"]
    assert 0 < len(kept) < everything and min(found["score"] for found in kept) >= least - 1e-6
    for change, expected in (
        ({"categories": own["categories"][:1]}, "no category named größer"),
        ({"images": own["images"][1:]}, "names no image deep/image000.png"),
        ({"images": 3}, "no COCO JSON"),
    ):
        (tmp_path / "own.json").write_text(json.dumps({**own, **change}))
        with pytest.raises(DataError, match=expected):
            run_with()
    with pytest.raises(MaeliftError, match="finds no objects"):
        run_with(model=untrained / "segmentor.safetensors")


def test_masks_have_the_values_of_training_and_are_read_as_training_data(untrained: Path, tmp_path: Path) -> None:
    images = some_images(tmp_path / "images")
    model = untrained / "segmentor.safetensors"
    out = tmp_path / "masks"
    result = predict(PredictConfig(str(model), str(images), str(out), draw=True, batch_size=2))
    assert (result.count, result.rejected) == (3, 1) and (tmp_path / "masks.rejected.csv").exists()
    mask = Image.open(out / "same.jpg.png")
    assert mask.mode == "P" and mask.size == (33, 57)
    found = maelift.load_model(model).predict([images / "same.jpg"])[0].mask
    assert np.array_equal(np.asarray(mask), np.array([7, 200])[found])
    assert (out / "classes.txt").read_text(encoding="utf-8") == "größer, 7\nb, 200\n"
    colours = class_colours(ODD)
    palette = mask.getpalette()
    assert palette is not None and tuple(palette[21:24]) == colours[0] and tuple(palette[600:603]) == colours[1]
    assert (out / "deep" / "image000.png").exists() and len(list((tmp_path / "masks.pictures").rglob("*.png"))) == 3
    with pytest.raises(MaeliftError, match="is there already"):
        predict(PredictConfig(str(model), str(images), str(out)))
    with pytest.raises(MaeliftError, match=r"masks\.pictures is there already"):
        shutil.rmtree(out)
        predict(PredictConfig(str(model), str(images), str(out), draw=True))
    assert not out.exists()


@pytest.mark.parametrize("name", ["detector", "segmentor"])
def test_an_interrupted_prediction_leaves_nothing(
    untrained: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images", 4)
    out = tmp_path / "results" / "out.json"
    kind: Any = {"detector": Detector, "segmentor": Segmentor}[name]
    first, calls = kind.predict, []

    def stopped(self: Any, opened: Any, **keys: Any) -> Any:
        calls.append(len(opened))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return first(self, opened, **keys)

    monkeypatch.setattr(kind, "predict", stopped)
    config = PredictConfig(str(untrained / f"{name}.safetensors"), str(images), str(out), draw=True, batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        predict(config)
    assert calls == [2, 2] and list(out.parent.iterdir()) == []


def test_pictures_of_classes_are_drawn_beside_the_table(classifier: TransferResult, tmp_path: Path) -> None:
    images = some_images(tmp_path / "images")
    result = predict(PredictConfig(str(classifier.model), str(images), str(tmp_path / "o.csv"), draw=True))
    assert result.pictures == tmp_path / "o.pictures" and str(result.pictures) in result.summary()
    assert len(list(result.pictures.rglob("*.png"))) == 3


def test_scores_and_shares_out_of_range_are_refused() -> None:
    with pytest.raises(MaeliftError, match=r"score_threshold=1\.5: expected a score from 0 to 1"):
        PredictConfig("m", "i", score_threshold=1.5)
