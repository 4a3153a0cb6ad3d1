"""Some of the stops of tests/stops.py; all of them take an hour."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from maelift.tests.stops import Subject, group, small_disk, stop_again_and_again, subjects, uninterrupted
from maelift.tests.support import environment, preloaded


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stops")


@pytest.fixture(scope="module")
def ready(home: Path) -> dict[str, Subject]:
    return subjects(home)


@pytest.fixture(scope="module")
def whole(home: Path, ready: dict[str, Subject]) -> dict[str, tuple[object, float]]:
    """What the runs end with when nothing stops them, and the seconds that they take."""
    return {name: uninterrupted(home, name, ready[name]) for name in ("pretrain", "transfer")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "stops"),
    [("pretrain", "sigterm", 3), ("pretrain", "worker", 1), ("pretrain", "disk", 2), ("transfer", "sigterm", 2)],
)
def test_stopped_runs_end_in_one_line_and_go_on_to_the_same_bits(
    home: Path, ready: dict[str, Subject], whole: dict[str, tuple[object, float]], name: str, kind: str, stops: int
) -> None:
    place: Any = nullcontext(home)
    if kind == "disk":
        place = small_disk(home)
        if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
            pytest.skip("file systems can't be mounted here")
    with place as folder:
        outcome = stop_again_and_again(home, folder, ready[name], kind, stops, 0, *whole[name])
    assert not outcome.wrong and outcome.stops == stops, str(outcome)


@pytest.mark.slow
def test_a_suite_passes_a_stop_of_the_whole_group_on(home: Path, ready: dict[str, Subject]) -> None:
    out = home / "suite"
    run = preloaded().start([*ready["bench"].words, f"out={out}"], home, environment(), session=True)
    end = time.monotonic() + 120
    while not list(out.glob("runs/*/data.json")):  # a pretraining has begun
        assert time.monotonic() < end and run.poll() is None, run.said()
        time.sleep(0.02)
    workers = group(run.pid)
    for _ in range(2):
        os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(60) == 143
    _, said = run.said()
    assert [line for line in said.splitlines() if line.startswith("maelift")] == [said.splitlines()[-1]], said
    assert "The same command goes on" in said and "Traceback" not in said
    assert workers and not any(worker.is_running() for worker in workers)
