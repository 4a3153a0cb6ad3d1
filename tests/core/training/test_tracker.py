"""What a run keeps of itself, where the disk takes all of it, a part, or nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path

import pytest
from maelift.core.files import append_bytes
from maelift.core.training.tracker import METRICS_FILE, Tracker, read_metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def log(folder: Path, steps: range, first: int = 0) -> None:
    with Tracker(folder, "test", total=9, images_per_step=1) as tracker:
        tracker.resume_from(first)
        for step in steps:
            tracker.log(step, {"train/loss": 1 / step, "lr": 0.1 * first})


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    log(tmp_path, range(1, 6))
    log(tmp_path, range(4, 8), first=3)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["lr", "train/loss"]
    shown, kept = board.Scalars("train/loss"), read_metrics(tmp_path / METRICS_FILE)
    assert [event.step for event in shown] == [record["step"] for record in kept] == list(range(1, 8))
    assert [event.value for event in shown] == pytest.approx([record["train/loss"] for record in kept])
    assert [event.value > 0 for event in board.Scalars("lr")] == [False] * 3 + [True] * 4


def test_a_run_goes_on_without_tensorboard_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    before = threading.active_count()
    with caplog.at_level(logging.WARNING, "maelift"):
        log(tmp_path, range(1, 6))
    assert len(read_metrics(tmp_path / METRICS_FILE)) == 5 and threading.active_count() == before
    assert [record.getMessage() for record in caplog.records] == [
        "TensorBoard's files can't be written (file exists); continuing without them, see metrics.jsonl"
    ]


def test_a_line_that_the_disk_has_no_room_for_is_not_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(tmp_path, range(1, 3))
    file, write = tmp_path / METRICS_FILE, os.write
    before = file.read_bytes()

    def nearly_full(handle: int, content: bytes) -> int:
        if file.stat().st_size > len(before):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(handle, content[:7])

    monkeypatch.setattr(os, "write", nearly_full)
    with pytest.raises(OSError, match="No space left") as caught:
        append_bytes(file, json.dumps({"step": 3, "train/loss": 0.5}).encode())
    assert caught.value.filename == str(file) and file.read_bytes() == before
