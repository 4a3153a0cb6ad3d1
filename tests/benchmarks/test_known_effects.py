"""Suites whose answer is known: an arm that is the baseline in disguise, one that is worse by its making, one that knows more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import maelift
import numpy as np
import pytest
import torch
import yaml
from maelift.benchmarks.runner import BenchResult
from maelift.core.models.encoder import Encoder
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.core.models.encoder_spec import preset_spec
from maelift.tests.support import random_encoder
from maelift.transfer.init_weights import fresh_encoder
from PIL import Image

SEEDS = [0, 1, 2, 3]
RECIPE = {
    "batch_size": 6,
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 0.0,
    "ema_decay": None,
    "crop_scale": [1.0, 1.0],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of noise that differ in brightness: easy, but not within a few steps."""
    root = tmp_path_factory.mktemp("known")
    for label, level in (("dark", 100), ("middle", 128), ("light", 156)):
        for split, count in (("train", 40), ("val", 30), ("test", 60)):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                draw = np.random.default_rng([level, number, len(split)])
                values = draw.integers(level - 90, level + 90, (16, 16, 3)).clip(0, 255)
                Image.fromarray(values.astype(np.uint8)).save(root / split / label / f"{number}.png")
    return root


def encoder_of(path: Path, encoder: Encoder) -> str:
    save_encoder(encoder, path, Provenance("made for a test"))
    return str(path)


def bench(images: Path, out: Path, arms: dict[str, Any], **keys: Any) -> BenchResult:
    scratch = {"start": "scratch", "label": "from scratch", "recipe": RECIPE, "steps": {"12": 30}}
    suite = {
        "title": "Is the known effect found?",
        "data": {"path": str(images), "pool": 60},
        "labels": [12],
        "seeds": SEEDS,
        "model": "vit_nano",
        "image_size": 16,
        "patch_size": 8,
        "evaluations": 2,
        "workers": 2,
        "baseline": "scratch",
        "tuning": {
            **{"rates": [3e-4, 1e-3, 3e-3, 6e-3], "max_doublings": 0, "max_extensions": 0},
            **{"per_seed": False, "draws": 1},
        },
        "arms": {**arms, "scratch": scratch},
    }
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(suite))
    return maelift.bench(str(file), out=str(out), **keys)


@pytest.mark.slow
def test_an_arm_that_is_scratch_in_disguise_is_not_resolved_and_a_broken_one_hurts(
    images: Path, tmp_path: Path
) -> None:
    spec = preset_spec("vit_nano", image_size=16, patch_size=8, channels=3)
    preprocessing = random_encoder(spec).preprocessing
    blind = fresh_encoder(spec, preprocessing, 5)
    with torch.no_grad():
        for parameter in blind.patch_embed.parameters():
            parameter.zero_()  # sees nothing of an image
    own: dict[str, Any] = {**RECIPE, "layer_decay": 1.0, "weight_decay": 0.3, "betas": [0.9, 0.95]}
    null = {"recipe": own, "steps": {"12": 30}, "start": "encoder", "label": "scratch in disguise"}
    harm = {**null, "label": "blind", "recipe": {**own, "layer_decay": 1e-6}}  # and never learns to see
    result = bench(
        images,
        tmp_path / "out",
        {
            "null": {
                **null,
                "weights": encoder_of(tmp_path / "null.safetensors", fresh_encoder(spec, preprocessing, 99)),
            },
            "harm": {**harm, "weights": encoder_of(tmp_path / "harm.safetensors", blind)},
        },
    )
    by_arm = {arm: verdict for verdict in result.verdicts for arm in ("scratch in disguise", "blind") if arm in verdict}
    assert "not resolved" in by_arm["scratch in disguise"], by_arm
    assert "(blind) hurts" in by_arm["blind"], by_arm
    (only,) = result.result.parts
    fresh = [only.score(cell) for cell in only.cells if cell.arm == "scratch"]
    assert min(fresh) > 0.5  # the baseline learned, so that there was something to lose
    assert all(abs(only.score(cell) - 1 / 3) < 0.02 for cell in only.cells if cell.arm == "harm")
