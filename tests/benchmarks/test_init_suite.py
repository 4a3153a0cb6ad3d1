"""maelift init: a suite for one's own folder, which reads, plans and runs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from maelift.benchmarks.arm_kinds import mae_config
from maelift.benchmarks.init_suite import InitConfig, init
from maelift.benchmarks.runner import plan
from maelift.benchmarks.suite import BenchConfig
from maelift.core.errors import MaeliftError
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.support import one_line_error, run_maelift, write_images
from PIL import Image


def write_classes(root: Path, count: int, size: int = 40, mode: str = "RGB") -> Path:
    """Class folders of noise whose names would trip up a careless template."""
    for label in ("it's", 'a "b": #c', "日本"):
        (root / label).mkdir(parents=True)
        for number in range(count):
            values = np.random.default_rng([number, len(label)]).integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(values).convert(mode).save(root / label / f"{number}.png")
    return root


def test_class_folders_become_a_suite_that_can_be_planned(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "my photos: 'best'", 60)
    done = run_maelift("init", data, f"out={tmp_path / 'mine.yaml'}")
    assert done.returncode == 0, done.stderr
    assert "classify: 180 training images, 3 classes" in done.stdout and "next: maelift bench" in done.stdout
    config = BenchConfig.resolve({"suite": str(tmp_path / "mine.yaml"), "out": "x"})
    assert config.data.path == str(data) and set(config.arms) == {"mae", "supervised", "scratch"}
    assert config.model == "vit_nano" and config.channels == 3 and config.spec.image_size == (40, 40)
    assert config.budget.hours == 24
    text = plan(config).text()
    assert "4 rates tried" in text
    one_line_error(run_maelift("init", data, f"out={tmp_path / 'mine.yaml'}"), "is there already")


def test_gray_images_and_a_pool_of_their_own(tmp_path: Path) -> None:
    data, pool = write_classes(tmp_path / "few", 30, mode="L"), write_images(tmp_path / "pool", 20, mode="L")
    suite = init(InitConfig(str(data), str(pool), str(tmp_path / "new" / "suite.yaml")))
    config = BenchConfig.resolve({"suite": str(suite.file), "out": "x"})
    assert config.channels == 1 and config.data.unlabelled == str(pool) and set(config.arms) == {"mae", "scratch"}
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


@pytest.mark.slow
def test_the_suite_runs(tmp_path: Path) -> None:
    data = write_classes(tmp_path / "photos", 60, size=16)
    init(InitConfig(str(data), out=str(tmp_path / "suite.yaml")))
    fast = ["seeds=[0,1]", "tuning.max_doublings=0", "evaluations=1", "arms.mae.pretrain.epochs=1"]
    fast += ["arms.supervised.pretrain.epochs=1", "labels=[20]", "tuning.check_seeds=1"]
    fast += [f"arms.{arm}.steps={{20: 2}}" for arm in ("mae", "supervised", "scratch")]
    done = run_maelift("bench", tmp_path / "suite.yaml", f"out={tmp_path / 'out'}", *fast, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "At 20 labels" in done.stdout and (tmp_path / "out" / "report.html").is_file()
