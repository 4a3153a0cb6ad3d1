"""Fashion scenes: the same bytes from a seed, no item in two splits, boxes and masks that tell what is seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.core.data.detection_reader import read_detection
from maelift.core.data.mask_files import read_mask
from maelift.core.data.readers.mnist_idx import read_idx
from maelift.core.data.segmentation_reader import read_segmentation
from maelift.core.errors import ConfigError, DataError
from maelift.core.tools.fashion_scenes import (
    CLASSES,
    FAINTEST,
    LEAST_VISIBLE,
    FashionScenesConfig,
    compose,
    fashion_scenes,
    plan,
)
from maelift.tests.support import FASHION_MNIST, one_line_error, run_maelift
from PIL import Image


def small(out: Path, **changes: Any) -> FashionScenesConfig:
    keys: dict[str, Any] = {"train": 12, "val": 5, "test": 6, "pool": 8, **changes}
    return FashionScenesConfig(out=str(out), source=str(FASHION_MNIST), **keys)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fashion_scenes(small(tmp_path_factory.mktemp("scenes") / "fs")).folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_seed_gives_the_same_bytes_and_another_seed_other_scenes(tmp_path: Path, scenes: Path) -> None:
    again = fashion_scenes(small(tmp_path / "again")).folder
    other = fashion_scenes(small(tmp_path / "other", seed=1)).folder
    assert contents(again) == contents(scenes)
    assert contents(other).keys() == contents(scenes).keys()
    image = "images/train/00000.png"
    assert contents(other)[image] != contents(scenes)[image]


def test_fewer_scenes_are_the_beginning_of_more(tmp_path: Path, scenes: Path) -> None:
    fewer = contents(fashion_scenes(small(tmp_path / "fewer", train=3, pool=2)).folder)
    images = {name: content for name, content in fewer.items() if name.endswith(".png")}
    assert len(images) == 2 * (3 + 5 + 6) + 2
    assert images.items() <= contents(scenes).items()


def test_no_item_is_in_two_of_train_val_and_test_and_the_pool_has_training_items_only(tmp_path: Path) -> None:
    config = small(tmp_path / "fs", train=100, val=100, test=20, pool=300)
    items = json.loads((fashion_scenes(config).folder / "scenes.json").read_text())["items"]
    train, val, pool = (set(items[split]) for split in ("train", "val", "pool"))
    assert not val & train
    assert not val & pool
    assert max(train | val | pool) < 60_000
    assert max(items["test"]) < 10_000  # numbers of another file: Fashion-MNIST's test items


def test_boxes_areas_and_run_lengths_are_those_of_the_mask_png(scenes: Path) -> None:
    seen = 0
    for split, data in read_detection(scenes).items():
        assert data.classes == CLASSES
        for index, objects in enumerate(data.objects):
            values = read_mask(scenes / "masks" / data.images.paths[index])
            masks = objects.masks()
            assert masks.sum(axis=0).max() <= 1, "visible parts do not overlap"
            drawn = (masks * (objects.labels + 1)[:, None, None]).sum(axis=0)
            assert np.array_equal(drawn, values), (split, index)
            assert np.array_equal(masks.sum(axis=(1, 2)), objects.areas)
            for mask, box in zip(masks, objects.boxes, strict=True):
                rows, columns = np.nonzero(mask)
                assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                seen += 1
    assert seen > 40


def test_scenes_have_two_to_four_items_of_real_pixels_and_the_masks_name_their_classes(scenes: Path) -> None:
    data = read_detection(scenes).train
    assert {len(objects) for objects in data.objects} == {2, 3, 4}
    segments = read_segmentation(scenes)
    assert segments.train.classes == ("background", *CLASSES)
    image = np.asarray(Image.open(scenes / "images" / "train" / "00000.png"))
    assert image.shape == (64, 64)
    assert np.array_equal(image > 0, segments.train.mask(0) > 0), "background is black, items are not"
    assert len(list((scenes / "pool").glob("*.png"))) == 8


def test_every_item_stays_visible() -> None:
    items = [*read_idx(FASHION_MNIST / "t10k-images-idx3-ubyte.gz")[:4]]
    config = FashionScenesConfig(out="", size=64, items=(4, 4), item_sizes=(32, 32))
    whole = [np.count_nonzero(np.asarray(Image.fromarray(item).resize((32, 32), 2)) > FAINTEST) for item in items]
    covered = 0
    for seed in range(50):
        scene = compose(items, (0, 1, 2, 3), config, np.random.default_rng(seed))
        for number, pixels in enumerate(whole):
            share = np.count_nonzero(scene.owner == number) / pixels
            assert share >= LEAST_VISIBLE
            covered += bool(share < 0.9)
    assert covered > 50, "items overlap"


@pytest.mark.slow
def test_a_second_run_leaves_what_is_there_and_refuses_other_settings(tmp_path: Path) -> None:
    config = small(tmp_path / "fs")
    assert "written" in fashion_scenes(config).summary()
    before = {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    assert "already there" in fashion_scenes(config).summary()
    assert "yes" in plan(config).text()
    assert before == {path: path.stat().st_mtime_ns for path in Path(config.out).rglob("*")}
    with pytest.raises(DataError, match=r"other settings are there \(train: 12 -> 13\)"):
        fashion_scenes(small(tmp_path / "fs", train=13))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="something else is there"):
        fashion_scenes(small(tmp_path / "mine"))


@pytest.mark.slow
def test_the_command_makes_the_folder_and_refuses_another_in_a_line(tmp_path: Path) -> None:
    words = [f"out={tmp_path / 'fs'}", f"source={FASHION_MNIST}", "train=3", "val=2", "test=2", "pool=0"]
    done = run_maelift("data", "fashion-scenes", *words)
    assert done.returncode == 0, done.stderr
    assert "3 train, 2 val, 2 test in" in done.stdout
    one_line_error(run_maelift("data", "fashion-scenes", *words, "seed=1"), "seed: 0 -> 1", "Choose another folder")


def test_nothing_is_left_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maelift.core.tools.fashion_scenes.sync_tree", fail)
    with pytest.raises(OSError, match="No space"):
        fashion_scenes(small(tmp_path / "fs"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train": 0}, "train"),
        ({"pool": -1}, "pool"),
        ({"items": (3, 2)}, "items"),
        ({"item_sizes": (4, 20)}, "item_sizes"),
        ({"size": 48}, "size"),
    ],
)
def test_settings_that_make_no_scenes_are_refused(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}="):
        FashionScenesConfig(out="fs", **changes)


def test_a_missing_source_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    config = FashionScenesConfig(out=str(tmp_path / "fs"), source=str(tmp_path / "none"))
    with pytest.raises(DataError, match="maelift data fashion-mnist"):
        fashion_scenes(config)
    assert not (tmp_path / "fs").exists()
