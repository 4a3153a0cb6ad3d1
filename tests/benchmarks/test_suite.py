"""A suite file: what it may say, and how its mistakes are told, before anything is written."""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import maelift.api
import numpy as np
import pytest
import yaml
from maelift.benchmarks.arm_kinds import mae_config
from maelift.benchmarks.runner import plan
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.suite_file import SUITES, key_prefix
from maelift.core.errors import MaeliftError
from maelift.core.models.preprocessing import Preprocessing
from maelift.core.signals import Interrupted
from maelift.tests.support import one_line_error, run_maelift
from maelift.transfer.classification.config import ClassifyRecipe
from PIL import Image

SUITE = """
title: Does it help?
data: {path: DATA, pool: 20, val: 6, test: 9}
labels: [6, 12]
seeds: [0, 1, 2]
model: vit_nano
image_size: 16
baseline: scratch
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2]}
arms:
  mae:
    start: mae
    label: MAE
    pretrain: {epochs: 2, batch_size: 8, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
  supervised: {start: supervised, label: supervised, pretrain: {batch_size: 8}, recipe: {batch_size: 4}}
  scratch: {start: scratch, label: scratch, recipe: {batch_size: 4}, steps: {6: 3}}
"""


@pytest.fixture
def suite(tmp_path: Path, class_folders: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace("DATA", str(class_folders)))
    return path


def changed(suite: Path, keys: Sequence[str], value: Any) -> Path:
    """The suite file with another value at the end of these keys; None: without it."""
    content = yaml.safe_load(suite.read_text())
    content["tuning"]["rates"] = RATES
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    return suite


RATES = [0.0003, 0.001, 0.003, 0.01]


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (["lables"], [6], ["lables: no such key. Did you mean labels"]),
        (["data", "pol"], 20, ["data.pol: no such key. Did you mean data.pool"]),
        (["arms", "mae", "recip"], {}, ["arms.mae.recip: no such key. Did you mean arms.mae.recipe"]),
        (
            ["arms", "mae", "recipe"],
            {"drop_pth": 0.1},
            ["arms.mae.recipe.drop_pth: no such key. Did you mean drop_path"],
        ),
        (["arms", "mae", "pretrain", "epoch"], 3, ["arms.mae.pretrain.epoch: no such key. Did you mean epochs"]),
        (["arms", "mae", "pretrain", "decoder", "dept"], 3, ["arms.mae.pretrain.decoder.dept", "decoder.depth"]),
        (["arms", "supervised", "pretrain", "step"], 3, ["arms.supervised.pretrain.step: no such key", "steps"]),
        (
            ["arms", "mae", "start"],
            "mea",
            ["arms.mae.start=mea", "one of mae, encoder, supervised, weights, scratch", "Did you mean mae?"],
        ),
        (["arms", "mae", "pretrain", "epochs"], "two", ["arms.mae.pretrain.epochs=two", "float"]),
        (["arms", "mae", "pretrain", "seed"], 3, ["arms.mae.pretrain.seed=3", "the suite gives one to all arms"]),
        (["arms", "mae", "recipe"], {"lr": 0.1}, ["arms.mae.recipe.lr=0.1", "tuning.rates"]),
        (["arms", "mae", "recipe"], {"batch_size": 5}, ["arms.mae.recipe.batch_size=5", "mixup"]),
        (["arms", "scratch", "pretrain"], {"epochs": 3}, ["arms.scratch.pretrain.epochs=3", "start=scratch"]),
        (["arms", "scratch", "steps"], {"6": 0}, ["arms.scratch.steps.6=0", "1 or more"]),
        (["arms", "scratch", "label"], None, ["arms.scratch.label: needed"]),
        (["arms", "scratsh"], {"recipe": {}}, ["arms.scratsh: no such arm. Did you mean arms.scratch?"]),
        (["arms"], {}, ["arms={}", "at least one arm"]),
        (
            ["baseline"],
            "scatch",
            ["baseline=scatch", "one of the arms mae, supervised, scratch", "Did you mean scratch?"],
        ),
        (["labels"], "many", ["labels=many"]),
        (["labels"], [6, 6], ["labels=[6,6]", "different"]),
        (["labels"], [6, 500], ["labels=500: there are only 25 labelled images"]),
        (["labels"], [2, 6], ["labels=2", "at least one of each class"]),
        (["seeds"], [0, 1, 1], ["seeds=[0,1,1]", "different"]),
        (["seeds"], {"6": [0, 1]}, ["seeds", "12 labels too"]),
        (["tuning", "draws"], 0, ["tuning.draws=0", "1 or more"]),
        (["tuning", "rates"], RATES[:3], ["tuning.rates=[0.0003,0.001,0.003]", "at least 4"]),
        (["tuning", "rates"], [*RATES[:3], 0.001], ["tuning.rates", "all different"]),
        (["tuning", "rates"], [*RATES, -1.0], ["tuning.rates", "above 0"]),
        (["tuning"], {"per_seed": False, "draws": 4, "rates": RATES}, ["tuning.draws=4", "at most the 3 seeds"]),
        (["data", "pool"], 45, ["data.pool=45", "45 training images"]),
        (["data", "path"], "nowhere", ["nowhere", "no such folder"]),
        (["channels"], 1, ["channels=1: expected 3", "images in colour"]),
        (["channels"], 4, ["are broken", "3 channels, not 4"]),
        (["channels"], 0, ["channels=0: expected 1 or more"]),
        (["image_size"], 15, ["image_size", "multiples of the patch size 4"]),
        (["model"], "vit_nanno", ["model=vit_nanno", "Did you mean vit_nano?"]),
        (["pretrain_seeds"], [-1], ["pretrain_seeds=[-1]"]),
        (["workers"], 0, ["workers=0: expected 1 or more"]),
    ],
)
def test_a_mistake_ends_at_once_in_one_line_and_nothing_is_written(
    suite: Path, keys: list[str], value: Any, said: list[str]
) -> None:
    out = suite.parent / "out"
    with pytest.raises(MaeliftError) as caught:
        maelift.api.bench(str(changed(suite, keys, value)), out=str(out))
    message = str(caught.value)
    assert "\n" not in message and not out.exists()
    for text in said:
        assert text in message, message


def test_the_command_refuses_in_the_same_words(suite: Path) -> None:
    done = run_maelift("bench", suite, "out=out", "arms.mae.recipe.drop_pth=0.1", cwd=suite.parent)
    one_line_error(done, "arms.mae.recipe.drop_pth: no such key. Did you mean drop_path")
    assert not (suite.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"title: [1, 2", "not YAML"),
        (b"\xff\xfe\x00\x01", "not YAML"),
        (b"labels: [1]\nlabels: [2]\n", "not YAML"),
        (b"when: 2026-99-99\n", "when: no such key"),
        (b"", "expected keys and values"),
        (b"just words", "expected keys and values"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"title: T\n", "data.path=null: expected labelled images"),
        (b"data: {path: x}\n", "title: needed"),
    ],
)
def test_a_file_that_is_no_suite_is_told_as_one(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_bytes(content)
    with pytest.raises(MaeliftError) as caught:
        BenchConfig.resolve((), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(MaeliftError, match=said) as caught:
        BenchConfig.resolve([f"suite={path}", "out=x"])
    assert "\n" not in str(caught.value)


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        MaeliftError, match=r"suite=quikstart: expected a YAML file or one of .*Did you mean quickstart"
    ):
        BenchConfig.resolve({"suite": "quikstart", "out": "x"})
    with pytest.raises(MaeliftError, match="suite: needed"):
        BenchConfig.resolve(["out=x"])
    with pytest.raises(MaeliftError, match=re.escape(str(tmp_path))):
        BenchConfig.resolve({"suite": str(tmp_path), "out": "x"})
    with pytest.raises(MaeliftError, match="no such configuration file"):
        BenchConfig.resolve((), tmp_path / "gone.yaml")


def test_words_change_a_suite_key_by_key(suite: Path) -> None:
    words = ["labels=[12]", "arms.scratch.recipe.flip=false", "arms.scratch.steps.12=7", "seeds={12: [4, 5]}"]
    config = BenchConfig.resolve([f"suite={suite}", "out=x", *words])

    def recipe(arm: str) -> ClassifyRecipe:
        return cast(ClassifyRecipe, config.recipe("classify", arm))

    assert config.labels == (12,) and config.designs["classify"].seeds_at(12) == (4, 5)
    assert not recipe("scratch").flip and recipe("scratch").batch_size == 4
    assert config.initial_steps("classify", "scratch", 12) == 7 and config.arms["scratch"].steps == {"6": 3, "12": 7}
    assert config.initial_steps("classify", "mae", 12) == recipe("mae").total_steps(12)
    assert config.tuning.rates == tuple(RATES)
    assert recipe("mae").layer_decay == 0.65 and recipe("scratch").layer_decay == 1.0


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_suites_tune_every_arm_alike(path: Path) -> None:
    config = BenchConfig.resolve({"suite": path.stem, "out": "x"})
    starts = [config.arms[name].start for name in config.arms]
    if path.stem.startswith(("quickstart", "rivals")):  # the simple arms beside them
        bound = {"quickstart_full": ["supervised"], "rivals": ["weights", "weights"]}.get(path.stem, [])
        assert sorted(starts) == sorted(["cnn", "mae", "mae", "pixels", "scratch", *bound])
        steps = {config.initial_steps("classify", arm, 25) for arm in config.arms if not config.arm_kind(arm).variants}
        assert len(steps) == 1
    elif path.stem.startswith("imagenet"):
        assert sorted(starts) == ["mae", "scratch", "supervised"]
    elif path.stem == "stamps":
        assert sorted(starts) == ["pixels", "scratch", "weights", "weights"]
        assert config.arms["scratch"].recipe == config.arms["efficientnet_lite0"].recipe
    else:  # the arms differ in how they are pretrained alone; in scaling, in their model too
        assert set(starts) == ({"mae", "scratch"} if path.stem in ("scaling", "multispectral") else {"mae"})
        first, *others = [name for name in config.arms if config.arms[name].start == "mae"]
        for task in config.designs:
            assert all(config.recipe(task, name) == config.recipe(task, first) for name in others)
        assert all(config.arms[name].steps == config.arms[first].steps for name in others)
        ways = {(str(own.pretrain), own.model, own.pool) for own in config.arms.values()}
        assert len(ways) == len(config.arms)
    assert len(config.tuning.rates) >= 4
    assert all(len(own.seeds_at(labels)) >= 3 for own in config.designs.values() for labels in own.labels)


@pytest.mark.slow
def test_class_folders_csv_and_idx(suite: Path, class_folders: Path, tmp_path: Path) -> None:
    names = sorted(path.relative_to(class_folders).as_posix() for path in class_folders.glob("*/*.png"))
    table = tmp_path / "table.csv"
    rows = [f"{class_folders / name},{name.split('/')[0]}" for name in names]
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    idx = tmp_path / "idx"
    idx.mkdir()
    for split, count in (("train", 60), ("t10k", 20)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 3
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
            (idx / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    for data, more in ((class_folders, {}), (table, {}), (idx, {"channels": 1})):
        config = BenchConfig.resolve(
            {"suite": str(suite), "out": str(tmp_path / "out"), "data": {"path": str(data)}, **more}
        )
        text = plan(config).text()
        assert "20 images to pretrain on" in text and "validation 6" in text
        assert "1 mae, 1 supervised" in text
    with pytest.raises(MaeliftError, match=r"channels=3: expected 1, as every image of .* is gray"):
        maelift.api.bench(str(suite), out=str(tmp_path / "out"), data={"path": str(idx)})
    assert not (tmp_path / "out").exists()


def test_colour_is_normalised_by_imagenet_and_gray_by_the_pool(
    suite: Path, class_folders: Path, tmp_path: Path
) -> None:
    from maelift.benchmarks.data import read_suite_images
    from maelift.benchmarks.experiment import Context

    def preprocessing(**keys: object) -> Preprocessing:
        config = BenchConfig.resolve({"suite": str(suite), "out": "x", **keys})
        return Context(config, read_suite_images(config)).preprocessing

    assert preprocessing() == Preprocessing.default(3)
    for path in class_folders.glob("*/*.png"):
        gray = tmp_path / "gray" / path.relative_to(class_folders)
        gray.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            image.convert("L").save(gray)
    own = preprocessing(channels=1, data={"path": str(tmp_path / "gray")})
    assert own.channel_names == ("gray",) and own.mean != (0.5,) and 0.1 < own.std[0] < 0.5


@pytest.mark.parametrize("name", sorted(file.stem for file in SUITES.glob("*.yaml")))
def test_every_shipped_suite_is_whole_and_gives_its_arms_the_same_effort(name: str) -> None:
    config = BenchConfig.resolve([f"suite={name}", "out=x"])
    arms = [config.arms[arm] for arm in config.arms]
    assert len({arm.label for arm in arms}) == len(arms) > 2
    pretrained = [mae_config(config, arm, 0, "x") for arm in config.arms if config.arms[arm].start == "mae"]
    assert len({(found.batch_size, found.peak_lr, found.crop) for found in pretrained}) <= 1
    assert len({found.epochs for found in pretrained}) == {"scaling": 4, "stamps": 0}.get(name, 1)
    assert min(len(own.seeds_at(labels)) for own in config.designs.values() for labels in own.labels) >= 3
    if not name.startswith(("quickstart", "imagenet", "stamps")):  # the last pretrains nothing
        assert len(config.pretrain_seeds) >= 3
    if name.startswith(("ablation", "mask_ratio")):
        assert len({(found.masking, found.decoder) for found in pretrained}) == len(pretrained)


def test_a_signal_is_no_mistake_of_a_key() -> None:
    with pytest.raises(Interrupted, match=r"^stopped$"), key_prefix("tasks.detect."):
        raise Interrupted("stopped", 15)
    with pytest.raises(MaeliftError, match=r"^tasks\.detect\.steps: too few$"), key_prefix("tasks.detect."):
        raise MaeliftError("steps: too few")
