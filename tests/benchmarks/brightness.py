"""A small suite of dark, middle and light images, for tests of its runs, its processes and its report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from maelift.benchmarks.suite import BenchConfig
from PIL import Image

LABELS, SEEDS, RATES = (6, 12), (0, 1, 2), 4

SUITE = """
title: Can dark, middle and light be told apart?
data: {path: images, pool: 60, val: 30}
labels: [6, 12]
seeds: [0, 1, 2]
model: vit_nano
image_size: 16
patch_size: 8
workers: 2
evaluations: 2
baseline: scratch
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], max_doublings: 1, max_extensions: 0}
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain:
      {epochs: 4, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
    recipe: &small {batch_size: 4, mixup: 0.0, cutmix: 0.0, random_erasing: 0.0}
    steps: {6: 3, 12: 4}
  supervised:
    start: supervised
    label: labels of the pool
    pretrain: {batch_size: 8, steps: 10, lr: 1e-3, mixup: 0.0, cutmix: 0.0, ema_decay: null}
    recipe: *small
    steps: {6: 3, 12: 4}
  scratch:
    start: scratch
    label: from scratch
    recipe: {batch_size: 4, mixup: 0.0, cutmix: 0.0, ema_decay: null}
    steps: {6: 3, 12: 4}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the suite and its images."""
    home = tmp_path_factory.mktemp("bench")
    (home / "suite.yaml").write_text(SUITE)
    write_classes(home / "images" / "train", range(60))
    write_classes(home / "images" / "test", range(60, 80))
    for number in range(60, 80):  # a dark image in four is in test too
        shutil.copy(home / "images" / "test" / "dark" / f"{number}.png", home / "images" / "train" / "dark")
    return home


def write_classes(root: Path, numbers: Sequence[int]) -> None:
    """Three classes of noise that differ in brightness, but not by much."""
    for label, level in (("dark", 90), ("middle", 128), ("light", 165)):
        (root / label).mkdir(parents=True)
        for number in numbers:
            values = np.random.default_rng([level, number]).integers(level - 80, level + 80, (16, 16, 3))
            Image.fromarray(values.astype(np.uint8)).save(root / label / f"{number}.png")


def resolved(home: Path, out: Path | None = None, **keys: object) -> BenchConfig:
    """The suite, whatever folder it is called from, with these keys changed."""
    own = {"suite": str(home / "suite.yaml"), "out": str(out or home / "out"), "data": {"path": str(home / "images")}}
    return BenchConfig.resolve({**own, **keys})


def results(out: Path) -> dict[str, dict[str, Any]]:
    """What the finished runs wrote, by their keys."""
    return {path.parent.name: json.loads(path.read_text()) for path in (out / "runs").glob("*/result.json")}


def tables(out: Path) -> list[str]:
    """The tables of the report but those of its section on time."""
    return [line for line in (out / "report.md").read_text().split("## Time")[0].splitlines() if line.startswith("|")]


def processes(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, above = path.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(above) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(parent: int) -> list[int]:
    """The processes of a suite that do its runs: forks of one that has their imports done."""
    found: list[int] = []
    for one in processes(parent):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes():
                found += processes(one)
    return found
