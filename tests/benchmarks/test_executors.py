"""The same suite by processes of this machine, by a real Ray and by a real SLURM: the same table, to the byte."""

from __future__ import annotations

import os
import subprocess
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from maelift.benchmarks.cluster_executors import ClusterExecutor, _read_progress, _write_progress
from maelift.benchmarks.executor import STALLED, at_intervals
from maelift.benchmarks.runs import Run
from maelift.core.progress import TrainingProgress
from maelift.core.tools.fashion_scenes import FashionScenesConfig, fashion_scenes
from maelift.tests.preloaded import CODE
from maelift.tests.pretrain.test_slurm import slurm  # noqa: F401  (a fixture)
from maelift.tests.support import environment, framework, one_line_error, preloaded
from typing_extensions import Self

SUITE = """
title: Does it matter who runs it?
data: {unlabelled: scenes/pool}
baseline: scratch
model: vit_nano
image_size: 32
patch_size: 8
channels: 1
workers: 2
evaluations: 1
tasks:
  segment:
    {task: segment, data: scenes, labels: [8], seeds: [0], short: true, steps: 2,
      recipe: {recipe: small, head: linear, batch_size: 4, lr: 1e-3}}
arms:
  mae:
    start: mae
    label: MAE on the pool
    pretrain: {epochs: 2, batch_size: 8, lr: 1e-3, holdout: 4, evaluations: 1, decoder: {embed_dim: 16, depth: 1, num_heads: 2}}
  scratch: {start: scratch, label: from scratch}
"""

pytestmark = pytest.mark.slow


BENCH = """
import sys
from maelift.cli import main
sys.executable = sys.argv.pop(1)
sys.exit(main(sys.argv[1:]))
"""
"""``maelift`` with another Python for the jobs that it submits."""


def bench(home: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return preloaded().run(["bench", "suite.yaml", *words], home, env or environment(), 600)


def bench_by_slurm(home: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A suite by SLURM, whose jobs find their imports done; test_slurm.py has jobs that start as anybody's do."""
    python = str(preloaded().shim() / "python")
    limits = ("executor=slurm", "slurm.minutes=10", "slurm.memory_gb=0.9")
    return preloaded().run([CODE, BENCH, python, "bench", "suite.yaml", *words, *limits], home, env, 600)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, fashion_mnist: Path) -> Path:
    """A folder with the suite, its scenes, and what local processes make of it."""
    home = tmp_path_factory.mktemp("executors")
    (home / "suite.yaml").write_text(SUITE)
    keys: dict[str, Any] = {"size": 32, "items": (1, 3), "item_sizes": (12, 16)}
    fashion_scenes(
        FashionScenesConfig(str(home / "scenes"), str(fashion_mnist), train=16, val=6, test=10, pool=24, **keys)
    )
    done = bench(home, "out=local")
    assert done.returncode == 0, done.stderr
    return home


def table(out: Path) -> bytes:
    return (out / "results.csv").read_bytes()


def test_ray_gives_the_same_table(home: Path) -> None:
    framework("ray")
    done = bench(
        home, "out=ray", "executor=ray", "workers=1", env={**environment(), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert not list((home / "ray").glob("runs/*/progress.json"))
    assert table(home / "ray") == table(home / "local")
    again = bench(home, "out=ray")
    assert "every run is there already" in again.stderr and table(home / "ray") == table(home / "local")


def test_slurm_gives_the_same_table(home: Path, slurm: dict[str, str]) -> None:  # noqa: F811
    done = bench_by_slurm(home, "out=slurm", env=slurm)
    assert done.returncode == 0, done.stderr
    assert table(home / "slurm") == table(home / "local")
    jobs = [path for path in (home / "slurm" / "slurm").glob("*_result.pkl")]
    assert len(jobs) == 1 + 2 + 2  # an encoder, trainings, tests


def test_how_far_a_run_elsewhere_is_gets_heard(tmp_path: Path) -> None:
    note, heard = tmp_path / "progress.json", TrainingProgress(step=3, total=9, images_per_second=12.5, loss=0.25)
    assert _read_progress(note) is None
    tell = at_intervals(5.0, partial(_write_progress, note))
    tell(heard)
    tell(replace(heard, step=4))  # too soon for another note
    assert _read_progress(note) == heard
    note.write_text('{"step": 3, "tot')
    assert _read_progress(note) is None


class Hanging(ClusterExecutor[threading.Event]):
    """Runs that note one step, and no more; they are done once they are stopped, or told to be."""

    def __enter__(self) -> Self:
        return self

    def _submit(self, run: Run) -> threading.Event:
        _write_progress(self._progress_file(run), TrainingProgress(step=1, total=9, images_per_second=12.5, loss=0.25))
        return threading.Event()

    def _is_done(self, handle: threading.Event) -> bool:
        return handle.is_set()

    def _outcome(self, handle: threading.Event) -> None:
        return None

    def _stop(self, handle: threading.Event) -> None:
        handle.set()


def test_a_run_that_hangs_elsewhere_is_ended(tmp_path: Path) -> None:
    run = Run(kind="train", arm="scratch", seed=0, labels=8, steps=9, lr=1e-3, recipe="", context="", code=1)
    (tmp_path / run.key).mkdir()
    heard: list[str] = []

    def ends(stall_minutes: float) -> list[tuple[Run, str | None]]:
        """What one look at a run finds, after a first one has heard of it."""
        context: Any = SimpleNamespace(config=SimpleNamespace(stall_minutes=stall_minutes))
        executor = Hanging(context, tmp_path, 1)
        executor.start(run)
        assert executor.wait(lambda key, _: heard.append(key)) == [] and heard.pop() == run.key
        return executor.wait(lambda key, _: heard.append(key))

    assert ends(stall_minutes=10) == []
    assert ends(stall_minutes=0.001) == [(run, STALLED)]


def test_without_slurm_it_is_told(home: Path) -> None:
    path = os.pathsep.join(
        part for part in os.environ["PATH"].split(os.pathsep) if not (Path(part) / "sbatch").exists()
    )
    done = bench(home, "out=none", "executor=slurm", env={**environment(), "PATH": path})
    one_line_error(done, "executor=slurm: no sbatch on this machine's path")
    one_line_error(bench(home, "out=none", "executor=slurm", "slurm.processes_per_node=2"), "one process a run")
    one_line_error(bench(home, "out=none", "executor=kubernetes"), "one of local, slurm, ray")


def test_a_run_that_fails_elsewhere_is_told_and_the_others_are_done(
    home: Path,
    slurm: dict[str, str],  # noqa: F811
) -> None:
    (home / "broken" / "runs").mkdir(parents=True)
    done = bench_by_slurm(home, "out=broken", "arms.mae.pretrain.batch_size=64", env=slurm)
    one_line_error(done, "mae: pretraining, seed 0: batch_size=64, but only")
    assert "from scratch" in (home / "broken" / "report.md").read_text()
