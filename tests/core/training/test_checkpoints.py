"""Checkpoints: whole or not there, the last few kept, damage told, and nothing but tensors read."""

from __future__ import annotations

import errno
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from maelift.core.distributed import Ranks
from maelift.core.errors import CheckpointError
from maelift.core.signals import StopRequested
from maelift.core.training.checkpoints import Checkpoints
from maelift.core.training.ema import WeightAverage
from maelift.core.training.state import State
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

ONE = Ranks(0, 1, torch.device("cpu"))


def saved(folder: Path, *steps: int, keep: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(folder, ONE, keep)
    for step in steps:
        tensors = {"a": torch.full((3, 2), float(step)), "b": torch.tensor(step)}
        checkpoints.save(step, tensors, {"step": step, "best": -float("inf")}, wait=True)
    return checkpoints


def test_the_newest_comes_back_and_the_last_few_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 5, 30, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000030"]
    assert checkpoints.newest() == 30
    assert checkpoints.extra_state(30) == {"step": 30, "best": -float("inf")}
    into = {"a": torch.zeros(3, 2), "b": torch.tensor(0)}
    checkpoints.load(30, into)
    assert torch.equal(into["a"], torch.full((3, 2), 30.0)) and int(into["b"]) == 30
    checkpoints.remove()
    assert not tmp_path.exists() and checkpoints.newest() is None


def test_what_changes_while_it_is_written_is_written_as_it_was(tmp_path: Path) -> None:
    checkpoints, tensor = Checkpoints(tmp_path, ONE), torch.zeros(1_000_000)
    checkpoints.save(1, {"a": tensor}, {})
    tensor += 1
    checkpoints.finish()
    into = torch.ones(1_000_000)
    checkpoints.load(1, {"a": into})
    assert not into.any()


@pytest.mark.parametrize("how", ["cut off", "other bytes", "gone", "no description", "half a name"])
def test_a_damaged_one_is_told_of_and_the_one_before_is_taken(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    newest = tmp_path / "step-00000002"
    data = next(newest.glob("*.distcp"))
    content = data.read_bytes()
    if how == "cut off":
        data.write_bytes(content[:-7])
    elif how == "other bytes":
        data.write_bytes(content[:-7] + b"\0" * 7)
    elif how == "gone":
        data.unlink()
    elif how == "no description":
        (newest / "state.json").unlink()
    else:  # killed while it was written
        (newest / "state.json").unlink()
        newest.rename(tmp_path / ".step-00000002.part")
    assert checkpoints.newest() == 1
    if how != "half a name":
        assert "step-00000002: damaged" in caplog.text and "one before" in caplog.text
    saved(tmp_path, 3)
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_newest_one_does_not_push_out_those_written_after_going_back(tmp_path: Path) -> None:
    saved(tmp_path, 5, 100, keep=2)
    (tmp_path / "step-00000100" / "state.json").unlink()
    assert saved(tmp_path, 6, keep=1).newest() == 6
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


@pytest.mark.parametrize("old", ["gone", "half gone", "there"])
def test_one_that_is_whole_gets_its_name_where_a_kill_came_before(tmp_path: Path, old: str) -> None:
    """As when a state is written anew after going back: the old one of that name makes room just before."""
    saved(tmp_path, 7, keep=1).load(7, {"a": torch.zeros(3, 2)})
    named, part = tmp_path / "step-00000007", tmp_path / ".step-00000007.part"
    if old == "gone":
        named.rename(part)
    else:
        shutil.copytree(named, part)
    if old == "half gone":
        next(named.glob("*.distcp")).unlink()
    assert Checkpoints(tmp_path, ONE).newest() == 7
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_when_all_are_damaged_the_run_does_not_start_anew_by_itself(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1)
    (tmp_path / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"every checkpoint in it is damaged .* Remove it to start again"):
        checkpoints.newest()


def test_a_description_that_asks_for_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "run",))

    checkpoints = saved(tmp_path / "c", 1)
    (tmp_path / "c" / "step-00000001" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="it refers to"):
        checkpoints.shapes(1)
    assert not (tmp_path / "run").exists()


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    def state(width: int, average: bool) -> State:
        model = nn.Linear(width, 1)
        return State(model, torch.optim.AdamW(model.parameters()), WeightAverage(model, 0.9) if average else None)

    checkpoints, own = Checkpoints(tmp_path, ONE), state(3, True)
    checkpoints.save(0, own.tensors(), own.extra_state(), wait=True)
    assert state(3, True).load(checkpoints)
    for other in (state(4, True), state(3, False)):
        with pytest.raises(CheckpointError, match="not a checkpoint of this run") as caught:
            other.load(checkpoints)
        assert "\n" not in str(caught.value)


def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("a file where the folder should be")
    checkpoints = Checkpoints(tmp_path / "c", ONE)
    with pytest.raises(OSError):
        checkpoints.save(1, {"a": torch.zeros(3)}, {}, wait=True)


def test_a_state_that_the_disk_has_no_room_for_leaves_nothing_and_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, ONE)
    checkpoints.save(1, {"a": torch.ones(3)}, {"step": 1}, wait=True)

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("maelift.core.training.checkpoints.atomic_write_text", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(2, {"a": torch.zeros(3)}, {"step": 2}, wait=True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and checkpoints.newest() == 1


@pytest.mark.parametrize("error", [StopRequested(signal.SIGTERM), MemoryError()])
def test_a_signal_or_too_little_memory_while_loading_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """torch wraps whatever is raised within its loading and saving."""
    checkpoints, into = saved(tmp_path, 1), {"a": torch.zeros(3, 2), "b": torch.tensor(0)}

    def struck(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(FileSystemReader, "read_data", struck)
        with pytest.raises(type(error)):
            checkpoints.load(1, into)
        patched.setattr(FileSystemWriter, "write_data", struck)
        with pytest.raises(type(error)):
            checkpoints.save(2, into, {"step": 2}, wait=True)
    checkpoints.load(1, into)
    assert checkpoints.newest() == 1 and into["a"].eq(1).all()
