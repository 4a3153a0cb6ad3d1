"""A kind of arm that another module adds: one class, planned, run, estimated and reported as maelift's own are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import maelift.api
import pytest
from maelift.benchmarks.arm_kind import ArmConfig, ArmContext, ArmKind, Init
from maelift.benchmarks.arm_kinds import ARM_KINDS
from maelift.benchmarks.runner import plan
from maelift.benchmarks.runs import Run
from maelift.benchmarks.suite import BenchConfig
from maelift.core.distributed import Ranks
from maelift.core.errors import MaeliftError
from maelift.core.models.encoder_file import Provenance, save_encoder
from maelift.core.models.stored_contract import ENCODER_FILE
from maelift.core.progress import ProgressListener
from maelift.tests.benchmarks.canned import train_middle_rate, use_this_process
from maelift.transfer.init_weights import fresh_encoder

SUITE = """
title: Is one random encoder as good as another?
data: {path: DATA, pool: 20, val: 6, test: 9}
labels: [6]
seeds: [0, 1]
model: vit_nano
image_size: 16
evaluations: 1
baseline: scratch
tuning: {rates: [3e-4, 1e-3, 3e-3, 1e-2], max_doublings: 0, max_extensions: 0}
arms:
  fixed: {start: fixed, label: one random encoder, recipe: &small {batch_size: 4}, steps: {6: 1}}
  scratch: {start: scratch, label: from scratch, recipe: *small, steps: {6: 1}}
"""


class Fixed(ArmKind):
    """An encoder with random weights, the same for all seeds."""

    init: Init = "scratch"

    def plan(self, context: ArmContext, name: str, seed: int) -> Run:
        return Run("fixed", name, 0, 0, 0, 0.0, "", context.facts(name), action="drawing weights", code=1)

    def make_encoder(
        self, run: Run, context: ArmContext, folder: Path, ranks: Ranks, listener: ProgressListener | None
    ) -> dict[str, Any]:
        encoder = fresh_encoder(context.config.spec_of(run.arm), context.preprocessing, 7)
        save_encoder(encoder, folder / ENCODER_FILE, Provenance("random weights"))
        return {"seconds": 0.5, "steps": 0}

    def describe(self, arm: ArmConfig) -> str:
        return "random weights, the same for every seed"


@pytest.fixture
def suite(tmp_path: Path, class_folders: Path) -> Path:
    path = tmp_path / "suite.yaml"
    path.write_text(SUITE.replace("DATA", str(class_folders)))
    return path


def test_a_kind_of_arm_is_one_class(suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARM_KINDS, "fixed", Fixed())
    use_this_process(monkeypatch, train_middle_rate)  # other processes don't know the kind
    config = BenchConfig.resolve({"suite": str(suite), "out": str(tmp_path / "out")})
    text = plan(config).text()
    assert "fixed (fixed), scratch (scratch)" in text and "1 fixed, " in text
    done = maelift.api.bench(str(suite), out=str(tmp_path / "out"))
    assert done.error is None and not done.result.missing
    runs = [json.loads(path.read_text())["run"] for path in (tmp_path / "out").glob("runs/*/result.json")]
    assert [run["kind"] for run in runs].count("fixed") == 1
    parents = {tuple(run["parents"]) for run in runs if run["kind"] == "train" and run["arm"] == "fixed"}
    assert len(parents) == 1 and parents != {()}
    report = (tmp_path / "out" / "report.md").read_text()
    assert "one random encoder: random weights, the same for every seed." in report
    assert ["fixed", "1 of 1"] in [[row[1], row[3]] for row in done.status.rows]


def test_a_kind_of_arm_that_is_not_there_is_named(suite: Path, tmp_path: Path) -> None:
    with pytest.raises(
        MaeliftError, match=r"arms\.fixed\.start=fixed: expected one of mae, encoder, supervised, weights, scratch"
    ):
        BenchConfig.resolve({"suite": str(suite), "out": str(tmp_path / "out")})
