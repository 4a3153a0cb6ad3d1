"""Pixels, a small CNN and frozen features as arms: what they compute, against scikit-learn; and in a suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import maelift.api
import numpy as np
import pytest
import torch
from maelift.benchmarks.arm_kind import Training
from maelift.benchmarks.arm_kinds import kind_of
from maelift.benchmarks.baseline_model import BaselineClassifier, load_baseline
from maelift.benchmarks.baseline_tasks import ConvNetTask, PixelTask
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.execute import execute, shape_only
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.tuning import Setting
from maelift.core.config import resolve
from maelift.core.data.classification_reader import single_label_parts
from maelift.core.data.labeled_dataset import Splits, draw_labeled
from maelift.core.data.sampling import Sampler, each
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance
from maelift.core.models.encoder_spec import preset_spec
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.core.training.loader import Batches
from maelift.tests.support import framework
from maelift.transfer.classification.config import ClassifyRecipe
from maelift.transfer.recipe import recipe_defaults
from maelift.transfer.trained_model import load_model

CPU = Ranks(0, 1, torch.device("cpu"))
SUITE = """
title: Does it beat the simplest?
data: {path: DATA, pool: 20, val: 12, test: 12}
labels: [9]
seeds: [0, 1]
model: vit_nano
image_size: 16
patch_size: 8
evaluations: 1
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], max_doublings: 0, max_extensions: 0}
steps: {9: 2}
arms:
  mae:
    start: mae
    label: MAE
    pretrain: {epochs: 1, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
    recipe: &small {batch_size: 4, mixup: 0.0, cutmix: 0.0}
  scratch: {start: scratch, label: from scratch, recipe: {<<: *small, ema_decay: null, layer_decay: 0.8}}
"""


@pytest.fixture(scope="module")
def splits(fashion_mnist: Path) -> Splits:  # type: ignore[type-arg]
    """100 labelled images, 300 to validate on and 500 to test on."""
    parts = single_label_parts(str(fashion_mnist))
    train = parts["train"]
    return Splits(draw_labeled(train, 100, 0), train.subset(range(1000, 1300)), parts["test"].subset(range(500)))


def fitted(task: PixelTask) -> BaselineClassifier:
    model = task.build_model()
    assert isinstance(model, BaselineClassifier) and task.steps() == 0
    task.prepare(model)
    return model.eval()


def recipe(**keys: object) -> ClassifyRecipe:
    return resolve(ClassifyRecipe, keys, defaults=recipe_defaults("classify_scratch"))


def shape() -> Encoder:
    """What an arm without an encoder is shown: no weights."""
    with torch.device("meta"):
        return Encoder(preset_spec("vit_nano", image_size=28, channels=1))


def arrays(images) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[no-untyped-def]
    pixels = [np.asarray(images.images.open(index), dtype=np.float64).ravel() for index in range(len(images))]
    return np.stack(pixels) / 255, images.targets()


def test_logistic_regression_on_pixels_is_scikit_learn_s(splits: Splits) -> None:  # type: ignore[type-arg]
    framework("sklearn")
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task = PixelTask("linear", recipe(), shape(), splits, CPU)
    scores, right = task.score_items(fitted(task), splits.test, "test")
    train, val, test = (arrays(part) for part in (splits.train, splits.val, splits.test))
    models = []
    for penalty in (1000.0, 100.0, 10.0, 1.0, 0.1):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=5000, tol=1e-6)).fit(*train)
        models.append((model.score(*val), -_log_loss(model, *val), model))
    best = max(models, key=lambda entry: entry[:2])[2]
    assert right is not None and np.mean((best.predict(test[0]) == test[1]) == right.astype(bool)) > 0.99
    assert 0.6 < right.mean() < 0.8 and scores.metrics["top1"] == pytest.approx(right.mean())


def _log_loss(model, images: np.ndarray, labels: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    chances = model.predict_proba(images)
    return float(-np.log(chances[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("neighbours", [1, 5])
def test_nearest_neighbours_on_pixels_are_scikit_learn_s(splits: Splits, neighbours: int) -> None:  # type: ignore[type-arg]
    framework("sklearn")
    from sklearn.neighbors import KNeighborsClassifier

    task = PixelTask(f"knn{neighbours}", recipe(), shape(), splits, CPU)
    _, right = task.score_items(fitted(task), splits.test, "test")
    preprocessing = shape().preprocessing
    centred = [
        ((images - preprocessing.mean[0]) / preprocessing.std[0], labels)
        for images, labels in map(arrays, (splits.train, splits.test))
    ]
    votes = KNeighborsClassifier(neighbours, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = votes.fit(*centred[0]).predict(centred[1][0]) == centred[1][1]
    assert right is not None and np.mean(expected == right.astype(bool)) > 0.99


@pytest.mark.parametrize("variant", ["linear", "knn5", "convnet"])
def test_a_saved_model_gives_the_same_logits(splits: Splits, variant: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    small = replace(splits, val=splits.val.subset(range(20)))
    if variant == "convnet":
        convnet = ConvNetTask(recipe(), shape(), small, CPU)
        model = convnet.build_model().eval()
        convnet.save(model, tmp_path / "model.safetensors", Provenance("test"))
    else:
        task = PixelTask(variant, recipe(), shape(), small, CPU)
        model = fitted(task)
        task.save(model, tmp_path / "model.safetensors", Provenance("test"))
    images = torch.randn(3, 1, 28, 28)
    found = load_baseline(tmp_path / "model.safetensors")
    assert torch.equal(found(images), model(images)) and found.classes == splits.train.classes
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000


@pytest.fixture
def suite(tmp_path: Path, class_folders: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace("DATA", str(class_folders)))
    return path


def test_a_suite_has_the_arms_that_pretraining_must_beat(suite: Path) -> None:
    config = BenchConfig.resolve({"suite": str(suite), "out": "out"})
    assert list(config.arms) == ["mae", "scratch", "mae_frozen", "cnn", "pixels"]
    assert config.arms["mae_frozen"].frozen and config.arms["mae_frozen"].pretrain == config.arms["mae"].pretrain
    assert "layer_decay" not in config.arms["cnn"].recipe and config.arms["cnn"].recipe["batch_size"] == 4
    assert [kind_of(arm).pretrained for arm in config.arms.values()] == [True, False, True, False, False]
    named = BenchConfig.resolve({"suite": str(suite), "out": "out", "baseline": "scratch"})
    off = BenchConfig.resolve({"suite": str(suite), "out": "out", "simple_arms": False})
    assert list(named.arms) == list(off.arms) == ["mae", "scratch"]
    for changes, said in (
        ({"scratch": {"frozen": True}}, "arms.scratch.frozen"),
        ({"cnn": {"start": "cnn", "label": "CNN", "weights": "some.pth"}}, "arms.cnn.weights"),
        ({"mae": {"frozen": True}}, "arms.mae.recipe"),
    ):
        with pytest.raises(MaeliftError, match=said):
            BenchConfig.resolve({"suite": str(suite), "out": "out", "arms": changes})


@pytest.mark.slow
def test_a_suite_compares_with_the_best_arm_without_pretraining(suite: Path, tmp_path: Path) -> None:
    done = maelift.api.bench(str(suite), out=str(tmp_path / "out"), workers=1)
    assert done.error is None and not done.result.missing
    (part,) = done.result.parts
    means = {
        arm.name: np.mean([cell.val for cell in part.by_seed(arm.name, 9).values()])
        for arm in done.result.arms
        if not arm.pretrained
    }
    assert means.keys() == {"scratch", "cnn", "pixels"}
    reference = done.result.reference(part, 9)
    assert means[reference] == max(means.values())
    assert [arm.name for arm in done.result.rivals] == ["mae", "mae_frozen"]
    runs = [json.loads(path.read_text())["run"] for path in (tmp_path / "out").glob("runs/*/result.json")]
    assert [run["kind"] for run in runs].count("mae") == 1  # frozen and fine-tuned, of one encoder
    pixels = [run for run in runs if run["arm"] == "pixels" and run["kind"] == "train"]
    assert {run["variant"] for run in pixels} == {"linear", "knn1", "knn5", "knn20"} and len(pixels) == 8
    models = {path.parent.name for path in (tmp_path / "out").glob("runs/*/model.safetensors")}
    compared = {cell.key for cell in part.cells}
    assert models == compared  # those that weren't chosen are removed
    assert {cost.arm for cost in done.result.costs if cost.latency and cost.flops and not cost.reason} == set(means) | {
        "mae",
        "mae_frozen",
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """Scenes with boxes and masks."""
    folder = tmp_path_factory.mktemp("scenes")
    keys: dict[str, Any] = {"size": 64, "items": (1, 3), "item_sizes": (20, 28)}
    fashion_scenes(FashionScenesConfig(str(folder), str(fashion_mnist), train=24, val=4, test=6, pool=0, **keys))
    return folder


SMALL: dict[str, dict[str, Any]] = {
    "detect": {
        **{"recipe": "small", "batch_size": 4, "head": "faster", "pyramid_scales": [1], "pyramid_channels": 32},
        **{"head_channels": 32, "fc_dim": 64, "box_convs": 1, "anchor_sizes": [16, 28], "proposals": 30},
        **{"region_samples": 32, "box_samples": 16},
    },
    "segment": {"recipe": "small", "batch_size": 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_small_cnn_detects_and_segments(scenes: Path, task: str, tmp_path: Path) -> None:
    """It fits four images, every parameter of it learns, and a suite trains, saves and tests it."""
    tasks = {task: {"task": task, "data": str(scenes), "labels": [4], "seeds": [0], "steps": 2, "recipe": SMALL[task]}}
    suite = {"title": "T", "data": {"unlabelled": str(scenes)}, "model": "vit_nano", "image_size": 64, "patch_size": 8}
    path = tmp_path / "suite.yaml"
    arms = {"cnn": {"start": "cnn", "label": "a small CNN"}}
    path.write_text(json.dumps({**suite, "channels": 1, "evaluations": 1, "arms": arms, "tasks": tasks}))
    config = BenchConfig.resolve({"suite": str(path), "out": str(tmp_path / "out")})
    assert list(config.arms) == ["cnn"]
    context = Context.of(config, read_suite_images(config))
    run = context.training(task, "cnn", 4, 0, Setting(1e-3, 2))
    for one in (run, test := context.testing(run)):
        execute(one, context, tmp_path / "runs")
    result = json.loads((tmp_path / "runs" / test.key / "result.json").read_text())
    assert result["items"] and all(0 <= (value or 0) <= 1 for value in result["scores"]["metrics"].values())
    with pytest.raises(MaeliftError, match=f"{task}_cnn"):
        load_model(tmp_path / "runs" / run.key / "model.safetensors")

    splits = context.pools.tasks[task].splits
    few = replace(splits, train=splits.train.subset(range(4)))
    training = Training(config.recipe(task, "cnn"), "", shape_only(run, context), few, CPU)
    fitted = kind_of(config.arms["cnn"]).task(training)
    torch.manual_seed(0)
    model = fitted.build_model().train()
    batch = next(iter(Batches(Sampler(4, 4, 0), each(fitted.sample), draws=fitted.draws, ranks=CPU).steps(0, 1)))[0]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = fitted.loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
