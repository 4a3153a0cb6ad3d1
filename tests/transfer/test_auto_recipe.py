"""recipe=auto of a transfer: by labelled images and device, with its reason, kept by the run, never over a given key."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from maelift.core import device
from maelift.core.errors import ConfigError, DataError
from maelift.tests.support import FASHION_MNIST, run_maelift, write_images
from maelift.transfer import tasks
from maelift.transfer.auto_recipe import resolve_config
from maelift.transfer.config import TransferConfig

START = {"encoder": "encoder.safetensors", "out": "out"}


def resolved(task: str, **keys: Any) -> TransferConfig:
    return resolve_config(tasks.entry(task).config_type(), {**START, "recipe": "auto", **keys})


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for label in ("cats", "dogs"):
        write_images(tmp_path / "pets" / label, 12)
    return tmp_path / "pets"


def test_few_labels_get_the_small_recipe_to_the_last_number(pets: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "maelift"):
        chosen = resolved("classify", data=str(pets))
    small = tasks.entry("classify").config_type().resolve({**START, "data": str(pets), "recipe": "small"})
    assert chosen == small and chosen.recipe == "small"
    assert "recipe=auto: small, as 24 labelled images make 3 steps of the published recipe" in caplog.text


@pytest.mark.parametrize(
    ("there", "keys", "expected"),
    [
        ("cpu", {}, "small"),  # 60,000 images make 5,860 steps, but there is no GPU
        ("cuda", {}, "paper"),
        ("cuda", {"labels": 10_000}, "small"),  # 977 steps
        ("cuda", {"labels": 0.5}, "paper"),
        ("cuda", {"labels": 0.1}, "small"),
        ("cuda", {"labels": 10_000, "batch_size": 512}, "paper"),
        ("cpu", {"method": "knn"}, "paper"),  # which has no other
        ("cpu", {"method": "linear"}, "small"),
    ],
)
def test_many_labels_get_the_published_recipe_where_there_is_a_gpu(
    there: str, keys: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "choose_device", lambda name: torch.device(there))
    found = resolved("classify", data=str(FASHION_MNIST), **keys)
    assert found.recipe == expected
    for key, value in keys.items():
        assert getattr(found, key) == value


def test_given_keys_and_the_runs_own_recipe_win(pets: Path, tmp_path: Path) -> None:
    found = resolved("classify", data=str(pets), steps=7, layer_decay=0.5)
    assert (found.steps, found.layer_decay, found.recipe) == (7, 0.5, "small")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({"recipe": "paper"}))
    assert resolved("classify", data=str(pets), out=str(tmp_path / "run")).recipe == "paper"


def test_boxes_and_masks_are_counted_too(tmp_path: Path) -> None:
    write_images(tmp_path / "boxes" / "images", 9)
    names = sorted(file.name for file in (tmp_path / "boxes" / "images").iterdir())
    content = {
        "images": [{"id": n, "file_name": name, "width": 24, "height": 20} for n, name in enumerate(names)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 0} for n in range(9)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "boxes" / "annotations.json").write_text(json.dumps(content))
    assert resolved("detect", data=str(tmp_path / "boxes")).recipe == "small"
    write_images(tmp_path / "masked" / "images", 6)
    write_images(tmp_path / "masked" / "masks", 6, mode="L")
    assert resolved("segment", data=str(tmp_path / "masked")).recipe == "small"


def test_what_can_t_be_read_is_an_error_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        resolved("classify", data=str(tmp_path / "nowhere"))
    done = run_maelift("transfer", "classify", "encoder=e", "out=o", "recipe=auto")
    assert done.returncode == 2 and "data" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(ConfigError, match="recipe=auto: expected paper or small here"):
        tasks.entry("classify").config_type().resolve({**START, "data": "d", "recipe": "auto"})


def test_it_runs_and_is_kept_in_the_configuration(pets: Path, tmp_path: Path) -> None:
    words = [
        "init=scratch",
        "model=vit_nano",
        "image_size=16",
        f"data={pets}",
        f"out={tmp_path / 'run'}",
        "recipe=auto",
    ]
    words += ["steps=4", "evaluations=1", "batch_size=8", "workers=0", "val=6", "test=6"]
    done = run_maelift("transfer", "classify", *words)
    assert done.returncode == 0, done.stderr
    assert "recipe=auto: small" in done.stderr
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["recipe"] == "small"
    again = run_maelift("transfer", "classify", *words)
    assert again.returncode == 0 and "as it was chosen for the run" in again.stderr
    assert again.stdout == done.stdout
