"""Arms of any architecture of timm's, each with its own network and preprocessing, on the same images, orders and draws."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from maelift.benchmarks.data import read_suite_images
from maelift.benchmarks.execute import execute, shape_only
from maelift.benchmarks.experiment import Context
from maelift.benchmarks.measure_cost import read_costs
from maelift.benchmarks.suite import BenchConfig
from maelift.benchmarks.tuning import Setting
from maelift.core.errors import ConfigError, MaeliftError
from maelift.core.models.encoder_file import read_backbone
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.models.timm_spec import TimmSpec
from maelift.tests.benchmarks.brightness import tables
from maelift.tests.benchmarks.made_up import Page
from maelift.tests.support import run_maelift, start_maelift
from safetensors.torch import save_file

RECIPE = {"batch_size": 4, "mixup": 0.0, "cutmix": 0.0, "random_erasing": 0.0}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random weights of tiny models of timm in files, as an arm names them."""
    folder = tmp_path_factory.mktemp("timm")
    found = {}
    for name in ("test_resnet", "test_convnext", "test_vit"):
        torch.manual_seed(len(name))
        save_file(timm.create_model(name).state_dict(), folder / f"{name}.safetensors")
        found[name] = f"timm:{name}.r160_in1k@{folder / name}.safetensors"
    return found


def suite(folder: Path, images: Path, arms: list[str] | dict[str, Any], **keys: Any) -> Path:
    """A small suite with these arms."""
    file = folder / "suite.yaml"
    content = {
        **{"title": "Which start?", "data": {"path": str(images), "pool": 20, "val": 12, "test": 12}},
        **{"labels": [6], "seeds": [0, 1], "model": "vit_nano", "image_size": 32, "patch_size": 8, "workers": 2},
        **{"evaluations": 1, "simple_arms": False, "steps": {"6": 2}},
        "tuning": {"rates": [3e-4, 1e-3, 3e-3, 1e-2], "max_doublings": 0, "max_extensions": 0},
        "arms": arms,
        **keys,
    }
    file.write_text(yaml.safe_dump(content))
    return file


def context_of(file: Path) -> Context:
    config = BenchConfig.resolve({"suite": str(file), "out": "x"})
    context = Context.of(config, read_suite_images(config))
    context.check()
    return context


def five(weights: dict[str, str]) -> list[str]:
    return ["scratch", *(weights[name] for name in sorted(weights)), f"{weights['test_resnet']} frozen"]


@pytest.mark.slow
def test_five_arms_of_four_architectures_killed_and_resumed_end_with_the_same_table(
    class_folders: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    file = suite(tmp_path, class_folders, five(weights))
    process = start_maelift("bench", file, "out=killed", cwd=tmp_path, session=True)
    while len(list((tmp_path / "killed").glob("runs/*/result.json"))) < 8 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    assert not (tmp_path / "killed" / "report.html").exists()
    for out in ("killed", "whole"):
        done = run_maelift("bench", file, f"out={out}", cwd=tmp_path, timeout=600)
        assert done.returncode == 0, done.stderr
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert tables(killed) == tables(whole) and len(tables(whole)) > 15
    assert (killed / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()
    costs = read_costs(whole / "costs.json")
    assert len(costs) == 5 and all(cost.latency and cost.throughput and not cost.reason for cost in costs)
    assert len({cost.parameters for cost in costs}) >= 4
    page = Page(whole / "report.html")
    first_screen = page.text[: page.text.index("What is compared")]
    assert "With 6 labels, use " in first_screen
    assert "over the cost of use" in first_screen and "Cost of use" in first_screen
    assert (
        "timm's test_resnet at 32×32 pixels: begins with timm:test_resnet.r160_in1k@test_resnet.safetensors"
        in page.text
    )
    assert "heads of different widths are drawn by themselves" in page.text and str(tmp_path) not in page.text


def test_each_arm_has_its_own_network_on_the_same_images(
    class_folders: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    context = context_of(suite(tmp_path, class_folders, five(weights)))
    config = context.config
    specs = {arm: config.spec_of(arm) for arm in config.arms}
    assert isinstance(specs["scratch"], EncoderSpec) and isinstance(specs["test_vit_r160_in1k"], TimmSpec | EncoderSpec)
    assert specs["test_resnet_r160_in1k"] == specs["test_resnet_r160_in1k_frozen"]
    assert all(spec.image_size == (32, 32) for spec in specs.values())
    run = context.pretraining("test_resnet_r160_in1k", 0)
    assert run is not None and run == context.pretraining("test_resnet_r160_in1k", 5)
    execute(run, context, tmp_path / "runs")
    made = read_backbone(tmp_path / "runs" / run.key / "encoder.safetensors").encoder
    assert made.preprocessing.background == context.preprocessing.background
    assert made.preprocessing.mean == timm.get_pretrained_cfg("test_resnet").mean
    stored = timm.create_model("test_resnet").state_dict()
    assert made.file_state()["conv1.0.weight"].shape == stored["conv1.0.weight"].shape
    # the same draws of augmentation, whatever the network is
    settings = Setting(1e-3, 2)
    samples = []
    for arm in ("scratch", "test_resnet_r160_in1k"):
        training = context.training("classify", arm, 6, 0, settings)
        task = config.arm_kind("scratch").task(_training(context, training, made if arm != "scratch" else None))
        samples.append(task.sample(0, np.full(5, 0.3)).pixels)
    assert np.array_equal(samples[0], samples[1])


def _training(context: Context, run: Any, encoder: Any) -> Any:
    from maelift.benchmarks.arm_kind import Training
    from maelift.core.distributed import Ranks

    recipe = context.config.recipe("classify", run.arm)
    shown = shape_only(run, context) if encoder is None else encoder
    return Training(recipe, "", shown, context.splits_of(run), Ranks(0, 1, torch.device("cpu")))


def test_weights_of_labels_have_their_recipe_and_the_family_its_own(
    class_folders: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    config = BenchConfig.resolve({"suite": str(suite(tmp_path, class_folders, five(weights))), "out": "x"})
    kind = config.arm_kind("test_resnet_r160_in1k")
    assert kind.init == "supervised" and "with labels" in kind.describe(config.arms["test_resnet_r160_in1k"])
    assert config.recipe("classify", "test_resnet_r160_in1k").layer_decay == 0.9  # of the family
    assert config.recipe("classify", "test_resnet_r160_in1k").batch_size == 32  # of arms in short form


def test_an_arm_may_have_larger_images_and_other_weights_are_other_runs(
    class_folders: Path, weights: dict[str, str], tmp_path: Path
) -> None:
    def keys(**changes: Any) -> set[str]:
        arm = {"start": "weights", "weights": weights["test_resnet"], "label": "a", "recipe": RECIPE, **changes}
        context = context_of(suite(tmp_path, class_folders, {"a": arm, "scratch": {"start": "scratch", "label": "s"}}))
        run = context.pretraining("a", 0)
        assert run is not None
        return {run.key, context.training("classify", "a", 6, 0, Setting(1e-3, 2)).key}

    usual, larger = keys(), keys(image_size=64)
    assert not usual & larger and keys() == usual
    assert not usual & keys(weights=weights["test_convnext"])


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"weights": None}, r"arms\.a\.weights=null: expected weights to begin with, at start=weights"),
        ({"model": "vit_nano"}, r"arms\.a\.model=vit_nano: expected null, as the architecture is that of the weights"),
        ({"weights": "timm:resnett18"}, r"arms\.a\.weights=timm:resnett18: .*Did you mean"),
        ({"start": "scratch", "weights": None, "image_size": 64}, r"arms\.a\.image_size=64: expected null"),
        ({"pretrain": {"epochs": 3}}, r"arms\.a\.pretrain\.epochs=3"),
    ],
)
def test_mistakes_are_named(
    class_folders: Path, weights: dict[str, str], tmp_path: Path, arm: dict[str, Any], said: str
) -> None:
    own = {"start": "weights", "weights": weights["test_resnet"], "label": "a", "recipe": RECIPE, **arm}
    file = suite(tmp_path, class_folders, {"a": {key: value for key, value in own.items() if value is not None}})
    with pytest.raises(MaeliftError, match=said) as caught:
        context_of(file)
    assert "\n" not in str(caught.value)


def test_arms_in_a_list_are_read_from_a_call_too(class_folders: Path, weights: dict[str, str], tmp_path: Path) -> None:
    file = suite(tmp_path, class_folders, ["scratch"])
    config = BenchConfig.resolve({"suite": str(file), "out": "x", "arms": ["scratch", weights["test_vit"]]})
    assert list(config.arms) == ["scratch", "test_vit_r160_in1k"]
    words = [f"suite={file}", "out=x", f"arms=[scratch,{weights['test_vit']}]"]
    assert BenchConfig.resolve(words).arms == config.arms
    with pytest.raises(ConfigError, match=r"arms\[1\]=mea"):
        BenchConfig.resolve([f"suite={file}", "out=x", "arms=[scratch,mea]"])
    assert json.dumps(config.given()["arms"]["test_vit_r160_in1k"], default=str)
