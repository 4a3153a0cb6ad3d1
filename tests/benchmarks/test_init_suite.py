"""maelift init: a suite for one's own folder, which reads, plans and runs."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from maelift.benchmarks.arm_kinds import mae_config
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.init_suite import InitConfig, init
from maelift.benchmarks.runner import bench, plan
from maelift.benchmarks.suite import BenchConfig
from maelift.core.errors import MaeliftError
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.benchmarks.canned import train_middle_rate, use_this_process
from maelift.tests.support import one_line_error, run_maelift, write_images
from maelift.transfer.tasks import CLASSIFY
from PIL import Image

ARMS = {"mae", "scratch", "mae_frozen", "cnn", "pixels"}
"""Those of every suite of one's own images with a class each."""


def write_classes(root: Path, count: int, size: int = 40, mode: str = "RGB") -> Path:
    """Class folders of noise whose names would trip up a careless template."""
    for label in ("it's", 'a "b": #c', "日本"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            values = np.random.default_rng([number, len(label)]).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(values).convert(mode).save(root / label / f"{number}.png")
    return root


def test_class_folders_become_a_suite_that_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_classes(tmp_path / "my photos: 'best'", 60)
    done = run_maelift("init", data, f"out={tmp_path / 'mine.yaml'}")
    assert done.returncode == 0, done.stderr
    assert "classify: 180 training images, 3 classes" in done.stdout and "next: maelift bench" in done.stdout
    config = BenchConfig.resolve({"suite": str(tmp_path / "mine.yaml"), "out": "x"})
    assert config.data.path == str(data) and set(config.arms) == {"supervised", *ARMS}
    assert config.model == "vit_nano" and config.channels == 3 and config.spec.image_size == (40, 40)
    assert config.budget.hours == 24
    text = plan(config).text()
    assert "4 rates tried" in text
    assert {path.name for path in tmp_path.iterdir()} == {data.name, "mine.yaml"}  # a plan leaves nothing behind
    one_line_error(run_maelift("init", data, f"out={tmp_path / 'mine.yaml'}"), "is there already")


def test_gray_images_and_a_pool_of_their_own(tmp_path: Path) -> None:
    data, pool = write_classes(tmp_path / "few", 30, mode="L"), write_images(tmp_path / "pool", 20, mode="L")
    suite = init(InitConfig(str(data), str(pool), str(tmp_path / "new" / "suite.yaml")))
    config = BenchConfig.resolve({"suite": str(suite.file), "out": "x"})
    assert config.channels == 1 and config.data.unlabelled == str(pool) and set(config.arms) == ARMS
    assert "20 images to pretrain on" in plan(config).text()


@pytest.mark.slow
def test_boxes_and_masks_become_tasks(tmp_path: Path, fashion_mnist: Path) -> None:
    scenes = str(tmp_path / "scenes")
    fashion_scenes(FashionScenesConfig(scenes, str(fashion_mnist), train=60, val=6, test=8, pool=0))
    suite = init(InitConfig(scenes, out=str(tmp_path / "suite.yaml")))
    config = BenchConfig.resolve({"suite": str(suite.file), "out": "x"})
    assert [design.kind for design in config.designs.values()] == ["detect", "segment"]
    assert config.data.path is None and config.model == "vit_micro"
    assert mae_config(config, "mae", 0, "").decoder.embed_dim == 128  # the paper's would take most of the time
    assert suite.file.read_text().endswith("}\n")
    text = plan(config).text()
    assert "60 images to pretrain on" in text  # those of training: the 14 others are judged by


def test_a_csv_is_taken_too(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "images", 40)
    rows = [(path.relative_to(tmp_path).as_posix(), path.parent.name) for path in sorted(data.glob("*/*.png"))]
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    init(InitConfig(str(tmp_path / "labels.csv"), out=str(tmp_path / "suite.yaml")))
    assert BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x"}).data.path


def test_what_cannot_be_compared_is_told(tmp_path: Path, image_folder: Path) -> None:
    with pytest.raises(MaeliftError, match=r"images without labels\. A benchmark needs some"):
        init(InitConfig(str(image_folder), out=str(tmp_path / "suite.yaml")))
    with pytest.raises(MaeliftError, match="no such folder"):
        init(InitConfig(str(tmp_path / "gone"), out=str(tmp_path / "suite.yaml")))
    assert not (tmp_path / "suite.yaml").exists()


@pytest.mark.parametrize("count", [30, 60, 400])
def test_a_seed_draws_at_most_a_fifth_of_the_labelled_images(tmp_path: Path, count: int) -> None:
    data = write_classes(tmp_path / "photos", count, size=8)
    suite = init(InitConfig(str(data), out=str(tmp_path / "suite.yaml")))
    config = BenchConfig.resolve({"suite": str(suite.file), "out": "x", "data": {"near": "off"}})
    source = read_suite_images(config).tasks[CLASSIFY].counts["labelled source"]
    assert min(config.labels) >= 3 and max(config.labels) <= 0.2 * source
    said = any(line.startswith("beware: classify: ") for line in suite.lines)
    assert said == (max(config.labels) < 30)  # ten of each class


def test_too_few_images_for_a_fifth_are_warned_of(tmp_path: Path) -> None:
    suite = init(InitConfig(str(write_classes(tmp_path / "photos", 6, size=8)), out=str(tmp_path / "suite.yaml")))
    assert any("few for 3 classes: seeds share many of them" in line for line in suite.lines)


def test_a_rare_class_gets_its_share_of_each_split(tmp_path: Path) -> None:
    for label, count in (("common", 240), ("rare", 30)):
        write_images(tmp_path / "photos" / label, count, first=1000 * count)
    init(InitConfig(str(tmp_path / "photos"), out=str(tmp_path / "suite.yaml")))
    config = BenchConfig.resolve({"suite": str(tmp_path / "suite.yaml"), "out": "x", "data": {"near": "off"}})
    splits = read_suite_images(config).tasks[CLASSIFY].splits
    for part in (splits.val, splits.test):
        counts = Counter(label for labels in part.strata for label in labels)
        assert len(part) >= 24 and sorted(counts.values())[0] == round(len(part) / 9)


def test_a_group_is_offered_and_taken(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "photos", 30, size=8)
    text = init(InitConfig(str(data), out=str(tmp_path / "one.yaml"))).file.read_text()
    assert "# group: patient" in text and "baseline: auto" in text and "pretrain_seeds: [0, 1, 2]" in text
    grouped = init(InitConfig(str(data), out=str(tmp_path / "two.yaml"), group=r"/(\d)\d*\.png$")).file
    assert BenchConfig.resolve({"suite": str(grouped), "out": "x"}).data.group == r"/(\d)\d*\.png$"
    assert "# group" not in grouped.read_text()


@pytest.mark.slow
def test_the_suite_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_this_process(monkeypatch, train_middle_rate)
    data = write_classes(tmp_path / "photos", 60, size=16)
    init(InitConfig(str(data), out=str(tmp_path / "suite.yaml")))
    fast = ["seeds=[0]", "pretrain_seeds=[0]", "tuning.max_doublings=0", "tuning.max_extensions=0", "evaluations=1"]
    fast += ["arms.mae.pretrain.epochs=1", "arms.supervised.pretrain.epochs=1", "labels=[20]", "steps={20: 2}"]
    done = bench(BenchConfig.resolve([f"suite={tmp_path / 'suite.yaml'}", f"out={tmp_path / 'out'}", *fast]))
    assert done.error is None and "At 20 labels" in done.summary() and done.report.is_file()


def test_the_pool_that_is_planned_for_is_the_one_that_is_pretrained_on(tmp_path: Path) -> None:
    for label in range(3):
        write_images(tmp_path / "data" / f"class{label}", 60, first=60 * label)
    suite = init(InitConfig(str(tmp_path / "data"), out=str(tmp_path / "suite.yaml")))
    (stated,) = [line for line in suite.lines if line.startswith("pool: ")]
    config = BenchConfig.resolve({"suite": str(suite.file), "out": "x", "data": {"near": "off"}})
    there = len(read_suite_images(config).pool)
    assert abs(int(stated.split()[1].replace(",", "")) - there) <= 2 < there < 140
