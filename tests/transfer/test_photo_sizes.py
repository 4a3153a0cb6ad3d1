"""Photos of the sizes that phones, cameras and screens make are read by every command, transparent ones alike by all of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from maelift.cli import main
from maelift.core.data.detection import Objects
from maelift.core.data.images import ImageSet
from maelift.core.data.pixel_format import ANY_FORMAT, PixelFormat
from maelift.core.models.encoder_file import read_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.pretrain.config import PretrainConfig
from maelift.pretrain.data import Source
from maelift.tests.support import TINY, encoder_file, noise_image, rewrite_metadata
from maelift.transfer.classification.evaluation import pixel_batches
from maelift.transfer.classification.task import ClassificationTask
from maelift.transfer.detection.canvas import Canvas
from maelift.transfer.detection.task import DetectionTask
from maelift.transfer.model_file import read_model
from maelift.transfer.segmentation.inference import Inference
from maelift.transfer.segmentation.task import SegmentationTask
from maelift.transfer.trained_model import load_model
from PIL import Image

pytestmark = pytest.mark.usefixtures("one_thread")

SCREENS = """
640×480 800×600 1024×768 1152×864 1200×900 1280×720 1280×800 1280×960 1280×1024 1366×768 1400×1050 1440×900 1440×960 1600×900
1600×1024 1600×1200 1680×1050 1792×828 1920×1080 1920×1200 2048×1152 2048×1536 2160×1440 2256×1504 2400×1080 2560×1080 2560×1440
2560×1600 2880×1620 2880×1800 3000×2000 3024×1964 3200×1800 3440×1440 3456×2234 3840×1600 3840×2160 3840×2400 5120×1440 5120×2880
750×1334 828×1792 1080×1920 1080×2220 1080×2280 1080×2340 1080×2400 1125×2436 1170×2532 1179×2556 1206×2622 1242×2208 1242×2688
1284×2778 1290×2796 1320×2868 1440×2560 1440×2960 1440×3040 1440×3088 1440×3120 1440×3200 1620×2160 1640×2360 1668×2224 1668×2388
2048×2732 320×240 352×288 400×300 480×320 480×360 500×333 500×375 512×384 600×400 600×450 640×360 640×427 700×525 720×480 720×576
750×500 768×512 800×450 800×533 850×638 900×600 900×675 960×540 960×640 1000×667 1000×750 1024×683 1050×700 1050×788 1080×608
1080×1080 1080×1350 1200×628 1200×630 1200×675 1200×800 1350×900 1500×1000 1500×1125 1500×500 1800×1200 1800×1350 820×312 851×315
"""
CAMERAS = """
1936×2592 2048×1365 2272×1704 2304×1728 2448×3264 2592×1944 2592×1952 2816×2112 3000×4000 3008×2000 3024×4032 3072×2304 3264×1836
3264×2448 3456×2304 3456×4608 3648×2736 3872×2592 3888×2592 4000×2250 4000×3000 4032×1816 4032×2268 4032×3024 4128×2322 4128×3096
4160×3120 4208×3120 4256×2832 4272×2848 4288×2848 4320×3240 4592×3056 4608×2592 4608×3456 4624×3468 4640×3480 4656×3492 4752×3168
4896×3264 4912×3264 4912×3684 4928×3264 5184×3456 5312×2988 5472×3648 5616×3744 5760×3840 6000×3376 6000×4000 6016×4016 6240×4160
3000×1000 5000×800 6000×700 8000×900 9000×1500 700×6000 16000×400 100×9000 2000×150 1772×1181 2481×3508 1654×2339 1240×1754
1035×1503 2316×3088 2160×3840 2268×4032 1816×4032 2252×4000 3468×4624 3472×4640 2736×3648 1944×2592 1536×2048 1365×2048 1067×1600
1200×1600 1000×1500 683×1024 768×1024 960×1280 720×1280 540×960 480×640 333×500 375×500 427×640 576×1024 800×1200 1350×1800
900×1600
"""
SIZES = [
    (int(width), int(height)) for width, _, height in (size.partition("×") for size in (SCREENS + CAMERAS).split())
]
CANVAS = (224, 224)


class Blank:
    """Gray images of many sizes, drawn when they are opened."""

    def __len__(self) -> int:
        return len(SIZES)

    def name(self, index: int) -> str:
        return f"{SIZES[index][0]}×{SIZES[index][1]}"

    def open(self, index: int, form: PixelFormat = ANY_FORMAT) -> Image.Image:
        return Image.new("L", SIZES[index], 200)

    def content(self, index: int) -> None:
        return None

    def default_workers(self) -> int:
        return 0


@pytest.mark.slow
def test_two_hundred_sizes_are_prepared_by_every_command() -> None:
    assert len(set(SIZES)) >= 200
    images = cast(ImageSet, Blank())
    gray = Preprocessing.default(1)
    spec = EncoderSpec(image_size=CANVAS, channels=1)
    config = PretrainConfig(data="data", out="out", channels=1)
    source = Source(images, images, cast(Any, None), config, CANVAS, 1)
    encoder = SimpleNamespace(spec=spec, preprocessing=gray)
    draws = np.random.default_rng(0).random(64)
    classes = SimpleNamespace(encoder=encoder, config=SimpleNamespace(flip=True, turn=False, crop_scale=(0.08, 1.0)))
    classes.splits = SimpleNamespace(train=SimpleNamespace(images=images))
    batches = pixel_batches(images, spec, 1, gray.reading)
    for index, (width, height) in enumerate(SIZES):
        small = (
            index % 4 and width * height > 3_000_000
        )  # the largest ones by the crop of evaluation alone, to save time
        assert next(batches).shape == (1, 1, *CANVAS)
        assert source.fitted(images, index).pixels.shape == (1, *CANVAS)
        if small:
            continue
        assert all(sample.pixels.shape == (1, *CANVAS) for sample in source.crops(index, draws[None, :5]))
        assert ClassificationTask.sample(cast(Any, classes), index, draws[:5]).pixels.shape == (1, *CANVAS)
        box = np.array([[width * 0.25, height * 0.25, width * 0.75, height * 0.75]])
        objects = Objects(box, np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1), (None,), (height, width))
        found = SimpleNamespace(encoder=encoder, config=SimpleNamespace(jitter=(0.5, 1.5), flip=True, turn=False))
        found.splits = SimpleNamespace(train=SimpleNamespace(images=images, objects={index: objects}))
        found.architecture = SimpleNamespace(masks=False)
        sample = DetectionTask.sample(cast(Any, found), index, draws[: DetectionTask.draws])
        assert sample.pixels.shape == (1, *CANVAS) and (sample.target or {})["boxes"].shape[1] == 4
        mask = np.broadcast_to(np.uint8(1), (height, width))
        parts = SimpleNamespace(encoder=encoder, inference=Inference.usual(CANVAS))
        parts.config = SimpleNamespace(scale=(0.5, 2.0), cat_max_ratio=1.0, distort=False, flip=True, turn=False)
        parts.splits = SimpleNamespace(
            train=SimpleNamespace(images=images, mask=lambda _, mask=mask: mask, ignore_index=255)
        )
        sample = SegmentationTask.sample(cast(Any, parts), index, draws[:31])
        assert sample.pixels.shape[1:] == (sample.target or {})["mask"].shape == CANVAS
        fitted = Canvas.of(np.asarray(images.open(index))[None], CANVAS, gray)
        assert fitted.pixels.shape == (1, *CANVAS)


PHOTOS = [(1600, 900), (1200, 900), (1170, 2532), (900, 1200), (3000, 300), (640, 480), (1008, 756), (500, 333)]
"""Widths and heights of photos that go through the commands."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos in two classes, every second one stored on its side by EXIF, with boxes and masks of what is shown."""
    root = tmp_path_factory.mktemp("photos")
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for split, number in [(split, number) for split in ("train", "val", "test") for number in range(len(PHOTOS))]:
        width, height = PHOTOS[number]
        place = [width // 4, height // 4, width // 2, height // 2]
        photo = noise_image(number, (60, 80)).resize((width, height))
        photo.paste("red", (place[0], place[1], place[0] + place[2], place[1] + place[3]))
        exif = Image.Exif()
        stored = photo
        if number % 2:
            exif[0x0112], stored = 6, photo.transpose(Image.Transpose.ROTATE_90)
        mask = np.zeros((height, width), np.uint8)
        mask[place[1] : place[1] + place[3], place[0] : place[0] + place[2]] = 1
        name = f"{split}/{'ab'[number % 3 % 2]}/{number}.jpg"
        for kind, suffix in (("classes", ".jpg"), ("segments/images", ".jpg"), ("segments/masks", ".png")):
            relative = name if kind == "classes" else f"{split}/{number}.jpg"
            path = (root / kind / relative).with_suffix(suffix)
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".png":
                Image.fromarray(mask).save(path)
            else:
                stored.save(path, quality=80, exif=exif)
        if split == "train":
            content["images"].append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
            content["annotations"].append(
                {"id": number + 1, "image_id": number, "category_id": 1, "bbox": place, "area": place[2] * place[3]}
            )
            content["annotations"][-1]["iscrowd"] = 0
    (root / "segments" / "classes.txt").write_text("ground\nsquare\n")
    for split in ("train", "val", "test"):
        (root / "segments" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.mark.slow
def test_photos_go_through_the_real_commands(photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    classes, segments, image_size = photos / "classes", photos / "segments", "image_size=224"
    scratch = ("init=scratch", "model=vit_nano", image_size, "patch_size=32", "recipe=small", "steps=1", "workers=0")
    small = (
        "head=faster",
        "pyramid_channels=8",
        "pyramid_scales=[1,0.5]",
        "head_channels=8",
        "fc_dim=8",
        "box_convs=1",
    )
    commands: list[list[str]] = [
        ["pretrain", f"data={classes}", f"out={tmp_path / 'p'}", *TINY, "image_size=224", "patch_size=32", "epochs=1"],
        ["transfer", "classify", f"data={classes}", f"out={tmp_path / 'c'}", *scratch, "batch_size=4"],
        ["transfer", "detect", f"data={segments}", f"out={tmp_path / 'd'}", *scratch, *small, "batch_size=2"],
        ["transfer", "segment", f"data={segments}", f"out={tmp_path / 's'}", *scratch, "head=conv", "batch_size=4"],
        [
            "predict",
            f"model={tmp_path / 'c' / 'model.safetensors'}",
            f"images={classes / 'test'}",
            f"out={tmp_path / 'c.csv'}",
        ],
        [
            "predict",
            f"model={tmp_path / 'd' / 'model.safetensors'}",
            f"images={classes / 'test'}",
            f"out={tmp_path / 'd.json'}",
        ],
        [
            "predict",
            f"model={tmp_path / 's' / 'model.safetensors'}",
            f"images={classes / 'test'}",
            f"out={tmp_path / 'masks'}",
        ],
    ]
    for words in commands:
        assert main(words) == 0, words
    assert "broken" not in "".join(capfd.readouterr())
    assert len(list(csv.reader((tmp_path / "c.csv").open()))) == 1 + len(PHOTOS)
    found = json.loads((tmp_path / "d.json").read_text())
    assert sorted((image["width"], image["height"]) for image in found["images"]) == sorted(PHOTOS)
    assert sorted(Image.open(path).size for path in (tmp_path / "masks").rglob("*.png")) == sorted(PHOTOS)


def shape(seed: int, background: int | None = None) -> Image.Image:
    """A red rectangle on nothing, or on a gray."""
    array = np.zeros((24, 24, 4), np.uint8)
    array[4 + seed % 5 : 15, 3 + seed % 7 : 18] = (250, 10, 10, 255)
    clear = Image.fromarray(array)
    if background is None:
        return clear
    return Image.alpha_composite(Image.new("RGBA", clear.size, (background,) * 3 + (255,)), clear).convert("RGB")


@pytest.mark.slow
def test_transfer_and_prediction_follow_the_background_of_the_encoder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(24):
        for name, background in (("clear", None), ("black", 0)):
            path = tmp_path / name / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape(number, background).save(path)
    told = []
    for name in ("clear", "black"):
        data, out = tmp_path / name, tmp_path / f"{name}.out"
        with caplog.at_level("INFO", "maelift"):
            words = (f"data={data}", *TINY, "epochs=1", "background=black")
            assert main(["pretrain", *words, f"out={out / 'p'}", "statistics=data"]) == 0
            encoder = out / "p" / "encoder.safetensors"
            assert (
                main(["transfer", "classify", f"data={data}", f"encoder={encoder}", f"out={out / 'c'}", "method=knn"])
                == 0
            )
            model = out / "c" / "model.safetensors"
            assert main(["predict", f"model={model}", f"images={data}", f"out={out / 'c.csv'}"]) == 0
            reconstruct = (f"encoder={encoder}", f"images={data}", f"out={out / 'r'}", "masking.ratio=0.5")
            assert main(["reconstruct", *reconstruct]) == 0
        assert read_encoder(encoder).encoder.preprocessing.background == "black"
        assert read_model(model).preprocessing.background == "black"
        told.append([record.getMessage() for record in caplog.records if "composited" in record.getMessage()])
        caplog.clear()
    said = "24 of 24 images have transparency: composited on black (background=)"
    assert told[0] == [f"{command}: {said}" for command in ("pretrain", "transfer classify", "predict", "reconstruct")]
    assert told[1] == []
    clear, black = tmp_path / "clear.out", tmp_path / "black.out"
    states = [read_encoder(out / "p" / "encoder.safetensors").encoder.state_dict() for out in (clear, black)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())  # trained on the same pixels
    assert (clear / "c.csv").read_text() == (black / "c.csv").read_text()
    for path in (clear / "r").rglob("*.png"):
        assert np.array_equal(
            np.asarray(Image.open(path)), np.asarray(Image.open(black / "r" / path.relative_to(clear / "r")))
        )
    found = load_model(clear / "c" / "model.safetensors").predict([shape(3), np.asarray(shape(3)), shape(3, 0)])
    assert found[0] == found[1] == found[2]


def test_encoder_files_without_a_background_are_read_and_composited_on_white(tmp_path: Path) -> None:
    path = encoder_file(tmp_path / "encoder.safetensors")
    rewrite_metadata(path, lambda content: content["preprocessing"].pop("background", None))
    assert read_encoder(path).encoder.preprocessing.background is None
    for number in range(20):
        target = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shape(number).save(target)
    for key, stated in ((), "white"), (("background=drop",), "drop"), (("background=#ff0000",), "#ff0000"):
        out = tmp_path / stated.strip("#")
        words = (
            "transfer",
            "classify",
            f"data={tmp_path / 'data'}",
            f"encoder={path}",
            f"out={out}",
            "method=knn",
            *key,
        )
        assert main([*words]) == 0
        assert read_model(out / "model.safetensors").preprocessing.background == stated
    assert (
        main(["transfer", "classify", f"data={tmp_path / 'data'}", f"encoder={path}", "out=no", "background=wite"]) == 2
    )
