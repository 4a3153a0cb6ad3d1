"""What all tasks share: the flow of a run, early stopping, judging another split; and a fourth task, as the docs have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import maelift
import pytest
import yaml
from maelift.core.errors import ConfigError, DataError, MaeliftError
from maelift.core.models.encoder_spec import EncoderSpec
from maelift.core.training.tracker import read_metrics
from maelift.tests.support import (
    ROOT,
    encoder_file,
    noise_image,
    one_line_error,
    random_encoder,
    run_maelift,
)
from maelift.transfer.classification.config import ClassifyConfig
from maelift.transfer.metrics import Scores
from maelift.transfer.recipe import Recipe, recipe_defaults

SPEC = EncoderSpec(image_size=(16, 16), patch_size=4, embed_dim=32, depth=2, num_heads=2)
KEYS: dict[str, Any] = {
    "mixup": 0,
    "cutmix": 0,
    "random_erasing": 0,
    "val": 12,
    "test": 12,
    "batch_size": 16,
    "steps": 20,
    "lr": 1e-3,
    "evaluations": 10,
    "workers": 0,
}
"""Keys that make a fine-tuning of a second."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_file(tmp_path_factory.mktemp("encoder") / "encoder.safetensors", random_encoder(SPEC))


@pytest.fixture(scope="module")
def finished(class_folders: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished classification."""
    out = tmp_path_factory.mktemp("finished") / "run"
    maelift.transfer("classify", data=class_folders, out=out, encoder=encoder, **KEYS)
    return out


def words(**keys: object) -> list[str]:
    return [f"{key}={value}" for key, value in keys.items()]


def test_training_ends_early_when_patience_runs_out(
    class_folders: Path, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {**KEYS, "encoder": encoder, "data": class_folders, "lr": 1e-9}  # nothing changes, so nothing gets better
    result = maelift.transfer("classify", out=tmp_path / "run", patience=3, **keys)
    content = json.loads((tmp_path / "run" / "test.json").read_text())
    assert content["steps"] == 8 and content["best_step"] == 2  # evaluated every second step; three in vain
    judged = [record for record in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/top1" in record]
    assert len(judged) == 4 and result.val == judged[0]["val/top1"]


def test_a_finished_model_is_judged_on_another_split_and_on_other_data(
    finished: Path, class_folders: Path, tmp_path: Path
) -> None:
    done = run_maelift("transfer", "classify", f"out={finished}", "--evaluate", "val")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("val: top1 ") and "(12 images, 1 seed)" in done.stdout
    own = json.loads((finished / "evaluation_val.json").read_text())
    best = json.loads((finished / "test.json").read_text())["val"]
    assert own["metrics"]["top1"] == best["val/top1"] and own["split"] == "val"
    other = tmp_path / "other"
    for path in sorted(class_folders.glob("*/1*.png")):
        (other / path.parent.name).mkdir(parents=True, exist_ok=True)
        (other / path.parent.name / path.name).write_bytes(path.read_bytes())
    done = run_maelift("transfer", "classify", f"out={finished}", "--evaluate=test", f"data={other}")
    assert done.returncode == 0, done.stderr
    (file,) = finished.glob("evaluation_test_*.json")
    assert json.loads(file.read_text())["count"] == 33  # a whole that has no splits and str(file) in done.stdout


def test_what_cannot_be_judged_is_refused(finished: Path, class_folders: Path, tmp_path: Path) -> None:
    done = run_maelift("transfer", "classify", f"out={tmp_path / 'none'}", "--evaluate", "val")
    one_line_error(done, "no finished run")
    for name in ("dark", "light"):
        (tmp_path / "two" / name).mkdir(parents=True)
        for number in range(6):
            noise_image(number).save(tmp_path / "two" / name / f"{number}.png")
    config = ClassifyConfig.resolve(words(out=finished, evaluate="test", data=tmp_path / "two"))
    from maelift.transfer.evaluate import evaluate

    with pytest.raises(DataError, match=r"knows dark, light, middle"):
        evaluate(config, "test")


def test_a_run_leaves_model_figures_curves_and_a_page(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"model.safetensors", "encoder.safetensors", "test.json", "summary.html", "metrics.jsonl"} <= names
    assert not any("checkpoint" in name or name.startswith(".") for name in names)
    scores = Scores.from_json(json.loads((finished / "test.json").read_text()))
    assert next(iter(scores.metrics)) == "top1" and set(scores.per_class) == {"dark", "light", "middle"}
    assert "images, 1 seed" in (line := scores.line()) and line.startswith("test: top1 ")


@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_every_start_of_every_task_has_a_recipe_of_its_own(task: str) -> None:
    recipes = [recipe_defaults(f"{task}_{init}") for init in ("encoder", "supervised", "scratch")]
    assert recipes[0] != recipes[1] != recipes[2] != recipes[0]
    for init in ("encoder", "supervised", "scratch"):
        text = (ROOT / "transfer" / "recipes" / f"{task}_{init}.yaml").read_text()
        assert "#" in text.splitlines()[0], "a recipe begins with its source"
        assert set(yaml.safe_load(text)) >= {"epochs", "batch_size", "base_lr", "layer_decay", "weight_decay"}


def test_a_recipe_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="classify_encoder"):
        recipe_defaults("classify_nothing")


@pytest.mark.parametrize("key", ["epochs", "batch_size", "layer_decay", "warmup", "betas"])
def test_numbers_that_cannot_be_are_refused(key: str) -> None:
    wrong: dict[str, Any] = {"epochs": 0, "batch_size": -1, "layer_decay": 1.5, "warmup": 1.0, "betas": (0.9, 1.0)}
    right = {
        "epochs": 1,
        "batch_size": 1,
        "base_lr": 1,
        "layer_decay": 1,
        "weight_decay": 0,
        "betas": (0.9, 0.9),
        "warmup": 0,
        "drop_path": 0,
        "ema_decay": None,
        "clip_grad": None,
    }
    with pytest.raises(ConfigError, match=key):
        Recipe(**{**right, key: wrong[key]})


def test_an_unknown_task_is_named_with_those_that_are() -> None:
    with pytest.raises(MaeliftError, match="classify or detect or segment"):
        maelift.transfer("count", data="x", out="y")  # type: ignore[call-overload]
