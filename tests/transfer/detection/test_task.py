"""Detection as people run it: what is learned and left behind, what is gone on with after a kill, what is refused."""

from __future__ import annotations

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import torch
from maelift.core.data.coco_masks import Segmentation
from maelift.core.data.detection import Objects
from maelift.core.data.detection_reader import read_detection
from maelift.core.distributed import Ranks
from maelift.core.errors import ConfigError, DataError
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import framework, has_checkpoint, one_line_error, run_maelift, run_ranks, start_maelift
from maelift.transfer.detection.augmentation import JitteredCrop, crop_targets, mask_box
from maelift.transfer.detection.config import DetectConfig
from maelift.transfer.detection.model import Detector
from maelift.transfer.detection.task import DetectionTask, matches_annotations
from maelift.transfer.init_weights import fresh_encoder
from maelift.transfer.predictions import Detections
from maelift.transfer.result import TransferResult
from maelift.transfer.trained_model import load_model
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import load_file

CLASSES = ("bright square", "dark disc")
SPEC = EncoderSpec(image_size=(32, 32), patch_size=4, embed_dim=32, depth=2, num_heads=2)
KEYS: dict[str, Any] = {
    "recipe": "small",
    "image_size": 32,
    "batch_size": 8,
    "lr": 3e-3,
    "evaluations": 2,
    "workers": 0,
    "pyramid_channels": 24,
    "pyramid_scales": [1, 0.5],
    "head_channels": 24,
    "fc_dim": 48,
    "box_convs": 1,
    "mask_convs": 1,
    "proposals": 40,
    "box_samples": 24,
    "region_samples": 24,
}
"""Keys that make a training of seconds."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(fresh_encoder(SPEC, Preprocessing.default(3), 0), path, Provenance("test"))
    return path


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares and dark discs on gray images of many shapes, with masks; one image in eight shows nothing."""
    return write_shapes(tmp_path_factory.mktemp("shapes"))


@pytest.fixture(scope="module")
def few_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a few images, for what needs no model that has learned anything."""
    return write_shapes(tmp_path_factory.mktemp("few"), train=16, other=6)


def write_shapes(root: Path, *, masks: bool = True, train: int = 48, other: int = 16) -> Path:
    categories: list[dict[str, Any]] = [{"id": 3 + 4 * number, "name": name} for number, name in enumerate(CLASSES)]
    for seed, (split, count) in enumerate((("train", train), ("val", other), ("test", other))):
        (root / "images" / split).mkdir(parents=True)
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for number in range(count):
            generator = np.random.default_rng([seed, number])
            size = (int(generator.integers(24, 44)), int(generator.integers(24, 44)))
            pixels, found = draw_shapes(generator, size, 0 if number % 8 == 7 else int(generator.integers(1, 3)))
            Image.fromarray(pixels).save(root / "images" / split / f"{number}.png")
            image: dict[str, Any] = {
                "id": 50 + number,
                "file_name": f"{number}.png",
                "height": size[0],
                "width": size[1],
            }
            content["images"].append(image)
            for label, mask in found:
                content["annotations"].append(
                    annotation(len(content["annotations"]) + 1, image["id"], categories[label]["id"], mask, masks=masks)
                )
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def draw_shapes(
    generator: np.random.Generator, size: tuple[int, int], count: int
) -> tuple[NDArray[np.uint8], list[tuple[int, NDArray[np.bool_]]]]:
    pixels = generator.integers(110, 146, (*size, 3)).astype(np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]]
    found: list[tuple[int, NDArray[np.bool_]]] = []
    for _ in range(count):
        label, side = int(generator.integers(2)), int(generator.integers(10, 17))
        top, left = (int(generator.integers(0, length - side)) for length in size)
        mask = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        if label:
            middle = (side - 1) / 2
            mask = (rows - top - middle) ** 2 + (columns - left - middle) ** 2 < (side / 2) ** 2
        pixels[mask] = (235, 30)[label]
        found = [(other, below & ~mask) for other, below in found]
        found.append((label, mask))
    return pixels, [(label, mask) for label, mask in found if mask.sum() > 20]


def annotation(number: int, image: int, category: int, mask: NDArray[np.bool_], *, masks: bool) -> dict[str, Any]:
    x1, y1, x2, y2 = mask_box(mask)
    entry: dict[str, Any] = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(mask.sum()),
        "iscrowd": 0,
    }
    if masks:
        runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        entry["segmentation"] = {"size": runs["size"], "counts": runs["counts"].decode()}
    return entry


def run(data: Path, out: Path, **keys: Any) -> TransferResult:
    if keys.get("engine") == "detectron2":
        framework("detectron2")
    result: TransferResult = maelift.transfer("detect", data=data, out=out, **{**KEYS, **keys})
    return result


def results_of(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "test.json").read_text())
    return {key: value for key, value in content.items() if key != "seconds"}


def make_task(data: Path, encoder: Path, **keys: Any) -> DetectionTask:
    config = DetectConfig.resolve({**KEYS, "data": data, "out": "unused", "encoder": encoder, **keys})
    spec = fresh_encoder(SPEC, Preprocessing.default(3), 0)
    return DetectionTask(config, spec, DetectionTask.read(config), Ranks(0, 1, torch.device("cpu")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "head"),
    [("torchvision", "auto"), ("torchvision", "faster"), ("detectron2", "auto"), ("detectron2", "cascade")],
)
def test_objects_of_images_of_many_shapes_are_learned(
    engine: str, head: str, shapes: Path, encoder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run(shapes, out, encoder=encoder, engine=engine, head=head, steps=60, lr=5e-3)
    test = results_of(out)
    assert result.test.metrics == test["metrics"] and test["count"] == 16
    assert test["metrics"]["AP50"] > 0.5
    assert ("mask_AP50" in test["metrics"]) == (head != "faster")
    assert head == "faster" or test["metrics"]["mask_AP50"] > 0.5
    assert set(test["per_class"]) == set(CLASSES)
    curve = [record["val/AP"] for record in read_metrics(out / "metrics.jsonl") if "val/AP" in record]
    assert len(curve) == 2 and test["val"] == {"val/AP": max(curve), "count": 16}
    found = json.loads((out / "detections_test.json").read_text())
    assert {item["category_id"] for item in found} <= {3, 7} and len(found) > 10
    assert ("bbox" in found[0]) == (head == "faster") == (not (out / "boxes_test.json").exists())
    assert (out / "summary.html").read_text().count("data:image/png;base64,") >= 2
    with (out / "pr_curves.csv").open(newline="") as file:
        points = [row for row in csv.DictReader(file) if row["class"] == "mean over classes"]
    for measure in {row["measure"] for row in points}:
        area = np.mean([float(row["precision"]) for row in points if row["measure"] == measure])
        assert area == pytest.approx(test["metrics"][measure], abs=1e-5)
    with (out / "confusion_test.csv").open(newline="") as file:
        _, *rows = csv.reader(file)
    objects_of = json.loads((shapes / "test.json").read_text())["annotations"]
    for row, category in zip(rows[:-1], (3, 7), strict=True):
        assert sum(map(int, row[1:])) == sum(one["category_id"] == category for one in objects_of)

    model = load_model(result.model)
    assert isinstance(model, Detector) and model.classes == CLASSES
    pixels, ((_, square), *_) = draw_shapes(np.random.default_rng(14), (26, 41), 1)
    (objects,) = model.predict([pixels], score_threshold=0.2)
    assert len(objects)
    best = np.array(mask_box(square))
    assert np.abs(objects.boxes[0] - best).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_a_killed_run_ends_with_the_figures_of_an_uninterrupted_one(
    engine: str, few_shapes: Path, encoder: Path, tmp_path: Path
) -> None:
    keys = {"engine": engine, "steps": 12, "evaluations": 3, "drop_path": 0.1, "ema_decay": 0.9}
    run(few_shapes, tmp_path / "whole", encoder=encoder, **keys)
    out = tmp_path / "killed"
    words = {**KEYS, **keys, "data": few_shapes, "out": out, "encoder": encoder, "checkpoint_minutes": 1e-3}
    command = ["transfer", "detect", *(f"{key}={value}" for key, value in words.items())]
    process = start_maelift(*command)
    end = time.monotonic() + 120
    while not has_checkpoint(
        out, 4
    ):  # evaluated once, so that the best weights and the averaged ones are not the last ones
        assert time.monotonic() < end and process.poll() is None, process.said()
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (out / "test.json").exists()
    on = run_maelift(*command)
    assert on.returncode == 0 and "going on from step" in on.stderr, on.stderr
    assert results_of(out) == results_of(tmp_path / "whole")
    ours, whole = (load_file(folder / "model.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_training_on_boxes_alone(encoder: Path, tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "data", masks=False, train=8, other=4)
    result = run(data, tmp_path / "run", encoder=encoder, steps=2, evaluations=1)
    assert "mask_AP" not in result.test.metrics and load_model(result.model).architecture.head == "faster"
    done = run_maelift(
        "transfer", "detect", *(f"{key}={value}" for key, value in KEYS.items()),
        f"data={data}", f"out={tmp_path / 'masks'}", f"encoder={encoder}", "head=mask",
    )  # fmt: skip
    one_line_error(done, "head=mask", "faster, since not every object of the data has a segmentation")
    assert not (tmp_path / "masks" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_finished_model_is_judged_on_another_split(few_shapes: Path, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(few_shapes, out, encoder=encoder, steps=2, evaluations=1)
    done = run_maelift("transfer", "detect", "--evaluate", "val", f"out={out}")
    assert done.returncode == 0, done.stderr
    written = json.loads((out / "evaluation_val.json").read_text())
    validated = results_of(out)["val"]["val/AP"]
    assert validated > 0 and written["count"] == 6 and written["metrics"]["AP"] == pytest.approx(validated, abs=1e-9)
    assert sorted(path.name for path in out.glob("detections_*")) == ["detections_test.json"]


def test_data_without_objects_is_refused(shapes: Path, encoder: Path, tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val")):
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        (folder / "images").symlink_to(shapes / "images")
        for name in ("train", "val", "test"):
            content = json.loads((shapes / f"{name}.json").read_text())
            if name == split:
                content["annotations"] = [{**item, "iscrowd": 1} for item in content["annotations"]]
            (folder / f"{name}.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=f"none of the \\d+ {split} images has an object"):
            run(folder, tmp_path / f"out{number}", encoder=encoder, steps=2)


def test_settings_that_do_not_fit_are_refused(encoder: Path) -> None:
    needed = {**KEYS, "data": "data", "out": "out", "encoder": encoder}
    for keys, message in (
        ({"head": "cascade"}, "torchvision has no cascade. Give engine=detectron2."),
        ({"jitter": [2, 1]}, "two factors with 0 < smallest <= largest"),
        ({"jitter": [0, 1]}, "two factors with 0 < smallest <= largest"),
        ({"turn": True, "flip": False}, "turn=true: expected false with flip=false"),
        ({"max_detections": 0}, "at least 1|from 1 to"),
        ({"batch_size": 0}, "above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            DetectConfig.resolve({**needed, **keys})


@pytest.mark.parametrize("init", ["encoder", "supervised", "scratch"])
def test_each_start_has_a_recipe_for_large_and_small_images(init: str) -> None:
    recipes = [
        DetectConfig.resolve({"data": "d", "out": "o", "encoder": "e", "init": init, "recipe": recipe})
        for recipe in ("paper", "small")
    ]
    assert recipes[0].image_size == 1024 and recipes[0].schedule == "steps" and recipes[0].head_channels == 256
    assert recipes[0].peak_lr == {"encoder": 1e-4, "supervised": 8e-5, "scratch": 1.6e-4}[init]
    assert recipes[1].image_size is None and recipes[1].head_channels < 256


@pytest.mark.parametrize("turn", [False, True])
def test_what_is_seen_of_an_object_is_what_is_trained_on(shapes: Path, encoder: Path, turn: bool) -> None:
    """In every view the mask covers the object's colour, and the box goes around the mask."""
    task = make_task(shapes, encoder, jitter=[0.5, 2.0], turn=turn)
    generator = np.random.default_rng(0)
    checked = 0
    for index in range(len(task.splits.train)):
        sample = task.sample(index, generator.random(4))
        assert sample.pixels.shape == (3, 32, 32) and sample.pixels.dtype == np.uint8
        target = sample.target
        assert target["boxes"].dtype == np.float32 and target["masks"].shape == (len(target["labels"]), 32, 32)
        for box, label, mask in zip(target["boxes"], target["labels"], target["masks"], strict=True):
            assert tuple(box) == mask_box(mask)
            if mask.sum() >= 40:
                median = float(np.median(sample.pixels[:, mask].astype(np.float64)))
                assert (median > 200) if label == 0 else (median < 60)
                checked += 1
        missed = (sample.pixels[0] > 225) & ~target["masks"][target["labels"] == 0].any(axis=0)
        assert missed.sum() <= 12  # but for pixels at a border
    assert checked > 30


def test_outlines_and_run_lengths_give_one_target() -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 15:45] = True
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    outline = (np.array([15.0, 10, 45, 10, 45, 30, 15, 30]),)
    segmentations: list[Segmentation] = [outline, {"size": [40, 60], "counts": runs["counts"].decode()}]
    made = [
        Objects(
            boxes=np.array([[15, 10, 45, 30], [0, 0, 60, 40], [0, 0, 3, 3]], np.float32),
            labels=np.array([1, 0, 0]),
            crowd=np.array([False, True, False]),
            areas=np.array([600.0, 2400, 9]),
            segmentations=(segmentation, None, (np.array([0.0, 0, 3, 0, 3, 3, 0, 3]),)),
            size=(40, 60),
        )
        for segmentation in segmentations
    ]
    for draws, mirrored in (((0.99, 0.5, 0.5), False), ((0.6, 0.2, 0.9), True), ((0.0, 0.0, 0.0), True)):
        view = JitteredCrop.sample((40, 60), (32, 32), (0.5, 3.0), np.array(draws))
        by_outline, by_runs = (crop_targets(objects, view, mirrored, masks=True) for objects in made)
        plain = crop_targets(made[0], view, mirrored, masks=False)
        for found in (by_outline, by_runs, plain):
            assert 0 not in found["labels"][: 1 if draws[0] else 0]  # the crowd is left out
            assert found["boxes"].shape == (len(found["labels"]), 4)
        np.testing.assert_allclose(by_outline["boxes"][0], by_runs["boxes"][0], atol=1)
        np.testing.assert_allclose(plain["boxes"][0], by_runs["boxes"][0], atol=1)
        overlap = (by_outline["masks"][0] & by_runs["masks"][0]).sum() / by_runs["masks"][0].sum()
        assert overlap > 0.85
    close = JitteredCrop.sample((40, 60), (32, 32), (3.0, 3.0), np.array([0.5, 0.999, 0.999]))  # the lower right corner
    found = crop_targets(made[1], close, False, masks=True)
    assert len(found["labels"]) == 1 and found["labels"][0] == 1


def test_a_view_follows_its_draws() -> None:
    whole = JitteredCrop.sample((40, 60), (32, 32), (1.0, 1.0), np.array([0.5, 0.5, 0.5]))
    assert whole.filled == (21, 32) and whole.box == (0, 0, 60, 40)
    large = JitteredCrop.sample((40, 60), (32, 32), (2.0, 2.0), np.array([0.5, 0.999, 0.0]))
    assert large.filled == (32, 32) and large.box[0] == 0 and large.box[3] == pytest.approx(40, abs=0.5)
    assert large.box[2] == pytest.approx(30) and large.scale[0] == pytest.approx(64 / 60)
    small = JitteredCrop.sample((1000, 3), (32, 32), (0.1, 0.1), np.array([0.0, 0.0, 0.0]))
    assert small.filled == (3, 1)


def test_a_picture_is_right_when_all_and_nothing_else_is_found() -> None:
    def objects(boxes: list[list[float]], labels: list[int]) -> Detections:
        return Detections(
            np.array(boxes, np.float32).reshape(-1, 4), np.ones(len(labels), np.float32), np.array(labels), CLASSES
        )

    truth = objects([[0, 0, 10, 10], [8, 0, 18, 10]], [0, 1])
    assert matches_annotations(objects([[9, 0, 18, 10], [0, 1, 10, 10]], [1, 0]), truth)
    assert not matches_annotations(objects([[0, 0, 10, 10], [8, 0, 18, 10]], [0, 0]), truth)
    assert not matches_annotations(objects([[0, 0, 10, 10]], [0]), truth)
    assert not matches_annotations(objects([[0, 0, 10, 10], [0, 0, 10, 10]], [0, 1]), truth)
    assert matches_annotations(objects([], []), objects([], [])) and not matches_annotations(objects([], []), truth)


def test_heads_are_equal_for_any_encoder_of_one_seed(shapes: Path, encoder: Path) -> None:
    from maelift.core.seeding import seeded_rng

    task = make_task(shapes, encoder)
    heads = []
    for seed in (0, 1):
        task.encoder = fresh_encoder(SPEC, Preprocessing.default(3), seed)
        with seeded_rng(0, "head"):
            heads.append(task.build_model().state_dict())
    different = {name for name in heads[0] if not torch.equal(heads[0][name], heads[1][name])}
    assert different and all(name.startswith(task.encoder_prefix) for name in different)
    assert read_detection(shapes).train.has_masks


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_two_processes_train_together(engine: str, few_shapes: Path, encoder: Path, tmp_path: Path) -> None:
    if engine == "detectron2":
        framework("detectron2")
    keys = {**KEYS, "data": few_shapes, "out": tmp_path / "run", "encoder": encoder, "engine": engine, "steps": 3}
    words = [f"{key}={value}" for key, value in keys.items()]
    done = run_ranks(2, "transfer", "detect", *words)
    assert done.returncode == 0, done.stderr
    assert results_of(tmp_path / "run")["steps"] == 3 and done.stdout.count("test: AP") == 1


@pytest.mark.parametrize("engine", ["torchvision", "detectron2"])
def test_a_training_that_diverges_ends_in_one_line(
    engine: str, few_shapes: Path, encoder: Path, tmp_path: Path
) -> None:
    if engine == "detectron2":
        framework("detectron2")
    keys = {**KEYS, "data": few_shapes, "out": tmp_path / "run", "encoder": encoder, "engine": engine, "lr": 1e30}
    done = run_maelift("transfer", "detect", *(f"{key}={value}" for key, value in keys.items()), "warmup=0", "steps=9")
    one_line_error(done, "the weights were left as they were", "Lower the learning rate")
    assert not (tmp_path / "run" / "model.safetensors").exists()
