"""Prediction: images of every kind in, a CSV of probabilities out that agrees with the test; broken images are named."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
import struct
from pathlib import Path

import maelift
import numpy as np
import pytest
from maelift.core.config import DataError, MaeliftError
from maelift.tests.support import noise_image, one_line_error, run_maelift, write_images
from maelift.transfer.classify import ClassifyResult
from maelift.transfer.predict import PredictConfig, PredictResult, predict
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
def classifier(split_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassifyResult:
    """A classifier of brightness, with its test scores."""
    result: ClassifyResult = maelift.transfer(
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


def run(classifier: ClassifyResult, images: Path, out: Path, batch_size: int = 64) -> PredictResult:
    return predict(PredictConfig(str(classifier.model), str(images), str(out), batch_size))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_agree_with_the_test(classifier: ClassifyResult, split_folders: Path, tmp_path: Path) -> None:
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
    assert right / 18 == pytest.approx(classifier.test.top1) and 0.5 < classifier.test.top1 < 1
    again = run(classifier, split_folders / "test", tmp_path / "again.csv", batch_size=64)
    assert [row["predicted"] for row in rows_of(again.out)] == [row["predicted"] for row in rows]


def test_images_of_every_kind_and_name(classifier: ClassifyResult, tmp_path: Path) -> None:
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
def test_an_idx_file(classifier: ClassifyResult, tmp_path: Path, compressed: bool) -> None:
    levels = (40, 128, 215)
    pixels = b"".join(bytes([level]) * 28 * 28 for level in levels)
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 3, 28, 28) + pixels
    path = tmp_path / "some-images"
    path.write_bytes(gzip.compress(content) if compressed else content)
    rows = rows_of(run(classifier, path, tmp_path / "out.csv").out)
    assert [row["predicted"] for row in rows] == ["dark", "middle", "light"]
    assert [row["path"] for row in rows] == [f"some-images[{number}]" for number in range(3)]


def test_broken_images_are_named_and_counted(classifier: ClassifyResult, tmp_path: Path) -> None:
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


def test_nothing_but_broken_images_leaves_no_file(classifier: ClassifyResult, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(b"broken")
    out = tmp_path / "results" / "out.csv"
    done = run_maelift("predict", f"model={classifier.model}", f"images={images}", f"out={out}")
    one_line_error(done, "none of 3 can be read", "0.png")
    assert list(out.parent.iterdir()) == []


def test_a_name_that_is_not_utf_8_keeps_its_bytes(classifier: ClassifyResult, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 1)
    odd = os.fsencode(images) + b"/caf\xe9.png"
    os.rename(images / "image000.png", odd)
    result = run(classifier, images, tmp_path / "out.csv")
    assert b"caf\xe9.png," in result.out.read_bytes()


def test_what_is_no_classifier_is_refused(classifier: ClassifyResult, image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no weights at all")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(classifier.model.read_bytes()[:2000])
    for model, expected in (
        (classifier.model.with_name("encoder.safetensors"), "not a classifier"),
        (tmp_path / "text.safetensors", "not a weights file"),
        (damaged, "damaged"),
        (tmp_path / "nowhere.safetensors", "no such file"),
        (tmp_path, "no such file"),
    ):
        with pytest.raises(MaeliftError, match=expected) as caught:
            predict(PredictConfig(str(model), str(image_folder), str(tmp_path / "out.csv")))
        assert "\n" not in str(caught.value) and str(model) in str(caught.value)
    assert not (tmp_path / "out.csv").exists()


def test_places_that_do_not_fit_are_refused(classifier: ClassifyResult, image_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MaeliftError, match=r"a folder. Expected the name of a CSV file"):
        run(classifier, image_folder, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="the folder is empty"):
        run(classifier, tmp_path / "empty", tmp_path / "out.csv")
    with pytest.raises(MaeliftError, match="batch_size=0: expected 1 or more"):
        run(classifier, image_folder, tmp_path / "out.csv", batch_size=0)
    assert not (tmp_path / "out.csv").exists()


def test_images_that_are_not_there_are_told_by_their_key(classifier: ClassifyResult, tmp_path: Path) -> None:
    config = PredictConfig(str(classifier.model), str(tmp_path / "nowhere"), str(tmp_path / "out.csv"))
    with pytest.raises(DataError, match=r"images=.*nowhere: no such folder"):
        predict(config)
    assert not (tmp_path / "out.csv").exists()
