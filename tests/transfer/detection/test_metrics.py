"""COCO's evaluation: the figures of pycocotools, in hard cases too, and results that other tools read."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.detection_reader import read_detection
from maelift.transfer.detection.confusion import object_confusion
from maelift.transfer.detection.metrics import (
    coco_influences,
    coco_results,
    coco_scores,
    write_detections,
    write_results,
)
from maelift.transfer.metrics import MEAN, MISSED, NOTHING_THERE, Scores
from maelift.transfer.predictions import Detections
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES = {3: "cat", 7: "dog", 11: "owl", 20: "nobody"}
SIZE = (150, 200)


def blob(generator: np.random.Generator, size: tuple[int, int] = SIZE) -> NDArray[np.bool_]:
    """A random ellipse, from a few to thousands of pixels, perhaps at the border."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    middle, axes = generator.random(2) * size, 2 + generator.random(2) ** 2 * np.array(size) / 2
    mask = ((rows - middle[0]) / axes[0]) ** 2 + ((columns - middle[1]) / axes[1]) ** 2 < 1
    mask[int(middle[0]), int(middle[1])] = True
    return np.asarray(mask, dtype=bool)


def encode(mask: NDArray[np.bool_]) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": found["size"], "counts": found["counts"].decode()}


def box_of(mask: NDArray[np.bool_]) -> list[float]:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    return [float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)]


def hard_case(seed: int) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Annotations and detections with crowds, stated areas, images without either, a class without either, equal scores."""
    generator = np.random.default_rng(seed)
    images: list[dict[str, Any]] = [
        {"id": 10 + 3 * number, "file_name": f"{number}.png", "height": SIZE[0], "width": SIZE[1]}
        for number in range(8)
    ]
    annotations: list[dict[str, Any]] = []
    found: dict[int, Detections] = {}
    for number, image in enumerate(images):
        truth = [blob(generator) for _ in range(0 if number == 2 else int(generator.integers(1, 9)))]
        labels = generator.integers(0, 3, len(truth))
        for mask, label in zip(truth, labels, strict=True):
            x1, y1, x2, y2 = box_of(mask)
            annotations.append(
                {
                    "id": 100 + len(annotations),
                    "image_id": image["id"],
                    "category_id": list(CLASSES)[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()) * float(generator.choice([1, 1, 4])),  # not always the mask's
                    "iscrowd": int(generator.random() < 0.2),
                    "segmentation": encode(mask),
                }
            )
        many = 0 if number == 3 else 130 if number == 4 else int(generator.integers(1, 20))
        masks, guesses = [], []
        for _ in range(many):
            near = len(truth) and generator.random() < 0.7
            which = int(generator.integers(len(truth))) if near else 0
            shift = tuple(generator.integers(-4, 5, 2))
            moved = np.roll(truth[which], shift, axis=(0, 1)) if near else blob(generator)
            masks.append(moved)
            guesses.append(int(labels[which]) if near and generator.random() < 0.8 else int(generator.integers(0, 3)))
        boxes = np.array([box_of(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        found[image["id"]] = Detections(
            boxes=boxes + generator.normal(0, 0.5, boxes.shape).astype(np.float32),
            scores=np.round(generator.random(many), 1 + number % 3).astype(np.float32),
            labels=np.array(guesses, dtype=np.int64),
            classes=tuple(CLASSES.values()),
            masks=np.array(masks, dtype=bool).reshape(-1, *SIZE),
        )
    categories = [{"id": number, "name": name} for number, name in CLASSES.items()]
    return {"images": images, "annotations": annotations, "categories": categories}, found


def by_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """The evaluation that everyone compares with, its boxes left out for masks as detectron2 does."""
    known = COCO()
    known.dataset = copy.deepcopy({"info": {}, **truth})
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        left_out = "bbox" if kind == "segm" else "segmentation"
        own = [{key: value for key, value in item.items() if key != left_out} for item in copy.deepcopy(results)]
        evaluation = COCOeval(known, known.loadRes(own), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def results_of(found: dict[int, Detections]) -> list[dict[str, Any]]:
    return [item for image, objects in found.items() for item in coco_results(objects, image, list(CLASSES))]


def test_influences_are_what_leaving_out_each_group_changes() -> None:
    truth, found = hard_case(3)
    results = results_of(found)
    whole = coco_scores(truth, results, CLASSES, split="test").metrics["AP"]
    influences = coco_influences(truth, results)
    assert influences is not None and whole is not None
    assert len(influences) == len(truth["images"]) == 8 and influences.mean() == pytest.approx(whole)
    left = []
    for image in truth["images"]:
        rest = {one["id"] for one in truth["images"]} - {image["id"]}
        part = {**truth, "images": [one for one in truth["images"] if one["id"] in rest]}
        part["annotations"] = [one for one in truth["annotations"] if one["image_id"] in rest]
        theirs = by_pycocotools(part, [one for one in results if one["image_id"] in rest], "bbox")
        left.append(float(theirs.stats[0]))
    expected = whole + 7 * (np.mean(left) - np.array(left))
    assert influences == pytest.approx(expected, abs=1e-6)
    assert coco_influences({**truth, "annotations": []}, results) is None


def test_images_of_one_patient_are_left_out_together() -> None:
    truth, found = hard_case(3)
    results, patients = results_of(found), ["a", "b", "a", "c", "b", "c", "d", "d"]
    influences = coco_influences(truth, results, patients)
    assert influences is not None and len(influences) == 4
    left = []
    for patient in "abcd":
        rest = {one["id"] for one, own in zip(truth["images"], patients, strict=True) if own != patient}
        part = {**truth, "images": [one for one in truth["images"] if one["id"] in rest]}
        part["annotations"] = [one for one in truth["annotations"] if one["image_id"] in rest]
        left.append(float(by_pycocotools(part, [one for one in results if one["image_id"] in rest], "bbox").stats[0]))
    whole = coco_scores(truth, results, CLASSES, split="test").metrics["AP"]
    assert influences == pytest.approx(whole + 3 * (np.mean(left) - np.array(left)), abs=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_figures_are_those_of_pycocotools(seed: int) -> None:
    truth, found = hard_case(seed)
    results = results_of(found)
    scores = coco_scores(truth, results, CLASSES, split="test", masks=True)
    assert scores.count == 8 and scores.split == "test"
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        theirs = by_pycocotools(truth, results, kind)
        names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
        for name, value in zip(names, theirs.stats, strict=False):
            assert scores.metrics[prefix + name] == (pytest.approx(value, abs=1e-6) if value > -1 else None), name
        assert scores.metrics[f"{prefix}AR100"] == pytest.approx(theirs.stats[8], abs=1e-6)
        assert 0.02 < theirs.stats[0] < 0.9  # a case that says something
        for number, category in enumerate(theirs.params.catIds):
            own = theirs.eval["precision"][:, :, number, 0, -1]
            due = pytest.approx(own[own > -1].mean(), abs=1e-6) if (own > -1).any() else None
            assert scores.per_class[CLASSES[category]][f"{prefix}AP"] == due
    assert scores.per_class["nobody"] == {"AP": None, "AP50": None, "mask_AP": None, "mask_AP50": None}


def test_without_objects_found_every_figure_is_zero_and_without_objects_none() -> None:
    truth, found = hard_case(0)
    nothing = coco_scores(truth, [], CLASSES, split="val", masks=True)
    assert nothing.metrics["AP"] == nothing.metrics["mask_AP"] == nothing.metrics["AR100"] == 0.0
    assert nothing.per_class["cat"]["AP"] == 0.0 and nothing.per_class["nobody"]["AP"] is None
    empty = coco_scores({**truth, "annotations": []}, results_of(found), CLASSES, split="val", masks=True)
    assert set(empty.metrics.values()) == {None} and empty.count == 8
    crowds = {**truth, "annotations": [{**item, "iscrowd": 1} for item in truth["annotations"]]}
    assert set(coco_scores(crowds, results_of(found), CLASSES, split="val").metrics.values()) == {None}


def test_an_annotation_numbered_zero_counts() -> None:
    truth, _ = hard_case(1)
    first = {**truth["annotations"][0], "id": 0, "iscrowd": 0}
    alone = {**truth, "annotations": [first]}
    result = {"image_id": first["image_id"], "category_id": first["category_id"], "bbox": first["bbox"], "score": 0.5}
    assert coco_scores(alone, [result], CLASSES, split="val").metrics["AP"] == pytest.approx(1.0)
    assert first["id"] == 0 and "ignore" not in first  # the caller's annotations stay as they are


def test_results_are_written_for_other_tools(tmp_path: Path) -> None:
    truth, found = hard_case(2)
    results = results_of(found)
    before = copy.deepcopy(results)
    coco_scores(truth, results, CLASSES, split="val", masks=True)
    assert results == before
    write_results(tmp_path / "results.json", results)
    known = COCO()
    known.dataset = copy.deepcopy({"info": {}, **truth})
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        known.loadRes(str(tmp_path / "results.json"))
    again = json.loads((tmp_path / "results.json").read_text())
    assert again == before
    image = 10
    masks = found[image].masks
    assert masks is not None
    assert (coco_mask.decode(again[0]["segmentation"]).astype(bool) == masks[0]).all()
    x, y, width, height = again[0]["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], found[image].boxes[0], rtol=1e-6)


def test_the_figures_of_a_data_set_are_those_of_pycocotools_on_its_own_file(tmp_path: Path) -> None:
    truth, found = hard_case(3)
    generator = np.random.default_rng(0)
    for item in truth["annotations"]:  # boxes as people draw them
        x, y, width, height = item["bbox"]
        item["bbox"] = [x + 0.123 * generator.random(), y, width * 0.9871, height * (1 - 0.1 * generator.random())]
    for split in ("train", "val", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / f"{split}.json").write_text(json.dumps(truth))
        for image in truth["images"]:
            Image.new("L", (SIZE[1], SIZE[0])).save(tmp_path / "images" / split / image["file_name"])
    images = read_detection(tmp_path).test
    assert images.has_masks and images.image_ids == tuple(image["id"] for image in truth["images"])
    results = [item for image in images.image_ids for item in coco_results(found[image], image, images.category_ids)]
    classes = dict(zip(images.category_ids, images.classes, strict=True))
    scores = coco_scores(images.ground_truth(), results, classes, split="test", masks=True)
    assert classes == CLASSES
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        theirs = by_pycocotools(truth, results, kind)
        for name, value in zip(("AP", "AP50", "AP75", "AP_small", "AP_medium"), theirs.stats, strict=False):
            assert scores.metrics[prefix + name] == pytest.approx(value, abs=1e-6), name


def small_case(seed: int) -> tuple[dict[str, Any], dict[int, Detections]]:
    """Thin slanted objects around 32 px a side, whose boxes are larger than 32² and whose masks are smaller."""
    truth, found = hard_case(seed)
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    truth["annotations"] = []
    for image in truth["images"]:
        masks = []
        for _ in range(12):
            y, x = generator.uniform(30, 110), generator.uniform(30, 150)
            across, along = (rows - y) - (columns - x), (rows - y) + (columns - x)
            masks.append((np.abs(across) < generator.uniform(3, 14)) & (np.abs(along) < generator.uniform(20, 60)))
        moved = [np.roll(mask, generator.integers(-2, 3, 2), axis=(0, 1)) for mask in masks]
        for mask, label in zip(masks, generator.integers(0, 3, 12), strict=True):
            x1, y1, x2, y2 = box_of(mask)
            truth["annotations"].append(
                {
                    "id": 1 + len(truth["annotations"]),
                    "image_id": image["id"],
                    "category_id": list(CLASSES)[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(mask.sum()),
                    "iscrowd": 0,
                    "segmentation": encode(mask),
                }
            )
        found[image["id"]] = Detections(
            boxes=np.array([box_of(mask) for mask in moved], dtype=np.float32),
            scores=generator.random(12).astype(np.float32),
            labels=generator.integers(0, 3, 12),
            classes=tuple(CLASSES.values()),
            masks=np.array(moved),
        )
    return truth, found


@pytest.mark.parametrize("seed", range(3))
def test_the_files_that_are_written_give_our_figures_in_pycocotools(seed: int, tmp_path: Path) -> None:
    truth, found = small_case(seed)
    results = results_of(found)
    write_detections(tmp_path, "test", results, masks=True)
    scores = coco_scores(truth, results, CLASSES, split="test", masks=True).metrics
    known = COCO()
    known.dataset = copy.deepcopy({"info": {}, **truth})
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        for kind, prefix, name in (("bbox", "", "boxes"), ("segm", "mask_", "detections")):
            evaluation = COCOeval(known, known.loadRes(str(tmp_path / f"{name}_test.json")), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            assert evaluation.stats == pytest.approx(by_pycocotools(truth, results, kind).stats), "all twelve"
            figures = zip(("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"), evaluation.stats, strict=False)
            for figure, value in [*figures, ("AR100", evaluation.stats[8])]:
                ours = scores[prefix + figure]
                assert (-1 if ours is None else ours) == pytest.approx(value, abs=1e-9), prefix + figure
        both = COCOeval(known, known.loadRes(copy.deepcopy(results)), "segm")  # with boxes in it, sizes are others
        both.evaluate()
        both.accumulate()
        both.summarize()
    assert scores["mask_AP_small"] != pytest.approx(both.stats[3], abs=1e-4)
    write_detections(tmp_path, "val", results, masks=False)
    assert json.loads((tmp_path / "detections_val.json").read_text()) == json.loads(
        (tmp_path / "boxes_test.json").read_text()
    )


@pytest.mark.parametrize("seed", range(4))
def test_curves_of_precision_are_those_of_pycocotools_and_their_areas_are_the_scores(seed: int) -> None:
    truth, found = hard_case(seed)
    results = results_of(found)
    scores = coco_scores(truth, results, CLASSES, split="test", masks=True)
    assert list(scores.precision_recall) == ["AP", "AP50", "AP75", "mask_AP", "mask_AP50", "mask_AP75"]
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        theirs = by_pycocotools(truth, results, kind)
        precision = theirs.eval["precision"][:, :, :, 0, -1]  # (thresholds, recalls, classes)
        for measure, thresholds in (("AP", range(10)), ("AP50", [0]), ("AP75", [5])):
            curves = scores.precision_recall[prefix + measure]
            assert set(curves) == {MEAN, "cat", "dog", "owl"}
            own = precision[list(thresholds)].mean(axis=0)
            for place, name in enumerate(["cat", "dog", "owl"]):
                np.testing.assert_allclose(curves[name], own[:, place], atol=1e-6)
            np.testing.assert_allclose(curves[MEAN], own[:, :3].mean(axis=1), atol=1e-6)
            assert np.mean(curves[MEAN]) == pytest.approx(scores.metrics[prefix + measure], abs=1e-9)
            if measure != "AP75":
                for name in ("cat", "dog", "owl"):
                    assert np.mean(curves[name]) == pytest.approx(scores.per_class[name][prefix + measure], abs=1e-9)


def test_of_many_classes_those_with_the_most_objects_have_curves() -> None:
    image = {"id": 1, "file_name": "1.png", "height": 100, "width": 100}
    names = {number: f"class {number}" for number in range(1, 15)}
    boxes = [(number, place) for number in names for place in range(number)]
    annotations: list[dict[str, Any]] = [
        {"id": n, "image_id": 1, "category_id": number, "bbox": [6.0 * place, 6.0 * number, 5.0, 5.0], "area": 25.0}
        for n, (number, place) in enumerate(boxes, 1)
    ]
    truth = {"images": [image], "annotations": [{**one, "iscrowd": 0} for one in annotations]}
    truth["categories"] = [{"id": number, "name": name} for number, name in names.items()]
    results = [{key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for one in annotations]
    curves = coco_scores(truth, results[:90], names, split="test").precision_recall["AP50"]
    assert list(curves) == [MEAN, *(f"class {number}" for number in range(5, 15))]
    nothing = coco_scores({**truth, "annotations": []}, results, names, split="test")
    assert nothing.precision_recall == {}


def slow_count(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """The confusion of objects by the words of its definition, in plain Python."""

    def overlap(one: list[float], other: list[float], over_first: bool = False) -> float:
        wide = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
        high = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
        shared = max(wide, 0.0) * max(high, 0.0)
        return shared / (one[2] * one[3] + (0.0 if over_first else other[2] * other[3] - shared))

    counts: dict[tuple[str, str], int] = {}
    for image in truth["images"]:
        boxes = [one for one in results if one["image_id"] == image["id"] and one["score"] >= 0.5]
        boxes.sort(key=lambda one: one["score"], reverse=True)
        of_image = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        free = [one for one in of_image if not one["iscrowd"]]
        left = list(boxes)
        for of_class in (True, False):
            for box in list(left):
                near = [
                    (overlap(box["bbox"], one["bbox"]), -place, one)
                    for place, one in enumerate(free)
                    if (one["category_id"] == box["category_id"]) == of_class
                ]
                best = max(near, key=lambda item: item[:2], default=(0.0, 0, None))
                if best[0] >= 0.5 and best[2] is not None:
                    cell = (CLASSES[best[2]["category_id"]], CLASSES[box["category_id"]])
                    counts[cell] = counts.get(cell, 0) + 1
                    free = [one for one in free if one is not best[2]]
                    left = [one for one in left if one is not box]
        for one in free:
            counts[CLASSES[one["category_id"]], MISSED] = counts.get((CLASSES[one["category_id"]], MISSED), 0) + 1
        for box in left:
            name = CLASSES[box["category_id"]]
            crowds = [one for one in of_image if one["iscrowd"] and one["category_id"] == box["category_id"]]
            if not any(overlap(box["bbox"], one["bbox"], over_first=True) >= 0.5 for one in crowds):
                counts[NOTHING_THERE, name] = counts.get((NOTHING_THERE, name), 0) + 1
    return counts


@pytest.mark.parametrize("seed", range(6))
def test_the_confusion_of_objects_is_that_of_a_slow_count_and_its_diagonal_coco_s(seed: int, tmp_path: Path) -> None:
    truth, found = hard_case(seed)
    results = results_of(found)
    for number, one in enumerate(truth["annotations"]):  # found as another class
        other, (x, y, width, height) = {3: 7, 7: 11, 11: 20}[one["category_id"]], one["bbox"]
        near = [x + 1, y, width, height + 1]
        results.append({"image_id": one["image_id"], "category_id": other, "bbox": near, "score": 0.45 + 0.01 * number})
    confusion = object_confusion(truth, results, list(CLASSES))
    scores = Scores("test", 8, {}, {name: {} for name in CLASSES.values()}, confusion, "objects")
    rows, columns = scores.confusion_names
    counted = {
        (row, column): count
        for row, counts in zip(rows, confusion, strict=True)
        for column, count in zip(columns, counts, strict=True)
        if count
    }
    assert counted == slow_count(truth, results)
    assert any(row != column for row, column in counted if column != MISSED and row != NOTHING_THERE)
    theirs = by_pycocotools(truth, results, "bbox")
    for place, category in enumerate(CLASSES):
        evaluated = [one for one in theirs.evalImgs if one and one["category_id"] == category]
        evaluated = [one for one in evaluated if one["aRng"] == theirs.params.areaRng[0]]
        right = sum(
            int(
                (
                    (one["dtMatches"][0] > 0) & ~one["dtIgnore"][0].astype(bool) & (np.array(one["dtScores"]) >= 0.5)
                ).sum()
            )
            for one in evaluated
        )
        assert confusion[place][place] == right
    scores.write_confusion(tmp_path / "confusion.csv")
    lines = (tmp_path / "confusion.csv").read_text().splitlines()
    assert lines[0].endswith(f"cat,dog,owl,nobody,{MISSED}") and lines[-1].startswith(f"{NOTHING_THERE},")
    scores.write(tmp_path / "test.json")
    again = Scores.from_json(json.loads((tmp_path / "test.json").read_text()))
    assert again.confusion == confusion and again.confusion_names == scores.confusion_names


def test_no_objects_and_nothing_found_make_an_empty_confusion() -> None:
    truth, found = hard_case(0)
    assert sum(map(sum, object_confusion({**truth, "annotations": []}, [], list(CLASSES)))) == 0
    missed = object_confusion(truth, [], list(CLASSES))
    assert [row[-1] for row in missed[:-1]] == [
        sum(1 for one in truth["annotations"] if one["category_id"] == category and not one["iscrowd"])
        for category in CLASSES
    ]
    alone = object_confusion({**truth, "annotations": []}, results_of(found), list(CLASSES))
    assert sum(alone[-1]) == sum(1 for one in results_of(found) if one["score"] >= 0.5) > 0
